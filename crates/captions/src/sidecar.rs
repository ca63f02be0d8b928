//! The caption files beside pictures.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use crate::{Error, Result, encoding::decode};

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
        // Editors that join files leave byte-order marks in the middle of them.
        let is_blank = |c: char| c.is_whitespace() || c == '\u{feff}';
        let lines = text.split(is_line_break).map(|line| line.trim_matches(is_blank));
        let lines: Vec<_> = lines.filter(|line| !line.is_empty()).collect();
        Self { text: lines.join(" "), joined: lines.len() > 1 }
    }
}

/// Whether lines end here: Unicode Standard, 5.8 "Newline Guidelines". Old Macs end theirs with a carriage return alone, and
/// texts from web pages have the rest.
pub(crate) fn is_line_break(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// The pictures in `root` and below, in order of name.
///
/// # Errors
/// No pictures; pictures that would share a caption, such as `a.png` and `a.jpg`: with all of them.
pub fn pictures(root: &Path) -> Result<Vec<Picture>> {
    let pictures = all_pictures(root)?;
    check_shared(root, pictures.iter().map(|picture| (picture.caption.as_path(), picture.image.as_str())))?;
    Ok(pictures)
}

/// The pictures in `root` and below, in order of name, also those that would share a caption.
pub(crate) fn all_pictures(root: &Path) -> Result<Vec<Picture>> {
    let picture = |path: PathBuf| Picture {
        image: vodka_images::relative_name(&path),
        caption: path.with_extension("txt"),
    };
    let pictures: Vec<_> = vodka_images::find(root)?.into_iter().map(picture).collect();
    match pictures.is_empty() {
        true => Err(Error::NoImages { root: root.to_path_buf() }),
        false => Ok(pictures),
    }
}

/// Each caption (relative to the root, or a whole path) may be that of one picture.
pub(crate) fn check_shared<'a>(
    root: &Path,
    captions: impl IntoIterator<Item = (&'a Path, &'a str)>,
) -> Result<()> {
    let mut owners: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (caption, image) in captions {
        owners.entry(caption).or_default().push(image);
    }
    let mut shared = owners.iter().filter(|(_, images)| images.len() > 1);
    let Some((caption, images)) = shared.next() else { return Ok(()) };
    let images: Vec<_> = images.iter().map(|image| format!("`{}`", root.join(image).display())).collect();
    let (last, first) = images.split_last().expect("more than one");
    Err(Error::SharedCaption {
        pictures: format!("{} and {last}", first.join(", ")),
        caption: root.join(caption),
        others: shared.count(),
    })
}

/// Reads a caption file, in whatever encoding it is. `None` where there is no such file.
///
/// # Errors
/// The file cannot be read, or is not in the encoding that its byte-order mark says.
pub fn read_caption(path: &Path) -> Result<Option<Caption>> {
    match read_bytes(path)? {
        Some(bytes) => Ok(Some(Caption::new(&decode(path, &bytes, None)?.text))),
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
        for (bytes, joined) in [
            (&b"a heart\ra star"[..], true),
            ("a heart\u{85}a star\u{85}".as_bytes(), true),
            ("a heart\u{2028}\u{2029}a star".as_bytes(), true),
            ("a heart a star\u{2028}".as_bytes(), false),
        ] {
            assert_eq!(read(bytes).unwrap().unwrap(), Caption { text: "a heart a star".to_owned(), joined });
        }
        assert_eq!(text(b"a sch\xf6nes Herz"), "a schönes Herz");
        assert_eq!(text(b"\xff\xfea\0 \0b\0"), "a b");
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
        write("sub/a.bmp");
        let error =
            pictures(dir.path()).unwrap_err().to_string().replace(&dir.path().display().to_string(), "");
        assert_eq!(
            error,
            "the pictures `/sub/a.WebP`, `/sub/a.bmp` and `/sub/a.jpg` share the caption `/sub/a.txt`: rename all but one of them"
        );
        write("b.png");
        write("b.gif");
        let error = pictures(dir.path()).unwrap_err().to_string();
        assert!(
            error.ends_with("b.txt`: rename all but one of them (and so with 1 more captions)"),
            "{error}"
        );
    }
}
