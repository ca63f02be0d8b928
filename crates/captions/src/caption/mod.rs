//! Puts the best tags of each picture into its caption.

mod diff;
mod documents;
mod folder;
mod prepare;
mod report;
mod settings;
mod vocabulary;

use std::{
    fs,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use vodka_stage::{FolderLock, Interrupt, Outcome, RunKey, create_dir, record_path};

pub(crate) use self::documents::{check_writable, put_back};
pub use self::{
    diff::{CaptionDiff, Change, diff},
    report::{CaptionEvent, CaptionReport, Skipped, TooLong},
    settings::{CaptionConfig, CaptionPlan, Destination, Missing, Style},
};
use self::{
    documents::{Action, Decision, Desk, Document},
    prepare::{Read, prepare},
};
pub use crate::Position;
use crate::{CaptionFormat, Error, Result, disk::Disk, heard, stop_if, written::Written};

/// The stage's name in records and on lists.
const STAGE: &str = "caption";

/// So many files are written between two looks at the interrupt.
const BATCH: usize = 128;

/// So many pictures with captions in them, which are larger.
const PICTURES: usize = 8;

/// So many threads write them: they mostly wait until the disk has what was written.
const WRITERS: usize = 8;

/// Writes the captions, unless they are there already.
///
/// Everything is read and checked before the first caption is written. A caption is one line of UTF-8; files beside
/// pictures end with a line feed. Each file is replaced as a whole. One that is already as it should be is not touched. Nor
/// is any that somebody else has written or edited: what runs have written is on a list in the output folder. In a folder of
/// their own, files on that list that are not wanted now are removed.
///
/// An interrupt is heard at any time, and ends the reading at once.
///
/// In place, captions are always made from the original, `a.txt.orig`, which the first run keeps: other settings leave
/// no old tags behind, and a second run puts none in twice. Where a picture is skipped that was not before, its original
/// is put back. [`crate::undo`] puts all of them back.
///
/// # Errors
/// No pictures; some that share a caption; a caption that cannot be read; a table or selection that cannot be read, or is
/// about other pictures; pictures without a caption where [`Missing::Error`] is set; a caption edited after an earlier run,
/// or another file in its place; a caption that cannot be written.
pub fn run(
    plan: &CaptionPlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(CaptionEvent),
) -> Result<CaptionReport> {
    run_on(&Disk::default(), plan, interrupt, on_event)
}

pub(crate) fn run_on(
    disk: &Disk,
    plan: &CaptionPlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(CaptionEvent),
) -> Result<CaptionReport> {
    let done = match &plan.destination {
        Destination::Folder(root) => folder::write(plan, root, interrupt, on_event),
        Destination::InPlace => in_place(disk, plan, interrupt, on_event),
    };
    match done {
        Err(Error::Stopped) => {
            Ok(CaptionReport { outcome: Outcome::Interrupted, ..CaptionReport::empty(plan.output()) })
        }
        done => done,
    }
}

/// What is known before the first file is changed.
enum Prepared {
    /// The captions are there already.
    There(Box<CaptionReport>),
    Due(Box<Due>),
}

/// What is to be written.
struct Due {
    key: RunKey,
    /// What runs in place have written.
    written: Written,
    documents: Vec<Document>,
    report: CaptionReport,
}

/// Reads everything and makes every caption.
fn prepared(plan: &CaptionPlan, interrupt: &Interrupt) -> Result<Prepared> {
    let plan = plan.clone();
    heard(interrupt, move || {
        let read = Read::new(&plan)?;
        let key = read.key(&plan)?;
        if let Some(report) = key.made::<CaptionReport>(&record_path(plan.output()))? {
            let output = plan.output().to_path_buf();
            let report = CaptionReport { outcome: Outcome::Unchanged, output, ..report };
            return Ok(Prepared::There(Box::new(report)));
        }
        let (documents, report) = prepare(&plan, &read)?;
        Ok(Prepared::Due(Box::new(Due { key, written: read.written, documents, report })))
    })
}

fn in_place(
    disk: &Disk,
    plan: &CaptionPlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(CaptionEvent),
) -> Result<CaptionReport> {
    let _lock = FolderLock::take(&plan.images)?;
    let due = match prepared(plan, interrupt)? {
        Prepared::There(report) => return Ok(*report),
        Prepared::Due(due) => *due,
    };
    let Due { key, mut written, mut documents, mut report } = due;
    let desk = Desk::new(plan, disk)?;
    let due = check(&desk, &mut documents, &written, &mut report, interrupt)?;
    on_event(CaptionEvent::Started { images: documents.iter().map(Document::count).sum() });
    report.skipped.iter().for_each(|skipped| on_event(CaptionEvent::Skipped(skipped.clone())));
    let size = batch_size(&documents);
    for (number, (batch, due)) in documents.chunks(size).zip(due.chunks(size)).enumerate() {
        if interrupt.is_raised() {
            return Ok(CaptionReport { outcome: Outcome::Interrupted, ..report });
        }
        let due: Vec<_> =
            batch.iter().zip(due).filter(|(_, due)| **due).map(|(document, _)| document).collect();
        write_batch(&desk, disk, &mut written, &due)?;
        report.count(&documents[..number * size + batch.len()]);
        on_event(CaptionEvent::Captioned { images: report.captions });
    }
    written.remove_partials(disk)?;
    written.compact(disk)?;
    let captioned = documents.iter().filter(|document| !document.wants.is_empty());
    let outputs: Vec<_> = captioned.map(|document| document.path.as_path()).collect();
    key.write(&record_path(&plan.images), &outputs, &report)?;
    Ok(report)
}

/// Makes a folder, and takes it.
pub(crate) fn taken(folder: &Path) -> Result<FolderLock> {
    create_dir(folder)?;
    Ok(FolderLock::take(folder)?)
}

fn batch_size(documents: &[Document]) -> usize {
    let large = |document: &Document| matches!(document.format, CaptionFormat::Png | CaptionFormat::FileName);
    if documents.iter().any(large) { PICTURES } else { BATCH }
}

/// Which files are to be changed, after it was made sure that all of them can be. A picture that cannot hold a caption is
/// skipped.
fn check(
    desk: &Desk,
    documents: &mut Vec<Document>,
    written: &Written,
    report: &mut CaptionReport,
    interrupt: &Interrupt,
) -> Result<Vec<bool>> {
    let decide = |document: &Document| {
        stop_if(interrupt)?;
        Ok(desk.decide(document, written)?.action)
    };
    let decisions: Vec<_> = documents.par_iter().map(decide).collect();
    let (mut due, mut good) = (Vec::new(), Vec::new());
    for (document, decision) in documents.drain(..).zip(decisions) {
        match decision {
            Err(Error::Png { reason, .. }) => {
                let images = document.wants.into_iter().map(|want| want.image);
                report.skipped.extend(images.map(|image| Skipped { image, reason: reason.clone() }));
            }
            decision => {
                due.push(decision? != Action::Nothing);
                good.push(document);
            }
        }
    }
    *documents = good;
    report.settle();
    Ok(due)
}

/// Writes a few files at once: the time goes into waiting until the disk has them, and waits can be shared.
fn write_batch(desk: &Desk, disk: &Disk, written: &mut Written, due: &[&Document]) -> Result<()> {
    let decisions: Vec<_> =
        due.par_iter().map(|document| desk.decide(document, written)).collect::<Result<_>>()?;
    let named: Vec<_> = due.iter().map(|document| written.name(&document.path)).collect();
    let facts = || named.iter().cloned().zip(&decisions);
    let writes = facts().filter_map(|(name, decision)| Some((name, decision.writes()?)));
    let keeps = facts().filter_map(|(name, decision)| Some((name, decision.keeps_absent()?)));
    let (writes, keeps): (Vec<_>, Vec<_>) = (writes.collect(), keeps.collect());
    written.announce(disk, writes, keeps)?;
    let mut work: Vec<(&Document, Decision)> = due.iter().copied().zip(decisions).collect();
    let share = work.len().div_ceil(WRITERS).max(1);
    std::thread::scope(|scope| {
        let mut writers = Vec::new();
        while !work.is_empty() {
            let share: Vec<_> = work.drain(..share.min(work.len())).collect();
            writers.push(scope.spawn(move || {
                share.into_iter().try_for_each(|(document, decision)| desk.act(document, decision))
            }));
        }
        writers.into_iter().try_for_each(|writer| writer.join().expect("a writer does not panic"))
    })
}

/// The minimum score must be a score.
pub(crate) fn check_min_score(found: f32) -> Result<()> {
    match (0.0..=1.0).contains(&found) {
        true => Ok(()),
        false => {
            Err(Error::Range { setting: "min_score", found: decimal(found), expected: "a score from 0 to 1" })
        }
    }
}

/// The number that a user means by an f32: 0.3, not 0.30000001192092896.
pub(crate) fn decimal(score: f32) -> f64 {
    score.to_string().parse().unwrap_or_else(|_| score.into())
}

/// Neither folder may lie in the other.
pub(crate) fn check_apart(output: &Path, images: &Path) -> Result<()> {
    let (a, b) = (resolved(output), resolved(images));
    match a.starts_with(&b) || b.starts_with(&a) {
        true => Err(Error::Overlap { output: output.to_path_buf(), images: images.to_path_buf() }),
        false => Ok(()),
    }
}

/// An absolute path, links followed as far as the path exists.
pub(crate) fn resolved(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let real = path.ancestors().find_map(|ancestor| Some((ancestor, fs::canonicalize(ancestor).ok()?)));
    match real {
        Some((ancestor, real)) => real.join(path.strip_prefix(ancestor).unwrap_or(Path::new(""))),
        None => path,
    }
}
