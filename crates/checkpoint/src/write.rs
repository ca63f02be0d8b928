//! Writes a single file.

use std::{collections::BTreeMap, fmt, io::Write, path::Path, str::FromStr};

use half::{f16, slice::HalfFloatSliceExt};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use vodka_stage::AtomicFile;

use crate::{Error, Mismatch, ModelConfig, Result, WrongShape, keys};

/// The metadata entry that holds the [`ModelConfig`] as JSON, since heads and groups are in no tensor.
pub const CONFIG_KEY: &str = "vodka.config";

/// The element type of a written file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Precision {
    /// 16-bit floats, half the size; what most shared checkpoints are.
    #[serde(rename = "fp16")]
    F16,
    /// 32-bit floats.
    #[serde(rename = "fp32")]
    F32,
}

impl Precision {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F16 => "fp16",
            Self::F32 => "fp32",
        })
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fp16" => Ok(Self::F16),
            "fp32" => Ok(Self::F32),
            _ => Err(format!("expected fp16 or fp32, found `{text}`")),
        }
    }
}

/// A tensor's shape and, row-major, its elements.
pub type Values = (Vec<usize>, Vec<f32>);

/// Writes the model as a single `.safetensors` file in LDM names, whole or not at all.
///
/// `tensors` is asked for each name of [`keys::all`] once, in the order of the file (sorted), for shape and values, so
/// that one tensor at a time is in memory. The same weights make the same bytes: nothing of time or place is written.
/// The file holds the configuration ([`CONFIG_KEY`]), `format: pt`, all of `metadata`, and the text encoder's
/// `position_ids` (int64, 0 to 76), which older programs ask for.
///
/// # Errors
/// Whatever `tensors` returns; a shape other than the configuration's; a value that is not finite, or too large for
/// fp16; a disk that is full. The target is then as it was before.
pub fn write_checkpoint<E: From<Error>>(
    path: impl AsRef<Path>,
    config: &ModelConfig,
    precision: Precision,
    metadata: &BTreeMap<String, String>,
    tensors: &mut dyn FnMut(&str) -> Result<Values, E>,
) -> Result<(), E> {
    let path = path.as_ref();
    config.check()?;
    let mut keys = keys::all(config);
    keys.sort_by(|a, b| a.ldm.cmp(&b.ldm));
    let mut file = AtomicFile::create(path).map_err(Error::from)?;
    let mut write = |bytes: &[u8]| file.write_all(bytes).map_err(Error::write(path));
    write(&header(&keys, config, precision, metadata))?;
    write(&position_ids(config))?;
    let mut halves = vec![f16::ZERO; CHUNK];
    for key in &keys {
        let (shape, values) = tensors(&key.ldm)?;
        check(path, &key.ldm, &key.shape, &shape, &values, precision)?;
        for values in values.chunks(CHUNK) {
            write(encode(values, precision, &mut halves))?;
        }
    }
    file.commit().map_err(Error::from)?;
    Ok(())
}

/// Elements that are converted and written at a time.
const CHUNK: usize = 1 << 16;

/// The length of the JSON, and the JSON, padded with spaces to a multiple of 8 bytes.
fn header(
    keys: &[keys::Key],
    config: &ModelConfig,
    precision: Precision,
    metadata: &BTreeMap<String, String>,
) -> Vec<u8> {
    let mut metadata = metadata.clone();
    metadata.insert("format".to_owned(), "pt".to_owned());
    metadata
        .insert(CONFIG_KEY.to_owned(), serde_json::to_string(config).expect("a configuration is plain data"));
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!(metadata));
    let mut start = 0;
    let mut entry = |name: &str, dtype: &str, shape: &[usize], bytes: usize| {
        header.insert(
            name.to_owned(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": [start, start + bytes]}),
        );
        start += bytes;
    };
    let positions = config.clip.max_positions as usize;
    entry(&position_ids_name(), "I64", &[1, positions], 8 * positions);
    let dtype = match precision {
        Precision::F16 => "F16",
        Precision::F32 => "F32",
    };
    for key in keys {
        entry(&key.ldm, dtype, &key.shape, precision.size() * key.shape.iter().product::<usize>());
    }
    let mut json = Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    [(json.len() as u64).to_le_bytes().as_slice(), &json].concat()
}

pub(crate) fn position_ids_name() -> String {
    format!("{}text_model.embeddings.position_ids", keys::CLIP_PREFIX)
}

fn position_ids(config: &ModelConfig) -> Vec<u8> {
    (0..config.clip.max_positions).flat_map(i64::to_le_bytes).collect()
}

fn check(
    path: &Path,
    tensor: &str,
    expected: &[usize],
    found: &[usize],
    values: &[f32],
    precision: Precision,
) -> Result<()> {
    if expected != found {
        let wrong_shape = vec![WrongShape {
            tensor: tensor.to_owned(),
            expected: expected.to_vec(),
            found: found.to_vec(),
        }];
        let mismatch = Box::new(Mismatch { wrong_shape, ..Mismatch::default() });
        return Err(Error::Mismatch { path: path.to_path_buf(), mismatch });
    }
    let numel: usize = expected.iter().product();
    assert_eq!(values.len(), numel, "{tensor}: values for the shape {expected:?}");
    // What rounds to infinity is 65520 and more: half way between the largest fp16 and the next power of two.
    let limit = if precision == Precision::F16 { 65520.0 } else { f32::INFINITY };
    let fits = |x: &f32| x.abs() < limit;
    // Without an early exit, which would keep it from being vector code.
    if values.iter().fold(true, |all, x| all & fits(x)) {
        return Ok(());
    }
    let index = values.iter().position(|x| !fits(x)).expect("one was seen");
    let (path, tensor, value) = (path.to_path_buf(), tensor.to_owned(), values[index]);
    Err(match value.is_finite() {
        true => Error::Overflow { path, tensor, index, value },
        false => Error::NotFinite { path, tensor, index, value },
    })
}

/// Values as they lie in the file; `halves` is scratch space.
fn encode<'a>(values: &'a [f32], precision: Precision, halves: &'a mut [f16]) -> &'a [u8] {
    match precision {
        Precision::F32 => bytemuck::cast_slice(values),
        Precision::F16 => {
            let halves = &mut halves[..values.len()];
            halves.convert_from_f32_slice(values);
            bytemuck::cast_slice(halves)
        }
    }
}
