//! `vodka-sample` from the command line to the picture, and each of its errors.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fs, path::Path};

use assert_cmd::{Command, assert::Assert};
use vodka_sampler::read_parameters;
use vodka_testkit::{compose_control_net, fixture, model};

/// Runs the binary with the tiny model and two steps of 64 px, in a folder without CUDA libraries.
fn sample(dir: &Path, args: &[&str]) -> Assert {
    run(dir, &model("base"), &[&["--size", "64x64", "--steps", "2"], args].concat())
}

fn run(dir: &Path, checkpoint: &Path, args: &[&str]) -> Assert {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("vodka-sample"));
    command
        .current_dir(dir)
        .env("VODKA_RUNTIME", dir)
        .env("OMP_NUM_THREADS", "1")
        .arg("--checkpoint")
        .arg(checkpoint);
    let output = if args.contains(&"--output") { &[][..] } else { &["--output", "out.png"] };
    command.args(["--prompt", "a red circle"]).args(output).args(args).assert()
}

fn stderr(assert: &Assert) -> String {
    String::from_utf8_lossy(&assert.get_output().stderr).into_owned()
}

fn fails(assert: Assert, code: i32, parts: &[&str]) {
    let assert = assert.code(code);
    let text = stderr(&assert);
    assert!(parts.iter().all(|part| text.contains(part)), "expected {parts:?} in: {text}");
}

#[test]
fn a_picture_is_made_once_and_is_the_same_every_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.png");
    let args = ["--negative", "blurry", "--seed", "7", "--cfg", "4.5"];
    sample(dir.path(), &args).success();
    let text = read_parameters(&path).unwrap().unwrap();
    assert!(
        text.starts_with(
            "a red circle\nNegative prompt: blurry\nSteps: 2, Sampler: Euler, Schedule type: Automatic, CFG scale: 4.5, \
             Seed: 7, Size: 64x64, Model hash: "
        ),
        "{text}"
    );
    let first = fs::read(&path).unwrap();
    let again = sample(dir.path(), &args).success();
    assert!(stderr(&again).contains("out.png is there already"), "{}", stderr(&again));

    fs::remove_file(&path).unwrap();
    sample(dir.path(), &args).success();
    assert_eq!(fs::read(&path).unwrap(), first);
    sample(dir.path(), &["--seed", "8"]).success();
    assert_ne!(fs::read(&path).unwrap(), first);
}

#[test]
fn ddim_and_sizes_that_are_not_square() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--sampler", "ddim", "--steps", "3", "--size", "72x40", "--json"];
    let json = run(dir.path(), &model("base"), &args).success();
    let report: serde_json::Value = serde_json::from_slice(&json.get_output().stdout).unwrap();
    assert_eq!(report["outcome"], "done");
    let text = report["pictures"][0]["parameters"].as_str().unwrap();
    assert!(text.contains("Sampler: DDIM, ") && text.contains("Size: 72x40, "), "{text}");
}

#[test]
fn a_dry_run_shows_the_plan_and_makes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let assert = sample(dir.path(), &["--dry-run"]).success();
    let plan: serde_json::Value = serde_json::from_slice(&assert.get_output().stdout).unwrap();
    assert_eq!(plan["pictures"][0]["settings"]["cfg_scale"], 7.0);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_dry_run_shows_the_memory_and_too_little_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let need = |args: &[&str]| {
        let assert = run(dir.path(), &model("base"), &[args, &["--dry-run"]].concat()).success();
        let plan: serde_json::Value = serde_json::from_slice(&assert.get_output().stdout).unwrap();
        plan["memory"].clone()
    };
    let small = need(&["--size", "64x64"]);
    assert_eq!(small["vae_in_tiles"], false);
    assert!(small["needed_bytes"].as_u64() <= small["available_bytes"].as_u64(), "{small}");
    assert_eq!(need(&["--size", "256x128", "--vae-tile", "64"])["vae_in_tiles"], true);
    // What a GPU has is not known before it is used.
    assert!(need(&["--device", "cuda"])["available_bytes"].is_null());
    let args = ["--size", "8192x8192", "--batch-size", "500"];
    let large = need(&args);
    assert!(large["needed_bytes"].as_u64().unwrap() > 1_000_000_000_000, "{large}");
    let parts = ["8192x8192 px in a batch of 1000 rows needs ", " GB of memory, and ", " GB are available"];
    fails(run(dir.path(), &model("base"), &args), 1, &parts);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_vae_in_tiles_makes_the_same_picture() {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str, args: &[&str]| {
        let common = ["--size", "200x136", "--steps", "2", "--hires-upscaler", "Lanczos", "--output", name];
        run(dir.path(), &model("base"), &[&common, args].concat()).success();
        image::open(dir.path().join(name)).unwrap().into_rgb8()
    };
    let whole = make("whole.png", &["--vae-tile", "0"]);
    let tiled = make("tiled.png", &["--vae-tile", "64"]);
    assert_eq!(whole.dimensions(), (400, 272));
    let most = whole.iter().zip(tiled.iter()).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(most <= Some(1), "{most:?}");
    // Nobody asks for tiles here.
    assert_eq!(make("automatic.png", &[]), whole);
}

#[test]
fn wrong_settings_are_usage_errors() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &[&str]); 22] = [
        (&["--size", "100x64"], &["100x64", "multiples of 8"]),
        (&["--size", "big"], &["512x768", "big"]),
        (&["--sampler", "Eular"], &["unknown sampler `Eular`", "did you mean `Euler`?"]),
        (&["--schedule", "Caras"], &["unknown schedule `Caras`", "did you mean `Karras`?"]),
        (&["--sampler", "DDIM", "--schedule", "Uniform"], &["DDIM", "timesteps of its own"]),
        (&["--cfg=-1"], &["CFG scale -1"]),
        (&["--negative", "(x:1.2.3)"], &["the weight `1.2.3` in a prompt is no number"]),
        (&["--denoising", "0.5"], &["made from another", "not given"]),
        (&["--init-image", "none.png"], &["none.png"]),
        (&["--init-image", "none.png", "--resize-mode", "bent"], &["`bent`", "just, crop, fill"]),
        (&["--batch-size", "0"], &["the batch size is 0, expected 1 to 10000"]),
        (&["--batch-size", "200", "--batch-count", "200"], &["the number of pictures is 40000"]),
        (&["--emphasis", "some"], &["unknown emphasis mode `some`", "No norm"]),
        (&["--lora-dir", "none"], &["cannot read `none`"]),
        (&["--style", "x"], &["--styles"]),
        (&["--seed-resize-from", "100x64"], &["100x64", "multiples of 8"]),
        (&["--output", "out.gif"], &["out.gif", ".png, .jpg or .webp"]),
        (&["--vae-tile", "56"], &["tiles of the VAE of 56 px", "a multiple of 8 from 64 to 8192 px"]),
        (&["--vae-tile", "100"], &["tiles of the VAE of 100 px"]),
        (&["--vae-tile", "8200"], &["tiles of the VAE of 8200 px"]),
        (&["--vae-tile", "64", "--tiling"], &["edges fit together", "cannot be taken in tiles"]),
        (&["--rng", "gpu"], &["unknown source of random numbers `gpu`; known are CPU, NV"]),
    ];
    for (args, parts) in cases {
        fails(run(dir.path(), &model("base"), args), 2, parts);
    }
    fails(run(dir.path(), &model("base"), &["--steps", "0"]), 2, &["1 to 1000 steps, found 0"]);
}

#[test]
fn a_device_that_is_not_there_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    fails(
        sample(dir.path(), &["--device", "cuda"]),
        1,
        &["cuda", "libtorch_cuda", "cargo xtask setup --gpu"],
    );
    fails(sample(dir.path(), &["--device", "gpu"]), 2, &["unknown device `gpu`"]);
    fails(sample(dir.path(), &["--clip-skip", "0"]), 2, &["clip skip is 0"]);
}

#[test]
fn damaged_checkpoints_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let good = fs::read(model("base")).unwrap();
    let path = dir.path().join("bad.safetensors");

    fs::write(&path, &good[..good.len() - 1000]).unwrap();
    fails(run(dir.path(), &path, &["--size", "64x64"]), 1, &["bad.safetensors", "truncated"]);

    let tensor = "model.diffusion_model.out.2.weight";
    fs::write(&path, with_nan(&good, tensor)).unwrap();
    fails(
        run(dir.path(), &path, &["--size", "64x64", "--steps", "1"]),
        1,
        &["bad.safetensors", tensor, "NaN"],
    );
    assert!(!dir.path().join("out.png").exists());

    fails(run(dir.path(), &dir.path().join("none.safetensors"), &[]), 1, &["none.safetensors"]);
}

/// The file with a NaN as the first element of a tensor.
fn with_nan(file: &[u8], tensor: &str) -> Vec<u8> {
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let start = 8 + length + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
    let mut file = file.to_vec();
    file[start..start + 2].copy_from_slice(&0x7e00_u16.to_le_bytes());
    file
}

#[test]
fn all_samplers_make_pictures_that_their_text_makes_again() {
    let dir = tempfile::tempdir().unwrap();
    let long = "a (red:1.3) circle, BREAK [blue|green] star AND cat :0.3, ".to_owned() + &"dog, ".repeat(60);
    let (first, again) = (dir.path().join("out.png"), dir.path().join("again.png"));
    for (sampler, steps) in
        [("DPM++ 2M", "3"), ("DPM++ SDE", "2"), ("Euler a", "3"), ("DDIM CFG++", "4"), ("UniPC", "4")]
    {
        let args =
            ["--sampler", sampler, "--steps", steps, "--negative", &long, "--seed", "9", "--rng", "nv"];
        let args = [&args[..], &["--size", "64x64", "--subseed", "3", "--subseed-strength", "0.2"]].concat();
        run(dir.path(), &model("base"), &args).success();
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("vodka-sample"));
        command.current_dir(dir.path()).env("VODKA_RUNTIME", dir.path()).env("OMP_NUM_THREADS", "1");
        command.arg("--checkpoint").arg(model("base"));
        command.args(["--from", "out.png", "--output", "again.png"]).assert().success();
        assert_eq!(fs::read(&first).unwrap(), fs::read(&again).unwrap(), "{sampler}");
    }
}

#[test]
fn pictures_without_text_and_prompts_with_networks_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("none.png"), "").unwrap();
    fails(sample(dir.path(), &["--from", "none.png"]), 2, &["none.png"]);
    fails(sample(dir.path(), &["--from", "lost.png"]), 2, &["lost.png"]);
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("vodka-sample"));
    command.current_dir(dir.path()).arg("--checkpoint").arg(model("base"));
    let assert = command.args(["--prompt", "<lora:style:1>", "--output", "x.png"]).assert();
    fails(assert, 2, &["there is no LoRA `style`"]);
}

#[test]
fn an_output_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    fails(sample(dir.path(), &["--output", "file/out.png"]), 1, &["cannot", "file"]);
}

/// A recipe with two outputs over the tiny models.
fn write_recipe(dir: &Path) {
    let text = format!(
        r#"
[parents]
v1 = '{}'
base = '{}'

[steps.half]
method = "weighted-sum"
a = "base"
b = "v1"
multiplier = 0.5

[steps.twice]
method = "add-difference"
a = "half"
b = "v1"
c = "base"
multiplier = 0.5

[[outputs]]
step = "half"

[[outputs]]
step = "twice"
file = "twice.safetensors"
"#,
        model("v1").display(),
        model("base").display()
    );
    fs::write(dir.join("mix.toml"), text).unwrap();
}

fn of_recipe(dir: &Path, output: &str, args: &[&str]) -> Assert {
    run(dir, Path::new(output), &[&["--size", "64x64", "--steps", "2"], args].concat())
}

#[test]
fn a_merge_recipe_is_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    write_recipe(dir.path());
    let path = dir.path().join("out.png");
    let pixels = || image::open(&path).unwrap().into_rgb8();
    of_recipe(dir.path(), "mix.toml#half", &[]).success();
    let half = pixels();
    let text = read_parameters(&path).unwrap().unwrap();
    let hash = |name: &str| {
        let source = vodka_sampler::ModelSource::Checkpoint(model(name));
        source.id(&mut Default::default(), &Default::default()).unwrap().sha256.short(10)
    };
    let parents = format!("Merge parents: \"base: {}, v1: {}\"", hash("base"), hash("v1"));
    let merge = "Model: half, Merge hash: ";
    let steps = "Merge: \"half = weighted-sum(a: base, b: v1, multiplier: 0.5)\"";
    assert!([merge, steps, &parents].iter().all(|part| text.contains(part)), "{text}");
    assert!(!text.contains("Model hash"), "no file has one: {text}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "no checkpoint was written");
    let again = of_recipe(dir.path(), "mix.toml#half", &[]).success();
    assert!(stderr(&again).contains("out.png is there already"), "{}", stderr(&again));

    of_recipe(dir.path(), "mix.toml#half", &["--weight", "multiplier=0"]).success();
    let changed = pixels();
    sample(dir.path(), &[]).success();
    assert_eq!(pixels(), changed, "a weighted sum at 0 is A");
    assert_ne!(half, changed);
    let args = ["--weight", "half.multiplier=0.25", "--weight", "twice.alpha=0", "--dry-run"];
    let plan = of_recipe(dir.path(), "mix.toml#twice", &args).success();
    let plan: serde_json::Value = serde_json::from_slice(&plan.get_output().stdout).unwrap();
    assert_eq!(plan["model"]["merge"]["plan"]["graph"]["steps"][0]["params"][0], "0.25");
}

#[test]
fn recipes_that_make_no_model_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    write_recipe(dir.path());
    let cases: [(&str, &[&str], &[&str]); 6] = [
        ("mix.toml", &[], &["there are several outputs", "`half`, `twice`"]),
        ("mix.toml#whole", &[], &["no output is called `whole`", "`half`, `twice`"]),
        ("mix.toml#half", &["--weight", "beta=1"], &["no step has a weight `beta`", "`half.multiplier`"]),
        ("mix.toml#twice", &["--weight", "multiplier=1"], &["`half.multiplier` or `twice.multiplier`"]),
        ("mix.toml#half", &["--weight", "multiplier=2"], &["multiplier is 2, expected 0 to 1"]),
        ("none.toml", &[], &["none.toml"]),
    ];
    for (output, args, parts) in cases {
        fails(of_recipe(dir.path(), output, args), 2, parts);
    }
    fails(sample(dir.path(), &["--weight", "multiplier=1"]), 2, &["is no merge recipe (.toml)"]);
    fails(sample(dir.path(), &["--weight", "1"]), 2, &["expected NAME=X, found `1`"]);
    let text = fs::read_to_string(dir.path().join("mix.toml")).unwrap();
    fs::write(dir.path().join("mix.toml"), text.replacen("base.safetensors", "lost.safetensors", 1)).unwrap();
    fails(of_recipe(dir.path(), "mix.toml#half", &[]), 1, &["lost.safetensors"]);
    fs::write(dir.path().join("mix.toml"), text.replace("weighted-sum", "weighted-sun")).unwrap();
    fails(of_recipe(dir.path(), "mix.toml#half", &[]), 2, &["mix.toml", "weighted-sum"]);
}

#[test]
fn batches_are_numbered_and_go_on_where_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--seed", "7", "--batch-size", "2", "--batch-count", "2"];
    let text = stderr_or_out(&sample(dir.path(), &args).success());
    assert!(text.contains("4 pictures, out-1.png to out-4.png; 0 of them were there"), "{text}");
    let read = |i: u32| fs::read(dir.path().join(format!("out-{i}.png"))).unwrap();
    let all: Vec<_> = (1..=4).map(read).collect();
    let seeds = (1..=4).map(|i| {
        let text = read_parameters(&dir.path().join(format!("out-{i}.png"))).unwrap().unwrap();
        text.split("Seed: ").nth(1).unwrap().split(',').next().unwrap().to_owned()
    });
    assert_eq!(seeds.collect::<Vec<_>>(), ["7", "8", "9", "10"]);
    let text = stderr_or_out(&sample(dir.path(), &args).success());
    assert!(text.contains("4 pictures are there already"), "{text}");

    // What a killed run leaves: some pictures, and a record without outputs.
    let record = dir.path().join("out.png.run.json");
    let mut left: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    fs::remove_file(dir.path().join("out-2.png")).unwrap();
    fs::remove_file(dir.path().join("out-4.png")).unwrap();
    left["outputs"] = serde_json::json!([]);
    fs::write(&record, left.to_string()).unwrap();
    let text = stderr_or_out(&sample(dir.path(), &args).success());
    assert!(text.contains("2 of them were there"), "{text}");
    assert!((1..=4).all(|i| fs::exists(dir.path().join(format!("out-{i}.png"))).unwrap()));
    assert_eq!((read(1), read(3)), (all[0].clone(), all[2].clone()));
}

fn stderr_or_out(assert: &Assert) -> String {
    stderr(assert) + &String::from_utf8_lossy(&assert.get_output().stdout)
}

#[test]
fn a_picture_is_made_from_another_and_made_again() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path(), &["--seed", "3", "--output", "first.png"]).success();
    let args = ["--steps", "6", "--denoising", "0.5", "--resize-mode", "fill", "--output", "second.jpg"];
    let args = [&args[..], &["--init-image", "first.png", "--size", "96x64", "--seed", "4"]].concat();
    run(dir.path(), &model("base"), &args).success();
    let text = read_parameters(&dir.path().join("second.jpg")).unwrap().unwrap();
    assert!(text.contains("Denoising strength: 0.5, Init image hash: "), "{text}");
    assert!(text.contains("Resize mode: fill, "), "{text}");
    let again = |more: &[&str]| {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("vodka-sample"));
        command.current_dir(dir.path()).env("VODKA_RUNTIME", dir.path()).env("OMP_NUM_THREADS", "1");
        let args = ["--from", "second.jpg", "--output", "third.jpg", "--checkpoint"];
        command.args(args).arg(model("base")).args(more).assert()
    };
    fails(again(&[]), 2, &["made from another"]);
    again(&["--init-image", "first.png"]).success();
    let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
    assert_eq!(read("second.jpg"), read("third.jpg"));
}

#[test]
fn prompts_name_embeddings_wildcards_and_styles() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("wild")).unwrap();
    fs::write(dir.path().join("wild/colour.txt"), "red\ngreen\nblue\n").unwrap();
    let styles = "name,prompt,negative_prompt\nphoto,\"photo of {prompt}, sharp\",blurry\n";
    fs::write(dir.path().join("styles.csv"), styles).unwrap();
    let embeddings = fixture("sampler/parity/embeddings");
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("vodka-sample"));
    command.current_dir(dir.path()).env("VODKA_RUNTIME", dir.path()).env("OMP_NUM_THREADS", "1");
    command.args(["--prompt", "a __colour__ circle, __none__", "--wildcard-dir", "wild", "--checkpoint"]);
    command.arg(model("base")).args(["--styles", "styles.csv", "--style", "photo", "--embedding-dir"]);
    command.arg(embeddings).args(["--size", "64x64", "--steps", "2", "--seed", "1", "--output", "out.webp"]);
    let text = stderr_or_out(&command.assert().success());
    assert!(text.contains("no embedding: ") && text.contains("xl.safetensors"), "{text}");
    let text = read_parameters(&dir.path().join("out.webp")).unwrap().unwrap();
    // random.Random(1).choice("red green blue".split())
    assert!(text.starts_with("photo of a red circle, __none__, sharp\nNegative prompt: blurry\n"), "{text}");
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("vodka-sample"));
    command.current_dir(dir.path()).args(["--prompt", "x", "--styles", "styles.csv", "--style", "foto"]);
    command.arg("--checkpoint").arg(model("base")).args(["--output", "x.png"]);
    fails(command.assert(), 2, &["there is no style `foto`; known are photo"]);
}

#[test]
fn what_a_text_asks_for_beyond_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let picture = image::RgbImage::new(8, 8);
    let text = "a cat\nSteps: 2, Sampler: Euler a, Seed: 1, Size: 64x64, Refiner: x, Hires checkpoint: y, Version: v1.10.1";
    vodka_sampler::write_png(&dir.path().join("from.png"), &picture, text).unwrap();
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("vodka-sample"));
    command.current_dir(dir.path()).env("VODKA_RUNTIME", dir.path()).env("OMP_NUM_THREADS", "1");
    command.arg("--checkpoint").arg(model("base")).args(["--from", "from.png", "--output", "x.png"]);
    let text = stderr_or_out(&command.assert().success());
    assert!(text.contains("which was not done: Refiner, Hires checkpoint"), "{text}");
}

#[test]
fn a_hires_pass_is_made_and_made_again_from_its_text() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("upscalers")).unwrap();
    let upscaler = dir.path().join("upscalers/4x-tiny.pth");
    fs::copy(fixture("sd15/rrdb/body.pth"), &upscaler).unwrap();
    let again = |more: &[&str]| {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("vodka-sample"));
        command.current_dir(dir.path()).env("VODKA_RUNTIME", dir.path()).env("OMP_NUM_THREADS", "1");
        let args = ["--from", "out.png", "--output", "again.png", "--checkpoint"];
        command.args(args).arg(model("base")).args(more).assert()
    };
    let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
    let args = ["--hires-upscaler", "latent (nearest-exact)", "--hires-scale", "1.5", "--hires-steps", "3"];
    sample(
        dir.path(),
        &[&args[..], &["--hires-sampler", "DPM++ 2M", "--hires-prompt", "a large circle"]].concat(),
    )
    .success();
    assert_eq!(image::image_dimensions(dir.path().join("out.png")).unwrap(), (96, 96));
    let text = read_parameters(&dir.path().join("out.png")).unwrap().unwrap();
    let expected = "Denoising strength: 0.7, RNG: CPU, Hires sampler: DPM++ 2M, Hires prompt: a large circle, Hires upscale: 1.5, \
                    Hires steps: 3, Hires upscaler: Latent (nearest-exact), ";
    assert!(text.contains("Size: 64x64, ") && text.contains(expected), "{text}");
    again(&[]).success();
    assert_eq!(read("out.png"), read("again.png"));

    let args = [
        "--hires-upscaler",
        "upscalers/4x-tiny.pth",
        "--hires-size",
        "128x96",
        "--denoising",
        "0.4",
        "--seed",
        "5",
    ];
    let json = sample(dir.path(), &[&args[..], &["--batch-size", "2", "--json"]].concat()).success();
    let report: serde_json::Value = serde_json::from_slice(&json.get_output().stdout).unwrap();
    let text = report["pictures"][1]["parameters"].as_str().unwrap();
    let expected = "Denoising strength: 0.4, RNG: CPU, Hires resize: 128x96, Hires upscaler: 4x-tiny, Hires upscaler hash: ";
    assert!(text.contains("Seed: 6, ") && text.contains(expected), "{text}");
    assert_eq!(image::image_dimensions(dir.path().join("out-2.png")).unwrap(), (128, 96));
    fs::copy(dir.path().join("out-2.png"), dir.path().join("out.png")).unwrap();
    fails(again(&[]), 2, &["the upscaler `4x-tiny`", "its file, or a folder of upscalers"]);
    fs::rename(&upscaler, dir.path().join("upscalers/4x-teny.pth")).unwrap();
    let error = "there is no upscaler `4x-tiny` among the files of `upscalers`, did you mean `4x-teny`?";
    fails(again(&["--upscaler-dir", "upscalers"]), 2, &[error]);
    fs::rename(dir.path().join("upscalers/4x-teny.pth"), &upscaler).unwrap();
    again(&["--upscaler-dir", "upscalers"]).success();
    let pixels = |name: &str| image::open(dir.path().join(name)).unwrap().into_rgb8();
    let differ = pixels("again.png").iter().zip(pixels("out.png").iter()).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(differ <= Some(1), "a batch is its pictures within a level: {differ:?}");
    // A file of that name with other contents is told of.
    fs::copy(fixture("sd15/rrdb/numbered.pth"), &upscaler).unwrap();
    let other = again(&["--upscaler-dir", "upscalers"]).success();
    assert!(
        stderr(&other).contains("another file than the text's: Hires upscaler hash: `"),
        "{}",
        stderr(&other)
    );
}

#[test]
fn hires_passes_that_cannot_be_are_usage_errors() {
    let dir = tempfile::tempdir().unwrap();
    image::RgbImage::new(8, 8).save(dir.path().join("in.png")).unwrap();
    let cases: [(&[&str], i32, &[&str]); 8] = [
        (&["--hires-scale", "0"], 2, &["a scale of 0: expected more than 0"]),
        (&["--hires-size", "9000x9000"], 2, &["size 9000x9000", "up to 8192"]),
        (&["--hires-size", "0x0"], 2, &["0x0"]),
        (&["--hires-scale", "2", "--hires-size", "128x128"], 2, &["--hires-size"]),
        (&["--hires-steps", "2000"], 2, &["2000"]),
        (&["--hires-scale", "2", "--init-image", "in.png"], 2, &["has no hires pass"]),
        (&["--hires-upscaler", "Latent (sharp)"], 2, &["Latent (sharp)"]),
        (&["--hires-upscaler", "in.png"], 1, &["in.png"]),
    ];
    for (args, code, parts) in cases {
        fails(sample(dir.path(), args), code, parts);
    }
    let checkpoint = model("base").display().to_string();
    let error = "is a Stable Diffusion 1.x checkpoint, expected an ESRGAN upscaler";
    fails(sample(dir.path(), &["--hires-upscaler", &checkpoint]), 1, &[error]);
    assert!(!dir.path().join("out.png").exists());
}

#[test]
fn control_nets_are_in_the_text_and_make_the_picture_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("nets")).unwrap();
    compose_control_net(&path("nets/tile, tiny.safetensors")).unwrap();
    image::RgbImage::from_fn(50, 40, |x, y| image::Rgb([(x * 5) as u8, (y * 6) as u8, 90]))
        .save(path("small.png"))
        .unwrap();
    let unit = "model=nets/tile, tiny.safetensors,image=small.png,weight=0.8,end=0.7,preprocessor=tile_resample,rate=1.5";
    let second = "model=nets/tile, tiny.safetensors,image=small.png,mode=control,preprocessor=tile_colorfix";
    let args = ["--control", unit, "--control", second, "--negative", "blurry", "--seed", "3"];
    sample(dir.path(), &args).success();
    let text = read_parameters(&path("out.png")).unwrap().unwrap();
    let hash = text.split("tile tiny [").nth(1).unwrap().split(']').next().unwrap();
    assert_eq!(hash.len(), 8, "{text}");
    let first = format!(
        "ControlNet 0: \"Module: tile_resample, Model: tile tiny [{hash}], Weight: 0.8, Resize Mode: Crop and Resize, \
         Processor Res: 512, Threshold A: 1.5, Threshold B: 0.5, Guidance Start: 0.0, Guidance End: 0.7, Pixel Perfect: False, \
         Control Mode: Balanced\", ControlNet 1: \"Module: tile_colorfix, "
    );
    assert!(text.contains(&first), "{text}");
    let again = sample(dir.path(), &args).success();
    assert!(stderr(&again).contains("out.png is there already"), "{}", stderr(&again));
    let before = fs::read(path("out.png")).unwrap();
    sample(dir.path(), &["--negative", "blurry", "--seed", "3", "--output", "plain.png"]).success();
    assert_ne!(fs::read(path("plain.png")).unwrap(), before);

    // A text has no commas in names; the file is found all the same.
    let from = |args: &[&str]| {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("vodka-sample"));
        command.current_dir(dir.path()).env("VODKA_RUNTIME", dir.path()).env("OMP_NUM_THREADS", "1");
        command.arg("--checkpoint").arg(model("base"));
        command.args(["--from", "out.png", "--output", "again.png"]).args(args).assert()
    };
    let images = ["--control", "image=small.png", "--control", "image=small.png"];
    from(&[&["--control-dir", "nets"][..], &images].concat()).success();
    assert_eq!(fs::read(path("again.png")).unwrap(), before);
    fails(from(&["--control-dir", "nets"]), 2, &["the ControlNet 0 has no `image`"]);
    fails(from(&images), 2, &["made with the ControlNet `tile tiny`", "a folder of ControlNets"]);
    fs::create_dir(path("empty")).unwrap();
    fails(from(&["--control-dir", "empty"]), 2, &["no ControlNet `tile tiny` among the files of `empty`"]);

    // A file of that name with other contents is told of, and the new text has its hash.
    let weights = fs::read(path("nets/tile, tiny.safetensors")).unwrap();
    let mut changed = weights.clone();
    changed[0x10_0100] ^= 1;
    fs::write(path("nets/tile, tiny.safetensors"), changed).unwrap();
    let other = from(&[&["--control-dir", "nets"][..], &images].concat()).success();
    let told =
        format!("another file than the text's: ControlNet 0: `tile tiny [{hash}]`, found `tile tiny [");
    assert!(stderr(&other).contains(&told), "{}", stderr(&other));
    let text = read_parameters(&path("again.png")).unwrap().unwrap();
    assert!(text.contains("Model: tile tiny [") && !text.contains(hash), "{text}");
    fs::write(path("nets/tile, tiny.safetensors"), weights).unwrap();

    // Another picture of conditions is another picture.
    image::RgbImage::from_pixel(50, 40, image::Rgb([200, 30, 10])).save(path("small.png")).unwrap();
    let changed = ["--control-dir", "nets", "--control", "image=small.png", "--control", "image=small.png"];
    from(&changed).success();
    assert_ne!(fs::read(path("again.png")).unwrap(), before);
}

#[test]
fn control_nets_that_cannot_be_used_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    image::RgbImage::new(8, 8).save(dir.path().join("x.png")).unwrap();
    compose_control_net(&dir.path().join("net.safetensors")).unwrap();
    let checkpoint = format!("model={},image=x.png", model("base").display());
    let with = |text: &str| sample(dir.path(), &["--control", text]);
    fails(with(&checkpoint), 1, &["is a Stable Diffusion 1.x checkpoint, expected a ControlNet"]);
    fails(with("model=net.safetensors,image=none.png"), 1, &["none.png"]);
    fails(with("model=none.pth,image=x.png"), 2, &["none.pth"]);
    fails(with("model=net.safetensors"), 2, &["the ControlNet 0 has no `image`"]);
    fails(with("image=x.png"), 2, &["the ControlNet 0 has no `model`"]);
    fails(with("model=net.safetensors,image=x.png,weight=3"), 2, &["weight is 3, expected 0 to 2"]);
    fails(with("model=net.safetensors,image=x.png,wieght=1"), 2, &["no `wieght`", "did you mean `weight`?"]);
    fails(with("model=net.safetensors,image=x.png,mode=x"), 2, &["balanced, prompt or control, found `x`"]);
    fails(with("model=net.safetensors,image=x.png,preprocessor=canny"), 2, &["tile_resample", "`canny`"]);
    fails(with("model=net.safetensors,image=x.png,sigma=3"), 2, &["the preprocessor none has no `sigma`"]);
    // And one is no checkpoint.
    fails(
        run(dir.path(), &dir.path().join("net.safetensors"), &["--size", "64x64"]),
        1,
        &["net.safetensors` is a ControlNet, expected a Stable Diffusion 1.x checkpoint"],
    );
}
