//! What a picture says of itself: how sharp it is, and a fingerprint that its copies share.

use std::f64::consts::PI;

use image::{GrayImage, Luma, Rgb, RgbImage};

use crate::{Filter, Picture, resize};

/// The longer side that pictures are reduced to before they are measured.
const SIDE_MAX: u32 = 768;

/// Measured on a picture, for finding blurred and duplicate ones.
///
/// All is measured on the grey picture (Pillow's "L": 0.299 R + 0.587 G + 0.114 B, over white where transparent),
/// reduced by area averaging (OpenCV's INTER_AREA) to a longer side of at most 768 pixels, so that it depends little on
/// how large the file is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measures {
    /// The perceptual hash of Python's `imagehash.phash`: the signs of the 8 x 8 lowest frequencies of a cosine transform of
    /// 32 x 32 pixels against their median, row by row, the first bit the highest. `{:016x}` prints what Python prints.
    pub phash: u64,
    /// Variance of the Laplacian (4 neighbours, mirrored at the border as OpenCV does), in squared levels: low is blurred.
    pub sharpness: f32,
    /// The same over parts of the picture: a sharp subject before a blurred ground has a high maximum.
    pub tiles: Tiles,
}

/// The sharpness of 4 x 4 tiles.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tiles {
    /// The most blurred tile.
    pub min: f32,
    /// The mean of the two in the middle.
    pub median: f32,
    /// The sharpest tile.
    pub max: f32,
}

/// Measures a picture.
pub fn measure(picture: &Picture) -> Measures {
    let grey = reduced_grey(picture);
    let laplacian = laplacian(&grey);
    let (width, height) = (grey.width() as usize, grey.height() as usize);
    let mut tiles = Vec::new();
    for y in 0..4 {
        for x in 0..4 {
            let columns = x * width / 4..(x + 1) * width / 4;
            let rows = y * height / 4..(y + 1) * height / 4;
            if !columns.is_empty() && !rows.is_empty() {
                tiles.push(variance(rows.flat_map(|y| &laplacian[y * width..][columns.clone()])));
            }
        }
    }
    tiles.sort_by(f32::total_cmp);
    let middle = tiles.len() / 2;
    let tiles = Tiles {
        min: tiles[0],
        median: (tiles[(tiles.len() - 1) / 2] + tiles[middle]) / 2.0,
        max: tiles[tiles.len() - 1],
    };
    Measures { phash: phash(&grey), sharpness: variance(&laplacian), tiles }
}

fn reduced_grey(picture: &Picture) -> GrayImage {
    let flat = picture.clone().into_rgb();
    let (width, height) = flat.dimensions();
    let longer = width.max(height);
    let grey = RgbImage::from_fn(width, height, |x, y| {
        let [r, g, b] = flat.get_pixel(x, y).0.map(u32::from);
        Rgb([((r * 19_595 + g * 38_470 + b * 7_471 + 0x8000) >> 16) as u8; 3])
    });
    let side = |len: u32| ((2 * len * SIDE_MAX + longer) / (2 * longer)).max(1);
    let reduced =
        if longer > SIDE_MAX { resize(&grey, side(width), side(height), Filter::Area) } else { grey };
    GrayImage::from_fn(reduced.width(), reduced.height(), |x, y| Luma([reduced.get_pixel(x, y).0[0]]))
}

/// Each pixel's four neighbours less four times itself; beyond the border lies the pixel before the last.
fn laplacian(grey: &GrayImage) -> Vec<i32> {
    let (width, height) = grey.dimensions();
    let at = |x: u32, y: u32| i32::from(grey.get_pixel(x, y).0[0]);
    let around = |i: u32, len: u32| {
        let (before, after) =
            (if i == 0 { 1 } else { i - 1 }, if i + 1 == len { len.max(2) - 2 } else { i + 1 });
        (before.min(len - 1), after.min(len - 1))
    };
    let mut all = Vec::new();
    for y in 0..height {
        let (above, below) = around(y, height);
        for x in 0..width {
            let (left, right) = around(x, width);
            all.push(at(x, above) + at(x, below) + at(left, y) + at(right, y) - 4 * at(x, y));
        }
    }
    all
}

fn variance<'a>(values: impl IntoIterator<Item = &'a i32>) -> f32 {
    let (mut count, mut sum, mut squares) = (0_i64, 0_i64, 0_i64);
    for value in values {
        let value = i64::from(*value);
        count += 1;
        sum += value;
        squares += value * value;
    }
    let mean = sum as f64 / count as f64;
    (squares as f64 / count as f64 - mean * mean) as f32
}

fn phash(grey: &GrayImage) -> u64 {
    let rgb = RgbImage::from_fn(grey.width(), grey.height(), |x, y| Rgb([grey.get_pixel(x, y).0[0]; 3]));
    let small = resize(&rgb, 32, 32, Filter::Lanczos);
    let wave = |k: u32, i: u32| (PI * f64::from(k) * f64::from(2 * i + 1) / 64.0).cos();
    let mut low = Vec::new();
    for v in 0..8 {
        for u in 0..8 {
            let term = |(x, y, pixel): (u32, u32, &Rgb<u8>)| f64::from(pixel.0[0]) * wave(u, x) * wave(v, y);
            low.push(4.0 * small.enumerate_pixels().map(term).sum::<f64>());
        }
    }
    let mut sorted = low.clone();
    sorted.sort_by(f64::total_cmp);
    let median = f64::midpoint(sorted[31], sorted[32]);
    low.iter().fold(0, |hash, value| hash << 1 | u64::from(*value > median))
}
