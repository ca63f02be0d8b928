//! Sample pictures within a run: when, of what, and where they go.

use vodka_images::RgbImage;
use vodka_sd15::{catch, is_out_of_memory};
use vodka_stage::{Interrupt, explain, write_atomic};

use super::{Run, group_before};
use crate::{
    Result, SampleConfig, SamplePrompt, SampleRound, TrainEvent,
    epoch::Planned,
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
        interrupt: &Interrupt,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<()> {
        let Some(samples) = &self.samples else { return Ok(()) };
        let every = samples.config().generate_samples_every_n_steps.unwrap_or(self.plan.sample_steps);
        let due = self.progress.step() / every > before / every;
        if due { self.sample(group, interrupt, on_event) } else { Ok(()) }
    }

    /// Asks for samples before the first step, where the file says so.
    pub(super) fn sample_before(
        &mut self,
        group: &[Planned],
        interrupt: &Interrupt,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<()> {
        let wanted = |config: &SampleConfig| config.generate_pretrain_samples;
        let due = self.samples.as_ref().is_some_and(|samples| wanted(samples.config()));
        if due { self.sample(group, interrupt, on_event) } else { Ok(()) }
    }

    /// Asks once more for those of a round that was interrupted.
    pub(super) fn sample_what_is_owed(
        &mut self,
        interrupt: &Interrupt,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<()> {
        if !self.progress.owes_samples {
            return Ok(());
        }
        let (settings, step) = (&self.plan.settings, self.progress.step());
        let group = group_before(step, &self.entries, &self.epoch_settings, &self.epochs, settings.compat);
        self.sample(&group, interrupt, on_event)
    }

    /// A round: all of it is kept, or, where it is interrupted, nothing, and it is owed.
    fn sample(
        &mut self,
        group: &[Planned],
        interrupt: &Interrupt,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<()> {
        self.watch.meter.enter(Phase::Samples);
        self.progress.owes_samples = false;
        let Some(samples) = &mut self.samples else { return Ok(()) };
        if let Err(error) = samples.reload() {
            // As it was last read: a typing error must not end a run of days.
            on_event(TrainEvent::SamplesUnreadable { reason: explain(&error) });
        }
        let config = samples.config().clone();
        let prompts = self.prompts(&config, group);
        let live = self.ema.is_none() || self.plan.ema_sample_nonema_model || !self.plan.ema_sample_ema_model;
        let means = self.ema.is_some() && self.plan.ema_sample_ema_model;
        let networks = [live.then_some(false), means.then_some(true)].into_iter().flatten();
        let mut made = Vec::new();
        for means in networks {
            let strips = self.sampled_networks(&config, &prompts, means, on_event);
            let is_whole = strips.len() == prompts.len();
            made.push((means, strips));
            if interrupt.is_raised() && !is_whole {
                self.progress.owes_samples = true;
                return Ok(());
            }
        }
        made.into_iter().try_for_each(|(means, strips)| self.keep_samples(&prompts, means, strips))
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

    /// Asks for the pictures; those that come.
    fn sampled_networks(
        &mut self,
        config: &SampleConfig,
        prompts: &[SamplePrompt],
        means: bool,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Vec<(usize, RgbImage)> {
        let strips = Strips::default();
        let (sampler, schedule) = config.sampler();
        let step = self.progress.step();
        let round = SampleRound {
            step,
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
        let asked = catch(|| match self.ema.as_ref().filter(|_| means) {
            Some(ema) => ema.in_place(|| on_event(TrainEvent::Sample(round))),
            None => on_event(TrainEvent::Sample(round)),
        });
        if let Err(source) = asked {
            let helps = match is_out_of_memory(&source) {
                true => "; smaller ones need less: `size` or `resolution` in the file of `sample_prompts`",
                false => "",
            };
            on_event(TrainEvent::SamplesFailed { step, reason: format!("{source}{helps}") });
        }
        strips.0.into_inner()
    }

    /// Writes the strips of a round.
    fn keep_samples(
        &mut self,
        prompts: &[SamplePrompt],
        means: bool,
        strips: Vec<(usize, RgbImage)>,
    ) -> Result<()> {
        let step = self.progress.step();
        let extra = if means { "ema_" } else { "" };
        for (index, strip) in strips {
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
