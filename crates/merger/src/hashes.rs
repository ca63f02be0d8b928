//! Hashes of files, remembered by path, size and time of change.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use vodka_stage::{ContentHash, hash_tree, write_atomic};

use crate::Result;

/// What is remembered of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    size: u64,
    /// Nanoseconds since 1970.
    changed_ns: u64,
    sha256: ContentHash,
}

/// Hashes that were found before; a cache that cannot be read is empty, one that cannot be written is not kept.
#[derive(Debug, Default)]
pub(crate) struct Hashes {
    file: Option<PathBuf>,
    entries: BTreeMap<PathBuf, Entry>,
}

impl Hashes {
    pub(crate) fn open(file: Option<&Path>) -> Self {
        let read = |file: &Path| serde_json::from_slice(&fs::read(file).ok()?).ok();
        Self { file: file.map(Path::to_path_buf), entries: file.and_then(read).unwrap_or_default() }
    }

    /// The hashes of files, or of all files of folders, those that are not known worked out side by side.
    pub(crate) fn of(&mut self, paths: &[&Path]) -> Result<Vec<ContentHash>> {
        let known: Vec<_> = paths.iter().map(|path| self.known(path)).collect();
        let hash = |(path, known): (&&Path, &Option<ContentHash>)| {
            let before = stamp(path);
            let hash = known.map_or_else(|| hash_tree(path, |_| true), Ok)?;
            // A file that was changed meanwhile is not remembered.
            Ok((hash, before == stamp(path)))
        };
        let hashes = paths.par_iter().zip(&known).map(hash).collect::<Result<Vec<_>>>()?;
        if known.iter().any(Option::is_none) {
            for (path, (hash, _)) in paths.iter().zip(&hashes).filter(|(_, (_, settled))| *settled) {
                self.remember(path, *hash);
            }
            self.save();
        }
        Ok(hashes.into_iter().map(|(hash, _)| hash).collect())
    }

    fn known(&self, path: &Path) -> Option<ContentHash> {
        let entry = self.entries.get(&fs::canonicalize(path).ok()?)?;
        let (size, changed_ns) = stamp(path)?;
        (entry.size == size && entry.changed_ns == changed_ns).then_some(entry.sha256)
    }

    /// Remembers a file's hash, unless it was changed so lately that a change after this might not show in its time.
    pub(crate) fn remember(&mut self, path: &Path, sha256: ContentHash) {
        const SETTLED: Duration = Duration::from_millis(50);
        if let (Ok(path), Some((size, changed_ns))) = (fs::canonicalize(path), stamp(path)) {
            let changed = UNIX_EPOCH + Duration::from_nanos(changed_ns);
            if SystemTime::now().duration_since(changed).is_ok_and(|age| age >= SETTLED) {
                self.entries.insert(path, Entry { size, changed_ns, sha256 });
            }
        }
    }

    pub(crate) fn save(&mut self) {
        self.entries.retain(|path, _| path.exists());
        if let Some(file) = &self.file {
            let text = serde_json::to_string_pretty(&self.entries).expect("hashes are plain data");
            // Without it, files are hashed again: no reason to fail.
            let _ = write_atomic(file, text + "\n");
        }
    }
}

/// Size in bytes and time of change of a single file.
fn stamp(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    let changed = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some((metadata.len(), u64::try_from(changed.as_nanos()).ok()?))
}
