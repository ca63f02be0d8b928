//! The files in which a model keeps weights, without reading the weights that it has inside.

use std::{
    fs::File,
    io::{self, BufReader, Read as _},
    path::{Component, Path},
};

use super::{
    onnx::{Outside, graph, model},
    wire::Message,
};

/// A tensor whose elements lie outside is a name, a shape and a place: one that takes more has them inside.
const TENSOR_MAX: u64 = 1 << 16;

/// The files that hold weights of a model, relative to its folder, each once; of those that lie below it.
///
/// # Errors
/// When the model cannot be read, or is none.
pub(crate) fn locations(model: &Path) -> io::Result<Vec<String>> {
    let file = File::open(model)?;
    let end = file.metadata()?.len();
    let mut scan = Scan { file: BufReader::new(file), at: 0, found: Vec::new() };
    scan.message(end, false)?;
    Ok(scan.found)
}

struct Scan {
    file: BufReader<File>,
    at: u64,
    found: Vec<String>,
}

impl Scan {
    /// Goes through the fields of a `ModelProto`, or of the `GraphProto` in it.
    fn message(&mut self, end: u64, is_graph: bool) -> io::Result<()> {
        while self.at < end {
            let key = self.varint()?;
            let length = match key & 7 {
                0 => {
                    self.varint()?;
                    continue;
                }
                1 => 8,
                2 => self.varint()?,
                5 => 4,
                _ => return Err(io::ErrorKind::InvalidData.into()),
            };
            let next = self.at.checked_add(length).filter(|next| *next <= end);
            let next = next.ok_or(io::ErrorKind::InvalidData)?;
            match (is_graph, u32::try_from(key >> 3)) {
                (false, Ok(model::GRAPH)) if key & 7 == 2 => self.message(next, true)?,
                (true, Ok(graph::INITIALIZER)) if length <= TENSOR_MAX => self.tensor(length)?,
                _ => {
                    let length = i64::try_from(length).map_err(|_| io::ErrorKind::InvalidData)?;
                    self.file.seek_relative(length)?;
                    self.at = next;
                }
            }
        }
        Ok(())
    }

    fn tensor(&mut self, length: u64) -> io::Result<()> {
        let mut bytes = vec![0; length as usize];
        self.file.read_exact(&mut bytes)?;
        self.at += length;
        let tensor = Outside::read(Message { bytes: &bytes, at: 0 }).map_err(io::Error::other)?;
        let Some(location) = tensor.map(|tensor| tensor.location) else { return Ok(()) };
        // Written in the same way, whoever has written it.
        let parts = Path::new(location).components().filter(|part| *part != Component::CurDir);
        let parts: Option<Vec<_>> = parts
            .map(|part| match part {
                Component::Normal(name) => name.to_str(),
                _ => None,
            })
            .collect();
        if let Some(location) = parts.map(|parts| parts.join("/")).filter(|it| !self.found.contains(it)) {
            self.found.push(location);
        }
        Ok(())
    }

    fn varint(&mut self) -> io::Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            self.file.read_exact(&mut byte)?;
            self.at += 1;
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 {
                return Ok(value);
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }
}
