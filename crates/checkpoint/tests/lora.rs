//! LoRA files under all their names.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use common::{Raw, raw, tiny, write_raw};
use safetensors::Dtype;
use vodka_checkpoint::{
    Lora, LoraNames, Precision, WeightFile,
    convert::{self, ConvertConfig, ConvertReport, Vae},
    keys, lora_name,
};
use vodka_stage::Interrupt;

const QUERY: &str = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight";
const CONV: &str = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight";
const FC1: &str = "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc1.weight";

/// A pair of rank 2 for a weight of four channels.
fn pair(down: &str, up: &str) -> Raw {
    let tensor = |shape: &[usize]| {
        let bytes = vec![0; 4 * shape.iter().product::<usize>()];
        (Dtype::F32, shape.to_vec(), bytes)
    };
    Raw::from([(down.to_owned(), tensor(&[2, 4])), (up.to_owned(), tensor(&[4, 2]))])
}

fn open(tensors: &Raw) -> Result<Lora, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("FILE");
    write_raw(&path, tensors, &[("ss_network_dim", "2")]);
    Lora::open(&path, &tiny()).map_err(|error| error.to_string().replace(&path.display().to_string(), "FILE"))
}

#[test]
fn the_names_are_those_of_kohyas_scripts() {
    let keys = keys::all(&tiny());
    let name = |ldm: &str| lora_name(keys.iter().find(|key| key.ldm == ldm).unwrap());
    assert_eq!(name(QUERY).unwrap(), "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q");
    assert_eq!(name(CONV).unwrap(), "lora_unet_down_blocks_0_resnets_0_conv1");
    assert_eq!(name(FC1).unwrap(), "lora_te_text_model_encoder_layers_1_mlp_fc1");
    assert_eq!(name("first_stage_model.quant_conv.weight"), None);
    assert_eq!(name("model.diffusion_model.out.0.weight"), None);
    assert_eq!(name("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"), None);
}

#[test]
fn all_spellings_of_a_weight_are_one_weight() {
    let kohya = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";
    let ldm = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q";
    let diffusers = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
    let old = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora";
    let spellings = [
        (format!("{kohya}.lora_down.weight"), format!("{kohya}.lora_up.weight")),
        (format!("{ldm}.lora_down.weight"), format!("{ldm}.lora_up.weight")),
        (format!("{diffusers}.lora_A.weight"), format!("{diffusers}.lora_B.weight")),
        (
            format!("base_model.model.{diffusers}.lora_A.weight"),
            format!("base_model.model.{diffusers}.lora_B.weight"),
        ),
        (format!("{diffusers}.lora.down.weight"), format!("{diffusers}.lora.up.weight")),
        (format!("{old}.down.weight"), format!("{old}.up.weight")),
    ];
    for (down, up) in spellings {
        let lora = open(&pair(&down, &up)).unwrap();
        let module = &lora.modules()[QUERY];
        assert_eq!((&module.down, &module.up, module.rank, module.alpha), (&down, &up, 2, 2.0), "{down}");
        assert_eq!(lora.tensor(&module.up).unwrap().shape, [4, 2]);
        assert_eq!(lora.metadata()["ss_network_dim"], "2");
        assert!(lora.unused().is_empty());
    }
    let mut tensors = pair(&format!("{kohya}.lora_down.weight"), &format!("{kohya}.lora_up.weight"));
    tensors.insert(format!("{kohya}.alpha"), (Dtype::F32, vec![], 0.5_f32.to_le_bytes().to_vec()));
    tensors.insert("lora_unet_foreign.alpha".into(), (Dtype::F32, vec![], vec![0; 4]));
    let lora = open(&tensors).unwrap();
    assert_eq!((lora.modules()[QUERY].alpha, lora.modules()[QUERY].scale()), (0.5, 0.25));
    assert_eq!(lora.unused(), ["lora_unet_foreign.alpha"]);
}

#[test]
fn convolutions_may_be_taken_apart_twice() {
    let name = "lora_unet_down_blocks_0_resnets_0_conv1";
    let tensor = |shape: &[usize]| (Dtype::F16, shape.to_vec(), vec![0; 2 * shape.iter().product::<usize>()]);
    let mut tensors = Raw::from([
        (format!("{name}.lora_down.weight"), tensor(&[2, 4, 3, 3])),
        (format!("{name}.lora_up.weight"), tensor(&[4, 2, 1, 1])),
    ]);
    assert_eq!(open(&tensors).unwrap().modules()[CONV].mid, None);
    tensors.insert(format!("{name}.lora_down.weight"), tensor(&[2, 4, 1, 1]));
    assert!(open(&tensors).unwrap_err().contains("do not fit a weight of shape [4, 4, 3, 3]"));
    tensors.insert(format!("{name}.lora_mid.weight"), tensor(&[2, 2, 3, 3]));
    assert_eq!(open(&tensors).unwrap().modules()[CONV].mid, Some(format!("{name}.lora_mid.weight")));
}

#[test]
fn what_is_no_lora_for_this_model_is_named() {
    let name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";
    let whole = pair(&format!("{name}.lora_down.weight"), &format!("{name}.lora_up.weight"));
    let mut half = whole.clone();
    half.remove(&format!("{name}.lora_up.weight"));
    assert_eq!(open(&half).unwrap_err(), format!("`FILE`: `{name}.lora_down.weight` has no other half"));
    let mut other = whole.clone();
    other.insert(format!("{name}.hada_w1_a"), (Dtype::F16, vec![1], vec![0; 2]));
    assert_eq!(open(&other).unwrap_err(), "`FILE` is a LoHa, expected a LoRA (`lora_down`, `lora_up`)");
    let sdxl = pair("lora_te2_text_model_x.lora_down.weight", "lora_te2_text_model_x.lora_up.weight");
    assert_eq!(
        open(&sdxl).unwrap_err(),
        "`FILE` is a LoRA for Stable Diffusion XL, expected a LoRA for Stable Diffusion 1.x"
    );
    let foreign = pair("lora_unet_single_x.lora_down.weight", "lora_unet_single_x.lora_up.weight");
    assert!(
        open(&foreign).unwrap_err().starts_with("`FILE` changes no weight of the model (it begins with ")
    );
    assert_eq!(
        open(&raw(&tiny())).unwrap_err(),
        "`FILE` is a Stable Diffusion 1.x checkpoint, expected a LoRA for Stable Diffusion 1.x"
    );
    let mut wide = whole;
    wide.insert(format!("{name}.lora_down.weight"), (Dtype::F16, vec![2, 5], vec![0; 20]));
    assert!(
        open(&wide).unwrap_err().contains("of shape [2, 5] and its other half of shape [4, 2] do not fit")
    );
}

/// Names and shapes in Stable Diffusion 1.5: an attention's matrix, a 1x1 and a 3x3 convolution, the text encoder.
const MODULES: [(&str, [usize; 2], &[usize]); 4] = [
    ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", [320, 320], &[]),
    ("unet.down_blocks.0.attentions.0.proj_in", [320, 320], &[1, 1]),
    ("unet.down_blocks.0.resnets.0.conv1", [320, 320], &[3, 3]),
    ("text_encoder.text_model.encoder.layers.3.mlp.fc1", [3072, 768], &[]),
];

fn kohya_name(name: &str) -> String {
    let name = name.replace("unet.", "lora_unet.").replace("text_encoder.", "lora_te.");
    name.replace('.', "_")
}

/// All modules in rank 2 and fp16, as kohya's scripts write them.
fn kohya(alpha: f32) -> Raw {
    let mut raw = Raw::new();
    let half = |value: f32| half::f16::from_f32(value).to_le_bytes();
    for (name, [rows, columns], kernel) in MODULES {
        let mut add = |part: &str, shape: Vec<usize>| {
            let name = format!("{}.{part}", kohya_name(name));
            let values = common::weights(&name, shape.iter().product());
            raw.insert(name, (Dtype::F16, shape, values.into_iter().flat_map(half).collect()));
        };
        add("lora_down.weight", [&[2, columns], kernel].concat());
        add("lora_up.weight", [vec![rows, 2], vec![1; kernel.len()]].concat());
        raw.insert(format!("{}.alpha", kohya_name(name)), (Dtype::F16, Vec::new(), half(alpha).to_vec()));
    }
    raw
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn at(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn config(&self, input: &str, output: &str) -> ConvertConfig {
        ConvertConfig::new(self.at(input), self.at(output))
    }

    fn convert(&self, input: &str, output: &str, names: Option<LoraNames>) -> ConvertReport {
        let config = ConvertConfig { names, ..self.config(input, output) };
        convert::run(&config.plan().unwrap(), &Interrupt::new(), &mut |_| {}).unwrap()
    }

    fn refused(&self, config: &ConvertConfig) -> String {
        let error = convert::run(&config.plan().unwrap(), &Interrupt::new(), &mut |_| {}).unwrap_err();
        assert!(!config.output.exists());
        error.to_string().replace(&format!("{}/", self.0.path().display()), "")
    }

    /// Every tensor with its type, shape and bytes.
    fn tensors(
        &self,
        name: &str,
    ) -> std::collections::BTreeMap<String, (vodka_checkpoint::Dtype, Vec<usize>, Vec<u8>)> {
        let file = WeightFile::open(self.at(name)).unwrap();
        let read = |name: &str| {
            let view = file.tensor(name).unwrap();
            (name.to_owned(), (view.dtype, view.shape.clone(), view.data.to_vec()))
        };
        file.names().map(read).collect()
    }
}

#[test]
fn names_become_those_of_diffusers_and_kohyas_again() {
    let folder = Folder(tempfile::tempdir().unwrap());
    let metadata = [("ss_network_alpha", "1.0"), ("ss_tag_frequency", "{}"), ("sshs_model_hash", "0")];
    write_raw(&folder.at("kohya.safetensors"), &kohya(1.0), &metadata);
    let report = folder.convert("kohya.safetensors", "peft.safetensors", Some(LoraNames::Diffusers));
    assert_eq!((report.tensors, report.scaled, report.converted), (8, 4, 0));
    assert_eq!(report.dropped_metadata, ["sshs_model_hash", "ss_network_alpha"]);
    let (before, after) = (folder.tensors("kohya.safetensors"), folder.tensors("peft.safetensors"));
    for (name, [rows, columns], kernel) in MODULES {
        let (_, down, a) = &after[&format!("{name}.lora_A.weight")];
        let (_, up, b) = &after[&format!("{name}.lora_B.weight")];
        assert_eq!(down, &[&[2, columns], kernel].concat());
        assert_eq!(up, &[vec![rows, 2], vec![1; kernel.len()]].concat());
        // 1 / 2 is in the first.
        let half = |bytes: &[u8]| {
            let value = half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32() * 0.5;
            half::f16::from_f32(value).to_le_bytes()
        };
        let expected: Vec<u8> =
            before[&format!("{}.lora_down.weight", kohya_name(name))].2.chunks(2).flat_map(half).collect();
        assert_eq!((a, b), (&expected, &before[&format!("{}.lora_up.weight", kohya_name(name))].2));
    }

    // And back: the product is the same, the scale 1.
    folder.convert("peft.safetensors", "back.safetensors", Some(LoraNames::Kohya));
    let back = folder.tensors("back.safetensors");
    assert_eq!(back.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    let two = half::f16::from_f32(2.0).to_le_bytes().to_vec();
    for (name, ..) in MODULES {
        let of = |part: &str| format!("{}.{part}", kohya_name(name));
        assert_eq!(back[&of("alpha")].2, two);
        assert_eq!(back[&of("lora_down.weight")].2, after[&format!("{name}.lora_A.weight")].2);
    }

    // Without a name it keeps its own, and all its bits.
    let report = folder.convert("kohya.safetensors", "same.safetensors", None);
    assert_eq!((report.tensors, report.scaled), (12, 0));
    assert_eq!(folder.tensors("same.safetensors"), before);
    let file = WeightFile::open(folder.at("same.safetensors")).unwrap();
    assert_eq!(
        (file.metadata()["ss_network_alpha"].as_str(), file.metadata().get("sshs_model_hash")),
        ("1.0", None)
    );
}

#[test]
fn a_precision_changes_weights_and_not_scales() {
    let folder = Folder(tempfile::tempdir().unwrap());
    let mut raw = kohya(0.3);
    let wide = raw.get_mut("lora_te_text_model_encoder_layers_3_mlp_fc1.alpha").unwrap();
    *wide = (Dtype::F32, Vec::new(), 0.3_f32.to_le_bytes().to_vec());
    write_raw(&folder.at("in.safetensors"), &raw, &[]);
    let config = ConvertConfig {
        precision: Some(Precision::F32),
        ..folder.config("in.safetensors", "out.safetensors")
    };
    let report = convert::run(&config.plan().unwrap(), &Interrupt::new(), &mut |_| {}).unwrap();
    assert_eq!(report.converted, 8);
    let out = folder.tensors("out.safetensors");
    let (before, after) = (
        &raw["lora_unet_down_blocks_0_attentions_0_proj_in.alpha"],
        &out["lora_unet_down_blocks_0_attentions_0_proj_in.alpha"],
    );
    assert_eq!((&before.2, vodka_checkpoint::Dtype::F16), (&after.2, after.0));
    let names = Some(LoraNames::Kohya);
    let config = ConvertConfig {
        precision: Some(Precision::BF16),
        names,
        ..folder.config("in.safetensors", "short.safetensors")
    };
    convert::run(&config.plan().unwrap(), &Interrupt::new(), &mut |_| {}).unwrap();
    let alpha = &folder.tensors("short.safetensors")["lora_te_text_model_encoder_layers_3_mlp_fc1.alpha"];
    assert_eq!(
        (alpha.0, &alpha.2),
        (vodka_checkpoint::Dtype::F32, &0.3_f32.to_le_bytes().to_vec()),
        "bf16 does not hold it"
    );
}

#[test]
fn scales_of_diffusers_are_in_the_metadata() {
    let kohya_of = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";
    let name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lora.safetensors");
    let tensors = pair(&format!("{name}.lora_A.weight"), &format!("{name}.lora_B.weight"));
    write_raw(&path, &tensors, &[("lora_adapter_metadata", r#"{"unet.lora_alpha": 8, "unet.r": 2}"#)]);
    assert_eq!(Lora::open(&path, &tiny()).unwrap().modules()[QUERY].alpha, 8.0);
    // Of one network, as `save_lora_adapter` writes it.
    let bare = name.strip_prefix("unet.").unwrap();
    let tensors = pair(&format!("{bare}.lora_A.weight"), &format!("{bare}.lora_B.weight"));
    write_raw(&path, &tensors, &[("lora_adapter_metadata", r#"{"lora_alpha": 4}"#)]);
    assert_eq!(Lora::open(&path, &tiny()).unwrap().modules()[QUERY].scale(), 2.0);
    // A tensor goes before it.
    let mut tensors = pair(&format!("{kohya_of}.lora_down.weight"), &format!("{kohya_of}.lora_up.weight"));
    tensors.insert(format!("{kohya_of}.alpha"), (Dtype::F32, vec![], 1_f32.to_le_bytes().to_vec()));
    write_raw(&path, &tensors, &[("lora_adapter_metadata", r#"{"unet.lora_alpha": 8}"#)]);
    assert_eq!(Lora::open(&path, &tiny()).unwrap().modules()[QUERY].alpha, 1.0);
}

#[test]
fn what_a_lora_cannot_become_is_refused() {
    let folder = Folder(tempfile::tempdir().unwrap());
    write_raw(&folder.at("in.safetensors"), &kohya(1.0), &[]);
    let config = |output: &str| folder.config("in.safetensors", output);
    let said = folder.refused(&config("out.ckpt"));
    assert_eq!(
        said,
        "`in.safetensors` is a LoRA: every program reads it as .safetensors, and it is written as nothing else"
    );
    assert_eq!(folder.refused(&config("folder")), said);
    let out = || config("out.safetensors");
    assert!(folder.refused(&ConvertConfig { prune: true, ..out() }).ends_with("there is nothing to prune"));
    assert!(folder.refused(&ConvertConfig { use_ema: true, ..out() }).ends_with("it has no EMA copy"));
    assert!(folder.refused(&ConvertConfig { vae: Vae::Drop, ..out() }).ends_with("it has no VAE"));
    write_raw(&folder.at("model.safetensors"), &raw(&common::tiny_with_defaults()), &[]);
    let names = Some(LoraNames::Kohya);
    let said =
        folder.refused(&ConvertConfig { names, ..folder.config("model.safetensors", "out.safetensors") });
    assert!(said.ends_with("expected a LoRA for Stable Diffusion 1.x"), "{said}");
    let mut twice = kohya(1.0);
    let conv = "lora_unet_down_blocks_0_resnets_0_conv1";
    twice.insert(format!("{conv}.lora_mid.weight"), (Dtype::F16, vec![2, 2, 3, 3], vec![0; 72]));
    twice.insert(format!("{conv}.lora_down.weight"), (Dtype::F16, vec![2, 320, 1, 1], vec![0; 1280]));
    write_raw(&folder.at("in.safetensors"), &twice, &[]);
    let names = Some(LoraNames::Diffusers);
    let said = folder.refused(&ConvertConfig { names, ..out() });
    assert_eq!(
        said,
        format!(
            "`in.safetensors`: `{conv}.lora_mid.weight` (Tucker's decomposition) has no name in diffusers"
        )
    );
    folder.convert("in.safetensors", "kohya.safetensors", Some(LoraNames::Kohya));
    assert_eq!(folder.tensors("kohya.safetensors")[&format!("{conv}.lora_mid.weight")].1, [2, 2, 3, 3]);
}
