//! LoRA files under all their names.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use common::{Raw, raw, tiny, write_raw};
use safetensors::Dtype;
use vodka_checkpoint::{Lora, keys, lora_name};

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
