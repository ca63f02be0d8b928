//! JPEG, strictly: half a picture is an error.
//!
//! The `image` crate runs zune-jpeg in its lenient mode, which fills what is missing with grey and says nothing. So this
//! talks to zune-jpeg itself: lenient about what stands between the headers, as every reader is, and strict about the
//! pixels.

use image::{RgbImage, metadata::Orientation};
use zune_jpeg::{
    JpegDecoder,
    errors::DecodeErrors,
    zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions},
};

use crate::{DecodeOptions, Fault, Picture, Result};

const FORMAT: &str = "JPEG";

/// Decodes to RGB. Four channels are taken as inverted CMYK (or YCCK), as Adobe writes them and Pillow reads them.
pub(crate) fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<(Picture, Orientation), Fault> {
    if !has_end(bytes) {
        return Err(Fault::Truncated { format: FORMAT });
    }
    let lenient = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), lenient);
    decoder.decode_headers().map_err(broken)?;
    let info = decoder.info().ok_or_else(|| other("no frame header"))?;
    let (width, height) = (u32::from(info.width), u32::from(info.height));
    options.check(width, height)?;
    if let Some(ColorSpace::MultiBand(channels)) = decoder.input_colorspace() {
        return Err(other(format!("{channels} channels")));
    }
    let orientation = decoder.exif().and_then(|exif| Orientation::from_exif_chunk(exif));
    decoder.set_options(lenient.set_strict_mode(true));
    let mut image = RgbImage::new(width, height);
    decoder.decode_into(&mut image).map_err(broken)?;
    Ok((Picture::Rgb(image), orientation.unwrap_or(Orientation::NoTransforms)))
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

fn broken(error: DecodeErrors) -> Fault {
    match error {
        DecodeErrors::ExhaustedData => Fault::Truncated { format: FORMAT },
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
