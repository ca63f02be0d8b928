//! Globs: `*` and `?` as regular expressions.

use regex::Regex;

/// The regular expression of a whole text that fits a glob: `?` is any character, `*` any text. With `paths`, neither
/// of them is a `/`; `**` is any text still.
///
/// # Errors
/// One that is too long.
pub(super) fn glob(glob: &str, paths: bool) -> Result<Regex, regex::Error> {
    let mut pattern = String::from(r"(?s)\A");
    let mut rest = glob;
    while let Some(c) = rest.chars().next() {
        let (length, part) = match c {
            '*' if paths && rest.starts_with("**") => (2, ".*".to_owned()),
            '*' => (1, if paths { "[^/]*" } else { ".*" }.to_owned()),
            '?' => (1, if paths { "[^/]" } else { "." }.to_owned()),
            c => (c.len_utf8(), regex::escape(c.encode_utf8(&mut [0; 4]))),
        };
        pattern += &part;
        rest = &rest[length..];
    }
    Regex::new(&(pattern + r"\z"))
}
