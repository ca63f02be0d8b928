//! What a user writes: `grid.toml`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use vodka_checkpoint::Precision;
use vodka_noise::{SamplerName, ScheduleName};
use vodka_stage::{Spanned, parse_toml};

use super::{AxisType, Values};
use crate::{
    ControlConfig, Error, Hires, HiresTarget, Result, Settings, Size,
    control::units,
    sample::{default_cfg, default_clip_skip, default_device, default_steps},
};

/// `grid.toml`: checkpoints, prompts and seeds, and any further axes.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("grid.toml");
/// # std::fs::write(&path,
/// r#"
/// steps = 30
/// size = "512x768"
/// sampler = "DDIM"
/// seeds = "1-2"
///
/// [[checkpoints]]
/// label = "25 epochs"
/// path = "train/ep25.safetensors"
///
/// [[prompts]]
/// label = "sailor"
/// prompt = "a portrait of an old sailor, oil painting"
/// negative = "blurry, blurry background"
///
/// [[axes]]
/// type = "CFG Scale"
/// values = "3-9 (+3)"
/// "#
/// # )?;
/// # let mut config = vodka_sampler::GridConfig::read(&path)?;
/// # config.output = "grid".into();
/// # assert_eq!(config.plan()?.cells(), 6);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GridConfig {
    /// The models.
    #[serde(default)]
    pub checkpoints: Vec<GridCheckpoint>,
    /// The prompts.
    #[serde(default)]
    pub prompts: Vec<GridPrompt>,
    /// Each prompt is made with each of these; 0 alone where absent.
    #[serde(default)]
    pub seeds: Option<Values>,
    /// Further axes.
    #[serde(default)]
    pub axes: Vec<Spanned<GridAxis>>,
    /// Which axes lie where on the sheets.
    #[serde(default)]
    pub layout: GridLayout,
    /// How large a sheet may become.
    #[serde(default)]
    pub sheet: SheetConfig,
    /// What the checkpoints are compared with.
    #[serde(default)]
    pub judge: JudgeConfig,
    /// Steps as A1111 counts them; 20 where absent.
    #[serde(default = "default_steps")]
    pub steps: u32,
    /// The CFG scale; 7 where absent.
    #[serde(default = "default_cfg")]
    pub cfg: f64,
    /// The size of each picture; 512x512 where absent.
    #[serde(default)]
    pub size: Size,
    /// The sampler; Euler where absent.
    #[serde(default)]
    pub sampler: SamplerName,
    /// The schedule; Automatic where absent.
    #[serde(default)]
    pub schedule: ScheduleName,
    /// The layer of the text encoder, counted from the end; 1, the last, where absent.
    #[serde(default = "default_clip_skip")]
    pub clip_skip: u32,
    /// A second pass over each picture, larger; none where absent.
    #[serde(default)]
    pub hires: Option<GridHires>,
    /// The ControlNets, each with its picture.
    #[serde(default)]
    pub control: Vec<ControlConfig>,
    /// Another file or folder with a VAE; the checkpoint's own where absent.
    #[serde(default)]
    pub vae: Option<PathBuf>,
    /// What text encoder and UNet compute in; fp32 where absent.
    #[serde(default = "default_precision")]
    pub precision: Precision,
    /// What the VAE computes in; fp32 where absent.
    #[serde(default = "default_precision")]
    pub vae_precision: Precision,
    /// The folder with the LoRA files that prompts name.
    #[serde(default)]
    pub lora_dir: Option<PathBuf>,
    /// The folder with the embeddings that prompts name.
    #[serde(default)]
    pub embedding_dir: Option<PathBuf>,
    /// `cpu`, `cuda` or `cuda:N`; `cpu` where absent.
    #[serde(default = "default_device")]
    pub device: String,
    /// The folder to fill; not part of `grid.toml`.
    #[serde(skip)]
    pub output: PathBuf,
    /// The folder that keeps the cells, for this grid and others; `cells` in the output where absent; not part of
    /// `grid.toml`.
    #[serde(skip)]
    pub store: Option<PathBuf>,
    /// Take cells that are not of this grid out of the store; not part of `grid.toml`.
    #[serde(skip)]
    pub prune: bool,
    /// The file that remembers the hashes of models; none to hash them every time; not part of `grid.toml`.
    #[serde(skip)]
    pub hash_cache: Option<PathBuf>,
    /// Where `cargo xtask setup` put libtorch; not part of `grid.toml`.
    #[serde(skip)]
    pub runtime_dir: PathBuf,
}

fn default_precision() -> Precision {
    Precision::F32
}

/// A model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GridCheckpoint {
    /// What stands at it; the file's name where absent.
    #[serde(default)]
    pub label: Option<String>,
    /// A single-file checkpoint, a diffusers folder, or a merge recipe: `recipe.toml`, or `recipe.toml#OUTPUT`.
    pub path: PathBuf,
    /// Of a merge: weights that go before those of the recipe, `multiplier` or `step.multiplier`; several values make
    /// several models.
    #[serde(default)]
    pub weights: BTreeMap<String, Values>,
}

impl GridCheckpoint {
    /// A model as it is.
    pub fn new(label: Option<String>, path: impl Into<PathBuf>) -> Self {
        Self { label, path: path.into(), weights: BTreeMap::new() }
    }
}

/// A prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GridPrompt {
    /// What stands beside it; the prompts where absent.
    #[serde(default)]
    pub label: Option<String>,
    /// What it is to test: tables have medians of each category.
    #[serde(default)]
    pub category: Option<String>,
    /// What the picture is to show.
    pub prompt: String,
    /// What it is not to show.
    #[serde(default)]
    pub negative: String,
}

/// `[[axes]]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GridAxis {
    /// What it changes, as A1111's X/Y/Z plot calls it.
    #[serde(rename = "type")]
    pub kind: AxisType,
    /// Its values, in the syntax of that plot, or as a list.
    pub values: Values,
    /// What stands at the values; the values where absent.
    #[serde(default)]
    pub labels: Option<Vec<String>>,
    /// Its name; the type where absent. Two axes of one type need one.
    #[serde(default)]
    pub name: Option<String>,
    /// For `LoRA weight`: the LoRA, as the prompt names it.
    #[serde(default)]
    pub lora: Option<String>,
    /// For an axis of a ControlNet: the number of its `[[control]]`; 0, the first, where absent.
    #[serde(default)]
    pub unit: Option<usize>,
    /// Its line in `grid.toml`.
    #[serde(skip)]
    pub line: Option<usize>,
}

impl GridAxis {
    /// An axis that no file has.
    pub fn new(kind: AxisType, values: Values) -> Self {
        Self { kind, values, labels: None, name: None, lora: None, unit: None, line: None }
    }

    /// Tells axes their lines in the text that they were read from.
    pub fn number_lines(axes: &mut [Spanned<Self>], text: &str) {
        for axis in axes {
            axis.get_mut().line = Some(text[..axis.span().start].matches('\n').count() + 1);
        }
    }

    /// The values that are paths of files.
    pub fn paths_mut(&mut self) -> impl Iterator<Item = &mut String> {
        let kind = self.kind;
        self.values.texts_mut().iter_mut().filter(move |text| kind.is_path(text))
    }
}

/// `[hires]`: what is not said is as [`Hires`] has it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GridHires {
    /// How many times as wide and as high the picture becomes.
    pub scale: Option<f64>,
    /// Its size instead; a side of 0 is the one that fits the other.
    pub size: Option<Size>,
    /// What makes it larger: a name as A1111 has it, or a file.
    pub upscaler: Option<String>,
    /// How much of the larger picture is given up, 0 to 1.
    pub denoising: Option<f64>,
    /// Steps; as many as the first pass has where absent.
    pub steps: Option<u32>,
    /// The sampler; the first pass's where absent.
    pub sampler: Option<SamplerName>,
    /// The schedule; the first pass's where absent.
    pub schedule: Option<ScheduleName>,
}

impl GridHires {
    fn settings(&self) -> Result<Hires> {
        let base = Hires::default();
        let upscaler = match &self.upscaler {
            Some(text) => {
                let Ok(upscaler) = text.parse();
                upscaler
            }
            None => base.upscaler,
        };
        Ok(Hires {
            target: HiresTarget::of(self.scale, self.size)?.unwrap_or(base.target),
            upscaler_hash: upscaler.hash()?,
            upscaler,
            denoising_strength: self.denoising.unwrap_or(base.denoising_strength),
            steps: self.steps.unwrap_or(base.steps),
            sampler: self.sampler,
            schedule: self.schedule,
            ..base
        })
    }
}

/// `[layout]`: axes by their names or types. What is in neither list makes a sheet for each of its values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GridLayout {
    /// From left to right; the last changes fastest. Default: the checkpoints, or the first of `axes` where there is one
    /// checkpoint.
    #[serde(default)]
    pub columns: Option<Vec<String>>,
    /// From the top. Default: prompts and seeds.
    #[serde(default)]
    pub rows: Option<Vec<String>>,
}

/// `[sheet]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SheetConfig {
    /// The longest side in pixels. Default: 32767, beyond which many viewers show nothing.
    pub max_side_px: u32,
    /// The largest area in megapixels. Default: 89, beyond which Pillow warns of a bomb.
    pub max_megapixels: f64,
    /// What happens to a sheet that would be larger. Default: `split`.
    pub too_large: TooLarge,
}

/// `[judge]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JudgeConfig {
    /// The label of the checkpoint that the others are compared with. Default: the first.
    pub against: Option<String>,
    /// The seed of the intervals. Default: 0.
    pub seed: u64,
}

/// What happens to a sheet that would be too large.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TooLarge {
    /// It becomes several.
    #[default]
    Split,
    /// Its cells are shown smaller.
    Scale,
}

impl Default for SheetConfig {
    fn default() -> Self {
        Self { max_side_px: 32767, max_megapixels: 89.0, too_large: TooLarge::Split }
    }
}

impl GridConfig {
    /// Reads `grid.toml`; relative paths in it start at the current folder.
    ///
    /// # Errors
    /// An unknown key, with its line and the nearest known one; a wrong value.
    pub fn read(path: &Path) -> Result<Self> {
        let read = |source| vodka_stage::ConfigError::Read { path: path.to_path_buf(), source };
        let text = fs::read_to_string(path).map_err(read)?;
        let mut config: Self = parse_toml(&text, path)?;
        GridAxis::number_lines(&mut config.axes, &text);
        Ok(config)
    }

    /// The settings that all cells share.
    ///
    /// # Errors
    /// A hires pass of two sizes, or an upscaler or a ControlNet that cannot be read.
    pub(super) fn settings(&self) -> Result<Settings> {
        Ok(Settings {
            steps: self.steps,
            cfg_scale: self.cfg,
            size: self.size,
            sampler: self.sampler,
            schedule: self.schedule,
            clip_skip: self.clip_skip,
            hires: self.hires.as_ref().map(GridHires::settings).transpose()?,
            controls: units(&self.control, &[], None)?,
            ..Settings::default()
        })
    }
}

impl SheetConfig {
    /// # Errors
    /// Limits within which there is no sheet.
    pub(super) fn check(&self) -> Result<()> {
        match self.max_side_px >= 256 && self.max_megapixels >= 0.1 {
            true => Ok(()),
            false => Err(Error::SheetLimits { side_px: self.max_side_px, megapixels: self.max_megapixels }),
        }
    }
}

impl GridPrompt {
    /// A prompt alone.
    pub fn new(prompt: impl Into<String>, negative: impl Into<String>) -> Self {
        Self { label: None, category: None, prompt: prompt.into(), negative: negative.into() }
    }

    pub(super) fn shown(&self) -> String {
        let negative = Some(&self.negative).filter(|text| !text.is_empty());
        let both = || match negative {
            Some(negative) => format!("{}\nnot: {negative}", self.prompt),
            None => self.prompt.clone(),
        };
        self.label.clone().unwrap_or_else(both)
    }
}
