//! Content hashes: SHA-256, the hash that A1111 and the hub name models by.

use std::{
    cell::Cell,
    fmt,
    fs::{self, File},
    io::{self, Read},
    mem,
    path::Path,
    str::FromStr,
    thread,
    time::UNIX_EPOCH,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

use crate::{Error, Interrupt, Result};

/// A SHA-256 digest, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ContentHash([u8; 32]);

impl ContentHash {
    /// The first `digits` hexadecimal digits; A1111's "Model hash" has 10.
    pub fn short(&self, digits: usize) -> String {
        let mut text = self.to_string();
        text.truncate(digits);
        text
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<ContentHash> for String {
    fn from(hash: ContentHash) -> Self {
        hash.to_string()
    }
}

impl TryFrom<String> for ContentHash {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for ContentHash {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected 64 hexadecimal digits, found `{text}`");
        if text.len() != 64 || !text.is_ascii() {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

/// Builds a hash of several pieces; each is length-prefixed, so that pieces cannot run into each other.
#[derive(Debug, Clone, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// Adds bytes as they are: pieces of one whole, however it is cut.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(bytes);
        self
    }

    /// Adds one piece.
    pub fn piece(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let bytes = bytes.as_ref();
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// The hash of all pieces so far.
    pub fn finish(self) -> ContentHash {
        ContentHash(self.0.finalize().into())
    }
}

/// The SHA-256 of what comes in parts: of a file while it is written.
#[derive(Debug, Clone, Default)]
pub struct FileHasher(Sha256);

impl FileHasher {
    /// Adds the bytes that follow.
    pub fn update(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.update(bytes.as_ref());
    }

    /// The hash of all bytes so far.
    pub fn finish(self) -> ContentHash {
        ContentHash(self.0.finalize().into())
    }
}

/// The SHA-256 of `bytes`.
pub fn hash_bytes(bytes: impl AsRef<[u8]>) -> ContentHash {
    ContentHash(Sha256::digest(bytes.as_ref()).into())
}

/// The SHA-256 of a file's content.
pub fn hash_file(path: impl AsRef<Path>) -> Result<ContentHash> {
    Ok(hash_file_from(path, &[0])?[0])
}

/// The SHA-256 of a file's content from each of `starts` to its end (of nothing, where it ends before), in one reading.
///
/// Large files are hashed while they are read on: it takes the time of one hash on one core, if the disk keeps up.
pub fn hash_file_from(path: impl AsRef<Path>, starts: &[u64]) -> Result<Vec<ContentHash>> {
    let path = path.as_ref();
    let hashes = digests(path, starts, &Interrupt::new()).map_err(Error::read(path))?;
    Ok(hashes.expect("nobody has interrupted it"))
}

fn digest(path: &Path, interrupt: &Interrupt) -> io::Result<Option<ContentHash>> {
    Ok(digests(path, &[0], interrupt)?.map(|hashes| hashes[0]))
}

/// Bytes that are read at a time: starting a thread for each costs nothing beside hashing them.
const CHUNK: usize = 4 << 20;

/// `None` where it was interrupted.
fn digests(path: &Path, starts: &[u64], interrupt: &Interrupt) -> io::Result<Option<Vec<ContentHash>>> {
    let mut file = File::open(path)?;
    let mut hashers: Vec<_> = starts.iter().map(|start| (*start, Sha256::new())).collect();
    let expected = file.metadata()?.len().min(CHUNK as u64) as usize;
    // One byte more, to see the end of a small file at once.
    let (mut full, mut empty) = (vec![0; expected + 1], Vec::new());
    let mut at = 0;
    let mut length = read_all(&mut file, &mut full)?;
    while length > 0 {
        if interrupt.is_raised() {
            return Ok(None);
        }
        let chunk = &full[..length];
        let last = length < full.len();
        let next = if last {
            hashers.iter_mut().for_each(|hasher| update(hasher, at, chunk));
            0
        } else {
            empty.resize(CHUNK, 0);
            thread::scope(|scope| {
                for hasher in &mut hashers {
                    scope.spawn(move || update(hasher, at, chunk));
                }
                read_all(&mut file, &mut empty)
            })?
        };
        at += length as u64;
        length = next;
        mem::swap(&mut full, &mut empty);
    }
    Ok(Some(hashers.into_iter().map(|(_, hasher)| ContentHash(hasher.finalize().into())).collect()))
}

/// Adds what of a chunk is behind the start of the hash.
fn update((start, hasher): &mut (u64, Sha256), at: u64, chunk: &[u8]) {
    let skipped = start.saturating_sub(at).min(chunk.len() as u64) as usize;
    hasher.update(&chunk[skipped..]);
}

/// Fills the buffer, or as much of it as the file has left.
fn read_all(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// The hash of a folder: of the relative names (with `/`) and contents of the files `keep` wants, in order of name.
///
/// Hidden files and folders are left out, and so are run records, which say what was made and are not part of it. A
/// path to a single file is hashed as that file. The names in the hash make a rename a change.
///
/// A file or link below the root that cannot be read enters the hash as such, a link even where `keep` does not want
/// it, for it may have led to a folder: whether it can be done without is for the stage to say.
///
/// # Errors
/// When the root cannot be read, or a folder below it.
pub fn hash_tree(root: impl AsRef<Path>, keep: impl Fn(&Path) -> bool) -> Result<ContentHash> {
    let hash = hash_tree_until(root, keep, &Interrupt::new())?;
    Ok(hash.expect("nobody has interrupted it"))
}

/// As [`hash_tree`]; `None` where it was interrupted, which is seen within some megabytes.
///
/// # Errors
/// As there.
pub fn hash_tree_until(
    root: impl AsRef<Path>,
    keep: impl Fn(&Path) -> bool,
    interrupt: &Interrupt,
) -> Result<Option<ContentHash>> {
    let root = root.as_ref();
    if root.is_file() {
        return digest(root, interrupt).map_err(Error::read(root));
    }
    let (hash, _) = hash_entries(root, keep, |path| digest(path, interrupt).ok().flatten())?;
    // What was not read any more is in this hash as unreadable.
    Ok((!interrupt.is_raised()).then_some(hash))
}

/// As [`hash_tree`] of a folder, of stamps in the place of contents: where it is the same, so are the contents, unless
/// somebody has set a time back. With the newest of the times, in nanoseconds since 1970. `None` where a file cannot be
/// read or has no [`Stamp`]: such a folder is nothing to remember.
///
/// # Errors
/// When the root cannot be read, or a folder below it.
pub fn stamp_tree(root: impl AsRef<Path>) -> Result<Option<(ContentHash, u64)>> {
    let newest = Cell::new(0);
    let stamp = |path: &Path| {
        let Stamp { bytes, modified_ns } = Stamp::of(path).filter(|_| File::open(path).is_ok())?;
        newest.set(newest.get().max(modified_ns));
        Some(hash_bytes([bytes, modified_ns].map(u64::to_le_bytes).concat()))
    };
    let (hash, is_whole) = hash_entries(root.as_ref(), |_| true, stamp)?;
    Ok(is_whole.then_some((hash, newest.get())))
}

/// By what a file counts as unchanged, unless somebody has set its time back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {
    /// Its size in bytes.
    pub bytes: u64,
    /// Its time of modification, in nanoseconds since 1970.
    pub modified_ns: u64,
}

impl Stamp {
    /// The stamp of a file; `None` for what is no file, or of which no time between 1970 and 2554 is told.
    pub fn of(path: &Path) -> Option<Self> {
        Self::new(&fs::metadata(path).ok().filter(fs::Metadata::is_file)?)
    }

    /// The same of a file or link whose metadata are at hand.
    pub fn new(metadata: &fs::Metadata) -> Option<Self> {
        let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        Some(Self { bytes: metadata.len(), modified_ns: u64::try_from(modified.as_nanos()).ok()? })
    }
}

/// Names below a folder, each with what `content` makes of the file; and whether it made something of each.
fn hash_entries(
    root: &Path,
    keep: impl Fn(&Path) -> bool,
    content: impl Fn(&Path) -> Option<ContentHash>,
) -> Result<(ContentHash, bool)> {
    let (mut hasher, mut is_whole) = (Hasher::default(), true);
    let visible = |entry: &walkdir::DirEntry| entry.depth() == 0 || !is_hidden(entry.path());
    for entry in WalkDir::new(root).follow_links(true).sort_by_file_name().into_iter().filter_entry(visible) {
        let (path, found) = match entry {
            Ok(entry) if !entry.file_type().is_file() || !keep(entry.path()) => continue,
            Ok(entry) => (entry.path().to_path_buf(), content(entry.path())),
            Err(error) => match unreadable(&error) {
                Some(path) if is_hidden(path) => continue,
                Some(path) => (path.to_path_buf(), None),
                None => {
                    let path = error.path().unwrap_or(root).to_path_buf();
                    return Err(Error::read(path)(error.into()));
                }
            },
        };
        if path.to_string_lossy().ends_with(".run.json") {
            continue;
        }
        let relative = path.strip_prefix(root).expect("walkdir stays below its root");
        let name: Vec<_> = relative.iter().map(|part| part.to_string_lossy()).collect();
        hasher.piece(name.join("/"));
        match found {
            Some(hash) => hasher.piece(hash.0),
            None => hasher.piece("unreadable"),
        };
        is_whole &= found.is_some();
    }
    Ok((hasher.finish(), is_whole))
}

/// Whether a file or folder is hidden: its name starts with a dot.
pub fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// The link or file below the root that an error of a walk is about; `None` for a folder that cannot be listed.
pub fn unreadable(error: &walkdir::Error) -> Option<&Path> {
    let is_folder = |path: &Path| path.is_dir() && error.loop_ancestor().is_none();
    error.path().filter(|path| error.depth() > 0 && !is_folder(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_the_standard_ones() {
        // FIPS 180-4, the test message "abc".
        let hash = hash_bytes("abc");
        assert_eq!(hash.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(hash.short(10), "ba7816bf8f");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert!("ba78".parse::<ContentHash>().is_err());
    }

    #[test]
    fn a_file_is_hashed_from_several_places_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        for length in [0, 1, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 77] {
            let bytes: Vec<u8> = (0..length).map(|i| (i * 31 % 251) as u8).collect();
            fs::write(&path, &bytes).unwrap();
            let starts = [0, 7, 900, CHUNK as u64 + 3, 1 << 40];
            let found = hash_file_from(&path, &starts).unwrap();
            let expected = starts.map(|start| hash_bytes(&bytes[(start as usize).min(length)..]));
            assert_eq!(found, expected, "{length} bytes");
            assert_eq!(hash_file(&path).unwrap(), expected[0]);
        }
    }

    #[test]
    fn a_tree_hash_sees_names_and_contents_and_nothing_hidden() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("a.txt", "1");
        let first = hash_tree(dir.path(), |_| true).unwrap();
        write(".hidden", "x");
        write("tags.run.json", "{}");
        assert_eq!(hash_tree(dir.path(), |_| true).unwrap(), first);
        write("a.txt", "2");
        let second = hash_tree(dir.path(), |_| true).unwrap();
        assert_ne!(second, first);
        fs::rename(dir.path().join("a.txt"), dir.path().join("b.txt")).unwrap();
        assert_ne!(hash_tree(dir.path(), |_| true).unwrap(), second);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_folder_has_a_stamp_only_where_each_file_has_one_and_can_be_read() {
        use std::{
            os::unix::fs::symlink,
            time::{Duration, SystemTime},
        };

        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let write = |text: &str, time: SystemTime| {
            fs::write(at("a.bin"), text).unwrap();
            File::options().write(true).open(at("a.bin")).unwrap().set_modified(time).unwrap();
        };
        let day = Duration::from_secs(86_400);
        write("1", UNIX_EPOCH + day);
        let known = stamp_tree(dir.path()).unwrap().unwrap();
        assert_eq!(known.1, 86_400_000_000_000);
        write("12", UNIX_EPOCH + day);
        assert_ne!(stamp_tree(dir.path()).unwrap().unwrap().0, known.0);
        // 1969, and a year that nanoseconds in 64 bits do not reach.
        for time in [UNIX_EPOCH - day, UNIX_EPOCH + 365 * 700 * day] {
            write("1", time);
            let kept = fs::metadata(at("a.bin")).unwrap().modified().unwrap() == time;
            assert!(!kept || (stamp_tree(dir.path()).unwrap(), Stamp::of(&at("a.bin"))) == (None, None));
        }
        write("1", UNIX_EPOCH + day);
        assert_eq!(stamp_tree(dir.path()).unwrap(), Some(known));
        symlink("gone", at("b.bin")).unwrap();
        assert_eq!(stamp_tree(dir.path()).unwrap(), None);
        assert_eq!(Stamp::of(dir.path()), None, "a folder is no file");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_cannot_be_read_enters_the_hash_as_such() {
        use std::os::unix::fs::symlink;

        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let hash = || hash_tree(dir.path(), |path| path.extension().is_some()).unwrap();
        let mut hashes = vec![hash()];
        symlink("nowhere", at("a.png")).unwrap();
        hashes.push(hash());
        symlink("nowhere", at("folder")).unwrap();
        hashes.push(hash());
        symlink(".", at("circle")).unwrap();
        hashes.push(hash());
        // It opens, but nothing is mapped where it starts.
        symlink("/proc/self/mem", at("b.png")).unwrap();
        hashes.push(hash());
        assert_eq!(hash(), hashes[4]);
        fs::write(at("nowhere"), "").unwrap();
        hashes.push(hash());
        symlink("gone", at(".#hidden")).unwrap();
        assert_eq!(hash(), hashes[5]);
        assert!(hashes.iter().enumerate().all(|(i, hash)| !hashes[..i].contains(hash)), "{hashes:?}");

        assert!(hash_tree(at("gone"), |_| true).is_err());
        symlink("gone", at("root")).unwrap();
        assert!(hash_tree(at("root"), |_| true).is_err());
        assert!(hash_tree(at("b.png"), |_| true).is_err());
    }
}
