//! Hashes of files and folders, remembered by path, size and time of change.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use vodka_stage::{ContentHash, hash_tree, stamp_tree, write_atomic};

use crate::Result;

/// What is remembered of a file or folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    stamp: Stamp,
    sha256: ContentHash,
}

/// What changes when a file, or a file in a folder, is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    /// Of a file, in bytes.
    size: Option<u64>,
    /// Nanoseconds since 1970; of a folder, of the last of its files.
    changed_ns: u64,
    /// Of a folder: the names, sizes and times of all its files.
    files: Option<ContentHash>,
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        if path.is_dir() {
            let (files, changed_ns) = stamp_tree(path).ok().flatten()?;
            return Some(Self { size: None, changed_ns, files: Some(files) });
        }
        let vodka_stage::Stamp { bytes, modified_ns } = vodka_stage::Stamp::of(path)?;
        Some(Self { size: Some(bytes), changed_ns: modified_ns, files: None })
    }
}

/// Hashes that were found before; a cache that cannot be read is empty, one that cannot be written is not kept.
#[derive(Debug, Default)]
pub(crate) struct Hashes {
    file: Option<PathBuf>,
    entries: BTreeMap<PathBuf, Entry>,
}

impl Hashes {
    pub(crate) fn open(file: Option<&Path>) -> Self {
        let read = |file: &Path| serde_json::from_slice(&fs::read(file).ok()?).ok();
        Self { file: file.map(Path::to_path_buf), entries: file.and_then(read).unwrap_or_default() }
    }

    /// The hashes of files, or of all files of folders, those that are not known worked out side by side.
    pub(crate) fn of(&mut self, paths: &[&Path]) -> Result<Vec<ContentHash>> {
        let known: Vec<_> = paths.iter().map(|path| self.known(path)).collect();
        let hash = |(path, known): (&&Path, &Option<ContentHash>)| {
            if let Some(known) = known {
                return Ok((*known, None));
            }
            let before = Stamp::of(path);
            let hash = hash_tree(path, |_| true)?;
            // What was changed meanwhile is not remembered.
            Ok((hash, before.filter(|before| Stamp::of(path) == Some(*before))))
        };
        let hashes = paths.par_iter().zip(&known).map(hash).collect::<Result<Vec<_>>>()?;
        if known.iter().any(Option::is_none) {
            for (path, (hash, stamp)) in paths.iter().zip(&hashes) {
                // With the stamp it was made under: the others may have taken minutes since.
                stamp.iter().for_each(|stamp| self.insert(path, *stamp, *hash));
            }
            self.save();
        }
        Ok(hashes.into_iter().map(|(hash, _)| hash).collect())
    }

    fn known(&self, path: &Path) -> Option<ContentHash> {
        let entry = self.entries.get(&fs::canonicalize(path).ok()?)?;
        (entry.stamp == Stamp::of(path)?).then_some(entry.sha256)
    }

    /// Remembers the hash of a file or folder as it is now.
    pub(crate) fn remember(&mut self, path: &Path, sha256: ContentHash) {
        if let Some(stamp) = Stamp::of(path) {
            self.insert(path, stamp, sha256);
        }
    }

    /// Not where it was changed so lately that a change after this might not show in its time, nor under a path that JSON cannot hold.
    fn insert(&mut self, path: &Path, stamp: Stamp, sha256: ContentHash) {
        const SETTLED: Duration = Duration::from_millis(50);
        let changed = UNIX_EPOCH + Duration::from_nanos(stamp.changed_ns);
        let is_settled = SystemTime::now().duration_since(changed).is_ok_and(|age| age >= SETTLED);
        match fs::canonicalize(path) {
            Ok(path) if is_settled && path.to_str().is_some() => {
                self.entries.insert(path, Entry { stamp, sha256 });
            }
            _ => {}
        }
    }

    pub(crate) fn save(&mut self) {
        self.entries.retain(|path, _| path.exists());
        if let Some(file) = &self.file {
            let text = serde_json::to_string_pretty(&self.entries).expect("hashes are plain data");
            // Without it, files are hashed again: no reason to fail.
            let _ = write_atomic(file, text + "\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use vodka_stage::hash_bytes;

    use super::*;

    #[test]
    fn a_folder_is_known_until_one_of_its_files_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, folder) = (dir.path().join("hashes.json"), dir.path().join("model"));
        fs::create_dir_all(folder.join("unet")).unwrap();
        let long_ago = SystemTime::now() - Duration::from_secs(3600);
        let write = |name: &str, text: &str, time: SystemTime| {
            let path = folder.join(name);
            fs::write(&path, text).unwrap();
            fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        };
        write("model_index.json", "{}", long_ago);
        write("unet/weights.bin", "1234", long_ago);
        let hash = || hash_tree(&folder, |_| true).unwrap();
        let known = || Hashes::open(Some(&cache)).known(&folder);
        assert_eq!(Hashes::open(Some(&cache)).of(&[&folder]).unwrap(), [hash()]);
        assert_eq!(known(), Some(hash()));
        // What is remembered is taken: the folder is not read again.
        let mut hashes = Hashes::open(Some(&cache));
        hashes.remember(&folder, hash_bytes("remembered"));
        hashes.save();
        assert_eq!(Hashes::open(Some(&cache)).of(&[&folder]).unwrap(), [hash_bytes("remembered")]);
        let second = Duration::from_secs(1);
        let changes: [&dyn Fn(); 4] = [
            &|| write("unet/weights.bin", "1235", long_ago + second),
            &|| write("unet/weights.bin", "12345", long_ago),
            &|| write("unet/more.bin", "", long_ago),
            &|| fs::rename(folder.join("unet/more.bin"), folder.join("unet/other.bin")).unwrap(),
        ];
        for change in changes {
            change();
            assert_eq!(known(), None);
            assert_eq!(Hashes::open(Some(&cache)).of(&[&folder]).unwrap(), [hash()]);
            assert_eq!(known(), Some(hash()));
        }
        // Changed so lately that a change after this might not show.
        write("unet/weights.bin", "newer", SystemTime::now() + Duration::from_secs(60));
        assert_eq!(Hashes::open(Some(&cache)).of(&[&folder]).unwrap(), [hash()]);
        assert_eq!(known(), None);
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_with_a_file_that_cannot_be_read_is_hashed_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, folder) = (dir.path().join("hashes.json"), dir.path().join("model"));
        fs::create_dir(&folder).unwrap();
        std::os::unix::fs::symlink(dir.path().join("weights.bin"), folder.join("weights.bin")).unwrap();
        let hash = || Hashes::open(Some(&cache)).of(&[&folder]).unwrap();
        let unreadable = hash();
        assert_eq!(Hashes::open(Some(&cache)).known(&folder), None);
        // Older than 1970: what has no stamp is not remembered either.
        let write = |text: &str| {
            fs::write(dir.path().join("weights.bin"), text).unwrap();
            let file = fs::File::options().write(true).open(dir.path().join("weights.bin")).unwrap();
            file.set_modified(UNIX_EPOCH - Duration::from_secs(3600)).unwrap();
        };
        write("1234");
        let old = hash();
        write("1235");
        assert!(old != unreadable && hash() != old);
        assert_eq!(Hashes::open(Some(&cache)).known(&folder), None);
    }

    #[test]
    fn a_hash_counts_for_the_file_it_was_made_of() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.safetensors");
        let write = |text: &str, hours: u64| {
            fs::write(&file, text).unwrap();
            let time = SystemTime::now() - Duration::from_secs(3600 * hours);
            fs::File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
            Stamp::of(&file).unwrap()
        };
        let old = write("old", 3);
        let new = write("new", 2);
        let mut hashes = Hashes::default();
        hashes.insert(&file, old, hash_bytes("old"));
        assert_eq!(hashes.known(&file), None);
        hashes.insert(&file, new, hash_bytes("new"));
        assert_eq!(hashes.known(&file), Some(hash_bytes("new")));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_path_that_is_no_text_is_hashed_each_time() {
        use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
        let dir = tempfile::tempdir().unwrap();
        let (cache, file) = (dir.path().join("hashes.json"), dir.path().join(OsStr::from_bytes(b"t\xff")));
        fs::write(&file, "weights").unwrap();
        let time = SystemTime::now() - Duration::from_secs(3600);
        fs::File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
        assert_eq!(Hashes::open(Some(&cache)).of(&[&file]).unwrap(), [hash_bytes("weights")]);
        assert_eq!(Hashes::open(Some(&cache)).known(&file), None);
    }
}
