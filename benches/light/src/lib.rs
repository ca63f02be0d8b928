//! Pictures to measure with: as grainy as photographs, for what is smooth decodes faster than what people have.

use std::{fs::File, io::BufWriter, path::Path};

use image::{
    ExtendedColorType, ImageEncoder, ImageResult, Rgb, RgbImage,
    codecs::{jpeg::JpegEncoder, png::PngEncoder, webp::WebPEncoder},
};

/// How a picture is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Quality 90, as cameras and boorus have it.
    Jpeg,
    /// Lossless.
    Png,
    /// Lossless.
    WebP,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Jpeg, Self::Png, Self::WebP];

    /// The usual extension.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Jpeg => "jpg",
            Self::Png => "png",
            Self::WebP => "webp",
        }
    }
}

/// A picture with slow changes of colour, edges and grain; another one for each seed.
pub fn photograph(width: u32, height: u32, seed: u32) -> RgbImage {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    RgbImage::from_fn(width, height, |x, y| {
        // xorshift32 (Marsaglia 2003); the sum of two draws has a triangular distribution, much like grain.
        let mut draw = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            f64::from(state >> 24) / 255.0 - 0.5
        };
        let grain = 18.0 * (draw() + draw());
        let (u, v) = (f64::from(x) / f64::from(width), f64::from(y) / f64::from(height));
        let wave = (9.0 * u + f64::from(seed)).sin() * (7.0 * v).cos();
        let edge = if ((12.0 * u).floor() + (9.0 * v).floor()) % 2.0 == 0.0 { 25.0 } else { -25.0 };
        let level = |base: f64, gain: f64| (base + gain * wave + edge + grain).clamp(0.0, 255.0) as u8;
        Rgb([level(130.0, 70.0), level(120.0, -50.0), level(110.0, 60.0)])
    })
}

/// Writes a picture.
///
/// # Errors
/// When the file cannot be written.
pub fn save(image: &RgbImage, path: &Path, format: Format) -> ImageResult<()> {
    let file = BufWriter::new(File::create(path)?);
    let (width, height) = image.dimensions();
    let color = ExtendedColorType::Rgb8;
    match format {
        Format::Jpeg => JpegEncoder::new_with_quality(file, 90).write_image(image, width, height, color),
        Format::Png => PngEncoder::new(file).write_image(image, width, height, color),
        Format::WebP => WebPEncoder::new_lossless(file).write_image(image, width, height, color),
    }
}
