//! Changes of files, one at a time, so that a test can let the power fail after any of them.

use std::{
    fs::{self, File, FileTimes, OpenOptions},
    io::{self, Write},
    path::Path,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

use vodka_stage::{AtomicFile, Error, create_dir, sync_folder_of};

use crate::Result;

/// The disk; in tests one that fails for good after so many changes.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    changes_left: Option<AtomicU64>,
}

impl Disk {
    /// A disk on which `changes` changes succeed, and then none: whatever is half done stays so.
    #[cfg(test)]
    pub(crate) fn failing_after(changes: u64) -> Self {
        Self { changes_left: Some(AtomicU64::new(changes)) }
    }

    /// Writes a file, whole or not at all.
    pub(crate) fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let mut file = AtomicFile::create(path)?;
        file.write_all(bytes).map_err(failed(path))?;
        if let Err(error) = self.change(path) {
            // A crash cleans up nothing.
            std::mem::forget(file);
            return Err(error);
        }
        // Whoever may not read a caption may not read it with tags either.
        let permissions = fs::metadata(path).map(|found| found.permissions()).ok();
        file.commit()?;
        if let Some(permissions) = permissions {
            fs::set_permissions(path, permissions).map_err(failed(path))?;
        }
        self.change(path)
    }

    /// Keeps the file `path` as `original` too: the file itself, with its times and permissions, where file systems have
    /// links; else a copy of it. Nothing may write to it then but by putting another file in its place, as [`Disk::write`] does.
    pub(crate) fn keep(&self, path: &Path, bytes: &[u8], original: &Path) -> Result<()> {
        self.change(original)?;
        if fs::hard_link(path, original).is_ok() {
            return Ok(sync_folder_of(original).map_err(failed(original))?);
        }
        self.write(original, bytes)?;
        let found = fs::metadata(path).map_err(failed(original))?;
        let times = FileTimes::new().set_modified(found.modified().map_err(failed(original))?);
        let set = |file: File| file.set_times(times).and_then(|()| file.set_permissions(found.permissions()));
        Ok(File::options().write(true).open(original).and_then(set).map_err(failed(original))?)
    }

    /// Adds lines to the end of a file, and returns when the disk has them.
    pub(crate) fn append(&self, path: &Path, lines: &str) -> Result<()> {
        if let Some(folder) = path.parent() {
            create_dir(folder)?;
        }
        let append = |bytes: &[u8]| {
            let mut file = OpenOptions::new().create(true).append(true).open(path)?;
            file.write_all(bytes)?;
            file.sync_data()
        };
        if let Err(error) = self.change(path) {
            append(&lines.as_bytes()[..lines.len() / 2]).map_err(failed(path))?;
            return Err(error);
        }
        Ok(append(lines.as_bytes()).map_err(failed(path))?)
    }

    /// Puts one file in the place of another.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.change(to)?;
        fs::rename(from, to).map_err(failed(to))?;
        // Of two names for one file both would stay.
        match fs::remove_file(from) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(from)(error).into()),
            _ => Ok(()),
        }
    }

    /// Removes a file; one that is not there is fine.
    pub(crate) fn remove(&self, path: &Path) -> Result<()> {
        self.change(path)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path)(error).into()),
            _ => Ok(()),
        }
    }

    /// Removes a file if there is one.
    pub(crate) fn remove_there(&self, path: &Path) -> Result<()> {
        if path.is_file() { self.remove(path) } else { Ok(()) }
    }

    fn change(&self, path: &Path) -> Result<()> {
        let Some(left) = &self.changes_left else { return Ok(()) };
        match left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)) {
            Ok(_) => Ok(()),
            Err(_) => Err(failed(path)(io::Error::other("the power has failed")).into()),
        }
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    |source| Error::Write { path: path.to_path_buf(), source }
}
