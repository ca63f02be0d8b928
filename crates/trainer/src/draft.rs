//! What a picture brings to a batch: what the VAE makes of it, or is to make, and its random numbers.
//!
//! A draft is made from the picture's file and its place in the run alone, so it may be made ahead of its step and by
//! any thread.

use std::{collections::BTreeMap, sync::Arc};

use tch::{Device, Kind, Tensor, no_grad};
use vodka_images::RgbImage;
use vodka_sd15::{Moments, Network, Vae};
use vodka_stage::{ContentHash, Hasher};

use crate::{
    Error, Result,
    cache::Cache,
    data::Example,
    facts::{Facts, Stamp, read},
    geometry::{Crop, Cropping, cut},
    items::Item,
    random::{Purpose, Stream},
};

/// Where in a run a picture is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// From 1; 0 for validation.
    pub epoch: u64,
    /// The number of the picture in its set.
    pub picture: usize,
    /// How often it was used in the epoch before.
    pub copy: u64,
}

impl Place {
    /// The random numbers that a picture has for a purpose where it is used here.
    pub fn stream(&self, seed: u64, purpose: Purpose) -> Stream {
        // A run of so many pictures or copies would not end.
        Stream::new(seed, purpose, self.epoch, self.picture as u64 | self.copy << 40)
    }
}

/// What a picture brings to a batch.
#[derive(Debug)]
pub(crate) struct Draft {
    pub pixels: Pixels,
    /// Normal numbers for the VAE's posterior: `4 h w`.
    pub posterior: Vec<f32>,
    /// Normal numbers that the noise is made from: `4 h w`.
    pub noise: Vec<f32>,
}

/// A picture as the VAE sees it.
#[derive(Debug)]
pub(crate) enum Pixels {
    /// What it has made of it: means, and logarithms of variances.
    Encoded(Arc<[f32]>),
    /// What it is to be asked; and under which key its answer is to be kept.
    Decoded(RgbImage, Option<ContentHash>),
}

/// What is done with the pictures of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// In each epoch they may be cut and mirrored otherwise.
    Training,
    /// They are always the same.
    Validation,
}

/// Makes drafts of a set of pictures.
#[derive(Debug, Clone)]
pub(crate) struct Drafter {
    pub role: Role,
    /// Of the run, or of validation.
    pub seed: u64,
    pub examples: Arc<Vec<Example>>,
    pub cropping: Cropping,
    /// The probability of a mirror image where a picture says no other.
    pub flip_p: f64,
    /// Channels of the latents, and pixels to each of them in a row.
    pub latents: (i64, i64),
    pub cache: Arc<Cache>,
    /// The hash of the VAE and of how it is run.
    pub vae: ContentHash,
}

/// What of a picture the VAE sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct View {
    crop: Crop,
    mirrored: bool,
    /// Whether the same is seen again in other epochs.
    lasts: bool,
}

/// The arithmetic between decoded pixels and what the VAE is given; it changes when that does.
const RESAMPLER: &str = "cut, Pillow's bicubic, mirrored; to -1..1 by 127.5";

impl Drafter {
    /// The size of a picture's latents. `(1, 4, h, w)`
    pub fn size(&self, picture: usize) -> [i64; 4] {
        let (channels, stride) = self.latents;
        let bucket = self.examples[picture].bucket;
        [1, channels, i64::from(bucket.height) / stride, i64::from(bucket.width) / stride]
    }

    /// Makes the draft for a place.
    ///
    /// # Errors
    /// The picture is neither in the cache nor where and what it was when the run began.
    pub fn draft(&self, place: &Place) -> Result<Draft> {
        let count = self.size(place.picture).iter().product::<i64>() as usize;
        let normals = |purpose| place.stream(self.seed, purpose).normals(count);
        let pixels = self.pixels(place, 2 * count)?;
        Ok(Draft { pixels, posterior: normals(Purpose::Posterior), noise: normals(Purpose::Noise) })
    }

    fn pixels(&self, place: &Place, count: usize) -> Result<Pixels> {
        let example = &self.examples[place.picture];
        let view = self.view(place);
        let key = view.lasts.then(|| self.key(example, view));
        let encoded = key.and_then(|key| self.cache.get(key)).filter(|numbers| numbers.len() == count);
        match encoded {
            Some(encoded) => Ok(Pixels::Encoded(encoded)),
            None => {
                let image = read_again(example)?;
                Ok(Pixels::Decoded(cut(&image, view.crop, example.bucket, view.mirrored), key))
            }
        }
    }

    fn view(&self, place: &Place) -> View {
        let Example { item, facts, bucket, .. } = &self.examples[place.picture];
        let fixed = self.cropping.fixed().is_some();
        // Fixed crops depend on the picture, others on its place in the list.
        let number = if fixed { start_of(facts.pixels) } else { place.picture as u64 };
        if self.role == Role::Validation {
            let crop = self.cropping.validation(facts.size, *bucket, self.seed, number);
            return View { crop, mirrored: false, lasts: true };
        }
        // Each copy of a picture is as one of another epoch.
        let variant = self.cropping.variant(place.epoch | place.copy << 40, place.picture as u64);
        let flip_p = item.flip_p.unwrap_or(self.flip_p);
        View {
            crop: self.cropping.crop(facts.size, *bucket, variant, number),
            mirrored: place.stream(self.seed, Purpose::Flip).uniform() < flip_p,
            lasts: fixed,
        }
    }

    /// The hash of all that the VAE's answer depends on.
    fn key(&self, example: &Example, View { crop, mirrored, .. }: View) -> ContentHash {
        let mut hasher = Hasher::default();
        hasher.piece("moments").piece(RESAMPLER).piece(self.vae.to_string());
        hasher.piece(example.facts.pixels.to_string());
        let Crop { left, top, width, height } = crop;
        let bucket = example.bucket;
        for number in [left, top, width, height, bucket.width, bucket.height, u32::from(mirrored)] {
            hasher.piece(number.to_le_bytes());
        }
        hasher.finish()
    }
}

/// The first 64 bits of a hash.
fn start_of(hash: ContentHash) -> u64 {
    u64::from_str_radix(&hash.short(16), 16).expect("hashes are written in hexadecimal digits")
}

/// Decodes a picture that was looked at before the run.
fn read_again(example: &Example) -> Result<RgbImage> {
    let Example { item: Item { file, .. }, facts, stamp, .. } = example;
    let is_as_it_was = || Stamp::of(file, std::time::SystemTime::now()).is_ok_and(|now| now.is_same(stamp));
    let was_before = is_as_it_was();
    let image = read(file).map_err(|reason| Error::PictureGone { path: file.clone(), reason })?.into_rgb();
    // It may also change while it is read.
    match was_before && is_as_it_was() || Facts::of(&image) == *facts {
        true => Ok(image),
        false => Err(Error::PictureChanged { path: file.clone() }),
    }
}

/// The hash of a frozen network and of all that its last bits depend on.
pub(crate) fn identity(network: &impl Network) -> Result<ContentHash> {
    let mut hasher = Hasher::default();
    let device = network.vars().device();
    // Sums come out differently with another number of threads, but for those of a GPU.
    let threads = if device == Device::Cpu { tch::get_num_threads() } else { 0 };
    let kind = if device == Device::Cpu { "cpu" } else { "cuda" };
    hasher.piece("libtorch 2.11").piece(kind).piece(threads.to_le_bytes());
    let weights: BTreeMap<_, _> = network.vars().variables().into_iter().collect();
    for (name, tensor) in weights {
        let mut bytes = vec![0; tensor.kind().elt_size_in_bytes() * tensor.numel()];
        let downloaded = no_grad(|| {
            tensor.f_to_device(Device::Cpu)?.f_contiguous()?.f_copy_data_u8(&mut bytes, tensor.numel())
        });
        downloaded.map_err(Error::torch("copying weights from the device"))?;
        hasher.piece(name).piece(format!("{:?} {:?}", tensor.kind(), tensor.size())).piece(&bytes);
    }
    Ok(hasher.finish())
}

/// What the VAE makes of one picture: means and logarithms of variances, one after the other. One picture at a time, so
/// that its latents do not depend on which pictures are beside it.
pub(crate) fn encode(vae: &Vae, image: &RgbImage) -> Result<Arc<[f32]>> {
    let (width, height) = image.dimensions();
    let size = [1, i64::from(height), i64::from(width), 3];
    let device = vae.vars().device();
    let bytes = Tensor::from_data_size(image.as_raw(), &size, Kind::Uint8).to_device(device);
    let pixels = bytes.permute([0, 3, 1, 2]).contiguous().to_kind(Kind::Float) / 127.5 - 1.0; // (1, 3, H, W)
    let Moments { mean, logvar } = no_grad(|| vae.encode(&pixels)); // (1, 4, H/8, W/8)
    numbers(&Tensor::cat(&[mean, logvar], 1))
}

/// The numbers of a tensor on any device.
pub(crate) fn numbers(tensor: &Tensor) -> Result<Arc<[f32]>> {
    let mut numbers = vec![0.0; tensor.numel()];
    tensor
        .f_to_device(Device::Cpu)
        .and_then(|tensor| {
            tensor.f_to_kind(Kind::Float)?.f_contiguous()?.f_copy_data(&mut numbers, tensor.numel())
        })
        .map_err(Error::torch("copying what a network made from the device"))?;
    Ok(numbers.into())
}

/// The distribution of a picture's latents, of the `size (1, 4, h, w)`, on the processor.
pub(crate) fn moments(numbers: &[f32], size: [i64; 4]) -> Moments {
    let (mean, logvar) = numbers.split_at(numbers.len() / 2);
    let tensor = |numbers: &[f32]| Tensor::from_slice(numbers).view(size);
    Moments { mean: tensor(mean), logvar: tensor(logvar) }
}
