//! CSV files that people have edited: byte-order marks, CRLF, semicolons, extra columns.

use std::{
    fs,
    path::{Path, PathBuf},
};

use csv::{ReaderBuilder, StringRecord, WriterBuilder};
use vodka_stage::write_atomic;

use crate::{Error, Result};

/// A table of text, with the lines its rows came from.
#[derive(Debug, Clone)]
pub(crate) struct Sheet {
    pub(crate) path: PathBuf,
    pub(crate) header: Vec<String>,
    pub(crate) rows: Vec<Row>,
}

#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// Counted from 1, with the header.
    pub(crate) line: u64,
    pub(crate) cells: StringRecord,
}

impl Sheet {
    /// Reads a table separated by commas, semicolons or tabs: whichever the header has a column `name` with.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        Self::read_with(path, "name")
    }

    /// The same for a table that has another column for certain.
    pub(crate) fn read_with(path: &Path, column: &str) -> Result<Self> {
        let text = read_text(path)?;
        let separator = separator(&text, column).unwrap_or(b',');
        let mut reader = ReaderBuilder::new().delimiter(separator).from_reader(text.as_bytes());
        let broken = |source| Error::Csv { path: path.to_path_buf(), source };
        let header = reader.headers().map_err(broken)?.iter().map(|cell| cell.trim().to_owned()).collect();
        let rows = reader
            .records()
            .map(|record| {
                let cells = record.map_err(broken)?;
                let line = cells.position().map_or(0, csv::Position::line);
                Ok(Row { line, cells })
            })
            .collect::<Result<_>>()?;
        Ok(Self { path: path.to_path_buf(), header, rows })
    }

    /// The place of a column, which must be there once.
    pub(crate) fn column(&self, name: &str) -> Result<usize> {
        match self.find(name)? {
            Some(place) => Ok(place),
            None => Err(self.columns(format!("a column `{name}`"))),
        }
    }

    /// The place of a column that may be absent.
    pub(crate) fn find(&self, name: &str) -> Result<Option<usize>> {
        let mut places = self
            .header
            .iter()
            .enumerate()
            .filter(|(_, cell)| cell.eq_ignore_ascii_case(name))
            .map(|(place, _)| place);
        let place = places.next();
        if places.next().is_some() {
            return Err(self.columns(format!("one column `{name}`")));
        }
        Ok(place)
    }

    /// The error that tells which columns are there.
    pub(crate) fn columns(&self, expected: String) -> Error {
        let found = format!("the columns {}", self.header.join(", "));
        Error::Columns { path: self.path.clone(), expected, found }
    }

    /// The error about one cell.
    pub(crate) fn cell(&self, row: &Row, column: usize, expected: &'static str) -> Error {
        Error::Cell {
            path: self.path.clone(),
            line: row.line,
            column: self.header[column].clone(),
            expected,
            found: row.cells[column].to_owned(),
        }
    }
}

/// The text of a UTF-8 file, without a byte-order mark.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
    decode(path, bytes)
}

/// The text of UTF-8 bytes, without a byte-order mark.
pub(crate) fn decode(path: &Path, bytes: Vec<u8>) -> Result<String> {
    let text = String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        Error::NotUtf8 { path: path.to_path_buf(), offset, found: error.as_bytes()[offset] }
    })?;
    Ok(text.strip_prefix('\u{feff}').map(ToOwned::to_owned).unwrap_or(text))
}

/// The separator with which the first line has a column `name`.
pub(crate) fn separator(text: &str, name: &str) -> Option<u8> {
    let header = text.lines().next().unwrap_or_default();
    b",;\t".iter().copied().find(|separator| {
        let unquoted = |cell: &str| cell.trim().trim_matches('"').trim().eq_ignore_ascii_case(name);
        header.split(char::from(*separator)).any(unquoted)
    })
}

/// Writes a table, comma-separated, with line feeds.
pub(crate) fn write(
    path: &Path,
    header: &[impl AsRef<str>],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> Result<()> {
    let broken = |source| Error::Csv { path: path.to_path_buf(), source };
    let mut writer = WriterBuilder::new().from_writer(Vec::new());
    writer.write_record(header.iter().map(AsRef::as_ref)).map_err(broken)?;
    for row in rows {
        writer.write_record(row).map_err(broken)?;
    }
    let bytes = writer.into_inner().map_err(|error| broken(error.into_error().into()))?;
    Ok(write_atomic(path, bytes)?)
}
