//! One run at a time in a folder.

use std::{
    fs::{File, TryLockError},
    io,
    path::Path,
};

use crate::{Error, Result};

/// A folder that no other run may change meanwhile, for as long as this lives.
///
/// The lock is on the folder itself and leaves no file behind. Systems that lock no folders have none.
#[derive(Debug)]
pub struct FolderLock {
    _folder: Option<File>,
}

impl FolderLock {
    /// Takes the folder; one that is not there is nobody's.
    ///
    /// # Errors
    /// Another run has it: [`Error::Busy`].
    pub fn take(folder: &Path) -> Result<Self> {
        let opened = match File::open(folder) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self { _folder: None }),
            Err(_) if cfg!(not(unix)) => return Ok(Self { _folder: None }),
            Err(error) => return Err(Error::read(folder)(error)),
        };
        match opened.try_lock() {
            Ok(()) => Ok(Self { _folder: Some(opened) }),
            Err(TryLockError::WouldBlock) => Err(Error::Busy { path: folder.to_path_buf() }),
            // A file system without locks.
            Err(TryLockError::Error(_)) => Ok(Self { _folder: None }),
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_one_runs_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let held = FolderLock::take(dir.path()).unwrap();
        let error = FolderLock::take(dir.path()).unwrap_err();
        assert!(error.to_string().ends_with("is held by another run: wait for it, or end it"), "{error}");
        drop(held);
        FolderLock::take(dir.path()).unwrap();
        FolderLock::take(&dir.path().join("none")).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
    }
}
