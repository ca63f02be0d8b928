//! Pixels: find, decode, pad, resize, crop.
//!
//! Everything that reads pictures goes through here, so that the tagger, the caption tools and the trainer see the same
//! pixels: EXIF orientation applied, 16-bit scaled to 8, CMYK turned into RGB, the first frame of an animation.
//!
//! The arithmetic is that of the field's tools, to the bit: JPEG as libjpeg-turbo decodes it, [`flatten`] as Pillow's
//! `alpha_composite` over white, [`resize`] as Pillow and OpenCV do it, and so a [`Square`] as the taggers' own code makes it.
//! `fixtures/images` holds what they make of awkward pictures.
//!
//! ```no_run
//! use std::path::Path;
//! use vodka_images::{DecodeOptions, Filter, Fit, Rgb, Square, decode_with, find, measure};
//! let white = Rgb([255; 3]);
//! let square = Square { side_px: 448, fit: Fit::Pad, filter: Filter::Bicubic, pad: white, under: white };
//! // Twice the side is enough: a large JPEG costs half as much, and comes out less than a level away on average.
//! let options = DecodeOptions { reduce_to: Some(896), ..DecodeOptions::default() };
//! let root = Path::new("pictures");
//! for relative in find(root)? {
//!     let decoded = decode_with(&root.join(&relative), &options)?;
//!     let tagger_input = square.of_decoded(&decoded); // (448, 448), RGB
//!     let blurred = measure(&decoded.picture).sharpness < 20.0;
//! }
//! # Ok::<(), vodka_images::Error>(())
//! ```

mod area;
mod canvas;
mod crop;
mod decode;
mod encode;
mod error;
mod find;
mod flatten;
mod jpeg;
mod measure;
mod opencv;
mod picture;
mod pillow;
mod resize;
mod rows;
mod simd;
mod size;
mod square;

pub use crop::{Anchor, crop, fit_crop, flip_horizontal};
pub use decode::{DecodeOptions, Decoded, MAX_SIDE_PX, decode, decode_bytes, decode_with};
pub use encode::{jpeg, png};
pub use error::{Error, Fault, Result};
pub use find::{EXTENSIONS, find, is_image, relative_name};
pub use flatten::{flatten, flatten_over};
pub use image::{Rgb, RgbImage, Rgba, RgbaImage};
pub use measure::{Measures, Tiles, measure};
pub use opencv::{
    blur_gaussian, gaussian_kernel, reflected, resize_cubic, resize_cubic_part, resize_nearest,
    resize_nearest_part,
};
pub use picture::Picture;
pub use resize::{Filter, resize, resize_bicubic, resize_part, shrink};
pub use size::{size, size_of_bytes};
pub use square::{Fit, Square};
