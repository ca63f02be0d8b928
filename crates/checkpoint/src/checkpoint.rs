//! A checkpoint on disk, whichever form it has.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use serde::Serialize;
use vodka_stage::{ContentHash, hash_tree};

use crate::{
    Dtype, Error, Format, Hashes, Mismatch, ModelConfig, Precision, Prediction, Result, TensorInfo,
    TensorView, VaeConfig, WrongShape, detect,
    diffusers::{self, PARTS},
    file::{Stored, WeightFile},
    hashes::auto_v1,
    keys::{self, CLIP_PREFIX, Key, UNET_PREFIX, VAE_PREFIX},
    write::CONFIG_KEY,
};

/// An open checkpoint: a single file or a diffusers folder, mapped into memory, under LDM names.
pub struct Checkpoint {
    path: PathBuf,
    format: Format,
    files: Vec<WeightFile>,
    /// By LDM name; what has none keeps the name it has in the file, behind its part and a `/` in a folder.
    tensors: BTreeMap<String, Entry>,
    /// What is no weight of the model, by its name in the file.
    extras: BTreeMap<String, (usize, Stored)>,
    config: ModelConfig,
    ema: Ema,
    sha256: OnceLock<ContentHash>,
}

/// A part of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The denoiser.
    Unet,
    /// The image encoder and decoder.
    Vae,
    /// The text encoder.
    TextEncoder,
}

impl Part {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Unet, Self::Vae, Self::TextEncoder];

    /// What its names begin with in a single file.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Unet => UNET_PREFIX,
            Self::Vae => VAE_PREFIX,
            Self::TextEncoder => CLIP_PREFIX,
        }
    }

    /// The part that a LDM name belongs to.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| name.starts_with(part.prefix()))
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unet => "UNet",
            Self::Vae => "VAE",
            Self::TextEncoder => "text encoder",
        })
    }
}

/// The EMA copy of the UNet's weights (`model_ema.`), which the original trainer leaves in its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ema {
    /// There is none: the file is "pruned".
    None,
    /// It is there, beside the weights of the last step, and those are what is read.
    Beside,
    /// It is there, and is read in place of those of the last step ([`Checkpoint::open_ema`]).
    Used,
    /// Nothing but it is there, and it is read.
    Only,
}

/// What is known of a tensor.
pub(crate) struct Entry {
    file: usize,
    stored: Stored,
    /// The shape in LDM form.
    shape: Vec<usize>,
    dtype: Dtype,
}

impl Entry {
    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn info(&self) -> TensorInfo {
        TensorInfo { dtype: self.dtype, shape: self.shape.clone(), place: self.stored.place(self.file) }
    }
}

impl Checkpoint {
    /// Opens a single file (`.safetensors`, or `.ckpt`, `.pt` and the like of PyTorch) or a diffusers folder and finds
    /// out its configuration. Weights are not read yet, and nothing that a pickle asks for is run.
    ///
    /// Single files may leave out the `text_model.` of the text encoder's names, may lack the VAE or the text encoder
    /// ([`Checkpoint::has`]), and may hold what training left: EMA weights (`model_ema.`), the noise schedule (`betas`,
    /// `alphas_cumprod`, ...), `position_ids`. These are the [`Checkpoint::extras`]. Where the EMA copy is the only UNet,
    /// it is the UNet.
    ///
    /// The configuration comes from the folder's `config.json` files, or from the file's metadata `vodka.config`, or
    /// from names and shapes, with heads, groups and scaling factor as in Stable Diffusion 1.x, and the prediction of the
    /// metadata `modelspec.prediction_type`. Parts that are not there are taken to be those of Stable Diffusion 1.5.
    ///
    /// # Errors
    /// A file that cannot be read, is cut short, or is of another architecture; a configuration that is impossible.
    /// Whether all tensors are there is checked by [`Checkpoint::check_names`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        Self::open_with(path.into(), false)
    }

    /// As [`Checkpoint::open`], with the UNet's weights from the EMA copy.
    ///
    /// # Errors
    /// In addition, a checkpoint that has none.
    pub fn open_ema(path: impl Into<PathBuf>) -> Result<Self> {
        Self::open_with(path.into(), true)
    }

    fn open_with(path: PathBuf, use_ema: bool) -> Result<Self> {
        let opened = if path.is_dir() { open_folder(&path, use_ema)? } else { open_file(&path, use_ema)? };
        Self::checked(path, opened)
    }

    /// Opens a VAE: a file that holds one alone, under LDM names with or without `first_stage_model.` or under those of
    /// diffusers; a VAE's diffusers folder; or the VAE of a whole checkpoint. It has that one part.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], and where there is no VAE.
    pub fn open_vae(path: impl Into<PathBuf>) -> Result<Self> {
        Self::open_vae_like(path, &VaeConfig::sd15())
    }

    /// As [`Checkpoint::open_vae`], with the groups of the norms and the scaling factor of another VAE, where the file has
    /// nothing but weights.
    pub fn open_vae_like(path: impl Into<PathBuf>, like: &VaeConfig) -> Result<Self> {
        let path = path.into();
        let opened = crate::vae::open(&path, like)?;
        Self::checked(path, opened)
    }

    fn checked(path: PathBuf, opened: Opened) -> Result<Self> {
        let Opened { format, files, tensors, extras, config, ema } = opened;
        config
            .check()
            .map_err(|source| Error::Impossible { path: path.clone(), source: Box::new(source) })?;
        Ok(Self { path, format, files, tensors, extras, config, ema, sha256: OnceLock::new() })
    }

    /// Where the checkpoint lies, as given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its form.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Whether a part is there, or at least some of it.
    pub fn has(&self, part: Part) -> bool {
        self.tensors.keys().any(|name| name.starts_with(part.prefix()))
    }

    /// What is there of the UNet's EMA copy.
    pub fn ema(&self) -> Ema {
        self.ema
    }

    /// What files of PyTorch hold beside tensors, by name: `epoch`, `optimizer_states`, ... It is not read.
    pub fn left_over(&self) -> impl Iterator<Item = &str> {
        self.files.iter().flat_map(WeightFile::left_over).map(String::as_str)
    }

    /// Tensors that are no weights of the model, by their names in the file: the EMA copy, the noise schedule,
    /// `position_ids`, a loss; with their shapes.
    pub fn extras(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.extras.iter().map(|(name, (_, stored))| (name.as_str(), stored.shape.as_slice()))
    }

    /// What one of [`Checkpoint::extras`] is and where it lies.
    pub fn extra_info(&self, name: &str) -> Result<TensorInfo> {
        let (file, stored) = self.extra_stored(name)?;
        let dtype = stored.dtype(&self.path, name)?;
        Ok(TensorInfo { dtype, shape: stored.shape.clone(), place: stored.place(file) })
    }

    /// One of [`Checkpoint::extras`], mapped into memory.
    pub fn extra(&self, name: &str) -> Result<TensorView<'_>> {
        let (file, stored) = self.extra_stored(name)?;
        let dtype = stored.dtype(&self.path, name)?;
        let data = self.files[file].bytes(name, stored)?;
        Ok(TensorView { dtype, shape: stored.shape.clone(), data })
    }

    fn extra_stored(&self, name: &str) -> Result<(usize, &Stored)> {
        let none = || Error::NoTensor { path: self.path.clone(), tensor: name.to_owned() };
        self.extras.get(name).map(|(file, stored)| (*file, stored)).ok_or_else(none)
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The `__metadata__` of a single file; nothing for a folder.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        match self.files.as_slice() {
            [file] => file.metadata(),
            _ => &NONE,
        }
    }

    /// Checks that the model makes pictures from text alone: see [`ModelConfig::check_text_to_image`].
    pub fn check_text_to_image(&self, vocab_size: i64, positions: i64) -> Result<()> {
        let checked = self.config().check_text_to_image(vocab_size, positions);
        checked.map_err(|source| Error::NotTextToImage {
            path: self.path().to_path_buf(),
            source: Box::new(source),
        })
    }

    /// The names of all tensors but the ignored ones, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The files that tensors lie in: one, or those of a folder.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(WeightFile::path)
    }

    /// What a tensor is and where it lies, by its LDM name and in its LDM shape. Reads nothing.
    pub fn info(&self, name: &str) -> Result<TensorInfo> {
        self.entry(name).map(Entry::info)
    }

    /// All of [`Checkpoint::names`] with what they are and where they lie. Reads nothing.
    ///
    /// Sorted by [`Place`](crate::Place), they give the order in which large plain reads ([`Checkpoint::read_at`]) go through the
    /// files once.
    pub fn infos(&self) -> impl Iterator<Item = (&str, TensorInfo)> {
        self.tensors.iter().map(|(name, entry)| (name.as_str(), entry.info()))
    }

    /// Reads bytes of a file ([`file`](crate::Place::file), [`offset`](crate::Place::offset)) with plain reads. What [`Checkpoint::tensor`] shows is
    /// mapped and counts as memory of the process once it is touched; this does not. May be called by many threads.
    ///
    /// # Errors
    /// When the file has been cut short since it was opened, or the disk fails.
    pub fn read_at(&self, file: usize, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.files[file].read_at(offset, buffer)
    }

    /// A tensor by its LDM name, in its LDM shape, mapped into memory.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        let entry = self.entry(name)?;
        let data = self.files[entry.file].bytes(name, &entry.stored)?;
        Ok(TensorView { dtype: entry.dtype, shape: entry.shape.clone(), data })
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        let none = || Error::NoTensor { path: self.path.clone(), tensor: name.to_owned() };
        self.tensors.get(name).ok_or_else(none)
    }

    /// The precision that holds all weights without loss: fp16 or bf16 where all are of that type, else fp32.
    pub fn precision(&self) -> Precision {
        let all = |dtype| self.tensors.values().all(|entry| entry.dtype == dtype);
        match () {
            () if all(Dtype::F16) => Precision::F16,
            () if all(Dtype::BF16) => Precision::BF16,
            () => Precision::F32,
        }
    }

    /// The SHA-256 of the file, "AutoV2" to the users of A1111 (who see the first ten digits); of the names and
    /// contents of all files for a folder. Computed at the first call.
    pub fn sha256(&self) -> Result<ContentHash> {
        if let Some(hash) = self.sha256.get() {
            return Ok(*hash);
        }
        let hash = hash_tree(&self.path, |_| true)?;
        Ok(*self.sha256.get_or_init(|| hash))
    }

    /// All hashes of a single file, in one reading; none for a folder.
    pub fn hashes(&self) -> Result<Option<Hashes>> {
        match self.files.as_slice() {
            [file] if self.format != Format::Diffusers => Hashes::of(file).map(Some),
            _ => Ok(None),
        }
    }

    /// A1111's first way to name a model, "AutoV1": of 64 KiB behind the first MiB, eight digits. None for a folder.
    pub fn legacy_hash(&self) -> Option<String> {
        let [file] = self.files.as_slice() else { return None };
        Some(auto_v1(file.all()))
    }

    /// Checks that exactly the tensors of the configuration are there, in their shapes. Reads no weights.
    pub fn check_names(&self) -> Result<()> {
        self.check_names_of(&Part::ALL)
    }

    /// Checks that of these parts exactly the tensors of the configuration are there, in their shapes.
    pub fn check_names_of(&self, parts: &[Part]) -> Result<()> {
        if let Some(&part) = parts.iter().find(|part| !self.has(**part)) {
            return Err(Error::NoPart { path: self.path.clone(), part });
        }
        let wanted = |name: &str| Part::of(name).is_none_or(|part| parts.contains(&part));
        let mut mismatch = Mismatch::default();
        let mut left: BTreeMap<_, _> = self.tensors.iter().filter(|(name, _)| wanted(name)).collect();
        for key in keys::all(&self.config).into_iter().filter(|key| wanted(&key.ldm)) {
            match left.remove(&key.ldm) {
                None => mismatch.missing.push(key.ldm),
                Some(place) if place.shape != key.shape => {
                    let (expected, found) = (key.shape, place.shape.clone());
                    mismatch.wrong_shape.push(WrongShape { tensor: key.ldm, expected, found });
                }
                Some(_) => {}
            }
        }
        mismatch.unexpected = left.into_keys().cloned().collect();
        match mismatch.is_empty() {
            true => Ok(()),
            false => Err(Error::Mismatch { path: self.path.clone(), mismatch: Box::new(mismatch) }),
        }
    }

    /// Checks names and shapes, and that every weight is finite. Reads the whole checkpoint.
    pub fn verify(&self) -> Result<()> {
        self.check_names()?;
        for name in self.names() {
            if let Some((index, value)) = self.tensor(name)?.first_not_finite() {
                let (path, tensor) = (self.path.clone(), name.to_owned());
                return Err(Error::NotFinite { path, tensor, index, value });
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("path", &self.path)
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

/// What was found in a file or folder.
pub(crate) struct Opened {
    pub(crate) format: Format,
    pub(crate) files: Vec<WeightFile>,
    pub(crate) tensors: BTreeMap<String, Entry>,
    pub(crate) extras: BTreeMap<String, (usize, Stored)>,
    pub(crate) config: ModelConfig,
    pub(crate) ema: Ema,
}

fn open_file(path: &Path, use_ema: bool) -> Result<Opened> {
    let file = WeightFile::open(path)?;
    if let Some(found) = detect::foreign(&file) {
        return Err(Error::Architecture { path: path.to_path_buf(), found });
    }
    let (mut stored, mut extras) = (BTreeMap::new(), BTreeMap::new());
    for (name, tensor) in &file.tensors {
        let ldm = with_text_model(name);
        if is_ignored(&ldm) {
            extras.insert(name.clone(), (0, tensor.clone()));
        } else if stored.insert(ldm.clone(), tensor.clone()).is_some() {
            return Err(Error::Duplicate { path: path.to_path_buf(), tensor: ldm });
        }
    }
    let has_unet = stored.keys().any(|name| name.starts_with(UNET_PREFIX));
    let has_ema = extras.keys().any(|name| name.starts_with(EMA_PREFIX));
    let ema = match (has_unet, has_ema) {
        (_, false) if use_ema => return Err(Error::NoEma { path: path.to_path_buf() }),
        (_, false) => Ema::None,
        (false, true) => Ema::Only,
        (true, true) if use_ema => Ema::Used,
        (true, true) => Ema::Beside,
    };
    let from_ema = matches!(ema, Ema::Used | Ema::Only);
    let config = match file.metadata().get(CONFIG_KEY) {
        Some(text) => {
            serde_json::from_str(text).map_err(|source| Error::Config { path: path.to_path_buf(), source })?
        }
        None => {
            let shape = |name: &str| match ema_name(name).filter(|_| from_ema) {
                Some(name) => extras.get(&name).map(|(_, stored)| stored.shape.clone()),
                None => stored.get(name).map(|stored| stored.shape.clone()),
            };
            let has = |prefix: &str| stored.keys().any(|name| name.starts_with(prefix));
            let config = detect::config(path, &shape, has(VAE_PREFIX), has(CLIP_PREFIX))?;
            ModelConfig { prediction: stated_prediction(file.metadata()), ..config }
        }
    };
    if from_ema {
        config_checked(path, &config)?;
        stored.retain(|name, _| !name.starts_with(UNET_PREFIX));
        for key in keys::unet(&config.unet) {
            if let Some((_, tensor)) = ema_name(&key.ldm).and_then(|name| extras.get(&name)) {
                stored.insert(key.ldm, tensor.clone());
            }
        }
    }
    let tensors =
        stored.into_iter().map(|(name, stored)| entry(path, 0, name, stored)).collect::<Result<_>>()?;
    Ok(Opened { format: file.format(), files: vec![file], tensors, extras, config, ema })
}

/// What a file that is not ours says of its prediction, in the words of <https://github.com/Stability-AI/ModelSpec>; noise,
/// where it says nothing.
fn stated_prediction(metadata: &BTreeMap<String, String>) -> Prediction {
    match metadata.get("modelspec.prediction_type").map(String::as_str) {
        Some("v" | "v_prediction" | "v-prediction") => Prediction::VPrediction,
        _ => Prediction::Epsilon,
    }
}

/// Names are made from a configuration, so it must be a possible one.
fn config_checked(path: &Path, config: &ModelConfig) -> Result<()> {
    config.check().map_err(|source| Error::Impossible { path: path.to_path_buf(), source: Box::new(source) })
}

/// What the names of the UNet's EMA copy begin with.
const EMA_PREFIX: &str = "model_ema.diffusion_model";

/// The name of the EMA copy of a weight of the UNet: its own without the dots (`ldm/modules/ema.py` of
/// CompVis/stable-diffusion). None for other parts, of which there is no copy.
pub fn ema_name(ldm: &str) -> Option<String> {
    let inner = ldm.strip_prefix(UNET_PREFIX)?;
    Some(format!("{EMA_PREFIX}{}", inner.replace('.', "")))
}

/// Early single files, NovelAI's among them, name the text encoder's weights as transformers did before 4.x: without
/// `text_model.`.
pub(crate) fn with_text_model(name: &str) -> String {
    let bare = name.strip_prefix(CLIP_PREFIX).filter(|rest| {
        ["embeddings.", "encoder.", "final_layer_norm."].iter().any(|start| rest.starts_with(start))
    });
    bare.map_or_else(|| name.to_owned(), |rest| format!("{CLIP_PREFIX}text_model.{rest}"))
}

/// What the original trainer and some converters leave in files beside the weights.
fn is_ignored(name: &str) -> bool {
    const BUFFERS: [&str; 15] = [
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "betas",
        "log_one_minus_alphas_cumprod",
        "logvar",
        "lvlb_weights",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
        "posterior_variance",
        "scale_factor",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
    ];
    name.starts_with("model_ema.")
        || name.starts_with("first_stage_model.loss.")
        || name.starts_with("first_stage_model.model_ema.")
        || name.ends_with("text_model.embeddings.position_ids")
        || name == "cond_stage_model.logit_scale"
        || name.starts_with("cond_stage_model.text_projection")
        || name.starts_with("cond_stage_model.transformer.text_projection")
        || BUFFERS.contains(&name)
}

pub(crate) fn entry(path: &Path, file: usize, name: String, stored: Stored) -> Result<(String, Entry)> {
    let dtype = stored.dtype(path, &name)?;
    let mut shape = stored.shape.clone();
    // The VAE's attention is linear in new diffusers folders, a 1x1 convolution everywhere else.
    let is_vae_attention =
        name.starts_with(VAE_PREFIX) && name.contains(".attn_1.") && name.ends_with(".weight");
    if is_vae_attention && shape.len() == 2 {
        shape.extend([1, 1]);
    }
    Ok((name, Entry { file, stored, shape, dtype }))
}

fn open_folder(path: &Path, use_ema: bool) -> Result<Opened> {
    let config = diffusers::config(path)?;
    config_checked(path, &config)?;
    if use_ema {
        return Err(Error::NoEma { path: path.to_path_buf() });
    }
    let keys = [keys::unet(&config.unet), keys::vae(&config.vae), keys::clip(&config.clip)];
    let (mut files, mut tensors, mut extras) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    for (part, keys) in PARTS.into_iter().zip(keys) {
        for file_path in diffusers::weights_of(&path.join(part))? {
            let file = WeightFile::open(&file_path)?;
            let found = part_tensors(part, &file, files.len(), &keys)?;
            for (name, entry) in found.tensors {
                if tensors.insert(name.clone(), entry).is_some() {
                    return Err(Error::Duplicate { path: path.to_path_buf(), tensor: name });
                }
            }
            extras.extend(found.extras);
            files.push(file);
        }
    }
    Ok(Opened { format: Format::Diffusers, files, tensors, extras, config, ema: Ema::None })
}

/// The tensors of one file of a part.
pub(crate) struct PartTensors {
    pub(crate) tensors: BTreeMap<String, Entry>,
    pub(crate) extras: BTreeMap<String, (usize, Stored)>,
}

/// Finds the LDM names of a part's file under diffusers' names.
pub(crate) fn part_tensors(part: &str, file: &WeightFile, index: usize, keys: &[Key]) -> Result<PartTensors> {
    let ldm: HashMap<_, _> =
        keys.iter().map(|Key { diffusers, ldm, .. }| (diffusers.as_str(), ldm)).collect();
    let (mut tensors, mut extras) = (BTreeMap::new(), BTreeMap::new());
    for (name, stored) in &file.tensors {
        let today = name_today(part, name);
        if is_ignored(&today) {
            extras.insert(format!("{part}/{name}"), (index, stored.clone()));
            continue;
        }
        let name = ldm.get(today.as_str()).map_or_else(|| format!("{part}/{name}"), |ldm| (*ldm).clone());
        let (name, entry) = entry(file.path(), index, name, stored.clone())?;
        tensors.insert(name, entry);
    }
    Ok(PartTensors { tensors, extras })
}

/// The name that the diffusers and transformers of today give to a tensor of an older folder.
fn name_today(part: &str, name: &str) -> String {
    const VAE_ATTENTION: [(&str, &str); 4] = [
        (".attentions.0.query.", ".attentions.0.to_q."),
        (".attentions.0.key.", ".attentions.0.to_k."),
        (".attentions.0.value.", ".attentions.0.to_v."),
        (".attentions.0.proj_attn.", ".attentions.0.to_out.0."),
    ];
    match part {
        "vae" => VAE_ATTENTION.iter().fold(name.to_owned(), |name, (old, new)| name.replace(old, new)),
        "text_encoder" if !name.starts_with("text_model.") => format!("text_model.{name}"),
        _ => name.to_owned(),
    }
}
