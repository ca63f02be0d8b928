//! JPEG, strictly: half a picture is an error.
//!
//! The decoder is libjpeg-turbo in Rust, with its arithmetic and so with Pillow's pixels. It is strict about the coded
//! data, and lenient, as every reader is, about what stands between the headers.

use image::{RgbImage, metadata::Orientation};
use libjpeg_turbo_rs::{DecodeLimits, Decoder, JpegError, PixelFormat, ScalingFactor, Subsampling};

use crate::{DecodeOptions, Fault, Picture, Result, decode::Stored};

const FORMAT: &str = "JPEG";

/// More scans than any encoder writes; each costs time for the whole picture.
const SCANS_MAX: usize = 500;

/// Decodes to RGB. Four channels are taken as inverted CMYK (or YCCK), as Adobe writes them and Pillow reads them.
pub(crate) fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<Stored, Fault> {
    if !has_end(bytes) {
        return Err(Fault::Truncated { format: FORMAT });
    }
    let limits = DecodeLimits {
        max_width: usize::from(u16::MAX),
        max_height: usize::from(u16::MAX),
        max_pixels: options.max_pixels,
        max_scans: SCANS_MAX,
        max_memory: None,
    };
    let mut decoder = Decoder::new_with_limits(bytes, limits).map_err(broken)?;
    let frame = decoder.header();
    let full = (u32::from(frame.width), u32::from(frame.height));
    options.check(full.0, full.1)?;
    if frame.precision != 8 {
        return Err(other(format!("{} bits a channel", frame.precision)));
    }
    let four = match frame.components.len() {
        1 | 3 => false,
        4 => true,
        channels => return Err(other(format!("{channels} channels"))),
    };
    let reduction =
        options.reduce_to.map_or(1, |wanted| divisor(full.0.max(full.1), wanted, uneven(&decoder)));
    decoder.set_scale(ScalingFactor::try_new(1, reduction).map_err(broken)?);
    decoder.set_output_format(if four { PixelFormat::Cmyk } else { PixelFormat::Rgb });
    // What C libjpeg does by default: it matters for progressive files that leave out the finest coefficients.
    decoder.set_block_smoothing(true);
    let orientation = decoder.exif_data().and_then(Orientation::from_exif_chunk);
    let image = decoder.decode_image().map_err(broken)?;
    let pixels = if four { cmyk_to_rgb(&image.data) } else { image.data };
    let picture = RgbImage::from_raw(image.width as u32, image.height as u32, pixels);
    let picture = Picture::Rgb(picture.ok_or_else(|| other("more or fewer pixels than it says"))?);
    let orientation = orientation.unwrap_or(Orientation::NoTransforms);
    Ok(Stored { picture, full, reduction, orientation })
}

/// The largest of 1, 2, 4 and 8 by which `side` can be divided, rounding up, and still be at least `wanted`; where the
/// chroma is `uneven`, even after another halving.
fn divisor(side: u32, wanted: u32, uneven: bool) -> u32 {
    let factor = if uneven { 2 } else { 1 };
    [8, 4, 2].into_iter().find(|by| side.div_ceil(by * factor) >= wanted).unwrap_or(1)
}

/// Whether the chroma has less resolution than the light in one direction only. Where it has less in both, the scaled
/// transform makes up for it; here it halves what is halved already.
fn uneven(decoder: &Decoder) -> bool {
    let even = matches!(decoder.jpeg_subsampling(), Subsampling::S444 | Subsampling::S420);
    decoder.header().components.len() > 1 && !even
}

/// Inverted CMYK to RGB with Pillow's rounding: the product of ink and light, divided by 255 by shifts.
fn cmyk_to_rgb(cmyk: &[u8]) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(cmyk.len() / 4 * 3);
    for pixel in cmyk.chunks_exact(4) {
        let light = u32::from(pixel[3]);
        rgb.extend([pixel[0], pixel[1], pixel[2]].map(|value| {
            let product = u32::from(255 - value) * light + 128;
            (light - (((product >> 8) + product) >> 8)) as u8
        }));
    }
    rgb
}

/// Whether an end-of-image marker follows the start of the first scan. Within coded data no 0xff is followed by 0xd9;
/// what comes before the scan (a thumbnail, say) is stepped over.
fn has_end(bytes: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xda;
    let mut at = 2;
    while let Some(&[0xff, marker]) = bytes.get(at..at + 2) {
        match marker {
            // Fill bytes, and markers without a segment.
            0xff => at += 1,
            0x01 | 0xd0..=0xd8 => at += 2,
            START_OF_SCAN => break,
            _ => match bytes.get(at + 2..at + 4) {
                Some(&[high, low]) => at += 2 + usize::from(u16::from_be_bytes([high, low])),
                _ => return false,
            },
        }
    }
    bytes.get(at..).is_some_and(|rest| rest.windows(2).any(|pair| pair == [0xff, 0xd9]))
}

fn broken(error: JpegError) -> Fault {
    match error {
        JpegError::UnexpectedEof => Fault::Truncated { format: FORMAT },
        error => Fault::Broken { format: FORMAT, source: Box::new(error) },
    }
}

fn other(what: impl Into<String>) -> Fault {
    Fault::Broken { format: FORMAT, source: what.into().into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_thumbnail_is_not_the_end() {
        let thumbnail = [0xff, 0xd8, 0xff, 0xe1, 0, 4, 0xff, 0xd9];
        let scan = [0xff, 0xff, 0xda, 0, 2, 1, 2, 3];
        let whole = [&thumbnail[..], &scan, &[0xff, 0xd9, 0]].concat();
        assert!(has_end(&whole));
        assert!(!has_end(&whole[..whole.len() - 2]));
        assert!(!has_end(&thumbnail[..4]));
        assert!(!has_end(&[0xff, 0xd8]));
    }
}
