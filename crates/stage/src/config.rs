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

/// Turns serde's list of all known keys into the nearest one.
fn advise(message: &str) -> String {
    let Some((unknown, expected)) = message.split_once(", expected ") else { return message.to_owned() };
    // "unknown field `a`, expected one of `b`, `c`": every second piece between backticks is a name.
    let name = unknown.split('`').nth(1);
    let known = expected.split('`').skip(1).step_by(2);
    match name.filter(|_| unknown.starts_with("unknown ")).and_then(|name| nearest(name, known)) {
        Some(best) => format!("{unknown}, did you mean `{best}`?"),
        None => message.to_owned(),
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
        assert!(text.contains("line 1") && text.contains("expected f64"), "{text}");
        assert!(said(read_toml::<Config>(&dir.path().join("none"))).contains("none"));
        assert_eq!(nearest("zzz", ["batch_size"]), None);
    }
}
