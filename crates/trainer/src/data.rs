//! Pictures with their captions, from the folder to the latents' distribution.

use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use vodka_images::{Picture, RgbImage, crop, decode, flip_horizontal, relative_name, resize_bicubic};
use vodka_prompt::{CONTEXT_LENGTH, MAX_TOKENS, token_count, token_ids};
use vodka_sd15::{Moments, Network, Vae};
use vodka_stage::Interrupt;

use crate::{
    Bucket, Error, Result, TrainPlan,
    buckets::nearest,
    items::{Item, items},
};

/// A picture that is left out, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Relative to the data folder, with `/`.
    pub image: String,
    /// What is wrong with it.
    pub reason: String,
}

/// A picture that can be trained on.
#[derive(Debug)]
pub(crate) struct Example {
    pub item: Item,
    /// The token ids of the caption in its own order.
    pub ids: [i64; CONTEXT_LENGTH],
    pub bucket: Bucket,
    /// What the VAE makes of the picture's centre. `(1, 4, h, w)`, on the processor
    pub moments: Moments,
    /// The same of the picture flipped, where it may be.
    pub flipped: Option<Moments>,
}

/// Lists the pictures with their captions, in order of path; a picture that has no caption and cannot be read either
/// is skipped, since no stage before this one could caption it.
///
/// # Errors
/// No pictures; good pictures without a caption; a file beside them that says what it cannot.
pub(crate) fn listed(plan: &TrainPlan) -> Result<(Vec<Item>, Vec<Skipped>)> {
    let (items, without) = items(&plan.data_root, &plan.caption_root, plan.settings.compat)?;
    let (mut good, mut skipped) = (Vec::new(), Vec::new());
    for path in without {
        match read(&plan.data_root.join(&path)) {
            Ok(_) => good.push(path),
            Err(reason) => skipped.push(Skipped { image: relative_name(&path), reason }),
        }
    }
    match good.is_empty() {
        true => Ok((items, skipped)),
        false => Err(Error::MissingCaptions { root: plan.caption_root.clone(), pictures: good }),
    }
}

/// How many captions are cut because they have more than 75 tokens.
pub(crate) fn too_long(items: &[Item]) -> usize {
    items.iter().filter(|item| token_count(&item.caption.text()) > MAX_TOKENS).count()
}

/// Decodes every picture and runs it through the VAE, handing on how many are done and which are left out.
/// `None` when interrupted.
pub(crate) fn load(
    plan: &TrainPlan,
    items: &[Item],
    buckets: &[Bucket],
    vae: &Vae,
    interrupt: &Interrupt,
    on_progress: &mut dyn FnMut(usize, Option<&Skipped>),
) -> Option<(Vec<Example>, Vec<Skipped>)> {
    /// Pictures that are decoded at the same time, and in memory at the same time.
    const AT_ONCE: usize = 32;
    let mut examples = Vec::with_capacity(items.len());
    let mut skipped = Vec::new();
    for chunk in items.chunks(AT_ONCE) {
        let fit = |item: &Item| fit(&plan.data_root.join(&item.path), buckets);
        let decoded: Vec<_> = chunk.par_iter().map(fit).collect();
        for (item, decoded) in chunk.iter().zip(decoded) {
            if interrupt.is_raised() {
                return None;
            }
            let bad = match decoded {
                Ok((pixels, bucket)) => {
                    let flips = plan.settings.flip_p_of(item) > 0.0;
                    examples.push(Example {
                        item: item.clone(),
                        ids: token_ids(&item.caption.text()),
                        bucket,
                        moments: encode(vae, &pixels),
                        flipped: flips.then(|| encode(vae, &flip_horizontal(&pixels))),
                    });
                    None
                }
                Err(reason) => Some(Skipped { image: relative_name(&item.path), reason }),
            };
            on_progress(examples.len() + skipped.len() + usize::from(bad.is_some()), bad.as_ref());
            skipped.extend(bad);
        }
    }
    Some((examples, skipped))
}

/// The picture in the size of its bucket, or why it cannot be read.
fn fit(path: &Path, buckets: &[Bucket]) -> Result<(RgbImage, Bucket), String> {
    let picture = read(path)?;
    let bucket = nearest(buckets, picture.width(), picture.height());
    Ok((trim_and_resize(&picture.into_rgb(), bucket), bucket))
}

fn read(path: &Path) -> Result<Picture, String> {
    decode(path).map_err(|error| match error {
        vodka_images::Error::Picture { source, .. } => source.reason(),
        other => other.to_string(),
    })
}

/// Trims the longer side around the centre to the bucket's shape, and resizes (bicubic) to its size: EveryDream2's order,
/// without its jitter.
fn trim_and_resize(image: &RgbImage, bucket: Bucket) -> RgbImage {
    let (width, height) = image.dimensions();
    let scale = |side: u32, by: u32, to: u32| {
        let scaled = (u64::from(side) * u64::from(by) + u64::from(to) / 2) / u64::from(to);
        u32::try_from(scaled).unwrap_or(u32::MAX)
    };
    let kept_width = scale(height, bucket.width, bucket.height).clamp(1, width);
    let kept_height = scale(width, bucket.height, bucket.width).clamp(1, height);
    let (left, top) = ((width - kept_width) / 2, (height - kept_height) / 2);
    resize_bicubic(&crop(image, left, top, kept_width, kept_height), bucket.width, bucket.height)
}

/// One picture at a time, so that its latents do not depend on which pictures are beside it.
fn encode(vae: &Vae, image: &RgbImage) -> Moments {
    let (width, height) = image.dimensions();
    let size = [1, i64::from(height), i64::from(width), 3];
    let device = vae.vars().device();
    let bytes = Tensor::from_data_size(image.as_raw(), &size, Kind::Uint8).to_device(device);
    let pixels = bytes.permute([0, 3, 1, 2]).contiguous().to_kind(Kind::Float) / 127.5 - 1.0; // (1, 3, H, W)
    let Moments { mean, logvar } = tch::no_grad(|| vae.encode(&pixels)); // (1, 4, H/8, W/8)
    Moments { mean: mean.to_device(Device::Cpu), logvar: logvar.to_device(Device::Cpu) }
}

#[cfg(test)]
mod tests {
    use vodka_images::Rgb;

    use super::*;

    #[test]
    fn the_centre_of_a_picture_is_kept_in_the_buckets_shape() {
        // Columns of grey that rise to the right: the middle of what is kept is the middle of the picture.
        let image = RgbImage::from_fn(200, 100, |x, _| Rgb([x as u8; 3]));
        let square = trim_and_resize(&image, Bucket { width: 100, height: 100 });
        assert_eq!(square.dimensions(), (100, 100));
        assert_eq!((square.get_pixel(0, 50)[0], square.get_pixel(99, 50)[0]), (50, 149));
        let tall = trim_and_resize(&image, Bucket { width: 64, height: 128 });
        assert_eq!(tall.dimensions(), (64, 128));
        let needle = trim_and_resize(&RgbImage::new(1, 4000), Bucket { width: 1024, height: 256 });
        assert_eq!(needle.dimensions(), (1024, 256));
    }
}
