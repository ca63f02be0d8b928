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
}

impl Axis {
    fn centred(inside: u32, len: u32) -> Self {
        Self { len: len as usize, start: ((len - inside) / 2) as usize, inside: inside as usize }
    }

    pub fn contains(self, position: usize) -> bool {
        (self.start..self.start + self.inside).contains(&position)
    }

    /// The outputs, of those that read these ranges of canvas pixels, from the first that reads the picture to the last.
    pub fn touched(self, windows: impl Iterator<Item = Range<usize>>) -> Range<usize> {
        let picture = self.start..self.start + self.inside;
        let touching = windows
            .enumerate()
            .filter(|(_, window)| window.start < picture.end && picture.start < window.end)
            .map(|(i, _)| i);
        touching
            .fold(None, |range: Option<Range<usize>>, i| Some(range.map_or(i, |range| range.start)..i + 1))
            .unwrap_or(0..0)
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
    /// The picture row that lies at a place; `None` for the ground.
    pub fn line(&self, position: usize) -> Option<usize> {
        let there = self.ground == Ground::Edge || self.rows.contains(position);
        there.then(|| self.rows.nearest(position))
    }

    /// Lays a picture row, with the ground at its sides, over `out`, which may be longer than the canvas.
    pub fn lay<T: Copy>(&self, row: &[T], ground: [T; 3], out: &mut [T]) {
        let Axis { len, start, inside } = self.columns;
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
}
