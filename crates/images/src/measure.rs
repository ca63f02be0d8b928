//! What a picture says of itself: how sharp it is, and a fingerprint that its copies share.

use std::f64::consts::PI;

use vodka_stage::for_avx2;

use crate::{
    Picture, area,
    pillow::{self, LANCZOS},
    resize::fitted,
    rows::Rows,
};

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
///
/// One that was decoded at a part of its size ([`crate::DecodeOptions::reduce_to`]) has lost its finest grain: the hash stays, but
/// sharpness is lower (37 for 65 where all is grain). Compare sharpness among pictures decoded in one way.
pub fn measure(picture: &Picture) -> Measures {
    let grey = reduced_grey(picture);
    let laplacian = laplacian(&grey);
    let part = |len: usize, i: usize| i * len / 4..(i + 1) * len / 4;
    let mut tiles: Vec<f32> = (0..16)
        .map(|i| (part(grey.width, i % 4), part(grey.height, i / 4)))
        .filter(|(columns, rows)| !columns.is_empty() && !rows.is_empty())
        .map(|(columns, rows)| {
            variance(
                laplacian
                    .chunks_exact(grey.width)
                    .skip(rows.start)
                    .take(rows.len())
                    .map(|row| &row[columns.clone()]),
            )
        })
        .collect();
    tiles.sort_by(f32::total_cmp);
    let last = tiles.len() - 1;
    let tiles = Tiles {
        min: tiles[0],
        median: f32::midpoint(tiles[last / 2], tiles[tiles.len() / 2]),
        max: tiles[last],
    };
    Measures { phash: phash(&grey), sharpness: variance([&laplacian[..]]), tiles }
}

/// A picture of one channel.
struct Grey {
    width: usize,
    height: usize,
    levels: Vec<u8>,
}

/// The grey picture, at most [`SIDE_MAX`] pixels long.
fn reduced_grey(picture: &Picture) -> Grey {
    let (width, height) = fitted(picture.size(), SIDE_MAX);
    let levels = area::shrink_grey(&mut Rows::grey(picture), width, height);
    Grey { width: width as usize, height: height as usize, levels }
}

/// Each pixel's four neighbours less four times itself; beyond the border lies the pixel before the last.
fn laplacian(Grey { width, height, levels }: &Grey) -> Vec<i16> {
    let levels: Vec<i16> = levels.iter().map(|level| i16::from(*level)).collect();
    let row = |y: usize| &levels[y * width..(y + 1) * width];
    let mut all = vec![0; width * height];
    for (y, out) in all.chunks_exact_mut(*width).enumerate() {
        let (above, below) = around(y, *height);
        laplacian_of_row(row(above), row(y), row(below), out);
    }
    all
}

for_avx2! {
    fn laplacian_of_row(above: &[i16], row: &[i16], below: &[i16], out: &mut [i16]) {
        let ends = [0, row.len() - 1];
        for x in ends {
            let (left, right) = around(x, row.len());
            out[x] = above[x] + below[x] + row[left] + row[right] - 4 * row[x];
        }
        let inner = row.windows(3).zip(above.iter().zip(below).skip(1)).zip(out.iter_mut().skip(1));
        for ((row, (above, below)), out) in inner {
            *out = above + below + row[0] + row[2] - 4 * row[1];
        }
    }
}

/// The neighbours of place `i` of `len`.
#[inline(always)]
fn around(i: usize, len: usize) -> (usize, usize) {
    let last = len - 1;
    let (before, after) =
        (if i == 0 { 1 } else { i - 1 }, if i == last { last.saturating_sub(1) } else { i + 1 });
    (before.min(last), after)
}

/// Of all values in these rows, exact up to the last division.
fn variance<'a>(rows: impl IntoIterator<Item = &'a [i16]>) -> f32 {
    let (mut count, mut sum, mut squares) = (0, 0, 0);
    for row in rows {
        count += row.len();
        add_powers(row, &mut sum, &mut squares);
    }
    let mean = sum as f64 / count as f64;
    (squares as f64 / count as f64 - mean * mean) as f32
}

for_avx2! {
    fn add_powers(row: &[i16], sum: &mut i64, squares: &mut i64) {
        for values in row.chunks(1024) {
            // 1024 squares of at most 1020 fit.
            *sum += i64::from(values.iter().map(|value| i32::from(*value)).sum::<i32>());
            *squares += i64::from(values.iter().map(|value| i32::from(*value) * i32::from(*value)).sum::<i32>());
        }
    }
}

fn phash(grey: &Grey) -> u64 {
    const SIDE: usize = 32;
    const LOW: usize = 8;
    let small = pillow::resize_grey(&grey.levels, (grey.width, grey.height), SIDE, LANCZOS);
    let wave = |k: usize, i: usize| 2.0 * (PI * (k * (2 * i + 1)) as f64 / (2 * SIDE) as f64).cos();
    let waves: Vec<[f64; SIDE]> = (0..LOW).map(|k| std::array::from_fn(|i| wave(k, i))).collect();
    let dot = |wave: &[f64; SIDE], at: &dyn Fn(usize) -> f64| -> f64 {
        wave.iter().enumerate().map(|(i, w)| w * at(i)).sum()
    };
    // Along the columns, then along the rows.
    let down: Vec<[f64; SIDE]> = waves
        .iter()
        .map(|wave| std::array::from_fn(|x| dot(wave, &|y| f64::from(small[y * SIDE + x]))))
        .collect();
    // To a thousandth, so that rounding errors decide nothing, as they would for a flat picture.
    let low: Vec<f64> = down
        .iter()
        .flat_map(|row| waves.iter().map(|wave| (dot(wave, &|x| row[x]) * 1024.0).round()))
        .collect();
    let mut sorted = low.clone();
    sorted.sort_by(f64::total_cmp);
    let median = f64::midpoint(sorted[LOW * LOW / 2 - 1], sorted[LOW * LOW / 2]);
    low.iter().fold(0, |hash, value| hash << 1 | u64::from(*value > median))
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};

    use super::*;

    #[test]
    fn a_flat_picture_is_blurred_and_has_one_bit() {
        for (width, height) in [(1, 1), (1, 900), (7, 3), (1600, 800)] {
            let measures = measure(&Picture::Rgb(RgbImage::from_pixel(width, height, Rgb([90, 100, 110]))));
            assert_eq!((measures.sharpness, measures.tiles.max, measures.phash), (0.0, 0.0, 1 << 63));
        }
    }
}
