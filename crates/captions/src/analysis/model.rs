//! What an analysis finds out: plain data, of which reports are made.

use serde::{Deserialize, Serialize};

/// The equal widths of 0 to 1 that scores are counted in.
pub const HISTOGRAM_BUCKETS: usize = 20;

/// What a tag table says about the selected tags. A report needs nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Analysis {
    /// How many pictures there are: in the folder where one is given, else as many as are tagged.
    pub images: u64,
    /// How many of them the tag table names.
    pub tagged: u64,
    /// How many rows the tag table has about them.
    pub rows: u64,
    /// The lowest score of those rows; 0 where there is none.
    pub lowest_score: f32,
    /// The scores from which on tags are counted, ascending.
    pub thresholds: Vec<f32>,
    /// The selected tags, in order of the selection.
    pub tags: Vec<TagAnalysis>,
    /// The tags that share a word, one entry a word.
    pub groups: Vec<GroupShare>,
    /// Which selected tags come together.
    pub cooccurrence: CoOccurrence,
    /// How a tag's scores agree with measured sharpness, where that is known.
    pub sharpness: Option<SharpnessAgreement>,
    /// What the most tags and the lowest score do to the length of captions.
    pub lengths: Vec<LengthEffect>,
    /// Tags that the table spells in several ways, and how; they are counted as one.
    pub spellings: Vec<(String, Vec<String>)>,
}

/// One selected tag.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TagAnalysis {
    /// The canonical name.
    pub tag: String,
    /// Its category as the table has it; empty where the table does not have the tag.
    pub category: String,
    /// How many pictures have it, at any score that the table holds.
    pub images: u64,
    /// The mean of its scores; none where there are no scores.
    pub mean_score: Option<f64>,
    /// How many pictures have it at each threshold or above.
    pub at_threshold: Vec<u64>,
    /// How many of its scores lie in each twentieth of 0 to 1; a bucket holds its lower bound, the last one 1 as well.
    pub histogram: Vec<u64>,
    /// Its scores' quantiles at 0, 10, ... 100 %, between two scores linearly; empty where there are no scores.
    pub quantiles: Vec<f32>,
    /// Where its threshold could be.
    pub suggestion: Option<Suggestion>,
}

/// Where a tag's threshold could be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suggestion {
    /// The knee of the curve of count against threshold: from there on a higher threshold loses few pictures more.
    pub knee: Option<f32>,
    /// The best threshold for the pictures that somebody has judged.
    pub from_labels: Option<LabelledThreshold>,
}

/// The threshold with the best F1 on judged pictures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelledThreshold {
    /// The lowest score that counts as there.
    pub threshold: f32,
    /// The harmonic mean of precision and recall.
    pub f1: f64,
    /// Of the pictures at the threshold or above, the share that has the tag.
    pub precision: f64,
    /// Of the pictures that have the tag, the share at the threshold or above.
    pub recall: f64,
    /// How many pictures were judged.
    pub labels: u64,
}

/// The tags that share a word, or several in a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupShare {
    /// The word or words, canonical: with underscores.
    pub word: String,
    /// The tags of the table that have it, selected or not, in order of name.
    pub tags: Vec<String>,
    /// How many pictures have at least one of them, at any score that the table holds.
    pub images: u64,
    /// How many have at least one of them at each threshold or above.
    pub at_threshold: Vec<u64>,
}

/// How often two tags are on the same picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoOccurrence {
    /// The tags: the selected ones, in order of the selection.
    pub tags: Vec<String>,
    /// The score from which on a tag counts as there.
    pub min_score: f32,
    /// Pictures by two tags; symmetric, and on the diagonal the pictures that have the tag.
    pub counts: Vec<Vec<u64>>,
}

/// How a tag's scores agree with measured sharpness.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharpnessAgreement {
    /// The tag's canonical name.
    pub tag: String,
    /// How many tagged pictures have a sharpness. Those without the tag count as having the score 0, for theirs is below
    /// the table's floor.
    pub images: u64,
    /// Spearman's rank correlation of score and sharpness over those, -1 to 1; ties have their mean rank. 0 where
    /// either is the same for all.
    pub spearman: f64,
    /// How probable it is that a picture without the tag is sharper than one with it, 0 to 1; ties count half. A
    /// picture has the tag at the co-occurrence's minimum score. 0.5 where all pictures have it, or none.
    pub auc: f64,
    /// Pictures by score.
    pub buckets: Vec<SharpnessBucket>,
}

/// The pictures whose score for a tag lies between two bounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharpnessBucket {
    /// The lower bound, inclusive.
    pub from: f32,
    /// The upper bound, exclusive unless it is 1.
    pub to: f32,
    /// How many pictures.
    pub images: u64,
    /// The median of their sharpness; none where there are no pictures.
    pub median: Option<f64>,
}

/// The tags that captions get with two settings, in CLIP tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LengthEffect {
    /// The most tags that a caption gets.
    pub max_tags: usize,
    /// The lowest score of a tag worth writing.
    pub min_score: f32,
    /// How many pictures get at least one tag.
    pub images_with_tags: u64,
    /// The mean number of tokens of all captions: the pictures' own where a folder is given, and the tags.
    pub mean_tokens: f64,
    /// The most tokens of a caption.
    pub max_tokens: usize,
    /// How many captions have more than 75 tokens, of which trainers cut off the rest.
    pub over_75: u64,
}
