//! Tells from names and shapes what a single file holds.

use std::path::Path;

use crate::{
    Architecture, ClipConfig, Error, Mismatch, ModelConfig, Prediction, Result, UNetConfig, VaeConfig,
    WeightFile, control_net,
    keys::{CLIP_PREFIX, CONTROL_PREFIX, UNET_PREFIX, VAE_PREFIX},
    upscaler,
};

/// The architecture that the names belong to, if it is not Stable Diffusion 1.x.
pub(crate) fn foreign(file: &WeightFile) -> Option<Architecture> {
    let of_names = foreign_names(file.names());
    match of_names {
        Some(Architecture::Unknown(_)) if file.left_over().iter().any(|name| name == "string_to_token") => {
            Some(Architecture::Embedding)
        }
        Some(Architecture::ControlNet) => Some(control_net::architecture(file)),
        Some(found) => Some(found),
        None => foreign_width(file),
    }
}

/// Where the text encoder is not there to tell, the width of what the UNet expects of it does.
fn foreign_width(file: &WeightFile) -> Option<Architecture> {
    if file.names().any(|name| name.starts_with("cond_stage_model.")) {
        return None;
    }
    let context = |(name, stored): (&String, &crate::file::Stored)| {
        let is_context = name.starts_with(UNET_PREFIX) && name.ends_with(".attn2.to_k.weight");
        stored.shape.get(1).copied().filter(|_| is_context)
    };
    match file.tensors.iter().find_map(context)? {
        1024 => Some(Architecture::StableDiffusion2),
        1280 | 2048 => Some(Architecture::Sdxl),
        _ => None,
    }
}

fn foreign_names<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Option<Architecture> {
    let starts = |prefix: &str| names.clone().any(|name| name.starts_with(prefix));
    let holds = |part: &str| names.clone().any(|name| name.contains(part));
    // Before all that a training of one keeps in the same file.
    if starts(CONTROL_PREFIX) || starts("controlnet_cond_embedding.") || holds("input_hint_block.") {
        return Some(Architecture::ControlNet);
    }
    if starts("conditioner.embedders.") {
        return Some(Architecture::Sdxl);
    }
    if starts("cond_stage_model.model.") {
        return Some(Architecture::StableDiffusion2);
    }
    if starts("model.diffusion_model.joint_blocks.") || starts("joint_blocks.") {
        return Some(Architecture::StableDiffusion3);
    }
    if holds("double_blocks.") && holds("single_blocks.") {
        return Some(Architecture::Flux);
    }
    if starts(UNET_PREFIX) || starts("model_ema.diffusion_model") {
        return None;
    }
    if starts("lora_") || [".lora_", ".lora.", "_lora.", ".hada_", ".lokr_"].into_iter().any(holds) {
        return Some(Architecture::Lora);
    }
    if upscaler::is_upscaler(names.clone()) {
        return Some(Architecture::Upscaler);
    }
    if starts("emb_params") || starts("string_to_param") {
        return Some(Architecture::Embedding);
    }
    if starts("down_blocks.") && starts("up_blocks.") {
        return Some(Architecture::DiffusersUnet);
    }
    if holds("decoder.conv_in.weight") {
        return Some(Architecture::Vae);
    }
    if starts(CLIP_PREFIX) || starts("text_model.encoder.") {
        return Some(Architecture::TextEncoder);
    }
    Some(Architecture::Unknown(names.take(3).map(ToOwned::to_owned).collect()))
}

/// The configuration as far as names and shapes tell it; heads, groups, scaling and prediction are those of
/// Stable Diffusion 1.x, and so is a part that is not there.
pub(crate) fn config(
    path: &Path,
    shape: &dyn Fn(&str) -> Option<Vec<usize>>,
    has_vae: bool,
    has_clip: bool,
) -> Result<ModelConfig> {
    let shapes = Shapes { path, shape };
    let unet = unet(&shapes)?;
    let absent = ClipConfig { hidden_size: unet.cross_attention_dim, heads: 1, ..ClipConfig::sd15() };
    let absent = if unet == UNetConfig::sd15() { ClipConfig::sd15() } else { absent };
    Ok(ModelConfig {
        vae: if has_vae { vae(&shapes)? } else { VaeConfig::sd15() },
        clip: if has_clip { clip(&shapes)? } else { absent },
        unet,
        prediction: Prediction::Epsilon,
        zero_terminal_snr: false,
    })
}

/// The configuration of a UNet's way down and middle, as far as its shapes by LDM name tell it.
pub(crate) fn encoder_config(path: &Path, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> Result<UNetConfig> {
    encoder(&Shapes { path, shape })
}

/// The configuration of a VAE, as far as its shapes tell it.
pub(crate) fn vae_config(path: &Path, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> Result<VaeConfig> {
    vae(&Shapes { path, shape })
}

/// The shapes by LDM name.
struct Shapes<'a> {
    path: &'a Path,
    shape: &'a dyn Fn(&str) -> Option<Vec<usize>>,
}

impl Shapes<'_> {
    fn has(&self, name: &str) -> bool {
        (self.shape)(name).is_some()
    }

    /// The extent of one axis of a tensor that must be there.
    fn size(&self, name: &str, axis: usize) -> Result<i64> {
        let size = (self.shape)(name).and_then(|shape| shape.get(axis).copied());
        match size {
            Some(size) => Ok(i64::try_from(size).unwrap_or(i64::MAX)),
            None => Err(Error::Mismatch {
                path: self.path.to_path_buf(),
                mismatch: Box::new(Mismatch { missing: vec![name.to_owned()], ..Mismatch::default() }),
            }),
        }
    }

    /// How many of `name(0)`, `name(1)`, ... there are.
    fn count(&self, name: impl Fn(i64) -> String) -> i64 {
        (0..).take_while(|i| self.has(&name(*i))).count() as i64
    }
}

fn unet(shapes: &Shapes) -> Result<UNetConfig> {
    let out_channels = shapes.size(&format!("{UNET_PREFIX}out.2.weight"), 0)?;
    Ok(UNetConfig { out_channels, ..encoder(shapes)? })
}

/// Input blocks are numbered through: one convolution, then each level's layers and, but for the last, a downsampler.
fn encoder(shapes: &Shapes) -> Result<UNetConfig> {
    let at = |name: &str| format!("{UNET_PREFIX}{name}");
    let has = |i: i64, name: &str| shapes.has(&at(&format!("input_blocks.{i}.0.{name}.weight")));
    let blocks = (1..).take_while(|i| has(*i, "op") || has(*i, "in_layers.2")).count() as i64;
    let downsamplers: Vec<_> = (1..=blocks).filter(|i| has(*i, "op")).collect();
    let layers_per_block = downsamplers.first().map_or(blocks, |first| first - 1);
    let mut block_out_channels = Vec::new();
    let mut cross_attention = Vec::new();
    for level in 0..=downsamplers.len() as i64 {
        let first = 1 + level * (layers_per_block + 1);
        let resnet = at(&format!("input_blocks.{first}.0.out_layers.3.weight"));
        block_out_channels.push(shapes.size(&resnet, 0)?);
        let attention = format!("input_blocks.{first}.1.transformer_blocks.0.attn2.to_k.weight");
        cross_attention.push(shapes.has(&at(&attention)));
    }
    Ok(UNetConfig {
        in_channels: shapes.size(&at("input_blocks.0.0.weight"), 1)?,
        block_out_channels,
        layers_per_block,
        cross_attention,
        cross_attention_dim: shapes.size(&at("middle_block.1.transformer_blocks.0.attn2.to_k.weight"), 1)?,
        ..UNetConfig::sd15()
    })
}

fn vae(shapes: &Shapes) -> Result<VaeConfig> {
    let at = |name: &str| format!("{VAE_PREFIX}{name}");
    let block = |level: i64, layer: i64| at(&format!("encoder.down.{level}.block.{layer}.conv1.weight"));
    // One level at least: without it the first block is what is reported as missing.
    let levels = shapes.count(|level| block(level, 0)).max(1);
    Ok(VaeConfig {
        in_channels: shapes.size(&at("encoder.conv_in.weight"), 1)?,
        latent_channels: shapes.size(&at("decoder.conv_in.weight"), 1)?,
        block_out_channels: (0..levels)
            .map(|level| shapes.size(&block(level, 0), 0))
            .collect::<Result<_>>()?,
        layers_per_block: shapes.count(|layer| block(0, layer)),
        ..VaeConfig::sd15()
    })
}

fn clip(shapes: &Shapes) -> Result<ClipConfig> {
    let at = |name: &str| format!("{CLIP_PREFIX}text_model.{name}");
    let fc1 = |layer: i64| at(&format!("encoder.layers.{layer}.mlp.fc1.weight"));
    Ok(ClipConfig {
        vocab_size: shapes.size(&at("embeddings.token_embedding.weight"), 0)?,
        hidden_size: shapes.size(&at("embeddings.token_embedding.weight"), 1)?,
        intermediate_size: shapes.size(&fc1(0), 0)?,
        layers: shapes.count(fc1),
        max_positions: shapes.size(&at("embeddings.position_embedding.weight"), 0)?,
        ..ClipConfig::sd15()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::keys;

    #[test]
    fn stable_diffusion_15_is_known_by_its_shapes() {
        let expected = ModelConfig::sd15();
        let shapes: BTreeMap<_, _> =
            keys::all(&expected).into_iter().map(|key| (key.ldm, key.shape)).collect();
        assert_eq!(foreign_names(shapes.keys().map(String::as_str)), None);
        let shape = |name: &str| shapes.get(name).cloned();
        assert_eq!(config(Path::new("v1-5.safetensors"), &shape, true, true).unwrap(), expected);
        // Without text encoder and VAE, the usual ones are assumed.
        let unet = |name: &str| shape(name).filter(|_| name.starts_with(UNET_PREFIX));
        assert_eq!(config(Path::new("v1-5.safetensors"), &unet, false, false).unwrap(), expected);
    }
}
