//! Room on the disk, asked for before it is needed.

use std::path::Path;

use crate::{Error, Result};

/// The bytes that may still be written where `path` is, or will be; `None` where the system does not tell.
pub fn free_space(path: &Path) -> Option<u64> {
    free(there(path))
}

/// The disk that `path` is on, or will be; `None` where the system does not tell.
pub fn disk_of(path: &Path) -> Option<u64> {
    disk(there(path))
}

/// What is not there yet will be on the disk of the folder above it.
fn there(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."))
}

#[cfg(unix)]
fn disk(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    path.metadata().map(|metadata| metadata.dev()).ok()
}

#[cfg(not(unix))]
fn disk(_: &Path) -> Option<u64> {
    None
}

#[cfg(unix)]
fn free(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(not(unix))]
fn free(_: &Path) -> Option<u64> {
    None
}

/// Makes sure that `needed` bytes can be written to the folder `path`; that `for_what` needs them.
///
/// # Errors
/// [`Error::NoSpace`].
pub fn check_space(path: &Path, needed: u64, for_what: &'static str) -> Result<()> {
    match free_space(path) {
        Some(free) if free < needed => {
            Err(Error::NoSpace { path: path.to_path_buf(), needed, free, for_what })
        }
        _ => Ok(()),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_told_with_both_sizes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("not/there/yet");
        assert!(free_space(&path).unwrap() > 0);
        assert_eq!(disk_of(&path), disk_of(dir.path()));
        assert_ne!(disk_of(&path), disk_of(Path::new("/proc")), "which is no disk");
        check_space(&path, 1, "a file").unwrap();
        let error = check_space(&path, u64::MAX, "a file").unwrap_err().to_string();
        assert!(
            error.contains("not/there/yet` has ") && error.contains(" MB free, a file needs "),
            "{error}"
        );
    }
}
