//! Makes the pictures of a probe, has them scored, and writes what they say.

use std::{
    collections::{BTreeMap, HashMap},
    error, fmt,
    path::{Path, PathBuf},
};

use image::{RgbImage, imageops};
use serde::{Deserialize, Serialize};
use vodka_captions::TagTable;
use vodka_sampler::{ModelId, PictureEvent, grid::Look};
use vodka_stage::{
    FolderLock, Hasher, Interrupt, Outcome, Report, RunKey, create_dir, hash_file, hash_tree, lossy,
    record_path,
};
use vodka_tagger::{TagConfig, TagEvent};

use super::{
    ProbePlan, Results, Verdict, gallery, page,
    plan::{Set, Shot},
    response::{Observations, Seen},
    table::{self, Missing},
};
use crate::judge::images_of;

/// What the stage's functions return: any stage's error.
type Result<T, E = Box<dyn error::Error + Send + Sync>> = std::result::Result<T, E>;

/// Raised when equal pictures make other numbers than before.
const ARITHMETIC: u32 = 2;
/// Scores below are taken for 0.
const MIN_SCORE: f64 = 0.01;
/// The sides of the small pictures whose distances are the diversity.
const THUMB_PX: u32 = 8;

/// How far the stage is.
#[derive(Debug)]
pub enum ProbeEvent {
    /// Pictures that are there, and all.
    Pictures(usize, usize),
    /// The tagger is at work on them.
    Tag(TagEvent),
    /// Each call of the UNet is told to the GPU anew, and why: its CUDA graphs do not work.
    WithoutGraphs(String),
    /// A picture could not be made.
    Failed(String),
}

/// What the stage has done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// How it ended.
    pub outcome: Outcome,
    /// The folder with tables and page.
    #[serde(serialize_with = "lossy")]
    pub output: PathBuf,
    /// How many pictures are wanted.
    pub pictures: usize,
    /// How many were made now.
    pub made: usize,
    /// The pictures that are missing and why; they count nowhere.
    pub missing: Vec<String>,
    /// The models, in order.
    pub models: Vec<String>,
    /// The one that the others are compared with.
    pub against: String,
    /// All numbers.
    pub results: Results,
}

impl ProbePlan {
    /// What the outputs depend on.
    ///
    /// # Errors
    /// A model, a selection or a tagger that cannot be read.
    pub fn key(&self) -> Result<RunKey> {
        let set = self.set()?;
        let ids = set.pictures.ids(&Interrupt::new())?;
        self.key_of(&set, &ids)
    }

    fn key_of(&self, set: &Set, ids: &[ModelId]) -> Result<RunKey> {
        #[derive(Serialize)]
        struct Key<'a> {
            arithmetic: u32,
            page: String,
            probe: &'a super::Probe,
            words: Vec<(&'a str, bool, usize)>,
            batch: usize,
            cells: String,
            tagger: TaggerKey<'a>,
        }
        #[derive(Serialize)]
        struct TaggerKey<'a> {
            combine: vodka_tagger::Combine,
            family: &'a Option<String>,
            profile: vodka_tagger::Profile,
        }
        let config = &self.config;
        let mut cells = Hasher::default();
        set.pictures.names(ids).iter().for_each(|name| {
            cells.piece(name);
        });
        let tagger = &config.tagger;
        let key = Key {
            arithmetic: ARITHMETIC,
            page: crate::pages::version().to_string(),
            probe: &config.probe,
            words: set.words.iter().map(|word| (word.name.as_str(), word.is_placebo, word.seeds)).collect(),
            batch: self.batch,
            cells: cells.finish().to_string(),
            tagger: TaggerKey { combine: tagger.combine, family: &tagger.family, profile: tagger.profile },
        };
        let mut key = RunKey::new("probe", &key, None);
        for (id, (name, _)) in ids.iter().zip(&config.models) {
            key = id.add_to(key, &format!("model {name}"));
        }
        for (i, model) in [&tagger.model].into_iter().chain(&tagger.ensemble).enumerate() {
            key = key.input_hashed(&format!("tagger {}", i + 1), model, hash_tree(model, |_| true)?);
        }
        if let Some(data) = &config.data {
            let mut hasher = Hasher::default();
            for file in self.sample(data)? {
                hasher.piece(file.to_string_lossy().as_ref()).piece(hash_file(data.join(&file))?.to_string());
            }
            key = key.input_hashed("sample of the training set", data, hasher.finish());
        }
        Ok(key.input("labels", &config.labels, |_| true)?)
    }

    /// The pictures of the training set that are measured: evenly spaced over their names.
    fn sample(&self, data: &Path) -> Result<Vec<PathBuf>> {
        let all = vodka_images::find(data)?;
        let count = self.config.probe.sample.min(all.len());
        Ok((0..count).map(|i| all[i * all.len() / count].clone()).collect())
    }

    /// How they look; those that cannot be read were told of by the tagger.
    fn looks_of_data(&self) -> Result<Vec<Look>> {
        let Some(data) = &self.config.data else { return Ok(Vec::new()) };
        let look = |file: PathBuf| {
            let picture = vodka_images::decode(&data.join(file)).ok()?;
            Some(Look::of(&picture.into_rgb()))
        };
        Ok(self.sample(data)?.into_iter().filter_map(look).collect())
    }

    fn tagger(&self) -> TagConfig {
        let config = &self.config;
        TagConfig {
            images: config.output.join("cells"),
            output: config.output.join("tags.parquet"),
            min_score: MIN_SCORE,
            embeddings: false,
            ..config.tagger.clone()
        }
    }
}

/// A picture as it is measured: its look, and the numbers of a very small one.
type Measured = (Look, Vec<f32>);

fn measured(picture: &RgbImage) -> Measured {
    let small = imageops::thumbnail(picture, THUMB_PX, THUMB_PX);
    (Look::of(picture), small.iter().map(|value| f32::from(*value) / 255.0).collect())
}

/// Makes the pictures that are missing, has the tagger score all, and writes tables, charts, galleries and the page.
///
/// A run that was killed goes on where it was; one that has grown makes its new pictures alone, and the tagger scores those alone.
///
/// # Errors
/// Those of the sampler and the tagger; a placebo that stands in a caption; files that cannot be written.
pub fn run(
    plan: &ProbePlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(ProbeEvent),
) -> Result<ProbeReport> {
    plan.check_placebos()?;
    let set = plan.set()?;
    let output = &plan.config.output;
    let mut report = ProbeReport {
        outcome: Outcome::Done,
        output: output.clone(),
        pictures: set.pictures.wanted.len(),
        made: 0,
        missing: Vec::new(),
        models: plan.config.models.iter().map(|(name, _)| name.clone()).collect(),
        against: plan.config.models[plan.against].0.clone(),
        results: Results::default(),
    };
    let ids = match set.pictures.ids(interrupt) {
        Err(vodka_sampler::Error::Interrupted) => {
            return Ok(ProbeReport { outcome: Outcome::Interrupted, ..report });
        }
        ids => ids?,
    };
    let key = plan.key_of(&set, &ids)?;
    let files = set.pictures.names(&ids);
    let record = record_path(output);
    if let Some(report) = key.made::<ProbeReport>(&record)? {
        let outcome = Outcome::Unchanged.with_skips(!report.missing.is_empty());
        return Ok(ProbeReport { outcome, output: output.clone(), made: 0, ..report });
    }
    create_dir(output)?;
    let _output = FolderLock::take(output)?;
    let mut missing = Missing::new();
    let Some(looks) = make(&set, &ids, (&mut report, &mut missing), interrupt, on_event)? else {
        return Ok(ProbeReport { outcome: Outcome::Interrupted, ..report });
    };
    let tagger = plan.tagger().plan()?;
    let tagged = vodka_tagger::run(&tagger, interrupt, &mut |event| on_event(ProbeEvent::Tag(event)))?;
    if tagged.outcome == Outcome::Interrupted {
        return Ok(ProbeReport { outcome: Outcome::Interrupted, ..report });
    }
    let skipped = images_of(&tagger.skipped)?;
    for (place, file) in files.iter().enumerate().filter(|(_, file)| skipped.contains(*file)) {
        missing.entry(place).or_insert_with(|| format!("the tagger could not read {file}"));
    }
    let seen = join(&plan.tagger().output, &set, &files, looks, &missing)?;
    let observations = Observations {
        models: &report.models,
        against: plan.against,
        words: &set.words,
        expected: &set.expected,
        seen,
    };
    let results = observations.results(&plan.looks_of_data()?);
    table::write(plan, &set, &files, &observations, &missing, &results)?;
    gallery::write(plan, &set, &files)?;
    page::write(plan, &set, &results, missing.len())?;
    let mut told: Vec<_> = missing.into_iter().collect();
    told.sort();
    report.missing = told.into_iter().map(|(place, reason)| format!("{}: {reason}", files[place])).collect();
    report.outcome = Outcome::Done.with_skips(!report.missing.is_empty());
    report.results = results;
    key.write(&record, &[output], &report)?;
    Ok(report)
}

/// Makes the pictures; what those that are there look like, or none where that was interrupted.
fn make(
    set: &Set,
    ids: &[ModelId],
    (report, missing): (&mut ProbeReport, &mut Missing),
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(ProbeEvent),
) -> Result<Option<Vec<Option<Measured>>>> {
    let total = set.shots.len();
    let mut looks = vec![None; total];
    let mut done = 0;
    let is_through = set.pictures.make(ids, interrupt, &mut |event| {
        match event {
            PictureEvent::Loading { .. } => return,
            PictureEvent::WithoutGraphs { reason } => return on_event(ProbeEvent::WithoutGraphs(reason)),
            PictureEvent::Picture { number, picture, is_new } => {
                looks[number] = Some(measured(picture));
                report.made += usize::from(is_new);
            }
            PictureEvent::Failed { number, reason } => {
                let settings = &set.pictures.wanted[number].settings;
                on_event(ProbeEvent::Failed(format!(
                    "seed {} of \"{}\": {reason}",
                    settings.seed, settings.prompt
                )));
                missing.insert(number, reason.to_string());
            }
        }
        done += 1;
        on_event(ProbeEvent::Pictures(done, total));
    })?;
    Ok(is_through.then_some(looks))
}

/// Puts the scores to the pictures that have all.
fn join(
    table: &Path,
    set: &Set,
    files: &[String],
    looks: Vec<Option<Measured>>,
    missing: &Missing,
) -> Result<BTreeMap<Shot, Seen>> {
    let scored = set.scored();
    let wanted: Vec<_> = scored.iter().map(String::as_str).collect();
    let scores = TagTable::open(table)?.scores(&wanted)?.by_image;
    let seen = looks.into_iter().enumerate().filter_map(|(place, measured)| {
        let (look, thumb) = measured.filter(|_| !missing.contains_key(&place))?;
        let found = scores.get(&files[place]).into_iter().flatten();
        let scores: HashMap<_, _> = found.map(|score| (scored[score.tag].clone(), score.score)).collect();
        Some((set.shots[place], Seen { look, thumb, scores }))
    });
    Ok(seen.collect())
}

impl Report for ProbeReport {
    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

impl fmt::Display for ProbeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let output = self.output.display();
        let Self { pictures, made, .. } = self;
        match self.outcome {
            Outcome::Unchanged => return write!(f, "{output} is there already, with {pictures} pictures"),
            Outcome::Interrupted => {
                return write!(f, "{made} pictures were made; they are not all there yet");
            }
            Outcome::Done | Outcome::Skipped => {
                write!(f, "{output}/index.html: {pictures} pictures, {made} made")?;
            }
        }
        for model in &self.models {
            let all: Vec<_> = self.results.verdicts.iter().filter(|row| row.model == *model).collect();
            let names = |keep: fn(&Verdict) -> bool| {
                let names: Vec<_> = all.iter().filter(|row| keep(row)).map(|row| row.tag.as_str()).collect();
                if names.is_empty() { "none".to_owned() } else { names.join(", ") }
            };
            write!(f, "\n{model} responds to {}", names(|row| row.responds))?;
            write!(f, "; in the negative prompt to {}", names(|row| row.refuses))?;
            write!(f, "; to neither: {}", names(|row| !row.responds && !row.refuses))?;
            let adherence = self.results.adherence.iter().find(|row| row.model == *model);
            if let Some(share) = adherence.and_then(|row| row.share) {
                write!(f, "; {:.1} % of what is asked for is found", 100.0 * share.value)?;
            }
        }
        for missing in &self.missing {
            write!(f, "\nmissing: {missing}")?;
        }
        Ok(())
    }
}
