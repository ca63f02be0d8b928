//! The squares that networks look at.

use image::{Rgb, RgbImage, imageops};

use crate::{
    Decoded, Filter, Picture,
    canvas::{Canvas, Ground},
    flatten::WHITE,
    resize::resize_canvas,
    rows::Rows,
};

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
    /// As [`Fit::Pad`], but the free space repeats the picture's edge: DeepDanbooru.
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
        self.make(picture, picture.size(), |canvas| canvas)
    }

    /// The square of a picture that was perhaps decoded at a part of its size: what lies where is reckoned from the
    /// original's size, to parts of a pixel. Only [`Filter::Area`] keeps to the pixels there are.
    ///
    /// # Panics
    /// When the side is 0.
    pub fn of_decoded(&self, decoded: &Decoded) -> RgbImage {
        let picture = &decoded.picture;
        if decoded.reduction == 1 || self.filter == Filter::Area {
            return self.of(picture);
        }
        let reduced = |canvas: Canvas| canvas.reduced(decoded.reduction, decoded.first_is_part);
        self.make(picture, (decoded.width, decoded.height), reduced)
    }

    /// For a picture of `size`, on the canvas that is made of that for this size.
    fn make(&self, picture: &Picture, size: (u32, u32), canvas_of: impl Fn(Canvas) -> Canvas) -> RgbImage {
        let (mut rows, side) = (Rows::over(picture, self.under), self.side_px);
        let (canvas, (width, height)) = match self.fit {
            Fit::Pad => (Canvas::square(size, Ground::Colour(self.pad)), (side, side)),
            Fit::PadEdge => (Canvas::square(size, Ground::Edge), (side, side)),
            Fit::Squash => (Canvas::tight(size), (side, side)),
            Fit::ResizeThenPad => (Canvas::tight(size), fitted(size, side)),
        };
        let resized = resize_canvas(&mut rows, &canvas_of(canvas), width, height, self.filter);
        if (width, height) == (side, side) {
            return resized;
        }
        let mut square = RgbImage::from_pixel(side, side, self.pad);
        imageops::replace(
            &mut square,
            &resized,
            i64::from((side - width) / 2),
            i64::from((side - height) / 2),
        );
        square
    }
}

/// What the WD taggers' own demo makes of a picture: over white, on a white square, bicubic to `size` x `size`.
///
/// # Panics
/// When `size` is 0.
pub fn white_square(picture: &Picture, size: u32) -> RgbImage {
    let square = Square { side_px: size, fit: Fit::Pad, filter: Filter::Bicubic, pad: WHITE, under: WHITE };
    square.of(picture)
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
    fn the_odd_column_goes_to_the_right() {
        let picture = Picture::Rgb(RgbImage::new(1, 4));
        let row: Vec<_> = (0..4).map(|x| white_square(&picture, 4).get_pixel(x, 2).0[0]).collect();
        assert_eq!(row, [255, 0, 255, 255]);
    }
}
