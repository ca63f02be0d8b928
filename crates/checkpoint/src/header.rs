//! The header of a `.safetensors` file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
};

use safetensors::{SafeTensorError, SafeTensors};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::Value;

use crate::{
    Error, Result,
    file::{Data, Stored},
};

type Contents = (BTreeMap<String, Stored>, BTreeMap<String, String>);

/// Tensors and metadata of a file, checked: offsets without gaps or overlaps, sizes that fit the shapes, no name twice.
pub(crate) fn contents(path: &Path, bytes: &[u8]) -> Result<Contents> {
    // The library keeps the last of several tensors of one name, and then misses the others' bytes.
    if let Some(text) = text(bytes)
        && let Ok(Names { twice: Some(tensor) }) = serde_json::from_slice(text)
    {
        return Err(Error::Duplicate { path: path.to_path_buf(), tensor });
    }
    let (length, header) = SafeTensors::read_metadata(bytes).map_err(|source| why(path, bytes, source))?;
    let start = 8 + length;
    let stored = |info: &safetensors::tensor::TensorInfo| Stored {
        dtype: info.dtype,
        shape: info.shape.clone(),
        data: Data::Plain(start + info.data_offsets.0..start + info.data_offsets.1),
    };
    let tensors = header.tensors().into_iter().map(|(name, info)| (name, stored(info))).collect();
    let metadata = header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    Ok((tensors, metadata))
}

/// The longest header that the safetensors library reads.
const HEADER_MAX: usize = 100_000_000;

/// The JSON, if the file is long enough to have it, and it is no longer than the library takes.
fn text(bytes: &[u8]) -> Option<&[u8]> {
    let (size, rest) = bytes.split_at_checked(8)?;
    let size = u64::from_le_bytes(size.try_into().expect("eight bytes"));
    rest.get(..usize::try_from(size).ok().filter(|size| *size <= HEADER_MAX)?)
}

/// The first name that a JSON object has twice.
struct Names {
    twice: Option<String>,
}

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;

        impl<'de> Visitor<'de> for Keys {
            type Value = Names;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Names, A::Error> {
                let (mut seen, mut twice) = (BTreeSet::new(), None);
                while let Some((name, IgnoredAny)) = map.next_entry::<String, _>()? {
                    if let Some(name) = seen.replace(name) {
                        twice.get_or_insert(name);
                    }
                }
                Ok(Names { twice })
            }
        }

        deserializer.deserialize_map(Keys)
    }
}

/// Why a file is not what it should be: cut short, or something else.
fn why(path: &Path, bytes: &[u8], source: SafeTensorError) -> Error {
    let path = PathBuf::from(path);
    let found = bytes.len() as u64;
    let (size, rest) = bytes.split_at(8);
    let size = u64::from_le_bytes(size.try_into().expect("eight bytes"));
    match source {
        SafeTensorError::InvalidHeaderLength => {
            Error::Truncated { path, expected: size.saturating_add(8), found }
        }
        SafeTensorError::MetadataIncompleteBuffer => match data_end(&rest[..size as usize]) {
            Some(end) => Error::Truncated { path, expected: 8 + size + end, found },
            None => Error::Header { path, source },
        },
        SafeTensorError::TensorInvalidInfo | SafeTensorError::ValidationOverflow => {
            match misfit(&rest[..size as usize]) {
                Some(misfit) => Error::TensorBytes { path, misfit: Box::new(misfit) },
                None => Error::Header { path, source },
            }
        }
        _ => Error::Header { path, source },
    }
}

/// The largest offset that a header names.
fn data_end(header: &[u8]) -> Option<u64> {
    let header: BTreeMap<String, Value> = serde_json::from_slice(header).ok()?;
    header.values().filter_map(|tensor| tensor.get("data_offsets")?.get(1)?.as_u64()).max()
}

/// A tensor whose place in the file is not as long as its type and shape say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// Its name.
    pub tensor: String,
    /// Its type, in safetensors' words.
    pub dtype: String,
    /// The extent of each axis.
    pub shape: Vec<u64>,
    /// Bytes that such a tensor takes; none where they are more than a number holds.
    pub expected: Option<u64>,
    /// Bytes that the header gives it.
    pub found: u64,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tensor, dtype, shape, expected, found } = self;
        write!(f, "the tensor `{tensor}` has {found} bytes, expected ")?;
        match expected {
            Some(expected) => write!(f, "{expected}")?,
            None => f.write_str("more than any file has")?,
        }
        write!(f, " ({dtype}, {shape:?})")
    }
}

/// The first tensor of a header that is a misfit.
fn misfit(header: &[u8]) -> Option<Misfit> {
    let header: BTreeMap<String, Value> = serde_json::from_slice(header).ok()?;
    header.into_iter().filter(|(name, _)| name != "__metadata__").find_map(|(tensor, info)| {
        let dtype: safetensors::Dtype = serde_json::from_value(info.get("dtype")?.clone()).ok()?;
        let shape: Vec<u64> = serde_json::from_value(info.get("shape")?.clone()).ok()?;
        let [start, end]: [u64; 2] = serde_json::from_value(info.get("data_offsets")?.clone()).ok()?;
        let bits = shape.iter().try_fold(dtype.bitsize() as u64, |bits, extent| bits.checked_mul(*extent));
        let (expected, found) = (bits.map(|bits| bits.div_ceil(8)), end.saturating_sub(start));
        let dtype = dtype.to_string();
        (expected != Some(found)).then_some(Misfit { tensor, dtype, shape, expected, found })
    })
}
