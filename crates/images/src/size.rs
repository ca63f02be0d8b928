//! How large a picture is, from the start of its file.

use std::{
    fs::File,
    io::{BufRead, BufReader, Cursor, Read, Seek},
    path::Path,
};

use image::{ImageDecoder, ImageReader, metadata::Orientation};

use crate::{
    Error, Fault, Result,
    decode::{first_bytes, limits, swaps_sides},
};

/// The width and height of a picture in pixels, turned as its EXIF orientation says; no pixel is decoded.
///
/// # Errors
/// [`Error::Picture`]: the file cannot be read, or does not start as a picture does. One that is broken further on is
/// for [`crate::decode`] to find.
pub fn size(path: &Path) -> Result<(u32, u32)> {
    open_size(path).map_err(|source| Error::Picture { path: path.to_path_buf(), source })
}

/// The same from the content of a file.
///
/// # Errors
/// As [`size`], without the path.
pub fn size_of_bytes(bytes: &[u8]) -> Result<(u32, u32), Fault> {
    read_size(Cursor::new(bytes))
}

fn open_size(path: &Path) -> Result<(u32, u32), Fault> {
    let file = File::open(path).map_err(|source| Fault::Read { source })?;
    read_size(BufReader::new(file))
}

fn read_size(mut file: impl BufRead + Seek) -> Result<(u32, u32), Fault> {
    let unreadable = |source| Fault::Read { source };
    let mut start = Vec::new();
    (&mut file).take(16).read_to_end(&mut start).map_err(unreadable)?;
    if start.is_empty() {
        return Err(Fault::Empty);
    }
    file.rewind().map_err(unreadable)?;
    let mut reader = ImageReader::new(file).with_guessed_format().map_err(unreadable)?;
    // Colour profiles are unpacked on the way; the pixels are not.
    reader.limits(limits(0));
    if reader.format().is_none() {
        return Err(Fault::NotAPicture { found: first_bytes(&start) });
    }
    let broken = |source| Fault::Broken { format: "picture", source: Box::new(source) };
    let mut decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    // An orientation that cannot be read is none.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    Ok(if swaps_sides(orientation) { (height, width) } else { (width, height) })
}
