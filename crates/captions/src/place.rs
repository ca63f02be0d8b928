//! Puts files into a folder, and knows which of the files there each stage has put.
//!
//! The list lies in that folder, one JSON object a line. A file is put on it before it is written and again after it,
//! so that a killed run leaves none behind that is not on it; with what is about to be written, by which it is known
//! again. Half-written files of a killed run are removed by the next one. Whatever else lies in the folder is left alone, also
//! what another stage has put there, and what lies where a file is to be put is an error, unless it is that file already.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{self, File, Metadata, OpenOptions},
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
    thread,
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use vodka_stage::{
    AtomicFile, Error as StageError, FolderLock, Interrupt, Stamp, create_dir, hash_bytes, hash_file,
    write_atomic,
};

use crate::{
    Error, Result,
    caption::{check_writable, taken},
    sidecar::read_bytes,
    stop_if,
};

/// The list's name; hidden files are neither pictures nor part of an output's hash.
const NAME: &str = ".vodka-files";

/// So many files are put between two looks at the interrupt.
const BATCH: usize = 128;

/// So many of those that are as large as pictures and made in memory.
const LARGE: usize = 8;

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
pub(crate) struct Item<'a> {
    /// Relative to the folder, with `/`.
    pub(crate) name: String,
    pub(crate) content: Content<'a>,
}

/// Where the content comes from.
pub(crate) enum Content<'a> {
    File(PathBuf, Method),
    Text(String),
    /// Made anew each time that it is needed: when it is compared, and when it is written.
    Made(Box<dyn Fn() -> Result<Vec<u8>> + Send + Sync + 'a>, Size),
}

/// How large content is that is made, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    Small,
    /// As large as a picture.
    Large,
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

/// A file on the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    name: String,
    /// The stage that has put it there.
    stage: String,
    /// None for what is no file's content.
    method: Option<Method>,
    /// The file that it was made from.
    source: Option<Stamp>,
    /// The file itself; none before it is written for the first time.
    file: Option<Stamp>,
    /// The hash of its content, by which it is known again also where it was copied. Links have none: their content is
    /// another file's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    /// While it is written, what it is going to be ([`Item::fingerprint`]); the rest tells what was there before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pending: Option<String>,
}

impl<'a> Item<'a> {
    pub(crate) fn text(name: impl Into<String>, text: String) -> Self {
        Self { name: name.into(), content: Content::Text(text) }
    }

    pub(crate) fn made(
        name: impl Into<String>,
        size: Size,
        make: impl Fn() -> Result<Vec<u8>> + Send + Sync + 'a,
    ) -> Self {
        Self { name: name.into(), content: Content::Made(Box::new(make), size) }
    }

    fn method(&self) -> Option<Method> {
        match &self.content {
            Content::File(_, method) => Some(*method),
            Content::Text(_) | Content::Made(..) => None,
        }
    }

    /// Whether the file is a second name for another.
    fn is_link(&self) -> bool {
        matches!(self.method(), Some(Method::HardLink | Method::Symlink))
    }

    fn is_large(&self) -> bool {
        matches!(self.content, Content::Made(_, Size::Large))
    }

    fn source_stamp(&self) -> Result<Option<Stamp>> {
        match &self.content {
            Content::File(path, _) => Ok(metadata_of(path)?.as_ref().and_then(Stamp::new)),
            Content::Text(_) | Content::Made(..) => Ok(None),
        }
    }

    /// What is written, where that is made in memory.
    fn bytes(&self) -> Result<Option<Cow<'_, [u8]>>> {
        match &self.content {
            Content::Text(text) => Ok(Some(text.as_bytes().into())),
            Content::Made(make, _) => Ok(Some(make()?.into())),
            Content::File(..) => Ok(None),
        }
    }

    /// What [`has_fingerprint`] knows the file by once it is written.
    fn fingerprint(&self, bytes: Option<&[u8]>) -> Result<String> {
        match &self.content {
            Content::Text(_) | Content::Made(..) => Ok(hash_bytes(bytes.unwrap_or_default()).to_string()),
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
) -> Result<Vec<Item<'static>>> {
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

/// Puts the items into the folder, and removes what earlier runs of the stage have put there and is no longer wanted.
/// Everything is checked before the first file is written. `None` when interrupted.
///
/// # Errors
/// Another run that has the folder; a file in the way; one that cannot be read or written.
pub(crate) fn place(
    folder: &Path,
    stage: &'static str,
    items: &[Item],
    interrupt: &Interrupt,
    on_placed: &mut dyn FnMut(u64),
) -> Result<Option<Placed>> {
    let placed = Folder::open(folder, stage).and_then(|mut folder| {
        let due = folder.due(items, interrupt)?;
        let there = (items.len() - due.len()) as u64;
        folder.put(&due, interrupt, &mut |written| on_placed(there + written))?;
        let placed = folder.close(items.iter().map(|item| item.name.as_str()))?;
        Ok(Placed { written: due.len() as u64, there, ..placed })
    });
    match placed {
        Err(Error::Stopped) => Ok(None),
        placed => placed.map(Some),
    }
}

/// A folder that a stage puts files into; no other run may meanwhile.
#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
    stage: &'static str,
    /// The stage's own.
    entries: BTreeMap<String, Entry>,
    /// What other stages have put there.
    others: Vec<Entry>,
    /// Whether also a file that somebody has edited is replaced.
    replaces_edited: bool,
    lock: Option<FolderLock>,
}

impl Folder {
    /// Takes the folder, which need not be there, and removes what a killed run has half written.
    ///
    /// # Errors
    /// Another run has it; the list cannot be read.
    pub(crate) fn open(root: &Path, stage: &'static str) -> Result<Self> {
        let lock = if root.is_dir() { Some(taken(root)?) } else { None };
        let folder = Self { lock, ..Self::look(root, stage)? };
        folder.remove_partials()?;
        Ok(folder)
    }

    /// Looks at the folder without taking it: to be asked what is due, and nothing else.
    pub(crate) fn look(root: &Path, stage: &'static str) -> Result<Self> {
        let bytes = read_bytes(&root.join(NAME))?.unwrap_or_default();
        // A line torn by a crash is none, nor is one that names no stage; the later of two about a file counts.
        let all = bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        let all: BTreeMap<_, _> = all.map(|entry: Entry| (entry.name.clone(), entry)).collect();
        let (entries, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
            all.into_iter().partition(|(_, entry)| entry.stage == stage);
        let others = others.into_values().collect();
        Ok(Self { root: root.to_path_buf(), stage, entries, others, replaces_edited: false, lock: None })
    }

    /// The same, in which files that were edited are made again: they are there to be looked at.
    pub(crate) fn replacing_edited(self) -> Self {
        Self { replaces_edited: true, ..self }
    }

    /// Whether the stage has put anything there, or was about to.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Makes sure that nobody else's file is in the way of files with these names.
    pub(crate) fn guard<'n>(&self, names: impl Iterator<Item = &'n str>) -> Result<()> {
        for name in names.filter(|name| !self.entries.contains_key(*name)) {
            let path = self.root.join(name);
            if metadata(&path)?.is_some() {
                return Err(Error::Foreign { path });
            }
        }
        Ok(())
    }

    /// Takes the folder, which is made where it is missing.
    ///
    /// # Errors
    /// Another run has it, or has put something there since this one looked and found no folder.
    pub(crate) fn take(&mut self) -> Result<()> {
        if self.lock.is_some() {
            return Ok(());
        }
        let lock = taken(&self.root)?;
        if metadata(&self.root.join(NAME))?.is_some() {
            return Err(StageError::Busy { path: self.root.clone() }.into());
        }
        self.lock = Some(lock);
        Ok(())
    }

    /// The items that are not there as they should be.
    ///
    /// # Errors
    /// What is in the way of one, or read-only; [`Error::Stopped`].
    pub(crate) fn due<'i, 'c>(
        &mut self,
        items: &'i [Item<'c>],
        interrupt: &Interrupt,
    ) -> Result<Vec<&'i Item<'c>>> {
        let standings: Vec<_> = items
            .par_iter()
            .map(|item| stop_if(interrupt).and_then(|()| self.standing(item)))
            .collect::<Result<_>>()?;
        let mut due = Vec::new();
        for (item, standing) in items.iter().zip(standings) {
            match standing {
                Standing::Due => due.push(item),
                Standing::There(Some(entry)) => drop(self.entries.insert(item.name.clone(), *entry)),
                Standing::There(None) => {}
            }
        }
        Ok(due)
    }

    /// How the file of an item stands; what is in its way is an error.
    pub(crate) fn standing(&self, item: &Item) -> Result<Standing> {
        let path = self.root.join(&item.name);
        let Some(found) = metadata(&path)? else { return check_writable(&path).map(|()| Standing::Due) };
        let entry = self.entries.get(&item.name);
        if holds(&path, &found, item, entry)? {
            // The run that wrote it may have been killed before it could say so.
            let made = |entry: &Entry| -> Result<Entry> {
                let sha256 = entry.pending.clone().or_else(|| entry.sha256.clone());
                let sha256 = sha256.filter(|_| !item.is_link());
                let (method, source) = (item.method(), item.source_stamp()?);
                Ok(Entry { method, source, sha256, file: Stamp::new(&found), pending: None, ..entry.clone() })
            };
            return Ok(Standing::There(entry.map(made).transpose()?.map(Box::new)));
        }
        let is_ours = match entry {
            Some(_) if found.is_dir() => false,
            Some(entry) => self.replaces_edited || entry.is_ours(&path, &found)?,
            None => false,
        };
        match is_ours {
            false => Err(Error::Foreign { path }),
            // A link has the permissions of the file that it leads to.
            true if item.is_link() => Ok(Standing::Due),
            true => check_writable(&path).map(|()| Standing::Due),
        }
    }

    /// Puts items there, and tells how many are.
    ///
    /// # Errors
    /// What cannot be read or written; [`Error::Stopped`].
    pub(crate) fn put(
        &mut self,
        due: &[&Item],
        interrupt: &Interrupt,
        on_put: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let batch = if due.iter().any(|item| item.is_large()) { LARGE } else { BATCH };
        let mut done = 0;
        for items in due.chunks(batch) {
            stop_if(interrupt)?;
            self.take()?;
            self.put_batch(items)?;
            done += items.len() as u64;
            on_put(done);
        }
        Ok(())
    }

    fn put_batch(&mut self, items: &[&Item]) -> Result<()> {
        let made = items.par_iter().map(|item| item.bytes()).collect::<Result<Vec<_>>>()?;
        let pending = |(item, bytes): (&&Item, &Option<Cow<'_, [u8]>>)| {
            let before = self.entries.get(&item.name).cloned().unwrap_or_else(|| self.entry(item));
            Ok(Entry { pending: Some(item.fingerprint(bytes.as_deref())?), ..before })
        };
        let mut entries = items.par_iter().zip(&made).map(pending).collect::<Result<Vec<_>>>()?;
        let sources = items.iter().map(|item| item.source_stamp()).collect::<Result<Vec<_>>>()?;
        self.append(&entries)?;
        let root = &self.root;
        let work: Vec<_> = items.iter().zip(&made).collect();
        thread::scope(|scope| {
            let shares = work.chunks(work.len().div_ceil(WRITERS).max(1));
            let write_all = |share: &[(&&Item, &Option<Cow<'_, [u8]>>)]| {
                share.iter().try_for_each(|(item, bytes)| write(root, item, bytes.as_deref()))
            };
            let writers: Vec<_> = shares.map(|share| scope.spawn(move || write_all(share))).collect();
            writers.into_iter().try_for_each(|writer| writer.join().expect("a writer does not panic"))
        })?;
        for ((entry, item), source) in entries.iter_mut().zip(items).zip(sources) {
            let file = metadata(&self.root.join(&item.name))?.as_ref().and_then(Stamp::new);
            let sha256 = entry.pending.take().filter(|_| !item.is_link());
            *entry = Entry { source, file, sha256, ..self.entry(item) };
        }
        self.append(&entries)
    }

    /// What the list says of an item before it is there.
    fn entry(&self, item: &Item) -> Entry {
        Entry {
            name: item.name.clone(),
            stage: self.stage.to_owned(),
            method: item.method(),
            source: None,
            file: None,
            sha256: None,
            pending: None,
        }
    }

    fn append(&mut self, entries: &[Entry]) -> Result<()> {
        let path = self.root.join(NAME);
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

    /// Removes a file that the stage has put there; it stays on the list.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        let path = self.root.join(name);
        match self.entries.contains_key(name).then(|| fs::remove_file(&path)) {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(write_error(&path, error)),
            _ => Ok(()),
        }
    }

    /// Removes what the stage has put there besides these names, unless it was changed since, and brings the list up to date.
    pub(crate) fn close<'n>(mut self, wanted: impl Iterator<Item = &'n str>) -> Result<Placed> {
        self.take()?;
        let wanted: BTreeSet<_> = wanted.collect();
        let mut placed = Placed::default();
        let others: Vec<_> =
            self.entries.keys().filter(|name| !wanted.contains(name.as_str())).cloned().collect();
        for name in others {
            let path = self.root.join(&name);
            let entry = self.entries.remove(&name).expect("it was just there");
            match metadata(&path)? {
                None => {}
                Some(found) if self.replaces_edited && found.is_file() || entry.is_ours(&path, &found)? => {
                    fs::remove_file(&path).map_err(|source| write_error(&path, source))?;
                    placed.removed += 1;
                    remove_empty_folders(&self.root, &path);
                }
                Some(_) => placed.left.push(name),
            }
        }
        self.compact()?;
        Ok(placed)
    }

    fn compact(&self) -> Result<()> {
        let list: String = self.others.iter().chain(self.entries.values()).map(line).collect();
        let path = self.root.join(NAME);
        if read_bytes(&path)?.unwrap_or_default() != list.as_bytes() {
            write_atomic(path, list)?;
        }
        Ok(())
    }

    /// Removes what a killed run has half written.
    fn remove_partials(&self) -> Result<()> {
        for entry in self.entries.values().filter(|entry| entry.pending.is_some()) {
            let path = self.root.join(&entry.name);
            if path.parent().is_some_and(Path::is_dir) {
                // Its own file is the one that a new writer would use, and it vanishes with it.
                drop(AtomicFile::create(path)?);
            }
        }
        Ok(())
    }
}

/// How the file of an item stands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is missing, or is ours and otherwise than it should be.
    Due,
    /// It is as it should be; with what the list is to say of it, where it is on the list.
    There(Option<Box<Entry>>),
}

impl Entry {
    /// Whether the file is as we left it, or as we were about to leave it when the run was killed.
    fn is_ours(&self, path: &Path, found: &Metadata) -> Result<bool> {
        if is_known(self.file, found) {
            return Ok(true);
        }
        for known in [&self.pending, &self.sha256].into_iter().flatten() {
            if has_fingerprint(path, found, known)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn line(entry: &Entry) -> String {
    format!("\n{}", serde_json::to_string(entry).expect("names and numbers are plain data"))
}

/// Whether the file at `path` is what the item asks for.
fn holds(path: &Path, found: &Metadata, item: &Item, entry: Option<&Entry>) -> Result<bool> {
    match &item.content {
        Content::Text(text) => Ok(found.is_file() && is_file_of(path, text.as_bytes())?),
        Content::Made(make, _) => Ok(found.is_file() && is_file_of(path, &make()?)?),
        Content::File(source, Method::Symlink) => {
            Ok(found.is_symlink() && fs::read_link(path).ok() == Some(link_target(source)?))
        }
        Content::File(source, method) => {
            let Some(original) = metadata_of(source)? else { return Ok(false) };
            if !found.is_file() || found.len() != original.len() {
                return Ok(false);
            }
            let known = entry.filter(|entry| is_known(entry.file, found));
            match known {
                Some(entry) if entry.method != Some(*method) => Ok(false),
                Some(entry) if is_known(entry.source, &original) => Ok(true),
                _ => Ok(same_bytes(path, source)?),
            }
        }
    }
}

fn is_file_of(path: &Path, bytes: &[u8]) -> Result<bool> {
    Ok(read_bytes(path)?.is_some_and(|found| found == bytes))
}

/// Writes an item, with its bytes where they are made in memory.
fn write(folder: &Path, item: &Item, bytes: Option<&[u8]>) -> Result<()> {
    let path = folder.join(&item.name);
    let Content::File(source, method) = &item.content else {
        return Ok(write_atomic(path, bytes.unwrap_or_default())?);
    };
    let method = *method;
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

/// Whether a file is as it was; one without a stamp is not known.
fn is_known(stamp: Option<Stamp>, found: &Metadata) -> bool {
    stamp.is_some() && stamp == Stamp::new(found)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, stage: &'static str, name: &str, text: &str) -> Result<Option<Placed>> {
        place(root, stage, &[Item::text(name, text.to_owned())], &Interrupt::new(), &mut |_| {})
    }

    #[test]
    fn a_stage_knows_its_own_files_alone() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        put(dir.path(), "filter", "a.txt", "a").unwrap();
        // As a list that names no stage: what it says may be about anybody's files.
        let text = fs::read_to_string(at(NAME)).unwrap();
        fs::write(at(NAME), text.replace("\"stage\":\"filter\",", "")).unwrap();
        for stage in ["report", "caption", "filter"] {
            assert!(Folder::look(dir.path(), stage).unwrap().is_empty(), "{stage}");
            put(dir.path(), stage, &format!("{stage}.txt"), "b").unwrap();
            assert!(at("a.txt").exists(), "{stage} removes what is not its own");
        }
        let error = put(dir.path(), "filter", "a.txt", "b").unwrap_err().to_string();
        assert!(error.ends_with("a.txt` is in the way: `.vodka-files` does not say that a run has put it there as it is; move or delete it"), "{error}");
        put(dir.path(), "report", "c.txt", "c").unwrap();
        assert!(!at("report.txt").exists() && at("caption.txt").exists());
    }

    #[test]
    fn a_folder_that_another_run_has_made_meanwhile_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("out");
        let mut folder = Folder::open(&root, "caption").unwrap();
        let items = [Item::text("a.txt", "ours".to_owned())];
        let due = folder.due(&items, &Interrupt::new()).unwrap();
        put(&root, "filter", "a.txt", "theirs").unwrap();
        let error = folder.put(&due, &Interrupt::new(), &mut |_| {}).unwrap_err().to_string();
        assert!(error.ends_with("out` is held by another run: wait for it, or end it"), "{error}");
        assert!(folder.close(["a.txt"].into_iter()).is_err());
        assert_eq!(fs::read_to_string(root.join("a.txt")).unwrap(), "theirs");

        // One that is empty is taken, and held.
        let folder = Folder::open(&root, "filter").unwrap();
        let error = Folder::open(&root, "caption").unwrap_err().to_string();
        assert!(!cfg!(unix) || error.contains("is held by another run"), "{error}");
        drop(folder);
    }

    #[cfg(unix)]
    #[test]
    fn files_older_than_1970_are_compared_by_content() {
        let dir = tempfile::tempdir().unwrap();
        let (source, root) = (dir.path().join("a.png"), dir.path().join("out"));
        let write = |text: &str| {
            fs::write(&source, text).unwrap();
            let file = OpenOptions::new().write(true).open(&source).unwrap();
            file.set_modified(std::time::UNIX_EPOCH - std::time::Duration::from_secs(3600)).unwrap();
        };
        let copy = || {
            let content = Content::File(source.clone(), Method::Copy);
            let items = [Item { name: "a.png".to_owned(), content }];
            place(&root, "filter", &items, &Interrupt::new(), &mut |_| {}).unwrap().unwrap().written
        };
        write("one");
        assert_eq!((copy(), copy()), (1, 0));
        write("two");
        assert_eq!(copy(), 1);
        assert_eq!(fs::read_to_string(root.join("a.png")).unwrap(), "two");
    }
}
