//! Zip files in the data folder: what is in them is trained on as if it lay there.
//!
//! EveryDream2 means to unpack them into the data folder (and fails, defect D11). Here they are unpacked into the output folder,
//! so that the data stay as they are; only pictures and the files beside them are, under names that lead nowhere else.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use vodka_images::is_image;
use vodka_stage::{Interrupt, create_dir, hash_file};
use walkdir::WalkDir;
use zip::{ZipArchive, read::ZipFile, result::ZipError};

use crate::{Error, Result};

/// The folder of what is unpacked, in the output folder.
const UNPACKED: &str = "unzipped";

/// A file that is this many times as large as what it is packed into is no picture.
const MOST_INFLATED: u64 = 200;

/// Below this size no file is too much inflated.
const SMALL: u64 = 1 << 20;

/// Whether a file is a zip file, by its name.
pub(crate) fn is_zip(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("zip"))
}

/// Unpacks the zip files in the folders among `roots`, where that is not done yet, and gives the folders with what was in
/// them, in order.
///
/// # Errors
/// A zip file that is damaged or encrypted, or has a name in it that leads out of its folder, or a file that is no picture by
/// its size.
pub(crate) fn unpack(roots: &[PathBuf], output: &Path, interrupt: &Interrupt) -> Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for root in roots.iter().filter(|root| root.is_dir()) {
        let visible = |entry: &walkdir::DirEntry| {
            entry.depth() == 0 || !entry.file_name().as_encoded_bytes().starts_with(b".")
        };
        let entries = WalkDir::new(root).follow_links(true).sort_by_file_name().into_iter();
        let files = entries.filter_entry(visible).filter_map(Result::ok).map(walkdir::DirEntry::into_path);
        for archive in files.filter(|path| is_zip(path) && path.is_file()) {
            if interrupt.is_raised() {
                return Ok(folders);
            }
            let name = archive.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let folder = output.join(UNPACKED).join(format!("{name}-{}", hash_file(&archive)?.short(12)));
            if !folder.is_dir() {
                unpack_one(&archive, &folder)?;
            }
            folders.push(folder);
        }
    }
    Ok(folders)
}

/// All or nothing.
fn unpack_one(archive: &Path, folder: &Path) -> Result<()> {
    let partial = folder.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(failed(&partial))?;
    }
    let unpacked = fill(archive, &partial);
    if unpacked.is_err() {
        // What stays of it is removed by the next run at the latest.
        let _ = fs::remove_dir_all(&partial);
    }
    unpacked?;
    fs::rename(&partial, folder).map_err(failed(folder))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Unpack { path, source }
}

fn fill(archive: &Path, folder: &Path) -> Result<()> {
    create_dir(folder)?;
    let broken = |source| Error::Zip { archive: archive.to_path_buf(), source };
    let file = File::open(archive).map_err(failed(archive))?;
    let mut zip = ZipArchive::new(BufReader::new(file)).map_err(broken)?;
    for i in 0..zip.len() {
        let mut entry = zip.by_index(i).map_err(broken)?;
        let Some(target) = target(archive, folder, &entry)? else { continue };
        create_dir(target.parent().unwrap_or(folder))?;
        let mut out = File::create_new(&target).map_err(failed(&target))?;
        // One that says less than it holds is cut off there, and no picture.
        let size = entry.size();
        io::copy(&mut (&mut entry).take(size), &mut out).map_err(|source| broken(ZipError::Io(source)))?;
        out.sync_all().map_err(failed(&target))?;
    }
    Ok(())
}

/// Where an entry goes; `None` for what is no picture and says nothing of one.
fn target<R: Read>(archive: &Path, folder: &Path, entry: &ZipFile<'_, R>) -> Result<Option<PathBuf>> {
    let refused =
        |reason| Error::ZipEntry { archive: archive.to_path_buf(), entry: entry.name().to_owned(), reason };
    let path = entry.enclosed_name().ok_or_else(|| refused("its name leads out of the folder"))?;
    if entry.is_symlink() {
        return Err(refused("it is a link"));
    }
    let says_something = path.extension().is_some_and(|e| {
        ["txt", "caption", "yml", "yaml", "json"].iter().any(|known| e.eq_ignore_ascii_case(known))
    });
    if entry.is_dir() || !is_image(&path) && !says_something {
        return Ok(None);
    }
    match entry.size() > SMALL.max(entry.compressed_size().saturating_mul(MOST_INFLATED)) {
        true => Err(refused("it is more than 200 times as large as what it is packed into")),
        false => Ok(Some(folder.join(path))),
    }
}
