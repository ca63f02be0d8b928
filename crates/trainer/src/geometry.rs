//! Which part of a picture is trained on: crop, size and mirror image, as functions of sizes and random numbers.
//!
//! What the pixel path does with a picture, in order:
//!
//! 1. decode it, turned as its EXIF orientation says (`vodka_images::decode`), and choose its bucket (`nearest`);
//! 2. ask [`Cropping::variant`] which of its crops this epoch has, and [`Cropping::crop`] for the box;
//! 3. [`cut`] it: crop, resize to the bucket (Pillow's bicubic, to the bit), mirror.
//!
//! A crop is a function of its arguments alone, so that whatever is made from its pixels may be kept under a key of
//! pixels, [`Crop`], bucket and mirroring. [`Cropping::fixed`] says whether that is worth it.
//!
//! The rules are EveryDream2's (victorchall/EveryDream2trainer, `data/image_train_item.py` at 5098db8 of 2025-05 and
//! 974d3fa of 2023-04); its golden is `fixtures/trainer/geometry`.

use serde::Serialize;
use vodka_images::{RgbImage, crop as crop_pixels, flip_horizontal, resize_bicubic};

use crate::{
    Bucket,
    random::{Purpose, Stream},
};

/// How a picture is cut to the shape of its bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CropRule {
    /// EveryDream2's of April 2023: for a square bucket the longer side anywhere, for others at most 20 pixels from the
    /// left or upper end.
    April2023,
    /// EveryDream2's since May 2023: up to 2 % less at each side, and of the longer side a part near the middle.
    Head,
    /// Ours: so many crops that a picture keeps from epoch to epoch, at least 1. The first is the middle, the others are
    /// as with [`CropRule::Head`].
    Fixed(u64),
}

/// A part of a picture, in pixels from its upper left corner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Crop {
    /// Columns to the left of it.
    pub left: u32,
    /// Rows above it.
    pub top: u32,
    /// Its columns, at least 1.
    pub width: u32,
    /// Its rows, at least 1.
    pub height: u32,
}

/// The crops of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cropping {
    /// By which rule.
    pub rule: CropRule,
    /// Random seed of the rules of EveryDream2.
    pub seed: u64,
}

impl Cropping {
    /// How many crops each picture has over all epochs, where that does not grow with them.
    pub fn fixed(&self) -> Option<u64> {
        match self.rule {
            CropRule::Fixed(count) => Some(count),
            CropRule::April2023 | CropRule::Head => None,
        }
    }

    /// The number of the crop that a picture (by its place in the list) has in an epoch, from 1: for
    /// [`Cropping::crop`]. With [`CropRule::Fixed`] it is below the count, else each epoch has its own.
    pub fn variant(&self, epoch: u64, picture: u64) -> u64 {
        match self.rule {
            CropRule::Fixed(1) => 0,
            CropRule::Fixed(count) => {
                let mut stream = Stream::new(self.seed, Purpose::CropVariant, epoch, picture);
                stream.below(count as i64) as u64
            }
            CropRule::April2023 | CropRule::Head => epoch,
        }
    }

    /// The crop with this number of a picture of `size` (width, height, turned upright).
    ///
    /// `picture` is a number of the picture: its place in the list for the rules of EveryDream2; for
    /// [`CropRule::Fixed`], where crops do not depend on the seed, the start of a hash of its content, so that other runs
    /// and other neighbours change nothing.
    pub fn crop(&self, size: (u32, u32), bucket: Bucket, variant: u64, picture: u64) -> Crop {
        let seed = if self.fixed().is_some() { 0 } else { self.seed };
        let mut stream = Stream::new(seed, Purpose::Crop, variant, picture);
        let uniform = &mut || stream.uniform();
        match self.rule {
            CropRule::April2023 => april_2023(size, bucket, 20, uniform),
            CropRule::Fixed(_) if variant == 0 => centred(size, bucket),
            CropRule::Head | CropRule::Fixed(_) => head(size, bucket, 0.02, uniform),
        }
    }

    /// The crop of a picture that is validated on, always the same: EveryDream2's rules without the jitter, or the middle.
    /// The `seed` is validation's.
    pub fn validation(&self, size: (u32, u32), bucket: Bucket, seed: u64, picture: u64) -> Crop {
        let mut stream = Stream::new(seed, Purpose::Crop, 0, picture);
        let uniform = &mut || stream.uniform();
        match self.rule {
            CropRule::April2023 => april_2023(size, bucket, 0, uniform),
            CropRule::Head => head(size, bucket, 0.0, uniform),
            CropRule::Fixed(_) => centred(size, bucket),
        }
    }
}

impl Crop {
    /// The share of a picture of `size` that is cut off, 0 to below 1.
    pub fn loss(&self, (width, height): (u32, u32)) -> f64 {
        let area = |width: u32, height: u32| f64::from(width) * f64::from(height);
        1.0 - area(self.width, self.height) / area(width, height)
    }
}

/// The part of a picture in the size of its bucket, mirrored or not.
///
/// # Panics
/// When the crop reaches out of the picture.
pub fn cut(image: &RgbImage, part: Crop, bucket: Bucket, mirrored: bool) -> RgbImage {
    let Crop { left, top, width, height } = part;
    let resized = if (width, height) == image.dimensions() {
        resize_bicubic(image, bucket.width, bucket.height)
    } else {
        resize_bicubic(&crop_pixels(image, left, top, width, height), bucket.width, bucket.height)
    };
    if mirrored { flip_horizontal(&resized) } else { resized }
}

/// Whether a picture is smaller than its bucket in EveryDream2's eyes: no side has the bucket's length, and its area is
/// below that of a bucket with sides 2 % longer.
pub fn is_undersized((width, height): (u32, u32), bucket: Bucket) -> bool {
    let area = |width: u32, height: u32| f64::from(width) * f64::from(height);
    let enough = area(bucket.width, bucket.height) * 1.02 * 1.02;
    width != bucket.width && height != bucket.height && area(width, height) < enough
}

/// The middle of a picture in the shape of the bucket.
pub fn centred((width, height): (u32, u32), bucket: Bucket) -> Crop {
    let scale = |side: u32, by: u32, to: u32| {
        let scaled = (u64::from(side) * u64::from(by) + u64::from(to) / 2) / u64::from(to);
        u32::try_from(scaled).unwrap_or(u32::MAX)
    };
    let kept_width = scale(height, bucket.width, bucket.height).clamp(1, width);
    let kept_height = scale(width, bucket.height, bucket.width).clamp(1, height);
    let (left, top) = ((width - kept_width) / 2, (height - kept_height) / 2);
    Crop { left, top, width: kept_width, height: kept_height }
}

/// EveryDream2's crop since May 2023. `uniform` gives numbers in `0.0..1.0`: four where there is jitter (left, right, top,
/// bottom), and one for the place along the side that is too long.
///
/// Jitter is `jitter` of the shorter side at most, and none where a side has no more pixels than the bucket. The place is
/// triangular: the middle is the likeliest.
pub fn head(size: (u32, u32), bucket: Bucket, jitter: f64, uniform: &mut dyn FnMut() -> f64) -> Crop {
    let (mut part, aspect) = (whole(size), aspect(bucket));
    let spare = |side: u32, wanted: u32| (f64::from(side) - f64::from(wanted)) / f64::from(wanted);
    let jitter = spare(size.0, bucket.width).min(spare(size.1, bucket.height)).min(jitter);
    if jitter > 0.0 {
        let most = (f64::from(size.0.min(size.1)) * jitter).floor();
        let [left, right, top, bottom] = [(); 4].map(|()| (most * uniform()).round_ties_even() as u32);
        part = Crop {
            left,
            top,
            width: (size.0 - left).saturating_sub(right).max(1),
            height: (size.1 - top).saturating_sub(bottom).max(1),
        };
    }
    let found = f64::from(part.width) / f64::from(part.height);
    if found > aspect {
        let kept = ((f64::from(part.height) * aspect) as u32).clamp(1, part.width);
        let over = part.width - kept;
        Crop { left: part.left + triangular(over, uniform()), width: kept, ..part }
    } else if aspect > found {
        let kept = ((f64::from(part.width) / aspect) as u32).clamp(1, part.height);
        let over = part.height - kept;
        Crop { top: part.top + triangular(over, uniform()), height: kept, ..part }
    } else {
        part
    }
}

/// EveryDream2's crop of April 2023. `uniform` gives numbers in `0.0..1.0`: for a square bucket one for the place along
/// the longer side, or two where the picture is a larger square (of which up to 4 % of the bucket's side go, left or
/// right, top or bottom); for other buckets one for the distance from the left or upper end, `jitter` pixels at most.
pub fn april_2023(size: (u32, u32), bucket: Bucket, jitter: u32, uniform: &mut dyn FnMut() -> f64) -> Crop {
    let (width, height) = size;
    let below = |end: u32, uniform: f64| ((uniform * f64::from(end)) as u32).min(end - 1);
    if bucket.width == bucket.height {
        let side = width.min(height);
        if width != height {
            let place = below(width.abs_diff(height) + 1, uniform());
            let (left, top) = if width > height { (place, 0) } else { (0, place) };
            return Crop { left, top, width: side, height: side };
        }
        if side <= bucket.width {
            return whole(size);
        }
        let most = f64::from(bucket.width) * 0.04;
        let most = most.floor().min(f64::from(side - bucket.width));
        let mut ends = || {
            let share = uniform();
            ((most * share) as u32, (most * (1.0 - share)) as u32)
        };
        let ((left, right), (top, bottom)) = (ends(), ends());
        return Crop { left, top, width: side - left - right, height: side - top - bottom };
    }
    let aspect = aspect(bucket);
    let distance = below(jitter + 1, uniform());
    if f64::from(width) / f64::from(height) > aspect {
        let kept = ((f64::from(height) * aspect) as u32).clamp(1, width);
        Crop { left: distance.min((width - kept) / 2), top: 0, width: kept, height }
    } else {
        let kept = ((f64::from(width) / aspect) as u32).clamp(1, height);
        Crop { left: 0, top: distance.min((height - kept) / 2), width, height: kept }
    }
}

fn whole((width, height): (u32, u32)) -> Crop {
    Crop { left: 0, top: 0, width, height }
}

fn aspect(bucket: Bucket) -> f64 {
    f64::from(bucket.width) / f64::from(bucket.height)
}

/// A whole number from 0 to `most` from a uniform one, triangular with its peak in the middle.
fn triangular(most: u32, uniform: f64) -> u32 {
    let most = f64::from(most);
    let place = match uniform <= 0.5 {
        true => most * (uniform * 0.5).sqrt(),
        false => most - most * ((1.0 - uniform) * 0.5).sqrt(),
    };
    place.clamp(0.0, most) as u32
}

#[cfg(test)]
mod tests {
    use vodka_images::Rgb;
    use vodka_testkit::Case;

    use super::*;

    fn bucket(width: u32, height: u32) -> Bucket {
        Bucket { width, height }
    }

    /// The golden's rows: width, height, bucket's width and height, five uniform numbers, and the box.
    fn rows(case: &Case, name: &str) -> Vec<Vec<f32>> {
        let array = case.array(name);
        array.data.chunks(array.shape[1]).map(<[f32]>::to_vec).collect()
    }

    #[test]
    fn crops_are_those_of_the_rules() {
        let case = Case::open("trainer/geometry");
        let sizes = rows(&case, "sizes");
        let uniforms = rows(&case, "uniforms");
        for (name, jitter) in
            [("head", 0.02), ("head_validation", 0.0), ("april", 20.0), ("april_validation", 0.0)]
        {
            let mut crops = Vec::new();
            for (size, uniforms) in sizes.iter().zip(&uniforms) {
                let [width, height, to_width, to_height] = [0, 1, 2, 3].map(|i| size[i] as u32);
                let mut given = uniforms.iter().map(|u| f64::from(*u));
                let mut uniform = || given.next().unwrap();
                let (size, bucket) = ((width, height), bucket(to_width, to_height));
                let Crop { left, top, width, height } = match name.starts_with("head") {
                    true => head(size, bucket, jitter, &mut uniform),
                    false => april_2023(size, bucket, jitter as u32, &mut uniform),
                };
                crops.extend([left, top, width, height].map(|n| n as f32));
            }
            case.check(name, &crops, &[sizes.len(), 4]);
        }
    }

    #[test]
    fn what_is_cut_is_what_pillow_makes() {
        let case = Case::open("trainer/geometry");
        let pixels = case.array("picture");
        let [height, width, _] = pixels.shape[..] else { panic!("{:?}", pixels.shape) };
        let bytes = pixels.data.iter().map(|v| *v as u8).collect();
        let image = RgbImage::from_raw(width as u32, height as u32, bytes).unwrap();
        let part = Crop { left: 3, top: 1, width: 37, height: 26 };
        for (name, mirrored) in [("cut", false), ("cut_mirrored", true)] {
            let made = cut(&image, part, bucket(24, 16), mirrored);
            let values: Vec<_> = made.as_raw().iter().map(|v| f32::from(*v)).collect();
            case.check(name, &values, &[16, 24, 3]);
        }
    }

    #[test]
    fn every_crop_lies_in_its_picture_and_has_about_the_buckets_shape() {
        let sizes =
            [(1, 1), (1, 4000), (4000, 1), (511, 513), (512, 512), (600, 600), (3000, 2000), (777, 1333)];
        for size in sizes {
            for bucket in crate::buckets(512, 64, false) {
                for rule in [CropRule::April2023, CropRule::Head, CropRule::Fixed(3)] {
                    let cropping = Cropping { rule, seed: 555 };
                    let crops = (0..20).map(|variant| cropping.crop(size, bucket, variant, 7));
                    for part in crops.chain([cropping.validation(size, bucket, 1, 7)]) {
                        let Crop { left, top, width, height } = part;
                        assert!(width > 0 && height > 0, "{size:?} {bucket:?} {part:?}");
                        assert!(left + width <= size.0 && top + height <= size.1, "{size:?} {part:?}");
                        assert!((0.0..1.0).contains(&part.loss(size)));
                        let (found, wanted) = (f64::from(width) / f64::from(height), aspect(bucket));
                        // Sides of many pixels have the shape to 5 %, April's trim of squares included.
                        if width > 200 && height > 200 {
                            assert!((found / wanted - 1.0).abs() < 0.05, "{size:?} {bucket:?} {part:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_middle_is_kept_and_stays() {
        let image = RgbImage::from_fn(200, 100, |x, _| Rgb([x as u8; 3]));
        let cropping = Cropping { rule: CropRule::Fixed(1), seed: 1 };
        let square = bucket(100, 100);
        for epoch in 1..20 {
            let variant = cropping.variant(epoch, 3);
            let part = cropping.crop((200, 100), square, variant, 3);
            assert_eq!(part, Crop { left: 50, top: 0, width: 100, height: 100 });
            let made = cut(&image, part, square, false);
            assert_eq!((made.get_pixel(0, 50)[0], made.get_pixel(99, 50)[0]), (50, 149));
            let mirrored = cut(&image, part, square, true);
            assert_eq!(mirrored.get_pixel(0, 50)[0], 149);
        }
        let needle = centred((1, 4000), bucket(1024, 256));
        assert_eq!((needle.width, needle.height), (1, 1));
    }

    #[test]
    fn fixed_crops_are_few_and_those_of_everydream2_are_of_each_epoch() {
        let size = (1000, 700);
        let seen = |rule, seed| {
            let cropping = Cropping { rule, seed };
            let crops =
                (1..=60).map(|epoch| cropping.crop(size, bucket(576, 448), cropping.variant(epoch, 5), 5));
            crops.collect::<Vec<_>>()
        };
        let count = |crops: &[Crop]| crops.iter().collect::<std::collections::HashSet<_>>().len();
        let four = seen(CropRule::Fixed(4), 555);
        assert_eq!(count(&four), 4);
        let other: std::collections::HashSet<_> = seen(CropRule::Fixed(4), 556).into_iter().collect();
        assert!(four.iter().all(|part| other.contains(part)), "the seed chooses among the same four");
        for rule in [CropRule::Head, CropRule::April2023] {
            let crops = seen(rule, 555);
            assert!(count(&crops) > 15, "{rule:?}: {}", count(&crops));
            assert_eq!(seen(rule, 555), crops);
            assert_ne!(seen(rule, 556), crops);
        }
    }

    #[test]
    fn small_pictures_are_told_as_everydream2_does() {
        let square = bucket(512, 512);
        assert!(is_undersized((500, 500), square) && is_undersized((520, 520), square));
        assert!(!is_undersized((512, 100), square), "a side that fits is enough");
        assert!(!is_undersized((523, 523), square) && !is_undersized((4000, 3000), square));
    }
}
