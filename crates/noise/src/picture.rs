//! The noise of one picture: its first latents, and what its sampler adds on the way.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, PhiloxRng, Result, TorchRng};

/// Where random numbers come from (A1111's option "Random number generator source").
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum RandomSource {
    /// torch's processor generator.
    #[default]
    Cpu,
    /// NVIDIA's, computed anywhere.
    Nv,
}

impl RandomSource {
    /// The name as A1111 writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Nv => "NV",
        }
    }

    /// The first `n` normal numbers of a seed.
    pub fn randn(self, seed: u64, n: usize) -> Vec<f32> {
        Generator::new(self, seed).randn(n)
    }
}

impl fmt::Display for RandomSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for RandomSource {
    type Err = Error;

    /// Upper and lower case are the same.
    fn from_str(text: &str) -> Result<Self> {
        let found = [Self::Cpu, Self::Nv].into_iter().find(|source| source.name().eq_ignore_ascii_case(text));
        found.ok_or_else(|| Error::UnknownSource { found: text.to_owned() })
    }
}

#[derive(Debug, Clone)]
enum Generator {
    Cpu(Box<TorchRng>),
    Nv(PhiloxRng),
}

impl Generator {
    fn new(source: RandomSource, seed: u64) -> Self {
        match source {
            RandomSource::Cpu => Self::Cpu(Box::new(TorchRng::new(seed))),
            RandomSource::Nv => Self::Nv(PhiloxRng::new(seed)),
        }
    }

    fn randn(&mut self, n: usize) -> Vec<f32> {
        match self {
            Self::Cpu(rng) => rng.randn(n),
            Self::Nv(rng) => rng.randn(n),
        }
    }
}

/// What decides the noise of a picture.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PictureSeed {
    /// The seed.
    pub seed: u64,
    /// Where numbers come from.
    pub source: RandomSource,
    /// ENSD: with any but 0, all noise after the first is that of the seed plus this.
    pub eta_seed_delta: u64,
    /// The variation seed and its strength, 0 to 1.
    pub variation: Option<(u64, f64)>,
    /// Seed resize: height and width in latents of the picture whose noise is put into the middle of this one's.
    pub resize_from: Option<(usize, usize)>,
}

/// The generator of one picture (stable-diffusion-webui 1.10.1, `modules/rng.py`, `ImageRNG`). Each picture has its own,
/// so that it does not depend on its batch.
#[derive(Debug, Clone)]
pub struct PictureNoise {
    seed: PictureSeed,
    shape: [usize; 3],
    generator: Generator,
}

impl PictureNoise {
    /// For latents of `channels, height, width`.
    pub fn new(seed: PictureSeed, shape: [usize; 3]) -> Self {
        Self { seed, shape, generator: Generator::new(seed.source, seed.seed) }
    }

    /// The first latents, unit normal, row-major. To be called once, before [`PictureNoise::more`].
    pub fn first(&mut self) -> Vec<f32> {
        let PictureSeed { seed, source, .. } = self.seed;
        let [channels, height, width] = self.shape;
        let (h, w) = self.seed.resize_from.unwrap_or((height, width));
        let shape = [channels, h, w];
        let is_resized = shape != self.shape;
        let count = shape.iter().product();
        let mut noise = if is_resized { source.randn(seed, count) } else { self.generator.randn(count) };
        if let Some((subseed, strength)) = self.seed.variation.filter(|(_, strength)| *strength != 0.0) {
            noise = slerp(strength, &noise, &source.randn(subseed, count), shape);
        }
        if is_resized {
            let mut target = self.generator.randn(self.shape.iter().product());
            paste(&noise, shape, &mut target, self.shape);
            noise = target;
        }
        if self.seed.eta_seed_delta != 0 {
            self.generator = Generator::new(source, seed.wrapping_add(self.seed.eta_seed_delta));
        }
        noise
    }

    /// More unit normal noise of the picture's shape, for samplers that add some.
    pub fn more(&mut self) -> Vec<f32> {
        self.generator.randn(self.shape.iter().product())
    }
}

/// Spherical interpolation as A1111 does it: for each channel and column apart, over the rows.
///
/// Nearly equal noises are mixed linearly, with the factors the wrong way round, as there.
fn slerp(strength: f64, low: &[f32], high: &[f32], [channels, height, width]: [usize; 3]) -> Vec<f32> {
    let mut dots = vec![0.0_f64; channels * width];
    let at = |c: usize, y: usize, x: usize| (c * height + y) * width + x;
    for c in 0..channels {
        for x in 0..width {
            let column =
                |noise: &[f32]| (0..height).map(|y| f64::from(noise[at(c, y, x)])).collect::<Vec<_>>();
            let [l, h] = [column(low), column(high)];
            let norm = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
            dots[c * width + x] = l.iter().zip(&h).map(|(l, h)| l * h).sum::<f64>() / (norm(&l) * norm(&h));
        }
    }
    let is_near = dots.iter().sum::<f64>() / dots.len() as f64 > 0.9995;
    let mut result = vec![0.0; low.len()];
    for c in 0..channels {
        for x in 0..width {
            let omega = dots[c * width + x].acos();
            let (a, b) = if is_near {
                (strength, 1.0 - strength)
            } else {
                (((1.0 - strength) * omega).sin() / omega.sin(), (strength * omega).sin() / omega.sin())
            };
            for y in 0..height {
                let i = at(c, y, x);
                result[i] = (a * f64::from(low[i]) + b * f64::from(high[i])) as f32;
            }
        }
    }
    result
}

/// Puts the middle of `source` into the middle of `target`.
fn paste(source: &[f32], [_, h, w]: [usize; 3], target: &mut [f32], [channels, height, width]: [usize; 3]) {
    // A1111 halves the difference rounding down, also below 0.
    let half = |to: usize, from: usize| (to as i64 - from as i64).div_euclid(2);
    let (dx, dy) = (half(width, w), half(height, h));
    let copied = |from: usize, d: i64| if d >= 0 { from as i64 } else { from as i64 + 2 * d };
    let (columns, rows) = (copied(w, dx), copied(h, dy));
    for c in 0..channels {
        for y in 0..rows {
            for x in 0..columns {
                let to = (c * height + (dy.max(0) + y) as usize) * width + (dx.max(0) + x) as usize;
                let from = (c * h + ((-dy).max(0) + y) as usize) * w + ((-dx).max(0) + x) as usize;
                target[to] = source[from];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: [usize; 3] = [4, 3, 5];

    fn noise(seed: PictureSeed) -> PictureNoise {
        PictureNoise::new(seed, SHAPE)
    }

    #[test]
    fn one_generator_draws_all() {
        let mut own = noise(PictureSeed { seed: 7, ..PictureSeed::default() });
        let mut torch = TorchRng::new(7);
        assert_eq!([own.first(), own.more()], [torch.randn(60), torch.randn(60)]);
        let mut own = noise(PictureSeed { seed: 7, source: RandomSource::Nv, ..PictureSeed::default() });
        let mut nv = PhiloxRng::new(7);
        assert_eq!([own.first(), own.more()], [nv.randn(60), nv.randn(60)]);
    }

    #[test]
    fn ensd_changes_what_comes_after_the_first() {
        let mut own = noise(PictureSeed { seed: 7, eta_seed_delta: 31337, ..PictureSeed::default() });
        assert_eq!([own.first(), own.more()], [7, 31344].map(|seed| TorchRng::new(seed).randn(60)));
    }

    #[test]
    fn a_variation_goes_from_one_seed_to_the_other() {
        let with = |strength| {
            noise(PictureSeed { seed: 7, variation: Some((8, strength)), ..PictureSeed::default() })
        };
        assert_eq!(with(0.0).first(), TorchRng::new(7).randn(60));
        for (found, expected) in with(1.0).first().iter().zip(TorchRng::new(8).randn(60)) {
            assert!((found - expected).abs() < 1e-5);
        }
    }

    #[test]
    fn a_smaller_picture_is_put_into_the_middle() {
        let seed = PictureSeed { seed: 7, resize_from: Some((1, 3)), ..PictureSeed::default() };
        let (found, whole, small) =
            (noise(seed).first(), TorchRng::new(7).randn(60), TorchRng::new(7).randn(12));
        for i in 0..60 {
            let (c, y, x) = (i / 15, i / 5 % 3, i % 5);
            let is_inside = y == 1 && (1..4).contains(&x);
            assert_eq!(found[i], if is_inside { small[c * 3 + x - 1] } else { whole[i] }, "{i}");
        }
        let larger = PictureSeed { seed: 7, resize_from: Some((5, 6)), ..PictureSeed::default() };
        assert_eq!(noise(larger).first().len(), 60);
    }
}
