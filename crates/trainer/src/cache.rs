//! What the frozen networks make of pictures and captions, kept from step to step and from run to run.
//!
//! An entry is found by a hash of all that it depends on, so it cannot be stale. On disk each is a file of its own with
//! a checksum, put there by renaming: one that is torn or damaged is as if it were not there, and several runs may share
//! the folder. The entries that were not used for longest go when there is no room.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use vodka_stage::{ContentHash, create_dir};

use crate::Result;

/// Where what the frozen networks make is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheMode {
    /// As long as the run goes on.
    Memory,
    /// In a folder, for other runs too.
    Disk,
    /// Nowhere: it is made again for each step.
    Off,
}

/// Numbers by the hash of what they were made from.
#[derive(Debug)]
pub(crate) enum Cache {
    Off,
    Memory(Mutex<HashMap<ContentHash, Arc<[f32]>>>),
    Disk(Disk),
}

impl Cache {
    /// Opens the cache; the folder and its size are for [`CacheMode::Disk`] alone.
    pub fn open(mode: CacheMode, folder: &Path, limit_bytes: u64) -> Result<Self> {
        Ok(match mode {
            CacheMode::Off => Self::Off,
            CacheMode::Memory => Self::Memory(Mutex::default()),
            CacheMode::Disk => Self::Disk(Disk::open(folder, limit_bytes)?),
        })
    }

    /// The numbers that were put in under the key, if they are still there.
    pub fn get(&self, key: ContentHash) -> Option<Arc<[f32]>> {
        match self {
            Self::Off => None,
            Self::Memory(entries) => lock(entries).get(&key).cloned(),
            Self::Disk(disk) => disk.get(key).map(Into::into),
        }
    }

    /// Keeps the numbers. What cannot be written is not kept; [`Cache::failure`] tells.
    pub fn put(&self, key: ContentHash, numbers: &Arc<[f32]>) {
        match self {
            Self::Off => {}
            Self::Memory(entries) => {
                lock(entries).insert(key, Arc::clone(numbers));
            }
            Self::Disk(disk) => disk.put(key, numbers),
        }
    }

    /// Why an entry could not be written, once.
    pub fn failure(&self) -> Option<(PathBuf, String)> {
        match self {
            Self::Disk(disk) => Some((disk.folder.clone(), lock(&disk.failure).take()?.to_string())),
            Self::Off | Self::Memory(_) => None,
        }
    }
}

/// A poisoned lock is one whose holder panicked: entries are whole all the same.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const MAGIC: &[u8; 8] = b"vodka-c1";
/// The magic, a CRC-32 of what follows it, and the key in hexadecimal digits.
const HEADER: usize = 8 + 4 + 64;
/// An entry that was used less long ago need not be marked as used again.
const FRESH: Duration = Duration::from_secs(60);

/// A folder of entries.
#[derive(Debug)]
pub(crate) struct Disk {
    folder: PathBuf,
    limit: u64,
    room: Mutex<Room>,
    failure: Mutex<Option<io::Error>>,
}

/// What is known of the folder's size; other runs write there too.
#[derive(Debug, Default)]
struct Room {
    used: u64,
    written_since_scan: u64,
}

/// A file in the folder.
struct Entry {
    used_at: SystemTime,
    bytes: u64,
    path: PathBuf,
}

impl Disk {
    fn open(folder: &Path, limit: u64) -> Result<Self> {
        create_dir(folder.join(ENTRIES))?;
        let folder = folder.to_path_buf();
        let disk = Self { folder, limit, room: Mutex::default(), failure: Mutex::default() };
        disk.make_room(&mut lock(&disk.room), 0);
        Ok(disk)
    }

    fn path(&self, key: ContentHash) -> PathBuf {
        let name = key.to_string();
        self.folder.join(ENTRIES).join(&name[..2]).join(&name[2..])
    }

    fn get(&self, key: ContentHash) -> Option<Vec<f32>> {
        let path = self.path(key);
        let bytes = fs::read(&path).ok()?;
        let Some(numbers) = parse(key, &bytes) else {
            // Another run may have put a whole one there meanwhile; it will be made again.
            let _ = fs::remove_file(&path);
            return None;
        };
        mark_as_used(&path);
        Some(numbers)
    }

    fn put(&self, key: ContentHash, numbers: &[f32]) {
        let bytes = framed(key, numbers);
        let length = bytes.len() as u64;
        let mut room = lock(&self.room);
        if room.used + length > self.limit || room.written_since_scan > self.limit / 16 {
            self.make_room(&mut room, length);
        }
        if room.used + length > self.limit {
            return;
        }
        match self.write(&self.path(key), &bytes) {
            Ok(()) => {
                room.used += length;
                room.written_since_scan += length;
            }
            Err(error) => *lock(&self.failure) = Some(error),
        }
    }

    /// Writes beside the entry and renames. It is not synced: after a power cut the checksum tells.
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        static NAMES: AtomicU64 = AtomicU64::new(0);
        let number = NAMES.fetch_add(1, Ordering::Relaxed);
        let folder = path.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder)?;
        // Two runs, and two threads of one, have names of their own.
        let partial = folder.join(format!(".{}-{number}.partial", std::process::id()));
        let written = File::create(&partial).and_then(|mut file| file.write_all(bytes));
        let renamed = written.and_then(|()| fs::rename(&partial, path));
        if renamed.is_err() {
            let _ = fs::remove_file(&partial);
        }
        renamed
    }

    /// Counts the entries, and deletes those that were not used for longest where there is no room for `more` bytes:
    /// so many that a tenth is free then.
    fn make_room(&self, room: &mut Room, more: u64) {
        let mut entries = self.entries();
        let mut used: u64 = entries.iter().map(|entry| entry.bytes).sum();
        if used + more > self.limit {
            entries.sort_by(|a, b| a.used_at.cmp(&b.used_at).then_with(|| a.path.cmp(&b.path)));
            for Entry { bytes, path, .. } in entries {
                if used + more <= self.limit / 10 * 9 {
                    break;
                }
                // One that another run has deleted is gone as well.
                let _ = fs::remove_file(path);
                used -= bytes;
            }
        }
        *room = Room { used, written_since_scan: 0 };
    }

    /// All files, those that a killed run was writing among them.
    fn entries(&self) -> Vec<Entry> {
        let list = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten();
        let entry = |file: fs::DirEntry| {
            let metadata = file.metadata().ok().filter(fs::Metadata::is_file)?;
            Some(Entry { used_at: metadata.modified().ok()?, bytes: metadata.len(), path: file.path() })
        };
        list(self.folder.join(ENTRIES)).flat_map(|folder| list(folder.path())).filter_map(entry).collect()
    }
}

/// The folder of the entries within the cache's.
const ENTRIES: &str = "entries";

fn framed(key: ContentHash, numbers: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + 4 * numbers.len());
    bytes.extend(MAGIC);
    bytes.extend([0; 4]);
    bytes.extend(key.to_string().as_bytes());
    numbers.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
    let check = crc32fast::hash(&bytes[12..]);
    bytes[8..12].copy_from_slice(&check.to_le_bytes());
    bytes
}

/// The numbers of an entry that is whole and has this key.
fn parse(key: ContentHash, bytes: &[u8]) -> Option<Vec<f32>> {
    let numbers = bytes.get(HEADER..)?;
    let check = u32::from_le_bytes(bytes[8..12].try_into().ok()?);
    let is_whole = bytes.starts_with(MAGIC)
        && bytes[12..HEADER] == *key.to_string().as_bytes()
        && crc32fast::hash(&bytes[12..]) == check;
    let number = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    is_whole.then(|| numbers.chunks_exact(4).map(number).collect())
}

fn mark_as_used(path: &Path) {
    let now = SystemTime::now();
    let mark = || {
        let file = File::open(path)?;
        let used_at = file.metadata()?.modified()?;
        match now.duration_since(used_at).is_ok_and(|age| age > FRESH) {
            true => file.set_modified(now),
            false => Ok(()),
        }
    };
    // On a disk that only others may write to, entries are used all the same.
    let _: io::Result<()> = mark();
}

#[cfg(test)]
mod tests {
    use vodka_stage::hash_bytes;

    use super::*;

    fn numbers(i: u32) -> Arc<[f32]> {
        (0..100).map(|j| (i * 100 + j) as f32 / 3.0).collect()
    }

    fn key(i: u32) -> ContentHash {
        hash_bytes(i.to_le_bytes())
    }

    fn disk(folder: &Path, limit: u64) -> Cache {
        Cache::open(CacheMode::Disk, folder, limit).unwrap()
    }

    /// An entry of a hundred numbers in bytes.
    const ENTRY: u64 = HEADER as u64 + 400;

    #[test]
    fn what_was_put_in_comes_out_here_and_in_another_run() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (disk(dir.path(), 1 << 20), disk(dir.path(), 1 << 20));
        let memory = Cache::open(CacheMode::Memory, dir.path(), 0).unwrap();
        for cache in [&one, &memory] {
            assert_eq!(cache.get(key(1)), None);
            cache.put(key(1), &numbers(1));
            assert_eq!(cache.get(key(1)), Some(numbers(1)));
            assert_eq!(cache.get(key(2)), None);
        }
        assert_eq!(other.get(key(1)), Some(numbers(1)));
        let off = Cache::open(CacheMode::Off, dir.path(), 0).unwrap();
        off.put(key(3), &numbers(3));
        assert_eq!(off.get(key(3)), None);
    }

    #[test]
    fn a_torn_damaged_or_exchanged_entry_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let cache = disk(dir.path(), 1 << 20);
        let Cache::Disk(inner) = &cache else { unreachable!() };
        cache.put(key(1), &numbers(1));
        let path = inner.path(key(1));
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[HEADER + 7] ^= 4;
        let of_other = framed(key(2), &numbers(1));
        for bytes in [&whole[..whole.len() - 4], &whole[..20], &[], &flipped, &of_other] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(cache.get(key(1)), None, "{} bytes", bytes.len());
            assert!(!path.exists(), "and goes");
        }
        fs::write(&path, &whole).unwrap();
        assert_eq!(cache.get(key(1)), Some(numbers(1)));
    }

    #[test]
    fn the_folder_stays_within_its_bounds_and_what_is_used_stays() {
        let dir = tempfile::tempdir().unwrap();
        let limit = 10 * ENTRY;
        let cache = disk(dir.path(), limit);
        let Cache::Disk(inner) = &cache else { unreachable!() };
        let age = |i: u32, seconds: u64| {
            let at = SystemTime::now() - Duration::from_secs(1_000_000 - seconds);
            File::open(inner.path(key(i))).unwrap().set_modified(at).unwrap();
        };
        (0..10).for_each(|i| {
            cache.put(key(i), &numbers(i));
            age(i, u64::from(i));
        });
        // The oldest is used, and so the youngest.
        assert!(cache.get(key(0)).is_some());
        cache.put(key(10), &numbers(10));
        let there: Vec<_> = (0..11).filter(|i| inner.path(key(*i)).exists()).collect();
        assert_eq!(there, [0, 3, 4, 5, 6, 7, 8, 9, 10]);
        (11..200).for_each(|i| cache.put(key(i), &numbers(i)));
        assert!(inner.entries().iter().map(|entry| entry.bytes).sum::<u64>() <= limit);
        assert_eq!(cache.get(key(199)), Some(numbers(199)));

        // What a killed run was writing goes as well, and what is larger than the whole cache is not kept.
        fs::write(inner.path(key(199)).with_file_name(".7-1.partial"), vec![0; 2 * limit as usize]).unwrap();
        let smaller = disk(dir.path(), ENTRY - 1);
        assert!(inner.entries().iter().map(|entry| entry.bytes).sum::<u64>() < ENTRY);
        smaller.put(key(1), &numbers(1));
        assert_eq!((smaller.get(key(1)), smaller.failure()), (None, None));
    }

    #[test]
    fn what_another_run_writes_counts() {
        let dir = tempfile::tempdir().unwrap();
        let limit = 32 * ENTRY;
        let (one, other) = (disk(dir.path(), limit), disk(dir.path(), limit));
        for i in 0..200 {
            one.put(key(i), &numbers(i));
            other.put(key(1000 + i), &numbers(1000 + i));
        }
        let Cache::Disk(inner) = &one else { unreachable!() };
        let used = inner.entries().iter().map(|entry| entry.bytes).sum::<u64>();
        assert!(used <= limit + limit / 4, "{used} of {limit}");
    }

    #[test]
    fn a_disk_that_takes_nothing_is_told_of_once_and_the_run_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let cache = disk(dir.path(), 1 << 20);
        let entries = dir.path().join(ENTRIES);
        fs::remove_dir(&entries).unwrap();
        fs::write(&entries, "in the way").unwrap();
        cache.put(key(1), &numbers(1));
        assert_eq!(cache.get(key(1)), None);
        assert_eq!(cache.failure().unwrap().0, dir.path());
        assert_eq!(cache.failure(), None);
    }
}
