//! The jobs of a recipe, their order, and where their files lie.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
};

use serde::Serialize;
use vodka_stage::{Interrupt, RunRecord, record_path};
use vodka_tagger::hub::{self, Download, HubConfig, ModelRef};
use vodka_trainer::TrainReport;

use crate::{ChooseReport, Error, Recipe, Result, probe::Tags, recipe::Captions};

/// One run of one stage.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub enum Job {
    /// Score every picture.
    Tag,
    /// Put the scores through rules.
    Clean,
    /// Leave pictures out.
    Filter,
    /// Choose tags.
    Select,
    /// Show what the tags do.
    Report,
    /// Put a captioner's captions beside those of the pictures.
    Recaption,
    /// Take of each picture the one or the other.
    Mix,
    /// Write captions.
    Caption,
    /// Train the model of this name.
    Train(String),
    /// Make the mix of this name.
    Merge(String),
    /// Make the grid of this name.
    Grid(String),
    /// Join the cells of the grid of this name with the tagger's scores of them.
    Judge(String),
    /// Measure what tags do, as the probe of this name says.
    Probe(String),
    /// Choose a model, as the choice of this name says.
    Choose(String),
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag => f.write_str("tag"),
            Self::Clean => f.write_str("clean"),
            Self::Filter => f.write_str("filter"),
            Self::Select => f.write_str("select"),
            Self::Report => f.write_str("report"),
            Self::Recaption => f.write_str("recaption"),
            Self::Mix => f.write_str("mix"),
            Self::Caption => f.write_str("caption"),
            Self::Train(name) => write!(f, "train {name}"),
            Self::Merge(name) => write!(f, "merge {name}"),
            Self::Grid(name) => write!(f, "grid {name}"),
            Self::Judge(name) => write!(f, "judge {name}"),
            Self::Probe(name) => write!(f, "probe {name}"),
            Self::Choose(name) => write!(f, "choose {name}"),
        }
    }
}

impl From<Job> for String {
    fn from(job: Job) -> Self {
        job.to_string()
    }
}

/// A recipe in order.
#[derive(Debug, Clone)]
pub struct Workflow {
    pub(crate) recipe: Recipe,
    pub(crate) runtime_dir: PathBuf,
    pub(crate) hash_cache: Option<PathBuf>,
    path: PathBuf,
    jobs: Vec<Job>,
}

impl Workflow {
    /// Reads a recipe and puts its jobs in order.
    pub fn open(path: &Path, runtime_dir: PathBuf) -> Result<Self> {
        let recipe = Recipe::read(path)?;
        let jobs = order(&recipe, path)?;
        Ok(Self { recipe, runtime_dir, hash_cache: None, path: path.to_path_buf(), jobs })
    }

    /// The same with another folder for everything that is made: a second run beside the first.
    #[must_use]
    pub fn with_output(mut self, output: PathBuf) -> Self {
        self.recipe.workflow.output = output;
        self
    }

    /// The same with this seed for every training; -1 draws one.
    #[must_use]
    pub fn with_seed(mut self, seed: i64) -> Self {
        self.recipe.train.iter_mut().for_each(|train| train.config.seed = seed);
        self
    }

    /// The same with a file that remembers hashes of checkpoints by path, size and time of change; none, as at first, to
    /// hash those of merges every time.
    #[must_use]
    pub fn with_hash_cache(self, file: Option<PathBuf>) -> Self {
        Self { hash_cache: file, ..self }
    }

    /// Puts folders in the place of taggers that the recipe names as the hub does, downloading what is not here yet.
    ///
    /// # Errors
    /// A file of `[models]` is missing; [`Error::Interrupted`]; a tagger that the hub has not, or that is not here when `hub`
    /// is offline.
    pub fn fetch(
        &mut self,
        hub: &HubConfig,
        interrupt: &Interrupt,
        on_progress: &mut dyn FnMut(Download<'_>),
    ) -> Result<()> {
        // Not after a download.
        self.check_models()?;
        let hub = HubConfig { family: self.recipe.tag.family.clone(), ..hub.clone() };
        for model in self.recipe.tag.models() {
            let found = hub::resolve(&ModelRef::parse(&*model), &hub, interrupt, on_progress);
            *model = found.map_err(|source| match source {
                vodka_tagger::Error::Interrupted { what } => Error::Interrupted { what },
                source => Error::Settings { job: Job::Tag.to_string(), source: source.into() },
            })?;
        }
        Ok(())
    }

    /// How many trainings run side by side.
    pub(crate) fn trainings_at_once(&self) -> usize {
        self.recipe.workflow.trainings_at_once.get()
    }

    /// The jobs, in the order in which they run: each after those whose files it reads, grids as early as they can.
    pub fn jobs(&self) -> &[Job] {
        &self.jobs
    }

    /// The file of the recipe.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of everything that is made.
    pub fn output(&self) -> &Path {
        &self.recipe.workflow.output
    }

    /// Every file of `[models]` is there.
    pub(crate) fn check_models(&self) -> Result<()> {
        match self.recipe.models.iter().find(|(_, path)| !path.exists()) {
            Some((name, path)) => {
                let (recipe, name, path) = (self.path.clone(), name.clone(), path.clone());
                Err(Error::ModelMissing { recipe, name, path })
            }
            None => Ok(()),
        }
    }

    /// What a job makes.
    pub fn output_of(&self, job: &Job) -> PathBuf {
        let output = self.output();
        match job {
            Job::Tag => output.join("tags.parquet"),
            Job::Clean => output.join("cleaned.parquet"),
            Job::Filter => output.join("pictures"),
            Job::Select => output.join("selection.csv"),
            Job::Report => output.join("report"),
            Job::Recaption => output.join("recaptions.csv"),
            Job::Mix => output.join("mixed"),
            Job::Caption => output.join("captions"),
            Job::Train(name) => output.join("train").join(name),
            Job::Merge(name) => output.join("mixes").join(format!("{name}.safetensors")),
            Job::Grid(name) => output.join("grids").join(name),
            Job::Judge(name) => output.join("judged").join(name),
            Job::Probe(name) => output.join("probes").join(name),
            Job::Choose(name) => output.join("chosen").join(name),
        }
    }

    /// The jobs whose files a job reads.
    pub fn needs(&self, job: &Job) -> Vec<Job> {
        let makers =
            |models: &mut dyn Iterator<Item = &String>| models.filter_map(|m| self.maker(m)).collect();
        match job {
            Job::Tag | Job::Select => Vec::new(),
            Job::Clean => vec![Job::Tag],
            Job::Report => vec![self.table(), Job::Select],
            Job::Filter => vec![self.table()],
            Job::Recaption => self.filter().collect(),
            Job::Mix => vec![Job::Recaption],
            Job::Caption => {
                [self.table(), Job::Select].into_iter().chain(self.filter()).chain(self.mixing()).collect()
            }
            Job::Train(name) => match self.recipe.train_of(name).captions {
                Captions::Tagged => vec![Job::Caption],
                Captions::Original => self.filter().chain(self.mixing()).collect(),
            },
            Job::Merge(name) => makers(&mut self.recipe.merge_of(name).models()),
            Job::Grid(name) => makers(&mut self.recipe.grid_of(name).models.iter()),
            Job::Judge(name) => vec![Job::Grid(name.clone())],
            Job::Choose(name) => vec![Job::Probe(self.recipe.choose_of(name).probe.clone())],
            Job::Probe(name) => {
                let probe = self.recipe.probe_of(name);
                let mut needs: Vec<Job> = makers(&mut probe.models.iter());
                needs.extend((probe.tags == Tags::Selection).then_some(Job::Select));
                // No placebo may stand in them.
                needs.extend((!probe.placebo.is_empty()).then_some(Job::Caption));
                // How its pictures look is told beside those of the training set.
                needs.extend(self.filter());
                needs
            }
        }
    }

    /// The job that makes the tag table which reports and captions read.
    pub(crate) fn table(&self) -> Job {
        if self.recipe.clean.is_some() { Job::Clean } else { Job::Tag }
    }

    /// The job that leaves pictures out, if any are.
    fn filter(&self) -> impl Iterator<Item = Job> {
        self.recipe.filter.iter().map(|_| Job::Filter)
    }

    /// The job that mixes a captioner's captions in, if any are.
    fn mixing(&self) -> impl Iterator<Item = Job> {
        self.recipe.recaption.iter().map(|_| Job::Mix)
    }

    /// The captions before tags; none where they stand beside the pictures.
    pub(crate) fn untagged(&self) -> Option<PathBuf> {
        self.mixing().next().map(|job| self.output_of(&job))
    }

    /// The folder of the pictures that are captioned and trained on.
    pub(crate) fn pictures(&self) -> PathBuf {
        self.filter().next().map_or_else(|| self.recipe.workflow.images.clone(), |job| self.output_of(&job))
    }

    /// The job that makes a model; none for those that are there already.
    fn maker(&self, model: &str) -> Option<Job> {
        let mixed = self.recipe.merge.iter().any(|merge| merge.name == model);
        match self.recipe.trained_at(model) {
            _ if mixed => Some(Job::Merge(model.to_owned())),
            _ if self.recipe.choose.iter().any(|choose| choose.name == model) => {
                Some(Job::Choose(model.to_owned()))
            }
            Some((training, _)) => Some(Job::Train(training.to_owned())),
            None => None,
        }
    }

    /// The file of a model. That of a trained one is known when training is through.
    pub fn model(&self, name: &str) -> Result<PathBuf> {
        if let Some(path) = self.recipe.models.get(name) {
            return Ok(path.clone());
        }
        match self.maker(name) {
            Some(Job::Train(training)) => self.trained(&training, name),
            Some(Job::Choose(_)) => self.model(&self.chosen(name)?),
            _ => Ok(self.output_of(&Job::Merge(name.to_owned()))),
        }
    }

    /// The model that a choice has taken.
    pub(crate) fn chosen(&self, name: &str) -> Result<String> {
        let not_yet = || Error::NotChosen { model: name.to_owned() };
        let record = record_path(&self.output_of(&Job::Choose(name.to_owned())));
        let record = RunRecord::read(&record).map_err(|_| not_yet())?;
        let report: ChooseReport = serde_json::from_value(record.report).map_err(|_| not_yet())?;
        Ok(report.choice.model)
    }

    fn trained(&self, training: &str, name: &str) -> Result<PathBuf> {
        let not_yet = || Error::NotTrained { model: name.to_owned() };
        let folder = self.output_of(&Job::Train(training.to_owned()));
        let record = RunRecord::read(&record_path(&folder)).map_err(|_| not_yet())?;
        let report: TrainReport = serde_json::from_value(record.report).map_err(|_| not_yet())?;
        let (_, epoch) = self.recipe.trained_at(name).ok_or_else(not_yet)?;
        let epochs = self.recipe.train_of(training).saved_epochs();
        let place = epochs.iter().position(|saved| *saved == epoch).ok_or_else(not_yet)?;
        let file = report.checkpoints.get(place).and_then(|path| path.file_name()).ok_or_else(not_yet)?;
        Ok(folder.join(file))
    }
}

/// Each job after those it needs; of those that can run, grids before probes before choices before mixes, else as the recipe has them.
fn order(recipe: &Recipe, path: &Path) -> Result<Vec<Job>> {
    let mut jobs = vec![Job::Tag];
    jobs.extend(recipe.clean.is_some().then_some(Job::Clean));
    jobs.push(Job::Select);
    jobs.extend(recipe.report.is_some().then_some(Job::Report));
    jobs.extend(recipe.filter.is_some().then_some(Job::Filter));
    jobs.extend(recipe.recaption.iter().flat_map(|_| [Job::Recaption, Job::Mix]));
    jobs.push(Job::Caption);
    jobs.extend(recipe.train.iter().map(|train| Job::Train(train.name.clone())));
    let mut there: BTreeSet<&String> = recipe.models.keys().collect();
    let trained: Vec<_> = recipe.trained_names().collect();
    there.extend(&trained);
    let mut grids: Vec<_> = recipe.grid.iter().collect();
    let mut probes: Vec<_> = recipe.probe.iter().collect();
    let mut merges: Vec<_> = recipe.merge.iter().collect();
    let mut choices: Vec<_> = recipe.choose.iter().collect();
    while !grids.is_empty() || !probes.is_empty() || !merges.is_empty() || !choices.is_empty() {
        let is_made = |probe: &String| !probes.iter().any(|waiting| waiting.name == *probe);
        let are_there = |models: &[String]| models.iter().all(|model| there.contains(model));
        if let Some(i) = grids.iter().position(|grid| are_there(&grid.models)) {
            let grid = grids.remove(i);
            jobs.push(Job::Grid(grid.name.clone()));
            jobs.extend(grid.judge.then(|| Job::Judge(grid.name.clone())));
        } else if let Some(i) = probes.iter().position(|probe| are_there(&probe.models)) {
            jobs.push(Job::Probe(probes.remove(i).name.clone()));
        } else if let Some(i) = choices.iter().position(|choose| is_made(&choose.probe)) {
            let choose = choices.remove(i);
            there.insert(&choose.name);
            jobs.push(Job::Choose(choose.name.clone()));
        } else if let Some(i) = merges.iter().position(|merge| merge.models().all(|m| there.contains(m))) {
            let merge = merges.remove(i);
            there.insert(&merge.name);
            jobs.push(Job::Merge(merge.name.clone()));
        } else {
            // Every name is known, so what is left waits for itself.
            let name = merges.first().map(|merge| &merge.name).or(choices.first().map(|choose| &choose.name));
            let name = name.expect("grids and probes wait for a mix or a choice").clone();
            return Err(Error::Circle { recipe: path.to_path_buf(), name });
        }
    }
    Ok(jobs)
}
