//! What a tag table says about the selected tags: frequencies, groups, co-occurrence, sharpness, lengths, thresholds.
//!
//! [`analyse`] goes through the table once, picture by picture, and holds the scores of the tags of interest, not the
//! table. What it finds does not depend on the order of the rows.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};
use vodka_stage::Interrupt;

use crate::{
    Error, Result,
    table::{Sharpness, Walked, categories, respelled, walk},
};
use agreement::agreement;
use distribution::Distribution;
use labels::Labels;
use survey::{Survey, Wanted};

mod agreement;
mod distribution;
mod labels;
mod lengths;
mod model;
mod sheets;
mod stage;
mod survey;
mod warnings;

pub use model::{
    Analysis, CoOccurrence, GroupShare, HISTOGRAM_BUCKETS, LabelledThreshold, LengthEffect,
    SharpnessAgreement, SharpnessBucket, Suggestion, TagAnalysis,
};
pub use stage::{AnalyseConfig, AnalyseEvent, AnalysePlan, AnalyseReport, run};
pub(crate) use survey::has_word;

/// What is analysed.
#[derive(Debug, Clone, PartialEq)]
pub struct AnalysisInputs {
    /// The tag table: Parquet or CSV.
    pub tags: PathBuf,
    /// The selection, where the tags were read from, for what is said about it.
    pub selection_path: PathBuf,
    /// The selected tags by their canonical names, each once.
    pub selection: Vec<String>,
    /// The pictures that count, by the name that the table has for them, with their captions; empty where there is none.
    /// Without it all pictures of the table count, and captions are of tags alone.
    pub captions: Option<BTreeMap<String, String>>,
    /// The folder that those captions were read from, for what is said about it.
    pub images: PathBuf,
    /// The tagger's table of pictures, with their sharpness: Parquet or CSV.
    pub pictures: Option<PathBuf>,
    /// What somebody has judged: CSV with the columns `image`, `tag` and `label` (0 or 1).
    pub labels: Option<PathBuf>,
    /// The numbers.
    pub settings: Settings,
}

/// The numbers of an analysis.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The scores from which on tags are counted and captions measured, 0 to 1, ascending.
    pub thresholds: Vec<f32>,
    /// The score from which on a tag counts as there for co-occurrence and sharpness, 0 to 1.
    pub min_score: f32,
    /// How many tags captions are measured with at most; several, to compare.
    pub max_tags: Vec<usize>,
    /// Words, canonical: for each, the pictures that have any tag with it in its name.
    pub groups: Vec<String>,
    /// The tag, by its canonical name, whose scores are compared with measured sharpness.
    pub sharpness_tag: String,
    /// How many selected tags, from the first, are counted together: the counts take this squared.
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
    /// Sentences: a threshold below the table's floor, a table from another model, and the like.
    pub warnings: Vec<String>,
}

/// Analyses a tag table; none if interrupted.
///
/// # Errors
/// A table or the labels cannot be read; a score is not within 0 to 1, with picture and tag; the table has none of the
/// selected tags, or none of the pictures that count.
pub fn analyse(inputs: &AnalysisInputs, interrupt: &Interrupt) -> Result<Option<Analysed>> {
    let labels = match &inputs.labels {
        Some(path) => Labels::read(path)?,
        None => Labels::default(),
    };
    let sharpness = inputs.pictures.as_deref().map(Sharpness::read).transpose()?;
    let wanted = Wanted {
        selection: &inputs.selection,
        settings: &inputs.settings,
        captions: inputs.captions.as_ref(),
        sharpness: sharpness.as_ref(),
        labels: &labels,
    };
    let Some(walked) = walk(&inputs.tags, interrupt, || Survey::new(&wanted))? else { return Ok(None) };
    check(inputs, &walked)?;
    let warnings = warnings::warnings(inputs, &labels, &walked)?;
    let categories = selected_categories(inputs, &walked)?;
    let spellings = respelled(&walked.spellings);
    Ok(Some(Analysed { analysis: made(inputs, walked.visitor, categories, spellings), warnings }))
}

/// The category of each selected tag; empty where the table does not have the tag.
fn selected_categories(inputs: &AnalysisInputs, walked: &Walked<Survey<'_>>) -> Result<Vec<String>> {
    let first_rows: Vec<_> = inputs.selection.iter().map(|tag| walked.first_rows.get(tag).copied()).collect();
    let mut rows: Vec<_> = first_rows.iter().copied().flatten().collect();
    rows.sort_unstable();
    let found = categories(&inputs.tags, &rows)?;
    let category = |row: Option<u64>| {
        let place = row.and_then(|row| rows.binary_search(&row).ok());
        place.and_then(|place| found.get(place)).cloned().unwrap_or_default()
    };
    Ok(first_rows.into_iter().map(category).collect())
}

/// Tables that have nothing to do with the selection or the pictures.
fn check(inputs: &AnalysisInputs, walked: &Walked<Survey<'_>>) -> Result<()> {
    let Walked { visitor, spellings, .. } = walked;
    if let Some((_, tag)) = spellings.first()
        && !visitor.is_there.contains(&true)
    {
        let (selected, example) = (inputs.selection.len(), tag.clone());
        return Err(Error::OtherVocabulary { table: inputs.tags.clone(), selected, example });
    }
    if let Some(held) = inputs.captions.iter().flatten().map(|(image, _)| image).next()
        && visitor.tagged == 0
    {
        return Err(Error::OtherImages {
            table: inputs.tags.clone(),
            images: inputs.images.clone(),
            named: visitor.example.clone().unwrap_or_else(|| "no picture".to_owned()),
            held: held.clone(),
        });
    }
    Ok(())
}

fn made(
    inputs: &AnalysisInputs,
    mut survey: Survey<'_>,
    categories: Vec<String>,
    spellings: Vec<(String, Vec<String>)>,
) -> Analysis {
    let settings = &inputs.settings;
    let tagged = survey.tagged;
    let lowest_score = if survey.rows > 0 { survey.lowest_score } else { 0.0 };
    let (lengths, cooccurrence) = (survey.lengths(), survey.cooccurrence());
    let agreement = |pairs: &[(f32, f32)]| agreement(&settings.sharpness_tag, pairs, settings.min_score);
    let ((scores, group_scores), sharpness) = rayon::join(
        || (Distribution::all(survey.scores), Distribution::all(survey.group_scores)),
        || inputs.pictures.is_some().then(|| agreement(&survey.sharpness)),
    );
    let tags = inputs.selection.iter().zip(categories).zip(scores.iter().zip(&survey.judged));
    let tags = tags
        .map(|((tag, category), (scores, judged))| TagAnalysis {
            tag: tag.clone(),
            category,
            images: scores.len(),
            mean_score: scores.mean(),
            at_threshold: scores.at_thresholds(&settings.thresholds),
            histogram: scores.histogram(),
            quantiles: scores.deciles(),
            suggestion: suggestion(scores.knee(lowest_score), labels::best(judged)),
        })
        .collect();
    let groups = settings.groups.iter().zip(survey.group_tags).zip(&group_scores);
    let groups = groups.map(|((word, mut tags), scores)| {
        tags.sort();
        let at_threshold = scores.at_thresholds(&settings.thresholds);
        GroupShare { word: word.clone(), tags, images: scores.len(), at_threshold }
    });
    Analysis {
        images: inputs.captions.as_ref().map_or(tagged, |captions| captions.len() as u64),
        tagged,
        rows: survey.rows,
        lowest_score,
        thresholds: settings.thresholds.clone(),
        tags,
        groups: groups.collect(),
        cooccurrence,
        sharpness,
        lengths,
        spellings,
    }
}

fn suggestion(knee: Option<f32>, from_labels: Option<LabelledThreshold>) -> Option<Suggestion> {
    (knee.is_some() || from_labels.is_some()).then_some(Suggestion { knee, from_labels })
}
