//! Files of styles, and wildcards.

use std::sync::LazyLock;

use regex::{Captures, Regex};

use crate::{Error, Result};

/// A prompt and a negative prompt with a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Style {
    /// The name.
    pub name: String,
    /// What is added to the prompt; `{prompt}` in it is where that goes.
    pub prompt: String,
    /// Likewise for the negative prompt.
    pub negative_prompt: String,
}

/// The styles of a file, in order; of two with one name the later counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Styles(Vec<Style>);

impl Styles {
    /// Reads a `styles.csv` (stable-diffusion-webui 1.10.1, `modules/styles.py`): columns `name`, `prompt` (of old
    /// `text`) and `negative_prompt` in any order, spaces after commas, a byte-order mark; empty rows and those whose
    /// name begins with `#` are no styles.
    ///
    /// # Errors
    /// A file without the columns `name` and `prompt`.
    pub fn parse(text: &str) -> Result<Self> {
        let mut rows = read_csv(text.strip_prefix('\u{feff}').unwrap_or(text)).into_iter();
        let header = rows.next().unwrap_or_default();
        let column = |name: &str| header.iter().position(|found| found == name);
        let name = column("name").ok_or(Error::StyleColumn { missing: "name" })?;
        let prompt = column("prompt").or_else(|| column("text"));
        let prompt = prompt.ok_or(Error::StyleColumn { missing: "prompt" })?;
        let negative = column("negative_prompt");
        let mut styles: Vec<Style> = Vec::new();
        for row in rows {
            let cell = |at: usize| row.get(at).cloned().unwrap_or_default();
            let style = Style {
                name: cell(name),
                prompt: cell(prompt),
                negative_prompt: negative.map(cell).unwrap_or_default(),
            };
            if !style.name.starts_with('#') {
                styles.retain(|before| before.name != style.name);
                styles.push(style);
            }
        }
        Ok(Self(styles))
    }

    /// The styles.
    pub fn iter(&self) -> impl Iterator<Item = &Style> {
        self.0.iter()
    }

    /// Takes in the styles of another file, which count before those of the same names.
    pub fn extend(&mut self, later: Self) {
        self.0.retain(|style| !later.0.iter().any(|other| other.name == style.name));
        self.0.extend(later.0);
    }

    /// Adds the named styles, one after the other, to a prompt and a negative prompt.
    ///
    /// # Errors
    /// A name that is no style's (A1111 passes over it).
    pub fn apply<S: AsRef<str>>(
        &self,
        names: &[S],
        prompt: &str,
        negative: &str,
    ) -> Result<(String, String)> {
        let mut both = (prompt.to_owned(), negative.to_owned());
        for name in names {
            let name = name.as_ref();
            let style = self.0.iter().find(|style| style.name == name);
            let style = style.ok_or_else(|| Error::UnknownStyle {
                found: name.to_owned(),
                known: self.0.iter().map(|style| style.name.as_str()).collect::<Vec<_>>().join(", "),
            })?;
            both = (merge(&style.prompt, &both.0), merge(&style.negative_prompt, &both.1));
        }
        Ok(both)
    }
}

fn merge(style: &str, prompt: &str) -> String {
    if style.contains("{prompt}") {
        return style.replace("{prompt}", prompt);
    }
    let parts = [prompt.trim(), style.trim()].into_iter().filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join(", ")
}

/// The rows of a CSV file as Python's `csv.reader` with `skipinitialspace` reads them, without empty ones.
fn read_csv(text: &str) -> Vec<Vec<String>> {
    let (mut rows, mut row, mut cell) = (Vec::new(), Vec::new(), String::new());
    let (mut is_start, mut is_quoted, mut is_empty) = (true, false, true);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if is_quoted && chars.peek() == Some(&'"') => {
                chars.next();
                cell.push('"');
            }
            '"' if is_quoted || is_start => {
                is_quoted = !is_quoted;
                (is_start, is_empty) = (false, false);
            }
            _ if is_quoted => cell.push(c),
            ' ' if is_start => {}
            ',' => {
                row.push(std::mem::take(&mut cell));
                (is_start, is_empty) = (true, false);
            }
            '\r' | '\n' => {
                row.push(std::mem::take(&mut cell));
                let whole = std::mem::take(&mut row);
                if !is_empty {
                    rows.push(whole);
                }
                (is_start, is_empty) = (true, true);
            }
            _ => {
                cell.push(c);
                (is_start, is_empty) = (false, false);
            }
        }
    }
    row.push(cell);
    if !is_empty {
        rows.push(row);
    }
    rows
}

static WILDCARD: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"__([^\s_](?:[^\s]*?[^\s_])?)__").expect("a constant"));

/// Replaces each `__name__` by a line of the wildcard of that name, which `lines` gives; `pick` chooses, from how many
/// there are. A name without lines stays.
pub fn fill_wildcards<'a>(
    prompt: &str,
    lines: &dyn Fn(&str) -> Option<&'a [String]>,
    pick: &mut dyn FnMut(usize) -> usize,
) -> String {
    let fill = |found: &Captures<'_>| match lines(&found[1]) {
        Some(lines) if !lines.is_empty() => lines[pick(lines.len())].clone(),
        _ => found[0].to_owned(),
    };
    WILDCARD.replace_all(prompt, fill).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\u{feff}name, prompt,negative_prompt\r\n\
        None,,\r\nphoto, \"photo of {prompt}, \"\"sharp\"\"\", blurry\r\n\r\n#,a,b\r\ntwo,\"a\nb\",\r\n";

    #[test]
    fn a_file_is_read_as_python_reads_it() {
        let styles = Styles::parse(FILE).unwrap();
        let found: Vec<_> = styles.iter().map(|s| (&*s.name, &*s.prompt, &*s.negative_prompt)).collect();
        assert_eq!(
            found,
            [("None", "", ""), ("photo", "photo of {prompt}, \"sharp\"", "blurry"), ("two", "a\nb", "")]
        );
        let old = Styles::parse("name,text\nx,y").unwrap();
        assert_eq!(old.iter().next().unwrap().prompt, "y");
        let error = Styles::parse("a,b\n").unwrap_err().to_string();
        assert!(error.ends_with("there is no column `name`"), "{error}");
    }

    #[test]
    fn styles_are_added() {
        let styles = Styles::parse(FILE).unwrap();
        let both = styles.apply(&["two", "photo"], " cat ", "").unwrap();
        assert_eq!(both, ("photo of cat, a\nb, \"sharp\"".into(), "blurry".into()));
        let error = styles.apply(&["three"], "", "").unwrap_err().to_string();
        assert_eq!(error, "there is no style `three`; known are None, photo, two");
    }

    #[test]
    fn wildcards_are_filled() {
        let colours = ["red".to_owned(), "blue".to_owned()];
        let lines = |name: &str| (name == "dir/colour").then_some(&colours[..]);
        let mut turn = 0;
        let mut pick = |count: usize| {
            turn += 1;
            turn % count
        };
        let found = fill_wildcards("a __dir/colour__, __dir/colour__ ____ __x__ __a b__", &lines, &mut pick);
        assert_eq!(found, "a blue, red ____ __x__ __a b__");
    }
}
