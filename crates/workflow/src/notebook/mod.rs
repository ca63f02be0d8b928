//! The notebook of a run: what was done, with which data and settings, what came out. One page, and the same as Markdown.
//!
//! All of it is read from the records and files that the jobs left, so a second run writes the same bytes.

mod entry;

use std::fs;

use minijinja::context;
use vodka_stage::write_atomic;

use crate::{Error, Job, Result, Workflow, pages};

use entry::Entry;

/// The page's file.
pub(crate) const PAGE: &str = "notebook.html";
const MARKDOWN: &str = "notebook.md";

/// How a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stand<'a> {
    /// A job is at work; a browser looks again every few seconds.
    AtWork(&'a Job),
    /// It ended in a job: that failed, or was interrupted.
    Stopped(&'a Job),
    /// All jobs are through.
    Done,
}

/// Writes page and Markdown into the folder of the workflow, of the jobs that have left a record.
///
/// # Errors
/// A file of a job that cannot be read, or one that cannot be written.
pub(crate) fn write(workflow: &Workflow, stand: Stand<'_>) -> Result<()> {
    let (state, at) = match stand {
        Stand::AtWork(job) => ("at work", Some(job)),
        Stand::Stopped(job) => ("stopped", Some(job)),
        Stand::Done => ("done", None),
    };
    let place = at.and_then(|job| workflow.jobs().iter().position(|known| known == job));
    let left = place.map_or(&[][..], |place| &workflow.jobs()[place..]);
    // What later jobs have left is of an earlier run.
    let through = workflow.jobs().len() - left.len();
    let entries = workflow.jobs()[..through].iter().filter_map(|job| Entry::read(workflow, job).transpose());
    let entries: Vec<Entry> = entries.collect::<Result<_>>()?;
    let path = workflow.path();
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let recipe = fs::read_to_string(path)
        .map_err(|source| Error::Notebook { path: path.to_path_buf(), source: source.into() })?;
    let left: Vec<_> = left.iter().map(ToString::to_string).collect();
    let filled =
        context! { name, entries, recipe, state, left, of => workflow.jobs().len(), style => pages::style() };
    for file in [PAGE, MARKDOWN] {
        let text = pages::render(file, &filled);
        let path = workflow.output().join(file);
        if fs::read_to_string(&path).is_ok_and(|found| found == text) {
            continue;
        }
        write_atomic(&path, text).map_err(|error| Error::Notebook { path, source: error.into() })?;
    }
    Ok(())
}
