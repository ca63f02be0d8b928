//! Captions in a folder of their own.

use std::path::Path;

use rayon::prelude::*;
use vodka_images::relative_name;
use vodka_stage::{Interrupt, Outcome, record_path};

use super::{
    CaptionEvent, CaptionPlan, CaptionReport, Prepared, STAGE, Skipped,
    documents::{Desk, Document},
    prepared,
};
use crate::{
    CaptionFormat, Error, Result,
    disk::Disk,
    place::{Folder, Item, Size},
    stop_if,
};

/// Writes the captions into the folder, and removes those of earlier runs that are no longer wanted.
pub(super) fn write(
    plan: &CaptionPlan,
    root: &Path,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(CaptionEvent),
) -> Result<CaptionReport> {
    let mut folder = Folder::open(root, STAGE)?;
    let due = match prepared(plan, interrupt)? {
        Prepared::There(report) => return Ok(*report),
        Prepared::Due(due) => *due,
    };
    let (mut documents, mut report) = (due.documents, due.report);
    let disk = Disk::default();
    let desk = Desk::new(plan, &disk)?;
    skip_unfit(&desk, &mut documents, &mut report, interrupt)?;
    let items: Vec<_> = documents.iter().map(|document| item(&desk, root, document)).collect();
    let put = folder.due(&items, interrupt)?;
    let there = items.len() - put.len();
    folder.take()?;
    on_event(CaptionEvent::Started { images: documents.iter().map(Document::count).sum() });
    report.skipped.iter().for_each(|skipped| on_event(CaptionEvent::Skipped(skipped.clone())));
    let done = folder.put(&put, interrupt, &mut |files| {
        report.count(&documents[..there + files as usize]);
        on_event(CaptionEvent::Captioned { images: report.captions });
    });
    match done {
        Err(Error::Stopped) => return Ok(CaptionReport { outcome: Outcome::Interrupted, ..report }),
        done => done?,
    }
    report.count(&documents);
    folder.close(items.iter().map(|item| item.name.as_str()))?;
    due.key.write(&record_path(root), &[root], &report)?;
    Ok(report)
}

/// The file of a document.
pub(super) fn item<'a>(desk: &'a Desk, root: &Path, document: &'a Document) -> Item<'a> {
    let name = document.path.strip_prefix(root).unwrap_or(&document.path);
    let size = match document.format {
        CaptionFormat::Png | CaptionFormat::FileName => Size::Large,
        _ => Size::Small,
    };
    Item::made(relative_name(name), size, move || desk.made_anew(document))
}

/// Makes every caption, before any is written; a picture that cannot hold one is skipped.
fn skip_unfit(
    desk: &Desk,
    documents: &mut Vec<Document>,
    report: &mut CaptionReport,
    interrupt: &Interrupt,
) -> Result<()> {
    let unfit = |document: &Document| {
        stop_if(interrupt)?;
        match desk.made_anew(document) {
            Err(Error::Png { reason, .. }) => Ok(Some(reason)),
            made => made.map(|_| None),
        }
    };
    let unfit: Vec<_> = documents.par_iter().map(unfit).collect::<Result<_>>()?;
    let mut unfit = unfit.into_iter();
    documents.retain(|document| {
        let Some(reason) = unfit.next().flatten() else { return true };
        let images = document.wants.iter().map(|want| want.image.clone());
        report.skipped.extend(images.map(|image| Skipped { image, reason: reason.clone() }));
        false
    });
    report.settle();
    Ok(())
}
