//! Pixels: find, decode, pad, resize, crop.
//!
//! Everything that reads pictures goes through here, so that the tagger, the caption tools and the trainer see the same
//! pixels: EXIF orientation applied, 16-bit scaled to 8, CMYK turned into RGB, the first frame of an animation.
//!
//! The arithmetic is Pillow's where Pillow is what the field uses: [`flatten`] gives the bytes of `alpha_composite` over
//! white, [`resize_bicubic`] those of `Image.resize(size, Image.BICUBIC)`.
//!
//! ```no_run
//! use std::path::Path;
//! let root = Path::new("pictures");
//! for relative in vodka_images::find(root)? {
//!     let picture = vodka_images::decode(&root.join(&relative))?;
//!     let tagger_input = vodka_images::white_square(&picture, 448); // (448, 448), RGB
//! }
//! # Ok::<(), vodka_images::Error>(())
//! ```

mod area;
mod canvas;
mod crop;
mod decode;
mod error;
mod find;
mod flatten;
mod jpeg;
mod measure;
mod picture;
mod pillow;
mod resize;
mod rows;
mod simd;
mod square;

pub use crop::{Anchor, crop, fit_crop};
pub use decode::{DecodeOptions, Decoded, decode, decode_bytes, decode_with};
pub use error::{Error, Fault, Result};
pub use find::{EXTENSIONS, find, is_image, relative_name};
pub use flatten::{flatten, flatten_over, white_square};
pub use image::{Rgb, RgbImage, Rgba, RgbaImage};
pub use measure::{Measures, Tiles, measure};
pub use picture::Picture;
pub use resize::{Filter, resize, resize_bicubic};
pub use square::{Fit, Square};
