//! Captions in CSV files, also as spreadsheets save them.

use std::path::Path;

use csv::{ReaderBuilder, StringRecord, Terminator, WriterBuilder};

use super::{Columns, Edits, Row, column};
use crate::{Error, Result, sheet::separator};

/// A CSV file of captions.
struct Table {
    separator: u8,
    header: StringRecord,
    /// With the line that each begins on, counted from 1.
    records: Vec<(u64, StringRecord)>,
}

impl Table {
    fn read(path: &Path, text: &str, columns: &Columns) -> Result<Self> {
        let names = columns.image_names();
        let separator = names.iter().find_map(|name| separator(text, name)).unwrap_or(b',');
        let broken = |source| Error::Csv { path: path.to_path_buf(), source };
        let mut reader = ReaderBuilder::new().delimiter(separator).from_reader(text.as_bytes());
        let header = reader.headers().map_err(broken)?.clone();
        let records = reader.records().map(|record| {
            let record = record.map_err(broken)?;
            Ok((record.position().map_or(0, csv::Position::line), record))
        });
        let records = records.collect::<Result<_>>()?;
        Ok(Self { separator, header, records })
    }

    fn places(&self, path: &Path, columns: &Columns) -> Result<(usize, usize)> {
        let names: Vec<_> = self.header.iter().map(|name| name.trim().to_owned()).collect();
        Ok((columns.image(path, &names)?, columns.caption(path, &names)?))
    }
}

/// The rows of a CSV file, separated by commas, semicolons or tabs.
pub(super) fn rows(path: &Path, text: &str, columns: &Columns) -> Result<Vec<Row>> {
    let table = Table::read(path, text, columns)?;
    let (image, caption) = table.places(path, columns)?;
    let row = |(line, record): &(u64, StringRecord)| Row {
        key: record[image].to_owned(),
        caption: Some(record[caption].to_owned()),
        place: format!("line {line}"),
    };
    Ok(table.records.iter().map(row).collect())
}

/// A CSV file with some captions changed and some added: separator, line ends and the other cells stay.
pub(super) fn written(path: &Path, text: &str, columns: &Columns, edits: &Edits) -> Result<String> {
    let new = text.trim().is_empty();
    let header = format!("{},{}\n", column(columns.image, "image"), column(columns.caption, "caption"));
    let table = Table::read(path, if new { &header } else { text }, columns)?;
    let (image, caption) = table.places(path, columns)?;
    let terminator = if text.contains("\r\n") { Terminator::CRLF } else { Terminator::Any(b'\n') };
    let mut writer =
        WriterBuilder::new().delimiter(table.separator).terminator(terminator).from_writer(Vec::new());
    let broken = |source| Error::Csv { path: path.to_path_buf(), source };
    writer.write_record(&table.header).map_err(broken)?;
    for (row, (_, record)) in table.records.iter().enumerate() {
        let cells = record.iter().enumerate().map(|(place, cell)| match edits.set.get(&row) {
            Some(new) if place == caption => new.as_str(),
            _ => cell,
        });
        writer.write_record(cells).map_err(broken)?;
    }
    for (key, new) in &edits.add {
        let mut cells = vec![""; table.header.len()];
        (cells[image], cells[caption]) = (key, new);
        writer.write_record(cells).map_err(broken)?;
    }
    let bytes = writer.into_inner().map_err(|error| broken(error.into_error().into()))?;
    Ok(String::from_utf8(bytes).expect("what was written is text"))
}
