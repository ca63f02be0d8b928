//! One step of the optimizers: gradients of a few batches, and the way along them.

use tch::{Device, TchError, Tensor};
use vodka_sd15::{Network, catch};

use super::{Run, expose, memory};
use crate::{
    Arithmetic, Compat, Error, Notice, Result, TrainEvent, TrainPlan,
    arithmetic::{OnNan, Scaler, ScalerRule},
    epoch::Planned,
    graph::Recorder,
    optimizers::{Part, step_together},
    state::Progress,
    step::{Batch, upload},
    watch::{Extra, Phase, Row},
};

/// An optimizer step whose losses were not read from the device yet.
#[derive(Debug)]
pub(super) struct Unread {
    /// Its batches; the losses in them are not known.
    rows: Vec<(Row, Extra)>,
    /// Their losses. `(batches)`
    losses: Tensor,
    /// Whether something was infinite, and it was left out; then the norms of the gradients of UNet and text encoder, and
    /// the scale of losses after it. `(4)`
    found: Tensor,
    /// The pictures of all batches.
    pictures: Vec<usize>,
}

/// What steps need beside networks and optimizers.
#[derive(Debug)]
pub(super) struct Steps {
    /// Those whose losses are still on the device.
    unread: Vec<Unread>,
    /// In fp16.
    pub scaler: Option<Scaler>,
    recorder: Recorder,
}

impl Steps {
    /// For a run that has come so far.
    pub fn new(
        plan: &TrainPlan,
        progress: &Progress,
        device: Device,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Self {
        let (recorder, failed) = Recorder::new(plan.cuda_graphs, device);
        if let Some(error) = failed {
            let why = format!("is not done, and steps are slower: {error}");
            on_event(TrainEvent::Notice(Notice::new("cuda_graphs", true, why)));
        }
        let scaled = plan.settings.arithmetic.networks == Arithmetic::Fp16;
        Self {
            unread: Vec::new(),
            scaler: scaled.then(|| Scaler::new(progress.scaler.unwrap_or_default(), device)),
            recorder,
        }
    }
}

impl Run<'_> {
    /// Accumulates the gradients of a few batches and steps along them. On a GPU nothing waits for it; what came of it is
    /// found by [`Run::settle`].
    ///
    /// Every picture weighs the same, whatever the size of its batch: its loss is divided by the number of pictures
    /// that full batches would have. EveryDream2 divides by that of one batch alone.
    pub(super) fn optimizer_step(
        &mut self,
        epoch: u64,
        group: &[Planned],
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<()> {
        let first = self.progress.step() + 1;
        self.watch.meter.begin(first..first + group.len() as u64);
        let mut losses = Vec::with_capacity(group.len());
        for (step, planned) in (first..).zip(group) {
            self.watch.meter.enter(Phase::Data);
            let batch = catch(|| self.batch(epoch, planned));
            let batch = batch.map_err(|source| self.refused(epoch, step, planned, source))??;
            self.watch.meter.enter(Phase::Networks);
            let loss = catch(|| self.accumulate(planned, &batch)).and_then(|loss| loss);
            losses.push(loss.map_err(|source| self.refused(epoch, step, planned, source))?);
        }
        self.watch.meter.enter(Phase::Optimizer);
        // Schedules go by batches; the last of the group says the rate.
        let step = self.progress.step() + group.len() as u64;
        let last = &group[group.len() - 1];
        let found = catch(|| self.step_along(step, &losses));
        let found = found.map_err(|source| self.refused(epoch, step, last, source))?;
        let row = |(of, planned): (u64, &Planned)| {
            let extra = Extra { pictures: planned.pictures.len() as u64, ..Extra::default() };
            (Row { epoch, step: of, loss: f32::NAN, rates: self.rates.at(of) }, extra)
        };
        self.steps.unread.push(Unread {
            rows: (first..).zip(group).map(row).collect(),
            losses: Tensor::stack(&losses, 0),
            found,
            pictures: group.iter().flat_map(|planned| &planned.pictures).copied().collect(),
        });
        expose(&mut self.exposures, group);
        // What they are is filled in when they are read.
        self.progress.losses.extend(group.iter().map(|_| f32::NAN));
        match self.steps.unread.iter().map(|unread| unread.rows.len() as u64).sum::<u64>() {
            n if n >= self.plan.read_every_n_steps => self.settle(on_event),
            _ => Ok(()),
        }
    }

    /// Adds the gradients of a batch to those that there are; its loss, without axes.
    fn accumulate(&mut self, planned: &Planned, batch: &Batch) -> Result<Tensor, TchError> {
        let settings = &self.plan.settings;
        let together = if settings.compat.averages_gradients() { settings.grad_accum } else { 1 };
        let full = (settings.batch_size * together) as f64;
        let device = self.device();
        let inputs = self.objective.inputs(batch).to_device(device);
        let weights = upload(&(self.loss_weights(planned) / full), device); // (B)
        let scale = self.steps.scaler.as_ref().map(Scaler::scale);
        let loss = self.steps.recorder.accumulate(&self.objective, &self.model, inputs, weights, scale)?;
        if settings.compat.clips_every_batch() {
            // Scaled or not (defect D4).
            let networks = [&self.unet, &self.text_encoder].into_iter().zip(settings.max_norms());
            let clipped = networks.filter_map(|(network, norm)| network.as_ref().zip(norm));
            clipped.for_each(|(optimizer, norm)| optimizer.clip_gradients(norm));
        }
        Ok(loss)
    }

    /// Steps along the gradients, unless one of them or of the losses is infinite or not a number: 1 then, else 0; the
    /// norms of the gradients of UNet and text encoder, without the scale of fp16; and that scale after the step. `(4)`
    fn step_along(&mut self, step: u64, losses: &[Tensor]) -> Tensor {
        let settings = &self.plan.settings;
        let [unet_norm, text_encoder_norm] =
            settings.max_norms().map(|norm| norm.filter(|_| !settings.compat.clips_every_batch()));
        let [unet_lr, text_encoder_lr] = self.rates.at(step);
        let parts = [
            Part { optimizer: self.unet.as_mut(), lr: unet_lr, max_norm: unet_norm },
            Part { optimizer: self.text_encoder.as_mut(), lr: text_encoder_lr, max_norm: text_encoder_norm },
        ];
        let (found_inf, [unet, text_encoder]) = step_together(
            parts,
            losses,
            self.steps.scaler.as_ref().map(Scaler::scale),
            self.steps.recorder.keeps_gradients(),
        );
        if let Some(scaler) = &mut self.steps.scaler {
            let of_april = settings.compat == Compat::Ed2April2023;
            scaler.update(&found_inf, ScalerRule::after(step, settings.scaler_tweaks, of_april));
        }
        let scale = self.steps.scaler.as_ref().map(|scaler| scaler.scale().shallow_clone());
        let scale = scale.unwrap_or_else(|| found_inf.zeros_like());
        Tensor::stack(&[found_inf, unet, text_encoder, scale], 0)
    }

    /// Reads what came of the steps that were not looked at yet, and tells of it.
    ///
    /// # Errors
    /// One was left out, and the run is to end then; `losses.csv` cannot be written.
    pub(super) fn settle(&mut self, on_event: &mut dyn FnMut(TrainEvent)) -> Result<()> {
        if self.steps.unread.is_empty() {
            return Ok(());
        }
        let unread = std::mem::take(&mut self.steps.unread);
        let numbers =
            unread.iter().flat_map(|unread| [unread.losses.shallow_clone(), unread.found.shallow_clone()]);
        let numbers = Tensor::cat(&numbers.collect::<Vec<_>>(), 0).to_device(Device::Cpu);
        let numbers = Vec::<f32>::try_from(numbers).map_err(Error::torch("reading losses"))?;
        let mut numbers = numbers.into_iter();
        let mut next = || numbers.next().expect("as many numbers as were asked for");
        for Unread { rows, pictures, .. } in unread {
            let read = |(row, extra)| (Row { loss: next(), ..row }, extra);
            let rows: Vec<(Row, Extra)> = rows.into_iter().map(read).collect();
            let left_out = next() != 0.0;
            let norms = [(); 2].map(|()| f64::from(next()));
            // The scaler's own has gone on meanwhile.
            let scale = Some(next()).filter(|_| self.steps.scaler.is_some());
            for (row, _) in &rows {
                self.progress.losses[row.step as usize - 1] = row.loss;
                self.losses_file.append(*row)?;
            }
            if left_out {
                self.leave_out(&rows, &pictures, scale, on_event)?;
            }
            let last = rows.len() - 1;
            for (i, (row, mut extra)) in rows.into_iter().enumerate() {
                extra.grad_scale = scale;
                if i == last && self.logs_norms() {
                    let trained = [self.unet.is_some(), self.text_encoder.is_some()];
                    extra.norms = [0, 1].map(|i| Some(norms[i]).filter(|n| trained[i] && n.is_finite()));
                }
                let Row { epoch, step, loss, .. } = row;
                let speed = self.watch.step(row, extra)?;
                on_event(TrainEvent::Step { epoch, step, loss, speed, grad_scale: extra.grad_scale });
            }
        }
        Ok(())
    }

    /// Whether norms of gradients are logged: they are those before anything is clipped, so not where each batch is.
    fn logs_norms(&self) -> bool {
        let settings = &self.plan.settings;
        let is_clipped =
            settings.compat.clips_every_batch() && settings.max_norms().iter().any(Option::is_some);
        self.plan.log_grad_norm && !is_clipped
    }

    /// Tells of a step that was left out, or ends the run because of it.
    fn leave_out(
        &mut self,
        rows: &[(Row, Extra)],
        pictures: &[usize],
        scale: Option<f32>,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<()> {
        let (Row { epoch, step, .. }, _) = rows[rows.len() - 1];
        let what = if rows.iter().all(|(row, _)| row.loss.is_finite()) { "gradient" } else { "loss" };
        // They were not trained on.
        pictures.iter().for_each(|&picture| self.exposures[picture] -= 1);
        let pictures =
            pictures.iter().map(|&picture| self.dataset.examples[picture].item.path.clone()).collect();
        let ends = match self.plan.on_nan {
            OnNan::Stop => true,
            OnNan::Skip => false,
            OnNan::LowerScale => scale.is_none_or(|scale| scale < 1.0),
        };
        if ends {
            return Err(Error::NotFinite { what, epoch, step, pictures });
        }
        self.progress.left_out.push(step);
        on_event(TrainEvent::StepLeftOut { what, epoch, step, pictures, scale });
        Ok(())
    }

    pub(super) fn device(&self) -> Device {
        self.model.unet.vars().device()
    }

    /// What libtorch refuses in a step, told with the batch where there was not enough memory.
    fn refused(&self, epoch: u64, step: u64, planned: &Planned, source: TchError) -> Error {
        let bucket = self.dataset.examples[planned.pictures[0]].bucket;
        let pictures = planned.pictures.len();
        let lower = memory::lower_in_training(&self.plan.settings, pictures);
        memory::of_batch(format!("epoch {epoch}, step {step}"), pictures, bucket, &lower, source)
    }
}
