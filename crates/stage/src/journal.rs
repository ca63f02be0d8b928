//! What a long stage has done so far, so that a killed run goes on where it was.
//!
//! One JSON value a line. The first line is the hash of the run's key: a journal of another run is thrown away, not
//! continued. A last line without a line feed was torn by the crash and is dropped.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

use crate::{ContentHash, Error, Result, create_dir};

/// An append-only file of entries.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens the journal at `path` and returns the entries of an earlier run with the same `key`.
    pub fn open<T: DeserializeOwned>(path: impl Into<PathBuf>, key: ContentHash) -> Result<(Self, Vec<T>)> {
        let path = path.into();
        if let Some(folder) = path.parent() {
            create_dir(folder)?;
        }
        let (entries, length) = match path.exists() {
            true => read_entries(&path, key)?,
            false => (Vec::new(), 0),
        };
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(Error::write(&path))?;
        file.set_len(length).map_err(Error::write(&path))?;
        let mut journal = Self { path, file };
        if length == 0 {
            journal.append(&key)?;
        }
        Ok((journal, entries))
    }

    /// Adds an entry; after the return a crash of this process does not lose it.
    pub fn append<T: Serialize>(&mut self, entry: &T) -> Result<()> {
        let mut line = serde_json::to_vec(entry).expect("journal entries are plain data");
        line.push(b'\n');
        self.file.write_all(&line).map_err(Error::write(&self.path))
    }

    /// Deletes the journal: the run is done.
    pub fn finish(self) -> Result<()> {
        fs::remove_file(&self.path).map_err(Error::write(&self.path))
    }
}

/// The entries and how many bytes of the file they take; nothing of a journal with another key.
fn read_entries<T: DeserializeOwned>(path: &Path, key: ContentHash) -> Result<(Vec<T>, u64)> {
    let mut reader = BufReader::new(File::open(path).map_err(Error::read(path))?);
    let mut entries = Vec::new();
    let mut length = 0;
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let n = reader.read_until(b'\n', &mut line).map_err(Error::read(path))?;
        if !line.ends_with(b"\n") {
            break;
        }
        if number == 1 {
            if serde_json::from_slice(&line).ok() != Some(key) {
                return Ok((Vec::new(), 0));
            }
        } else {
            let found = || String::from_utf8_lossy(&line).chars().take(60).collect();
            entries.push(serde_json::from_slice(&line).map_err(|_| Error::Journal {
                path: path.to_path_buf(),
                line: number,
                found: found(),
            })?);
        }
        length += n as u64;
    }
    Ok((entries, length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash_bytes;

    #[test]
    fn a_killed_run_goes_on_and_another_run_starts_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tags.journal");
        let (mut journal, entries) = Journal::open::<u32>(&path, hash_bytes("a")).unwrap();
        assert!(entries.is_empty());
        journal.append(&1).unwrap();
        journal.append(&2).unwrap();
        drop(journal);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"34").unwrap();

        let (mut journal, entries) = Journal::open::<u32>(&path, hash_bytes("a")).unwrap();
        assert_eq!(entries, [1, 2], "the torn line is dropped");
        journal.append(&5).unwrap();
        drop(journal);
        assert_eq!(Journal::open::<u32>(&path, hash_bytes("a")).unwrap().1, [1, 2, 5]);

        let (journal, entries) = Journal::open::<u32>(&path, hash_bytes("b")).unwrap();
        assert!(entries.is_empty());
        journal.finish().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_line_torn_inside_a_character_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tags.journal");
        let open = || Journal::open::<String>(&path, hash_bytes("a")).unwrap();
        open().0.append(&"räume").unwrap();
        let torn = "\"rä".as_bytes();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(&torn[..torn.len() - 1]).unwrap();

        let (mut journal, entries) = open();
        assert_eq!(entries, ["räume"]);
        journal.append(&"é").unwrap();
        assert_eq!(open().1, ["räume", "é"]);
    }

    #[test]
    fn a_damaged_journal_names_the_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tags.journal");
        Journal::open::<u32>(&path, hash_bytes("a")).unwrap().0.append(&"not a number").unwrap();
        let error = Journal::open::<u32>(&path, hash_bytes("a")).unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
    }
}
