//! PNG files with a `parameters` text.

use std::{
    fs::File,
    io::{BufReader, Write},
    path::Path,
};

use image::RgbImage;
use png::{BitDepth, ColorType, Decoder, DecodingError, Encoder, EncodingError, Reader, Writer};
use vodka_stage::AtomicFile;

use crate::{Error, Result};

/// The key under which A1111 keeps its text.
const KEY: &str = "parameters";

/// Writes a picture, whole or not at all, with `parameters` as its text: `tEXt` where Latin-1 holds it, else `iTXt`, as
/// Pillow does for A1111.
pub fn write_png(path: &Path, picture: &RgbImage, parameters: &str) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    encode(&mut file, picture, parameters)
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
    let mut writer = encoder(&mut file, width, height, parameters).map_err(failed)?;
    let mut stream = writer.stream_writer().map_err(failed)?;
    draw(&mut |band| stream.write_all(band).map_err(|source| failed(source.into())))?;
    stream.finish().map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(file.commit()?)
}

fn encode(file: impl Write, picture: &RgbImage, parameters: &str) -> Result<(), EncodingError> {
    let mut writer = encoder(file, picture.width(), picture.height(), parameters)?;
    writer.write_image_data(picture)?;
    writer.finish()
}

/// A file with its head: RGB of 8 bits, and the text.
fn encoder<W: Write>(file: W, width: u32, height: u32, parameters: &str) -> Result<Writer<W>, EncodingError> {
    let mut encoder = Encoder::new(file, width, height);
    encoder.set_color(ColorType::Rgb);
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

/// The `parameters` text of a PNG file; none where it has none.
///
/// # Errors
/// A file that cannot be read or is no PNG.
pub fn read_parameters(path: &Path) -> Result<Option<String>> {
    let reader = open(path)?;
    let info = reader.info();
    let latin = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == KEY);
    let unicode = || info.utf8_text.iter().find(|chunk| chunk.keyword == KEY);
    match latin {
        Some(chunk) => Ok(Some(chunk.text.clone())),
        None => unicode().map(|chunk| chunk.get_text()).transpose().map_err(read_error(path)),
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
    fn what_is_no_png_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        std::fs::write(&path, "no picture").unwrap();
        assert!(read_parameters(&path).unwrap_err().to_string().contains("a.png"));
        assert!(read_rgb(&dir.path().join("none.png")).unwrap_err().to_string().contains("none.png"));
    }
}
