//! What a user should know about a tag table that others than its maker go on with.

use std::{collections::BTreeSet, path::Path};

use vodka_stage::{RunRecord, record_path};

use super::About;

/// So many names stand for all.
const EXAMPLES: usize = 5;

/// Minimum scores that get no more than the table's floor does; `what` is said before them.
pub(crate) fn below_floor(
    table: &Path,
    about: &About,
    what: &str,
    scores: impl Iterator<Item = f32>,
) -> Option<String> {
    let floor = about.floor?;
    let below: BTreeSet<_> = scores.filter(|score| *score < floor).map(|score| score.to_string()).collect();
    let (table, shown) = (table.display(), below.iter().map(String::as_str).collect::<Vec<_>>().join(", "));
    (!below.is_empty()).then(|| {
        format!("`{table}` was written from the score {floor} on: what is below is not in it, {what} {shown} are those at {floor}")
    })
}

/// Whether the selection was made from another vocabulary than the table's.
pub(crate) fn other_vocabulary(table: &Path, about: &About, selection: &Path) -> Option<String> {
    let record = RunRecord::read(&record_path(selection)).ok()?;
    let selected_from = record.inputs.get("labels")?.sha256.to_string();
    let differs = about.labels.as_ref().is_some_and(|labels| *labels != selected_from);
    differs.then(|| {
        let (table, selection) = (table.display(), selection.display());
        format!("`{table}` and the selection `{selection}` are of models with different vocabularies")
    })
}

/// Selected tags that the table does not have.
pub(crate) fn missing_tags(missing: Vec<&str>) -> Option<String> {
    let count = missing.len();
    list(missing).map(|names| format!("{count} selected tags are not in the tag table: {names}"))
}

/// The first few names, in backquotes; none of none.
pub(crate) fn list(names: Vec<&str>) -> Option<String> {
    let mut shown: Vec<_> = names.iter().take(EXAMPLES).map(|name| format!("`{name}`")).collect();
    if names.len() > EXAMPLES {
        shown.push("...".to_owned());
    }
    (!shown.is_empty()).then(|| shown.join(", "))
}
