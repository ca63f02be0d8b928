//! Tables of captions: CSV, JSONL or Parquet, with a row for each picture.

use std::{collections::HashMap, fs, path::Path};

use polars::prelude::{Column, DataFrame};
use serde::{Deserialize, Serialize};

use crate::{
    CaptionFormat, Error, Result,
    formats::{Columns, Place, Row},
    frame, sheet,
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

/// A table as a file of this name holds it.
pub(crate) fn bytes(path: &Path, pairs: &[CaptionPair]) -> Result<Vec<u8>> {
    match Form::of(path)? {
        Form::Csv => {
            let row = |pair: &CaptionPair| {
                let CaptionPair { image, original, new, model } = pair.clone();
                vec![image, original, new, model]
            };
            Ok(sheet::text(COLUMNS, pairs.iter().map(row)).into_bytes())
        }
        Form::Jsonl => {
            let line = |pair| serde_json::to_string(pair).expect("captions are plain data") + "\n";
            Ok(pairs.iter().map(line).collect::<String>().into_bytes())
        }
        Form::Parquet => parquet(path, pairs),
    }
}

fn parquet(path: &Path, pairs: &[CaptionPair]) -> Result<Vec<u8>> {
    let column = |name: &str, of: fn(&CaptionPair) -> &str| {
        Column::new(name.into(), pairs.iter().map(of).collect::<Vec<_>>())
    };
    let columns = vec![
        column("image", |pair| &pair.image),
        column("original", |pair| &pair.original),
        column("new", |pair| &pair.new),
        column("model", |pair| &pair.model),
    ];
    let mut frame = DataFrame::new(pairs.len(), columns).map_err(frame::broken(path))?;
    let mut bytes = Vec::new();
    frame::write_parquet(path, &mut bytes, &mut frame)?;
    Ok(bytes)
}

/// Reads a table that [`bytes`] has made, or one with the same columns.
///
/// # Errors
/// A column is missing; a row without a picture; two rows for one.
pub(crate) fn read(path: &Path) -> Result<Vec<CaptionPair>> {
    let format = match Form::of(path)? {
        Form::Csv => CaptionFormat::Csv,
        Form::Jsonl => CaptionFormat::Jsonl,
        Form::Parquet => CaptionFormat::Parquet,
    };
    let bytes = fs::read(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
    let [image, columns @ ..] = COLUMNS;
    let mut seen = HashMap::new();
    let mut pairs = Vec::new();
    for (number, caption) in columns.into_iter().enumerate() {
        let columns = Columns { image: Some(image), caption: Some(caption) };
        let (rows, _) = Place { path, format, columns, encoding: None }.rows(&bytes)?;
        if number == 0 {
            rows.iter().try_for_each(|row| check_picture(path, row, &mut seen))?;
            let pair = |row: &Row| CaptionPair { image: row.key.clone(), ..CaptionPair::default() };
            pairs = rows.iter().map(pair).collect();
        }
        for (pair, row) in pairs.iter_mut().zip(rows) {
            let cell = [&mut pair.original, &mut pair.new, &mut pair.model].into_iter().nth(number);
            *cell.expect("a pair has as many cells") = row.caption.unwrap_or_default();
        }
    }
    Ok(pairs)
}

/// Every row is of a picture, and of another one.
fn check_picture(path: &Path, row: &Row, seen: &mut HashMap<String, String>) -> Result<()> {
    let Row { key, place, .. } = row;
    if key.trim().is_empty() {
        return Err(Error::CaptionFile {
            path: path.to_path_buf(),
            place: place.clone(),
            expected: "the name of a picture",
            found: format!("{key:?}"),
        });
    }
    match seen.insert(key.clone(), place.clone()) {
        None => Ok(()),
        Some(first) => Err(Error::TwoCaptions {
            image: key.clone(),
            first: format!("`{}` ({first})", path.display()),
            second: format!("`{}` ({place})", path.display()),
        }),
    }
}
