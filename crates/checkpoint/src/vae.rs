//! VAEs alone: as A1111's users keep them beside their checkpoints, and as diffusers saves them.

use std::{collections::BTreeMap, path::Path};

use crate::{
    CONFIG_KEY, Checkpoint, ClipConfig, Error, Format, ModelConfig, Part, Result, UNetConfig, VaeConfig,
    WeightFile,
    checkpoint::{Ema, Entry, Opened, entry, part_tensors},
    detect, diffusers,
    keys::{self, VAE_PREFIX},
};

/// Opens whatever holds a VAE; only the VAE's tensors are kept. Where only shapes tell, `like` tells the rest.
pub(crate) fn open(path: &Path, like: &VaeConfig) -> Result<Opened> {
    if !path.is_dir() {
        return open_file(path, like);
    }
    let inner = path.join("vae");
    let folder = if inner.join("config.json").is_file() { inner.as_path() } else { path };
    let config = diffusers::vae(&folder.join("config.json"))?;
    let mut files = Vec::new();
    for path in diffusers::weights_of(folder)? {
        files.push(WeightFile::open(&path)?);
    }
    of_diffusers(path, Format::Diffusers, files, config)
}

fn open_file(path: &Path, like: &VaeConfig) -> Result<Opened> {
    let file = WeightFile::open(path)?;
    let has = |name: &str| file.tensors.contains_key(name);
    let with_prefix = |name: &str| has(&format!("{VAE_PREFIX}{name}"));
    if with_prefix("decoder.conv_in.weight") || has("decoder.mid.block_1.conv1.weight") {
        return of_ldm(path, file, like);
    }
    if has("decoder.mid_block.resnets.0.conv1.weight") {
        let config = match path.parent().map(|folder| folder.join("config.json")) {
            Some(path) if path.is_file() => diffusers::vae(&path)?,
            _ => told(config_of_diffusers(path, &file)?, like),
        };
        let format = file.format();
        return of_diffusers(path, format, vec![file], config);
    }
    match detect::foreign(&file) {
        Some(found) => Err(Error::NotVae { path: path.to_path_buf(), found }),
        None => Err(Error::NoPart { path: path.to_path_buf(), part: Part::Vae }),
    }
}

/// Under LDM names: a whole checkpoint, or a VAE alone with or without the prefix.
fn of_ldm(path: &Path, file: WeightFile, like: &VaeConfig) -> Result<Opened> {
    let (mut tensors, mut extras) = (BTreeMap::new(), BTreeMap::new());
    for (name, stored) in &file.tensors {
        let inner = name.strip_prefix(VAE_PREFIX);
        let alone = ["encoder.", "decoder.", "quant_conv.", "post_quant_conv."];
        let inner = inner
            .or_else(|| Some(name.as_str()).filter(|name| alone.iter().any(|own| name.starts_with(own))));
        match inner {
            Some(inner) if !inner.starts_with("loss.") && !inner.starts_with("model_ema.") => {
                let (name, entry) = entry(path, 0, format!("{VAE_PREFIX}{inner}"), stored.clone())?;
                if tensors.insert(name.clone(), entry).is_some() {
                    return Err(Error::Duplicate { path: path.to_path_buf(), tensor: name });
                }
            }
            _ if inner.is_some() || !file.tensors.keys().any(|name| name.starts_with(keys::UNET_PREFIX)) => {
                extras.insert(name.clone(), (0, stored.clone()));
            }
            // The rest of a whole checkpoint.
            _ => {}
        }
    }
    let shape = |name: &str| tensors.get(name).map(|entry: &Entry| entry.shape().to_vec());
    let config = match file.metadata().get(CONFIG_KEY) {
        Some(text) => {
            serde_json::from_str::<ModelConfig>(text)
                .map_err(|source| Error::Config { path: path.to_path_buf(), source })?
                .vae
        }
        None => told(detect::vae_config(path, &shape)?, like),
    };
    let config = around(config);
    Ok(Opened { format: file.format(), files: vec![file], tensors, extras, config, ema: Ema::None })
}

fn of_diffusers(path: &Path, format: Format, files: Vec<WeightFile>, config: VaeConfig) -> Result<Opened> {
    let config = around(config);
    let impossible = |source| Error::Impossible { path: path.to_path_buf(), source: Box::new(source) };
    config.check().map_err(impossible)?;
    let keys = keys::vae(&config.vae);
    let (mut tensors, mut extras) = (BTreeMap::new(), BTreeMap::new());
    for (index, file) in files.iter().enumerate() {
        let found = part_tensors("vae", file, index, &keys)?;
        tensors.extend(found.tensors);
        extras.extend(found.extras);
    }
    Ok(Opened { format, files, tensors, extras, config, ema: Ema::None })
}

/// From the shapes of a file under diffusers' names.
fn config_of_diffusers(path: &Path, file: &WeightFile) -> Result<VaeConfig> {
    let renamed = |name: &str| {
        let inner = name.strip_prefix(VAE_PREFIX)?;
        // Only what tells the configuration; the encoder's levels count the same way in both forms.
        let inner = inner.replace("encoder.down.", "encoder.down_blocks.").replace(".block.", ".resnets.");
        file.tensors.get(&inner).map(|stored| stored.shape.clone())
    };
    detect::vae_config(path, &renamed)
}

/// What no shape tells.
fn told(shapes: VaeConfig, like: &VaeConfig) -> VaeConfig {
    VaeConfig { norm_groups: like.norm_groups, scaling_factor: like.scaling_factor, ..shapes }
}

/// A model around the VAE: the other parts are not there.
fn around(vae: VaeConfig) -> ModelConfig {
    ModelConfig { vae, unet: UNetConfig::sd15(), clip: ClipConfig::sd15(), ..ModelConfig::default() }
}

impl Checkpoint {
    /// Checks that exactly the VAE's tensors are there, in their shapes.
    pub fn check_vae(&self) -> Result<()> {
        self.check_names_of(&[Part::Vae])
    }
}
