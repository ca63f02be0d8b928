//! The folder of a report: what in it is the report's own, and nothing else is touched.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use vodka_stage::{RunRecord, write_atomic};

use crate::{Error, Result};

/// Says which files of the folder are the report's. Hidden, for it is no part of what the report says.
const LIST: &str = ".vodka-report.json";

/// The page that is written last: where it is, the report is whole.
pub(super) const INDEX: &str = "index.html";

/// The folder of thumbnails, whose files are known by the form of their names.
pub(super) const THUMBNAILS: &str = "thumbnails";

/// What reports of former versions wrote, without a list.
const FORMER: [&str; 5] = ["captions.csv", "groups.csv", "histogram.csv", "report.md", "tags.csv"];

/// The folder of a report.
#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
    /// Files that former runs have written, or may have, by their paths below the root with `/`.
    known: BTreeSet<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    files: BTreeSet<String>,
}

impl Folder {
    /// Looks at the folder, which may be missing, and writes nothing.
    ///
    /// # Errors
    /// A folder that holds something and is no report.
    pub(super) fn open(root: &Path, record: &Path) -> Result<Self> {
        let root = root.to_path_buf();
        let found = first_visible(&root)?;
        let list = root.join(LIST);
        let known = match fs::read(&list) {
            Ok(bytes) => serde_json::from_slice::<List>(&bytes).map(|list| list.files).unwrap_or_default(),
            Err(error) if is_absent(&error) => match found {
                Some(_) if of_former_version(record) => FORMER.map(ToOwned::to_owned).into(),
                Some(found) => return Err(Error::NotAReport { path: root, found }),
                None => BTreeSet::new(),
            },
            Err(source) => return Err(Error::Read { path: list, source }),
        };
        Ok(Self { root, known })
    }

    /// The path of a file of the report.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Makes these files the report's, beside those that were: also one that a killed run leaves behind is known by them.
    ///
    /// # Errors
    /// A file of that name that no report has written.
    pub(super) fn claim<'a>(&mut self, names: impl Iterator<Item = &'a str>) -> Result<()> {
        let names: Vec<_> = names.collect();
        if let Some(name) = names
            .iter()
            .find(|name| !self.known.contains(**name) && self.path(name).symlink_metadata().is_ok())
        {
            return Err(Error::ForeignFile { path: self.path(name) });
        }
        self.known.extend(names.into_iter().map(ToOwned::to_owned));
        self.write_list()
    }

    /// Takes the index away until everything is written.
    pub(super) fn begin(&self) -> Result<()> {
        remove(&self.path(INDEX))
    }

    /// Removes the files of former runs that are no longer wanted.
    pub(super) fn keep(&mut self, names: &BTreeSet<&str>, thumbnails: &BTreeSet<String>) -> Result<()> {
        let (kept, old): (BTreeSet<_>, BTreeSet<_>) =
            self.known.iter().cloned().partition(|name| names.contains(name.as_str()));
        for name in &old {
            remove(&self.path(name))?;
        }
        let folder = self.path(THUMBNAILS);
        for name in names_in(&folder)? {
            if is_thumbnail(&name) && !thumbnails.contains(&name) {
                remove(&folder.join(name))?;
            }
        }
        self.known = kept;
        self.write_list()
    }

    fn write_list(&self) -> Result<()> {
        let list = List { files: self.known.clone() };
        let text = serde_json::to_string_pretty(&list).expect("a list of names is plain data");
        Ok(write_atomic(self.path(LIST), text + "\n")?)
    }
}

/// Whether a name is that of a thumbnail: some digits of a hash and `.webp`.
fn is_thumbnail(name: &str) -> bool {
    name.strip_suffix(".webp").is_some_and(|hash| {
        hash.len() == super::thumbnails::NAME_DIGITS && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

fn of_former_version(record: &Path) -> bool {
    RunRecord::read(record).is_ok_and(|record| record.stage == super::STAGE)
}

/// The first name in a folder that is not hidden.
fn first_visible(folder: &Path) -> Result<Option<String>> {
    let names = names_in(folder)?;
    Ok(names.into_iter().find(|name| !name.starts_with('.')))
}

/// The names in a folder, in order; none where it is missing.
fn names_in(folder: &Path) -> Result<BTreeSet<String>> {
    let names = fs::read_dir(folder).and_then(|entries| {
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    });
    match names {
        Err(error) if is_absent(&error) => Ok(BTreeSet::new()),
        names => names.map_err(|source| Error::Read { path: folder.to_path_buf(), source }),
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if !is_absent(&error) => {
            Err(vodka_stage::Error::Write { path: path.to_path_buf(), source: error }.into())
        }
        _ => Ok(()),
    }
}

fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}
