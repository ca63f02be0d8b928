//! Resizing with Pillow's arithmetic.
//!
//! Pillow (`ImagingResample`, src/libImaging/Resample.c) resizes in two passes, rows first, each with fixed-point
//! weights of 22 bits and each rounded and clipped to 8 bits. A kernel is stretched by the scale when shrinking, and so
//! averages all pixels that fall together.

use std::{f64::consts::PI, ops::Range};

use vodka_stage::for_avx2;

use crate::{
    canvas::{Axis, Canvas},
    rows::Rows,
    simd::SplitTaps,
};

pub(crate) const WEIGHT_BITS: u32 = 22;
pub(crate) const HALF: i32 = 1 << (WEIGHT_BITS - 1);
const CHANNELS: usize = 3;

/// Rows that go through the first pass together.
const BLOCK: usize = 16;

/// A kernel, and how far it reaches to each side.
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    support: f64,
    at: fn(f64) -> f64,
}

/// The triangle.
pub(crate) const BILINEAR: Kernel = Kernel { support: 1.0, at: |x| (1.0 - x.abs()).max(0.0) };

/// The cubic convolution kernel with a = -0.5 (Keys 1981).
pub(crate) const BICUBIC: Kernel = Kernel {
    support: 2.0,
    at: |x| {
        const A: f64 = -0.5;
        let x = x.abs();
        if x < 1.0 {
            ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
        } else if x < 2.0 {
            (((x - 5.0) * x + 8.0) * x - 4.0) * A
        } else {
            0.0
        }
    },
};

/// The sinc function, cut to three lobes by a wider one.
pub(crate) const LANCZOS: Kernel = Kernel {
    support: 3.0,
    at: |x| {
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
        if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
    },
};

/// Resizes the whole canvas. What lies around the picture costs next to nothing.
pub(crate) fn resize(rows: &mut Rows, canvas: &Canvas, width: u32, height: u32, kernel: Kernel) -> Vec<u8> {
    resize_part(rows, canvas, (width, height), [0..width, 0..height], kernel)
}

/// These columns and rows of it, at the cost of these alone.
pub(crate) fn resize_part(
    rows: &mut Rows,
    canvas: &Canvas,
    (width, height): (u32, u32),
    part: [Range<u32>; 2],
    kernel: Kernel,
) -> Vec<u8> {
    let [columns, lines] = part.map(|part| part.start as usize..part.end as usize);
    let across = Taps::of_part(canvas.columns, width as usize, columns, kernel);
    let down = Taps::of_part(canvas.rows, height as usize, lines, kernel);
    let ground = canvas.ground.map(i32::from);
    let ground_row: Vec<u8> = across.iter().flat_map(|tap| tap.of_ground(ground)).collect();
    let touched = across.touched.start * CHANNELS..across.touched.end * CHANNELS;
    let mut narrow = FirstPass::new(across.of_picture(), ground);
    let mut out = vec![0; ground_row.len() * down.len()];
    for (tap, out) in down.iter().zip(out.chunks_exact_mut(ground_row.len())) {
        let rows = narrow.rows(rows, tap.first..tap.first + tap.weights.len());
        add_rows(rows, tap.weights, &ground_row[touched.clone()], tap.outside, &mut out[touched.clone()]);
        let weight = tap.weights.iter().sum::<i32>() + tap.outside;
        for beside in [0..touched.start, touched.end..ground_row.len()] {
            for (out, level) in out[beside.clone()].iter_mut().zip(&ground_row[beside]) {
                *out = clip(HALF + i32::from(*level) * weight);
            }
        }
    }
    out
}

/// Resizes a picture of one channel to a square.
pub(crate) fn resize_grey(
    levels: &[u8],
    (width, height): (usize, usize),
    side: usize,
    kernel: Kernel,
) -> Vec<u8> {
    let across = Taps::new(Axis::tight(width as u32), side, kernel);
    let down = Taps::new(Axis::tight(height as u32), side, kernel);
    let mut narrow = Vec::with_capacity(side * height);
    for row in levels.chunks_exact(width) {
        narrow.extend(across.iter().map(|tap| {
            let mut sum = HALF;
            add_products(&row[tap.first..], tap.weights, &mut sum);
            clip(sum)
        }));
    }
    let no_ground = vec![0; side];
    let mut out = vec![0; side * side];
    for (tap, out) in down.iter().zip(out.chunks_exact_mut(side)) {
        add_rows(&narrow[tap.first * side..], tap.weights, &no_ground, 0, out);
    }
    out
}

for_avx2! {
    fn add_products(levels: &[u8], weights: &[i32], sum: &mut i32) {
        *sum += levels.iter().zip(weights).map(|(level, weight)| i32::from(*level) * weight).sum::<i32>();
    }
}

/// What the output pixels along one axis are made of.
#[derive(Debug)]
pub(crate) struct Taps {
    taps: Vec<(usize, Range<usize>, i32)>,
    weights: Vec<i32>,
    /// The output pixels that are not ground alone.
    touched: Range<usize>,
}

/// What one output pixel is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tap<'a> {
    /// The first picture pixel it reads.
    pub first: usize,
    /// The weights of that and the following picture pixels, in units of 2^-22.
    pub weights: &'a [i32],
    /// The sum of the weights that fall on the ground.
    pub outside: i32,
}

impl Tap<'_> {
    /// The output pixel where all is ground.
    fn of_ground(self, ground: [i32; 3]) -> [u8; 3] {
        let weight = self.weights.iter().sum::<i32>() + self.outside;
        ground.map(|level| clip(HALF + level * weight))
    }
}

impl Taps {
    /// From the canvas pixels of `axis` to `to` pixels.
    fn new(axis: Axis, to: usize, kernel: Kernel) -> Self {
        Self::of_part(axis, to, 0..to, kernel)
    }

    /// The same for a part of those `to` pixels.
    fn of_part(axis: Axis, to: usize, part: Range<usize>, kernel: Kernel) -> Self {
        let len = part.len();
        let mut all = Self { taps: Vec::with_capacity(len), weights: Vec::new(), touched: len..0 };
        for (place, i) in part.enumerate() {
            let (window, weights) = kernel_at(axis, to, i, kernel);
            let begin = all.weights.len();
            let end = window + weights.len();
            // The picture pixels in the window; at the edge at least the nearest.
            let (first, last) = (axis.nearest(window), axis.nearest(end - 1));
            all.weights.resize(begin + last - first + 1, 0);
            let mut outside = 0;
            for (position, weight) in (window..).zip(weights) {
                let of_picture = (f64::from(weight) * axis.part(position)).round() as i32;
                all.weights[begin + axis.nearest(position) - first] += of_picture;
                outside += weight - of_picture;
            }
            all.taps.push((first, begin..all.weights.len(), outside));
            if !axis.inside_of(window..end).is_empty() {
                all.touched = all.touched.start.min(place)..place + 1;
            }
        }
        all
    }

    /// Without the output pixels that are ground alone.
    fn of_picture(mut self) -> Self {
        self.taps = self.taps[self.touched.clone()].to_vec();
        self.touched = 0..self.taps.len();
        self
    }

    pub fn len(&self) -> usize {
        self.taps.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = Tap<'_>> {
        self.taps.iter().map(|(first, weights, outside)| Tap {
            first: *first,
            weights: &self.weights[weights.clone()],
            outside: *outside,
        })
    }
}

/// The first canvas pixel that output pixel `i` reads, and the weight of it and of those after it.
fn kernel_at(axis: Axis, to: usize, i: usize, kernel: Kernel) -> (usize, Vec<i32>) {
    if axis.true_len == to as f64 && axis.offset == 0.0 {
        // Pillow leaves out a pass that changes nothing.
        return (i, vec![1 << WEIGHT_BITS]);
    }
    let scale = axis.true_len / to as f64;
    let stretch = scale.max(1.0);
    let support = kernel.support * stretch;
    let center = (i as f64 + 0.5) * scale + axis.offset;
    // Pillow truncates toward zero; both ends are clipped to the canvas.
    let first = (center - support + 0.5).max(0.0) as usize;
    let end = ((center + support + 0.5) as usize).min(axis.len);
    let inverse = 1.0 / stretch;
    let weights: Vec<f64> = (first..end).map(|x| (kernel.at)((x as f64 - center + 0.5) * inverse)).collect();
    let sum: f64 = weights.iter().sum();
    let fixed = |weight: f64| {
        let weight = if sum == 0.0 { weight } else { weight / sum } * f64::from(1 << WEIGHT_BITS);
        (weight + if weight < 0.0 { -0.5 } else { 0.5 }) as i32
    };
    (first, weights.into_iter().map(fixed).collect())
}

fn clip(sum: i32) -> u8 {
    (sum >> WEIGHT_BITS).clamp(0, 255) as u8
}

/// The first pass: rows of the picture, one after the other, to the new width.
struct FirstPass {
    taps: Taps,
    split: Option<SplitTaps>,
    ground: [i32; 3],
    /// The rows that may still be asked for, and the number of those before them.
    kept: Vec<u8>,
    gone: usize,
}

impl FirstPass {
    fn new(taps: Taps, ground: [i32; 3]) -> Self {
        let split = SplitTaps::new(&taps);
        Self { taps, split, ground, kept: Vec::new(), gone: 0 }
    }

    /// The rows `wanted`, and perhaps some after them. No row before them will be asked for again.
    fn rows(&mut self, rows: &mut Rows, wanted: Range<usize>) -> &[u8] {
        let len = self.taps.len() * CHANNELS;
        let unwanted = wanted.start - self.gone;
        // Not each time, for what is kept is moved.
        if unwanted > wanted.len() {
            self.kept.drain(..(unwanted * len).min(self.kept.len()));
            self.gone += unwanted;
        }
        loop {
            let done = self.gone + self.kept.len() / len;
            if done >= wanted.end {
                return &self.kept[(wanted.start - self.gone) * len..];
            }
            let count = BLOCK.min(rows.height() - done);
            let row_len = rows.row_len();
            let start = self.kept.len();
            self.kept.resize(start + count * len, 0);
            self.resize(rows.get(done, count), row_len, start);
        }
    }

    /// Fills what is kept from `start` on.
    fn resize(&mut self, source: &[u8], row_len: usize, start: usize) {
        let out = &mut self.kept[start..];
        match &self.split {
            Some(split) => split.resize_rows(source, row_len, self.ground, out),
            None => resize_rows_plainly(source, row_len, &self.taps, self.ground, out),
        }
    }
}

fn resize_rows_plainly(rows: &[u8], row_len: usize, taps: &Taps, ground: [i32; 3], out: &mut [u8]) {
    for (row, out) in rows.chunks_exact(row_len).zip(out.chunks_exact_mut(taps.len() * CHANNELS)) {
        for (tap, out) in taps.iter().zip(out.chunks_exact_mut(CHANNELS)) {
            let mut sums = ground.map(|level| HALF + level * tap.outside);
            for (pixel, weight) in row[tap.first * CHANNELS..].chunks_exact(CHANNELS).zip(tap.weights) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += weight * i32::from(*value);
                }
            }
            out.copy_from_slice(&sums.map(clip));
        }
    }
}

for_avx2! {
    /// The second pass: one output row, of as many rows as there are weights and of the row that the ground became.
    fn add_rows(rows: &[u8], weights: &[i32], ground: &[u8], outside: i32, out: &mut [u8]) {
        const LANES: usize = 32;
        let row_len = ground.len();
        for start in (0..row_len).step_by(LANES) {
            let lanes = LANES.min(row_len - start);
            let mut sums = [HALF; LANES];
            for (sum, level) in sums.iter_mut().zip(&ground[start..start + lanes]) {
                *sum += outside * i32::from(*level);
            }
            for (row, weight) in rows.chunks_exact(row_len).zip(weights) {
                let row = &row[start..start + lanes];
                if let Ok(row) = <&[u8; LANES]>::try_from(row) {
                    for (sum, value) in sums.iter_mut().zip(row) {
                        *sum += weight * i32::from(*value);
                    }
                } else {
                    for (sum, value) in sums.iter_mut().zip(row) {
                        *sum += weight * i32::from(*value);
                    }
                }
            }
            for (out, sum) in out[start..start + lanes].iter_mut().zip(&sums) {
                *out = clip(*sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};

    use super::*;

    fn noise(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            let mix = (x * 7919 + y * 104_729 + 31).wrapping_mul(2_654_435_761);
            // Black and white where a kernel overshoots most.
            Rgb([mix >> 24, mix >> 16, if mix & 1 == 0 { 0 } else { 255 }].map(|value| value as u8))
        })
    }

    /// Where there is AVX2, both ways; elsewhere the plain way is the only one.
    #[test]
    fn vectors_change_nothing() {
        for (width, height) in
            [(1, 1), (1, 30), (2, 3), (3, 5), (5, 2), (64, 17), (131, 4), (700, 33), (2500, 1)]
        {
            let image = noise(width, height);
            let mut rows = Rows::of(&image);
            let size = (width, height);
            for canvas in [Canvas::tight(size), Canvas::square(size, Rgb([124, 0, 255]))] {
                for kernel in [BILINEAR, BICUBIC, LANCZOS] {
                    for to in [1, 2, 7, 64, 131, 448] {
                        let ground = canvas.ground.map(i32::from);
                        let mut pass = FirstPass::new(Taps::new(canvas.columns, to, kernel), ground);
                        let either = pass.rows(&mut rows, 0..height as usize).to_vec();
                        let mut plain = vec![0; either.len()];
                        let source = rows.get(0, height as usize);
                        let row_len = width as usize * CHANNELS;
                        resize_rows_plainly(source, row_len, &pass.taps, ground, &mut plain);
                        assert!(either == plain, "{width} x {height} to {to}, {canvas:?}");
                    }
                }
            }
        }
    }
}
