//! Captions in CSV files, also as spreadsheets save them.

use std::path::Path;

use csv::{Terminator, WriterBuilder};

use super::{Columns, Edits, Row, column};
use crate::{Error, Result, sheet::Sheet};

fn read(path: &Path, text: &str, columns: &Columns) -> Result<Sheet> {
    Sheet::parse(path, text, &columns.image_names(), None)
}

fn places(sheet: &Sheet, columns: &Columns) -> Result<(usize, usize)> {
    let Sheet { path, header, .. } = sheet;
    Ok((columns.image(path, header)?, columns.caption(path, header)?))
}

/// The rows of a CSV file, separated by commas, semicolons or tabs.
pub(super) fn rows(path: &Path, text: &str, columns: &Columns) -> Result<Vec<Row>> {
    let sheet = read(path, text, columns)?;
    let (image, caption) = places(&sheet, columns)?;
    let row = |row: &crate::sheet::Row| Row {
        key: row.cells[image].to_owned(),
        caption: Some(row.cells[caption].to_owned()),
        place: format!("line {}", row.line),
    };
    Ok(sheet.rows.iter().map(row).collect())
}

/// A CSV file with some captions changed and some added: separator, line ends and the other cells stay.
pub(super) fn written(path: &Path, text: &str, columns: &Columns, edits: &Edits) -> Result<String> {
    let new = text.trim().is_empty();
    let header = format!("{},{}\n", column(columns.image, "image"), column(columns.caption, "caption"));
    let sheet = read(path, if new { &header } else { text }, columns)?;
    let (image, caption) = places(&sheet, columns)?;
    let crlf = text.contains("\r\n");
    let terminator = if crlf { Terminator::CRLF } else { Terminator::Any(b'\n') };
    let mut writer =
        WriterBuilder::new().delimiter(sheet.separator).terminator(terminator).from_writer(Vec::new());
    let broken = |source| Error::Csv { path: path.to_path_buf(), source };
    writer.write_record(&sheet.header).map_err(broken)?;
    for (place, row) in sheet.rows.iter().enumerate() {
        let cells = row.cells.iter().enumerate().map(|(column, cell)| match edits.set.get(&place) {
            Some(new) if column == caption => new.as_str(),
            _ => cell,
        });
        writer.write_record(cells).map_err(broken)?;
    }
    for (key, new) in &edits.add {
        let mut cells = vec![""; sheet.header.len()];
        (cells[image], cells[caption]) = (key, new);
        writer.write_record(cells).map_err(broken)?;
    }
    let bytes = writer.into_inner().map_err(|error| broken(error.into_error().into()))?;
    let hint = sheet.hint.map(|hint| hint + if crlf { "\r\n" } else { "\n" });
    Ok(hint.unwrap_or_default() + &String::from_utf8(bytes).expect("what was written is text"))
}
