//! The pictures to train on: each with its caption and its options.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use vodka_images::find;

use crate::{
    Compat, Error, Result,
    options::{Options, Tag},
    random::Stream,
};

/// A caption, in the parts that may be shuffled.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Caption {
    /// What it begins with.
    main: String,
    /// What follows, heaviest first.
    tags: Vec<Tag>,
    /// No tag is added to a weighted shuffle once it has so many characters.
    max_length: usize,
}

/// EveryDream2's limit of a shuffled caption, in characters.
const MAX_CAPTION_LENGTH: usize = 2048;

impl Caption {
    fn new(main: String, mut tags: Vec<Tag>, max_length: Option<usize>) -> Self {
        tags.sort_by(|a, b| b.weight.total_cmp(&a.weight));
        Self { main, tags, max_length: max_length.unwrap_or(MAX_CAPTION_LENGTH) }
    }

    /// The caption in its own order.
    pub fn text(&self) -> String {
        self.with_tags(self.tags.iter())
    }

    /// The caption with its tags in another order, but for the first `keep`.
    ///
    /// Tags of unequal weights are drawn one after the other, each with a chance in proportion to its weight, until the
    /// caption is as long as it may be.
    pub fn shuffled(&self, stream: &mut Stream, keep: usize) -> String {
        let (kept, rest) = self.tags.split_at(keep.min(self.tags.len()));
        let mut rest: Vec<_> = rest.iter().collect();
        let weighted = self.tags.iter().any(|tag| tag.weight != self.tags[0].weight);
        if !weighted {
            stream.shuffle(&mut rest);
            return self.with_tags(kept.iter().chain(rest));
        }
        let mut chosen: Vec<_> = kept.iter().collect();
        let length = |tags: &[&Tag]| tags.iter().map(|tag| tag.text.chars().count() + 2).sum::<usize>();
        let most = self.max_length.saturating_sub(self.main.chars().count());
        while !rest.is_empty() && length(&chosen) < most {
            let total: f64 = rest.iter().map(|tag| tag.weight.max(0.0)).sum();
            let point = stream.uniform() * total;
            let mut sum = 0.0;
            let drawn = rest.iter().position(|tag| {
                sum += tag.weight.max(0.0);
                sum > point
            });
            chosen.push(rest.remove(drawn.unwrap_or(rest.len() - 1)));
        }
        self.with_tags(chosen)
    }

    fn with_tags<'t>(&'t self, tags: impl IntoIterator<Item = &'t Tag>) -> String {
        let parts: Vec<_> =
            [self.main.as_str()].into_iter().chain(tags.into_iter().map(|tag| tag.text.as_str())).collect();
        parts.join(", ")
    }
}

/// A picture to train on, before it is decoded.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Item {
    /// Relative to the data folder.
    pub path: PathBuf,
    /// Never empty.
    pub caption: Caption,
    /// How often it is trained on in an epoch.
    pub multiply: f64,
    /// Probability of replacing the caption with a space; `None`: the configuration's.
    pub cond_dropout: Option<f64>,
    /// Probability of flipping; `None`: the configuration's.
    pub flip_p: Option<f64>,
    /// Whether the tags come in another order each time; the configuration may say so of all.
    pub shuffle_tags: bool,
    /// Pictures with the same name here share batches with no others.
    pub batch_id: Option<String>,
    /// Factor of the loss.
    pub loss_scale: f64,
    /// The chance to stay, with `rated_dataset`.
    pub rating: f64,
}

/// Lists the pictures in `root`, in order of path, with what the files in `captions` (laid out like it) and in the
/// folders of `root` say of them; and those that have no caption.
///
/// # Errors
/// No pictures; a file that says what it cannot.
pub(crate) fn items(root: &Path, captions: &Path, compat: Compat) -> Result<(Vec<Item>, Vec<PathBuf>)> {
    let paths = find(root)?;
    if paths.is_empty() {
        return Err(Error::NoPictures { root: root.to_path_buf() });
    }
    let mut folders = Folders { root, trees: BTreeMap::new(), folders: BTreeMap::new() };
    let (mut items, mut without) = (Vec::with_capacity(paths.len()), Vec::new());
    for path in paths {
        let folder = path.parent().unwrap_or(Path::new(""));
        let options = Options::beside(&captions.join(&path))?;
        let options = options.over(folders.folder(folder)?).over(folders.tree(folder)?);
        match item(path, options, compat) {
            Ok(item) => items.push(item),
            Err(path) => without.push(path),
        }
    }
    Ok((items, without))
}

/// The item; the path alone where there is no caption.
fn item(path: PathBuf, options: Options, compat: Compat) -> Result<Item, PathBuf> {
    let options = match options.main_prompt {
        None if compat.names_are_captions() => {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let named = Options::from_text(stem.split('_').next().unwrap_or_default());
            Options { main_prompt: named.main_prompt, ..options.over(Options { main_prompt: None, ..named }) }
        }
        _ => options,
    };
    let Some(main) = options.main_prompt else { return Err(path) };
    // EveryDream2 takes a nought for a number that was not said.
    let said = |value: Option<f64>| value.filter(|value| *value != 0.0 || !compat.nought_is_unsaid());
    Ok(Item {
        path,
        caption: Caption::new(main, options.tags, options.max_caption_length),
        multiply: said(options.multiply).unwrap_or(1.0),
        cond_dropout: options.cond_dropout,
        flip_p: options.flip_p,
        shuffle_tags: options.shuffle_tags.unwrap_or(false),
        batch_id: options.batch_id,
        loss_scale: options.loss_scale.unwrap_or(1.0),
        rating: said(options.rating).unwrap_or(1.0),
    })
}

/// What folders say, each read once.
struct Folders<'r> {
    root: &'r Path,
    trees: BTreeMap<PathBuf, Options>,
    folders: BTreeMap<PathBuf, Options>,
}

impl Folders<'_> {
    fn folder(&mut self, folder: &Path) -> Result<Options> {
        if let Some(options) = self.folders.get(folder) {
            return Ok(options.clone());
        }
        let options = Options::of_folder(&self.root.join(folder))?;
        self.folders.insert(folder.to_path_buf(), options.clone());
        Ok(options)
    }

    /// What a folder and those above it say.
    fn tree(&mut self, folder: &Path) -> Result<Options> {
        if let Some(options) = self.trees.get(folder) {
            return Ok(options.clone());
        }
        let own = Options::of_tree(&self.root.join(folder))?;
        let options = match folder.parent() {
            Some(above) => own.over(self.tree(above)?),
            None => own,
        };
        self.trees.insert(folder.to_path_buf(), options.clone());
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::random::Purpose;

    fn caption(text: &str) -> Caption {
        let Options { main_prompt, tags, .. } = Options::from_text(text);
        Caption::new(main_prompt.unwrap(), tags, None)
    }

    fn stream(i: u64) -> Stream {
        Stream::new(555, Purpose::Tags, 1, i)
    }

    #[test]
    fn shuffled_tags_are_all_there_and_the_first_stay() {
        let caption = caption("a cat, a, b, c, d, e");
        assert_eq!(caption.text(), "a cat, a, b, c, d, e");
        let mut seen = std::collections::BTreeSet::new();
        for i in 0..50 {
            let text = caption.shuffled(&mut stream(i), 2);
            let mut tags: Vec<_> = text.split(", ").collect();
            assert_eq!(tags[..3], ["a cat", "a", "b"]);
            tags.sort_unstable();
            assert_eq!(tags, ["a", "a cat", "b", "c", "d", "e"]);
            seen.insert(text);
        }
        assert_eq!(seen.len(), 6, "every order of three");
        assert_eq!(caption.shuffled(&mut stream(0), 9), caption.text());
    }

    #[test]
    fn heavy_tags_come_first_and_are_drawn_sooner() {
        let tags = ["light", "heavy"]
            .map(|text| Tag { text: text.into(), weight: if text == "heavy" { 9.0 } else { 1.0 } });
        let caption = Caption::new("a cat".into(), tags.to_vec(), None);
        assert_eq!(caption.text(), "a cat, heavy, light");
        let first_is_heavy =
            (0..1000).filter(|i| caption.shuffled(&mut stream(*i), 0).starts_with("a cat, heavy"));
        let share = first_is_heavy.count();
        assert!((850..950).contains(&share), "{share}");
        let short = Caption::new("a cat".into(), tags.to_vec(), Some(10));
        assert!(short.shuffled(&mut stream(0), 0).split(", ").count() == 2);
    }

    #[test]
    fn nearer_files_go_before_farther_ones() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        ["a.png", "sub/b.png", "sub/deep/c.png", "sub/deep/d_1.png"].iter().for_each(|name| write(name, ""));
        write("a.txt", "a cat");
        write("sub/b.txt", "a dog");
        write("sub/deep/c.caption", "a fox, red");
        write("global.yaml", "multiply: 2\ntags: [photo]");
        write("sub/global.yaml", "multiply: 3");
        write("sub/local.yaml", "flip_p: 0.5");
        write("sub/deep/multiply.txt", "0");
        let (items, without) = items(dir.path(), dir.path(), Compat::Vodka).unwrap();
        let said: Vec<_> =
            items.iter().map(|item| (item.caption.text(), item.multiply, item.flip_p)).collect();
        assert_eq!(
            said,
            [
                ("a cat, photo".to_owned(), 2.0, None),
                ("a dog, photo".to_owned(), 3.0, Some(0.5)),
                ("a fox, red, photo".to_owned(), 0.0, None),
            ]
        );
        assert_eq!(without, [Path::new("sub/deep/d_1.png")]);

        let (items, without) = super::items(dir.path(), dir.path(), Compat::Ed2Head).unwrap();
        assert_eq!((items[3].caption.text(), without.len()), ("d, photo".to_owned(), 0));
        assert_eq!(items[2].multiply, 1.0, "EveryDream2 takes 0 for nothing said");
    }

    #[test]
    fn captions_may_lie_elsewhere_and_folder_files_stay() {
        let [data, captions] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        fs::write(data.path().join("a.png"), "").unwrap();
        fs::write(data.path().join("a.txt"), "old").unwrap();
        fs::write(data.path().join("multiply.txt"), "2").unwrap();
        fs::write(captions.path().join("a.txt"), "new").unwrap();
        let (items, _) = items(data.path(), captions.path(), Compat::Vodka).unwrap();
        assert_eq!((items[0].caption.text(), items[0].multiply), ("new".to_owned(), 2.0));
        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(
            super::items(empty.path(), empty.path(), Compat::Vodka),
            Err(Error::NoPictures { .. })
        ));
    }
}
