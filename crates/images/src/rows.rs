//! The rows of a picture, without transparency.

use image::{Rgb, RgbImage};

use crate::{Picture, flatten::flatten_row, simd::grey_pixels};

/// Bytes that can be read after the last row asked for; what they hold is nobody's business.
pub(crate) const SLACK: usize = 16;

/// A picture as rows of RGB, for reading several at a time.
pub(crate) struct Rows<'a> {
    pixels: Pixels<'a>,
    size: (u32, u32),
    grey: bool,
    scratch: Vec<u8>,
}

enum Pixels<'a> {
    Opaque(&'a [u8]),
    /// With transparency, and what shows through it.
    Over(&'a [u8], Rgb<u8>),
}

impl<'a> Rows<'a> {
    pub fn of(image: &'a RgbImage) -> Self {
        let pixels = Pixels::Opaque(image.as_raw());
        Self { pixels, size: image.dimensions(), grey: false, scratch: Vec::new() }
    }

    /// The picture over `under`.
    pub fn over(picture: &'a Picture, under: Rgb<u8>) -> Self {
        let pixels = match picture {
            Picture::Rgb(image) => return Self::of(image),
            Picture::Rgba(image) => Pixels::Over(image.as_raw(), under),
        };
        Self { pixels, size: picture.size(), grey: false, scratch: Vec::new() }
    }

    /// The grey picture over white, its level in all three channels.
    pub fn grey(picture: &'a Picture) -> Self {
        Self { grey: true, ..Self::over(picture, Rgb([255; 3])) }
    }

    pub fn width(&self) -> usize {
        self.size.0 as usize
    }

    pub fn height(&self) -> usize {
        self.size.1 as usize
    }

    /// Bytes in a row.
    pub fn row_len(&self) -> usize {
        self.width() * 3
    }

    /// Rows `start` to `start + count`, and [`SLACK`] bytes more.
    pub fn get(&mut self, start: usize, count: usize) -> &[u8] {
        let (row_len, width) = (self.row_len(), self.width());
        let len = row_len * count;
        self.scratch.resize(len + SLACK, 0);
        match self.pixels {
            Pixels::Opaque(pixels) => {
                let rows = &pixels[start * row_len..];
                if self.grey {
                    grey_row(&rows[..len], &mut self.scratch[..len]);
                } else if rows.len() < len + SLACK {
                    self.scratch[..len].copy_from_slice(&rows[..len]);
                } else {
                    return &rows[..len + SLACK];
                }
            }
            Pixels::Over(pixels, under) => {
                let rows = &pixels[start * width * 4..][..count * width * 4];
                flatten_row(rows, under.0, &mut self.scratch[..len]);
                if self.grey {
                    let flat = self.scratch.clone();
                    grey_row(&flat[..len], &mut self.scratch[..len]);
                }
            }
        }
        &self.scratch
    }
}

/// Pillow's `convert("L")`, in all three channels.
fn grey_row(rgb: &[u8], out: &mut [u8]) {
    let done = grey_pixels(rgb, out);
    for (pixel, out) in rgb[done..].chunks_exact(3).zip(out[done..].chunks_exact_mut(3)) {
        let [r, g, b] = [pixel[0], pixel[1], pixel[2]].map(u32::from);
        out.fill(((r * 19_595 + g * 38_470 + b * 7_471 + 0x8000) >> 16) as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_light_of_every_colour() {
        // Each level of each channel with others, in rows of every length modulo eight.
        for width in 1..600 {
            let rgb: Vec<u8> = (0..width * 3).map(|i| (i * 37 + i / 3 * 11 + width) as u8).collect();
            let mut grey = vec![0; rgb.len()];
            grey_row(&rgb, &mut grey);
            for (pixel, grey) in rgb.chunks_exact(3).zip(grey.chunks_exact(3)) {
                let [r, g, b] = [pixel[0], pixel[1], pixel[2]].map(f64::from);
                let exact = (19_595.0 * r + 38_470.0 * g + 7_471.0 * b) / 65_536.0;
                assert_eq!(grey, [(exact + 0.5).floor() as u8; 3]);
            }
        }
    }
}
