//! What a run leaves on the disk beside checkpoints: the training state, the ledger of exposures.

use std::time::Instant;

use vodka_images::relative_name;
use vodka_sd15::Network;
use vodka_stage::write_atomic;

use super::{EXPOSURES, Run, beside};
use crate::{
    Bucket, Result, TrainEvent, TrainPlan,
    arithmetic::Scaler,
    data::Example,
    epoch::Planned,
    optimizers::Optimizer,
    state::{self, Trained},
    watch::{Phase, Validations, csv_cell, finite_mean},
};

impl Run<'_> {
    /// Writes the epoch's checkpoint where one is due, and then the state: a run that is killed between the two
    /// writes the same checkpoint again.
    ///
    /// A state that is due by the last `steps` comes after all else that is told of the epoch, which is not told again
    /// when the run goes on from there.
    pub(super) fn end_epoch(
        &mut self,
        epoch: u64,
        steps: u64,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<()> {
        self.settle(on_event)?;
        let is_saved = self.saved_epochs().any(|saved| saved == epoch);
        if is_saved {
            // A state of another run fits the checkpoints no longer.
            state::delete_others(&self.plan.output, self.key)?;
            self.forget_unfinished()?;
        }
        let (start, end) = (self.epochs.end(epoch - 1), self.epochs.end(epoch));
        let minutes = self.epoch_began.elapsed().as_secs_f64() / 60.0;
        self.epoch_began = Instant::now();
        let loss = finite_mean(&self.progress.losses[start as usize..end as usize]);
        self.watch.epoch(epoch, end, loss, minutes)?;
        let (epochs, speed) = (self.plan.settings.max_epochs, self.watch.speed);
        on_event(TrainEvent::Epoch { epoch, epochs, loss, speed });
        if is_saved {
            self.save_checkpoint(&self.epoch_name(epoch), epoch, on_event)?;
            beside::set_to_come(&self.plan.output, self.to_come());
        }
        match epoch < self.plan.settings.max_epochs {
            true if is_saved || self.state_is_due(steps) => self.save_state(on_event),
            true => Ok(()),
            false if self.plan.save_optimizer => self.save_state(on_event),
            false => {
                self.write_exposures()?;
                self.sync_logs()
            }
        }
    }

    /// About how many bytes are still to be written.
    pub(super) fn to_come(&self) -> u64 {
        let (done, output) = (self.epochs_done(), &self.plan.output);
        if done >= self.plan.settings.max_epochs {
            return 0;
        }
        let to_come = self.saved_epochs().filter(|epoch| *epoch > done).count() as u64;
        // One more, for a new state is there before the oldest goes.
        let states = (self.plan.keep_states + 1).saturating_sub(state::list(output).len()) as u64;
        to_come * self.checkpoint_size() + states * self.with_trained(state::size)
    }

    /// How many bytes a checkpoint has, in all its forms and with its twin.
    pub(super) fn checkpoint_size(&self) -> u64 {
        let networks = [self.model.unet.vars(), self.model.clip.vars(), self.model.vae.vars()];
        let weights =
            |vars: &tch::nn::VarStore| vars.variables().values().map(|v| v.numel() as u64).sum::<u64>();
        let weights: u64 = networks.into_iter().map(weights).sum();
        let twins = if self.ema.is_some() { 2 } else { 1 };
        let settings = &self.plan.settings;
        let forms = u64::from(settings.save_ckpt) + u64::from(settings.save_diffusers);
        twins * forms * weights * settings.precision.size() as u64
    }

    fn with_trained<R>(&self, act: impl FnOnce(&Trained<'_>) -> R) -> R {
        let parts = [("unet", self.unet.as_ref()), ("text_encoder", self.text_encoder.as_ref())];
        let optimizers: Vec<(&str, &Optimizer)> =
            parts.into_iter().filter_map(|(name, optimizer)| Some((name, optimizer?))).collect();
        act(&Trained { optimizers: &optimizers, ema: self.ema.as_ref() })
    }

    /// Makes all that was logged so far survive a power cut: a state is worth nothing without it.
    fn sync_logs(&self) -> Result<()> {
        self.watch.sync()?;
        self.validations.iter().try_for_each(Validations::sync)?;
        self.losses_file.sync()
    }

    /// Saves the state where one is due within the last `steps`, or by the clock; the end of an epoch sees to its own.
    pub(super) fn save_state_where_due(
        &mut self,
        steps: u64,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<()> {
        match self.epochs.done_within(self.progress.step()) > 0 && self.state_is_due(steps) {
            true => self.save_state(on_event),
            false => Ok(()),
        }
    }

    fn state_is_due(&self, steps: u64) -> bool {
        let step = self.progress.step();
        let by_steps = self.plan.state_every_n_steps.is_some_and(|every| step % every < steps);
        let minutes = self.state_saved_at.elapsed().as_secs_f64() / 60.0;
        by_steps || self.plan.state_every_n_minutes.is_some_and(|every| minutes >= every)
    }

    /// Saves the state; before the first step there is none worth the states of another run.
    pub(super) fn save_state(&mut self, on_event: &mut dyn FnMut(TrainEvent)) -> Result<()> {
        self.settle(on_event)?;
        if self.progress.step() == 0 {
            return Ok(());
        }
        self.progress.scaler = self.steps.scaler.as_ref().map(Scaler::state);
        self.watch.meter.enter(Phase::Saving);
        self.write_exposures()?;
        self.sync_logs()?;
        let TrainPlan { output, keep_states, .. } = self.plan;
        let path = self
            .with_trained(|trained| state::save(output, self.key, *keep_states, &self.progress, trained))?;
        self.forget_unfinished()?;
        beside::set_to_come(output, self.to_come());
        self.state_saved_at = Instant::now();
        on_event(TrainEvent::StateSaved { path });
        Ok(())
    }

    /// `exposures.csv`: how often each picture was trained on so far.
    pub(super) fn write_exposures(&self) -> Result<()> {
        let mut text = "image,exposures\n".to_owned();
        for (Example { item, .. }, count) in self.dataset.examples.iter().zip(&self.exposures) {
            text += &format!("{},{count}\n", csv_cell(&relative_name(&item.path)));
        }
        Ok(write_atomic(self.plan.output.join(EXPOSURES), text)?)
    }

    /// `ep<N>_batch_schedule.txt`: which pictures are in which batch of an epoch, as EveryDream2 writes it (its `r` is how
    /// many pictures there were for a batch that they do not fill).
    pub(super) fn write_schedule(&self, epoch: u64, batches: &[Planned]) -> Result<()> {
        let mut text = String::new();
        for (step, Planned { pictures, runt, .. }) in batches.iter().enumerate() {
            for &picture in pictures {
                let Example { item, bucket: Bucket { width, height }, .. } = &self.dataset.examples[picture];
                let path = relative_name(&item.path);
                text += &format!("step:{step:05}, wh:[{width}, {height}], r:{runt}, path:{path}\n");
            }
        }
        Ok(write_atomic(self.plan.output.join(format!("ep{epoch}_batch_schedule.txt")), text)?)
    }
}
