//! Checkpoints: when they are due, what they are called, what they say of themselves.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use vodka_checkpoint::model_spec;
use vodka_stage::{check_space, write_atomic};

use super::Run;
use crate::{
    Error, Result, TrainEvent,
    epoch::saved_epochs,
    watch::{self, Phase},
};

/// What names of checkpoints begin with that a run leaves when it stops before its end, and takes away when it goes on.
const INTERRUPTED: &str = "interrupted-";
const ERRORED: &str = "errored-";

impl Run<'_> {
    /// Writes a checkpoint where the last is `ckpt_every_n_minutes` old. The clock decides which there are, and nothing
    /// else: neither the weights nor the other checkpoints.
    pub(super) fn save_by_the_clock(&mut self, on_event: &mut dyn FnMut(TrainEvent)) -> Result<()> {
        let Some(minutes) = self.plan.ckpt_every_n_minutes else { return Ok(()) };
        let step = self.progress.step();
        let due = self.saved_at.elapsed() >= Duration::from_secs_f64(60.0 * minutes);
        // The end of an epoch has its own.
        if !due || self.epochs.done_within(step) == 0 {
            return Ok(());
        }
        let epoch = self.epochs_done();
        self.save_checkpoint(&self.name("", epoch, step), epoch, on_event)
    }

    /// What can be used of a run that was interrupted; its state is what it goes on from.
    pub(super) fn save_interrupted(&mut self, on_event: &mut dyn FnMut(TrainEvent)) -> Result<()> {
        let step = self.progress.step();
        if step == 0 {
            return Ok(());
        }
        self.save_checkpoint(&format!("{INTERRUPTED}gs{step:05}"), self.epochs_done(), on_event)
    }

    /// What can be used of a run that has failed, if it can be written.
    pub(super) fn save_errored(&mut self, on_event: &mut dyn FnMut(TrainEvent)) -> Result<()> {
        // What ends the run may be what is found here, and that is told already.
        let _ = self.settle(on_event);
        let (epoch, step) = (self.epochs_done(), self.progress.step());
        if step == 0 {
            return Ok(());
        }
        self.save_checkpoint(&self.name(ERRORED, epoch, step), epoch, on_event)
    }

    /// Takes away the checkpoints of an interruption or a failure: the run goes on, or another has something of its own to go
    /// on from.
    pub(super) fn forget_unfinished(&self) -> Result<()> {
        let output = &self.plan.output;
        let errored = format!("{ERRORED}{}-ep", self.plan.settings.name);
        let Ok(entries) = fs::read_dir(output) else { return Ok(()) };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let unfinished = |name: &String| {
            name.strip_prefix(INTERRUPTED).is_some_and(|rest| rest.starts_with("gs"))
                || name.starts_with(&errored)
        };
        for path in names.filter(unfinished).map(|name| output.join(name)) {
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(|source| vodka_stage::Error::Write { path, source })?;
        }
        Ok(())
    }

    /// Writes the networks, and their running means where there are any, and the graph of the losses.
    pub(super) fn save_checkpoint(
        &mut self,
        name: &str,
        epoch: u64,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<()> {
        self.settle(on_event)?;
        self.watch.meter.enter(Phase::Saving);
        check_space(&self.plan.output, self.checkpoint_size(), "a checkpoint")?;
        self.write_graph()?;
        let mut written = self.write_model(name, epoch)?;
        if let Some(ema) = &self.ema {
            written.extend(ema.in_place(|| self.write_model(&ema_name(name), epoch))?);
        }
        // Those that go again are not in the log, which is that of an undisturbed run.
        let stays = !name.starts_with(INTERRUPTED) && !name.starts_with(ERRORED);
        for path in written {
            if stays {
                self.watch.saved(self.progress.step(), &path)?;
            }
            on_event(TrainEvent::Saved { path });
        }
        self.saved_at = Instant::now();
        Ok(())
    }

    /// Writes the networks as they are, in each form that is asked for.
    fn write_model(&self, name: &str, epoch: u64) -> Result<Vec<PathBuf>> {
        let settings = &self.plan.settings;
        let mut written = Vec::new();
        if settings.save_ckpt {
            let path = self.plan.output.join(format!("{name}.safetensors"));
            self.model.save(&path, settings.precision, &self.metadata(name, epoch))?;
            written.push(path);
        }
        if settings.save_diffusers {
            let path = self.plan.output.join(name);
            self.model.save_diffusers(&path, settings.precision)?;
            written.push(path);
        }
        Ok(written)
    }

    /// What a checkpoint says about its origin. Nothing in it varies from run to run.
    fn metadata(&self, name: &str, epoch: u64) -> BTreeMap<String, String> {
        let settings = &self.plan.settings;
        let json = serde_json::to_string(settings).expect("settings are plain data");
        let (first, end) = settings.timesteps;
        let resolution = settings.resolution;
        let mut entries = model_spec(&self.model.config, name);
        let of_run = [
            ("vodka.train", json),
            ("vodka.train.base", self.base.to_string()),
            ("vodka.train.data", self.data.to_string()),
            ("vodka.train.epoch", epoch.to_string()),
            ("vodka.train.step", self.progress.step().to_string()),
            ("modelspec.resolution", format!("{resolution}x{resolution}")),
            ("modelspec.timestep_range", format!("{first},{end}")),
            ("modelspec.encoder_layer", settings.clip_skip.to_string()),
        ];
        entries.extend(of_run.map(|(key, value)| (key.to_owned(), value)));
        entries
    }

    /// `losses.svg` and `losses.png`: the losses so far.
    fn write_graph(&self) -> Result<()> {
        let curves = self.validation_curves();
        let sets: Vec<_> = curves.iter().map(|(set, losses)| (set.as_str(), losses.clone())).collect();
        let plot = watch::loss_graph(&self.plan.settings.name, &self.progress.losses, &sets);
        write_atomic(self.plan.output.join("losses.svg"), plot.svg())?;
        Ok(write_atomic(self.plan.output.join("losses.png"), plot.png())?)
    }

    pub(super) fn saved_epochs(&self) -> impl Iterator<Item = u64> + use<> {
        let settings = &self.plan.settings;
        saved_epochs(settings.max_epochs, settings.save_every_n_epochs, settings.save_ckpts_from_n_epochs)
    }

    /// EveryDream2's name for a checkpoint.
    fn name(&self, prefix: &str, epoch: u64, step: u64) -> String {
        format!("{prefix}{}-ep{epoch:02}-gs{step:05}", self.plan.settings.name)
    }

    /// EveryDream2's name for the checkpoint at the end of an epoch.
    pub(super) fn epoch_name(&self, epoch: u64) -> String {
        let settings = &self.plan.settings;
        let is_last = epoch == settings.max_epochs && settings.prepend_last;
        self.name(if is_last { "last-" } else { "" }, epoch, self.epochs.end(epoch))
    }

    /// The path of a checkpoint.
    fn path_of(&self, name: &str) -> PathBuf {
        match self.plan.settings.save_ckpt {
            true => self.plan.output.join(format!("{name}.safetensors")),
            false => self.plan.output.join(name),
        }
    }

    /// The names of the checkpoints of the epochs that are done.
    fn saved_names(&self) -> impl Iterator<Item = String> {
        let done = self.epochs_done();
        self.saved_epochs().take_while(move |epoch| *epoch <= done).map(|epoch| self.epoch_name(epoch))
    }

    /// Those of the epochs that are done, oldest first.
    pub(super) fn checkpoints(&self) -> impl Iterator<Item = PathBuf> {
        self.saved_names().map(|name| self.path_of(&name))
    }

    /// Those with the running means, of the epochs that are done.
    pub(super) fn ema_checkpoints(&self) -> impl Iterator<Item = PathBuf> {
        let names = self.ema.is_some().then(|| self.saved_names());
        names.into_iter().flatten().map(|name| self.path_of(&ema_name(&name)))
    }

    /// The diffusers folders beside single files, of the epochs that are done.
    pub(super) fn folders(&self) -> impl Iterator<Item = PathBuf> {
        let settings = &self.plan.settings;
        let names = (settings.save_diffusers && settings.save_ckpt).then(|| self.saved_names());
        names.into_iter().flatten().flat_map(|name| {
            let twin = self.ema.as_ref().map(|_| ema_name(&name));
            [Some(name), twin]
                .into_iter()
                .flatten()
                .map(|name| self.plan.output.join(name))
                .collect::<Vec<_>>()
        })
    }

    pub(super) fn check_earlier_checkpoints(&self) -> Result<()> {
        match self
            .checkpoints()
            .chain(self.ema_checkpoints())
            .chain(self.folders())
            .find(|path| !path.exists())
        {
            Some(path) => Err(Error::MissingCheckpoint { path }),
            None => Ok(()),
        }
    }
}

/// EveryDream2's name for the twin of a checkpoint.
fn ema_name(name: &str) -> String {
    format!("{name}_ema")
}
