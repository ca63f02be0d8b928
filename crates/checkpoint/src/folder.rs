//! A folder that is there whole or not at all.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use vodka_stage::sync_folder_of;

use crate::{Error, Result};

/// A folder being written beside its target, which [`AtomicFolder::commit`] puts in the target's place.
///
/// Dropped without a commit it vanishes. A crash leaves at most `.<name>.partial` behind, which the next writer of
/// the same target replaces; between the two renames of a commit over an older folder, that one is `.<name>.old`.
#[derive(Debug)]
pub(crate) struct AtomicFolder {
    target: PathBuf,
    partial: PathBuf,
}

impl AtomicFolder {
    pub(crate) fn create(target: &Path) -> Result<Self> {
        let partial = beside(target, "partial");
        remove(&partial).map_err(Error::write(target))?;
        vodka_stage::create_dir(&partial)?;
        Ok(Self { target: target.to_path_buf(), partial })
    }

    /// Where to write.
    pub(crate) fn path(&self) -> &Path {
        &self.partial
    }

    /// Renames; what is in the folder has been synced by whoever wrote it.
    pub(crate) fn commit(self) -> Result<()> {
        let rename = || -> io::Result<()> {
            let old = beside(&self.target, "old");
            remove(&old)?;
            if self.target.exists() {
                fs::rename(&self.target, &old)?;
            }
            if let Err(error) = fs::rename(&self.partial, &self.target) {
                // What was there stays there, if it can.
                let _ = fs::rename(&old, &self.target);
                return Err(error);
            }
            sync_folder_of(&self.target)?;
            remove(&old)
        };
        rename().map_err(Error::write(&self.target))
    }
}

impl Drop for AtomicFolder {
    fn drop(&mut self) {
        // After a commit the name is gone; before it, nothing of value is lost.
        let _ = fs::remove_dir_all(&self.partial);
    }
}

fn beside(target: &Path, what: &str) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.{what}"))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
