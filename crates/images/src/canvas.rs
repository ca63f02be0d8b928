//! A picture and what lies around it.

use std::ops::Range;

use image::Rgb;

/// One axis of a canvas.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Axis {
    /// Canvas pixels.
    pub len: usize,
    /// Where the picture starts.
    pub start: usize,
    /// Picture pixels.
    pub inside: usize,
    /// How long the canvas really is: of a reduced picture its true length is no whole number of pixels.
    pub true_len: f64,
    /// Where the true canvas starts, from where the pixels start: 0 but for reduced pictures.
    pub offset: f64,
    /// How much of the first and of the last picture pixel is picture: of a reduced picture the rest may be ground.
    pub end_parts: (f64, f64),
}

impl Axis {
    /// The picture alone.
    pub fn tight(len: u32) -> Self {
        Self::centred(len, len)
    }

    fn centred(inside: u32, len: u32) -> Self {
        let start = ((len - inside) / 2) as usize;
        Self {
            len: len as usize,
            start,
            inside: inside as usize,
            true_len: f64::from(len),
            offset: 0.0,
            end_parts: (1.0, 1.0),
        }
    }

    /// The same for a picture of which each pixel stands for `by` pixels of the original. One end of it may stand for
    /// fewer: the last or, where the picture was turned, the first.
    fn reduced(self, by: u32, first_is_part: bool) -> Self {
        let by_usize = by as usize;
        let [start, inside] = [self.start, self.inside].map(|len| len.div_ceil(by_usize));
        let after = (self.len - self.start - self.inside).div_ceil(by_usize);
        let by = f64::from(by);
        let missing = inside as f64 - self.inside as f64 / by;
        let before = if first_is_part { missing } else { 0.0 };
        let end_parts = match first_is_part {
            // There is no ground that could be the rest.
            _ if self.inside == self.len => (1.0, 1.0),
            true => (1.0 - missing, 1.0),
            false => (1.0, 1.0 - missing),
        };
        let offset = start as f64 + before - self.start as f64 / by;
        Self { len: start + inside + after, start, inside, true_len: self.true_len / by, offset, end_parts }
    }

    /// The picture pixels among some canvas pixels.
    pub fn inside_of(self, positions: Range<usize>) -> Range<usize> {
        let [start, end] =
            [positions.start, positions.end].map(|at| at.saturating_sub(self.start).min(self.inside));
        start..end
    }

    /// How much of a canvas pixel is picture: 0 to 1.
    pub fn part(self, position: usize) -> f64 {
        if self.inside_of(position..position + 1).is_empty() {
            return 0.0;
        }
        let first = if position == self.start { self.end_parts.0 } else { 1.0 };
        let last = if position == self.start + self.inside - 1 { self.end_parts.1 } else { 1.0 };
        first * last
    }

    /// The picture pixel that is nearest to a place on the canvas.
    pub fn nearest(self, position: usize) -> usize {
        position.saturating_sub(self.start).min(self.inside - 1)
    }
}

/// An area with a picture somewhere on it, and one colour around that.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Canvas {
    pub columns: Axis,
    pub rows: Axis,
    pub ground: [u8; 3],
}

impl Canvas {
    /// The picture alone.
    pub fn tight((width, height): (u32, u32)) -> Self {
        Self { columns: Axis::tight(width), rows: Axis::tight(height), ground: [0; 3] }
    }

    /// The square around a picture. Of an odd number of free columns the right side gets one more.
    pub fn square((width, height): (u32, u32), ground: Rgb<u8>) -> Self {
        let side = width.max(height);
        Self { columns: Axis::centred(width, side), rows: Axis::centred(height, side), ground: ground.0 }
    }

    /// The same for a picture that was decoded at a part of its size, 1/`by`.
    /// Of each axis it may be the first pixel that stands for less than `by` pixels.
    pub fn reduced(self, by: u32, first_is_part: (bool, bool)) -> Self {
        let columns = self.columns.reduced(by, first_is_part.0);
        Self { columns, rows: self.rows.reduced(by, first_is_part.1), ..self }
    }
}
