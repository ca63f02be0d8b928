//! What can go wrong between a stage and the disk.

use std::{io, path::PathBuf};

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed file operation, with the file it failed on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Opening or reading failed.
    #[error("cannot read `{path}`")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// Creating, writing, syncing or renaming failed; the target is as it was before.
    #[error("cannot write `{path}`")]
    Write {
        /// The file that was to be written.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A folder cannot be made or written to.
    #[error("cannot create the folder `{path}`")]
    CreateDir {
        /// The folder.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// An entry that was in a journal is not there any more.
    #[error("`{path}` was changed while it was in use: no entry at byte {place}")]
    Journal {
        /// The journal.
        path: PathBuf,
        /// Where the entry was.
        place: u64,
    },
    /// Another process writes the same output.
    #[error("`{path}` is held by another run: wait for it, or end it")]
    Busy {
        /// The journal of that run, or the folder.
        path: PathBuf,
    },
    /// An output's place is taken by a file that no run has left as it is.
    #[error("`{path}` is in the way: no run has left it as it is; move or delete it, or choose another name")]
    InTheWay {
        /// The file.
        path: PathBuf,
    },
    /// The disk has not enough room for what is to be written.
    #[error("the disk of `{path}` has {} MB free, {for_what} needs {} MB", free >> 20, needed.div_ceil(1 << 20))]
    NoSpace {
        /// The folder that was to be written to.
        path: PathBuf,
        /// How many bytes are needed.
        needed: u64,
        /// How many there are.
        free: u64,
        /// What needs them.
        for_what: &'static str,
    },
    /// A run record or another JSON file of ours does not parse.
    #[error("`{path}` is not a valid run record")]
    Record {
        /// The file.
        path: PathBuf,
        /// What the parser says, with line and column.
        source: serde_json::Error,
    },
}

impl Error {
    pub(crate) fn read(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Read { path, source }
    }

    pub(crate) fn write(path: impl Into<PathBuf>) -> impl Fn(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Write { path: path.clone(), source }
    }
}
