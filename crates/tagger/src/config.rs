//! What a user says about a tagging run, and the plan that comes of it.

use std::{
    path::{Path, PathBuf},
    thread,
};

use serde::{Deserialize, Serialize};
use vodka_images::{DecodeOptions, find};
use vodka_stage::{Interrupt, RunKey, beside, lossy, record_path};

use crate::{
    Combine, Error, Profile, Provider, Result, TaggerConfig,
    folder::{ModelFolder, is_external, weights_outside},
    results::{BATCH_MAX, ImagesHash},
};

const THREADS_MAX: usize = 1024;
/// Raised when the same picture and model would give other rows than before: other pixels, another built-in description.
const ARITHMETIC: u32 = 2;
/// More networks at the same time take memory, and the caches from each other.
const LANES_MAX: usize = 4;
/// What file systems take for a name, in bytes.
const NAME_MAX: usize = 255;
const TABLES: [&str; 2] = ["parquet", "csv"];

/// What a user says about a tagging run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TagConfig {
    /// The folder with the network and its labels.
    #[serde(serialize_with = "lossy")]
    pub model: PathBuf,
    /// Further models, whose scores are put together with the first one's.
    #[serde(default, serialize_with = "lossy")]
    pub ensemble: Vec<PathBuf>,
    /// How the scores of several models become one.
    #[serde(default)]
    pub combine: Combine,
    /// The built-in family of the models; found out where absent.
    #[serde(default)]
    pub family: Option<String>,
    /// The folder of pictures.
    #[serde(serialize_with = "lossy")]
    pub images: PathBuf,
    /// The table of tags, `.parquet` or `.csv`. Beside it come `STEM.pictures` of the same kind and `STEM.skipped.csv`.
    #[serde(serialize_with = "lossy")]
    pub output: PathBuf,
    /// The lowest score that is written, 0 to 1.
    #[serde(default = "TagConfig::default_min_score")]
    pub min_score: f64,
    /// Whether a table of embeddings, `STEM.embeddings.parquet`, comes beside the table of tags; of one model that has them.
    #[serde(default)]
    pub embeddings: bool,
    /// Whose arithmetic prepares the pictures.
    #[serde(default)]
    pub profile: Profile,
    /// How many pictures the model gets at once; 0 for what suits the provider.
    #[serde(default)]
    pub batch: usize,
    /// How many threads decode, and how many the model may use; 0 for one per core.
    #[serde(default)]
    pub threads: usize,
    /// Where the model runs.
    #[serde(default)]
    pub provider: Provider,
    /// Leaves pictures as they are stored, whatever their EXIF orientation says, as most taggers do.
    #[serde(default)]
    pub ignore_orientation: bool,
    /// The most pixels a picture may have.
    #[serde(default = "TagConfig::default_max_pixels")]
    pub max_pixels: u64,
    /// The ONNX Runtime library.
    #[serde(default, serialize_with = "lossy")]
    pub onnxruntime: PathBuf,
}

impl TagConfig {
    /// A run with the default settings.
    pub fn new(model: impl Into<PathBuf>, images: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            ensemble: Vec::new(),
            combine: Combine::default(),
            family: None,
            images: images.into(),
            output: output.into(),
            min_score: Self::default_min_score(),
            embeddings: false,
            profile: Profile::default(),
            batch: 0,
            threads: 0,
            provider: Provider::default(),
            ignore_orientation: false,
            max_pixels: Self::default_max_pixels(),
            onnxruntime: PathBuf::new(),
        }
    }

    /// 0.1
    pub fn default_min_score() -> f64 {
        0.1
    }

    /// 178,956,970, where Pillow suspects a decompression bomb too.
    pub fn default_max_pixels() -> u64 {
        DecodeOptions::default().max_pixels
    }

    /// Checks what can be checked before the model is loaded, and settles the rest.
    ///
    /// # Errors
    /// When a folder or a file of the model is missing, or a setting is out of range.
    pub fn plan(&self) -> Result<TagPlan> {
        let wrong = |name, expected, found: String| Err(Error::Setting { name, expected, found });
        if !(0.0..=1.0).contains(&self.min_score) {
            return wrong("min_score", "0 to 1", self.min_score.to_string());
        }
        if self.batch > BATCH_MAX {
            return wrong("batch", "0 to 4096", self.batch.to_string());
        }
        if self.threads > THREADS_MAX {
            return wrong("threads", "0 to 1024", self.threads.to_string());
        }
        if self.max_pixels == 0 {
            return wrong("max_pixels", "at least 1", self.max_pixels.to_string());
        }
        let extension = self.output.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        if !TABLES.contains(&extension.as_str()) {
            return wrong("output", "a name ending in .parquet or .csv", self.output.display().to_string());
        }
        let other = TABLES.map(|other| self.output.with_extension(other)).into_iter();
        if let Some(other) = other.filter(|other| *other != self.output).find(|it| record_path(it).exists()) {
            let expected = "another name before the dot: that table has the same list of skipped pictures";
            return wrong("output", expected, format!("`{}` beside it", other.display()));
        }
        if self.embeddings && !self.ensemble.is_empty() {
            return wrong("embeddings", "one model", format!("{} models", self.models().count()));
        }
        self.models().try_for_each(|model| ModelFolder::open(model, self.family.as_deref()).map(|_| ()))?;
        if !self.images.is_dir() {
            return Err(Error::NoFolder { what: "the pictures", path: self.images.clone() });
        }
        let cores = || thread::available_parallelism().map_or(1, usize::from);
        let threads = if self.threads == 0 { cores() } else { self.threads };
        let batch = if self.batch == 0 { self.provider.default_batch() } else { self.batch };
        let plan = TagPlan {
            lanes: if self.provider.is_concurrent() { threads.min(LANES_MAX) } else { 1 },
            pictures: self.output.with_extension(format!("pictures.{extension}")),
            skipped: self.output.with_extension("skipped.csv"),
            embeddings: self.embeddings.then(|| self.output.with_extension("embeddings.parquet")),
            config: Self { threads, batch, ..self.clone() },
        };
        let name_len = |path: &Path| path.file_name().map_or(0, |name| name.len());
        match plan.outputs().into_iter().map(name_len).max() {
            Some(longest) if longest > NAME_MAX => {
                let found = format!("{longest} bytes in the name of a file that comes beside it");
                wrong("output", "a name of which all names get at most 255 bytes", found)
            }
            _ => Ok(plan),
        }
    }

    pub(crate) fn models(&self) -> impl Iterator<Item = &Path> {
        [&self.model].into_iter().chain(&self.ensemble).map(PathBuf::as_path)
    }
}

/// A tagging run, checked.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TagPlan {
    /// The configuration, with the numbers of threads and of pictures in a batch settled.
    pub config: TagConfig,
    /// How many batches the model gets at the same time.
    pub lanes: usize,
    /// The table of pictures: size, hashes and sharpness.
    #[serde(serialize_with = "lossy")]
    pub pictures: PathBuf,
    /// The list of skipped pictures.
    #[serde(serialize_with = "lossy")]
    pub skipped: PathBuf,
    /// The table of embeddings, where one is wanted.
    #[serde(serialize_with = "lossy")]
    pub embeddings: Option<PathBuf>,
}

/// The settings that the tables depend on.
#[derive(Serialize)]
struct Settings<'a> {
    min_score: f64,
    embeddings: bool,
    family: &'a Option<String>,
    profile: Profile,
    ignore_orientation: bool,
    max_pixels: u64,
    combine: Combine,
    /// A vote counts thresholds, which the names of the models' folders may choose.
    voters: Vec<String>,
    /// Models with 8-bit products scale by batch.
    batch: usize,
    arithmetic: u32,
    /// Providers differ in the last digits: what one has begun another must not finish.
    provider: Provider,
}

impl TagPlan {
    /// What the tables depend on. Reads the models, and the pictures that no earlier run has read.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn key(&self) -> Result<RunKey> {
        let (key, images) = (self.key_without_images()?, find(&self.config.images)?);
        let key = self.key_with_images(&key, &images, &Interrupt::new())?;
        Ok(key.expect("nobody has interrupted it"))
    }

    /// The whole key; none if interrupted.
    pub(crate) fn key_with_images(
        &self,
        key: &RunKey,
        images: &[PathBuf],
        interrupt: &Interrupt,
    ) -> Result<Option<RunKey>> {
        let folder = &self.config.images;
        let hash = ImagesHash::of(&self.journal(), key.hash(), folder, images, interrupt)?;
        Ok(hash.map(|hash| key.clone().input_hashed("images", folder, hash)))
    }

    /// What each row depends on beside its picture.
    pub(crate) fn key_without_images(&self) -> Result<RunKey> {
        let TagConfig {
            min_score,
            embeddings,
            profile,
            ignore_orientation,
            max_pixels,
            combine,
            batch,
            provider,
            ..
        } = self.config;
        let family = &self.config.family;
        let name = |model: &Path| model.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let settings = Settings {
            min_score,
            embeddings,
            family,
            profile,
            ignore_orientation,
            max_pixels,
            combine,
            voters: self.config.models().filter(|_| combine == Combine::Vote).map(name).collect(),
            batch,
            arithmetic: ARITHMETIC,
            provider,
        };
        let mut key = RunKey::new("tag", &settings, None);
        for (number, model) in self.config.models().enumerate() {
            let name = |what: &str| match number {
                0 => what.to_owned(),
                number => format!("{what}_{}", number + 1),
            };
            let folder = ModelFolder::open(model, family.as_deref())?;
            let outside = weights_outside(&folder.network);
            let is_outside = |path: &Path| {
                is_external(&folder.network, path) || outside.iter().any(|name| path == model.join(name))
            };
            key = key
                .input(&name("model"), &folder.network, |_| true)?
                .input(&name("weights"), model, is_outside)?
                .input(&name("labels"), folder.labels(), |_| true)?
                .input(&name("description"), model, |path| folder.is_description(path))?;
        }
        Ok(key)
    }

    /// The tables, and last the list of skipped pictures.
    pub(crate) fn outputs(&self) -> Vec<&Path> {
        let tables = [&self.config.output, &self.pictures].into_iter().chain(&self.embeddings);
        tables.chain([&self.skipped]).map(PathBuf::as_path).collect()
    }

    pub(crate) fn journal(&self) -> PathBuf {
        beside(&self.config.output, ".", ".journal")
    }

    pub(crate) fn taggers(&self) -> impl Iterator<Item = TaggerConfig> {
        self.config.models().map(|model| TaggerConfig {
            family: self.config.family.clone(),
            profile: self.config.profile,
            onnxruntime: self.config.onnxruntime.clone(),
            provider: self.config.provider,
            lanes: self.lanes,
            threads: self.config.threads,
            ..TaggerConfig::new(model)
        })
    }
}
