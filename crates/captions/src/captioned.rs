//! The pictures of a folder with the captions that they have, in whichever format.

use std::{collections::BTreeMap, path::Path};

use vodka_stage::{ContentHash, Hasher, Input};

use crate::{
    Caption, CaptionSet, CaptionSource, Guessed, Picture, Result, gather, pictures, table::list,
    written::Written,
};

/// Pictures and their captions.
#[derive(Debug)]
pub(crate) struct Captioned {
    /// In order of name.
    pub pictures: Vec<Picture>,
    /// By picture, for those that have one.
    pub captions: BTreeMap<String, Caption>,
    /// What the user should know about how they were read.
    pub warnings: Vec<String>,
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
        let warnings = warnings(&gathered.set);
        let captions = gathered.set.by_image.into_iter().map(|(image, found)| (image, found.caption));
        Ok(Self { pictures, captions: captions.collect(), warnings, hash: gathered.hash })
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

/// What the user should know about how captions were read: whose encoding is a guess, and which are of no picture.
pub(crate) fn warnings(set: &CaptionSet) -> Vec<String> {
    let guessed = |Guessed { file, encoding }: &Guessed| format!("{} as {encoding}", file.display());
    let guessed: Vec<_> = set.guessed.iter().map(guessed).collect();
    let of = |what: &str, names: Vec<&str>| {
        let count = names.len();
        list(names).map(|names| format!("{count} {what}: {names}"))
    };
    let guessed = of(
        "files of captions are not UTF-8 and were read by a guess of their encoding",
        guessed.iter().map(String::as_str).collect(),
    );
    let unknown =
        of("captions are of no picture in the folder", set.unknown.iter().map(String::as_str).collect());
    [guessed, unknown].into_iter().flatten().collect()
}
