//! The files that captions are written to: what each is to hold, whether it may be changed, and changing it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use encoding_rs::Encoding;
use vodka_stage::{ContentHash, hash_bytes};

use super::CaptionPlan;
use crate::{
    Caption, CaptionFormat, Edits, Error, Place, Result,
    disk::Disk,
    encoding::encoding_named,
    png,
    sidecar::read_bytes,
    written::{Written, original_path},
};

/// A file with the captions of one picture or of many.
#[derive(Debug)]
pub(super) struct Document {
    pub path: PathBuf,
    pub format: CaptionFormat,
    /// The file that it is made from, where that is another.
    pub base: Option<PathBuf>,
    /// What it is to say; where that is nothing, its original is put back.
    pub wants: Vec<Want>,
}

/// A caption as it should be.
#[derive(Debug)]
pub(super) struct Want {
    pub image: String,
    /// The rows of a table that are about the picture.
    pub rows: Vec<usize>,
    /// The key of a row that is not there yet.
    pub key: String,
    pub text: String,
    /// What the file that it is made from says, on one line.
    pub was: Option<String>,
    /// The caption that the tags were put into, wherever it was.
    pub before: String,
    /// Whether it has tags that the caption did not have.
    pub has_tags: bool,
}

/// What is to happen to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// It is as it should be.
    Nothing,
    /// It is written; in place, its original is kept before, if it is not.
    Write,
    /// The original takes its place.
    PutBack,
}

/// An action, with the bytes that the file will have then.
pub(super) struct Decision {
    pub action: Action,
    bytes: Option<Vec<u8>>,
    /// In place: what is to be kept first, if there is a file; none where it is kept already.
    keep: Option<Option<Vec<u8>>>,
}

/// What documents are looked at and changed with.
pub(super) struct Desk<'a> {
    plan: &'a CaptionPlan,
    encoding: Option<&'static Encoding>,
    disk: &'a Disk,
}

impl Document {
    /// How many captions it has.
    pub(super) fn count(&self) -> u64 {
        self.wants.len() as u64
    }

    /// A file of which the original is kept, and that nothing is to be written to any more.
    pub(super) fn put_back(path: PathBuf) -> Self {
        let extension = path.extension().unwrap_or_default();
        let is_of = |format: &CaptionFormat| format.extensions().iter().any(|known| extension == *known);
        let format = CaptionFormat::ALL.into_iter().find(is_of).unwrap_or_default();
        Self { path, format, base: None, wants: Vec::new() }
    }
}

impl<'a> Desk<'a> {
    pub(super) fn new(plan: &'a CaptionPlan, disk: &'a Disk) -> Result<Self> {
        Ok(Self { plan, encoding: plan.source.encoding.as_deref().map(encoding_named).transpose()?, disk })
    }

    fn place<'p>(&'p self, document: &'p Document) -> Place<'p> {
        let Document { path, format, .. } = document;
        Place { path, format: *format, columns: self.plan.source.columns(), encoding: self.encoding }
    }

    /// Finds out what is to happen to a file in place, and whether it may.
    ///
    /// # Errors
    /// Somebody else's file, or edit; a read-only file; what cannot be read or made.
    pub(super) fn decide(&self, document: &Document, written: &Written) -> Result<Decision> {
        let decision = self.decided(document, written)?;
        if decision.action != Action::Nothing {
            check_writable(&document.path)?;
        }
        Ok(decision)
    }

    /// What a file in a folder of captions is to hold.
    pub(super) fn made_anew(&self, document: &Document) -> Result<Vec<u8>> {
        let base = document.base.as_deref().map(read_bytes).transpose()?.flatten();
        self.made(document, base.as_deref())
    }

    fn decided(&self, document: &Document, written: &Written) -> Result<Decision> {
        let path = &document.path;
        let found = read_bytes(path)?;
        let kept = written.original(path)?;
        let original = kept.as_ref().unwrap_or(&found);
        let bytes = match document.wants.is_empty() {
            true => original.clone(),
            false => Some(self.made(document, original.as_deref())?),
        };
        let decision = |action| Decision { action, bytes: bytes.clone(), keep: None };
        let Some(original) = &kept else {
            if bytes == found {
                return Ok(decision(Action::Nothing));
            }
            let foreign = original_path(path);
            return match fs::symlink_metadata(&foreign).is_ok() {
                true => Err(Error::ForeignOriginal { original: foreign }),
                false => Ok(Decision { keep: Some(found), ..decision(Action::Write) }),
            };
        };
        let ours = found.as_ref().is_none_or(|found| written.holds(path, found)) || found == *original;
        match (bytes == *original, bytes == found) {
            (false, true) => Ok(decision(Action::Nothing)),
            (false, false) if self.says(document, found.as_deref()) => Ok(decision(Action::Nothing)),
            _ if !ours => Err(Error::Edited { original: original_path(path), caption: path.clone() }),
            (true, _) => Ok(decision(Action::PutBack)),
            (false, false) => Ok(decision(Action::Write)),
        }
    }

    /// What a file is to hold, made from what it is made from.
    fn made(&self, document: &Document, base: Option<&[u8]>) -> Result<Vec<u8>> {
        let place = self.place(document);
        let in_place = self.plan.in_place();
        let (Some(want), Some(base)) = (document.wants.first(), base) else {
            return self.new_made(document);
        };
        let same = want.was.as_ref() == Some(&want.text);
        match document.format {
            CaptionFormat::Png if same => Ok(base.to_vec()),
            CaptionFormat::Png => png::written(&document.path, base, &want.text),
            CaptionFormat::FileName => Ok(base.to_vec()),
            format if format.table().is_some() => match edits(document) {
                edits if edits.is_empty() => Ok(base.to_vec()),
                edits => place.table(Some(base), &edits),
            },
            _ if same && in_place => Ok(base.to_vec()),
            _ => place.beside(Some(base), &want.text),
        }
    }

    /// What a file is to hold that is made from nothing.
    fn new_made(&self, document: &Document) -> Result<Vec<u8>> {
        let place = self.place(document);
        match document.format {
            CaptionFormat::Png | CaptionFormat::FileName => Err(Error::Png {
                path: document.base.clone().unwrap_or_else(|| document.path.clone()),
                reason: "it is not there".to_owned(),
            }),
            format if format.table().is_some() => place.table(None, &edits(document)),
            _ => place.beside(None, &document.wants[0].text),
        }
    }

    /// Whether a file beside a picture says what it is to say, in whatever bytes.
    fn says(&self, document: &Document, found: Option<&[u8]>) -> bool {
        if document.format.extensions().is_empty() {
            return false;
        }
        let text = found.and_then(|found| self.place(document).sidecar(found).ok()?.0);
        let wanted = document.wants.first().map(|want| Caption { text: want.text.clone(), joined: false });
        text.is_some() && text.map(|text| Caption::new(&text)) == wanted
    }

    /// What the bytes of a file beside a picture say; none where they are not of its format.
    pub(super) fn said(&self, document: &Document, bytes: &[u8]) -> Option<String> {
        let text = self.place(document).sidecar(bytes).ok()?.0?;
        Some(Caption::new(&text).text)
    }

    /// What a file says now, by picture.
    pub(super) fn captions(&self, document: &Document) -> Result<BTreeMap<String, String>> {
        let mut captions = BTreeMap::new();
        let Some(want) = document.wants.first() else { return Ok(captions) };
        if document.format == CaptionFormat::Png {
            let text = document.path.exists().then(|| png::read(&document.path)).transpose()?.flatten();
            captions.extend(text.map(|text| (want.image.clone(), text.caption().text)));
            return Ok(captions);
        }
        let Some(bytes) = read_bytes(&document.path)? else { return Ok(captions) };
        let place = self.place(document);
        match document.format {
            CaptionFormat::FileName => drop(captions.insert(want.image.clone(), want.text.clone())),
            format if format.table().is_some() => {
                let (rows, _) = place.rows(&bytes)?;
                let by_key: BTreeMap<_, _> = rows.iter().map(|row| (row.key.as_str(), row)).collect();
                for want in &document.wants {
                    let row = want.rows.first().and_then(|row| rows.get(*row));
                    let caption = row.or_else(|| by_key.get(want.key.as_str()).copied());
                    let caption = caption.and_then(|row| row.caption.as_deref());
                    captions.extend(caption.map(|caption| (want.image.clone(), Caption::new(caption).text)));
                }
            }
            _ => {
                let (text, _) = place.sidecar(&bytes)?;
                captions.extend(text.map(|text| (want.image.clone(), Caption::new(&text).text)));
            }
        }
        Ok(captions)
    }

    /// Does what was decided.
    pub(super) fn act(&self, document: &Document, decision: Decision) -> Result<()> {
        let path = &document.path;
        match decision.action {
            Action::Nothing => Ok(()),
            Action::PutBack => put_back(self.disk, path, decision.bytes.is_some()),
            Action::Write => {
                let original = original_path(path);
                match &decision.keep {
                    Some(Some(bytes)) => self.disk.keep(path, bytes, &original)?,
                    Some(None) => self.disk.write(&original, &[])?,
                    None => {}
                }
                self.disk.write(path, decision.bytes.as_deref().unwrap_or_default())
            }
        }
    }
}

impl Decision {
    /// The hash of what is about to be written.
    pub(super) fn writes(&self) -> Option<ContentHash> {
        (self.action == Action::Write).then(|| hash_bytes(self.bytes.as_deref().unwrap_or_default()))
    }

    /// Whether there is no file, where an original is about to be kept.
    pub(super) fn keeps_absent(&self) -> Option<bool> {
        self.keep.as_ref().map(Option::is_none)
    }
}

/// Puts the original of a file back; where there was no file, it is removed.
pub(crate) fn put_back(disk: &Disk, path: &Path, there: bool) -> Result<()> {
    let original = original_path(path);
    if there {
        return disk.rename(&original, path);
    }
    disk.remove(path)?;
    disk.remove(&original)
}

/// Files that are to be replaced may be, although a rename would not ask: read-only says that somebody wants them kept.
pub(crate) fn check_writable(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    // On Windows the mark on a folder means something else.
    for path in [Some(path), folder.filter(|_| cfg!(unix))].into_iter().flatten() {
        if fs::metadata(path).is_ok_and(|found| found.permissions().readonly()) {
            return Err(Error::ReadOnly { path: path.to_path_buf() });
        }
    }
    Ok(())
}

/// What changes in a table.
fn edits(document: &Document) -> Edits {
    let mut edits = Edits::default();
    for want in &document.wants {
        match want.rows.is_empty() {
            true => edits.add.push((want.key.clone(), want.text.clone())),
            false if want.was.as_ref() == Some(&want.text) => {}
            false => edits.set.extend(want.rows.iter().map(|row| (*row, want.text.clone()))),
        }
    }
    edits
}
