//! Weights that lie beside a model, taken into it: its copy may lie elsewhere, and must not lack them.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::{Component, Path, PathBuf},
};

use super::{
    BYTES_MAX, Flaw,
    onnx::{Outside, graph, model},
    wire::{Message, put_bytes},
};
use crate::{Error, Result};

/// A model with the tensors of its graph inside, read from files beside `path`.
pub fn inline(path: &Path, bytes: Vec<u8>) -> Result<Vec<u8>> {
    let flawed = |flaw: Flaw| flaw.in_model(path);
    let found = outside(&bytes).map_err(flawed)?;
    if found.is_empty() {
        return Ok(bytes);
    }
    let mut files = Files { model: path, open: None, total: bytes.len() as u64 };
    let data: Vec<_> = found.iter().map(|tensor| files.read(tensor)).collect::<Result<_>>()?;
    put_inside(&bytes, data.into_iter()).map_err(flawed)
}

/// The initializers that are not inside.
fn outside(bytes: &[u8]) -> Result<Vec<Outside<'_>>, Flaw> {
    let mut found = Vec::new();
    for field in (Message { bytes, at: 0 }).fields() {
        let field = field?;
        if field.number != model::GRAPH {
            continue;
        }
        for field in field.message()?.fields() {
            let field = field?;
            if field.number == graph::INITIALIZER {
                found.extend(Outside::read(field.message()?)?);
            }
        }
    }
    Ok(found)
}

/// The model with `data` in the tensors that were outside, in their order.
fn put_inside(bytes: &[u8], mut data: impl Iterator<Item = Vec<u8>>) -> Result<Vec<u8>, Flaw> {
    let mut out = Vec::new();
    for field in (Message { bytes, at: 0 }).fields() {
        let field = field?;
        if field.number != model::GRAPH {
            out.extend(field.raw);
            continue;
        }
        let mut graph = Vec::new();
        for field in field.message()?.fields() {
            let field = field?;
            let outside = match field.number {
                graph::INITIALIZER => Outside::read(field.message()?)?,
                _ => None,
            };
            match outside.and_then(|tensor| Some((tensor, data.next()?))) {
                Some((tensor, data)) => put_bytes(&mut graph, graph::INITIALIZER, &tensor.inside(&data)),
                None => graph.extend(field.raw),
            }
        }
        put_bytes(&mut out, model::GRAPH, &graph);
    }
    Ok(out)
}

/// The files beside a model. They come one after the other, mostly there is one.
struct Files<'a> {
    model: &'a Path,
    open: Option<(&'a str, PathBuf, File)>,
    /// The bytes read so far, with those of the model.
    total: u64,
}

impl<'a> Files<'a> {
    fn read(&mut self, tensor: &Outside<'a>) -> Result<Vec<u8>> {
        let (path, file) = match self.open.take().filter(|(location, ..)| *location == tensor.location) {
            Some((_, path, file)) => (path, file),
            None => self.open(tensor)?,
        };
        let unreadable = |source| vodka_stage::Error::Read { path: path.clone(), source };
        let size = file.metadata().map_err(unreadable)?.len();
        let length = tensor.length.unwrap_or_else(|| size.saturating_sub(tensor.offset));
        let end = tensor.offset.checked_add(length).filter(|end| *end <= size);
        if end.is_none() {
            let found = format!("{length} bytes from byte {} of {size}", tensor.offset);
            return Err(self.wrong(tensor, "a part of that file", found));
        }
        self.total += length;
        if self.total > BYTES_MAX {
            return Err(Error::ModelTooLarge { model: self.model.to_path_buf(), bytes: self.total });
        }
        let mut data = Vec::new();
        (&file).seek(SeekFrom::Start(tensor.offset)).map_err(unreadable)?;
        (&file).take(length).read_to_end(&mut data).map_err(unreadable)?;
        self.open = Some((tensor.location, path, file));
        Ok(data)
    }

    fn open(&self, tensor: &Outside<'a>) -> Result<(PathBuf, File)> {
        let location = Path::new(tensor.location);
        let inside = |part: Component| matches!(part, Component::Normal(_) | Component::CurDir);
        if !location.components().all(inside) {
            return Err(self.wrong(
                tensor,
                "a file beside the model or below it",
                tensor.location.to_owned(),
            ));
        }
        let path = self.model.with_file_name("").join(location);
        let file = File::open(&path);
        let file = file.map_err(|source| vodka_stage::Error::Read { path: path.clone(), source })?;
        Ok((path, file))
    }

    fn wrong(&self, tensor: &Outside, expected: &'static str, found: String) -> Error {
        let (model, location) = (self.model.to_path_buf(), tensor.location.to_owned());
        Error::WeightsOutside { model, tensor: tensor.name.to_owned(), location, expected, found }
    }
}
