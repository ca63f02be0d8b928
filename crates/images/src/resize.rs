//! Resizing, each filter with the arithmetic of its original.

use image::RgbImage;

use crate::{
    area,
    canvas::Canvas,
    pillow::{self, BICUBIC, BILINEAR, LANCZOS},
    rows::Rows,
};

/// Resamplers, each with the arithmetic of its original.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Filter {
    /// Pillow's `BILINEAR`, to the bit.
    Bilinear,
    /// Pillow's `BICUBIC` (a = -0.5), to the bit.
    Bicubic,
    /// Pillow's `LANCZOS` (a = 3), to the bit.
    Lanczos,
    /// OpenCV's `INTER_AREA`, to the bit, but for the rounding of sums with more than 16 pixels of ground beside the picture;
    /// where a side would grow, Pillow's `LANCZOS`, as kohya's tagging script has it.
    Area,
}

/// Resizes to `width` x `height`.
///
/// # Panics
/// When `width` or `height` is 0.
pub fn resize(image: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    resize_canvas(&mut Rows::of(image), &Canvas::tight(image.dimensions()), width, height, filter)
}

/// Resizes to `width` x `height`: the bytes of Pillow's `Image.resize((width, height), Image.BICUBIC)`.
///
/// # Panics
/// When `width` or `height` is 0.
pub fn resize_bicubic(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    resize(image, width, height, Filter::Bicubic)
}

/// Makes the longer side at most `side_px`, and the other by the same ratio; what is smaller stays as it is.
pub fn shrink(image: RgbImage, side_px: u32, filter: Filter) -> RgbImage {
    let (width, height) = fitted(image.dimensions(), side_px);
    if (width, height) == image.dimensions() { image } else { resize(&image, width, height, filter) }
}

/// A size of which the longer side is at most `side_px`, and the other in the same ratio, rounded to the nearest.
pub(crate) fn fitted((width, height): (u32, u32), side_px: u32) -> (u32, u32) {
    let (longer, most) = (u64::from(width.max(height)), u64::from(side_px));
    let scaled = |side: u32| match longer > most {
        true => ((2 * u64::from(side) * most + longer) / (2 * longer)).max(1) as u32,
        false => side,
    };
    (scaled(width), scaled(height))
}

/// Resizes the whole canvas.
pub(crate) fn resize_canvas(
    rows: &mut Rows,
    canvas: &Canvas,
    width: u32,
    height: u32,
    filter: Filter,
) -> RgbImage {
    assert!(width > 0 && height > 0, "cannot resize to {width} x {height}");
    let shrinks = width as usize <= canvas.columns.len && height as usize <= canvas.rows.len;
    let pixels = match filter {
        Filter::Bilinear => pillow::resize(rows, canvas, width, height, BILINEAR),
        Filter::Bicubic => pillow::resize(rows, canvas, width, height, BICUBIC),
        Filter::Area if shrinks => area::shrink(rows, canvas, width, height),
        Filter::Lanczos | Filter::Area => pillow::resize(rows, canvas, width, height, LANCZOS),
    };
    RgbImage::from_raw(width, height, pixels).expect("one value for each pixel and channel")
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    const FILTERS: [Filter; 4] = [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos, Filter::Area];

    #[test]
    fn the_same_size_is_the_same_picture() {
        let image = RgbImage::from_fn(5, 3, |x, y| Rgb([x as u8 * 50, y as u8 * 80, 7]));
        for filter in FILTERS {
            assert_eq!(resize(&image, 5, 3, filter), image);
        }
    }

    #[test]
    fn the_longer_side_is_what_was_asked_for() {
        let shrunk = |width, height| shrink(RgbImage::new(width, height), 256, Filter::Bicubic).dimensions();
        let sizes = [(1000, 500), (500, 1000), (3, 2000), (100, 256), (256, 257), (50, 20)];
        let small = sizes.map(|(width, height)| shrunk(width, height));
        assert_eq!(small, [(256, 128), (128, 256), (1, 256), (100, 256), (255, 256), (50, 20)]);
    }

    #[test]
    fn flat_stays_flat() {
        for value in [0, 1, 127, 254, 255] {
            let image = RgbImage::from_pixel(17, 5, Rgb([value; 3]));
            for filter in FILTERS {
                for (width, height) in [(6, 11), (5, 5), (17, 1), (1, 1)] {
                    let resized = resize(&image, width, height, filter);
                    assert!(resized.as_raw().iter().all(|v| *v == value), "{filter:?} to {width} x {height}");
                }
            }
        }
    }
}
