//! Lists of pictures to leave out: `image,reason`, as the tagger lists what it has skipped.

use std::{collections::BTreeSet, path::Path};

use crate::{
    Result,
    sheet::{self, Sheet},
};

/// Reads which pictures are left out: a CSV with a column `image` (the tagger's list of skipped pictures is one), or a
/// name a line, as `vodka-curate filter --list` prints them.
///
/// # Errors
/// The file cannot be read, or is not UTF-8; a broken CSV.
pub fn read_exclusions(path: &Path) -> Result<BTreeSet<String>> {
    let text = sheet::read_text(path)?;
    match sheet::separator(&text, "image") {
        Some(_) => {
            let sheet = Sheet::parse(path, &text, &["image"], None)?;
            let place = sheet.column("image")?;
            Ok(sheet.rows.iter().map(|row| row.cells[place].to_owned()).collect())
        }
        None => Ok(text.lines().filter(|line| !line.is_empty()).map(ToOwned::to_owned).collect()),
    }
}

/// Reads several such lists.
pub(crate) fn read_all_exclusions(lists: &[std::path::PathBuf]) -> Result<BTreeSet<String>> {
    let lists = lists.iter().map(|path| read_exclusions(path));
    Ok(lists.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// A list of pictures to leave out, each with its reason.
pub(crate) fn exclusions(images: impl IntoIterator<Item = (String, String)>) -> String {
    sheet::text(["image", "reason"], images.into_iter().map(|(image, reason)| [image, reason]))
}
