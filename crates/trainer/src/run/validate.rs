//! Validation within a run: when, on what, with which random numbers.

use tch::Tensor;

use super::{
    Run,
    batch::{normals, pyramid},
};
use crate::{
    Result, TrainEvent, Validated,
    data::Example,
    losses::ValidationRow,
    random::{Purpose, Stream},
    step::{Batch, Objective},
    target::LossType,
    validation::diverges,
};

impl Run<'_> {
    pub(super) fn validate_where_due(
        &mut self,
        before: u64,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<()> {
        let done = self.progress.step();
        // Before the run's last batch the epoch is the one that goes on.
        let epoch = self.epochs.done(before) + 1;
        let per_epoch = self.epochs.end(epoch) - self.epochs.end(epoch - 1);
        // Within epochs of unequal length each counts by itself.
        let start = self.epochs.end(epoch - 1);
        let offset = (epoch - 1) * per_epoch;
        let due = self.plan.settings.validation.as_ref().is_some_and(|validation| {
            validation.is_due(before - start + offset, done - start + offset, per_epoch)
        });
        if due { self.validate(on_event) } else { Ok(()) }
    }

    /// Measures the mean squared error on each set: always with the same noise and timesteps.
    pub(super) fn validate(&mut self, on_event: &mut dyn FnMut(TrainEvent)) -> Result<()> {
        let Some(validation) = &self.plan.settings.validation else { return Ok(()) };
        self.settle(on_event)?;
        let step = self.progress.step();
        let mut rows = Vec::new();
        for (name, examples) in &self.dataset.sets {
            let losses = tch::no_grad(|| self.validation_losses(examples, validation.seed));
            if losses.is_empty() {
                continue;
            }
            let loss = (losses.iter().map(|loss| f64::from(*loss)).sum::<f64>() / losses.len() as f64) as f32;
            rows.push(ValidationRow { epoch: self.epochs.done(step), step, set: name.clone(), loss });
        }
        for row in rows {
            on_event(TrainEvent::Validated { step, set: row.set.clone(), loss: row.loss });
            self.progress.validations.push((step, row.loss));
            if let Some(validations) = &mut self.validations {
                validations.append(&row)?;
            }
        }
        Ok(())
    }

    /// The loss of each picture, whatever is trained: of noise, or of what is predicted in its place. In order of bucket.
    fn validation_losses(&self, examples: &[Example], seed: u64) -> Vec<f32> {
        let objective = Objective { loss_type: LossType::Mse, min_snr_gamma: None, ..self.objective.clone() };
        let settings = &self.plan.settings;
        let own = settings.validation.as_ref().and_then(|validation| validation.batch_size);
        let batch_size = own.unwrap_or(settings.batch_size);
        let mut order: Vec<_> = (0..examples.len()).collect();
        order.sort_by_key(|&i| examples[i].bucket);
        let mut losses = Vec::with_capacity(order.len());
        for same in order.chunk_by(|&a, &b| examples[a].bucket == examples[b].bucket) {
            for pictures in same.chunks(batch_size) {
                let batch = self.validation_batch(examples, pictures, seed);
                let found = objective.losses(&self.model.clip, &self.model.unet, &batch); // (B)
                losses.extend(Vec::<f32>::try_from(found).expect("a loss for each picture"));
            }
        }
        losses
    }

    fn validation_batch(&self, examples: &[Example], pictures: &[usize], seed: u64) -> Batch {
        let stream = |purpose, picture: usize| Stream::new(seed, purpose, 0, picture as u64);
        let cat = |of: &dyn Fn(usize) -> Tensor| {
            let tensors: Vec<_> = pictures.iter().map(|&picture| of(picture)).collect();
            Tensor::cat(&tensors, 0)
        };
        let settings = &self.plan.settings;
        let noise = |purpose, picture: usize| {
            normals(&mut stream(purpose, picture), &examples[picture].moments.mean.size())
        };
        let discount = settings.pyramid_noise_discount;
        let discount = discount.filter(|_| settings.compat.validates_with_pyramid_noise());
        let added = |picture: usize| match discount {
            Some(discount) => {
                pyramid(noise(Purpose::Noise, picture), discount, &mut stream(Purpose::Pyramid, picture))
            }
            None => noise(Purpose::Noise, picture),
        };
        let (first, end) = self.plan.settings.timesteps;
        let scale = self.model.config.vae.scaling_factor;
        Batch {
            latents: cat(&|i| examples[i].moments.sample(&noise(Purpose::Posterior, i)) * scale),
            noise: cat(&added),
            timesteps: pictures
                .iter()
                .map(|&i| first + stream(Purpose::Timestep, i).below(end - first))
                .collect(),
            ids: cat(&|i| Tensor::from_slice(&examples[i].ids).unsqueeze(0)),
            states: None,
            perturbation: None,
        }
    }

    /// The first and the last loss of each set, and whether it has begun to rise.
    pub(super) fn last_validations(&self) -> Vec<Validated> {
        let names: Vec<_> =
            self.dataset.sets.iter().filter(|(_, set)| !set.is_empty()).map(|(name, _)| name).collect();
        let validated = |(i, name): (usize, &&String)| {
            let losses: Vec<_> = self
                .progress
                .validations
                .iter()
                .skip(i)
                .step_by(names.len())
                .map(|(_, loss)| *loss)
                .collect();
            let (first, last) = (*losses.first()?, *losses.last()?);
            Some(Validated { set: (*name).clone(), first, last, diverges: diverges(&losses) })
        };
        names.iter().enumerate().filter_map(validated).collect()
    }
}
