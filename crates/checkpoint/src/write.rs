//! Writes a single file.

use std::{collections::BTreeMap, fmt, path::Path, str::FromStr};

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use vodka_stage::{ContentHash, Hasher};

use crate::{
    Dtype, Error, Mismatch, ModelConfig, Result, SafetensorsWriter, TensorSpec, WrongShape, all_below,
    config_entry,
    half_floats::{f32_to_bf16, f32_to_f16},
    layout::{position_ids, position_ids_name},
    single_file_tensors,
};

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
    /// 16-bit floats with the exponent of fp32: as small as fp16, three bits of precision less, no overflow.
    #[serde(rename = "bf16")]
    BF16,
}

impl Precision {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        self.dtype().size()
    }

    /// The type of an element.
    pub fn dtype(self) -> Dtype {
        match self {
            Self::F16 => Dtype::F16,
            Self::F32 => Dtype::F32,
            Self::BF16 => Dtype::BF16,
        }
    }

    /// Values as they lie in a file, rounded to the nearest (ties to even); what is too large becomes infinite.
    ///
    /// # Panics
    /// When `out` has another size than the values take.
    pub fn encode(self, values: &[f32], out: &mut [u8]) {
        assert_eq!(out.len(), values.len() * self.size(), "bytes for {} values", values.len());
        match self {
            Self::F32 => out.copy_from_slice(bytemuck::cast_slice(values)),
            Self::F16 => f32_to_f16(values, out),
            Self::BF16 => f32_to_bf16(values, out),
        }
    }

    /// The smallest magnitude that becomes infinite: half way between the largest number and the next power of two.
    pub fn overflow(self) -> f32 {
        match self {
            Self::F16 => 65520.0,
            Self::F32 => f32::INFINITY,
            // 0x7f7f8000: the largest bf16 is 0x7f7f.
            Self::BF16 => f32::from_bits(0x7f7f_8000),
        }
    }

    /// The largest number.
    pub fn largest(self) -> f32 {
        match self {
            Self::F16 => f16::MAX.to_f32(),
            Self::F32 => f32::MAX,
            Self::BF16 => bf16::MAX.to_f32(),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F16 => "fp16",
            Self::F32 => "fp32",
            Self::BF16 => "bf16",
        })
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fp16" => Ok(Self::F16),
            "fp32" => Ok(Self::F32),
            "bf16" => Ok(Self::BF16),
            _ => Err(format!("expected fp16, bf16 or fp32, found `{text}`")),
        }
    }
}

/// A tensor's shape and, row-major, its elements.
pub type Values = (Vec<usize>, Vec<f32>);

/// Writes the model as a single `.safetensors` file in LDM names, whole or not at all.
///
/// `tensors` is asked for each name of [`keys::all`](crate::keys::all) once, in the order of the file (sorted), for
/// shape and values, so that one tensor at a time is in memory. The same weights make the same bytes: nothing of time
/// or place is written. The file holds the configuration ([`CONFIG_KEY`]), `format: pt`, all of `metadata`, and the
/// text encoder's `position_ids` (int64, 0 to 76), which older programs ask for. Where `metadata` follows ModelSpec
/// (`modelspec.sai_model_spec`), its `modelspec.hash_sha256` is filled in.
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
    let mut metadata = metadata.clone();
    metadata.extend([config_entry(config)]);
    let hashed = metadata.contains_key(MODELSPEC_KEY);
    if hashed {
        metadata.insert(MODELSPEC_HASH_KEY.to_owned(), hash_entry(&Hasher::default().finish()));
    }
    let writer = SafetensorsWriter::create(path, single_file_tensors(config, precision), &metadata)?;
    let mut hasher = Hasher::default();
    for (index, spec) in writer.specs().iter().enumerate() {
        let mut write = |start, bytes: &[u8]| {
            if hashed {
                // All of it, in the order in which it lies in the file.
                hasher.raw(bytes);
            }
            writer.write_at(index, start, bytes)
        };
        if spec.name == position_ids_name() {
            write(0, &position_ids(config.clip.max_positions))?;
            continue;
        }
        let (shape, values) = tensors(&spec.name)?;
        encode_tensor(path, spec, &shape, &values, precision, &mut write)?;
    }
    if hashed {
        metadata.insert(MODELSPEC_HASH_KEY.to_owned(), hash_entry(&hasher.finish()));
        writer.write_metadata(&metadata)?;
    }
    writer.commit()?;
    Ok(())
}

/// Whoever writes this entry follows <https://github.com/Stability-AI/ModelSpec>.
pub(crate) const MODELSPEC_KEY: &str = "modelspec.sai_model_spec";
/// The SHA-256 of all that is behind the header, as kohya's scripts show it too.
const MODELSPEC_HASH_KEY: &str = "modelspec.hash_sha256";

fn hash_entry(hash: &ContentHash) -> String {
    format!("0x{hash}")
}

/// Elements that are converted and written at a time.
pub(crate) const CHUNK: usize = 1 << 18;

/// Checks values and hands them on as bytes, a chunk at a time, each with its place in the tensor.
pub(crate) fn encode_tensor(
    path: &Path,
    spec: &TensorSpec,
    shape: &[usize],
    values: &[f32],
    precision: Precision,
    write: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    check(path, &spec.name, &spec.shape, shape, values, precision)?;
    let size = precision.size();
    let mut buffer = vec![0; CHUNK.min(values.len()) * size];
    for (i, values) in values.chunks(CHUNK).enumerate() {
        let bytes = &mut buffer[..values.len() * size];
        precision.encode(values, bytes);
        write((i * CHUNK * size) as u64, bytes)?;
    }
    Ok(())
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
    let limit = precision.overflow();
    if all_below(values, limit) {
        return Ok(());
    }
    let fits = |x: &f32| x.abs() < limit;
    let index = values.iter().position(|x| !fits(x)).expect("one was seen");
    let (path, tensor, value) = (path.to_path_buf(), tensor.to_owned(), values[index]);
    Err(match value.is_finite() {
        true => Error::Overflow { path, tensor, index, value, precision },
        false => Error::NotFinite { path, tensor, index, value },
    })
}
