//! From a path to what the network wants to see, and what else there is to know about the file.

use std::{
    fs::{File, Metadata},
    io::{self, Read},
    path::Path,
    time::UNIX_EPOCH,
};

use serde::{Deserialize, Serialize};
use vodka_images::{DecodeOptions, Decoded, Fault, Measures, RgbImage, decode_bytes, measure, size_of_bytes};
use vodka_stage::{ContentHash, catch_panic, hash_bytes};

use crate::{
    budget::{Budget, Share},
    pipeline::{Prepared, Seen},
};

/// No picture is larger; a file that is would fill the memory before it could be looked at.
const FILE_MAX: u64 = 1 << 30;
/// How often a file is read again that was changed meanwhile.
const ATTEMPTS: usize = 3;

/// By what a file is taken for unchanged: its size and when it was modified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    size: u64,
    modified_ns: u128,
}

impl Stamp {
    fn new(metadata: &Metadata) -> Self {
        let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Self { size: metadata.len(), modified_ns: modified.unwrap_or_default().as_nanos() }
    }

    /// The stamp of a file; none where there is no such file, or no permission to look at it.
    pub fn of(path: &Path) -> Option<Self> {
        std::fs::metadata(path).ok().map(|metadata| Self::new(&metadata))
    }
}

/// What is known of a picture beside its tags.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub stamp: Stamp,
    /// The hash of the file.
    pub sha256: ContentHash,
    /// Width in pixels, turned as it is seen.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// What was measured on the pixels, where that was asked for.
    pub looks: Option<Looks>,
}

/// [`Measures`], as a journal keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Looks {
    pub phash: u64,
    pub sharpness: f32,
    /// Of the tiles: the lowest, the median and the highest.
    pub tile_sharpness: [f32; 3],
}

impl From<Measures> for Looks {
    fn from(Measures { phash, sharpness, tiles }: Measures) -> Self {
        Self { phash, sharpness, tile_sharpness: [tiles.min, tiles.median, tiles.max] }
    }
}

/// Why a picture is skipped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Trouble {
    pub reason: String,
    /// The content that is no picture; none where the file could not be read, which another time it may, and where nobody
    /// has asked for it.
    pub content: Option<(Stamp, ContentHash)>,
}

impl Trouble {
    fn unreadable(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), content: None }
    }
}

/// What all readers together may hold at a time: each may come upon a picture as large as any may be.
#[derive(Debug)]
pub(crate) struct Memory {
    /// Bytes of files.
    files: Budget,
    /// Pixels of pictures that are being decoded, of 3 to 12 bytes each.
    pixels: Budget,
}

impl Memory {
    /// As much as one largest file and one largest picture take, or as many pictures of 16 megapixels as there are readers,
    /// so that no reader waits where pictures are of the usual sizes.
    pub fn new(decode: &DecodeOptions, readers: usize) -> Self {
        let usual = (readers as u64) << 24;
        Self { files: Budget::new(FILE_MAX), pixels: Budget::new(decode.max_pixels.max(usual)) }
    }

    /// Waits until there is room to decode a file. One that does not start as a picture does needs none.
    fn room_for(&self, bytes: &[u8]) -> Share<'_> {
        let pixels = match size_of_bytes(bytes) {
            Ok((width, height)) => u64::from(width) * u64::from(height),
            Err(Fault::Empty | Fault::NotAPicture { .. }) => 0,
            // Another decoder may see more in it.
            Err(_) => u64::MAX,
        };
        self.pixels.take(pixels)
    }
}

/// Reads and prepares pictures; one for all threads.
pub(crate) struct Reader<'a> {
    /// The folder that paths are relative to.
    pub root: &'a Path,
    pub decode: DecodeOptions,
    /// What makes of a picture what each network wants to see.
    pub prepare: &'a (dyn Fn(&Decoded) -> Vec<RgbImage> + Sync),
    /// Whether pictures are measured.
    pub measure: bool,
    /// For pictures that are told apart by name and content: the hash that the one at this place had when it was scored
    /// before, where its stamp has changed since. Without it no file is hashed, and names need not be text.
    pub known: Option<&'a Known<'a>>,
    pub memory: Memory,
}

/// What is known of the content of the picture at a place of the list.
pub(crate) type Known<'a> = dyn Fn(usize) -> Option<ContentHash> + Sync + 'a;

impl Reader<'_> {
    /// The picture at `index` of the list, or what became of it instead.
    pub fn prepare(&self, index: usize, path: &Path) -> Prepared {
        if self.known.is_some() && path.to_str().is_none() {
            return skipped(Trouble::unreadable("the name is not UTF-8"));
        }
        let (bytes, stamp, _room) = match read(&self.root.join(path), &self.memory.files, || {}) {
            Ok(found) => found,
            Err(_) if self.is_gone() => return Prepared::Gone(self.root.to_path_buf()),
            Err(trouble) => return skipped(trouble),
        };
        let content = self.known.map(|_| (stamp, hash_bytes(&bytes)));
        let known = self.known.and_then(|known| known(index));
        if known.is_some() && known == content.map(|(_, sha256)| sha256) {
            return Prepared::Done(Seen::Same(stamp));
        }
        let work = || {
            let _room = self.memory.room_for(&bytes);
            let decoded = decode_bytes(&bytes, &self.decode)?;
            let looks = self.measure.then(|| measure(&decoded.picture).into());
            let Decoded { width, height, .. } = decoded;
            let facts = content.map(|(stamp, sha256)| Facts { stamp, sha256, width, height, looks });
            Ok(Prepared::Picture((self.prepare)(&decoded), facts))
        };
        let trouble = |fault: Fault| Trouble { reason: fault.reason(), content };
        guarded(work).unwrap_or_else(|fault| skipped(trouble(fault)))
    }

    fn is_gone(&self) -> bool {
        !self.root.as_os_str().is_empty() && !self.root.is_dir()
    }
}

fn skipped(trouble: Trouble) -> Prepared {
    Prepared::Done(Seen::Skipped(trouble))
}

/// Whether a file can be taken for a picture before it is looked into. What cannot is the same as what cannot be read.
pub(crate) fn is_readable(path: &Path) -> bool {
    let is_small = |file: File| file.metadata().is_ok_and(|metadata| metadata.len() <= FILE_MAX);
    path.to_str().is_some() && File::open(path).is_ok_and(is_small)
}

/// The content of a file that nobody changed meanwhile, and the room that it takes. `opened` is told each time that it is
/// open and its size known: until it is read somebody may change it.
fn read<'a>(
    path: &Path,
    room: &'a Budget,
    mut opened: impl FnMut(),
) -> Result<(Vec<u8>, Stamp, Share<'a>), Trouble> {
    let unreadable = |source: io::Error| Trouble::unreadable(Fault::Read { source }.reason());
    for _ in 0..ATTEMPTS {
        let mut file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if metadata.len() > FILE_MAX {
            let found = metadata.len();
            return Err(Trouble::unreadable(format!("expected at most {FILE_MAX} bytes, found {found}")));
        }
        opened();
        let share = room.take(metadata.len());
        let mut bytes = Vec::with_capacity(metadata.len() as usize + 1);
        file.by_ref().take(FILE_MAX).read_to_end(&mut bytes).map_err(unreadable)?;
        let stamp = Stamp::new(&metadata);
        // The name may lead to another file by now: that is the one to tag.
        if bytes.len() as u64 == stamp.size && Stamp::of(path) == Some(stamp) {
            return Ok((bytes, stamp, share));
        }
    }
    Err(Trouble::unreadable("the file is changed again and again while it is read"))
}

/// Makes of a panic a reason to skip the picture: one that nobody has thought of must not end a run of a million.
fn guarded<T>(work: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_panic(work).unwrap_or(Err(Fault::Panic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_skips_one_picture() {
        assert_eq!(guarded(|| Ok(1)).unwrap(), 1);
        let fault = guarded::<()>(|| panic!("a case of its own")).unwrap_err();
        assert_eq!(fault.reason(), "the decoder fails on the file");
    }

    #[test]
    fn a_picture_takes_room_for_its_pixels() {
        let decode = DecodeOptions { max_pixels: 1 << 25, ..DecodeOptions::default() };
        let memory = Memory::new(&decode, 3);
        let bytes = std::fs::read(vodka_testkit::fixture("images/awkward").join("odd.png")).unwrap();
        let (width, height) = size_of_bytes(&bytes).unwrap();
        let taken = |bytes: &[u8]| memory.room_for(bytes).amount();
        assert_eq!(taken(&bytes), u64::from(width) * u64::from(height));
        assert_eq!((taken(b""), taken(b"just a note")), (0, 0));
        // Of a header that ends early the worst is thought.
        assert_eq!(taken(&bytes[..20]), 3 << 24);
    }

    #[test]
    fn a_file_too_large_to_be_a_picture_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large.png");
        File::create(&path).unwrap().set_len(FILE_MAX + 1).unwrap();
        let room = Budget::new(FILE_MAX);
        assert_eq!(
            read(&path, &room, || {}).unwrap_err().reason,
            "expected at most 1073741824 bytes, found 1073741825"
        );
    }

    #[test]
    fn a_file_that_is_changed_while_it_is_read_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let (path, new) = (dir.path().join("a.png"), dir.path().join("new"));
        let room = Budget::new(FILE_MAX);
        let replace = |text: &str| {
            std::fs::write(&new, text).unwrap();
            std::fs::rename(&new, &path).unwrap();
        };
        let append = |text: &str| {
            let mut file = File::options().append(true).open(&path).unwrap();
            io::Write::write_all(&mut file, text.as_bytes()).unwrap();
        };
        type Change<'a> = &'a dyn Fn(&str);
        for (change, expected) in [(&replace as Change, "22"), (&append as Change, "022")] {
            replace("0");
            let mut times = 0;
            let found = read(&path, &room, || {
                times += 1;
                if times == 1 {
                    change("22");
                }
            });
            let (bytes, stamp, _) = found.unwrap();
            assert_eq!((&bytes[..], times), (expected.as_bytes(), 2));
            assert_eq!(Some(stamp), Stamp::of(&path), "of the file that was read");
        }
        let mut times = 0;
        let trouble = read(&path, &room, || {
            times += 1;
            append("more");
        });
        let trouble = trouble.unwrap_err();
        assert_eq!(trouble.reason, "the file is changed again and again while it is read");
        assert_eq!((trouble.content, times), (None, ATTEMPTS));
    }
}
