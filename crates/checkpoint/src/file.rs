//! One file of tensors, mapped into memory: `.safetensors`, or what PyTorch writes.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    fs::{self, File},
    ops::Range,
    path::{Path, PathBuf},
};

use memmap2::Mmap;
use serde::Serialize;

use crate::{
    Dtype, Error, Place, Result, TensorInfo, TensorView, header, layout::read_exact_at, tensor::gather, torch,
};

/// The form of a file or folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Format {
    /// A single `.safetensors` file.
    Safetensors,
    /// `.ckpt`, `.pt`, `.bin`: a zip archive of PyTorch 1.6 and later.
    TorchZip,
    /// The same of before 1.6: pickles, and the elements behind them.
    TorchLegacy,
    /// A diffusers folder.
    Diffusers,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "safetensors",
            Self::TorchZip => "PyTorch (zip)",
            Self::TorchLegacy => "PyTorch (before 1.6)",
            Self::Diffusers => "diffusers folder",
        })
    }
}

/// Named tensors in one file, whatever its format. Nothing is made of the names: see [`Checkpoint`](crate::Checkpoint).
///
/// Pickles are read without running anything; what they may import is a short list.
#[derive(Debug)]
pub struct WeightFile {
    path: PathBuf,
    file: File,
    map: Mmap,
    format: Format,
    /// The tensors by their names in the file.
    pub(crate) tensors: BTreeMap<String, Stored>,
    /// The header's `__metadata__`.
    metadata: BTreeMap<String, String>,
    left_over: Vec<String>,
}

/// Where and how a tensor lies in its file.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) dtype: safetensors::Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Data,
}

/// The elements of a tensor.
#[derive(Debug, Clone)]
pub(crate) enum Data {
    /// In one piece, row-major: bytes from the start of the file.
    Plain(Range<usize>),
    /// In some other way.
    Scattered(Box<Scattered>),
}

/// Elements that must be put together.
#[derive(Debug, Clone)]
pub(crate) struct Scattered {
    pub(crate) elements: torch::Elements,
    /// Bytes before the first element.
    pub(crate) start: usize,
    /// Elements from one to the next along each axis, where they do not follow each other.
    pub(crate) strides: Option<Vec<usize>>,
}

impl Stored {
    pub(crate) fn dtype(&self, path: &Path, name: &str) -> Result<Dtype> {
        Dtype::from_safetensors(self.dtype).ok_or_else(|| Error::Dtype {
            path: path.to_path_buf(),
            tensor: name.to_owned(),
            dtype: format!("{:?}", self.dtype),
        })
    }

    /// Where the elements lie, if in one piece.
    pub(crate) fn place(&self, file: usize) -> Option<Place> {
        match &self.data {
            Data::Plain(range) => Some(Place { file, offset: range.start as u64, bytes: range.len() as u64 }),
            Data::Scattered(_) => None,
        }
    }
}

impl WeightFile {
    /// Maps the file and checks its table of contents against its length. Weights are not read yet.
    ///
    /// # Errors
    /// A file that cannot be read, is cut short or damaged, has two tensors of one name, or is a pickle that imports
    /// anything but what checkpoints are made of.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let file = File::open(&path).map_err(Error::read(&path))?;
        let length = file.metadata().map_err(Error::read(&path))?.len();
        if length < 8 {
            return Err(Error::Truncated { path, expected: 8, found: length });
        }
        // SAFETY: the file is only read. Programs of this project never change a file in place, they put a new one
        // under its name, so the mapped bytes stay as they are. Should another program cut the file short, the system
        // ends this process on the next access; no memory of ours is at stake, and plain bytes have no invalid value.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::read(&path))?;
        if torch::is_torch(&map) {
            let format = if torch::is_zip(&map) { Format::TorchZip } else { Format::TorchLegacy };
            let torch::Contents { tensors, metadata, mut left_over } = torch::contents(&path, &map)?;
            if !metadata.is_empty() {
                left_over.retain(|name| name != "metadata");
            }
            return Ok(Self { path, file, map, format, tensors, metadata, left_over });
        }
        let (tensors, metadata) = header::contents(&path, &map)?;
        Ok(Self { path, file, map, format: Format::Safetensors, tensors, metadata, left_over: Vec::new() })
    }

    /// Where the file lies, as given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its form.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The header's `__metadata__`; for a file of PyTorch what [`run`](crate::convert::run) keeps in its place.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// What a file of PyTorch holds beside tensors, by name: `epoch`, `optimizer_states`, ... It is not read.
    pub fn left_over(&self) -> &[String] {
        &self.left_over
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.tensors.keys().map(String::as_str)
    }

    /// What a tensor is and where it lies ([`Place::file`] is 0). Reads nothing.
    pub fn info(&self, name: &str) -> Result<TensorInfo> {
        let stored = self.stored(name)?;
        let dtype = stored.dtype(&self.path, name)?;
        Ok(TensorInfo { dtype, shape: stored.shape.clone(), place: stored.place(0) })
    }

    /// A tensor by its name in the file.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        let stored = self.stored(name)?;
        let dtype = stored.dtype(&self.path, name)?;
        let data = self.bytes(name, stored)?;
        Ok(TensorView { dtype, shape: stored.shape.clone(), data })
    }

    fn stored(&self, name: &str) -> Result<&Stored> {
        let none = || Error::NoTensor { path: self.path.clone(), tensor: name.to_owned() };
        self.tensors.get(name).ok_or_else(none)
    }

    /// Reads a part of the file past the mapping, so that it does not count as memory of this process.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        read_exact_at(&self.file, buffer, offset).map_err(Error::read(&self.path))
    }

    /// The whole file.
    pub(crate) fn all(&self) -> &[u8] {
        &self.map
    }

    /// The elements of a tensor, put together where they do not lie in one piece.
    pub(crate) fn bytes(&self, name: &str, stored: &Stored) -> Result<Cow<'_, [u8]>> {
        let scattered = match &stored.data {
            Data::Plain(range) => return Ok(self.map[range.clone()].into()),
            Data::Scattered(scattered) => scattered,
        };
        let damaged = || Error::Entry { path: self.path.clone(), entry: name.to_owned() };
        let elements = scattered.elements.read(&self.map).ok_or_else(damaged)?;
        let elements = &elements[scattered.start..];
        let size = stored.dtype.bitsize() / 8;
        let numel: usize = stored.shape.iter().product();
        Ok(match &scattered.strides {
            None => elements[..numel * size].to_vec(),
            Some(strides) => gather(elements, size, &stored.shape, strides),
        }
        .into())
    }
}

/// Whether both paths lead to one file, by whatever links.
pub fn same_file(a: &Path, b: &Path) -> bool {
    match (fs::canonicalize(a), fs::canonicalize(b)) {
        (Ok(a), Ok(b)) => a == b || same_inode(&a, &b),
        _ => a == b,
    }
}

#[cfg(unix)]
fn same_inode(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;

    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Windows has no stable way to tell hard links from each other.
#[cfg(not(unix))]
fn same_inode(_: &Path, _: &Path) -> bool {
    false
}
