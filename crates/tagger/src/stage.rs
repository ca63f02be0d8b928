//! The stage: a folder of pictures becomes a table of tags and a table of pictures.

use std::{
    fmt,
    ops::ControlFlow,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use vodka_images::{DecodeOptions, EXTENSIONS, find};
use vodka_stage::{ContentHash, Interrupt, Outcome, Report, RunKey, lossy, record_path};

use crate::{
    Error, Provider, Result, TagPlan, Tagger,
    ensemble::Ensemble,
    pipeline::{Job, Load},
    read::{Memory, Reader},
    results::{Entry, Finding, ImagesHash, Kept, Results, batch_max},
    table::{
        EMBEDDINGS, LabelCells, PICTURES, SKIPPED, TAGS, Table, embedding_row, picture_row, skipped_row,
    },
};

/// What happens during a run.
#[derive(Debug, Clone, PartialEq)]
pub enum TagEvent {
    /// The model is loaded.
    Started {
        /// How many pictures there are.
        total: usize,
        /// How many of them an earlier run has done.
        resumed: usize,
        /// Where the model runs.
        provider: Provider,
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
        /// How fast it goes.
        speed: Speed,
    },
}

/// How fast a run goes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Pictures per second since the start of this run, without those that were done before.
    pub images_per_s: f64,
    /// The share of the time that the network was busy, 0 to 1: near 1 the network is the limit, else reading is.
    pub network_busy: f64,
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { images_per_s, network_busy } = self;
        write!(f, "{images_per_s:.2} images/s, network busy {:.0} %", 100.0 * network_busy)
    }
}

/// What a run has done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TagReport {
    /// How it ended.
    pub outcome: Outcome,
    /// Where the model ran.
    pub provider: Provider,
    /// How many pictures were found.
    pub found: usize,
    /// How many were tagged; of an interrupted run, how many are done, the skipped ones among them.
    pub tagged: usize,
    /// How many were skipped.
    pub skipped: usize,
    /// How many rows the table of tags has.
    pub rows: usize,
    /// The first of the skipped pictures, with the reasons; all of them are in the list.
    #[serde(default)]
    pub first_skipped: Vec<SkippedPicture>,
    /// What was written: the table of tags, that of pictures, where it was wanted that of embeddings, and the list of skipped
    /// pictures.
    #[serde(serialize_with = "lossy")]
    pub outputs: Vec<PathBuf>,
    /// How fast it went; not for runs that had nothing to do, nor in run records, which hold no clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<Speed>,
}

/// A picture that could not be tagged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedPicture {
    /// The picture, relative to the image folder.
    pub image: String,
    /// What is wrong with it.
    pub reason: String,
}

/// So many skipped pictures are named in a report.
const NAMED_MAX: usize = 10;

impl Report for TagReport {
    fn outcome(&self) -> Outcome {
        self.outcome.with_skips(self.skipped > 0)
    }
}

impl fmt::Display for TagReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { found, tagged, skipped, rows, provider, .. } = self;
        let names: Vec<_> = self.outputs.iter().map(|path| format!("`{}`", path.display())).collect();
        let (list, tables) = names.split_last().expect("there is always a list of skipped pictures");
        let tables = tables.join(" and ");
        match self.outcome {
            Outcome::Unchanged => {
                write!(f, "{tables} unchanged: nothing to do ({tagged} pictures, {rows} rows)")
            }
            Outcome::Interrupted => write!(f, "{} of {found} pictures done so far", tagged + skipped),
            Outcome::Done | Outcome::Skipped => {
                write!(f, "tagged {tagged} pictures: {rows} rows in {tables}")
            }
        }?;
        if let Some(speed) = self.speed {
            write!(f, " ({provider}: {speed})")?;
        }
        if *skipped > 0 {
            write!(f, "; {skipped} skipped, listed in {list}")?;
        }
        let named = &self.first_skipped;
        named.iter().try_for_each(|SkippedPicture { image, reason }| write!(f, "\n  {image}: {reason}"))?;
        match skipped - named.len() {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}

/// Tags all pictures of a folder and writes the tables.
///
/// A run that was killed or interrupted goes on where it was, and loses at most the batches that the model was at. A
/// run after pictures were added or changed tags only those. Rows are in order of the picture's name, then of the
/// score, and do not depend on the threads.
///
/// # Errors
/// When there are no pictures, the model cannot be used, a file cannot be written, or another run writes it. A picture
/// that cannot be read is no error: it is listed.
pub fn run(plan: &TagPlan, interrupt: &Interrupt, on_event: &mut dyn FnMut(TagEvent)) -> Result<TagReport> {
    let images = find(&plan.config.images)?;
    if images.is_empty() {
        let path = plan.config.images.clone();
        return Err(Error::NoImages { path, extensions: EXTENSIONS.join(", ") });
    }
    let key = plan.key_without_images()?;
    if let Some(report) = unchanged(plan, &key, &images, interrupt)? {
        return Ok(report);
    }
    let taggers: Vec<_> = plan.taggers().map(|config| Tagger::open(&config)).collect::<Result<_>>()?;
    let wants_embeddings = plan.embeddings.is_some();
    if let Some(tagger) = taggers.iter().find(|tagger| wants_embeddings && !tagger.has_embeddings()) {
        return Err(Error::Setting {
            name: "embeddings",
            expected: "a network with an output for them (`output.embedding` in a model.toml says which)",
            found: format!("a network of the family {} without one", tagger.description().name()),
        });
    }
    let ensemble = Ensemble::new(taggers, plan.config.combine);
    let (labels, batch) = (ensemble.labels().len(), ensemble.batch(plan.config.batch));
    if batch > batch_max(labels) {
        let found =
            format!("{batch} for a model of {labels} tags, which can take {} at most", batch_max(labels));
        return Err(Error::Setting {
            name: "batch",
            expected: "a batch that the journal has room for",
            found,
        });
    }
    let fits = |entry: &Entry| match &entry.finding {
        Finding::Tagged { scores, facts, embedding } => {
            let is_whole = facts.looks.is_some() && embedding.is_some() == wants_embeddings;
            is_whole && scores.iter().all(|(place, _)| (*place as usize) < labels)
        }
        Finding::Skipped(_) => true,
    };
    let mut results = Results::open(plan.journal(), key.hash(), &plan.config.images, &images, fits)?;
    let todo = results.todo();
    let resumed = images.len() - todo.len();
    on_event(TagEvent::Started { total: images.len(), resumed, provider: plan.config.provider });
    let run = Run { plan, ensemble: &ensemble, images: &images, todo: &todo };
    let speed = run.tag(&mut results, interrupt, on_event)?;
    let tally = Tally { speed, ..Tally::default() };
    let missing = results.todo().len();
    if missing > 0 {
        return Ok(tally.report(plan, Outcome::Interrupted, &images, missing));
    }
    run.finish(key, results, tally)
}

/// The report of an earlier run, where its outputs are what this one would make.
fn unchanged(
    plan: &TagPlan,
    key: &RunKey,
    images: &[PathBuf],
    interrupt: &Interrupt,
) -> Result<Option<TagReport>> {
    let record = record_path(&plan.config.output);
    if !record.exists() {
        return Ok(None);
    }
    let Some(key) = plan.key_with_images(key, images, interrupt)? else { return Ok(None) };
    let made = key.made::<TagReport>(&record)?;
    let outputs = plan.outputs().into_iter().map(Into::into).collect();
    Ok(made.map(|report| TagReport { outcome: Outcome::Unchanged, outputs, ..report }))
}

/// What a run works with.
struct Run<'a> {
    plan: &'a TagPlan,
    ensemble: &'a Ensemble,
    images: &'a [PathBuf],
    /// The places of the pictures that are still to be done.
    todo: &'a [usize],
}

impl Run<'_> {
    /// Scores what is still to be done.
    fn tag(
        &self,
        results: &mut Results,
        interrupt: &Interrupt,
        on_event: &mut dyn FnMut(TagEvent),
    ) -> Result<Option<Speed>> {
        if interrupt.is_raised() || self.todo.is_empty() {
            return Ok(None);
        }
        let config = &self.plan.config;
        let known = results.known();
        let decode = DecodeOptions {
            orientation: !config.ignore_orientation,
            max_pixels: config.max_pixels,
            reduce_to: self.ensemble.reduce_to(),
        };
        let reader = Reader {
            root: &config.images,
            memory: Memory::new(&decode, config.threads),
            decode,
            prepare: &|decoded| self.ensemble.prepare(decoded),
            measure: true,
            known: Some(&|index| known.get(&index).copied()),
        };
        let job = Job {
            scorer: self.ensemble,
            reader: &reader,
            paths: self.images,
            todo: self.todo,
            batch: self.ensemble.batch(config.batch),
            lanes: self.plan.lanes,
            decoders: config.threads,
        };
        let clock = Clock { start: Instant::now(), load: Load::default(), lanes: self.plan.lanes };
        let mut done = self.images.len() - self.todo.len();
        let mut fresh = 0;
        let kept = Kept { min_score: config.min_score as f32, embeddings: config.embeddings };
        job.run(&clock.load, &mut |batch| {
            let indices = self.todo[batch.places].iter().copied();
            let entries = results.add(indices.zip(batch.seen).collect(), kept)?;
            for entry in &entries {
                if let Finding::Skipped(trouble) = &entry.finding {
                    on_event(TagEvent::Skipped {
                        image: entry.image.clone(),
                        reason: trouble.reason.clone(),
                    });
                }
            }
            fresh += entries.len();
            done += entries.len();
            on_event(TagEvent::Progress { done, speed: clock.speed(fresh) });
            Ok(if interrupt.is_raised() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(Some(clock.speed(fresh)))
    }

    /// Writes the tables, and the record of what made them.
    fn finish(&self, key: RunKey, mut results: Results, tally: Tally) -> Result<TagReport> {
        let key_without_images = key.hash();
        let (hash, tally) = self.write_tables(&key, &mut results, tally)?;
        let outcome = if tally.skipped > 0 { Outcome::Skipped } else { Outcome::Done };
        let report = tally.report(self.plan, outcome, self.images, 0);
        let timeless = TagReport { speed: None, ..report.clone() };
        let key = key.input_hashed("images", &self.plan.config.images, hash);
        key.write(&record_path(&self.plan.config.output), &self.plan.outputs(), &timeless)?;
        results.finish(key_without_images)?;
        Ok(report)
    }

    fn write_tables(
        &self,
        key: &RunKey,
        results: &mut Results,
        mut tally: Tally,
    ) -> Result<(ContentHash, Tally)> {
        let mut tags = Table::create(&self.plan.config.output, TAGS)?;
        let mut pictures = Table::create(&self.plan.pictures, PICTURES)?;
        let mut embeddings =
            self.plan.embeddings.as_ref().map(|path| Table::create(path, EMBEDDINGS)).transpose()?;
        let mut skipped = Table::create(&self.plan.skipped, SKIPPED)?;
        let cells = LabelCells::new(self.ensemble.labels());
        let mut hash = ImagesHash::default();
        for index in 0..self.images.len() {
            let entry = results.entry(index)?;
            hash.add_entry(&entry);
            match &entry.finding {
                Finding::Tagged { scores, facts, embedding } => {
                    cells.rows(&entry.image, scores).try_for_each(|row| tags.push(row))?;
                    let looks = facts.looks.expect("this stage measures");
                    pictures.push(picture_row(&entry.image, facts, &looks))?;
                    if let (Some(table), Some(embedding)) = (&mut embeddings, embedding) {
                        table.push(embedding_row(&entry.image, embedding))?;
                    }
                    tally.tagged += 1;
                }
                Finding::Skipped(trouble) => {
                    skipped.push(skipped_row(&entry.image, &trouble.reason))?;
                    tally.skip(&entry.image, &trouble.reason);
                }
            }
        }
        let hash = hash.finish();
        let metadata = metadata(self.plan, key, hash);
        tally.rows = tags.finish(metadata.clone())?;
        for table in [Some(pictures), embeddings].into_iter().flatten() {
            table.finish(metadata.clone())?;
        }
        skipped.finish(Vec::new())?;
        Ok((hash, tally))
    }
}

/// What a report counts.
#[derive(Default)]
struct Tally {
    tagged: usize,
    skipped: usize,
    first_skipped: Vec<SkippedPicture>,
    rows: usize,
    speed: Option<Speed>,
}

impl Tally {
    fn skip(&mut self, image: &str, reason: &str) {
        self.skipped += 1;
        if self.skipped <= NAMED_MAX {
            self.first_skipped.push(SkippedPicture { image: image.to_owned(), reason: reason.to_owned() });
        }
    }

    fn report(self, plan: &TagPlan, outcome: Outcome, images: &[PathBuf], missing: usize) -> TagReport {
        let Self { tagged, skipped, first_skipped, rows, speed } = self;
        // Of an interrupted run nothing was counted yet.
        let tagged = if outcome == Outcome::Interrupted { images.len() - missing } else { tagged };
        let outputs = plan.outputs().into_iter().map(Into::into).collect();
        let (provider, found) = (plan.config.provider, images.len());
        TagReport { outcome, provider, found, tagged, skipped, rows, first_skipped, outputs, speed }
    }
}

/// The time of a run.
struct Clock {
    start: Instant,
    load: Load,
    lanes: usize,
}

impl Clock {
    fn speed(&self, done: usize) -> Speed {
        let elapsed = self.start.elapsed().max(Duration::from_nanos(1)).as_secs_f64();
        let busy = self.load.busy().as_secs_f64() / elapsed / self.lanes as f64;
        Speed { images_per_s: done as f64 / elapsed, network_busy: busy.min(1.0) }
    }
}

/// What the Parquet files say about themselves.
fn metadata(plan: &TagPlan, key: &RunKey, images: ContentHash) -> Vec<(String, String)> {
    let inputs = key.inputs.iter().map(|(name, input)| (name.as_str(), input.sha256));
    let hash = |(name, hash): (&str, ContentHash)| (format!("vodka.{name}_sha256"), hash.to_string());
    let setting = |name: &str, value: String| (format!("vodka.{name}"), value);
    let config = &plan.config;
    let settings = [
        setting("profile", config.profile.to_string()),
        setting("min_score", config.min_score.to_string()),
        setting("provider", config.provider.to_string()),
    ];
    inputs.chain([("images", images)]).map(hash).chain(settings).collect()
}
