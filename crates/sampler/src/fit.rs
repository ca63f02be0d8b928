//! A picture at the size of the one that is made of it.

use image::{
    ImageBuffer, Pixel, RgbImage,
    imageops::{self, FilterType},
};
use vodka_images::{Filter, resize};

use crate::{
    ResizeMode,
    redraw::{FINE, FinePicture},
};

/// In 256ths of a level.
const WHITE: u16 = 255 * FINE;

/// Brings a picture to `width` x `height` with Pillow's `LANCZOS` (stable-diffusion-webui 1.10.1, `modules/images.py`,
/// `resize_image` without an upscaler).
pub(crate) fn fit(picture: &RgbImage, width: u32, height: u32, mode: ResizeMode) -> RgbImage {
    fit_by(picture, width, height, mode, |picture, w, h| resize(picture, w, h, Filter::Lanczos))
}

/// The same in finer steps: what Pillow's `LANCZOS` would be that rounds nothing to whole levels.
pub(crate) fn fit_fine(picture: &FinePicture, width: u32, height: u32, mode: ResizeMode) -> FinePicture {
    // What overshoots white ends there, between rows and columns as well.
    let resized = |picture: &FinePicture, w, h| {
        let mut resized = imageops::resize(picture, w, h, FilterType::Lanczos3);
        resized.iter_mut().for_each(|value| *value = (*value).min(WHITE));
        resized
    };
    fit_by(picture, width, height, mode, |picture, w, h| {
        resized(&resized(picture, w, picture.height()), w, h)
    })
}

fn fit_by<P: Pixel>(
    picture: &ImageBuffer<P, Vec<P::Subpixel>>,
    width: u32,
    height: u32,
    mode: ResizeMode,
    lanczos: impl Fn(&ImageBuffer<P, Vec<P::Subpixel>>, u32, u32) -> ImageBuffer<P, Vec<P::Subpixel>>,
) -> ImageBuffer<P, Vec<P::Subpixel>> {
    let lanczos = |w: u32, h: u32| match picture.dimensions() == (w, h) {
        true => picture.clone(),
        // A side that comes to nothing has a pixel.
        false => lanczos(picture, w.max(1), h.max(1)),
    };
    if mode == ResizeMode::Just {
        return lanczos(width, height);
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
    let resized = lanczos(w, h);
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
