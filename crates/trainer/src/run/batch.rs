//! What a batch is made of: latents, noise, timesteps and captions, each picture's own in each epoch.

use std::sync::Arc;

use tch::{Tensor, no_grad};
use vodka_prompt::{CONTEXT_LENGTH, token_ids};
use vodka_sd15::{Network, catch};
use vodka_stage::Hasher;

use super::{Run, memory};
use crate::{
    Error, Result,
    data::Example,
    draft::{Draft, Drafter, Pixels, Place, encode, moments, numbers},
    epoch::{Entry, EpochSettings, Epochs, Planned, batches},
    random::{Purpose, Stream},
    step::Batch,
    target::{self, pyramid_noise, pyramid_sizes},
};

/// The caption that stands for no caption, as in EveryDream2.
const DROPPED: &str = " ";

impl Run<'_> {
    /// The inputs of a batch on the processor, with the random numbers of its pictures in this epoch.
    ///
    /// # Errors
    /// A picture is gone or another one, or the VAE makes nothing of it.
    pub(super) fn batch(&self, epoch: u64, planned: &Planned) -> Result<Batch> {
        let settings = &self.plan.settings;
        let places: Vec<_> = places(epoch, planned).collect();
        let mut ahead = self.ahead.borrow_mut();
        let drafts = places.iter().map(|place| ahead.take(place)).collect::<Result<Vec<_>>>()?;
        let cat = |of: &mut dyn FnMut(&Place, &Draft) -> Result<Tensor>| {
            let tensors = places.iter().zip(&drafts).map(|(place, draft)| of(place, draft));
            let tensors = tensors.collect::<Result<Vec<_>>>()?;
            Ok::<_, Error>(Tensor::cat(&tensors, 0))
        };
        let scale = self.model.config.vae.scaling_factor;
        let (first, end) = settings.timesteps;
        let stream = |place: &Place, purpose| place.stream(settings.seed, purpose);
        let timestep = |place: &Place| first + stream(place, Purpose::Timestep).below(end - first);
        let perturbation = |place: &Place| {
            let size = [1, CONTEXT_LENGTH as i64, self.model.config.clip.hidden_size];
            let numbers = stream(place, Purpose::Perturbation).normals(size.iter().product::<i64>() as usize);
            target::perturbation(&Tensor::from_slice(&numbers).view(size), settings.embedding_perturbation)
        };
        let ids: Vec<_> = places.iter().map(|place| self.ids(place)).collect();
        Ok(Batch {
            latents: cat(&mut |place, draft| Ok(self.latents(&self.training, place, draft)? * scale))?,
            noise: cat(&mut |place, draft| Ok(self.noise(place, draft)))?,
            timesteps: places.iter().map(timestep).collect(),
            states: self.states(&ids)?,
            ids: self.ids_tensor(&ids),
            perturbation: match settings.embedding_perturbation > 0.0 {
                true => Some(cat(&mut |place, _| Ok(perturbation(place)))?),
                false => None,
            },
        })
    }

    /// The latents that a draft picks from what the VAE makes of its picture, not yet scaled. `(1, 4, h, w)`
    pub(super) fn latents(&self, drafter: &Drafter, place: &Place, draft: &Draft) -> Result<Tensor> {
        let encoded = match &draft.pixels {
            Pixels::Encoded(encoded) => Arc::clone(encoded),
            Pixels::Decoded(image, key) => {
                let Example { item, bucket, .. } = &drafter.examples[place.picture];
                let encoded = self.watch.meter.vae(|| catch(|| encode(&self.model.vae, image)));
                let encoded = encoded.map_err(|source| {
                    let place = format!("the VAE, `{}`", item.path.display());
                    memory::of_batch(place, 1, *bucket, &memory::lower_in_vae(&self.plan.settings), source)
                })??;
                if !encoded.iter().all(|number| number.is_finite()) {
                    return Err(Error::LatentsNotFinite { path: item.file.clone() });
                }
                key.iter().for_each(|key| drafter.cache.put(*key, &encoded));
                encoded
            }
        };
        let size = drafter.size(place.picture);
        Ok(moments(&encoded, size).sample(&Tensor::from_slice(&draft.posterior).view(size)))
    }

    /// What the text encoder makes of captions, where it is not trained. One caption at a time, so that it does not
    /// depend on which captions are beside it. `(B, 77, C)`
    pub(super) fn states(&self, ids: &[[i64; CONTEXT_LENGTH]]) -> Result<Option<Tensor>> {
        let Some(text) = self.frozen_text else { return Ok(None) };
        let (clip_skip, cache) = (self.objective.clip_skip, &self.training.cache);
        let state = |ids: &[i64; CONTEXT_LENGTH]| {
            let mut hasher = Hasher::default();
            hasher.piece("text").piece(text.to_string()).piece(clip_skip.to_le_bytes());
            ids.iter().for_each(|id| {
                hasher.piece(id.to_le_bytes());
            });
            let key = hasher.finish();
            let size = [1, CONTEXT_LENGTH as i64, self.model.config.clip.hidden_size];
            let count = size.iter().product::<i64>() as usize;
            let known = cache.get(key).filter(|numbers| numbers.len() == count);
            let made = || {
                let ids = Tensor::from_slice(ids).unsqueeze(0).to_device(self.model.clip.vars().device());
                let made = numbers(&no_grad(|| self.model.clip.forward(&ids, clip_skip)))?;
                cache.put(key, &made);
                Ok::<_, Error>(made)
            };
            Ok::<_, Error>(Tensor::from_slice(&known.map_or_else(made, Ok)?).view(size))
        };
        let states = ids.iter().map(state).collect::<Result<Vec<_>>>()?;
        Ok(Some(Tensor::cat(&states, 0)))
    }

    /// `(B, 77)`
    pub(super) fn ids_tensor(&self, ids: &[[i64; CONTEXT_LENGTH]]) -> Tensor {
        Tensor::from_slice(&ids.concat()).view([ids.len() as i64, CONTEXT_LENGTH as i64])
    }

    /// What the losses of a batch's pictures are multiplied by. `(B)`
    pub(super) fn loss_weights(&self, planned: &Planned) -> Tensor {
        let weight = |&i: &usize| (self.dataset.examples[i].item.loss_scale * planned.loss_scale) as f32;
        Tensor::from_slice(&planned.pictures.iter().map(weight).collect::<Vec<_>>())
    }

    /// The tokens of a picture's caption in an epoch: shuffled or dropped, where that is due.
    fn ids(&self, place: &Place) -> [i64; CONTEXT_LENGTH] {
        let settings = &self.plan.settings;
        let Example { item, ids, .. } = &self.dataset.examples[place.picture];
        let stream = |place: &Place, purpose| place.stream(settings.seed, purpose);
        let cond_dropout = item.cond_dropout.unwrap_or(settings.cond_dropout);
        if stream(place, Purpose::Dropout).uniform() < cond_dropout {
            return token_ids(DROPPED);
        }
        if !settings.shuffle_tags && !item.shuffle_tags {
            return *ids;
        }
        let apart = settings.compat.shuffles_apart();
        let own = if apart { *place } else { Place { picture: 0, copy: 0, ..*place } };
        token_ids(&item.caption.shuffled(&mut stream(&own, Purpose::Tags), settings.keep_tags))
    }

    /// What is added to a picture's latents in an epoch: standard normal noise, of one size or several, and an offset
    /// for each channel. `(1, 4, h, w)`
    fn noise(&self, place: &Place, draft: &Draft) -> Tensor {
        let settings = &self.plan.settings;
        let size = self.training.size(place.picture);
        let normals = |purpose, size: &[i64]| {
            let count = size.iter().product::<i64>() as usize;
            Tensor::from_slice(&place.stream(settings.seed, purpose).normals(count)).view(size)
        };
        let mut noise = Tensor::from_slice(&draft.noise).view(size);
        if let Some(discount) = settings.pyramid_noise_discount {
            noise = pyramid(noise, discount, &mut place.stream(settings.seed, Purpose::Pyramid));
        }
        if settings.offset_noise > 0.0 {
            let offset = normals(Purpose::OffsetNoise, &[1, size[1], 1, 1]);
            noise += offset * settings.offset_noise;
        }
        noise
    }
}

/// Noise of several sizes, of which this is the finest. `(1, C, h, w)`
pub(super) fn pyramid(noise: Tensor, discount: f64, stream: &mut Stream) -> Tensor {
    let size = noise.size();
    let sizes = pyramid_sizes(size[2], size[3], || stream.between(2.0, 4.0));
    let coarser = sizes.into_iter().map(|(h, w)| {
        let size = [1, size[1], h, w];
        Tensor::from_slice(&stream.normals(size.iter().product::<i64>() as usize)).view(size)
    });
    let levels: Vec<_> = [noise].into_iter().chain(coarser).collect();
    pyramid_noise(&levels, discount)
}

/// Where the pictures of a batch are used.
fn places(epoch: u64, planned: &Planned) -> impl Iterator<Item = Place> {
    let both = planned.pictures.iter().zip(&planned.copies);
    both.map(move |(&picture, &copy)| Place { epoch, picture, copy })
}

/// All places of a run after the first `step` batches, in order.
pub(super) fn places_after(
    step: u64,
    entries: &[Entry],
    settings: EpochSettings,
    epochs: &Epochs,
) -> impl Iterator<Item = Place> + use<> {
    let entries = entries.to_vec();
    let (first, done) = (epochs.done(step) + 1, epochs.done_within(step));
    (first..=settings.max_epochs).flat_map(move |epoch| {
        let done = if epoch == first { done } else { 0 };
        let batches = batches(&entries, &settings, epoch).into_iter().skip(done);
        batches.flat_map(move |planned| places(epoch, &planned).collect::<Vec<_>>())
    })
}
