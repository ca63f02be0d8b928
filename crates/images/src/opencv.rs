//! What ControlNet's preprocessors take from OpenCV beside `INTER_AREA`: cubic and nearest resizing, and blurring.

use std::ops::Range;

use image::{Rgb, RgbImage};

/// The shape of OpenCV's cubic curve.
const A: f32 = -0.75;

/// Resizes to `width` x `height` as `cv::resize` does with `INTER_CUBIC`, within a level: four pixels a side, in fixed point.
///
/// # Panics
/// When `width` or `height` is 0.
pub fn resize_cubic(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    resize_cubic_part(image, (width, height), [0..width, 0..height])
}

/// These columns and rows of what [`resize_cubic`] makes, to the bit, at the cost of these alone.
///
/// # Panics
/// When a side is 0, or the part reaches beyond it.
pub fn resize_cubic_part(
    image: &RgbImage,
    (width, height): (u32, u32),
    [columns, rows]: [Range<u32>; 2],
) -> RgbImage {
    assert!(width > 0 && height > 0, "cannot resize to {width} x {height}");
    assert!(columns.end <= width && rows.end <= height, "{columns:?} and {rows:?} of {width} x {height}");
    let columns = cubic_taps(image.width(), width, columns);
    let rows = cubic_taps(image.height(), height, rows);
    let (width, height) = (columns.len() as u32, rows.len() as u32);
    let across = |x: u32, y: u32, c: usize| -> i64 {
        let (at, weights) = &columns[x as usize];
        at.iter().zip(weights).map(|(at, weight)| i64::from(image.get_pixel(*at, y)[c]) * weight).sum()
    };
    // Every line is needed up to four times.
    let mut lines = vec![None::<Vec<i64>>; image.height() as usize];
    let mut result = RgbImage::new(width, height);
    for y in 0..height {
        let (at, weights) = &rows[y as usize];
        for line in at {
            let line_of = |y: u32| {
                (0..width).flat_map(|x| (0..3).map(move |c| (x, c))).map(|(x, c)| across(x, y, c)).collect()
            };
            lines[*line as usize].get_or_insert_with(|| line_of(*line));
        }
        for x in 0..width {
            let channel = |c: usize| {
                let value =
                    |line: u32| lines[line as usize].as_ref().map_or(0, |line| line[3 * x as usize + c]);
                let sum: i64 = at.iter().zip(weights).map(|(line, weight)| value(*line) * weight).sum();
                ((sum + (1 << 21)) >> 22).clamp(0, 255) as u8
            };
            result.put_pixel(x, y, Rgb([channel(0), channel(1), channel(2)]));
        }
        let first = at[0];
        lines[..first as usize].iter_mut().for_each(|line| *line = None);
    }
    result
}

/// For each pixel of a part of `to` the four that it is made of, and their weights in 2048ths.
fn cubic_taps(from: u32, to: u32, part: Range<u32>) -> Vec<([u32; 4], [i64; 4])> {
    let scale = 1.0 / (f64::from(to) / f64::from(from));
    let taps = |i: u32| {
        let place = ((f64::from(i) + 0.5) * scale - 0.5) as f32;
        let (first, x) = (place.floor(), place - place.floor());
        let far = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
        let near = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
        let [a, b, c] = [far(x + 1.0), near(x), near(1.0 - x)];
        let at = |k: i64| (first as i64 + k).clamp(0, i64::from(from) - 1) as u32;
        let fixed = |weight: f32| f64::from(weight * 2048.0).round_ties_even() as i64;
        ([at(-1), at(0), at(1), at(2)], [a, b, c, 1.0 - a - b - c].map(fixed))
    };
    part.map(taps).collect()
}

/// Resizes to `width` x `height` as `cv::resize` does with `INTER_NEAREST`: each pixel is the one at its upper left.
///
/// # Panics
/// When `width` or `height` is 0.
pub fn resize_nearest(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    resize_nearest_part(image, (width, height), [0..width, 0..height])
}

/// These columns and rows of what [`resize_nearest`] makes, at the cost of these alone.
///
/// # Panics
/// When a side is 0, or the part reaches beyond it.
pub fn resize_nearest_part(
    image: &RgbImage,
    (width, height): (u32, u32),
    [columns, rows]: [Range<u32>; 2],
) -> RgbImage {
    assert!(width > 0 && height > 0, "cannot resize to {width} x {height}");
    assert!(columns.end <= width && rows.end <= height, "{columns:?} and {rows:?} of {width} x {height}");
    let places = |from: u32, to: u32, part: Range<u32>| -> Vec<u32> {
        let scale = 1.0 / (f64::from(to) / f64::from(from));
        part.map(|i| ((f64::from(i) * scale) as u32).min(from - 1)).collect()
    };
    let (columns, rows) = (places(image.width(), width, columns), places(image.height(), height, rows));
    let (width, height) = (columns.len() as u32, rows.len() as u32);
    RgbImage::from_fn(width, height, |x, y| *image.get_pixel(columns[x as usize], rows[y as usize]))
}

/// Blurs as `cv::GaussianBlur` does for bytes, with the kernel's size from `sigma`: in fixed point, reflected at the edges.
///
/// # Panics
/// When `sigma` is not more than 0.
pub fn blur_gaussian(image: &RgbImage, sigma: f64) -> RgbImage {
    assert!(sigma > 0.0, "a sigma of {sigma}");
    let kernel = gaussian_kernel(sigma, (sigma * 6.0 + 1.0).round_ties_even() as usize / 2);
    let (width, height) = image.dimensions();
    let (columns, rows) = (reflected(width, kernel.len()), reflected(height, kernel.len()));
    let across = |x: usize, y: u32, c: usize| -> u32 {
        let taps = columns[x..].iter().zip(&kernel);
        taps.map(|(at, weight)| u32::from(image.get_pixel(*at, y)[c]) * weight).sum()
    };
    let lines: Vec<Vec<u32>> =
        (0..height).map(|y| (0..3 * width as usize).map(|i| across(i / 3, y, i % 3)).collect()).collect();
    RgbImage::from_fn(width, height, |x, y| {
        let channel = |c: usize| {
            let taps = rows[y as usize..].iter().zip(&kernel);
            let sum: u64 = taps
                .map(|(line, weight)| {
                    u64::from(lines[*line as usize][3 * x as usize + c]) * u64::from(*weight)
                })
                .sum();
            ((sum + (1 << 15)) >> 16).min(255) as u8
        };
        Rgb([channel(0), channel(1), channel(2)])
    })
}

/// OpenCV's Gaussian for bytes, which reaches `half` pixels to both sides: whole numbers whose sum is 256, of which what rounding leaves goes
/// on to the next, and the middle takes the rest (opencv 4, `modules/imgproc/src/smooth.dispatch.cpp`).
pub fn gaussian_kernel(sigma: f64, half: usize) -> Vec<u32> {
    let size = 2 * half + 1;
    let bell: Vec<f64> = (0..size)
        .map(|i| (i as f64 - half as f64).powi(2))
        .map(|d| (-d / (2.0 * sigma * sigma)).exp())
        .collect();
    let sum: f64 = bell.iter().sum();
    let mut rest = 0.0;
    let mut side = Vec::with_capacity(half);
    for value in &bell[..half] {
        let exact = value / sum * 256.0 + rest;
        let whole = exact.round_ties_even();
        rest = exact - whole;
        side.push(whole.max(0.0) as u32);
    }
    let middle = 256 - 2 * side.iter().sum::<u32>();
    let other = side.iter().rev().copied().collect::<Vec<_>>();
    [side, vec![middle], other].concat()
}

/// The places of a line's pixels with half a kernel's at either side: a mirror whose axis is the outermost pixel (OpenCV's
/// `BORDER_REFLECT_101`).
pub fn reflected(length: u32, kernel: usize) -> Vec<u32> {
    let (length, half) = (i64::from(length), kernel as i64 / 2);
    let at = |place: i64| match length {
        1 => 0,
        _ => {
            let place = place.rem_euclid(2 * (length - 1));
            place.min(2 * (length - 1) - place) as u32
        }
    };
    (-half..length + half).map(at).collect()
}
