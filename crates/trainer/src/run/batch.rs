//! What a batch is made of: latents, noise, timesteps and captions, each picture's own in each epoch.

use tch::Tensor;
use vodka_prompt::{CONTEXT_LENGTH, token_ids};
use vodka_sd15::Moments;

use super::Run;
use crate::{
    data::Example,
    epoch::Planned,
    random::{Purpose, Stream},
    step::Batch,
    target::{pyramid_noise, pyramid_sizes},
};

/// The caption that stands for no caption, as in EveryDream2.
const DROPPED: &str = " ";

impl Run<'_> {
    /// The inputs of a batch on the processor, with the random numbers of its pictures in this epoch.
    pub(super) fn batch(&self, epoch: u64, pictures: &[usize]) -> Batch {
        let settings = &self.plan.settings;
        let stream = |purpose, picture: usize| Stream::new(settings.seed, purpose, epoch, picture as u64);
        let cat = |of: &dyn Fn(usize) -> Tensor| {
            let tensors: Vec<_> = pictures.iter().map(|&picture| of(picture)).collect();
            Tensor::cat(&tensors, 0)
        };
        let posterior = |picture: usize| {
            let moments = self.moments(epoch, picture);
            moments.sample(&normals(&mut stream(Purpose::Posterior, picture), &moments.mean.size()))
        };
        let scale = self.model.config.vae.scaling_factor;
        let (first, end) = settings.timesteps;
        let timestep = |picture: usize| first + stream(Purpose::Timestep, picture).below(end - first);
        let perturbation = |picture: usize| {
            let size = [1, CONTEXT_LENGTH as i64, self.model.config.clip.hidden_size];
            let deviation =
                settings.embedding_perturbation / (self.model.config.clip.hidden_size as f64).sqrt();
            normals(&mut stream(Purpose::Perturbation, picture), &size) * deviation
        };
        let ids = |picture: usize| Tensor::from_slice(&self.ids(epoch, picture)).unsqueeze(0);
        Batch {
            latents: cat(&|i| posterior(i) * scale),
            noise: cat(&|i| self.noise(epoch, i)),
            timesteps: pictures.iter().map(|&i| timestep(i)).collect(),
            ids: cat(&ids),
            states: None,
            perturbation: (settings.embedding_perturbation > 0.0).then(|| cat(&perturbation)),
        }
    }

    /// What the losses of a batch's pictures are multiplied by. `(B)`
    pub(super) fn loss_weights(&self, planned: &Planned) -> Tensor {
        let weight = |&i: &usize| (self.dataset.examples[i].item.loss_scale * planned.loss_scale) as f32;
        Tensor::from_slice(&planned.pictures.iter().map(weight).collect::<Vec<_>>())
    }

    /// The picture, or its mirror image, as the VAE sees it.
    fn moments(&self, epoch: u64, picture: usize) -> &Moments {
        let Example { item, moments, flipped, .. } = &self.dataset.examples[picture];
        let settings = &self.plan.settings;
        let flip = || {
            let mut stream = Stream::new(settings.seed, Purpose::Flip, epoch, picture as u64);
            stream.uniform() < settings.flip_p_of(item)
        };
        flipped.as_ref().filter(|_| flip()).unwrap_or(moments)
    }

    /// The tokens of a picture's caption in an epoch: shuffled or dropped, where that is due.
    fn ids(&self, epoch: u64, picture: usize) -> [i64; CONTEXT_LENGTH] {
        let settings = &self.plan.settings;
        let Example { item, ids, .. } = &self.dataset.examples[picture];
        let stream = |purpose, picture: usize| Stream::new(settings.seed, purpose, epoch, picture as u64);
        let cond_dropout = item.cond_dropout.unwrap_or(settings.cond_dropout);
        if stream(Purpose::Dropout, picture).uniform() < cond_dropout {
            return token_ids(DROPPED);
        }
        if !settings.shuffle_tags && !item.shuffle_tags {
            return *ids;
        }
        let own = if settings.compat.shuffles_apart() { picture } else { 0 };
        token_ids(&item.caption.shuffled(&mut stream(Purpose::Tags, own), settings.keep_tags))
    }

    /// What is added to a picture's latents in an epoch: standard normal noise, of one size or several, and an offset
    /// for each channel. `(1, 4, h, w)`
    fn noise(&self, epoch: u64, picture: usize) -> Tensor {
        let settings = &self.plan.settings;
        let stream = |purpose| Stream::new(settings.seed, purpose, epoch, picture as u64);
        let size = self.dataset.examples[picture].moments.mean.size();
        let mut noise = normals(&mut stream(Purpose::Noise), &size);
        if let Some(discount) = settings.pyramid_noise_discount {
            noise = pyramid(noise, discount, &mut stream(Purpose::Pyramid));
        }
        if settings.offset_noise > 0.0 {
            let offset = normals(&mut stream(Purpose::OffsetNoise), &[1, size[1], 1, 1]);
            noise += offset * settings.offset_noise;
        }
        noise
    }
}

/// Noise of several sizes, of which this is the finest. `(1, C, h, w)`
pub(super) fn pyramid(noise: Tensor, discount: f64, stream: &mut Stream) -> Tensor {
    let size = noise.size();
    let sizes = pyramid_sizes(size[2], size[3], || stream.between(2.0, 4.0));
    let coarser = sizes.into_iter().map(|(h, w)| normals(stream, &[1, size[1], h, w]));
    let levels: Vec<_> = [noise].into_iter().chain(coarser).collect();
    pyramid_noise(&levels, discount)
}

/// Random numbers from the standard normal distribution.
pub(super) fn normals(stream: &mut Stream, size: &[i64]) -> Tensor {
    Tensor::from_slice(&stream.normals(size.iter().product::<i64>() as usize)).view(size)
}
