//! Transparency over white, and white squares.

use image::{Rgb, RgbImage, RgbaImage, imageops};

use crate::{
    Picture,
    resize::{Canvas, resize_on_canvas},
};

const WHITE: Rgb<u8> = Rgb([255; 3]);

/// Lays a picture over opaque white, with the rounding of Pillow's `Image.alpha_composite`.
pub fn flatten(image: &RgbaImage) -> RgbImage {
    let (width, height) = image.dimensions();
    let mut flat = RgbImage::new(width, height);
    for (flat, pixel) in flat.pixels_mut().zip(image.pixels()) {
        let [r, g, b, alpha] = pixel.0;
        flat.0 = [r, g, b].map(|value| over_white(value, alpha));
    }
    flat
}

/// One channel over white. Over an opaque ground Pillow's weights are `alpha` and `255 - alpha` with 7 more bits, and
/// its division by 255 is this shift.
fn over_white(value: u8, alpha: u8) -> u8 {
    let (value, alpha) = (u32::from(value), u32::from(alpha));
    let sum = ((value * alpha + 255 * (255 - alpha)) << 7) + (0x80 << 7);
    ((((sum >> 8) + sum) >> 8) >> 7) as u8
}

/// Puts a picture in the middle of a white square as large as its longer side. The free space is halved rounding
/// down: of an odd number of free columns the right side gets one more.
pub fn pad_square(image: &RgbImage) -> RgbImage {
    let canvas = Canvas::square(image.dimensions());
    let mut square = RgbImage::from_pixel(canvas.width, canvas.height, WHITE);
    imageops::replace(&mut square, image, i64::from(canvas.left), i64::from(canvas.top));
    square
}

/// [`flatten`], [`pad_square`] and [`crate::resize_bicubic`] to `size` x `size` in one, with the same result to the
/// bit and without ever holding the padded picture.
///
/// # Panics
/// When `size` is 0.
pub fn white_square(picture: &Picture, size: u32) -> RgbImage {
    let flat;
    let image = match picture {
        Picture::Rgb(image) => image,
        Picture::Rgba(image) => {
            flat = flatten(image);
            &flat
        }
    };
    resize_on_canvas(image, Canvas::square(image.dimensions()), size, size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transparent_is_white_and_opaque_is_itself() {
        for value in 0..=255 {
            assert_eq!(over_white(value, 0), 255);
            assert_eq!(over_white(value, 255), value);
        }
    }

    #[test]
    fn the_odd_column_goes_to_the_right() {
        let square = pad_square(&RgbImage::new(1, 4));
        let row: Vec<_> = (0..4).map(|x| square.get_pixel(x, 2).0[0]).collect();
        assert_eq!(row, [255, 0, 255, 255]);
    }

    #[test]
    fn the_fused_way_is_the_long_way() {
        for (width, height, size) in
            [(1, 9, 5), (13, 7, 4), (5, 6, 16), (8, 8, 8), (40, 1, 8), (3, 200, 7), (9, 4, 9)]
        {
            let image = RgbImage::from_fn(width, height, |x, y| {
                let mix = (x * 7919 + y * 104_729 + 31).wrapping_mul(2_654_435_761);
                Rgb([mix >> 24, mix >> 16, mix >> 8].map(|value| value as u8))
            });
            let long = crate::resize_bicubic(&pad_square(&image), size, size);
            assert_eq!(white_square(&Picture::Rgb(image), size), long, "{width} x {height} to {size}");
        }
    }
}
