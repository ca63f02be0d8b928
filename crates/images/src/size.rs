//! How large a picture is, from the start of its file.

use std::{fs::File, io::BufReader, path::Path};

use image::{ImageDecoder, ImageReader, metadata::Orientation};

use crate::{Error, Fault, Result, decode::swaps_sides};

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
    let file = File::open(path).map_err(unreadable)?;
    if file.metadata().map_err(unreadable)?.len() == 0 {
        return Err(Fault::Empty);
    }
    let broken = |source| Fault::Broken { format: "picture", source: Box::new(source) };
    let reader = ImageReader::new(BufReader::new(file)).with_guessed_format().map_err(unreadable)?;
    let mut decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    Ok(if swaps_sides(orientation) { (height, width) } else { (width, height) })
}
