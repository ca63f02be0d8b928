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
        _ => Error::Header { path, source },
    }
}

/// The largest offset that a header names.
fn data_end(header: &[u8]) -> Option<u64> {
    let header: BTreeMap<String, Value> = serde_json::from_slice(header).ok()?;
    header.values().filter_map(|tensor| tensor.get("data_offsets")?.get(1)?.as_u64()).max()
}
