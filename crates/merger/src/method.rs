//! The arithmetic.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How parents become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// A * (1 - M) + B * M.
    WeightedSum,
    /// A + M * (B - C).
    AddDifference,
}

impl Method {
    /// A1111's name of it.
    pub(crate) fn a1111(self) -> &'static str {
        match self {
            Self::WeightedSum => "Weighted sum",
            Self::AddDifference => "Add difference",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WeightedSum => "weighted-sum",
            Self::AddDifference => "add-difference",
        })
    }
}

/// `a = a * (1 - multiplier) + b * multiplier`, rounded to f32 after each operation, as A1111's `weighted_sum` is on
/// f32 tensors. 0 keeps A and 1 gives B, bit for bit.
pub fn weighted_sum(a: &mut [f32], b: &[f32], multiplier: f64) {
    assert_eq!(a.len(), b.len(), "parents of one shape");
    if multiplier == 0.0 {
        return;
    }
    if multiplier == 1.0 {
        return a.copy_from_slice(b);
    }
    let (keep, take) = ((1.0 - multiplier) as f32, multiplier as f32);
    for (a, b) in a.iter_mut().zip(b) {
        *a = keep * *a + take * b;
    }
}

/// `a = a + multiplier * (b - c)`, rounded to f32 after each operation, as A1111's `add_difference` is on f32 tensors.
/// 0 keeps A bit for bit.
pub fn add_difference(a: &mut [f32], b: &[f32], c: &[f32], multiplier: f64) {
    assert!(a.len() == b.len() && a.len() == c.len(), "parents of one shape");
    if multiplier == 0.0 {
        return;
    }
    let multiplier = multiplier as f32;
    for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
        *a += multiplier * (b - c);
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|x| x.to_bits()).collect()
    }

    /// Three parents of one length, zeros of both signs among their values.
    fn parents() -> impl Strategy<Value = (Vec<f32>, Vec<f32>, Vec<f32>)> {
        let value = || prop_oneof![Just(0.0_f32), Just(-0.0_f32), -1e4_f32..1e4];
        vec((value(), value(), value()), 0..40).prop_map(|rows| {
            let a = rows.iter().map(|row| row.0).collect();
            let b = rows.iter().map(|row| row.1).collect();
            (a, b, rows.iter().map(|row| row.2).collect())
        })
    }

    proptest! {
        #[test]
        fn nothing_of_b_is_a_and_all_of_b_is_b((a, b, c) in parents()) {
            let mut merged = a.clone();
            weighted_sum(&mut merged, &b, 0.0);
            prop_assert_eq!(bits(&merged), bits(&a));
            add_difference(&mut merged, &b, &c, 0.0);
            prop_assert_eq!(bits(&merged), bits(&a));
            weighted_sum(&mut merged, &b, 1.0);
            prop_assert_eq!(bits(&merged), bits(&b));
        }

        #[test]
        fn a_weighted_sum_lies_between_its_parents((a, b, _) in parents(), multiplier in 0.0..1.0) {
            let mut merged = a.clone();
            weighted_sum(&mut merged, &b, multiplier);
            for ((a, b), m) in a.iter().zip(&b).zip(merged) {
                let slack = 4.0 * f32::EPSILON * a.abs().max(b.abs());
                prop_assert!(m >= a.min(*b) - slack && m <= a.max(*b) + slack, "{m} between {a} and {b}");
            }
        }

        #[test]
        fn the_difference_of_equals_changes_nothing((a, b, _) in parents(), multiplier in -2.0..2.0) {
            let mut merged = a.clone();
            add_difference(&mut merged, &b, &b, multiplier);
            prop_assert_eq!(merged, a);
        }
    }
}
