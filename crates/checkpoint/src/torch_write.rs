//! Writes what `torch.save` writes: a zip archive with a pickle and the elements.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    rc::Rc,
};

use vodka_stage::AtomicFile;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use crate::{Dtype, Error, Result, TensorSpec, check_free_space};

/// The folder in the archive; any name will do, this is PyTorch's.
const ROOT: &str = "archive";

/// A `.ckpt` file being written, tensor after tensor, whole or not at all.
pub(crate) struct TorchWriter {
    path: PathBuf,
    zip: ZipWriter<Quiet>,
    fault: Fault,
    options: SimpleFileOptions,
}

/// The first error of a file.
type Fault = Rc<RefCell<Option<io::Error>>>;

/// A file that keeps its first error for whoever asks, and takes everything after it: the archive's writer, when it is
/// dropped, tries to end the archive all the same, and prints what goes wrong.
struct Quiet {
    file: AtomicFile,
    fault: Fault,
    /// Where the next byte goes, and how long the file is or would be.
    at: u64,
    end: u64,
}

impl Quiet {
    fn keep<T>(&mut self, instead: T, work: impl FnOnce(&mut AtomicFile) -> io::Result<T>) -> T {
        let mut fault = self.fault.borrow_mut();
        if fault.is_some() {
            return instead;
        }
        work(&mut self.file).unwrap_or_else(|error| {
            *fault = Some(error);
            instead
        })
    }
}

impl Write for Quiet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.keep(bytes.len(), |file| file.write(bytes));
        self.at += written as u64;
        self.end = self.end.max(self.at);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.keep((), AtomicFile::flush);
        Ok(())
    }
}

impl Seek for Quiet {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        let to = match position {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(step) => self.at.checked_add_signed(step),
            SeekFrom::End(step) => self.end.checked_add_signed(step),
        };
        let to = to.ok_or(io::ErrorKind::InvalidInput)?;
        self.at = self.keep(to, |file| file.seek(position));
        Ok(self.at)
    }
}

impl TorchWriter {
    /// Starts a file that holds `specs` under `state_dict`, and `metadata` beside it where there is any.
    pub(crate) fn create(
        path: &Path,
        specs: &[TensorSpec],
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let file = AtomicFile::create(path)?;
        let pickle = pickle(specs, metadata);
        // Each entry has two headers with its name, and is aligned.
        let overhead: u64 = specs.iter().map(|_| 320).sum::<u64>() + pickle.len() as u64 + 1024;
        check_free_space(path, specs.iter().map(TensorSpec::bytes).sum::<u64>() + overhead)?;
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            // As PyTorch does, so that elements may be mapped.
            .with_alignment(64);
        let fault = Fault::default();
        let zip = ZipWriter::new(Quiet { file, fault: Rc::clone(&fault), at: 0, end: 0 });
        let mut writer = Self { path: path.to_path_buf(), zip, fault, options };
        writer.entry("data.pkl", pickle.len() as u64)?;
        writer.write(&pickle)?;
        writer.entry("byteorder", 6)?;
        writer.write(b"little")?;
        Ok(writer)
    }

    /// Starts a tensor; its elements follow.
    pub(crate) fn start(&mut self, index: usize, spec: &TensorSpec) -> Result<()> {
        self.entry(&format!("data/{index}"), spec.bytes())
    }

    /// Writes elements of the tensor in hand.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.zip.write_all(bytes).map_err(Error::write(&self.path))?;
        self.check()
    }

    fn check(&self) -> Result<()> {
        let fault = self.fault.borrow_mut().take();
        match fault {
            Some(error) => {
                // From here on the file takes everything, and is thrown away.
                *self.fault.borrow_mut() = Some(io::ErrorKind::Other.into());
                Err(Error::write(&self.path)(error))
            }
            None => Ok(()),
        }
    }

    pub(crate) fn commit(mut self) -> Result<()> {
        self.entry("version", 2)?;
        self.write(b"3\n")?;
        let quiet = self.zip.finish().map_err(|source| Error::write(&self.path)(source.into()))?;
        match self.fault.take() {
            Some(error) => Err(Error::write(&self.path)(error)),
            None => Ok(quiet.file.commit()?),
        }
    }

    fn entry(&mut self, name: &str, bytes: u64) -> Result<()> {
        let options = self.options.large_file(bytes >= u64::from(u32::MAX));
        let started = self.zip.start_file(format!("{ROOT}/{name}"), options);
        started.map_err(|source| Error::write(&self.path)(source.into()))?;
        self.check()
    }
}

/// `{"state_dict": OrderedDict of tensors, "metadata": {...}}` in protocol 2.
fn pickle(specs: &[TensorSpec], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut out = b"\x80\x02}(".to_vec();
    text(&mut out, "state_dict");
    out.extend(b"ccollections\nOrderedDict\n)R(");
    for (index, spec) in specs.iter().enumerate() {
        text(&mut out, &spec.name);
        tensor(&mut out, index, spec);
    }
    out.push(b'u');
    if !metadata.is_empty() {
        text(&mut out, "metadata");
        out.extend(b"}(");
        for (key, value) in metadata {
            text(&mut out, key);
            text(&mut out, value);
        }
        out.push(b'u');
    }
    out.extend(b"u.");
    out
}

/// `torch._utils._rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`.
fn tensor(out: &mut Vec<u8>, index: usize, spec: &TensorSpec) {
    out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    text(out, "storage");
    out.extend(format!("ctorch\n{}\n", storage(spec.dtype)).as_bytes());
    text(out, &index.to_string());
    text(out, "cpu");
    number(out, spec.shape.iter().product());
    out.extend(b"tQK\x00");
    tuple(out, &spec.shape);
    let mut strides = vec![1; spec.shape.len()];
    for axis in (1..spec.shape.len()).rev() {
        strides[axis - 1] = strides[axis] * spec.shape[axis].max(1);
    }
    tuple(out, &strides);
    out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
}

fn storage(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F64 => "DoubleStorage",
        Dtype::F32 => "FloatStorage",
        Dtype::F16 => "HalfStorage",
        Dtype::BF16 => "BFloat16Storage",
        Dtype::I64 => "LongStorage",
        Dtype::I32 => "IntStorage",
        Dtype::U8 => "ByteStorage",
        Dtype::Bool => "BoolStorage",
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

fn number(out: &mut Vec<u8>, number: usize) {
    match i32::try_from(number) {
        Ok(number) => {
            out.push(b'J');
            out.extend(number.to_le_bytes());
        }
        Err(_) => {
            // Nine bytes, so that the highest bit is none of the sign.
            out.extend([0x8a, 9]);
            out.extend((number as u64).to_le_bytes());
            out.push(0);
        }
    }
}

fn tuple(out: &mut Vec<u8>, items: &[usize]) {
    out.push(b'(');
    for item in items {
        number(out, *item);
    }
    out.push(b't');
}
