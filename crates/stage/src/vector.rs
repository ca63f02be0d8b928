//! Vector code: plain loops compiled a second time for AVX2.

/// Compiles a function of plain loops twice, and calls the one for AVX2 where the processor has it. Both give the same:
/// nothing is reordered and nothing fused.
#[macro_export]
macro_rules! for_avx2 {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$doc])*
        $vis fn $name($($arg: $type),*) {
            #[inline(always)]
            fn plain($($arg: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $type),*) {
                    plain($($arg),*);
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has AVX2.
                    return unsafe { avx2($($arg),*) };
                }
            }
            plain($($arg),*);
        }
    };
}

#[cfg(test)]
mod tests {
    for_avx2! {
        /// Adds a number to each.
        fn add(values: &mut [f32], by: f32) {
            values.iter_mut().for_each(|value| *value += by);
        }
    }

    #[test]
    fn both_ways_do_the_same() {
        let mut values: Vec<f32> = (0..21_u8).map(f32::from).collect();
        add(&mut values, 0.5);
        assert!(values.iter().zip(0..21_u8).all(|(value, i)| *value == f32::from(i) + 0.5));
    }
}
