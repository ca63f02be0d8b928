//! Sample pictures within a run: when, of what, and where they go.

use vodka_stage::write_atomic;

use super::Run;
use crate::{
    Result, SampleConfig, SamplePrompt, SampleRound, TrainEvent,
    epoch::Planned,
    keys::explain,
    random::{Purpose, Stream},
    samples::Strips,
    watch::{Phase, Value},
};

/// The quality of the files.
const JPEG_QUALITY: u8 = 95;

impl Run<'_> {
    /// Asks for samples where they are due, after the batches of a step.
    pub(super) fn sample_where_due(
        &mut self,
        before: u64,
        group: &[Planned],
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<()> {
        let Some(samples) = &self.samples else { return Ok(()) };
        let every = samples.config().generate_samples_every_n_steps.unwrap_or(self.plan.sample_steps);
        let due = self.progress.step() / every > before / every;
        if due { self.sample(group, on_event) } else { Ok(()) }
    }

    /// Asks for samples before the first step, where the file says so.
    pub(super) fn sample_before(
        &mut self,
        group: &[Planned],
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<()> {
        let wanted = |config: &SampleConfig| config.generate_pretrain_samples;
        let due = self.samples.as_ref().is_some_and(|samples| wanted(samples.config()));
        if due { self.sample(group, on_event) } else { Ok(()) }
    }

    fn sample(&mut self, group: &[Planned], on_event: &mut dyn FnMut(TrainEvent)) -> Result<()> {
        self.watch.meter.enter(Phase::Samples);
        let Some(samples) = &mut self.samples else { return Ok(()) };
        if let Err(error) = samples.reload() {
            // As it was last read: a typing error must not end a run of days.
            on_event(TrainEvent::SamplesUnreadable { reason: explain(&error) });
        }
        let config = samples.config().clone();
        let prompts = self.prompts(&config, group);
        let live = self.ema.is_none() || self.plan.ema_sample_nonema_model || !self.plan.ema_sample_ema_model;
        if live {
            self.sample_networks(&config, &prompts, false, on_event)?;
        }
        if self.ema.is_some() && self.plan.ema_sample_ema_model {
            self.sample_networks(&config, &prompts, true, on_event)?;
        }
        Ok(())
    }

    /// The pictures of a round, with captions of the batches in hand where they are asked for.
    fn prompts(&self, config: &SampleConfig, group: &[Planned]) -> Vec<SamplePrompt> {
        let settings = &self.plan.settings;
        let pictures = group.iter().flat_map(|planned| &planned.pictures);
        let captions: Vec<_> = pictures.map(|&i| self.dataset.examples[i].item.caption.text()).collect();
        let step = self.progress.step();
        let draw = |i: usize| {
            let mut stream = Stream::new(settings.seed, Purpose::Sample, step, i as u64);
            stream.below(1 << 30) as u32
        };
        config.prompts(&captions, settings.resolution, settings.seed, &draw)
    }

    /// Asks for the pictures, and keeps those that come.
    fn sample_networks(
        &mut self,
        config: &SampleConfig,
        prompts: &[SamplePrompt],
        means: bool,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<()> {
        let strips = Strips::default();
        let (sampler, schedule) = config.sampler();
        let round = SampleRound {
            step: self.progress.step(),
            model: &self.model,
            ema: means,
            prompts,
            cfgs: &config.cfgs,
            sampler,
            schedule,
            steps: config.num_inference_steps,
            clip_skip: self.plan.settings.clip_skip as u32,
            strips: &strips,
        };
        match self.ema.as_ref().filter(|_| means) {
            Some(ema) => ema.in_place(|| on_event(TrainEvent::Sample(round))),
            None => on_event(TrainEvent::Sample(round)),
        }
        let step = self.progress.step();
        let extra = if means { "ema_" } else { "" };
        for (index, strip) in strips.0.into_inner() {
            let prompt = &prompts[index];
            let name = format!("gs{step:05}-{index:03}-{extra}{}", prompt.name());
            let folder = self.plan.output.join("samples");
            let jpeg = vodka_images::jpeg(&strip, JPEG_QUALITY);
            write_atomic(folder.join(format!("{name}.txt")), prompt.text())?;
            write_atomic(folder.join(format!("{name}.jpg")), &jpeg)?;
            let tag = match prompt.is_caption {
                true => format!("sample_{index:03}{extra}"),
                false => format!("sample_{index:03}_{extra}{}", prompt.name()),
            };
            let (width, height) = strip.dimensions();
            self.watch.sampled(step, tag, Value::Image { width, height, encoded: &jpeg })?;
        }
        Ok(())
    }
}
