//! Methods whose every element depends on the same element of the parents alone.

use vodka_stage::for_avx2;

use super::{Context, powers::mean_of_powers};

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

/// `(1 - beta) ((1 - alpha) a + alpha b) + beta c`.
pub(super) fn sum_twice(a: &mut [f32], b: &[f32], c: &[f32], alpha: f64, beta: f64) {
    let (keep_a, alpha) = ((1.0 - alpha) as f32, alpha as f32);
    let (keep, beta) = ((1.0 - beta) as f32, beta as f32);
    for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
        *a = keep * (keep_a * *a + alpha * b) + beta * c;
    }
}

/// `(1 - alpha - beta) a + alpha b + beta c`.
pub(super) fn triple_sum(a: &mut [f32], b: &[f32], c: &[f32], alpha: f64, beta: f64) {
    let (keep, alpha, beta) = ((1.0 - alpha - beta) as f32, alpha as f32, beta as f32);
    for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
        *a = keep * *a + alpha * b + beta * c;
    }
}

for_avx2! {
    /// SuperMerger's `trainDifference`; the factor 1.8 is its own.
    pub(super) fn train_difference(a: &mut [f32], b: &[f32], c: &[f32], alpha: f64) {
        let factor = (alpha * 1.8) as f32;
        for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
            let difference = b - c;
            let (of_c, of_a) = (difference.abs(), (b - *a).abs());
            let sum = of_c + of_a;
            let scale = if sum == 0.0 { 0.0 } else { of_a / sum };
            let signed = if difference == 0.0 { 0.0 } else { scale.copysign(difference) };
            *a += signed * of_c * factor;
        }
    }
}

for_avx2! {
    /// The real part of `a^(1 - alpha) b^alpha` for complex powers: a negative number has the angle pi.
    pub(super) fn geometric(a: &mut [f32], b: &[f32], alpha: f64) {
        let angle = |negative: bool, share: f64| if negative { std::f64::consts::PI * share } else { 0.0 };
        let cos = |a: bool, b: bool| (angle(a, 1.0 - alpha) + angle(b, alpha)).cos();
        let [neither, of_b, of_a, both] =
            [cos(false, false), cos(false, true), cos(true, false), cos(true, true)];
        for (a, b) in a.iter_mut().zip(b) {
            let (x, y) = (f64::from(*a), f64::from(*b));
            let size = mean_of_powers(x.abs(), y.abs(), alpha);
            let (positive, negative) = if y < 0.0 { (of_b, both) } else { (neither, of_a) };
            *a = (size * if x < 0.0 { negative } else { positive }) as f32;
        }
    }
}

for_avx2! {
    /// `c + copysign(|a - c|^(1 - alpha) |b - c|^alpha, (1 - beta) a + beta b - c)`.
    pub(super) fn multiply_difference(a: &mut [f32], b: &[f32], c: &[f32], alpha: f64, beta: f64) {
        let (keep, take) = ((1.0 - beta) as f32, beta as f32);
        for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
            let size = mean_of_powers(f64::from((*a - c).abs()), f64::from((b - c).abs()), alpha);
            let sign = (keep * *a + take * b) - c;
            *a = c + (size as f32).copysign(sign);
        }
    }
}

/// Rows of B in A, or, around the end, rows of A in B.
pub(super) fn tensor_sum(a: &mut [f32], b: &[f32], alpha: f64, beta: f64, context: &Context) {
    let Some(rows) = context.shape.first() else { return };
    let row = context.shape[1..].iter().product::<usize>().max(1);
    let at = |share: f64| (*rows as f64 * share) as usize;
    let (first, last, of_b) = match alpha + beta <= 1.0 {
        true => (at(beta), at(alpha + beta), true),
        false => (at(alpha + beta - 1.0), at(beta), false),
    };
    // The elements of the rows, in this block.
    let within = |row_index: usize| (row_index * row).saturating_sub(context.start).min(a.len());
    let (first, last) = (within(first), within(last).max(within(first)));
    match of_b {
        true => a[first..last].copy_from_slice(&b[first..last]),
        false => {
            a[..first].copy_from_slice(&b[..first]);
            a[last..].copy_from_slice(&b[last..]);
        }
    }
}

/// Between the least and the largest of the bounds.
pub(super) fn clip(a: &mut [f32], bounds: &[&[f32]]) {
    const PART: usize = 1024;
    let (mut low, mut high) = ([0.0; PART], [0.0; PART]);
    for (part, a) in a.chunks_mut(PART).enumerate() {
        let (low, high) = (&mut low[..a.len()], &mut high[..a.len()]);
        low.fill(f32::INFINITY);
        high.fill(f32::NEG_INFINITY);
        for bound in bounds {
            bounds_of(&bound[part * PART..][..a.len()], low, high);
        }
        for ((a, low), high) in a.iter_mut().zip(low).zip(high) {
            *a = a.max(*low).min(*high);
        }
    }
}

for_avx2! {
    fn bounds_of(bound: &[f32], low: &mut [f32], high: &mut [f32]) {
        for ((bound, low), high) in bound.iter().zip(low).zip(high) {
            *low = low.min(*bound);
            *high = high.max(*bound);
        }
    }
}

/// `a + multiplier * delta` for each of the deltas, one after the other.
pub(super) fn add(a: &mut [f32], deltas: &[&[f32]], multiplier: f64) {
    let multiplier = multiplier as f32;
    for delta in deltas {
        for (a, delta) in a.iter_mut().zip(*delta) {
            *a += multiplier * delta;
        }
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
            prop_assert_eq!(&merged, &a);
            train_difference(&mut merged, &b, &b, multiplier);
            prop_assert_eq!(merged, a);
        }

        #[test]
        fn what_is_clipped_lies_within((a, b, c) in parents()) {
            let mut merged = a;
            clip(&mut merged, &[&b, &c]);
            for ((m, b), c) in merged.iter().zip(&b).zip(&c) {
                prop_assert!(*m >= b.min(*c) && *m <= b.max(*c));
            }
        }
    }
}
