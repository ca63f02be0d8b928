//! The stage that analyses a tag table and writes what it finds: `analysis.json`, and a CSV for each table.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use vodka_stage::{Hasher, Input, Interrupt, Outcome, Report, RunKey, record_path};

use super::{
    Analysed, Analysis, AnalysisInputs, GroupShare, Settings, analyse,
    sheets::{SHEETS, SheetFile},
};
use crate::{
    Error, Picture, Result, Selection, canonical,
    caption::{check_apart, check_min_score, decimal},
    captioned::Captioned,
    heard,
    place::{Item, place},
    table::pictures_beside,
};

const STAGE: &str = "analyse";

/// By picture.
type Captions = BTreeMap<String, String>;

/// An analysis as a user wants it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnalyseConfig {
    /// The tag table: Parquet or CSV.
    pub tags: PathBuf,
    /// The selection.
    pub selection: PathBuf,
    /// The folder of pictures, with their captions in whatever format; without it all pictures of the table count, and
    /// captions are of tags alone.
    #[serde(default)]
    pub images: Option<PathBuf>,
    /// The tagger's table of pictures, for their sharpness; by default the one beside the tag table, if it is there.
    #[serde(default)]
    pub pictures: Option<PathBuf>,
    /// What somebody has judged: CSV with the columns `image`, `tag` and `label` (0 or 1).
    #[serde(default)]
    pub labels: Option<PathBuf>,
    /// The scores from which on tags are counted and captions measured, 0 to 1.
    #[serde(default = "thresholds")]
    pub thresholds: Vec<f32>,
    /// The score from which on a tag counts as there for co-occurrence and sharpness, 0 to 1.
    #[serde(default = "min_score")]
    pub min_score: f32,
    /// How many tags captions are measured with at most; several, to compare.
    #[serde(default = "max_tags")]
    pub max_tags: Vec<usize>,
    /// Words, or several in a row: for each, the pictures that have any tag with them in its name.
    #[serde(default = "groups")]
    pub groups: Vec<String>,
    /// The tag whose scores are compared with measured sharpness.
    #[serde(default = "sharpness_tag")]
    pub sharpness_tag: String,
    /// The folder to write.
    pub output: PathBuf,
}

fn thresholds() -> Vec<f32> {
    Settings::default().thresholds
}

fn min_score() -> f32 {
    Settings::default().min_score
}

fn max_tags() -> Vec<usize> {
    Settings::default().max_tags
}

fn groups() -> Vec<String> {
    Settings::default().groups
}

fn sharpness_tag() -> String {
    Settings::default().sharpness_tag
}

/// An analysis whose settings have been checked; nothing has been read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AnalysePlan {
    /// The tag table.
    pub tags: PathBuf,
    /// The selection.
    pub selection: PathBuf,
    /// The folder of pictures.
    pub images: Option<PathBuf>,
    /// The table of pictures.
    pub pictures: Option<PathBuf>,
    /// What somebody has judged.
    pub labels: Option<PathBuf>,
    /// The numbers.
    pub settings: Settings,
    /// The folder to write.
    pub output: PathBuf,
}

impl AnalyseConfig {
    /// Checks what can be checked without reading.
    ///
    /// # Errors
    /// A threshold or minimum score outside 0 to 1; an output folder in the folder of pictures, or the other way round.
    pub fn plan(&self) -> Result<AnalysePlan> {
        check_min_score(self.min_score)?;
        if let Some(found) = self.thresholds.iter().find(|score| !(0.0..=1.0).contains(*score)) {
            let found = decimal(*found);
            return Err(Error::Range { setting: "thresholds", found, expected: "scores from 0 to 1" });
        }
        if let Some(images) = &self.images {
            check_apart(&self.output, images)?;
        }
        let Self { tags, selection, images, labels, output, .. } = self.clone();
        let mut thresholds = self.thresholds.clone();
        thresholds.sort_unstable_by(f32::total_cmp);
        thresholds.dedup();
        let mut groups: Vec<_> = self.groups.iter().map(|word| canonical(word)).collect();
        groups.dedup();
        let settings = Settings {
            thresholds,
            min_score: self.min_score,
            max_tags: self.max_tags.clone(),
            groups,
            sharpness_tag: canonical(&self.sharpness_tag),
            ..Settings::default()
        };
        let pictures = self.pictures.clone().or_else(|| pictures_beside(&tags));
        Ok(AnalysePlan { tags, selection, images, pictures, labels, settings, output })
    }
}

impl AnalysePlan {
    /// All that the analysis depends on: settings, tables, selection, labels, and the captions.
    pub fn key(&self) -> Result<RunKey> {
        self.key_of(self.captions()?.0.as_ref())
    }

    /// The caption of each picture in the folder, and what there is to say about them.
    fn captions(&self) -> Result<(Option<Captions>, Vec<String>)> {
        let Some(images) = &self.images else { return Ok((None, Vec::new())) };
        let Captioned { pictures, mut captions, warnings, .. } = Captioned::originals(images)?;
        let caption = |picture: Picture| {
            let caption = captions.remove(&picture.image).unwrap_or_default();
            (picture.image, caption.text)
        };
        Ok((Some(pictures.into_iter().map(caption).collect()), warnings))
    }

    fn key_of(&self, captions: Option<&Captions>) -> Result<RunKey> {
        let Settings { thresholds, min_score, max_tags, groups, sharpness_tag, .. } = &self.settings;
        let settings = json!({
            "thresholds": thresholds.iter().map(|score| decimal(*score)).collect::<Vec<_>>(),
            "min_score": decimal(*min_score),
            "max_tags": max_tags,
            "groups": groups,
            "sharpness_tag": sharpness_tag,
        });
        let mut key = RunKey::new(STAGE, &settings, None);
        let files = [("pictures", &self.pictures), ("labels", &self.labels)];
        let files = files.into_iter().filter_map(|(name, path)| Some((name, path.as_ref()?)));
        for (name, path) in [("tags", &self.tags), ("selection", &self.selection)].into_iter().chain(files) {
            key = key.input(name, path, |_| true)?;
        }
        if let (Some(images), Some(captions)) = (&self.images, captions) {
            let mut hasher = Hasher::default();
            captions.iter().for_each(|(image, caption)| {
                hasher.piece(image).piece(caption);
            });
            let input = Input { path: images.clone(), sha256: hasher.finish() };
            key.inputs.insert("captions".to_owned(), input);
        }
        Ok(key)
    }
}

/// What an analysis tells while it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnalyseEvent {
    /// A file is there.
    Wrote {
        /// The file.
        path: PathBuf,
    },
}

/// What an analysis says in short; the tables say it at length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnalyseReport {
    /// How it ended.
    pub outcome: Outcome,
    /// The folder.
    pub output: PathBuf,
    /// How many pictures there are.
    pub images: u64,
    /// How many of them the tag table names.
    pub tagged: u64,
    /// How many rows the tag table has about them.
    pub rows: u64,
    /// How many tags are selected.
    pub tags: usize,
    /// The groups.
    pub groups: Vec<GroupShare>,
    /// Spearman's correlation of the tag's score with sharpness, and its area under the curve, where it is known.
    pub sharpness: Option<(String, f64, f64)>,
    /// Tags that the table spells in several ways, and how; they were counted as one.
    pub spellings: Vec<(String, Vec<String>)>,
    /// What the user should know about the inputs.
    pub warnings: Vec<String>,
}

impl AnalyseReport {
    fn interrupted(output: &Path) -> Self {
        Self {
            outcome: Outcome::Interrupted,
            output: output.to_path_buf(),
            images: 0,
            tagged: 0,
            rows: 0,
            tags: 0,
            groups: Vec::new(),
            sharpness: None,
            spellings: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn of(output: &Path, Analysed { analysis, warnings }: &Analysed) -> Self {
        let sharpness = analysis.sharpness.as_ref();
        Self {
            outcome: Outcome::Done,
            output: output.to_path_buf(),
            images: analysis.images,
            tagged: analysis.tagged,
            rows: analysis.rows,
            tags: analysis.tags.len(),
            groups: analysis.groups.clone(),
            sharpness: sharpness.map(|found| (found.tag.clone(), found.spearman, found.auc)),
            spellings: analysis.spellings.clone(),
            warnings: warnings.clone(),
        }
    }
}

impl Report for AnalyseReport {
    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

impl fmt::Display for AnalyseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let output = self.output.display();
        match self.outcome {
            Outcome::Unchanged => write!(f, "the analysis in `{output}` is up to date")?,
            Outcome::Interrupted => {
                return write!(f, "stopped before the analysis in `{output}` was complete");
            }
            Outcome::Done | Outcome::Skipped => {
                let Self { tags, images, tagged, rows, .. } = self;
                write!(
                    f,
                    "analysed {tags} tags of {images} pictures ({tagged} tagged, {rows} rows) to `{output}`"
                )?;
            }
        }
        for group in &self.groups {
            let share = 100.0 * group.images as f64 / self.images.max(1) as f64;
            write!(f, "\n{share:.1} % of the pictures have a tag with `{}` at any score", group.word)?;
        }
        if let Some((tag, spearman, auc)) = &self.sharpness {
            write!(f, "\n`{tag}` and sharpness: Spearman {spearman:.3}, area under the curve {auc:.3}")?;
        }
        for (tag, spellings) in &self.spellings {
            write!(f, "\n`{tag}` is spelled in {} ways", spellings.len())?;
        }
        self.warnings.iter().try_for_each(|warning| write!(f, "\nwarning: {warning}"))
    }
}

/// Writes `analysis.json` and the CSV files, unless they are there already.
///
/// # Errors
/// As [`analyse`]; no pictures in the folder, or two that share a caption; a caption or selection that cannot be read;
/// an output that cannot be written.
pub fn run(
    plan: &AnalysePlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(AnalyseEvent),
) -> Result<AnalyseReport> {
    let asked = plan.clone();
    let read = heard(interrupt, move || {
        let (captions, warnings) = asked.captions()?;
        let key = asked.key_of(captions.as_ref())?;
        Ok((captions, warnings, key))
    });
    let (captions, mut warnings, key) = match read {
        Err(Error::Stopped) => return Ok(AnalyseReport::interrupted(&plan.output)),
        read => read?,
    };
    let record = record_path(&plan.output);
    if let Some(report) = key.made::<AnalyseReport>(&record)? {
        return Ok(AnalyseReport { outcome: Outcome::Unchanged, output: plan.output.clone(), ..report });
    }
    let selection = Selection::read(&plan.selection)?;
    let inputs = AnalysisInputs {
        tags: plan.tags.clone(),
        selection_path: plan.selection.clone(),
        selection: selection.names().into_iter().map(ToOwned::to_owned).collect(),
        captions,
        images: plan.images.clone().unwrap_or_default(),
        pictures: plan.pictures.clone(),
        labels: plan.labels.clone(),
        settings: plan.settings.clone(),
    };
    let Some(mut analysed) = analyse(&inputs, interrupt)?.filter(|_| !interrupt.is_raised()) else {
        return Ok(AnalyseReport::interrupted(&plan.output));
    };
    analysed.warnings.append(&mut warnings);
    let report = AnalyseReport::of(&plan.output, &analysed);
    let items = items(&analysed.analysis);
    let outputs: Vec<_> = items.iter().map(|item| plan.output.join(&item.name)).collect();
    // Nothing is written where one of them is somebody else's, or has been edited.
    if place(&plan.output, STAGE, &items, interrupt, &mut |_| {})?.is_none() {
        return Ok(AnalyseReport::interrupted(&plan.output));
    }
    outputs.iter().for_each(|path| on_event(AnalyseEvent::Wrote { path: path.clone() }));
    key.write(&record, &outputs.iter().map(PathBuf::as_path).collect::<Vec<_>>(), &report)?;
    Ok(report)
}

/// The files of an analysis; `analysis.json` last.
fn items(analysis: &Analysis) -> Vec<Item<'static>> {
    let sheet = |(name, content): &SheetFile| Item::text(*name, content(analysis));
    let mut items: Vec<_> = SHEETS.iter().map(sheet).collect();
    items.push(Item::text("analysis.json", json_text(analysis)));
    items
}

fn json_text(analysis: &Analysis) -> String {
    serde_json::to_string_pretty(analysis).expect("an analysis is plain data") + "\n"
}
