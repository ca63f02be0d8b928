//! A file that grows by what is appended to it.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::PathBuf,
};

use vodka_stage::write_atomic;

use crate::{Error, Result};

/// A file that is being written, piece by piece.
#[derive(Debug)]
pub(crate) struct Growing {
    path: PathBuf,
    file: File,
}

impl Growing {
    /// Starts the file with this content, whatever it held before.
    pub fn start(path: PathBuf, content: &[u8]) -> Result<Self> {
        write_atomic(&path, content)?;
        let opened = OpenOptions::new().append(true).open(&path);
        let file = opened.map_err(|source| vodka_stage::Error::Write { path: path.clone(), source })?;
        Ok(Self { path, file })
    }

    /// Adds a piece.
    pub fn append(&mut self, piece: &[u8]) -> Result<()> {
        self.file.write_all(piece).map_err(|source| self.error(source))
    }

    /// Makes what is written survive a power cut.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|source| self.error(source))
    }

    fn error(&self, source: std::io::Error) -> Error {
        Error::Stage(vodka_stage::Error::Write { path: self.path.clone(), source })
    }
}
