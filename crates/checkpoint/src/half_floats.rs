//! Halves to floats and back over slices: what a merge spends its time on, so the processor's own instructions are
//! used wherever it has them, in eights and without a call for each eight.

use half::{bf16, f16};

/// Little-endian f16 as f32.
///
/// # Panics
/// When the bytes are not twice as many as the values.
pub(crate) fn f16_to_f32(bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), 2 * out.len(), "bytes for {} values", out.len());
    #[cfg(target_arch = "x86_64")]
    if x86::available() {
        // SAFETY: the processor has been asked.
        return unsafe { x86::f16_to_f32(bytes, out) };
    }
    for (value, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *value = f16::from_le_bytes(*bytes).to_f32();
    }
}

/// f32 as little-endian f16, rounded to nearest even.
///
/// # Panics
/// When the bytes are not twice as many as the values.
pub(crate) fn f32_to_f16(values: &[f32], out: &mut [u8]) {
    assert_eq!(out.len(), 2 * values.len(), "bytes for {} values", values.len());
    #[cfg(target_arch = "x86_64")]
    if x86::available() {
        // SAFETY: the processor has been asked.
        return unsafe { x86::f32_to_f16(values, out) };
    }
    for (value, bytes) in values.iter().zip(out.as_chunks_mut().0) {
        *bytes = f16::from_f32(*value).to_le_bytes();
    }
}

/// f32 as little-endian bf16, rounded to nearest even.
///
/// # Panics
/// When the bytes are not twice as many as the values.
pub(crate) fn f32_to_bf16(values: &[f32], out: &mut [u8]) {
    assert_eq!(out.len(), 2 * values.len(), "bytes for {} values", values.len());
    for (value, bytes) in values.iter().zip(out.as_chunks_mut().0) {
        *bytes = bf16::from_f32(*value).to_le_bytes();
    }
}

/// Whether all values are below `limit` in magnitude; NaN is not.
pub fn all_below(values: &[f32], limit: f32) -> bool {
    #[cfg(target_arch = "x86_64")]
    if x86::available() {
        // SAFETY: the processor has been asked.
        return unsafe { x86::largest(values) } < limit.to_bits();
    }
    largest(values) < limit.to_bits()
}

/// The bits of the largest magnitude: magnitudes order as their bits do, NaN above all.
#[inline(always)]
fn largest(values: &[f32]) -> u32 {
    // Without an early exit, which would keep it from being vector code.
    values.iter().fold(0, |largest, x| largest.max(x.to_bits() & 0x7fff_ffff))
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _MM_FROUND_TO_NEAREST_INT, _mm_loadu_si128, _mm_storeu_si128, _mm256_cvtph_ps, _mm256_cvtps_ph,
        _mm256_loadu_ps, _mm256_storeu_ps,
    };

    use half::f16;

    pub(super) fn available() -> bool {
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")
    }

    #[target_feature(enable = "avx2,f16c")]
    pub(super) fn f16_to_f32(bytes: &[u8], out: &mut [f32]) {
        let (eights, rest) = bytes.as_chunks::<16>();
        let (outs, out_rest) = out.as_chunks_mut::<8>();
        for (out, eight) in outs.iter_mut().zip(eights) {
            // SAFETY: 16 bytes are read and 8 values written, as the arrays hold; neither needs an alignment.
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(eight.as_ptr().cast())));
            }
        }
        for (value, bytes) in out_rest.iter_mut().zip(rest.as_chunks().0) {
            *value = f16::from_le_bytes(*bytes).to_f32();
        }
    }

    #[target_feature(enable = "avx2,f16c")]
    pub(super) fn f32_to_f16(values: &[f32], out: &mut [u8]) {
        let (eights, rest) = values.as_chunks::<8>();
        let (outs, out_rest) = out.as_chunks_mut::<16>();
        for (out, eight) in outs.iter_mut().zip(eights) {
            // SAFETY: 8 values are read and 16 bytes written, as the arrays hold; neither needs an alignment.
            unsafe {
                let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(eight.as_ptr()));
                _mm_storeu_si128(out.as_mut_ptr().cast(), halves);
            }
        }
        for (value, bytes) in rest.iter().zip(out_rest.as_chunks_mut().0) {
            *bytes = f16::from_f32(*value).to_le_bytes();
        }
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn largest(values: &[f32]) -> u32 {
        super::largest(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_goes_forth_and_back() {
        // From an odd address on, as old writers leave tensors.
        let halves: Vec<u8> = [7].into_iter().chain((0..=u16::MAX).flat_map(u16::to_le_bytes)).collect();
        let mut values = vec![0.0; 1 << 16];
        f16_to_f32(&halves[1..], &mut values);
        for (bits, value) in (0..=u16::MAX).zip(&values) {
            let expected = f16::from_bits(bits).to_f32();
            assert!(
                value.to_bits() == expected.to_bits() || (value.is_nan() && expected.is_nan()),
                "{bits:#x}"
            );
        }
        let finite: Vec<f32> = values.into_iter().filter(|x| !x.is_nan()).collect();
        let mut back = vec![0; 2 * finite.len()];
        f32_to_f16(&finite, &mut back);
        for (value, bytes) in finite.iter().zip(back.as_chunks().0) {
            assert_eq!(f16::from_le_bytes(*bytes).to_f32().to_bits(), value.to_bits());
        }
    }

    #[test]
    fn halves_are_rounded_to_nearest_even() {
        // Between neighbours, half way, and just beside it; up to where a half becomes infinite.
        let near = |x: f32| [x.next_down(), x, x.next_up()];
        let middles = (0..0x7bff_u16).map(|bits| {
            let at = |bits| f16::from_bits(bits).to_f64();
            ((at(bits) + at(bits + 1)) / 2.0) as f32
        });
        let values: Vec<f32> = middles.flat_map(near).flat_map(|x| [x, -x]).collect();
        let mut bytes = vec![0; 2 * values.len()];
        f32_to_f16(&values, &mut bytes);
        for (value, bytes) in values.iter().zip(bytes.as_chunks().0) {
            assert_eq!(
                f16::from_le_bytes(*bytes).to_bits(),
                f16::from_f32_const(*value).to_bits(),
                "{value}"
            );
        }
    }

    #[test]
    fn nothing_that_is_not_finite_is_below_a_limit() {
        for n in [1, 8, 100] {
            let mut values = vec![-1.5; n];
            assert!(all_below(&values, 2.0) && !all_below(&values, 1.5));
            for odd in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                values[n - 1] = odd;
                assert!(!all_below(&values, f32::INFINITY), "{odd}");
            }
        }
        assert!(all_below(&[], 0.1));
    }
}
