//! What a run leaves on the disk: checkpoints, the training state, the ledger of exposures.

use std::{collections::BTreeMap, path::PathBuf, time::Instant};

use vodka_images::relative_name;
use vodka_sd15::Network;
use vodka_stage::{check_space, write_atomic};

use super::{EXPOSURES, Run};
use crate::{
    Bucket, Error, Result, TrainEvent, TrainPlan,
    data::Example,
    epoch::{Planned, saved_epochs},
    losses::{Validations, csv_cell},
    optimizers::Optimizer,
    state::{self, Trained},
};

impl Run<'_> {
    /// Writes the epoch's checkpoint where one is due, and then the state: a run that is killed between the two
    /// writes the same checkpoint again.
    pub(super) fn end_epoch(&mut self, epoch: u64, on_event: &mut dyn FnMut(TrainEvent)) -> Result<()> {
        let is_saved = self.saved_epochs().any(|saved| saved == epoch);
        if is_saved {
            // A state of another run fits the checkpoints no longer.
            state::delete_others(&self.plan.output, self.key)?;
            check_space(&self.plan.output, self.checkpoint_size(), "a checkpoint")?;
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
            true if is_saved => self.save_state(on_event),
            true => Ok(()),
            false => {
                self.write_exposures()?;
                self.validations.iter().try_for_each(Validations::sync)?;
                self.losses_file.sync()
            }
        }
    }

    /// Makes sure that the disk takes all that is to come.
    ///
    /// # Errors
    /// It does not.
    pub(super) fn check_space(&self) -> Result<()> {
        let (done, output) = (self.epochs_done(), &self.plan.output);
        let to_come = self.saved_epochs().filter(|epoch| *epoch > done).count() as u64;
        // One more, for a new state is there before the oldest goes.
        let states = (self.plan.keep_states + 1).saturating_sub(state::list(output).len()) as u64;
        let state = self.with_trained(state::size);
        let needed = to_come * self.checkpoint_size() + states * state;
        let is_short = done < self.plan.settings.max_epochs;
        match is_short {
            true => Ok(check_space(output, needed, "what is still to be written")?),
            false => Ok(()),
        }
    }

    /// How many bytes an epoch's checkpoint has, with its twin.
    fn checkpoint_size(&self) -> u64 {
        let networks = [self.model.unet.vars(), self.model.clip.vars(), self.model.vae.vars()];
        let weights =
            |vars: &tch::nn::VarStore| vars.variables().values().map(|v| v.numel() as u64).sum::<u64>();
        let weights: u64 = networks.into_iter().map(weights).sum();
        let twins = if self.ema.is_some() { 2 } else { 1 };
        twins * weights * self.plan.settings.precision.size() as u64
    }

    fn with_trained<R>(&self, act: impl FnOnce(&Trained<'_>) -> R) -> R {
        let parts = [("unet", self.unet.as_ref()), ("text_encoder", self.text_encoder.as_ref())];
        let optimizers: Vec<(&str, &Optimizer)> =
            parts.into_iter().filter_map(|(name, optimizer)| Some((name, optimizer?))).collect();
        act(&Trained { optimizers: &optimizers, ema: self.ema.as_ref() })
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

    /// Saves the state where one is due within the last `steps`, or by the clock; a checkpoint that is due
    /// brings its own.
    pub(super) fn save_state_where_due(
        &mut self,
        steps: u64,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<()> {
        let step = self.progress.step();
        let by_steps = self.plan.state_every_n_steps.is_some_and(|every| step % every < steps);
        let minutes = self.state_saved_at.elapsed().as_secs_f64() / 60.0;
        let by_clock = self.plan.state_every_n_minutes.is_some_and(|every| minutes >= every);
        let epoch = self.epochs.done(step);
        let ends_saved = step == self.epochs.end(epoch) && self.saved_epochs().any(|saved| saved == epoch);
        match (by_steps || by_clock) && !ends_saved {
            true => self.save_state(on_event),
            false => Ok(()),
        }
    }

    pub(super) fn save_state(&mut self, on_event: &mut dyn FnMut(TrainEvent)) -> Result<()> {
        self.write_exposures()?;
        self.losses_file.sync()?;
        self.validations.iter().try_for_each(Validations::sync)?;
        let TrainPlan { output, keep_states, .. } = self.plan;
        let path = self
            .with_trained(|trained| state::save(output, self.key, *keep_states, &self.progress, trained))?;
        self.state_saved_at = Instant::now();
        on_event(TrainEvent::StateSaved { path });
        Ok(())
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
