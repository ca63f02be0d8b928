//! Writes a diffusers folder: what `StableDiffusionPipeline.save_pretrained` writes.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use vodka_stage::write_atomic;

use crate::{
    Error, ModelConfig, Part, Precision, Prediction, Result, SafetensorsWriter, TensorSpec, Values,
    check_free_space, folder::AtomicFolder, in_file_order, keys, tokenizer, write::encode_tensor,
};

/// The version of diffusers whose form this is.
const DIFFUSERS_VERSION: &str = "0.38.0";

/// A folder being written: whole or not at all, each part's tensors in any order.
pub(crate) struct DiffusersWriter {
    folder: AtomicFolder,
    parts: Vec<SafetensorsWriter>,
    /// Part and index in its file, by LDM name.
    places: HashMap<String, (usize, usize)>,
}

impl DiffusersWriter {
    /// Starts a folder that holds these tensors, given by LDM name. All of the configuration's must be among them, and
    /// others find no place.
    pub(crate) fn create(path: &Path, specs: &[TensorSpec], config: &ModelConfig) -> Result<Self> {
        let dtypes: HashMap<_, _> = specs.iter().map(|spec| (spec.name.as_str(), spec.dtype)).collect();
        let folder = AtomicFolder::create(path)?;
        // The parts' own checks see only the part that they write.
        check_free_space(path, specs.iter().map(TensorSpec::bytes).sum())?;
        let (mut parts, mut places) = (Vec::new(), HashMap::new());
        for part in Part::ALL {
            let (name, keys) = match part {
                Part::Unet => ("unet/diffusion_pytorch_model.safetensors", keys::unet(&config.unet)),
                Part::Vae => ("vae/diffusion_pytorch_model.safetensors", keys::vae(&config.vae)),
                Part::TextEncoder => ("text_encoder/model.safetensors", keys::clip(&config.clip)),
            };
            let ldm: HashMap<_, _> =
                keys.iter().map(|key| (key.diffusers.clone(), key.ldm.clone())).collect();
            let mut specs: Vec<_> = keys
                .into_iter()
                .filter_map(|key| {
                    let dtype = *dtypes.get(key.ldm.as_str())?;
                    Some(TensorSpec { name: key.diffusers, dtype, shape: key.diffusers_shape })
                })
                .collect();
            in_file_order(&mut specs);
            for (index, spec) in specs.iter().enumerate() {
                places.insert(ldm[&spec.name].clone(), (parts.len(), index));
            }
            parts.push(SafetensorsWriter::create(folder.path().join(name), specs, &BTreeMap::new())?);
        }
        write_texts(folder.path(), config)?;
        Ok(Self { folder, parts, places })
    }

    /// Writes some bytes of a tensor, `start` bytes from its own beginning.
    pub(crate) fn write_at(&self, ldm: &str, start: u64, bytes: &[u8]) -> Result<()> {
        let (part, index) = self.places[ldm];
        self.parts[part].write_at(index, start, bytes)
    }

    pub(crate) fn commit(self) -> Result<()> {
        for part in self.parts {
            part.commit()?;
        }
        self.folder.commit()
    }
}

/// Writes the model as a diffusers folder, whole or not at all: three parts in safetensors, their configurations, the
/// scheduler (PNDM, as the original's; DDIM with `rescale_betas_zero_snr` where the model is trained so), CLIP's tokenizer, and `model_index.json`, so that
/// `DiffusionPipeline.from_pretrained` opens it. There is no safety checker. An older folder of this name is replaced.
///
/// `tensors` is asked for each name of [`keys::all`] once, for LDM shape and values.
///
/// # Errors
/// Whatever `tensors` returns; a shape other than the configuration's; a value that is not finite, or too large for
/// the precision; a disk that is full. The target is then as it was before.
pub fn write_diffusers<E: From<Error>>(
    path: impl AsRef<Path>,
    config: &ModelConfig,
    precision: Precision,
    tensors: &mut dyn FnMut(&str) -> Result<Values, E>,
) -> Result<(), E> {
    let path = path.as_ref();
    config.check()?;
    let spec = |key: keys::Key| TensorSpec { name: key.ldm, dtype: precision.dtype(), shape: key.shape };
    let specs: Vec<_> = keys::all(config).into_iter().map(spec).collect();
    let writer = DiffusersWriter::create(path, &specs, config)?;
    for spec in &specs {
        let (shape, values) = tensors(&spec.name)?;
        encode_tensor(path, spec, &shape, &values, precision, &mut |start, bytes| {
            writer.write_at(&spec.name, start, bytes)
        })?;
    }
    writer.commit()?;
    Ok(())
}

/// Everything but weights.
fn write_texts(folder: &Path, config: &ModelConfig) -> Result<()> {
    let write = |name: &str, value: &Value| {
        let text = serde_json::to_string_pretty(value).expect("plain data") + "\n";
        write_atomic(folder.join(name), text)
    };
    write("model_index.json", &model_index(config))?;
    write("unet/config.json", &unet(config))?;
    write("vae/config.json", &vae(config))?;
    write("text_encoder/config.json", &text_encoder(config))?;
    write("scheduler/scheduler_config.json", &scheduler(config))?;
    let positions = config.clip.max_positions;
    for (name, text) in tokenizer::files(positions) {
        write_atomic(PathBuf::from(folder).join("tokenizer").join(name), text)?;
    }
    Ok(())
}

fn model_index(config: &ModelConfig) -> Value {
    let class = match config.unet.in_channels - config.vae.latent_channels {
        0 => "StableDiffusionPipeline",
        4 => "StableDiffusionInstructPix2PixPipeline",
        _ => "StableDiffusionInpaintPipeline",
    };
    json!({
        "_class_name": class,
        "_diffusers_version": DIFFUSERS_VERSION,
        "feature_extractor": [null, null],
        "image_encoder": [null, null],
        "requires_safety_checker": false,
        "safety_checker": [null, null],
        "scheduler": ["diffusers", scheduler_class(config)],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    })
}

fn unet(config: &ModelConfig) -> Value {
    let unet = &config.unet;
    let blocks = |attends: &bool, way: &str| match attends {
        true => format!("CrossAttn{way}Block2D"),
        false => format!("{way}Block2D"),
    };
    let down: Vec<_> = unet.cross_attention.iter().map(|attends| blocks(attends, "Down")).collect();
    let up: Vec<_> = unet.cross_attention.iter().rev().map(|attends| blocks(attends, "Up")).collect();
    json!({
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": DIFFUSERS_VERSION,
        "act_fn": "silu",
        "attention_head_dim": unet.attention_heads,
        "block_out_channels": unet.block_out_channels,
        "center_input_sample": false,
        "cross_attention_dim": unet.cross_attention_dim,
        "down_block_types": down,
        "downsample_padding": 1,
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "in_channels": unet.in_channels,
        "layers_per_block": unet.layers_per_block,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
        "norm_num_groups": unet.norm_groups,
        "out_channels": unet.out_channels,
        "sample_size": 64,
        "up_block_types": up,
    })
}

fn vae(config: &ModelConfig) -> Value {
    let vae = &config.vae;
    let levels = vae.block_out_channels.len();
    json!({
        "_class_name": "AutoencoderKL",
        "_diffusers_version": DIFFUSERS_VERSION,
        "act_fn": "silu",
        "block_out_channels": vae.block_out_channels,
        "down_block_types": vec!["DownEncoderBlock2D"; levels],
        "in_channels": vae.in_channels,
        "latent_channels": vae.latent_channels,
        "layers_per_block": vae.layers_per_block,
        "norm_num_groups": vae.norm_groups,
        "out_channels": vae.in_channels,
        "sample_size": 64 * vae.downscale(),
        "scaling_factor": vae.scaling_factor,
        "up_block_types": vec!["UpDecoderBlock2D"; levels],
    })
}

fn text_encoder(config: &ModelConfig) -> Value {
    let clip = &config.clip;
    json!({
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": clip.hidden_size,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": clip.intermediate_size,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": clip.max_positions,
        "model_type": "clip_text_model",
        "num_attention_heads": clip.heads,
        "num_hidden_layers": clip.layers,
        "pad_token_id": 1,
        "projection_dim": clip.hidden_size,
        "vocab_size": clip.vocab_size,
    })
}

/// Which scheduler; PNDM cannot begin with nothing but noise.
fn scheduler_class(config: &ModelConfig) -> &'static str {
    if config.zero_terminal_snr { "DDIMScheduler" } else { "PNDMScheduler" }
}

fn scheduler(config: &ModelConfig) -> Value {
    let prediction = match config.prediction {
        Prediction::Epsilon => "epsilon",
        Prediction::VPrediction => "v_prediction",
    };
    if config.zero_terminal_snr {
        return json!({
            "_class_name": scheduler_class(config),
            "_diffusers_version": DIFFUSERS_VERSION,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "clip_sample": false,
            "num_train_timesteps": 1000,
            "prediction_type": prediction,
            "rescale_betas_zero_snr": true,
            "set_alpha_to_one": true,
            "steps_offset": 1,
            "timestep_spacing": "trailing",
            "trained_betas": null,
        });
    }
    json!({
        "_class_name": scheduler_class(config),
        "_diffusers_version": DIFFUSERS_VERSION,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "prediction_type": prediction,
        "set_alpha_to_one": false,
        "skip_prk_steps": true,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": null,
    })
}
