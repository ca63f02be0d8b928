//! What can be wrong with a picture or a folder of pictures.

use std::{error::Error as StdError, io, path::PathBuf};

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure, with the file or folder it happened to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A folder, or something in it, cannot be listed.
    #[error("cannot list `{path}`")]
    List {
        /// The folder or the entry.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A file is no picture that can be read.
    #[error("cannot read the picture `{path}`")]
    Picture {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Fault,
    },
}

/// What is wrong with one picture.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The file cannot be opened or read.
    #[error("the file cannot be read")]
    Read {
        /// The operating system's reason.
        source: io::Error,
    },
    /// The file has no content.
    #[error("the file is empty")]
    Empty,
    /// The content is of no known format, whatever the name says.
    #[error("expected PNG, JPEG, WebP, GIF or BMP, found {found}")]
    NotAPicture {
        /// The first bytes, as text where they are text.
        found: String,
    },
    /// A width or a height of 0, which a GIF can say.
    #[error("expected at least 1 x 1 pixels, found {width} x {height}")]
    NoPixels {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// More pixels than the limit: a mistake or a decompression bomb.
    #[error("expected at most {max_pixels} pixels, found {width} x {height}")]
    TooLarge {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The limit, [`crate::DecodeOptions::max_pixels`].
        max_pixels: u64,
    },
    /// A side beyond the limit, which no camera and no scanner makes.
    #[error("expected at most {max_side_px} pixels a side, found {width} x {height}")]
    TooLong {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The limit, [`crate::MAX_SIDE_PX`].
        max_side_px: u32,
    },
    /// The file ends before the picture does.
    #[error("the {format} file is truncated")]
    Truncated {
        /// The format's name.
        format: &'static str,
    },
    /// The content contradicts its format, or uses a part of it that is not supported.
    #[error("the {format} file is damaged or of an unsupported kind")]
    Broken {
        /// The format's name.
        format: &'static str,
        /// What the decoder says.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The decoder gave up in the worst way, by a panic.
    #[error("the decoder fails on the file")]
    Panic,
}

impl Fault {
    /// The fault with its causes, in one line: what a list of skipped pictures says.
    pub fn reason(&self) -> String {
        vodka_stage::explain(self).replace(['\n', '\r'], " ")
    }
}
