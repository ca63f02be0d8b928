//! How much the borders of tiles show.

use image::RgbImage;
use serde::{Deserialize, Serialize};

/// How much a picture changes where tiles meet, and elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SeamMeasure {
    /// Across borders of tiles, in levels of 255.
    pub across: f64,
    /// The same inside of tiles.
    pub inside: f64,
}

impl SeamMeasure {
    /// How often the change inside is that across borders: 1 where nothing shows.
    pub fn ratio(self) -> f64 {
        self.across / self.inside
    }

    /// Measures a picture of tiles of `tile` px, width and height, that go over into each other within about `reach_px`: the change at a line is the
    /// difference between the means of so many pixels before and behind it, taken for each row (or column) and without its sign; all
    /// lines between tiles are compared with those that are as far from them as twice the reach. `None` where the picture has no border of tiles, or
    /// nothing is that far.
    ///
    /// # Panics
    /// When a side of a tile, or the reach, is 0.
    pub fn of(picture: &RgbImage, tile: (u32, u32), reach_px: u32) -> Option<Self> {
        let grey = |x: u32, y: u32| {
            picture.get_pixel(x, y).0.iter().map(|value| f64::from(*value)).sum::<f64>() / 3.0
        };
        let (width, height) = picture.dimensions();
        let mut sums = Sums::default();
        for y in 0..height {
            sums.add(&(0..width).map(|x| grey(x, y)).collect::<Vec<_>>(), tile.0, reach_px);
        }
        for x in 0..width {
            sums.add(&(0..height).map(|y| grey(x, y)).collect::<Vec<_>>(), tile.1, reach_px);
        }
        let mean = |(sum, count): (f64, u64)| (count > 0).then(|| sum / count as f64);
        Some(Self { across: mean(sums.across)?, inside: mean(sums.inside)? })
    }
}

/// Sums of changes, and how many they are.
#[derive(Default)]
struct Sums {
    across: (f64, u64),
    inside: (f64, u64),
}

impl Sums {
    /// Adds the changes along a line of pixels.
    fn add(&mut self, line: &[f64], tile: u32, reach: u32) {
        let (tile, reach) = (tile as usize, reach as usize);
        let mut before = vec![0.0; line.len() + 1];
        for (i, value) in line.iter().enumerate() {
            before[i + 1] = before[i] + value;
        }
        let mean = |start: usize| (before[start + reach] - before[start]) / reach as f64;
        // The picture's own sides are no borders of tiles.
        let lines = line.len().saturating_sub(1) / tile;
        if lines == 0 {
            return;
        }
        for place in reach..(line.len() + 1).saturating_sub(reach) {
            let nearest = ((place + tile / 2) / tile).clamp(1, lines) * tile;
            let sums = match nearest.abs_diff(place) {
                0 => &mut self.across,
                far if far >= 2 * reach => &mut self.inside,
                _ => continue,
            };
            sums.0 += (mean(place) - mean(place - reach)).abs();
            sums.1 += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    #[test]
    fn a_step_between_tiles_is_seen_and_a_slope_is_not() {
        let slope = |step: u32| {
            RgbImage::from_fn(128, 96, |x, y| Rgb([(x / 32 * step + y / 48 * step + x % 2) as u8; 3]))
        };
        // Even lines up to lines of two pixels; steps of 10 at three lines of four, and at one of two.
        let found = SeamMeasure::of(&slope(10), (32, 48), 2).unwrap();
        assert_eq!((found.across, found.inside), (10.0, 0.0));
        let found = SeamMeasure::of(&slope(10), (32, 48), 1).unwrap();
        // Across the lines that run down, 10 - 1; across the other 10.
        let expected = (9.0 * 3.0 * 96.0 + 10.0 * 128.0) / (3.0 * 96.0 + 128.0);
        assert!((found.across - expected).abs() < 1e-9, "{found:?}");
        let even = RgbImage::from_fn(200, 140, |x, y| Rgb([((x + y / 2) / 2) as u8; 3]));
        let found = SeamMeasure::of(&even, (64, 64), 4).unwrap();
        assert!((found.ratio() - 1.0).abs() < 0.05, "{found:?}");
        assert_eq!(SeamMeasure::of(&even, (256, 256), 4), None);
        assert_eq!(SeamMeasure::of(&RgbImage::new(1, 1), (64, 64), 8), None);
        // Tiles of one direction only.
        assert!(SeamMeasure::of(&slope(10), (32, 512), 1).is_some());
    }
}
