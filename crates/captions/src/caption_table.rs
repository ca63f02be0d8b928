//! Tables of captions: CSV, JSONL or Parquet, with a row for each picture.

use std::{collections::HashMap, fs, path::Path};

use polars::prelude::{Column, DataFrame};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use vodka_stage::{AtomicFile, write_atomic};

use crate::{
    Error, Result,
    formats::{CAPTION_COLUMNS, IMAGE_COLUMNS},
    frame,
    sheet::{self, Sheet},
};

/// The columns of a table with original and new captions.
const COLUMNS: [&str; 4] = ["image", "original", "new", "model"];

/// A picture with the caption it had and the one that it was given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptionPair {
    /// The picture, relative to the folder of pictures, with `/` on every system.
    pub image: String,
    /// The caption it had; empty where it had none.
    pub original: String,
    /// The new caption; empty where there is none.
    pub new: String,
    /// Who made the new one; empty where there is none.
    pub model: String,
}

/// The form of a table, by the ending of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Csv,
    Jsonl,
    Parquet,
}

impl Form {
    /// # Errors
    /// Another ending.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("csv" | "tsv" | "txt") => Ok(Self::Csv),
            Some("jsonl" | "ndjson") => Ok(Self::Jsonl),
            Some("parquet") => Ok(Self::Parquet),
            _ => Err(Error::CaptionTableName { path: path.to_path_buf() }),
        }
    }
}

/// Writes a table.
pub(crate) fn write(path: &Path, pairs: &[CaptionPair]) -> Result<()> {
    match Form::of(path)? {
        Form::Csv => {
            let row = |pair: &CaptionPair| {
                let CaptionPair { image, original, new, model } = pair.clone();
                vec![image, original, new, model]
            };
            sheet::write(path, &COLUMNS, pairs.iter().map(row))
        }
        Form::Jsonl => {
            let line = |pair| serde_json::to_string(pair).expect("captions are plain data") + "\n";
            Ok(write_atomic(path, pairs.iter().map(line).collect::<String>())?)
        }
        Form::Parquet => write_parquet(path, pairs),
    }
}

fn write_parquet(path: &Path, pairs: &[CaptionPair]) -> Result<()> {
    let column = |name: &str, of: fn(&CaptionPair) -> &str| {
        Column::new(name.into(), pairs.iter().map(of).collect::<Vec<_>>())
    };
    let columns = vec![
        column("image", |pair| &pair.image),
        column("original", |pair| &pair.original),
        column("new", |pair| &pair.new),
        column("model", |pair| &pair.model),
    ];
    let mut file = AtomicFile::create(path)?;
    let mut frame = DataFrame::new(pairs.len(), columns).map_err(frame::broken(path))?;
    frame::write_parquet(path, &mut file, &mut frame)?;
    Ok(file.commit()?)
}

/// Reads a table that [`write`] has written, or one with the same columns.
///
/// # Errors
/// A column is missing; a row without a picture; two rows for one.
pub(crate) fn read(path: &Path) -> Result<Vec<CaptionPair>> {
    let rows = read_columns(path, &[&["image"], &["original"], &["new"], &["model"]])?;
    check_pictures(path, &rows)?;
    Ok(rows
        .into_iter()
        .map(|(_, cells)| {
            let [image, original, new, model] = cells.try_into().expect("there is a cell for each column");
            CaptionPair { image, original, new, model }
        })
        .collect())
}

/// Reads what an external captioner has made: the captions, by picture.
///
/// Columns (of CSV and Parquet) or keys (of JSONL) have the names that tables of captions have elsewhere.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_new(path: &Path) -> Result<HashMap<String, String>> {
    let mut rows = read_columns(path, &[&IMAGE_COLUMNS, &CAPTION_COLUMNS])?;
    rows.iter_mut().for_each(|(_, cells)| cells[0] = cells[0].replace('\\', "/"));
    check_pictures(path, &rows)?;
    Ok(rows
        .into_iter()
        .map(|(_, cells)| <[String; 2]>::try_from(cells).expect("there is a cell for each column").into())
        .collect())
}

/// The cells of some columns, each of which may have one of several names; the first column is the picture.
fn read_columns(path: &Path, wanted: &[&[&str]]) -> Result<Rows> {
    match Form::of(path)? {
        Form::Csv => of_csv(path, wanted),
        Form::Jsonl => of_jsonl(path, wanted),
        Form::Parquet => of_parquet(path, wanted),
    }
}

/// Every row is of a picture, and of another one.
fn check_pictures(path: &Path, rows: &[(u64, Vec<String>)]) -> Result<()> {
    let mut lines = HashMap::new();
    for (line, cells) in rows {
        let (line, image) = (*line, &cells[0]);
        if image.trim().is_empty() {
            return Err(Error::Cell {
                path: path.to_path_buf(),
                line,
                column: "image".to_owned(),
                expected: "a picture",
                found: image.clone(),
            });
        }
        if let Some(first) = lines.insert(image, line) {
            let image = image.clone();
            return Err(Error::PictureTwice { path: path.to_path_buf(), image, first, second: line });
        }
    }
    Ok(())
}

/// The one name under which a column is there.
fn name_of<'a>(path: &Path, names: &[&'a str], found: &[String]) -> Result<&'a str> {
    let mut there = names.iter().copied().filter(|name| found.iter().any(|found| found == name));
    match (there.next(), there.next()) {
        (Some(name), None) => Ok(name),
        (first, _) => Err(Error::Columns {
            path: path.to_path_buf(),
            expected: format!(
                "{} of the columns {}",
                if first.is_none() { "one" } else { "only one" },
                names.join(", ")
            ),
            found: format!("the columns {}", found.join(", ")),
        }),
    }
}

type Rows = Vec<(u64, Vec<String>)>;

fn of_csv(path: &Path, wanted: &[&[&str]]) -> Result<Rows> {
    let text = sheet::read_any_text(path)?;
    let is_hint = |line: &str| line.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("sep="));
    let header = text.lines().find(|line| !line.trim().is_empty() && !is_hint(line)).unwrap_or_default();
    let key = wanted[0].iter().find(|name| sheet::separator(header, name).is_some()).unwrap_or(&wanted[0][0]);
    let sheet = Sheet::parse(path, &text, key, None)?;
    let header: Vec<_> = sheet.header.iter().map(|cell| cell.to_ascii_lowercase()).collect();
    let places = wanted.iter().map(|names| sheet.column(name_of(path, names, &header)?));
    let places = places.collect::<Result<Vec<_>>>()?;
    let row =
        |row: &sheet::Row| (row.line, places.iter().map(|place| row.cells[*place].to_owned()).collect());
    Ok(sheet.rows.iter().map(row).collect())
}

fn of_jsonl(path: &Path, wanted: &[&[&str]]) -> Result<Rows> {
    let text = sheet::read_any_text(path)?;
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    let row = |(line, number): (&str, u64)| {
        let parsed: Result<Map<String, Value>, _> = serde_json::from_str(line);
        let object =
            parsed.map_err(|source| Error::JsonLine { path: path.to_path_buf(), line: number, source })?;
        let found: Vec<_> = object.keys().cloned().collect();
        let cell = |names: &&[&str]| {
            let name = name_of(path, names, &found)?;
            match &object[name] {
                Value::Null => Ok(String::new()),
                Value::String(text) => Ok(text.clone()),
                other => Err(Error::Cell {
                    path: path.to_path_buf(),
                    line: number,
                    column: name.to_owned(),
                    expected: "text",
                    found: other.to_string(),
                }),
            }
        };
        Ok((number, wanted.iter().map(cell).collect::<Result<Vec<_>>>()?))
    };
    lines.map(row).collect()
}

fn of_parquet(path: &Path, wanted: &[&[&str]]) -> Result<Rows> {
    let bytes = fs::read(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
    let frame = frame::of_parquet(path, &bytes)?;
    let found: Vec<_> = frame.get_column_names().iter().map(ToString::to_string).collect();
    let mut rows: Rows = (1..).take(frame.height()).map(|row| (row, Vec::new())).collect();
    for names in wanted {
        let column = frame.column(name_of(path, names, &found)?).map_err(frame::broken(path))?;
        for ((_, cells), cell) in rows.iter_mut().zip(frame::texts(path, column)?) {
            cells.push(cell.unwrap_or_default());
        }
    }
    Ok(rows)
}
