//! What the files beside pictures and in folders say of them: captions, and options that go before the configuration.
//!
//! The files and their meaning are EveryDream2's (victorchall/EveryDream2trainer, `data/dataset.py` at 5098db8): beside a
//! picture `.txt`, `.caption`, `.yml`, `.yaml` and `.json`; for the pictures of one folder `multiply.txt` and its like and
//! `local.yaml`; for a folder and all below it `global.yaml`.

use std::{fs, io, path::Path};

use serde_norway::Value;
use vodka_stage::nearest;

use crate::{Error, Result};

/// What is said of a picture; `None` where nothing is.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Options {
    /// What a caption begins with.
    pub main_prompt: Option<String>,
    /// What follows it.
    pub tags: Vec<Tag>,
    /// How good the picture is; with `rated_dataset` the chance to stay is proportional to it.
    pub rating: Option<f64>,
    /// No tag is added to a shuffled caption once it has so many characters.
    pub max_caption_length: Option<usize>,
    /// How often the picture is trained on in an epoch.
    pub multiply: Option<f64>,
    /// Probability of replacing the caption with a space.
    pub cond_dropout: Option<f64>,
    /// Probability of flipping the picture.
    pub flip_p: Option<f64>,
    /// Whether the tags come in another order each time.
    pub shuffle_tags: Option<bool>,
    /// Pictures with the same name here share batches with no others.
    pub batch_id: Option<String>,
    /// Factor of the loss.
    pub loss_scale: Option<f64>,
}

/// A part of a caption.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tag {
    /// Its text.
    pub text: String,
    /// Heavier ones come first, and are drawn sooner when tags are shuffled.
    pub weight: f64,
}

impl Tag {
    fn new(text: &str) -> Self {
        Self { text: text.to_owned(), weight: 1.0 }
    }
}

/// The keys of YAML files.
const KEYS: [&str; 12] = [
    "main_prompt",
    "tags",
    "caption",
    "rating",
    "max_caption_length",
    "multiply",
    "cond_dropout",
    "flip_p",
    "shuffle_tags",
    "batch_id",
    "loss_scale",
    "image",
];

impl Options {
    /// A caption's text: what is before the first comma, and the tags after it.
    pub fn from_text(text: &str) -> Self {
        let text = text.trim_start_matches('\u{feff}');
        let mut parts = text.split(',').map(str::trim);
        let main_prompt = parts.next().filter(|main| !main.is_empty()).map(ToOwned::to_owned);
        let tags = parts.filter(|tag| !tag.is_empty()).map(Tag::new).collect();
        Self { main_prompt, tags, ..Self::default() }
    }

    /// A YAML file's text, or a JSON one's.
    fn from_yaml(path: &Path, text: &str) -> Result<Self> {
        let value = serde_norway::from_str(text)
            .map_err(|source| Error::Yaml { path: path.to_path_buf(), source })?;
        Self::from_value(path, &value)
    }

    /// An object of [`KEYS`].
    pub fn from_value(path: &Path, value: &Value) -> Result<Self> {
        let wrong = |key: &str, expected, value: &Value| Error::OptionValue {
            path: path.to_path_buf(),
            key: key.to_owned(),
            expected,
            found: serde_norway::to_string(value).unwrap_or_default().trim().to_owned(),
        };
        let mapping = match value {
            Value::Null => return Ok(Self::default()),
            Value::Mapping(mapping) => mapping,
            other => return Err(wrong("the file", "keys and values", other)),
        };
        let (mut options, mut caption) = (Self::default(), None);
        for (key, value) in mapping {
            let key = key.as_str().unwrap_or_default();
            let number = || value.as_f64().ok_or_else(|| wrong(key, "a number", value));
            if value.is_null() && KEYS.contains(&key) {
                continue;
            }
            match key {
                "main_prompt" => {
                    // Of several, EveryDream2 takes the first.
                    let one = value.as_sequence().map_or(Some(value), |list| list.first());
                    let main = one.and_then(Value::as_str).ok_or_else(|| wrong(key, "a text", value))?;
                    options.main_prompt = Some(main.to_owned()).filter(|main| !main.trim().is_empty());
                }
                "tags" => options.tags = tags(value).ok_or_else(|| wrong(key, "a list of tags", value))?,
                "caption" => caption = Some(value),
                "rating" => options.rating = Some(number()?),
                "max_caption_length" => options.max_caption_length = Some(number()? as usize),
                "multiply" => options.multiply = Some(number()?),
                "cond_dropout" => options.cond_dropout = Some(number()?),
                "flip_p" => options.flip_p = Some(number()?),
                "shuffle_tags" => {
                    options.shuffle_tags =
                        Some(value.as_bool().ok_or_else(|| wrong(key, "true or false", value))?);
                }
                "batch_id" => {
                    options.batch_id = Some(scalar(value).ok_or_else(|| wrong(key, "a name", value))?);
                }
                "loss_scale" => options.loss_scale = Some(number()?),
                // Of a list of pictures, whose reader takes it.
                "image" => {}
                _ => {
                    let nearest = nearest(key, KEYS).map(ToOwned::to_owned);
                    return Err(Error::UnknownOption {
                        path: path.to_path_buf(),
                        key: key.to_owned(),
                        nearest,
                    });
                }
            }
        }
        // It goes before the others, wherever it stands.
        if let Some(caption) = caption {
            let inner = match caption {
                Value::String(text) => Self::from_text(text),
                other => Self::from_value(path, other)?,
            };
            options = inner.over(options);
        }
        options.check(path)?;
        Ok(options)
    }

    fn check(&self, path: &Path) -> Result<()> {
        let within = |key: &str, value: Option<f64>, least: f64, most: f64, expected| match value {
            Some(value) if !(least..=most).contains(&value) => Err(Error::OptionValue {
                path: path.to_path_buf(),
                key: key.to_owned(),
                expected,
                found: value.to_string(),
            }),
            _ => Ok(()),
        };
        within("multiply", self.multiply, 0.0, 1e6, "a number from 0 to 1,000,000")?;
        within("cond_dropout", self.cond_dropout, 0.0, 1.0, "0 to 1")?;
        within("flip_p", self.flip_p, 0.0, 1.0, "0 to 1")?;
        within("rating", self.rating, 0.0, f64::MAX, "a number from 0")?;
        within("loss_scale", self.loss_scale, f64::MIN, f64::MAX, "a number")
    }

    /// These options, and those of `base` where nothing is said here; tags of both, these first, each once.
    pub fn over(mut self, base: Self) -> Self {
        let more: Vec<_> = base.tags.into_iter().filter(|tag| !self.tags.contains(tag)).collect();
        self.tags.extend(more);
        let shuffled = [self.shuffle_tags, base.shuffle_tags].into_iter().flatten().reduce(|a, b| a || b);
        Self {
            main_prompt: self.main_prompt.or(base.main_prompt),
            tags: self.tags,
            rating: self.rating.or(base.rating),
            max_caption_length: self.max_caption_length.or(base.max_caption_length),
            multiply: self.multiply.or(base.multiply),
            cond_dropout: self.cond_dropout.or(base.cond_dropout),
            flip_p: self.flip_p.or(base.flip_p),
            shuffle_tags: shuffled,
            batch_id: self.batch_id.or(base.batch_id),
            loss_scale: self.loss_scale.or(base.loss_scale),
        }
    }

    /// What the files beside a picture say, each over the one before.
    pub fn beside(picture: &Path, with_json: bool) -> Result<Self> {
        let mut options = Self::default();
        let kinds = [("txt", false), ("caption", false), ("yml", true), ("yaml", true), ("json", true)];
        // JSON is YAML.
        for (extension, is_yaml) in kinds.into_iter().filter(|(kind, _)| with_json || *kind != "json") {
            let path = picture.with_extension(extension);
            if let Some(text) = read_text(&path)? {
                let said = if is_yaml { Self::from_yaml(&path, &text)? } else { Self::from_text(&text) };
                options = said.over(options);
            }
        }
        Ok(options)
    }

    /// What the files in a folder say of the pictures in it.
    pub fn of_folder(folder: &Path) -> Result<Self> {
        let mut options = Self::default();
        for name in ["multiply", "cond_dropout", "flip_p"] {
            options = Self::of_number(folder, name)?.over(options);
        }
        for name in ["local.yaml", "local.yml"] {
            let path = folder.join(name);
            if let Some(text) = read_text(&path)? {
                options = Self::from_yaml(&path, &text)?.over(options);
            }
        }
        if let Some(text) = read_text(&folder.join("batch_id.txt"))? {
            options = Self { batch_id: Some(text.trim().to_owned()), ..Self::default() }.over(options);
        }
        options = Self::of_number(folder, "loss_scale")?.over(options);
        if folder.join("shuffle_tags.txt").is_file() {
            options.shuffle_tags = Some(true);
        }
        Ok(options)
    }

    /// What a file with a single number says, `multiply.txt` say.
    fn of_number(folder: &Path, key: &str) -> Result<Self> {
        let path = folder.join(key).with_extension("txt");
        let Some(text) = read_text(&path)? else { return Ok(Self::default()) };
        let text = text.trim();
        let value = text.parse::<f64>().map_or(Value::from(text), Value::from);
        Self::from_value(&path, &Value::Mapping([(Value::from(key), value)].into_iter().collect()))
    }

    /// What a folder says of all pictures in it and below.
    pub fn of_tree(folder: &Path) -> Result<Self> {
        let mut options = Self::default();
        for name in ["global.yaml", "global.yml"] {
            let path = folder.join(name);
            if let Some(text) = read_text(&path)? {
                options = Self::from_yaml(&path, &text)?.over(options);
            }
        }
        Ok(options)
    }
}

fn tags(value: &Value) -> Option<Vec<Tag>> {
    let tag = |value: &Value| match value {
        Value::Mapping(tag) => {
            let text = scalar(tag.get("tag")?)?;
            let weight = tag.get("weight").filter(|weight| !weight.is_null());
            Some(Tag { text, weight: weight.map_or(Some(1.0), Value::as_f64)? })
        }
        other => Some(Tag::new(&scalar(other)?)),
    };
    let tags: Vec<_> = value.as_sequence()?.iter().map(tag).collect::<Option<_>>()?;
    Some(tags.into_iter().filter(|tag| !tag.text.trim().is_empty()).collect())
}

/// A text, or a number as a text.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.trim().to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    }
}

/// A file's text, where there is one: UTF-8, or else ISO-8859-1, as EveryDream2 tries them.
fn read_text(path: &Path) -> Result<Option<String>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(
            String::from_utf8(bytes)
                .unwrap_or_else(|error| error.into_bytes().into_iter().map(char::from).collect()),
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Caption { path: path.to_path_buf(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn yaml(text: &str) -> Options {
        Options::from_yaml(Path::new("a.yaml"), text).unwrap()
    }

    fn said(text: &str) -> String {
        Options::from_yaml(Path::new("a.yaml"), text).unwrap_err().to_string()
    }

    fn texts(options: &Options) -> Vec<&str> {
        options.tags.iter().map(|tag| tag.text.as_str()).collect()
    }

    #[test]
    fn a_text_is_a_main_prompt_and_tags() {
        let options = Options::from_text("\u{feff} a cat ,on a mat,, blurry \n");
        assert_eq!(options.main_prompt.as_deref(), Some("a cat"));
        assert_eq!(texts(&options), ["on a mat", "blurry"]);
        assert_eq!(Options::from_text(" \n"), Options::default());
    }

    #[test]
    fn a_yaml_file_says_all_there_is_to_say() {
        let options = yaml(
            "main_prompt: a cat\ntags:\n- blurry\n- tag: solo\n  weight: 2.5\n- {tag: 1980, weight: null}\n\
             rating: 0.5\nmax_caption_length: 100\nmultiply: 2\ncond_dropout: 0.1\nflip_p: 0.5\nshuffle_tags: true\n\
             batch_id: cats\nloss_scale: -0.5\n",
        );
        assert_eq!(options.main_prompt.as_deref(), Some("a cat"));
        assert_eq!(texts(&options), ["blurry", "solo", "1980"]);
        assert_eq!(options.tags[1].weight, 2.5);
        assert_eq!(
            (options.rating, options.multiply, options.loss_scale),
            (Some(0.5), Some(2.0), Some(-0.5))
        );
        assert_eq!((options.shuffle_tags, options.batch_id.as_deref()), (Some(true), Some("cats")));
        let nested = yaml("caption: a dog, big\nmultiply: 3\n");
        assert_eq!((nested.main_prompt.as_deref(), nested.multiply), (Some("a dog"), Some(3.0)));
        assert_eq!(yaml("caption:\n  main_prompt: a dog\n").main_prompt.as_deref(), Some("a dog"));
        assert_eq!(yaml(""), Options::default());
    }

    #[test]
    fn what_is_wrong_in_a_yaml_file_is_named() {
        assert_eq!(said("multipy: 2"), "`a.yaml`: unknown key `multipy` (did you mean `multiply`?)");
        assert_eq!(said("multiply: often"), "`a.yaml`: `multiply` is often, expected a number");
        assert_eq!(said("flip_p: 2"), "`a.yaml`: `flip_p` is 2, expected 0 to 1");
        assert_eq!(said("[1, 2]"), "`a.yaml`: `the file` is - 1\n- 2, expected keys and values");
        assert!(said("a: [").starts_with("`a.yaml` is not YAML"), "{}", said("a: ["));
    }

    #[test]
    fn the_nearer_file_goes_first_and_tags_are_put_together() {
        let near = yaml("main_prompt: a cat\ntags: [blurry, solo]\nmultiply: 0\n");
        let far =
            yaml("main_prompt: an animal\ntags: [solo, photo]\nmultiply: 4\nflip_p: 0.5\nshuffle_tags: true");
        let both = near.over(far);
        assert_eq!(both.main_prompt.as_deref(), Some("a cat"));
        assert_eq!(texts(&both), ["blurry", "solo", "photo"]);
        assert_eq!((both.multiply, both.flip_p, both.shuffle_tags), (Some(0.0), Some(0.5), Some(true)));
    }

    #[test]
    fn folders_and_sidecars_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
        let picture = dir.path().join("a.png");
        assert_eq!(Options::beside(&picture, true).unwrap(), Options::default());
        write("a.txt", b"a sch\xf6ner cat, blurry");
        write("a.yaml", b"tags: [solo]\nmultiply: 3\n");
        let beside = Options::beside(&picture, true).unwrap();
        assert_eq!(beside.main_prompt.as_deref(), Some("a sch\u{f6}ner cat"));
        assert_eq!(texts(&beside), ["solo", "blurry"]);

        write("a.json", br#"{"main_prompt": ["a dog", "a fox"], "flip_p": 1}"#);
        let beside = Options::beside(&picture, true).unwrap();
        assert_eq!((beside.main_prompt.as_deref(), beside.multiply), (Some("a dog"), Some(3.0)));
        assert_eq!(Options::beside(&picture, false).unwrap().flip_p, None);

        write("multiply.txt", b" 1.5\n");
        write("local.yaml", b"multiply: 2\nflip_p: 0.5");
        write("batch_id.txt", b"cats\n");
        write("shuffle_tags.txt", b"");
        let folder = Options::of_folder(dir.path()).unwrap();
        assert_eq!((folder.multiply, folder.flip_p), (Some(2.0), Some(0.5)), "the YAML file comes later");
        assert_eq!((folder.batch_id.as_deref(), folder.shuffle_tags), (Some("cats"), Some(true)));
        write("loss_scale.txt", b"half");
        let error = Options::of_folder(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("loss_scale.txt`: `loss_scale` is half, expected a number"), "{error}");
        write("global.yml", b"cond_dropout: 0.2");
        assert_eq!(Options::of_tree(dir.path()).unwrap().cond_dropout, Some(0.2));
    }
}
