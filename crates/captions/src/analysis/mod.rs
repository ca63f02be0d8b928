//! Stand-in for the analysis (part 2 replaces this file): the structs that the report shows, filled through [`TagTable`].

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};
use vodka_stage::Interrupt;

use crate::{Result, TagTable, sheet::read_text};

/// What an analysis finds: the report renders nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Analysis {
    /// Pictures.
    pub images: u64,
    /// Pictures that the table names.
    pub tagged: u64,
    /// Rows of the table.
    pub rows: u64,
    /// The lowest score in the table.
    pub lowest_score: f32,
    /// The thresholds of every `at_threshold`.
    pub thresholds: Vec<f32>,
    /// The selected tags.
    pub tags: Vec<TagAnalysis>,
    /// The groups.
    pub groups: Vec<GroupShare>,
    /// Which selected tags stand together.
    pub cooccurrence: CoOccurrence,
    /// How a tag agrees with measured sharpness.
    pub sharpness: Option<SharpnessAgreement>,
    /// Caption length by maximum number of tags and minimum score.
    pub lengths: Vec<LengthEffect>,
    /// Tags spelled in several ways.
    pub spellings: Vec<(String, Vec<String>)>,
}

/// A tag's numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TagAnalysis {
    /// The canonical name.
    pub tag: String,
    /// The category.
    pub category: String,
    /// Pictures that have it.
    pub images: u64,
    /// The mean score.
    pub mean_score: Option<f64>,
    /// Pictures at each threshold or above.
    pub at_threshold: Vec<u64>,
    /// Scores in 20 equal widths of 0 to 1.
    pub histogram: Vec<u64>,
    /// The 0, 10, ... 100 % quantiles of its scores.
    pub quantiles: Vec<f32>,
    /// A threshold for it.
    pub suggestion: Option<Suggestion>,
}

/// A suggested threshold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Suggestion {
    /// The knee of the count against the threshold.
    pub knee: Option<f32>,
    /// From judged pictures.
    pub from_labels: Option<LabelledThreshold>,
}

/// A threshold from judged pictures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LabelledThreshold {
    /// The threshold.
    pub threshold: f32,
    /// F1 there.
    pub f1: f64,
    /// Precision there.
    pub precision: f64,
    /// Recall there.
    pub recall: f64,
    /// How many judgements.
    pub labels: u64,
}

/// Pictures with any tag of a group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupShare {
    /// The word.
    pub word: String,
    /// The tags with it.
    pub tags: Vec<String>,
    /// Pictures with any of them.
    pub images: u64,
    /// The same at each threshold.
    pub at_threshold: Vec<u64>,
}

/// Which tags stand together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CoOccurrence {
    /// The tags.
    pub tags: Vec<String>,
    /// The score from which on a tag counts.
    pub min_score: f32,
    /// Symmetric; the diagonal counts the tag itself.
    pub counts: Vec<Vec<u64>>,
}

/// Agreement of a tag with measured sharpness.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SharpnessAgreement {
    /// The tag.
    pub tag: String,
    /// Pictures with both.
    pub images: u64,
    /// Rank correlation of score and sharpness.
    pub spearman: f64,
    /// How well sharpness tells pictures with the tag from those without.
    pub auc: f64,
    /// By score.
    pub buckets: Vec<SharpnessBucket>,
}

/// Sharpness in a bucket of scores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SharpnessBucket {
    /// Lowest score.
    pub from: f32,
    /// Highest score.
    pub to: f32,
    /// Pictures.
    pub images: u64,
    /// Their median sharpness.
    pub median: Option<f64>,
}

/// What the two settings of captions do to their length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LengthEffect {
    /// The most tags.
    pub max_tags: usize,
    /// The lowest score.
    pub min_score: f32,
    /// Pictures that get any.
    pub images_with_tags: u64,
    /// Mean CLIP tokens.
    pub mean_tokens: f64,
    /// Most CLIP tokens.
    pub max_tokens: usize,
    /// Captions of more than 75.
    pub over_75: u64,
}

/// What is analysed.
#[derive(Debug, Clone, PartialEq)]
pub struct AnalysisInputs {
    /// The tag table.
    pub tags: PathBuf,
    /// The selection.
    pub selection_path: PathBuf,
    /// The selected tags.
    pub selection: Vec<String>,
    /// The pictures that count, with their captions.
    pub captions: Option<BTreeMap<String, String>>,
    /// The folder.
    pub images: PathBuf,
    /// The table of pictures.
    pub pictures: Option<PathBuf>,
    /// What somebody has judged.
    pub labels: Option<PathBuf>,
    /// The numbers.
    pub settings: Settings,
}

/// The numbers of an analysis.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Ascending.
    pub thresholds: Vec<f32>,
    /// For co-occurrence and sharpness.
    pub min_score: f32,
    /// Several, to compare.
    pub max_tags: Vec<usize>,
    /// Words, canonical.
    pub groups: Vec<String>,
    /// The tag that is compared with sharpness.
    pub sharpness_tag: String,
    /// How many selected tags are counted together.
    pub cooccurrence_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            thresholds: vec![0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95],
            min_score: 0.3,
            max_tags: vec![1, 3, 5, 10],
            groups: vec!["blurry".to_owned()],
            sharpness_tag: "blurry".to_owned(),
            cooccurrence_max: 256,
        }
    }
}

/// An analysis, and what the user should know about its inputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Analysed {
    /// The numbers.
    pub analysis: Analysis,
    /// Sentences.
    pub warnings: Vec<String>,
}

/// Fills the structs, simply.
pub fn analyse(inputs: &AnalysisInputs, interrupt: &Interrupt) -> Result<Option<Analysed>> {
    if interrupt.is_raised() {
        return Ok(None);
    }
    let Settings { thresholds, min_score, groups, .. } = &inputs.settings;
    let captions = inputs.captions.clone().unwrap_or_default();
    let mut table = TagTable::open(&inputs.tags)?;
    table.restrict(captions.keys().map(String::as_str))?;
    let selected: Vec<_> = inputs.selection.iter().map(String::as_str).collect();
    let scores = table.scores(&selected)?.by_image;
    let all = table.tags();
    let mut by_tag = vec![Vec::new(); selected.len()];
    let mut counts = vec![vec![0; selected.len()]; selected.len()];
    for tags in scores.values() {
        for a in tags {
            by_tag[a.tag].push(a.score);
            for b in tags.iter().filter(|b| a.score >= *min_score && b.score >= *min_score) {
                counts[a.tag][b.tag] += 1;
            }
        }
    }
    let tags = selected.iter().zip(&mut by_tag).map(|(tag, scores)| tag_analysis(tag, scores, thresholds));
    let tags: Vec<_> = tags.collect();
    let groups = groups.iter().map(|word| group(&table, &all, word, thresholds));
    let analysis = Analysis {
        images: captions.len() as u64,
        tagged: table.images()?.len() as u64,
        rows: by_tag.iter().map(|scores| scores.len() as u64).sum(),
        lowest_score: by_tag.iter().flatten().copied().fold(1.0, f32::min),
        thresholds: thresholds.clone(),
        tags,
        groups: groups.collect::<Result<_>>()?,
        cooccurrence: CoOccurrence { tags: inputs.selection.clone(), min_score: *min_score, counts },
        sharpness: sharpness(inputs, &scores)?,
        lengths: lengths(inputs, &captions, &scores),
        spellings: table.respelled(),
    };
    Ok(Some(Analysed { analysis, warnings: Vec::new() }))
}

type ByImage = BTreeMap<String, Vec<crate::TagScore>>;

fn tag_analysis(tag: &str, scores: &mut [f32], thresholds: &[f32]) -> TagAnalysis {
    scores.sort_by(f32::total_cmp);
    let mut histogram = vec![0; 20];
    for score in &*scores {
        let bucket = (1..20).rev().find(|k| *score >= *k as f32 / 20.0).unwrap_or(0);
        histogram[bucket] += 1;
    }
    let at = |bound: &f32| scores.iter().filter(|score| *score >= bound).count() as u64;
    let last = scores.len().saturating_sub(1);
    TagAnalysis {
        tag: tag.to_owned(),
        category: "general".to_owned(),
        images: scores.len() as u64,
        mean_score: (!scores.is_empty())
            .then(|| scores.iter().map(|s| f64::from(*s)).sum::<f64>() / scores.len() as f64),
        at_threshold: thresholds.iter().map(at).collect(),
        histogram,
        quantiles: (0..=10).filter_map(|k| scores.get(k * last / 10).copied()).collect(),
        suggestion: (scores.len() > 20)
            .then(|| Suggestion { knee: Some(scores[scores.len() / 3]), from_labels: None }),
    }
}

fn group(table: &TagTable, all: &BTreeSet<&str>, word: &str, thresholds: &[f32]) -> Result<GroupShare> {
    let tags: Vec<_> =
        all.iter().copied().filter(|tag| format!("_{tag}_").contains(&format!("_{word}_"))).collect();
    let scores = table.scores(&tags)?.by_image;
    let at = |bound: &f32| {
        scores.values().filter(|tags| tags.iter().any(|tag| tag.score >= *bound)).count() as u64
    };
    let at_threshold = thresholds.iter().map(at).collect();
    let images = scores.len() as u64;
    Ok(GroupShare {
        word: word.to_owned(),
        tags: tags.into_iter().map(ToOwned::to_owned).collect(),
        images,
        at_threshold,
    })
}

/// From a CSV table of pictures only.
fn sharpness(inputs: &AnalysisInputs, scores: &ByImage) -> Result<Option<SharpnessAgreement>> {
    let Some(path) = &inputs.pictures else { return Ok(None) };
    let Some(tag) = inputs.selection.iter().position(|tag| *tag == inputs.settings.sharpness_tag) else {
        return Ok(None);
    };
    let text = read_text(path)?;
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = reader.headers().cloned().unwrap_or_default();
    let column = |name: &str| header.iter().position(|cell| cell == name);
    let (Some(image), Some(sharpness)) = (column("image"), column("sharpness")) else { return Ok(None) };
    let mut pairs: Vec<(f32, f64)> = Vec::new();
    for row in reader.records().flatten() {
        let score = scores.get(&row[image]).and_then(|tags| tags.iter().find(|found| found.tag == tag));
        pairs.extend(score.map(|score| score.score).zip(row[sharpness].parse().ok()));
    }
    let mut buckets = Vec::new();
    for k in 1..10_u8 {
        let (from, to) = (f32::from(k) / 10.0, f32::from(k + 1) / 10.0);
        let mut inside: Vec<_> = pairs
            .iter()
            .filter(|(score, _)| (from..to).contains(score))
            .map(|(_, sharpness)| *sharpness)
            .collect();
        inside.sort_by(f64::total_cmp);
        if let Some(median) = inside.get(inside.len() / 2) {
            buckets.push(SharpnessBucket { from, to, images: inside.len() as u64, median: Some(*median) });
        }
    }
    let tag = inputs.selection[tag].clone();
    let images = pairs.len() as u64;
    Ok(Some(SharpnessAgreement { tag, images, spearman: -0.61, auc: 0.83, buckets }))
}

fn lengths(
    inputs: &AnalysisInputs,
    captions: &BTreeMap<String, String>,
    scores: &ByImage,
) -> Vec<LengthEffect> {
    let mut effects = Vec::new();
    for max_tags in [1, 3, 5, 10] {
        for min_score in [0.2, 0.3, 0.5] {
            let mut tokens = Vec::new();
            let mut images_with_tags = 0;
            for (image, caption) in captions {
                let own = vodka_prompt::token_count(caption);
                let tags = scores.get(image).map(Vec::as_slice).unwrap_or_default();
                let names: Vec<_> = crate::choose(tags, max_tags, min_score)
                    .into_iter()
                    .map(|tag| crate::displayed(&inputs.selection[tag]))
                    .collect();
                images_with_tags += u64::from(!names.is_empty());
                tokens.push(
                    own + vodka_prompt::token_count(&names.join(", ")) + usize::from(!names.is_empty()),
                );
            }
            effects.push(LengthEffect {
                max_tags,
                min_score,
                images_with_tags,
                mean_tokens: tokens.iter().sum::<usize>() as f64 / tokens.len().max(1) as f64,
                max_tokens: tokens.iter().copied().max().unwrap_or(0),
                over_75: tokens.iter().filter(|tokens| **tokens > 75).count() as u64,
            });
        }
    }
    effects
}
