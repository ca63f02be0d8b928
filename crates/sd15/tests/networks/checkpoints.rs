//! From a checkpoint to the networks and back: names, shapes and values.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

use tch::{Device, Kind, Tensor};
use vodka_checkpoint::{
    Checkpoint, ClipConfig, ModelConfig, Precision, Prediction, UNetConfig, VaeConfig,
    keys::{self, Key},
    write_checkpoint,
};
use vodka_sd15::{ClipTextModel, Network, Result, StableDiffusion, UNet, Vae};

use crate::common::{values, weight};

/// Compares a network's parameters with its key list, and counts their elements.
fn count(network: &dyn Network, keys: &[Key]) -> i64 {
    let found: BTreeMap<String, Vec<i64>> =
        network.vars().variables().into_iter().map(|(name, tensor)| (name, tensor.size())).collect();
    let shape = |key: &Key| key.diffusers_shape.iter().map(|n| *n as i64).collect();
    let expected: BTreeMap<String, Vec<i64>> = keys.iter().map(|k| (k.diffusers.clone(), shape(k))).collect();
    assert_eq!(found, expected);
    found.values().map(|shape| shape.iter().product::<i64>()).sum()
}

#[test]
fn the_full_sd15_has_exactly_the_parameters_of_its_key_list() {
    let ModelConfig { unet, vae, clip, .. } = ModelConfig::sd15();
    // One element seen from every index: a parameter of any shape in four bytes.
    let zero = Tensor::zeros([1], (Kind::Float, Device::Cpu));
    let source = |_: &str, shape: &[i64]| -> Result<Tensor> { Ok(zero.expand(shape, false)) };
    let (device, kind) = (Device::Cpu, Kind::Float);
    let of_unet = count(&UNet::new(&unet, device, kind, &source).unwrap(), &keys::unet(&unet));
    let of_clip = count(&ClipTextModel::new(&clip, device, kind, &source).unwrap(), &keys::clip(&clip));
    let of_vae = count(&Vae::new(&vae, device, kind, &source).unwrap(), &keys::vae(&vae));
    assert_eq!([of_unet, of_clip, of_vae], [859_520_964, 123_060_480, 83_653_863]);
}

fn tiny() -> ModelConfig {
    ModelConfig {
        unet: UNetConfig {
            block_out_channels: vec![8, 16],
            layers_per_block: 1,
            cross_attention: vec![true, false],
            cross_attention_dim: 16,
            attention_heads: 2,
            norm_groups: 4,
            ..UNetConfig::sd15()
        },
        vae: VaeConfig {
            block_out_channels: vec![8, 8],
            layers_per_block: 1,
            norm_groups: 4,
            ..VaeConfig::sd15()
        },
        clip: ClipConfig {
            vocab_size: 50,
            hidden_size: 16,
            intermediate_size: 32,
            layers: 2,
            heads: 2,
            max_positions: 77,
        },
        prediction: Prediction::Epsilon,
        zero_terminal_snr: false,
    }
}

/// Writes a tiny checkpoint with the weights that belong to its LDM names.
fn write_tiny(path: &Path, precision: Precision) -> ModelConfig {
    let config = tiny();
    let shapes: HashMap<_, _> = keys::all(&config).into_iter().map(|key| (key.ldm, key.shape)).collect();
    let mut tensors = |name: &str| -> Result<(Vec<usize>, Vec<f32>)> {
        let shape: Vec<i64> = shapes[name].iter().map(|n| *n as i64).collect();
        Ok((shapes[name].clone(), values(&weight("tiny", name, &shape))))
    };
    write_checkpoint(path, &config, precision, &BTreeMap::new(), &mut tensors).expect("a folder of ours");
    config
}

#[test]
fn loaded_and_saved_a_checkpoint_is_the_same_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    for precision in [Precision::F16, Precision::F32] {
        let (first, second) = (dir.path().join("first.safetensors"), dir.path().join("second.safetensors"));
        let config = write_tiny(&first, precision);
        let checkpoint = Checkpoint::open(&first).unwrap();
        let model = StableDiffusion::load(&checkpoint, Device::Cpu, Kind::Float).unwrap();
        assert_eq!(model.config, config);
        model.save(&second, precision, &BTreeMap::new()).unwrap();
        assert!(fs::read(&first).unwrap() == fs::read(&second).unwrap(), "{precision}");
    }
}

#[test]
fn loaded_networks_have_the_kind_asked_for_and_are_frozen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.safetensors");
    write_tiny(&path, Precision::F32);
    let checkpoint = Checkpoint::open(&path).unwrap();
    for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
        let model = StableDiffusion::load(&checkpoint, Device::Cpu, kind).unwrap();
        for (name, tensor) in model.unet.vars().variables() {
            assert_eq!((tensor.kind(), tensor.requires_grad()), (kind, false), "{name}");
        }
    }
}

#[test]
fn what_is_written_to_the_state_is_written_to_the_network() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.safetensors");
    write_tiny(&path, Precision::F32);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let mut model = StableDiffusion::load(&checkpoint, Device::Cpu, Kind::Float).unwrap();
    model.unet.unfreeze();
    for (_, mut tensor) in model.state() {
        let _ = tensor.fill_(0.25);
    }
    for network in [&model.unet as &dyn Network, &model.vae, &model.clip] {
        for (name, tensor) in network.vars().variables() {
            assert!(values(&tensor).iter().all(|value| *value == 0.25), "{name}");
        }
    }
}

#[test]
fn missing_tensors_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.safetensors");
    write_tiny(&path, Precision::F32);
    // The configuration in the metadata now says one layer more.
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(13).position(|window| window == br#"\"layers\":2,"#).unwrap();
    bytes[at + 11] = b'3';
    fs::write(&path, bytes).unwrap();
    let error =
        StableDiffusion::load(&Checkpoint::open(&path).unwrap(), Device::Cpu, Kind::Float).unwrap_err();
    assert!(error.to_string().contains("text_model.encoder.layers.2."), "{error}");
}
