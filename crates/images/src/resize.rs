//! Resizing with the arithmetic of the originals.
//!
//! Pillow (`ImagingResample`, src/libImaging/Resample.c) resizes in two passes, rows first, each with fixed-point
//! weights of 22 bits and each rounded and clipped to 8 bits. The kernel is the cubic with a = -0.5 (Keys 1981), which
//! is stretched by the scale when shrinking, and so averages all pixels that fall together.

use std::f64::consts::PI;

use image::RgbImage;

const WEIGHT_BITS: u32 = 22;
const HALF: i32 = 1 << (WEIGHT_BITS - 1);
const CHANNELS: usize = 3;

/// Resamplers, each with the arithmetic of its original.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Filter {
    /// Pillow's `BILINEAR`, to the bit.
    Bilinear,
    /// Pillow's `BICUBIC` (a = -0.5), to the bit.
    Bicubic,
    /// Pillow's `LANCZOS` (a = 3), to the bit.
    Lanczos,
    /// OpenCV's `INTER_AREA`; where a side would grow, Pillow's `LANCZOS`, as kohya's tagging script has it.
    Area,
}

impl Filter {
    /// How far the kernel reaches to each side.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos | Self::Area => 3.0,
        }
    }

    fn kernel(self, x: f64) -> f64 {
        match self {
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Bicubic => cubic(x),
            Self::Lanczos | Self::Area => lanczos(x),
        }
    }
}

/// Resizes to `width` x `height`.
///
/// # Panics
/// When `width` or `height` is 0.
pub fn resize(image: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    let (w, h) = image.dimensions();
    if filter == Filter::Area && width <= w && height <= h {
        return crate::area::shrink(image, width, height);
    }
    resize_on_canvas(image, Canvas { width: w, height: h, left: 0, top: 0 }, width, height, filter)
}

/// Resizes to `width` x `height`: the bytes of Pillow's `Image.resize((width, height), Image.BICUBIC)`.
///
/// # Panics
/// When `width` or `height` is 0.
pub fn resize_bicubic(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    resize(image, width, height, Filter::Bicubic)
}

/// A white area with a picture somewhere on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Canvas {
    pub width: u32,
    pub height: u32,
    /// Where the picture's first column lies.
    pub left: u32,
    /// Where the picture's first row lies.
    pub top: u32,
}

/// Resizes the whole canvas. What is white on it costs next to nothing.
pub(crate) fn resize_on_canvas(
    image: &RgbImage,
    canvas: Canvas,
    width: u32,
    height: u32,
    filter: Filter,
) -> RgbImage {
    assert!(width > 0 && height > 0, "cannot resize to {width} x {height}");
    let (w, h) = image.dimensions();
    let columns = Weights::new(canvas.width, width, canvas.left, w, filter);
    let rows = Weights::new(canvas.height, height, canvas.top, h, filter);
    let (narrow, white_row) = resize_rows(image, &columns);
    let pixels = resize_columns(&narrow, &white_row, &rows);
    RgbImage::from_raw(width, height, pixels).expect("one value for each pixel and channel")
}

/// What one output pixel is made of, along one axis.
#[derive(Debug)]
struct Tap {
    /// The first picture pixel it reads.
    first: usize,
    /// The weights of the picture pixels, in units of 2^-22.
    weights: std::ops::Range<usize>,
    /// The sum of the weights that fall on white.
    white: i32,
}

/// The taps of all output pixels along one axis.
#[derive(Debug)]
struct Weights {
    taps: Vec<Tap>,
    weights: Vec<i32>,
}

impl Weights {
    /// From `from` canvas pixels, of which the picture covers `inside` from `start` on, to `to` pixels.
    fn new(from: u32, to: u32, start: u32, inside: u32, filter: Filter) -> Self {
        let (start, end) = (start as usize, (start + inside) as usize);
        let mut all = Self { taps: Vec::with_capacity(to as usize), weights: Vec::new() };
        for i in 0..to {
            let (window, weights) = kernel_at(from, to, i, filter);
            let begin = all.weights.len();
            let (mut white, mut first) = (0_i32, start);
            for (position, weight) in (window..).zip(weights) {
                if (start..end).contains(&position) {
                    if all.weights.len() == begin {
                        first = position;
                    }
                    all.weights.push(weight);
                } else {
                    white += weight;
                }
            }
            all.taps.push(Tap { first: first - start, weights: begin..all.weights.len(), white });
        }
        all
    }
}

/// The first canvas pixel that output pixel `i` reads, and the weight of it and of those after it.
fn kernel_at(from: u32, to: u32, i: u32, filter: Filter) -> (usize, Vec<i32>) {
    if from == to {
        // Pillow leaves out a pass that changes nothing.
        return (i as usize, vec![1 << WEIGHT_BITS]);
    }
    let scale = f64::from(from) / f64::from(to);
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let center = (f64::from(i) + 0.5) * scale;
    // Pillow truncates toward zero; both ends are clipped to the canvas.
    let first = (center - support + 0.5).max(0.0) as usize;
    let end = ((center + support + 0.5) as usize).min(from as usize);
    let inverse = 1.0 / stretch;
    let kernel: Vec<f64> = (first..end).map(|x| filter.kernel((x as f64 - center + 0.5) * inverse)).collect();
    let sum: f64 = kernel.iter().sum();
    let fixed = |weight: f64| {
        let weight = if sum == 0.0 { weight } else { weight / sum } * f64::from(1 << WEIGHT_BITS);
        (weight + if weight < 0.0 { -0.5 } else { 0.5 }) as i32
    };
    (first, kernel.into_iter().map(fixed).collect())
}

/// The cubic convolution kernel with a = -0.5.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// The sinc function cut to three lobes by a wider one.
fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
    if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
}

fn clip(sum: i32) -> u8 {
    (sum >> WEIGHT_BITS).clamp(0, 255) as u8
}

/// The first pass: each row of the picture to the new width, and what becomes of a white row.
fn resize_rows(image: &RgbImage, columns: &Weights) -> (Vec<u8>, Vec<u8>) {
    let row_len = image.width() as usize * CHANNELS;
    let width = columns.taps.len();
    let mut narrow = vec![0; width * CHANNELS * image.height() as usize];
    for (row, out) in image.as_raw().chunks_exact(row_len).zip(narrow.chunks_exact_mut(width * CHANNELS)) {
        for (tap, pixel) in columns.taps.iter().zip(out.chunks_exact_mut(CHANNELS)) {
            let weights = &columns.weights[tap.weights.clone()];
            let pixels = row[tap.first * CHANNELS..].chunks_exact(CHANNELS);
            let mut sums = [HALF + 255 * tap.white; CHANNELS];
            for (weight, pixel) in weights.iter().zip(pixels) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += weight * i32::from(*value);
                }
            }
            pixel.copy_from_slice(&sums.map(clip));
        }
    }
    let white = |tap: &Tap| {
        let sum: i32 = columns.weights[tap.weights.clone()].iter().sum();
        [clip(HALF + 255 * (sum + tap.white)); CHANNELS]
    };
    (narrow, columns.taps.iter().flat_map(white).collect())
}

/// The second pass: the columns of the narrowed rows, and of the white rows around them, to the new height.
fn resize_columns(narrow: &[u8], white_row: &[u8], rows: &Weights) -> Vec<u8> {
    let row_len = white_row.len();
    let mut pixels = vec![0; row_len * rows.taps.len()];
    let mut sums = vec![0_i32; row_len];
    for (tap, out) in rows.taps.iter().zip(pixels.chunks_exact_mut(row_len)) {
        for (sum, white) in sums.iter_mut().zip(white_row) {
            *sum = HALF + tap.white * i32::from(*white);
        }
        let sources = narrow[tap.first * row_len..].chunks_exact(row_len);
        for (weight, row) in rows.weights[tap.weights.clone()].iter().zip(sources) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += weight * i32::from(*value);
            }
        }
        for (out, sum) in out.iter_mut().zip(&sums) {
            *out = clip(*sum);
        }
    }
    pixels
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    #[test]
    fn the_same_size_is_the_same_picture() {
        let image = RgbImage::from_fn(5, 3, |x, y| Rgb([x as u8 * 50, y as u8 * 80, 7]));
        assert_eq!(resize_bicubic(&image, 5, 3), image);
    }

    #[test]
    fn flat_stays_flat() {
        for value in [0, 1, 127, 254, 255] {
            let image = RgbImage::from_pixel(17, 5, Rgb([value; 3]));
            assert!(resize_bicubic(&image, 6, 11).as_raw().iter().all(|v| *v == value));
        }
    }
}
