//! The pictures of a probe, as `pictures.csv` has them.

use std::path::{Path, PathBuf};

use super::{Condition, statistics::Count};
use crate::{Error, Result, judge::column};

/// The columns before the numbers.
pub(super) const HEAD: [&str; 11] = [
    "model",
    "word",
    "placebo",
    "condition",
    "seed",
    "prompt",
    "negative_prompt",
    "file",
    "missing",
    "requested",
    "found",
];

/// The table, less the pictures that are missing.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rows {
    path: PathBuf,
    /// The names of the numbers: measures, and `p:TAG`.
    names: Vec<String>,
    pub(crate) rows: Vec<Row>,
}

/// One picture.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) model: String,
    /// None for the plain prompt.
    pub(crate) word: Option<String>,
    pub(crate) is_placebo: bool,
    pub(crate) condition: Condition,
    pub(crate) seed: u64,
    pub(crate) prompt: String,
    pub(crate) negative_prompt: String,
    pub(crate) count: Count,
    /// In the order of the names.
    pub(crate) numbers: Vec<f64>,
}

impl Rows {
    /// # Errors
    /// A table that cannot be read, lacks a column, or has a cell that is no number.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let failed = |source| Error::Table { path: path.to_path_buf(), source };
        let mut table = csv::Reader::from_path(path).map_err(failed)?;
        let columns = table.headers().map_err(failed)?.clone();
        for name in HEAD {
            column(path, &columns, name)?;
        }
        let mut rows = Vec::new();
        for row in table.records() {
            let row = Cells { path, columns: &columns, row: row.map_err(failed)? };
            // Of a picture that is missing.
            if !row.text("found").is_empty() {
                rows.push(row.read()?);
            }
        }
        let names = columns.iter().filter(|name| is_number(name)).map(ToOwned::to_owned).collect();
        Ok(Self { path: path.to_path_buf(), names, rows })
    }

    /// Where a number stands.
    pub(crate) fn place(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|found| found == name)
    }

    /// Where the numbers stand that another table has too: here, and there.
    pub(crate) fn shared_with(&self, other: &Self) -> Vec<(usize, usize)> {
        let places = self.names.iter().enumerate();
        places.filter_map(|(place, name)| Some((place, other.place(name)?))).collect()
    }

    /// The same of a number that every probe has.
    ///
    /// # Errors
    /// It is not there.
    pub(crate) fn column(&self, name: &str) -> Result<usize> {
        self.place(name).ok_or_else(|| Error::Column { path: self.path.clone(), column: name.to_owned() })
    }
}

fn is_number(column: &str) -> bool {
    !HEAD.contains(&column)
}

/// A line of the table.
struct Cells<'a> {
    path: &'a Path,
    columns: &'a csv::StringRecord,
    row: csv::StringRecord,
}

impl Cells<'_> {
    fn text(&self, name: &str) -> &str {
        let place = self.columns.iter().position(|column| column == name);
        place.and_then(|place| self.row.get(place)).unwrap_or_default()
    }

    fn wrong(&self, column: &str, expected: &'static str) -> Error {
        Error::Cell {
            path: self.path.to_path_buf(),
            line: self.row.position().map_or(0, csv::Position::line),
            column: column.to_owned(),
            expected,
            found: self.text(column).to_owned(),
        }
    }

    fn number(&self, column: &str) -> Result<f64> {
        let number = self.text(column).parse().ok().filter(|number: &f64| number.is_finite());
        number.ok_or_else(|| self.wrong(column, "a number"))
    }

    fn whole<T: std::str::FromStr>(&self, column: &str) -> Result<T> {
        self.text(column).parse().map_err(|_| self.wrong(column, "a whole number"))
    }

    fn read(&self) -> Result<Row> {
        let condition = Condition::ALL.into_iter().find(|known| known.name() == self.text("condition"));
        let word = self.text("word");
        let numbers = self.columns.iter().filter(|name| is_number(name)).map(|name| self.number(name));
        Ok(Row {
            model: self.text("model").to_owned(),
            word: (!word.is_empty()).then(|| word.to_owned()),
            is_placebo: self.text("placebo") == "1",
            condition: condition
                .ok_or_else(|| self.wrong("condition", "without, with, alone or negative"))?,
            seed: self.whole("seed")?,
            prompt: self.text("prompt").to_owned(),
            negative_prompt: self.text("negative_prompt").to_owned(),
            count: Count { found: self.whole("found")?, requested: self.whole("requested")? },
            numbers: numbers.collect::<Result<_>>()?,
        })
    }
}
