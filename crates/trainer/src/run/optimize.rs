//! One step of the optimizers: gradients of a few batches, and the way along them.

use tch::Kind;

use super::Run;
use crate::{Error, Result, TrainEvent, epoch::Planned, losses::Row, optimizers::Optimizer};

impl Run<'_> {
    /// Accumulates the gradients of a few batches and steps along them.
    ///
    /// Every picture weighs the same, whatever the size of its batch: its loss is divided by the number of pictures
    /// that full batches would have. EveryDream2 divides by that of one batch alone.
    pub(super) fn optimizer_step(
        &mut self,
        epoch: u64,
        group: &[Planned],
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<()> {
        let settings = &self.plan.settings;
        let together = if settings.compat.averages_gradients() { settings.grad_accum } else { 1 };
        let full = (settings.batch_size * together) as f64;
        let mut rows = Vec::with_capacity(group.len());
        for (step, planned) in (self.progress.step() + 1..).zip(group) {
            let pictures = &planned.pictures;
            let batch = self.batch(epoch, planned)?;
            let (clip, unet) = (&self.model.clip, &self.model.unet);
            let losses = self.objective.losses(clip, unet, &batch); // (B)
            let loss = losses.mean(Kind::Float).double_value(&[]) as f32;
            if !loss.is_finite() {
                return Err(self.not_finite("loss", epoch, step, pictures));
            }
            let weights = self.loss_weights(planned).to_device(losses.device()); // (B)
            ((losses * weights).sum(Kind::Float) / full).backward();
            if settings.compat.clips_every_batch() {
                let clip = settings.clip_grad_norm;
                for optimizer in [&mut self.unet, &mut self.text_encoder].into_iter().flatten() {
                    clip.into_iter().for_each(|norm| optimizer.clip_gradients(norm));
                }
            }
            rows.push(Row { epoch, step, loss, rates: self.rates.at(step) });
        }
        // Schedules go by batches; the last of the group says the rate.
        let step = self.progress.step() + group.len() as u64;
        let rates = self.rates.at(step);
        let clip = settings.clip_grad_norm.filter(|_| !settings.compat.clips_every_batch());
        let clip_text_encoder = clip.filter(|_| settings.compat.clips_text_encoder());
        let optimizers = [&self.unet, &self.text_encoder];
        if !optimizers.into_iter().flatten().all(Optimizer::gradients_are_finite) {
            return Err(self.not_finite("gradient", epoch, step, &pictures_of(group)));
        }
        let parts = [(&mut self.unet, clip), (&mut self.text_encoder, clip_text_encoder)];
        for ((optimizer, clip), rate) in parts.into_iter().zip(rates) {
            let Some(optimizer) = optimizer else { continue };
            clip.into_iter().for_each(|norm| optimizer.clip_gradients(norm));
            optimizer.step(rate);
            optimizer.zero_grad();
        }
        for row in rows {
            self.progress.losses.push(row.loss);
            self.losses_file.append(row)?;
            let Row { epoch, step, loss, .. } = row;
            on_event(TrainEvent::Step { epoch, step, loss });
        }
        Ok(())
    }

    fn not_finite(&self, what: &'static str, epoch: u64, step: u64, pictures: &[usize]) -> Error {
        let pictures =
            pictures.iter().map(|&picture| self.dataset.examples[picture].item.path.clone()).collect();
        Error::NotFinite { what, epoch, step, pictures }
    }
}

/// The pictures of a few batches.
fn pictures_of(group: &[Planned]) -> Vec<usize> {
    group.iter().flat_map(|planned| &planned.pictures).copied().collect()
}
