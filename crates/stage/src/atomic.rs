//! Files that are there whole or not at all.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use crate::{Error, Result, hash_bytes};

/// A file being written beside its target, which [`AtomicFile::commit`] puts in the target's place.
///
/// Dropped without a commit it vanishes. A crash leaves at most a `.<name>.partial` behind, which the next writer of
/// the same target replaces.
#[derive(Debug)]
pub struct AtomicFile {
    target: PathBuf,
    partial: PathBuf,
    writer: Option<BufWriter<File>>,
}

impl AtomicFile {
    /// Starts writing `target`, whose folder is created where it is missing.
    pub fn create(target: impl Into<PathBuf>) -> Result<Self> {
        let target = target.into();
        let partial = target.with_file_name(partial_name(&target));
        if let Some(folder) = target.parent() {
            create_dir(folder)?;
        }
        let file = File::create(&partial).map_err(Error::write(&target))?;
        Ok(Self { target, partial, writer: Some(BufWriter::with_capacity(1 << 20, file)) })
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
        self.writer.as_ref().expect("the writer is there until commit").get_ref()
    }

    /// Flushes, syncs and renames: from here on the target holds all that was written.
    pub fn commit(mut self) -> Result<()> {
        self.finish().map_err(Error::write(&self.target))
    }

    fn finish(&mut self) -> io::Result<()> {
        let writer = self.writer.take().expect("commit consumes the file");
        let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&self.partial, &self.target)?;
        sync_folder_of(&self.target)
    }

    fn writer(&mut self) -> &mut BufWriter<File> {
        self.writer.as_mut().expect("the writer is there until commit")
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer().flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.writer().seek(position)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        // After a commit the name is gone; before it, nothing of value is lost.
        let _ = fs::remove_file(&self.partial);
    }
}

/// `.<name>.partial`; by the name's hash where that would be longer than file systems take (255 bytes).
fn partial_name(target: &Path) -> String {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    match name.len() {
        0..=240 => format!(".{name}.partial"),
        _ => format!(".{}.partial", hash_bytes(name.as_bytes())),
    }
}

/// Writes `bytes` to `path`, whole or not at all.
pub fn write_atomic(path: impl Into<PathBuf>, bytes: impl AsRef<[u8]>) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
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
        file.writer = Some(BufWriter::new(full));
        file.write_all(&[0; 100]).unwrap();
        let error = file.commit().unwrap_err();
        assert!(error.to_string().contains("a.bin"), "{error}");
        assert!(!target.exists());
    }
}
