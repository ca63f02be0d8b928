//! Vector code: the loops that are written for AVX2 by hand.

#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{SplitTaps, grey_pixels, narrow};

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn grey_pixels(_: &[u8], _: &mut [u8]) -> usize {
    0
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn narrow<const BYTES: usize>(_: &[u8], _: &crate::area::Taps, _: &mut [[f32; 4]]) -> bool {
    false
}

/// There is none here.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) enum SplitTaps {}

#[cfg(not(target_arch = "x86_64"))]
impl SplitTaps {
    pub fn new(_: &crate::pillow::Taps) -> Option<Self> {
        None
    }

    pub fn resize_rows(&self, _: &[u8], _: usize, _: [i32; 3], _: &mut [u8]) {
        match *self {}
    }
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::x86_64::{
        __m128i, __m256i, _mm_add_epi32, _mm_add_ps, _mm_cvtepi32_ps, _mm_cvtepu8_epi32, _mm_cvtsi32_si128,
        _mm_cvtsi128_si32, _mm_loadu_si128, _mm_mul_ps, _mm_mullo_epi32, _mm_packus_epi16, _mm_packus_epi32,
        _mm_set_epi32, _mm_set1_epi32, _mm_set1_ps, _mm_setzero_ps, _mm_slli_epi32, _mm_srai_epi32,
        _mm_storeu_ps, _mm256_add_epi32, _mm256_broadcastsi128_si256, _mm256_castsi128_si256,
        _mm256_castsi256_si128, _mm256_extracti128_si256, _mm256_madd_epi16, _mm256_permutevar8x32_epi32,
        _mm256_set_m128i, _mm256_set1_epi32, _mm256_setr_epi8, _mm256_setr_epi32, _mm256_setzero_si256,
        _mm256_shuffle_epi8,
    };
    use std::ops::Range;

    use crate::{
        area,
        pillow::{HALF, Taps, WEIGHT_BITS},
    };

    const CHANNELS: usize = 3;

    /// Rows done at once, so that weights are unpacked once for all of them.
    const ROWS: usize = 4;

    /// Pixels done at once; a load of 16 bytes takes a little more.
    const STEP: usize = 4;
    const LOAD_EXCESS: usize = 16 - STEP * CHANNELS;

    /// How many bits of a weight go into the lower of its two halves.
    const LOW_BITS: u32 = 11;

    /// The weights as the first pass wants them.
    ///
    /// The products need 8 + 23 bits, and the only quick multiplication that also adds takes 16-bit numbers. So a weight is
    /// split into two: both sums are exact, and so is their sum.
    pub(crate) struct SplitTaps {
        /// For four pixels: the upper halves of their weights, and the lower ones.
        weights: Vec<[i16; 2 * STEP]>,
        taps: Vec<SplitTap>,
        /// How many bytes of a row are loaded.
        reach: usize,
    }

    struct SplitTap {
        /// Where its pixels start in a row, in bytes.
        first: usize,
        weights: Range<usize>,
        outside: i32,
    }

    impl SplitTaps {
        /// `None` where this processor has no AVX2.
        pub fn new(taps: &Taps) -> Option<Self> {
            if !is_x86_feature_detected!("avx2") {
                return None;
            }
            let mut split = Self { weights: Vec::new(), taps: Vec::with_capacity(taps.len()), reach: 0 };
            for tap in taps.iter() {
                let begin = split.weights.len();
                split.weights.extend(tap.weights.chunks(STEP).map(halves));
                let (first, weights) = (tap.first * CHANNELS, begin..split.weights.len());
                split.reach = split.reach.max(first + weights.len() * STEP * CHANNELS + LOAD_EXCESS);
                split.taps.push(SplitTap { first, weights, outside: tap.outside });
            }
            Some(split)
        }

        /// The first pass for rows of `row_len` bytes, as many as `out` has room for. After the last, `rows` has
        /// [`crate::rows::SLACK`] more bytes, for the last load reaches beyond its pixels.
        pub fn resize_rows(&self, rows: &[u8], row_len: usize, ground: [i32; 3], out: &mut [u8]) {
            let out_len = self.taps.len() * CHANNELS;
            let last = out.len() / out_len - 1;
            assert!(
                last * row_len + self.reach <= rows.len(),
                "row {last} of {row_len} bytes is read for {} bytes, of {} in all",
                self.reach,
                rows.len()
            );
            for (block, out) in out.chunks_mut(ROWS * out_len).enumerate() {
                // Where fewer rows are left, the last is done again.
                let starts = std::array::from_fn(|row| (block * ROWS + row).min(last) * row_len);
                // SAFETY: without AVX2 there is no `Self`, and the assertion above is about the last of the starts.
                unsafe { self.resize_block(rows, starts, ground, out) };
            }
        }

        /// Up to four rows, which start at `starts`.
        ///
        /// # Safety
        /// From each start on, `rows` has at least `self.reach` bytes.
        #[target_feature(enable = "avx2")]
        unsafe fn resize_block(&self, rows: &[u8], starts: [usize; ROWS], ground: [i32; 3], out: &mut [u8]) {
            let upper = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
            let lower = _mm256_setr_epi32(2, 2, 2, 2, 3, 3, 3, 3);
            // Each channel of two neighbouring pixels side by side, as 16-bit numbers: the first two pixels, the other two.
            let spread = _mm256_setr_epi8(
                0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1, //
                6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1,
            );
            let ground = _mm_set_epi32(0, ground[2], ground[1], ground[0]);
            for (i, tap) in self.taps.iter().enumerate() {
                let mut high = [_mm256_setzero_si256(); ROWS];
                let mut low = [_mm256_setzero_si256(); ROWS];
                for (step, weights) in self.weights[tap.weights.clone()].iter().enumerate() {
                    // SAFETY: an array of eight 16-bit numbers has 16 bytes.
                    let weights = unsafe { _mm_loadu_si128(weights.as_ptr().cast()) };
                    let weights = _mm256_castsi128_si256(weights);
                    let weights_high = _mm256_permutevar8x32_epi32(weights, upper);
                    let weights_low = _mm256_permutevar8x32_epi32(weights, lower);
                    for row in 0..ROWS {
                        let at = starts[row] + tap.first + step * STEP * CHANNELS;
                        // SAFETY: `reach` counts these 16 bytes.
                        let pixels = unsafe { _mm_loadu_si128(rows.as_ptr().add(at).cast()) };
                        let pixels = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(pixels), spread);
                        high[row] = _mm256_add_epi32(high[row], _mm256_madd_epi16(pixels, weights_high));
                        low[row] = _mm256_add_epi32(low[row], _mm256_madd_epi16(pixels, weights_low));
                    }
                }
                let outside = _mm_mullo_epi32(ground, _mm_set1_epi32(tap.outside));
                let start = _mm_add_epi32(outside, _mm_set1_epi32(HALF));
                for (row, out) in out.chunks_exact_mut(self.taps.len() * CHANNELS).enumerate() {
                    let high = _mm_slli_epi32::<{ LOW_BITS as i32 }>(both(high[row]));
                    let sum = _mm_add_epi32(start, _mm_add_epi32(high, both(low[row])));
                    let levels = _mm_srai_epi32::<{ WEIGHT_BITS as i32 }>(sum);
                    let levels = _mm_packus_epi32(levels, levels);
                    let pixel = _mm_cvtsi128_si32(_mm_packus_epi16(levels, levels)).to_le_bytes();
                    out[i * CHANNELS..][..CHANNELS].copy_from_slice(&pixel[..CHANNELS]);
                }
            }
        }
    }

    /// The upper halves of up to four weights, and the lower ones: `upper * 2^11 + lower` is the weight.
    fn halves(weights: &[i32]) -> [i16; 2 * STEP] {
        const HALF_LOW: i32 = 1 << (LOW_BITS - 1);
        let mut halves = [0; 2 * STEP];
        for (i, weight) in weights.iter().enumerate() {
            let lower = ((weight + HALF_LOW) & ((1 << LOW_BITS) - 1)) - HALF_LOW;
            halves[i] = ((weight - lower) >> LOW_BITS) as i16;
            halves[STEP + i] = lower as i16;
        }
        halves
    }

    /// The light of each pixel, as `crate::rows` reckons it in plain code, and gives the number of pixels done: all but the
    /// last few; none where this processor has no AVX2.
    pub(crate) fn grey_pixels(rgb: &[u8], out: &mut [u8]) -> usize {
        if !is_x86_feature_detected!("avx2") {
            return 0;
        }
        // SAFETY: the processor has AVX2.
        unsafe { grey_pixels_avx2(rgb, out) }
    }

    #[target_feature(enable = "avx2")]
    fn grey_pixels_avx2(rgb: &[u8], out: &mut [u8]) -> usize {
        // In two loads of 16 bytes, of which 12 count.
        const PIXELS: usize = 8;
        const LOADED: usize = 28;
        // Red and green side by side, as 16-bit numbers; green and blue. The weight of green does not fit into 16 bits,
        // half of it does.
        let red_green = _mm256_setr_epi8(
            0, -1, 1, -1, 3, -1, 4, -1, 6, -1, 7, -1, 9, -1, 10, -1, //
            0, -1, 1, -1, 3, -1, 4, -1, 6, -1, 7, -1, 9, -1, 10, -1,
        );
        let green_blue = _mm256_setr_epi8(
            1, -1, 2, -1, 4, -1, 5, -1, 7, -1, 8, -1, 10, -1, 11, -1, //
            1, -1, 2, -1, 4, -1, 5, -1, 7, -1, 8, -1, 10, -1, 11, -1,
        );
        let third = _mm256_setr_epi8(
            2, 6, 10, 14, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, //
            2, 6, 10, 14, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
        );
        let red_green_weights = _mm256_set1_epi32(19_235 << 16 | 19_595);
        let green_blue_weights = _mm256_set1_epi32(7_471 << 16 | 19_235);
        let mut done = 0;
        while done * CHANNELS + LOADED <= rgb.len() && done + PIXELS <= out.len() {
            // SAFETY: 28 bytes are there.
            let pixels = unsafe {
                let load = |at| _mm_loadu_si128(rgb.as_ptr().add(done * CHANNELS + at).cast());
                _mm256_set_m128i(load(12), load(0))
            };
            let sum = _mm256_add_epi32(
                _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, red_green), red_green_weights),
                _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, green_blue), green_blue_weights),
            );
            // The level is the third byte of each sum.
            let levels = _mm256_shuffle_epi8(_mm256_add_epi32(sum, _mm256_set1_epi32(0x8000)), third);
            for (half, start) in
                [(_mm256_castsi256_si128(levels), 0), (_mm256_extracti128_si256::<1>(levels), PIXELS / 2)]
            {
                let four = _mm_cvtsi128_si32(half).to_le_bytes();
                out[done + start..][..4].copy_from_slice(&four);
            }
            done += PIXELS;
        }
        done
    }

    /// Shrinks a row by area, as `crate::area` does it in plain code: a pixel at a time, its bytes side by side.
    /// `false` where this processor has no AVX2.
    pub(crate) fn narrow<const BYTES: usize>(
        row: &[u8],
        taps: &area::Taps,
        out: &mut [[f32; area::LANES]],
    ) -> bool {
        const { assert!(0 < BYTES && BYTES <= area::LANES) };
        if !is_x86_feature_detected!("avx2") {
            return false;
        }
        // SAFETY: the processor has AVX2.
        unsafe { narrow_avx2::<BYTES>(row, taps, out) };
        true
    }

    #[target_feature(enable = "avx2")]
    fn narrow_avx2<const BYTES: usize>(row: &[u8], taps: &area::Taps, out: &mut [[f32; area::LANES]]) {
        for (tap, out) in taps.iter().zip(out) {
            let mut sums = _mm_setzero_ps();
            let pixels = &row[tap.first * BYTES..][..tap.weights.len() * BYTES + area::LANES - BYTES];
            for (i, weight) in tap.weights.iter().enumerate() {
                // SAFETY: the slice has these bytes for each weight, and after the last those that four take more.
                let pixel = unsafe { pixels.as_ptr().add(i * BYTES).cast::<i32>().read_unaligned() };
                let levels = _mm_cvtepu8_epi32(_mm_cvtsi32_si128(pixel));
                sums = _mm_add_ps(sums, _mm_mul_ps(_mm_cvtepi32_ps(levels), _mm_set1_ps(*weight)));
            }
            // SAFETY: four numbers of 32 bits are 16 bytes.
            unsafe { _mm_storeu_ps(out.as_mut_ptr(), sums) };
        }
    }

    /// The sum of the two halves.
    #[target_feature(enable = "avx2")]
    fn both(sums: __m256i) -> __m128i {
        _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums))
    }
}
