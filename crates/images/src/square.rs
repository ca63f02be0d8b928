//! The squares that networks look at.

use image::{Rgb, RgbImage, imageops};

use crate::{Decoded, Filter, Picture, canvas::Canvas, resize::resize_canvas, rows::Rows};

/// How a picture becomes a square.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fit {
    /// Padded to a square of its longer side, then resized. The free space is halved rounding down: of an odd number of
    /// free columns the right side gets one more.
    Pad,
    /// Resized so that its longer side is the square's, then padded in the middle, halves rounded down. The shorter
    /// side is rounded down, as Camie's own code does it, and at least 1.
    ResizeThenPad,
    /// As [`Fit::ResizeThenPad`], but the shorter side is rounded to the nearest, a half to the even number: imgutils'
    /// `pad_image_to_size`.
    ResizeThenPadNearest,
    /// As [`Fit::ResizeThenPad`], but the free space repeats the picture's edge: DeepDanbooru.
    ResizeThenPadEdge,
    /// Resized to a square, whatever its shape.
    Squash,
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
    /// The colour of the free space; [`Fit::ResizeThenPadEdge`] and [`Fit::Squash`] have none.
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
        self.make(picture, &self.canvas(picture.size()), picture.size())
    }

    /// The square of a picture that was perhaps decoded at a part of its size: what lies where is reckoned from the
    /// original's size, to parts of a pixel. Only [`Filter::Area`] keeps to the pixels there are.
    ///
    /// # Panics
    /// When the side is 0.
    pub fn of_decoded(&self, decoded: &Decoded) -> RgbImage {
        let size = (decoded.width, decoded.height);
        let canvas = if decoded.reduction == 1 || self.filter == Filter::Area {
            self.canvas(decoded.picture.size())
        } else {
            self.canvas(size).reduced(decoded.reduction, decoded.first_is_part)
        };
        self.make(&decoded.picture, &canvas, size)
    }

    /// What is resized of a picture of this size.
    fn canvas(&self, size: (u32, u32)) -> Canvas {
        match self.fit {
            Fit::Pad => Canvas::square(size, self.pad),
            _ => Canvas::tight(size),
        }
    }

    /// For a picture that had `size` when it was whole.
    fn make(&self, picture: &Picture, canvas: &Canvas, size: (u32, u32)) -> RgbImage {
        let side = self.side_px;
        let (width, height) = match self.fit {
            Fit::Pad | Fit::Squash => (side, side),
            Fit::ResizeThenPad => fitted(size, side),
            Fit::ResizeThenPadNearest => fitted_nearest(size, side),
            Fit::ResizeThenPadEdge => fitted_edge(size, side),
        };
        let mut rows = Rows::over(picture, self.under);
        let resized = resize_canvas(&mut rows, canvas, width, height, self.filter);
        if (width, height) == (side, side) {
            return resized;
        }
        let (left, top) = ((side - width) / 2, (side - height) / 2);
        if self.fit == Fit::ResizeThenPadEdge {
            let [x_of, y_of] = [(left, width), (top, height)]
                .map(|(start, len)| move |at: u32| at.saturating_sub(start).min(len - 1));
            return RgbImage::from_fn(side, side, |x, y| *resized.get_pixel(x_of(x), y_of(y)));
        }
        let mut square = RgbImage::from_pixel(side, side, self.pad);
        imageops::replace(&mut square, &resized, i64::from(left), i64::from(top));
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

/// The same in the steps of imgutils.
fn fitted_nearest((width, height): (u32, u32), side: u32) -> (u32, u32) {
    let scale = f64::from(side) / f64::from(width.max(height));
    let [width, height] =
        [width, height].map(|len| ((f64::from(len) * scale).round_ties_even() as u32).clamp(1, side));
    (width, height)
}

/// The same in the steps of DeepDanbooru's users.
fn fitted_edge((width, height): (u32, u32), side: u32) -> (u32, u32) {
    let longer = f64::from(width.max(height));
    let [width, height] =
        [width, height].map(|len| ((f64::from(side) * f64::from(len) / longer) as u32).clamp(1, side));
    (width, height)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_camie_s() {
        assert_eq!(fitted((640, 480), 512), (512, 384));
        assert_eq!(fitted((480, 641), 512), (383, 512));
        assert_eq!(fitted((7, 7), 512), (512, 512));
        assert_eq!(fitted((3000, 1), 512), (512, 1));
    }

    #[test]
    fn sizes_are_rounded_as_their_authors_do() {
        assert_eq!((fitted_nearest((50, 66), 80), fitted_edge((50, 66), 80)), ((61, 80), (60, 80)));
        assert_eq!((fitted_nearest((32, 5), 80), fitted_nearest((32, 3), 80)), ((80, 12), (80, 8)));
        assert_eq!((fitted_nearest((1, 4000), 80), fitted_edge((4000, 1), 80)), ((1, 80), (80, 1)));
    }

    #[test]
    fn the_odd_column_goes_to_the_right() {
        let picture = Picture::Rgb(RgbImage::new(1, 4));
        let square = Square {
            side_px: 4,
            fit: Fit::Pad,
            filter: Filter::Bicubic,
            pad: Rgb([255; 3]),
            under: Rgb([255; 3]),
        };
        let row: Vec<_> = (0..4).map(|x| square.of(&picture).get_pixel(x, 2).0[0]).collect();
        assert_eq!(row, [255, 0, 255, 255]);
    }
}
