//! Shrinking by area with OpenCV's arithmetic (`cv::resize` with `INTER_AREA`, modules/imgproc/src/resize.cpp).
//!
//! Where both sides shrink by whole numbers, OpenCV adds integers and rounds once. Elsewhere it adds in f32, along the
//! rows first, from left to right and from top to bottom; so does this, to the bit, but for ground that is far from the
//! picture ([`MARGIN`]).

use std::ops::Range;

use vodka_stage::for_avx2;

use crate::{
    canvas::{Axis, Canvas},
    rows::Rows,
    simd,
};

const CHANNELS: usize = 3;

/// Numbers that are added side by side: the channels of a pixel and one more, or a pixel of each of four grey rows.
pub(crate) const LANES: usize = 4;

/// How many pixels of ground at each side of the picture count one by one. Those further away count with the last of
/// them, so that a strip costs no more than its pixels; where 16 pixels or more become one, that may round otherwise.
const MARGIN: usize = 16;

/// Shrinks the canvas to `width` x `height`, neither of which is more than it has.
pub(crate) fn shrink(rows: &mut Rows, canvas: &Canvas, width: u32, height: u32) -> Vec<u8> {
    let (width, height) = (width as usize, height as usize);
    match whole_numbers(canvas, width, height) {
        Some(by) => by_whole_numbers(rows, canvas, canvas.ground, by),
        None => by_parts(rows, canvas, width, height),
    }
}

/// Shrinks rows of one channel to `width` x `height`, neither of which is more than there is.
pub(crate) fn shrink_grey(rows: &mut Rows, width: u32, height: u32) -> Vec<u8> {
    let canvas = Canvas::tight(rows.size());
    let (width, height) = (width as usize, height as usize);
    match whole_numbers(&canvas, width, height) {
        Some(by) => by_whole_numbers(rows, &canvas, [0], by),
        None => grey_by_parts(rows, &canvas, width, height),
    }
}

/// How many columns and lines become one, where that is the same everywhere.
fn whole_numbers(canvas: &Canvas, width: usize, height: usize) -> Option<(usize, usize)> {
    let (columns, lines) = (canvas.columns.len, canvas.rows.len);
    let are_whole = columns.is_multiple_of(width) && lines.is_multiple_of(height);
    are_whole.then_some((columns / width, lines / height))
}

/// What the output pixels along one axis are made of, but for those that are ground alone.
pub(crate) struct Taps {
    /// The output pixels that are not.
    touched: Range<usize>,
    /// The canvas pixels that those read: the picture, with up to [`MARGIN`] pixels of ground at its sides.
    near: Range<usize>,
    taps: Vec<(usize, Range<usize>)>,
    weights: Vec<f32>,
}

/// What one output pixel is made of.
pub(crate) struct Tap<'a> {
    /// The first pixel it reads, counted from the first near the picture.
    pub first: usize,
    /// The weights of that and the following.
    pub weights: &'a [f32],
}

impl Taps {
    /// The part of each canvas pixel that an output pixel covers, over the length it covers. Rests below a thousandth
    /// are left out, as OpenCV leaves them out.
    fn new(axis: Axis, to: usize) -> Self {
        let from = axis.len;
        let near = axis.start.saturating_sub(MARGIN)..(axis.start + axis.inside + MARGIN).min(from);
        let nearest = |position: usize| position.clamp(near.start, near.end - 1) - near.start;
        let (mut touched, mut taps, mut weights) = (0..0, Vec::new(), Vec::new());
        // OpenCV turns the ratio around twice.
        let scale = 1.0 / (to as f64 / from as f64);
        for i in 0..to {
            let start = i as f64 * scale;
            let end = start + scale;
            let covered = scale.min(from as f64 - start);
            let last = (end.floor() as usize).min(from - 1);
            let whole = (start.ceil() as usize).min(last);
            let (before, after) = (whole as f64 - start, end - last as f64);
            let window = whole - usize::from(before > 1e-3)..last + usize::from(after > 1e-3);
            if axis.inside_of(window.clone()).is_empty() {
                continue;
            }
            let (first, begin) = (nearest(window.start), weights.len());
            weights.resize(begin + nearest(window.end - 1) - first + 1, 0.0);
            for position in window {
                let part = match position {
                    _ if position < whole => before,
                    _ if position < last => 1.0,
                    _ => after.min(1.0).min(covered),
                };
                weights[begin + nearest(position) - first] += (part / covered) as f32;
            }
            touched = if taps.is_empty() { i..i + 1 } else { touched.start..i + 1 };
            taps.push((first, begin..weights.len()));
        }
        Self { touched, near, taps, weights }
    }

    pub fn iter(&self) -> impl Iterator<Item = Tap<'_>> {
        self.taps
            .iter()
            .map(|(first, weights)| Tap { first: *first, weights: &self.weights[weights.clone()] })
    }
}

/// Whole pixels of `C` channels fall together: sums of integers, rounded once.
fn by_whole_numbers<const C: usize>(
    rows: &mut Rows,
    canvas: &Canvas,
    ground: [u8; C],
    (columns, lines): (usize, usize),
) -> Vec<u8> {
    let width = canvas.columns.len / columns;
    let mut out = ground.repeat(width * (canvas.rows.len / lines));
    let mut sums = vec![0_u32; canvas.columns.inside * C];
    let touched = |axis: Axis, by| axis.start / by..(axis.start + axis.inside).div_ceil(by);
    for y in touched(canvas.rows, lines) {
        let picture_lines = canvas.rows.inside_of(y * lines..(y + 1) * lines);
        sums.fill(0);
        for line in picture_lines.clone() {
            add_line(rows.get(line, 1), &mut sums);
        }
        for x in touched(canvas.columns, columns) {
            let inside = canvas.columns.inside_of(x * columns..(x + 1) * columns);
            let outside = (columns * lines - inside.len() * picture_lines.len()) as u64;
            let mut total = ground.map(|level| u64::from(level) * outside);
            for sum in sums[inside.start * C..inside.end * C].chunks_exact(C) {
                for (total, sum) in total.iter_mut().zip(sum) {
                    *total += u64::from(*sum);
                }
            }
            let mean = total.map(|total| mean(total, columns, lines));
            out[(y * width + x) * C..][..C].copy_from_slice(&mean);
        }
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

/// For 2 x 2 OpenCV adds a half and shifts; else it goes through f32 and rounds halves to even.
fn mean(total: u64, columns: usize, lines: usize) -> u8 {
    match (columns, lines) {
        (2, 2) => ((total + 2) >> 2) as u8,
        _ => (total as f32 * (1.0 / (columns * lines) as f32)).round_ties_even() as u8,
    }
}

/// Parts of pixels fall together.
fn by_parts(rows: &mut Rows, canvas: &Canvas, width: usize, height: usize) -> Vec<u8> {
    let (across, down) = (Taps::new(canvas.columns, width), Taps::new(canvas.rows, height));
    let row_len = rows.row_len();
    // One byte more, for pixels are loaded with four.
    let mut laid = canvas.ground.repeat(across.near.len());
    laid.push(0);
    let picture_at = (canvas.columns.start - across.near.start) * CHANNELS;
    let mut ground_row = vec![[0.0; LANES]; across.touched.len()];
    narrow::<CHANNELS>(&laid, &across, &mut ground_row);
    let (mut row, mut row_is_of) = (ground_row.clone(), None);
    let mut sums = ground_row.clone();
    let mut levels = vec![[0; LANES]; sums.len()];
    let mut out = canvas.ground.repeat(width * height);
    let out_rows = out.chunks_exact_mut(width * CHANNELS).skip(down.touched.start);
    for (tap, out) in down.iter().zip(out_rows) {
        sums.fill([0.0; LANES]);
        for (position, weight) in (down.near.start + tap.first..).zip(tap.weights) {
            let Some(line) = canvas.rows.inside_of(position..position + 1).next() else {
                add_weighted(ground_row.as_flattened(), *weight, sums.as_flattened_mut());
                continue;
            };
            // Two output rows may share a line.
            if row_is_of != Some(line) {
                laid[picture_at..picture_at + row_len].copy_from_slice(&rows.get(line, 1)[..row_len]);
                narrow::<CHANNELS>(&laid, &across, &mut row);
                row_is_of = Some(line);
            }
            add_weighted(row.as_flattened(), *weight, sums.as_flattened_mut());
        }
        round(sums.as_flattened(), levels.as_flattened_mut());
        let out = out[across.touched.start * CHANNELS..].chunks_exact_mut(CHANNELS);
        out.zip(&levels).for_each(|(out, levels)| out.copy_from_slice(&levels[..CHANNELS]));
    }
    out
}

/// The same for one channel, four rows at a time. It has no ground.
fn grey_by_parts(rows: &mut Rows, canvas: &Canvas, width: usize, height: usize) -> Vec<u8> {
    let (across, down) = (Taps::new(canvas.columns, width), Taps::new(canvas.rows, height));
    let (columns, lines) = (canvas.columns.len, canvas.rows.len);
    let mut woven = vec![[0; LANES]; columns];
    let mut narrowed = vec![[0.0; LANES]; width];
    let (mut four, mut four_are_of) = (vec![0.0; width * LANES], None);
    let mut sums = vec![0.0; width];
    let mut out = vec![0; width * height];
    for (tap, out) in down.iter().zip(out.chunks_exact_mut(width)) {
        sums.fill(0.0);
        for (line, weight) in (tap.first..).zip(tap.weights) {
            let block = line / LANES;
            if four_are_of != Some(block) {
                let first = block * LANES;
                weave(rows.get(first, LANES.min(lines - first)), &mut woven);
                narrow::<LANES>(woven.as_flattened(), &across, &mut narrowed);
                unweave(&narrowed, &mut four);
                four_are_of = Some(block);
            }
            add_weighted(&four[line % LANES * width..][..width], *weight, &mut sums);
        }
        round(&sums, out);
    }
    out
}

for_avx2! {
    /// Up to four rows to one of four lanes; what the lanes without a row hold is nobody's business.
    fn weave(rows: &[u8], woven: &mut [[u8; LANES]]) {
        let len = woven.len();
        let row = |i: usize| rows.get(i * len..(i + 1) * len).unwrap_or(&rows[..len]);
        let [a, b, c, d] = [row(0), row(1), row(2), row(3)];
        for (i, out) in woven.iter_mut().enumerate() {
            *out = [a[i], b[i], c[i], d[i]];
        }
    }
}

for_avx2! {
    fn unweave(woven: &[[f32; LANES]], rows: &mut [f32]) {
        for (lane, row) in rows.chunks_exact_mut(woven.len()).enumerate() {
            for (out, values) in row.iter_mut().zip(woven) {
                *out = values[lane];
            }
        }
    }
}

/// A row of pixels of `BYTES` bytes to the new width. After its last pixel it has what four bytes take more.
fn narrow<const BYTES: usize>(row: &[u8], taps: &Taps, out: &mut [[f32; LANES]]) {
    if !simd::narrow::<BYTES>(row, taps, out) {
        narrow_plainly::<BYTES>(row, taps, out);
    }
}

fn narrow_plainly<const BYTES: usize>(row: &[u8], taps: &Taps, out: &mut [[f32; LANES]]) {
    for (tap, out) in taps.iter().zip(out) {
        *out = [0.0; LANES];
        let pixels = &row[tap.first * BYTES..][..tap.weights.len() * BYTES + LANES - BYTES];
        for (pixel, weight) in pixels.windows(LANES).step_by(BYTES).zip(tap.weights) {
            for (sum, value) in out.iter_mut().zip(pixel) {
                *sum += f32::from(*value) * weight;
            }
        }
    }
}

for_avx2! {
    fn add_weighted(row: &[f32], weight: f32, sums: &mut [f32]) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += value * weight;
        }
    }
}

for_avx2! {
    fn round(sums: &[f32], out: &mut [u8]) {
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = sum.round_ties_even() as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where there is AVX2, both ways; elsewhere the plain way is the only one.
    #[test]
    fn vectors_change_nothing() {
        fn check<const BYTES: usize>(from: usize, to: usize) {
            let row: Vec<u8> =
                (0..from * BYTES + LANES - BYTES).map(|i| (i * i * 7 + i * 31) as u8).collect();
            let taps = Taps::new(Axis::tight(from as u32), to);
            let (mut either, mut plain) = (vec![[0.0; LANES]; to], vec![[0.0; LANES]; to]);
            narrow::<BYTES>(&row, &taps, &mut either);
            narrow_plainly::<BYTES>(&row, &taps, &mut plain);
            assert!(either == plain, "{from} to {to}, {BYTES} bytes");
        }
        for (from, to) in [(1, 1), (2, 1), (7, 3), (449, 448), (1000, 448), (5000, 13)] {
            check::<CHANNELS>(from, to);
            check::<LANES>(from, to);
        }
    }

    #[test]
    fn weights_add_up_to_one_near_the_picture() {
        let canvas = Canvas::square((3, 60_001), image::Rgb([255; 3]));
        let taps = Taps::new(canvas.columns, 448);
        assert!(taps.touched.len() <= 2 && taps.near.len() == 3 + 2 * MARGIN);
        for tap in taps.iter() {
            assert!(tap.first + tap.weights.len() <= taps.near.len());
            assert!((tap.weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
    }
}
