//! Textual-inversion embeddings in every form in which they are published.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use flate2::read::ZlibDecoder;
use image::RgbImage;
use serde_json::Value;
use vodka_checkpoint::{Dtype, WeightFile};
use vodka_images::{DecodeOptions, decode_bytes};
use vodka_prompt::MAX_TOKENS;
use vodka_stage::{ContentHash, hash_file};

use crate::{Error, Result, picture_file::png_text};

/// The key under which A1111 keeps an embedding in the text of a PNG file.
const TEXT_KEY: &str = "sd-ti-embedding";
/// The most bytes that are taken out of a picture; an embedding of 75 vectors as JSON has 1.3 MB.
const JSON_BYTES_MAX: u64 = 64 << 20;

/// An embedding: a name in prompts that stands for vectors of its own.
#[derive(Debug, Clone)]
pub(crate) struct Embedding {
    pub(crate) name: String,
    path: PathBuf,
    /// How many vectors there are.
    pub(crate) vectors: usize,
    /// How many numbers each has: the width of the text encoder.
    pub(crate) width: usize,
    /// `(vectors, width)`.
    pub(crate) values: Vec<f32>,
    sha256: OnceLock<ContentHash>,
}

impl Embedding {
    /// Whether a file may hold an embedding, by the ending of its name.
    pub(crate) fn is_one(path: &Path) -> bool {
        is_weights(path) || is_picture(path)
    }

    /// Reads one; none where a picture holds nothing, as the previews of embeddings do.
    ///
    /// It is what textual inversion's script and A1111 write (`.pt` with `string_to_param`), diffusers' form
    /// (`learned_embeds.bin` or `.safetensors`: one tensor by the name of its token), `.safetensors` with `emb_params`, and
    /// pictures that A1111 has put one into, as text or in the lowest bits of their pixels (stable-diffusion-webui 1.10.1,
    /// `modules/textual_inversion`).
    pub(crate) fn read(path: &Path) -> Result<Option<Self>> {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if is_picture(path) {
            return of_picture(path, name);
        }
        let file = WeightFile::open(path)?;
        if file.names().any(|name| matches!(name, "clip_g" | "clip_l")) {
            return Err(wrong(path, "an embedding for Stable Diffusion XL"));
        }
        let names: Vec<&str> = file.names().collect();
        let &[tensor] = names.as_slice() else {
            return Err(wrong(path, &format!("{} tensors", names.len())));
        };
        let tensor = file.tensor(tensor)?;
        if !matches!(tensor.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64) {
            return Err(wrong(path, &format!("a tensor of {}", tensor.dtype.name())));
        }
        Self::new(path, name, &tensor.shape, tensor.to_f32()).map(Some)
    }

    fn new(path: &Path, name: String, shape: &[usize], values: Vec<f32>) -> Result<Self> {
        let (vectors, width) = match *shape {
            [width] if width > 0 => (1, width),
            [vectors, width] if vectors > 0 && width > 0 => (vectors, width),
            _ => return Err(wrong(path, &format!("a tensor of the shape {shape:?}"))),
        };
        if vectors > MAX_TOKENS {
            return Err(wrong(path, &format!("{vectors} vectors, of which a chunk holds {MAX_TOKENS}")));
        }
        if values.iter().any(|value| !value.is_finite()) {
            return Err(wrong(path, "values that are not finite"));
        }
        Ok(Self { name, path: path.to_path_buf(), vectors, width, values, sha256: OnceLock::new() })
    }

    /// The hash of the file.
    pub(crate) fn sha256(&self) -> Result<ContentHash> {
        if let Some(hash) = self.sha256.get() {
            return Ok(*hash);
        }
        let hash = hash_file(&self.path)?;
        Ok(*self.sha256.get_or_init(|| hash))
    }
}

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    let found = path.extension().unwrap_or_default();
    endings.iter().any(|ending| found.eq_ignore_ascii_case(ending))
}

fn is_weights(path: &Path) -> bool {
    has_ending(path, &["pt", "bin", "safetensors"])
}

fn is_picture(path: &Path) -> bool {
    has_ending(path, &["png", "webp"])
}

fn wrong(path: &Path, found: &str) -> Error {
    Error::Embedding { path: path.to_path_buf(), found: found.to_owned() }
}

fn of_picture(path: &Path, name: String) -> Result<Option<Embedding>> {
    let bytes = fs::read(path).map_err(|source| vodka_stage::Error::Read { path: path.into(), source })?;
    let text = match png_text(&bytes, TEXT_KEY) {
        Some(text) => {
            let text = BASE64_STANDARD.decode(text.trim());
            Some(text.map_err(|_| wrong(path, "a text that is no base64"))?)
        }
        None => {
            let picture = decode_bytes(&bytes, &DecodeOptions::default());
            let picture = picture.map_err(|fault| wrong(path, &fault.reason()))?.picture.into_rgb();
            of_pixels(&picture)
        }
    };
    let Some(text) = text else { return Ok(None) };
    let json: Value = serde_json::from_slice(&text).map_err(|_| wrong(path, "a text that is no JSON"))?;
    let (shape, values) = of_json(&json).ok_or_else(|| wrong(path, "JSON without `string_to_param`"))?;
    let name = json["name"].as_str().map_or(name, ToOwned::to_owned);
    Embedding::new(path, name, &shape, values).map(Some)
}

/// The first tensor under `string_to_param`, `{"TORCHTENSOR": [[...], ...]}`.
fn of_json(json: &Value) -> Option<([usize; 2], Vec<f32>)> {
    let rows = json["string_to_param"].as_object()?.values().next()?["TORCHTENSOR"].as_array()?;
    let width = rows.first()?.as_array()?.len();
    let mut values = Vec::with_capacity(rows.len().saturating_mul(width));
    for row in rows {
        let row = row.as_array().filter(|row| row.len() == width)?;
        for value in row {
            values.push(value.as_f64()? as f32);
        }
    }
    Some(([rows.len(), width], values))
}

/// What lies in the lower four bits of the pixels, left and right of at least two columns in which these are 0: the lower
/// and the upper halves of the bytes of zlib's stream, each disguised by a simple generator.
fn of_pixels(picture: &RgbImage) -> Option<Vec<u8>> {
    // Black borders are none of it.
    let bright =
        |(x, y, pixel): (u32, u32, &image::Rgb<u8>)| pixel.0.iter().all(|value| *value > 0).then_some((x, y));
    let inside: Vec<(u32, u32)> = picture.enumerate_pixels().filter_map(bright).collect();
    let bounds =
        |axis: fn(&(u32, u32)) -> u32| Some((inside.iter().map(axis).min()?, inside.iter().map(axis).max()?));
    let ((left, right), (top, bottom)) = (bounds(|at| at.0)?, bounds(|at| at.1)?);
    let low = move |x: u32, y: u32| picture.get_pixel(x, y).0.map(|value| value & 15);
    let is_empty = |x: &u32| (top..=bottom).all(|y| low(*x, y) == [0; 3]);
    let empty: Vec<u32> = (left..=right).filter(is_empty).collect();
    let (first, last) = (*empty.first()?, *empty.last()?);
    let (width, other) = (first - left, right - last);
    if empty.len() < 2 || width == 0 || width != other {
        return None;
    }
    let half = |start: u32| {
        let nibbles = (top..=bottom).flat_map(move |y| (start..start + width).flat_map(move |x| low(x, y)));
        nibbles.zip(disguise()).map(|(nibble, by)| nibble ^ by)
    };
    let bytes: Vec<u8> = half(left).zip(half(last + 1)).map(|(low, high)| high << 4 | low).collect();
    let mut text = Vec::new();
    ZlibDecoder::new(bytes.as_slice()).take(JSON_BYTES_MAX).read_to_end(&mut text).ok()?;
    Some(text)
}

/// The numbers that disguise: a linear congruential generator, modulo 255, of which four bits count.
fn disguise() -> impl Iterator<Item = u8> {
    let next = |state: &u32| Some(state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    std::iter::successors(next(&0), next).map(|state| (state % 255) as u8 & 15)
}
