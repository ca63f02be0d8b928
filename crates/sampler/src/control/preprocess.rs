//! What becomes of a picture before a ControlNet sees it.

use std::ops::Range;

use image::{Rgb, RgbImage, imageops};
use serde::Serialize;
use vodka_images::{
    Filter, MAX_SIDE_PX, blur_gaussian, resize, resize_cubic, resize_cubic_part, resize_nearest_part,
    resize_part,
};

use crate::{Error, ResizeMode, Result, Size};

/// Below this rate `tile_resample` leaves a picture as it is.
const RATE_MIN: f64 = 1.1;
/// The most pixels that a preprocessor makes: eight times as long as wide at the finest resolution.
const PIXELS_MAX: u64 = 1 << 25;
/// Pictures of fewer colours are maps: no colour may come up between two of them.
const COLOURS_OF_A_MAP: usize = 200;

/// What is done to a picture, by the names of sd-webui-controlnet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Preprocessor {
    /// `none`.
    None,
    /// `tile_resample`: so many times smaller; below 1.1 not at all.
    TileResample {
        /// "Down Sampling Rate", 1 to 8.
        rate: f64,
    },
    /// `tile_colorfix`: at each step the colours of what the UNet sees become the picture's.
    TileColorfix {
        /// "Variation": half the side of the square, in latents, within which colours may vary, 3 to 32.
        variation: u32,
    },
    /// `tile_colorfix+sharp`: the same, and guidance leads away from what is blurred.
    TileColorfixSharp {
        /// As of `tile_colorfix`.
        variation: u32,
        /// How blurred that is, in hundredths, 0 to 2.
        sharpness: f64,
    },
    /// `blur_gaussian`.
    BlurGaussian {
        /// In pixels at the preprocessor's resolution, 0.01 to 64.
        sigma: f64,
    },
}

impl Preprocessor {
    /// All, with the numbers that they have at first.
    pub const ALL: [Self; 5] = [
        Self::None,
        Self::TileResample { rate: 1.0 },
        Self::TileColorfix { variation: 8 },
        Self::TileColorfixSharp { variation: 8, sharpness: 1.0 },
        Self::BlurGaussian { sigma: 9.0 },
    ];

    /// The extension's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::TileResample { .. } => "tile_resample",
            Self::TileColorfix { .. } => "tile_colorfix",
            Self::TileColorfixSharp { .. } => "tile_colorfix+sharp",
            Self::BlurGaussian { .. } => "blur_gaussian",
        }
    }

    /// The one of that name, with the numbers that it has at first.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name().eq_ignore_ascii_case(name.trim()))
    }

    /// # Errors
    /// Numbers that the extension does not have either.
    pub(crate) fn check(self) -> Result<()> {
        let number = |field, expected, found: f64| Err(Error::ControlNumber { field, expected, found });
        match self {
            Self::TileResample { rate } if !(1.0..=8.0).contains(&rate) => number("rate", "1 to 8", rate),
            Self::TileColorfix { variation } | Self::TileColorfixSharp { variation, .. }
                if !(3..=32).contains(&variation) =>
            {
                number("variation", "3 to 32", variation.into())
            }
            Self::TileColorfixSharp { sharpness, .. } if !(0.0..=2.0).contains(&sharpness) => {
                number("sharpness", "0 to 2", sharpness)
            }
            Self::BlurGaussian { sigma } if !(0.01..=64.0).contains(&sigma) => {
                number("sigma", "0.01 to 64", sigma)
            }
            _ => Ok(()),
        }
    }

    /// What is made of a picture that is used at `size`, where it is worked on at `resolution_px` of its shorter side. Of a long one of which
    /// most would be cut off, the middle alone.
    ///
    /// # Errors
    /// [`Error::TooLarge`]: a long picture all of which is used, at a resolution for which there is not memory enough.
    pub(crate) fn of_used(
        self,
        picture: &RgbImage,
        resolution_px: u32,
        size: Size,
        mode: ResizeMode,
    ) -> Result<RgbImage> {
        let Self::BlurGaussian { sigma } = self else { return Ok(self.of(picture, resolution_px)) };
        let (width, height) = size_at_resolution(picture, resolution_px);
        let pixels = u64::from(width) * u64::from(height);
        if pixels <= PIXELS_MAX {
            return Ok(self.of(picture, resolution_px));
        }
        let middle = middle(picture, resolution_px, size, sigma);
        let (wide, high) = size_at_resolution(&middle, resolution_px);
        let is_long = (wide, high) != (width, height);
        if is_long && (mode != ResizeMode::Crop || u64::from(wide) * u64::from(high) > PIXELS_MAX) {
            let (gigabytes, max_side_px, max) = (3.0 * pixels as f64 / 1e9, MAX_SIDE_PX, PIXELS_MAX);
            return Err(Error::TooLarge { width, height, gigabytes, max_side_px, max });
        }
        Ok(self.of(&middle, resolution_px))
    }

    /// What is made of a picture, where it is worked on at `resolution_px` of its shorter side.
    fn of(self, picture: &RgbImage, resolution_px: u32) -> RgbImage {
        match self {
            Self::None | Self::TileColorfix { .. } | Self::TileColorfixSharp { .. } => picture.clone(),
            Self::TileResample { rate } if rate < RATE_MIN => picture.clone(),
            Self::TileResample { rate } => {
                let side = |side: u32| (f64::from(side) / rate) as u32;
                area(picture, side(picture.width()), side(picture.height()))
            }
            Self::BlurGaussian { sigma } => blur_gaussian(&at_resolution(picture, resolution_px), sigma),
        }
    }
}

/// OpenCV's `INTER_AREA`; a side that comes to nothing has a pixel.
fn area(picture: &RgbImage, width: u32, height: u32) -> RgbImage {
    resize(picture, width.max(1), height.max(1), Filter::Area)
}

/// A picture whose shorter side has so many pixels.
fn at_resolution(picture: &RgbImage, resolution_px: u32) -> RgbImage {
    let (width, height) = size_at_resolution(picture, resolution_px);
    match resolution_px > picture.width().min(picture.height()) {
        true => resize_cubic(picture, width, height),
        false => area(picture, width, height),
    }
}

/// Its size.
fn size_at_resolution(picture: &RgbImage, resolution_px: u32) -> (u32, u32) {
    let (width, height) = picture.dimensions();
    let scale = f64::from(resolution_px) / f64::from(width.min(height));
    let side = |side: u32| rounded(f64::from(side) * scale);
    (side(width), side(height))
}

/// What [`fit_control`] keeps of a picture that it cuts to `size`, as far along its longer side as a blur of it reaches.
fn middle(picture: &RgbImage, resolution_px: u32, size: Size, sigma: f64) -> RgbImage {
    let (width, height) = picture.dimensions();
    let shorter = width.min(height);
    let scale = (f64::from(size.width) / f64::from(width)).max(f64::from(size.height) / f64::from(height));
    // OpenCV's blur reaches three times sigma, its cubic curve two pixels more.
    let reach = 3.0 * sigma * f64::from(shorter) / f64::from(resolution_px) + 3.0;
    let kept = |side: u32, used: u32| {
        let kept = (f64::from(used) / scale + 2.0 * reach).ceil().max(f64::from(shorter)) as u32;
        // As much goes on either side, so that the middle stays the middle.
        let beside = side.saturating_sub(kept) / 2;
        (beside, side - 2 * beside)
    };
    let ((left, wide), (top, high)) = (kept(width, size.width), kept(height, size.height));
    imageops::crop_imm(picture, left, top, wide, high).to_image()
}

/// numpy's rounding, and a pixel at least.
fn rounded(side: f64) -> u32 {
    (side.round_ties_even() as u32).max(1)
}

/// The resolution, of the shorter side, that a picture has where it is used at `size`.
pub(crate) fn pixel_perfect_px(picture: &RgbImage, size: Size, mode: ResizeMode) -> u32 {
    let (width, height) = (f64::from(picture.width()), f64::from(picture.height()));
    let (by_height, by_width) = (f64::from(size.height) / height, f64::from(size.width) / width);
    let scale = match mode {
        ResizeMode::Fill => by_height.min(by_width),
        ResizeMode::Just | ResizeMode::Crop => by_height.max(by_width),
    };
    rounded(scale * width.min(height))
}

/// Brings a picture of conditions to `size`: with `fill` the rest has the median of the colours at its edges.
pub(crate) fn fit_control(picture: &RgbImage, size: Size, mode: ResizeMode) -> RgbImage {
    let Size { width, height } = size;
    if mode == ResizeMode::Just {
        return resized(picture, (width, height), [0..width, 0..height]);
    }
    let (from_width, from_height) = (f64::from(picture.width()), f64::from(picture.height()));
    let (by_height, by_width) = (f64::from(height) / from_height, f64::from(width) / from_width);
    let scale = if mode == ResizeMode::Fill { by_height.min(by_width) } else { by_height.max(by_width) };
    let (w, h) = (rounded(from_width * scale), rounded(from_height * scale));
    let half = |outer: u32, inner: u32| outer.saturating_sub(inner) / 2;
    // What is cut off may be far more than there is memory for.
    let kept = |outer: u32, inner: u32| half(inner, outer)..(half(inner, outer) + outer).min(inner);
    let scaled = resized(picture, (w, h), [kept(width, w), kept(height, h)]);
    let mut result = RgbImage::from_pixel(width, height, edge_colour(picture));
    let (left, top) = match mode {
        ResizeMode::Fill => (half(width, w), half(height, h)),
        _ => (0, 0),
    };
    imageops::replace(&mut result, &scaled, left.into(), top.into());
    result
}

/// Smaller by area, larger by cubic curves, and maps of few colours without colours between; of that these columns and rows.
fn resized(picture: &RgbImage, (width, height): (u32, u32), part: [Range<u32>; 2]) -> RgbImage {
    let pixels = |width: u32, height: u32| u64::from(width) * u64::from(height);
    let before = pixels(picture.width(), picture.height());
    let colours = colours(picture);
    if picture.dimensions() == (width, height) {
        let [columns, rows] = part;
        let (wide, high) = (columns.len() as u32, rows.len() as u32);
        imageops::crop_imm(picture, columns.start, rows.start, wide, high).to_image()
    } else if colours > 2 && colours < COLOURS_OF_A_MAP {
        resize_nearest_part(picture, (width, height), part)
    } else if pixels(width, height) < before {
        resize_part(picture, (width, height), part, Filter::Area)
    } else {
        resize_cubic_part(picture, (width, height), part)
    }
}

/// How many colours there are, counted up to that of a map.
fn colours(picture: &RgbImage) -> usize {
    let mut found: Vec<&Rgb<u8>> = Vec::with_capacity(COLOURS_OF_A_MAP);
    for pixel in picture.pixels() {
        if found.last() != Some(&pixel) && !found.contains(&pixel) {
            found.push(pixel);
            if found.len() == COLOURS_OF_A_MAP {
                break;
            }
        }
    }
    found.len()
}

/// The median of each channel along the four edges; of two in the middle their mean, cut off.
fn edge_colour(picture: &RgbImage) -> Rgb<u8> {
    let (width, height) = picture.dimensions();
    let rows = [0, height - 1].into_iter().flat_map(|y| (0..width).map(move |x| (x, y)));
    let columns = [0, width - 1].into_iter().flat_map(|x| (0..height).map(move |y| (x, y)));
    let pixels: Vec<&Rgb<u8>> = rows.chain(columns).map(|(x, y)| picture.get_pixel(x, y)).collect();
    Rgb([0, 1, 2].map(|channel: usize| {
        let mut values: Vec<u16> = pixels.iter().map(|pixel| pixel[channel].into()).collect();
        values.sort_unstable();
        // Of an even number: two rows and two columns.
        ((values[values.len() / 2 - 1] + values[values.len() / 2]) / 2) as u8
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| Rgb([(x * 7) as u8, (y * 11) as u8, (x * y) as u8]))
    }

    fn size(text: &str) -> Size {
        text.parse().unwrap()
    }

    #[test]
    fn tile_resample_makes_a_picture_smaller() {
        let all = picture(20, 30);
        let of = |rate| Preprocessor::TileResample { rate }.of(&all, 512);
        assert_eq!((of(1.0), of(1.09)), (all.clone(), all.clone()));
        assert_eq!(of(2.0), resize(&all, 10, 15, Filter::Area));
        // 20 / 1.5 and 30 / 1.5, cut off.
        assert_eq!(of(1.5).dimensions(), (13, 20));
        let dot = RgbImage::new(1, 3);
        assert_eq!(Preprocessor::TileResample { rate: 8.0 }.of(&dot, 512).dimensions(), (1, 1));
    }

    #[test]
    fn only_the_blur_works_at_a_resolution() {
        let all = picture(20, 30);
        let blurred = Preprocessor::BlurGaussian { sigma: 2.0 };
        assert_eq!(blurred.of(&all, 64).dimensions(), (64, 96));
        assert_eq!(blurred.of(&picture(200, 100), 64).dimensions(), (128, 64));
        let twice = resize_cubic(&all, 40, 60);
        assert_eq!(blurred.of(&all, 40), blur_gaussian(&twice, 2.0));
        for other in [Preprocessor::None, Preprocessor::TileColorfix { variation: 8 }] {
            assert_eq!(other.of(&all, 64), all);
        }
    }

    #[test]
    fn pixel_perfect_is_the_resolution_at_which_the_picture_is_used() {
        let of = |(w, h), target: &str, mode| pixel_perfect_px(&RgbImage::new(w, h), size(target), mode);
        // By height 1, by width 2: the larger, but where all of the picture must fit in.
        assert_eq!(of((256, 512), "512x512", ResizeMode::Crop), 512);
        assert_eq!(of((256, 512), "512x512", ResizeMode::Just), 512);
        assert_eq!(of((256, 512), "512x512", ResizeMode::Fill), 256);
        assert_eq!(of((1000, 600), "512x768", ResizeMode::Crop), 768);
        assert_eq!(of((1000, 600), "512x768", ResizeMode::Fill), 307);
    }

    #[test]
    fn pictures_are_cut_or_laid_on_the_colour_of_their_edges() {
        let all = picture(40, 20);
        let cut = fit_control(&all, size("16x16"), ResizeMode::Crop);
        let scaled = resize(&all, 32, 16, Filter::Area);
        assert_eq!(cut, imageops::crop_imm(&scaled, 8, 0, 16, 16).to_image());
        let laid = fit_control(&all, size("16x16"), ResizeMode::Fill);
        let inner = resize(&all, 16, 8, Filter::Area);
        assert_eq!(imageops::crop_imm(&laid, 0, 4, 16, 8).to_image(), inner);
        assert_eq!(laid.get_pixel(3, 2), &edge_colour(&all));
        assert_eq!(fit_control(&all, size("16x24"), ResizeMode::Just).dimensions(), (16, 24));
        assert_eq!(fit_control(&all, size("40x20"), ResizeMode::Crop), all);
        // Four edges of 3 and 1 pixels: 10 10 10, 90 90 90, 10 90, 10 90.
        let edges = RgbImage::from_fn(3, 2, |_, y| Rgb([if y == 0 { 10 } else { 90 }; 3]));
        assert_eq!(edge_colour(&edges), Rgb([50; 3]));
    }

    #[test]
    fn of_a_long_picture_the_middle_alone_is_made() {
        // Whole, it would be 512 x 2,048,000 px: 3 GB, and more while it is blurred.
        let thin =
            |height: u32| RgbImage::from_fn(1, height, |_, y| Rgb([(y / 16) as u8, (y % 251) as u8, 9]));
        let (wide, all) = (size("512x512"), thin(4000));
        let fitted = fit_control(&all, wide, ResizeMode::Crop);
        // The border between the pixels 1999 and 2000 is in the middle; the second channel is 242 and 243 there.
        assert_eq!((fitted.get_pixel(0, 0)[1], fitted.get_pixel(511, 511)[1]), (242, 243));
        let of = |sigma, picture: &RgbImage, px, at: Size, mode| {
            Preprocessor::BlurGaussian { sigma }.of_used(picture, px, at, mode)
        };
        let blurred = of(9.0, &all, 512, wide, ResizeMode::Crop).unwrap();
        assert!(blurred.height() < 512 * 16, "{:?}", blurred.dimensions());
        let fitted = fit_control(&blurred, wide, ResizeMode::Crop);
        assert_eq!((fitted.get_pixel(0, 0)[1], fitted.get_pixel(511, 511)[1]), (242, 243));
        for mode in [ResizeMode::Just, ResizeMode::Fill] {
            let said = of(9.0, &all, 512, wide, mode).unwrap_err().to_string();
            assert!(said.starts_with("a picture of 512x2048000 px would take 3.1 GB"), "{said}");
            assert_eq!(fit_control(&all, wide, mode).dimensions(), (512, 512));
        }
        // What is cut off first makes no difference to what is left, also across.
        for (picture, px) in [(thin(90), 64), (imageops::rotate90(&thin(91)), 64), (picture(5, 300), 80)] {
            let at = Size { width: px, height: px };
            let middle = middle(&picture, px, at, 4.0);
            assert!(middle.len() < picture.len());
            let blur = Preprocessor::BlurGaussian { sigma: 4.0 };
            let [whole, cut] = [&picture, &middle].map(|picture| {
                let blurred = blur.of(picture, px);
                fit_control(&blurred, at, ResizeMode::Crop)
            });
            assert!(cut == whole, "{:?} at {px}", picture.dimensions());
        }
    }

    #[test]
    fn no_colour_comes_up_between_those_of_a_map() {
        let map = RgbImage::from_fn(12, 9, |x, y| Rgb([(x / 4 * 100) as u8, (y / 3 * 100) as u8, 0]));
        for target in ["32x24", "8x8"] {
            let found = fit_control(&map, size(target), ResizeMode::Just);
            assert!(found.pixels().all(|pixel| map.pixels().any(|known| known == pixel)), "{target}");
        }
        let many = picture(30, 20);
        assert_eq!(fit_control(&many, size("64x48"), ResizeMode::Just), resize_cubic(&many, 64, 48));
    }
}
