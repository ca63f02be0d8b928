//! Files of ControlNets: the ways of naming, what shapes tell, and what is none.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use common::{Raw, write_raw};
use safetensors::Dtype as FileDtype;
use vodka_checkpoint::{Checkpoint, ControlNetConfig, ControlNetFile, UNetConfig, WeightFile, keys};
use vodka_testkit::{fixture, model};

/// The form of the fixture; what no shape tells is 2 heads and 4 groups.
fn config() -> ControlNetConfig {
    let unet = UNetConfig {
        block_out_channels: vec![4, 8],
        layers_per_block: 1,
        cross_attention: vec![true, false],
        cross_attention_dim: 6,
        attention_heads: 2,
        norm_groups: 4,
        ..UNetConfig::sd15()
    };
    ControlNetConfig { unet, hint_channels: [2, 3, 4, 5] }
}

fn original() -> PathBuf {
    fixture("sd15/controlnet/ldm.pth")
}

fn open(path: &Path) -> vodka_checkpoint::Result<ControlNetFile> {
    ControlNetFile::open(path, &config().unet)
}

fn said(path: &Path) -> String {
    let error = open(path).unwrap_err();
    let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
    format!("{error}{source}").replace(&path.display().to_string(), "FILE")
}

/// The tensors of the fixture under other names, without those that get none.
fn renamed(rename: impl Fn(&str) -> Option<String>) -> Raw {
    let file = WeightFile::open(original()).unwrap();
    let tensor = |name: &str| {
        let tensor = file.tensor(name).unwrap();
        Some((rename(name)?, (FileDtype::F16, tensor.shape.clone(), tensor.data.to_vec())))
    };
    file.names().filter_map(tensor).collect()
}

/// diffusers' name of a name in the fixture.
fn of_diffusers() -> impl Fn(&str) -> Option<String> {
    let names: BTreeMap<_, _> =
        keys::control_net(&config()).into_iter().map(|key| (key.ldm, key.diffusers)).collect();
    move |name| names.get(name).cloned()
}

fn bare(name: &str) -> Option<String> {
    name.strip_prefix("control_model.").map(ToOwned::to_owned)
}

const CONFIG: &str = r#"{"_class_name": "ControlNetModel", "block_out_channels": [4, 8], "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "cross_attention_dim": 6, "attention_head_dim": 2,
    "norm_num_groups": 4, "conditioning_embedding_out_channels": [2, 3, 4, 5]}"#;

/// A diffusers folder with this configuration.
fn folder(config: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_raw(&dir.path().join("diffusion_pytorch_model.safetensors"), &renamed(of_diffusers()), &[]);
    fs::write(dir.path().join("config.json"), config).unwrap();
    dir
}

#[test]
fn one_network_has_many_names() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let original = open(&original()).unwrap();
    original.check_finite().unwrap();
    let check = |path: &Path| {
        let found = open(path).unwrap();
        assert_eq!(found.config(), &config());
        for key in keys::control_net(&config()) {
            let name = key.diffusers;
            assert_eq!(found.tensor(&name).unwrap(), original.tensor(&name).unwrap(), "{name}");
        }
    };
    write_raw(&path, &renamed(|name| Some(name.to_owned())), &[]);
    check(&path);
    write_raw(&path, &renamed(bare), &[]);
    check(&path);
    write_raw(&path, &renamed(of_diffusers()), &[]);
    check(&path);
    // A whole training, with its checkpoint and buffers beside.
    let mut whole = renamed(|name| Some(name.to_owned()));
    let one = || (FileDtype::F16, vec![1], vec![0; 2]);
    for name in ["model.diffusion_model.out.2.bias", "first_stage_model.quant_conv.bias", "betas"] {
        whole.insert(name.to_owned(), one());
    }
    write_raw(&path, &whole, &[]);
    check(&path);
    check(folder(CONFIG).path());
    // A file out of such a folder goes by the configuration beside it.
    let folder = folder(&CONFIG.replace("\"attention_head_dim\": 2", "\"attention_head_dim\": 4"));
    let found = open(&folder.path().join("diffusion_pytorch_model.safetensors")).unwrap();
    assert_eq!(found.config().unet.attention_heads, 4);
    assert_eq!(ControlNetFile::legacy_hash_of(&self::original()).unwrap().len(), 8);
    assert_eq!(ControlNetFile::legacy_hash_of(folder.path()).unwrap().len(), 8);
}

#[test]
fn control_nets_for_other_models_and_what_is_none_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let of_width = |width: usize, rename: &dyn Fn(&str) -> Option<String>| {
        let mut tensors = renamed(rename);
        for (name, tensor) in &mut tensors {
            if name.ends_with("attn2.to_k.weight") {
                *tensor = (FileDtype::F16, vec![8, width], vec![0; 16 * width]);
            }
        }
        write_raw(&path, &tensors, &[]);
        said(&path)
    };
    let sd2 =
        "`FILE` is a ControlNet for Stable Diffusion 2.x, expected a ControlNet for Stable Diffusion 1.x";
    let sdxl =
        "`FILE` is a ControlNet for Stable Diffusion XL, expected a ControlNet for Stable Diffusion 1.x";
    assert_eq!(of_width(1024, &bare), sd2);
    assert_eq!(of_width(1024, &of_diffusers()), sd2);
    assert_eq!(of_width(2048, &|name| Some(name.to_owned())), sdxl);
    let mut tensors = renamed(of_diffusers());
    tensors.insert("add_embedding.linear_1.bias".into(), (FileDtype::F16, vec![1], vec![0; 2]));
    write_raw(&path, &tensors, &[]);
    assert_eq!(said(&path), sdxl);

    assert!(
        said(&model("base")).ends_with(
            "is a Stable Diffusion 1.x checkpoint, expected a ControlNet for Stable Diffusion 1.x"
        )
    );
    assert!(said(&fixture("sd15/rrdb/body.pth")).contains("is an ESRGAN upscaler, expected a ControlNet"));
    let whole_model = said(&fixture("checkpoint/folder/model"));
    assert!(
        whole_model.contains("is a Stable Diffusion 1.x checkpoint, expected a ControlNet"),
        "{whole_model}"
    );

    // And the other way round.
    let said = |path: &Path| Checkpoint::open(path).unwrap_err().to_string();
    let expected = "is a ControlNet, expected a Stable Diffusion 1.x checkpoint";
    assert!(said(&original()).ends_with(expected), "{}", said(&original()));
    write_raw(&path, &renamed(bare), &[]);
    assert!(said(&path).ends_with(expected), "{}", said(&path));
    let folder = folder(CONFIG);
    assert!(said(folder.path()).ends_with(expected), "{}", said(folder.path()));
}

#[test]
fn weights_and_configurations_that_do_not_fit_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let with = |change: &dyn Fn(&str) -> Option<String>| {
        write_raw(&path, &renamed(|name| change(&bare(name)?)), &[]);
        said(&path)
    };
    let zero = "zero_convs.1.0.bias";
    let missing = with(&|name| (name != zero).then(|| name.to_owned()));
    assert!(missing.ends_with("1 missing: zero_convs.1.0.bias"), "{missing}");
    let other = with(&|name| Some(if name == zero { "zero_convs.9.0.bias" } else { name }.to_owned()));
    assert!(other.ends_with("1 missing: zero_convs.1.0.bias; 1 unexpected: zero_convs.9.0.bias"), "{other}");
    let hintless = with(&|name| (name != "input_hint_block.8.weight").then(|| name.to_owned()));
    assert!(hintless.ends_with("1 missing: input_hint_block.8.weight"), "{hintless}");
    let mut tensors = renamed(bare);
    tensors.insert(zero.to_owned(), (FileDtype::F16, vec![5], vec![0; 10]));
    write_raw(&path, &tensors, &[]);
    assert!(said(&path).ends_with("1 of another shape: zero_convs.1.0.bias ([5], expected [4])"));
    let bytes = fs::read(original()).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(said(&path).starts_with("`FILE`"), "{}", said(&path));

    let of = |from: &str, to: &str| {
        assert!(CONFIG.contains(from), "{from}");
        let folder = folder(&CONFIG.replace(from, to));
        said(folder.path())
    };
    let shuffle = of("\"norm_num_groups\": 4", "\"norm_num_groups\": 4, \"global_pool_conditions\": true");
    assert!(shuffle.ends_with("config.json`: global_pool_conditions is true, expected false"), "{shuffle}");
    let hints = of("[2, 3, 4, 5]", "[2, 3]");
    assert!(
        hints.ends_with("conditioning_embedding_out_channels is [2, 3], expected four numbers"),
        "{hints}"
    );
    let flux = of("ControlNetModel", "FluxControlNetModel");
    assert!(
        flux.contains("is a diffusers folder of the class FluxControlNetModel, expected a ControlNet"),
        "{flux}"
    );
    let sdxl = of("\"norm_num_groups\": 4", "\"norm_num_groups\": 4, \"addition_embed_type\": \"text_time\"");
    assert!(sdxl.contains("is a ControlNet for Stable Diffusion XL"), "{sdxl}");
    let sd2 = of("\"norm_num_groups\": 4", "\"norm_num_groups\": 4, \"use_linear_projection\": true");
    assert!(sd2.contains("is a ControlNet for Stable Diffusion 2.x"), "{sd2}");
    let groups = of("\"norm_num_groups\": 4", "\"norm_num_groups\": 3");
    assert!(groups.contains("describes an impossible model: unet.block_out_channels 4 is not"), "{groups}");
}
