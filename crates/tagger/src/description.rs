//! What tells one tagger from another, as data: the built-in families and a user's `model.toml`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Component, Path},
};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::{Category, Error, Result};

/// The file beside a model that describes it.
pub(crate) const MODEL_TOML: &str = "model.toml";

/// The built-in families, each in the form of a `model.toml`.
const FAMILIES: [(&str, &str); 11] = [
    ("wd-v3", include_str!("families/wd-v3.toml")),
    ("wd-v1.4", include_str!("families/wd-v1.4.toml")),
    ("animetimm", include_str!("families/animetimm.toml")),
    ("pixai-v0.9", include_str!("families/pixai-v0.9.toml")),
    ("camie-v1", include_str!("families/camie-v1.toml")),
    ("camie-v2", include_str!("families/camie-v2.toml")),
    ("cl-tagger-v1", include_str!("families/cl-tagger-v1.toml")),
    ("joytag", include_str!("families/joytag.toml")),
    ("z3d-e621", include_str!("families/z3d-e621.toml")),
    ("deepdanbooru", include_str!("families/deepdanbooru.toml")),
    ("ml-danbooru", include_str!("families/ml-danbooru.toml")),
];

/// The names of the built-in families.
pub fn families() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|(name, _)| *name)
}

/// A model, described: how pictures become numbers, and what the numbers that come out mean.
///
/// What a file leaves out is taken from the family it names, or else from the defaults, which describe a plain PyTorch
/// export: NCHW, RGB, 0 to 1, white padding, bicubic, one output of probabilities.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Description {
    /// The built-in family it starts from; of a built-in family its own name.
    pub family: Option<String>,
    /// The names under which the network may lie in the folder; the first that is there counts.
    pub network: Vec<String>,
    /// How many pictures the network may get at once; as many as one likes where absent. A batch that is fixed in the
    /// graph needs no mention.
    pub max_batch: Option<usize>,
    /// From a picture to a square of pixels.
    pub picture: PictureRules,
    /// From pixels to the input of the network.
    pub tensor: TensorRules,
    /// From the outputs of the network to scores.
    pub output: OutputRules,
    /// The files that may name the tags; the first that is there counts.
    pub labels: Vec<LabelFile>,
    /// From which score on a tag counts, unless somebody says otherwise.
    pub thresholds: ThresholdRules,
    /// A file of processing steps beside the model, which goes before what is written here.
    pub preprocess: Option<PreprocessFile>,
}

impl Default for Description {
    fn default() -> Self {
        Self {
            family: None,
            network: vec!["model.onnx".to_owned()],
            max_batch: None,
            picture: PictureRules::default(),
            tensor: TensorRules::default(),
            output: OutputRules::default(),
            labels: Vec::new(),
            thresholds: ThresholdRules::default(),
            preprocess: None,
        }
    }
}

/// From a picture to a square of pixels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PictureRules {
    /// The side of the square in pixels, where the graph leaves it open.
    pub size: Option<u32>,
    /// How a picture that is no square becomes one.
    pub fit: Fit,
    /// How pixels are resampled.
    pub resampler: Resampler,
    /// What is around the picture. RGB.
    pub pad: [u8; 3],
    /// What is under a picture with transparency. RGB.
    pub under: [u8; 3],
    /// A first square, made by resizing (the shorter side rounded to the nearest) and then padding, which is then resized
    /// to the size of the network.
    pub first: Option<FirstSquare>,
}

impl Default for PictureRules {
    fn default() -> Self {
        Self {
            size: None,
            fit: Fit::Pad,
            resampler: Resampler::Bicubic,
            pad: [255; 3],
            under: [255; 3],
            first: None,
        }
    }
}

/// The square that is made before the one the network sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirstSquare {
    /// Its side in pixels.
    pub size: u32,
    /// How pixels are resampled on the way to it.
    pub resampler: Resampler,
}

/// How a picture that is no square becomes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fit {
    /// Padded to a square, and then resized.
    Pad,
    /// Resized until the longer side fits, the shorter one rounded down, and then padded.
    ResizeThenPad,
    /// Resized to the square, whatever its shape.
    Squash,
    /// Resized until the longer side fits, the shorter one rounded down, and then continued with the pixels at its edges.
    PadEdge,
}

/// How pixels are resampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resampler {
    /// Pillow's bilinear, which averages when shrinking.
    Bilinear,
    /// Pillow's bicubic.
    Bicubic,
    /// Pillow's Lanczos.
    Lanczos,
    /// OpenCV's area when shrinking, and Pillow's Lanczos when growing.
    Area,
}

/// From pixels to the input of the network: `(pixel / scale - mean[c]) / std[c]`, in f32 and in this order, where `c`
/// counts the channels in the order that the network gets them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TensorRules {
    /// The order of the axes.
    pub layout: Layout,
    /// The order of the channels.
    pub channels: Channels,
    /// What a pixel, 0 to 255, is divided by: 255 for 0 to 1.
    pub scale: f32,
    /// What is then taken off each channel.
    pub mean: [f32; 3],
    /// What each channel is then divided by.
    pub std: [f32; 3],
}

impl Default for TensorRules {
    fn default() -> Self {
        Self { layout: Layout::Nchw, channels: Channels::Rgb, scale: 255.0, mean: [0.0; 3], std: [1.0; 3] }
    }
}

/// The order of the input's axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Batch, height, width, channels.
    Nhwc,
    /// Batch, channels, height, width.
    Nchw,
}

/// The order of the channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channels {
    /// Red first.
    Rgb,
    /// Blue first.
    Bgr,
}

/// From the outputs of the network to scores.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutputRules {
    /// The place of the output with a value for each tag; from the end where negative, -1 being the last.
    pub scores: i64,
    /// The place of the output that describes the picture. Graphs without that output are fine, and give none.
    pub embedding: Option<i64>,
    /// How many outputs the graph must have; any number where absent.
    pub count: Option<usize>,
    /// What makes probabilities of the values.
    pub activation: Activation,
}

/// What makes probabilities of an output's values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// Nothing: they are probabilities.
    #[default]
    None,
    /// The logistic function: they are logits.
    Sigmoid,
}

/// A file that names the tags.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelFile {
    /// Its name in the model's folder.
    pub file: String,
    /// What is in it.
    pub kind: LabelKind,
    /// Of a CSV: columns it must have, beside `name`.
    #[serde(default)]
    pub columns: Vec<String>,
    /// The category of tags for which the file names none.
    #[serde(default)]
    pub category: Option<Category>,
    /// What the file's own numbers or names of categories stand for, where not what Danbooru's do.
    #[serde(default)]
    pub categories: BTreeMap<String, Category>,
}

impl LabelFile {
    /// A file of labels that needs no further explanation.
    pub fn new(file: impl Into<String>, kind: LabelKind) -> Self {
        Self { file: file.into(), kind, columns: Vec::new(), category: None, categories: BTreeMap::new() }
    }
}

/// What is in a file of labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelKind {
    /// CSV with a header and a row for each output: `name`, and where there are such columns `tag_id`, `category` (a
    /// number) and `best_threshold`.
    Csv,
    /// A name on each line; those that start with `rating:` are ratings.
    Text,
    /// JSON: `{"idx_to_tag": {"0": NAME}, "tag_to_category": {NAME: CATEGORY}}`.
    IdxToTag,
    /// The same as [`LabelKind::IdxToTag`], inside of `{"dataset_info": {"tag_mapping": ...}}`.
    DatasetInfo,
    /// JSON: `{"0": {"tag": NAME, "category": CATEGORY}}`; outputs that are not named are left out.
    TagMapping,
    /// JSON: `{"tag_map": {NAME: 0}, "tag_split": {"gen_tag_count": N, "character_tag_count": M}}`; the first N are general
    /// tags, the others characters.
    TagMap,
}

/// From which score on a tag counts, unless somebody says otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ThresholdRules {
    /// Whether a score equal to the threshold counts.
    pub inclusive: bool,
    /// For categories that are not named.
    pub default: f32,
    /// For tags of a category.
    pub categories: BTreeMap<Category, f32>,
    /// Whether a threshold for a tag in the file of labels goes before that of its category.
    pub per_tag: bool,
    /// For the general tags of a model whose name is in the path of its folder.
    pub models: BTreeMap<String, f32>,
}

impl Default for ThresholdRules {
    fn default() -> Self {
        Self {
            inclusive: false,
            default: 0.35,
            categories: BTreeMap::new(),
            per_tag: true,
            models: BTreeMap::new(),
        }
    }
}

impl ThresholdRules {
    /// The model whose name is in the last parts of a path, and its threshold. A hub's cache has the name three parts
    /// from the end: `models--NAMESPACE--NAME/snapshots/REVISION`.
    pub(crate) fn of_model(&self, folder: &Path) -> Option<(&str, f32)> {
        let parts: Vec<_> = folder.components().collect();
        let names = parts.iter().rev().take(3).filter_map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        });
        let names: Vec<_> = names.map(str::to_lowercase).collect();
        let named = |model: &str| names.iter().any(|name| name.contains(&model.to_lowercase()));
        let found = self.models.iter().filter(|(model, _)| named(model));
        found.max_by_key(|(model, _)| model.len()).map(|(model, threshold)| (model.as_str(), *threshold))
    }
}

/// A file of processing steps, as deepghs writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreprocessFile {
    /// Its name in the model's folder.
    pub file: String,
    /// Which of its lists of steps is to be followed.
    pub steps: String,
}

impl Description {
    /// A built-in family.
    ///
    /// # Errors
    /// [`Error::UnknownFamily`], with the families there are.
    pub fn family(name: &str) -> Result<Self> {
        Self::parse(family_text(name)?, Path::new(name))
            .map(|known| Self { family: Some(name.into()), ..known })
    }

    /// Reads a `model.toml`.
    ///
    /// # Errors
    /// When it cannot be read, a key is unknown or a value is wrong, with the line; when its family is unknown.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
        let text = std::str::from_utf8(&bytes).map_err(|error| Error::NotUtf8 {
            path: path.to_path_buf(),
            line: line_at(&bytes, error.valid_up_to()),
        })?;
        Self::parse(text, path)
    }

    /// Reads the text of a `model.toml`. The path is only for errors.
    ///
    /// # Errors
    /// As [`Description::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        // Read by itself first: as nothing in it is required, whatever is wrong with it has a line.
        let written: Self = vodka_stage::parse_toml(text, path)?;
        let whole = match &written.family {
            None => written,
            Some(family) => {
                let changes: Table = vodka_stage::parse_toml(text, path)?;
                let mut whole: Table = vodka_stage::parse_toml(family_text(family)?, Path::new(family))?;
                merge(&mut whole, changes);
                vodka_stage::parse_toml(&whole.to_string(), path)?
            }
        };
        whole.check(path)?;
        Ok(whole)
    }

    fn check(&self, path: &Path) -> Result<()> {
        let sure = |is_fine: bool, key, expected, found: &dyn std::fmt::Debug| {
            let wrong =
                || Error::Description { path: path.into(), key, expected, found: format!("{found:?}") };
            if is_fine { Ok(()) } else { Err(wrong()) }
        };
        let Self { picture, tensor, thresholds, .. } = self;
        let side = |size: u32| (1..=SIDE_MAX).contains(&size);
        let finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
        sure(!self.network.is_empty(), "network", "a name at least", &self.network)?;
        sure(self.max_batch != Some(0), "max_batch", "1 or more", &self.max_batch)?;
        sure(picture.size.is_none_or(side), "picture.size", "1 to 4096", &picture.size)?;
        let is_square = picture.first.is_none() || picture.fit == Fit::Squash;
        sure(is_square, "picture.fit", "\"squash\" beside `picture.first`", &picture.fit)?;
        let first = picture.first.map(|first| first.size);
        sure(first.is_none_or(side), "picture.first.size", "1 to 4096", &first)?;
        let divisor = |value: &f32| value.is_normal() && *value > 0.0;
        sure(divisor(&tensor.scale), "tensor.scale", "a number above 0", &tensor.scale)?;
        sure(finite(&tensor.mean), "tensor.mean", "finite numbers", &tensor.mean)?;
        sure(tensor.std.iter().all(divisor), "tensor.std", "numbers above 0", &tensor.std)?;
        sure(!self.labels.is_empty(), "labels", "a [[labels]] at least", &self.labels)?;
        for label in &self.labels {
            let takes_columns = label.kind == LabelKind::Csv || label.columns.is_empty();
            sure(takes_columns, "labels.columns", "columns of a csv only", &label.kind)?;
        }
        let ThresholdRules { default, categories, models, .. } = thresholds;
        for value in categories.values().chain(models.values()).chain([default]) {
            sure(value.is_finite() && *value >= 0.0, "thresholds", "numbers from 0 on", value)?;
        }
        Ok(())
    }

    /// Whether two descriptions make the same scores of the same model.
    pub(crate) fn does_the_same_as(&self, other: &Self) -> bool {
        let work = |it: &Self| (it.picture.clone(), it.tensor.clone(), it.output.clone(), it.labels.clone());
        work(self) == work(other)
    }

    /// The name, for errors.
    pub(crate) fn name(&self) -> &str {
        self.family.as_deref().unwrap_or(MODEL_TOML)
    }
}

/// The longest side of a picture that a network may want.
pub(crate) const SIDE_MAX: u32 = 4096;

fn family_text(name: &str) -> Result<&'static str> {
    let known = || families().collect::<Vec<_>>().join(", ");
    let found = FAMILIES.iter().find(|(family, _)| *family == name);
    found.map(|(_, text)| *text).ok_or_else(|| Error::UnknownFamily { found: name.into(), known: known() })
}

/// Writes what is in `changes` over what is in `table`, table by table.
fn merge(table: &mut Table, changes: Table) {
    for (key, change) in changes {
        match (table.get_mut(&key), change) {
            (Some(Value::Table(old)), Value::Table(change)) => merge(old, change),
            (_, change) => {
                table.insert(key, change);
            }
        }
    }
}

/// The line of a byte, counted from 1.
pub(crate) fn line_at(bytes: &[u8], place: usize) -> u64 {
    1 + bytes[..place.min(bytes.len())].iter().filter(|byte| **byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Description> {
        Description::parse(text, Path::new("model.toml"))
    }

    #[test]
    fn every_family_is_well_formed_and_keeps_its_name() {
        for name in families() {
            let family = Description::family(name).unwrap();
            assert_eq!(family.name(), name);
            // What is written out is what was read.
            let text = toml::to_string(&family).unwrap();
            assert_eq!(parse(&text).unwrap(), family, "{text}");
        }
    }

    #[test]
    fn a_family_can_be_changed_in_part() {
        let joytag = Description::family("joytag").unwrap();
        let mine = parse("family = \"joytag\"\n[tensor]\nchannels = \"bgr\"\n[thresholds]\ndefault = 0.2\n")
            .unwrap();
        assert_eq!(mine.tensor, TensorRules { channels: Channels::Bgr, ..joytag.tensor });
        assert_eq!((mine.thresholds.default, &mine.labels), (0.2, &joytag.labels));
    }

    #[test]
    fn what_is_wrong_has_its_line_or_its_key() {
        let cases = [
            (
                "[tensor]\nlayuot = \"nhwc\"",
                "line 2, column 1: unknown field `layuot`, did you mean `layout`?",
            ),
            (
                "family = \"joytag\"\n[picture]\nfit = \"stretch\"",
                "line 3, column 7: unknown variant `stretch`",
            ),
            ("family = \"joitag\"", "no family `joitag`: there are wd-v3, wd-v1.4, animetimm"),
            ("", "`model.toml`: `labels`: expected a [[labels]] at least, found []"),
            ("family = \"joytag\"\n[tensor]\nstd = [1, 0, 1]", "`tensor.std`: expected numbers above 0"),
            ("family = \"joytag\"\n[picture]\nsize = 0", "`picture.size`: expected 1 to 4096, found Some(0)"),
            (
                "family = \"animetimm\"\n[picture]\nfit = \"pad\"",
                "`picture.fit`: expected \"squash\" beside `picture.first`",
            ),
            ("family = \"joytag\"\n[thresholds]\ndefault = nan", "`thresholds`: expected numbers from 0 on"),
            (
                "[[labels]]\nfile = \"a\"\nkind = \"text\"\ncolumns = [\"b\"]",
                "columns of a csv only, found Text",
            ),
            ("a = 1 1", "`model.toml` line 1, column 5"),
        ];
        for (text, expected) in cases {
            let found = parse(text).unwrap_err().to_string();
            assert!(found.contains(expected), "{text}: {found}");
        }
    }

    #[test]
    fn the_path_tells_the_model() {
        let rules = Description::family("wd-v3").unwrap().thresholds;
        let of = |path: &str| rules.of_model(Path::new(path)).map(|(name, _)| name.to_owned());
        assert_eq!(of("models/wd-vit-tagger-v3").as_deref(), Some("wd-vit-tagger-v3"));
        let cached = "hub/models--SmilingWolf--wd-eva02-large-tagger-v3/snapshots/b25b82a0";
        assert_eq!(of(cached).as_deref(), Some("wd-eva02-large-tagger-v3"));
        assert_eq!(of("wd-vit-tagger-v3/of/no/consequence"), None);
        assert_eq!(of("mine"), None);
    }
}
