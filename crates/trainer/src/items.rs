//! The pictures to train on: each with its caption and its options.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use serde_norway::Value;
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
    /// A caption; of equal tags the first stays.
    fn new(main: String, all: Vec<Tag>, max_length: Option<usize>) -> Self {
        let mut tags = Vec::with_capacity(all.len());
        for tag in all {
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        tags.sort_by(|a: &Tag, b| b.weight.total_cmp(&a.weight));
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
    /// What it is called: its path relative to the data folder, below that folder's name where there are several; in a list
    /// as it is written there.
    pub path: PathBuf,
    /// The file.
    pub file: PathBuf,
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

/// A picture that has no caption.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Bare {
    /// What it is called, as [`Item::path`].
    pub path: PathBuf,
    /// The file.
    pub file: PathBuf,
}

/// Lists the pictures of folders and JSON lists, with what is said of them; and those that have no caption.
///
/// Of a folder they come in order of path, with what the files in `captions` (laid out like the folder; `None`: the
/// folder itself) and in the folders say; of a list as they are written. Folders and lists come in order.
///
/// # Errors
/// No pictures; a root that is neither; a file that says what it cannot.
pub(crate) fn items(
    roots: &[PathBuf],
    captions: Option<&Path>,
    compat: Compat,
) -> Result<(Vec<Item>, Vec<Bare>)> {
    let (mut items, mut without) = (Vec::new(), Vec::new());
    let mut labels = BTreeMap::<String, usize>::new();
    for root in roots {
        let is_list = root.is_file() && root.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
        if !is_list && root.exists() && !root.is_dir() {
            return Err(Error::NoData { root: root.clone() });
        }
        let prefix = if roots.len() > 1 && !is_list { label(root, &mut labels) } else { String::new() };
        let found = match is_list {
            true => of_list(root, compat)?,
            false => of_folder(root, Path::new(&prefix), captions.unwrap_or(root), compat)?,
        };
        for found in found {
            match found {
                Ok(item) => items.push(item),
                Err(bare) => without.push(bare),
            }
        }
    }
    match items.is_empty() && without.is_empty() {
        true => Err(Error::NoPictures { root: roots.first().cloned().unwrap_or_default() }),
        false => Ok((items, without)),
    }
}

/// A folder's name, with a number where another has it too.
fn label(root: &Path, labels: &mut BTreeMap<String, usize>) -> String {
    let name = root.file_name().map_or("folder".into(), |name| name.to_string_lossy().into_owned());
    let times = labels.entry(name.clone()).and_modify(|n| *n += 1).or_insert(1);
    if *times == 1 { name } else { format!("{name}-{times}") }
}

type Found = Vec<Result<Item, Bare>>;

fn of_folder(root: &Path, prefix: &Path, captions: &Path, compat: Compat) -> Result<Found> {
    let mut folders = Folders { root, trees: BTreeMap::new(), folders: BTreeMap::new() };
    let mut found = Vec::new();
    for path in find(root)? {
        if !compat.takes(&path) {
            continue;
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let options = Options::beside(&captions.join(&path), compat.reads_json_sidecars())?;
        let options = options.over(folders.folder(folder)?).over(folders.tree(folder)?);
        found.push(item(prefix.join(&path), root.join(&path), options, compat));
    }
    Ok(found)
}

/// The pictures of a JSON list: objects with `image`, and the keys of YAML files. Paths are relative to the current folder,
/// as in EveryDream2; where there is no such file, to the list's.
fn of_list(list: &Path, compat: Compat) -> Result<Found> {
    let wrong = |source| Error::Config { path: list.to_path_buf(), source };
    let text = fs::read_to_string(list).map_err(|error| wrong(serde_json::Error::io(error)))?;
    let entries: Vec<serde_json::Value> =
        serde_json::from_str(text.trim_start_matches('\u{feff}')).map_err(wrong)?;
    let folder = list.parent().unwrap_or(Path::new(""));
    let mut times = HashMap::<PathBuf, usize>::new();
    let mut found = Vec::with_capacity(entries.len());
    for (i, entry) in entries.into_iter().enumerate() {
        let place = PathBuf::from(format!("{}: picture {}", list.display(), i + 1));
        let value: Value = serde_norway::to_value(&entry).expect("JSON is YAML");
        let options = Options::from_value(&place, &value)?;
        let image = entry.get("image").and_then(serde_json::Value::as_str).filter(|image| !image.is_empty());
        let image = image.ok_or_else(|| Error::OptionValue {
            path: place,
            key: "image".to_owned(),
            expected: "a path",
            found: entry.get("image").map_or("missing".to_owned(), ToString::to_string),
        })?;
        let as_said = PathBuf::from(image);
        let file = if as_said.exists() { as_said.clone() } else { folder.join(&as_said) };
        // The same picture may come with several captions.
        let times = times.entry(as_said.clone()).and_modify(|n| *n += 1).or_insert(1);
        let name = as_said.strip_prefix("/").unwrap_or(&as_said);
        let path = match *times {
            1 => name.to_path_buf(),
            times => PathBuf::from(format!("{}#{times}", name.display())),
        };
        found.push(item(path, file, options, compat));
    }
    Ok(found)
}

/// The item; the picture alone where there is no caption.
fn item(path: PathBuf, file: PathBuf, options: Options, compat: Compat) -> Result<Item, Bare> {
    let options = match options.main_prompt {
        None if compat.names_are_captions() => {
            let stem = file.file_stem().unwrap_or_default().to_string_lossy();
            let named = Options::from_text(stem.split('_').next().unwrap_or_default());
            Options { main_prompt: named.main_prompt, ..options.over(Options { main_prompt: None, ..named }) }
        }
        _ => options,
    };
    let Some(main) = options.main_prompt else { return Err(Bare { path, file }) };
    // EveryDream2 takes a nought for a number that was not said.
    let said = |value: Option<f64>| value.filter(|value| *value != 0.0 || !compat.nought_is_unsaid());
    Ok(Item {
        path,
        file,
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
        let (items, without) = items(&[dir.path().into()], None, Compat::Vodka).unwrap();
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
        let bare = Bare { path: "sub/deep/d_1.png".into(), file: dir.path().join("sub/deep/d_1.png") };
        assert_eq!(without, [bare]);

        let (items, without) = super::items(&[dir.path().into()], None, Compat::Ed2Head).unwrap();
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
        let (items, _) = items(&[data.path().into()], Some(captions.path()), Compat::Vodka).unwrap();
        assert_eq!((items[0].caption.text(), items[0].multiply), ("new".to_owned(), 2.0));
        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(
            super::items(&[empty.path().into()], None, Compat::Vodka),
            Err(Error::NoPictures { .. })
        ));
    }

    #[test]
    fn captions_without_tags_are_shuffled_too() {
        for text in ["a cat", "a cat, x"] {
            assert_eq!(caption(text).shuffled(&mut stream(0), 0), text);
            assert_eq!(caption(text).shuffled(&mut stream(0), 5), text);
        }
    }

    #[test]
    fn equal_tags_are_one() {
        assert_eq!(caption("a cat, x, y, x").text(), "a cat, x, y");
    }

    #[test]
    fn a_list_names_pictures_as_often_as_it_likes() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("list.json");
        let write = |text: &str| fs::write(&list, text).unwrap();
        fs::write(dir.path().join("a.png"), "").unwrap();
        fs::write(dir.path().join("a.txt"), "files beside a picture say nothing here").unwrap();
        write(
            r#"[{"image": "a.png", "caption": "a cat, big", "multiply": 2, "tags": [{"tag": "solo", "weight": 2}]},
            {"image": "a.png", "main_prompt": "an animal", "flip_p": 0.5}, {"image": "b_1.png"}]"#,
        );
        let (items, without) = items(std::slice::from_ref(&list), None, Compat::Vodka).unwrap();
        let said: Vec<_> = items
            .iter()
            .map(|item| (item.path.display().to_string(), item.caption.text(), item.multiply, item.flip_p))
            .collect();
        assert_eq!(
            said,
            [
                ("a.png".to_owned(), "a cat, solo, big".to_owned(), 2.0, None),
                ("a.png#2".to_owned(), "an animal".to_owned(), 1.0, Some(0.5)),
            ]
        );
        assert!(items.iter().all(|item| item.file == dir.path().join("a.png")));
        assert_eq!(without[0].path, Path::new("b_1.png"));
        let named = super::items(std::slice::from_ref(&list), None, Compat::Ed2Head).unwrap().0;
        assert_eq!(named[2].caption.text(), "b");

        let both = super::items(&[list.clone(), dir.path().into()], None, Compat::Vodka).unwrap().0;
        let names: Vec<_> = both.iter().map(|item| item.path.clone()).collect();
        let labelled = Path::new(dir.path().file_name().unwrap()).join("a.png");
        assert_eq!(names, [Path::new("a.png"), Path::new("a.png#2"), &labelled]);
        let twice = super::items(&[dir.path().into(), dir.path().into()], None, Compat::Vodka).unwrap().0;
        let folder = dir.path().file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(twice[1].path, Path::new(&format!("{folder}-2/a.png")));

        let said = |text: &str| {
            write(text);
            vodka_stage::explain(&super::items(std::slice::from_ref(&list), None, Compat::Vodka).unwrap_err())
        };
        assert!(said(r#"[{"caption": "x"}]"#).ends_with("picture 1`: `image` is missing, expected a path"));
        assert!(
            said(r#"[{"image": "a", "capton": 1}]"#)
                .contains("unknown key `capton` (did you mean `caption`?)")
        );
        assert!(said("[\n{]").contains("at line 2 column 2"));
        assert!(said("{}").contains("invalid type: map"));
    }

    #[test]
    fn what_is_neither_a_folder_nor_a_list_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = items(&[file.path().into()], None, Compat::Vodka).unwrap_err();
        assert!(error.to_string().ends_with("is neither a folder nor a list of pictures (.json)"), "{error}");
    }
}
