//! From a file to a [`Picture`].

use std::{
    error::Error as StdError,
    fs,
    io::{self, Cursor},
    path::Path,
};

use image::{
    ColorType, ImageDecoder, ImageFormat, Limits, RgbImage, RgbaImage,
    codecs::{bmp::BmpDecoder, gif::GifDecoder, png::PngDecoder, webp::WebPDecoder},
    metadata::Orientation,
};
use vodka_stage::catch_panic;

use crate::{Error, Fault, Picture, Result, jpeg};

/// The longest side a picture may have, in pixels: JPEG and GIF cannot say more. It bounds what a strip of few pixels can
/// make of a square.
pub const MAX_SIDE_PX: u32 = 65_535;

/// How pictures are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Whether pictures are turned as their EXIF orientation says; most tools of the field do not. On by default.
    pub orientation: bool,
    /// The most pixels a picture may have; no side may have more than [`MAX_SIDE_PX`]. By default 178,956,970, where Pillow suspects a decompression bomb too.
    pub max_pixels: u64,
    /// Lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its size (rounded up), the smallest whose longer side still has at
    /// least this many pixels; one with chroma halved in one direction only (4:2:2) must have twice as many. Squares
    /// of half this side then differ by less than a level on average. `None`, the default: full size.
    pub reduce_to: Option<u32>,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self { orientation: true, max_pixels: 178_956_970, reduce_to: None }
    }
}

impl DecodeOptions {
    pub(crate) fn check(&self, width: u32, height: u32) -> Result<(), Fault> {
        if width == 0 || height == 0 {
            return Err(Fault::NoPixels { width, height });
        }
        let max_pixels = self.max_pixels;
        if u64::from(width) * u64::from(height) > max_pixels {
            return Err(Fault::TooLarge { width, height, max_pixels });
        }
        if width.max(height) > MAX_SIDE_PX {
            return Err(Fault::TooLong { width, height, max_side_px: MAX_SIDE_PX });
        }
        Ok(())
    }
}

/// A picture with the size of its original.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// The pixels, fewer than the original's where [`DecodeOptions::reduce_to`] allowed that.
    pub picture: Picture,
    /// The original's width in pixels, turned as the picture is.
    pub width: u32,
    /// The original's height in pixels, turned as the picture is.
    pub height: u32,
    /// How many of the original's pixels, in each direction, became one: 1, 2, 4 or 8.
    pub reduction: u32,
    /// Where the original's width, or height, is no multiple of that: whether the first column, or row, stands for the
    /// rest, and not the last.
    pub(crate) first_is_part: (bool, bool),
}

/// Reads a picture with the default [`DecodeOptions`].
///
/// # Errors
/// [`Error::Picture`], with the path and what is wrong.
pub fn decode(path: &Path) -> Result<Picture> {
    Ok(decode_with(path, &DecodeOptions::default())?.picture)
}

/// Reads a picture.
///
/// # Errors
/// [`Error::Picture`], with the path and what is wrong.
pub fn decode_with(path: &Path, options: &DecodeOptions) -> Result<Decoded> {
    let bytes = fs::read(path).map_err(|source| Fault::Read { source });
    bytes
        .and_then(|bytes| decode_bytes(&bytes, options))
        .map_err(|source| Error::Picture { path: path.to_path_buf(), source })
}

/// Reads a picture from the content of a file: PNG, JPEG, WebP, GIF or BMP, whatever the file was called.
///
/// Grey becomes RGB, a palette its colours, 16 bits a channel become v/257 rounded, CMYK and YCCK become RGB as Pillow
/// converts them. Of an animation it is the first frame. Half a picture is an error.
///
/// # Errors
/// See [`Fault`].
pub fn decode_bytes(bytes: &[u8], options: &DecodeOptions) -> Result<Decoded, Fault> {
    if bytes.is_empty() {
        return Err(Fault::Empty);
    }
    // The decoders are not ours and the bytes come from anywhere: one bad file must not end a run of a million.
    let stored = catch_panic(|| decode_stored(bytes, options));
    let Stored { picture, full, reduction, orientation } = stored.unwrap_or(Err(Fault::Panic))?;
    let orientation = if options.orientation { orientation } else { Orientation::NoTransforms };
    let (width, height) = if swaps_sides(orientation) { (full.1, full.0) } else { full };
    let first_is_part = turns_ends(orientation);
    Ok(Decoded { picture: picture.oriented(orientation), width, height, reduction, first_is_part })
}

/// A picture as it lies in the file.
pub(crate) struct Stored {
    pub picture: Picture,
    /// Its width and height before any reduction.
    pub full: (u32, u32),
    /// By how much it was reduced.
    pub reduction: u32,
    /// How it is to be turned.
    pub orientation: Orientation,
}

/// Whether the end of a stored row, or column, becomes the start of what it is then.
fn turns_ends(orientation: Orientation) -> (bool, bool) {
    match orientation {
        Orientation::NoTransforms | Orientation::Rotate90FlipH => (false, false),
        Orientation::FlipHorizontal | Orientation::Rotate90 => (true, false),
        Orientation::FlipVertical | Orientation::Rotate270 => (false, true),
        Orientation::Rotate180 | Orientation::Rotate270FlipH => (true, true),
    }
}

pub(crate) fn swaps_sides(orientation: Orientation) -> bool {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH)
}

fn decode_stored(bytes: &[u8], options: &DecodeOptions) -> Result<Stored, Fault> {
    let reader = Cursor::new(bytes);
    match image::guess_format(bytes) {
        Ok(ImageFormat::Jpeg) => jpeg::decode(bytes, options),
        Ok(ImageFormat::Png) => read("PNG", PngDecoder::with_limits(reader, png_limits(bytes)), options),
        Ok(ImageFormat::WebP) => read("WebP", WebPDecoder::new(reader), options),
        Ok(ImageFormat::Gif) => read("GIF", GifDecoder::new(reader), options),
        Ok(ImageFormat::Bmp) => read("BMP", BmpDecoder::new(reader), options),
        _ => Err(Fault::NotAPicture { found: first_bytes(bytes) }),
    }
}

/// What a decoder may take beside the pixels: for colour profiles above all, which may be packed as tightly as pixels.
const BESIDE_MAX: u64 = 64 << 20;

/// Room for so many pixels at 16 bits a channel, twice, and for what a decoder needs beside them.
pub(crate) fn limits(pixels: u64) -> Limits {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(pixels.saturating_mul(16).saturating_add(BESIDE_MAX));
    limits
}

/// The same by the size that a PNG file begins with: its decoder unpacks profiles before it tells that size.
fn png_limits(bytes: &[u8]) -> Limits {
    // The signature, the length and the name of the first chunk, and in that the width and the height.
    let number = |at: usize| Some(u64::from(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?)));
    limits(number(16).zip(number(20)).map_or(0, |(width, height)| width * height))
}

fn read<D: ImageDecoder>(
    format: &'static str,
    decoder: image::ImageResult<D>,
    options: &DecodeOptions,
) -> Result<Stored, Fault> {
    let broken = |source| broken(format, source);
    let mut decoder = decoder.map_err(broken)?;
    let (width, height) = decoder.dimensions();
    options.check(width, height)?;
    decoder.set_limits(limits(u64::from(width) * u64::from(height))).map_err(broken)?;
    // An orientation that cannot be read is none.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let color = decoder.color_type();
    let mut bytes = vec![0; decoder.total_bytes() as usize];
    decoder.read_image(&mut bytes).map_err(broken)?;
    let picture = to_picture(width, height, color, bytes)
        .ok_or_else(|| Fault::Broken { format, source: format!("pixels of the kind {color:?}").into() })?;
    Ok(Stored { picture, full: (width, height), reduction: 1, orientation })
}

fn broken(format: &'static str, error: image::ImageError) -> Fault {
    if ends_early(&error) {
        Fault::Truncated { format }
    } else {
        Fault::Broken { format, source: Box::new(error) }
    }
}

/// Whether a file's end is at the bottom of a decoder's complaint.
fn ends_early(error: &(dyn StdError + 'static)) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|e| e.kind() == io::ErrorKind::UnexpectedEof) || error.source().is_some_and(ends_early)
}

/// `None` for pixels that no decoder of ours makes.
fn to_picture(width: u32, height: u32, color: ColorType, bytes: Vec<u8>) -> Option<Picture> {
    match color {
        ColorType::L8 => rgb(width, height, grey_to_rgb(&bytes)),
        ColorType::La8 => rgba(width, height, grey_to_rgba(&bytes)),
        ColorType::Rgb8 => rgb(width, height, bytes),
        ColorType::Rgba8 => rgba(width, height, bytes),
        ColorType::L16 => rgb(width, height, grey_to_rgb(&to_8_bits(&bytes))),
        ColorType::La16 => rgba(width, height, grey_to_rgba(&to_8_bits(&bytes))),
        ColorType::Rgb16 => rgb(width, height, to_8_bits(&bytes)),
        ColorType::Rgba16 => rgba(width, height, to_8_bits(&bytes)),
        _ => None,
    }
}

fn rgb(width: u32, height: u32, bytes: Vec<u8>) -> Option<Picture> {
    RgbImage::from_raw(width, height, bytes).map(Picture::Rgb)
}

fn rgba(width: u32, height: u32, bytes: Vec<u8>) -> Option<Picture> {
    RgbaImage::from_raw(width, height, bytes).map(Picture::Rgba)
}

fn grey_to_rgb(grey: &[u8]) -> Vec<u8> {
    grey.iter().flat_map(|v| [*v; 3]).collect()
}

fn grey_to_rgba(grey: &[u8]) -> Vec<u8> {
    grey.chunks_exact(2).flat_map(|p| [p[0], p[0], p[0], p[1]]).collect()
}

/// Values of 16 bits, in the byte order of this machine, to v/257 rounded: 0 is 0 and 65535 is 255.
fn to_8_bits(bytes: &[u8]) -> Vec<u8> {
    let value = |pair: &[u8]| u32::from(u16::from_ne_bytes([pair[0], pair[1]]));
    bytes.chunks_exact(2).map(|pair| ((value(pair) + 128) / 257) as u8).collect()
}

/// How a file starts, for people.
pub(crate) fn first_bytes(bytes: &[u8]) -> String {
    let start = &bytes[..bytes.len().min(16)];
    match std::str::from_utf8(start) {
        Ok(text) if !text.contains(|c: char| c.is_control() && !c.is_whitespace()) => {
            format!("the text {text:?}")
        }
        _ => {
            let hex: Vec<_> = start.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("the bytes {}", hex.join(" "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(bytes: &[u8]) -> String {
        decode_bytes(bytes, &DecodeOptions::default()).unwrap_err().reason()
    }

    #[test]
    fn what_is_no_picture_is_told() {
        assert_eq!(fault(b""), "the file is empty");
        assert_eq!(
            fault(b"just a note"),
            "expected PNG, JPEG, WebP, GIF or BMP, found the text \"just a note\""
        );
        assert_eq!(fault(&[0, 1, 2]), "expected PNG, JPEG, WebP, GIF or BMP, found the bytes 00 01 02");
    }

    #[test]
    fn sixteen_bits_are_rounded_to_eight() {
        let pairs: Vec<u8> = [0_u16, 128, 129, 257, 32_767, 65_406, 65_407, 65_535]
            .iter()
            .flat_map(|value| value.to_ne_bytes())
            .collect();
        assert_eq!(to_8_bits(&pairs), [0, 0, 1, 1, 127, 254, 255, 255]);
    }
}
