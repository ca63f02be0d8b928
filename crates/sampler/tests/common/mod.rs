//! The tiny model of the fixtures in `sampler/`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(dead_code, reason = "not every test uses all of it")]

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use tch::{Device, Kind};
use vodka_checkpoint::{
    Checkpoint, ClipConfig, ControlNetConfig, Dtype, Error, ModelConfig, Precision, SafetensorsWriter,
    TensorSpec, UNetConfig, VaeConfig,
    keys::{self, Key},
    write_checkpoint,
};
use vodka_noise::TorchRng;
use vodka_sampler::Pipeline;

/// The model of the fixtures' common.py.
fn config() -> ModelConfig {
    ModelConfig {
        unet: UNetConfig {
            block_out_channels: vec![16, 32],
            layers_per_block: 1,
            cross_attention: vec![true, false],
            cross_attention_dim: 16,
            attention_heads: 2,
            norm_groups: 8,
            ..UNetConfig::sd15()
        },
        vae: VaeConfig {
            block_out_channels: vec![8, 8, 16, 16],
            layers_per_block: 1,
            norm_groups: 4,
            ..VaeConfig::sd15()
        },
        clip: ClipConfig {
            hidden_size: 16,
            intermediate_size: 32,
            layers: 3,
            heads: 2,
            ..ClipConfig::sd15()
        },
        ..ModelConfig::sd15()
    }
}

/// The weights that common.py draws, seeded by the CRC-32 of `part/name`.
fn drawn(part: &str, name: &str, shape: &[usize]) -> Vec<f32> {
    let mut rng = TorchRng::new(crc32(format!("{part}/{name}").as_bytes()).into());
    let numel: usize = shape.iter().product();
    let width = (numel as f64 / shape[0] as f64).sqrt() as f32;
    let values = rng.randn(numel).into_iter().map(|value| match shape.len() {
        1 if name.ends_with("bias") => value * 0.05,
        1 => 1.0 + value * 0.1,
        _ => value / width,
    });
    values.collect()
}

/// Writes a ControlNet for the model, as its first trainer does.
pub fn write_control_net(path: &Path) {
    let config = ControlNetConfig { unet: config().unet, hint_channels: [4, 4, 8, 8] };
    let keys = keys::control_net(&config);
    let spec = |key: &Key| TensorSpec { name: key.ldm.clone(), dtype: Dtype::F32, shape: key.shape.clone() };
    let writer = SafetensorsWriter::create(path, keys.iter().map(spec).collect(), &BTreeMap::new()).unwrap();
    for (i, key) in keys.iter().enumerate() {
        let values = drawn("control", &key.diffusers, &key.shape);
        let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        writer.write_at(i, 0, &bytes).unwrap();
    }
    writer.commit().unwrap();
}

/// Writes the model with the weights that common.py draws.
pub fn write_model(path: &Path) {
    let config = config();
    let parts = [
        ("unet", keys::unet(&config.unet)),
        ("vae", keys::vae(&config.vae)),
        ("clip", keys::clip(&config.clip)),
    ];
    let by_name: HashMap<_, _> = parts
        .into_iter()
        .flat_map(|(part, keys)| keys.into_iter().map(move |key| (key.ldm, (part, key.diffusers, key.shape))))
        .collect();
    let mut tensor = |name: &str| -> Result<_, Error> {
        let (part, name, shape) = &by_name[name];
        Ok((shape.clone(), drawn(part, name, shape)))
    };
    write_checkpoint(path, &config, Precision::F32, &BTreeMap::new(), &mut tensor).unwrap();
}

/// zlib's, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

pub fn pipeline(path: &Path) -> Pipeline {
    write_model(path);
    Pipeline::open(path, Device::Cpu, Kind::Float).unwrap()
}

/// Writes the file again with one tensor changed.
pub fn write_changed(from: &Path, to: &Path, tensor: &str, change: &dyn Fn(&mut [f32])) {
    let checkpoint = Checkpoint::open(from).unwrap();
    let mut read = |name: &str| -> Result<_, Error> {
        let view = checkpoint.tensor(name)?;
        let mut values = view.to_f32();
        if name == tensor {
            change(&mut values);
        }
        Ok((view.shape, values))
    };
    write_checkpoint(to, &config(), Precision::F32, &BTreeMap::new(), &mut read).unwrap();
}
