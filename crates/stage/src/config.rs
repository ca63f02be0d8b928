//! Reads configuration files; an unknown key is answered with its line and the nearest known key.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Opening or reading failed, or it is not UTF-8.
    #[error("cannot read the configuration `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The text is not of the form, or a key or value is wrong.
    #[error("`{path}` line {line}, column {column}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
        /// What is wrong, and the nearest known key where the key is unknown.
        message: String,
    },
}

/// Reads a TOML file.
pub fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    parse_toml(&read(path)?, path)
}

/// Reads TOML that came from `path`.
pub fn parse_toml<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let before = &text[..start.min(text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        ConfigError::Parse { path: path.to_path_buf(), line, column, message: advise(error.message()) }
    })
}

/// Reads a JSON file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = read(path)?;
    serde_json::from_str(&text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let said = error.to_string();
        let message = said.split(" at line ").next().unwrap_or(&said);
        ConfigError::Parse { path: path.to_path_buf(), line, column, message: advise(message) }
    })
}

fn read(path: &Path) -> Result<String, ConfigError> {
    fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })
}

/// The name among `known` that is most like `name`, if any is like it at all.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |candidate: &str| strsim::damerau_levenshtein(name, candidate);
    let best = known.into_iter().min_by_key(|candidate| likeness(candidate))?;
    (likeness(best) <= name.len().max(best.len()) / 2).then_some(best)
}

/// What serde says of a value that does not fit, without the names of Rust's types: `expected usize` becomes `expected a whole
/// number from 0`.
pub fn in_plain_words(message: &str) -> String {
    let Some((found, expected)) = message.rsplit_once(", expected ") else { return message.to_owned() };
    let most = |most: u64| format!("a whole number from 0 to {most}");
    let plain = match expected {
        "u8" => most(u8::MAX.into()),
        "u16" => most(u16::MAX.into()),
        "u32" => most(u32::MAX.into()),
        "u64" | "usize" | "u128" => "a whole number from 0".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "isize" | "i128" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => "`true` or `false`".to_owned(),
        "a string" | "string or map" => "a text".to_owned(),
        "path string" => "a path".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "keys and their values".to_owned(),
        of if of.starts_with("a nonzero ") => "a whole number from 1".to_owned(),
        of if of.starts_with("struct ") => "keys and their values".to_owned(),
        of => match of.strip_prefix("an array of length ").or(of.strip_prefix("a tuple of size ")) {
            Some(length) => format!("a list of {length}"),
            None => return message.to_owned(),
        },
    };
    let found = found.replace("floating point `", "number `").replace(": sequence", ": list");
    format!("{found}, expected {plain}")
}

/// Turns serde's list of all known keys into the nearest one, and its names of types into plain words.
fn advise(message: &str) -> String {
    let Some((unknown, expected)) = message.split_once(", expected ") else { return message.to_owned() };
    // "unknown field `a`, expected one of `b`, `c`": every second piece between backticks is a name.
    let name = unknown.split('`').nth(1);
    let known = expected.split('`').skip(1).step_by(2);
    match name.filter(|_| unknown.starts_with("unknown ")).and_then(|name| nearest(name, known)) {
        Some(best) => format!("{unknown}, did you mean `{best}`?"),
        None => in_plain_words(message),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "read by serde only")]
    struct Config {
        batch_size: u32,
        lr: f64,
    }

    fn said<T: std::fmt::Debug>(result: Result<T, ConfigError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_key_gets_its_line_and_the_nearest_known_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        fs::write(&path, "lr = 1.0\n\nbatchsize = 4\n").unwrap();
        let text = said(read_toml::<Config>(&path));
        assert!(
            text.ends_with("line 3, column 1: unknown field `batchsize`, did you mean `batch_size`?"),
            "{text}"
        );

        fs::write(&path, "{\n \"lr\": 1.0,\n \"batchsize\": 4}").unwrap();
        let text = said(read_json::<Config>(&path));
        assert!(text.contains("line 3") && text.ends_with("did you mean `batch_size`?"), "{text}");
    }

    #[test]
    fn other_faults_keep_their_own_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        fs::write(&path, "lr = \"fast\"\nbatch_size = 1").unwrap();
        let text = said(read_toml::<Config>(&path));
        assert!(
            text.ends_with("line 1, column 6: invalid type: string \"fast\", expected a number"),
            "{text}"
        );
        assert!(said(read_toml::<Config>(&dir.path().join("none"))).contains("none"));
        assert_eq!(nearest("zzz", ["batch_size"]), None);
    }

    #[test]
    fn values_are_asked_for_in_plain_words() {
        fn said<T: DeserializeOwned + std::fmt::Debug>(json: &str) -> String {
            in_plain_words(
                &serde_json::from_value::<T>(serde_json::from_str(json).unwrap()).unwrap_err().to_string(),
            )
        }
        assert_eq!(
            said::<usize>("\"four\""),
            "invalid type: string \"four\", expected a whole number from 0"
        );
        assert_eq!(said::<u64>("1.5"), "invalid type: number `1.5`, expected a whole number from 0");
        assert_eq!(said::<u8>("300"), "invalid value: integer `300`, expected a whole number from 0 to 255");
        assert_eq!(said::<i64>("true"), "invalid type: boolean `true`, expected a whole number");
        assert_eq!(said::<Option<f32>>("[]"), "invalid type: list, expected a number");
        assert_eq!(said::<bool>("0"), "invalid type: integer `0`, expected `true` or `false`");
        assert_eq!(said::<String>("0"), "invalid type: integer `0`, expected a text");
        assert_eq!(said::<PathBuf>("0"), "invalid type: integer `0`, expected a path");
        assert_eq!(said::<Vec<f64>>("0"), "invalid type: integer `0`, expected a list");
        assert_eq!(said::<[f64; 2]>("[1]"), "invalid length 1, expected a list of 2");
        assert_eq!(said::<Config>("0"), "invalid type: integer `0`, expected keys and their values");
        let nonzero = said::<std::num::NonZeroUsize>("0");
        assert_eq!(nonzero, "invalid value: integer `0`, expected a whole number from 1");
    }
}
