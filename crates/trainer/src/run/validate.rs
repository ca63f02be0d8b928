//! Validation within a run: when, on what, with which random numbers.

use std::sync::Arc;

use tch::Tensor;
use vodka_sd15::catch;

use super::{Run, batch::pyramid, memory};
use crate::{
    Error, Result, TrainEvent, Validated,
    data::Example,
    draft::{Draft, Drafter, Place, Role},
    random::Purpose,
    step::{Batch, Objective},
    target::LossType,
    validation::diverges,
    watch::{Phase, ValidationRow},
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
        self.watch.meter.enter(Phase::Validation);
        let step = self.progress.step();
        let mut rows = Vec::new();
        for (name, examples) in &self.dataset.sets {
            let losses = tch::no_grad(|| self.validation_losses(name, examples, validation.seed))?;
            if losses.is_empty() {
                continue;
            }
            let loss = (losses.iter().map(|loss| f64::from(*loss)).sum::<f64>() / losses.len() as f64) as f32;
            rows.push(ValidationRow { epoch: self.epochs.done(step), step, set: name.clone(), loss });
        }
        for row in &rows {
            on_event(TrainEvent::Validated { step, set: row.set.clone(), loss: row.loss });
            self.progress.validations.push((step, row.loss));
            if let Some(validations) = &mut self.validations {
                validations.append(row)?;
            }
        }
        self.watch.validated(&rows)?;
        for (set, losses) in self.validation_curves() {
            let losses: Vec<_> = losses.into_iter().map(|(_, loss)| loss).collect();
            if diverges(&losses) {
                self.watch.diverges(step, &set)?;
                on_event(TrainEvent::Diverges { step, set });
            }
        }
        Ok(())
    }

    /// The loss of each picture of a set, whatever is trained: of noise, or of what is predicted in its place. In order of
    /// bucket.
    pub(super) fn validation_losses(
        &self,
        set: &str,
        examples: &Arc<Vec<Example>>,
        seed: u64,
    ) -> Result<Vec<f32>> {
        let objective = Objective { loss_type: LossType::Mse, min_snr_gamma: None, ..self.objective.clone() };
        let settings = &self.plan.settings;
        let own = settings.validation.as_ref().and_then(|validation| validation.batch_size);
        let batch_size = own.unwrap_or(settings.batch_size);
        let mut order: Vec<_> = (0..examples.len()).collect();
        order.sort_by_key(|&i| examples[i].bucket);
        let place = |picture| Place { epoch: 0, picture, copy: 0 };
        let drafter =
            Drafter { role: Role::Validation, seed, examples: Arc::clone(examples), ..self.training.clone() };
        let mut ahead = self.look_ahead(&drafter, order.clone().into_iter().map(place));
        let mut losses = Vec::with_capacity(order.len());
        for same in order.chunk_by(|&a, &b| examples[a].bucket == examples[b].bucket) {
            for pictures in same.chunks(batch_size) {
                let places: Vec<_> = pictures.iter().map(|&picture| place(picture)).collect();
                let drafts = places.iter().map(|place| ahead.take(place)).collect::<Result<Vec<_>>>()?;
                let found = catch(|| {
                    let batch = self.validation_batch(&drafter, &places, &drafts)?;
                    let found = objective.losses(&self.model.clip, &self.model.unet, &batch); // (B)
                    Ok::<_, Error>(Vec::<f32>::try_from(found).expect("a loss for each picture"))
                });
                losses.extend(found.map_err(|source| {
                    let (count, bucket) = (pictures.len(), examples[pictures[0]].bucket);
                    let place = format!("validation on `{set}`");
                    memory::of_batch(place, count, bucket, &memory::lower_in_validation(count), source)
                })??);
            }
        }
        Ok(losses)
    }

    fn validation_batch(&self, drafter: &Drafter, places: &[Place], drafts: &[Draft]) -> Result<Batch> {
        let settings = &self.plan.settings;
        let both = || places.iter().zip(drafts);
        let latents = both().map(|(place, draft)| self.latents(drafter, place, draft));
        let noise = |(place, draft): (&Place, &Draft)| {
            Tensor::from_slice(&draft.noise).view(drafter.size(place.picture))
        };
        let discount = settings.pyramid_noise_discount;
        let discount = discount.filter(|_| settings.compat.validates_with_pyramid_noise());
        let added = |of: (&Place, &Draft)| match discount {
            Some(discount) => pyramid(noise(of), discount, &mut of.0.stream(drafter.seed, Purpose::Pyramid)),
            None => noise(of),
        };
        let (first, end) = self.plan.settings.timesteps;
        let timestep =
            |place: &Place| first + place.stream(drafter.seed, Purpose::Timestep).below(end - first);
        let ids: Vec<_> = places.iter().map(|place| drafter.examples[place.picture].ids).collect();
        let scale = self.model.config.vae.scaling_factor;
        Ok(Batch {
            latents: Tensor::cat(&latents.collect::<Result<Vec<_>>>()?, 0) * scale,
            noise: Tensor::cat(&both().map(added).collect::<Vec<_>>(), 0),
            timesteps: places.iter().map(timestep).collect(),
            states: self.states(&ids)?,
            ids: self.ids_tensor(&ids),
            perturbation: None,
        })
    }

    /// The losses of each set so far, with the batches that were done.
    pub(super) fn validation_curves(&self) -> Vec<(String, Vec<(u64, f32)>)> {
        let sets = self.dataset.sets.iter().filter(|(_, set)| !set.is_empty());
        let names: Vec<_> = sets.map(|(name, _)| name.clone()).collect();
        let (count, losses) = (names.len(), &self.progress.validations);
        let curve = |i: usize| losses.iter().skip(i).step_by(count).copied().collect();
        names.into_iter().enumerate().map(|(i, name)| (name, curve(i))).collect()
    }

    /// The first and the last loss of each set, and whether it has begun to rise.
    pub(super) fn last_validations(&self) -> Vec<Validated> {
        let validated = |(set, losses): (String, Vec<(u64, f32)>)| {
            let losses: Vec<_> = losses.into_iter().map(|(_, loss)| loss).collect();
            let (first, last) = (*losses.first()?, *losses.last()?);
            Some(Validated { set, first, last, diverges: diverges(&losses) })
        };
        self.validation_curves().into_iter().filter_map(validated).collect()
    }
}
