//! From one form of a checkpoint to another: format, precision, EMA, VAE.
//!
//! What can stay as it is does: without a precision every tensor keeps its type and its bits. What is dropped, and
//! what does not fit the precision, is in the report.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use vodka_stage::{Interrupt, Outcome, Report, RunKey, RunRecord, hash_tree_until, lossy, record_path};

use crate::{
    Architecture, Checkpoint, Dtype, Ema, Error, LoraNames, ModelConfig, Part, Precision, Result,
    SafetensorsWriter, TensorSpec, TensorView, config_entry, diffusers_write::DiffusersWriter, in_file_order,
    keys, lora_convert, position_ids, position_ids_name, same_file, torch_write::TorchWriter, write::CHUNK,
};

/// The form to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A single `.safetensors` file.
    Safetensors,
    /// What `torch.save` writes: a zip archive.
    Ckpt,
    /// A diffusers folder.
    Diffusers,
}

impl Target {
    /// The form that a name asks for: `.safetensors`; `.ckpt`, `.pt`, `.pth` and `.bin`; a folder where there is no such
    /// ending.
    pub fn of(path: &Path) -> Self {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("safetensors") => Self::Safetensors,
            Some("ckpt" | "pt" | "pth" | "bin") => Self::Ckpt,
            _ => Self::Diffusers,
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "safetensors" => Ok(Self::Safetensors),
            "ckpt" => Ok(Self::Ckpt),
            "diffusers" => Ok(Self::Diffusers),
            _ => Err(format!("expected safetensors, ckpt or diffusers, found `{text}`")),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "safetensors",
            Self::Ckpt => "ckpt",
            Self::Diffusers => "diffusers folder",
        })
    }
}

/// Where the VAE of the result comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Vae {
    /// From the input, if it has one.
    Keep,
    /// From this file or folder ([`Checkpoint::open_vae`]): "baked in".
    Bake(PathBuf),
    /// The result has none.
    Drop,
}

/// A conversion as a user asks for it.
#[derive(Debug, Clone, PartialEq)]
pub struct ConvertConfig {
    /// A checkpoint or VAE in any form, or a LoRA.
    pub input: PathBuf,
    /// The file or folder to write.
    pub output: PathBuf,
    /// The form; where absent, what the output's name asks for.
    pub target: Option<Target>,
    /// The element type of the weights; where absent, each tensor keeps its own.
    pub precision: Option<Precision>,
    /// Whether to take the UNet from the EMA copy.
    pub use_ema: bool,
    /// Whether to drop all that is no weight: the EMA copy, the noise schedule, a loss.
    pub prune: bool,
    /// Where the VAE comes from.
    pub vae: Vae,
    /// Whose names a LoRA gets; where absent, it keeps its own.
    pub names: Option<LoraNames>,
    /// Whether to replace an output that is there.
    pub overwrite: bool,
}

/// A conversion whose settings have been checked; the input has not been opened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConvertPlan {
    /// The checkpoint, VAE or LoRA.
    pub input: PathBuf,
    /// The file or folder to write.
    pub output: PathBuf,
    /// The form to write.
    pub target: Target,
    /// The element type of the weights, if all are to have one.
    pub precision: Option<Precision>,
    /// Whether to take the UNet from the EMA copy.
    pub use_ema: bool,
    /// Whether to drop all that is no weight.
    pub prune: bool,
    /// Where the VAE comes from.
    pub vae: Vae,
    /// Whose names a LoRA gets, if not its own.
    pub names: Option<LoraNames>,
    /// Whether to replace an output that is there.
    pub overwrite: bool,
}

impl ConvertConfig {
    /// A conversion that keeps what the output's form can hold, as it is.
    pub fn new(input: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        Self {
            input: input.into(),
            output: output.into(),
            target: None,
            precision: None,
            use_ema: false,
            prune: false,
            vae: Vae::Keep,
            names: None,
            overwrite: false,
        }
    }

    /// Checks what can be checked without opening the input.
    ///
    /// # Errors
    /// An output that is the input or the VAE, or a folder that holds one of them, or that is there already; a folder
    /// without VAE.
    pub fn plan(&self) -> Result<ConvertPlan> {
        let target = self.target.unwrap_or_else(|| Target::of(&self.output));
        let baked = match &self.vae {
            Vae::Bake(path) => Some(path),
            _ => None,
        };
        let path = self.output.clone();
        // A folder is replaced with all that is in it.
        if [Some(&self.input), baked].into_iter().flatten().any(|input| is_within(input, &path)) {
            return Err(Error::OutputIsInput { path });
        }
        // A folder is replaced as a whole: only one that can be a model is worth the risk.
        let is_model = |path: &Path| path.join("unet").is_dir() || path.join("model_index.json").is_file();
        if path.is_dir() != (target == Target::Diffusers) && path.exists()
            || path.is_dir() && !is_model(&path)
        {
            return Err(Error::Exists { path });
        }
        if target == Target::Diffusers && self.vae == Vae::Drop {
            return Err(Error::NoPart { path, part: Part::Vae });
        }
        let plan = ConvertPlan {
            input: self.input.clone(),
            output: path,
            target,
            precision: self.precision,
            use_ema: self.use_ema,
            prune: self.prune,
            vae: self.vae.clone(),
            names: self.names,
            overwrite: self.overwrite,
        };
        // Whether what is there is of this very input, only a run finds out.
        let may_be_ours = || {
            let found = RunRecord::read(&record_path(&plan.output));
            found.is_ok_and(|found| found.settings == plan.settings() && found.stage == STAGE)
        };
        if plan.output.exists() && !plan.overwrite && !may_be_ours() {
            return Err(Error::Exists { path: plan.output });
        }
        Ok(plan)
    }
}

/// What run records call this stage.
const STAGE: &str = "convert";

impl ConvertPlan {
    /// All that the output depends on but the inputs.
    fn settings(&self) -> serde_json::Value {
        let vae = match self.vae {
            Vae::Keep => "keep",
            Vae::Bake(_) => "bake",
            Vae::Drop => "drop",
        };
        let Self { target, precision, use_ema, prune, names, .. } = self;
        json!({"target": target, "precision": precision, "use_ema": use_ema, "prune": prune, "vae": vae,
            "names": names})
    }

    /// All that the output depends on; hashes the inputs.
    ///
    /// # Errors
    /// An input that cannot be read.
    pub fn key(&self) -> Result<RunKey> {
        Ok(self.key_until(&Interrupt::new())?.expect("nobody has interrupted it"))
    }

    /// None where it was interrupted.
    fn key_until(&self, interrupt: &Interrupt) -> Result<Option<RunKey>> {
        let mut key = RunKey::new(STAGE, &self.settings(), None);
        let vae = match &self.vae {
            Vae::Bake(path) => Some(("vae", path)),
            Vae::Keep | Vae::Drop => None,
        };
        for (name, path) in [("input", &self.input)].into_iter().chain(vae) {
            let Some(hash) = hash_tree_until(path, |_| true, interrupt)? else { return Ok(None) };
            key = key.input_hashed(name, path, hash);
        }
        Ok(Some(key))
    }
}

/// Whether a path leads to the output, or into it.
fn is_within(input: &Path, output: &Path) -> bool {
    let inside = || match (fs::canonicalize(input), fs::canonicalize(output)) {
        (Ok(input), Ok(output)) => input.starts_with(output),
        _ => false,
    };
    same_file(input, output) || inside()
}

/// A tensor of which the new precision cannot hold all values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Overflow {
    /// Its LDM name.
    pub tensor: String,
    /// How many of its values became infinite.
    pub values: u64,
    /// The largest magnitude among them.
    pub largest: f32,
}

/// What became of `position_ids`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionIds {
    /// The form has none.
    None,
    /// They are what they should be: int64, 0, 1, 2, ...
    Right,
    /// The input had none.
    Added,
    /// Those of the input were of another type, or damaged by averaging or rounding.
    Repaired,
}

/// What a conversion has done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConvertReport {
    /// How it ended: [`Outcome::Skipped`] where values did not fit the precision. Of one that is there already the report's
    /// [`Report::outcome`] still says so.
    pub outcome: Outcome,
    /// The file or folder.
    #[serde(serialize_with = "lossy")]
    pub output: PathBuf,
    /// Its form.
    pub target: Target,
    /// How many tensors it holds.
    pub tensors: u64,
    /// How many bytes its tensors have.
    pub bytes: u64,
    /// How many of its tensors changed their type.
    pub converted: u64,
    /// Of a LoRA, how many tensors a scale was worked into.
    pub scaled: u64,
    /// Tensors of the input that are not in it, by name.
    pub dropped: Vec<String>,
    /// Bytes of these.
    pub dropped_bytes: u64,
    /// Entries of the input's metadata that are not in it.
    pub dropped_metadata: Vec<String>,
    /// What a pickle held beside tensors: never kept.
    pub left_over: Vec<String>,
    /// What became of `position_ids`.
    pub position_ids: PositionIds,
    /// Values that became infinite.
    pub overflowed: Vec<Overflow>,
    /// Values that were NaN or infinite already, in all.
    pub not_finite: u64,
}

impl ConvertReport {
    /// Of a conversion that has done nothing yet.
    pub(crate) fn new(plan: &ConvertPlan) -> Self {
        Self {
            outcome: Outcome::Done,
            output: plan.output.clone(),
            target: plan.target,
            tensors: 0,
            bytes: 0,
            converted: 0,
            scaled: 0,
            dropped: Vec::new(),
            dropped_bytes: 0,
            dropped_metadata: Vec::new(),
            left_over: Vec::new(),
            position_ids: PositionIds::None,
            overflowed: Vec::new(),
            not_finite: 0,
        }
    }
}

impl Report for ConvertReport {
    fn outcome(&self) -> Outcome {
        self.outcome.with_skips(!self.overflowed.is_empty())
    }
}

impl ConvertReport {
    /// What the result lacks of the input's values, whenever it was made.
    fn losses(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.not_finite > 0 {
            write!(f, "\nthe input holds {} values that are NaN or infinite", self.not_finite)?;
        }
        for Overflow { tensor, values, largest } in &self.overflowed {
            write!(f, "\n`{tensor}`: {values} values became infinite, the largest was {largest}")?;
        }
        Ok(())
    }
}

impl fmt::Display for ConvertReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (output, target) = (self.output.display(), self.target);
        if self.outcome == Outcome::Interrupted {
            return write!(f, "stopped; `{output}` is as it was");
        }
        if self.outcome == Outcome::Unchanged {
            write!(f, "`{output}` is up to date")?;
            return self.losses(f);
        }
        write!(
            f,
            "wrote {} tensors ({:.2} GB) to `{output}` ({target})",
            self.tensors,
            self.bytes as f64 / 1e9
        )?;
        if self.converted > 0 {
            write!(f, "; {} changed their type", self.converted)?;
        }
        if self.scaled > 0 {
            write!(f, "; scales (alpha / rank) are worked into {} of them", self.scaled)?;
        }
        if !self.dropped.is_empty() {
            let gigabytes = self.dropped_bytes as f64 / 1e9;
            write!(
                f,
                "\ndropped {} tensors ({gigabytes:.2} GB): {}",
                self.dropped.len(),
                some(&self.dropped)
            )?;
        }
        if !self.dropped_metadata.is_empty() {
            write!(f, "\ndropped metadata: {}", some(&self.dropped_metadata))?;
        }
        if !self.left_over.is_empty() {
            write!(f, "\nleft out, for it is no tensor: {}", some(&self.left_over))?;
        }
        if self.position_ids == PositionIds::Repaired {
            write!(f, "\nposition_ids were damaged and have been repaired")?;
        }
        self.losses(f)
    }
}

/// The first few of a list.
fn some(items: &[String]) -> String {
    const SHOWN: usize = 5;
    let mut text = items.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if items.len() > SHOWN {
        text += ", ...";
    }
    text
}

/// What a conversion tells while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConvertEvent {
    /// This many bytes will be written.
    Started {
        /// How many.
        bytes: u64,
    },
    /// This many have been so far.
    Written {
        /// How many.
        bytes: u64,
    },
}

/// Where a tensor of the result comes from.
enum Source {
    Model(String),
    Baked(String),
    Extra(String),
    PositionIds,
}

/// A tensor of the result, under its name in the file; in a folder, under its LDM name.
struct Item {
    spec: TensorSpec,
    source: Source,
}

/// The open input, and what is made of it.
struct Work {
    input: Checkpoint,
    baked: Option<Checkpoint>,
    config: ModelConfig,
    metadata: BTreeMap<String, String>,
    items: Vec<Item>,
    report: ConvertReport,
}

/// Converts, unless the output is there and of this very input. `<output>.run.json` says what made it.
///
/// # Errors
/// An output that is there, made by something else and not to be replaced; an input that cannot be read or is no checkpoint or VAE; one that lacks what a folder needs, or an EMA copy that is
/// asked for; a VAE that does not fit; an output that cannot be written. Nothing is left behind.
pub fn run(
    plan: &ConvertPlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(ConvertEvent),
) -> Result<ConvertReport> {
    // What cannot be converted is told before anything is hashed.
    let work = if lora_convert::is_lora(&plan.input) { None } else { Some(open(plan)?) };
    let Some(key) = plan.key_until(interrupt)? else {
        return Ok(ConvertReport { outcome: Outcome::Interrupted, ..ConvertReport::new(plan) });
    };
    let record = record_path(&plan.output);
    if let Some(report) = key.made::<ConvertReport>(&record)? {
        return Ok(ConvertReport { outcome: Outcome::Unchanged, output: plan.output.clone(), ..report });
    }
    if plan.output.exists() && !plan.overwrite {
        return Err(Error::Exists { path: plan.output.clone() });
    }
    let report = match work {
        None => lora_convert::run(plan, interrupt, on_event)?,
        Some(work) => write(plan, work, interrupt, on_event)?,
    };
    if report.outcome != Outcome::Interrupted {
        key.write(&record, &[&plan.output], &report)?;
    }
    Ok(report)
}

fn write(
    plan: &ConvertPlan,
    mut work: Work,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(ConvertEvent),
) -> Result<ConvertReport> {
    let total = work.items.iter().map(|item| item.spec.bytes()).sum();
    (work.report.tensors, work.report.bytes) = (work.items.len() as u64, total);
    on_event(ConvertEvent::Started { bytes: total });
    let mut output = Output::create(plan, &work)?;
    let mut written = 0;
    for (index, item) in work.items.iter().enumerate() {
        if interrupt.is_raised() {
            work.report.outcome = Outcome::Interrupted;
            return Ok(work.report);
        }
        let view = work.view(item)?;
        output.start(index, &item.spec)?;
        let mut write = |start: u64, bytes: &[u8]| {
            output.write(index, &item.spec, start, bytes)?;
            written += bytes.len() as u64;
            on_event(ConvertEvent::Written { bytes: written });
            Ok(())
        };
        let loss = copy(&view, item.spec.dtype, &mut write)?;
        work.report.converted += u64::from(view.dtype != item.spec.dtype);
        work.report.not_finite += loss.not_finite;
        if loss.overflowed > 0 {
            let (tensor, values, largest) = (item.spec.name.clone(), loss.overflowed, loss.largest);
            work.report.overflowed.push(Overflow { tensor, values, largest });
        }
    }
    output.commit()?;
    if !work.report.overflowed.is_empty() {
        work.report.outcome = Outcome::Skipped;
    }
    Ok(work.report)
}

fn open(plan: &ConvertPlan) -> Result<Work> {
    let opened = match plan.use_ema {
        true => Checkpoint::open_ema(&plan.input),
        false => Checkpoint::open(&plan.input),
    };
    let input = match opened {
        Ok(_) if plan.names.is_some() => {
            return Err(Error::NotLora { path: plan.input.clone(), found: Architecture::StableDiffusion1 });
        }
        Err(Error::Architecture { found: Architecture::Vae, .. }) => Checkpoint::open_vae(&plan.input)?,
        Err(Error::Read { path, .. }) if is_vae_folder(&plan.input) && path != plan.input => {
            Checkpoint::open_vae(&plan.input)?
        }
        opened => opened?,
    };
    let baked = match &plan.vae {
        Vae::Bake(path) => Some(bake(&input, path)?),
        _ => None,
    };
    let mut config = input.config().clone();
    if let Some(baked) = &baked {
        config.vae = baked.config().vae.clone();
    }
    let is_whole = input.has(Part::Unet);
    if plan.target == Target::Diffusers {
        // Whatever is missing or has no place: a folder has exactly these tensors.
        match &baked {
            Some(_) => input.check_names_of(&[Part::Unet, Part::TextEncoder])?,
            None => input.check_names()?,
        }
    }
    let mut metadata =
        if plan.target == Target::Diffusers { BTreeMap::new() } else { input.metadata().clone() };
    let mut dropped_metadata: Vec<_> =
        input.metadata().keys().filter(|key| !metadata.contains_key(*key)).cloned().collect();
    // The hash of other bytes.
    if metadata.remove("modelspec.hash_sha256").is_some() {
        dropped_metadata.push("modelspec.hash_sha256".to_owned());
    }
    if is_whole {
        metadata.extend([config_entry(&config)]);
    }
    let left_over = input.left_over().map(ToOwned::to_owned).collect();
    let report = ConvertReport { dropped_metadata, left_over, ..ConvertReport::new(plan) };
    let mut work = Work { input, baked, config, metadata, items: Vec::new(), report };
    work.choose(plan)?;
    Ok(work)
}

fn is_vae_folder(path: &Path) -> bool {
    path.is_dir() && path.join("config.json").is_file() && !path.join("unet").exists()
}

/// Opens the VAE to bake in and checks that it fits.
fn bake(input: &Checkpoint, path: &Path) -> Result<Checkpoint> {
    let baked = Checkpoint::open_vae_like(path, &input.config().vae)?;
    baked.check_vae()?;
    let (left, right) = (input.config().vae.latent_channels, baked.config().vae.latent_channels);
    if !input.has(Part::Unet) {
        return Err(Error::NoPart { path: input.path().to_path_buf(), part: Part::Unet });
    }
    if left != right {
        let disagree = Error::Disagree { what: "the latents of the checkpoint and of the VAE", left, right };
        return Err(Error::Impossible { path: path.to_path_buf(), source: Box::new(disagree) });
    }
    Ok(baked)
}

impl Work {
    /// Decides which tensors the result has.
    fn choose(&mut self, plan: &ConvertPlan) -> Result<()> {
        let alone = !self.input.has(Part::Unet);
        let drop_vae = plan.vae != Vae::Keep && !alone;
        let mut items = Vec::new();
        for (name, info) in self.input.infos() {
            if drop_vae && name.starts_with(keys::VAE_PREFIX) {
                if plan.vae == Vae::Drop {
                    self.report.dropped.push(name.to_owned());
                    self.report.dropped_bytes += info.bytes();
                }
                continue;
            }
            // VAEs alone have no prefix, in the files of A1111's users and for diffusers.
            let own = name.strip_prefix(keys::VAE_PREFIX).filter(|_| alone).unwrap_or(name);
            let dtype = plan.precision.map_or(info.dtype, Precision::dtype);
            let spec = TensorSpec { name: own.to_owned(), dtype, shape: info.shape };
            items.push(Item { spec, source: Source::Model(name.to_owned()) });
        }
        for (name, info) in self.baked.iter().flat_map(Checkpoint::infos) {
            let dtype = plan.precision.map_or(info.dtype, Precision::dtype);
            let spec = TensorSpec { name: name.to_owned(), dtype, shape: info.shape };
            items.push(Item { spec, source: Source::Baked(name.to_owned()) });
        }
        self.items = items;
        self.choose_extras(plan)?;
        self.choose_position_ids(plan)?;
        if plan.target == Target::Safetensors {
            let mut specs: Vec<_> = self.items.iter().map(|item| item.spec.clone()).collect();
            in_file_order(&mut specs);
            let order: BTreeMap<_, _> =
                specs.into_iter().enumerate().map(|(i, spec)| (spec.name, i)).collect();
            self.items.sort_by_key(|item| order[&item.spec.name]);
        }
        Ok(())
    }

    /// The EMA copy and what else is no weight: kept where the form has a place for it, unless it is pruned.
    fn choose_extras(&mut self, plan: &ConvertPlan) -> Result<()> {
        let keep = !plan.prune && plan.target != Target::Diffusers;
        for (name, _) in self.input.extras() {
            let is_ema = name.starts_with("model_ema.");
            let is_vae = name.starts_with(keys::VAE_PREFIX);
            if is_position_ids(name) {
                continue;
            }
            let info = self.input.extra_info(name);
            let became_unet = is_ema && matches!(self.input.ema(), Ema::Used | Ema::Only);
            if !keep || became_unet || is_vae && plan.vae != Vae::Keep {
                if !became_unet {
                    self.report.dropped.push(name.to_owned());
                    self.report.dropped_bytes += info.map_or(0, |info| info.bytes());
                }
                continue;
            }
            let info = info?;
            let dtype = match plan.precision {
                Some(precision) if is_ema && info.dtype.is_float() && info.numel() > 1 => precision.dtype(),
                _ => info.dtype,
            };
            let spec = TensorSpec { name: name.to_owned(), dtype, shape: info.shape };
            self.items.push(Item { spec, source: Source::Extra(name.to_owned()) });
        }
        Ok(())
    }

    fn choose_position_ids(&mut self, plan: &ConvertPlan) -> Result<()> {
        if plan.target == Target::Diffusers || !self.input.has(Part::TextEncoder) {
            return Ok(());
        }
        let positions = self.config.clip.max_positions;
        self.report.position_ids = check_position_ids(&self.input)?.unwrap_or(PositionIds::Added);
        let spec =
            TensorSpec { name: position_ids_name(), dtype: Dtype::I64, shape: vec![1, positions as usize] };
        self.items.push(Item { spec, source: Source::PositionIds });
        Ok(())
    }

    fn view(&self, item: &Item) -> Result<TensorView<'_>> {
        match &item.source {
            Source::Model(name) => self.input.tensor(name),
            Source::Baked(name) => self.baked.as_ref().expect("it was chosen from it").tensor(name),
            Source::Extra(name) => self.input.extra(name),
            Source::PositionIds => {
                let data = position_ids(self.config.clip.max_positions).into();
                Ok(TensorView { dtype: Dtype::I64, shape: item.spec.shape.clone(), data })
            }
        }
    }
}

pub(crate) fn is_position_ids(name: &str) -> bool {
    name.ends_with("embeddings.position_ids")
}

/// Whether a checkpoint's `position_ids` are what they should be; none where it has none.
pub(crate) fn check_position_ids(checkpoint: &Checkpoint) -> Result<Option<PositionIds>> {
    let Some((name, _)) = checkpoint.extras().find(|(name, _)| is_position_ids(name)) else {
        return Ok(None);
    };
    let Ok(view) = checkpoint.extra(name) else { return Ok(Some(PositionIds::Repaired)) };
    let right =
        view.dtype == Dtype::I64 && *view.data == position_ids(checkpoint.config().clip.max_positions);
    Ok(Some(if right { PositionIds::Right } else { PositionIds::Repaired }))
}

/// The file or folder being written.
enum Output {
    Safetensors(SafetensorsWriter),
    Ckpt(Box<TorchWriter>),
    Diffusers(DiffusersWriter),
}

impl Output {
    fn create(plan: &ConvertPlan, work: &Work) -> Result<Self> {
        let specs: Vec<_> = work.items.iter().map(|item| item.spec.clone()).collect();
        let path = &plan.output;
        Ok(match plan.target {
            Target::Safetensors => Self::Safetensors(SafetensorsWriter::create(path, specs, &work.metadata)?),
            Target::Ckpt => Self::Ckpt(Box::new(TorchWriter::create(path, &specs, &work.metadata)?)),
            Target::Diffusers => Self::Diffusers(DiffusersWriter::create(path, &specs, &work.config)?),
        })
    }

    fn start(&mut self, index: usize, spec: &TensorSpec) -> Result<()> {
        match self {
            Self::Ckpt(writer) => writer.start(index, spec),
            Self::Safetensors(_) | Self::Diffusers(_) => Ok(()),
        }
    }

    /// Parts of one tensor come in their order.
    fn write(&mut self, index: usize, spec: &TensorSpec, start: u64, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Safetensors(writer) => writer.write_at(index, start, bytes),
            Self::Ckpt(writer) => writer.write(bytes),
            Self::Diffusers(writer) => writer.write_at(&spec.name, start, bytes),
        }
    }

    fn commit(self) -> Result<()> {
        match self {
            Self::Safetensors(writer) => writer.commit(),
            Self::Ckpt(writer) => writer.commit(),
            Self::Diffusers(writer) => writer.commit(),
        }
    }
}

/// What a tensor lost.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Loss {
    /// Values that became infinite.
    pub(crate) overflowed: u64,
    /// The largest magnitude among them.
    pub(crate) largest: f32,
    /// Values that were NaN or infinite before.
    pub(crate) not_finite: u64,
}

/// Hands a tensor on as bytes of the given type, a chunk at a time.
pub(crate) fn copy(
    view: &TensorView,
    dtype: Dtype,
    write: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<Loss> {
    let mut loss = Loss::default();
    let precision = match dtype {
        _ if dtype == view.dtype => None,
        Dtype::F16 => Some(Precision::F16),
        Dtype::BF16 => Some(Precision::BF16),
        Dtype::F32 => Some(Precision::F32),
        _ => unreachable!("weights become floats of 16 or 32 bits, or stay as they are"),
    };
    let Some(precision) = precision else {
        let step = 4 * CHUNK;
        for (i, bytes) in view.data.chunks(step).enumerate() {
            write((i * step) as u64, bytes)?;
        }
        return Ok(loss);
    };
    let size = precision.size();
    let mut values = vec![0.0; CHUNK.min(view.numel())];
    let mut bytes = vec![0; values.len() * size];
    let mut start = 0;
    while start < view.numel() {
        let n = values.len().min(view.numel() - start);
        let (values, bytes) = (&mut values[..n], &mut bytes[..n * size]);
        view.read_f32(start, values);
        loss.add(values, precision.overflow());
        precision.encode(values, bytes);
        write((start * size) as u64, bytes)?;
        start += n;
    }
    Ok(loss)
}

impl Loss {
    fn add(&mut self, values: &[f32], overflow: f32) {
        // Bits of positive floats are in the order of the floats, NaN last; without an early exit this is vector code.
        let largest = values.iter().fold(0, |largest, x| largest.max(x.to_bits() & 0x7fff_ffff));
        if largest < overflow.to_bits() {
            return;
        }
        for x in values.iter().map(|x| x.abs()).filter(|x| x.is_nan() || *x >= overflow) {
            if x.is_finite() {
                self.overflowed += 1;
                self.largest = self.largest.max(x);
            } else {
                self.not_finite += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_counted() {
        let mut loss = Loss::default();
        loss.add(&[1.0, -65519.9, 65504.0], Precision::F16.overflow());
        assert_eq!(loss, Loss::default());
        loss.add(&[65520.0, -1e9, f32::NAN, f32::INFINITY, 0.0], Precision::F16.overflow());
        assert_eq!(loss, Loss { overflowed: 2, largest: 1e9, not_finite: 2 });
    }

    #[test]
    fn names_tell_the_form() {
        let of = |name: &str| Target::of(Path::new(name));
        assert_eq!(of("a.safetensors"), Target::Safetensors);
        assert_eq!((of("a.ckpt"), of("v.pt")), (Target::Ckpt, Target::Ckpt));
        assert_eq!((of("folder"), of("v1.5")), (Target::Diffusers, Target::Diffusers));
    }
}
