//! All that the pages of a report show, as data: `data.json`.

use serde::{Deserialize, Serialize};

use super::{CaptionStatistics, Group, Problem, thumbnails::Thumbnail};
use crate::analysis::{Analysis, TagAnalysis};

/// What `data.json` holds. The pages are made of it and of nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReportData {
    /// The score from which on a tag counts as good enough to write.
    pub min_score: f32,
    /// How many pictures there are in the folder.
    pub images: u64,
    /// How many of them the tag table names.
    pub tagged: u64,
    /// The groups, with the selected tags in each.
    pub groups: Vec<Group>,
    /// The captions as they are.
    pub captions: CaptionStatistics,
    /// How many captions have 1 to 5 tokens, 6 to 10, and so on to 71 to 75, and last how many have more.
    pub caption_tokens: Vec<u64>,
    /// The selected tags, the most frequent first: those of [`Analysis::tags`], in another order.
    pub tags: Vec<TagData>,
    /// The numbers.
    pub analysis: Analysis,
    /// Pictures that could not be shown or are missing.
    pub problems: Vec<Problem>,
    /// Pictures of the folder that the tag table does not name.
    pub untagged: Vec<String>,
    /// Selected tags that no picture has at any score.
    pub unused: Vec<String>,
    /// What the user should know about the inputs.
    pub warnings: Vec<String>,
}

/// A selected tag: what its page shows besides its [`TagAnalysis`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TagData {
    /// The canonical name.
    pub tag: String,
    /// Its place in [`Analysis::tags`].
    pub place: usize,
    /// Its page is `tags/SLUG.html`, its chart `charts/tag-SLUG.svg`.
    pub slug: String,
    /// How often it stands in the data the tagger was trained on, where the selection tells.
    pub count: Option<u64>,
    /// How many pictures have it at the minimum score or above.
    pub images_at_min_score: u64,
    /// The buckets of its scores that are not empty, the highest first.
    pub buckets: Vec<BucketData>,
}

/// A bucket of scores: 5 % wide, with its lower bound and without its upper one; the highest holds 1 as well.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BucketData {
    /// The lower bound in percent.
    pub from_percent: u32,
    /// The upper bound in percent.
    pub to_percent: u32,
    /// How many pictures there are.
    pub images: u64,
    /// Those that are shown, the highest score first.
    pub pictures: Vec<PictureData>,
}

/// A picture in a gallery.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PictureData {
    /// The picture's name in the tag table.
    pub image: String,
    /// Its score for the tag, 0 to 1.
    pub score: f32,
    /// The link to it, from the report's folder.
    pub link: String,
    /// Its thumbnail, or none where there is a problem.
    pub thumbnail: Option<Thumbnail>,
    /// Why it cannot be shown.
    pub problem: Option<String>,
}

impl ReportData {
    /// The numbers of a tag.
    pub(super) fn analysis_of(&self, tag: &TagData) -> &TagAnalysis {
        &self.analysis.tags[tag.place]
    }
}
