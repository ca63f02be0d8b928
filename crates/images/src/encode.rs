//! Pictures for others: JPEG and PNG in memory.

use image::{
    RgbImage,
    codecs::{jpeg::JpegEncoder, png::PngEncoder},
};

/// The picture as JPEG, with a quality of 1 to 100.
pub fn jpeg(picture: &RgbImage, quality: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let encoder = JpegEncoder::new_with_quality(&mut bytes, quality);
    picture.write_with_encoder(encoder).expect("memory takes every picture that JPEG can hold");
    bytes
}

/// The picture as PNG.
pub fn png(picture: &RgbImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    picture.write_with_encoder(PngEncoder::new(&mut bytes)).expect("memory takes every picture");
    bytes
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;
    use crate::{DecodeOptions, decode_bytes};

    #[test]
    fn what_is_written_can_be_read() {
        let grey = RgbImage::from_pixel(40, 30, Rgb([90, 120, 150]));
        let read = decode_bytes(&jpeg(&grey, 90), &DecodeOptions::default()).unwrap().picture.into_rgb();
        assert_eq!(read.dimensions(), (40, 30));
        assert!(
            read.pixels().all(|pixel| pixel.0.iter().zip([90, 120, 150]).all(|(a, b)| a.abs_diff(b) < 3))
        );
        let picture = RgbImage::from_fn(40, 30, |x, y| Rgb([x as u8, y as u8, 9]));
        let read = decode_bytes(&png(&picture), &DecodeOptions::default()).unwrap().picture.into_rgb();
        assert_eq!(read, picture);
    }
}
