//! Puts pictures and captions into a folder, and knows which of the files there it has put.
//!
//! The list lies in that folder, one JSON object a line. A file is put on it before it is written and again after it,
//! so that a killed run leaves none behind that is not on it; with what is about to be written, by which it is known
//! again. Half-written files of a killed run are removed by the next one. Whatever else lies in the folder is left alone, and what
//! lies where a file is to be put is an error, unless it is that file already.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{self, File, Metadata, OpenOptions},
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
    thread,
    time::UNIX_EPOCH,
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use vodka_stage::{
    AtomicFile, Error as StageError, Interrupt, create_dir, hash_bytes, hash_file, write_atomic,
};

use crate::{Error, Result, caption::taken, sidecar::read_bytes};

/// The list's name; hidden files are neither pictures nor part of an output's hash.
const NAME: &str = ".vodka-files";

/// So many files are put between two looks at the interrupt.
const BATCH: usize = 128;

/// So many threads put them.
const WRITERS: usize = 8;

/// The endings of captions that go with a picture: those that EveryDream2 reads.
const CAPTIONS: [&str; 4] = ["txt", "caption", "yml", "yaml"];

/// How a picture gets into another folder. Captions are copied always, for they are there to be edited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// A copy, byte for byte.
    #[default]
    Copy,
    /// A second name for the same file: takes no room, on the same disk only.
    HardLink,
    /// A link that names the file.
    Symlink,
}

/// A file that is to lie in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    /// Relative to the folder, with `/`.
    pub(crate) name: String,
    pub(crate) content: Content,
}

/// Where the content comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    File(PathBuf, Method),
    Text(String),
}

/// What has been done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// How many files were written or linked.
    pub written: u64,
    /// How many were there already.
    pub there: u64,
    /// How many of earlier runs were removed, since nothing asks for them now.
    pub removed: u64,
    /// Files of earlier runs that nothing asks for now, and that were changed since: they stay.
    pub left: Vec<String>,
}

/// Size and time of modification, by which a file counts as unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    bytes: u64,
    modified_ns: u128,
}

/// A file on the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    name: String,
    /// None for a text.
    method: Option<Method>,
    /// The file that it was made from.
    source: Option<Stamp>,
    /// The file itself; none before it is written for the first time.
    file: Option<Stamp>,
    /// While it is written, what it is going to be ([`Item::fingerprint`]); the rest tells what was there before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pending: Option<String>,
}

impl Item {
    fn method(&self) -> Option<Method> {
        match &self.content {
            Content::File(_, method) => Some(*method),
            Content::Text(_) => None,
        }
    }

    fn source_stamp(&self) -> Result<Option<Stamp>> {
        match &self.content {
            Content::File(path, _) => Ok(metadata_of(path)?.map(|found| stamp(&found))),
            Content::Text(_) => Ok(None),
        }
    }

    /// What [`fingerprint`] finds once the item is written.
    fn fingerprint(&self) -> Result<String> {
        match &self.content {
            Content::Text(text) => Ok(hash_bytes(text).to_string()),
            Content::File(source, Method::Copy) => Ok(hash_file(source)?.to_string()),
            Content::File(source, Method::HardLink) => {
                let metadata = metadata_of(source)?;
                metadata.map_or_else(|| Ok(String::new()), |found| file_fingerprint(source, &found))
            }
            Content::File(source, Method::Symlink) => Ok(target_fingerprint(&link_target(source)?)),
        }
    }
}

/// Whether a file has this [`Item::fingerprint`]: the target of a symbolic link, the file that a hard link is a name for,
/// else the content.
fn has_fingerprint(path: &Path, found: &Metadata, fingerprint: &str) -> Result<bool> {
    if found.is_symlink() {
        return Ok(fs::read_link(path).is_ok_and(|target| target_fingerprint(&target) == fingerprint));
    }
    let is_file = found.is_file();
    Ok(is_file
        && (file_fingerprint(path, found)? == fingerprint || hash_file(path)?.to_string() == fingerprint))
}

fn target_fingerprint(target: &Path) -> String {
    format!("to {}", hash_bytes(target.as_os_str().as_encoded_bytes()))
}

#[cfg(unix)]
#[expect(clippy::unnecessary_wraps, reason = "elsewhere the file is read")]
fn file_fingerprint(_: &Path, found: &Metadata) -> Result<String> {
    use std::os::unix::fs::MetadataExt;
    Ok(format!("file {}:{}", found.dev(), found.ino()))
}

#[cfg(not(unix))]
fn file_fingerprint(path: &Path, _: &Metadata) -> Result<String> {
    Ok(hash_file(path)?.to_string())
}

/// The picture and its captions, as items below the folder `into` (empty for the folder itself).
pub(crate) fn items(
    into: &str,
    image: &str,
    images: &Path,
    captions: &Path,
    method: Method,
) -> Result<Vec<Item>> {
    let named = |name: &str| if into.is_empty() { name.to_owned() } else { format!("{into}/{name}") };
    let picture = Content::File(images.join(image), method);
    let mut items = vec![Item { name: named(image), content: picture }];
    for ending in CAPTIONS {
        let caption = Path::new(image).with_extension(ending);
        let path = captions.join(&caption);
        if path.is_dir() {
            let source = io::Error::from(io::ErrorKind::IsADirectory);
            return Err(Error::Read { path, source });
        }
        if path.is_file() {
            let name = vodka_images::relative_name(&caption);
            items.push(Item { name: named(&name), content: Content::File(path, Method::Copy) });
        }
    }
    Ok(items)
}

/// What to tell where pictures have captions in formats that do not go with them.
pub(crate) fn left_behind(count: usize) -> Option<String> {
    let endings = CAPTIONS.map(|ending| format!(".{ending}")).join(", ");
    (count > 0).then(|| {
        format!(
            "the captions of {count} pictures stay behind: they are in no file that goes with one ({endings})"
        )
    })
}

/// Puts the items into the folder, and removes what earlier runs have put there and is no longer wanted. Everything is
/// checked before the first file is written. `None` when interrupted.
///
/// # Errors
/// Another run that has the folder; a file in the way; one that cannot be read or written.
pub(crate) fn place(
    folder: &Path,
    items: &[Item],
    interrupt: &Interrupt,
    on_placed: &mut dyn FnMut(u64),
) -> Result<Option<Placed>> {
    let mut lock = if folder.is_dir() { Some(taken(folder)?) } else { None };
    let mut list = List::read(folder)?;
    list.remove_partials()?;
    let mut due = Vec::new();
    for item in items {
        if !list.is_there(item)? {
            due.push(item);
        }
    }
    let mut placed = Placed { there: (items.len() - due.len()) as u64, ..Placed::default() };
    for batch in due.chunks(BATCH) {
        if interrupt.is_raised() {
            return Ok(None);
        }
        if lock.is_none() {
            lock = Some(taken(folder)?);
        }
        list.put(batch)?;
        placed.written += batch.len() as u64;
        on_placed(placed.there + placed.written);
    }
    let wanted: BTreeSet<_> = items.iter().map(|item| item.name.as_str()).collect();
    list.remove_others(&wanted, &mut placed)?;
    list.compact()?;
    drop(lock);
    Ok(Some(placed))
}

struct List {
    folder: PathBuf,
    entries: BTreeMap<String, Entry>,
}

impl List {
    fn read(folder: &Path) -> Result<Self> {
        let bytes = read_bytes(&folder.join(NAME))?.unwrap_or_default();
        // A line torn by a crash is none; the later of two about a file counts.
        let entries = bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        let entries = entries.map(|entry: Entry| (entry.name.clone(), entry)).collect();
        Ok(Self { folder: folder.to_path_buf(), entries })
    }

    /// Removes what a killed run has half written.
    fn remove_partials(&self) -> Result<()> {
        for entry in self.entries.values().filter(|entry| entry.pending.is_some()) {
            let path = self.folder.join(&entry.name);
            if path.parent().is_some_and(Path::is_dir) {
                // Its own file is the one that a new writer would use, and it vanishes with it.
                drop(AtomicFile::create(path)?);
            }
        }
        Ok(())
    }

    /// Whether the file is as it should be; what is in its way is an error.
    fn is_there(&mut self, item: &Item) -> Result<bool> {
        let path = self.folder.join(&item.name);
        let Some(found) = metadata(&path)? else { return Ok(false) };
        let entry = self.entries.get_mut(&item.name);
        if holds(&path, &found, item, entry.as_deref())? {
            if let Some(entry) = entry {
                // The run that wrote it may have been killed before it could say so.
                let (method, source) = (item.method(), item.source_stamp()?);
                *entry = Entry { method, source, file: Some(stamp(&found)), pending: None, ..entry.clone() };
            }
            return Ok(true);
        }
        match entry {
            Some(entry) if found.is_dir() || !entry.is_ours(&path, &found)? => Err(Error::Foreign { path }),
            None => Err(Error::Foreign { path }),
            Some(_) => Ok(false),
        }
    }

    fn put(&mut self, items: &[&Item]) -> Result<()> {
        let pending = |item: &&Item| {
            let name = item.name.clone();
            let new = || Entry { name, method: item.method(), source: None, file: None, pending: None };
            let before = self.entries.get(&item.name).cloned().unwrap_or_else(new);
            Ok(Entry { pending: Some(item.fingerprint()?), ..before })
        };
        let mut entries = items.par_iter().map(pending).collect::<Result<Vec<_>>>()?;
        let sources = items.iter().map(|item| item.source_stamp()).collect::<Result<Vec<_>>>()?;
        create_dir(&self.folder)?;
        self.append(&entries)?;
        let folder = &self.folder;
        thread::scope(|scope| {
            let shares = items.chunks(items.len().div_ceil(WRITERS).max(1));
            let write = |share: &[&Item]| share.iter().try_for_each(|item| write(folder, item));
            let writers: Vec<_> = shares.map(|share| scope.spawn(move || write(share))).collect();
            writers.into_iter().try_for_each(|writer| writer.join().expect("a writer does not panic"))
        })?;
        for ((entry, item), source) in entries.iter_mut().zip(items).zip(sources) {
            let file = metadata(&self.folder.join(&item.name))?.map(|found| stamp(&found));
            *entry = Entry { name: item.name.clone(), method: item.method(), source, file, pending: None };
        }
        self.append(&entries)
    }

    fn append(&mut self, entries: &[Entry]) -> Result<()> {
        let path = self.folder.join(NAME);
        let lines: String = entries.iter().map(line).collect();
        let append = || {
            let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
            file.write_all(lines.as_bytes())?;
            file.sync_data()
        };
        append().map_err(|source| write_error(&path, source))?;
        self.entries.extend(entries.iter().map(|entry| (entry.name.clone(), entry.clone())));
        Ok(())
    }

    fn remove_others(&mut self, wanted: &BTreeSet<&str>, placed: &mut Placed) -> Result<()> {
        let others: Vec<_> =
            self.entries.keys().filter(|name| !wanted.contains(name.as_str())).cloned().collect();
        for name in others {
            let path = self.folder.join(&name);
            let entry = self.entries.remove(&name).expect("it was just there");
            match metadata(&path)? {
                None => {}
                Some(found) if entry.is_ours(&path, &found)? => {
                    fs::remove_file(&path).map_err(|source| write_error(&path, source))?;
                    placed.removed += 1;
                    remove_empty_folders(&self.folder, &path);
                }
                Some(_) => placed.left.push(name),
            }
        }
        Ok(())
    }

    fn compact(&self) -> Result<()> {
        let list: String = self.entries.values().map(line).collect();
        let path = self.folder.join(NAME);
        if read_bytes(&path)?.unwrap_or_default() != list.as_bytes() {
            write_atomic(path, list)?;
        }
        Ok(())
    }
}

impl Entry {
    /// Whether the file is as we left it, or as we were about to leave it when the run was killed.
    fn is_ours(&self, path: &Path, found: &Metadata) -> Result<bool> {
        match &self.pending {
            _ if self.file == Some(stamp(found)) => Ok(true),
            Some(pending) => has_fingerprint(path, found, pending),
            None => Ok(false),
        }
    }
}

fn line(entry: &Entry) -> String {
    format!("\n{}", serde_json::to_string(entry).expect("names and numbers are plain data"))
}

/// Whether the file at `path` is what the item asks for.
fn holds(path: &Path, found: &Metadata, item: &Item, entry: Option<&Entry>) -> Result<bool> {
    match &item.content {
        Content::Text(text) => {
            Ok(found.is_file() && read_bytes(path)?.unwrap_or_default() == text.as_bytes())
        }
        Content::File(source, Method::Symlink) => {
            Ok(found.is_symlink() && fs::read_link(path).ok() == Some(link_target(source)?))
        }
        Content::File(source, method) => {
            let Some(original) = metadata_of(source)? else { return Ok(false) };
            if !found.is_file() || found.len() != original.len() {
                return Ok(false);
            }
            let known = entry.filter(|entry| entry.file == Some(stamp(found)));
            match known {
                Some(entry) if entry.method != Some(*method) => Ok(false),
                Some(entry) if entry.source == Some(stamp(&original)) => Ok(true),
                _ => Ok(same_bytes(path, source)?),
            }
        }
    }
}

fn write(folder: &Path, item: &Item) -> Result<()> {
    let path = folder.join(&item.name);
    let (source, method) = match &item.content {
        Content::Text(text) => return Ok(write_atomic(path, text)?),
        Content::File(source, method) => (source, *method),
    };
    if method == Method::Copy {
        let mut from = open(source)?;
        let mut file = AtomicFile::create(&path)?;
        io::copy(&mut from, &mut file).map_err(|source| write_error(&path, source))?;
        return Ok(file.commit()?);
    }
    path.parent().map_or(Ok(()), create_dir)?;
    let link = || {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        match method {
            Method::Symlink => symlink(&fs::canonicalize(source)?, &path),
            _ => fs::hard_link(fs::canonicalize(source)?, &path),
        }
    };
    link().map_err(|source| write_error(&path, source))
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

fn link_target(source: &Path) -> Result<PathBuf> {
    fs::canonicalize(source).map_err(|error| Error::Read { path: source.to_path_buf(), source: error })
}

/// Of the file or link itself, if there is one.
fn metadata(path: &Path) -> Result<Option<Metadata>> {
    there(path, fs::symlink_metadata(path))
}

/// Of the file that a path leads to, if there is one.
fn metadata_of(path: &Path) -> Result<Option<Metadata>> {
    there(path, fs::metadata(path))
}

fn there(path: &Path, found: io::Result<Metadata>) -> Result<Option<Metadata>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path: path.to_path_buf(), source }),
    }
}

fn stamp(metadata: &Metadata) -> Stamp {
    let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Stamp { bytes: metadata.len(), modified_ns: modified.map_or(0, |since| since.as_nanos()) }
}

fn open(path: &Path) -> Result<BufReader<File>> {
    let file = File::open(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
    Ok(BufReader::with_capacity(1 << 17, file))
}

fn same_bytes(a: &Path, b: &Path) -> Result<bool> {
    let read = |path: &Path, file: &mut BufReader<File>, buffer: &mut Vec<u8>| {
        buffer.clear();
        let read = file.take(1 << 17).read_to_end(buffer);
        read.map_err(|source| Error::Read { path: path.to_path_buf(), source })
    };
    let (mut file_a, mut file_b) = (open(a)?, open(b)?);
    let (mut bytes_a, mut bytes_b) = (Vec::new(), Vec::new());
    loop {
        let lengths = (read(a, &mut file_a, &mut bytes_a)?, read(b, &mut file_b, &mut bytes_b)?);
        if bytes_a != bytes_b {
            return Ok(false);
        }
        if lengths == (0, 0) {
            return Ok(true);
        }
    }
}

/// Removes the folders above a file, up to the root, that nothing is in any more.
fn remove_empty_folders(root: &Path, file: &Path) {
    let folders = file.ancestors().skip(1).take_while(|folder| *folder != root);
    for folder in folders {
        // One that is not empty stays.
        if fs::remove_dir(folder).is_err() {
            return;
        }
    }
}

fn write_error(path: &Path, source: io::Error) -> Error {
    Error::Stage(StageError::Write { path: path.to_path_buf(), source })
}

/// Files by which EveryDream2 is told about a whole folder; they do not go with the pictures.
pub(crate) fn folder_settings(folder: &Path) -> Vec<String> {
    const NAMES: [&str; 10] = [
        "multiply.txt",
        "cond_dropout.txt",
        "flip_p.txt",
        "batch_id.txt",
        "loss_scale.txt",
        "shuffle_tags.txt",
        "local.yaml",
        "local.yml",
        "global.yaml",
        "global.yml",
    ];
    let is_settings = |name: &OsStr| NAMES.iter().any(|known| name == *known);
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut found: Vec<_> =
        names.filter(|name| is_settings(name)).map(|name| name.to_string_lossy().into_owned()).collect();
    found.sort();
    found
}
