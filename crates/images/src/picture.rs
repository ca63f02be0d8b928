//! A decoded picture.

use image::{ImageBuffer, Pixel, RgbImage, RgbaImage, imageops, metadata::Orientation};

/// A decoded picture: 8 bits a channel, sRGB as stored, the first row at the top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Picture {
    /// Without transparency.
    Rgb(RgbImage),
    /// With transparency; the colours are not multiplied by it.
    Rgba(RgbaImage),
}

impl Picture {
    /// Width in pixels.
    pub fn width(&self) -> u32 {
        self.size().0
    }

    /// Height in pixels.
    pub fn height(&self) -> u32 {
        self.size().1
    }

    /// Width and height in pixels.
    pub fn size(&self) -> (u32, u32) {
        match self {
            Self::Rgb(image) => image.dimensions(),
            Self::Rgba(image) => image.dimensions(),
        }
    }

    /// The picture without transparency: laid over white where it had some.
    pub fn into_rgb(self) -> RgbImage {
        match self {
            Self::Rgb(image) => image,
            Self::Rgba(image) => crate::flatten(&image),
        }
    }

    /// The picture as a camera meant it to be seen.
    pub(crate) fn oriented(self, orientation: Orientation) -> Self {
        // In terms of `transposed`: whether the columns, and whether the rows, are read from the end.
        let flips = match orientation {
            Orientation::Rotate90FlipH => (false, false),
            Orientation::Rotate90 => (false, true),
            Orientation::Rotate270 => (true, false),
            Orientation::Rotate270FlipH => (true, true),
            in_place => return self.flipped(in_place),
        };
        let (width, height) = self.size();
        match self {
            Self::Rgb(image) => {
                let turned = transposed::<3>(image.as_raw(), (width as usize, height as usize), flips);
                Self::Rgb(RgbImage::from_raw(height, width, turned).expect("as many pixels"))
            }
            Self::Rgba(image) => {
                let turned = transposed::<4>(image.as_raw(), (width as usize, height as usize), flips);
                Self::Rgba(RgbaImage::from_raw(height, width, turned).expect("as many pixels"))
            }
        }
    }

    fn flipped(mut self, orientation: Orientation) -> Self {
        let flip_rows = matches!(orientation, Orientation::FlipVertical | Orientation::Rotate180);
        let flip_columns = matches!(orientation, Orientation::FlipHorizontal | Orientation::Rotate180);
        match &mut self {
            Self::Rgb(image) => flip(image, flip_columns, flip_rows),
            Self::Rgba(image) => flip(image, flip_columns, flip_rows),
        }
        self
    }
}

fn flip<P: Pixel>(image: &mut ImageBuffer<P, Vec<P::Subpixel>>, columns: bool, rows: bool) {
    if columns {
        imageops::flip_horizontal_in_place(image);
    }
    if rows {
        imageops::flip_vertical_in_place(image);
    }
}

/// Rows become columns. In squares, for else each pixel of a large picture would be far from the one before.
fn transposed<const CHANNELS: usize>(
    pixels: &[u8],
    (width, height): (usize, usize),
    (flip_columns, flip_rows): (bool, bool),
) -> Vec<u8> {
    const SQUARE: usize = 32;
    let (pixels, _) = pixels.as_chunks::<CHANNELS>();
    let mut out = vec![[0; CHANNELS]; width * height];
    for top in (0..width).step_by(SQUARE) {
        for left in (0..height).step_by(SQUARE) {
            let lines = left..height.min(left + SQUARE);
            for y in top..width.min(top + SQUARE) {
                let column = if flip_columns { width - 1 - y } else { y };
                let out = &mut out[y * height..][lines.clone()];
                for (x, out) in lines.clone().zip(out) {
                    let row = if flip_rows { height - 1 - x } else { x };
                    *out = pixels[row * width + column];
                }
            }
        }
    }
    out.into_flattened()
}
