//! What captioning has written: that alone may it replace and remove.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use vodka_images::relative_name;
use vodka_stage::{ContentHash, Error, create_dir, hash_bytes, write_atomic};

use crate::{Result, sidecar::read_bytes};

/// The list's name; hidden files are neither pictures nor part of an output's hash.
const NAME: &str = ".vodka-captions";

/// The captions that runs have written to a folder, each by its name and the hash of its content.
///
/// The list lies in that folder, one JSON array a line: `["sub/b.txt","<SHA-256>"]`. A caption is put on it before it
/// is written, so a killed run leaves none behind that is not on it; once somebody has edited a caption, it is no
/// longer on it. Lines begin with their line feed: one torn by a crash spoils no other.
#[derive(Debug)]
pub(crate) struct Written {
    folder: PathBuf,
    captions: BTreeSet<(String, ContentHash)>,
}

impl Written {
    /// Reads the list of a folder; without one nothing in it has been written by us.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let bytes = read_bytes(&folder.join(NAME))?.unwrap_or_default();
        let lines = bytes.split(|byte| *byte == b'\n');
        let captions = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
        Ok(Self { folder: folder.to_path_buf(), captions })
    }

    /// Whether a caption with this content is ours.
    pub(crate) fn holds(&self, caption: &Path, content: &[u8]) -> bool {
        self.captions.contains(&(relative_name(caption), hash_bytes(content)))
    }

    /// Puts captions on the list that are about to be written.
    pub(crate) fn announce<'a>(
        &mut self,
        captions: impl IntoIterator<Item = (&'a Path, String)>,
    ) -> Result<()> {
        let mut lines = String::new();
        for (caption, content) in captions {
            let caption = (relative_name(caption), hash_bytes(content));
            if !self.captions.contains(&caption) {
                lines += &line(&caption);
                self.captions.insert(caption);
            }
        }
        if lines.is_empty() {
            return Ok(());
        }
        create_dir(&self.folder)?;
        let path = self.folder.join(NAME);
        let append = || {
            let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
            file.write_all(lines.as_bytes())?;
            file.sync_data()
        };
        Ok(append().map_err(|source| Error::Write { path: path.clone(), source })?)
    }

    /// Removes the captions that are still as we wrote them, except those that are wanted.
    pub(crate) fn remove_others(&self, wanted: &BTreeSet<String>) -> Result<()> {
        for (name, hash) in self.captions.iter().filter(|(name, _)| !wanted.contains(name)) {
            if self.hash_of(name)? == Some(*hash) {
                remove(&self.folder.join(name))?;
            }
        }
        Ok(())
    }

    /// Takes off the list what is no longer there as it was written.
    pub(crate) fn compact(mut self) -> Result<()> {
        let mut gone = Vec::new();
        for caption in &self.captions {
            if self.hash_of(&caption.0)? != Some(caption.1) {
                gone.push(caption.clone());
            }
        }
        gone.iter().for_each(|caption| {
            self.captions.remove(caption);
        });
        let list: String = self.captions.iter().map(line).collect();
        let path = self.folder.join(NAME);
        if read_bytes(&path)?.unwrap_or_default() != list.as_bytes() {
            write_atomic(path, list)?;
        }
        Ok(())
    }

    fn hash_of(&self, name: &str) -> Result<Option<ContentHash>> {
        Ok(read_bytes(&self.folder.join(name))?.map(hash_bytes))
    }
}

fn line(caption: &(String, ContentHash)) -> String {
    format!("\n{}", serde_json::to_string(caption).expect("a name and a hash are plain data"))
}

/// Removes a file.
pub(crate) fn remove(path: &Path) -> Result<()> {
    Ok(fs::remove_file(path).map_err(|source| Error::Write { path: path.to_path_buf(), source })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_line_spoils_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join(NAME);
        let [a, b, c] = ["a.txt", "sub/b.txt", "c.txt"].map(Path::new);
        let mut written = Written::read(dir.path()).unwrap();
        written.announce([(a, "one".to_owned()), (b, "two".to_owned())]).unwrap();
        let bytes = fs::read(&list).unwrap();
        fs::write(&list, &bytes[..bytes.len() - 10]).unwrap();

        let mut written = Written::read(dir.path()).unwrap();
        assert!(written.holds(a, b"one") && !written.holds(a, b"two") && !written.holds(b, b"two"));
        written.announce([(c, "three".to_owned())]).unwrap();
        let written = Written::read(dir.path()).unwrap();
        assert!(written.holds(a, b"one") && written.holds(c, b"three"));

        fs::write(dir.path().join(c), "three").unwrap();
        written.compact().unwrap();
        let written = Written::read(dir.path()).unwrap();
        assert!(written.holds(c, b"three") && !written.holds(a, b"one"), "what is not there is forgotten");
    }
}
