//! Files of ControlNets: as their first trainer names the weights, with and without its prefix, and as diffusers does.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use crate::{
    Architecture, ControlNetConfig, Error, Mismatch, Result, TensorView, UNetConfig, WeightFile, WrongShape,
    detect, diffusers,
    hashes::auto_v1,
    keys::{self, CLIP_PREFIX, CONTROL_PREFIX, Key, UNET_PREFIX, VAE_PREFIX},
};

/// A file or a diffusers folder with a ControlNet for Stable Diffusion 1.x, whichever way its weights are named.
#[derive(Debug)]
pub struct ControlNetFile {
    path: PathBuf,
    files: Vec<WeightFile>,
    config: ControlNetConfig,
    /// File, and name in it, by diffusers' name.
    places: BTreeMap<String, (usize, String)>,
}

/// How a file names the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    /// lllyasviel/ControlNet's, behind this prefix.
    Ldm(&'static str),
    /// Those of diffusers' `ControlNetModel`.
    Diffusers,
}

impl Names {
    const ALL: [Self; 3] = [Self::Ldm(CONTROL_PREFIX), Self::Ldm(""), Self::Diffusers];

    /// The name of a weight in the file, and the shape that it has there.
    fn of(self, key: &Key) -> (String, &[usize]) {
        match self {
            Self::Ldm(prefix) => {
                let inner = key.ldm.strip_prefix(CONTROL_PREFIX).unwrap_or(&key.ldm);
                (format!("{prefix}{inner}"), &key.shape)
            }
            Self::Diffusers => (key.diffusers.clone(), &key.diffusers_shape),
        }
    }

    /// A name that files named in this way have, and no others.
    fn first(self) -> String {
        match self {
            Self::Ldm(prefix) => format!("{prefix}input_hint_block.0.weight"),
            Self::Diffusers => "controlnet_cond_embedding.conv_in.weight".to_owned(),
        }
    }

    /// What tells how wide the text's embedding is.
    fn context(self) -> String {
        match self {
            Self::Ldm(prefix) => {
                format!("{prefix}middle_block.1.transformer_blocks.0.attn2.to_k.weight")
            }
            Self::Diffusers => "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight".to_owned(),
        }
    }
}

/// The way of naming, if it is a ControlNet.
fn names_of(file: &WeightFile) -> Option<Names> {
    Names::ALL.into_iter().find(|names| file.tensors.contains_key(&names.first()))
}

/// What a ControlNet is for, by the width of the text's embedding and by what only Stable Diffusion XL has.
pub(crate) fn architecture(file: &WeightFile) -> Architecture {
    let is_sdxl = |name: &str| name.contains("label_emb.") || name.starts_with("add_embedding.");
    if file.names().any(is_sdxl) {
        return Architecture::SdxlControlNet;
    }
    let context = names_of(file).and_then(|names| file.tensors.get(&names.context()));
    match context.and_then(|stored| stored.shape.get(1)) {
        Some(1024) => Architecture::StableDiffusion2ControlNet,
        Some(1280 | 2048) => Architecture::SdxlControlNet,
        _ => Architecture::ControlNet,
    }
}

impl ControlNetFile {
    /// Opens a `.safetensors`, `.pth` or `.ckpt` file, or a diffusers folder. Weights are not read yet. Heads and groups, which no
    /// shape tells, are those of `like`, which is the checkpoint's, where there is no `config.json`.
    ///
    /// Names are those of lllyasviel/ControlNet (`cldm/cldm.py`), with or without `control_model.`, alone or in the file of a
    /// whole training, and of diffusers 0.38 (`models/controlnets/controlnet.py`).
    ///
    /// # Errors
    /// A file that cannot be read, or is something else: [`Error::NotControlNet`]; weights that are missing, left over or of another
    /// shape; a configuration that asks for what Stable Diffusion 1.x does not have.
    pub fn open(path: impl AsRef<Path>, like: &UNetConfig) -> Result<Self> {
        let path = path.as_ref();
        if path.is_dir() {
            return Self::open_folder(path);
        }
        let file = WeightFile::open(path)?;
        let not = |found| Error::NotControlNet { path: path.to_path_buf(), found };
        let Some(names) = names_of(&file) else {
            return Err(not(detect::foreign(&file).unwrap_or(Architecture::StableDiffusion1)));
        };
        match architecture(&file) {
            Architecture::ControlNet => {}
            found => return Err(not(found)),
        }
        let beside = path.parent().map(|folder| folder.join("config.json")).filter(|path| path.is_file());
        let config = match (names, beside) {
            (Names::Diffusers, Some(beside)) if diffusers::is_control_net(&beside) => {
                diffusers::control_net(path, &beside)?
            }
            _ => {
                let config = config_of(&file, names)?;
                let UNetConfig { attention_heads, norm_groups, .. } = *like;
                let unet = UNetConfig { attention_heads, norm_groups, ..config.unet };
                ControlNetConfig { unet, ..config }
            }
        };
        Self::checked(path, vec![file], config, names)
    }

    fn open_folder(path: &Path) -> Result<Self> {
        let config = diffusers::control_net(path, &path.join("config.json"))?;
        let files = diffusers::weights_of(path)?.into_iter().map(WeightFile::open).collect::<Result<_>>()?;
        Self::checked(path, files, config, Names::Diffusers)
    }

    /// Checks that exactly the network's weights are there.
    fn checked(path: &Path, files: Vec<WeightFile>, config: ControlNetConfig, names: Names) -> Result<Self> {
        let impossible = |source| Error::Impossible { path: path.to_path_buf(), source: Box::new(source) };
        config.check().map_err(impossible)?;
        let (mut mismatch, mut places, mut known) = (Mismatch::default(), BTreeMap::new(), BTreeSet::new());
        for key in keys::control_net(&config) {
            let (name, expected) = names.of(&key);
            match files.iter().enumerate().find_map(|(i, file)| Some((i, file.tensors.get(&name)?))) {
                None => mismatch.missing.push(name.clone()),
                Some((_, stored)) if stored.shape != expected => {
                    let (tensor, found) = (name.clone(), stored.shape.clone());
                    mismatch.wrong_shape.push(WrongShape { tensor, expected: expected.to_vec(), found });
                }
                Some((i, _)) => {
                    places.insert(key.diffusers.clone(), (i, name.clone()));
                }
            }
            known.insert(name);
        }
        let all = files.iter().flat_map(WeightFile::names);
        let left = all.filter(|name| !known.contains(*name) && !is_of_the_rest(names, name));
        mismatch.unexpected.extend(left.map(ToOwned::to_owned));
        match mismatch.is_empty() {
            true => Ok(Self { path: path.to_path_buf(), files, config, places }),
            false => Err(Error::Mismatch { path: path.to_path_buf(), mismatch: Box::new(mismatch) }),
        }
    }

    /// Where it lies, as given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The form of the network.
    pub fn config(&self) -> &ControlNetConfig {
        &self.config
    }

    /// A weight by diffusers' name ([`keys::control_net`]).
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        match self.places.get(name) {
            Some((file, stored)) => self.files[*file].tensor(stored),
            None => Err(Error::NoTensor { path: self.path.clone(), tensor: name.to_owned() }),
        }
    }

    /// Searches all weights for a value that is no number.
    ///
    /// # Errors
    /// [`Error::NotFinite`], by its name in the file; a weight that cannot be read.
    pub fn check_finite(&self) -> Result<()> {
        for (file, name) in self.places.values() {
            if let Some((index, value)) = self.files[*file].tensor(name)?.first_not_finite() {
                let (path, tensor) = (self.path.clone(), name.clone());
                return Err(Error::NotFinite { path, tensor, index, value });
            }
        }
        Ok(())
    }

    /// The eight digits by which A1111 and its extension name the ControlNet at `path` (AutoV1): those of the file, of a folder
    /// those of its first. Nothing else of it is read or checked.
    ///
    /// # Errors
    /// A file that cannot be read, or holds no tensors.
    pub fn legacy_hash_of(path: &Path) -> Result<String> {
        let files = if path.is_dir() { diffusers::weights_of(path)? } else { Vec::new() };
        let file = WeightFile::open(files.first().map_or(path, PathBuf::as_path))?;
        Ok(auto_v1(file.all()))
    }
}

/// Whether a weight is of the checkpoint that a training keeps beside its ControlNet.
fn is_of_the_rest(names: Names, name: &str) -> bool {
    const PARTS: [&str; 4] = [UNET_PREFIX, VAE_PREFIX, CLIP_PREFIX, "model_ema."];
    names == Names::Ldm(CONTROL_PREFIX)
        && !name.starts_with(CONTROL_PREFIX)
        && (PARTS.iter().any(|part| name.starts_with(part)) || !name.contains('.'))
}

/// The configuration as far as shapes tell it.
fn config_of(file: &WeightFile, names: Names) -> Result<ControlNetConfig> {
    let path = file.path();
    let stored = |name: &str| file.tensors.get(name).map(|stored| stored.shape.clone());
    let unet = match names {
        Names::Ldm(prefix) => detect::encoder_config(path, &|name| {
            stored(&format!("{prefix}{}", name.strip_prefix(UNET_PREFIX)?))
        })?,
        Names::Diffusers => diffusers::encoder_config(path, &stored)?,
    };
    let size = |name: String| {
        let size = stored(&name).and_then(|shape| shape.first().copied());
        size.and_then(|size| i64::try_from(size).ok()).ok_or_else(|| Error::Mismatch {
            path: path.to_path_buf(),
            mismatch: Box::new(Mismatch { missing: vec![name], ..Mismatch::default() }),
        })
    };
    // The layers behind which the picture is as it was, halved once, twice, and three times.
    let layer = |i: usize| match (names, i) {
        (Names::Ldm(prefix), i) => format!("{prefix}input_hint_block.{}.weight", 4 * i),
        (Names::Diffusers, 0) => names.first(),
        (Names::Diffusers, i) => format!("controlnet_cond_embedding.blocks.{}.weight", 2 * i - 1),
    };
    let hint_channels = [size(layer(0))?, size(layer(1))?, size(layer(2))?, size(layer(3))?];
    Ok(ControlNetConfig { unet, hint_channels })
}
