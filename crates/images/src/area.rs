//! Shrinking by area with OpenCV's arithmetic (`cv::resize` with `INTER_AREA`, modules/imgproc/src/resize.cpp).

use image::RgbImage;

const CHANNELS: usize = 3;

/// What one output pixel is made of, along one axis.
struct Tap {
    first: usize,
    weights: Vec<f32>,
}

/// From `from` pixels to `to`, which are not more: the part of each pixel that an output pixel covers, over the length
/// covered. Rests below a thousandth are left out, as OpenCV leaves them out.
fn taps(from: usize, to: usize) -> Vec<Tap> {
    // OpenCV turns the ratio around twice.
    let scale = 1.0 / (to as f64 / from as f64);
    let tap = |i: usize| {
        let (start, end) = (i as f64 * scale, i as f64 * scale + scale);
        let covered = scale.min(from as f64 - start);
        let last = (end.floor() as usize).min(from - 1);
        let first = (start.ceil() as usize).min(last);
        let mut weights = Vec::new();
        let mut begin = first;
        if first as f64 - start > 1e-3 {
            begin -= 1;
            weights.push(((first as f64 - start) / covered) as f32);
        }
        weights.extend((first..last).map(|_| (1.0 / covered) as f32));
        if end - last as f64 > 1e-3 {
            weights.push(((end - last as f64).min(1.0).min(covered) / covered) as f32);
        }
        Tap { first: begin, weights }
    };
    (0..to).map(tap).collect()
}

/// Shrinks to `width` x `height`, neither of which is more than the picture has.
pub(crate) fn shrink(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let columns = taps(image.width() as usize, width as usize);
    let rows = taps(image.height() as usize, height as usize);
    let row_len = image.width() as usize * CHANNELS;
    let mut out = Vec::new();
    for tap in &rows {
        let mut sums = vec![0_f32; width as usize * CHANNELS];
        for (row, beta) in image.as_raw()[tap.first * row_len..].chunks_exact(row_len).zip(&tap.weights) {
            for (sum, column) in sums.chunks_exact_mut(CHANNELS).zip(&columns) {
                let mut cell = [0_f32; CHANNELS];
                let pixels = row[column.first * CHANNELS..].chunks_exact(CHANNELS);
                for (pixel, alpha) in pixels.zip(&column.weights) {
                    for (cell, value) in cell.iter_mut().zip(pixel) {
                        *cell += f32::from(*value) * alpha;
                    }
                }
                for (sum, cell) in sum.iter_mut().zip(cell) {
                    *sum += cell * beta;
                }
            }
        }
        out.extend(sums.iter().map(|sum| sum.round_ties_even() as u8));
    }
    RgbImage::from_raw(width, height, out).expect("one value for each pixel and channel")
}
