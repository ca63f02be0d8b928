//! A picture at the size of the one that is made of it.

use image::{RgbImage, imageops};
use vodka_images::{Filter, resize};

use crate::ResizeMode;

/// Brings a picture to `width` x `height` with Pillow's `LANCZOS` (stable-diffusion-webui 1.10.1, `modules/images.py`,
/// `resize_image` without an upscaler).
pub(crate) fn fit(picture: &RgbImage, width: u32, height: u32, mode: ResizeMode) -> RgbImage {
    let lanczos = |picture: &RgbImage, w: u32, h: u32| match picture.dimensions() == (w, h) {
        true => picture.clone(),
        // A side that comes to nothing has a pixel.
        false => resize(picture, w.max(1), h.max(1), Filter::Lanczos),
    };
    if mode == ResizeMode::Just {
        return lanczos(picture, width, height);
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
    let resized = lanczos(picture, w, h);
    let (w, h) = resized.dimensions();
    let (left, top) = (offset(width, w), offset(height, h));
    let mut result = RgbImage::new(width, height);
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
fn fill(result: &mut RgbImage, inner: &RgbImage, (left, top): (u32, u32)) {
    let (w, h) = inner.dimensions();
    for (x, y, pixel) in result.enumerate_pixels_mut() {
        let (x, y) = (x.saturating_sub(left).min(w - 1), y.saturating_sub(top).min(h - 1));
        *pixel = *inner.get_pixel(x, y);
    }
}
