//! Hashes of files and folders, remembered by path, size and time of change.

use std::{
    collections::BTreeMap,
    fs,
    num::NonZero,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::{
    ContentHash, Interrupt, Result,
    hash::{hash_tree_until, stamp_tree},
    write_atomic,
};

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
        let crate::Stamp { bytes, modified_ns } = crate::Stamp::of(path)?;
        Some(Self { size: Some(bytes), changed_ns: modified_ns, files: None })
    }
}

/// Hashes of large files that were found before, in a JSON file that whoever hashes models shares.
///
/// A cache that cannot be read is empty, one that cannot be written is not kept.
#[derive(Debug, Default)]
pub struct HashCache {
    file: Option<PathBuf>,
    entries: BTreeMap<PathBuf, Entry>,
    /// Those of them that the file does not have yet.
    added: BTreeMap<PathBuf, Entry>,
}

impl HashCache {
    /// What a file remembers; without one nothing is remembered.
    pub fn open(file: Option<&Path>) -> Self {
        let entries = file.map(read).unwrap_or_default();
        Self { file: file.map(Path::to_path_buf), entries, added: BTreeMap::new() }
    }

    /// The hashes of files, or of all files of folders, as [`hash_tree`](crate::hash_tree) makes them. Those that are not known
    /// are worked out side by side, and remembered. `None` where it was interrupted, within some megabytes.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn of(&mut self, paths: &[&Path], interrupt: &Interrupt) -> Result<Option<Vec<ContentHash>>> {
        let mut unknown: Vec<&Path> =
            paths.iter().copied().filter(|path| self.known(path).is_none()).collect();
        unknown.sort_unstable();
        unknown.dedup();
        let found = side_by_side(&unknown, |path| {
            let before = Stamp::of(path);
            let hash = hash_tree_until(path, |_| true, interrupt)?;
            // What was changed meanwhile is not remembered. With the stamp it was made under: the others may have
            // taken minutes since.
            Ok((hash, before.filter(|before| Stamp::of(path) == Some(*before))))
        });
        let mut hashes = BTreeMap::new();
        for (path, found) in unknown.iter().zip(found) {
            let (hash, stamp) = found?;
            if let Some(hash) = hash {
                stamp.iter().for_each(|stamp| self.insert(path, *stamp, hash));
                hashes.insert(*path, hash);
            }
        }
        if !unknown.is_empty() {
            self.save();
        }
        Ok(paths.iter().map(|path| hashes.get(path).copied().or_else(|| self.known(path))).collect())
    }

    fn known(&self, path: &Path) -> Option<ContentHash> {
        let entry = self.entries.get(&fs::canonicalize(path).ok()?)?;
        (entry.stamp == Stamp::of(path)?).then_some(entry.sha256)
    }

    /// Remembers the hash of a file or folder as it is now.
    pub fn remember(&mut self, path: &Path, sha256: ContentHash) {
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
                let entry = Entry { stamp, sha256 };
                self.entries.insert(path.clone(), entry.clone());
                self.added.insert(path, entry);
            }
            _ => {}
        }
    }

    /// Writes what was added, beside what other runs have written meanwhile. What is not there any more is forgotten.
    pub fn save(&mut self) {
        let Some(file) = &self.file else { return };
        let mut entries = read(file);
        entries.append(&mut self.added);
        entries.retain(|path, _| path.exists());
        let text = serde_json::to_string_pretty(&entries).expect("hashes are plain data");
        // Without it, files are hashed again: no reason to fail.
        let _ = write_atomic(file, text + "\n");
    }
}

fn read(file: &Path) -> BTreeMap<PathBuf, Entry> {
    let read = |file: &Path| serde_json::from_slice(&fs::read(file).ok()?).ok();
    read(file).unwrap_or_default()
}

/// What a function makes of each path, by twice as many threads as there are cores: a hash is never more than one core's
/// work, and of three files on two cores the last would else be alone.
fn side_by_side<T: Send>(paths: &[&Path], of: impl Fn(&Path) -> T + Sync) -> Vec<T> {
    let threads = (2 * thread::available_parallelism().map_or(1, NonZero::get)).min(paths.len());
    let next = AtomicUsize::new(0);
    let work = || {
        let mut made = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(path) = paths.get(index) else { return made };
            made.push((index, of(path)));
        }
    };
    let mut made: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("hashing does not panic")).collect()
    });
    made.sort_unstable_by_key(|(index, _)| *index);
    made.into_iter().map(|(_, made)| made).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{hash_bytes, hash_tree};

    fn of(cache: &mut HashCache, path: &Path) -> ContentHash {
        cache.of(&[path], &Interrupt::new()).unwrap().unwrap()[0]
    }

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
        let known = || HashCache::open(Some(&cache)).known(&folder);
        assert_eq!(of(&mut HashCache::open(Some(&cache)), &folder), hash());
        assert_eq!(known(), Some(hash()));
        // What is remembered is taken: the folder is not read again.
        let mut hashes = HashCache::open(Some(&cache));
        hashes.remember(&folder, hash_bytes("remembered"));
        hashes.save();
        assert_eq!(of(&mut HashCache::open(Some(&cache)), &folder), hash_bytes("remembered"));
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
            assert_eq!(of(&mut HashCache::open(Some(&cache)), &folder), hash());
            assert_eq!(known(), Some(hash()));
        }
        // Changed so lately that a change after this might not show.
        write("unet/weights.bin", "newer", SystemTime::now() + Duration::from_secs(60));
        assert_eq!(of(&mut HashCache::open(Some(&cache)), &folder), hash());
        assert_eq!(known(), None);
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_with_a_file_that_cannot_be_read_is_hashed_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, folder) = (dir.path().join("hashes.json"), dir.path().join("model"));
        fs::create_dir(&folder).unwrap();
        std::os::unix::fs::symlink(dir.path().join("weights.bin"), folder.join("weights.bin")).unwrap();
        let hash = || of(&mut HashCache::open(Some(&cache)), &folder);
        let unreadable = hash();
        assert_eq!(HashCache::open(Some(&cache)).known(&folder), None);
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
        assert_eq!(HashCache::open(Some(&cache)).known(&folder), None);
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
        let mut hashes = HashCache::default();
        hashes.insert(&file, old, hash_bytes("old"));
        assert_eq!(hashes.known(&file), None);
        hashes.insert(&file, new, hash_bytes("new"));
        assert_eq!(hashes.known(&file), Some(hash_bytes("new")));
    }

    #[test]
    fn what_is_interrupted_has_no_hash() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["a.bin", "b.bin"].map(|name| dir.path().join(name));
        paths.iter().for_each(|path| fs::write(path, "weights").unwrap());
        fs::create_dir(dir.path().join("folder")).unwrap();
        fs::write(dir.path().join("folder/a.bin"), "weights").unwrap();
        let (folder, interrupt) = (dir.path().join("folder"), Interrupt::new());
        let mut cache = HashCache::default();
        let all = [paths[0].as_path(), &paths[1], &paths[0], &folder];
        let hash = hash_bytes("weights");
        let found = cache.of(&all, &interrupt).unwrap().unwrap();
        assert_eq!(found, [hash, hash, hash, hash_tree(&folder, |_| true).unwrap()]);
        interrupt.raise();
        assert_eq!(HashCache::default().of(&all[..2], &interrupt).unwrap(), None);
        assert_eq!(HashCache::default().of(&[&folder], &interrupt).unwrap(), None);
    }

    #[test]
    fn two_runs_remember_side_by_side() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("hashes.json");
        let file = |name: &str| {
            let path = dir.path().join(name);
            fs::write(&path, name).unwrap();
            let time = SystemTime::now() - Duration::from_secs(3600);
            fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
            path
        };
        let (a, b) = (file("a"), file("b"));
        let (mut one, mut other) = (HashCache::open(Some(&cache)), HashCache::open(Some(&cache)));
        of(&mut one, &a);
        of(&mut other, &b);
        let both = HashCache::open(Some(&cache));
        assert_eq!([&a, &b].map(|path| both.known(path)), ["a", "b"].map(|text| Some(hash_bytes(text))));
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
        assert_eq!(of(&mut HashCache::open(Some(&cache)), &file), hash_bytes("weights"));
        assert_eq!(HashCache::open(Some(&cache)).known(&file), None);
    }
}
