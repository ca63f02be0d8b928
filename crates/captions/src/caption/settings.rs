//! Captions as a user wants them, and as they are checked.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use vodka_stage::RunKey;

use super::{check_apart, check_min_score, decimal, prepare::Read};
use crate::{
    CaptionFormat, CaptionSource, Error, Joining, MARKER, Position, Result, sidecar::is_line_break,
    template::Template,
};

/// Captions as a user wants them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptionConfig {
    /// The tag table: Parquet or CSV.
    pub tags: PathBuf,
    /// The selection: which tags may be used.
    pub selection: PathBuf,
    /// The folder of pictures, with their captions.
    pub images: PathBuf,
    /// The folder to write captions to, in which they lie as the pictures do in theirs.
    #[serde(default)]
    pub output: Option<PathBuf>,
    /// Changes the captions where they are instead; each original is kept once as `<name>.orig`.
    #[serde(default)]
    pub in_place: bool,
    /// The most tags that a caption gets.
    #[serde(default = "three")]
    pub max_tags: usize,
    /// The lowest score of a tag worth writing, 0 to 1.
    #[serde(default = "three_tenths")]
    pub min_score: f32,
    /// Where the tags go.
    #[serde(default)]
    pub position: Position,
    /// What happens to pictures without a caption.
    #[serde(default)]
    pub missing: Missing,
    /// Where the captions are read.
    #[serde(default)]
    pub source: CaptionSource,
    /// How captions are written to a folder; without it as `.txt`. In place they stay as they are kept.
    #[serde(default)]
    pub format: Option<CaptionFormat>,
    /// How a caption is put together.
    #[serde(default)]
    pub style: Style,
    /// Lists of pictures to leave out ([`crate::query::read_exclusions`]): they get no caption, and in place their originals
    /// are put back.
    #[serde(default)]
    pub without: Vec<PathBuf>,
}

/// How a caption is put together, and from which scores on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Style {
    /// What is between tags, and between them and the caption.
    pub separator: String,
    /// What captions have where the tags are to be, with [`Position::Marker`].
    pub marker: String,
    /// Whether `(`, `)` and `\` of tags get a `\` before them.
    pub escape: bool,
    /// What every caption begins with, as it is spelled here; not counted among the tags.
    pub fixed: Vec<String>,
    /// A template that says the whole caption ([`crate::Facts`]).
    pub template: Option<String>,
    /// Minimum scores of some tags; they go before the column `threshold` of the selection.
    pub thresholds: BTreeMap<String, f32>,
    /// Minimum scores of some categories (`general`, `character`, ...); for tags without one of their own.
    pub category_thresholds: BTreeMap<String, f32>,
}

impl Default for Style {
    fn default() -> Self {
        Self {
            separator: ", ".to_owned(),
            marker: MARKER.to_owned(),
            escape: false,
            fixed: Vec::new(),
            template: None,
            thresholds: BTreeMap::new(),
            category_thresholds: BTreeMap::new(),
        }
    }
}

/// What happens to a picture whose caption is missing or empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// It gets none, and is listed.
    #[default]
    Skip,
    /// It gets a caption of tags alone; without a tag it is skipped.
    Empty,
    /// Nothing is written for any picture.
    Error,
}

/// Where captions are written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Destination {
    /// Into a folder of their own.
    Folder(PathBuf),
    /// Where they are.
    InPlace,
}

/// Captions whose settings have been checked; nothing has been read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CaptionPlan {
    /// The tag table.
    pub tags: PathBuf,
    /// The selection.
    pub selection: PathBuf,
    /// The folder of pictures.
    pub images: PathBuf,
    /// Where captions are written.
    pub destination: Destination,
    /// The most tags that a caption gets.
    pub max_tags: usize,
    /// The lowest score of a tag worth writing.
    pub min_score: f32,
    /// Where the tags go.
    pub position: Position,
    /// What happens to pictures without a caption.
    pub missing: Missing,
    /// Where the captions are read.
    pub source: CaptionSource,
    /// How they are written to a folder; none in place.
    pub format: Option<CaptionFormat>,
    /// How a caption is put together.
    pub style: Style,
    /// Lists of pictures to leave out.
    pub without: Vec<PathBuf>,
}

fn three() -> usize {
    3
}

fn three_tenths() -> f32 {
    0.3
}

impl CaptionConfig {
    /// Checks what can be checked without reading.
    ///
    /// # Errors
    /// A score outside 0 to 1; both an output folder and `in_place`, or neither; an output folder in the folder of
    /// pictures, or the other way round; a format in place, or file names; a source or a style that cannot be.
    pub fn plan(&self) -> Result<CaptionPlan> {
        check_min_score(self.min_score)?;
        let destination = match (&self.output, self.in_place) {
            (Some(folder), false) => Destination::Folder(folder.clone()),
            (None, true) => Destination::InPlace,
            (Some(_), true) => return Err(Error::Destination { found: "both" }),
            (None, false) => return Err(Error::Destination { found: "neither" }),
        };
        self.source.check()?;
        match &destination {
            Destination::Folder(output) => {
                check_apart(output, &self.images)?;
                self.source.folder.as_ref().map_or(Ok(()), |folder| check_apart(output, folder))?;
            }
            Destination::InPlace => self.check_in_place()?,
        }
        self.style.check(self.position)?;
        let format = (!self.in_place).then(|| self.format.unwrap_or_default());
        let Self { tags, selection, images, max_tags, min_score, position, missing, source, .. } =
            self.clone();
        let (style, without) = (self.style.clone(), self.without.clone());
        Ok(CaptionPlan {
            tags,
            selection,
            images,
            destination,
            max_tags,
            min_score,
            position,
            missing,
            source,
            format,
            style,
            without,
        })
    }

    fn check_in_place(&self) -> Result<()> {
        if let Some(folder) = &self.source.folder {
            return Err(Error::Setting {
                setting: "source folder",
                expected: "none: in place captions are changed where they are".to_owned(),
                found: folder.display().to_string(),
            });
        }
        let wrong = |expected: &str, found: &dyn ToString| {
            Err(Error::Setting { setting: "format", expected: expected.to_owned(), found: found.to_string() })
        };
        if !self.source.auto && self.source.format == CaptionFormat::FileName {
            return wrong(
                "captions in files: in place pictures are not renamed, for the tag table knows them by name",
                &self.source.format,
            );
        }
        match self.format {
            Some(format) if self.source.auto || format != self.source.format => {
                wrong("none: in place captions stay in the format that they are in", &format)
            }
            _ => Ok(()),
        }
    }
}

impl Style {
    fn check(&self, position: Position) -> Result<()> {
        let wrong = |setting, expected: &str, found: &str| {
            Err(Error::Setting { setting, expected: expected.to_owned(), found: found.to_owned() })
        };
        let on_one_line = |text: &str| !text.contains(is_line_break);
        if !on_one_line(&self.separator) || self.separator.is_empty() {
            return wrong("separator", "text on one line", &self.separator);
        }
        if !on_one_line(&self.marker) || self.marker.trim().is_empty() {
            return wrong("marker", "text on one line", &self.marker);
        }
        if let Some(tag) = self.fixed.iter().find(|tag| tag.trim().is_empty() || !on_one_line(tag)) {
            return wrong("fixed", "text on one line", tag);
        }
        if let Some(template) = &self.template {
            if position != Position::Prepend {
                return wrong(
                    "position",
                    "none, since a template says where the tags go",
                    &format!("{position:?}"),
                );
            }
            Template::new(template)?;
        }
        let scores = self.thresholds.values().chain(self.category_thresholds.values());
        match scores.copied().find(|score| !(0.0..=1.0).contains(score)) {
            Some(found) => Err(Error::Range {
                setting: "threshold",
                found: decimal(found),
                expected: "a score from 0 to 1",
            }),
            None => Ok(()),
        }
    }
}

impl CaptionPlan {
    /// All that the captions depend on: settings, tag table, selection, and the original captions.
    pub fn key(&self) -> Result<RunKey> {
        Read::new(self)?.key(self)
    }

    /// The folder that the captions are in when the run is through.
    pub fn output(&self) -> &Path {
        match &self.destination {
            Destination::Folder(folder) => folder,
            Destination::InPlace => &self.images,
        }
    }

    pub(super) fn in_place(&self) -> bool {
        self.destination == Destination::InPlace
    }

    pub(super) fn joining(&self) -> Joining<'_> {
        let Style { separator, marker, escape, fixed, .. } = &self.style;
        Joining { position: self.position, separator, marker, escape: *escape, fixed }
    }
}
