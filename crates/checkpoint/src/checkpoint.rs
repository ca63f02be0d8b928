//! A checkpoint on disk, whichever form it has.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use vodka_stage::{ContentHash, hash_bytes, hash_tree};

use crate::{
    Dtype, Error, Mismatch, ModelConfig, Precision, Result, TensorView, WrongShape, detect,
    diffusers::{self, PARTS},
    file::{MappedFile, Stored},
    keys::{self, CLIP_PREFIX, Key, VAE_PREFIX},
    write::CONFIG_KEY,
};

/// An open checkpoint: a single `.safetensors` file or a diffusers folder, mapped into memory, under LDM names.
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<MappedFile>,
    /// By LDM name; what has none keeps the name it has in the file, behind its part and a `/` in a folder.
    tensors: BTreeMap<String, Place>,
    config: ModelConfig,
    sha256: OnceLock<ContentHash>,
}

/// Where a tensor lies.
struct Place {
    file: usize,
    stored: Stored,
    /// The shape in LDM form.
    shape: Vec<usize>,
    dtype: Dtype,
}

impl Checkpoint {
    /// Opens a single file or a diffusers folder and finds out its configuration. Weights are not read yet.
    ///
    /// Single files may leave out the `text_model.` of the text encoder's names, and may hold what training left:
    /// EMA weights (`model_ema.`), the noise schedule (`betas`, `alphas_cumprod`, ...), `position_ids`. These are ignored.
    ///
    /// The configuration comes from the folder's `config.json` files, or from the file's metadata `vodka.config`, or
    /// from names and shapes, with heads, groups, scaling factor and prediction as in Stable Diffusion 1.x.
    ///
    /// # Errors
    /// A file that cannot be read, is cut short, or is of another architecture; a configuration that is impossible.
    /// Whether all tensors are there is checked by [`Checkpoint::check_names`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let (files, tensors, config) = if path.is_dir() { open_folder(&path)? } else { open_file(&path)? };
        config
            .check()
            .map_err(|source| Error::Impossible { path: path.clone(), source: Box::new(source) })?;
        Ok(Self { path, files, tensors, config, sha256: OnceLock::new() })
    }

    /// Where the checkpoint lies, as given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The `__metadata__` of a single file; nothing for a folder.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        match self.files.as_slice() {
            [file] => &file.metadata,
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

    /// A tensor by its LDM name, in its LDM shape.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        let place = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::NoTensor { path: self.path.clone(), tensor: name.to_owned() })?;
        let data = self.files[place.file].bytes(&place.stored.bytes).into();
        Ok(TensorView { dtype: place.dtype, shape: place.shape.clone(), data })
    }

    /// The precision that holds all weights without loss: fp16 where none is wider, else fp32.
    pub fn precision(&self) -> Precision {
        match self.tensors.values().all(|place| place.dtype == Dtype::F16) {
            true => Precision::F16,
            false => Precision::F32,
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

    /// A1111's first way to name a model, "AutoV1": of 64 KiB behind the first MiB, eight digits. None for a folder.
    pub fn legacy_hash(&self) -> Option<String> {
        let [file] = self.files.as_slice() else { return None };
        let bytes = file.all();
        let end = bytes.len().min(0x11_0000);
        Some(hash_bytes(&bytes[end.min(0x10_0000)..end]).short(8))
    }

    /// Checks that exactly the tensors of the configuration are there, in their shapes. Reads no weights.
    pub fn check_names(&self) -> Result<()> {
        let mut mismatch = Mismatch::default();
        let mut left: BTreeMap<_, _> = self.tensors.iter().collect();
        for key in keys::all(&self.config) {
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

type Opened = (Vec<MappedFile>, BTreeMap<String, Place>, ModelConfig);

fn open_file(path: &Path) -> Result<Opened> {
    let file = MappedFile::open(path)?;
    if let Some(found) = detect::foreign(file.tensors.keys().map(String::as_str)) {
        return Err(Error::Architecture { path: path.to_path_buf(), found });
    }
    let mut stored = BTreeMap::new();
    for (name, tensor) in &file.tensors {
        let name = with_text_model(name);
        if !is_ignored(&name) {
            stored.insert(name, tensor.clone());
        }
    }
    let config = match file.metadata.get(CONFIG_KEY) {
        Some(text) => {
            serde_json::from_str(text).map_err(|source| Error::Config { path: path.to_path_buf(), source })?
        }
        None => detect::config(path, &stored)?,
    };
    let tensors =
        stored.into_iter().map(|(name, stored)| place(path, 0, name, stored)).collect::<Result<_>>()?;
    Ok((vec![file], tensors, config))
}

/// Early single files name the text encoder's weights as transformers did before 4.x: without `text_model.`.
fn with_text_model(name: &str) -> String {
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

fn place(path: &Path, file: usize, name: String, stored: Stored) -> Result<(String, Place)> {
    let dtype = stored.dtype(path, &name)?;
    let mut shape = stored.shape.clone();
    // The VAE's attention is linear in new diffusers folders, a 1x1 convolution everywhere else.
    let is_vae_attention =
        name.starts_with(VAE_PREFIX) && name.contains(".attn_1.") && name.ends_with(".weight");
    if is_vae_attention && shape.len() == 2 {
        shape.extend([1, 1]);
    }
    Ok((name, Place { file, stored, shape, dtype }))
}

fn open_folder(path: &Path) -> Result<Opened> {
    let config = diffusers::config(path)?;
    config
        .check()
        .map_err(|source| Error::Impossible { path: path.to_path_buf(), source: Box::new(source) })?;
    let keys = [keys::unet(&config.unet), keys::vae(&config.vae), keys::clip(&config.clip)];
    let mut files = Vec::new();
    let mut tensors = BTreeMap::new();
    for ((part, weights), keys) in PARTS.into_iter().zip(keys) {
        let file_path = weights_of(&path.join(part), weights)?;
        let file = MappedFile::open(&file_path)?;
        let ldm: HashMap<_, _> =
            keys.iter().map(|Key { diffusers, ldm, .. }| (diffusers.as_str(), ldm)).collect();
        for (name, stored) in &file.tensors {
            let today = name_today(part, name);
            let name = ldm.get(today.as_str()).map_or_else(|| format!("{part}/{name}"), |ldm| (*ldm).clone());
            if !is_ignored(&today) {
                let (name, place) = place(&file_path, files.len(), name, stored.clone())?;
                tensors.insert(name, place);
            }
        }
        files.push(file);
    }
    Ok((files, tensors, config))
}

fn weights_of(folder: &Path, names: &'static [&'static str]) -> Result<PathBuf> {
    let found = names.iter().map(|name| folder.join(name)).find(|path| path.exists());
    found.ok_or_else(|| Error::NoFile { path: folder.to_path_buf(), tried: names.to_vec() })
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
