//! Products of powers without branches and calls, so that loops over them are vector code.

use std::f64::consts::{LN_2, LOG2_E};

/// `x^(1 - share) y^share` of numbers that are not negative, neither infinite nor below f64's normal ones; 0 where a factor is, and
/// `0^0` is 1. Its error is some 1e-14 of it, so that rounded to f32 it is the exact value's neighbour at worst, and x or y
/// where the share is 0 or 1.
#[inline(always)]
pub(super) fn mean_of_powers(x: f64, y: f64, share: f64) -> f64 {
    let keep = 1.0 - share;
    let power = exp2(keep * log2(x) + share * log2(y));
    let is_zero = (x == 0.0 && keep > 0.0) || (y == 0.0 && share > 0.0);
    if is_zero { 0.0 } else { power }
}

/// The binary logarithm of a positive normal number; -1023 for 0.
#[inline(always)]
fn log2(x: f64) -> f64 {
    const SQRT_HALF: u64 = 0x3fe6_a09e_667f_3bcd;
    const BIAS: u64 = 1023;
    // x is z times two to the power of k, and z between the square roots of 1/2 and of 2.
    let biased = (x.to_bits().wrapping_sub(SQRT_HALF).wrapping_add(BIAS << 52)) >> 52;
    let z = f64::from_bits(x.to_bits().wrapping_sub(biased.wrapping_sub(BIAS) << 52));
    // An integer as f64, by its place behind the bits of 2^52.
    const OFFSET: u64 = 0x4330_0000_0000_0000;
    let k = f64::from_bits(biased | OFFSET) - f64::from_bits(BIAS | OFFSET);
    // ln z = 2 artanh s; of the series what is left out is below 1e-18 of it.
    let s = (z - 1.0) / (z + 1.0);
    let square = s * s;
    let mut sum = 1.0 / 21.0;
    for n in [19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        sum = sum * square + 1.0 / n;
    }
    k + 2.0 * LOG2_E * s * sum
}

/// Two to the power of a number from -1023 to 1023.
#[inline(always)]
fn exp2(x: f64) -> f64 {
    // Adding it rounds to whole numbers, which then are the last bits.
    const WHOLE: f64 = (3_u64 << 51) as f64;
    let shifted = x + WHOLE;
    let rest = (x - (shifted - WHOLE)) * LN_2;
    // e^rest by its series; what is left out is below 1e-17.
    let mut sum = 1.0;
    for n in [13.0, 12.0, 11.0, 10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0] {
        sum = sum * rest * (1.0 / n) + 1.0;
    }
    sum * f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size() -> impl Strategy<Value = f32> {
        prop_oneof![
            Just(0.0_f32),
            Just(1.0),
            Just(f32::MAX),
            Just(1e-45),
            (0_u32..0x7f80_0000).prop_map(f32::from_bits)
        ]
    }

    proptest! {
        #[test]
        fn it_is_that_of_the_library(x in size(), y in size(), share in prop_oneof![Just(0.0), Just(1.0), 0.0..1.0]) {
            let (x, y) = (f64::from(x), f64::from(y));
            let expected = x.powf(1.0 - share) * y.powf(share);
            let found = mean_of_powers(x, y, share);
            prop_assert!((found - expected).abs() <= 1e-13 * expected, "{found}, expected {expected}");
            if share == 0.0 {
                prop_assert_eq!(found as f32, x as f32);
            }
        }
    }
}
