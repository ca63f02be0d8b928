//! The random numbers of torch on a processor, and of Python.

use std::{f32::consts::TAU as TAU_F32, f64::consts::TAU};

const N: usize = 624;
const M: usize = 397;

/// MT19937 (Matsumoto and Nishimura 1998).
#[derive(Debug, Clone)]
struct MersenneTwister {
    state: [u32; N],
    next: usize,
}

impl MersenneTwister {
    fn new(seed: u32) -> Self {
        let mut state = [0; N];
        state[0] = seed;
        for i in 1..N {
            let before: u32 = state[i - 1];
            state[i] = 1_812_433_253_u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: N }
    }

    /// The authors' `init_by_array` with a key of one word or two.
    fn by_key(key: &[u32]) -> Self {
        let Self { mut state, .. } = Self::new(19_650_218);
        let mixed = |state: &[u32; N], i: usize, factor: u32| {
            let before = state[(i + N - 1) % N];
            state[i] ^ (before ^ (before >> 30)).wrapping_mul(factor)
        };
        // The state is gone round from 1; where it ends, its last word becomes its first.
        let step = |state: &mut [u32; N], i: usize| match i + 1 {
            N => {
                state[0] = state[N - 1];
                1
            }
            next => next,
        };
        let mut i = 1;
        for k in 0..N {
            let j = k % key.len();
            state[i] = mixed(&state, i, 1_664_525).wrapping_add(key[j]).wrapping_add(j as u32);
            i = step(&mut state, i);
        }
        for _ in 1..N {
            state[i] = mixed(&state, i, 1_566_083_941).wrapping_sub(i as u32);
            i = step(&mut state, i);
        }
        state[0] = 0x8000_0000;
        Self { state, next: N }
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }
}

/// Python's generator: `random.seed(seed)` (CPython, `Modules/_randommodule.c` and `Lib/random.py`).
#[derive(Debug, Clone)]
pub struct PythonRng(MersenneTwister);

impl PythonRng {
    /// A generator with this seed.
    pub fn new(seed: u64) -> Self {
        let words = [seed as u32, (seed >> 32) as u32];
        Self(MersenneTwister::by_key(if words[1] == 0 { &words[..1] } else { &words }))
    }

    /// `random.shuffle(items)`, of fewer than 2^32.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u32 + 1) as usize);
        }
    }

    /// A whole number from 0 to below `end`, which is not 0: the place that `random.choice` takes.
    pub fn below(&mut self, end: u32) -> u32 {
        let bits = u32::BITS - end.leading_zeros();
        loop {
            let drawn = self.0.next_u32() >> (u32::BITS - bits);
            if drawn < end {
                return drawn;
            }
        }
    }
}

/// torch's processor generator: `torch.Generator("cpu").manual_seed(seed)`.
///
/// Its integers are those of MT19937 to the bit; its normal numbers are torch's within
/// 2e-6, because torch's vectorised logarithm and cosine are not those of this machine's mathematics library
/// (pytorch, `aten/src/ATen/native/cpu/DistributionTemplates.h`, `normal_fill`, and `ATen/core/DistributionsHelper.h`).
#[derive(Debug, Clone)]
pub struct TorchRng {
    twister: MersenneTwister,
    spare: Option<f64>,
}

impl TorchRng {
    /// A generator with this seed, of which torch uses the lower 32 bits.
    pub fn new(seed: u64) -> Self {
        Self { twister: MersenneTwister::new(seed as u32), spare: None }
    }

    /// The next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        self.twister.next_u32()
    }

    /// `torch.rand(n)`: uniform in 0..1 with 24 bits.
    pub fn rand(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.uniform()).collect()
    }

    /// `torch.randn(n)`, and with it any shape of `n` elements, row-major.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        if n < 16 {
            return (0..n).map(|_| self.normal() as f32).collect();
        }
        let mut values = self.rand(n);
        values.chunks_exact_mut(16).for_each(box_muller);
        if !n.is_multiple_of(16) {
            // torch fills the last 16 anew rather than a shorter rest.
            let tail = &mut values[n - 16..];
            tail.iter_mut().for_each(|value| *value = self.uniform());
            box_muller(tail);
        }
        values
    }

    fn uniform(&mut self) -> f32 {
        (self.next_u32() & 0x00ff_ffff) as f32 / 16_777_216.0
    }

    fn uniform_f64(&mut self) -> f64 {
        let bits = u64::from(self.next_u32()) << 32 | u64::from(self.next_u32());
        (bits & ((1 << 53) - 1)) as f64 / (1_u64 << 53) as f64
    }

    /// One normal number in f64; they come in pairs, of which the second waits for the next call.
    fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let (u1, u2) = (self.uniform_f64(), self.uniform_f64());
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let (sin, cos) = (TAU * u1).sin_cos();
        self.spare = Some(radius * sin);
        radius * cos
    }
}

/// Makes 16 uniform numbers normal: the first half gives the radii, the second the angles. In f32, as torch rounds.
fn box_muller(block: &mut [f32]) {
    let (radii, angles) = block.split_at_mut(8);
    for (a, b) in radii.iter_mut().zip(angles) {
        let radius = (-2.0 * (1.0 - *a).ln()).sqrt();
        let (sin, cos) = (TAU_F32 * *b).sin_cos();
        *a = radius * cos;
        *b = radius * sin;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(actual: &[f32], expected: &[f32]) {
        for (a, e) in actual.iter().zip(expected) {
            assert!((a - e).abs() < 2e-6, "{actual:?} is not {expected:?}");
        }
    }

    #[test]
    fn integers_are_those_of_the_standard() {
        // C++ [rand.predef]: the 10000th value of a default-constructed mt19937, whose seed is 5489.
        let mut rng = TorchRng::new(5489);
        assert_eq!((0..10_000).map(|_| rng.next_u32()).last(), Some(4_123_659_995));
    }

    #[test]
    fn shuffles_are_pythons() {
        let shuffled = |seed, count: u32| {
            let mut items: Vec<_> = (0..count).collect();
            PythonRng::new(seed).shuffle(&mut items);
            items
        };
        assert_eq!(shuffled(555, 20), [11, 14, 17, 10, 9, 1, 12, 0, 7, 13, 18, 15, 19, 16, 2, 3, 4, 5, 8, 6]);
        assert_eq!(shuffled(555, 1000)[..8], [503, 380, 240, 41, 431, 573, 58, 115]);
        assert_eq!(shuffled(1 << 40 | 7, 10), [0, 5, 2, 3, 6, 1, 8, 4, 7, 9]);
    }

    #[test]
    fn normals_are_torchs() {
        near(
            &TorchRng::new(0).randn(16384),
            &[-1.125_839_8, -1.152_360_2, -0.250_578_58, -0.433_878_84, 0.848_710_3, 0.692_009_15],
        );
        near(
            &TorchRng::new(42).randn(16384),
            &[1.926_915_3, 1.487_284_1, 0.900_717_2, -2.105_521_2, 0.678_418_46],
        );
        near(
            &TorchRng::new(0).randn(6),
            &[1.540_996_1, -0.293_428_9, -2.178_789_4, 0.568_431_26, -1.084_522_4, -1.398_595_5],
        );
    }
}
