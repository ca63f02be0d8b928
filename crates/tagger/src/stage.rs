//! The stage: a folder of pictures becomes a tag table.

use std::{
    collections::HashSet,
    fmt,
    path::{Path, PathBuf},
    thread,
};

use serde::{Deserialize, Serialize};
use vodka_images::{DecodeOptions, EXTENSIONS, find, is_image, relative_name};
use vodka_stage::{Interrupt, Journal, Outcome, Report, RunKey, record_path};

use crate::{
    Error, Labels, Provider, Result, Tagger, TaggerConfig,
    folder::{ModelFolder, is_external},
    pipeline::{Job, Scored},
    table::{Tagged, write_csv, write_parquet, write_skipped},
};

/// More would only take memory: 4096 pictures of 448 px are 10 GB.
const BATCH_MAX: usize = 4096;
const THREADS_MAX: usize = 1024;

/// What a user says about a tagging run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TagConfig {
    /// The folder with `model.onnx` and `selected_tags.csv`.
    pub model: PathBuf,
    /// The folder of pictures.
    pub images: PathBuf,
    /// The table: `.parquet`, which gets a `.csv` beside it, or `.csv` alone.
    pub output: PathBuf,
    /// The lowest score that is written, 0 to 1.
    #[serde(default = "TagConfig::default_min_score")]
    pub min_score: f64,
    /// How many pictures the model gets at once.
    #[serde(default = "TagConfig::default_batch")]
    pub batch: usize,
    /// How many threads decode, and how many one inference may use; 0 for one per core.
    #[serde(default)]
    pub threads: usize,
    /// Where the model runs.
    #[serde(default)]
    pub provider: Provider,
    /// Leaves pictures as they are stored, whatever their EXIF orientation says, as most taggers do.
    #[serde(default)]
    pub ignore_orientation: bool,
    /// The ONNX Runtime library.
    #[serde(default)]
    pub onnxruntime: PathBuf,
}

impl TagConfig {
    /// A run with the default settings.
    pub fn new(model: impl Into<PathBuf>, images: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            images: images.into(),
            output: output.into(),
            min_score: Self::default_min_score(),
            batch: Self::default_batch(),
            threads: 0,
            provider: Provider::default(),
            ignore_orientation: false,
            onnxruntime: PathBuf::new(),
        }
    }

    /// 0.1
    pub fn default_min_score() -> f64 {
        0.1
    }

    /// 8
    pub fn default_batch() -> usize {
        8
    }

    /// Checks what can be checked before the model is loaded, and settles the rest.
    ///
    /// # Errors
    /// When a folder or a file of the model is missing, or a setting is out of range.
    pub fn plan(&self) -> Result<TagPlan> {
        let wrong = |name, expected, found: String| Err(Error::Setting { name, expected, found });
        if !(0.0..=1.0).contains(&self.min_score) {
            return wrong("min_score", "0 to 1", self.min_score.to_string());
        }
        if !(1..=BATCH_MAX).contains(&self.batch) {
            return wrong("batch", "1 to 4096", self.batch.to_string());
        }
        if self.threads > THREADS_MAX {
            return wrong("threads", "0 to 1024", self.threads.to_string());
        }
        let extension = self.output.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let is_parquet = match extension.as_str() {
            "parquet" => true,
            "csv" => false,
            _ => {
                let found = self.output.display().to_string();
                return wrong("output", "a name ending in .parquet or .csv", found);
            }
        };
        ModelFolder::open(&self.model, None)?;
        if !self.images.is_dir() {
            return Err(Error::NoFolder { what: "the pictures", path: self.images.clone() });
        }
        let cores = || thread::available_parallelism().map_or(1, usize::from);
        let threads = if self.threads == 0 { cores() } else { self.threads };
        Ok(TagPlan {
            config: Self { threads, ..self.clone() },
            parquet: is_parquet.then(|| self.output.clone()),
            csv: if is_parquet { self.output.with_extension("csv") } else { self.output.clone() },
            skipped: self.output.with_extension("skipped.csv"),
        })
    }
}

/// A tagging run, checked.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TagPlan {
    /// The configuration, with the number of threads settled.
    pub config: TagConfig,
    /// The table as Parquet, if it is wanted.
    pub parquet: Option<PathBuf>,
    /// The table as CSV.
    pub csv: PathBuf,
    /// The list of skipped pictures.
    pub skipped: PathBuf,
}

/// The settings that the table depends on.
#[derive(Serialize)]
struct Settings<'a> {
    min_score: f64,
    preprocessing: &'a str,
    /// Providers differ in the last digits: what one has begun another must not finish.
    provider: Provider,
}

impl TagPlan {
    /// What the table depends on. Reads the model and all pictures.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn key(&self) -> Result<RunKey> {
        let model = ModelFolder::open(&self.config.model, None)?;
        let TagConfig { min_score, provider, .. } = self.config;
        let settings = Settings { min_score, preprocessing: self.preprocessing(), provider };
        let folder = &self.config.model;
        Ok(RunKey::new("tag", &settings, None)
            .input("model", &model.network, |_| true)?
            .input("weights", folder, |path| is_external(&model.network, path))?
            .input("labels", model.labels(), |_| true)?
            .input("description", folder, |path| model.is_description(path))?
            .input("images", &self.config.images, is_image)?)
    }

    /// What is done to a picture before the model sees it.
    fn preprocessing(&self) -> &'static str {
        if self.config.ignore_orientation {
            "as stored, over white, white square, bicubic as Pillow, BGR 0..255"
        } else {
            "EXIF orientation, over white, white square, bicubic as Pillow, BGR 0..255"
        }
    }

    fn outputs(&self) -> Vec<&Path> {
        self.parquet.iter().chain([&self.csv, &self.skipped]).map(PathBuf::as_path).collect()
    }

    /// The same as paths that outlive the plan.
    fn output_paths(&self) -> Vec<PathBuf> {
        self.outputs().into_iter().map(Path::to_path_buf).collect()
    }

    fn journal(&self) -> PathBuf {
        let name = self.config.output.file_name().unwrap_or_default().to_string_lossy();
        self.config.output.with_file_name(format!(".{name}.journal"))
    }

    fn report(&self, outcome: Outcome, found: usize, entries: &[Entry], rows: usize) -> TagReport {
        let skipped = entries.iter().filter(|entry| matches!(entry.finding, Finding::Skipped(_))).count();
        let (tagged, outputs) = (entries.len() - skipped, self.output_paths());
        TagReport { outcome, found, tagged, skipped, rows, outputs }
    }

    fn tagger(&self) -> TaggerConfig {
        TaggerConfig {
            model: self.config.model.clone(),
            onnxruntime: self.config.onnxruntime.clone(),
            provider: self.config.provider,
            threads: self.config.threads,
            ..TaggerConfig::default()
        }
    }
}

/// What happens during a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TagEvent {
    /// The model is loaded.
    Started {
        /// How many pictures there are.
        total: usize,
        /// How many of them an earlier run has done.
        resumed: usize,
    },
    /// A picture cannot be tagged.
    Skipped {
        /// The picture, relative to the image folder.
        image: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A batch is done and will not be lost.
    Progress {
        /// How many pictures are done, the skipped ones among them.
        done: usize,
    },
}

/// What a run has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagReport {
    /// How it ended.
    pub outcome: Outcome,
    /// How many pictures were found.
    pub found: usize,
    /// How many were tagged.
    pub tagged: usize,
    /// How many were skipped.
    pub skipped: usize,
    /// How many rows the table has.
    pub rows: usize,
    /// What was written: the table in each form, and the list of skipped pictures.
    pub outputs: Vec<PathBuf>,
}

impl Report for TagReport {
    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

impl fmt::Display for TagReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { found, tagged, skipped, rows, .. } = self;
        let names: Vec<_> = self.outputs.iter().map(|path| format!("`{}`", path.display())).collect();
        let (list, tables) = names.split_last().expect("there is always a list of skipped pictures");
        let tables = tables.join(" and ");
        match self.outcome {
            Outcome::Unchanged => {
                write!(f, "{tables} unchanged: nothing to do ({tagged} pictures, {rows} rows)")
            }
            Outcome::Interrupted => write!(f, "tagged {tagged} of {found} pictures so far"),
            Outcome::Done | Outcome::Skipped => {
                write!(f, "tagged {tagged} pictures: {rows} rows in {tables}")
            }
        }?;
        match skipped {
            0 => Ok(()),
            _ => write!(f, "; {skipped} skipped, listed in {list}"),
        }
    }
}

/// One picture in the journal. A line of the journal holds a batch of them.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    image: String,
    finding: Finding,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Finding {
    /// Places in the vocabulary, and the bits of their scores: no digit is lost on the way through JSON.
    Scores(Vec<(usize, u32)>),
    Skipped(String),
}

/// Tags all pictures of a folder and writes the table.
///
/// A run that was killed or interrupted goes on where it was, and loses at most one batch. Rows are in order of the
/// picture's name, then of the score, and do not depend on the threads.
///
/// # Errors
/// When there are no pictures, the model cannot be used, or a file cannot be written. A picture that cannot be read is
/// no error: it is listed.
pub fn run(plan: &TagPlan, interrupt: &Interrupt, on_event: &mut dyn FnMut(TagEvent)) -> Result<TagReport> {
    let images = find(&plan.config.images)?;
    if images.is_empty() {
        let path = plan.config.images.clone();
        return Err(Error::NoImages { path, extensions: EXTENSIONS.join(", ") });
    }
    let key = plan.key()?;
    let record = record_path(&plan.config.output);
    if let Some(report) = key.made::<TagReport>(&record)? {
        return Ok(TagReport { outcome: Outcome::Unchanged, outputs: plan.output_paths(), ..report });
    }
    let tagger = Tagger::open(&plan.tagger())?;
    let (mut journal, batches) = Journal::open::<Vec<Entry>>(plan.journal(), key.hash())?;
    let mut entries: Vec<Entry> = batches.into_iter().flatten().collect();
    entries.retain(|entry| entry.fits(tagger.labels()));
    on_event(TagEvent::Started { total: images.len(), resumed: entries.len() });
    let done: HashSet<String> = entries.iter().map(|entry| entry.image.clone()).collect();
    let todo: Vec<_> = images.iter().filter(|path| !done.contains(&relative_name(path))).cloned().collect();
    tag(plan, &tagger, &todo, interrupt, &mut journal, &mut entries, on_event)?;
    if entries.len() < images.len() {
        return Ok(plan.report(Outcome::Interrupted, images.len(), &entries, 0));
    }
    let rows = write_tables(plan, &key, tagger.labels(), &entries)?;
    let skipped = entries.iter().any(|entry| matches!(entry.finding, Finding::Skipped(_)));
    let outcome = if skipped { Outcome::Skipped } else { Outcome::Done };
    let report = plan.report(outcome, images.len(), &entries, rows);
    key.write(&record, &plan.outputs(), &report)?;
    journal.finish()?;
    Ok(report)
}

/// Scores what is still to be done, adding to the journal and to the entries.
fn tag(
    plan: &TagPlan,
    tagger: &Tagger,
    todo: &[PathBuf],
    interrupt: &Interrupt,
    journal: &mut Journal,
    entries: &mut Vec<Entry>,
    on_event: &mut dyn FnMut(TagEvent),
) -> Result<()> {
    if interrupt.is_raised() {
        return Ok(());
    }
    let job = Job {
        tagger,
        root: &plan.config.images,
        paths: todo,
        decode: DecodeOptions { orientation: !plan.config.ignore_orientation, ..DecodeOptions::default() },
        batch: plan.config.batch,
        threads: plan.config.threads,
    };
    job.run(|batch| {
        let start = entries.len();
        entries.extend(batch.iter().map(|(image, scored)| Entry::new(image, scored, plan.config.min_score)));
        let new = &entries[start..];
        journal.append(&new)?;
        for entry in new {
            if let Finding::Skipped(reason) = &entry.finding {
                on_event(TagEvent::Skipped { image: entry.image.clone(), reason: reason.clone() });
            }
        }
        on_event(TagEvent::Progress { done: entries.len() });
        Ok(!interrupt.is_raised())
    })
}

impl Entry {
    fn new(image: &str, scored: &Scored, min_score: f64) -> Self {
        let finding = match scored {
            Scored::Skipped(reason) => Finding::Skipped(reason.clone()),
            Scored::Scores(scores) => {
                let high = scores.iter().enumerate().filter(|(_, score)| **score >= min_score as f32);
                // The bits of numbers from 0 on are ordered as the numbers are; adding 0 turns -0 into 0.
                let mut scores: Vec<_> =
                    high.map(|(label, score)| (label, (score + 0.0).to_bits())).collect();
                scores.sort_by_key(|(label, bits)| (std::cmp::Reverse(*bits), *label));
                Finding::Scores(scores)
            }
        };
        Self { image: image.to_owned(), finding }
    }

    /// Whether it names no tag that there is not. Another vocabulary is another run, but a journal is only a file.
    fn fits(&self, labels: &Labels) -> bool {
        match &self.finding {
            Finding::Scores(scores) => scores.iter().all(|(label, _)| *label < labels.len()),
            Finding::Skipped(_) => true,
        }
    }
}

/// Writes the table in each form and the list of skipped pictures, and tells how many rows the table has.
fn write_tables(plan: &TagPlan, key: &RunKey, labels: &Labels, entries: &[Entry]) -> Result<usize> {
    let (mut tagged, mut skipped) = (Vec::new(), Vec::new());
    for entry in entries {
        let image = entry.image.clone();
        match &entry.finding {
            Finding::Scores(scores) => {
                let scores = scores.iter().map(|(label, bits)| (*label, f32::from_bits(*bits))).collect();
                tagged.push(Tagged { image, scores });
            }
            Finding::Skipped(reason) => skipped.push((image, reason.clone())),
        }
    }
    tagged.sort_by(|a, b| a.image.cmp(&b.image));
    skipped.sort();
    if let Some(path) = &plan.parquet {
        write_parquet(path, &tagged, labels, metadata(plan, key))?;
    }
    write_csv(&plan.csv, &tagged, labels)?;
    write_skipped(&plan.skipped, &skipped)?;
    Ok(tagged.iter().map(|picture| picture.scores.len()).sum())
}

/// What the Parquet file says about itself.
fn metadata(plan: &TagPlan, key: &RunKey) -> Vec<(String, String)> {
    let hashes =
        key.inputs.iter().map(|(name, input)| (format!("vodka.{name}_sha256"), input.sha256.to_string()));
    let settings = [
        ("vodka.preprocessing".to_owned(), plan.preprocessing().to_owned()),
        ("vodka.min_score".to_owned(), plan.config.min_score.to_string()),
    ];
    hashes.chain(settings).collect()
}
