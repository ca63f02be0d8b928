//! Whole pictures, from text to pixels, against diffusers' and transformers' networks.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use tch::{Device, Kind};
use vodka_checkpoint::{
    ClipConfig, Error, ModelConfig, Precision, UNetConfig, VaeConfig, keys, write_checkpoint,
};
use vodka_noise::TorchRng;
use vodka_sampler::{Pipeline, Settings};
use vodka_stage::Interrupt;
use vodka_testkit::Case;

/// The model of the fixture's generate.py.
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

/// Writes the model with the weights that generate.py draws: each seeded by the CRC-32 of `part/name`.
fn write_model(path: &Path) {
    let config = config();
    let parts = [
        ("unet", keys::unet(&config.unet)),
        ("vae", keys::vae(&config.vae)),
        ("clip", keys::clip(&config.clip)),
    ];
    let by_name: HashMap<_, _> = parts
        .into_iter()
        .flat_map(|(part, keys)| {
            keys.into_iter().map(move |key| (key.ldm, (format!("{part}/{}", key.diffusers), key.shape)))
        })
        .collect();
    let mut tensor = |name: &str| -> Result<_, Error> {
        let (seed, shape) = &by_name[name];
        let mut rng = TorchRng::new(crc32(seed.as_bytes()).into());
        let numel: usize = shape.iter().product();
        let width = (numel as f64 / shape[0] as f64).sqrt() as f32;
        let values = rng.randn(numel).into_iter().map(|value| match shape.len() {
            1 if name.ends_with("bias") => value * 0.05,
            1 => 1.0 + value * 0.1,
            _ => value / width,
        });
        Ok((shape.clone(), values.collect()))
    };
    write_checkpoint(path, &config, Precision::F32, &BTreeMap::new(), &mut tensor).unwrap();
}

/// zlib's, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

fn pipeline(path: &Path) -> Pipeline {
    write_model(path);
    Pipeline::open(path, Device::Cpu, Kind::Float).unwrap()
}

#[test]
fn pictures_are_those_of_diffusers() {
    let dir = tempfile::tempdir().unwrap();
    let pipeline = pipeline(&dir.path().join("tiny.safetensors"));
    let case = Case::open("sampler/picture");
    let base = Settings {
        prompt: "a red circle and a blue star".into(),
        negative_prompt: "blurry".into(),
        ..Settings::default()
    };
    let euler =
        Settings { seed: 42, steps: 12, cfg_scale: 5.0, size: "64x48".parse().unwrap(), ..base.clone() };
    let ddim = Settings {
        seed: u32::MAX,
        steps: 10,
        cfg_scale: 7.5,
        clip_skip: 2,
        size: "40x72".parse().unwrap(),
        sampler: "DDIM".parse().unwrap(),
        ..base
    };
    for (name, settings, calls) in [("picture/euler", euler, 12), ("picture/ddim", ddim, 9)] {
        let mut steps = Vec::new();
        let on_step = &mut |done, total| steps.push((done, total));
        let picture = pipeline.generate(&settings, &Interrupt::new(), on_step).unwrap().unwrap();
        let pixels: Vec<f32> = picture.iter().map(|byte| f32::from(*byte)).collect();
        case.check(name, &pixels, &[picture.height() as usize, picture.width() as usize, 3]);
        assert_eq!(steps, (1..=calls).map(|done| (done, calls)).collect::<Vec<_>>());
    }
}

#[test]
fn without_guidance_the_negative_prompt_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let pipeline = pipeline(&dir.path().join("tiny.safetensors"));
    let picture = |negative: &str, cfg_scale| {
        let (negative_prompt, size) = (negative.to_owned(), "64x64".parse().unwrap());
        let settings = Settings {
            prompt: "a cat".into(),
            negative_prompt,
            cfg_scale,
            size,
            steps: 2,
            ..Settings::default()
        };
        pipeline.generate(&settings, &Interrupt::new(), &mut |_, _| {}).unwrap().unwrap()
    };
    assert_eq!(picture("", 1.0), picture("blurry", 1.0));
    assert_ne!(picture("", 3.0), picture("blurry", 3.0));
    // In a batch of two the convolutions add up in another order.
    let near = |(a, b): (&u8, &u8)| a.abs_diff(*b) <= 1;
    assert!(picture("x", 1.0).iter().zip(picture("x", 1.0 + 1e-12).iter()).all(near));
}

#[test]
fn what_the_model_cannot_do_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let pipeline = pipeline(&dir.path().join("tiny.safetensors"));
    let settings = Settings { clip_skip: 4, size: "64x64".parse().unwrap(), ..Settings::default() };
    let error = pipeline.generate(&settings, &Interrupt::new(), &mut |_, _| {}).unwrap_err();
    assert_eq!(error.to_string(), "clip skip is 4, expected 1 to 3");
}
