//! The stage that makes one picture.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tch::Kind;
use vodka_noise::{RandomSource, SamplerName, ScheduleName};
use vodka_prompt::Parameters;
use vodka_sd15::{check_device_name, device_type, parse_device};
use vodka_stage::{Interrupt, Outcome, Report, RunKey, Standing, record_path};

use crate::{Error, ModelId, ModelSource, Pipeline, Result, Settings, Size, png::read_parameters, write_png};

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
    /// `cpu`, `cuda` or `cuda:N`; `cpu` where absent.
    #[serde(default = "default_device")]
    pub device: String,
    /// The picture, a PNG file.
    pub output: PathBuf,
    /// Where `cargo xtask setup` put libtorch.
    #[serde(skip)]
    pub runtime_dir: PathBuf,
    /// The file that remembers hashes of a merge's parents; none to hash them every time.
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
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SamplePlan {
    /// The checkpoint, or the merge.
    pub model: ModelSource,
    /// Prompts and numbers.
    pub settings: Settings,
    /// The device's name.
    pub device: String,
    /// The picture.
    pub output: PathBuf,
    /// Where libtorch is.
    #[serde(skip)]
    pub runtime_dir: PathBuf,
}

/// How far the stage is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SampleEvent {
    /// The checkpoint is being loaded.
    Loading,
    /// A call of the UNet is through.
    Step {
        /// The calls made.
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
    /// The picture.
    pub output: PathBuf,
    /// The picture's `parameters` text.
    pub parameters: String,
}

impl SampleConfig {
    /// Checks the settings and reads the recipe, if it is one; no checkpoint is opened.
    pub fn plan(&self) -> Result<SamplePlan> {
        let base = self.from.as_deref().map_or(Ok(Settings::default()), settings_of)?;
        let settings = Settings {
            prompt: self.prompt.clone().unwrap_or(base.prompt),
            negative_prompt: self.negative.clone().unwrap_or(base.negative_prompt),
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
        };
        settings.check()?;
        check_device_name(&self.device)?;
        if self.output.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("png")) {
            return Err(Error::OutputName { path: self.output.clone() });
        }
        let weight = |(name, text): (&String, &String)| Ok((name.clone(), text.parse()?));
        let weights = self.weights.iter().map(weight).collect::<Result<Vec<_>>>()?;
        let model = ModelSource::read(&self.checkpoint, &weights)?.with_hash_cache(self.hash_cache.clone());
        Ok(SamplePlan {
            model,
            settings,
            device: self.device.clone(),
            output: self.output.clone(),
            runtime_dir: self.runtime_dir.clone(),
        })
    }
}

/// The settings that a picture's text states.
fn settings_of(path: &Path) -> Result<Settings> {
    let text = read_parameters(path)?.ok_or_else(|| Error::NoParameters { path: path.to_path_buf() })?;
    let Ok(parameters) = text.parse::<Parameters>();
    Settings::from_parameters(&parameters)
}

impl SamplePlan {
    /// All that the picture depends on.
    pub fn key(&self) -> Result<RunKey> {
        Ok(self.key_of(&self.model.id()?))
    }

    fn key_of(&self, model: &ModelId) -> RunKey {
        #[derive(Serialize)]
        struct Key<'a> {
            model: &'a str,
            device: &'a str,
            settings: &'a Settings,
        }
        let key = Key { model: &model.name, device: device_type(&self.device), settings: &self.settings };
        model.add_to(RunKey::new("sample", &key, Some(self.settings.seed.into())), "checkpoint")
    }
}

/// Makes the picture, unless it is there.
///
/// # Errors
/// A checkpoint that is no model, a device that is not there, values that are not finite, a file that cannot be written.
pub fn run(
    plan: &SamplePlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(SampleEvent),
) -> Result<SampleReport> {
    let model = plan.model.id()?;
    let key = plan.key_of(&model);
    let record = record_path(&plan.output);
    let parameters = plan.settings.parameters(&model).to_string();
    let report =
        |outcome| SampleReport { outcome, output: plan.output.clone(), parameters: parameters.clone() };
    if let Standing::Current(_) = key.standing(&record)? {
        return Ok(report(Outcome::Unchanged));
    }
    let device = parse_device(&plan.device, &plan.runtime_dir)?;
    on_event(SampleEvent::Loading);
    let pipeline = Pipeline::load(plan.model.open()?, device, Kind::Float)?;
    let mut on_step = |done, total| on_event(SampleEvent::Step { done, total });
    let Some(picture) = pipeline.generate(&plan.settings, interrupt, &mut on_step)? else {
        return Ok(report(Outcome::Interrupted));
    };
    write_png(&plan.output, &picture, &parameters)?;
    let report = report(Outcome::Done);
    key.write(&record, &[Path::new(&plan.output)], &report)?;
    Ok(report)
}

impl Report for SampleReport {
    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

impl fmt::Display for SampleReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let output = self.output.display();
        match self.outcome {
            Outcome::Unchanged => write!(f, "{output} is there already"),
            Outcome::Interrupted => write!(f, "{output} was not made"),
            Outcome::Done | Outcome::Skipped => write!(f, "{output}"),
        }
    }
}
