//! Resizing, each filter with the arithmetic of its original.

use std::ops::Range;

use image::{RgbImage, imageops};

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

/// These columns and rows of what [`resize`] makes, to the bit. Where that would be larger than the picture, they cost what they are and
/// no more.
///
/// # Panics
/// When a side is 0, or the part reaches beyond it.
pub fn resize_part(
    image: &RgbImage,
    (width, height): (u32, u32),
    [columns, rows]: [Range<u32>; 2],
    filter: Filter,
) -> RgbImage {
    assert!(columns.end <= width && rows.end <= height, "{columns:?} and {rows:?} of {width} x {height}");
    let (wide, high) = (columns.len() as u32, rows.len() as u32);
    let kernel = match filter {
        Filter::Bilinear => BILINEAR,
        Filter::Bicubic => BICUBIC,
        Filter::Area if width <= image.width() && height <= image.height() => {
            let whole = resize(image, width, height, filter);
            return imageops::crop_imm(&whole, columns.start, rows.start, wide, high).to_image();
        }
        Filter::Lanczos | Filter::Area => LANCZOS,
    };
    assert!(width > 0 && height > 0, "cannot resize to {width} x {height}");
    let canvas = Canvas::tight(image.dimensions());
    let part = [columns, rows];
    let pixels = pillow::resize_part(&mut Rows::of(image), &canvas, (width, height), part, kernel);
    RgbImage::from_raw(wide, high, pixels).expect("one value for each pixel and channel")
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
    fn a_part_is_cut_out_of_the_whole() {
        let image =
            RgbImage::from_fn(23, 31, |x, y| Rgb([(x * 37 + y) as u8, (y * 53) as u8, (x * y) as u8]));
        let thin = RgbImage::from_fn(1, 40, |_, y| Rgb([(y * 6) as u8, 9, 200]));
        for (image, size) in [(&image, (64, 77)), (&image, (9, 12)), (&image, (40, 20)), (&thin, (33, 400))] {
            let part = [size.0 / 3..size.0 / 2 + 1, size.1 / 2..size.1];
            let cut = |whole: RgbImage| {
                let [columns, rows] = part.clone();
                let (wide, high) = (columns.len() as u32, rows.len() as u32);
                imageops::crop_imm(&whole, columns.start, rows.start, wide, high).to_image()
            };
            for filter in FILTERS {
                let whole = resize(image, size.0, size.1, filter);
                assert_eq!(resize_part(image, size, part.clone(), filter), cut(whole), "{filter:?} {size:?}");
            }
            let cubic = crate::resize_cubic(image, size.0, size.1);
            assert_eq!(crate::resize_cubic_part(image, size, part.clone()), cut(cubic));
            let nearest = crate::resize_nearest(image, size.0, size.1);
            assert_eq!(crate::resize_nearest_part(image, size, part.clone()), cut(nearest));
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
