//! The stage that makes one picture, or a few that differ in their seeds.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use tch::Device;
use vodka_checkpoint::Precision;
use vodka_images::{DecodeOptions, RgbImage, decode_bytes};
use vodka_noise::{RandomSource, SamplerName, ScheduleName};
use vodka_prompt::{Emphasis, Parameters};
use vodka_sd15::{VaeTiles, check_device_name, device_type, parse_device};
use vodka_stage::{
    HashCache, Interrupt, Outcome, Report, RunKey, RunRecord, Standing, hash_file, record_path, write_atomic,
};

use crate::{
    Batch, ControlConfig, ControlUnit, Error, Hires, HiresTarget, HiresUpscaler, ImageToImage, Library, Load,
    Model, ModelId, ModelSource, PictureFormat, Pipeline, ResizeMode, Result, Settings, Size, UpscalerChoice,
    Used,
    control::{other_networks, units},
    library::file_named,
    memory::{Job, Need, There, planned},
    model::control_hashes,
    parameters::{not_followed, tell_of_text},
    picture_file::{read_parameters, write_picture},
    pipeline::{ARITHMETIC, kind},
    texts::{Wildcards, apply_styles},
    upscale::{TILE_MAX_PX, TILE_MIN_PX},
};

/// The most pictures of one run.
const MAX_PICTURES: u32 = 10_000;

/// What a user asks for: a checkpoint, a prompt, a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleConfig {
    /// A single-file checkpoint, a diffusers folder, or a merge recipe: `recipe.toml`, or `recipe.toml#OUTPUT`.
    pub checkpoint: PathBuf,
    /// Weights in the place of the recipe's, by `multiplier` or `step.multiplier`: a number, the name of a preset, or 26
    /// numbers with commas between.
    #[serde(default)]
    pub weights: BTreeMap<String, String>,
    /// A picture whose `parameters` text says what is not said here.
    #[serde(default)]
    pub from: Option<PathBuf>,
    /// What the picture is to show; of all settings those that are absent are the picture's, else A1111's.
    #[serde(default)]
    pub prompt: Option<String>,
    /// What it is not to show.
    #[serde(default)]
    pub negative: Option<String>,
    /// The seed.
    #[serde(default)]
    pub seed: Option<u32>,
    /// Where random numbers come from.
    #[serde(default)]
    pub rng: Option<RandomSource>,
    /// The seed of another noise.
    #[serde(default)]
    pub subseed: Option<u32>,
    /// How far to go towards that, 0 to 1.
    #[serde(default)]
    pub subseed_strength: Option<f64>,
    /// What is added to the seed for all noise but the first.
    #[serde(default)]
    pub ensd: Option<u32>,
    /// How much noise samplers add on the way, 0 to 1.
    #[serde(default)]
    pub eta: Option<f64>,
    /// Steps as A1111 counts them; 20.
    #[serde(default)]
    pub steps: Option<u32>,
    /// The CFG scale; 7.
    #[serde(default)]
    pub cfg: Option<f64>,
    /// The size; 512x512.
    #[serde(default)]
    pub size: Option<Size>,
    /// The sampler; Euler.
    #[serde(default)]
    pub sampler: Option<SamplerName>,
    /// The schedule; Automatic.
    #[serde(default)]
    pub schedule: Option<ScheduleName>,
    /// The layer of the text encoder, counted from the end; 1, the last.
    #[serde(default)]
    pub clip_skip: Option<u32>,
    /// What brackets in prompts do; `Original`.
    #[serde(default)]
    pub emphasis: Option<Emphasis>,
    /// Whether the picture's edges are to fit together; they are not.
    #[serde(default)]
    pub tiling: Option<bool>,
    /// The size of the picture whose noise is put into the middle of this one's.
    #[serde(default)]
    pub seed_resize_from: Option<Size>,
    /// A picture that this one is made from.
    #[serde(default)]
    pub init_image: Option<PathBuf>,
    /// How much of it is given up, 0 to 1, and how much of the larger picture in a hires pass; 0.75, of a hires pass 0.7.
    #[serde(default)]
    pub denoising: Option<f64>,
    /// How it is brought to the size; `just`.
    #[serde(default)]
    pub resize_mode: Option<ResizeMode>,
    /// Whether all steps are made, not the share `denoising` of them.
    #[serde(default)]
    pub exact_steps: Option<bool>,
    /// The ControlNets; where `from` states some, the first of these says more of the first of those, and so on.
    #[serde(default)]
    pub controls: Vec<ControlConfig>,
    /// The folder in which a ControlNet is looked for that a picture's text names.
    #[serde(default)]
    pub control_dir: Option<PathBuf>,
    /// How many times as wide and as high a hires pass makes the picture; 2. Whatever is said of that pass asks for it.
    #[serde(default)]
    pub hires_scale: Option<f64>,
    /// The size that it makes it instead; a side of 0 is the one that fits the other.
    #[serde(default)]
    pub hires_size: Option<Size>,
    /// What makes it larger: one of the six latent upscalers by A1111's name, `Lanczos`, `Nearest` or a file; `Latent`.
    #[serde(default)]
    pub hires_upscaler: Option<String>,
    /// The steps of that pass; those of the first.
    #[serde(default)]
    pub hires_steps: Option<u32>,
    /// Its sampler; the first's.
    #[serde(default)]
    pub hires_sampler: Option<SamplerName>,
    /// Its schedule; the first's.
    #[serde(default)]
    pub hires_schedule: Option<ScheduleName>,
    /// Its prompt; the first's.
    #[serde(default)]
    pub hires_prompt: Option<String>,
    /// Its negative prompt; the first's.
    #[serde(default)]
    pub hires_negative: Option<String>,
    /// The folder in which an upscaler is looked for that a picture's text names.
    #[serde(default)]
    pub upscaler_dir: Option<PathBuf>,
    /// How many pictures are made at once; 1.
    #[serde(default)]
    pub batch_size: Option<u32>,
    /// How many times; 1. The seed goes up by one from picture to picture.
    #[serde(default)]
    pub batch_count: Option<u32>,
    /// What text encoder and UNet compute in; fp32.
    #[serde(default)]
    pub precision: Option<Precision>,
    /// What the VAE computes in; fp32.
    #[serde(default)]
    pub vae_precision: Option<Precision>,
    /// A VAE that takes the place of the checkpoint's: a file or a folder.
    #[serde(default)]
    pub vae: Option<PathBuf>,
    /// The side in pixels of the tiles in which the VAE takes a large picture, a multiple of 8 from 64 to 8192; 0 for the whole
    /// picture. Where absent it takes pictures whole for which memory suffices, others in tiles of 512.
    #[serde(default)]
    pub vae_tile: Option<u32>,
    /// The folder of LoRA files.
    #[serde(default)]
    pub lora_dir: Option<PathBuf>,
    /// The folder of embeddings.
    #[serde(default)]
    pub embedding_dir: Option<PathBuf>,
    /// The folder of wildcards.
    #[serde(default)]
    pub wildcard_dir: Option<PathBuf>,
    /// Files of styles.
    #[serde(default)]
    pub style_files: Vec<PathBuf>,
    /// The styles that are added to the prompts, in this order.
    #[serde(default)]
    pub styles: Vec<String>,
    /// `cpu`, `cuda` or `cuda:N`; `cpu` where absent.
    #[serde(default = "default_device")]
    pub device: String,
    /// The picture: a PNG, JPEG or WebP file. Of several, `a.png` becomes `a-1.png`, `a-2.png`, ...
    pub output: PathBuf,
    /// Where `cargo xtask setup` put libtorch.
    #[serde(skip)]
    pub runtime_dir: PathBuf,
    /// The file that remembers the hashes of models; none to hash them every time.
    #[serde(skip)]
    pub hash_cache: Option<PathBuf>,
}

pub(crate) fn default_steps() -> u32 {
    Settings::default().steps
}

pub(crate) fn default_cfg() -> f64 {
    Settings::default().cfg_scale
}

pub(crate) fn default_clip_skip() -> u32 {
    Settings::default().clip_skip
}

pub(crate) fn default_device() -> String {
    "cpu".to_owned()
}

/// A checked [`SampleConfig`].
#[derive(Debug, Clone, Serialize)]
pub struct SamplePlan {
    /// The checkpoint, or the merge.
    pub model: ModelSource,
    /// A VAE in place of the checkpoint's.
    pub vae: Option<PathBuf>,
    /// What is made.
    pub pictures: Vec<PlannedPicture>,
    /// How many at once.
    pub batch_size: usize,
    /// A picture that they are made from.
    pub init_image: Option<PathBuf>,
    /// What text encoder and UNet compute in.
    pub precision: Precision,
    /// What the VAE computes in.
    pub vae_precision: Precision,
    /// The side in pixels of the tiles of the VAE, or 0 for none; where absent, what memory asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vae_tile: Option<u32>,
    /// The device's name.
    pub device: String,
    /// The memory that is needed, where the model can be opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Need>,
    /// What the text of [`SampleConfig::from`] asks for and is not done: names of fields.
    pub not_followed: Vec<String>,
    /// Files that have the names which this text tells, and other contents: the field, what it states, and what was found.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub other_files: Vec<String>,
    /// Files among the embeddings that are none, and why.
    pub skipped_embeddings: Vec<(PathBuf, String)>,
    /// The picture, or what the names of several are made of.
    pub output: PathBuf,
    /// LoRA files and embeddings.
    #[serde(skip)]
    pub library: Arc<Library>,
    /// The file that remembers the hashes of models by path, size and time of change; none to hash them every time.
    #[serde(skip)]
    pub hash_cache: Option<PathBuf>,
    /// Where libtorch is.
    #[serde(skip)]
    pub runtime_dir: PathBuf,
}

/// A picture that is to be made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedPicture {
    /// Its file.
    pub output: PathBuf,
    /// Prompts and numbers.
    pub settings: Settings,
    /// The files that its prompts name.
    pub used: Used,
}

/// How far the stage is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SampleEvent {
    /// The checkpoint is being loaded.
    Loading,
    /// Each call of the UNet is told to the GPU anew: its CUDA graphs do not work. Pictures are the same, and slower.
    WithoutGraphs {
        /// Why.
        reason: String,
    },
    /// A call of the UNet is through.
    Step {
        /// The calls made, in all pictures up to now.
        done: usize,
        /// All calls.
        total: usize,
    },
}

/// What the stage has done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampleReport {
    /// How it ended.
    pub outcome: Outcome,
    /// The pictures that are there.
    pub pictures: Vec<MadePicture>,
    /// How many of them were there before.
    pub kept: usize,
    /// What the text of the picture to be made again asks for and was not done: names of fields.
    pub not_followed: Vec<String>,
    /// Files that have the names which this text tells, and other contents: the field, what it states, and what was found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_files: Vec<String>,
    /// Files among the embeddings that are none, and why.
    pub skipped_embeddings: Vec<(PathBuf, String)>,
}

/// A picture that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadePicture {
    /// Its file.
    pub output: PathBuf,
    /// Its `parameters` text.
    pub parameters: String,
}

impl SampleConfig {
    /// Checks the settings and reads the recipe, if it is one; of checkpoints no weights are read, but the folders of LoRA files and
    /// embeddings are looked through.
    pub fn plan(&self) -> Result<SamplePlan> {
        let from = self.from.as_deref().map(parameters_of).transpose()?;
        let base = from.as_ref().map_or(Ok(Settings::default()), Settings::from_parameters)?;
        let settings = self.settings(base.clone())?;
        settings.check()?;
        let other_files = self.other_files(&base, &settings);
        check_device_name(&self.device)?;
        PictureFormat::of(&self.output)?;
        self.check_vae_tile(&settings)?;
        let library = Library::open(self.lora_dir.as_deref(), self.embedding_dir.as_deref())?;
        let wildcards = Wildcards::open(self.wildcard_dir.as_deref())?;
        let (size, count) = self.counts()?;
        let pictures = (0..size * count).map(|i| {
            let settings = nth(&settings, i, &wildcards);
            settings.check()?;
            let used = library.used_by(&settings)?;
            Ok(PlannedPicture { output: numbered(&self.output, i, size * count), settings, used })
        });
        let weight = |(name, text): (&String, &String)| Ok((name.clone(), text.parse()?));
        let weights = self.weights.iter().map(weight).collect::<Result<Vec<_>>>()?;
        let model = ModelSource::read(&self.checkpoint, &weights)?;
        let pictures = pictures.collect::<Result<Vec<_>>>()?;
        let mut plan = SamplePlan {
            model,
            vae: self.vae.clone(),
            pictures,
            batch_size: size as usize,
            init_image: self.init_image.clone(),
            precision: self.precision.unwrap_or(Precision::F32),
            vae_precision: self.vae_precision.unwrap_or(Precision::F32),
            vae_tile: self.vae_tile,
            device: self.device.clone(),
            memory: None,
            not_followed: from.as_ref().map(not_followed).unwrap_or_default(),
            other_files,
            skipped_embeddings: library.skipped().to_vec(),
            output: self.output.clone(),
            library: Arc::new(library),
            hash_cache: self.hash_cache.clone(),
            runtime_dir: self.runtime_dir.clone(),
        };
        plan.memory = plan.need()?;
        Ok(plan)
    }

    fn check_vae_tile(&self, settings: &Settings) -> Result<()> {
        match self.vae_tile {
            None | Some(0) => Ok(()),
            Some(_) if settings.tiling => Err(Error::VaeTileTiling),
            Some(px) if (TILE_MIN_PX..=TILE_MAX_PX).contains(&px) && px.is_multiple_of(8) => Ok(()),
            Some(found) => {
                Err(Error::VaeTile { found, multiple: 8, min_px: TILE_MIN_PX, max_px: TILE_MAX_PX })
            }
        }
    }

    /// How many pictures at once, and how often.
    fn counts(&self) -> Result<(u32, u32)> {
        let size = count("the batch size", self.batch_size.unwrap_or(1))?;
        let times = count("the batch count", self.batch_count.unwrap_or(1))?;
        count("the number of pictures", size.saturating_mul(times))?;
        Ok((size, times))
    }

    /// What is said here, and for the rest `base`; wildcards are still in the prompts.
    fn settings(&self, base: Settings) -> Result<Settings> {
        let prompt = self.prompt.as_deref().unwrap_or(&base.prompt);
        let negative = self.negative.as_deref().unwrap_or(&base.negative_prompt);
        let (prompt, negative_prompt) = apply_styles(&self.style_files, &self.styles, (prompt, negative))?;
        let hires = self.hires(base.hires)?;
        Ok(Settings {
            prompt,
            negative_prompt,
            seed: self.seed.unwrap_or(base.seed),
            rng: self.rng.unwrap_or(base.rng),
            subseed: self.subseed.unwrap_or(base.subseed),
            subseed_strength: self.subseed_strength.unwrap_or(base.subseed_strength),
            ensd: self.ensd.unwrap_or(base.ensd),
            eta: self.eta.or(base.eta),
            steps: self.steps.unwrap_or(base.steps),
            cfg_scale: self.cfg.unwrap_or(base.cfg_scale),
            size: self.size.unwrap_or(base.size),
            sampler: self.sampler.unwrap_or(base.sampler),
            schedule: self.schedule.unwrap_or(base.schedule),
            clip_skip: self.clip_skip.unwrap_or(base.clip_skip),
            emphasis: self.emphasis.unwrap_or(base.emphasis),
            old_prompt_rule: base.old_prompt_rule && self.prompt.is_none(),
            tiling: self.tiling.unwrap_or(base.tiling),
            seed_resize_from: self.seed_resize_from.or(base.seed_resize_from),
            image: self.image(base.image, hires.is_some())?,
            controls: units(&self.controls, &base.controls, self.control_dir.as_deref())?,
            hires,
        })
    }

    /// Files that were found by the names which a text states, and are not those that it states.
    fn other_files(&self, stated: &Settings, settings: &Settings) -> Vec<String> {
        let mut others = other_networks(&self.controls, &stated.controls, &settings.controls);
        let hash = |settings: &Settings| {
            settings.hires.as_ref().map(|hires| hires.upscaler_hash.clone()).unwrap_or_default()
        };
        let (stated, found) = (hash(stated), hash(settings));
        if self.hires_upscaler.is_none() && !stated.is_empty() && stated != found {
            others.push(format!("Hires upscaler hash: `{stated}`, found `{found}`"));
        }
        others
    }

    /// Whether anything is said of a hires pass.
    fn asks_for_hires(&self) -> bool {
        let Self { hires_scale, hires_size, hires_upscaler, hires_steps, .. } = self;
        let numbers = hires_scale.is_some() || hires_size.is_some() || hires_steps.is_some();
        let names = hires_upscaler.is_some() || self.hires_sampler.is_some() || self.hires_schedule.is_some();
        numbers || names || self.hires_prompt.is_some() || self.hires_negative.is_some()
    }

    /// The hires pass, with the hash of its upscaler's file.
    fn hires(&self, base: Option<Hires>) -> Result<Option<Hires>> {
        if base.is_none() && !self.asks_for_hires() {
            return Ok(None);
        }
        let base = base.unwrap_or_default();
        let target = HiresTarget::of(self.hires_scale, self.hires_size)?.unwrap_or(base.target);
        let upscaler = match &self.hires_upscaler {
            Some(text) => {
                let Ok(upscaler) = text.parse();
                upscaler
            }
            None => self.known_upscaler(base.upscaler, &base.upscaler_hash)?,
        };
        let upscaler_hash = upscaler.hash()?;
        let prompt = self.hires_prompt.as_ref().unwrap_or(&base.prompt);
        let negative = self.hires_negative.as_ref().unwrap_or(&base.negative_prompt);
        // Those that are the first pass's have its styles already.
        let styled = apply_styles(&self.style_files, &self.styles, (prompt, negative))?;
        let prompt = if prompt.is_empty() { String::new() } else { styled.0 };
        let negative_prompt = if negative.is_empty() { String::new() } else { styled.1 };
        Ok(Some(Hires {
            target,
            upscaler,
            upscaler_hash,
            denoising_strength: self.denoising.unwrap_or(base.denoising_strength),
            steps: self.hires_steps.unwrap_or(base.steps),
            sampler: self.hires_sampler.or(base.sampler),
            schedule: self.hires_schedule.or(base.schedule),
            prompt,
            negative_prompt,
        }))
    }

    /// The file of an upscaler of which a text has told the name.
    fn known_upscaler(&self, upscaler: HiresUpscaler, hash: &str) -> Result<HiresUpscaler> {
        let Some(name) = upscaler.path() else { return Ok(upscaler) };
        let found = name.to_string_lossy().into_owned();
        Ok(HiresUpscaler::Pixels(upscaler_named(found, hash, self.upscaler_dir.as_deref())?))
    }

    /// What is to be done with the other picture.
    fn image(&self, base: Option<ImageToImage>, has_hires: bool) -> Result<Option<ImageToImage>> {
        let Some(path) = &self.init_image else {
            // Whoever speaks of such a picture must name it.
            let is_strength = self.denoising.is_some() && !has_hires;
            let is_asked = base.is_some() || is_strength || self.resize_mode.is_some();
            return if is_asked || self.exact_steps.is_some() { Err(Error::NoImage) } else { Ok(None) };
        };
        let base = base.unwrap_or_default();
        Ok(Some(ImageToImage {
            denoising_strength: self.denoising.unwrap_or(base.denoising_strength),
            exact_steps: self.exact_steps.unwrap_or(base.exact_steps),
            resize_mode: self.resize_mode.unwrap_or(base.resize_mode),
            hash: hash_file(path)?.short(10),
            after_calls: None,
        }))
    }
}

/// A number of pictures.
pub(crate) fn count(field: &'static str, found: u32) -> Result<u32> {
    match (1..=MAX_PICTURES).contains(&found) {
        true => Ok(found),
        false => Err(Error::Count { field, found, max: MAX_PICTURES }),
    }
}

/// A rule, or the file in a folder of upscalers, that has the name which a text tells; of several the one of this hash.
pub(crate) fn upscaler_named(found: String, hash: &str, folder: Option<&Path>) -> Result<UpscalerChoice> {
    let choice = UpscalerChoice::from(found.clone());
    if choice.path().is_none() {
        return Ok(choice);
    }
    let Some(folder) = folder else { return Err(Error::NoUpscaler { found }) };
    let is_it = |path: &Path| hash_file(path).is_ok_and(|sha256| sha256.short(10) == hash);
    match file_named(&found, folder, &is_it)? {
        Ok(path) => Ok(UpscalerChoice::Model(path)),
        Err(nearest) => Err(Error::UnknownUpscaler { found, folder: folder.to_path_buf(), nearest }),
    }
}

/// The text of a picture that is to be made again.
pub(crate) fn parameters_of(path: &Path) -> Result<Parameters> {
    let text = read_parameters(path)?.ok_or_else(|| Error::NoParameters { path: path.to_path_buf() })?;
    let Ok(parameters) = text.parse();
    Ok(parameters)
}

/// The settings of the picture of that number, from 0: another seed, or with a variation another subseed, as in A1111.
fn nth(settings: &Settings, i: u32, wildcards: &Wildcards) -> Settings {
    let seed = settings.seed.wrapping_add(if settings.subseed_strength == 0.0 { i } else { 0 });
    let hires = settings.hires.clone().map(|hires| Hires {
        prompt: wildcards.fill(&hires.prompt, seed),
        negative_prompt: wildcards.fill(&hires.negative_prompt, seed),
        ..hires
    });
    Settings {
        hires,
        prompt: wildcards.fill(&settings.prompt, seed),
        negative_prompt: wildcards.fill(&settings.negative_prompt, seed),
        seed,
        subseed: settings.subseed.wrapping_add(i),
        ..settings.clone()
    }
}

/// `a.png`, or of several `a-01.png` and so on.
fn numbered(output: &Path, i: u32, count: u32) -> PathBuf {
    if count == 1 {
        return output.to_path_buf();
    }
    let (width, stem) = (count.to_string().len(), output.file_stem().unwrap_or_default().to_string_lossy());
    let ending = output.extension().unwrap_or_default().to_string_lossy();
    output.with_file_name(format!("{stem}-{:0width$}.{ending}", i + 1))
}

impl SamplePlan {
    /// All that the pictures depend on.
    pub fn key(&self) -> Result<RunKey> {
        self.key_of(&self.model(&Interrupt::new())?)
    }

    fn key_of(&self, model: &ModelId) -> Result<RunKey> {
        #[derive(Serialize)]
        struct Key<'a> {
            arithmetic: u32,
            model: &'a str,
            device: &'a str,
            precision: Precision,
            vae_precision: Precision,
            /// What memory asks for makes a difference in the last bits only, and is not known beforehand.
            #[serde(skip_serializing_if = "Option::is_none")]
            vae_tile: Option<u32>,
            batch_size: usize,
            pictures: Vec<(&'a Settings, &'a Used)>,
        }
        let key = Key {
            arithmetic: ARITHMETIC,
            model: &model.name,
            device: device_type(&self.device),
            precision: self.precision,
            vae_precision: self.vae_precision,
            vae_tile: self.vae_tile,
            batch_size: self.batch_size,
            pictures: self.pictures.iter().map(|picture| (&picture.settings, &picture.used)).collect(),
        };
        let seed = self.pictures.first().map(|picture| picture.settings.seed.into());
        let key = model.add_to(RunKey::new("sample", &key, seed), "checkpoint");
        match &self.init_image {
            Some(path) => Ok(key.input("image", path, |_| true)?),
            None => Ok(key),
        }
    }

    /// # Errors
    /// A file that cannot be read; [`Error::Interrupted`].
    fn model(&self, interrupt: &Interrupt) -> Result<ModelId> {
        let mut cache = HashCache::open(self.hash_cache.as_deref());
        let model = self.model.id(&mut cache, interrupt)?;
        let controls = control_hashes(self.units(), &mut cache, interrupt)?;
        let model = model.with_controls(self.units(), &controls);
        let Some(vae) = &self.vae else { return Ok(model) };
        let hashes = cache.of(&[vae], interrupt)?.ok_or(Error::Interrupted)?;
        Ok(model.with_vae(vae, hashes[0]))
    }

    fn load(&self) -> Result<Load> {
        Ok(self.load_on(parse_device(&self.device, &self.runtime_dir)?))
    }

    fn load_on(&self, device: Device) -> Load {
        let (vae_kind, vae) = (kind(self.vae_precision), self.vae.clone());
        let vae_tiles = match self.vae_tile {
            None => Some(VaeTiles::default()),
            Some(0) => None,
            side_px => Some(VaeTiles { side_px, memory: None }),
        };
        Load { vae_kind, vae, vae_tiles, ..Load::new(device, kind(self.precision)) }
    }

    /// The pictures that are made at once, where there are any.
    fn job(&self) -> Result<Option<Job>> {
        let first = self.pictures.first().map(|picture| &picture.settings);
        first.map(|settings| Job::new(settings, self.batch_size.min(self.pictures.len()))).transpose()
    }

    /// # Errors
    /// Pictures that the device has no room for, with all weights.
    fn check_memory(&self, model: &Model, load: &Load) -> Result<()> {
        self.job()?.map_or(Ok(()), |job| job.check(model.config(), load, There::default()))
    }

    /// What [`SamplePlan::memory`] says. What is wrong with a model is said when it is to be used.
    fn need(&self) -> Result<Option<Need>> {
        let (Some(job), Ok(model)) = (self.job()?, self.model.open()) else { return Ok(None) };
        let is_processor = device_type(&self.device) == "cpu";
        Ok(Some(planned(job, model.config(), &self.load_on(Device::Cpu), is_processor)))
    }

    /// The ControlNets, which are those of all pictures.
    fn units(&self) -> &[ControlUnit] {
        self.pictures.first().map_or(&[], |picture| &picture.settings.controls)
    }

    /// Whether the hires pass has an upscaler, which is better known before the first pass.
    fn check_upscaler(&self) -> Result<()> {
        let hires = self.pictures.first().and_then(|picture| picture.settings.hires.as_ref());
        match hires.and_then(|hires| hires.upscaler.path()) {
            Some(path) => Ok(vodka_checkpoint::Upscaler::open(path).map(drop)?),
            None => Ok(()),
        }
    }

    /// The picture that the others are made from.
    fn init(&self) -> Result<Option<RgbImage>> {
        let Some(path) = &self.init_image else { return Ok(None) };
        let unreadable = |source| vodka_stage::Error::Read { path: path.clone(), source };
        let bytes = fs::read(path).map_err(unreadable)?;
        let picture = decode_bytes(&bytes, &DecodeOptions::default());
        let fault = |source| vodka_images::Error::Picture { path: path.clone(), source };
        Ok(Some(picture.map_err(fault)?.picture.into_rgb()))
    }
}

/// Makes the pictures, unless they are there. A run that was ended goes on after the pictures that it had written.
///
/// # Errors
/// A checkpoint that is no model, a device that is not there, values that are not finite, a file that cannot be written.
pub fn run(
    plan: &SamplePlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(SampleEvent),
) -> Result<SampleReport> {
    let mut report = SampleReport::new(plan);
    let model = match plan.model(interrupt) {
        Err(Error::Interrupted) => return Ok(SampleReport { outcome: Outcome::Interrupted, ..report }),
        model => model?,
    };
    let key = plan.key_of(&model)?;
    let record = record_path(&plan.output);
    let text = |picture: &PlannedPicture| picture.settings.parameters_with(&model, &picture.used).to_string();
    let made =
        |picture: &PlannedPicture| MadePicture { output: picture.output.clone(), parameters: text(picture) };
    // The record of a run that was ended has no outputs.
    if let Standing::Current(found) = key.standing(&record)?
        && found.outputs.len() == plan.pictures.len()
    {
        report.outcome = Outcome::Unchanged;
        report.pictures = plan.pictures.iter().map(made).collect();
        report.kept = plan.pictures.len();
        return Ok(report);
    }
    // What an ended run of this very plan has left.
    let is_ours =
        record.exists() && RunRecord::read(&record).is_ok_and(|found| key.difference(&found).is_none());
    let is_there = |picture: &PlannedPicture| {
        is_ours && matches!(read_parameters(&picture.output), Ok(Some(found)) if found == text(picture))
    };
    let (there, missing): (Vec<_>, Vec<_>) = plan.pictures.iter().partition(|picture| is_there(picture));
    report.kept = there.len();
    report.pictures = there.into_iter().map(made).collect();
    let init = plan.init()?;
    plan.check_upscaler()?;
    let opened = plan.model.open()?;
    plan.units().iter().try_for_each(|unit| unit.check_file(&opened.config().unet))?;
    let load = plan.load()?;
    on_event(SampleEvent::Loading);
    plan.check_memory(&opened, &load)?;
    let Some(pipeline) = Pipeline::load_unless(None, opened, &load, interrupt)? else {
        report.outcome = Outcome::Interrupted;
        return Ok(report);
    };
    let pipeline = pipeline.with_library(Arc::clone(&plan.library));
    if plan.pictures.len() > 1 && !is_ours {
        let begun = serde_json::to_string_pretty(&key.begun()).expect("records are plain data");
        write_atomic(&record, begun + "\n")?;
    }
    let batches = batches(&missing, plan.batch_size);
    for (i, batch) in batches.iter().enumerate() {
        let settings: Vec<_> = batch.iter().map(|picture| picture.settings.clone()).collect();
        let mut on_step = |done: usize, total: usize| {
            on_event(SampleEvent::Step { done: i * total + done, total: batches.len() * total });
        };
        let batch_of = Batch { settings: &settings, image: init.as_ref() };
        let Some(pictures) = pipeline.generate_batch(batch_of, interrupt, &mut on_step)? else {
            report.outcome = Outcome::Interrupted;
            return Ok(report);
        };
        if let Some(reason) = pipeline.without_graphs() {
            on_event(SampleEvent::WithoutGraphs { reason });
        }
        for (planned, picture) in batch.iter().zip(&pictures) {
            write_picture(&planned.output, picture, &text(planned))?;
            report.pictures.push(made(planned));
        }
    }
    report.pictures.sort_by_key(|made| plan.pictures.iter().position(|p| p.output == made.output));
    let outputs: Vec<&Path> = plan.pictures.iter().map(|picture| picture.output.as_path()).collect();
    key.write(&record, &outputs, &report)?;
    Ok(report)
}

/// Neighbours that can be made together.
fn batches<'a>(pictures: &[&'a PlannedPicture], size: usize) -> Vec<Vec<&'a PlannedPicture>> {
    let mut batches: Vec<Vec<&PlannedPicture>> = Vec::new();
    for picture in pictures {
        match batches.last_mut() {
            Some(batch) if batch.len() < size && Batch::fits(&batch[0].settings, &picture.settings) => {
                batch.push(picture);
            }
            _ => batches.push(vec![picture]),
        }
    }
    batches
}

impl SampleReport {
    fn new(plan: &SamplePlan) -> Self {
        Self {
            outcome: Outcome::Done,
            pictures: Vec::new(),
            kept: 0,
            not_followed: plan.not_followed.clone(),
            other_files: plan.other_files.clone(),
            skipped_embeddings: plan.skipped_embeddings.clone(),
        }
    }
}

impl Report for SampleReport {
    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

impl fmt::Display for SampleReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { outcome, pictures, kept, .. } = self;
        let names: Vec<_> = pictures.iter().map(|picture| picture.output.display().to_string()).collect();
        match (outcome, names.as_slice()) {
            (Outcome::Unchanged, [one]) => write!(f, "{one} is there already"),
            (Outcome::Unchanged, all) => write!(f, "{} pictures are there already", all.len()),
            (Outcome::Interrupted, all) => write!(f, "interrupted; {} pictures are there", all.len()),
            (Outcome::Done | Outcome::Skipped, [one]) => write!(f, "{one}"),
            (Outcome::Done | Outcome::Skipped, all) => {
                let (first, last) = (all.first().map_or("", |n| n), all.last().map_or("", |n| n));
                write!(f, "{} pictures, {first} to {last}; {kept} of them were there", all.len())
            }
        }?;
        tell_of_text(f, &self.not_followed, &self.other_files)?;
        for (path, reason) in &self.skipped_embeddings {
            write!(f, "\nno embedding: {}: {reason}", path.display())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vodka_stage::hash_bytes;

    use super::*;

    #[test]
    fn pictures_depend_on_the_arithmetic_and_models_are_hashed_once() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = dir.path().join("a.safetensors");
        fs::write(&checkpoint, "weights").unwrap();
        let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
        fs::File::options().write(true).open(&checkpoint).unwrap().set_modified(long_ago).unwrap();
        let text = format!("checkpoint = '{}'\nprompt = \"\"\noutput = \"a.png\"", checkpoint.display());
        let mut config: SampleConfig = vodka_stage::parse_toml(&text, Path::new("a.toml")).unwrap();
        let hash = |config: &SampleConfig| config.plan().unwrap().model(&Interrupt::new()).unwrap().sha256;
        let key = config.plan().unwrap().key().unwrap();
        assert_eq!(key.begun().settings["arithmetic"], ARITHMETIC);
        assert_eq!(hash(&config), hash_bytes("weights"));
        let cache = dir.path().join("hashes.json");
        config.hash_cache = Some(cache.clone());
        assert_eq!(hash(&config), hash_bytes("weights"));
        let mut known = HashCache::open(Some(&cache));
        known.remember(&checkpoint, hash_bytes("remembered"));
        known.save();
        assert_eq!(hash(&config), hash_bytes("remembered"));

        let interrupt = Interrupt::new();
        interrupt.raise();
        config.hash_cache = None;
        let report = run(&config.plan().unwrap(), &interrupt, &mut |_| {}).unwrap();
        assert_eq!((report.outcome, report.pictures.len()), (Outcome::Interrupted, 0));
    }
}
