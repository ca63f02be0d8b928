//! Whose a file is that a run adds to: one of another run in the same folder is put aside, and not added to.

use std::{
    fs,
    path::{Path, PathBuf},
};

use vodka_stage::{ContentHash, create_dir};

use crate::Result;

/// Makes way at `path` for the file of the run with this key: that of another run goes to where `aside` says for the
/// other's key, and that of this run comes back from there. `key_of` tells whose a file is by what it holds.
///
/// # Errors
/// A file cannot be moved.
pub(crate) fn claim(
    path: &Path,
    key: ContentHash,
    key_of: impl Fn(&[u8]) -> Option<String>,
    aside: impl Fn(&str) -> PathBuf,
) -> Result<()> {
    let move_to = |from: &Path, to: &Path| {
        create_dir(to.parent().unwrap_or(Path::new("")))?;
        fs::rename(from, to).map_err(|source| vodka_stage::Error::Write { path: to.to_path_buf(), source })
    };
    let key = key.to_string();
    if let Ok(bytes) = fs::read(path) {
        match key_of(&bytes) {
            Some(found) if found == key => return Ok(()),
            // Nothing is lost with it.
            _ if bytes.is_empty() => {}
            found => move_to(path, &aside(found.as_deref().map_or("unknown", short)))?,
        }
    }
    let before = aside(short(&key));
    if fs::read(&before).is_ok_and(|bytes| key_of(&bytes).as_ref() == Some(&key)) {
        move_to(&before, path)?;
    }
    Ok(())
}

/// The first eight letters of a key, as in the names of folders.
fn short(key: &str) -> &str {
    key.get(..8).unwrap_or(key)
}
