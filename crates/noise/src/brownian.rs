//! Brownian motion that depends on its seed alone, not on where it is asked for.

use crate::TorchRng;

/// Words of mixed entropy (torchsde's `pool_size`).
const POOL: usize = 24;

/// torchsde's `BrownianTree` over `[start, end]`, for a vector of `n` numbers, as k-diffusion's samplers use it
/// (google-research/torchsde 0.2.6, `torchsde/_brownian/brownian_interval.py` with `halfway_tree` and tol 1e-6).
///
/// The interval is halved again and again; each half's increment follows from its parent's and normal numbers whose
/// seed is the parent's place in the tree. Places are rounded to six digits, as there.
#[derive(Debug, Clone)]
pub struct BrownianTree {
    seed: u64,
    start: f64,
    end: f64,
    whole: Vec<f64>,
    /// The last place asked for, and the motion there: the next question mostly begins at it.
    last: (f64, Vec<f64>),
}

impl BrownianTree {
    /// A tree with this seed; the motion begins at 0.
    pub fn new(seed: u64, start: f64, end: f64, n: usize) -> Self {
        let [top, ..] = seed_words(seed, &[]);
        let whole = scaled(&TorchRng::new(top.into()).randn(n), (end - start).sqrt());
        let [start, end] = [start, end].map(round);
        Self { seed, start, end, whole, last: (start, vec![0.0; n]) }
    }

    /// The increment between two places, divided by the root of their distance: what k-diffusion's
    /// `BrownianTreeNoiseSampler` gives for the sigmas `from` and `to`. Places outside are moved to the nearest end.
    pub fn noise(&mut self, from: f64, to: f64) -> Vec<f32> {
        // k-diffusion's sigmas are fp32.
        let [from, to] = [from, to].map(|place| f64::from(place as f32));
        let (before, after) = (self.at(from), self.at(to));
        let scale = (to - from).abs().sqrt();
        before.iter().zip(&after).map(|(b, a)| ((a - b) / scale) as f32).collect()
    }

    /// The motion at a place.
    fn at(&mut self, place: f64) -> Vec<f64> {
        let place = round(place.clamp(self.start, self.end));
        if place == self.last.0 {
            return self.last.1.clone();
        }
        let found = self.descend(place);
        self.last = (place, found.clone());
        found
    }

    fn descend(&self, place: f64) -> Vec<f64> {
        let (mut start, mut end) = (self.start, self.end);
        let (mut key, mut depth) = (0_u64, 0_u32);
        let mut motion = vec![0.0; self.whole.len()]; // at `start`
        let mut increment = self.whole.clone();
        while place != start {
            if place == end {
                add(&mut motion, &increment);
                break;
            }
            let middle = round(0.5 * (end + start));
            let (left, right) = (middle - start, end - middle);
            let [seed, ..] = seed_words(self.seed, &[key, depth.into()]);
            let noise = scaled(
                &TorchRng::new(seed.into()).randn(increment.len()),
                (left * right / (end - start)).sqrt(),
            );
            let mut left_increment = scaled(&increment, left / (end - start));
            add(&mut left_increment, &noise);
            depth += 1;
            if place <= middle {
                (end, increment, key) = (middle, left_increment, 2 * key);
            } else {
                add(&mut motion, &left_increment);
                for (whole, half) in increment.iter_mut().zip(&left_increment) {
                    *whole -= half;
                }
                (start, key) = (middle, 2 * key + 1);
            }
        }
        motion
    }
}

fn scaled<T: Copy + Into<f64>>(values: &[T], factor: f64) -> Vec<f64> {
    values.iter().map(|value| (*value).into() * factor).collect()
}

fn add(sum: &mut [f64], more: &[f64]) {
    sum.iter_mut().zip(more).for_each(|(s, m)| *s += m);
}

/// Python's `round(x, 6)`: the decimal that is nearest to the exact value.
fn round(x: f64) -> f64 {
    format!("{x:.6}").parse().unwrap_or(x)
}

/// The first words of numpy's `SeedSequence(entropy, spawn_key=..., pool_size=24)` (numpy,
/// `numpy/random/bit_generator.pyx`).
fn seed_words(entropy: u64, spawn_key: &[u64]) -> [u32; 4] {
    let words = |number: u64| {
        let [low, high] = [number as u32, (number >> 32) as u32];
        if high == 0 { vec![low] } else { vec![low, high] }
    };
    let mut all = words(entropy);
    if !spawn_key.is_empty() {
        all.resize(POOL.max(all.len()), 0);
        all.extend(spawn_key.iter().flat_map(|key| words(*key)));
    }
    let mut hash = Hash { constant: 0x43b0_d7e5, multiplier: 0x931e_8875 };
    let mut pool = [0; POOL];
    for (i, word) in pool.iter_mut().enumerate() {
        *word = hash.mix(all.get(i).copied().unwrap_or(0));
    }
    for from in 0..POOL {
        for to in (0..POOL).filter(|to| *to != from) {
            pool[to] = combine(pool[to], hash.mix(pool[from]));
        }
    }
    for word in all.iter().skip(POOL) {
        for place in &mut pool {
            *place = combine(*place, hash.mix(*word));
        }
    }
    let mut hash = Hash { constant: 0x8b51_f9dd, multiplier: 0x58f3_8ded };
    std::array::from_fn(|i| hash.mix(pool[i]))
}

struct Hash {
    constant: u32,
    multiplier: u32,
}

impl Hash {
    fn mix(&mut self, word: u32) -> u32 {
        let word = word ^ self.constant;
        self.constant = self.constant.wrapping_mul(self.multiplier);
        let word = word.wrapping_mul(self.constant);
        word ^ (word >> 16)
    }
}

fn combine(a: u32, b: u32) -> u32 {
    let mixed = 0xca01_f9dd_u32.wrapping_mul(a).wrapping_sub(0x4973_f715_u32.wrapping_mul(b));
    mixed ^ (mixed >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_motion_is_one_whatever_is_asked() {
        let mut once = BrownianTree::new(3, 0.03, 14.6, 5);
        let mut twice = once.clone();
        let whole = once.noise(14.6, 0.5);
        let halves = [twice.noise(14.6, 2.0), twice.noise(2.0, 0.5)];
        let scale = [14.6_f64 - 0.5, 14.6 - 2.0, 2.0 - 0.5].map(f64::sqrt);
        for i in 0..5 {
            let sum = f64::from(halves[0][i]) * scale[1] + f64::from(halves[1][i]) * scale[2];
            assert!((f64::from(whole[i]) * scale[0] - sum).abs() < 1e-5);
        }
    }
}
