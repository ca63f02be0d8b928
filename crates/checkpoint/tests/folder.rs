//! Diffusers folders, as diffusers writes them and as it once did.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use common::{Raw, write_raw};
use safetensors::SafeTensors;
use vodka_checkpoint::{Checkpoint, Precision, Prediction};

fn original() -> PathBuf {
    vodka_testkit::fixture("checkpoint/folder/model")
}

/// A copy of the original folder.
fn copy() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for part in ["unet", "vae", "text_encoder", "scheduler"] {
        fs::create_dir(dir.path().join(part)).unwrap();
        for entry in fs::read_dir(original().join(part)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), dir.path().join(part).join(entry.file_name())).unwrap();
        }
    }
    dir
}

/// Renames the tensors of a file.
fn rename(path: &Path, rename: impl Fn(&str) -> String) {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let raw: Raw = file
        .iter()
        .map(|(name, tensor)| {
            (rename(name), (tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec()))
        })
        .collect();
    write_raw(path, &raw, &[]);
}

/// Changes the text of a file.
fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

/// Compares every tensor with the single file that diffusers' converter, run backwards, made of the same weights.
fn check_against_golden(path: &Path) {
    let golden = fs::read(vodka_testkit::fixture("checkpoint/folder/golden.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let checkpoint = Checkpoint::open(path).unwrap();
    checkpoint.verify().unwrap();
    assert_eq!(checkpoint.names().count(), golden.len());
    for (name, expected) in golden.iter() {
        let found = checkpoint.tensor(name).unwrap();
        assert_eq!(found.shape, expected.shape(), "{name}");
        assert_eq!(found.data, expected.data(), "{name}");
    }
}

fn said(path: &Path) -> String {
    let error = Checkpoint::open(path).and_then(|checkpoint| checkpoint.verify()).unwrap_err();
    error.to_string().replace(&path.display().to_string(), "FOLDER")
}

#[test]
fn a_folder_reads_like_the_single_file() {
    check_against_golden(&original());
    let checkpoint = Checkpoint::open(original()).unwrap();
    let config = checkpoint.config();
    assert_eq!((config.unet.attention_heads, config.unet.norm_groups), (2, 4));
    assert_eq!(config.unet.cross_attention, [false, true]);
    assert_eq!((config.vae.norm_groups, config.vae.scaling_factor), (2, 0.125));
    assert_eq!((config.clip.heads, config.clip.layers), (3, 2));
    assert_eq!(config.prediction, Prediction::VPrediction);
    assert_eq!(checkpoint.precision(), Precision::F16);
    assert_eq!(checkpoint.legacy_hash(), None);
}

#[test]
fn a_text_encoder_without_text_model_in_its_names_is_read() {
    let dir = copy();
    rename(&dir.path().join("text_encoder/model.safetensors"), |name| {
        name.strip_prefix("text_model.").unwrap().to_owned()
    });
    check_against_golden(dir.path());
}

#[test]
fn a_vae_of_old_is_read() {
    let dir = copy();
    rename(&dir.path().join("vae/diffusion_pytorch_model.safetensors"), |name| {
        let names = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")];
        names.iter().fold(name.to_owned(), |name, (new, old)| name.replace(new, old))
    });
    check_against_golden(dir.path());
}

#[test]
fn a_folder_of_fp16_variants_is_read() {
    let dir = copy();
    let unet = dir.path().join("unet/diffusion_pytorch_model.safetensors");
    fs::rename(&unet, unet.with_file_name("diffusion_pytorch_model.fp16.safetensors")).unwrap();
    check_against_golden(dir.path());
}

#[test]
fn what_is_wrong_with_a_folder_is_named() {
    let dir = copy();
    let at = |name: &str| dir.path().join(name);
    rename(&at("unet/diffusion_pytorch_model.safetensors"), |name| name.replace("conv_out.bias", "other"));
    assert_eq!(
        said(dir.path()),
        "`FOLDER` does not fit its architecture: 1 missing: model.diffusion_model.out.2.bias; \
         1 unexpected: unet/other"
    );

    fs::remove_file(at("vae/diffusion_pytorch_model.safetensors")).unwrap();
    assert_eq!(
        said(dir.path()),
        "`FOLDER/vae` holds none of diffusion_pytorch_model.safetensors, diffusion_pytorch_model.bin, nor an fp16 \
         variant or shards"
    );

    edit(&at("text_encoder/config.json"), "quick_gelu", "gelu");
    assert_eq!(
        said(dir.path()),
        "`FOLDER/text_encoder/config.json`: hidden_act is gelu, expected quick_gelu"
    );

    edit(&at("unet/config.json"), "\"flip_sin_to_cos\": true", "\"flip_sin_to_cos\": false");
    assert_eq!(said(dir.path()), "`FOLDER/unet/config.json`: flip_sin_to_cos is false, expected true");

    edit(&at("unet/config.json"), "\"flip_sin_to_cos\": false", "\"flip_sin_to_cos\": true");
    edit(&at("unet/config.json"), "\"attention_head_dim\": 2", "\"attention_head_dim\": [1, 2]");
    assert_eq!(
        said(dir.path()),
        "`FOLDER/unet/config.json`: attention_head_dim is [1,2], expected one number for all levels"
    );

    edit(&at("unet/config.json"), "\"use_linear_projection\": false", "\"use_linear_projection\": true");
    let sd2 = "`FOLDER` is a Stable Diffusion 2.x checkpoint, expected a Stable Diffusion 1.x checkpoint";
    assert_eq!(said(dir.path()), sd2);

    fs::write(at("unet/config.json"), "{").unwrap();
    assert_eq!(said(dir.path()), "the configuration in `FOLDER/unet/config.json` is not valid");

    fs::write(at("model_index.json"), "{\"_class_name\": \"StableDiffusionXLPipeline\"}").unwrap();
    let sdxl = "`FOLDER` is a Stable Diffusion XL checkpoint, expected a Stable Diffusion 1.x checkpoint";
    assert_eq!(said(dir.path()), sdxl);
    fs::write(at("model_index.json"), "{\"_class_name\": \"PixArtAlphaPipeline\"}").unwrap();
    let other = "`FOLDER` is a diffusers folder of the class PixArtAlphaPipeline, expected a Stable Diffusion 1.x checkpoint";
    assert_eq!(said(dir.path()), other);

    let empty = tempfile::tempdir().unwrap();
    assert_eq!(said(empty.path()), "cannot read `FOLDER/unet/config.json`");
}
