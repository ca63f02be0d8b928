//! The pictures of a folder with the captions that they have, in whichever format.

use std::{collections::BTreeMap, path::Path};

use vodka_stage::{ContentHash, Hasher, Input};

use crate::{Caption, CaptionSource, Picture, Result, gather, pictures, written::Written};

/// Pictures and their captions.
#[derive(Debug)]
pub(crate) struct Captioned {
    /// In order of name.
    pub pictures: Vec<Picture>,
    /// By picture, for those that have one.
    pub captions: BTreeMap<String, Caption>,
    hash: ContentHash,
}

impl Captioned {
    /// Reads the captions of all pictures in `root` and below, as they were before captioning in place put tags into them.
    ///
    /// # Errors
    /// No pictures; two that share a caption; a caption that cannot be read, or two that differ.
    pub(crate) fn originals(root: &Path) -> Result<Self> {
        Self::gathered(root, pictures(root)?, Some(&Written::read(root)?))
    }

    /// Reads the captions of these pictures as they are.
    pub(crate) fn of(root: &Path, pictures: Vec<Picture>) -> Result<Self> {
        Self::gathered(root, pictures, None)
    }

    fn gathered(root: &Path, pictures: Vec<Picture>, kept: Option<&Written>) -> Result<Self> {
        let source = CaptionSource { auto: true, ..CaptionSource::default() };
        let gathered = gather(&source, root, &pictures, kept)?;
        let captions = gathered.set.by_image.into_iter().map(|(image, found)| (image, found.caption));
        Ok(Self { pictures, captions: captions.collect(), hash: gathered.hash })
    }

    /// The names of the pictures and the content of their captions, as an input of a run.
    pub(crate) fn input(&self, root: &Path) -> Input {
        let mut hasher = Hasher::default();
        for Picture { image, .. } in &self.pictures {
            hasher.piece(image);
        }
        hasher.piece(self.hash.to_string());
        Input { path: root.to_path_buf(), sha256: hasher.finish() }
    }
}
