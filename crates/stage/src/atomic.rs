//! Files that are there whole or not at all.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, BufWriter, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use crate::{
    Error, Result, hash_bytes,
    lock::{Held, open_alone},
};

/// What file systems take for a name, in bytes.
const NAME_MAX: usize = 255;

/// A file being written beside its target, which [`AtomicFile::commit`] puts in the target's place.
///
/// Dropped without a commit it vanishes. A crash leaves at most a `.<name>.partial` behind, which the next writer of
/// the same target replaces. One writer at a time has a target: the lock on the file beside it is held until that file is
/// in place or gone (but on Windows, whose locks are of another kind).
#[derive(Debug)]
pub struct AtomicFile {
    target: PathBuf,
    partial: PathBuf,
    writer: BufWriter<File>,
    is_committed: bool,
}

impl AtomicFile {
    /// Starts writing `target`, whose folder is created where it is missing.
    ///
    /// # Errors
    /// [`Error::Busy`] where another writer has it; else when it cannot be written.
    pub fn create(target: impl Into<PathBuf>) -> Result<Self> {
        Self::open(target.into(), Held::IsNone)
    }

    fn open(target: PathBuf, held: Held) -> Result<Self> {
        let partial = beside(&target, ".", ".partial");
        if let Some(folder) = target.parent() {
            create_dir(folder)?;
        }
        // Where locks keep others from reading too, writers that read back what they wrote could not.
        let opened =
            if cfg!(windows) { File::create(&partial).map(Some) } else { open_alone(&partial, held) };
        let Some(file) = opened.map_err(Error::write(&target))? else {
            return Err(Error::Busy { path: target });
        };
        // What a crash has left.
        file.set_len(0).map_err(Error::write(&target))?;
        let writer = BufWriter::with_capacity(1 << 20, file);
        Ok(Self { target, partial, writer, is_committed: false })
    }

    /// The path the file will have after [`AtomicFile::commit`].
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The path that the file has until then.
    pub fn partial(&self) -> &Path {
        &self.partial
    }

    /// The file beside the target, for writing at places of one's own and from several threads.
    ///
    /// It goes past the buffer that `Write` and `Seek` have: use one way or the other.
    pub fn file(&self) -> &File {
        self.writer.get_ref()
    }

    /// Flushes, syncs and renames: from here on the target holds all that was written.
    pub fn commit(mut self) -> Result<()> {
        self.finish().map_err(Error::write(&self.target))
    }

    fn finish(&mut self) -> io::Result<()> {
        self.writer.flush()?;
        self.writer.get_ref().sync_all()?;
        // With the lock still held: who gets it next must see that the file is no longer beside its target.
        fs::rename(&self.partial, &self.target)?;
        self.is_committed = true;
        sync_folder_of(&self.target)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.writer.seek(position)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        // After a commit the name may be another writer's already; before it, nothing of value is lost.
        if !self.is_committed {
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// What lies beside `path` under its name with something before and after it; with the name's hash for the name where that
/// would be longer than file systems take.
pub fn beside(path: &Path, before: &str, after: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default();
    let mut whole = OsString::from(before);
    if before.len() + name.len() + after.len() <= NAME_MAX {
        whole.push(name);
    } else {
        whole.push(hash_bytes(name.as_encoded_bytes()).to_string());
    }
    whole.push(after);
    path.with_file_name(whole)
}

/// Writes `bytes` to `path`, whole or not at all. Where another writes it, it waits: such files are soon written.
pub fn write_atomic(path: impl Into<PathBuf>, bytes: impl AsRef<[u8]>) -> Result<()> {
    let mut file = AtomicFile::open(path.into(), Held::IsAwaited)?;
    file.write_all(bytes.as_ref()).map_err(Error::write(file.target().to_path_buf()))?;
    file.commit()
}

/// Creates a folder and those above it; a folder that is there already is fine.
pub fn create_dir(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(|source| Error::CreateDir { path: path.to_path_buf(), source })
}

/// Removes a file, a link or a folder with all that is in it; none there is fine.
///
/// # Errors
/// When it cannot be removed.
pub fn remove_all(path: &Path) -> Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    };
    result.map_err(Error::write(path))
}

/// Makes the names in the folder of `path` survive a power cut. Windows has no way to open a folder for this.
///
/// # Errors
/// The folder cannot be opened or synced.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    if cfg!(windows) {
        return Ok(());
    }
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_file_leaves_the_target_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a.txt");
        write_atomic(&target, "old").unwrap();
        let mut file = AtomicFile::create(&target).unwrap();
        file.write_all(b"new").unwrap();
        drop(file);
        assert_eq!(fs::read_to_string(&target).unwrap(), "old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no partial file is left");
    }

    #[test]
    fn a_commit_replaces_the_target() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("deep/er/a.txt");
        write_atomic(&target, "old").unwrap();
        write_atomic(&target, "new").unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "new");
    }

    #[test]
    fn a_name_as_long_as_file_systems_take_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("n".repeat(255));
        write_atomic(&target, "text").unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "text");
        let short = beside(Path::new("a/b.txt"), ".", ".journal");
        assert_eq!(short, Path::new("a/.b.txt.journal"));
        for length in [240, 245, 246, 247, 255] {
            let whole = beside(&dir.path().join("n".repeat(length)), ".", ".partial");
            assert!(whole.file_name().unwrap().len() <= 255);
            assert_eq!(whole.to_string_lossy().contains("nnn"), length <= 246, "{length}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn one_writer_at_a_time_has_a_target() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a.txt");
        // What a crash has left is longer than what comes.
        fs::write(dir.path().join(".a.txt.partial"), "of a writer that was killed").unwrap();
        let mut first = AtomicFile::create(&target).unwrap();
        first.write_all(b"first").unwrap();
        let error = AtomicFile::create(&target).unwrap_err();
        assert!(
            error.to_string().ends_with("a.txt` is held by another run: wait for it, or end it"),
            "{error}"
        );
        first.commit().unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "first", "whole, whoever else has tried");
        drop(AtomicFile::create(&target).unwrap());
        assert_eq!(fs::read_to_string(&target).unwrap(), "first");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn short_writers_wait_for_each_other_and_each_writes_all() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a.txt");
        std::thread::scope(|scope| {
            for writer in 0..8_usize {
                let target = &target;
                scope.spawn(move || {
                    let text = writer.to_string().repeat(1000 * (writer + 1));
                    (0..20).for_each(|_| write_atomic(target, &text).unwrap());
                });
            }
            for _ in 0..100 {
                let Ok(text) = fs::read_to_string(&target) else { continue };
                let writer: usize = text[..1].parse().unwrap();
                assert_eq!(text, writer.to_string().repeat(1000 * (writer + 1)), "never half, never mixed");
            }
        });
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no partial file is left");
    }

    #[test]
    fn a_folder_in_the_way_is_an_error_that_names_the_target() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        write_atomic(&file, "x").unwrap();
        let error = write_atomic(file.join("a.txt"), "y").unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error_and_not_a_short_file() {
        // /dev/full takes the open and refuses every byte, as a full disk does.
        let full = File::options().write(true).open("/dev/full").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a.bin");
        let mut file = AtomicFile::create(&target).unwrap();
        file.writer = BufWriter::new(full);
        file.write_all(&[0; 100]).unwrap();
        let error = file.commit().unwrap_err();
        assert!(error.to_string().contains("a.bin"), "{error}");
        assert!(!target.exists());
    }
}
