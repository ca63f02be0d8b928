//! The real binary: a training run, its resumption after `kill -9`, and what it says about bad input.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use image::{Rgb, RgbImage};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder with pictures, captions and `train.json`.
struct World {
    dir: TempDir,
}

impl World {
    fn new(changes: Value) -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(world.at("data")).unwrap();
        for i in 0..5_u32 {
            let (width, height) = if i < 3 { (70, 64) } else { (128, 64) };
            let pixel = |x: u32, y: u32| Rgb([(x * 3 + 40 * i) as u8, (y * 2) as u8, (x + y) as u8]);
            RgbImage::from_fn(width, height, pixel).save(world.at(&format!("data/{i}.png"))).unwrap();
            fs::write(world.at(&format!("data/{i}.txt")), format!("a blue star number {i}")).unwrap();
        }
        world.write_config(changes);
        world
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write_config(&self, changes: Value) {
        let mut config = json!({"data_root": "data", "resume_ckpt": vodka_testkit::model("base"), "output": "out",
            "project_name": "tiny", "resolution": 64, "batch_size": 2, "max_epochs": 2, "lr": 1e-3, "save_every_n_epochs": 1,
            "lr_scheduler": "constant", "threads": 1, "disable_amp": true, "flip_p": 0.0, "wandb": false});
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        fs::write(self.at("train.json"), serde_json::to_string_pretty(&config).unwrap()).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("vodka-train"));
        command.current_dir(self.dir.path()).args(["--config", "train.json"]).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What the binary says when it ends with this exit code.
    fn said(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{text}");
        text
    }

    fn files(&self, folder: &str) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(self.at(folder)).unwrap().map(|entry| entry.unwrap().path());
        entries
            .map(|path| (path.file_name().unwrap().to_string_lossy().into(), fs::read(path).unwrap()))
            .collect()
    }
}

#[test]
fn a_run_makes_checkpoints_and_the_second_one_nothing() {
    let world = World::new(json!({}));
    let text = world.said(0, &[]);
    assert!(text.contains("wrote out/tiny-ep01-gs00003.safetensors"), "{text}");
    assert!(text.contains("trained on 5 pictures, 6 steps, loss "), "{text}");
    let names: Vec<_> = world.files("out").into_keys().collect();
    let checkpoints = ["tiny-ep01-gs00003.safetensors", "tiny-ep02-gs00006.safetensors"];
    let of_the_audit = ["audit.cache.json", "audit.csv", "audit.json", "exposures.csv", "losses.csv"];
    assert_eq!(names, [&of_the_audit, &checkpoints[..], &["train.effective.json"]].concat());
    assert!(world.at("out.run.json").exists());

    let again = world.run(&["--json"]);
    let report: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!((&report["outcome"], &report["steps"]), (&json!("unchanged"), &json!(6)));
    assert!(world.said(0, &[]).contains("nothing to do"));
}

#[test]
fn a_killed_run_goes_on_to_the_same_files() {
    let world = World::new(json!({"max_epochs": 8, "save_every_n_epochs": 2, "state_every_n_steps": 2}));
    world.said(0, &["--set", "output=whole"]);
    let mut child = world.command(&[]).stderr(Stdio::piped()).spawn().unwrap();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let saved = stderr.lines().map_while(Result::ok).find(|line| line.starts_with("wrote out/tiny-ep02"));
    child.kill().unwrap(); // SIGKILL
    assert!(saved.is_some(), "the first checkpoint was written");
    assert!(!child.wait().unwrap().success(), "it was killed before it was through");
    let text = world.said(0, &[]);
    assert!(text.contains("going on after step "), "{text}");
    assert_eq!(world.files("out"), world.files("whole"));
}

#[test]
fn options_go_before_the_file() {
    let world = World::new(json!({"lr": null}));
    fs::write(
        world.at("optimizer.json"),
        r#"{"base": {"lr": 1e-5}, "text_encoder_overrides": {"lr": 3e-6}}"#,
    )
    .unwrap();
    let arguments =
        ["--optimizer", "optimizer.json", "--set", "max_epochs=7", "--set", "run_name=x", "--dry-run"];
    let output = world.run(&arguments);
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    let settings = &plan["settings"];
    assert_eq!((&settings["max_epochs"], &settings["unet"]["optimizer"]["lr"]), (&json!(7), &json!(1e-5)));
    assert_eq!(settings["text_encoder"]["optimizer"]["lr"], json!(3e-6));
    assert!(!world.at("out").exists());
}

#[test]
fn wrong_configurations_end_with_2() {
    let world = World::new(json!({}));
    let said = |text: &str| {
        fs::write(world.at("train.json"), text).unwrap();
        world.said(2, &[])
    };
    let unknown = said("{\n  \"data_root\": \"data\",\n  \"batchsize\": 4\n}");
    assert!(
        unknown.contains("unknown key `batchsize` (did you mean `batch_size`?) at line 3 column 13"),
        "{unknown}"
    );
    assert!(
        said(r#"{"plugins": ["p"]}"#)
            .contains("`plugins` is not supported: plugins of EveryDream2 are Python")
    );
    assert!(said("{\"seed\": 1,}").contains("`train.json`: trailing comma at line 1"));
    assert!(said("{}").contains("`data_root` is missing: the folder with the pictures"));
    fs::remove_file(world.at("train.json")).unwrap();
    assert!(world.said(2, &[]).contains("cannot use `train.json`: "));

    world.write_config(json!({}));
    assert!(world.said(2, &["--set", "resolution=500"]).contains("`resolution` is 500"));
    assert!(world.said(2, &["--set", "wandb=true"]).contains("`wandb` is not supported: "));
    assert!(world.said(2, &["--set", "seed"]).contains("expected KEY=VALUE"));
}

#[test]
fn data_that_cannot_be_trained_on_ends_with_1() {
    let world = World::new(json!({}));
    fs::remove_file(world.at("data/3.txt")).unwrap();
    let text = world.said(1, &[]);
    assert!(text.contains("1 of the pictures in `data` have no caption: `3.png`"), "{text}");
    fs::create_dir(world.at("none")).unwrap();
    assert!(world.said(1, &["--set", "data_root=none"]).contains("no pictures in `none`"));
}

#[test]
fn a_bad_picture_is_skipped_and_ends_with_3() {
    let world = World::new(json!({"max_epochs": 1}));
    fs::write(world.at("data/bad.jpg"), "not a picture").unwrap();
    fs::write(world.at("data/bad.txt"), "a caption").unwrap();
    let text = world.said(1, &[]);
    assert!(text.contains("1 of the pictures cannot be read; the first is `bad.jpg`"), "{text}");
    assert!(!world.at("out/losses.csv").exists(), "nothing was trained");
    let text = world.said(3, &["--allow", "unreadable"]);
    assert!(text.contains("skipped bad.jpg: ") && text.contains("trained on 5 pictures"), "{text}");
}

#[test]
fn a_bad_checkpoint_device_or_folder_ends_with_1() {
    let world = World::new(json!({}));
    let whole = fs::read(vodka_testkit::model("base")).unwrap();
    fs::write(world.at("half.safetensors"), &whole[..whole.len() / 2]).unwrap();
    assert!(world.said(1, &["--set", "resume_ckpt=half.safetensors"]).contains("half.safetensors"));
    assert!(world.said(2, &["--device", "gpu"]).contains("unknown device `gpu`"));
    fs::write(world.at("file"), "").unwrap();
    assert!(world.said(1, &["--set", "output=file/out"]).contains("cannot create the folder `file/out`"));
    let mut left = fs::read_dir(world.at("out")).unwrap();
    assert!(left.next().is_none(), "nothing half made is left");
}

#[test]
fn the_audit_runs_alone() {
    let world = World::new(json!({"amp": false, "gpuid": 0}));
    let text = world.said(0, &["--audit"]);
    assert!(text.contains("audited 5 pictures: 0 unreadable, 0 without a caption"), "{text}");
    assert!(text.contains("\n64 x 64: "), "{text}");
    let names: Vec<_> = world.files("out").into_keys().collect();
    assert_eq!(names, ["audit.cache.json", "audit.csv", "audit.json"]);

    fs::write(world.at("data/bad.png"), "").unwrap();
    fs::write(world.at("data/bad.txt"), "a caption").unwrap();
    let output = world.run(&["--audit", "--json"]);
    assert_eq!(output.status.code(), Some(3));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["unreadable"], json!([{"image": "bad.png", "reason": "the file is empty"}]));
    assert!(
        world.said(2, &["--audit", "--allow", "ugly"]).contains("unreadable"),
        "what can be allowed is listed"
    );
}

#[test]
fn what_was_understood_is_printed_and_kept() {
    let world = World::new(json!({"amp": false, "gpuid": 0, "max_epochs": 1}));
    let output = world.run(&["--dry-run"]);
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    let told: Vec<_> = plan["notices"].as_array().unwrap().iter().map(|notice| &notice["key"]).collect();
    assert_eq!(told, ["amp", "gpuid"]);
    let text = world.said(0, &[]);
    assert!(text.contains("note: `amp` (false): deprecated in EveryDream2 too"), "{text}");
    let kept: Value = serde_json::from_slice(&world.files("out")["train.effective.json"]).unwrap();
    assert_eq!((&kept["settings"], &kept["notices"]), (&plan["settings"], &plan["notices"]));
}
