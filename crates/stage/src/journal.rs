//! What a long stage has done so far, so that a killed run goes on where it was.
//!
//! An append-only file: the hash of the run's key, then entries, each with its length and its CRC-32. A journal of another
//! run is set aside, not continued. The first entry that is cut off or damaged ends the journal: it and what
//! follows it is dropped and done again.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    AtomicFile, ContentHash, Error, Result, beside, create_dir,
    lock::{Held, open_alone},
};

/// The format of the file; it changes when the format does.
const MAGIC: &[u8; 8] = b"vodka-j2";
const HEADER_LEN: u64 = 8 + 64;
/// No entry is longer: a length beyond it is damage, not a reason to ask for memory.
const ENTRY_MAX: u32 = 1 << 30;
/// What a power cut may cost; a killed process loses nothing.
const SYNC_EVERY: Duration = Duration::from_secs(10);

/// Where an entry lies in its journal.
pub type Place = u64;

/// An append-only file of entries, held by one process.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    length: u64,
    synced: Instant,
}

impl Journal {
    /// The most bytes that an entry may take.
    pub const ENTRY_MAX: u64 = ENTRY_MAX as u64;

    /// Opens the journal at `path` and hands over the entries of an earlier run with the same `key`, in order.
    ///
    /// A journal of another run is set aside as `NAME.old`, and taken back when its run comes again.
    ///
    /// # Errors
    /// [`Error::Busy`] where another process has it open; else when it cannot be read or written.
    pub fn open<T: DeserializeOwned>(
        path: impl Into<PathBuf>,
        key: ContentHash,
        on_entry: impl FnMut(Place, T),
    ) -> Result<Self> {
        let path = path.into();
        if let Some(folder) = path.parent() {
            create_dir(folder)?;
        }
        let mut file = lock(&path)?;
        if is_of_another_run(&file, key).map_err(Error::read(&path))? {
            // The lock goes with the file that is set aside; another is taken on the one that comes in its place.
            set_aside(&path, key).map_err(Error::write(&path))?;
            file = lock(&path)?;
        }
        let length = scan(&file, key, on_entry).map_err(Error::read(&path))?;
        let start = |file: &mut File| match length {
            0 => restart(file, key),
            _ => file.set_len(length).and_then(|()| file.seek(SeekFrom::Start(length))),
        };
        let length = start(&mut file).map_err(Error::write(&path))?;
        Ok(Self { path, file, length, synced: Instant::now() })
    }

    /// Hands over the entries of the journal at `path` without holding or changing it; none where there is no such
    /// journal, or one with another `key`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn look<T: DeserializeOwned>(
        path: &Path,
        key: ContentHash,
        on_entry: impl FnMut(Place, T),
    ) -> Result<()> {
        match File::open(path) {
            Ok(file) => scan(&file, key, on_entry).map(|_| ()).map_err(Error::read(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::read(path)(error)),
        }
    }

    /// Adds an entry; after the return a crash of this process does not lose it.
    ///
    /// # Errors
    /// When the disk is full, say. What was written of the entry is taken back.
    pub fn append<T: Serialize>(&mut self, entry: &T) -> Result<Place> {
        let bytes = framed(entry).map_err(Error::write(&self.path))?;
        let place = self.length;
        self.file.write_all(&bytes).map_err(|error| {
            // If this fails too, the entry is a torn one, which the next run drops.
            let _ = self.file.set_len(place).and_then(|()| self.file.seek(SeekFrom::End(0)));
            Error::write(&self.path)(error)
        })?;
        self.length += bytes.len() as u64;
        if self.synced.elapsed() > SYNC_EVERY {
            self.file.sync_data().map_err(Error::write(&self.path))?;
            self.synced = Instant::now();
        }
        Ok(place)
    }

    /// Reads the entry at a place that this journal gave.
    ///
    /// # Errors
    /// When it cannot be read, or the file was changed meanwhile.
    pub fn read<T: DeserializeOwned>(&mut self, place: Place) -> Result<T> {
        let mut read = || {
            self.file.seek(SeekFrom::Start(place))?;
            let entry = read_entry(&mut self.file, &mut Vec::new());
            self.file.seek(SeekFrom::Start(self.length))?;
            entry
        };
        let entry: Option<(T, u64)> = read().map_err(Error::read(&self.path))?;
        entry.map(|(entry, _)| entry).ok_or_else(|| Error::Journal { path: self.path.clone(), place })
    }

    /// Keeps only the entries at `places`, in that order, and gives the file to whoever comes next.
    ///
    /// # Errors
    /// When an entry cannot be read or the shorter journal not be written; the longer one is still there then.
    pub fn compact<T: Serialize + DeserializeOwned>(
        mut self,
        key: ContentHash,
        places: &[Place],
    ) -> Result<()> {
        let mut file = AtomicFile::create(&self.path)?;
        let failed = Error::write(self.path.clone());
        file.write_all(&header(key)).map_err(&failed)?;
        for place in places {
            let entry = framed(&self.read::<T>(*place)?).map_err(&failed)?;
            file.write_all(&entry).map_err(&failed)?;
        }
        file.commit()
    }
}

fn header(key: ContentHash) -> Vec<u8> {
    [MAGIC.as_slice(), key.to_string().as_bytes()].concat()
}

/// Empties the file and writes the header.
fn restart(file: &mut File, key: ContentHash) -> io::Result<u64> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(&header(key))?;
    Ok(HEADER_LEN)
}

/// An entry as it lies in the file: length, CRC-32, content.
fn framed<T: Serialize>(entry: &T) -> io::Result<Vec<u8>> {
    let content = postcard::to_stdvec(entry).expect("journal entries are plain data");
    let length =
        u32::try_from(content.len()).ok().filter(|length| *length <= ENTRY_MAX).ok_or_else(|| {
            let found = content.len();
            io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("an entry of {found} bytes, at most {ENTRY_MAX}"),
            )
        })?;
    let check = crc32fast::hash(&content);
    Ok([&length.to_le_bytes(), &check.to_le_bytes(), content.as_slice()].concat())
}

/// Opens the file that is at `path` and makes it ours.
fn lock(path: &Path) -> Result<File> {
    let opened = open_alone(path, Held::IsNone).map_err(Error::write(path))?;
    opened.ok_or_else(|| Error::Busy { path: path.to_path_buf() })
}

fn is_of_another_run(file: &File, key: ContentHash) -> io::Result<bool> {
    let mut found = [0; HEADER_LEN as usize];
    let mut reader = file;
    reader.rewind()?;
    let is_whole = fill(&mut reader, &mut found)? && found.starts_with(MAGIC);
    reader.rewind()?;
    Ok(is_whole && found.as_slice() != header(key))
}

/// Puts the journal at `path` aside, and in its place the one that was set aside before if that is of this key.
fn set_aside(path: &Path, key: ContentHash) -> io::Result<()> {
    let (old, older) = (beside(path, "", ".old"), beside(path, "", ".older"));
    let comes_back = File::open(&old).is_ok_and(|file| matches!(is_of_another_run(&file, key), Ok(false)));
    if comes_back {
        fs::rename(&old, &older)?;
    }
    fs::rename(path, &old)?;
    if comes_back { fs::rename(&older, path) } else { Ok(()) }
}

/// Hands over all whole entries and tells where they end; 0 for a journal that is not of this key.
fn scan<T: DeserializeOwned>(
    file: &File,
    key: ContentHash,
    mut on_entry: impl FnMut(Place, T),
) -> io::Result<u64> {
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut found = [0; HEADER_LEN as usize];
    if !fill(&mut reader, &mut found)? || found.as_slice() != header(key) {
        return Ok(0);
    }
    let (mut place, mut buffer) = (HEADER_LEN, Vec::new());
    while let Some((entry, length)) = read_entry(&mut reader, &mut buffer)? {
        on_entry(place, entry);
        place += length;
    }
    Ok(place)
}

/// The next entry and the bytes it takes. `None` at the end, and where what follows is no whole entry.
fn read_entry<T: DeserializeOwned>(
    reader: &mut impl Read,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<(T, u64)>> {
    let mut frame = [0; 8];
    if !fill(reader, &mut frame)? {
        return Ok(None);
    }
    let [a, b, c, d, check @ ..] = frame;
    let length = u32::from_le_bytes([a, b, c, d]);
    if length > ENTRY_MAX {
        return Ok(None);
    }
    buffer.clear();
    reader.take(length.into()).read_to_end(buffer)?;
    if buffer.len() < length as usize || crc32fast::hash(buffer) != u32::from_le_bytes(check) {
        return Ok(None);
    }
    Ok(postcard::from_bytes(buffer).ok().map(|entry| (entry, 8 + u64::from(length))))
}

/// Fills the buffer; false where the file ends before.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        result => result.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash_bytes;

    fn open(path: &Path, key: &str) -> (Journal, Vec<String>) {
        let mut entries = Vec::new();
        let journal = Journal::open(path, hash_bytes(key), |_, entry| entries.push(entry)).unwrap();
        (journal, entries)
    }

    #[test]
    fn a_killed_run_goes_on_and_another_run_starts_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/tags.journal");
        let (mut journal, entries) = open(&path, "a");
        assert!(entries.is_empty());
        let places = ["one", "räume", ""].map(|entry| journal.append(&entry).unwrap());
        assert_eq!(places.map(|place| journal.read::<String>(place).unwrap()), ["one", "räume", ""]);
        journal.append(&"four").unwrap();
        drop(journal);
        let whole = fs::read(&path).unwrap();

        let (mut journal, entries) = open(&path, "a");
        assert_eq!(entries, ["one", "räume", "", "four"]);
        journal.append(&"five").unwrap();
        drop(journal);
        assert_eq!(open(&path, "a").1.len(), 5);
        assert!(open(&path, "b").1.is_empty());
        assert!(open(&path, "c").1.is_empty());
        assert!(open(&path, "b").1.is_empty());
        open(&path, "b").0.append(&"other").unwrap();
        drop(open(&path, "c"));
        assert_eq!(open(&path, "b").1, ["other"], "set aside and taken back");

        // Cut anywhere, it has the entries before the cut.
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let (mut journal, entries) = open(&path, "a");
            assert!(
                ["one", "räume", "", "four"]
                    .starts_with(&entries.iter().map(String::as_str).collect::<Vec<_>>())
            );
            journal.append(&"next").unwrap();
            drop(journal);
            assert_eq!(open(&path, "a").1.len(), entries.len() + 1, "cut at {length}");
        }
    }

    #[test]
    fn damage_ends_the_journal_and_never_becomes_an_entry() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tags.journal");
        let (mut journal, _) = open(&path, "a");
        for entry in ["one", "two", "three"] {
            journal.append(&entry).unwrap();
        }
        drop(journal);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x81;
            fs::write(&path, damaged).unwrap();
            let (_, entries) = open(&path, "a");
            assert!(
                entries.len() < 3 && entries == ["one", "two", "three"][..entries.len()],
                "byte {at}: {entries:?}"
            );
        }
    }

    #[test]
    fn one_process_has_it_and_others_may_look() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tags.journal");
        let mut looked = Vec::new();
        Journal::look::<String>(&path, hash_bytes("a"), |_, entry| looked.push(entry)).unwrap();
        let (mut journal, _) = open(&path, "a");
        journal.append(&"one").unwrap();
        Journal::look::<String>(&path, hash_bytes("a"), |_, entry| looked.push(entry)).unwrap();
        Journal::look::<String>(&path, hash_bytes("b"), |_, entry| looked.push(entry)).unwrap();
        assert_eq!(looked, ["one"]);
        let error = Journal::open::<String>(&path, hash_bytes("a"), |_, _| {}).unwrap_err();
        assert!(error.to_string().contains("tags.journal` is held by another run"), "{error}");
    }

    #[test]
    fn an_entry_that_is_gone_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, _) = open(&path, "run");
        let place = journal.append(&"entry").unwrap();
        assert_eq!(journal.read::<String>(place).unwrap(), "entry");
        File::options().write(true).open(&path).unwrap().set_len(place).unwrap();
        let said = journal.read::<String>(place).unwrap_err().to_string();
        let expected =
            format!("`{}` was changed while it was in use: no entry at byte {place}", path.display());
        assert_eq!(said, expected);
    }

    #[test]
    fn the_longest_name_can_be_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n".repeat(255));
        open(&path, "a").0.append(&"one").unwrap();
        drop(open(&path, "b"));
        assert_eq!(open(&path, "a").1, ["one"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error_that_names_the_journal() {
        // /dev/full takes the open and refuses every byte, as a full disk does.
        let file = File::options().read(true).write(true).open("/dev/full").unwrap();
        let path = PathBuf::from("tags.journal");
        let mut journal = Journal { path, file, length: HEADER_LEN, synced: Instant::now() };
        let error = journal.append(&"one").unwrap_err();
        assert_eq!(error.to_string(), "cannot write `tags.journal`");
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("No space left on device"), "{source}");
        assert_eq!(journal.length, HEADER_LEN, "the entry is not counted");
    }

    #[test]
    fn only_what_is_wanted_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tags.journal");
        let (mut journal, _) = open(&path, "a");
        let places = ["one", "two", "three"].map(|entry| journal.append(&entry).unwrap());
        journal.compact::<String>(hash_bytes("a"), &[places[2], places[0]]).unwrap();
        assert_eq!(open(&path, "a").1, ["three", "one"]);
    }
}
