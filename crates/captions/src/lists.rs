//! Lists of tags: the one that is shipped, and those that users write.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use crate::{
    Error, Result,
    glob::Glob,
    selection::flag,
    sheet::{self, Sheet},
};

/// The shipped list: tags about how a picture is made, with what each of them means.
pub const IMAGE_PRODUCTION: &str = include_str!("../lists/image-production.csv");

/// Names and patterns of tags.
#[derive(Debug, Clone)]
pub(crate) struct TagList {
    /// As they are written, canonical, in order, each once.
    pub(crate) tags: Vec<String>,
}

impl TagList {
    pub(crate) fn shipped() -> Self {
        Self::parse(IMAGE_PRODUCTION, &PathBuf::from("image-production.csv"))
            .expect("the tests read the shipped list")
    }

    /// Reads a list in a file: see [`TagList::parse`].
    pub(crate) fn read(path: &Path) -> Result<Self> {
        Self::parse(&sheet::read_any_text(path)?, path)
    }

    /// Reads a list: either a table with a column `name`, of which rows with an `include` (or `keep`) of 0 do not count;
    /// or a tag on each line. Lines that start with `#` say nothing.
    ///
    /// # Errors
    /// A tag that is empty or holds a comma; in a table what a selection may not hold either.
    pub(crate) fn parse(text: &str, path: &Path) -> Result<Self> {
        let says = |line: &&str| !line.trim().is_empty() && !line.starts_with('#');
        let first = text.lines().find(says).unwrap_or_default();
        let named =
            match sheet::separator(first, "name").is_some() || first.trim().eq_ignore_ascii_case("name") {
                true => of_table(&Sheet::parse(path, text, &["name"], Some(b'#'))?)?,
                false => of_lines(text, path)?,
            };
        let mut seen = BTreeSet::new();
        Ok(Self { tags: named.into_iter().filter(|tag| seen.insert(tag.clone())).collect() })
    }
}

fn of_lines(text: &str, path: &Path) -> Result<Vec<String>> {
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty() && !line.starts_with('#'));
    let tag = |(line, number): (&str, u64)| match tag_name(line) {
        Some(name) => Ok(name),
        None => Err(Error::Cell {
            path: path.to_path_buf(),
            line: number,
            column: "name".to_owned(),
            expected: "a tag without a comma",
            found: line.trim().to_owned(),
        }),
    };
    lines.map(tag).collect()
}

fn of_table(sheet: &Sheet) -> Result<Vec<String>> {
    let name = sheet.column("name")?;
    let include = sheet.one_of("include", "keep")?;
    let mut seen: BTreeMap<String, (bool, u64)> = BTreeMap::new();
    let mut tags = Vec::new();
    for row in &sheet.rows {
        let tag = tag_name(&row.cells[name]).ok_or_else(|| sheet.cell(row, name, "a tag without a comma"))?;
        let wanted = match include {
            None => true,
            Some(column) => flag(&row.cells[column])
                .ok_or_else(|| sheet.cell(row, column, "0 (not wanted) or 1 (wanted)"))?,
        };
        sheet.check_agrees(&mut seen, &tag, wanted, row.line)?;
        if wanted {
            tags.push(tag);
        }
    }
    Ok(tags)
}

/// A canonical name that captions can write.
pub(crate) fn tag_name(text: &str) -> Option<String> {
    let name = crate::canonical(text);
    (!crate::displayed(&name).trim().is_empty() && !name.contains(',')).then_some(name)
}

/// The tags of a vocabulary that a name or a pattern means: the tag of that very name, else all that fit.
pub(crate) fn meant<'a>(pattern: &str, vocabulary: &BTreeSet<&'a str>) -> Vec<&'a str> {
    if let Some(name) = vocabulary.get(pattern) {
        return vec![*name];
    }
    let glob = Glob::of_names(pattern);
    match glob.name() {
        Some(name) => vocabulary.get(name.as_str()).copied().into_iter().collect(),
        None => vocabulary.iter().copied().filter(|name| glob.fits(name)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<TagList> {
        TagList::parse(text, Path::new("list.csv"))
    }

    fn said(text: &str) -> String {
        read(text).unwrap_err().to_string()
    }

    #[test]
    fn the_shipped_list_has_73_tags_and_says_what_each_means() {
        let list = TagList::shipped();
        assert_eq!(list.tags.len(), 73);
        assert!(list.tags.iter().any(|tag| tag == "depth_of_field"));
        let sheet = Sheet::parse(Path::new("list"), IMAGE_PRODUCTION, &["name"], Some(b'#')).unwrap();
        assert!(sheet.rows.iter().all(|row| row.cells.iter().all(|cell| !cell.is_empty())));
    }

    #[test]
    fn lists_are_lines_or_tables() {
        assert_eq!(
            read("# mine\n\nBlurry Background\n ;)\n*_theme\r\nblurry background\n").unwrap().tags,
            ["blurry_background", ";)", "*_theme"]
        );
        assert_eq!(
            read("# mine\nnote;Name;keep\nx;solo;1\ny;hat;0\n# no\nz;1girl;TRUE\n").unwrap().tags,
            ["solo", "1girl"]
        );
        assert_eq!(read("name\nsolo\n").unwrap().tags, ["solo"]);
        assert!(read("").unwrap().tags.is_empty());
        assert_eq!(
            said("solo\nblurry, sketch\n"),
            "`list.csv` line 2, column `name`: expected a tag without a comma, found \"blurry, sketch\""
        );
        assert!(said("name,keep\na,1\nb,maybe\n").starts_with("`list.csv` line 3, column `keep`"));
        assert!(said("name,keep\na,1\n A,0\n").ends_with("for the tag `a`, on the lines 2 and 3"));
        assert!(said("name,note\n,x\n").starts_with("`list.csv` line 2, column `name`"));
    }

    #[test]
    fn a_name_is_itself_before_it_is_a_pattern() {
        let vocabulary = BTreeSet::from(["?", "!", "a", "blurry", "blurry_background"]);
        assert_eq!(meant("?", &vocabulary), ["?"]);
        assert_eq!(meant("blurry*", &vocabulary), ["blurry", "blurry_background"]);
        assert_eq!(meant("??????", &vocabulary), ["blurry"]);
        assert_eq!(meant("background", &vocabulary), Vec::<&str>::new());
    }
}
