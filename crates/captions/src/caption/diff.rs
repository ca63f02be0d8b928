//! What a run would change, without changing it.

use std::{collections::BTreeSet, fmt, path::PathBuf};

use serde::{Deserialize, Serialize};
use vodka_stage::{Interrupt, Outcome, Report};

use super::{
    CaptionPlan, STAGE, Skipped,
    documents::{Action, Desk, Document},
    folder::item,
    prepare::{Read, prepare},
};
use crate::{
    Result,
    disk::Disk,
    filter::lines,
    heard,
    place::{Folder, Standing},
    sidecar::read_bytes,
    written::Written,
};

/// What a run would change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaptionDiff {
    /// Captions that would be written, in the order of the pictures.
    pub changes: Vec<Change>,
    /// How many captions are already as they should be.
    pub unchanged: u64,
    /// Pictures that would get no caption, and why.
    pub skipped: Vec<Skipped>,
    /// Whether the text has colours (ANSI escape sequences); a matter of the terminal.
    #[serde(skip)]
    pub coloured: bool,
}

/// A caption that would be written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// The picture; none where an original would be put back for none that has a caption now.
    pub image: Option<String>,
    /// The file that would be written.
    pub file: PathBuf,
    /// What it says now; where there is no such file, the caption that the new one is made from.
    pub old: Option<String>,
    /// What it would say; none where there would be no file any more, or a picture or table has its original put back.
    pub new: Option<String>,
    /// The comma-separated parts of the new caption that the old one lacks.
    pub inserted: Vec<String>,
    /// The comma-separated parts of the old caption that the new one lacks.
    pub removed: Vec<String>,
    /// Why a run would not write it, nor anything else.
    pub refused: Option<String>,
}

impl Report for CaptionDiff {
    fn outcome(&self) -> Outcome {
        if self.is_complete() { Outcome::Done } else { Outcome::Skipped }
    }
}

/// Finds out what a run would change, and writes nothing.
///
/// # Errors
/// Those of [`super::run`], save that files which it would refuse to change are listed; [`crate::Error::Stopped`].
pub fn diff(plan: &CaptionPlan, interrupt: &Interrupt) -> Result<CaptionDiff> {
    let plan = plan.clone();
    heard(interrupt, move || differences(&plan))
}

fn differences(plan: &CaptionPlan) -> Result<CaptionDiff> {
    let read = Read::new(plan)?;
    let (documents, report) = prepare(plan, &read)?;
    let disk = Disk::default();
    let desk = Desk::new(plan, &disk)?;
    let folder = match plan.in_place() {
        true => None,
        false => Some(Folder::look(plan.output(), STAGE)?),
    };
    let is_due = |document: &Document| -> Result<bool> {
        match &folder {
            None => Ok(desk.decide(document, &read.written)?.action != Action::Nothing),
            Some(folder) => {
                desk.made_anew(document)?;
                Ok(folder.standing(&item(&desk, plan.output(), document))? == Standing::Due)
            }
        }
    };
    let mut diff =
        CaptionDiff { changes: Vec::new(), unchanged: 0, skipped: report.skipped, coloured: false };
    for document in &documents {
        let refused = match is_due(document) {
            Ok(false) => {
                diff.unchanged += document.count();
                continue;
            }
            Ok(true) => None,
            Err(error) => Some(error.to_string()),
        };
        match document.wants.is_empty() {
            true => diff.changes.push(put_back(&desk, document, &read.written, refused)?),
            false => diff.add(&desk, document, refused.as_ref())?,
        }
    }
    Ok(diff)
}

impl CaptionDiff {
    /// Whether every picture has a caption that a run would write, or has it already.
    pub fn is_complete(&self) -> bool {
        self.skipped.is_empty() && self.changes.iter().all(|change| change.refused.is_none())
    }

    fn add(&mut self, desk: &Desk, document: &Document, refused: Option<&String>) -> Result<()> {
        let mut says = desk.captions(document)?;
        for want in &document.wants {
            let old =
                says.remove(&want.image).or_else(|| (!want.before.is_empty()).then(|| want.before.clone()));
            let there = old.as_ref() == Some(&want.text) && document.path.exists();
            if there && refused.is_none() && document.wants.len() > 1 {
                self.unchanged += 1;
                continue;
            }
            let (image, file, new) =
                (Some(want.image.clone()), document.path.clone(), Some(want.text.clone()));
            self.changes.push(Change::new(image, file, old, new, refused.cloned()));
        }
        Ok(())
    }
}

/// The change that puts an original back, with what it says where it is text.
fn put_back(desk: &Desk, document: &Document, written: &Written, refused: Option<String>) -> Result<Change> {
    let path = &document.path;
    let extension = path.extension().unwrap_or_default();
    let (mut old, mut new) = (None, None);
    if document.format.extensions().iter().any(|known| extension == *known) {
        let text = |bytes: Vec<u8>| desk.said(document, &bytes);
        old = read_bytes(path)?.and_then(text);
        new = written.original(path)?.flatten().and_then(text);
    }
    Ok(Change::new(None, path.clone(), old, new, refused))
}

impl Change {
    fn new(
        image: Option<String>,
        file: PathBuf,
        old: Option<String>,
        new: Option<String>,
        refused: Option<String>,
    ) -> Self {
        let lacks = |these: &Option<String>, others: &Option<String>| {
            let others: BTreeSet<_> = parts(others).collect();
            parts(these).filter(|part| !others.contains(part)).map(ToOwned::to_owned).collect()
        };
        let (inserted, removed) = (lacks(&new, &old), lacks(&old, &new));
        Self { image, file, old, new, inserted, removed, refused }
    }
}

fn parts(caption: &Option<String>) -> impl Iterator<Item = &str> {
    caption.as_deref().unwrap_or_default().split(',').map(str::trim).filter(|part| !part.is_empty())
}

impl fmt::Display for CaptionDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for change in &self.changes {
            self.show(f, change)?;
        }
        let (changes, unchanged) = (self.changes.len(), self.unchanged);
        write!(f, "{changes} captions would change, {unchanged} are as they should be")?;
        let skipped =
            self.skipped.iter().map(|Skipped { image, reason }| format!("skipped `{image}`: {reason}"));
        lines(f, skipped)
    }
}

impl CaptionDiff {
    fn show(&self, f: &mut fmt::Formatter<'_>, change: &Change) -> fmt::Result {
        let Change { image, file, old, new, inserted, removed, refused } = change;
        match image {
            Some(image) => writeln!(f, "{image} ({})", file.display())?,
            None => writeln!(f, "{}: the original is put back", file.display())?,
        }
        if let Some(old) = old {
            writeln!(f, "- {}", self.marked(old, removed, ["[-", "-]"], "31"))?;
        }
        match new {
            Some(new) => writeln!(f, "+ {}", self.marked(new, inserted, ["{+", "+}"], "32"))?,
            None if old.is_some() => writeln!(f, "  (removed)")?,
            None => {}
        }
        match refused {
            Some(reason) => writeln!(f, "! {reason}"),
            None => Ok(()),
        }
    }

    /// A caption with some of its parts marked.
    fn marked(&self, caption: &str, marked: &[String], [open, close]: [&str; 2], colour: &str) -> String {
        let marked: BTreeSet<_> = marked.iter().map(String::as_str).collect();
        let shown = caption.split(',').map(|part| {
            let text = part.trim();
            if !marked.contains(text) {
                return part.to_owned();
            }
            let space = &part[..part.len() - part.trim_start().len()];
            match self.coloured {
                true => format!("{space}\x1b[{colour}m{text}\x1b[0m"),
                false => format!("{space}{open}{text}{close}"),
            }
        });
        shown.collect::<Vec<_>>().join(",")
    }
}
