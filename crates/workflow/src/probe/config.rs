//! What a user writes: `[[probe]]` in a recipe, or `[probe]` in a file of its own.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{SeqAccess, Visitor, value::SeqAccessDeserializer},
};
use vodka_sampler::{Precision, SamplerName, ScheduleName, Size};
use vodka_stage::{lossy, parse_toml};
use vodka_tagger::TagConfig;

use crate::{Error, Result, recipe};

/// `[[probe]]`: what tags do to the pictures of models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// The name of its folder below `probes/`.
    pub name: String,
    /// The models, by their names.
    pub models: Vec<String>,
    /// The one that the others are compared with. Default: the first.
    #[serde(default)]
    pub against: Option<String>,
    /// The tags: `"selection"` for those that the selection includes, or a list. Default: `"selection"`.
    #[serde(default)]
    pub tags: Tags,
    /// Words that stand in no caption: what they do, a tag must outdo. Default: none.
    #[serde(default)]
    pub placebo: Vec<String>,
    /// The prompts; the first seed has the first prompt, and so on, in turn.
    pub prompts: Vec<ProbePrompt>,
    /// How many seeds each tag and each placebo has. Default: 16.
    #[serde(default = "default_seeds")]
    pub seeds: u32,
    /// The same for single tags.
    #[serde(default)]
    pub seeds_of: BTreeMap<String, u32>,
    /// The first seed. Default: 1.
    #[serde(default = "one")]
    pub first_seed: u32,
    /// Sampling steps. Default: 20.
    #[serde(default = "recipe::default_steps")]
    pub steps: u32,
    /// Guidance scale. Default: 7.
    #[serde(default = "recipe::default_cfg")]
    pub cfg: f64,
    /// Width and height in pixels. Default: `512x512`.
    #[serde(default)]
    pub size: Size,
    /// The sampler, as A1111 calls it. Default: `Euler`.
    #[serde(default)]
    pub sampler: SamplerName,
    /// The spacing of the noise levels. Default: `Automatic`, the sampler's own.
    #[serde(default)]
    pub schedule: ScheduleName,
    /// The layer of the text encoder, counted from the end. Default: 1, the last.
    #[serde(default = "recipe::last_layer")]
    pub clip_skip: u32,
    /// How many pictures are made at once. Default: as many as are 32 of 64x64 pixels, at most 32 and at least one.
    #[serde(default)]
    pub batch: Option<u32>,
    /// What text encoder and UNet compute in. Default: `fp32`.
    #[serde(default = "recipe::fp32")]
    pub precision: Precision,
    /// What the VAE computes in. Default: `fp32`.
    #[serde(default = "recipe::fp32")]
    pub vae_precision: Precision,
    /// How many pictures of the training set are measured, for comparison. Default: 256.
    #[serde(default = "default_sample")]
    pub sample: usize,
}

/// A prompt, and what is to be seen in its pictures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbePrompt {
    /// What the picture is to show.
    pub prompt: String,
    /// What it is not to show.
    #[serde(default)]
    pub negative: String,
    /// The tags that the tagger is to find.
    #[serde(default)]
    pub expect: Vec<String>,
}

/// Which tags are probed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tags {
    /// Those that the selection includes.
    #[default]
    Selection,
    /// These.
    Listed(Vec<String>),
}

impl<'de> Deserialize<'de> for Tags {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl<'de> Visitor<'de> for Written {
            type Value = Tags;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"selection\" or a list of tags")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Tags, E> {
                match text {
                    "selection" => Ok(Tags::Selection),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Tags, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(Tags::Listed)
            }
        }
        deserializer.deserialize_any(Written)
    }
}

fn default_seeds() -> u32 {
    16
}

fn one() -> u32 {
    1
}

fn default_sample() -> usize {
    256
}

/// A probe with all that it reads.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProbeConfig {
    /// What a user says.
    pub probe: Probe,
    /// The models, by the names that the probe gives them.
    #[serde(serialize_with = "named")]
    pub models: Vec<(String, PathBuf)>,
    /// The tagger; its pictures and its table are those of the probe.
    pub tagger: TagConfig,
    /// The tagger's vocabulary.
    #[serde(serialize_with = "lossy")]
    pub labels: PathBuf,
    /// The selection, where its tags are probed.
    #[serde(serialize_with = "lossy")]
    pub selection: Option<PathBuf>,
    /// The pictures of the training set, which those of the models are compared with.
    #[serde(serialize_with = "lossy")]
    pub data: Option<PathBuf>,
    /// Folders with the captions of the training set, in which no placebo may stand.
    #[serde(serialize_with = "lossy")]
    pub captions: Vec<PathBuf>,
    /// `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// The folder to fill.
    #[serde(serialize_with = "lossy")]
    pub output: PathBuf,
    /// The file that remembers hashes of a merge's parents.
    #[serde(skip)]
    pub hash_cache: Option<PathBuf>,
    /// Where libtorch is.
    #[serde(skip)]
    pub runtime_dir: PathBuf,
}

fn named<S: serde::Serializer>(models: &[(String, PathBuf)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(models.iter().map(|(name, path)| format!("{name}: {}", path.display())))
}

/// A file for `vodka probe`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProbeFile {
    /// The models, by names of the user's own: files, diffusers folders, or merge recipes (`mix.toml#OUTPUT`).
    models: BTreeMap<String, PathBuf>,
    /// The tagger, as in a recipe; its `min_score` has no say.
    tag: recipe::Tag,
    probe: Probe,
    /// The tagger's vocabulary. Default: `selected_tags.csv` in its folder.
    labels: Option<PathBuf>,
    selection: Option<PathBuf>,
    data: Option<PathBuf>,
    #[serde(default)]
    captions: Vec<PathBuf>,
    #[serde(default = "recipe::cpu")]
    device: String,
}

impl ProbeConfig {
    /// Reads a file of its own. Relative paths start at its folder.
    ///
    /// # Errors
    /// An unknown key, with its line and the nearest known one; a model that is not in `[models]`.
    pub fn read(path: &Path, output: PathBuf, runtime_dir: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| {
            Error::Recipe(vodka_stage::ConfigError::Read { path: path.to_path_buf(), source })
        })?;
        let file: ProbeFile = parse_toml(&text, path).map_err(Error::Recipe)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let at = |path: &PathBuf| folder.join(path);
        let mut tag = file.tag;
        tag.models().for_each(|model| *model = folder.join(&*model));
        let of_model = || tag.model.join("selected_tags.csv");
        let labels = file.labels.as_ref().map_or_else(of_model, at);
        let model = |name: &String| match file.models.get(name) {
            Some(model) => Ok((name.clone(), folder.join(model))),
            None => Err(Error::unknown_model(path, name, file.models.keys())),
        };
        Ok(Self {
            models: file.probe.models.iter().map(model).collect::<Result<_>>()?,
            tagger: tag.config(PathBuf::new(), PathBuf::new(), runtime_dir),
            labels,
            selection: file.selection.as_ref().map(at),
            data: file.data.as_ref().map(at),
            captions: file.captions.iter().map(at).collect(),
            device: file.device,
            output,
            hash_cache: None,
            runtime_dir: runtime_dir.to_path_buf(),
            probe: file.probe,
        })
    }
}
