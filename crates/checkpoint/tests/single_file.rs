//! Single files: what is written is read, what others write is read, what is wrong is named.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use common::{Raw, raw, source, tiny, tiny_with_defaults, weights, write, write_raw};
use proptest::prelude::*;
use safetensors::{Dtype as FileDtype, SafeTensors};
use vodka_checkpoint::{
    CONFIG_KEY, Checkpoint, Dtype, Error, Hashes, ModelConfig, Precision, Prediction, Values, WeightFile,
    keys, write_checkpoint,
};

const POSITION_IDS: &str = "cond_stage_model.transformer.text_model.embeddings.position_ids";

fn file_in(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("model.safetensors")
}

/// What opening and verifying says about a file made by `make`.
fn said(make: impl FnOnce(&Path)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = file_in(&dir);
    make(&path);
    let error = Checkpoint::open(&path).and_then(|checkpoint| checkpoint.verify()).unwrap_err();
    let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
    format!("{error}{source}").replace(&path.display().to_string(), "FILE")
}

/// What it says about a model of which some tensors were changed.
fn said_of(change: impl FnOnce(&mut Raw)) -> String {
    said(|path| {
        let mut tensors = raw(&tiny_with_defaults());
        change(&mut tensors);
        write_raw(path, &tensors, &[]);
    })
}

/// Models of one to three levels and one or two layers.
fn models() -> impl Strategy<Value = ModelConfig> {
    (1..=3_usize, 1..=3_usize, 1..=2_i64, any::<[bool; 3]>()).prop_map(
        |(levels, vae_levels, layers, attends)| {
            let mut config = tiny();
            config.unet.block_out_channels = vec![4, 6, 8][..levels].to_vec();
            config.unet.cross_attention = attends[..levels].to_vec();
            config.unet.layers_per_block = layers;
            config.vae.block_out_channels = vec![2, 4, 4][..vae_levels].to_vec();
            config.clip.layers = layers;
            config
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn what_is_written_is_read(config in models(), half in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let precision = if half { Precision::F16 } else { Precision::F32 };
        write(&file_in(&dir), &config, precision);
        let checkpoint = Checkpoint::open(file_in(&dir)).unwrap();
        checkpoint.verify().unwrap();
        prop_assert_eq!(checkpoint.config(), &config);
        prop_assert_eq!(checkpoint.precision(), precision);
        for key in keys::all(&config) {
            let tensor = checkpoint.tensor(&key.ldm).unwrap();
            prop_assert_eq!(&tensor.shape, &key.shape);
            prop_assert_eq!(tensor.to_f32(), weights(&key.ldm, tensor.numel()));
        }
    }

    #[test]
    fn shapes_tell_all_but_heads_and_groups(config in models()) {
        let mut expected = tiny_with_defaults();
        expected.unet.cross_attention = config.unet.cross_attention;
        expected.unet.block_out_channels = vec![32, 32, 64][..expected.unet.cross_attention.len()].to_vec();
        expected.unet.layers_per_block = config.unet.layers_per_block;
        expected.vae.block_out_channels = vec![32; config.vae.block_out_channels.len()];
        expected.clip.layers = config.clip.layers;
        let dir = tempfile::tempdir().unwrap();
        write_raw(&file_in(&dir), &raw(&expected), &[]);
        let checkpoint = Checkpoint::open(file_in(&dir)).unwrap();
        prop_assert_eq!(checkpoint.config(), &expected);
        checkpoint.verify().unwrap();
    }
}

#[test]
fn a_written_file_is_plain_safetensors_and_always_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let config = tiny();
    let metadata =
        BTreeMap::from([("zebra".to_owned(), "1".to_owned()), ("ant".to_owned(), "\"2\"".to_owned())]);
    let write = |name: &str| {
        let path = dir.path().join(name);
        write_checkpoint(&path, &config, Precision::F16, &metadata, &mut source(&config)).unwrap();
        fs::read(path).unwrap()
    };
    let bytes = write("a.safetensors");
    assert_eq!(bytes, write("b.safetensors"));

    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert_eq!(header % 8, 0, "data begin at a multiple of 8");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let positions = file.tensor(POSITION_IDS).unwrap();
    assert_eq!((positions.dtype(), positions.shape()), (FileDtype::I64, &[1, 5][..]));
    assert_eq!(positions.data(), [0_i64, 1, 2, 3, 4].map(i64::to_le_bytes).concat());
    assert_eq!(file.len(), 1 + keys::all(&config).len());

    let checkpoint = Checkpoint::open(dir.path().join("a.safetensors")).unwrap();
    assert_eq!(checkpoint.metadata()["zebra"], "1");
    assert_eq!(checkpoint.metadata()["ant"], "\"2\"");
    assert_eq!(checkpoint.metadata()["format"], "pt");
    assert!(checkpoint.names().all(|name| name != POSITION_IDS));
    assert_eq!(checkpoint.sha256().unwrap(), vodka_stage::hash_bytes(&bytes));
    assert_eq!(checkpoint.tensor("model.diffusion_model.out.2.bias").unwrap().dtype, Dtype::F16);
}

/// The file that `fixtures/checkpoint/formats/generate.py` hashes.
#[test]
fn hashes_are_those_of_python() {
    let dir = tempfile::tempdir().unwrap();
    let data: Vec<u8> = (0..1_200_000_u32).map(|i| (i * 31 % 251) as u8).collect();
    let header = r#"{"model.x":{"dtype":"U8","shape":[1200000],"data_offsets":[0,1200000]}}"#;
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
    fs::write(file_in(&dir), bytes).unwrap();
    let golden = fs::read_to_string(vodka_testkit::fixture("checkpoint/formats/hashes.json")).unwrap();
    let hashes = Hashes::of(&WeightFile::open(file_in(&dir)).unwrap()).unwrap();
    assert_eq!(
        serde_json::to_value(&hashes).unwrap(),
        serde_json::from_str::<serde_json::Value>(&golden).unwrap()
    );
}

#[test]
fn the_first_hash_of_a1111_is_of_64_kib_behind_the_first_mib() {
    let dir = tempfile::tempdir().unwrap();
    write(&file_in(&dir), &tiny(), Precision::F16);
    // The hash of nothing: the file ends before.
    assert_eq!(Checkpoint::open(file_in(&dir)).unwrap().legacy_hash().unwrap(), "e3b0c442");

    let mut config = tiny();
    config.clip.vocab_size = 100_000;
    write(&file_in(&dir), &config, Precision::F16);
    let bytes = fs::read(file_in(&dir)).unwrap();
    let expected = vodka_stage::hash_bytes(&bytes[0x10_0000..0x11_0000]).short(8);
    assert_eq!(Checkpoint::open(file_in(&dir)).unwrap().legacy_hash().unwrap(), expected);
}

#[test]
fn what_the_original_trainer_leaves_in_its_files_is_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let config = tiny_with_defaults();
    let mut tensors = raw(&config);
    let bytes = |n: usize| vec![0; n];
    tensors
        .insert("model_ema.diffusion_modelinput_blocks00weight".into(), (FileDtype::F32, vec![1], bytes(4)));
    tensors.insert("model_ema.num_updates".into(), (FileDtype::I32, vec![], bytes(4)));
    tensors.insert("betas".into(), (FileDtype::F32, vec![2], bytes(8)));
    tensors.insert("alphas_cumprod".into(), (FileDtype::F32, vec![2], bytes(8)));
    tensors.insert(POSITION_IDS.into(), (FileDtype::I64, vec![1, 5], bytes(40)));
    write_raw(&file_in(&dir), &tensors, &[]);
    let checkpoint = Checkpoint::open(file_in(&dir)).unwrap();
    checkpoint.verify().unwrap();
    assert_eq!(checkpoint.config(), &config);
    assert_eq!(checkpoint.precision(), Precision::F16, "what is ignored does not count");
}

#[test]
fn a_file_of_others_says_its_prediction_in_its_metadata() {
    let dir = tempfile::tempdir().unwrap();
    let prediction = |metadata: &[(&str, &str)]| {
        write_raw(&file_in(&dir), &raw(&tiny_with_defaults()), metadata);
        Checkpoint::open(file_in(&dir)).unwrap().config().prediction
    };
    assert_eq!(prediction(&[]), Prediction::Epsilon);
    assert_eq!(prediction(&[("modelspec.prediction_type", "epsilon")]), Prediction::Epsilon);
    assert_eq!(prediction(&[("modelspec.prediction_type", "v")]), Prediction::VPrediction);
}

#[test]
fn a_text_encoder_without_text_model_in_its_names_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let config = tiny_with_defaults();
    let named: Raw =
        raw(&config).into_iter().map(|(name, tensor)| (name.replace(".text_model.", "."), tensor)).collect();
    write_raw(&file_in(&dir), &named, &[]);
    let checkpoint = Checkpoint::open(file_in(&dir)).unwrap();
    checkpoint.verify().unwrap();
    let name = "cond_stage_model.transformer.text_model.final_layer_norm.weight";
    assert_eq!(checkpoint.tensor(name).unwrap().to_f32(), weights(name, 12));
}

#[test]
fn linear_weights_in_the_vae_become_convolutions() {
    let dir = tempfile::tempdir().unwrap();
    let name = "first_stage_model.encoder.mid.attn_1.q.weight";
    let mut tensors = raw(&tiny_with_defaults());
    tensors.get_mut(name).unwrap().1.truncate(2);
    write_raw(&file_in(&dir), &tensors, &[]);
    let checkpoint = Checkpoint::open(file_in(&dir)).unwrap();
    checkpoint.verify().unwrap();
    assert_eq!(checkpoint.tensor(name).unwrap().shape, [32, 32, 1, 1]);
}

#[test]
fn missing_unexpected_and_wrongly_shaped_tensors_are_listed() {
    let said = said_of(|tensors| {
        tensors.remove("first_stage_model.quant_conv.bias").unwrap();
        tensors.remove("model.diffusion_model.out.0.bias").unwrap();
        tensors.get_mut("model.diffusion_model.out.2.bias").unwrap().1 = vec![2, 2];
        tensors.insert("model.extra".into(), (FileDtype::F16, vec![1], vec![0; 2]));
    });
    assert_eq!(
        said,
        "`FILE` does not fit its architecture: 2 missing: model.diffusion_model.out.0.bias, \
         first_stage_model.quant_conv.bias; 1 unexpected: model.extra; 1 of another shape: \
         model.diffusion_model.out.2.bias ([2, 2], expected [4])"
    );
    // Where a tensor is missing that tells the architecture, it is the one that is named.
    let said = said_of(|tensors| {
        tensors.remove("first_stage_model.decoder.conv_in.weight").unwrap();
    });
    assert_eq!(
        said,
        "`FILE` does not fit its architecture: 1 missing: first_stage_model.decoder.conv_in.weight"
    );
}

#[test]
fn a_weight_that_is_not_finite_is_named() {
    let name = "model.diffusion_model.middle_block.0.in_layers.2.weight";
    let said = said_of(|tensors| {
        let nan = half::f16::NAN.to_le_bytes();
        tensors.get_mut(name).unwrap().2[10..12].copy_from_slice(&nan);
    });
    assert_eq!(said, format!("`FILE`: the tensor `{name}` holds NaN at element 5"));
}

#[test]
fn a_header_whose_length_looks_like_a_pickle_is_a_header() {
    let dir = tempfile::tempdir().unwrap();
    for length in [0x0280_usize, 0x0580] {
        let mut header = br#"{"model.x":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}"#.to_vec();
        header.resize(length, b' ');
        let bytes = [&(length as u64).to_le_bytes(), header.as_slice(), &[0, 0x3c]].concat();
        fs::write(file_in(&dir), bytes).unwrap();
        let file = WeightFile::open(file_in(&dir)).unwrap();
        assert_eq!(file.tensor("model.x").unwrap().to_f32(), [1.0]);
    }
}

#[test]
fn damaged_files_are_told_apart() {
    let whole = |path: &Path| {
        write(path, &tiny(), Precision::F16);
        fs::read(path).unwrap()
    };
    let length = {
        let dir = tempfile::tempdir().unwrap();
        whole(&file_in(&dir)).len()
    };
    let cut = |n: usize| said(|path| fs::write(path, &whole(path)[..n]).unwrap());
    assert_eq!(
        cut(length - 1),
        format!("`FILE` is truncated: its header asks for {length} bytes, the file has {}", length - 1)
    );
    assert!(cut(100).starts_with("`FILE` is truncated: its header asks for"), "{}", cut(100));
    assert_eq!(cut(0), "`FILE` is truncated: its header asks for 8 bytes, the file has 0");
    let longer = said(|path| fs::write(path, [whole(path), vec![0]].concat()).unwrap());
    assert!(longer.starts_with("`FILE` is damaged: its header asks for"), "{longer}");
    let text = said(|path| fs::write(path, "This is a text file.").unwrap());
    assert!(text.starts_with("`FILE` is not a safetensors file: "), "{text}");
    let zip = said(|path| fs::write(path, b"PK\x03\x04 and more").unwrap());
    assert!(zip.starts_with("`FILE` is not a whole zip archive: "), "{zip}");
    let pickle = said(|path| fs::write(path, b"\x80\x02}q\x00(and more").unwrap());
    assert_eq!(
        pickle,
        "`FILE` is not a pickle that can be read: the pickle instruction `a` at byte 6 has no value"
    );
    assert!(said(|_| ()).starts_with("cannot read `FILE`: "));
}

/// What opening a file with this header and this many bytes of data says, and why.
fn said_of_header(header: impl AsRef<[u8]>, data: usize) -> String {
    let header = header.as_ref();
    said(|path| {
        let bytes = [&(header.len() as u64).to_le_bytes(), header, &vec![0; data]].concat();
        fs::write(path, bytes).unwrap();
    })
}

#[test]
fn headers_that_lie_are_told_apart() {
    let entry = |name: &str, shape: &str, start: u64, end: u64| {
        format!(r#""{name}":{{"dtype":"F16","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    };
    let two = |a: String, b: String| said_of_header(format!("{{{a},{b}}}"), 8);
    let starts = |said: String, expected: &str| assert!(said.starts_with(expected), "{said}");
    let a = entry("a", "[2]", 0, 4);
    starts(
        two(a.clone(), entry("b", "[2]", 2, 6)),
        "`FILE` is not a safetensors file: invalid offset for tensor `b`",
    );
    starts(
        two(a.clone(), entry("b", "[1]", 6, 8)),
        "`FILE` is not a safetensors file: invalid offset for tensor `b`",
    );
    assert_eq!(two(a.clone(), entry("a", "[2]", 4, 8)), "`FILE` has two tensors named `a`");
    assert_eq!(said_of_header(format!("{{{a},{a}}}"), 4), "`FILE` has two tensors named `a`");
    starts(two(a.clone(), entry("b", "[2000]", 4, 4004)), "`FILE` is truncated: its header asks for ");
    assert_eq!(
        two(a.clone(), entry("b", "[3]", 4, 8)),
        "`FILE`: the tensor `b` has 4 bytes, expected 6 (F16, [3])"
    );
    let absurd = entry("b", "[4294967296,4294967296,4294967296]", 4, 8);
    starts(
        two(a.clone(), absurd),
        "`FILE`: the tensor `b` has 4 bytes, expected more than any file has (F16, [4294967296, ",
    );
    starts(two(a.clone(), entry("b", "[-1]", 4, 8)), "`FILE` is not a safetensors file: ");
    starts(two(a, entry("b", "[2]", 4, 8).replace("F16", "F12")), "`FILE` is not a safetensors file: ");
    starts(said_of_header(b"{\"\xff\xfe\":{}}", 8), "`FILE` is not a safetensors file: ");
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    starts(said_of_header(deep, 8), "`FILE` is not a safetensors file: ");
    for length in [u64::MAX, 1 << 63, 100_000_001] {
        let large = said(|path| fs::write(path, [&length.to_le_bytes(), b"{}".as_slice()].concat()).unwrap());
        starts(large, "`FILE` is not a safetensors file: ");
    }
}

#[test]
fn other_architectures_are_named() {
    let of = |names: &[&str]| {
        let tensors =
            names.iter().map(|name| ((*name).to_owned(), (FileDtype::F16, vec![1], vec![0; 2]))).collect();
        let said = said(|path| write_raw(path, &tensors, &[]));
        let found = said.strip_prefix("`FILE` is ");
        let found = found.and_then(|rest| rest.strip_suffix(", expected a Stable Diffusion 1.x checkpoint"));
        found.unwrap_or_else(|| panic!("{said}")).to_owned()
    };
    let unet = "model.diffusion_model.input_blocks.0.0.weight";
    assert_eq!(of(&[unet, "conditioner.embedders.0.transformer.x"]), "a Stable Diffusion XL checkpoint");
    assert_eq!(of(&[unet, "cond_stage_model.model.ln_final.bias"]), "a Stable Diffusion 2.x checkpoint");
    assert_eq!(of(&["model.diffusion_model.joint_blocks.0.x"]), "a Stable Diffusion 3 checkpoint");
    assert_eq!(of(&["double_blocks.0.img_attn.x", "single_blocks.0.x"]), "a Flux checkpoint");
    assert_eq!(of(&["lora_unet_down_blocks_0.lora_down.weight"]), "a LoRA");
    assert_eq!(of(&["unet.down_blocks.0.attn1.to_q.lora_A.weight"]), "a LoRA");
    assert_eq!(of(&["control_model.input_hint_block.0.weight"]), "a ControlNet");
    assert_eq!(of(&["emb_params"]), "an embedding (textual inversion)");
    assert_eq!(
        of(&["down_blocks.0.x", "up_blocks.0.x"]),
        "the UNet of a diffusers folder (open the folder above it)"
    );
    assert_eq!(of(&["decoder.conv_in.weight", "encoder.conv_in.weight"]), "a VAE alone");
    assert_eq!(of(&["b", "a", "d", "c"]), "no diffusion model (it begins with a, b, c)");

    let empty = said(|path| fs::write(path, b"\x08\0\0\0\0\0\0\0{}      ").unwrap());
    assert_eq!(empty, "`FILE` is a file without tensors, expected a Stable Diffusion 1.x checkpoint");
}

#[test]
fn other_element_types_and_impossible_models_are_named() {
    let said_dtype = said_of(|tensors| {
        let tensor = tensors.get_mut("model.diffusion_model.out.2.bias").unwrap();
        *tensor = (FileDtype::F8_E4M3, vec![4], vec![0; 4]);
    });
    assert_eq!(
        said_dtype,
        "`FILE`: the tensor `model.diffusion_model.out.2.bias` is of type F8_E4M3, expected a 16, 32 or 64 bit float"
    );
    // Shapes alone: 8 heads do not divide 6 channels. Nothing but metadata could have said so.
    let said_heads = said(|path| write_raw(path, &raw(&tiny()), &[]));
    assert_eq!(
        said_heads,
        "`FILE` describes an impossible model: unet.block_out_channels 4 is not divisible by norm_groups 32"
    );
    let said_json = said(|path| write_raw(path, &raw(&tiny()), &[(CONFIG_KEY, "{\"unet\": 1}")]));
    assert!(said_json.starts_with("the configuration in `FILE` is not valid: "), "{said_json}");
}

#[test]
fn nothing_wrong_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = file_in(&dir);
    fs::write(&path, "as it was").unwrap();
    let config = tiny();
    let name = "model.diffusion_model.out.2.bias";
    let error = |precision, change: &dyn Fn(&mut Values)| {
        let mut source = source(&config);
        let mut changed = |wanted: &str| {
            let mut tensor = source(wanted)?;
            if wanted == name {
                change(&mut tensor);
            }
            Ok(tensor)
        };
        let error: Error =
            write_checkpoint(&path, &config, precision, &BTreeMap::new(), &mut changed).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), "as it was");
        error.to_string().replace(&path.display().to_string(), "FILE")
    };
    assert_eq!(
        error(Precision::F16, &|tensor| tensor.1[2] = 65520.0),
        format!(
            "`FILE`: the tensor `{name}` holds 65520 at element 2, more than fp16 can hold (65504): write fp32"
        )
    );
    assert_eq!(
        error(Precision::F32, &|tensor| tensor.1[1] = f32::NEG_INFINITY),
        format!("`FILE`: the tensor `{name}` holds -inf at element 1")
    );
    assert_eq!(
        error(Precision::F32, &|tensor| tensor.0 = vec![2, 2]),
        format!("`FILE` does not fit its architecture: 1 of another shape: {name} ([2, 2], expected [4])")
    );
}

#[test]
fn a_tensor_that_is_not_there_and_a_model_of_another_input_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("wide.safetensors");
    let mut config = tiny();
    config.unet.in_channels = 9;
    write(&path, &config, Precision::F16);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let (name, file) = ("model.diffusion_model.nothing", path.display());
    let none = format!("`{file}` has no tensor `{name}`");
    assert_eq!(checkpoint.tensor(name).unwrap_err().to_string(), none);
    assert_eq!(WeightFile::open(&path).unwrap().tensor(name).unwrap_err().to_string(), none);
    let error = checkpoint.check_text_to_image(11, 5).unwrap_err();
    assert_eq!(error.to_string(), format!("`{file}` is no model that makes pictures from text alone"));
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(source, "the UNet's input and the latent disagree: 9 and 4");
}
