//! Takes back what captioning in place has done.

use std::{fmt, fs, path::PathBuf};

use serde::{Deserialize, Serialize};
use vodka_stage::{FolderLock, Interrupt, Outcome, Report, RunRecord, record_path};

use crate::{
    Error, Result,
    caption::{check_writable, put_back},
    disk::Disk,
    filter::lines,
    sidecar::read_bytes,
    written::{LIST, Written},
};

/// What is to be taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UndoConfig {
    /// The folder of pictures in which captions were changed.
    pub images: PathBuf,
    /// Whether captions that were edited since go as well.
    #[serde(default)]
    pub force: bool,
}

/// What is to be taken back; nothing has been read but that there is such a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UndoPlan {
    /// The folder of pictures.
    pub images: PathBuf,
    /// Whether captions that were edited since go as well.
    pub force: bool,
}

impl UndoConfig {
    /// Checks what can be checked without reading.
    ///
    /// # Errors
    /// No such folder.
    pub fn plan(&self) -> Result<UndoPlan> {
        let Self { images, force } = self.clone();
        fs::read_dir(&images).map_err(|source| Error::Read { path: images.clone(), source })?;
        Ok(UndoPlan { images, force })
    }
}

/// What was taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndoReport {
    /// How it ended.
    pub outcome: Outcome,
    /// How many files have their original bytes again.
    pub restored: u64,
    /// How many files are gone that there were not before.
    pub removed: u64,
    /// Files that somebody has edited since, which stay as they are, with their originals.
    pub edited: Vec<PathBuf>,
}

impl Report for UndoReport {
    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

impl fmt::Display for UndoReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { outcome, restored, removed, edited } = self;
        match outcome {
            Outcome::Unchanged => write!(f, "nothing to undo: no captions were changed in place here")?,
            _ => write!(
                f,
                "put {restored} originals back, and removed {removed} captions that there were not before"
            )?,
        }
        let edited = edited.iter().map(|path| {
            format!(
                "`{}`: edited since tags were put in, left as it is (--force puts its original back)",
                path.display()
            )
        });
        lines(f, edited)
    }
}

/// Puts the originals back that runs in place have kept, and removes all that those runs have made: every byte is as it was, and
/// so are times of modification and permissions.
///
/// A file that somebody has edited since stays, with its original beside it, unless that is forced. After a crash the next
/// run goes on.
///
/// # Errors
/// A file that cannot be read, or not be written: a read-only one before anything is changed.
pub fn run(plan: &UndoPlan, interrupt: &Interrupt, on_done: &mut dyn FnMut(u64)) -> Result<UndoReport> {
    run_on(&Disk::default(), plan, interrupt, on_done)
}

pub(crate) fn run_on(
    disk: &Disk,
    plan: &UndoPlan,
    interrupt: &Interrupt,
    on_done: &mut dyn FnMut(u64),
) -> Result<UndoReport> {
    let _lock = FolderLock::take(&plan.images)?;
    let written = Written::read(&plan.images)?;
    let mut report = UndoReport { outcome: Outcome::Done, restored: 0, removed: 0, edited: Vec::new() };
    if !was_in_place(plan, &written)? {
        return Ok(UndoReport { outcome: Outcome::Unchanged, ..report });
    }
    let changed = changed(plan, &written, &mut report)?;
    changed.iter().try_for_each(|(path, _)| check_writable(path))?;
    for (done, (path, there)) in changed.iter().enumerate() {
        if interrupt.is_raised() {
            return Ok(UndoReport { outcome: Outcome::Interrupted, ..report });
        }
        put_back(disk, path, *there)?;
        *(if *there { &mut report.restored } else { &mut report.removed }) += 1;
        on_done(done as u64 + 1);
    }
    written.remove_partials(disk)?;
    if report.edited.is_empty() {
        let record = record_path(&plan.images);
        // The folder may be another stage's output.
        if RunRecord::read(&record).is_ok_and(|record| record.stage == "caption") {
            disk.remove_there(&record)?;
        }
        disk.remove_there(&plan.images.join(LIST))?;
    } else {
        report.outcome = Outcome::Skipped;
        written.compact(disk)?;
    }
    Ok(report)
}

/// Whether what runs have left in this folder is of captions changed in place, and not of captions written to it.
fn was_in_place(plan: &UndoPlan, written: &Written) -> Result<bool> {
    let kept = written.names().into_iter().any(|name| written.keeps(&written.path(name)));
    let record = record_path(&plan.images);
    if kept || written.has_kept() || written.is_empty() {
        return Ok(true);
    }
    if !record.is_file() {
        return Ok(false);
    }
    let record = RunRecord::read(&record)?;
    Ok(record.stage == "caption" && record.settings["in_place"] == true)
}

/// The files that have an original, by whether there was a file at all; edited ones are reported.
fn changed(plan: &UndoPlan, written: &Written, report: &mut UndoReport) -> Result<Vec<(PathBuf, bool)>> {
    let mut changed = Vec::new();
    for name in written.names() {
        let path = written.path(name);
        let Some(original) = written.original(&path)? else { continue };
        let found = read_bytes(&path)?;
        let ours = found.as_ref().is_none_or(|found| written.holds(&path, found)) || found == original;
        match ours || plan.force {
            true => changed.push((path, original.is_some())),
            false => report.edited.push(path),
        }
    }
    Ok(changed)
}
