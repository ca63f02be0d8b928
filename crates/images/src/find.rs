//! Finding the pictures of a folder.

use std::path::{Path, PathBuf};

use vodka_stage::{is_hidden, unreadable};
use walkdir::{DirEntry, WalkDir};

use crate::{Error, Result};

/// The extensions of pictures, in lower case. What a file holds is for [`crate::decode`] to see.
pub const EXTENSIONS: [&str; 7] = ["png", "jpg", "jpeg", "jfif", "webp", "bmp", "gif"];

/// Whether the name of a file is that of a picture: one of [`EXTENSIONS`], in any case.
pub fn is_image(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default();
    EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// The pictures in `root` and in the folders below it, as paths relative to `root`, in order of [`relative_name`].
///
/// Hidden files and folders (whose name starts with a dot) are skipped; links are followed. A link that leads nowhere is
/// listed like a file, also without an extension, for it may have been a folder of pictures: that it cannot be read is
/// for [`crate::decode`] to say. A link to a folder around it leads to nothing new. An empty list is no error.
///
/// # Errors
/// When a folder cannot be listed.
pub fn find(root: &Path) -> Result<Vec<PathBuf>> {
    let visible = |entry: &DirEntry| entry.depth() == 0 || !is_hidden(entry.path());
    let mut found = Vec::new();
    for entry in WalkDir::new(root).follow_links(true).into_iter().filter_entry(visible) {
        let path = match entry {
            Ok(entry) if entry.file_type().is_file() && is_image(entry.path()) => entry.into_path(),
            Err(error) if error.loop_ancestor().is_none() => {
                let path = unreadable(&error).map(Path::to_path_buf);
                path.ok_or_else(|| list_error(root, error))?
            }
            _ => continue,
        };
        if is_hidden(&path) || !is_image(&path) && path.extension().is_some() {
            continue;
        }
        let relative = path.strip_prefix(root).expect("walkdir stays below its root");
        found.push(relative.to_path_buf());
    }
    sort(&mut found);
    Ok(found)
}

/// Sorts by [`relative_name`]. There may be millions of paths, and almost always their bytes are their names.
fn sort(paths: &mut [PathBuf]) {
    let bytes_are_names = cfg!(unix) && paths.iter().all(|path| path.to_str().is_some());
    if bytes_are_names {
        paths.sort_unstable_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    } else {
        // Names that are not Unicode may be told in the same way.
        paths.sort_by_cached_key(|path| (relative_name(path), path.clone()));
    }
}

/// A relative path as tables name it: its parts joined with `/` on every system.
pub fn relative_name(path: &Path) -> String {
    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
    parts.join("/")
}

fn list_error(root: &Path, error: walkdir::Error) -> Error {
    let path = error.path().unwrap_or(root).to_path_buf();
    Error::List { path, source: error.into() }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn finds_pictures_in_order_and_nothing_hidden() {
        let dir = tempfile::tempdir().unwrap();
        for name in
            ["b/z.PNG", "b.jpg", "a.webp", ".hidden.png", ".git/x.png", "note.txt", "b/é ü.JfIf", "Z.gif"]
        {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let names: Vec<_> = find(dir.path()).unwrap().iter().map(|path| relative_name(path)).collect();
        assert_eq!(names, ["Z.gif", "a.webp", "b.jpg", "b/z.PNG", "b/é ü.JfIf"]);
    }

    #[cfg(unix)]
    #[test]
    fn links_that_lead_nowhere_are_found_and_circles_are_not() {
        use std::os::unix::fs::symlink;

        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("b.png"), "").unwrap();
        for name in ["a.png", "folder", "note.txt", ".#b.png"] {
            symlink("nowhere", dir.path().join(name)).unwrap();
        }
        symlink(".", dir.path().join("circle")).unwrap();
        let names: Vec<_> = find(dir.path()).unwrap().iter().map(|path| relative_name(path)).collect();
        assert_eq!(names, ["a.png", "b.png", "folder"]);
        assert!(find(&dir.path().join("folder")).is_err(), "the root must be there");
    }

    /// The two ways of sorting agree, also on a name that goes on where another has a folder.
    #[cfg(unix)]
    #[test]
    fn names_that_are_not_unicode_change_no_order() {
        use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

        let names: [&[u8]; 7] =
            [b"a/b.png", b"a.png", b"a-b.png", b"a/\xc3\xa9.png", b"A.png", b"a/b/c.png", b"a/z.png"];
        let mut paths: Vec<PathBuf> = names.map(|name| PathBuf::from(OsStr::from_bytes(name))).to_vec();
        sort(&mut paths);
        let mut more = [&paths[3..], &[OsStr::from_bytes(b"a/\xff.png").into()], &paths[..3]].concat();
        sort(&mut more);
        assert_eq!(relative_name(&more[7]), "a/\u{fffd}.png");
        assert_eq!(more[..7], paths);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = find(Path::new("no/such/folder")).unwrap_err();
        assert!(error.to_string().contains("no/such/folder"), "{error}");
    }
}
