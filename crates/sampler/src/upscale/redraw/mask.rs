//! Masks of tiles: where, and how far, what is made takes the place of what was there.

use image::{GrayImage, Luma, Rgb, RgbImage};
use vodka_images::{Filter, gaussian_kernel, reflected, resize};

use super::geometry::Rect;
use crate::redraw::{FINE, FinePicture};

/// The values of a mask before it is blurred, over its rectangle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// All of it.
    Full,
    /// From nothing at the top to all in the middle and nothing at the bottom.
    Rows,
    /// The same from left to right.
    Columns,
    /// A strip about a line that runs down: the same over fewer pixels, by way of 256.
    BandColumns,
    /// The same about a line that runs across.
    BandRows,
    /// From all in the middle to less at the sides and nothing at the corners.
    Radial,
}

/// The values of a mask in a part of a picture; beside it they are 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mask {
    pub(crate) area: Rect,
    pub(crate) values: GrayImage,
}

/// How far a blur reaches, in pixels.
pub(crate) fn reach(blur: u32) -> u32 {
    if blur == 0 { 0 } else { (2.5 * f64::from(blur) + 0.5) as u32 }
}

impl Mask {
    /// A shape over the rectangle `at`, of which what sticks out of the picture is cut off, blurred as A1111 blurs masks: first along rows,
    /// then along columns.
    pub(crate) fn draw(shape: Shape, at: Rect, blur: u32, canvas: (u32, u32)) -> Self {
        // So wide a black border that what the blur mirrors at it is black.
        let margin = 2 * reach(blur) + 1;
        let area = at.grown(margin).within(canvas);
        let profile = Profile::of(shape, at);
        let values = GrayImage::from_fn(area.width, area.height, |x, y| {
            let (x, y) = (area.left + x, area.top + y);
            let is_inside = (at.left..at.right()).contains(&x) && (at.top..at.bottom()).contains(&y);
            Luma([if is_inside { profile.value(x - at.left, y - at.top) } else { 0 }])
        });
        Self { area, values: blurred(&values, blur) }
    }

    /// The smallest rectangle beside which all is 0; none of a mask without values.
    pub(crate) fn bounds(&self) -> Option<Rect> {
        let set = self.values.enumerate_pixels().filter(|(_, _, value)| value.0[0] > 0);
        let sides = set.fold(None, |sides: Option<[u32; 4]>, (x, y, _)| {
            let [left, top, right, bottom] = sides.unwrap_or([x, y, x, y]);
            Some([left.min(x), top.min(y), right.max(x), bottom.max(y)])
        });
        let Rect { left: x, top: y, .. } = self.area;
        sides.map(|[left, top, right, bottom]| Rect {
            left: x + left,
            top: y + top,
            width: right - left + 1,
            height: bottom - top + 1,
        })
    }

    /// The values in a rectangle, as a grey picture.
    pub(crate) fn cropped(&self, rect: Rect) -> RgbImage {
        RgbImage::from_fn(rect.width, rect.height, |x, y| {
            let value = self.value(rect.left + x, rect.top + y);
            Rgb([value; 3])
        })
    }

    fn value(&self, x: u32, y: u32) -> u8 {
        let inside = x.checked_sub(self.area.left).zip(y.checked_sub(self.area.top));
        inside.and_then(|(x, y)| self.values.get_pixel_checked(x, y)).map_or(0, |value| value.0[0])
    }

    /// Lays `made`, which is for the rectangle `at`, over a picture, as far as this says: A1111 lays what stays over what is made
    /// (stable-diffusion-webui 1.10.1, `modules/processing.py`, `apply_overlay`). Whole levels have Pillow's roundings.
    pub(crate) fn paste(&self, made: &FinePicture, at: Rect, canvas: &mut FinePicture, depth: Depth) {
        let mixed = match depth {
            Depth::Whole => mixed_levels,
            Depth::Fine => mixed_fine,
        };
        for (x, y, made) in made.enumerate_pixels() {
            let (x, y) = (at.left + x, at.top + y);
            let share = u32::from(self.value(x, y));
            if share > 0 {
                let old = canvas.get_pixel_mut(x, y);
                *old = Rgb([0, 1, 2].map(|i| mixed(made.0[i].into(), old.0[i].into(), share)));
            }
        }
    }
}

/// In what steps tiles, and the picture that they are drawn in, are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Levels of 255, with all roundings of the original.
    Whole,
    /// 256ths of a level: what the last bits of a tile are then changes no other tile by a level.
    Fine,
}

/// A value of which this share of 255 is new, the nearest.
fn mixed_fine(made: u32, old: u32, share: u32) -> u16 {
    ((made * share + old * (255 - share) + 127) / 255) as u16
}

/// The same of whole levels.
fn mixed_levels(made: u32, old: u32, share: u32) -> u16 {
    let fine = u32::from(FINE);
    u16::from(mixed(made / fine, old / fine, share)) * FINE
}

/// A value of which this share of 255 is new: what stays goes through premultiplied bytes, whose quotients are cut off, and
/// is laid over the new (Pillow 12, `Paste.c`, `Convert.c`, `AlphaComposite.c`).
fn mixed(made: u32, old: u32, share: u32) -> u8 {
    let alpha = 255 - share;
    let product = old * alpha + 128;
    let premultiplied = ((product >> 8) + product) >> 8;
    let old = (255 * premultiplied).checked_div(alpha).unwrap_or(0).min(255);
    let sum = (old * alpha + made * share + 128) << 7;
    ((((sum >> 8) + sum) >> 8) >> 7) as u8
}

/// The values of a shape over a rectangle.
enum Profile {
    Full,
    Columns(Vec<u8>),
    Rows(Vec<u8>),
    All(RgbImage),
}

impl Profile {
    fn of(shape: Shape, Rect { width, height, .. }: Rect) -> Self {
        match shape {
            Shape::Full => Self::Full,
            Shape::Rows => Self::Rows(up_and_down(height)),
            Shape::Columns => Self::Columns(up_and_down(width)),
            Shape::BandRows => Self::Rows(scaled(&up_and_down(256), height)),
            Shape::BandColumns => Self::Columns(scaled(&up_and_down(256), width)),
            Shape::Radial => Self::All(resize(&radial(), width, height, Filter::Bicubic)),
        }
    }

    fn value(&self, x: u32, y: u32) -> u8 {
        match self {
            Self::Full => 255,
            Self::Columns(values) => values[x as usize],
            Self::Rows(values) => values[y as usize],
            Self::All(picture) => 255 - picture.get_pixel(x, y).0[0],
        }
    }
}

/// Pillow's `linear_gradient`, 0 to 255, at half of the length, and back again; of an odd length the last is 0.
fn up_and_down(len: u32) -> Vec<u8> {
    let ramp: Vec<u8> = (0..=255).collect();
    let up = scaled(&ramp, len / 2);
    let down = scaled(&ramp.into_iter().rev().collect::<Vec<_>>(), len / 2);
    let mut all = [up, down].concat();
    all.resize(len as usize, 0);
    all
}

/// A row of values at another length, by Pillow's `BICUBIC`.
fn scaled(values: &[u8], len: u32) -> Vec<u8> {
    if len == 0 {
        return Vec::new();
    }
    let row = RgbImage::from_fn(values.len() as u32, 1, |x, _| Rgb([values[x as usize]; 3]));
    resize(&row, len, 1, Filter::Bicubic).pixels().map(|pixel| pixel.0[0]).collect()
}

/// Pillow's `radial_gradient`: from 0 in the middle to 255.
fn radial() -> RgbImage {
    RgbImage::from_fn(256, 256, |x, y| {
        let (x, y) = (i64::from(x) - 128, i64::from(y) - 128);
        Rgb([((2 * (x * x + y * y)) as f64).sqrt().min(255.0) as u8; 3])
    })
}

/// A1111's blur of masks: OpenCV's `GaussianBlur` of bytes with a kernel that [`reach`]es to both sides, along rows, rounded, then along
/// columns (stable-diffusion-webui 1.10.1, `modules/processing.py`; opencv 4, `modules/imgproc/src/smooth.dispatch.cpp`).
fn blurred(values: &GrayImage, blur: u32) -> GrayImage {
    if blur == 0 {
        return values.clone();
    }
    let weights = kernel(blur);
    let (width, height) = values.dimensions();
    let mut result = GrayImage::new(width, height);
    for y in 0..height {
        let line: Vec<u8> = (0..width).map(|x| values.get_pixel(x, y).0[0]).collect();
        for (x, value) in smoothed(&line, &weights).into_iter().enumerate() {
            result.put_pixel(x as u32, y, Luma([value]));
        }
    }
    for x in 0..width {
        let line: Vec<u8> = (0..height).map(|y| result.get_pixel(x, y).0[0]).collect();
        for (y, value) in smoothed(&line, &weights).into_iter().enumerate() {
            result.put_pixel(x, y as u32, Luma([value]));
        }
    }
    result
}

fn kernel(blur: u32) -> Vec<u32> {
    gaussian_kernel(blur.into(), reach(blur) as usize)
}

/// A line of pixels with each replaced by the mean of its neighbours; the line goes on as its mirror image without the last pixel.
fn smoothed(line: &[u8], weights: &[u32]) -> Vec<u8> {
    if line.iter().all(|value| *value == line[0]) {
        return line.to_vec();
    }
    let places = reflected(line.len() as u32, weights.len());
    let padded: Vec<u32> = places.into_iter().map(|place| line[place as usize].into()).collect();
    let sum = |near: &[u32]| near.iter().zip(weights).map(|(value, weight)| value * weight).sum::<u32>();
    padded.windows(weights.len()).map(|near| ((sum(near) + 128) >> 8) as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(values: &[u8], blur: u32) -> Vec<u8> {
        smoothed(values, &kernel(blur))
    }

    #[test]
    fn the_blur_is_that_of_opencv() {
        // cv2.GaussianBlur(row, (11, 1), 2), which A1111 calls for a blur of 2; OpenCV 5.0.0.
        let row = [[0; 8].as_slice(), &[255; 4], &[0; 8]].concat();
        let expected = [0, 0, 0, 2, 9, 26, 57, 100, 144, 172, 172, 144, 100, 57, 26, 9, 2, 0, 0, 0];
        assert_eq!(line(&row, 2), expected);
        assert_eq!(line(&[255, 0, 0], 2), [66, 64, 62]);
        assert_eq!(line(&[255], 2), [255]);
        assert_eq!([0, 1, 2, 4, 8].map(reach), [0, 3, 5, 10, 20]);
        for blur in 1..=64 {
            assert_eq!(kernel(blur).iter().sum::<u32>(), 256);
        }
    }

    #[test]
    fn gradients_are_those_of_pillow() {
        // Image.linear_gradient("L").resize((4, 16), Image.BICUBIC), and the same turned round.
        let up = [8, 23, 40, 56, 72, 88, 104, 120, 136, 152, 168, 184, 200, 216, 232, 247];
        let both: Vec<u8> = up.iter().chain(up.iter().rev()).copied().collect();
        assert_eq!(up_and_down(32), both);
        let band = [
            11, 32, 53, 75, 96, 117, 139, 160, 181, 203, 224, 246, 246, 224, 203, 181, 160, 139, 117, 96, 75,
            53, 32, 11,
        ];
        assert_eq!(scaled(&up_and_down(256), 24), band);
        let at = Rect { left: 0, top: 0, width: 8, height: 8 };
        let found = Mask::draw(Shape::Radial, at, 0, (8, 8));
        // ImageOps.invert(Image.radial_gradient("L").resize((8, 8), Image.BICUBIC))
        let rows: [[u8; 8]; 2] = [[31, 60, 83, 96, 96, 84, 61, 32], [96, 139, 184, 224, 224, 185, 140, 97]];
        let row = |y: u32| [0, 1, 2, 3, 4, 5, 6, 7].map(|x| found.values.get_pixel(x, y).0[0]);
        assert_eq!([row(0), row(4)], rows);
    }

    #[test]
    fn a_mask_of_a_part_is_that_of_the_whole() {
        for (left, top, blur) in [(60, 40, 3), (0, 0, 8), (100, 90, 8), (60, 40, 0)] {
            let at = Rect { left, top, width: 32, height: 24 };
            let small = Mask::draw(Shape::Rows, at, blur, (128, 112));
            let whole = GrayImage::from_fn(128, 112, |x, y| {
                let is_inside = (left..left + 32).contains(&x) && (top..top + 24).contains(&y);
                Luma([if is_inside { up_and_down(24)[(y - top) as usize] } else { 0 }])
            });
            let whole = blurred(&whole, blur);
            assert!(whole.enumerate_pixels().all(|(x, y, value)| small.value(x, y) == value.0[0]), "{at:?}");
        }
    }

    const PILLOW: [(u32, u32, u32, u8); 8] = [
        (121, 247, 50, 222),
        (243, 82, 80, 132),
        (79, 250, 146, 152),
        (104, 142, 213, 110),
        (21, 69, 122, 46),
        (209, 234, 129, 221),
        (31, 208, 25, 191),
        (34, 8, 4, 8),
    ];

    #[test]
    fn a_paste_changes_what_the_mask_has() {
        let at = Rect { left: 8, top: 8, width: 8, height: 8 };
        let mask = Mask::draw(Shape::Full, at, 1, (32, 32));
        let bounds = mask.bounds().unwrap();
        assert_eq!(bounds, Rect { left: 5, top: 5, width: 14, height: 14 });
        let levels = |size, values: [u8; 3]| {
            FinePicture::from_pixel(size, size, Rgb(values.map(|value| u16::from(value) * FINE)))
        };
        let share = u32::from(mask.value(8, 12));
        assert!((170..190).contains(&share));
        for (depth, expected) in [
            (Depth::Whole, u32::from(mixed(255, 10, share)) * 256),
            (Depth::Fine, (256 * (255 * share + 10 * (255 - share)) + 127) / 255),
        ] {
            let mut canvas = levels(32, [10, 20, 30]);
            mask.paste(&levels(14, [255, 0, 30]), bounds, &mut canvas, depth);
            assert_eq!(canvas.get_pixel(12, 12), levels(1, [255, 0, 30]).get_pixel(0, 0));
            assert_eq!(canvas.get_pixel(4, 12), levels(1, [10, 20, 30]).get_pixel(0, 0));
            assert_eq!(u32::from(canvas.get_pixel(8, 12).0[0]), expected);
        }
        // Image.alpha_composite of the picture, with what was pasted through the inverted mask: made, old and share to what comes out.
        for (made, old, share, expected) in PILLOW {
            assert_eq!(mixed(made, old, share), expected, "{made} over {old} by {share}");
            let fine = mixed_fine(256 * made, 256 * old, share);
            assert!(fine.abs_diff(256 * u16::from(expected)) <= 256, "{made} over {old} by {share}: {fine}");
        }
        let empty = Mask { area: at, values: GrayImage::new(8, 8) };
        assert_eq!(empty.bounds(), None);
    }
}
