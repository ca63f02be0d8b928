//! What a run leaves on the disk: checkpoints, the training state, the ledger of exposures.

use std::{collections::BTreeMap, path::PathBuf};

use vodka_images::relative_name;
use vodka_stage::write_atomic;

use super::{EXPOSURES, Run};
use crate::{
    Bucket, Error, Result, TrainEvent,
    arithmetic::Scaler,
    data::Example,
    epoch::{Planned, saved_epochs},
    losses::{Validations, csv_cell},
    state,
};

impl Run<'_> {
    /// Writes the epoch's checkpoint where one is due, and then the state: a run that is killed between the two
    /// writes the same checkpoint again.
    pub(super) fn end_epoch(&mut self, epoch: u64, on_event: &mut dyn FnMut(TrainEvent)) -> Result<()> {
        if self.saved_epochs().any(|saved| saved == epoch) {
            let path = self.checkpoint_path(epoch);
            self.model.save(&path, self.plan.settings.precision, &self.metadata(epoch))?;
            on_event(TrainEvent::Saved { path });
            if let Some(ema) = &self.ema {
                let path = self.ema_path(epoch);
                let (precision, metadata) = (self.plan.settings.precision, self.metadata(epoch));
                ema.in_place(|| self.model.save(&path, precision, &metadata))?;
                on_event(TrainEvent::Saved { path });
            }
        }
        match epoch < self.plan.settings.max_epochs {
            true => self.save_state(),
            false => {
                self.write_exposures()?;
                self.validations.iter().try_for_each(Validations::sync)?;
                self.losses_file.sync()
            }
        }
    }

    /// What a checkpoint says about its origin. Nothing in it varies from run to run.
    fn metadata(&self, epoch: u64) -> BTreeMap<String, String> {
        let settings = serde_json::to_string(&self.plan.settings).expect("settings are plain data");
        BTreeMap::from([
            ("vodka.train".to_owned(), settings),
            ("vodka.train.base".to_owned(), self.base.to_string()),
            ("vodka.train.epoch".to_owned(), epoch.to_string()),
            ("vodka.train.step".to_owned(), self.progress.step().to_string()),
        ])
    }

    /// Saves the state where one is due within the last `steps`; the end of an epoch has its own.
    pub(super) fn save_state_where_due(
        &mut self,
        steps: u64,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<()> {
        let step = self.progress.step();
        let due = self.plan.state_every_n_steps.is_some_and(|every| step % every < steps);
        if due && self.epochs.done_within(step) > 0 {
            self.settle(on_event)?;
            self.save_state()?;
        }
        Ok(())
    }

    pub(super) fn save_state(&mut self) -> Result<()> {
        assert!(!self.steps.are_unread(), "losses are read before they are saved");
        self.progress.scaler = self.steps.scaler.as_ref().map(Scaler::state);
        self.write_exposures()?;
        self.losses_file.sync()?;
        self.validations.iter().try_for_each(Validations::sync)?;
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

    pub(super) fn saved_epochs(&self) -> impl Iterator<Item = u64> + use<> {
        saved_epochs(self.plan.settings.max_epochs, self.plan.settings.save_every_n_epochs)
    }

    /// EveryDream2's name for it.
    pub(super) fn checkpoint_path(&self, epoch: u64) -> PathBuf {
        let (name, step) = (&self.plan.settings.name, self.epochs.end(epoch));
        self.plan.output.join(format!("{name}-ep{epoch:02}-gs{step:05}.safetensors"))
    }

    /// EveryDream2's name for its twin.
    pub(super) fn ema_path(&self, epoch: u64) -> PathBuf {
        let path = self.checkpoint_path(epoch);
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        path.with_file_name(format!("{stem}_ema.safetensors"))
    }

    /// Those with the running means, of the epochs that are done.
    pub(super) fn ema_checkpoints(&self) -> impl Iterator<Item = PathBuf> {
        let done = if self.ema.is_some() { self.epochs_done() } else { 0 };
        self.saved_epochs().take_while(move |epoch| *epoch <= done).map(|epoch| self.ema_path(epoch))
    }

    pub(super) fn checkpoints(&self) -> impl Iterator<Item = PathBuf> {
        let done = self.epochs_done();
        self.saved_epochs().take_while(move |epoch| *epoch <= done).map(|epoch| self.checkpoint_path(epoch))
    }

    pub(super) fn check_earlier_checkpoints(&self) -> Result<()> {
        match self.checkpoints().chain(self.ema_checkpoints()).find(|path| !path.exists()) {
            Some(path) => Err(Error::MissingCheckpoint { path }),
            None => Ok(()),
        }
    }
}
