//! `inspect` and `convert` from the outside: what they write and say, and their exit codes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fs, path::PathBuf, process::Output};

use assert_cmd::Command;
use serde_json::Value;
use vodka_checkpoint::{Checkpoint, Precision, keys};
use vodka_stage::RunRecord;
use vodka_testkit::{fixture, model};

/// The current folder of the binary, with `base.safetensors`.
struct World(tempfile::TempDir);

impl World {
    fn new() -> Self {
        let world = Self(tempfile::tempdir().unwrap());
        fs::copy(model("base"), world.at("base.safetensors")).unwrap();
        world
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, arguments: &str) -> Output {
        let mut command = Command::new(assert_cmd::cargo_bin!("vodka-merge"));
        command.current_dir(self.0.path()).args(arguments.split_whitespace()).output().unwrap()
    }

    /// Runs with the given exit code; what it says on stdout and stderr.
    fn says(&self, arguments: &str, code: i32) -> (String, String) {
        let output = self.run(arguments);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (out, said) = (text(output.stdout), text(output.stderr));
        assert_eq!(output.status.code(), Some(code), "{out}{said}");
        (out, said)
    }

    fn inspect(&self, file: &str) -> Value {
        serde_json::from_str(&self.says(&format!("inspect {file} --json"), 0).0).unwrap()
    }
}

#[test]
fn a_checkpoint_goes_through_all_forms() {
    let world = World::new();
    let (_, said) = world.says("convert base.safetensors a.ckpt", 0);
    assert!(said.contains("to `a.ckpt` (ckpt)"), "{said}");
    world.says("convert a.ckpt folder --quiet", 0);
    world.says("convert folder b.safetensors --quiet", 0);
    let (a, b) =
        (Checkpoint::open(world.at("base.safetensors")), Checkpoint::open(world.at("b.safetensors")));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert!(a.names().eq(b.names()));
    for name in a.names() {
        assert!(a.tensor(name).unwrap() == b.tensor(name).unwrap(), "{name}");
    }
    let record = RunRecord::read(&world.at("b.safetensors.run.json")).unwrap();
    assert_eq!((record.stage.as_str(), record.inputs["input"].path.to_str()), ("convert", Some("folder")));
    let (_, said) = world.says("convert folder b.safetensors", 0);
    assert_eq!(said, "`b.safetensors` is up to date\n");
    let (_, said) = world.says("convert folder b.safetensors --prune", 2);
    assert_eq!(said, "error: the output `b.safetensors` is there already\n");
    let (out, _) = world.says("convert folder b.safetensors --overwrite --precision fp32 --json", 0);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&report["target"], &report["outcome"]), (&"safetensors".into(), &"done".into()));
    assert_eq!(Checkpoint::open(world.at("b.safetensors")).unwrap().precision(), Precision::F32);
    let (out, _) = world.says("convert folder c.ckpt --prune --dry-run", 0);
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["prune"], true);
    assert!(!world.at("c.ckpt").exists());
}

#[test]
fn what_is_in_a_file_is_told() {
    let world = World::new();
    let found = world.inspect("base.safetensors");
    let hash = Checkpoint::open(world.at("base.safetensors")).unwrap().sha256().unwrap();
    assert_eq!(found["hashes"]["auto_v2"], hash.to_string());
    assert_eq!(found["model"]["variant"], "normal");
    assert_eq!(found["model"]["parts"].as_array().unwrap().len(), 3);
    let blocks: Vec<_> =
        found["values"].as_array().unwrap().iter().map(|b| b["block"].as_str().unwrap()).collect();
    assert!(
        blocks.contains(&"IN01") && blocks.contains(&"M00") && blocks.contains(&"text encoder"),
        "{blocks:?}"
    );
    assert!(found["values"].as_array().unwrap().iter().all(|block| block["nan"] == 0));

    let (text, _) = world.says("inspect base.safetensors", 0);
    for expected in [
        "safetensors, ",
        "Stable Diffusion 1.x",
        "UNet: F16, ",
        "AutoV1 ",
        "AutoV2 ",
        "AutoV3 ",
        "IN00",
        "EMA: none",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let (text, _) = world.says("inspect base.safetensors --no-hashes --no-values", 0);
    assert!(!text.contains("AutoV2") && !text.contains("IN00"), "{text}");

    // A merge tells what it was merged from.
    world.says("weighted-sum base.safetensors base.safetensors -m 0.5 -o mix.safetensors -q", 0);
    let mix = world.inspect("mix.safetensors");
    assert_eq!(mix["ancestors"][hash.to_string()]["name"], "base.safetensors");
    let (text, _) = world.says("inspect mix.safetensors", 0);
    assert!(text.contains("\n  merged: {") && text.contains("\n  from: base.safetensors ("), "{text}");

    // NaN and infinities are found where they are.
    let mut bytes = fs::read(world.at("base.safetensors")).unwrap();
    let name = "model.diffusion_model.middle_block.0.in_layers.2.weight";
    let place = Checkpoint::open(world.at("base.safetensors")).unwrap().info(name).unwrap().place.unwrap();
    let start = place.offset as usize;
    bytes[start..start + 4].copy_from_slice(&[0x00, 0x7e, 0x00, 0xfc]);
    fs::write(world.at("nan.safetensors"), bytes).unwrap();
    let nan = world.inspect("nan.safetensors");
    let middle = nan["values"].as_array().unwrap().iter().find(|block| block["block"] == "M00").unwrap();
    assert_eq!((&middle["nan"], &middle["infinite"]), (&1.into(), &1.into()));
}

#[test]
fn files_of_other_kinds_are_told_as_well() {
    let world = World::new();
    let write = |name: &str, tensor: &str| {
        let header = format!(r#"{{"{tensor}":{{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}}}"#);
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0, 0x3c]].concat();
        fs::write(world.at(name), bytes).unwrap();
    };
    write("xl.safetensors", "conditioner.embedders.0.x");
    write("lora.safetensors", "lora_unet_x.lora_down.weight");
    let (text, _) = world.says("inspect xl.safetensors lora.safetensors", 0);
    assert!(text.contains("a Stable Diffusion XL checkpoint") && text.contains("a LoRA"), "{text}");
    assert_eq!(world.inspect("lora.safetensors")["lora"]["ranks"]["1"], 1);
    let (_, said) = world.says("convert xl.safetensors a.ckpt", 1);
    assert_eq!(
        said,
        "error: `xl.safetensors` is a Stable Diffusion XL checkpoint, expected a Stable Diffusion 1.x checkpoint\n"
    );

    let (_, said) = world.says("convert lora.safetensors out.safetensors --precision fp32", 0);
    assert!(said.contains("wrote 1 tensors"), "{said}");
    let (_, said) = world.says("convert lora.safetensors b.safetensors --names diffusers", 1);
    assert!(said.starts_with("error: `lora.safetensors` changes no weight of the model"), "{said}");
    let (_, said) = world.says("convert lora.safetensors b.safetensors --names peft", 2);
    assert!(said.contains("expected kohya or diffusers, found `peft`"), "{said}");

    world.says("convert base.safetensors bare.safetensors --drop-vae -q", 0);
    let (text, _) = world.says("inspect bare.safetensors --no-hashes", 0);
    assert!(text.contains("VAE: not there"), "{text}");
    world.says("convert bare.safetensors whole.ckpt --vae base.safetensors -q", 0);
    let whole = Checkpoint::open(world.at("whole.ckpt")).unwrap();
    whole.verify().unwrap();
    assert_eq!(whole.names().count(), keys::all(whole.config()).len());
    let (_, said) = world.says("convert bare.safetensors x.ckpt --vae base.safetensors --drop-vae", 2);
    assert!(said.contains("cannot be used with"), "{said}");
}

#[test]
fn what_does_not_fit_is_told_each_time() {
    let world = World::new();
    let header =
        r#"{"lora_unet_x.lora_down.weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#.to_owned();
    let values = [1e6_f32.to_le_bytes(), f32::NAN.to_le_bytes()].concat();
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &values].concat();
    fs::write(world.at("lora.safetensors"), bytes).unwrap();
    let lost = "the input holds 1 values that are NaN or infinite\n`lora_unet_x.lora_down.weight`: 1 values became \
                infinite, the largest was 1000000\n";
    let (_, said) = world.says("convert lora.safetensors out.safetensors --precision fp16", 3);
    assert!(said.starts_with("wrote 1 tensors") && said.ends_with(lost), "{said}");
    let (_, said) = world.says("convert lora.safetensors out.safetensors --precision fp16", 3);
    assert_eq!(said, format!("`out.safetensors` is up to date\n{lost}"));
}

#[test]
fn bad_files_end_with_1_and_are_named() {
    let world = World::new();
    let hostile = fixture("checkpoint/formats/hostile.ckpt");
    fs::copy(&hostile, world.at("bad.ckpt")).unwrap();
    let refused = "error: `bad.ckpt` is not a pickle that can be read: it wants to import `posix.system`, which no \
                   checkpoint needs: refused, nothing was run\n";
    assert_eq!(world.says("inspect bad.ckpt", 1).1, refused);
    assert_eq!(world.says("convert bad.ckpt a.safetensors", 1).1, refused);
    assert_eq!(world.says("weighted-sum base.safetensors bad.ckpt -m 0.5 -o a.safetensors", 1).1, refused);
    // The others are told all the same.
    let (out, said) = world.says("inspect bad.ckpt base.safetensors nothing.ckpt --no-hashes --no-values", 1);
    assert!(out.contains("base.safetensors") && said.contains("cannot read `nothing.ckpt`"), "{out}{said}");
    assert!(!world.at("a.safetensors").exists());
}

/// A limit on the size of files fails a write as a full disk does, once the signal that comes with it is ignored.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_nothing() {
    let world = World::new();
    let binary = assert_cmd::cargo_bin!("vodka-merge").display().to_string();
    for output in ["a.safetensors", "a.ckpt", "folder"] {
        let script = format!("trap '' XFSZ; ulimit -f 64; exec {binary} convert base.safetensors {output}");
        let output = Command::new("sh").current_dir(world.0.path()).args(["-c", &script]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.starts_with("error: cannot write `"), "{said}");
        assert_eq!(fs::read_dir(world.0.path()).unwrap().count(), 1, "{said}");
    }
}
