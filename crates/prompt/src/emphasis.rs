//! How weights act on an encoded prompt.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What the weights of a prompt's brackets do to it (A1111's option "Emphasis mode").
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Emphasis {
    /// Brackets are text.
    None,
    /// Brackets are read and do nothing.
    Ignore,
    /// Vectors are multiplied, and then all of a chunk, so that its mean is what it was. A1111's default.
    #[default]
    Original,
    /// Vectors are multiplied.
    #[serde(rename = "No norm")]
    NoNorm,
}

impl Emphasis {
    /// A mean of less than this part of the values' size is rounding: a text encoder whose last norm is untrained gives
    /// every token a mean of 0, and dividing one rounding error by another gives anything.
    pub const NO_MEAN: f64 = 1e-5;

    /// All modes.
    pub const ALL: [Self; 4] = [Self::None, Self::Ignore, Self::Original, Self::NoNorm];

    /// The name as A1111 writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Ignore => "Ignore",
            Self::Original => "Original",
            Self::NoNorm => "No norm",
        }
    }

    /// Acts on one chunk: `z` are the last layer's vectors, row after row, one row for each of `weights`
    /// (stable-diffusion-webui 1.10.1, `modules/sd_emphasis.py`).
    ///
    /// A1111 takes the means over all prompts that it encodes at once; here each chunk has its own, so that a picture
    /// does not depend on its neighbours. A mean that is nothing but rounding is not restored.
    ///
    /// # Panics
    /// When the rows are not equally long.
    pub fn apply(self, z: &mut [f32], weights: &[f32]) {
        let columns = z.len() / weights.len();
        assert_eq!(columns * weights.len(), z.len(), "rows of {columns} for {} weights", weights.len());
        let is_without = weights.iter().all(|weight| *weight == 1.0);
        if matches!(self, Self::None | Self::Ignore) || is_without {
            return;
        }
        let mean = |z: &[f32]| z.iter().map(|v| f64::from(*v)).sum::<f64>() / z.len() as f64;
        let before = mean(z);
        let size = mean(&z.iter().map(|value| value * value).collect::<Vec<_>>()).sqrt();
        for (row, weight) in z.chunks_exact_mut(columns).zip(weights) {
            row.iter_mut().for_each(|value| *value *= weight);
        }
        let after = mean(z);
        if self == Self::Original && before.abs().min(after.abs()) > Self::NO_MEAN * size {
            let restore = (before / after) as f32;
            z.iter_mut().for_each(|value| *value *= restore);
        }
    }
}

impl fmt::Display for Emphasis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Emphasis {
    type Err = String;

    /// Upper and lower case are the same; the error lists the names.
    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|mode| mode.name().eq_ignore_ascii_case(text));
        found.ok_or_else(|| {
            format!("unknown emphasis mode `{text}`; known are {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_original_keeps_the_mean_and_no_norm_does_not() {
        let z = [1.0, 2.0, 3.0, 4.0];
        let with = |mode: Emphasis| {
            let mut z = z;
            mode.apply(&mut z, &[1.0, 2.0]);
            z
        };
        assert_eq!(with(Emphasis::NoNorm), [1.0, 2.0, 6.0, 8.0]);
        let restored = with(Emphasis::Original).map(|v| v * 17.0 / 10.0);
        for (found, expected) in restored.iter().zip([1.0, 2.0, 6.0, 8.0]) {
            assert!((found - expected).abs() < 1e-6);
        }
        assert_eq!(with(Emphasis::Ignore), z);
        assert_eq!(with(Emphasis::None), z);
    }

    #[test]
    fn what_is_only_rounding_is_not_restored() {
        for z in [[1.0, -1.0, 2.0, -2.0], [1.0, -1.0, 2.0, -2.000_001]] {
            let mut found = z;
            Emphasis::Original.apply(&mut found, &[1.0, 2.0]);
            assert_eq!(found, [z[0], z[1], z[2] * 2.0, z[3] * 2.0]);
        }
    }

    #[test]
    fn names_are_read_in_any_case() {
        assert_eq!("no NORM".parse(), Ok(Emphasis::NoNorm));
        let error = "x".parse::<Emphasis>().unwrap_err();
        assert_eq!(error, "unknown emphasis mode `x`; known are None, Ignore, Original, No norm");
    }
}
