//! Makes the pictures of a store that are not in it yet, model by model, one at a time or in batches.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::{Path, PathBuf},
    sync::Arc,
};

use image::RgbImage;
use tch::Device;
use vodka_checkpoint::Precision;
use vodka_stage::Interrupt;

use crate::{
    Batch, Error, Library, Load, ModelSource, Pipeline, Result, Settings,
    ahead::Ahead,
    pipeline::{Form, kind},
    store::{Entry, Store},
};

/// What all pictures of a store share.
pub(crate) struct Making<'a> {
    pub(crate) models: &'a [ModelSource],
    pub(crate) device: Device,
    pub(crate) precision: Precision,
    pub(crate) vae_precision: Precision,
    /// What prompts may name.
    pub(crate) library: &'a Arc<Library>,
    /// How many pictures are made at once.
    pub(crate) batch: usize,
    pub(crate) store: &'a Store,
    pub(crate) interrupt: &'a Interrupt,
}

/// A picture that is to be in the store.
pub(crate) struct Wanted {
    /// The number of its model.
    pub(crate) model: usize,
    /// Its VAE; none for the model's own.
    pub(crate) vae: Option<PathBuf>,
    pub(crate) settings: Settings,
    pub(crate) entry: Entry,
}

/// What happens while pictures are made. Each picture is told of once, by its number.
pub(crate) enum Made<'a> {
    /// A model is being loaded.
    Loading(&'a Path),
    /// CUDA graphs do not work, and why.
    WithoutGraphs(String),
    /// Calls of the UNet that are through, and all, in the pictures at hand.
    Step(usize, usize),
    /// It was there.
    Kept(usize, &'a RgbImage),
    /// It was made.
    New(usize, &'a RgbImage),
    /// It could not be made.
    Failed(usize, &'a Error),
}

/// Who is told of it.
type Teller<'t> = dyn FnMut(Made<'_>) -> Result<()> + 't;

/// The numbers of pictures by the numbers of their models and their VAEs, those with the same ControlNets one after the other: only what
/// a picture needs of these stays loaded.
type Missing = BTreeMap<(usize, Option<PathBuf>), Vec<usize>>;

impl Making<'_> {
    /// Makes those of `count` pictures that are missing; whether all is there, and nothing was interrupted. Each model is
    /// loaded once, and not at all where nothing is to do; while its pictures are made the files of the next one are read.
    ///
    /// With several pictures at once, each batch is full, if need be with pictures that are there twice and thrown away: so
    /// that a picture does not depend on how many others were missing.
    ///
    /// # Errors
    /// A model that cannot be loaded, a store that cannot be written; what `tell` says.
    pub(crate) fn run(
        &self,
        count: usize,
        wanted: &dyn Fn(usize) -> Wanted,
        tell: &mut Teller<'_>,
    ) -> Result<bool> {
        let Some(missing) = self.missing(count, wanted, tell)? else { return Ok(false) };
        let mut ahead = None;
        let mut loaded = None;
        let mut groups = missing.iter().peekable();
        while let Some(((model, vae), pictures)) = groups.next() {
            if self.interrupt.is_raised() {
                return Ok(false);
            }
            let before = loaded.take();
            tell(Made::Loading(self.models[*model].path()))?;
            let Some(pipeline) = self.load(before, &self.models[*model], vae.clone())? else {
                return Ok(false);
            };
            let pipeline = loaded.insert(pipeline);
            drop(ahead.take());
            ahead = groups.peek().map(|((model, vae), _)| {
                let vae = vae.clone().into_iter();
                Ahead::start(files(&self.models[*model]).into_iter().chain(vae).collect())
            });
            if !self.make_all(pictures, pipeline, wanted, tell)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The pictures that are not in the store; none where that was interrupted.
    fn missing(
        &self,
        count: usize,
        wanted: &dyn Fn(usize) -> Wanted,
        tell: &mut Teller<'_>,
    ) -> Result<Option<Missing>> {
        let mut missing: BTreeMap<_, Vec<(Vec<PathBuf>, usize)>> = BTreeMap::new();
        for number in 0..count {
            if self.interrupt.is_raised() {
                return Ok(None);
            }
            let Wanted { model, vae, entry, settings } = wanted(number);
            match self.store.find(&entry) {
                Some(picture) => tell(Made::Kept(number, &picture))?,
                None => {
                    let networks = settings.controls.into_iter().map(|unit| unit.model).collect();
                    missing.entry((model, vae)).or_default().push((networks, number));
                }
            }
        }
        let in_order = |mut pictures: Vec<(Vec<PathBuf>, usize)>| {
            pictures.sort();
            pictures.into_iter().map(|(_, number)| number).collect()
        };
        Ok(Some(missing.into_iter().map(|(group, pictures)| (group, in_order(pictures))).collect()))
    }

    /// Makes pictures of one model; whether it was not interrupted.
    fn make_all(
        &self,
        pictures: &[usize],
        pipeline: &Pipeline,
        wanted: &dyn Fn(usize) -> Wanted,
        tell: &mut Teller<'_>,
    ) -> Result<bool> {
        let mut batches = Batches::new(self.batch);
        // Several places may have the same settings: what is made first is there for the others.
        let mut names = BTreeSet::new();
        let mut twins = Vec::new();
        let mut rest = pictures.iter();
        loop {
            let batch = if let Some(number) = rest.next() {
                let Wanted { settings, entry, .. } = wanted(*number);
                if !names.insert(entry.name.clone()) {
                    twins.push(*number);
                    continue;
                }
                let form = if self.batch > 1 { Some(pipeline.form(&settings)?) } else { None };
                let Some(full) = batches.push(form, Task { number: *number, settings, entry }) else {
                    continue;
                };
                full
            } else {
                let Some(last) = batches.rest() else { break };
                last
            };
            if !self.make(&batch, pipeline, tell)? {
                return Ok(false);
            }
        }
        for number in twins {
            let Wanted { settings, entry, .. } = wanted(number);
            let is_through = match self.store.find(&entry) {
                Some(picture) => tell(Made::Kept(number, &picture)).map(|()| true)?,
                None => self.make(&[Task { number, settings, entry }], pipeline, tell)?,
            };
            if !is_through {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes a batch; whether it was not interrupted. Where a picture cannot be made, the others are made without it.
    fn make(&self, tasks: &[Task], pipeline: &Pipeline, tell: &mut Teller<'_>) -> Result<bool> {
        if self.interrupt.is_raised() {
            return Ok(false);
        }
        let mut settings: Vec<_> = tasks.iter().map(|task| task.settings.clone()).collect();
        settings.resize(self.batch.max(tasks.len()), tasks[tasks.len() - 1].settings.clone());
        let mut told = Ok(());
        let mut on_step = |done, total| {
            if told.is_ok() {
                told = tell(Made::Step(done, total));
            }
        };
        let batch = Batch { settings: &settings, image: None };
        let made = pipeline.generate_batch(batch, self.interrupt, &mut on_step);
        told?;
        if let Some(reason) = pipeline.without_graphs() {
            tell(Made::WithoutGraphs(reason))?;
        }
        match made {
            Ok(Some(pictures)) => {
                for (task, picture) in tasks.iter().zip(&pictures) {
                    self.store.put(&task.entry, picture)?;
                    tell(Made::New(task.number, picture))?;
                }
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) if !error.is_of_one_picture() => Err(error),
            Err(error) => match tasks {
                [task] => {
                    // A damaged file may lie in its place.
                    self.store.remove(&task.entry)?;
                    tell(Made::Failed(task.number, &error))?;
                    Ok(true)
                }
                several => {
                    for task in several {
                        if !self.make(std::slice::from_ref(task), pipeline, tell)? {
                            return Ok(false);
                        }
                    }
                    Ok(true)
                }
            },
        }
    }

    /// Loads a model, in the place of the one before where there is one; `None` where it is interrupted.
    fn load(
        &self,
        before: Option<Pipeline>,
        model: &ModelSource,
        vae: Option<PathBuf>,
    ) -> Result<Option<Pipeline>> {
        let Self { device, precision, vae_precision, .. } = *self;
        let load = Load { vae_kind: kind(vae_precision), vae, ..Load::new(device, kind(precision)) };
        let pipeline = Pipeline::load_unless(before, model.open()?, &load, self.interrupt)?;
        Ok(pipeline.map(|pipeline| pipeline.with_library(Arc::clone(self.library))))
    }
}

/// A picture in hand.
#[derive(Debug, Clone)]
struct Task {
    number: usize,
    settings: Settings,
    entry: Entry,
}

/// Pictures that wait for others of their form.
struct Batches {
    size: usize,
    /// No two of one form, each with fewer pictures than a batch has.
    open: VecDeque<(Option<Form>, Vec<Task>)>,
}

impl Batches {
    fn new(size: usize) -> Self {
        Self { size: size.max(1), open: VecDeque::new() }
    }

    /// Takes a picture; the batch that it makes full.
    fn push(&mut self, form: Option<Form>, task: Task) -> Option<Vec<Task>> {
        let place = self.open.iter().position(|(other, _)| *other == form);
        let place = place.unwrap_or_else(|| {
            self.open.push_back((form, Vec::new()));
            self.open.len() - 1
        });
        self.open[place].1.push(task);
        if self.open[place].1.len() < self.size {
            return None;
        }
        self.open.remove(place).map(|(_, batch)| batch)
    }

    /// A batch that is not full; none when there is none any more.
    fn rest(&mut self) -> Option<Vec<Task>> {
        self.open.pop_front().map(|(_, batch)| batch)
    }
}

/// The files that are read when a model is loaded.
fn files(model: &ModelSource) -> Vec<PathBuf> {
    match model {
        ModelSource::Checkpoint(path) => vec![path.clone()],
        ModelSource::Merge { plan, .. } => {
            plan.graph.parents.iter().map(|parent| parent.path.clone()).collect()
        }
    }
}
