//! Picture files with a `parameters` text: PNG, and JPEG and WebP that have it in their EXIF.

use std::{
    fs::{self, File},
    io::{BufReader, Cursor, Write},
    path::Path,
};

use exif::{Field, In, Tag, Value, experimental::Writer};
use image::{
    ExtendedColorType, ImageDecoder, ImageEncoder, ImageError, RgbImage,
    codecs::{
        jpeg::{JpegDecoder, JpegEncoder},
        webp::{WebPDecoder, WebPEncoder},
    },
};
use png::{BitDepth, ColorType, Decoder, DecodingError, Encoder, EncodingError, Reader, Writer as PngWriter};
use vodka_images::{Picture, flatten};
use vodka_stage::AtomicFile;

use crate::{Error, Result};

/// The key under which A1111 keeps its text.
const KEY: &str = "parameters";
/// How an EXIF comment says that it is UTF-16.
const UNICODE: &[u8] = b"UNICODE\0";
/// How an EXIF comment says that it is ASCII.
const ASCII: &[u8] = b"ASCII\0\0\0";
/// What EXIF may have in a JPEG file, in bytes: a segment without its length and the word `Exif`.
const JPEG_EXIF_MAX: usize = 65_535 - 2 - 6;
/// A1111's option "Quality for saved jpeg and avif images".
const JPEG_QUALITY: u8 = 80;

/// The forms that pictures are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PictureFormat {
    /// `.png`.
    Png,
    /// `.jpg` or `.jpeg`, in A1111's quality, 80.
    Jpeg,
    /// `.webp`, without loss.
    WebP,
}

impl PictureFormat {
    /// The form that a file's name asks for.
    ///
    /// # Errors
    /// Another ending.
    pub fn of(path: &Path) -> Result<Self> {
        let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
        match ending.to_str() {
            Some("png") => Ok(Self::Png),
            Some("jpg" | "jpeg") => Ok(Self::Jpeg),
            Some("webp") => Ok(Self::WebP),
            _ => Err(Error::OutputName { path: path.to_path_buf() }),
        }
    }
}

/// Writes a picture, whole or not at all, in the form that its name asks for, with `parameters` as its text.
///
/// # Errors
/// Another ending than those of [`PictureFormat`], a side or a text that is too long for the form, a full disk.
pub fn write_picture(path: &Path, picture: &RgbImage, parameters: &str) -> Result<()> {
    write_pixels(path, Pixels::of(picture), parameters)
}

/// The same for pictures with transparency, which JPEG lays over white.
///
/// # Errors
/// As there.
pub(crate) fn write_any(path: &Path, picture: &Picture, parameters: &str) -> Result<()> {
    match picture {
        Picture::Rgb(picture) => write_picture(path, picture, parameters),
        Picture::Rgba(picture) if PictureFormat::of(path)? == PictureFormat::Jpeg => {
            write_picture(path, &flatten(picture), parameters)
        }
        Picture::Rgba(picture) => {
            let (width, height) = picture.dimensions();
            write_pixels(path, Pixels { width, height, bytes: picture, has_alpha: true }, parameters)
        }
    }
}

/// Bytes of pixels, row-major.
#[derive(Clone, Copy)]
struct Pixels<'a> {
    width: u32,
    height: u32,
    bytes: &'a [u8],
    has_alpha: bool,
}

impl<'a> Pixels<'a> {
    fn of(picture: &'a RgbImage) -> Self {
        let (width, height) = picture.dimensions();
        Self { width, height, bytes: picture, has_alpha: false }
    }
}

fn write_pixels(path: &Path, picture: Pixels<'_>, parameters: &str) -> Result<()> {
    let format = PictureFormat::of(path)?;
    if format == PictureFormat::Png {
        let mut file = AtomicFile::create(path)?;
        encode(&mut file, picture, parameters)
            .map_err(|source| Error::WritePng { path: path.to_path_buf(), source })?;
        return Ok(file.commit()?);
    }
    let comment = comment(parameters);
    let (found, max) = (comment.len(), JPEG_EXIF_MAX);
    if format == PictureFormat::Jpeg && found > max {
        return Err(Error::TextTooLong { path: path.to_path_buf(), found, max });
    }
    let mut bytes = Vec::new();
    let encoded = match format {
        PictureFormat::Jpeg => {
            encode_with(JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY), picture, comment)
        }
        _ => encode_with(WebPEncoder::new_lossless(&mut bytes), picture, comment),
    };
    encoded.map_err(|source| Error::WritePicture { path: path.to_path_buf(), source })?;
    Ok(vodka_stage::write_atomic(path, bytes)?)
}

fn encode_with(mut encoder: impl ImageEncoder, picture: Pixels<'_>, exif: Vec<u8>) -> Result<(), ImageError> {
    encoder.set_exif_metadata(exif).map_err(ImageError::Unsupported)?;
    let colours = if picture.has_alpha { ExtendedColorType::Rgba8 } else { ExtendedColorType::Rgb8 };
    encoder.write_image(picture.bytes, picture.width, picture.height, colours)
}

/// EXIF with the text as its comment, in big-endian UTF-16 as A1111's library writes it.
fn comment(text: &str) -> Vec<u8> {
    let units = text.encode_utf16().flat_map(u16::to_be_bytes);
    let value = Value::Undefined(UNICODE.iter().copied().chain(units).collect(), 0);
    let field = Field { tag: Tag::UserComment, ifd_num: In::PRIMARY, value };
    let mut writer = Writer::new();
    writer.push_field(&field);
    let mut bytes = Cursor::new(Vec::new());
    writer.write(&mut bytes, false).expect("memory takes every comment");
    bytes.into_inner()
}

/// The comment in EXIF, if there is any.
fn read_comment(exif: Vec<u8>) -> Option<String> {
    // WebP files of some programs have the word that JPEG has before it.
    let exif = exif.strip_prefix(b"Exif\0\0").map(<[u8]>::to_vec).unwrap_or(exif);
    // A1111's library leaves out what ends a list, and others more.
    let exif = exif::Reader::new().continue_on_error(true).read_raw(exif);
    let exif = exif.or_else(|error| error.distill_partial_result(|_| ())).ok()?;
    let Value::Undefined(bytes, _) = &exif.get_field(Tag::UserComment, In::PRIMARY)?.value else {
        return None;
    };
    if let Some(utf16) = bytes.strip_prefix(UNICODE) {
        let units = |order: fn([u8; 2]) -> u16| -> Vec<u16> {
            utf16.as_chunks::<2>().0.iter().map(|unit| order(*unit)).collect()
        };
        // Other programs write the order of the machine or of the file; most characters are of the first 256.
        let is_latin = |units: &[u16]| units.iter().filter(|unit| **unit < 256).count();
        let (big, little) = (units(u16::from_be_bytes), units(u16::from_le_bytes));
        let units = if is_latin(&little) > is_latin(&big) { little } else { big };
        return Some(String::from_utf16_lossy(&units));
    }
    let text = bytes.strip_prefix(ASCII).unwrap_or(bytes);
    let text = String::from_utf8_lossy(text);
    Some(text.trim_matches(|c| c == '\0').to_owned()).filter(|text| !text.is_empty())
}

/// Writes a PNG file, whole or not at all, with `parameters` as its text: `tEXt` where Latin-1 holds it, else `iTXt`, as
/// Pillow does for A1111.
pub fn write_png(path: &Path, picture: &RgbImage, parameters: &str) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    encode(&mut file, Pixels::of(picture), parameters)
        .map_err(|source| Error::WritePng { path: path.to_path_buf(), source })?;
    Ok(file.commit()?)
}

/// What takes the bands of a picture.
pub(crate) type OnBand<'a> = dyn FnMut(&RgbImage) -> Result<()> + 'a;

/// The same for a picture that is drawn in bands, from the top; no more than one is in memory.
///
/// # Errors
/// Those of `draw`; then nothing is written.
pub(crate) fn write_png_bands(
    path: &Path,
    (width, height): (u32, u32),
    parameters: &str,
    draw: &mut dyn FnMut(&mut OnBand<'_>) -> Result<()>,
) -> Result<()> {
    let failed = |source: EncodingError| Error::WritePng { path: path.to_path_buf(), source };
    let mut file = AtomicFile::create(path)?;
    let mut writer = encoder(&mut file, (width, height), ColorType::Rgb, parameters).map_err(failed)?;
    let mut stream = writer.stream_writer().map_err(failed)?;
    draw(&mut |band| stream.write_all(band).map_err(|source| failed(source.into())))?;
    stream.finish().map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(file.commit()?)
}

fn encode(file: impl Write, picture: Pixels<'_>, parameters: &str) -> Result<(), EncodingError> {
    let colours = if picture.has_alpha { ColorType::Rgba } else { ColorType::Rgb };
    let mut writer = encoder(file, (picture.width, picture.height), colours, parameters)?;
    writer.write_image_data(picture.bytes)?;
    writer.finish()
}

/// A file with its head: 8 bits a channel, and the text.
fn encoder<W: Write>(
    file: W,
    (width, height): (u32, u32),
    colours: ColorType,
    parameters: &str,
) -> Result<PngWriter<W>, EncodingError> {
    let mut encoder = Encoder::new(file, width, height);
    encoder.set_color(colours);
    encoder.set_depth(BitDepth::Eight);
    // A NUL would end the text.
    let parameters = parameters.replace('\0', "");
    if parameters.chars().all(|c| u32::from(c) < 256) {
        encoder.add_text_chunk(KEY.to_owned(), parameters)?;
    } else {
        encoder.add_itxt_chunk(KEY.to_owned(), parameters)?;
    }
    encoder.write_header()
}

/// The longest text that is taken for `parameters`, in bytes: far more than a prompt, little enough to be read at once.
const PARAMETERS_MAX: usize = 1 << 20;

/// The most bytes that a compressed text may hold; embeddings are the largest.
const TEXT_MAX: usize = 16 << 20;

/// The `parameters` text of a PNG, JPEG or WebP file, whatever it is called; none where it has none.
///
/// # Errors
/// A file that cannot be read or is none of these; a text of more than a mebibyte, however small it is compressed.
pub fn read_parameters(path: &Path) -> Result<Option<String>> {
    match text_in(path)? {
        Some(text) if text.len() > PARAMETERS_MAX => {
            let (path, found) = (path.to_path_buf(), text.len());
            Err(Error::LongParameters { path, found, max: PARAMETERS_MAX })
        }
        text => Ok(text),
    }
}

fn text_in(path: &Path) -> Result<Option<String>> {
    let unreadable = |source| vodka_stage::Error::Read { path: path.to_path_buf(), source };
    let bytes = fs::read(path).map_err(unreadable)?;
    let source = Cursor::new(bytes.as_slice());
    let undecodable = |source| Error::ReadPicture { path: path.to_path_buf(), source };
    let exif = if bytes.starts_with(b"\xff\xd8") {
        JpegDecoder::new(source).and_then(|mut decoder| decoder.exif_metadata()).map_err(undecodable)?
    } else if bytes.starts_with(b"RIFF") {
        WebPDecoder::new(source).and_then(|mut decoder| decoder.exif_metadata()).map_err(undecodable)?
    } else {
        let reader = Decoder::new(source).read_info().map_err(read_error(path))?;
        return text_of(reader.info(), KEY).transpose().map_err(read_error(path));
    };
    Ok(exif.and_then(read_comment))
}

/// A text of a PNG file in memory; none where it is no PNG file.
pub(crate) fn png_text(bytes: &[u8], key: &str) -> Option<String> {
    let reader = Decoder::new(Cursor::new(bytes)).read_info().ok()?;
    text_of(reader.info(), key)?.ok()
}

fn text_of(info: &png::Info<'_>, key: &str) -> Option<Result<String, DecodingError>> {
    let latin = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == key);
    let zipped = || info.compressed_latin1_text.iter().find(|chunk| chunk.keyword == key);
    let unicode = || info.utf8_text.iter().find(|chunk| chunk.keyword == key);
    match latin {
        Some(chunk) => Some(Ok(chunk.text.clone())),
        None => match unicode().cloned() {
            Some(mut chunk) => {
                Some(chunk.decompress_text_with_limit(TEXT_MAX).and_then(|()| chunk.get_text()))
            }
            None => zipped().cloned().map(|mut chunk| {
                chunk.decompress_text_with_limit(TEXT_MAX)?;
                chunk.get_text()
            }),
        },
    }
}

/// The pixels of a PNG file that [`write_png`] wrote; none where it is of another kind.
pub(crate) fn read_rgb(path: &Path) -> Result<Option<RgbImage>> {
    let mut reader = open(path)?;
    let info = reader.info();
    let (width, height) = (info.width, info.height);
    if (info.color_type, info.bit_depth) != (ColorType::Rgb, BitDepth::Eight) {
        return Ok(None);
    }
    let mut pixels = vec![0; reader.output_buffer_size().unwrap_or_default()];
    reader.next_frame(&mut pixels).map_err(read_error(path))?;
    Ok(RgbImage::from_raw(width, height, pixels))
}

fn open(path: &Path) -> Result<Reader<BufReader<File>>> {
    let file = File::open(path).map_err(DecodingError::IoError).map_err(read_error(path))?;
    Decoder::new(BufReader::new(file)).read_info().map_err(read_error(path))
}

fn read_error(path: &Path) -> impl FnOnce(DecodingError) -> Error {
    let path = path.to_path_buf();
    move |source| Error::ReadPng { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_too_long_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let write = |add: &dyn Fn(&mut Encoder<'_, File>)| {
            let mut encoder = Encoder::new(File::create(&path).unwrap(), 1, 1);
            encoder.set_color(ColorType::Rgb);
            add(&mut encoder);
            encoder.write_header().unwrap().write_image_data(&[0; 3]).unwrap();
        };
        let long = |length: usize| "(".repeat(length);
        for length in [PARAMETERS_MAX + 1, TEXT_MAX + 1] {
            write(&|encoder| encoder.add_ztxt_chunk(KEY.into(), long(length)).unwrap());
            let error = read_parameters(&path).unwrap_err().to_string();
            assert!(error.contains("a.png"), "{error}");
        }
        assert!(fs::metadata(&path).unwrap().len() < PARAMETERS_MAX as u64);
        write(&|encoder| encoder.add_text_chunk(KEY.into(), long(PARAMETERS_MAX + 1)).unwrap());
        let error = read_parameters(&path).unwrap_err().to_string();
        assert!(error.ends_with("`parameters` text of 1048577 bytes, expected 1048576 at most"), "{error}");
        write(&|encoder| encoder.add_ztxt_chunk(KEY.into(), long(PARAMETERS_MAX)).unwrap());
        assert_eq!(read_parameters(&path).unwrap(), Some(long(PARAMETERS_MAX)));
    }

    #[test]
    fn pixels_and_text_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let picture = RgbImage::from_fn(5, 3, |x, y| image::Rgb([x as u8, y as u8, 200]));
        for text in ["a café\nSteps: 1", "猫 “cat”\nSteps: 1", ""] {
            write_png(&path, &picture, text).unwrap();
            assert_eq!(read_parameters(&path).unwrap().as_deref(), Some(text));
            assert_eq!(read_rgb(&path).unwrap(), Some(picture.clone()));
        }
    }

    #[test]
    fn a_picture_drawn_in_bands_is_the_picture() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let picture = RgbImage::from_fn(7, 9, |x, y| image::Rgb([20 * x as u8, 20 * y as u8, 200]));
        let band = |top, height| image::imageops::crop_imm(&picture, 0, top, 7, height).to_image();
        write_png_bands(&path, (7, 9), "text", &mut |on_band| {
            [(0, 2), (2, 6), (8, 1)].into_iter().try_for_each(|(top, height)| on_band(&band(top, height)))
        })
        .unwrap();
        assert_eq!(read_rgb(&path).unwrap(), Some(picture.clone()));
        assert_eq!(read_parameters(&path).unwrap().as_deref(), Some("text"));
        // One that stays away leaves what was there.
        write_png_bands(&path, (7, 9), "other", &mut |on_band| on_band(&band(0, 8))).unwrap_err();
        assert_eq!(read_parameters(&path).unwrap().as_deref(), Some("text"));
    }

    #[test]
    fn jpeg_and_webp_have_the_text_in_their_exif() {
        let dir = tempfile::tempdir().unwrap();
        let picture = RgbImage::from_fn(40, 24, |x, y| image::Rgb([x as u8 * 4, y as u8 * 4, 200]));
        for name in ["a.jpg", "a.JPEG", "a.webp"] {
            let path = dir.path().join(name);
            for text in ["a café\nSteps: 1", "猫 “cat” 🐈\nSteps: 1"] {
                write_picture(&path, &picture, text).unwrap();
                assert_eq!(read_parameters(&path).unwrap().as_deref(), Some(text), "{name}");
            }
        }
        let read = vodka_images::decode(&dir.path().join("a.webp")).unwrap().into_rgb();
        assert_eq!(read, picture);
        let error = write_picture(&dir.path().join("b.jpg"), &picture, &"x".repeat(40_000)).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("b.jpg") && error.contains("65527"), "{error}");
        write_picture(&dir.path().join("b.webp"), &picture, &"x".repeat(40_000)).unwrap();
        let error = write_picture(&dir.path().join("b.tif"), &picture, "").unwrap_err().to_string();
        assert!(error.contains("b.tif") && error.contains(".webp"), "{error}");
    }

    #[test]
    fn comments_of_other_programs_are_read() {
        let of = |value: Vec<u8>| {
            let field =
                Field { tag: Tag::UserComment, ifd_num: In::PRIMARY, value: Value::Undefined(value, 0) };
            let mut writer = Writer::new();
            writer.push_field(&field);
            let mut bytes = Cursor::new(Vec::new());
            writer.write(&mut bytes, true).unwrap();
            read_comment(bytes.into_inner())
        };
        let little: Vec<u8> = "a cat\nSteps: 1".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(of([UNICODE, &little].concat()).as_deref(), Some("a cat\nSteps: 1"));
        assert_eq!(of([ASCII, b"a cat\0"].concat()).as_deref(), Some("a cat"));
        assert_eq!(of(b"\0\0\0\0\0\0\0\0a caf\xc3\xa9".to_vec()).as_deref(), Some("a café"));
        assert_eq!(of(vec![0; 8]), None);
        assert_eq!(read_comment(b"Exif\0\0II*\0".to_vec()), None);
        assert_eq!(read_comment(Vec::new()), None);
    }

    #[test]
    fn what_is_no_png_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        fs::write(&path, "no picture").unwrap();
        assert!(read_parameters(&path).unwrap_err().to_string().contains("a.png"));
        assert!(read_rgb(&dir.path().join("none.png")).unwrap_err().to_string().contains("none.png"));
    }
}
