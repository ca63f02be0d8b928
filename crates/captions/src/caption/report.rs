//! What captioning tells, while it runs and when it is through.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use vodka_prompt::MAX_TOKENS;
use vodka_stage::{Outcome, Report};

use super::documents::Document;
use crate::{Double, Guessed, filter::lines};

/// What captioning tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaptionEvent {
    /// Everything has been read; this many pictures will get a caption.
    Started {
        /// How many.
        images: u64,
    },
    /// A picture gets no caption.
    Skipped(Skipped),
    /// Captions have been written.
    Captioned {
        /// How many have been so far.
        images: u64,
    },
}

/// What captioning has done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaptionReport {
    /// How it ended.
    pub outcome: Outcome,
    /// The folder with the captions.
    pub output: PathBuf,
    /// How many captions there are now.
    pub captions: u64,
    /// How many of them got at least one tag.
    pub with_tags: u64,
    /// Pictures that got no caption, and why.
    pub skipped: Vec<Skipped>,
    /// How many pictures a list leaves out.
    #[serde(default)]
    pub excluded: usize,
    /// Pictures that the tag table does not name; their captions are as they were.
    pub untagged: Vec<String>,
    /// How many pictures the tag table names that are not in the folder.
    pub absent: usize,
    /// Pictures whose caption had several lines, now joined by a space.
    pub joined: Vec<String>,
    /// Pictures whose caption has more than 75 CLIP tokens now; trainers cut off the rest.
    pub too_long: Vec<TooLong>,
    /// Files whose encoding had to be guessed.
    pub guessed: Vec<Guessed>,
    /// What tables of captions name that is no picture of the folder.
    pub unknown: Vec<String>,
    /// Tags that pictures have more than once in the table; the highest score counted.
    pub doubles: Vec<Double>,
    /// What the user should know about the tag table: a minimum score below its floor, one from another model.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// A picture whose caption is longer than trainers take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TooLong {
    /// The picture.
    pub image: String,
    /// How many CLIP tokens its caption has.
    pub tokens: usize,
}

/// A picture that got no caption.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// The picture.
    pub image: String,
    /// Why.
    pub reason: String,
}

impl Report for CaptionReport {
    fn outcome(&self) -> Outcome {
        self.outcome.with_skips(!self.skipped.is_empty() || !self.untagged.is_empty())
    }
}

impl fmt::Display for CaptionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let output = self.output.display();
        let Self { captions, with_tags, absent, .. } = self;
        match self.outcome {
            Outcome::Unchanged => write!(f, "the captions in `{output}` are up to date ({captions})")?,
            Outcome::Interrupted => write!(f, "stopped after {captions} captions in `{output}`")?,
            Outcome::Done | Outcome::Skipped => {
                write!(f, "wrote {captions} captions to `{output}`, {with_tags} of them with tags")?;
            }
        }
        let skipped =
            self.skipped.iter().map(|Skipped { image, reason }| format!("skipped `{image}`: {reason}"));
        lines(f, skipped)?;
        for (images, what) in [
            (&self.untagged, "not in the tag table, caption as it was"),
            (&self.joined, "several lines joined"),
        ] {
            lines(f, images.iter().map(|image| format!("`{image}`: {what}")))?;
        }
        let long = self.too_long.iter().map(|TooLong { image, tokens }| {
            format!("`{image}`: {tokens} tokens, of which trainers take {MAX_TOKENS}")
        });
        lines(f, long)?;
        let guessed = self.guessed.iter().map(|Guessed { file, encoding }| {
            format!("`{}`: not UTF-8, taken for {encoding}", file.display())
        });
        lines(f, guessed)?;
        let unknown =
            self.unknown.iter().map(|key| format!("`{key}`: a caption for no picture in the folder"));
        lines(f, unknown)?;
        for Double { tag, spellings, images } in &self.doubles {
            let spellings: Vec<_> = spellings.iter().map(|name| format!("{name:?}")).collect();
            write!(f, "\n{images} pictures have `{tag}` more than once ({})", spellings.join(", "))?;
        }
        if self.excluded > 0 {
            write!(f, "\n{} pictures are left out, as listed", self.excluded)?;
        }
        if *absent > 0 {
            write!(f, "\n{absent} pictures of the tag table are not in the folder")?;
        }
        self.warnings.iter().try_for_each(|warning| write!(f, "\nwarning: {warning}"))
    }
}

impl CaptionReport {
    /// Before anything has been read.
    pub(super) fn empty(output: &Path) -> Self {
        Self {
            outcome: Outcome::Done,
            output: output.to_path_buf(),
            captions: 0,
            with_tags: 0,
            skipped: Vec::new(),
            excluded: 0,
            untagged: Vec::new(),
            absent: 0,
            joined: Vec::new(),
            too_long: Vec::new(),
            guessed: Vec::new(),
            unknown: Vec::new(),
            doubles: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Tells how many captions there are, once these files are as they should be.
    pub(super) fn count(&mut self, documents: &[Document]) {
        self.captions = documents.iter().map(Document::count).sum();
        let wants = documents.iter().flat_map(|document| &document.wants);
        self.with_tags = wants.filter(|want| want.has_tags).count() as u64;
    }

    /// Tells by the outcome whether anything was left out.
    pub(super) fn settle(&mut self) {
        self.outcome = Report::outcome(self);
    }
}
