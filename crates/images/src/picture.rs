//! A decoded picture.

use image::{DynamicImage, RgbImage, RgbaImage, metadata::Orientation};

/// A decoded picture: 8 bits a channel, sRGB as stored, the first row at the top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Picture {
    /// Without transparency.
    Rgb(RgbImage),
    /// With transparency; the colours are not multiplied by it.
    Rgba(RgbaImage),
}

impl Picture {
    /// Width in pixels.
    pub fn width(&self) -> u32 {
        self.size().0
    }

    /// Height in pixels.
    pub fn height(&self) -> u32 {
        self.size().1
    }

    /// Width and height in pixels.
    pub fn size(&self) -> (u32, u32) {
        match self {
            Self::Rgb(image) => image.dimensions(),
            Self::Rgba(image) => image.dimensions(),
        }
    }

    /// The picture without transparency: laid over white where it had some.
    pub fn into_rgb(self) -> RgbImage {
        match self {
            Self::Rgb(image) => image,
            Self::Rgba(image) => crate::flatten(&image),
        }
    }

    /// The picture as a camera meant it to be seen.
    pub(crate) fn oriented(self, orientation: Orientation) -> Self {
        let mut image = match self {
            Self::Rgb(image) => DynamicImage::ImageRgb8(image),
            Self::Rgba(image) => DynamicImage::ImageRgba8(image),
        };
        image.apply_orientation(orientation);
        match image {
            DynamicImage::ImageRgb8(image) => Self::Rgb(image),
            DynamicImage::ImageRgba8(image) => Self::Rgba(image),
            other => unreachable!("turning a picture made it {:?}", other.color()),
        }
    }
}
