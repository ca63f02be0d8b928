//! Reading the captions of all pictures, wherever they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use encoding_rs::Encoding;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use vodka_stage::{ContentHash, Hasher, hash_bytes};

use super::{CaptionFormat, CaptionSource, Place, file_name, keys::Keys, png};
use crate::{
    Caption, Error, Picture, Result, encoding::encoding_named, sidecar::read_bytes, written::Written,
    written::original_path,
};

/// The captions of the pictures of a folder.
#[derive(Debug, Clone, Default)]
pub struct CaptionSet {
    /// By picture; those without a caption are not listed.
    pub by_image: BTreeMap<String, FoundCaption>,
    /// Files whose encoding had to be guessed.
    pub guessed: Vec<Guessed>,
    /// What tables name that is no picture of the folder.
    pub unknown: Vec<String>,
}

/// The caption of a picture, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundCaption {
    /// What it says; may be empty.
    pub caption: Caption,
    /// How it is kept.
    pub format: CaptionFormat,
    /// The file that it is in.
    pub file: PathBuf,
    /// Where in the file, for people: a line, a key, a keyword.
    pub place: Option<String>,
    /// The rows of a table, from 0; several say the same.
    pub rows: Vec<usize>,
}

impl FoundCaption {
    /// The file and the place in it, for people.
    pub fn described(&self) -> String {
        let file = self.file.display();
        match &self.place {
            Some(place) => format!("`{file}` ({place})"),
            None => format!("`{file}`"),
        }
    }
}

/// A file whose encoding had to be guessed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Guessed {
    /// The file.
    pub file: PathBuf,
    /// What it was taken for, by the name in the WHATWG standard.
    pub encoding: String,
}

/// What was read of all pictures.
pub(crate) struct Gathered {
    pub set: CaptionSet,
    /// Of the names of the pictures, and of all that was read to find their captions.
    pub hash: ContentHash,
    /// Files that were looked at and of which an original is kept.
    pub kept: BTreeSet<PathBuf>,
}

/// Reads the captions of pictures.
///
/// A picture that has captions in several files (beside it, or in a table) has none that counts unless they say the same.
/// With [`CaptionSource::auto`] the text of a PNG counts where there is no such file, and after it the name of the picture
/// if it is several words; empty captions count only where there is no other.
///
/// # Errors
/// A file cannot be read, is not in its encoding, or not in its format; two captions that differ; a row that may be about
/// several pictures; no table where there should be one.
pub fn read_captions(source: &CaptionSource, root: &Path, pictures: &[Picture]) -> Result<CaptionSet> {
    Ok(gather(source, root, pictures, None)?.set)
}

/// Reads the captions of pictures; originals that runs in place have kept stand for what they were made into.
pub(crate) fn gather(
    source: &CaptionSource,
    root: &Path,
    pictures: &[Picture],
    written: Option<&Written>,
) -> Result<Gathered> {
    let encoding = source.encoding.as_deref().map(encoding_named).transpose()?;
    if let Some(folder) = &source.folder {
        fs::read_dir(folder).map_err(|error| Error::Read { path: folder.clone(), source: error })?;
    }
    // Runs in place have changed nothing in a folder apart.
    let written = written.filter(|_| source.folder.is_none());
    let root = source.folder.as_deref().unwrap_or(root);
    let reader = Reader { source, root, written, encoding };
    let table = reader.table(pictures)?;
    let read: Vec<_> = pictures
        .par_iter()
        .enumerate()
        .map(|(place, picture)| reader.picture(picture, table.rows.get(&place).map_or(&[], Vec::as_slice)))
        .collect::<Result<_>>()?;
    let mut set = CaptionSet { unknown: table.unknown, guessed: table.guessed, ..CaptionSet::default() };
    let mut kept = table.kept;
    let mut hasher = Hasher::default();
    hasher.piece(format!("{:?}", table.hashes));
    for (picture, read) in pictures.iter().zip(read) {
        hasher.piece(&picture.image).piece(read.hash.to_string());
        set.guessed.extend(read.guessed);
        kept.extend(read.kept);
        if let Some(found) = read.found {
            set.by_image.insert(picture.image.clone(), found);
        }
    }
    set.guessed.sort();
    Ok(Gathered { set, hash: hasher.finish(), kept })
}

struct Reader<'a> {
    source: &'a CaptionSource,
    root: &'a Path,
    written: Option<&'a Written>,
    encoding: Option<&'static Encoding>,
}

/// What was read of one picture.
#[derive(Default)]
struct PictureRead {
    found: Option<FoundCaption>,
    hasher: Hasher,
    guessed: Vec<Guessed>,
    kept: Vec<PathBuf>,
}

struct Read {
    found: Option<FoundCaption>,
    hash: ContentHash,
    guessed: Vec<Guessed>,
    kept: Vec<PathBuf>,
}

/// What a table says, by the places of the pictures.
#[derive(Default)]
struct TableRead {
    rows: BTreeMap<usize, Vec<FoundCaption>>,
    unknown: Vec<String>,
    guessed: Vec<Guessed>,
    kept: BTreeSet<PathBuf>,
    /// Of each table.
    hashes: Vec<ContentHash>,
}

impl Reader<'_> {
    fn looks_at(&self, format: CaptionFormat) -> bool {
        self.source.auto || self.source.format == format
    }

    /// A file as it was before runs in place changed it, and whether that is kept.
    fn original(&self, path: &Path) -> Result<(Option<Vec<u8>>, bool)> {
        match self.written.map(|written| written.original(path)).transpose()?.flatten() {
            Some(original) => Ok((original, true)),
            None => Ok((read_bytes(path)?, false)),
        }
    }

    fn place<'p>(&'p self, path: &'p Path, format: CaptionFormat) -> Place<'p> {
        Place { path, format, columns: self.source.columns(), encoding: self.encoding }
    }

    /// The tables, by picture.
    fn table(&self, pictures: &[Picture]) -> Result<TableRead> {
        let mut read = TableRead::default();
        let tables = match self.source.table()? {
            Some((format, file)) if self.source.file.is_some() => vec![(format, file)],
            Some((format, file)) => vec![(format, self.root.join(file))],
            None if self.source.auto => self.usual_tables(),
            None => Vec::new(),
        };
        for (format, path) in tables {
            match self.read_table(format, &path, pictures, &mut read) {
                // A table of that name need not be about captions.
                Err(Error::Columns { .. }) if self.source.auto && self.source.file.is_none() => {}
                done => done?,
            }
        }
        Ok(read)
    }

    /// Tables with the usual names that there are in the folder.
    fn usual_tables(&self) -> Vec<(CaptionFormat, PathBuf)> {
        let tables = CaptionFormat::ALL.into_iter();
        let tables = tables.filter_map(|format| Some((format, self.root.join(format.table()?))));
        tables.filter(|(_, path)| path.exists()).collect()
    }

    fn read_table(
        &self,
        format: CaptionFormat,
        path: &Path,
        pictures: &[Picture],
        read: &mut TableRead,
    ) -> Result<()> {
        let (bytes, kept) = self.original(path)?;
        if kept {
            read.kept.insert(path.to_path_buf());
        }
        let origin = if kept { original_path(path) } else { path.to_path_buf() };
        let Some(bytes) = bytes else {
            let source = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(Error::Read { path: origin, source });
        };
        let (rows, guess) = self.place(&origin, format).rows(&bytes)?;
        let guess = guess.map(|encoding| Guessed { file: origin.clone(), encoding: encoding.to_owned() });
        read.guessed.extend(guess);
        read.hashes.push(hash_bytes(&bytes));
        let keys = Keys::new(self.root, pictures);
        for (number, row) in rows.into_iter().enumerate() {
            let places = keys.find(&row.key);
            let place = match places {
                [] => {
                    read.unknown.push(row.key);
                    continue;
                }
                [place] => *place,
                several => return Err(ambiguous(&origin, row, several, pictures)),
            };
            // Without a caption it still is the row that one is put into.
            let text = row.caption.unwrap_or_default();
            let found = FoundCaption {
                caption: Caption::new(&text),
                format,
                file: path.to_path_buf(),
                place: Some(row.place),
                rows: vec![number],
            };
            read.rows.entry(place).or_default().push(found);
        }
        Ok(())
    }

    /// The caption of one picture.
    fn picture(&self, picture: &Picture, rows: &[FoundCaption]) -> Result<Read> {
        let mut read = PictureRead::default();
        for format in CaptionFormat::ALL.into_iter().filter(|format| self.looks_at(*format)) {
            for extension in format.extensions() {
                self.sidecar(picture, format, extension, &mut read)?;
            }
        }
        for row in rows {
            read.offer(picture, row.clone())?;
        }
        if read.found.as_ref().is_none_or(|found| found.caption.text.is_empty()) {
            self.within(picture, &mut read)?;
        }
        let PictureRead { found, hasher, guessed, kept } = read;
        Ok(Read { found, hash: hasher.finish(), guessed, kept })
    }

    fn sidecar(
        &self,
        picture: &Picture,
        format: CaptionFormat,
        extension: &str,
        read: &mut PictureRead,
    ) -> Result<()> {
        let path = self.root.join(picture.caption.with_extension(extension));
        let (bytes, kept) = self.original(&path)?;
        if kept {
            read.kept.push(path.clone());
        }
        read.hasher.piece([u8::from(bytes.is_some())]).piece(bytes.as_deref().unwrap_or_default());
        let Some(bytes) = bytes else { return Ok(()) };
        let origin = if kept { original_path(&path) } else { path.clone() };
        let (text, guess) = self.place(&origin, format).sidecar(&bytes)?;
        read.guessed.extend(guess.map(|encoding| Guessed { file: origin, encoding: encoding.to_owned() }));
        match text {
            Some(text) => {
                let caption = Caption::new(&text);
                read.offer(
                    picture,
                    FoundCaption { caption, format, file: path, place: None, rows: Vec::new() },
                )
            }
            None => Ok(()),
        }
    }

    /// The caption in the picture, or in its name.
    fn within(&self, picture: &Picture, read: &mut PictureRead) -> Result<()> {
        let file = self.root.join(&picture.image);
        let found = |format, caption, place| FoundCaption {
            caption,
            format,
            file: file.clone(),
            place,
            rows: Vec::new(),
        };
        if self.looks_at(CaptionFormat::Png) {
            let kept = self.written.is_some_and(|written| written.keeps(&file));
            if kept {
                read.kept.push(file.clone());
            }
            let origin = if kept { original_path(&file) } else { file.clone() };
            if let Some(text) = png::read(&origin)? {
                read.hasher.piece(&text.text);
                read.offer(
                    picture,
                    found(CaptionFormat::Png, text.caption(), Some(text.keyword.to_owned())),
                )?;
            }
        }
        let nothing = read.found.as_ref().is_none_or(|found| found.caption.text.is_empty());
        if nothing && self.looks_at(CaptionFormat::FileName)
            && let Some(text) = file_name::read(Path::new(&picture.image))
            // `IMG_0001` is no caption, unless somebody says so.
            && (!self.source.auto || text.split_whitespace().nth(1).is_some())
        {
            read.offer(picture, found(CaptionFormat::FileName, Caption::new(&text), None))?;
        }
        Ok(())
    }
}

impl PictureRead {
    /// Takes a caption where there was none, or an empty one; and rows of a table that say the same.
    fn offer(&mut self, picture: &Picture, found: FoundCaption) -> Result<()> {
        match &mut self.found {
            Some(first) if first.caption.text == found.caption.text && first.file == found.file => {
                first.rows.extend(found.rows);
            }
            Some(first) if first.caption.text == found.caption.text || found.caption.text.is_empty() => {}
            Some(first) if !first.caption.text.is_empty() => {
                return Err(Error::TwoCaptions {
                    image: picture.image.clone(),
                    first: first.described(),
                    second: found.described(),
                });
            }
            _ => self.found = Some(found),
        }
        Ok(())
    }
}

fn ambiguous(path: &Path, row: super::Row, places: &[usize], pictures: &[Picture]) -> Error {
    let names: Vec<_> = places.iter().map(|place| format!("`{}`", pictures[*place].image)).collect();
    Error::AmbiguousKey {
        place: format!("`{}` {}", path.display(), row.place),
        key: row.key,
        pictures: names.join(", "),
    }
}
