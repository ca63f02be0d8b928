//! Random numbers that are functions of where they are used, not of what was drawn before.
//!
//! Each draw has a ChaCha12 stream of its own, whose key is the draw's place: seed, purpose, epoch and picture. A
//! resumed run therefore draws what the undisturbed run would have drawn, and so would one with other batches.

use std::f64::consts::TAU;

use rand::{Rng, RngCore, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha12Rng;

/// What a random number is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// The order of the pictures and batches in an epoch.
    Order = 1,
    /// The noise of the VAE's posterior sample.
    Posterior = 2,
    /// The noise that is added to the latents.
    Noise = 3,
    /// The timestep.
    Timestep = 4,
    /// Whether the caption is dropped.
    Dropout = 5,
    /// What is added to the noise of each channel.
    OffsetNoise = 6,
    /// The coarser levels of pyramid noise.
    Pyramid = 7,
    /// What is added to the text encoder's output.
    Perturbation = 8,
    /// The order of a caption's tags.
    Tags = 9,
    /// Whether a picture is flipped.
    Flip = 10,
    /// Which pictures come once more, with a fractional `multiply`.
    Multiply = 11,
    /// Which pictures stay, with `rated_dataset`.
    Rating = 12,
    /// Where a picture is cut.
    Crop = 13,
    /// Which of its fixed crops a picture has.
    CropVariant = 14,
    /// The seed of a sample picture.
    Sample = 20,
}

/// One stream of random numbers.
#[derive(Debug, Clone)]
pub struct Stream(ChaCha12Rng);

impl Stream {
    /// The stream for one purpose in one epoch, for one picture (0 where it is for no picture in particular).
    pub fn new(seed: u64, purpose: Purpose, epoch: u64, picture: u64) -> Self {
        let mut key = [0; 32];
        for (bytes, word) in key.chunks_exact_mut(8).zip([seed, purpose as u64, epoch, picture]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Self(ChaCha12Rng::from_seed(key))
    }

    /// A number in `0.0..1.0`.
    pub fn uniform(&mut self) -> f64 {
        // 53 bits, as many as an f64 holds.
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A whole number in `0..end`.
    pub fn below(&mut self, end: i64) -> i64 {
        self.0.random_range(0..end)
    }

    /// A number in `low..high`.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// `count` numbers from the standard normal distribution (Box and Muller 1958).
    pub fn normals(&mut self, count: usize) -> Vec<f32> {
        let mut numbers = Vec::with_capacity(count + 1);
        while numbers.len() < count {
            let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
            let (sine, cosine) = (TAU * self.uniform()).sin_cos();
            numbers.push((radius * cosine) as f32);
            numbers.push((radius * sine) as f32);
        }
        numbers.truncate(count);
        numbers
    }

    /// Puts the items in random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        items.shuffle(&mut self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_its_numbers_and_another_place_has_others() {
        let draw = |seed, purpose, epoch, picture| Stream::new(seed, purpose, epoch, picture).normals(5);
        let here = draw(1, Purpose::Noise, 2, 3);
        assert_eq!(draw(1, Purpose::Noise, 2, 3), here);
        for there in [
            draw(0, Purpose::Noise, 2, 3),
            draw(1, Purpose::Posterior, 2, 3),
            draw(1, Purpose::Noise, 3, 3),
            draw(1, Purpose::Noise, 2, 4),
        ] {
            assert_ne!(there, here);
        }
    }

    #[test]
    fn normals_have_the_moments_of_the_normal_distribution() {
        let numbers = Stream::new(555, Purpose::Noise, 1, 0).normals(100_001);
        let moment = |power| numbers.iter().map(|&x| f64::from(x).powi(power)).sum::<f64>() / 100_001.0;
        // The standard errors are 0.003, 0.0045, 0.012 and 0.031.
        assert!(moment(1).abs() < 0.015, "{}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.02, "{}", moment(2));
        assert!(moment(3).abs() < 0.06, "{}", moment(3));
        assert!((moment(4) - 3.0).abs() < 0.15, "{}", moment(4));
    }

    #[test]
    fn uniform_numbers_fill_their_range() {
        let mut stream = Stream::new(1, Purpose::Dropout, 0, 0);
        let numbers: Vec<_> = (0..10_000).map(|_| stream.uniform()).collect();
        assert!(numbers.iter().all(|x| (0.0..1.0).contains(x)));
        assert!((numbers.iter().sum::<f64>() / 10_000.0 - 0.5).abs() < 0.015);
    }
}
