//! The vocabulary of a model: `selected_tags.csv`.

use std::{ops::Deref, path::Path};

use serde::Deserialize;

use crate::{Error, Result};

/// One output of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// The tag's number in the booru's database.
    pub tag_id: i64,
    /// The canonical name, with underscores.
    pub name: String,
    /// `rating`, `general`, `artist`, `copyright`, `character`, `meta`, or the number of another category.
    pub category: String,
}

/// The labels of all outputs, in the order of the outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels(Vec<Label>);

impl Deref for Labels {
    type Target = [Label];

    fn deref(&self) -> &[Label] {
        &self.0
    }
}

impl From<Vec<Label>> for Labels { fn from(l: Vec<Label>) -> Self { Self(l) } }
#[derive(Deserialize)]
struct Row {
    tag_id: String,
    name: String,
    category: String,
}

impl Labels {
    /// Reads a `selected_tags.csv`: at least the columns `tag_id`, `name` and `category`.
    ///
    /// # Errors
    /// When the file is no such CSV, or has no rows; with the line.
    pub fn read(path: &Path) -> Result<Self> {
        let csv = |source| Error::LabelsCsv { path: path.to_path_buf(), source };
        let wrong = |line, expected, found: &str| Error::Labels {
            path: path.to_path_buf(),
            line,
            expected,
            found: found.to_owned(),
        };
        let mut reader = csv::Reader::from_path(path).map_err(csv)?;
        let header = reader.headers().map_err(csv)?.clone();
        let mut labels = Vec::new();
        for record in reader.records() {
            let record = record.map_err(csv)?;
            let line = record.position().map_or(0, csv::Position::line);
            let row: Row = record.deserialize(Some(&header)).map_err(csv)?;
            let tag_id = row.tag_id.parse().map_err(|_| wrong(line, "a number as `tag_id`", &row.tag_id))?;
            if row.name.is_empty() {
                return Err(wrong(line, "a `name`", &row.name));
            }
            let category =
                row.category.parse().map_err(|_| wrong(line, "a number as `category`", &row.category))?;
            labels.push(Label { tag_id, name: row.name, category: category_name(category) });
        }
        if labels.is_empty() {
            return Err(wrong(1, "a row for each tag", "none"));
        }
        Ok(Self(labels))
    }
}

/// Danbooru's names of categories, and 9 for ratings as the WD series has it.
fn category_name(number: u32) -> String {
    let name = match number {
        0 => "general",
        1 => "artist",
        3 => "copyright",
        4 => "character",
        5 => "meta",
        9 => "rating",
        other => return other.to_string(),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Labels> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("selected_tags.csv");
        std::fs::write(&path, text).unwrap();
        Labels::read(&path)
    }

    #[test]
    fn odd_names_survive() {
        let labels =
            read("tag_id,name,category,count\n1,general,9,5\n2,\"don't_say_\"\"lazy\"\"\",4,1\n3,\\m/,0,2\n")
                .unwrap();
        let names: Vec<_> =
            labels.iter().map(|label| (label.name.as_str(), label.category.as_str())).collect();
        assert_eq!(names, [("general", "rating"), ("don't_say_\"lazy\"", "character"), ("\\m/", "general")]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let message = |text| {
            let error = read(text).unwrap_err();
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            format!("{error}: {cause}")
        };
        assert!(
            message("tag_id,name,category\nx,a,0\n")
                .contains("line 2: expected a number as `tag_id`, found \"x\"")
        );
        assert!(message("tag_id,name,category\n1,a,0\n2,,0\n").contains("line 3: expected a `name`"));
        assert!(message("tag_id,name,category\n").contains("expected a row for each tag"));
        assert!(message("name,category\na,0\n").contains("missing field `tag_id`"));
    }
}
