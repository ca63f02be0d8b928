//! The captions that a run starts from, and what is kept of them when captions are changed in place.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use vodka_stage::{Hasher, Input};

use crate::{Caption, Picture, Result, encoding::decode, pictures, sidecar::read_bytes};

/// A picture and the caption that a run starts from.
#[derive(Debug)]
pub(crate) struct Original {
    pub(crate) picture: Picture,
    /// The caption file's content, if there is one.
    pub(crate) bytes: Option<Vec<u8>>,
    /// Whether it comes from a `.txt.orig` that an earlier run in place has kept.
    pub(crate) kept: bool,
}

impl Original {
    /// Reads the captions of all pictures in `root`; where `kept` is set, originals that a run in place has kept stand
    /// for the captions beside them.
    pub(crate) fn read_all(root: &Path, kept: bool) -> Result<Vec<Self>> {
        let read = |picture: Picture| {
            let caption = root.join(&picture.caption);
            if kept && let Some(bytes) = read_bytes(&original_path(&caption))? {
                return Ok(Self { picture, bytes: Some(bytes), kept: true });
            }
            let bytes = read_bytes(&caption)?;
            Ok(Self { picture, bytes, kept: false })
        };
        pictures(root)?.into_iter().map(read).collect()
    }

    /// The caption's text, if there is a caption.
    pub(crate) fn caption(&self, root: &Path) -> Result<Option<Caption>> {
        let Some(bytes) = &self.bytes else { return Ok(None) };
        let caption = root.join(&self.picture.caption);
        let path = if self.kept { original_path(&caption) } else { caption };
        Ok(Some(Caption::new(&decode(&path, bytes, None)?.text)))
    }

    /// The names of the pictures and the bytes of their captions, as an input of a run. In place, a missing caption and
    /// an empty one are the same: the original that is kept of either is empty.
    pub(crate) fn input(root: &Path, originals: &[Self], in_place: bool) -> Input {
        let mut hasher = Hasher::default();
        for Self { picture, bytes, .. } in originals {
            let there = bytes.as_ref().is_some_and(|bytes| !(in_place && bytes.is_empty()));
            let bytes = bytes.as_deref().unwrap_or_default();
            hasher.piece(&picture.image).piece([u8::from(there)]).piece(bytes);
        }
        Input { path: root.to_path_buf(), sha256: hasher.finish() }
    }
}

/// Where the original of a caption is kept: `a.txt.orig` for `a.txt`.
pub(crate) fn original_path(caption: &Path) -> PathBuf {
    let mut name = OsString::from(caption);
    name.push(".orig");
    name.into()
}
