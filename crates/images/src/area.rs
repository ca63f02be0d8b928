//! Shrinking by area with OpenCV's arithmetic (`cv::resize` with `INTER_AREA`, modules/imgproc/src/resize.cpp).
//!
//! Where both sides shrink by whole numbers, OpenCV adds integers and rounds once. Elsewhere it adds in f32, along the
//! rows first, from left to right and from top to bottom; so does this, to the bit.

use std::ops::Range;

use crate::{
    canvas::Canvas,
    rows::Rows,
    simd::{self, for_avx2},
};

const CHANNELS: usize = 3;

/// Channels of a sum, so that a pixel is one load.
const LANES: usize = 4;

/// Shrinks the canvas to `width` x `height`, neither of which is more than it has.
pub(crate) fn shrink(rows: &mut Rows, canvas: &Canvas, width: u32, height: u32) -> Vec<u8> {
    let (width, height) = (width as usize, height as usize);
    let (columns, lines) = (canvas.columns.len, canvas.rows.len);
    if columns.is_multiple_of(width) && lines.is_multiple_of(height) {
        by_whole_numbers(rows, canvas, columns / width, lines / height)
    } else {
        by_parts(rows, canvas, width, height)
    }
}

/// What the output pixels along one axis are made of.
pub(crate) struct Taps {
    taps: Vec<(usize, Range<usize>)>,
    weights: Vec<f32>,
}

/// What one output pixel is made of.
pub(crate) struct Tap<'a> {
    /// The first canvas pixel it reads.
    pub first: usize,
    /// The weights of that and the following.
    pub weights: &'a [f32],
}

impl Taps {
    /// The part of each canvas pixel that an output pixel covers, over the length it covers. Rests below a thousandth
    /// are left out, as OpenCV leaves them out.
    fn new(from: usize, to: usize) -> Self {
        // OpenCV turns the ratio around twice.
        let scale = 1.0 / (to as f64 / from as f64);
        let mut all = Self { taps: Vec::with_capacity(to), weights: Vec::new() };
        for i in 0..to {
            let start = i as f64 * scale;
            let end = start + scale;
            let covered = scale.min(from as f64 - start);
            let last = (end.floor() as usize).min(from - 1);
            let whole = (start.ceil() as usize).min(last);
            let (before, after) = (whole as f64 - start, end - last as f64);
            let begin = all.weights.len();
            let starts_early = before > 1e-3;
            if starts_early {
                all.weights.push((before / covered) as f32);
            }
            all.weights.extend((whole..last).map(|_| (1.0 / covered) as f32));
            if after > 1e-3 {
                all.weights.push((after.min(1.0).min(covered) / covered) as f32);
            }
            all.taps.push((whole - usize::from(starts_early), begin..all.weights.len()));
        }
        all
    }

    pub fn iter(&self) -> impl Iterator<Item = Tap<'_>> {
        self.taps
            .iter()
            .map(|(first, weights)| Tap { first: *first, weights: &self.weights[weights.clone()] })
    }

    /// Without the taps outside `range`.
    fn cut(mut self, range: Range<usize>) -> Self {
        self.taps = self.taps[range].to_vec();
        self
    }
}

/// Whole pixels fall together: sums of integers, rounded once.
fn by_whole_numbers(rows: &mut Rows, canvas: &Canvas, columns: usize, lines: usize) -> Vec<u8> {
    let (width, height) = (canvas.columns.len / columns, canvas.rows.len / lines);
    let levels = canvas.ground.levels().map(u32::from);
    let mut sums = vec![0_u32; rows.row_len()];
    let mut laid = vec![0_u32; canvas.columns.len * CHANNELS];
    let mut out = vec![0; width * height * CHANNELS];
    for (block, out) in out.chunks_exact_mut(width * CHANNELS).enumerate() {
        let mut ground_lines = 0;
        sums.fill(0);
        for position in block * lines..(block + 1) * lines {
            match canvas.line(position) {
                Some(line) => add_line(rows.get(line, 1), &mut sums),
                None => ground_lines += 1,
            }
        }
        for sum in sums.chunks_exact_mut(CHANNELS) {
            for (sum, level) in sum.iter_mut().zip(levels) {
                *sum += level * ground_lines;
            }
        }
        canvas.lay(&sums, levels.map(|level| level * lines as u32), &mut laid);
        add_columns(&laid, columns, lines, out);
    }
    out
}

for_avx2! {
    fn add_line(line: &[u8], sums: &mut [u32]) {
        for (sum, value) in sums.iter_mut().zip(line) {
            *sum += u32::from(*value);
        }
    }
}

/// Sums of `lines` pixels to means of `columns` of them. For 2 x 2 OpenCV adds a half and shifts; else it goes through
/// f32 and rounds halves to even.
fn add_columns(sums: &[u32], columns: usize, lines: usize, out: &mut [u8]) {
    let share = 1.0 / (columns * lines) as f32;
    for (sums, out) in sums.chunks_exact(columns * CHANNELS).zip(out.chunks_exact_mut(CHANNELS)) {
        let mut total = [0_u64; CHANNELS];
        for sum in sums.chunks_exact(CHANNELS) {
            for (total, sum) in total.iter_mut().zip(sum) {
                *total += u64::from(*sum);
            }
        }
        out.copy_from_slice(&total.map(|total| match (columns, lines) {
            (2, 2) => ((total + 2) >> 2) as u8,
            _ => (total as f32 * share).round_ties_even() as u8,
        }));
    }
}

/// Parts of pixels fall together.
fn by_parts(rows: &mut Rows, canvas: &Canvas, width: usize, height: usize) -> Vec<u8> {
    let across = Taps::new(canvas.columns.len, width);
    let row_len = rows.row_len();
    // One byte more, for pixels are loaded with four.
    let mut laid = canvas.ground.levels().repeat(canvas.columns.len);
    laid.push(0);
    let mut ground_row = vec![[0.0; LANES]; width];
    narrow(&laid, &across, &mut ground_row);
    let touched = canvas.touched(across.taps.iter().map(|(first, weights)| *first..first + weights.len()));
    let across = across.cut(touched.clone());
    let mut row = ground_row.clone();
    let mut row_is_of = None;
    let mut sums = vec![[0.0; LANES]; width];
    let mut out = vec![0; width * height * CHANNELS];
    for (tap, out) in Taps::new(canvas.rows.len, height).iter().zip(out.chunks_exact_mut(width * CHANNELS)) {
        sums.fill([0.0; LANES]);
        for (position, weight) in (tap.first..).zip(tap.weights) {
            let Some(line) = canvas.line(position) else {
                add_weighted(&ground_row, *weight, &mut sums);
                continue;
            };
            // Two output rows may share a line.
            if row_is_of != Some(line) {
                canvas.lay(&rows.get(line, 1)[..row_len], canvas.ground.levels(), &mut laid);
                narrow(&laid, &across, &mut row[touched.clone()]);
                row_is_of = Some(line);
            }
            add_weighted(&row, *weight, &mut sums);
        }
        round(&sums, out);
    }
    out
}

/// A row to the new width. After its last pixel it has one byte more.
fn narrow(row: &[u8], taps: &Taps, out: &mut [[f32; LANES]]) {
    if !simd::narrow(row, taps, out) {
        narrow_plainly(row, taps, out);
    }
}

fn narrow_plainly(row: &[u8], taps: &Taps, out: &mut [[f32; LANES]]) {
    for (tap, out) in taps.iter().zip(out) {
        *out = [0.0; LANES];
        let pixels = &row[tap.first * CHANNELS..][..tap.weights.len() * CHANNELS + 1];
        for (pixel, weight) in pixels.windows(LANES).step_by(CHANNELS).zip(tap.weights) {
            for (sum, value) in out.iter_mut().zip(pixel) {
                *sum += f32::from(*value) * weight;
            }
        }
    }
}

for_avx2! {
    fn add_weighted(row: &[[f32; LANES]], weight: f32, sums: &mut [[f32; LANES]]) {
        for (sum, value) in sums.as_flattened_mut().iter_mut().zip(row.as_flattened()) {
            *sum += value * weight;
        }
    }
}

for_avx2! {
    fn round(sums: &[[f32; LANES]], out: &mut [u8]) {
        for (out, sum) in out.chunks_exact_mut(CHANNELS).zip(sums) {
            out.copy_from_slice(&[sum[0], sum[1], sum[2]].map(|level| level.round_ties_even() as u8));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where there is AVX2, both ways; elsewhere the plain way is the only one.
    #[test]
    fn vectors_change_nothing() {
        for (from, to) in [(1, 1), (2, 1), (7, 3), (449, 448), (1000, 448), (5000, 13)] {
            let row: Vec<u8> = (0..from * CHANNELS + 1).map(|i| (i * i * 7 + i * 31) as u8).collect();
            let taps = Taps::new(from, to);
            let (mut either, mut plain) = (vec![[0.0; LANES]; to], vec![[0.0; LANES]; to]);
            narrow(&row, &taps, &mut either);
            narrow_plainly(&row, &taps, &mut plain);
            assert!(either == plain, "{from} to {to}");
        }
    }
}
