//! CSV files that people have edited: byte-order marks, CRLF, semicolons, extra columns.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use crate::{Error, Result};
use csv::{ReaderBuilder, StringRecord, WriterBuilder};

/// A table of text, with the lines its rows came from.
#[derive(Debug, Clone)]
pub(crate) struct Sheet {
    pub(crate) path: PathBuf,
    pub(crate) header: Vec<String>,
    pub(crate) rows: Vec<Row>,
    /// What separates the cells.
    pub(crate) separator: u8,
    /// The first line, if it tells the separator to spreadsheets: `sep=;`.
    pub(crate) hint: Option<String>,
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

    /// Reads a table separated by commas, semicolons or tabs: whichever the header has a column `key` with.
    ///
    /// UTF-8, with or without a byte-order mark, or UTF-16 with one ("Unicode text" of spreadsheets). Rows of empty
    /// cells, which spreadsheets add, are left out, and so is a first line `sep=;`.
    pub(crate) fn read_with(path: &Path, key: &str) -> Result<Self> {
        Self::parse(path, &read_any_text(path)?, &[key], None)
    }

    /// Reads the text of a table that has one of the columns `keys`, and in which lines that start with `comment` say
    /// nothing.
    pub(crate) fn parse(path: &Path, text: &str, keys: &[&str], comment: Option<u8>) -> Result<Self> {
        let hint = hint(text).map(ToOwned::to_owned);
        // What follows keeps its line numbers when the hint becomes an empty line.
        let text = &text[hint.as_deref().map_or(0, str::len)..];
        let is_comment = |line: &&str| comment.is_some_and(|mark| line.as_bytes().first() == Some(&mark));
        let header = text.lines().find(|line| !line.trim().is_empty() && !is_comment(line));
        let header = header.unwrap_or_default();
        let separator = keys.iter().find_map(|key| separator(header, key)).unwrap_or(b',');
        let mut reader =
            ReaderBuilder::new().delimiter(separator).comment(comment).from_reader(text.as_bytes());
        let broken = |source| Error::Csv { path: path.to_path_buf(), source };
        let header = reader.headers().map_err(broken)?.iter().map(|cell| cell.trim().to_owned()).collect();
        let mut lines = Lines { text: text.as_bytes(), comment, place: 0, line: 1 };
        let mut rows = Vec::new();
        for record in reader.records() {
            let cells = record.map_err(broken)?;
            let start = cells.position().map_or(0, |position| position.byte() as usize);
            let line = lines.of_record(start);
            if cells.iter().any(|cell| !cell.trim().is_empty()) {
                rows.push(Row { line, cells });
            }
        }
        Ok(Self { path: path.to_path_buf(), header, rows, separator, hint })
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

    /// The place of a column that goes by one of two names, if it is there.
    pub(crate) fn one_of(&self, name: &str, other: &str) -> Result<Option<usize>> {
        match (self.find(name)?, self.find(other)?) {
            (Some(_), Some(_)) => Err(self.columns(format!("either `{name}` or `{other}`"))),
            (place, other) => Ok(place.or(other)),
        }
    }

    /// Notes that a tag is wanted or unwanted. True where this is the first row about it.
    ///
    /// # Errors
    /// Another row says otherwise.
    pub(crate) fn check_agrees(
        &self,
        seen: &mut BTreeMap<String, (bool, u64)>,
        tag: &str,
        wanted: bool,
        line: u64,
    ) -> Result<bool> {
        match seen.get(tag) {
            None => {
                seen.insert(tag.to_owned(), (wanted, line));
                Ok(true)
            }
            Some((before, _)) if *before == wanted => Ok(false),
            Some((_, first)) => Err(Error::Contradiction {
                path: self.path.clone(),
                tag: tag.to_owned(),
                first: *first,
                second: line,
            }),
        }
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

/// Counts lines from record to record. The reader's own count is one too small after CRLF, of which it leaves the LF to
/// the next record.
struct Lines<'a> {
    text: &'a [u8],
    comment: Option<u8>,
    place: usize,
    line: u64,
}

impl Lines<'_> {
    /// The line of the record that is read from `start` on, after line breaks and comments. Records come in order.
    fn of_record(&mut self, start: usize) -> u64 {
        let mut in_comment = false;
        while let Some(byte) = self.text.get(self.place) {
            if self.place >= start {
                in_comment = *byte != b'\n' && (in_comment || Some(*byte) == self.comment);
                if !in_comment && !matches!(byte, b'\r' | b'\n') {
                    break;
                }
            }
            self.line += u64::from(*byte == b'\n');
            self.place += 1;
        }
        self.line
    }
}

/// The text of a UTF-8 file, without a byte-order mark.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
    decode(path, bytes)
}

/// The text of a file in UTF-8, or in UTF-16 with a byte-order mark.
pub(crate) fn read_any_text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
    let units = |of: fn([u8; 2]) -> u16| {
        bytes[2..].chunks(2).map(move |pair| match *pair {
            [a, b] => of([a, b]),
            // Half a character is none.
            _ => 0xd800,
        })
    };
    let decoded = match bytes.get(..2) {
        Some([0xff, 0xfe]) => String::from_utf16(&units(u16::from_le_bytes).collect::<Vec<_>>()),
        Some([0xfe, 0xff]) => String::from_utf16(&units(u16::from_be_bytes).collect::<Vec<_>>()),
        _ => return decode(path, bytes),
    };
    decoded.map_err(|_| Error::NotUtf16 { path: path.to_path_buf() })
}

/// The text of UTF-8 bytes, without a byte-order mark.
pub(crate) fn decode(path: &Path, bytes: Vec<u8>) -> Result<String> {
    let text = String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        Error::NotUtf8 { path: path.to_path_buf(), offset, found: error.as_bytes()[offset] }
    })?;
    Ok(text.strip_prefix('\u{feff}').map(ToOwned::to_owned).unwrap_or(text))
}

/// The first line of a table, if all that it says is the separator, for spreadsheets.
fn hint(text: &str) -> Option<&str> {
    let line = text.lines().next()?;
    line.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("sep=")).then_some(line)
}

/// The separator with which the header, before which there may be a hint and empty lines, has a column `name`.
pub(crate) fn separator(text: &str, name: &str) -> Option<u8> {
    let text = &text[hint(text).map_or(0, str::len)..];
    let header = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    b",;\t".iter().copied().find(|separator| {
        let unquoted = |cell: &str| cell.trim().trim_matches('"').trim().eq_ignore_ascii_case(name);
        header.split(char::from(*separator)).any(unquoted)
    })
}

/// A table as text: comma-separated, with line feeds.
///
/// # Panics
/// When a row has not as many cells as the header.
pub(crate) fn text<H: AsRef<str>, R: IntoIterator<Item = String>>(
    header: impl IntoIterator<Item = H>,
    rows: impl IntoIterator<Item = R>,
) -> String {
    let mut writer = WriterBuilder::new().from_writer(Vec::new());
    let mut write = |row: Vec<String>| writer.write_record(row).expect("rows are as long as the header");
    write(header.into_iter().map(|cell| cell.as_ref().to_owned()).collect());
    rows.into_iter().for_each(|row| write(row.into_iter().collect()));
    let bytes = writer.into_inner().expect("memory takes every row");
    String::from_utf8(bytes).expect("tables are made of text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_quotes_gets_them() {
        let row = ["don't_say_\"lazy\"", "1,5"].map(ToOwned::to_owned);
        assert_eq!(text(["tag", "n"], [row]), "tag,n\n\"don't_say_\"\"lazy\"\"\",\"1,5\"\n");
    }

    #[test]
    fn lines_are_those_of_an_editor_with_lf_and_crlf() {
        let text =
            "sep=,\n# a comment\nname,note\na,1\n\n# b,\"\n#\nb,\"two\nlines\n\n#\"\nc,3\n,\n\"d\",#\n\n";
        for text in [text.to_owned(), text.replace('\n', "\r\n")] {
            let sheet = Sheet::parse(Path::new("a.csv"), &text, &["name"], Some(b'#')).unwrap();
            let found: Vec<_> = sheet.rows.iter().map(|row| (&row.cells[0], row.line)).collect();
            assert_eq!(found, [("a", 4), ("b", 8), ("c", 12), ("d", 14)], "{text:?}");
        }
    }
}
