//! Pictures with their captions, from the folder to the latents' distribution.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use vodka_images::{Picture, RgbImage, decode, flip_horizontal, relative_name};
use vodka_prompt::{CONTEXT_LENGTH, MAX_TOKENS, token_count, token_ids};
use vodka_sd15::{Moments, Network, Vae};
use vodka_stage::Interrupt;

use crate::{
    Bucket, Compat, Error, Flaw, Result, TrainEvent, TrainPlan,
    buckets::{buckets, nearest},
    geometry::{centred, cut},
    items::{Bare, Item, items},
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

/// All pictures of a run.
#[derive(Debug)]
pub(crate) struct Dataset {
    /// Those that are trained on.
    pub examples: Vec<Example>,
    /// Those that are validated on, by name of the set; training pictures may be among them.
    pub sets: Vec<(String, Vec<Example>)>,
    /// Those that are left out.
    pub skipped: Vec<Skipped>,
    /// How many captions are cut because they have more than 75 tokens.
    pub long_captions: usize,
}

impl Dataset {
    /// Lists, decodes and encodes all pictures; `None` when interrupted.
    ///
    /// # Errors
    /// No pictures, or no good ones; good pictures without a caption; a file beside them that says what it cannot.
    pub fn load(
        plan: &TrainPlan,
        vae: &Vae,
        stride: u32,
        interrupt: &Interrupt,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<Option<Self>> {
        let mut skipped = Vec::new();
        let mut listed =
            |roots: &[PathBuf], captions: Option<&Path>, on_event: &mut dyn FnMut(TrainEvent)| {
                let may_lack = plan.allow.contains(&Flaw::NoCaption);
                let (items, bad) = listed(roots, captions, plan.settings.compat, may_lack)?;
                bad.iter().for_each(|skipped| on_event(TrainEvent::Skipped(skipped.clone())));
                skipped.extend(bad);
                Ok::<_, Error>(items)
            };
        let mut items = listed(&plan.roots(interrupt)?, plan.caption_root.as_deref(), on_event)?;
        let long_captions = too_long(&items);
        let mut sets = Vec::new();
        if let Some(validation) = &plan.settings.validation {
            let split = validation.split(&mut items).into_iter();
            sets.extend(split.map(|(name, items)| (name.to_owned(), items)));
            for (name, root) in validation.folders() {
                sets.push((name.to_owned(), listed(&[root.to_path_buf()], None, on_event)?));
            }
        }
        let total = items.len() + sets.iter().map(|(_, items)| items.len()).sum::<usize>();
        let mut done = 0;
        let buckets = buckets(plan.settings.resolution, stride, plan.settings.compat.misspells_buckets());
        let mut load = |items: &[Item]| {
            let on_picture = &mut |bad: Option<&Skipped>| {
                done += 1;
                bad.into_iter().for_each(|skipped| on_event(TrainEvent::Skipped(skipped.clone())));
                on_event(TrainEvent::Loaded { done, total });
            };
            load(plan, items, &buckets, vae, interrupt, on_picture)
        };
        let Some((examples, bad)) = load(&items) else { return Ok(None) };
        skipped.extend(bad);
        let mut loaded = Vec::new();
        for (name, items) in sets {
            let Some((examples, bad)) = load(&items) else { return Ok(None) };
            // A stabilised picture has been told of already.
            skipped.extend(bad.into_iter().filter(|bad| !skipped.contains(bad)).collect::<Vec<_>>());
            loaded.push((name, examples));
        }
        match examples.is_empty() {
            true => Err(no_good_pictures(plan, &skipped)),
            false => Ok(Some(Self { examples, sets: loaded, skipped, long_captions })),
        }
    }
}

fn no_good_pictures(plan: &TrainPlan, skipped: &[Skipped]) -> Error {
    let Skipped { image, reason } = skipped.first().expect("there are pictures, and none is good").clone();
    let root = plan.data_root.paths()[0].clone();
    Error::NoGoodPictures { root, count: skipped.len(), first: image.into(), reason }
}

/// Lists the pictures with their captions, in order of path; a picture that has no caption and cannot be read either
/// is skipped, since no stage before this one could caption it.
///
/// # Errors
/// No pictures; good pictures without a caption; a file beside them that says what it cannot.
fn listed(
    roots: &[PathBuf],
    captions: Option<&Path>,
    compat: Compat,
    may_lack: bool,
) -> Result<(Vec<Item>, Vec<Skipped>)> {
    let (items, without) = items(roots, captions, compat)?;
    let (mut good, mut skipped) = (Vec::new(), Vec::new());
    for Bare { path, file } in without {
        match read(&file) {
            Ok(_) if may_lack => {
                skipped.push(Skipped { image: relative_name(&path), reason: "no caption".to_owned() });
            }
            Ok(_) => good.push(path),
            Err(reason) => skipped.push(Skipped { image: relative_name(&path), reason }),
        }
    }
    let root = || captions.map_or_else(|| roots[0].clone(), Path::to_path_buf);
    match good.is_empty() {
        true => Ok((items, skipped)),
        false => Err(Error::MissingCaptions { root: root(), pictures: good }),
    }
}

/// How many captions are cut because they have more than 75 tokens.
fn too_long(items: &[Item]) -> usize {
    items.iter().filter(|item| token_count(&item.caption.text()) > MAX_TOKENS).count()
}

/// Decodes the pictures and runs them through the VAE, telling of each whether it is left out. `None` when interrupted.
fn load(
    plan: &TrainPlan,
    items: &[Item],
    buckets: &[Bucket],
    vae: &Vae,
    interrupt: &Interrupt,
    on_picture: &mut dyn FnMut(Option<&Skipped>),
) -> Option<(Vec<Example>, Vec<Skipped>)> {
    /// Pictures that are decoded at the same time, and in memory at the same time.
    const AT_ONCE: usize = 32;
    let mut examples = Vec::with_capacity(items.len());
    let mut skipped = Vec::new();
    for chunk in items.chunks(AT_ONCE) {
        let fit = |item: &Item| fit(&item.file, buckets);
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
            on_picture(bad.as_ref());
            skipped.extend(bad);
        }
    }
    Some((examples, skipped))
}

/// The picture in the size of its bucket, or why it cannot be read.
fn fit(path: &Path, buckets: &[Bucket]) -> Result<(RgbImage, Bucket), String> {
    let picture = read(path)?;
    let bucket = nearest(buckets, picture.width(), picture.height());
    let image = picture.into_rgb();
    Ok((cut(&image, centred(image.dimensions(), bucket), bucket, false), bucket))
}

fn read(path: &Path) -> Result<Picture, String> {
    decode(path).map_err(|error| match error {
        vodka_images::Error::Picture { source, .. } => source.reason(),
        other => other.to_string(),
    })
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
