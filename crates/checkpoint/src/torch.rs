//! PyTorch's files: a zip archive (since 1.6), or pickles with the elements behind them.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    io::{Cursor, Read},
    ops::Range,
    path::Path,
};

use flate2::read::DeflateDecoder;
use zip::{CompressionMethod, ZipArchive};

use crate::{
    Architecture, Error, Result, StorageFault,
    file::{Data, Scattered, Stored},
    pickle::{Id, Node, Pickle, PickleError, Storage, Tensor},
};

/// What a file of PyTorch holds.
pub(crate) struct Contents {
    /// By name.
    pub(crate) tensors: BTreeMap<String, Stored>,
    /// The texts under `metadata`, where this program wrote the file.
    pub(crate) metadata: BTreeMap<String, String>,
    /// What lies beside the tensors: `epoch`, `optimizer_states`, ...
    pub(crate) left_over: Vec<String>,
}

/// The elements of a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Elements {
    /// As they are.
    Plain(Range<usize>),
    /// Compressed, and how many bytes they become.
    Deflated { compressed: Range<usize>, bytes: usize },
}

/// The largest pickle that is read; the full Stable Diffusion 1.5 has 0.4 MB.
const PICKLE_BYTES_MAX: usize = 32 << 20;

/// The first value of a file of before 1.6, as a long in a pickle of protocol 2.
const MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// Whether the bytes start like a file of PyTorch, or some other pickle.
///
/// A `.safetensors` file starts with the length of its header, whose bytes may be those of a pickle by accident; what
/// follows them is not.
pub(crate) fn is_torch(bytes: &[u8]) -> bool {
    let is_header = bytes.get(5..9).is_some_and(|bytes| bytes == b"\0\0\0{");
    !is_header && (is_zip(bytes) || matches!(bytes, [0x80, 2..=5, ..]))
}

pub(crate) fn is_zip(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04")
}

/// Reads the table of contents; the elements stay where they are.
pub(crate) fn contents(path: &Path, bytes: &[u8]) -> Result<Contents> {
    if is_zip(bytes) {
        return zip_contents(path, bytes);
    }
    legacy_contents(path, bytes)
}

fn zip_contents(path: &Path, bytes: &[u8]) -> Result<Contents> {
    let entries = entries(path, bytes)?;
    let pickles: Vec<_> =
        entries.keys().filter(|name| name.ends_with("/data.pkl") || *name == "data.pkl").collect();
    let [pickle] = pickles.as_slice() else {
        return Err(Error::NoPickle { path: path.to_path_buf(), found: pickles.len() });
    };
    let root = pickle.strip_suffix("data.pkl").expect("it ends so");
    if entries.contains_key(&format!("{root}constants.pkl")) {
        return Err(Error::Architecture { path: path.to_path_buf(), found: Architecture::TorchScript });
    }
    if let Some(order) = entries.get(&format!("{root}byteorder"))
        && let order = inflate(path, bytes, order, 16)?
        && order.trim_ascii() != b"little"
    {
        return Err(Error::BigEndian { path: path.to_path_buf() });
    }
    let pickle = inflate(path, bytes, &entries[*pickle], PICKLE_BYTES_MAX)?;
    let pickle =
        Pickle::read(&pickle).map_err(|source| Error::Pickle { path: path.to_path_buf(), source })?;
    let find = |storage: &Storage| match entries.get(&format!("{root}data/{}", storage.key)) {
        Some(elements) => Ok(elements.clone()),
        None => Err(StorageFault::Missing { storage: storage.key.clone() }),
    };
    collect(path, &pickle, &find)
}

/// The entries of an archive by name.
fn entries(path: &Path, bytes: &[u8]) -> Result<HashMap<String, Elements>> {
    let wrong = |source| Error::Archive { path: path.to_path_buf(), source };
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(wrong)?;
    let mut entries = HashMap::with_capacity(archive.len());
    for i in 0..archive.len() {
        let entry = archive.by_index_raw(i).map_err(wrong)?;
        let name = entry.name().to_owned();
        let damaged = || Error::Entry { path: path.to_path_buf(), entry: name.clone() };
        let start = usize::try_from(entry.data_start()).map_err(|_| damaged())?;
        let length = usize::try_from(entry.compressed_size()).map_err(|_| damaged())?;
        let end = start.checked_add(length).filter(|end| *end <= bytes.len()).ok_or_else(damaged)?;
        let elements = match entry.compression() {
            _ if entry.encrypted() => return Err(damaged()),
            CompressionMethod::Stored => Elements::Plain(start..end),
            CompressionMethod::DEFLATE => {
                let bytes = usize::try_from(entry.size()).map_err(|_| damaged())?;
                Elements::Deflated { compressed: start..end, bytes }
            }
            _ => return Err(damaged()),
        };
        if entries.insert(name.clone(), elements).is_some() {
            return Err(Error::Duplicate { path: path.to_path_buf(), tensor: name });
        }
    }
    Ok(entries)
}

/// The bytes of an entry of which no more than `limit` are expected.
fn inflate<'a>(path: &Path, bytes: &'a [u8], elements: &Elements, limit: usize) -> Result<Cow<'a, [u8]>> {
    let found = elements.bytes();
    if found > limit {
        return Err(Error::PickleSize { path: path.to_path_buf(), found, limit });
    }
    elements
        .read(bytes)
        .ok_or_else(|| Error::Entry { path: path.to_path_buf(), entry: "data.pkl".to_owned() })
}

impl Elements {
    /// How many bytes there are, uncompressed.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Plain(range) => range.len(),
            Self::Deflated { bytes, .. } => *bytes,
        }
    }

    /// Decompresses where needed, never more than was announced; none where that is not what comes out.
    pub(crate) fn read<'a>(&self, file: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        match self {
            Self::Plain(range) => Some(file[range.clone()].into()),
            Self::Deflated { compressed, bytes } => {
                let mut all = Vec::new();
                inflate_into(&mut all, &file[compressed.clone()], *bytes).then(|| all.into())
            }
        }
    }
}

/// Decompresses what is to become so many bytes; whether it does. Memory grows with what comes out, whatever is claimed.
fn inflate_into(all: &mut Vec<u8>, compressed: &[u8], bytes: usize) -> bool {
    const AT_FIRST: usize = 1 << 16;
    // Deflate makes at most 1032 bytes of one: more is a lie.
    if bytes > compressed.len().saturating_mul(1032).saturating_add(1032) {
        return false;
    }
    all.reserve(bytes.min(AT_FIRST));
    let mut decoder = DeflateDecoder::new(compressed).take(bytes as u64 + 1);
    decoder.read_to_end(all).is_ok() && all.len() == bytes
}

/// Five pickles (magic number, protocol, system, object, names of storages), then each storage: its number of
/// elements as int64, and the elements.
fn legacy_contents(path: &Path, bytes: &[u8]) -> Result<Contents> {
    let unreadable = |source| Error::Pickle { path: path.to_path_buf(), source };
    if !bytes.starts_with(MAGIC) {
        // Whatever it wants to import is worth telling; else it is no file of PyTorch.
        Pickle::read(&bytes[..bytes.len().min(PICKLE_BYTES_MAX)]).map_err(unreadable)?;
        return Err(Error::NotTorch { path: path.to_path_buf() });
    }
    let mut at = 0;
    let mut next = || {
        let rest = &bytes[at..];
        let pickle =
            Pickle::read(&rest[..rest.len().min(PICKLE_BYTES_MAX)]).map_err(|source| match source {
                PickleError::CutShort { .. } if rest.len() > PICKLE_BYTES_MAX => {
                    Error::PickleSize { path: path.to_path_buf(), found: rest.len(), limit: PICKLE_BYTES_MAX }
                }
                source => unreadable(source),
            })?;
        at += pickle.length;
        Ok::<_, Error>(pickle)
    };
    let (_magic, _protocol, system) = (next()?, next()?, next()?);
    if is_big_endian(&system) {
        return Err(Error::BigEndian { path: path.to_path_buf() });
    }
    let (object, names) = (next()?, next()?);
    let places = legacy_storages(path, bytes, at, &object, &names)?;
    let find = |storage: &Storage| match places.get(&storage.key) {
        Some(range) => Ok(Elements::Plain(range.clone())),
        None => Err(StorageFault::Missing { storage: storage.key.clone() }),
    };
    collect(path, &object, &find)
}

fn is_big_endian(system: &Pickle) -> bool {
    let Node::Dict(items) = system.root() else { return false };
    items.iter().any(|(key, value)| {
        matches!(system.node(*key), Node::Str(key) if key == "little_endian")
            && *system.node(*value) == Node::Bool(false)
    })
}

/// Where each storage lies, in the order of the list of names.
fn legacy_storages(
    path: &Path,
    bytes: &[u8],
    start: usize,
    object: &Pickle,
    names: &Pickle,
) -> Result<HashMap<String, Range<usize>>> {
    let sizes: HashMap<_, _> = object
        .nodes()
        .filter_map(|node| match node {
            Node::Storage(storage) => Some((storage.key.as_str(), storage.dtype.bitsize() / 8)),
            _ => None,
        })
        .collect();
    let Node::List(names_list) = names.root() else {
        return Err(Error::NotTorch { path: path.to_path_buf() });
    };
    let mut at = start;
    let mut places = HashMap::new();
    for name in names_list {
        let Node::Str(name) = names.node(*name) else {
            return Err(Error::NotTorch { path: path.to_path_buf() });
        };
        let Some(size) = sizes.get(name.as_ref()) else {
            return Err(Error::NotTorch { path: path.to_path_buf() });
        };
        let truncated =
            |expected| Error::Truncated { path: path.to_path_buf(), expected, found: bytes.len() as u64 };
        let count = bytes.get(at..at + 8).ok_or_else(|| truncated(at as u64 + 8))?;
        let count = u64::from_le_bytes(count.try_into().expect("eight bytes"));
        at += 8;
        let end = count.saturating_mul(*size as u64).saturating_add(at as u64);
        if end > bytes.len() as u64 {
            return Err(truncated(end));
        }
        places.insert(name.to_string(), at..end as usize);
        at = end as usize;
    }
    Ok(places)
}

type Find<'a> = &'a dyn Fn(&Storage) -> Result<Elements, StorageFault>;

/// The tensors of the dictionary that holds them, and the names of the rest.
fn collect(path: &Path, pickle: &Pickle, find: Find) -> Result<Contents> {
    let Some((items, mut left_over)) = state(pickle) else {
        return Err(Error::NoState { path: path.to_path_buf() });
    };
    let mut tensors = BTreeMap::new();
    for (key, value) in items {
        let Some(name) = text(pickle, *key) else { continue };
        match pickle.node(*value) {
            Node::Tensor(tensor) => {
                let stored = stored(pickle, tensor, find).map_err(|fault| Error::Storage {
                    path: path.to_path_buf(),
                    tensor: name.to_owned(),
                    fault,
                })?;
                if tensors.insert(name.to_owned(), stored).is_some() {
                    return Err(Error::Duplicate { path: path.to_path_buf(), tensor: name.to_owned() });
                }
            }
            _ => left_over.push(name.to_owned()),
        }
    }
    left_over.sort();
    Ok(Contents { tensors, metadata: metadata(pickle), left_over })
}

fn metadata(pickle: &Pickle) -> BTreeMap<String, String> {
    let Node::Dict(items) = pickle.root() else { return BTreeMap::new() };
    let inner = items.iter().find_map(|(key, value)| match pickle.node(*value) {
        Node::Dict(inner) if text(pickle, *key) == Some("metadata") => Some(inner),
        _ => None,
    });
    let entry =
        |(key, value): &(Id, Id)| Some((text(pickle, *key)?.to_owned(), text(pickle, *value)?.to_owned()));
    inner.into_iter().flatten().filter_map(entry).collect()
}

type Items = [(Id, Id)];

/// The dictionary that holds the tensors: the whole, or the one below it that trainers nest it in; and the names of
/// what lies beside it.
fn state<'p>(pickle: &'p Pickle<'_>) -> Option<(&'p Items, Vec<String>)> {
    const NESTS: [&str; 9] = [
        "state_dict",
        "model_state_dict",
        "params_ema",
        "params-ema",
        "params",
        "model",
        "net",
        "module",
        "string_to_param",
    ];
    let Node::Dict(items) = pickle.root() else { return None };
    let mut items = items.as_slice();
    let mut left_over = Vec::new();
    // Twice at most: Lightning's dictionary, and one in it.
    for _ in 0..2 {
        let dict = |name: &str| {
            items.iter().find_map(|(key, value)| match pickle.node(*value) {
                Node::Dict(inner) if text(pickle, *key) == Some(name) => Some(inner.as_slice()),
                _ => None,
            })
        };
        let Some((nest, inner)) = NESTS.iter().find_map(|name| Some((*name, dict(name)?))) else { break };
        left_over.extend(
            items
                .iter()
                .filter_map(|(key, _)| text(pickle, *key))
                .filter(|name| *name != nest)
                .map(ToOwned::to_owned),
        );
        items = inner;
    }
    Some((items, left_over))
}

fn text<'p>(pickle: &'p Pickle<'_>, id: Id) -> Option<&'p str> {
    match pickle.node(id) {
        Node::Str(text) => Some(text),
        _ => None,
    }
}

/// Checks a tensor against its storage.
fn stored(pickle: &Pickle, tensor: &Tensor, find: Find) -> Result<Stored, StorageFault> {
    let Node::Storage(storage) = pickle.node(tensor.storage) else {
        unreachable!("tensors are made of storages only");
    };
    let elements = find(storage)?;
    let size = storage.dtype.bitsize() / 8;
    let overflow = || StorageFault::TooMany { shape: tensor.shape.clone() };
    let numel = tensor.shape.iter().try_fold(1_usize, |n, size| n.checked_mul(*size)).ok_or_else(overflow)?;
    let steps = tensor.shape.iter().zip(&tensor.strides);
    let last = steps
        .filter(|(size, _)| **size > 0)
        .try_fold(tensor.offset, |at, (size, stride)| at.checked_add((size - 1).checked_mul(*stride)?));
    let needed = if numel == 0 { Some(0) } else { last.and_then(|last| last.checked_add(1)) };
    let needed = needed.and_then(|needed| needed.checked_mul(size)).ok_or_else(overflow)?;
    let found = elements.bytes();
    // Repeated elements (strides of 0) could make terabytes of one.
    if numel > storage.numel || storage.numel.checked_mul(size).is_none() {
        return Err(overflow());
    }
    let announced = storage.numel * size;
    if needed.max(announced) > found {
        return Err(StorageFault::TooShort { needed: needed.max(announced), found });
    }
    // As they are, they cost nothing that is not asked for; these would be decompressed.
    if matches!(elements, Elements::Deflated { .. }) && found > announced {
        return Err(StorageFault::TooLong { announced, found });
    }
    let start = tensor.offset.saturating_mul(size).min(found);
    let data = match (&elements, is_row_major(&tensor.shape, &tensor.strides)) {
        (Elements::Plain(range), true) => {
            let start = range.start + start;
            Data::Plain(start..start + numel * size)
        }
        (_, plain) => Data::Scattered(Box::new(Scattered {
            elements,
            start,
            strides: (!plain).then(|| tensor.strides.clone()),
        })),
    };
    Ok(Stored { dtype: storage.dtype, shape: tensor.shape.clone(), data })
}

/// Whether elements follow each other; the strides of axes of extent 1 mean nothing.
fn is_row_major(shape: &[usize], strides: &[usize]) -> bool {
    // Of no elements, whose other extents may be too large to multiply.
    if shape.contains(&0) {
        return true;
    }
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(size, stride)| {
        let fits = *size == 1 || *stride == expected;
        expected *= size;
        fits
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn memory_grows_with_what_comes_out_and_not_with_what_is_claimed() {
        // A MiB of noise that deflate cannot make smaller.
        let noise: Vec<u8> =
            (0..1_u32 << 18).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&noise).unwrap();
        let compressed = encoder.finish().unwrap();
        let inflate = |claimed: usize| {
            let mut all = Vec::new();
            let fits = inflate_into(&mut all, &compressed, claimed);
            (fits, all)
        };
        assert_eq!(inflate(noise.len()), (true, noise.clone()));
        let (fits, all) = inflate(400 << 20);
        assert!(!fits && all.capacity() <= 4 * noise.len(), "{}", all.capacity());
        let (fits, all) = inflate(1000);
        assert!(!fits && all.len() == 1001, "no more than one byte more is read");
        assert!(!inflate(usize::MAX).0);
    }
}
