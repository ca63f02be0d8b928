//! Thumbnails: one for each picture that a gallery shows, kept while the picture is what it was.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use vodka_images::{DecodeOptions, Fault, Filter, decode_bytes, shrink};
use vodka_stage::{ContentHash, Hasher, Input, Interrupt, Stamp, hash_bytes, hash_file, write_atomic};

use crate::{
    Error, Result,
    place::{Folder, Item, Size},
    stop_if,
};

/// The folder of thumbnails.
const THUMBNAILS: &str = "thumbnails";

/// How many digits of a picture's hash its thumbnail is called by.
const NAME_DIGITS: usize = 24;

/// WebP's quality, of 100: blur must still be told from sharpness.
const QUALITY: f32 = 82.0;

/// What is known of the pictures shown. Hidden, for it holds times of modification.
const INDEX: &str = ".thumbnails.json";

/// How many are made at once; between them, events are told.
const CHUNK: usize = 64;

/// The thumbnails of a report.
#[derive(Debug)]
pub(super) struct Thumbnails {
    images: PathBuf,
    output: PathBuf,
    px: u32,
    index: BTreeMap<String, Known>,
}

/// The file that keeps the index; other settings make other thumbnails.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    px: u32,
    quality: f32,
    pictures: BTreeMap<String, Known>,
}

/// What is known of a picture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    /// While it is what it was, the file is not read.
    stamp: Option<Stamp>,
    /// The content; none where the file cannot be read.
    sha256: Option<ContentHash>,
    made: Made,
}

/// What came of a picture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Made {
    Thumbnail { width: u32, height: u32, sha256: ContentHash },
    Problem(String),
}

/// A thumbnail as pages use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thumbnail {
    /// The file, below the report's folder.
    pub file: String,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

impl Thumbnails {
    /// What former runs have left in the folder of a report.
    pub(super) fn open(images: &Path, output: &Path, px: u32) -> Self {
        let index = fs::read(output.join(INDEX)).ok();
        let index = index.and_then(|bytes| serde_json::from_slice::<Index>(&bytes).ok());
        let index = index.filter(|index| index.px == px && index.quality == QUALITY);
        let index = index.map(|index| index.pictures).unwrap_or_default();
        Self { images: images.to_path_buf(), output: output.to_path_buf(), px, index }
    }

    /// Whether nothing has happened to any of these pictures since their thumbnails were made.
    pub(super) fn know(&self, images: &BTreeSet<&str>) -> bool {
        images.par_iter().all(|image| self.unchanged(image).is_some())
    }

    /// Makes those that are missing. Tells how many are done.
    ///
    /// # Errors
    /// What cannot be written; [`Error::Stopped`].
    pub(super) fn make(
        &mut self,
        folder: &mut Folder,
        images: &BTreeSet<&str>,
        interrupt: &Interrupt,
        on_done: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let before = self.index.clone();
        let made = self.make_missing(folder, &before, images, interrupt, on_done);
        if matches!(made, Ok(()) | Err(Error::Stopped)) {
            self.save(&before)?;
        }
        made
    }

    fn make_missing(
        &mut self,
        folder: &mut Folder,
        before: &BTreeMap<String, Known>,
        images: &BTreeSet<&str>,
        interrupt: &Interrupt,
        on_done: &mut dyn FnMut(u64),
    ) -> Result<()> {
        self.index.retain(|image, _| images.contains(image.as_str()));
        let images: Vec<_> = images.iter().copied().collect();
        for (chunk, images) in images.chunks(CHUNK).enumerate() {
            let look_at = |image: &&str| {
                stop_if(interrupt)?;
                let (known, webp) = self.look_at(image);
                Ok(((*image).to_owned(), known, webp))
            };
            let looked_at: Vec<_> = images.par_iter().map(look_at).collect::<Result<_>>()?;
            let (mut known, mut webps) = (Vec::new(), BTreeMap::new());
            for (image, found, webp) in looked_at {
                // Equal pictures have one thumbnail.
                webps.extend(found.file().zip(webp));
                known.push((image, found));
            }
            let item =
                |(name, webp): (String, Vec<u8>)| Item::made(name, Size::Small, move || Ok(webp.clone()));
            let items: Vec<_> = webps.into_iter().map(item).collect();
            let due = folder.due(&items, interrupt)?;
            folder.put(&due, interrupt, &mut |_| {})?;
            let changed = known.iter().any(|(image, known)| self.index.get(image) != Some(known));
            self.index.extend(known);
            if changed && chunk % 8 == 7 {
                self.save(before)?;
            }
            on_done((chunk * CHUNK + images.len()) as u64);
        }
        Ok(())
    }

    /// The thumbnail of a picture, or what is wrong with the picture.
    pub(super) fn of(&self, image: &str) -> Option<Result<Thumbnail, &str>> {
        let known = self.index.get(image)?;
        Some(match &known.made {
            Made::Thumbnail { width, height, .. } => {
                Ok(Thumbnail { file: known.file()?, width: *width, height: *height })
            }
            Made::Problem(problem) => Err(problem),
        })
    }

    /// The files of all thumbnails, below the report's folder.
    pub(super) fn names(&self) -> BTreeSet<String> {
        self.index.values().filter_map(Known::file).collect()
    }

    /// The pictures and what they hold, as an input of a run. Of those that are not known yet, the files are read.
    pub(super) fn input(&self, images: &BTreeSet<&str>) -> Input {
        let hash = |image: &&str| match self.unchanged(image) {
            Some(known) => known.sha256,
            None => hash_file(self.images.join(image)).ok(),
        };
        let images: Vec<_> = images.iter().copied().collect();
        let hashes: Vec<_> = images.par_iter().map(hash).collect();
        let mut hasher = Hasher::default();
        for (image, hash) in images.iter().zip(hashes) {
            hasher.piece(image).piece(hash.map(|hash| hash.to_string()).unwrap_or_default());
        }
        Input { path: self.images.clone(), sha256: hasher.finish() }
    }

    /// What is known of a picture, if its file is what it was.
    fn unchanged(&self, image: &str) -> Option<&Known> {
        let known = self.index.get(image)?;
        (known.stamp.is_some() && known.stamp == Stamp::of(&self.images.join(image))).then_some(known)
    }

    /// What is to be known of a picture, and its thumbnail where that is not there.
    fn look_at(&self, image: &str) -> (Known, Option<Vec<u8>>) {
        if let Some(known) = self.unchanged(image).filter(|known| self.is_there(known)) {
            return (known.clone(), None);
        }
        let path = self.images.join(image);
        let stamp = Stamp::of(&path);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(source) => {
                let made = Made::Problem(Fault::Read { source }.reason());
                return (Known { stamp: None, sha256: None, made }, None);
            }
        };
        let sha256 = hash_bytes(&bytes);
        if let Some(known) = self.index.get(image).filter(|known| known.sha256 == Some(sha256))
            && self.is_there(known)
        {
            return (Known { stamp, ..known.clone() }, None);
        }
        let (made, webp) = match thumbnail(&bytes, self.px) {
            Err(problem) => (Made::Problem(problem), None),
            Ok((webp, width, height)) => {
                (Made::Thumbnail { width, height, sha256: hash_bytes(&webp) }, Some(webp))
            }
        };
        (Known { stamp, sha256: Some(sha256), made }, webp)
    }

    /// Whether what was made of a picture is still there, as it was made.
    fn is_there(&self, known: &Known) -> bool {
        match (&known.made, known.file()) {
            (Made::Thumbnail { sha256, .. }, Some(file)) => {
                hash_file(self.output.join(file)).is_ok_and(|found| found == *sha256)
            }
            (Made::Problem(_), _) => true,
            (Made::Thumbnail { .. }, None) => false,
        }
    }

    fn save(&self, before: &BTreeMap<String, Known>) -> Result<()> {
        let path = self.output.join(INDEX);
        if self.index == *before && (self.index.is_empty() || path.exists()) {
            return Ok(());
        }
        let index = Index { px: self.px, quality: QUALITY, pictures: self.index.clone() };
        let text = serde_json::to_string(&index).expect("an index is plain data");
        Ok(write_atomic(path, text + "\n")?)
    }
}

impl Known {
    /// The thumbnail's file, below the report's folder.
    fn file(&self) -> Option<String> {
        match (&self.made, self.sha256) {
            (Made::Thumbnail { .. }, Some(picture)) => {
                Some(format!("{THUMBNAILS}/{}.webp", picture.short(NAME_DIGITS)))
            }
            _ => None,
        }
    }
}

/// A picture as WebP with a longer side of at most `px`, with its width and height, or what is wrong with it.
fn thumbnail(bytes: &[u8], px: u32) -> Result<(Vec<u8>, u32, u32), String> {
    let options = DecodeOptions { reduce_to: Some(2 * px), ..DecodeOptions::default() };
    let decoded = decode_bytes(bytes, &options).map_err(|fault| fault.reason())?;
    let small = shrink(decoded.picture.into_rgb(), px, Filter::Bicubic);
    let (width, height) = small.dimensions();
    let webp = webp::Encoder::from_rgb(small.as_raw(), width, height).encode_simple(false, QUALITY);
    let webp = webp.map_err(|error| format!("it cannot be written as WebP: {error:?}"))?;
    Ok((webp.to_vec(), width, height))
}
