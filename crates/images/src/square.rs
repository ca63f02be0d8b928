//! The squares that networks look at.

use image::{Rgb, RgbImage, imageops};

use crate::{Filter, Picture, flatten_over, resize};

/// How a picture becomes a square.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fit {
    /// Padded to a square of its longer side, then resized. The free space is halved rounding down: of an odd number of
    /// free columns the right side gets one more.
    Pad,
    /// Resized so that its longer side is the square's, then padded in the middle, halves rounded down. The shorter
    /// side is rounded down, as Camie's own code does it, and at least 1.
    ResizeThenPad,
    /// Resized to a square, whatever its shape.
    Squash,
    /// As [`Fit::ResizeThenPad`], but the free space repeats the picture's edge: DeepDanbooru.
    PadEdge,
}

/// A square to make of pictures.
///
/// ```
/// use vodka_images::{Filter, Fit, Picture, Rgb, RgbImage, Square};
/// // What the author's own demo makes for a WD tagger.
/// let white = Rgb([255; 3]);
/// let square = Square { side_px: 448, fit: Fit::Pad, filter: Filter::Bicubic, pad: white, under: white };
/// let picture = Picture::Rgb(RgbImage::new(640, 480));
/// assert_eq!(square.of(&picture).dimensions(), (448, 448));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Square {
    /// The side in pixels.
    pub side_px: u32,
    /// How the picture becomes a square.
    pub fit: Fit,
    /// How its pixels are put together.
    pub filter: Filter,
    /// The colour of the free space; [`Fit::PadEdge`] and [`Fit::Squash`] have none.
    pub pad: Rgb<u8>,
    /// What shows through transparency.
    pub under: Rgb<u8>,
}

impl Square {
    /// The square of a picture: `side_px` x `side_px`, RGB.
    ///
    /// # Panics
    /// When the side is 0.
    pub fn of(&self, picture: &Picture) -> RgbImage {
        let flat;
        let image = match picture {
            Picture::Rgb(image) => image,
            Picture::Rgba(image) => {
                flat = flatten_over(image, self.under);
                &flat
            }
        };
        let side = self.side_px;
        match self.fit {
            Fit::Squash => resize(image, side, side, self.filter),
            Fit::Pad => {
                let longer = image.width().max(image.height());
                resize(&self.padded(image, longer), side, side, self.filter)
            }
            Fit::ResizeThenPad | Fit::PadEdge => {
                let (width, height) = fitted(image.dimensions(), side);
                self.padded(&resize(image, width, height, self.filter), side)
            }
        }
    }

    fn padded(&self, image: &RgbImage, side: u32) -> RgbImage {
        let (left, top) = ((side - image.width()) / 2, (side - image.height()) / 2);
        if self.fit == Fit::PadEdge {
            let at = |x: u32, start, len| x.saturating_sub(start).min(len - 1);
            return RgbImage::from_fn(side, side, |x, y| {
                *image.get_pixel(at(x, left, image.width()), at(y, top, image.height()))
            });
        }
        let mut square = RgbImage::from_pixel(side, side, self.pad);
        imageops::replace(&mut square, image, i64::from(left), i64::from(top));
        square
    }
}

/// The size with the shape of `from` whose longer side is `side`, in the floating-point steps of Camie's code.
fn fitted((width, height): (u32, u32), side: u32) -> (u32, u32) {
    let ratio = f64::from(width) / f64::from(height);
    let side_px = f64::from(side);
    if ratio > 1.0 {
        (side, ((side_px / ratio) as u32).max(1))
    } else {
        (((side_px * ratio) as u32).max(1), side)
    }
}
