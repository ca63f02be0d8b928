//! Reads the configuration files of a diffusers folder.
//!
//! Defaults are those of the classes in diffusers 0.38 and transformers 4.57.6, which leave them out of their files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    Architecture, ClipConfig, ControlNetConfig, Error, Mismatch, ModelConfig, Prediction, Result, UNetConfig,
    VaeConfig,
};

/// The parts of a folder: its subfolders.
pub(crate) const PARTS: [&str; 3] = ["unet", "vae", "text_encoder"];

/// What a file's name has where it is one of several versions of the same weights, in the order in which they are
/// taken: the plain one first.
const VARIANTS: [&str; 4] = ["", "fp16", "bf16", "non_ema"];

/// The files that hold a part's weights: one, or the shards that an index names. Safetensors go before pickles.
pub(crate) fn weights_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let is_text = folder.file_name().is_some_and(|name| name == "text_encoder");
    let stems = match is_text {
        true => [("model", "safetensors"), ("pytorch_model", "bin")],
        false => [("diffusion_pytorch_model", "safetensors"), ("diffusion_pytorch_model", "bin")],
    };
    for (stem, extension) in stems {
        for variant in VARIANTS {
            let dotted = if variant.is_empty() { String::new() } else { format!(".{variant}") };
            let single = folder.join(format!("{stem}{dotted}.{extension}"));
            if single.exists() {
                return Ok(vec![single]);
            }
            let index = folder.join(format!("{stem}.{extension}.index{dotted}.json"));
            if index.exists() {
                return shards(folder, &index);
            }
        }
    }
    let tried = stems.iter().map(|(stem, extension)| format!("{stem}.{extension}")).collect();
    Err(Error::NoFile { path: folder.to_path_buf(), tried })
}

/// `*.index.json`: which file holds which tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn shards(folder: &Path, index: &Path) -> Result<Vec<PathBuf>> {
    let Index { weight_map } = read(index)?;
    let names: BTreeSet<_> = weight_map.into_values().collect();
    let shard = |name: &String| match Path::new(name).file_name() {
        Some(own) if own == name.as_str() => Ok(folder.join(name)),
        _ => Err(setting(index, "weight_map", "names of files in the same folder", name)),
    };
    names.iter().map(shard).collect()
}

#[derive(Deserialize)]
#[serde(default)]
struct Unet {
    in_channels: i64,
    out_channels: i64,
    block_out_channels: Vec<i64>,
    layers_per_block: Value,
    down_block_types: Vec<String>,
    cross_attention_dim: Value,
    attention_head_dim: Value,
    num_attention_heads: Option<Value>,
    norm_num_groups: i64,
    use_linear_projection: bool,
    act_fn: String,
    resnet_time_scale_shift: String,
    flip_sin_to_cos: bool,
    center_input_sample: bool,
}

/// What a ControlNet's file says beyond what a UNet's does.
#[derive(Deserialize)]
#[serde(default)]
struct ControlNet {
    #[serde(rename = "_class_name")]
    class: String,
    addition_embed_type: Option<String>,
    class_embed_type: Option<String>,
    conditioning_channels: i64,
    conditioning_embedding_out_channels: Vec<i64>,
    controlnet_conditioning_channel_order: String,
    global_pool_conditions: bool,
}

impl Default for ControlNet {
    fn default() -> Self {
        Self {
            class: String::new(),
            addition_embed_type: None,
            class_embed_type: None,
            conditioning_channels: 3,
            conditioning_embedding_out_channels: vec![16, 32, 96, 256],
            controlnet_conditioning_channel_order: "rgb".to_owned(),
            global_pool_conditions: false,
        }
    }
}

impl Default for Unet {
    fn default() -> Self {
        let cross = "CrossAttnDownBlock2D".to_owned();
        Self {
            in_channels: 4,
            out_channels: 4,
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: 2.into(),
            down_block_types: vec![cross.clone(), cross.clone(), cross, "DownBlock2D".to_owned()],
            cross_attention_dim: 1280.into(),
            attention_head_dim: 8.into(),
            num_attention_heads: None,
            norm_num_groups: 32,
            use_linear_projection: false,
            act_fn: "silu".to_owned(),
            resnet_time_scale_shift: "default".to_owned(),
            flip_sin_to_cos: true,
            center_input_sample: false,
        }
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct Vae {
    in_channels: i64,
    latent_channels: i64,
    block_out_channels: Vec<i64>,
    layers_per_block: i64,
    norm_num_groups: i64,
    scaling_factor: f64,
}

impl Default for Vae {
    fn default() -> Self {
        Self {
            in_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![64],
            layers_per_block: 1,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
        }
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct TextEncoder {
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    max_position_embeddings: i64,
    hidden_act: String,
}

impl Default for TextEncoder {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: "quick_gelu".to_owned(),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Scheduler {
    prediction_type: Option<Prediction>,
    rescale_betas_zero_snr: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ModelIndex {
    _class_name: String,
}

/// The configuration that a folder's files state.
pub(crate) fn config(folder: &Path) -> Result<ModelConfig> {
    check_pipeline(folder)?;
    let scheduler = read_if_there::<Scheduler>(&folder.join("scheduler/scheduler_config.json"))?;
    Ok(ModelConfig {
        unet: unet(folder)?,
        vae: vae(&folder.join("vae/config.json"))?,
        clip: clip(&folder.join("text_encoder/config.json"))?,
        prediction: scheduler.prediction_type.unwrap_or_default(),
        zero_terminal_snr: scheduler.rescale_betas_zero_snr,
    })
}

/// `model_index.json` names the pipeline; a folder without one is taken at its parts.
fn check_pipeline(folder: &Path) -> Result<()> {
    let class = read_if_there::<ModelIndex>(&folder.join("model_index.json"))?._class_name;
    let found = if is_control_net(&folder.join("config.json")) {
        Architecture::ControlNet
    } else if class.contains("XL") || folder.join("text_encoder_2").is_dir() {
        Architecture::Sdxl
    } else if class.starts_with("StableDiffusion3") {
        Architecture::StableDiffusion3
    } else if class.starts_with("Flux") {
        Architecture::Flux
    } else if class.is_empty() || class.starts_with("StableDiffusion") {
        return Ok(());
    } else {
        Architecture::Pipeline(class)
    };
    Err(Error::Architecture { path: folder.to_path_buf(), found })
}

fn unet(folder: &Path) -> Result<UNetConfig> {
    let path = folder.join("unet/config.json");
    let file: Unet = read(&path)?;
    if file.use_linear_projection {
        let found = Architecture::StableDiffusion2;
        return Err(Error::Architecture { path: folder.to_path_buf(), found });
    }
    unet_config(&path, file)
}

/// Whether the configuration at `path` is a ControlNet's.
pub(crate) fn is_control_net(path: &Path) -> bool {
    read::<ControlNet>(path).is_ok_and(|file| file.class == "ControlNetModel")
}

/// The configuration of a ControlNet that is, or lies in, `named`, from its `config.json`.
pub(crate) fn control_net(named: &Path, path: &Path) -> Result<ControlNetConfig> {
    let not = |found| Error::NotControlNet { path: named.to_path_buf(), found };
    if !path.is_file() {
        // A whole model's folder has one in each of its parts.
        check_pipeline(named).map_err(|error| match error {
            Error::Architecture { found, .. } => not(found),
            other => other,
        })?;
        if named.join("unet").is_dir() {
            return Err(not(Architecture::StableDiffusion1));
        }
    }
    let (file, unet): (ControlNet, Unet) = (read(path)?, read(path)?);
    if !["", "ControlNetModel"].contains(&file.class.as_str()) {
        return Err(not(Architecture::Pipeline(file.class)));
    }
    match (file.addition_embed_type.is_some(), unet.use_linear_projection) {
        (true, _) => return Err(not(Architecture::SdxlControlNet)),
        (false, true) => return Err(not(Architecture::StableDiffusion2ControlNet)),
        (false, false) => {}
    }
    if let Some(found) = &file.class_embed_type {
        return Err(setting(path, "class_embed_type", "null", found));
    }
    expect(path, "conditioning_channels", "3", &file.conditioning_channels.to_string())?;
    expect(
        path,
        "controlnet_conditioning_channel_order",
        "rgb",
        &file.controlnet_conditioning_channel_order,
    )?;
    expect(path, "global_pool_conditions", "false", &file.global_pool_conditions.to_string())?;
    let hints = file.conditioning_embedding_out_channels;
    let hint_channels = <[i64; 4]>::try_from(hints).map_err(|found| {
        setting(path, "conditioning_embedding_out_channels", "four numbers", &format!("{found:?}"))
    })?;
    Ok(ControlNetConfig { unet: unet_config(path, unet)?, hint_channels })
}

/// The configuration of a UNet's way down and middle from shapes by diffusers' names, as far as they tell it.
pub(crate) fn encoder_config(path: &Path, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> Result<UNetConfig> {
    let size = |name: String, axis: usize| {
        let size = shape(&name).and_then(|shape| i64::try_from(*shape.get(axis)?).ok());
        size.ok_or_else(|| Error::Mismatch {
            path: path.to_path_buf(),
            mismatch: Box::new(Mismatch { missing: vec![name], ..Mismatch::default() }),
        })
    };
    let conv = |level: usize, layer: usize| format!("down_blocks.{level}.resnets.{layer}.conv2.weight");
    let levels = (0..).take_while(|level| shape(&conv(*level, 0)).is_some()).count().max(1);
    let layers = (0..).take_while(|layer| shape(&conv(0, *layer)).is_some()).count();
    let attends = |level| shape(&format!("down_blocks.{level}.attentions.0.proj_in.weight")).is_some();
    let context = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight";
    Ok(UNetConfig {
        in_channels: size("conv_in.weight".to_owned(), 1)?,
        block_out_channels: (0..levels).map(|level| size(conv(level, 0), 0)).collect::<Result<_>>()?,
        layers_per_block: layers as i64,
        cross_attention: (0..levels).map(attends).collect(),
        cross_attention_dim: size(context.to_owned(), 1)?,
        ..UNetConfig::sd15()
    })
}

fn unet_config(path: &Path, file: Unet) -> Result<UNetConfig> {
    expect(path, "act_fn", "silu", &file.act_fn)?;
    expect(path, "resnet_time_scale_shift", "default", &file.resnet_time_scale_shift)?;
    expect(path, "flip_sin_to_cos", "true", &file.flip_sin_to_cos.to_string())?;
    expect(path, "center_input_sample", "false", &file.center_input_sample.to_string())?;
    let heads = file.num_attention_heads.filter(|heads| !heads.is_null());
    Ok(UNetConfig {
        in_channels: file.in_channels,
        out_channels: file.out_channels,
        cross_attention: attention(path, &file.down_block_types)?,
        block_out_channels: file.block_out_channels,
        layers_per_block: number(path, "layers_per_block", &file.layers_per_block)?,
        cross_attention_dim: number(path, "cross_attention_dim", &file.cross_attention_dim)?,
        attention_heads: number(path, "attention_head_dim", &heads.unwrap_or(file.attention_head_dim))?,
        norm_groups: file.norm_num_groups,
    })
}

/// Which levels attend to the text.
fn attention(path: &Path, blocks: &[String]) -> Result<Vec<bool>> {
    let attends = |block: &String| match block.as_str() {
        "CrossAttnDownBlock2D" => Ok(true),
        "DownBlock2D" => Ok(false),
        other => Err(setting(path, "down_block_types", "CrossAttnDownBlock2D or DownBlock2D", other)),
    };
    blocks.iter().map(attends).collect()
}

pub(crate) fn vae(path: &Path) -> Result<VaeConfig> {
    let file: Vae = read(path)?;
    Ok(VaeConfig {
        in_channels: file.in_channels,
        latent_channels: file.latent_channels,
        block_out_channels: file.block_out_channels,
        layers_per_block: file.layers_per_block,
        norm_groups: file.norm_num_groups,
        scaling_factor: file.scaling_factor,
    })
}

fn clip(path: &Path) -> Result<ClipConfig> {
    let file: TextEncoder = read(path)?;
    expect(path, "hidden_act", "quick_gelu", &file.hidden_act)?;
    Ok(ClipConfig {
        vocab_size: file.vocab_size,
        hidden_size: file.hidden_size,
        intermediate_size: file.intermediate_size,
        layers: file.num_hidden_layers,
        heads: file.num_attention_heads,
        max_positions: file.max_position_embeddings,
    })
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read(path).map_err(Error::read(path))?;
    serde_json::from_slice(&text).map_err(|source| Error::Config { path: path.to_path_buf(), source })
}

fn read_if_there<T: DeserializeOwned + Default>(path: &Path) -> Result<T> {
    if path.exists() { read(path) } else { Ok(T::default()) }
}

/// One number for all levels; lists of numbers belong to other architectures.
fn number(path: &Path, name: &'static str, value: &Value) -> Result<i64> {
    value.as_i64().ok_or_else(|| setting(path, name, "one number for all levels", &value.to_string()))
}

fn expect(path: &Path, name: &'static str, expected: &'static str, found: &str) -> Result<()> {
    match found == expected {
        true => Ok(()),
        false => Err(setting(path, name, expected, found)),
    }
}

fn setting(path: &Path, setting: &'static str, expected: &'static str, found: &str) -> Error {
    Error::Setting { path: path.to_path_buf(), setting, expected, found: found.to_owned() }
}
