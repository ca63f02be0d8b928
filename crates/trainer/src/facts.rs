//! What was seen of a picture when it was decoded: its size, and a hash of its pixels.
//!
//! An index in the cache's folder remembers it by path, size and times of the file, so that a second run need not decode
//! all pictures again before it begins. It is appended to, a line a picture; one that is torn is as if it were not there.

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use vodka_images::{Picture, RgbImage, decode};
use vodka_stage::{ContentHash, Hasher, create_dir};

use crate::Result;

/// What was seen of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Width and height in pixels, turned as its EXIF orientation says.
    pub size: (u32, u32),
    /// The hash of its size and pixels, without transparency.
    pub pixels: ContentHash,
}

impl Facts {
    /// Of pixels in hand.
    pub fn of(image: &RgbImage) -> Self {
        let (width, height) = image.dimensions();
        let mut hasher = Hasher::default();
        hasher.piece(width.to_le_bytes()).piece(height.to_le_bytes()).piece(image.as_raw());
        Self { size: (width, height), pixels: hasher.finish() }
    }
}

/// Decodes a picture, or says why it cannot be.
pub(crate) fn read(path: &Path) -> Result<Picture, String> {
    decode(path).map_err(|error| match error {
        vodka_images::Error::Picture { source, .. } => source.reason(),
        other => other.to_string(),
    })
}

/// What was seen of the files of this run.
pub(crate) type Looked = HashMap<PathBuf, (Stamp, Facts)>;

/// What is known of pictures from earlier runs.
#[derive(Debug)]
pub(crate) struct Index {
    path: PathBuf,
    known: HashMap<ContentHash, Facts>,
}

/// A longer index is begun anew: half a million pictures.
const LONGEST: u64 = 1 << 26;
/// A file that was changed so little time before it was looked at may be changed again within one tick of the clock.
const SETTLED: Duration = Duration::from_millis(100);
/// What pixels are made by; it changes when the decoders do.
pub(crate) const DECODER: &str = "vodka-images 1";

/// What tells a file from what it was before. Never the same for two contents, but that the clock stands still between.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp {
    hash: ContentHash,
    is_settled: bool,
}

impl Stamp {
    /// Whether the file is the same, and as it was.
    pub fn is_same(&self, other: &Self) -> bool {
        self.hash == other.hash
    }

    /// Of a file at a time.
    pub fn of(path: &Path, now: SystemTime) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        let path = fs::canonicalize(path)?;
        let times = times(&metadata);
        let mut hasher = Hasher::default();
        hasher.piece(DECODER).piece(path.as_os_str().as_encoded_bytes()).piece(metadata.len().to_le_bytes());
        times.iter().for_each(|time| {
            hasher.piece(time.to_le_bytes());
        });
        let changed = SystemTime::UNIX_EPOCH + Duration::from_nanos(times[0].max(times[1]));
        let is_settled = now.duration_since(changed).is_ok_and(|age| age >= SETTLED);
        Ok(Self { hash: hasher.finish(), is_settled })
    }
}

/// When content and name or owner of a file were changed, in nanoseconds since 1970, and which file it is.
#[cfg(unix)]
fn times(metadata: &Metadata) -> [u64; 4] {
    use std::os::unix::fs::MetadataExt;
    let nanos = |seconds: i64, nanos: i64| (seconds * 1_000_000_000 + nanos) as u64;
    let changed = nanos(metadata.ctime(), metadata.ctime_nsec());
    [nanos(metadata.mtime(), metadata.mtime_nsec()), changed, metadata.ino(), metadata.dev()]
}

#[cfg(not(unix))]
fn times(metadata: &Metadata) -> [u64; 4] {
    let nanos = |time: io::Result<SystemTime>| {
        let since = time.ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        since.map_or(0, |since| since.as_nanos() as u64)
    };
    [nanos(metadata.modified()), nanos(metadata.created()), 0, 0]
}

impl Index {
    /// Reads the index in a folder.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(folder: &Path) -> Result<Self> {
        create_dir(folder)?;
        let path = folder.join("pictures.index");
        if fs::metadata(&path).is_ok_and(|metadata| metadata.len() > LONGEST) {
            // If it stays, it is read once more.
            let _ = fs::remove_file(&path);
        }
        let bytes = fs::read(&path).unwrap_or_default();
        let known = bytes.split(|byte| *byte == b'\n').filter_map(parse).collect();
        Ok(Self { path, known })
    }

    /// What is known of the file with this stamp.
    pub fn get(&self, stamp: Stamp) -> Option<Facts> {
        self.known.get(&stamp.hash).copied()
    }

    /// Remembers what was seen of files; what cannot be written is not remembered. Files that were changed a moment ago
    /// are left out.
    pub fn add(&self, seen: &[(Stamp, Facts)]) {
        let mut lines = String::new();
        seen.iter().filter(|(stamp, _)| stamp.is_settled).for_each(|(stamp, facts)| {
            // The line of a run that was killed may have no end.
            let _ = writeln!(lines, "\n{}", line(stamp.hash, *facts));
        });
        if lines.is_empty() {
            return;
        }
        // One write, so that the lines of two runs do not mix.
        let open = || OpenOptions::new().create(true).append(true).open(&self.path);
        let _ = open().and_then(|mut file: File| file.write_all(lines.as_bytes()));
    }
}

fn line(stamp: ContentHash, Facts { size: (width, height), pixels }: Facts) -> String {
    let text = format!("{stamp} {width} {height} {pixels}");
    format!("{text} {:08x}", crc32fast::hash(text.as_bytes()))
}

fn parse(line: &[u8]) -> Option<(ContentHash, Facts)> {
    let (text, check) = std::str::from_utf8(line).ok()?.rsplit_once(' ')?;
    if check != format!("{:08x}", crc32fast::hash(text.as_bytes())) {
        return None;
    }
    let mut words = text.split(' ');
    let stamp = words.next()?.parse().ok()?;
    let size = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some((stamp, Facts { size, pixels: words.next()?.parse().ok()? }))
}

#[cfg(test)]
mod tests {
    use vodka_images::Rgb;

    use super::*;

    fn later() -> SystemTime {
        SystemTime::now() + Duration::from_secs(10)
    }

    #[test]
    fn what_was_seen_is_known_until_the_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let facts = |grey| Facts::of(&RgbImage::from_pixel(3, 2, Rgb([grey; 3])));
        assert_eq!(facts(1).size, (3, 2));
        assert_ne!(facts(1).pixels, facts(2).pixels);
        assert_ne!(facts(1).pixels, Facts::of(&RgbImage::from_pixel(2, 3, Rgb([1; 3]))).pixels);

        fs::write(at("a"), "first").unwrap();
        fs::write(at("b"), "other").unwrap();
        let stamp = |name: &str| Stamp::of(&at(name), later()).unwrap();
        let index = Index::open(&at("cache")).unwrap();
        index.add(&[(stamp("a"), facts(1)), (stamp("b"), facts(2))]);
        let index = Index::open(&at("cache")).unwrap();
        assert_eq!([stamp("a"), stamp("b")].map(|s| index.get(s)), [Some(facts(1)), Some(facts(2))]);

        // Other bytes of the same number, and the old time put back: an edit that keeps mtime.
        let before = fs::metadata(at("a")).unwrap().modified().unwrap();
        fs::write(at("a"), "again").unwrap();
        File::options().write(true).open(at("a")).unwrap().set_modified(before).unwrap();
        fs::rename(at("b"), at("c")).unwrap();
        if cfg!(unix) {
            assert_eq!(index.get(stamp("a")), None);
        }
        assert_eq!(index.get(stamp("c")), None);
        assert!(Stamp::of(&at("gone"), later()).is_err());
    }

    #[test]
    fn a_file_that_was_changed_a_moment_ago_is_not_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "x").unwrap();
        let index = Index::open(dir.path()).unwrap();
        let changed = fs::metadata(&path).unwrap().modified().unwrap();
        let stamp = Stamp::of(&path, changed + Duration::from_millis(1)).unwrap();
        index.add(&[(stamp, Facts::of(&RgbImage::new(1, 1)))]);
        assert_eq!(Index::open(dir.path()).unwrap().get(stamp), None);
    }

    #[test]
    fn torn_lines_are_as_if_they_were_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "x").unwrap();
        let stamp = Stamp::of(&path, later()).unwrap();
        let facts = Facts::of(&RgbImage::new(4, 5));
        Index::open(dir.path()).unwrap().add(&[(stamp, facts)]);
        let file = dir.path().join("pictures.index");
        let whole = fs::read(&file).unwrap();
        for keep in 0..whole.len() - 1 {
            fs::write(&file, &whole[..keep]).unwrap();
            assert_eq!(Index::open(dir.path()).unwrap().get(stamp), None, "{keep} bytes");
            // The next line is on its own all the same.
            Index::open(dir.path()).unwrap().add(&[(stamp, facts)]);
            assert_eq!(Index::open(dir.path()).unwrap().get(stamp), Some(facts), "{keep} bytes");
        }
        let mut flipped = whole;
        flipped[30] ^= 1;
        fs::write(&file, flipped).unwrap();
        assert_eq!(Index::open(dir.path()).unwrap().get(stamp), None);
    }
}
