//! The stage: from a plan to checkpoints.

mod batch;
mod beside;
mod checkpoint;
mod find;
mod memory;
mod optimize;
mod sample;
mod save;
mod validate;

pub use find::find_lr;

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use rayon::ThreadPool;
use tch::{Device, Kind, Tensor};
use vodka_checkpoint::{Checkpoint, ModelConfig, Prediction, keys};
use vodka_noise::Schedule;
use vodka_prompt::{CONTEXT_LENGTH, EOS};
use vodka_sd15::{Network, StableDiffusion, catch, device_type, native, parse_device};
use vodka_stage::{
    ContentHash, FolderLock, Interrupt, Outcome, RunKey, RunRecord, create_dir, explain, hash_bytes,
    record_path, write_atomic,
};

use self::{batch::places_after, beside::Beside, optimize::Steps};
use crate::{
    AuditReport, Compat, EFFECTIVE_JSON, Error, OnNan, Result, TrainEvent, TrainPlan, TrainReport,
    ahead::{Ahead, pool},
    audit::look,
    cache::Cache,
    data::{Dataset, Example},
    draft::{Draft, Drafter, Place, Role, identity},
    ema::Ema,
    epoch::{Entry, EpochSettings, Epochs, Planned, batches, batches_by_epoch, groups},
    optimizer::PartSettings,
    optimizers::{Optimizer, Parameter},
    samples::SampleFile,
    state::{self, Progress},
    step::Objective,
    validation::STABILIZED,
    watch::{LossesFile, Meter, Phase, Row, Validations, Watch, finite_mean},
};

/// How often each picture was trained on.
const EXPOSURES: &str = "exposures.csv";

/// Trains as planned. A run whose state is in the output folder goes on; one that was finished is not repeated.
///
/// One process may train several models at a time. The number of libtorch's threads (and what oneDNN prepares for it) and how a
/// GPU computes are the process's own: such runs have the same `threads`, and on a GPU `tf32` and `deterministic`.
///
/// # Errors
/// Another run in the output folder ([`vodka_stage::Error::Busy`]), or one in this process with other numbers
/// ([`Error::Beside`]); a disk without room for what is to be written, by this run or all of this process together;
/// a base checkpoint that is damaged or of another architecture; pictures without captions, or none at all; a loss that
/// is not finite; a device or a disk that fails.
pub fn run(
    plan: &TrainPlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(TrainEvent),
) -> Result<TrainReport> {
    let key = plan.key()?;
    let record = record_path(&plan.output);
    create_dir(&plan.output)?;
    let _lock = FolderLock::take(&plan.output)?;
    if !plan.start_over
        && let Some(report) = key.made::<TrainReport>(&record)?
    {
        if !plan.save_optimizer {
            // Left behind by a kill between the record and this.
            state::delete(&plan.output)?;
        }
        // The folder may have been moved since.
        let moved = |paths: &[PathBuf]| {
            let names = paths.iter().filter_map(|path| path.file_name());
            names.map(|name| plan.output.join(name)).collect()
        };
        let (checkpoints, ema_checkpoints) = (moved(&report.checkpoints), moved(&report.ema_checkpoints));
        return Ok(TrainReport { outcome: Outcome::Unchanged, checkpoints, ema_checkpoints, ..report });
    }
    let beside = Beside::enter(plan, &key)?;
    let Some(mut run) = Run::prepared(plan, &key, interrupt, on_event)? else {
        return Ok(TrainReport::nothing_yet(plan));
    };
    if run.progress.step() > 0 {
        run.forget_unfinished()?;
    }
    beside.reserve(run.to_come())?;
    let lower = memory::lower_in_training(&plan.settings, plan.settings.batch_size);
    let trained = catch(|| run.train(interrupt, on_event));
    let trained = trained.map_err(|source| memory::of("training", &lower, source)).flatten();
    let finished = match trained {
        Ok(finished) => finished,
        Err(error) => {
            // Of use, where it works; the error is what counts.
            let _ = catch(|| run.save_errored(on_event));
            return Err(error);
        }
    };
    let report = run.report(finished);
    if finished {
        let losses_file = LossesFile::path_in(&plan.output);
        let validations = run.validations.as_ref().map(|_| Validations::path_in(&plan.output));
        let folders: Vec<_> = run.folders().collect();
        let outputs = report.checkpoints.iter().chain(&report.ema_checkpoints).chain(&folders);
        let exposures = plan.output.join(EXPOSURES);
        let outputs = outputs.chain([&losses_file, &exposures]).chain(&validations);
        let outputs: Vec<_> = outputs.map(PathBuf::as_path).collect();
        // What a run took is no part of what it made.
        key.write(&record, &outputs, &TrainReport { spent: Vec::new(), ..report.clone() })?;
        if !plan.save_optimizer {
            state::delete(&plan.output)?;
        }
    }
    Ok(report)
}

/// How far the run has come, with what is trained as it was then.
fn restored(
    plan: &TrainPlan,
    key: &RunKey,
    optimizers: &mut [(&str, &mut Optimizer)],
    ema: Option<&mut Ema>,
    on_event: &mut dyn FnMut(TrainEvent),
) -> Result<Option<Progress>> {
    state::delete_partial(&plan.output)?;
    if plan.start_over {
        state::delete(&plan.output)?;
    }
    let progress = state::restore(&plan.output, key, optimizers, ema, on_event)?;
    if progress.is_none() {
        tell_of_another_run(key, &record_path(&plan.output), on_event);
    }
    Ok(progress)
}

/// Says in what a run that is through in the output folder differs from this one, which replaces it.
fn tell_of_another_run(key: &RunKey, record: &Path, on_event: &mut dyn FnMut(TrainEvent)) {
    let change = RunRecord::read(record).ok().and_then(|found| key.difference(&found));
    if let Some(change) = change {
        on_event(TrainEvent::AnotherRun { path: record.to_path_buf(), change });
    }
}

/// The learning rates of UNet and text encoder in each batch of a run; 0 for what is left as it is.
#[derive(Clone, Copy)]
struct Rates {
    settings: [Option<PartSettings>; 2],
    /// All batches of the run.
    steps: u64,
    /// These in all batches, whatever the settings say: for the learning-rate finder.
    fixed: Option<[f64; 2]>,
}

impl Rates {
    /// For the batch `step`, counted from 1.
    fn at(&self, step: u64) -> [f64; 2] {
        if let Some(fixed) = self.fixed {
            return fixed;
        }
        self.settings.map(|settings| {
            settings.map_or(0.0, |part| part.schedule(self.steps).rate(part.optimizer.lr, step - 1))
        })
    }

    /// The text encoder's rate to that of the UNet; 1 where one of them is left as it is.
    fn proportion(&self) -> f64 {
        let [unet, text_encoder] = self.settings.map(|settings| settings.map(|part| part.optimizer.lr));
        unet.zip(text_encoder).map_or(1.0, |(unet, text_encoder)| text_encoder / unet)
    }
}

/// A training run in memory.
struct Run<'a> {
    plan: &'a TrainPlan,
    key: &'a RunKey,
    base: ContentHash,
    /// Of pictures and captions.
    data: ContentHash,
    model: StableDiffusion,
    unet: Option<Optimizer>,
    text_encoder: Option<Optimizer>,
    ema: Option<Ema>,
    objective: Objective,
    rates: Rates,
    dataset: Dataset,
    /// Makes drafts of the pictures that are trained on.
    training: Drafter,
    /// Those of the next batches.
    ahead: RefCell<Ahead<Place, Result<Draft>>>,
    /// Threads for them.
    pool: Arc<ThreadPool>,
    /// The hash of the text encoder, where it is not trained.
    frozen_text: Option<ContentHash>,
    /// What epochs are made from: the examples, in their order.
    entries: Vec<Entry>,
    epoch_settings: EpochSettings,
    epochs: Epochs,
    progress: Progress,
    /// When the last state was saved, or this run began.
    state_saved_at: Instant,
    steps: Steps,
    /// How often each example has been in a batch.
    exposures: Vec<u64>,
    losses_file: LossesFile,
    validations: Option<Validations>,
    watch: Watch,
    samples: Option<SampleFile>,
    /// When the last checkpoint was written.
    saved_at: Instant,
    /// When the epoch in hand began, or was gone on with.
    epoch_began: Instant,
}

impl<'a> Run<'a> {
    /// Loads everything, and the state of an interrupted run; `None` when interrupted before it is all there.
    fn prepared(
        plan: &'a TrainPlan,
        key: &'a RunKey,
        interrupt: &Interrupt,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<Option<Self>> {
        let prepared = catch(|| Self::prepare(plan, key, interrupt, on_event));
        prepared.map_err(|source| memory::in_preparation(plan, source)).flatten()
    }

    fn prepare(
        plan: &'a TrainPlan,
        key: &'a RunKey,
        interrupt: &Interrupt,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<Option<Self>> {
        let checkpoint = open_base(plan)?;
        let stride = checkpoint.config().vae.downscale() as u32;
        write_atomic(plan.output.join(EFFECTIVE_JSON), plan.effective())?;
        plan.notices.iter().for_each(|notice| on_event(TrainEvent::Notice(notice.clone())));
        let Some((audited, looked)) = look(plan, interrupt, on_event)? else { return Ok(None) };
        on_event(TrainEvent::Audit(Box::new(audited.clone())));
        audited.check(plan)?;
        let device = parse_device(&plan.device, &plan.runtime_dir)?;
        let mut model = load_model(plan, &checkpoint, device)?;
        let mut meter = Meter::new(device);
        meter.enter(Phase::Data);
        let pool = pool(plan.data_threads);
        let Some(dataset) = Dataset::load(plan, stride, &pool, &looked, interrupt, on_event)? else {
            return Ok(None);
        };
        check_unchanged(plan, &audited, &dataset)?;
        let training = drafter(plan, &dataset, &model)?;
        tell_of_small_cache(plan, &training, on_event);
        let frozen_text = match plan.settings.text_encoder {
            Some(_) => None,
            None => Some(computed(identity(&model.clip)?, plan)),
        };
        let (mut unet, mut text_encoder) = optimizers(plan, &mut model)?;
        let entries = entries(&dataset.examples);
        let epoch_settings = epoch_settings(plan);
        let epochs = epochs(&entries, &epoch_settings)?;
        let mut ema = means(plan, epochs.steps(), [("unet", &unet), ("text_encoder", &text_encoder)])?;
        let optimizers = &mut by_name_mut(&mut unet, &mut text_encoder);
        let progress = restored(plan, key, optimizers, ema.as_mut(), on_event)?;
        let done = progress.as_ref().map(|progress| progress.losses.as_slice());
        let watch = Watch::start(plan, key.hash(), done, meter)?;
        let progress = progress.unwrap_or_default();
        let (settings, steps) = ([plan.settings.unet, plan.settings.text_encoder], epochs.steps());
        let rates = Rates { settings, steps, fixed: None };
        let places = places_after(progress.step(), &entries, epoch_settings, &epochs);
        let run = Self {
            ahead: RefCell::new(look_ahead(plan, &pool, &training, places)),
            training,
            pool,
            frozen_text,
            losses_file: LossesFile::start(&plan.output, rows(&progress, &epochs, rates))?,
            validations: Validations::start(&plan.output, &dataset.sets, &progress, &epochs)?,
            rates,
            key,
            base: key.inputs["checkpoint"].sha256,
            data: data_hash(key),
            watch,
            samples: plan.sample_prompts.as_deref().map(SampleFile::open).transpose()?,
            saved_at: Instant::now(),
            epoch_began: Instant::now(),
            objective: objective(plan, model.config.prediction),
            plan,
            model,
            unet,
            text_encoder,
            ema,
            dataset,
            exposures: exposures(&entries, &epoch_settings, &epochs, &progress, plan.settings.compat),
            entries,
            epoch_settings,
            epochs,
            steps: Steps::new(plan, &progress, device, on_event),
            progress,
            state_saved_at: Instant::now(),
        };
        run.check_earlier_checkpoints()?;
        Ok(Some(run))
    }

    /// Trains to the end (`true`) or to an interruption (`false`).
    fn train(&mut self, interrupt: &Interrupt, on_event: &mut dyn FnMut(TrainEvent)) -> Result<bool> {
        let steps = self.epochs.steps();
        let (done, steps_per_epoch) = (self.progress.step(), self.epochs.end(1));
        self.watch.meter.start(steps - done);
        on_event(TrainEvent::Started { steps, done, steps_per_epoch });
        if done == 0 && self.progress.validations.is_empty() {
            self.validate(on_event)?;
        }
        self.sample_what_is_owed(interrupt, on_event)?;
        while self.progress.step() < steps {
            let epoch = self.epochs_done() + 1;
            let batches = batches(&self.entries, &self.epoch_settings, epoch);
            let done = self.epochs.done_within(self.progress.step());
            if self.plan.write_schedule {
                self.write_schedule(epoch, &batches)?;
            }
            let settings = &self.plan.settings;
            // States are saved where an optimizer step ends.
            let before = settings.compat.accumulated_before(self.progress.step(), settings.grad_accum);
            let first = groups(&batches[done..], settings.grad_accum, before).next();
            if let Some(first) = first.filter(|_| self.progress.step() == 0) {
                self.sample_before(first, interrupt, on_event)?;
            }
            let mut last = 0;
            for group in groups(&batches[done..], settings.grad_accum, before) {
                last = group.len() as u64;
                if interrupt.is_raised() {
                    self.save_state(on_event)?;
                    // The state is what counts.
                    if let Err(error) = self.save_interrupted(on_event) {
                        on_event(TrainEvent::InterruptedNotSaved { reason: explain(&error) });
                    }
                    return Ok(false);
                }
                let before = self.progress.step();
                if let Err(error) = self.optimizer_step(epoch, group, on_event) {
                    if error.is_of_data() {
                        self.save_state(on_event)?;
                    }
                    return Err(error);
                }
                if let Some((path, reason)) = self.training.cache.failure() {
                    on_event(TrainEvent::CacheFailed { path, reason });
                }
                let done = self.progress.step();
                self.ema.iter_mut().for_each(|ema| ema.update(before, done));
                self.validate_where_due(before, on_event)?;
                self.sample_where_due(before, group, interrupt, on_event)?;
                self.save_by_the_clock(on_event)?;
                self.save_state_where_due(last, on_event)?;
            }
            self.end_epoch(epoch, last, on_event)?;
        }
        if self.progress.owes_samples {
            self.save_state(on_event)?;
            return Ok(false);
        }
        Ok(true)
    }

    /// Makes drafts for places ahead of their use.
    fn look_ahead(
        &self,
        drafter: &Drafter,
        places: impl Iterator<Item = Place> + 'static,
    ) -> Ahead<Place, Result<Draft>> {
        look_ahead(self.plan, &self.pool, drafter, places)
    }

    fn epochs_done(&self) -> u64 {
        self.epochs.done(self.progress.step())
    }

    fn report(&self, finished: bool) -> TrainReport {
        let losses = |epoch: u64| {
            let all = &self.progress.losses;
            let bound = |epoch| (self.epochs.end(epoch) as usize).min(all.len());
            &all[bound(epoch - 1)..bound(epoch)]
        };
        let by_epoch: Vec<_> = (1..=self.plan.settings.max_epochs)
            .map(losses)
            .take_while(|losses| !losses.is_empty())
            .map(finite_mean)
            .collect();
        TrainReport {
            outcome: match finished {
                false => Outcome::Interrupted,
                // Steps that only had the scale too high are no loss.
                true if self.plan.on_nan == OnNan::Skip && !self.progress.left_out.is_empty() => {
                    Outcome::Skipped
                }
                true if !self.dataset.skipped.is_empty() => Outcome::Skipped,
                true => Outcome::Done,
            },
            seed: self.plan.settings.seed,
            pictures: self.dataset.examples.len(),
            steps: self.progress.step(),
            total_steps: self.epochs.steps(),
            losses: by_epoch.first().copied().zip(by_epoch.last().copied()),
            left_out_steps: self.progress.left_out.clone(),
            long_captions: self.dataset.long_captions,
            checkpoints: self.checkpoints().collect(),
            ema_checkpoints: self.ema_checkpoints().collect(),
            validations: self.last_validations(),
            spent: self.watch.meter.spent(),
            skipped: self.dataset.skipped.clone(),
        }
    }
}

/// The hash of pictures and captions, wherever they lie.
fn data_hash(key: &RunKey) -> ContentHash {
    let is_data = |name: &str| ["images", "captions", "list"].iter().any(|kind| name.starts_with(kind));
    let data = key.inputs.iter().filter(|(name, _)| is_data(name));
    let text: String = data.map(|(name, input)| format!("{name} {}\n", input.sha256)).collect();
    hash_bytes(text.as_bytes())
}

/// The networks as they are trained.
fn load_model(plan: &TrainPlan, checkpoint: &Checkpoint, device: Device) -> Result<StableDiffusion> {
    let arithmetic = &plan.settings.arithmetic;
    if device.is_cuda() {
        native::set_arithmetic(arithmetic.tf32, true, arithmetic.deterministic)
            .map_err(Error::torch("setting how the GPU computes"))?;
    }
    let mut model = StableDiffusion::load(checkpoint, device, Kind::Float)?;
    // What checkpoints say of themselves, and samples are made with.
    model.config.prediction = plan.settings.prediction_type.unwrap_or(model.config.prediction);
    model.config.zero_terminal_snr = plan.settings.zero_terminal_snr;
    model.unet.channels_last();
    model.vae.channels_last();
    model.vae.set_autocast(arithmetic.vae.autocast());
    model.unet.set_gradient_checkpointing(arithmetic.gradient_checkpointing);
    model.clip.set_gradient_checkpointing(arithmetic.gradient_checkpointing);
    Ok(model)
}

/// Opens the base checkpoint and checks that it is whole and can be trained.
fn open_base(plan: &TrainPlan) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(&plan.base)?;
    checkpoint.verify()?;
    let ModelConfig { clip, .. } = checkpoint.config();
    checkpoint.check_text_to_image(EOS + 1, CONTEXT_LENGTH as i64)?;
    if plan.settings.unet.is_some() {
        // Before pictures are looked at.
        plan.settings.unet_freezing.frozen(&keys::unet(&checkpoint.config().unet))?;
    }
    let clip_skip = plan.settings.clip_skip;
    if clip_skip > clip.layers {
        let (value, expected) = (clip_skip.to_string(), "at most the layers of the text encoder");
        return Err(Error::OutOfRange { key: "clip_skip", value, expected });
    }
    let stride = checkpoint.config().vae.downscale() as u32;
    let resolution = plan.settings.resolution;
    if !resolution.is_multiple_of(stride) {
        return Err(Error::Stride { resolution, stride });
    }
    Ok(checkpoint)
}

/// Pictures must not come, go or break between the audit and here: the run's key is of those that were there.
fn check_unchanged(plan: &TrainPlan, audited: &AuditReport, dataset: &Dataset) -> Result<()> {
    let told = |image: &String| {
        audited.no_caption.contains(image) || audited.unreadable.iter().any(|bad| bad.image == *image)
    };
    if let Some(broken) = dataset.skipped.iter().find(|skipped| !told(&skipped.image)) {
        let (file, reason) = (PathBuf::from(&broken.image), broken.reason.clone());
        return Err(Error::DataChanged { file, reason });
    }
    let held_out = dataset.sets.iter().filter(|(name, _)| name != STABILIZED);
    let validated: usize = held_out.map(|(_, examples)| examples.len()).sum();
    let found = dataset.examples.len() + validated + dataset.skipped.len();
    match found == audited.pictures {
        true => Ok(()),
        false => Err(Error::DataChanged {
            file: plan.data_root.paths()[0].clone(),
            reason: format!("{} pictures were there at the audit, {found} a moment later", audited.pictures),
        }),
    }
}

/// A frozen network, and what its last bits depend on.
fn computed(network: ContentHash, plan: &TrainPlan) -> ContentHash {
    let arithmetic = &plan.settings.arithmetic;
    let (device, vae, tf32) = (device_type(&plan.device), arithmetic.vae, arithmetic.tf32);
    hash_bytes(format!("{network} {device} {vae:?} {tf32}").as_bytes())
}

/// Makes drafts of the pictures that are trained on.
fn drafter(plan: &TrainPlan, dataset: &Dataset, model: &StableDiffusion) -> Result<Drafter> {
    let settings = &plan.settings;
    let config = &model.config.vae;
    Ok(Drafter {
        role: Role::Training,
        seed: settings.seed,
        examples: Arc::clone(&dataset.examples),
        cropping: settings.cropping(),
        flip_p: settings.flip_p,
        latents: (config.latent_channels, config.downscale()),
        cache: Arc::new(Cache::open(plan.cache.mode, &plan.cache.dir, plan.cache.limit_bytes)?),
        vae: computed(identity(&model.vae)?, plan),
    })
}

/// Says so where the cache cannot hold what is seen again and again.
fn tell_of_small_cache(plan: &TrainPlan, training: &Drafter, on_event: &mut dyn FnMut(TrainEvent)) {
    let Some(crops) = training.cropping.fixed().filter(|_| plan.cache.folder().is_some()) else { return };
    let views = |i: usize| {
        let flips = training.examples[i].item.flip_p.unwrap_or(training.flip_p) > 0.0;
        crops * if flips { 2 } else { 1 } * 8 * training.size(i).iter().product::<i64>() as u64
    };
    let needed_bytes = (0..training.examples.len()).map(views).sum();
    let limit_bytes = plan.cache.limit_bytes;
    if needed_bytes > limit_bytes {
        on_event(TrainEvent::CacheTooSmall { needed_bytes, limit_bytes });
    }
}

fn look_ahead(
    plan: &TrainPlan,
    pool: &Arc<ThreadPool>,
    drafter: &Drafter,
    places: impl Iterator<Item = Place> + 'static,
) -> Ahead<Place, Result<Draft>> {
    // Two batches, and work for every thread.
    let most = (2 * plan.settings.batch_size).max(4 * plan.data_threads);
    let drafter = drafter.clone();
    Ahead::new(Arc::clone(pool), most, places, move |place| drafter.draft(place))
}

/// The running means, as they are before the first of so many batches, where there are to be any.
fn means(plan: &TrainPlan, steps: u64, parts: [(&str, &Option<Optimizer>); 2]) -> Result<Option<Ema>> {
    let parts = parts.into_iter().filter_map(|(name, optimizer)| Some((name, optimizer.as_ref()?)));
    let parameters = parts.flat_map(|(network, optimizer)| named(network, optimizer));
    let mut ema = plan.settings.ema.map(|settings| Ema::new(settings, steps, parameters));
    if let (Some(ema), Some(path)) = (&mut ema, &plan.ema_base) {
        start_means(ema, path)?;
    }
    Ok(ema)
}

/// What epochs are made from. Names of batches become numbers in the order of the pictures.
fn entries(examples: &[Example]) -> Vec<Entry> {
    let mut ids = BTreeMap::new();
    let entry = |Example { item, bucket, .. }: &Example| Entry {
        bucket: *bucket,
        multiply: item.multiply,
        batch_id: item.batch_id.as_ref().map(|name| {
            let next = ids.len();
            *ids.entry(name.clone()).or_insert(next)
        }),
        rating: item.rating,
    };
    examples.iter().map(entry).collect()
}

/// Where epochs begin and end; each must have something to train on.
fn epochs(entries: &[Entry], settings: &EpochSettings) -> Result<Epochs> {
    let lengths = batches_by_epoch(entries, settings);
    match lengths.iter().position(|batches| *batches == 0) {
        Some(empty) => Err(Error::EmptyEpoch { epoch: empty as u64 + 1 }),
        None => Ok(Epochs::new(&lengths)),
    }
}

/// How a plan makes epochs.
pub(crate) fn epoch_settings(plan: &TrainPlan) -> EpochSettings {
    let settings = &plan.settings;
    EpochSettings {
        batch_size: settings.batch_size,
        grad_accum: settings.grad_accum,
        seed: settings.seed,
        runts: settings.compat.runts(),
        max_epochs: settings.max_epochs,
        left_out: settings.left_out,
        subsets_once: settings.compat.subsets_ignore_multiply(),
    }
}

/// Counts the pictures of some batches.
fn expose(exposures: &mut [u64], batches: &[Planned]) {
    batches.iter().flat_map(|planned| &planned.pictures).for_each(|&i| exposures[i] += 1);
}

/// How often each picture was in the batches that are done, but for those of steps that were left out.
fn exposures(
    entries: &[Entry],
    settings: &EpochSettings,
    epochs: &Epochs,
    progress: &Progress,
    compat: Compat,
) -> Vec<u64> {
    let steps = progress.step();
    let mut exposures = vec![0; entries.len()];
    let done = epochs.done(steps);
    (1..=done).for_each(|epoch| expose(&mut exposures, &batches(entries, settings, epoch)));
    if steps > epochs.end(done) {
        let rest = batches(entries, settings, done + 1);
        expose(&mut exposures, &rest[..epochs.done_within(steps)]);
    }
    for step in &progress.left_out {
        let group = group_before(*step, entries, settings, epochs, compat);
        group.iter().flat_map(|planned| &planned.pictures).for_each(|&i| exposures[i] -= 1);
    }
    exposures
}

/// The batches of the optimizer step that ends with batch `step`, counted from 1 over all epochs.
fn group_before(
    step: u64,
    entries: &[Entry],
    settings: &EpochSettings,
    epochs: &Epochs,
    compat: Compat,
) -> Vec<Planned> {
    let done = epochs.done(step - 1);
    let start = epochs.end(done);
    let batches = batches(entries, settings, done + 1);
    let before = compat.accumulated_before(start, settings.grad_accum);
    let groups = groups(&batches[..(step - start) as usize], settings.grad_accum, before);
    groups.last().unwrap_or_default().to_vec()
}

/// What the plan asks of the networks, whose UNet predicts this.
fn objective(plan: &TrainPlan, prediction: Prediction) -> Objective {
    let settings = &plan.settings;
    let schedule = Schedule::scaled_linear();
    Objective {
        schedule: if settings.zero_terminal_snr { schedule.zero_terminal_snr() } else { schedule },
        prediction,
        weighted_for: if settings.compat.min_snr_ignores_v() { Prediction::Epsilon } else { prediction },
        loss_type: settings.loss_type,
        min_snr_gamma: settings.min_snr_gamma,
        clip_skip: settings.clip_skip,
        unet_autocast: settings.arithmetic.networks.autocast(),
        text_autocast: settings
            .arithmetic
            .networks
            .autocast()
            .filter(|_| !settings.arithmetic.exact_text_encoder),
    }
}

/// Makes trainable what is to be trained: the optimizers of UNet and text encoder.
fn optimizers(
    plan: &TrainPlan,
    model: &mut StableDiffusion,
) -> Result<(Option<Optimizer>, Option<Optimizer>)> {
    let settings = &plan.settings;
    let unet = match settings.unet {
        None => None,
        Some(part) => {
            let frozen = settings.unet_freezing.frozen(&model.unet.keys())?;
            Some(trainable(&mut model.unet, part, |name| !frozen.contains(name)))
        }
    };
    let (freezing, layers) = (settings.text_encoder_freezing, model.config.clip.layers);
    freezing.trained_layers(layers)?;
    let trains = |name: &str| freezing.trains(name, layers).unwrap_or(true);
    let text_encoder = settings.text_encoder.map(|settings| trainable(&mut model.clip, settings, trains));
    Ok((unet, text_encoder))
}

/// Makes those parameters of a network trainable whose names say so; they go by name, so that their order is always the
/// same.
fn trainable(network: &mut impl Network, settings: PartSettings, trains: impl Fn(&str) -> bool) -> Optimizer {
    network.unfreeze();
    let all = network.vars().variables().into_iter();
    let (trained, frozen): (BTreeMap<_, _>, BTreeMap<_, _>) = all.partition(|(name, _)| trains(name));
    frozen.into_values().for_each(|parameter| drop(parameter.set_requires_grad(false)));
    Optimizer::new(trained, settings.optimizer)
}

/// Starts the running means from another checkpoint.
fn start_means(ema: &mut Ema, path: &Path) -> Result<()> {
    let checkpoint = Checkpoint::open(path)?;
    checkpoint.verify()?;
    let model = StableDiffusion::load(&checkpoint, Device::Cpu, Kind::Float)?;
    let of = |network: &str, parameters: HashMap<String, Tensor>| {
        parameters.into_iter().map(|(name, value)| (format!("{network}/{name}"), value)).collect::<Vec<_>>()
    };
    let unet = of("unet", model.unet.vars().variables());
    let weights = unet.into_iter().chain(of("text_encoder", model.clip.vars().variables())).collect();
    ema.start_from(&weights).map_err(|name| Error::EmaModel { path: path.to_path_buf(), name })
}

/// The parameters of a network, under names that tell it from the other.
fn named<'o>(network: &'o str, optimizer: &'o Optimizer) -> impl Iterator<Item = (String, &'o Parameter)> {
    optimizer.parameters().iter().map(move |parameter| (format!("{network}/{}", parameter.name), parameter))
}

fn by_name_mut<'o>(
    unet: &'o mut Option<Optimizer>,
    text_encoder: &'o mut Option<Optimizer>,
) -> Vec<(&'static str, &'o mut Optimizer)> {
    let both = [("unet", unet.as_mut()), ("text_encoder", text_encoder.as_mut())];
    both.into_iter().filter_map(|(name, optimizer)| Some((name, optimizer?))).collect()
}

/// The lines of `losses.csv` for the steps that are done.
fn rows(progress: &Progress, epochs: &Epochs, rates: Rates) -> impl Iterator<Item = Row> {
    progress.losses.iter().zip(1..).map(move |(&loss, step)| {
        let epoch = epochs.done(step - 1) + 1;
        Row { epoch, step, loss, rates: rates.at(step) }
    })
}
