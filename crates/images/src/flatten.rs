//! Transparency over a colour.

use image::{Rgb, RgbImage, RgbaImage};

use vodka_stage::for_avx2;

pub(crate) const WHITE: Rgb<u8> = Rgb([255; 3]);

/// Lays a picture over opaque white, with the rounding of Pillow's `Image.alpha_composite`.
pub fn flatten(image: &RgbaImage) -> RgbImage {
    flatten_over(image, WHITE)
}

/// Lays a picture over an opaque colour, with the rounding of Pillow's `Image.alpha_composite`.
pub fn flatten_over(image: &RgbaImage, under: Rgb<u8>) -> RgbImage {
    let (width, height) = image.dimensions();
    let mut flat = RgbImage::new(width, height);
    flatten_row(image.as_raw(), under.0, &mut flat);
    flat
}

for_avx2! {
    pub(crate) fn flatten_row(rgba: &[u8], under: [u8; 3], rgb: &mut [u8]) {
        for (pixel, flat) in rgba.chunks_exact(4).zip(rgb.chunks_exact_mut(3)) {
            for channel in 0..3 {
                flat[channel] = over(pixel[channel], under[channel], pixel[3]);
            }
        }
    }
}

/// One channel over another. Over an opaque ground Pillow's weights are `alpha` and `255 - alpha` with 7 more bits, and
/// its division by 255 is this shift.
#[inline(always)]
fn over(value: u8, under: u8, alpha: u8) -> u8 {
    let [value, under, alpha] = [value, under, alpha].map(u32::from);
    let sum = ((value * alpha + under * (255 - alpha)) << 7) + (0x80 << 7);
    ((((sum >> 8) + sum) >> 8) >> 7) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transparent_is_white_and_opaque_is_itself() {
        for value in 0..=255 {
            assert_eq!(over(value, 255, 0), 255);
            assert_eq!(over(value, 7, 255), value);
        }
    }
}
