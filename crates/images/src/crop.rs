//! Cutting pictures to the sizes that training wants.

use image::{RgbImage, imageops};

use crate::resize_bicubic;

/// Which part of a picture stays when it is cut: 0 keeps the left (or upper) end, 1 the right (or lower) one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Anchor {
    /// Along the width, 0 to 1.
    pub x: f64,
    /// Along the height, 0 to 1.
    pub y: f64,
}

impl Anchor {
    /// The middle.
    pub const CENTRE: Self = Self { x: 0.5, y: 0.5 };
}

/// The part of `image` that starts at (`left`, `top`).
///
/// # Panics
/// When the part reaches out of the picture.
pub fn crop(image: &RgbImage, left: u32, top: u32, width: u32, height: u32) -> RgbImage {
    let (w, h) = image.dimensions();
    assert!(left + width <= w && top + height <= h, "{width} x {height} at ({left}, {top}) of {w} x {h}");
    imageops::crop_imm(image, left, top, width, height).to_image()
}

/// The picture with left and right exchanged.
pub fn flip_horizontal(image: &RgbImage) -> RgbImage {
    imageops::flip_horizontal(image)
}

/// Scales a picture (bicubic) so that it just covers `width` x `height`, and cuts off what sticks out.
///
/// # Panics
/// When `width` or `height` is 0.
pub fn fit_crop(image: &RgbImage, width: u32, height: u32, anchor: Anchor) -> RgbImage {
    let (w, h) = cover(image.dimensions(), (width, height));
    let scaled = resize_bicubic(image, w, h);
    let offset = |free: u32, at: f64| (f64::from(free) * at.clamp(0.0, 1.0)).floor() as u32;
    crop(&scaled, offset(w - width, anchor.x), offset(h - height, anchor.y), width, height)
}

/// The smallest size with the shape of `from` that covers `target`: one side is the target's, the other is rounded.
fn cover(from: (u32, u32), target: (u32, u32)) -> (u32, u32) {
    let [fw, fh, tw, th] = [from.0, from.1, target.0, target.1].map(u64::from);
    let rounded =
        |numerator: u64, denominator: u64| ((2 * numerator + denominator) / (2 * denominator)) as u32;
    if fw * th >= fh * tw {
        (rounded(fw * th, fh).max(target.0), target.1)
    } else {
        (target.0, rounded(fh * tw, fw).max(target.1))
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    #[test]
    fn the_cover_touches_one_side() {
        assert_eq!(cover((200, 100), (50, 50)), (100, 50));
        assert_eq!(cover((100, 201), (50, 50)), (50, 101));
        assert_eq!(cover((64, 64), (64, 64)), (64, 64));
        assert_eq!(cover((1000, 999), (3, 3)), (3, 3));
        assert_eq!(cover((1, 5), (40, 20)), (40, 200));
    }

    #[test]
    fn the_anchor_chooses_the_part() {
        let image = RgbImage::from_fn(30, 10, |x, _| Rgb([x as u8; 3]));
        let first = |x| fit_crop(&image, 10, 10, Anchor { x, y: 0.5 }).get_pixel(0, 0).0[0];
        assert_eq!((first(0.0), first(0.5), first(1.0)), (0, 10, 20));
    }
}
