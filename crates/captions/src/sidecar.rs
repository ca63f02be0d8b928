//! The caption files beside pictures.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use crate::{Error, Result, sheet::decode};

/// A picture and where its caption lies, relative to the folder of pictures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// The picture as tag tables name it: with `/` on every system.
    pub image: String,
    /// The caption: the picture's path with the extension `.txt`.
    pub caption: PathBuf,
}

/// The text of a caption file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caption {
    /// The caption, on one line: lines are trimmed and joined by a space.
    pub text: String,
    /// Whether there were several lines with something on them.
    pub joined: bool,
}

impl Caption {
    /// A caption from a file's text.
    pub fn new(text: &str) -> Self {
        let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        Self { text: lines.join(" "), joined: lines.len() > 1 }
    }
}

/// The pictures in `root` and below, in order of name.
///
/// # Errors
/// No pictures; two pictures that would share a caption, such as `a.png` and `a.jpg`.
pub fn pictures(root: &Path) -> Result<Vec<Picture>> {
    let mut owners = BTreeMap::new();
    let mut pictures = Vec::new();
    for path in vodka_images::find(root)? {
        let caption = path.with_extension("txt");
        if let Some(first) = owners.insert(caption.clone(), path.clone()) {
            let [first, second, caption] = [first, path, caption].map(|path| root.join(path));
            return Err(Error::SharedCaption { first, second, caption });
        }
        pictures.push(Picture { image: vodka_images::relative_name(&path), caption });
    }
    match pictures.is_empty() {
        true => Err(Error::NoImages { root: root.to_path_buf() }),
        false => Ok(pictures),
    }
}

/// Reads a caption file: UTF-8, with or without a byte-order mark. `None` where there is no such file.
///
/// # Errors
/// The file cannot be read, or is not UTF-8: then with the byte offset.
pub fn read_caption(path: &Path) -> Result<Option<Caption>> {
    match read_bytes(path)? {
        Some(bytes) => Ok(Some(Caption::new(&decode(path, bytes)?))),
        None => Ok(None),
    }
}

/// The bytes of a file, if there is one.
pub(crate) fn read_bytes(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path: path.to_path_buf(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_read_as_people_leave_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        let read = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            read_caption(&path)
        };
        let text = |bytes: &[u8]| read(bytes).unwrap().unwrap().text;
        assert_eq!(text(b"\xef\xbb\xbfa heart\r\n\r\n"), "a heart");
        assert_eq!(text(" ein schönes Herz ".as_bytes()), "ein schönes Herz");
        assert_eq!(text(b""), "");
        let two = read(b"a heart\n  and a star\n").unwrap().unwrap();
        assert_eq!(two, Caption { text: "a heart and a star".to_owned(), joined: true });
        let error = read(b"a sch\xf6nes Herz").unwrap_err().to_string();
        assert!(error.ends_with("a.txt` is not UTF-8: found the byte 0xf6 at offset 5"), "{error}");
        assert_eq!(read_caption(&dir.path().join("b.txt")).unwrap(), None);
        assert!(matches!(read_caption(dir.path()), Err(Error::Read { .. })), "a folder is no caption");
    }

    #[test]
    fn pictures_that_share_a_caption_are_both_named() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            fs::create_dir_all(dir.path().join("sub")).unwrap();
            fs::write(dir.path().join(name), "").unwrap();
        };
        assert!(matches!(pictures(dir.path()), Err(Error::NoImages { .. })));
        write("a.png");
        write("sub/a.jpg");
        let images: Vec<_> = pictures(dir.path()).unwrap().into_iter().map(|picture| picture.image).collect();
        assert_eq!(images, ["a.png", "sub/a.jpg"]);
        write("sub/a.WebP");
        let error = pictures(dir.path()).unwrap_err().to_string();
        assert!(["a.WebP", "a.jpg", "a.txt"].iter().all(|name| error.contains(name)), "{error}");
    }
}
