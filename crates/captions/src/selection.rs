//! Selections: a vocabulary with a column that says which tags are wanted.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use crate::{
    Error, Result, canonical,
    lists::tag_name,
    sheet::{Row, Sheet},
};

/// The wanted tags in order of popularity: by their counts, where each has one, else as they stand in the file, which in a
/// tagger's own vocabulary is the same. Of equally popular ones the one that stands first comes first.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Where it was read.
    pub path: PathBuf,
    /// The wanted tags.
    pub tags: Vec<Selected>,
}

/// A wanted tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// The canonical name.
    pub name: String,
    /// How often the tag stands in the data the tagger was trained on, where the file tells.
    pub count: Option<u64>,
}

impl Selection {
    /// Reads any CSV with a column `name` and a column `include` (or `keep`) of 0 and 1.
    ///
    /// Separated by commas, semicolons or tabs, in UTF-8 with or without a byte-order mark or in UTF-16 with one, with LF
    /// or CRLF, in any order, other columns and empty rows at will. Besides 0 and 1, what spreadsheets make of them is read: `0.0`, `1.0`, `TRUE`, `FALSE`.
    ///
    /// # Errors
    /// No such columns, or both `include` and `keep`; another value; a tag that stands there twice, wanted and
    /// unwanted; a wanted tag that is empty or holds a comma, which captions could not tell from two; no wanted tag.
    pub fn read(path: &Path) -> Result<Self> {
        let sheet = Sheet::read(path)?;
        let name = sheet.column("name")?;
        let count = sheet.find("count")?;
        let include = sheet
            .one_of("include", "keep")?
            .ok_or_else(|| sheet.columns("a column `include` or `keep`".to_owned()))?;
        let mut seen = BTreeMap::new();
        let mut tags = Vec::new();
        for row in &sheet.rows {
            let tag = canonical(&row.cells[name]);
            let wanted = flag(&row.cells[include])
                .ok_or_else(|| sheet.cell(row, include, "0 (not wanted) or 1 (wanted)"))?;
            if is_spreadsheet_error(&row.cells[name]) {
                // Of a tag that is not wanted, the name is not needed.
                match wanted {
                    true => {
                        return Err(sheet.cell(row, name, "a tag, which the spreadsheet took for a formula"));
                    }
                    false => continue,
                }
            }
            if sheet.check_agrees(&mut seen, &tag, wanted, row.line)? && wanted {
                tags.push(selected(&sheet, row, name, count)?);
            }
        }
        match tags.is_empty() {
            true => Err(Error::NothingSelected { path: path.to_path_buf() }),
            false => {
                // A spreadsheet may have sorted the rows by name.
                if tags.iter().all(|tag| tag.count.is_some()) {
                    tags.sort_by_key(|tag| Reverse(tag.count));
                }
                Ok(Self { path: path.to_path_buf(), tags })
            }
        }
    }

    /// The canonical names, in order.
    pub fn names(&self) -> Vec<&str> {
        self.tags.iter().map(|tag| tag.name.as_str()).collect()
    }
}

/// The canonical names of a tagger's vocabulary: of all tags in a table that [`Selection::read`] would read, wanted or not.
///
/// # Errors
/// The file cannot be read or has no column `name`.
pub fn vocabulary(path: &Path) -> Result<BTreeSet<String>> {
    let sheet = Sheet::read(path)?;
    let name = sheet.column("name")?;
    Ok(sheet.rows.iter().map(|row| canonical(&row.cells[name])).filter(|name| !name.is_empty()).collect())
}

fn selected(sheet: &Sheet, row: &Row, name: usize, count: Option<usize>) -> Result<Selected> {
    let tag = tag_name(&row.cells[name]).ok_or_else(|| sheet.cell(row, name, "a tag without a comma"))?;
    let count = match count.map(|column| (column, row.cells[column].trim())) {
        None | Some((_, "")) => None,
        Some((column, text)) => {
            Some(parse_count(text).ok_or_else(|| sheet.cell(row, column, "a whole number"))?)
        }
    };
    Ok(Selected { name: tag, count })
}

/// A count, also as a spreadsheet writes it: `12` or `12.0`.
pub(crate) fn parse_count(text: &str) -> Option<u64> {
    text.strip_suffix(".0").unwrap_or(text).parse().ok()
}

/// Whether a cell is what spreadsheets write where they took a tag such as `=_=` or `+_+` for a formula.
fn is_spreadsheet_error(cell: &str) -> bool {
    let errors = ["#NAME?", "#REF!", "#VALUE!", "#N/A", "#DIV/0!", "#NUM!", "#NULL!", "Err:509"];
    errors.contains(&cell.trim())
}

/// What 0 and 1 become in spreadsheets.
pub(crate) fn flag(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "0" | "0.0" | "false" => Some(false),
        "1" | "1.0" | "true" => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(text: &str) -> Result<Selection> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("selection.csv");
        fs::write(&path, text).unwrap();
        Selection::read(&path)
    }

    fn said(text: &str) -> String {
        let error = read(text).unwrap_err().to_string();
        error.split_once("selection.csv` ").or(error.split_once("selection.csv`: ")).unwrap().1.to_owned()
    }

    #[test]
    fn the_most_popular_tags_come_first_whatever_their_order() {
        let sorted = read("name,count,include\nblurry,12,1\ndark,40,1\nindoors,12,1\nsolo,90,0\n").unwrap();
        assert_eq!(sorted.names(), ["dark", "blurry", "indoors"]);
        let untold = read("name,count,include\nblurry,12,1\ndark,40,1\nindoors,,1\n").unwrap();
        assert_eq!(untold.names(), ["blurry", "dark", "indoors"], "one of unknown popularity");
    }

    #[test]
    fn a_table_from_a_spreadsheet_is_read() {
        let plain =
            read("tag_id,name,category,count,include\n1,blurry,0,12,1\n2,solo,0,9,0\n3,;),0,7,1\n").unwrap();
        assert_eq!(plain.names(), ["blurry", ";)"]);
        assert_eq!(plain.tags[0].count, Some(12));
        let edited = read(
            "\u{feff}Keep;note;\"name\"\r\n1.0;\"why; not\";\" Blurry \"\r\nFALSE;;solo\r\nTRUE;;\";)\"\r\n1;;blurry\r\n",
        );
        assert_eq!(edited.unwrap().names(), plain.names());
    }

    #[test]
    fn every_way_in_which_spreadsheets_write_is_read() {
        let plain = "name,count,include\nblurry,12,1\n\"a;b\",9,0\nschön_(ä),7,1\n";
        let wanted = read(plain).unwrap();
        assert_eq!(wanted.names(), ["blurry", "schön_(ä)"]);
        let tabs = "include\tnote\tname\tcount\r\n1\t\tblurry\t12\r\n0\tx\ta;b\t9\r\n\t\t\t\r\nTRUE\t\tscho\u{308}n (Ä)\t7.0\r\n";
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("selection.txt");
        let units = |text: &str, of: fn(u16) -> [u8; 2]| -> Vec<u8> {
            format!("\u{feff}{text}").encode_utf16().flat_map(of).collect()
        };
        let semicolons = format!("sep=;\r\n{}", tabs.replace("a;b", "\"a;b\"").replace('\t', ";"));
        for bytes in [
            tabs.as_bytes().to_vec(),
            units(tabs, u16::to_le_bytes),
            units(tabs, u16::to_be_bytes),
            format!("\u{feff}{semicolons}").into_bytes(),
        ] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(Selection::read(&path).unwrap().tags, wanted.tags);
        }
        let mut cut = units(tabs, u16::to_le_bytes);
        cut.pop();
        fs::write(&path, cut).unwrap();
        let error = Selection::read(&path).unwrap_err().to_string();
        assert!(error.ends_with("starts with the mark of UTF-16 and is not UTF-16"), "{error}");
    }

    #[test]
    fn a_vocabulary_is_read_however_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("labels.csv");
        fs::write(&path, "\u{feff}tag_id;name;include\r\n1; Upper Body ;0\r\n2;blurry;\r\n;;\r\n").unwrap();
        assert_eq!(vocabulary(&path).unwrap().into_iter().collect::<Vec<_>>(), ["blurry", "upper_body"]);
        fs::write(&path, "tag\nblurry\n").unwrap();
        assert!(vocabulary(&path).unwrap_err().to_string().contains("a column `name`"));
    }

    #[test]
    fn what_is_ambiguous_is_an_error_with_its_line() {
        assert_eq!(
            said("name,include\nblurry,1\nsolo,yes\n"),
            "line 3, column `include`: expected 0 (not wanted) or 1 (wanted), found \"yes\""
        );
        assert!(said("name,include\nblurry,\n").starts_with("line 2"));
        assert_eq!(
            said("name,include\nblurry,1\nsolo,1\n blurry,0\n"),
            "says both 1 and 0 for the tag `blurry`, on the lines 2 and 4"
        );
        assert_eq!(
            said("name,keep,include\na,1,1\n"),
            "expected either `include` or `keep`, found the columns name, keep, include"
        );
        assert_eq!(
            said("name,count\na,1\n"),
            "expected a column `include` or `keep`, found the columns name, count"
        );
        assert_eq!(said("tag,include\na,1\n"), "expected a column `name`, found the columns tag, include");
        assert_eq!(
            said("name,include\n\"a,b\",1\n"),
            "line 2, column `name`: expected a tag without a comma, found \"a,b\""
        );
        assert_eq!(
            said("name,count,include\na,many,1\n"),
            "line 2, column `count`: expected a whole number, found \"many\""
        );
        assert_eq!(read("name,include\n#NAME?,0\nsolo,1\n").unwrap().names(), ["solo"]);
        assert_eq!(
            said("name,include\nsolo,1\n#NAME?,1\n"),
            "line 3, column `name`: expected a tag, which the spreadsheet took for a formula, found \"#NAME?\""
        );
        assert!(said("sep=;\nname;include\nsolo;perhaps\n").starts_with("line 3"));
        assert!(matches!(read("name,include\na,0\n"), Err(Error::NothingSelected { .. })));
        assert!(matches!(read("name,include\na\n"), Err(Error::Csv { .. })));
    }
}
