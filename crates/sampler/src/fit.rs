//! A picture at the size of the one that is made of it.

use std::ops::Range;

use image::{
    ImageBuffer, Pixel, RgbImage,
    imageops::{self, FilterType},
};
use vodka_images::{Filter, resize, resize_part};

use crate::{
    ResizeMode,
    redraw::{FINE, FinePicture},
};

/// In 256ths of a level.
const WHITE: u16 = 255 * FINE;

/// Brings a picture to `width` x `height` with Pillow's `LANCZOS` (stable-diffusion-webui 1.10.1, `modules/images.py`,
/// `resize_image` without an upscaler).
pub(crate) fn fit(picture: &RgbImage, width: u32, height: u32, mode: ResizeMode) -> RgbImage {
    fit_by(picture, width, height, mode, |(w, h), part| match part == [0..w, 0..h] {
        true => resize(picture, w, h, Filter::Lanczos),
        false => resize_part(picture, (w, h), part, Filter::Lanczos),
    })
}

/// The same in finer steps: what Pillow's `LANCZOS` would be that rounds nothing to whole levels.
pub(crate) fn fit_fine(picture: &FinePicture, width: u32, height: u32, mode: ResizeMode) -> FinePicture {
    // What overshoots white ends there, between rows and columns as well.
    let resized = |picture: &FinePicture, w, h| {
        let mut resized = imageops::resize(picture, w, h, FilterType::Lanczos3);
        resized.iter_mut().for_each(|value| *value = (*value).min(WHITE));
        resized
    };
    fit_by(picture, width, height, mode, |(w, h), [columns, rows]| {
        let whole = resized(&resized(picture, w, picture.height()), w, h);
        let (wide, high) = (columns.len() as u32, rows.len() as u32);
        imageops::crop_imm(&whole, columns.start, rows.start, wide, high).to_image()
    })
}

/// `lanczos` makes these columns and rows of the picture at a size.
fn fit_by<P: Pixel>(
    picture: &ImageBuffer<P, Vec<P::Subpixel>>,
    width: u32,
    height: u32,
    mode: ResizeMode,
    lanczos: impl Fn((u32, u32), [Range<u32>; 2]) -> ImageBuffer<P, Vec<P::Subpixel>>,
) -> ImageBuffer<P, Vec<P::Subpixel>> {
    let whole = |w: u32, h: u32| match picture.dimensions() == (w, h) {
        true => picture.clone(),
        // A side that comes to nothing has a pixel.
        false => lanczos((w.max(1), h.max(1)), [0..w.max(1), 0..h.max(1)]),
    };
    if mode == ResizeMode::Just {
        return whole(width, height);
    }
    // Whole numbers: the width that goes with the height, and the other way round.
    let (from_width, from_height) = (u64::from(picture.width()), u64::from(picture.height()));
    let wide = (from_width * u64::from(height) / from_height) as u32;
    let high = (from_height * u64::from(width) / from_width) as u32;
    let is_wider = u64::from(width) * from_height > from_width * u64::from(height);
    let (w, h) = match (mode, is_wider) {
        (ResizeMode::Crop, true) => (width, high),
        (ResizeMode::Crop, false) => (wide, height),
        (_, true) => (wide, height),
        (_, false) => (width, high),
    };
    if mode == ResizeMode::Crop && picture.dimensions() != (w, h) {
        // What is cut off may be far more than there is memory for.
        let (w, h) = (w.max(1), h.max(1));
        let kept = |outer: u32, inner: u32| {
            let start = (-offset(outer, inner)).max(0) as u32;
            start..start.saturating_add(outer).min(inner)
        };
        let part = lanczos((w, h), [kept(width, w), kept(height, h)]);
        let mut result = ImageBuffer::new(width, height);
        imageops::replace(&mut result, &part, offset(width, w).max(0), offset(height, h).max(0));
        return result;
    }
    let resized = whole(w, h);
    let (w, h) = resized.dimensions();
    let (left, top) = (offset(width, w), offset(height, h));
    let mut result = ImageBuffer::new(width, height);
    imageops::replace(&mut result, &resized, left, top);
    if mode == ResizeMode::Fill {
        fill(&mut result, &resized, (left.max(0) as u32, top.max(0) as u32));
    }
    result
}

/// Where the smaller begins, so that it is in the middle.
fn offset(outer: u32, inner: u32) -> i64 {
    i64::from(outer / 2) - i64::from(inner / 2)
}

/// Fills what is beside a picture with its outermost rows or columns.
fn fill<P: Pixel>(
    result: &mut ImageBuffer<P, Vec<P::Subpixel>>,
    inner: &ImageBuffer<P, Vec<P::Subpixel>>,
    (left, top): (u32, u32),
) {
    let (w, h) = inner.dimensions();
    for (x, y, pixel) in result.enumerate_pixels_mut() {
        let (x, y) = (x.saturating_sub(left).min(w - 1), y.saturating_sub(top).min(h - 1));
        *pixel = *inner.get_pixel(x, y);
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;
    use crate::redraw::{fine, whole};

    #[test]
    fn what_is_cut_off_is_not_made() {
        // Whole, it would be 512 x 2,048,000 px: 3 GB.
        let thin = RgbImage::from_fn(1, 4000, |_, y| Rgb([(y / 16) as u8, (y % 251) as u8, 90]));
        let cut = fit(&thin, 512, 512, ResizeMode::Crop);
        // The middle of it: row 2000 lies behind it, and all that is seen is between that and the one before.
        let [above, below] = [1999, 2000].map(|y| thin.get_pixel(0, y).0);
        let is_between = |pixel: &Rgb<u8>, c: usize| {
            let (low, high) = (above[c].min(below[c]), above[c].max(below[c]));
            (low.saturating_sub(9)..=high.saturating_add(9)).contains(&pixel[c])
        };
        assert!(cut.pixels().all(|pixel| (0..3).all(|c| is_between(pixel, c))));
        // As when all of it is made.
        let small = RgbImage::from_fn(3, 40, |x, y| Rgb([(x * 80) as u8, (y * 6) as u8, (x * y) as u8]));
        let whole = resize(&small, 24, 320, Filter::Lanczos);
        let expected = imageops::crop_imm(&whole, 0, 160 - 8, 24, 16).to_image();
        assert_eq!(fit(&small, 24, 16, ResizeMode::Crop), expected);
    }

    #[test]
    fn finer_steps_make_the_same_picture() {
        let picture = RgbImage::from_fn(37, 29, |x, y| {
            Rgb([(x * 7) as u8, (y * 9) as u8, if x > y { 255 } else { 0 }])
        });
        for (width, height) in [(37, 29), (64, 64), (20, 31), (31, 9)] {
            for mode in [ResizeMode::Just, ResizeMode::Crop, ResizeMode::Fill] {
                let expected = fit(&picture, width, height, mode);
                let found = whole(&fit_fine(&fine(&picture), width, height, mode));
                let most = expected.iter().zip(found.iter()).map(|(a, b)| a.abs_diff(*b)).max();
                // Pillow rounds between rows and columns as well.
                assert!(most <= Some(1), "{width}x{height} {mode:?}: {most:?}");
            }
        }
    }
}
