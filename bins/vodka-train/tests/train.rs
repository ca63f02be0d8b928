//! The real binary: a training run, its resumption after `kill -9`, and what it says about bad input.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
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

    /// The files in a folder; of the log what does not vary. What folders below it hold is left out.
    fn files(&self, folder: &str) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(self.at(folder)).unwrap().map(|entry| entry.unwrap().path());
        let file = |path: PathBuf| {
            let name: String = path.file_name().unwrap().to_string_lossy().into();
            let bytes = if name == "log.jsonl" { without_times(&path) } else { fs::read(path).unwrap() };
            (name, bytes)
        };
        entries.filter(|path| path.is_file()).map(file).collect()
    }
}

fn without_times(log: &Path) -> Vec<u8> {
    let line = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        line.as_object_mut().unwrap().shift_remove("time");
        format!("{line}\n")
    };
    fs::read_to_string(log).unwrap().lines().map(line).collect::<String>().into()
}

#[test]
fn a_run_makes_checkpoints_and_the_second_one_nothing() {
    let world = World::new(json!({}));
    let text = world.said(0, &[]);
    assert!(text.contains("wrote out/tiny-ep01-gs00003.safetensors"), "{text}");
    assert!(text.contains("trained on 5 pictures, 6 steps, loss "), "{text}");
    let names: Vec<_> = world.files("out").into_keys().collect();
    let expected = [
        "audit.cache.json",
        "audit.csv",
        "audit.json",
        "exposures.csv",
        "last-tiny-ep02-gs00006.safetensors",
        "log.jsonl",
        "losses.csv",
        "losses.png",
        "losses.svg",
        "tiny-ep01-gs00003.safetensors",
        "train.effective.json",
    ];
    assert_eq!(names, expected);
    for said in ["epoch 1 of 2: loss ", " images/s, ", " GiB, ", " s left", "\ntime: data "] {
        assert!(text.contains(said), "{said} in {text}");
    }
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
    // Whoever watches may come too late, on a machine with other work: then all of it begins again.
    loop {
        let mut child = world.command(&[]).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let saved = stderr.lines().map_while(Result::ok).find(|line| line.starts_with("wrote out/tiny-ep02"));
        child.kill().unwrap(); // SIGKILL
        assert!(saved.is_some(), "the first checkpoint was written");
        if !child.wait().unwrap().success() {
            break;
        }
        fs::remove_dir_all(world.at("out")).unwrap();
        fs::remove_file(world.at("out.run.json")).unwrap();
    }
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
fn samples_are_made_with_the_networks_in_training() {
    let samples = json!({"cfgs": [7, 1], "num_inference_steps": 2, "generate_samples_every_n_steps": 3,
        "samples": [{"prompt": "a red circle"}, {"prompt": "a blue star", "size": [128, 64]}]});
    let world = World::new(json!({"sample_prompts": "samples.json", "ema_decay_rate": 0.5,
        "ema_update_interval": 1, "ema_sample_ema_model": true, "ema_sample_nonema_model": true}));
    fs::write(world.at("samples.json"), samples.to_string()).unwrap();
    world.said(0, &[]);
    let strip = |name: &str| image::open(world.at("out/samples").join(name)).unwrap().to_rgb8();
    assert_eq!(strip("gs00003-001-a blue star.jpg").dimensions(), (256, 64));
    let [early, late, means] = ["gs00003-000-", "gs00006-000-", "gs00006-000-ema_"]
        .map(|name| strip(&format!("{name}a red circle.jpg")));
    assert!(early != late && late != means, "the networks that are trained are sampled");
    let text = fs::read_to_string(world.at("out/samples/gs00003-000-a red circle.txt")).unwrap();
    assert_eq!(text, "a red circle\n seed: 555");

    world.said(0, &["--set", "sample_prompts=null", "--set", "output=without"]);
    let files = |output: &str| {
        let mut files = world.files(output);
        // It says what was asked for.
        files.remove("train.effective.json");
        files
    };
    assert_eq!(files("out"), files("without"), "bit for bit: samples do not touch the training");
}

#[test]
fn a_sampler_that_is_not_there_is_told_with_the_nearest() {
    let world = World::new(json!({"sample_prompts": "samples.json"}));
    fs::write(world.at("samples.json"), r#"{"scheduler": "ddpm"}"#).unwrap();
    let text = world.said(2, &[]);
    assert!(text.contains("cannot use `samples.json`: there is no scheduler `ddpm`: the nearest "), "{text}");
}

#[test]
fn the_learning_rate_finder_writes_a_table_a_graph_and_a_suggestion() {
    let world = World::new(json!({"lr": null}));
    let text = world.said(0, &["--find-lr", "--lr-min", "1e-6", "--lr-max", "10", "--lr-steps", "30"]);
    assert!(text.contains("learning rate") && text.contains("the networks are as they were"), "{text}");
    for name in ["find-lr.csv", "find-lr.png", "find-lr.svg"] {
        assert!(world.at("out/find-lr").join(name).exists(), "{name}");
    }
    assert!(
        world.said(2, &["--find-lr", "--lr-steps", "3"]).contains("`lr-steps` is 3, expected 10 to 100000")
    );
    assert!(world.said(2, &["--lr-steps", "3"]).contains("--find-lr"));
}

#[test]
fn the_last_checkpoint_of_the_other_runs_is_found_from_a_relative_folder() {
    let world = World::new(json!({}));
    for name in ["out/a-ep02-gs00006.safetensors", "first/a-ep01-gs00003.safetensors"] {
        fs::create_dir_all(world.at(name).parent().unwrap()).unwrap();
        fs::write(world.at(name), "").unwrap();
    }
    let base = |output: &str| {
        let output = format!("output={output}");
        let found = world.run(&["--set", "resume_ckpt=findlast", "--set", &output, "--dry-run"]);
        let plan: Value = serde_json::from_slice(&found.stdout).unwrap();
        plan["base"].as_str().unwrap().to_owned()
    };
    for output in ["out", "./out", "out/", "first/../out"] {
        assert!(base(output).ends_with("first/a-ep01-gs00003.safetensors"), "{output}: {}", base(output));
    }
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
    for line in [
        "pictures     data",
        "training     1 epochs of batches of 2, at 64 pixels, seed 555, compat vodka",
        "UNet         adamw8bit, lr 1e-3, constant",
        "all of it    out/train.effective.json",
    ] {
        assert!(text.lines().any(|said| said == line), "{line} in {text}");
    }
    let kept: Value = serde_json::from_slice(&world.files("out")["train.effective.json"]).unwrap();
    assert_eq!((&kept["settings"], &kept["notices"]), (&plan["settings"], &plan["notices"]));
}
