//! The stage: from a plan to checkpoints.

mod batch;
mod optimize;
mod save;
mod validate;

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use tch::{Device, Kind, Tensor};
use vodka_checkpoint::{Checkpoint, ModelConfig, Prediction};
use vodka_noise::Schedule;
use vodka_prompt::{CONTEXT_LENGTH, EOS};
use vodka_sd15::{Network, StableDiffusion, native, parse_device};
use vodka_stage::{ContentHash, Interrupt, Outcome, RunKey, create_dir, record_path, write_atomic};

use self::optimize::Steps;
use crate::{
    EFFECTIVE_JSON, Error, OnNan, Result, TrainEvent, TrainPlan, TrainReport,
    audit::audit,
    data::{Dataset, Example},
    ema::Ema,
    epoch::{Entry, EpochSettings, Epochs, Planned, batches, batches_by_epoch, groups},
    losses::{LossesFile, Row, Validations},
    optimizer::PartSettings,
    optimizers::{Optimizer, Parameter},
    state::{self, Progress},
    step::Objective,
};

/// How often each picture was trained on.
const EXPOSURES: &str = "exposures.csv";

/// Trains as planned. A run whose state is in the output folder goes on; one that was finished is not repeated.
///
/// # Errors
/// A base checkpoint that is damaged or of another architecture; pictures without captions, or none at all; a loss that
/// is not finite; a device or a disk that fails.
pub fn run(
    plan: &TrainPlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(TrainEvent),
) -> Result<TrainReport> {
    let key = plan.key()?;
    let record = record_path(&plan.output);
    if !plan.start_over
        && let Some(report) = key.made::<TrainReport>(&record)?
    {
        // Left behind by a kill between the record and this.
        state::delete(&plan.output)?;
        // The folder may have been moved since.
        let moved = |paths: &[PathBuf]| {
            let names = paths.iter().filter_map(|path| path.file_name());
            names.map(|name| plan.output.join(name)).collect()
        };
        let (checkpoints, ema_checkpoints) = (moved(&report.checkpoints), moved(&report.ema_checkpoints));
        return Ok(TrainReport { outcome: Outcome::Unchanged, checkpoints, ema_checkpoints, ..report });
    }
    create_dir(&plan.output)?;
    let _threads = Threads::of_run(plan, key.hash());
    let Some(mut run) = Run::prepare(plan, &key, interrupt, on_event)? else {
        return Ok(TrainReport::nothing_yet(plan));
    };
    let finished = run.train(interrupt, on_event)?;
    let report = run.report(finished);
    if finished {
        let losses_file = LossesFile::path_in(&plan.output);
        let validations = run.validations.as_ref().map(|_| Validations::path_in(&plan.output));
        let outputs = report.checkpoints.iter().chain(&report.ema_checkpoints);
        let exposures = plan.output.join(EXPOSURES);
        let outputs = outputs.chain([&losses_file, &exposures]).chain(&validations);
        key.write(&record, &outputs.map(PathBuf::as_path).collect::<Vec<_>>(), &report)?;
        state::delete(&plan.output)?;
    }
    Ok(report)
}

/// Sets the number of libtorch's threads, which the last bits of its sums depend on; dropped, it sets it back.
struct Threads {
    before: i32,
}

impl Threads {
    /// Those that an interrupted run began with, or else the planned ones.
    fn of_run(plan: &TrainPlan, key: ContentHash) -> Self {
        let began_with = if plan.start_over { None } else { state::threads(&plan.output, key) };
        let before = tch::get_num_threads();
        if let Some(threads) = began_with.or(plan.threads.map(|n| n as i32)) {
            tch::set_num_threads(threads);
        }
        Self { before }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        tch::set_num_threads(self.before);
    }
}

/// The learning rates of UNet and text encoder in each batch of a run; 0 for what is left as it is.
#[derive(Clone, Copy)]
struct Rates {
    settings: [Option<PartSettings>; 2],
    /// All batches of the run.
    steps: u64,
}

impl Rates {
    /// For the batch `step`, counted from 1.
    fn at(&self, step: u64) -> [f64; 2] {
        self.settings.map(|settings| {
            settings.map_or(0.0, |part| part.schedule(self.steps).rate(part.optimizer.lr, step - 1))
        })
    }
}

/// A training run in memory.
struct Run<'a> {
    plan: &'a TrainPlan,
    key: ContentHash,
    base: ContentHash,
    model: StableDiffusion,
    unet: Option<Optimizer>,
    text_encoder: Option<Optimizer>,
    ema: Option<Ema>,
    objective: Objective,
    rates: Rates,
    dataset: Dataset,
    /// What epochs are made from: the examples, in their order.
    entries: Vec<Entry>,
    epoch_settings: EpochSettings,
    epochs: Epochs,
    progress: Progress,
    steps: Steps,
    /// How often each example has been in a batch.
    exposures: Vec<u64>,
    losses_file: LossesFile,
    validations: Option<Validations>,
}

impl<'a> Run<'a> {
    /// Loads everything, and the state of an interrupted run; `None` when interrupted before it is all there.
    fn prepare(
        plan: &'a TrainPlan,
        key: &RunKey,
        interrupt: &Interrupt,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<Option<Self>> {
        let checkpoint = open_base(plan)?;
        let stride = checkpoint.config().vae.downscale() as u32;
        let resolution = plan.settings.resolution;
        if !resolution.is_multiple_of(stride) {
            return Err(Error::Stride { resolution, stride });
        }
        write_atomic(plan.output.join(EFFECTIVE_JSON), plan.effective())?;
        plan.notices.iter().for_each(|notice| on_event(TrainEvent::Notice(notice.clone())));
        let Some(audited) = audit(plan, interrupt, on_event)? else { return Ok(None) };
        on_event(TrainEvent::Audit(Box::new(audited.clone())));
        audited.check(plan)?;
        let device = parse_device(&plan.device, &plan.runtime_dir)?;
        let mut model = load_model(plan, &checkpoint, device)?;
        let Some(dataset) = Dataset::load(plan, &model.vae, stride, interrupt, on_event)? else {
            return Ok(None);
        };
        let mut unet = plan.settings.unet.map(|settings| trainable(&mut model.unet, settings, |_| true));
        let (freezing, layers) = (plan.settings.text_encoder_freezing, model.config.clip.layers);
        freezing.trained_layers(layers)?;
        let trains = |name: &str| freezing.trains(name, layers).unwrap_or(true);
        let mut text_encoder =
            plan.settings.text_encoder.map(|settings| trainable(&mut model.clip, settings, trains));
        let entries = entries(&dataset.examples);
        let epoch_settings = epoch_settings(plan);
        let epochs = Epochs::new(&batches_by_epoch(&entries, &epoch_settings));
        let mut ema = plan.settings.ema.map(|settings| {
            let parts = [("unet", &unet), ("text_encoder", &text_encoder)].into_iter();
            let parts = parts.filter_map(|(name, optimizer)| Some((name, optimizer.as_ref()?)));
            Ema::new(
                settings,
                epochs.steps(),
                parts.flat_map(|(network, optimizer)| named(network, optimizer)),
            )
        });
        if let (Some(ema), Some(path)) = (&mut ema, &plan.ema_base) {
            start_means(ema, path)?;
        }
        let optimizers = &mut by_name_mut(&mut unet, &mut text_encoder);
        let progress = match plan.start_over {
            true => None,
            false => state::restore(&plan.output, key.hash(), optimizers, ema.as_mut())?,
        };
        if progress.is_none() {
            // That of another run would fit neither the files nor the losses that this one writes.
            state::delete(&plan.output)?;
        }
        let progress = progress.unwrap_or_default();
        let rates =
            Rates { settings: [plan.settings.unet, plan.settings.text_encoder], steps: epochs.steps() };
        let run = Self {
            losses_file: LossesFile::start(&plan.output, rows(&progress, &epochs, rates))?,
            validations: Validations::start(&plan.output, &dataset.sets, &progress, &epochs)?,
            rates,
            key: key.hash(),
            base: key.inputs["checkpoint"].sha256,
            objective: objective(plan, &checkpoint),
            plan,
            model,
            unet,
            text_encoder,
            ema,
            dataset,
            exposures: exposures(&entries, &epoch_settings, &epochs, progress.step()),
            entries,
            epoch_settings,
            epochs,
            steps: Steps::new(plan, &progress, device),
            progress,
        };
        run.check_earlier_checkpoints()?;
        Ok(Some(run))
    }

    /// Trains to the end (`true`) or to an interruption (`false`).
    fn train(&mut self, interrupt: &Interrupt, on_event: &mut dyn FnMut(TrainEvent)) -> Result<bool> {
        let steps = self.epochs.steps();
        let (done, steps_per_epoch) = (self.progress.step(), self.epochs.end(1));
        on_event(TrainEvent::Started { steps, done, steps_per_epoch });
        if done == 0 {
            self.validate(on_event)?;
        }
        while self.progress.step() < steps {
            let epoch = self.epochs_done() + 1;
            let batches = batches(&self.entries, &self.epoch_settings, epoch);
            let done = self.epochs.done_within(self.progress.step());
            if self.plan.write_schedule {
                self.write_schedule(epoch, &batches)?;
            }
            let settings = &self.plan.settings;
            // States are saved where an optimizer step ends.
            let before = match settings.compat.counts_accumulation_over_epochs() {
                true => (self.progress.step() % settings.grad_accum as u64) as usize,
                false => 0,
            };
            for group in groups(&batches[done..], settings.grad_accum, before) {
                if interrupt.is_raised() {
                    self.settle(on_event)?;
                    self.save_state()?;
                    return Ok(false);
                }
                let before = self.progress.step();
                expose(&mut self.exposures, group);
                self.optimizer_step(epoch, group, on_event)?;
                let done = self.progress.step();
                self.ema.iter_mut().for_each(|ema| ema.update(before, done));
                self.validate_where_due(before, on_event)?;
                self.save_state_where_due(group.len() as u64, on_event)?;
            }
            self.settle(on_event)?;
            self.end_epoch(epoch, on_event)?;
        }
        Ok(true)
    }

    fn epochs_done(&self) -> u64 {
        self.epochs.done(self.progress.step())
    }

    fn report(&self, finished: bool) -> TrainReport {
        let mean = |losses: &[f32]| {
            let finite: Vec<_> = losses.iter().filter(|loss| loss.is_finite()).collect();
            finite.iter().copied().sum::<f32>() / finite.len() as f32
        };
        let losses = |epoch: u64| {
            let all = &self.progress.losses;
            let bound = |epoch| (self.epochs.end(epoch) as usize).min(all.len());
            &all[bound(epoch - 1)..bound(epoch)]
        };
        let by_epoch: Vec<_> = (1..=self.plan.settings.max_epochs)
            .map(losses)
            .take_while(|losses| !losses.is_empty())
            .map(mean)
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
            skipped: self.dataset.skipped.clone(),
        }
    }
}

/// The networks as they are trained.
fn load_model(plan: &TrainPlan, checkpoint: &Checkpoint, device: Device) -> Result<StableDiffusion> {
    let arithmetic = &plan.settings.arithmetic;
    if device.is_cuda() {
        native::set_arithmetic(arithmetic.tf32, true, arithmetic.deterministic)
            .map_err(Error::torch("setting how the GPU computes"))?;
    }
    let mut model = StableDiffusion::load(checkpoint, device, Kind::Float)?;
    model.unet.channels_last();
    model.vae.channels_last();
    model.vae.set_autocast(arithmetic.vae.autocast());
    model.unet.set_gradient_checkpointing(arithmetic.gradient_checkpointing);
    model.clip.set_gradient_checkpointing(arithmetic.gradient_checkpointing);
    Ok(model)
}

/// Opens the base checkpoint and checks that it is whole and can be trained.
fn open_base(plan: &TrainPlan) -> Result<Checkpoint> {
    let name = plan.base.to_string_lossy();
    if !plan.base.exists() && is_hub_name(&name) {
        return Err(Error::HubModel { name: name.into_owned() });
    }
    let checkpoint = Checkpoint::open(&plan.base)?;
    checkpoint.verify()?;
    let ModelConfig { clip, .. } = checkpoint.config();
    checkpoint.check_text_to_image(EOS + 1, CONTEXT_LENGTH as i64)?;
    let clip_skip = plan.settings.clip_skip;
    if clip_skip > clip.layers {
        let (value, expected) = (clip_skip.to_string(), "at most the layers of the text encoder");
        return Err(Error::OutOfRange { key: "clip_skip", value, expected });
    }
    Ok(checkpoint)
}

/// Whether this could be the name of a repository on huggingface.co: an owner and a name.
fn is_hub_name(name: &str) -> bool {
    let mut parts = name.split('/');
    let good = |part: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.starts_with('.') && !part.is_empty() && part.chars().all(plain)
    };
    let two = parts.next().is_some_and(good) && parts.next().is_some_and(good) && parts.next().is_none();
    two && ![".safetensors", ".ckpt"].iter().any(|extension| name.ends_with(extension))
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

fn epoch_settings(plan: &TrainPlan) -> EpochSettings {
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

/// How often each picture was in the first `steps` batches.
fn exposures(entries: &[Entry], settings: &EpochSettings, epochs: &Epochs, steps: u64) -> Vec<u64> {
    let mut exposures = vec![0; entries.len()];
    let done = epochs.done(steps);
    (1..=done).for_each(|epoch| expose(&mut exposures, &batches(entries, settings, epoch)));
    if steps > epochs.end(done) {
        let rest = batches(entries, settings, done + 1);
        expose(&mut exposures, &rest[..epochs.done_within(steps)]);
    }
    exposures
}

/// What the plan and the base checkpoint ask of the networks.
fn objective(plan: &TrainPlan, checkpoint: &Checkpoint) -> Objective {
    let settings = &plan.settings;
    let schedule = Schedule::scaled_linear();
    let prediction = checkpoint.config().prediction;
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
