//! Small models, and files as other programs write them.

#![allow(dead_code, reason = "each test file takes what it needs")]

use std::{collections::BTreeMap, path::Path};

use safetensors::{Dtype, tensor::TensorView};
use vodka_checkpoint::{
    ClipConfig, ModelConfig, Precision, Prediction, Result, UNetConfig, VaeConfig, Values, keys,
};

/// Two levels, a few thousand weights.
pub fn tiny() -> ModelConfig {
    ModelConfig {
        unet: UNetConfig {
            in_channels: 4,
            out_channels: 4,
            block_out_channels: vec![4, 8],
            layers_per_block: 1,
            cross_attention: vec![true, false],
            cross_attention_dim: 6,
            attention_heads: 2,
            norm_groups: 2,
        },
        vae: VaeConfig {
            in_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![2, 4],
            layers_per_block: 1,
            norm_groups: 2,
            scaling_factor: 0.5,
        },
        clip: ClipConfig {
            vocab_size: 11,
            hidden_size: 6,
            intermediate_size: 8,
            layers: 2,
            heads: 3,
            max_positions: 5,
        },
        prediction: Prediction::VPrediction,
        zero_terminal_snr: false,
    }
}

/// As [`tiny`], but with what Stable Diffusion 1.x has where no tensor tells.
pub fn tiny_with_defaults() -> ModelConfig {
    let mut config = tiny();
    config.unet.block_out_channels = vec![32, 64];
    config.unet.attention_heads = 8;
    config.unet.norm_groups = 32;
    config.unet.cross_attention_dim = 12;
    config.vae.block_out_channels = vec![32, 32];
    config.vae.norm_groups = 32;
    config.vae.scaling_factor = 0.18215;
    config.clip.hidden_size = 12;
    config.clip.heads = 12;
    config.prediction = Prediction::Epsilon;
    config
}

/// Weights that differ from tensor to tensor and that fp16 holds exactly.
pub fn weights(name: &str, numel: usize) -> Vec<f32> {
    let seed = name.bytes().fold(7_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(byte)));
    (0..numel as u32).map(|i| ((seed ^ i.wrapping_mul(2_654_435_761)) % 2048) as f32 / 1024.0 - 1.0).collect()
}

/// Shape and weights of every tensor of a model, for `write_checkpoint`.
pub fn source(config: &ModelConfig) -> impl FnMut(&str) -> Result<Values> {
    let shapes: BTreeMap<_, _> = keys::all(config).into_iter().map(|key| (key.ldm, key.shape)).collect();
    move |name| Ok((shapes[name].clone(), weights(name, shapes[name].iter().product())))
}

/// Writes [`tiny`] with our own writer.
pub fn write(path: &Path, config: &ModelConfig, precision: Precision) {
    vodka_checkpoint::write_checkpoint(path, config, precision, &BTreeMap::new(), &mut source(config))
        .unwrap();
}

/// Tensors as they are put into a file: type, shape, bytes.
pub type Raw = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// All weights of a model in fp16, as another program would write them.
pub fn raw(config: &ModelConfig) -> Raw {
    let keys = keys::all(config).into_iter();
    keys.map(|key| {
        let values = weights(&key.ldm, key.shape.iter().product());
        let bytes = values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect();
        (key.ldm, (Dtype::F16, key.shape, bytes))
    })
    .collect()
}

/// Writes tensors with the safetensors crate.
pub fn write_raw(path: &Path, tensors: &Raw, metadata: &[(&str, &str)]) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    safetensors::serialize_to_file(views, Some(metadata), path).unwrap();
}
