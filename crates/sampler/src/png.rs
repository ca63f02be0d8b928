//! PNG files with a `parameters` text.

use std::{
    fs::File,
    io::{BufReader, Write},
    path::Path,
};

use image::RgbImage;
use png::{BitDepth, ColorType, Decoder, DecodingError, Encoder, EncodingError, Reader};
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

fn encode(file: impl Write, picture: &RgbImage, parameters: &str) -> Result<(), EncodingError> {
    let mut encoder = Encoder::new(file, picture.width(), picture.height());
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    // A NUL would end the text.
    let parameters = parameters.replace('\0', "");
    if parameters.chars().all(|c| u32::from(c) < 256) {
        encoder.add_text_chunk(KEY.to_owned(), parameters)?;
    } else {
        encoder.add_itxt_chunk(KEY.to_owned(), parameters)?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(picture)?;
    writer.finish()
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
    fn what_is_no_png_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        std::fs::write(&path, "no picture").unwrap();
        assert!(read_parameters(&path).unwrap_err().to_string().contains("a.png"));
        assert!(read_rgb(&dir.path().join("none.png")).unwrap_err().to_string().contains("none.png"));
    }
}
