//! One `.safetensors` file, mapped into memory.

use std::{
    collections::BTreeMap,
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
};

use memmap2::Mmap;
use safetensors::{SafeTensorError, SafeTensors};
use serde_json::Value;

use crate::{Dtype, Error, Result};

/// A mapped file and its table of contents.
#[derive(Debug)]
pub(crate) struct MappedFile {
    map: Mmap,
    /// The tensors by their names in the file.
    pub(crate) tensors: BTreeMap<String, Stored>,
    /// The header's `__metadata__`.
    pub(crate) metadata: BTreeMap<String, String>,
}

/// Where and how a tensor lies in its file.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) dtype: safetensors::Dtype,
    pub(crate) shape: Vec<usize>,
    /// Bytes from the start of the file.
    pub(crate) bytes: Range<usize>,
}

impl Stored {
    pub(crate) fn dtype(&self, path: &Path, name: &str) -> Result<Dtype> {
        Dtype::from_safetensors(self.dtype).ok_or_else(|| Error::Dtype {
            path: path.to_path_buf(),
            tensor: name.to_owned(),
            dtype: format!("{:?}", self.dtype),
        })
    }
}

impl MappedFile {
    /// Maps the file and checks its header against its length.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::read(path))?;
        let length = file.metadata().map_err(Error::read(path))?.len();
        if length < 8 {
            return Err(Error::Truncated { path: path.to_path_buf(), expected: 8, found: length });
        }
        // SAFETY: the file is only read. Programs of this project never change a file in place, they put a new one
        // under its name, so the mapped bytes stay as they are. Should another program cut the file short, the system
        // ends this process on the next access; no memory of ours is at stake, and plain bytes have no invalid value.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::read(path))?;
        let (tensors, metadata) = contents(path, &map)?;
        Ok(Self { map, tensors, metadata })
    }

    /// The whole file.
    pub(crate) fn all(&self) -> &[u8] {
        &self.map
    }

    pub(crate) fn bytes(&self, range: &Range<usize>) -> &[u8] {
        &self.map[range.clone()]
    }
}

type Contents = (BTreeMap<String, Stored>, BTreeMap<String, String>);

fn contents(path: &Path, bytes: &[u8]) -> Result<Contents> {
    let (length, header) = SafeTensors::read_metadata(bytes).map_err(|source| why(path, bytes, source))?;
    let start = 8 + length;
    let stored = |info: &safetensors::tensor::TensorInfo| Stored {
        dtype: info.dtype,
        shape: info.shape.clone(),
        bytes: start + info.data_offsets.0..start + info.data_offsets.1,
    };
    let tensors = header.tensors().into_iter().map(|(name, info)| (name, stored(info))).collect();
    let metadata = header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    Ok((tensors, metadata))
}

/// Why a file is not what it should be: a pickle, cut short, or something else.
fn why(path: &Path, bytes: &[u8], source: SafeTensorError) -> Error {
    let path = PathBuf::from(path);
    // A zip archive, or a bare pickle of protocol 2 and above.
    if bytes.starts_with(b"PK\x03\x04") || matches!(bytes, [0x80, 2..=5, ..]) {
        return Error::Pickle { path };
    }
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
