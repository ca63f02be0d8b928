//! The preset weights of the model's blocks.

pub use vodka_checkpoint::blocks::{BLOCKS, block_name, block_of};

/// A weight for each block, in the order of [`block_name`].
pub type BlockWeights = [f64; BLOCKS];

/// The names of the presets, as SuperMerger lists them.
pub const PRESETS: [&str; 38] = [
    "GRAD_V",
    "GRAD_A",
    "FLAT_25",
    "FLAT_75",
    "WRAP08",
    "WRAP12",
    "WRAP14",
    "WRAP16",
    "MID12_50",
    "OUT07",
    "OUT12",
    "OUT12_5",
    "RING08_SOFT",
    "RING08_5",
    "RING10_5",
    "RING10_3",
    "SMOOTHSTEP",
    "REVERSE-SMOOTHSTEP",
    "SMOOTHSTEP*2",
    "R_SMOOTHSTEP*2",
    "SMOOTHSTEP*3",
    "R_SMOOTHSTEP*3",
    "SMOOTHSTEP*4",
    "R_SMOOTHSTEP*4",
    "SMOOTHSTEP/2",
    "R_SMOOTHSTEP/2",
    "SMOOTHSTEP/3",
    "R_SMOOTHSTEP/3",
    "SMOOTHSTEP/4",
    "R_SMOOTHSTEP/4",
    "COSINE",
    "REVERSE_COSINE",
    "TRUE_CUBIC_HERMITE",
    "TRUE_REVERSE_CUBIC_HERMITE",
    "FAKE_CUBIC_HERMITE",
    "FAKE_REVERSE_CUBIC_HERMITE",
    "ALL_A",
    "ALL_B",
];

/// A preset's weights by its name in [`PRESETS`], from closed forms over t = k / 24 for the k-th block of the UNet.
/// BASE is 0 in all but ALL_B.
pub fn preset(name: &str) -> Option<BlockWeights> {
    let curve = curve(name)?;
    let mut weights = [0.0; BLOCKS];
    for (k, weight) in weights[1..].iter_mut().enumerate() {
        *weight = curve(k);
    }
    if name == "ALL_B" {
        weights[0] = 1.0;
    }
    Some(weights)
}

type Curve = Box<dyn Fn(usize) -> f64>;

fn curve(name: &str) -> Option<Curve> {
    if let Some(forward) = forward_of(name) {
        let curve = curve(&forward)?;
        return Some(Box::new(move |k| 1.0 - curve(k)));
    }
    if let Some(fold) = name.strip_prefix("SMOOTHSTEP*") {
        let n = few(fold)?;
        return Some(Box::new(move |k| triangle(n * smoothstep(time(k)))));
    }
    if let Some(fold) = name.strip_prefix("SMOOTHSTEP/") {
        let n = few(fold)?;
        return Some(Box::new(move |k| smoothstep(triangle(n * time(k)))));
    }
    Some(match name {
        "GRAD_V" => Box::new(|k| k.abs_diff(12) as f64 / 12.0),
        "GRAD_A" => Box::new(|k| (12 - k.abs_diff(12)) as f64 / 12.0),
        "FLAT_25" => Box::new(|_| 0.25),
        "FLAT_75" => Box::new(|_| 0.75),
        "WRAP08" => ends(4),
        "WRAP12" => ends(6),
        "WRAP14" => ends(7),
        "WRAP16" => ends(8),
        "MID12_50" => steps(&[(5, 18, 0.5)]),
        "OUT07" => steps(&[(18, 24, 1.0)]),
        "OUT12" => steps(&[(13, 24, 1.0)]),
        "OUT12_5" => steps(&[(12, 12, 0.5), (13, 24, 1.0)]),
        "RING08_SOFT" => {
            steps(&[(5, 5, 0.5), (6, 8, 1.0), (9, 9, 0.5), (15, 15, 0.5), (16, 18, 1.0), (19, 19, 0.5)])
        }
        "RING08_5" => steps(&[(6, 9, 1.0), (15, 18, 1.0)]),
        "RING10_5" => steps(&[(5, 9, 1.0), (15, 19, 1.0)]),
        "RING10_3" => steps(&[(6, 10, 1.0), (14, 18, 1.0)]),
        "SMOOTHSTEP" => Box::new(|k| smoothstep(time(k))),
        "COSINE" => Box::new(|k| f64::midpoint(1.0, (std::f64::consts::PI * time(k)).cos())),
        // A cubic but for its first value, which the list sets to 0.
        "TRUE_CUBIC_HERMITE" => Box::new(|k| {
            let u = time(k) - 0.5;
            if k == 0 { 0.0 } else { 25.0 / 48.0 - 31.0 / 48.0 * u + 77.0 / 12.0 * u * u * u }
        }),
        "FAKE_CUBIC_HERMITE" => Box::new(|k| {
            let t = time(k);
            ((19.0 / 3.0 * t - 9.5) * t + 25.0 / 6.0) * t
        }),
        "ALL_A" => Box::new(|_| 0.0),
        "ALL_B" => Box::new(|_| 1.0),
        _ => return None,
    })
}

/// The preset of which this one is 1 minus the weights.
fn forward_of(name: &str) -> Option<String> {
    let rest = name.strip_prefix("R_").or_else(|| name.strip_prefix("REVERSE-"));
    let rest = rest.or_else(|| name.strip_prefix("REVERSE_"));
    rest.map(ToOwned::to_owned).or_else(|| name.contains("_REVERSE_").then(|| name.replace("_REVERSE_", "_")))
}

fn few(text: &str) -> Option<f64> {
    matches!(text, "2" | "3" | "4").then(|| text.parse().ok()).flatten()
}

fn time(k: usize) -> f64 {
    k as f64 / 24.0
}

fn smoothstep(t: f64) -> f64 {
    t * t * (3.0 - 2.0 * t)
}

/// A triangle wave: 0 at 0, 1 at 1, 0 at 2, and so on.
fn triangle(x: f64) -> f64 {
    let x = x % 2.0;
    if x > 1.0 { 2.0 - x } else { x }
}

/// Ones at the first and the last `n` blocks.
fn ends(n: usize) -> Curve {
    Box::new(move |k| f64::from(u8::from(k < n || k >= 25 - n)))
}

/// Weights from the first to the last block of each step, both within; 0 elsewhere.
fn steps(steps: &'static [(usize, usize, f64)]) -> Curve {
    Box::new(|k| {
        steps.iter().find(|(first, last, _)| (*first..=*last).contains(&k)).map_or(0.0, |step| step.2)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of SuperMerger's and meh's lists (BASE is 0), to the places that are printed there.
    #[rustfmt::skip]
    const PUBLISHED: [(&str, &[(usize, f64)]); 38] = [
        ("GRAD_V", &[(2, 0.916_666_666_7), (13, 0.0), (25, 1.0)]),
        ("GRAD_A", &[(2, 0.083_333_333_3), (13, 1.0), (25, 0.0)]),
        ("FLAT_25", &[(0, 0.0), (7, 0.25)]),
        ("FLAT_75", &[(0, 0.0), (7, 0.75)]),
        ("WRAP08", &[(4, 1.0), (5, 0.0), (21, 0.0), (22, 1.0)]),
        ("WRAP12", &[(6, 1.0), (7, 0.0), (19, 0.0), (20, 1.0)]),
        ("WRAP14", &[(7, 1.0), (8, 0.0), (18, 0.0), (19, 1.0)]),
        ("WRAP16", &[(8, 1.0), (9, 0.0), (17, 0.0), (18, 1.0)]),
        ("MID12_50", &[(5, 0.0), (6, 0.5), (19, 0.5), (20, 0.0)]),
        ("OUT07", &[(18, 0.0), (19, 1.0)]),
        ("OUT12", &[(13, 0.0), (14, 1.0)]),
        ("OUT12_5", &[(12, 0.0), (13, 0.5), (14, 1.0)]),
        ("RING08_SOFT", &[(5, 0.0), (6, 0.5), (7, 1.0), (10, 0.5), (11, 0.0), (16, 0.5), (19, 1.0), (20, 0.5)]),
        ("RING08_5", &[(6, 0.0), (7, 1.0), (10, 1.0), (11, 0.0), (15, 0.0), (16, 1.0), (19, 1.0), (20, 0.0)]),
        ("RING10_5", &[(5, 0.0), (6, 1.0), (10, 1.0), (11, 0.0), (16, 1.0), (20, 1.0), (21, 0.0)]),
        ("RING10_3", &[(6, 0.0), (7, 1.0), (11, 1.0), (12, 0.0), (15, 1.0), (19, 1.0), (20, 0.0)]),
        ("SMOOTHSTEP", &[(2, 0.005_063_657_407_407_41), (14, 0.562_355_324_074_074)]),
        ("REVERSE-SMOOTHSTEP", &[(1, 1.0), (2, 0.994_936_342_592_593)]),
        ("SMOOTHSTEP*2", &[(9, 0.518_518_518_518_519), (12, 0.875_289_351_851_852)]),
        ("R_SMOOTHSTEP*2", &[(9, 0.481_481_481_481_481), (12, 0.124_710_648_148_148)]),
        ("SMOOTHSTEP*3", &[(11, 0.871_527_777_777_778), (16, 0.050_781_250_000_000_4), (25, 1.0)]),
        ("R_SMOOTHSTEP*3", &[(11, 0.128_472_222_222_222), (25, 0.0)]),
        ("SMOOTHSTEP*4", &[(9, 0.962_962_962_962_963), (11, 0.495_370_370_370_37), (25, 0.0)]),
        ("R_SMOOTHSTEP*4", &[(9, 0.037_037_037_037_037_2), (25, 1.0)]),
        ("SMOOTHSTEP/2", &[(5, 0.259_259_259_259_259), (14, 0.980_324_074_074_074), (25, 0.0)]),
        ("R_SMOOTHSTEP/2", &[(5, 0.740_740_740_740_741), (25, 1.0)]),
        ("SMOOTHSTEP/3", &[(2, 0.042_968_75), (18, 0.042_968_75), (25, 1.0)]),
        ("R_SMOOTHSTEP/3", &[(2, 0.957_031_25), (25, 0.0)]),
        ("SMOOTHSTEP/4", &[(3, 0.259_259_259_259_259), (13, 0.0), (14, 0.074_074_074_074_074_1), (25, 0.0)]),
        ("R_SMOOTHSTEP/4", &[(3, 0.740_740_740_740_741), (25, 1.0)]),
        ("COSINE", &[(3, 0.982_962_913_144_534), (25, 0.0)]),
        ("REVERSE_COSINE", &[(3, 0.017_037_086_855_465_9), (25, 1.0)]),
        ("TRUE_CUBIC_HERMITE", &[(1, 0.0), (2, 0.199_031_876_929_012), (13, 0.520_833_333_333_333), (24, 0.842_634_789_737_655), (25, 1.0)]),
        ("TRUE_REVERSE_CUBIC_HERMITE", &[(1, 1.0), (2, 0.800_968_123_070_988), (25, 0.0)]),
        ("FAKE_CUBIC_HERMITE", &[(2, 0.157_576_195_987_654), (24, 0.842_423_804_012_347)]),
        ("FAKE_REVERSE_CUBIC_HERMITE", &[(2, 0.842_423_804_012_346), (25, 0.0)]),
        ("ALL_A", &[(0, 0.0), (9, 0.0)]),
        ("ALL_B", &[(0, 1.0), (9, 1.0)]),
    ];

    #[test]
    fn presets_are_the_published_numbers() {
        for (name, (published, numbers)) in PRESETS.into_iter().zip(PUBLISHED) {
            assert_eq!(name, published);
            let weights = preset(name).unwrap_or_else(|| panic!("{name}"));
            assert!(weights.iter().all(|weight| (0.0..=1.0).contains(weight)), "{name}: {weights:?}");
            for (block, expected) in numbers {
                assert!((weights[*block] - expected).abs() < 1e-10, "{name} {block}: {}", weights[*block]);
            }
        }
        assert_eq!(preset("SMOOTHSTEP*5"), None);
        assert_eq!(preset("R_NONE"), None);
    }
}
