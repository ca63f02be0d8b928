//! The rows of a picture, without transparency.

use image::{Rgb, RgbImage};

use crate::{
    Picture,
    flatten::{WHITE, flatten_row},
    simd,
};

/// Bytes that can be read after the last row asked for; what they hold is nobody's business.
pub(crate) const SLACK: usize = 16;

/// A picture as rows of RGB, or of grey, for reading several at a time.
pub(crate) struct Rows<'a> {
    pixels: Pixels<'a>,
    size: (u32, u32),
    grey: bool,
    flat: Vec<u8>,
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
        Self { pixels, size: image.dimensions(), grey: false, flat: Vec::new(), scratch: Vec::new() }
    }

    /// The picture over `under`.
    pub fn over(picture: &'a Picture, under: Rgb<u8>) -> Self {
        let pixels = match picture {
            Picture::Rgb(image) => return Self::of(image),
            Picture::Rgba(image) => Pixels::Over(image.as_raw(), under),
        };
        Self { pixels, size: picture.size(), grey: false, flat: Vec::new(), scratch: Vec::new() }
    }

    /// The light of the picture over white: one channel.
    pub fn grey(picture: &'a Picture) -> Self {
        Self { grey: true, ..Self::over(picture, WHITE) }
    }

    /// Width and height in pixels.
    pub fn size(&self) -> (u32, u32) {
        self.size
    }

    pub fn height(&self) -> usize {
        self.size.1 as usize
    }

    /// Bytes in a row.
    pub fn row_len(&self) -> usize {
        self.size.0 as usize * if self.grey { 1 } else { 3 }
    }

    /// Rows `start` to `start + count`, and [`SLACK`] bytes more.
    pub fn get(&mut self, start: usize, count: usize) -> &[u8] {
        let width = self.size.0 as usize;
        let pixels = start * width..(start + count) * width;
        let len = self.row_len() * count;
        self.scratch.resize(len + SLACK, 0);
        match self.pixels {
            Pixels::Opaque(rgb) if self.grey => {
                grey_pixels(&rgb[pixels.start * 3..pixels.end * 3], &mut self.scratch[..len]);
            }
            Pixels::Opaque(rgb) => match rgb.get(pixels.start * 3..pixels.end * 3 + SLACK) {
                Some(rows) => return rows,
                None => self.scratch[..len].copy_from_slice(&rgb[pixels.start * 3..pixels.end * 3]),
            },
            Pixels::Over(rgba, under) => {
                let rgba = &rgba[pixels.start * 4..pixels.end * 4];
                if self.grey {
                    self.flat.resize(pixels.len() * 3, 0);
                    flatten_row(rgba, under.0, &mut self.flat);
                    grey_pixels(&self.flat, &mut self.scratch[..len]);
                } else {
                    flatten_row(rgba, under.0, &mut self.scratch[..len]);
                }
            }
        }
        &self.scratch
    }
}

/// Pillow's `convert("L")`.
fn grey_pixels(rgb: &[u8], out: &mut [u8]) {
    let done = simd::grey_pixels(rgb, out);
    for (pixel, out) in rgb[done * 3..].chunks_exact(3).zip(&mut out[done..]) {
        let [r, g, b] = [pixel[0], pixel[1], pixel[2]].map(u32::from);
        *out = ((r * 19_595 + g * 38_470 + b * 7_471 + 0x8000) >> 16) as u8;
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
            let mut grey = vec![0; width];
            grey_pixels(&rgb, &mut grey);
            for (pixel, grey) in rgb.chunks_exact(3).zip(grey) {
                let [r, g, b] = [pixel[0], pixel[1], pixel[2]].map(f64::from);
                let exact = (19_595.0 * r + 38_470.0 * g + 7_471.0 * b) / 65_536.0;
                assert_eq!(grey, (exact + 0.5).floor() as u8);
            }
        }
    }
}
