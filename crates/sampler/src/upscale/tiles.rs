//! A picture in tiles that overlap, each of which is made larger by itself.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{Error, Result};

/// The smallest tile: below it there is more overlap than picture.
pub(crate) const TILE_MIN_PX: u32 = 64;
/// The largest tile.
pub(crate) const TILE_MAX_PX: u32 = 8192;

/// How pictures are cut before a network sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tiles {
    /// The side of a tile in pixels; 0 for the whole picture in one.
    pub tile_px: u32,
    /// How far neighbours overlap at least, in pixels.
    pub overlap_px: u32,
}

impl Default for Tiles {
    /// A1111's: 192 px that overlap by 8.
    fn default() -> Self {
        Self { tile_px: 192, overlap_px: 8 }
    }
}

/// A part of a side: where it begins, and how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    start: u32,
    len: u32,
}

impl Span {
    const fn end(self) -> u32 {
        self.start + self.len
    }
}

impl Tiles {
    /// # Errors
    /// Tiles smaller than 64 px or larger than 8192, and an overlap of more than half a tile.
    pub(crate) fn check(self) -> Result<()> {
        let Self { tile_px, overlap_px } = self;
        let is_one = tile_px == 0;
        if is_one || (TILE_MIN_PX..=TILE_MAX_PX).contains(&tile_px) && overlap_px <= tile_px / 2 {
            return Ok(());
        }
        Err(Error::Tiles { tile_px, overlap_px, min_px: TILE_MIN_PX, max_px: TILE_MAX_PX })
    }

    /// Equally long parts of a side, spread evenly over it.
    fn spans(self, side: u32) -> Vec<Span> {
        let Self { tile_px: tile, overlap_px: overlap } = self;
        if tile == 0 || side <= tile {
            return vec![Span { start: 0, len: side }];
        }
        let count = (side - overlap).div_ceil(tile - overlap);
        let start = |i: u32| (u64::from(i) * u64::from(side - tile) / u64::from(count - 1)) as u32;
        (0..count).map(|i| Span { start: start(i), len: tile }).collect()
    }

    /// How many tiles a picture has.
    pub(crate) fn count(self, width: u32, height: u32) -> usize {
        self.spans(width).len() * self.spans(height).len()
    }

    /// Makes `pixels (3, H, W)` in fp32 larger: `make` is given each tile `(3, h, w)`, row by row, and makes one of it that is
    /// `scale` times as wide and as high; `None` ends it all. Where tiles overlap, one goes over into the next in a straight
    /// ramp. `on_rows` is given the rows of the result `(3, n, W scale)` from the top as soon as they are whole, so that no more
    /// than two rows of tiles are in memory.
    ///
    /// # Errors
    /// Those of `make`.
    pub(crate) fn enlarge(
        self,
        pixels: &Tensor,
        scale: u32,
        make: &mut dyn FnMut(&Tensor) -> Result<Option<Tensor>>,
        on_rows: &mut dyn FnMut(&Tensor),
    ) -> Result<Option<()>> {
        let (_, height, width) = pixels.size3().expect("pictures have three axes");
        let (rows, columns) = (self.spans(height as u32), self.spans(width as u32));
        // What the row of tiles at hand shares with the one before.
        let mut open: Option<Tensor> = None;
        for (i, row) in rows.iter().enumerate() {
            let band = pixels.narrow(1, row.start.into(), row.len.into());
            let mut strip: Option<Tensor> = None;
            for column in &columns {
                let Some(tile) = make(&band.narrow(2, column.start.into(), column.len.into()))? else {
                    return Ok(None);
                };
                strip = Some(match strip {
                    Some(strip) => joined(&strip, &tile, 2, i64::from(column.start * scale)),
                    None => tile,
                });
            }
            let strip = strip.expect("a picture has a column of tiles"); // (3, row.len scale, W scale)
            let strip = match open.take() {
                Some(open) => joined(&open, &strip, 1, 0),
                None => strip,
            };
            let next = rows.get(i + 1).map_or(row.end(), |next| next.start);
            let (whole, rest) = ((next - row.start) * scale, (row.end() - next) * scale);
            on_rows(&strip.narrow(1, 0, whole.into()));
            open = (rest > 0).then(|| strip.narrow(1, whole.into(), rest.into()).copy());
        }
        Ok(Some(()))
    }
}

/// Lays `after` over `before`, from `at` on along `axis`: where both are, one goes over into the other.
fn joined(before: &Tensor, after: &Tensor, axis: i64, at: i64) -> Tensor {
    let (size, added) = (before.size()[axis as usize], after.size()[axis as usize]);
    let shared = size - at;
    if shared == 0 {
        return Tensor::cat(&[before, after], axis);
    }
    let ramp = (Tensor::arange(shared, (Kind::Float, before.device())) + 0.5) / shared as f64;
    let ramp = if axis == 1 { ramp.view([1, -1, 1]) } else { ramp.view([1, 1, -1]) };
    let (old, new) = (before.narrow(axis, at, shared), after.narrow(axis, 0, shared));
    let both = &old + (new - &old) * ramp;
    let rest = after.narrow(axis, shared, added - shared);
    Tensor::cat(&[before.narrow(axis, 0, at), both, rest], axis)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn tiles_cover_a_side_and_overlap() {
        for (tile_px, overlap_px) in [(64, 0), (64, 8), (64, 32), (192, 8)] {
            let tiles = Tiles { tile_px, overlap_px };
            tiles.check().unwrap();
            for side in (1..700).step_by(7) {
                let spans = tiles.spans(side);
                assert_eq!((spans[0].start, spans[spans.len() - 1].end()), (0, side));
                assert!(spans.windows(2).all(|pair| pair[0].end() >= pair[1].start + overlap_px));
                assert!(spans.iter().all(|span| span.len == side.min(tile_px)));
                // One fewer would not do.
                let fewer = (spans.len() as u32 - 1) * (tile_px - overlap_px) + overlap_px;
                assert!(spans.len() == 1 || fewer < side, "{tiles:?} {side}");
            }
        }
        assert_eq!(Tiles { tile_px: 0, overlap_px: 8 }.count(5000, 3000), 1);
        assert_eq!(Tiles::default().count(512, 193), 6);
        for (tile_px, overlap_px) in [(63, 8), (9000, 8), (64, 33)] {
            let error = Tiles { tile_px, overlap_px }.check().unwrap_err().to_string();
            let start = format!("tiles of {tile_px} px that overlap by {overlap_px}: expected 0");
            assert!(error.starts_with(&start), "{error}");
        }
    }

    #[test]
    fn what_is_made_pixel_by_pixel_shows_no_tiles() {
        let pixels = Tensor::rand([3, 150, 201], (Kind::Float, Device::Cpu));
        let expected = pixels.unsqueeze(0).upsample_nearest2d([300, 402], None, None).squeeze_dim(0);
        for (tile_px, overlap_px) in [(0, 0), (64, 0), (64, 8), (80, 40), (192, 8)] {
            let (tiles, mut bands) = (Tiles { tile_px, overlap_px }, Vec::new());
            let mut calls = 0;
            let mut make = |tile: &Tensor| {
                calls += 1;
                let (_, h, w) = tile.size3().unwrap();
                let made = tile.unsqueeze(0).upsample_nearest2d([2 * h, 2 * w], None, None).squeeze_dim(0);
                Ok(Some(made))
            };
            tiles.enlarge(&pixels, 2, &mut make, &mut |rows| bands.push(rows.copy())).unwrap().unwrap();
            assert_eq!(calls, tiles.count(201, 150));
            let found = Tensor::cat(&bands, 1);
            assert!((found - &expected).abs().max().double_value(&[]) < 1e-6, "{tiles:?}");
        }
    }

    #[test]
    fn one_tile_goes_over_into_the_next_in_a_ramp() {
        let pixels = Tensor::zeros([3, 20, 120], (Kind::Float, Device::Cpu));
        let mut value = 0.0;
        let mut bands = Vec::new();
        let mut make = |tile: &Tensor| {
            value += 1.0;
            Ok(Some(tile + value))
        };
        let tiles = Tiles { tile_px: 64, overlap_px: 8 };
        tiles.enlarge(&pixels, 1, &mut make, &mut |rows| bands.push(rows.copy())).unwrap().unwrap();
        let row = Vec::<f32>::try_from(bands[0].get(0).get(0)).unwrap();
        assert_eq!((row[55], row[64]), (1.0, 2.0));
        let expected: Vec<f32> = (0..8).map(|k| 1.0 + (k as f32 + 0.5) / 8.0).collect();
        assert_eq!(row[56..64], expected);
        let none = tiles.enlarge(&pixels, 1, &mut |_| Ok(None), &mut |_| {}).unwrap();
        assert!(none.is_none());
    }
}
