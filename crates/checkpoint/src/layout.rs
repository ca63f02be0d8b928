//! A `.safetensors` file that is written in any order: its header first, each tensor at its final place.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use serde_json::{Map, Value, json};
use vodka_stage::AtomicFile;

use crate::{
    CONFIG_KEY, Dtype, Error, ModelConfig, Place, Precision, Prediction, Result, keys, write::MODELSPEC_KEY,
};

/// A tensor that a file is to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the file.
    pub name: String,
    /// The type of an element.
    pub dtype: Dtype,
    /// The extent of each axis.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// How many bytes the elements take.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64 * self.dtype.size() as u64
    }
}

/// The tensors of a single file of this model, in the order in which we write them: `position_ids` (int64), which
/// older programs ask for, and all of [`keys::all`] by name.
pub fn single_file_tensors(config: &ModelConfig, precision: Precision) -> Vec<TensorSpec> {
    let mut specs: Vec<_> = keys::all(config)
        .into_iter()
        .map(|key| TensorSpec { name: key.ldm, dtype: precision.dtype(), shape: key.shape })
        .collect();
    let shape = vec![1, config.clip.max_positions as usize];
    specs.push(TensorSpec { name: position_ids_name(), dtype: Dtype::I64, shape });
    in_file_order(&mut specs);
    specs
}

/// Sorts as the safetensors library does: the widest elements first, so that all are aligned, then by name.
pub fn in_file_order(specs: &mut [TensorSpec]) {
    specs.sort_by(|a, b| b.dtype.size().cmp(&a.dtype.size()).then_with(|| a.name.cmp(&b.name)));
}

/// The name of the text encoder's numbers of positions, which are no weights.
pub fn position_ids_name() -> String {
    format!("{}text_model.embeddings.position_ids", keys::CLIP_PREFIX)
}

/// The bytes of `position_ids`: int64, from 0 to one less than `positions`.
pub fn position_ids(positions: i64) -> Vec<u8> {
    (0..positions).flat_map(i64::to_le_bytes).collect()
}

/// The metadata entry ([`CONFIG_KEY`]) that holds the configuration, since heads and groups are in no tensor.
pub fn config_entry(config: &ModelConfig) -> (String, String) {
    (CONFIG_KEY.to_owned(), serde_json::to_string(config).expect("a configuration is plain data"))
}

/// What a file of ours says by ModelSpec 1.0.1 (<https://github.com/Stability-AI/ModelSpec>), without its date, so that the
/// same weights make the same file.
pub fn model_spec(config: &ModelConfig, title: &str) -> BTreeMap<String, String> {
    let prediction = match config.prediction {
        Prediction::Epsilon => "epsilon",
        Prediction::VPrediction => "v",
    };
    [
        (MODELSPEC_KEY, "1.0.1"),
        ("modelspec.architecture", "stable-diffusion-v1"),
        ("modelspec.implementation", "https://github.com/Stability-AI/generative-models"),
        ("modelspec.title", title),
        ("modelspec.resolution", "512x512"),
        ("modelspec.prediction_type", prediction),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// Fails where the folder of `path` has less free space than `needed` bytes; the folder must exist.
pub fn check_free_space(path: &Path, needed: u64) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let available = fs4::available_space(folder).map_err(Error::read(folder))?;
    match available < needed {
        true => Err(Error::DiskFull { path: path.to_path_buf(), needed, available }),
        false => Ok(()),
    }
}

/// A `.safetensors` file being written: whole or not at all.
///
/// The header is written at once, from then on each tensor has its place, and any thread may write any part of any
/// tensor at any time. Until [`SafetensorsWriter::commit`] the target is as it was; dropped before, nothing is left.
#[derive(Debug)]
pub struct SafetensorsWriter {
    file: AtomicFile,
    specs: Vec<TensorSpec>,
    places: Vec<Place>,
    /// Bytes written of each tensor.
    written: Vec<AtomicU64>,
    header: Vec<u8>,
    file_bytes: u64,
}

impl SafetensorsWriter {
    /// Starts a file that holds `specs` in this order, and writes its header, with `format: pt` and all of `metadata`.
    ///
    /// The same tensors and metadata make the same header: nothing of time or place is in it.
    ///
    /// # Errors
    /// Less free space than the file needs; a folder that cannot be created or written to.
    ///
    /// # Panics
    /// When two tensors have one name.
    pub fn create(
        path: impl Into<PathBuf>,
        specs: Vec<TensorSpec>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let path = path.into();
        let names: BTreeSet<_> = specs.iter().map(|spec| &spec.name).collect();
        assert_eq!(names.len(), specs.len(), "each tensor has a name of its own");
        let header = header(&specs, metadata);
        let mut file_bytes = header.len() as u64;
        let mut places = Vec::with_capacity(specs.len());
        for spec in &specs {
            places.push(Place { file: 0, offset: file_bytes, bytes: spec.bytes() });
            file_bytes += spec.bytes();
        }
        let file = AtomicFile::create(&path)?;
        check_free_space(&path, file_bytes)?;
        write_all_at(file.file(), &header, 0).map_err(Error::write(&path))?;
        let written = specs.iter().map(|_| AtomicU64::new(0)).collect();
        Ok(Self { file, specs, places, written, header, file_bytes })
    }

    /// Writes other metadata in the place of those it was created with.
    ///
    /// # Panics
    /// When the header has another length with them.
    pub fn write_metadata(&self, metadata: &BTreeMap<String, String>) -> Result<()> {
        let header = header(&self.specs, metadata);
        assert_eq!(header.len() as u64, self.header_bytes(), "bytes of a header in another's place");
        self.write_file_at(0, &header)
    }

    /// The tensors, in their order in the file; methods below take an index into them.
    pub fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    /// Where a tensor will lie.
    pub fn place(&self, index: usize) -> Place {
        self.places[index]
    }

    /// Bytes of the header, with the eight that tell its length: where the first tensor starts.
    pub fn header_bytes(&self) -> u64 {
        self.header.len() as u64
    }

    /// The header as it lies in the file.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Writes some bytes of a tensor, `start` bytes from its own beginning.
    ///
    /// # Panics
    /// When they do not fit into the tensor.
    pub fn write_at(&self, index: usize, start: u64, bytes: &[u8]) -> Result<()> {
        let place = self.places[index];
        let end = start + bytes.len() as u64;
        assert!(end <= place.bytes, "{}: {end} bytes, it has {}", self.specs[index].name, place.bytes);
        self.write_file_at(place.offset + start, bytes)?;
        self.written[index].fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Writes bytes that begin `start` bytes into tensor `first` and run on over those that follow it in the file: one
    /// large write instead of many small ones.
    ///
    /// # Panics
    /// When they run over the end of the file.
    pub fn write_run(&self, first: usize, start: u64, bytes: &[u8]) -> Result<()> {
        let from = self.places[first].offset + start;
        let end = from + bytes.len() as u64;
        assert!(end <= self.file_bytes, "bytes up to {end} of {}", self.file_bytes);
        self.write_file_at(from, bytes)?;
        for (place, written) in self.places[first..].iter().zip(&self.written[first..]) {
            if place.offset >= end {
                break;
            }
            let (from, end) = (from.max(place.offset), end.min(place.offset + place.bytes));
            written.fetch_add(end.saturating_sub(from), Ordering::Relaxed);
        }
        Ok(())
    }

    /// The bytes of a tensor as they have been written, read anew.
    ///
    /// # Errors
    /// They cannot be read, or not all have been written.
    pub fn read_back(&self, index: usize) -> Result<Vec<u8>> {
        let Place { offset, bytes, .. } = self.places[index];
        let mut buffer = vec![0; bytes as usize];
        let file = File::open(self.file.partial()).map_err(Error::read(self.file.target()))?;
        read_exact_at(&file, &mut buffer, offset).map_err(Error::read(self.file.target()))?;
        Ok(buffer)
    }

    fn write_file_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        write_all_at(self.file.file(), bytes, offset).map_err(Error::write(self.file.target()))
    }

    /// Brings what has been written so far to the disk, so that [`SafetensorsWriter::commit`] has less to wait for.
    pub fn sync(&self) -> Result<()> {
        self.file.file().sync_data().map_err(Error::write(self.file.target()))
    }

    /// Syncs the file and puts it in its target's place.
    ///
    /// # Panics
    /// When a tensor has not been written, or some of it twice.
    pub fn commit(self) -> Result<()> {
        for ((spec, place), written) in self.specs.iter().zip(&self.places).zip(&self.written) {
            let written = written.load(Ordering::Relaxed);
            assert_eq!(written, place.bytes, "{}: bytes written", spec.name);
        }
        Ok(self.file.commit()?)
    }
}

/// The length of the JSON, and the JSON, padded with spaces to a multiple of 8 bytes.
fn header(specs: &[TensorSpec], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut metadata = metadata.clone();
    metadata.insert("format".to_owned(), "pt".to_owned());
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!(metadata));
    let mut start = 0;
    for spec in specs {
        let end = start + spec.bytes();
        let entry = json!({"dtype": spec.dtype.name(), "shape": spec.shape, "data_offsets": [start, end]});
        header.insert(spec.name.clone(), entry);
        start = end;
    }
    let mut json = Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    [(json.len() as u64).to_le_bytes().as_slice(), &json].concat()
}

/// Writes all bytes at a place of the file, wherever its cursor is.
fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::write_all_at(file, bytes, offset);
    #[cfg(windows)]
    {
        let (mut bytes, mut offset) = (bytes, offset);
        while !bytes.is_empty() {
            let n = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
            bytes = &bytes[n..];
            offset += n as u64;
        }
        Ok(())
    }
}

/// Fills the buffer from a place of the file, wherever its cursor is.
pub(crate) fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset);
    #[cfg(windows)]
    {
        let (mut buffer, mut offset) = (buffer, offset);
        while !buffer.is_empty() {
            let n = std::os::windows::fs::FileExt::seek_read(file, buffer, offset)?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            buffer = &mut buffer[n..];
            offset += n as u64;
        }
        Ok(())
    }
}
