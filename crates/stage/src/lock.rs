//! One run at a time in a folder, one writer at a time of a file.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
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
        match try_lock(&opened) {
            true => Ok(Self { _folder: Some(opened) }),
            false => Err(Error::Busy { path: folder.to_path_buf() }),
        }
    }
}

/// Takes the lock of an open file, which it gives back when it is closed; false where another process has it. File systems
/// without locks give it to everybody.
pub fn try_lock(file: &File) -> bool {
    !matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

/// What becomes of a file that another holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// There is none to be had.
    IsNone,
    /// It is waited for.
    IsAwaited,
}

/// The file at `path`, made where it is missing, for one holder at a time. `None` where another has it and is not waited for.
pub(crate) fn open_alone(path: &Path, held: Held) -> io::Result<Option<File>> {
    loop {
        let file = OpenOptions::new().create(true).read(true).write(true).truncate(false).open(path)?;
        match held {
            Held::IsNone if !try_lock(&file) => return Ok(None),
            Held::IsNone => {}
            // A file system without locks gives it to everybody.
            Held::IsAwaited => drop(file.lock()),
        }
        // Whoever had it may have put another file in its place meanwhile, or none.
        if is_at(&file, path)? {
            return Ok(Some(file));
        }
    }
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;

    let here = file.metadata()?;
    Ok(fs::metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == (here.dev(), here.ino())))
}

/// Elsewhere a name says it well enough.
#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> io::Result<bool> {
    fs::exists(path)
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
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
    }
}
