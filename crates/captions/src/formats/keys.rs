//! Which picture a row of a table is about.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::{Picture, caption::resolved};

/// The pictures of a folder by the names that tables have for them.
pub(super) struct Keys<'a> {
    roots: [PathBuf; 2],
    /// By path in the folder, with and without the extension.
    paths: BTreeMap<&'a str, Vec<usize>>,
    stems: BTreeMap<&'a str, Vec<usize>>,
    /// By the last part of that, with and without the extension.
    names: BTreeMap<&'a str, Vec<usize>>,
    bare: BTreeMap<&'a str, Vec<usize>>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(root: &Path, pictures: &'a [Picture]) -> Self {
        let absolute = std::path::absolute(root).unwrap_or_else(|_| root.to_path_buf());
        let [mut paths, mut stems, mut names, mut bare] = [const { BTreeMap::<&str, Vec<usize>>::new() }; 4];
        for (place, picture) in pictures.iter().enumerate() {
            let image = picture.image.as_str();
            let name = image.rsplit('/').next().unwrap_or(image);
            paths.entry(image).or_default().push(place);
            stems.entry(stem(image)).or_default().push(place);
            names.entry(name).or_default().push(place);
            bare.entry(stem(name)).or_default().push(place);
        }
        Self { roots: [absolute, resolved(root)], paths, stems, names, bare }
    }

    /// The pictures that a key may be about, by their places: the first of these that there is at all is what counts.
    /// The path below the folder; that without the extension; and, for a path of another machine, the file name and the
    /// file name without its extension.
    pub(super) fn find(&self, key: &str) -> &[usize] {
        let key = key.trim().replace('\\', "/");
        let below = self.roots.iter().find_map(|root| {
            let root = root.to_string_lossy().replace('\\', "/");
            key.strip_prefix(root.trim_end_matches('/'))?.strip_prefix('/')
        });
        let key = below.unwrap_or(key.trim_start_matches("./"));
        let name = key.rsplit('/').next().unwrap_or(key);
        let elsewhere = key.contains('/') && below.is_none();
        let found = self.paths.get(key).or_else(|| self.stems.get(key));
        let found =
            found.or_else(|| elsewhere.then(|| self.names.get(name).or_else(|| self.bare.get(name)))?);
        found.map(Vec::as_slice).unwrap_or_default()
    }
}

/// A name without its extension.
pub(super) fn stem(name: &str) -> &str {
    match name.rfind('.') {
        Some(dot) if dot > name.rfind('/').map_or(0, |slash| slash + 1) => &name[..dot],
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_find_their_pictures() {
        let picture = |image: &str| Picture {
            image: image.to_owned(),
            caption: Path::new(image).with_extension("txt"),
        };
        let pictures = ["a.png", "sub/a.png", "sub/b.x.jpg", "sub/c.jpg", "sub/c.png"].map(picture);
        let keys = Keys::new(Path::new("/data/set"), &pictures);
        for (key, expected) in [
            ("a.png", &[0][..]),
            ("a", &[0]),
            ("sub\\a.png", &[1]),
            ("./sub/b.x", &[2]),
            ("/data/set/sub/a", &[1]),
            ("/data/set/a.png", &[0]),
            ("C:\\pictures\\b.x.jpg", &[2]),
            ("/elsewhere/a.png", &[0, 1]),
            ("sub/c", &[3, 4]),
            ("b.x.jpg", &[]),
            ("d.png", &[]),
        ] {
            assert_eq!(keys.find(key), expected, "{key}");
        }
    }
}
