//! A picture and what lies around it.

use std::ops::Range;

use image::Rgb;

/// What lies around a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ground {
    Colour(Rgb<u8>),
    /// The picture's edge, repeated.
    Edge,
}

impl Ground {
    /// Its colour; black for the edge, which asks for none.
    pub fn levels(self) -> [u8; 3] {
        match self {
            Self::Colour(colour) => colour.0,
            Self::Edge => [0; 3],
        }
    }
}

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
        let (before, end_parts) =
            if first_is_part { (missing, (1.0 - missing, 1.0)) } else { (0.0, (1.0, 1.0 - missing)) };
        let offset = start as f64 + before - self.start as f64 / by;
        Self { len: start + inside + after, start, inside, true_len: self.true_len / by, offset, end_parts }
    }

    pub fn contains(self, position: usize) -> bool {
        (self.start..self.start + self.inside).contains(&position)
    }

    /// How much of a canvas pixel is picture: 0 to 1.
    pub fn part(self, position: usize) -> f64 {
        if !self.contains(position) {
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

/// An area with a picture somewhere on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Canvas {
    pub columns: Axis,
    pub rows: Axis,
    pub ground: Ground,
}

impl Canvas {
    /// Of outputs that read these ranges of columns, those that are not ground alone.
    pub fn touched(&self, windows: impl ExactSizeIterator<Item = Range<usize>>) -> Range<usize> {
        let Axis { start, inside, .. } = self.columns;
        if self.ground == Ground::Edge {
            return 0..windows.len();
        }
        let mut touching =
            windows.enumerate().filter(|(_, window)| window.start < start + inside && start < window.end);
        let first = touching.next().map_or(0, |(i, _)| i);
        first..touching.last().map_or(first, |(i, _)| i) + 1
    }

    /// The picture row that lies at a place; `None` for the ground.
    pub fn line(&self, position: usize) -> Option<usize> {
        let there = self.ground == Ground::Edge || self.rows.contains(position);
        there.then(|| self.rows.nearest(position))
    }

    /// Lays a picture row, with the ground at its sides, over `out`, which may be longer than the canvas.
    pub fn lay<T: Copy>(&self, row: &[T], ground: [T; 3], out: &mut [T]) {
        let Axis { len, start, inside, .. } = self.columns;
        let (before, rest) = out.split_at_mut(start * 3);
        let (picture, after) = rest.split_at_mut(inside * 3);
        picture.copy_from_slice(row);
        let edge = |at: usize| {
            if self.ground == Ground::Edge { [row[at], row[at + 1], row[at + 2]] } else { ground }
        };
        for (free, colour) in
            [(before, edge(0)), (&mut after[..(len - start - inside) * 3], edge(row.len() - 3))]
        {
            free.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(&colour));
        }
    }

    /// The picture alone.
    pub fn tight((width, height): (u32, u32)) -> Self {
        Self {
            columns: Axis::centred(width, width),
            rows: Axis::centred(height, height),
            ground: Ground::Edge,
        }
    }

    /// The square around a picture. Of an odd number of free columns the right side gets one more.
    pub fn square((width, height): (u32, u32), ground: Ground) -> Self {
        let side = width.max(height);
        Self { columns: Axis::centred(width, side), rows: Axis::centred(height, side), ground }
    }

    /// The same for a picture that was decoded at a part of its size, 1/`by`.
    /// Of each axis it may be the first pixel that stands for less than `by` pixels.
    pub fn reduced(self, by: u32, first_is_part: (bool, bool)) -> Self {
        let columns = self.columns.reduced(by, first_is_part.0);
        Self { columns, rows: self.rows.reduced(by, first_is_part.1), ..self }
    }
}
