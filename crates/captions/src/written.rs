//! What captioning in place has written, and of what it has kept the original: that alone may it replace and remove.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use vodka_images::relative_name;
use vodka_stage::{ContentHash, hash_bytes};

use crate::{Result, disk::Disk, sidecar::read_bytes};

/// The list's name; hidden files are neither pictures nor part of an output's hash.
pub(crate) const LIST: &str = ".vodka-captions";

/// The files with captions that runs in place have written to a folder, each by its name and the hash of its content, and those of
/// which they have kept the original as `<name>.orig`.
///
/// The list lies in that folder, one JSON value a line: `["sub/b.txt","<SHA-256>"]` for what is written,
/// `{"kept":"sub/b.txt","absent":false}` for an original. Files outside of the folder are named by their whole path. A file
/// is put on it before it is written, so a killed run leaves none behind that is not on it; once somebody has edited a
/// caption, it is no longer on it. Lines begin with their line feed: one torn by a crash spoils no other.
#[derive(Debug)]
pub(crate) struct Written {
    folder: PathBuf,
    /// The same, whole.
    absolute: PathBuf,
    captions: BTreeMap<String, BTreeSet<ContentHash>>,
    /// By name: whether there was no such file before the first run.
    kept: BTreeMap<String, bool>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    kept: String,
    absent: bool,
}

impl Written {
    /// Reads the list of a folder; without one nothing in it has been written by us.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let bytes = read_bytes(&folder.join(LIST))?.unwrap_or_default();
        let mut captions: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        let mut kept = BTreeMap::new();
        for line in bytes.split(|byte| *byte == b'\n') {
            if let Ok((name, hash)) = serde_json::from_slice(line) {
                captions.entry(name).or_default().insert(hash);
            } else if let Ok(Kept { kept: name, absent }) = serde_json::from_slice(line) {
                kept.insert(name, absent);
            }
        }
        Ok(Self { folder: folder.to_path_buf(), absolute: absolute(folder), captions, kept })
    }

    /// A file's name on the list.
    pub(crate) fn name(&self, path: &Path) -> String {
        if let Ok(inside) = path.strip_prefix(&self.folder) {
            return relative_name(inside);
        }
        let path = absolute(path);
        path.strip_prefix(&self.absolute).map_or_else(|_| path.display().to_string(), relative_name)
    }

    /// The file of a name on the list.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Whether a file with this content is ours.
    pub(crate) fn holds(&self, path: &Path, content: &[u8]) -> bool {
        self.captions.get(&self.name(path)).is_some_and(|hashes| hashes.contains(&hash_bytes(content)))
    }

    /// Whether a run has written this file, or was about to.
    fn knows(&self, name: &str) -> bool {
        self.kept.contains_key(name) || self.captions.contains_key(name)
    }

    /// Whether `<path>.orig` is an original that a run has kept.
    pub(crate) fn keeps(&self, path: &Path) -> bool {
        original_path(path).is_file() && self.knows(&self.name(path))
    }

    /// What a file was before the first run, where that was kept: `Some(None)` for no file at all.
    pub(crate) fn original(&self, path: &Path) -> Result<Option<Option<Vec<u8>>>> {
        let name = self.name(path);
        if !self.knows(&name) {
            return Ok(None);
        }
        let Some(bytes) = read_bytes(&original_path(path))? else { return Ok(None) };
        // Lists of old did not tell; then there was nothing worth keeping.
        let absent = bytes.is_empty() && self.kept.get(&name).copied().unwrap_or(true);
        Ok(Some((!absent).then_some(bytes)))
    }

    /// The names of all files on the list.
    pub(crate) fn names(&self) -> BTreeSet<&str> {
        self.captions.keys().chain(self.kept.keys()).map(String::as_str).collect()
    }

    /// Whether originals have been kept, or were about to be.
    pub(crate) fn has_kept(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Whether there is a list, and nothing on it: all that runs have done is undone.
    pub(crate) fn is_empty(&self) -> bool {
        self.captions.is_empty() && self.kept.is_empty() && self.folder.join(LIST).is_file()
    }

    /// Removes what a killed run has left half written.
    pub(crate) fn remove_partials(&self, disk: &Disk) -> Result<()> {
        let paths = self.names().into_iter().map(|name| self.path(name));
        let paths = paths.flat_map(|path| [original_path(&path), path]).chain([self.folder.join(LIST)]);
        for path in paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            disk.remove_there(&path.with_file_name(format!(".{name}.partial")))?;
        }
        Ok(())
    }

    /// Puts on the list what is about to be written (by hash of the content), and whose originals are about to be kept
    /// (by whether there is no file).
    pub(crate) fn announce(
        &mut self,
        disk: &Disk,
        written: impl IntoIterator<Item = (String, ContentHash)>,
        kept: impl IntoIterator<Item = (String, bool)>,
    ) -> Result<()> {
        let mut lines = String::new();
        for (name, absent) in kept {
            if self.kept.get(&name) != Some(&absent) {
                lines += &kept_line(&name, absent);
                self.kept.insert(name, absent);
            }
        }
        for (name, hash) in written {
            let line = caption_line(&name, hash);
            if self.captions.entry(name).or_default().insert(hash) {
                lines += &line;
            }
        }
        match lines.is_empty() {
            true => Ok(()),
            false => disk.append(&self.folder.join(LIST), &lines),
        }
    }

    /// Takes off the list what is no longer there as it was written.
    pub(crate) fn compact(mut self, disk: &Disk) -> Result<()> {
        for (name, hashes) in &mut self.captions {
            let there = read_bytes(&self.folder.join(name))?.map(hash_bytes);
            hashes.retain(|hash| Some(*hash) == there);
        }
        self.captions.retain(|_, hashes| !hashes.is_empty());
        let folder = &self.folder;
        self.kept.retain(|name, _| original_path(&folder.join(name)).is_file());
        let kept = self.kept.iter().map(|(name, absent)| kept_line(name, *absent));
        let list: String = kept.chain(self.written().map(|(name, hash)| caption_line(name, hash))).collect();
        let path = self.folder.join(LIST);
        if read_bytes(&path)?.unwrap_or_default() != list.as_bytes() {
            disk.write(&path, list.as_bytes())?;
        }
        Ok(())
    }

    fn written(&self) -> impl Iterator<Item = (&str, ContentHash)> {
        self.captions.iter().flat_map(|(name, hashes)| hashes.iter().map(move |hash| (name.as_str(), *hash)))
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

fn caption_line(name: &str, hash: ContentHash) -> String {
    format!("\n{}", serde_json::to_string(&(name, hash)).expect("a name and a hash are plain data"))
}

fn kept_line(name: &str, absent: bool) -> String {
    let kept = Kept { kept: name.to_owned(), absent };
    format!("\n{}", serde_json::to_string(&kept).expect("a name and a flag are plain data"))
}

/// Where the original of a caption is kept: `a.txt.orig` for `a.txt`.
pub(crate) fn original_path(caption: &Path) -> PathBuf {
    let mut name = OsString::from(caption);
    name.push(".orig");
    name.into()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_torn_line_spoils_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let disk = Disk::default();
        let announce = |written: &mut Written, name: &str, text: &str| {
            written
                .announce(&disk, [(name.to_owned(), hash_bytes(text))], [(name.to_owned(), false)])
                .unwrap();
        };
        let mut written = Written::read(dir.path()).unwrap();
        announce(&mut written, "a.txt", "one");
        announce(&mut written, "sub/b.txt", "two");
        let bytes = fs::read(at(LIST)).unwrap();
        fs::write(at(LIST), &bytes[..bytes.len() - 10]).unwrap();

        let mut written = Written::read(dir.path()).unwrap();
        assert!(written.holds(&at("a.txt"), b"one") && !written.holds(&at("a.txt"), b"two"));
        assert!(!written.holds(&at("sub/b.txt"), b"two"));
        announce(&mut written, "c.txt", "three");
        let written = Written::read(dir.path()).unwrap();
        assert!(written.holds(&at("a.txt"), b"one") && written.holds(&at("c.txt"), b"three"));

        fs::write(at("c.txt"), "three").unwrap();
        written.compact(&disk).unwrap();
        let written = Written::read(dir.path()).unwrap();
        assert!(written.holds(&at("c.txt"), b"three"));
        assert!(!written.holds(&at("a.txt"), b"one"), "what is not there is forgotten");
        assert_eq!(written.names(), BTreeSet::from(["c.txt"]));
    }

    #[test]
    fn an_original_is_ours_only_if_the_list_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        fs::write(original_path(&path), "").unwrap();
        let mut written = Written::read(dir.path()).unwrap();
        assert_eq!((written.keeps(&path), written.original(&path).unwrap()), (false, None));
        for (absent, original) in [(true, None), (false, Some(Vec::new()))] {
            written.announce(&Disk::default(), [], [("a.txt".to_owned(), absent)]).unwrap();
            let written = Written::read(dir.path()).unwrap();
            assert_eq!((written.keeps(&path), written.original(&path).unwrap()), (true, Some(original)));
        }
    }
}
