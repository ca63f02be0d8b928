//! The random numbers of NVIDIA's generator, without a GPU.

const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
const INCREMENTS: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
const ROUNDS: u32 = 10;

/// A1111's source of random numbers "NV": `torch.randn` on CUDA for tensors that fit one grid
/// (stable-diffusion-webui 1.10.1, `modules/rng_philox.py`; Salmon et al. 2011, Philox 4x32-10).
#[derive(Debug, Clone)]
pub struct PhiloxRng {
    key: [u32; 2],
    calls: u32,
}

impl PhiloxRng {
    /// A generator with this seed.
    pub fn new(seed: u64) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32], calls: 0 }
    }

    /// The four random words of the element `index` of the next call.
    pub fn words(&self, index: u32) -> [u32; 4] {
        let mut counter = [self.calls, 0, index, 0];
        let mut key = self.key;
        for round in 0..ROUNDS {
            if round > 0 {
                key = [key[0].wrapping_add(INCREMENTS[0]), key[1].wrapping_add(INCREMENTS[1])];
            }
            let [a, b] = [(counter[0], MULTIPLIERS[0]), (counter[2], MULTIPLIERS[1])]
                .map(|(word, multiplier)| u64::from(word) * u64::from(multiplier));
            let high = |product: u64| (product >> 32) as u32;
            counter = [high(b) ^ counter[1] ^ key[0], b as u32, high(a) ^ counter[3] ^ key[1], a as u32];
        }
        counter
    }

    /// `n` normal numbers; of each pair that Box and Muller's method gives, CUDA keeps the first.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        let normal = |index| {
            let [x, y, ..] = self.words(index);
            // Powers of two as the source has them, rounded to eight digits.
            let u = f64::from(x) * 2.328_306_4e-10 + 2.328_306_4e-10 / 2.0;
            let v = f64::from(y) * (2.328_306_4e-10 * 6.283_185_5) + 2.328_306_4e-10 * 6.283_185_5 / 2.0;
            ((-2.0 * u.ln()).sqrt() * v.sin()) as f32
        };
        let values = (0..n as u32).map(normal).collect();
        self.calls += 1;
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_authors() {
        // Random123's known-answer tests have all counters and keys 0.
        assert_eq!(PhiloxRng::new(0).words(0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    }

    #[test]
    fn normals_are_those_of_a1111() {
        let near = |found: &[f32], expected: &[f32]| {
            for (f, e) in found.iter().zip(expected) {
                assert!((f - e).abs() < 2e-6, "{found:?} is not {expected:?}");
            }
        };
        let mut rng = PhiloxRng::new(0);
        near(
            &rng.randn(8).iter().map(|v| (v * 1e5).round() / 1e5).collect::<Vec<_>>(),
            &[-0.92466, -0.42534, -2.64385, 0.14518, -0.12087, -0.57973, -0.62285, -0.32839],
        );
        near(&rng.randn(4), &[0.180_825_89, -0.552_262_7, 0.923_813_4, -0.734_970_33]);
        near(
            &PhiloxRng::new(42).randn(8),
            &[
                0.194_018_87,
                2.161_373_9,
                -0.172_050_95,
                0.849_06,
                -1.924_399_3,
                0.652_985_3,
                -0.649_441_06,
                -0.817_524_55,
            ],
        );
    }
}
