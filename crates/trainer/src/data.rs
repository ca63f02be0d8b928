//! Pictures with their captions, from the folder to the latents' distribution.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use vodka_images::{Picture, RgbImage, crop, decode, find, relative_name, resize_bicubic};
use vodka_prompt::{CONTEXT_LENGTH, MAX_TOKENS, token_count, token_ids};
use vodka_sd15::{Moments, Network, Vae};
use vodka_stage::Interrupt;

use crate::{Bucket, Error, Result, TrainPlan, buckets::nearest};

/// What caption files end with.
pub(crate) const CAPTION_EXTENSION: &str = "txt";

/// Files that EveryDream2 obeys for a whole folder.
const FOLDER_FILES: [&str; 10] = [
    "multiply.txt",
    "cond_dropout.txt",
    "flip_p.txt",
    "batch_id.txt",
    "loss_scale.txt",
    "shuffle_tags.txt",
    "local.yaml",
    "local.yml",
    "global.yaml",
    "global.yml",
];

/// Other captions that EveryDream2 reads beside a picture.
const OTHER_CAPTIONS: [&str; 3] = ["caption", "yml", "yaml"];

/// A picture that is left out, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Relative to the data folder, with `/`.
    pub image: String,
    /// What is wrong with it.
    pub reason: String,
}

/// A picture and its caption, before decoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    /// Relative to the data folder.
    pub path: PathBuf,
    /// Not empty.
    pub caption: String,
}

/// A picture that can be trained on.
#[derive(Debug)]
pub(crate) struct Example {
    pub path: PathBuf,
    /// The caption's token ids.
    pub ids: [i64; CONTEXT_LENGTH],
    pub bucket: Bucket,
    /// What the VAE makes of the picture's centre. `(1, 4, h, w)`, on the processor
    pub moments: Moments,
}

/// Lists the pictures with their captions, in order of path; a picture that has no caption and cannot be read either
/// is skipped, since no stage before this one could caption it.
///
/// # Errors
/// No pictures; good pictures without a caption; a file that EveryDream2 would obey and we do not.
pub(crate) fn pairs(plan: &TrainPlan) -> Result<(Vec<Pair>, Vec<Skipped>)> {
    let paths = find(&plan.data_root)?;
    if paths.is_empty() {
        return Err(Error::NoPictures { root: plan.data_root.clone() });
    }
    refuse_unsupported_files(&plan.data_root, &paths)?;
    let mut pairs = Vec::with_capacity(paths.len());
    let (mut without, mut skipped) = (Vec::new(), Vec::new());
    for path in paths {
        match caption(&plan.caption_root.join(&path))? {
            Some(caption) => pairs.push(Pair { path, caption }),
            None => match read(&plan.data_root.join(&path)) {
                Ok(_) => without.push(path),
                Err(reason) => skipped.push(Skipped { image: relative_name(&path), reason }),
            },
        }
    }
    match without.is_empty() {
        true => Ok((pairs, skipped)),
        false => Err(Error::MissingCaptions { root: plan.caption_root.clone(), pictures: without }),
    }
}

/// How many captions are cut because they have more than 75 tokens.
pub(crate) fn too_long(pairs: &[Pair]) -> usize {
    pairs.iter().filter(|pair| token_count(&pair.caption) > MAX_TOKENS).count()
}

/// The caption beside the picture, without white space around it; `None` where there is none or an empty one.
fn caption(picture: &Path) -> Result<Option<String>> {
    let path = picture.with_extension(CAPTION_EXTENSION);
    match fs::read_to_string(&path) {
        Ok(text) => {
            let text = text.trim_start_matches('\u{feff}').trim();
            Ok((!text.is_empty()).then(|| text.to_owned()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Caption { path, source }),
    }
}

fn refuse_unsupported_files(root: &Path, pictures: &[PathBuf]) -> Result<()> {
    let mut folder = None;
    for picture in pictures {
        let picture = root.join(picture);
        let here = picture.parent().map(Path::to_path_buf);
        let mut candidates: Vec<_> = OTHER_CAPTIONS.iter().map(|e| picture.with_extension(e)).collect();
        if here != folder {
            candidates.extend(FOLDER_FILES.iter().map(|name| picture.with_file_name(name)));
            folder = here;
        }
        if let Some(path) = candidates.into_iter().find(|path| path.is_file()) {
            return Err(Error::UnsupportedFile { path });
        }
    }
    Ok(())
}

/// Decodes every picture and runs it through the VAE, handing on how many are done and which are left out.
/// `None` when interrupted.
pub(crate) fn load(
    root: &Path,
    pairs: &[Pair],
    buckets: &[Bucket],
    vae: &Vae,
    interrupt: &Interrupt,
    on_progress: &mut dyn FnMut(usize, Option<&Skipped>),
) -> Option<(Vec<Example>, Vec<Skipped>)> {
    /// Pictures that are decoded at the same time, and in memory at the same time.
    const AT_ONCE: usize = 32;
    let mut examples = Vec::with_capacity(pairs.len());
    let mut skipped = Vec::new();
    for chunk in pairs.chunks(AT_ONCE) {
        let decoded: Vec<_> = chunk.par_iter().map(|pair| fit(&root.join(&pair.path), buckets)).collect();
        for (pair, decoded) in chunk.iter().zip(decoded) {
            if interrupt.is_raised() {
                return None;
            }
            let path = pair.path.clone();
            let bad = match decoded {
                Ok((pixels, bucket)) => {
                    let ids = token_ids(&pair.caption);
                    examples.push(Example { path, ids, bucket, moments: encode(vae, &pixels) });
                    None
                }
                Err(reason) => Some(Skipped { image: relative_name(&path), reason }),
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

    #[test]
    fn captions_are_trimmed_and_empty_ones_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let read = |text: &[u8]| {
            fs::write(dir.path().join("a.txt"), text).unwrap();
            caption(&dir.path().join("a.png"))
        };
        assert_eq!(read("\u{feff} a cat\n".as_bytes()).unwrap().unwrap(), "a cat");
        assert_eq!(read(b" \n").unwrap(), None);
        assert!(read(b"\xff\xfe").unwrap_err().to_string().contains("a.txt"));
        assert_eq!(caption(&dir.path().join("b.png")).unwrap(), None);
    }

    #[test]
    fn files_that_everydream2_would_obey_are_refused() {
        for name in ["a.yaml", "a.caption", "sub/multiply.txt"] {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("sub")).unwrap();
            let pictures = [PathBuf::from("a.png"), "sub/b.png".into()];
            refuse_unsupported_files(dir.path(), &pictures).unwrap();
            fs::write(dir.path().join(name), "x").unwrap();
            let error = refuse_unsupported_files(dir.path(), &pictures).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
