//! Every block and every network gives what diffusers and transformers give, within the stated tolerances.

use tch::{
    Device, Kind, Tensor,
    nn::{Module, VarStore},
};
use vodka_checkpoint::{ClipConfig, UNetConfig, VaeConfig};
use vodka_sd15::{
    ClipTextModel, Params, Result, UNet, Vae,
    attention::{SpatialAttention, SpatialTransformer, TransformerBlock},
    clip::ClipLayer,
    resnet::{Downsample, ResnetBlock, ResnetConfig, Upsample},
    unet::{TimeEmbedding, sinusoids},
};
use vodka_testkit::{Case, Tolerance, assert_close};

use crate::common::{Golden, values, weights};

const CASES: [&str; 3] = ["0", "1", "2"];

/// Builds a block with the weights of its name and compares it on the three stored inputs.
fn block<B>(
    name: &str,
    make: impl Fn(&Params) -> Result<B>,
    call: impl Fn(&B, &dyn Fn(&str) -> Tensor) -> Tensor,
) {
    let case = Case::open("sd15/blocks");
    let vars = VarStore::new(Device::Cpu);
    let source = weights(name, Kind::Float);
    let block = make(&Params::new(&vars, &source)).expect("the source has everything");
    for i in CASES {
        let actual = call(&block, &|input| case.tensor(&format!("{name}.{input}/{i}")));
        case.check_tensor(&format!("{name}/{i}"), &actual);
    }
}

fn module<B: Module>(name: &str, make: impl Fn(&Params) -> Result<B>) {
    block(name, make, |block, input| input("x").apply(block));
}

#[test]
fn residual_blocks() {
    let unet = ResnetConfig { groups: 4, eps: 1e-5, time_channels: Some(24) };
    for (name, input) in [("resnet", 16), ("resnet_wider", 8)] {
        let make = |params: &Params| ResnetBlock::new(params, input, 16, unet);
        block(name, make, |block, input| block.forward(&input("x"), Some(&input("time"))));
    }
    let vae = ResnetConfig { groups: 4, eps: 1e-6, time_channels: None };
    let make = |params: &Params| ResnetBlock::new(params, 16, 8, vae);
    block("vae_resnet", make, |block, input| block.forward(&input("x"), None));
}

#[test]
fn changes_of_resolution() {
    module("downsample", |params| Downsample::symmetric(params, 8));
    module("vae_downsample", |params| Downsample::asymmetric(params, 8));
    for (name, less) in [("upsample", 0), ("upsample_odd", 1)] {
        block(
            name,
            |params| Upsample::new(params, 8),
            |block, input| {
                let (_, _, height, width) = input("x").size4().unwrap();
                block.forward(&input("x"), (2 * height - less, 2 * width - less))
            },
        );
    }
}

#[test]
fn time_embedding() {
    block(
        "time_embedding",
        |params| TimeEmbedding::new(params, 16, 32),
        |block, input| {
            assert_eq!(sinusoids(&input("t"), 16).size()[1], 16);
            block.forward(&input("t"), Kind::Float)
        },
    );
}

#[test]
fn attention() {
    let make = |params: &Params| TransformerBlock::new(params, 16, 12, 2);
    block("transformer_block", make, |block, input| block.forward(&input("x"), &input("context")));
    let make = |params: &Params| SpatialTransformer::new(params, 16, 12, 4, 4);
    block("transformer", make, |block, input| block.forward(&input("x"), &input("context")));
    module("vae_attention", |params| SpatialAttention::new(params, 16, 4));
    let clip = ClipConfig { hidden_size: 16, intermediate_size: 48, heads: 2, ..ClipConfig::sd15() };
    module("clip_layer", |params| ClipLayer::new(params, &clip));
}

/// The UNet of `unet_two_levels`.
pub fn two_levels() -> UNetConfig {
    UNetConfig {
        block_out_channels: vec![32, 64],
        layers_per_block: 1,
        cross_attention: vec![true, false],
        cross_attention_dim: 24,
        attention_heads: 4,
        norm_groups: 8,
        ..UNetConfig::sd15()
    }
}

/// The UNet of `unet_three_levels`.
fn three_levels() -> UNetConfig {
    UNetConfig {
        block_out_channels: vec![16, 32, 48],
        layers_per_block: 2,
        cross_attention: vec![false, true, true],
        cross_attention_dim: 20,
        attention_heads: 2,
        norm_groups: 4,
        ..UNetConfig::sd15()
    }
}

/// The output of a whole UNet on a stored input.
fn denoise(case: &Case, unet: &UNet, i: &str, kind: Kind) -> Tensor {
    let latents = case.tensor(&format!("latents/{i}")).to_kind(kind);
    let context = case.tensor(&format!("context/{i}")).to_kind(kind);
    unet.forward(&latents, &case.integers(&format!("timesteps/{i}")), &context)
}

#[test]
fn whole_unets() {
    for (name, config) in [("unet_two_levels", two_levels()), ("unet_three_levels", three_levels())] {
        let case = Case::open(&format!("sd15/{name}"));
        let unet = UNet::new(&config, Device::Cpu, Kind::Float, &weights(name, Kind::Float)).unwrap();
        for i in CASES {
            case.check_tensor(&format!("output/{i}"), &denoise(&case, &unet, i, Kind::Float));
        }
        let faint = weights(&format!("{name}_faint"), Kind::Float);
        let unet = UNet::new(&config, Device::Cpu, Kind::Float, &faint).unwrap();
        case.check_tensor("output_faint/0", &denoise(&case, &unet, "0", Kind::Float));
    }
}

#[test]
fn a_unet_in_bf16_is_near() {
    let name = "unet_two_levels";
    let case = Case::open(&format!("sd15/{name}"));
    let unet = UNet::new(&two_levels(), Device::Cpu, Kind::BFloat16, &weights(name, Kind::BFloat16)).unwrap();
    let why = "8 bits of precision through 40 layers".to_owned();
    let tolerance = Tolerance { max_abs: 0.15, mean_abs: Some(0.02), why };
    for i in CASES {
        let output = denoise(&case, &unet, i, Kind::BFloat16);
        assert_eq!(output.kind(), Kind::BFloat16);
        assert_close("bf16", &values(&output), &case.array(&format!("output/{i}")).data, &tolerance);
    }
}

#[test]
fn whole_vae() {
    let case = Case::open("sd15/vae");
    let config = VaeConfig {
        block_out_channels: vec![8, 16, 16],
        layers_per_block: 2,
        norm_groups: 4,
        ..VaeConfig::sd15()
    };
    let vae = Vae::new(&config, Device::Cpu, Kind::Float, &weights("vae", Kind::Float)).unwrap();
    for i in CASES {
        let moments = vae.encode(&case.tensor(&format!("pixels/{i}")));
        case.check_tensor(&format!("mean/{i}"), &moments.mean);
        case.check_tensor(&format!("logvar/{i}"), &moments.logvar);
        case.check_tensor(&format!("latents/{i}"), &moments.sample(&case.tensor(&format!("noise/{i}"))));
        let latents = case.tensor(&format!("latents/{i}"));
        case.check_tensor(&format!("decoded/{i}"), &vae.decode(&latents));
    }
    let vae = Vae::new(&config, Device::Cpu, Kind::Float, &weights("vae_faint", Kind::Float)).unwrap();
    case.check_tensor("mean_faint/0", &vae.encode(&case.tensor("pixels/0")).mean);
    case.check_tensor("decoded_faint/0", &vae.decode(&case.tensor("latents/0")));
}

#[test]
fn whole_clip_at_every_clip_skip() {
    let case = Case::open("sd15/clip");
    let config = ClipConfig {
        vocab_size: 200,
        hidden_size: 32,
        intermediate_size: 96,
        layers: 4,
        heads: 4,
        max_positions: 77,
    };
    let clip = ClipTextModel::new(&config, Device::Cpu, Kind::Float, &weights("clip", Kind::Float)).unwrap();
    for i in CASES {
        for skip in [1, 2, 3, 5] {
            let output = clip.forward(&case.integers(&format!("ids/{i}")), skip);
            case.check_tensor(&format!("skip_{skip}/{i}"), &output);
        }
    }
    let faint = weights("clip_faint", Kind::Float);
    let clip = ClipTextModel::new(&config, Device::Cpu, Kind::Float, &faint).unwrap();
    case.check_tensor("skip_1_faint/0", &clip.forward(&case.integers("ids/0"), 1));
}
