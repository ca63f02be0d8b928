//! What somebody has judged by eye: which pictures have a tag, and the threshold that agrees with it best.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
};

use super::LabelledThreshold;
use crate::{Error, Result, canonical, sheet::Sheet};

/// Judgements, by picture and by the tag's canonical name.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Labels(pub(super) HashMap<String, BTreeMap<String, bool>>);

impl Labels {
    /// Reads a CSV with the columns `image`, `tag` and `label` (0 or 1); separators and marks as for selections.
    ///
    /// # Errors
    /// No such columns; another value; a picture without a name; a tag of a picture judged both 0 and 1.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let sheet = Sheet::read_with(path, "label")?;
        let [image, tag, label] = ["image", "tag", "label"].map(|name| sheet.column(name));
        let (image, tag, label) = (image?, tag?, label?);
        let mut labels: HashMap<String, BTreeMap<String, bool>> = HashMap::new();
        let mut lines = HashMap::new();
        for row in &sheet.rows {
            let (name, tag) = (row.cells[image].to_owned(), canonical(&row.cells[tag]));
            if name.is_empty() {
                return Err(sheet.cell(row, image, "a picture"));
            }
            let has_tag = match row.cells[label].trim() {
                "0" | "0.0" => false,
                "1" | "1.0" => true,
                _ => return Err(sheet.cell(row, label, "0 (the picture lacks the tag) or 1 (it has it)")),
            };
            let first = *lines.entry((name.clone(), tag.clone())).or_insert(row.line);
            let before = labels.entry(name.clone()).or_default().insert(tag.clone(), has_tag);
            if before.is_some_and(|before| before != has_tag) {
                let path = path.to_path_buf();
                return Err(Error::Judgement { path, image: name, tag, first, second: row.line });
            }
        }
        Ok(Self(labels))
    }

    /// The tags that were judged.
    pub(super) fn tags(&self) -> BTreeSet<&str> {
        self.0.values().flat_map(BTreeMap::keys).map(String::as_str).collect()
    }
}

/// The threshold with the best F1 among the scores of judged pictures; of equally good ones the highest. A picture
/// without a score lies below every threshold. None where no judged picture has the tag and a score.
pub(super) fn best(judged: &[(Option<f32>, bool)]) -> Option<LabelledThreshold> {
    let labels = judged.len() as u64;
    let positives = judged.iter().filter(|(_, has_tag)| *has_tag).count() as f64;
    let mut scored: Vec<_> =
        judged.iter().filter_map(|(score, has_tag)| Some(((*score)?, *has_tag))).collect();
    scored.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    let (mut found, mut right) = (0.0, 0.0);
    let mut best: Option<LabelledThreshold> = None;
    for equal in scored.chunk_by(|a, b| a.0 == b.0) {
        found += equal.len() as f64;
        right += equal.iter().filter(|(_, has_tag)| *has_tag).count() as f64;
        let f1 = 2.0 * right / (found + positives);
        if right > 0.0 && best.as_ref().is_none_or(|best| f1 > best.f1) {
            let (precision, recall) = (right / found, right / positives);
            best = Some(LabelledThreshold { threshold: equal[0].0, f1, precision, recall, labels });
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(text: &str) -> Result<Labels> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("labels.csv");
        fs::write(&path, text).unwrap();
        Labels::read(&path)
    }

    #[test]
    fn judgements_are_read_as_spreadsheets_leave_them() {
        let plain = read("image,tag,label\na, b.png,blurry,1\n");
        assert!(plain.is_err(), "a comma must be quoted");
        let labels = read("\u{feff}label;note;tag;image\r\n1;x; Blurry ;\"a, b.png\"\r\n0.0;;solo;c.png\r\n0;;solo;c.png\r\n").unwrap();
        assert!(labels.0["a, b.png"]["blurry"] && !labels.0["c.png"]["solo"]);
        assert_eq!(labels.tags(), BTreeSet::from(["blurry", "solo"]));
    }

    #[test]
    fn wrong_judgements_are_told_by_line() {
        let said = |text: &str| {
            let error = read(text).unwrap_err().to_string();
            error.split_once("labels.csv`").unwrap().1.to_owned()
        };
        assert_eq!(
            said("image,tag,label\na.png,blurry,yes\n"),
            " line 2, column `label`: expected 0 (the picture lacks the tag) or 1 (it has it), found \"yes\""
        );
        assert_eq!(
            said("image,tag,label\n,blurry,1\n"),
            " line 2, column `image`: expected a picture, found \"\""
        );
        assert_eq!(said("image,tag\n"), ": expected a column `label`, found the columns image, tag");
        assert_eq!(
            said("image,tag,label\na.png,blurry,1\nb.png,blurry,1\na.png,BLURRY,0\n"),
            " judges the tag `blurry` of `a.png` both 1 and 0, on the lines 2 and 4"
        );
    }

    #[test]
    fn the_best_threshold_weighs_precision_against_recall() {
        let judged =
            [(Some(0.9), true), (Some(0.8), true), (Some(0.7), false), (Some(0.6), true), (Some(0.2), false)];
        let found = best(&judged).unwrap();
        // At 0.6: 3 of 4 right, all 3 found.
        assert_eq!((found.threshold, found.precision, found.recall, found.labels), (0.6, 0.75, 1.0, 5));
        assert!((found.f1 - 6.0 / 7.0).abs() < 1e-12);
        let missing = [(Some(0.9), true), (None, true), (None, false)];
        assert_eq!(best(&missing).map(|found| (found.threshold, found.recall)), Some((0.9, 0.5)));
        let ties = [(Some(0.5), true), (Some(0.5), false), (Some(0.4), true)];
        assert_eq!(best(&ties).unwrap().threshold, 0.4, "equal scores stand or fall together");
        assert_eq!(best(&[(Some(0.5), false), (None, true)]), None);
        assert_eq!(best(&[]), None);
    }
}
