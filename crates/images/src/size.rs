//! How large a picture is, from the start of its file.

use std::{
    fs::File,
    io::{BufReader, Read, Seek},
    path::Path,
};

use image::{ImageDecoder, ImageReader, metadata::Orientation};

use crate::{
    Error, Fault, Result,
    decode::{first_bytes, swaps_sides},
};

/// The width and height of a picture in pixels, turned as its EXIF orientation says; no pixel is decoded.
///
/// # Errors
/// [`Error::Picture`]: the file cannot be read, or does not start as a picture does. One that is broken further on is
/// for [`crate::decode`] to find.
pub fn size(path: &Path) -> Result<(u32, u32)> {
    read_size(path).map_err(|source| Error::Picture { path: path.to_path_buf(), source })
}

fn read_size(path: &Path) -> Result<(u32, u32), Fault> {
    let unreadable = |source| Fault::Read { source };
    let mut file = File::open(path).map_err(unreadable)?;
    let mut start = Vec::new();
    file.by_ref().take(16).read_to_end(&mut start).map_err(unreadable)?;
    if start.is_empty() {
        return Err(Fault::Empty);
    }
    file.rewind().map_err(unreadable)?;
    let reader = ImageReader::new(BufReader::new(file)).with_guessed_format().map_err(unreadable)?;
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
