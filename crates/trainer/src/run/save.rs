//! What a run leaves on the disk beside checkpoints: the training state, the ledger of exposures.

use std::time::Instant;

use vodka_images::relative_name;
use vodka_stage::write_atomic;

use super::{EXPOSURES, Run};
use crate::{
    Bucket, Result, TrainEvent,
    data::Example,
    epoch::Planned,
    state,
    watch::{Phase, Validations, csv_cell, mean},
};

impl Run<'_> {
    /// Writes the epoch's checkpoint where one is due, and then the state: a run that is killed between the two
    /// writes the same checkpoint again.
    pub(super) fn end_epoch(&mut self, epoch: u64, on_event: &mut dyn FnMut(TrainEvent)) -> Result<()> {
        let (start, end) = (self.epochs.end(epoch - 1), self.epochs.end(epoch));
        let minutes = self.epoch_began.elapsed().as_secs_f64() / 60.0;
        self.epoch_began = Instant::now();
        let loss = mean(&self.progress.losses[start as usize..end as usize]);
        self.watch.epoch(epoch, end, loss, minutes)?;
        let (epochs, speed) = (self.plan.settings.max_epochs, self.watch.speed);
        on_event(TrainEvent::Epoch { epoch, epochs, loss, speed });
        self.save_epoch(epoch, on_event)?;
        match epoch < self.plan.settings.max_epochs {
            true => self.save_state(),
            false => {
                self.write_exposures()?;
                self.sync_logs()
            }
        }
    }

    /// Makes all that was logged so far survive a power cut: a state is worth nothing without it.
    fn sync_logs(&self) -> Result<()> {
        self.watch.sync()?;
        self.validations.iter().try_for_each(Validations::sync)?;
        self.losses_file.sync()
    }

    /// Saves the state where one is due within the last `steps`; the end of an epoch has its own.
    pub(super) fn save_state_where_due(&mut self, steps: u64) -> Result<()> {
        let step = self.progress.step();
        let due = self.plan.state_every_n_steps.is_some_and(|every| step % every < steps);
        match due && self.epochs.done_within(step) > 0 {
            true => self.save_state(),
            false => Ok(()),
        }
    }

    pub(super) fn save_state(&mut self) -> Result<()> {
        self.watch.meter.enter(Phase::Saving);
        self.write_exposures()?;
        self.sync_logs()?;
        let parts = [("unet", self.unet.as_ref()), ("text_encoder", self.text_encoder.as_ref())];
        let optimizers: Vec<_> =
            parts.into_iter().filter_map(|(name, optimizer)| Some((name, optimizer?))).collect();
        state::save(
            &self.plan.output,
            self.key,
            self.plan.settings.seed,
            &self.progress,
            &optimizers,
            self.ema.as_ref(),
        )
    }

    /// `exposures.csv`: how often each picture has been in a batch so far.
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
