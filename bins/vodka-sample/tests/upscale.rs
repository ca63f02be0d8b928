//! `vodka-sample upscale` from the command line to the larger picture, and each of its errors.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command as Process, Stdio},
    thread,
};

use assert_cmd::{Command, assert::Assert};
use image::{Rgb, RgbImage, Rgba, RgbaImage};
use vodka_sampler::{read_parameters, write_png};
use vodka_testkit::{compose_control_net, fixture, model};

fn upscale(dir: &Path, args: &[&str]) -> Assert {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("vodka-sample"));
    command.current_dir(dir).env("VODKA_RUNTIME", dir).env("OMP_NUM_THREADS", "1");
    command.arg("upscale").args(args).assert()
}

fn said(assert: &Assert) -> String {
    String::from_utf8_lossy(&assert.get_output().stderr).into_owned()
}

fn fails(assert: Assert, code: i32, parts: &[&str]) {
    let assert = assert.code(code);
    let text = said(&assert);
    assert!(parts.iter().all(|part| text.contains(part)), "expected {parts:?} in: {text}");
}

fn esrgan() -> String {
    fixture("sd15/rrdb/body.pth").display().to_string()
}

fn gradient(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([(x * 3) as u8, (y * 3) as u8, 100]))
}

fn size(path: &Path) -> (u32, u32) {
    image::image_dimensions(path).unwrap()
}

#[test]
fn a_picture_is_made_larger_once_and_keeps_its_text() {
    let dir = tempfile::tempdir().unwrap();
    let text = "a cat\nSteps: 2, Sampler: Euler, Seed: 1, Size: 100x80, Version: v1.10.1";
    write_png(&dir.path().join("in.png"), &gradient(100, 80), text).unwrap();
    let args = ["in.png", "--output", "out.png", "--upscaler", &esrgan(), "--scale", "2", "--tile", "64"];
    upscale(dir.path(), &args).success();
    let out = dir.path().join("out.png");
    assert_eq!(size(&out), (200, 160));
    let found = read_parameters(&out).unwrap().unwrap();
    let more = ", Postprocess upscale by: 2, Postprocess upscaler: body, Postprocess upscaler hash: ";
    assert!(found.starts_with(&format!("{text}{more}")), "{found}");
    let first = fs::read(&out).unwrap();
    let again = upscale(dir.path(), &args).success();
    assert!(said(&again).contains("out.png is there already"), "{}", said(&again));
    // Nothing says so any more: it is made again, and is the same.
    fs::remove_file(dir.path().join("out.png.run.json")).unwrap();
    upscale(dir.path(), &args).success();
    assert_eq!(fs::read(&out).unwrap(), first);

    // What the network makes is the picture: none of another place, nor with its colours swapped.
    upscale(dir.path(), &["in.png", "-o", "own.webp", "--upscaler", &esrgan()]).success();
    let own = image::open(dir.path().join("own.webp")).unwrap().into_rgb8();
    assert_eq!(own.dimensions(), (400, 320));
    let (of, there) = (own.get_pixel(200, 160).0, gradient(100, 80).get_pixel(50, 40).0);
    assert!(of.iter().zip(there).all(|(a, b)| a.abs_diff(b) < 70), "{of:?} {there:?}");
    upscale(
        dir.path(),
        &["in.png", "-o", "n.jpg", "--upscaler", "nearest", "--size", "64x96", "--resize-mode", "crop"],
    )
    .success();
    assert_eq!(size(&dir.path().join("n.jpg")), (64, 96));
    let found = read_parameters(&dir.path().join("n.jpg")).unwrap().unwrap();
    assert!(found.ends_with("Postprocess upscale to: 64x96, Postprocess upscaler: Nearest"), "{found}");
}

#[test]
fn transparent_pictures_stay_so_and_thin_ones_are_no_trouble() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let half = |x| if x < 8 { Rgba([250, 40, 40, 255]) } else { Rgba([0, 0, 0, 0]) };
    RgbaImage::from_fn(16, 6, |x, _| half(x)).save(path("clear.png")).unwrap();
    upscale(dir.path(), &["clear.png", "-o", "large.png", "--upscaler", &esrgan()]).success();
    let large = image::open(path("large.png")).unwrap().into_rgba8();
    assert_eq!(large.dimensions(), (64, 24));
    assert_eq!((large.get_pixel(4, 12).0[3], large.get_pixel(60, 12).0[3]), (255, 0));
    // No black has seeped into the edge.
    let red = large.pixels().filter(|pixel| pixel.0[3] > 0).map(|pixel| pixel.0[0]).min();
    assert!(red > Some(150), "{red:?}");
    upscale(dir.path(), &["clear.png", "-o", "large.jpg", "--upscaler", "Lanczos", "--scale", "2"]).success();
    let white = image::open(path("large.jpg")).unwrap().into_rgb8().get_pixel(30, 6).0;
    assert!(white.iter().all(|value| *value > 245), "{white:?}");

    gradient(1, 70).save(path("thin.png")).unwrap();
    for upscaler in [&esrgan(), "Lanczos", "Nearest"] {
        upscale(
            dir.path(),
            &["thin.png", "-o", "t.png", "--upscaler", upscaler, "--scale", "3", "--tile", "64"],
        )
        .success();
        assert_eq!(size(&path("t.png")), (3, 210), "{upscaler}");
    }
}

#[test]
fn a_folder_goes_on_where_it_was_and_lists_what_it_skips() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir_all(path("in/sub")).unwrap();
    for name in ["a.png", "a.bmp", "sub/b.jpg"] {
        gradient(20, 10).save(path("in").join(name)).unwrap();
    }
    fs::write(path("in/bad.png"), "no picture").unwrap();
    let args = ["in", "--output", "out", "--upscaler", &esrgan(), "--scale", "2"];
    let run = upscale(dir.path(), &args).code(3);
    let text = said(&run);
    assert!(text.contains("3 pictures in out; 0 of them were there"), "{text}");
    assert!(text.contains("skipped: bad.png: cannot read the picture"), "{text}");
    for name in ["a.png.png", "a.bmp.png", "sub/b.png"] {
        assert_eq!(size(&path("out").join(name)), (40, 20), "{name}");
    }
    let text = said(&upscale(dir.path(), &args).code(3));
    assert!(text.contains("3 of them were there") && text.contains("skipped: bad.png"), "{text}");

    // What a killed run leaves is a journal without a record.
    fs::remove_file(path("out.run.json")).unwrap();
    fs::write(path("out/a.png.png"), "half a picture").unwrap();
    fs::remove_file(path("in/bad.png")).unwrap();
    gradient(9, 9).save(path("in/new.png")).unwrap();
    let text = said(&upscale(dir.path(), &args).success());
    assert!(text.contains("4 pictures in out; 2 of them were there"), "{text}");
    assert_eq!(size(&path("out/a.png.png")), (40, 20));
    assert_eq!(size(&path("out/new.png")), (18, 18));
    let json = upscale(dir.path(), &[&args[..], &["--json"]].concat()).success();
    let report: serde_json::Value = serde_json::from_slice(&json.get_output().stdout).unwrap();
    assert_eq!((&report["outcome"], &report["kept"]), (&"unchanged".into(), &4.into()));
}

#[test]
fn what_is_no_upscaler_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    gradient(8, 8).save(dir.path().join("in.png")).unwrap();
    let with = |upscaler: &str| upscale(dir.path(), &["in.png", "-o", "out.png", "--upscaler", upscaler]);
    let checkpoint = model("base").display().to_string();
    fails(with(&checkpoint), 1, &["is a Stable Diffusion 1.x checkpoint, expected an ESRGAN upscaler"]);
    fails(with("none.pth"), 1, &["cannot", "none.pth"]);
    let bytes = fs::read(fixture("sd15/rrdb/numbered.pth")).unwrap();
    fs::write(dir.path().join("cut.pth"), &bytes[..bytes.len() - 100]).unwrap();
    fails(with("cut.pth"), 1, &["cut.pth", "truncated"]);
    let hostile = fixture("checkpoint/formats/hostile.ckpt").display().to_string();
    fails(with(&hostile), 1, &["no checkpoint needs: refused, nothing was run"]);
    assert!(!dir.path().join("out.png").exists());
}

#[test]
fn wrong_settings_are_usage_errors() {
    let dir = tempfile::tempdir().unwrap();
    gradient(8, 8).save(dir.path().join("in.png")).unwrap();
    fs::create_dir(dir.path().join("empty")).unwrap();
    let cases: [(&[&str], &[&str]); 11] = [
        (&["in.png", "-o", "out.png"], &["--upscaler"]),
        (&["in.png", "-o", "out.png", "--upscaler", "lanczos"], &["Lanczos makes pictures of any size"]),
        (&["in.png", "-o", "out.png", "--upscaler", "nearest", "--scale", "0"], &["a scale of 0"]),
        (&["in.png", "-o", "out.png", "--upscaler", "nearest", "--scale", "2", "--size", "8x8"], &["--size"]),
        (&["in.png", "-o", "out.png", "--upscaler", "nearest", "--size", "0x8"], &["0x8"]),
        (
            &["in.png", "-o", "o.png", "--upscaler", "nearest", "--size", "70000x8"],
            &["70000x8 px would take"],
        ),
        (
            &["in.png", "-o", "out.png", "--upscaler", "x.pth", "--tile", "32"],
            &["tiles of 32 px", "64 to 8192"],
        ),
        (&["in.png", "-o", "in.png", "--upscaler", "nearest", "--scale", "2"], &["`in.png` is the input"]),
        (
            &[".", "-o", "out", "--upscaler", "nearest", "--scale", "2"],
            &["`out` is the input, or lies in it"],
        ),
        (&["empty", "-o", "out", "--upscaler", "nearest", "--scale", "2"], &["no picture in `empty`"]),
        (
            &["in.png", "-o", "out.gif", "--upscaler", "nearest", "--scale", "2"],
            &["out.gif", ".png, .jpg or"],
        ),
    ];
    for (args, parts) in cases {
        fails(upscale(dir.path(), args), 2, parts);
    }
    let args = ["in.png", "-o", "out.png", "--upscaler", "nearest", "--scale", "2", "--dry-run"];
    let plan = upscale(dir.path(), &args).success();
    let plan: serde_json::Value = serde_json::from_slice(&plan.get_output().stdout).unwrap();
    assert_eq!(plan["target"]["scale"], 2.0);
    fails(
        upscale(dir.path(), &["none.png", "-o", "o.png", "--upscaler", "nearest", "--scale", "2"]),
        1,
        &["none.png"],
    );
}

/// Writes a recipe for the small model.
fn recipe(dir: &Path, text: &str) {
    let checkpoint = model("base").display().to_string();
    fs::write(dir.join("recipe.toml"), format!("checkpoint = '{checkpoint}'\n{text}")).unwrap();
}

const REDRAW: [&str; 5] = ["in.png", "--output", "out.png", "--recipe", "recipe.toml"];

#[test]
fn a_recipe_draws_a_picture_again_and_its_text_makes_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let text =
        "a cat\nNegative prompt: blurry\nSteps: 2, Sampler: Euler, Seed: 1, Size: 96x64, Version: v1.10.1";
    write_png(&dir.path().join("in.png"), &gradient(48, 32), text).unwrap();
    let tiles =
        "[tiles]\nwidth = 64\npadding = 8\nmask_blur = 2\n[seams]\ntype = \"half_tile_and_intersections\"\n";
    recipe(dir.path(), &format!("steps = 3\nscale = 3\n{tiles}"));
    let first = upscale(dir.path(), &REDRAW).success();
    assert!(said(&first).contains("in.png: across borders of tiles it changes"), "{}", said(&first));
    let out = dir.path().join("out.png");
    assert_eq!(size(&out), (192, 128));
    let found = read_parameters(&out).unwrap().unwrap();
    assert!(found.starts_with("a cat\nNegative prompt: blurry\nSteps: 3, Sampler: Euler, "), "{found}");
    let expected = "Ultimate SD upscale upscaler: Lanczos, Ultimate SD upscale tile_width: 64, Ultimate SD upscale tile_height: 64, \
                    Ultimate SD upscale mask_blur: 2, Ultimate SD upscale padding: 8, Ultimate SD upscale noise: Global, \
                    Ultimate SD upscale seams fix: Half tile offset pass + intersections, ";
    assert!(found.contains(expected), "{found}");
    assert!(found.contains("Size: 192x128, ") && found.contains("Denoising strength: 0.35, "), "{found}");
    let again = upscale(dir.path(), &REDRAW).success();
    assert!(said(&again).contains("out.png is there already"), "{}", said(&again));

    // What the text says is all that it needs.
    let args = ["in.png", "-o", "second.png", "--recipe", "recipe.toml"];
    recipe(dir.path(), "from = \"out.png\"\nscale = 3");
    upscale(dir.path(), &args).success();
    assert_eq!(fs::read(&out).unwrap(), fs::read(dir.path().join("second.png")).unwrap());
    // What is said here goes before it: another seed, and the size that the picture's own text states.
    recipe(dir.path(), "from = \"out.png\"");
    upscale(dir.path(), &[&args[..], &["--seed", "7", "--denoising", "0.5"]].concat()).success();
    let found = read_parameters(&dir.path().join("second.png")).unwrap().unwrap();
    assert!(
        found.contains("Seed: 7, Size: 96x64, ") && found.contains("Denoising strength: 0.5, "),
        "{found}"
    );
}

/// How many whole entries a journal has: a length, a checksum and so many bytes each, behind a head of 72.
fn entries(path: &Path) -> usize {
    let bytes = fs::read(path).unwrap_or_default();
    let mut rest = bytes.get(72..).unwrap_or_default();
    let mut count = 0;
    while let Some((head, after)) = rest.split_first_chunk::<8>() {
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let Some(next) = after.get(length..) else { break };
        rest = next;
        count += 1;
    }
    count
}

#[test]
fn a_run_that_is_killed_in_tile_37_goes_on_there() {
    let dir = tempfile::tempdir().unwrap();
    gradient(60, 60).save(dir.path().join("in.png")).unwrap();
    let tiles = "[tiles]\nwidth = 64\npadding = 0\nmask_blur = 1\n";
    recipe(dir.path(), &format!("prompt = \"\"\nsteps = 12\ndenoising = 0.8\nsize = \"512x448\"\n{tiles}"));
    let undisturbed = ["in.png", "--output", "whole.png", "--recipe", "recipe.toml"];
    upscale(dir.path(), &undisturbed).success();
    let whole = fs::read(dir.path().join("whole.png")).unwrap();

    let mut command = Process::new(assert_cmd::cargo::cargo_bin!("vodka-sample"));
    command.current_dir(dir.path()).env("VODKA_RUNTIME", dir.path()).env("OMP_NUM_THREADS", "1");
    let mut child = command.arg("upscale").args(REDRAW).stderr(Stdio::null()).spawn().unwrap();
    let journal = dir.path().join(".out.png.tiles");
    // The larger picture, and 37 tiles.
    while entries(&journal) < 38 {
        assert!(child.try_wait().unwrap().is_none(), "it was to be killed before it ended");
        thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let tiles = entries(&journal) - 1;
    assert!((37..56).contains(&tiles) && !dir.path().join("out.png").exists());
    // The last of them as a power cut leaves it.
    let file = fs::File::options().write(true).open(&journal).unwrap();
    file.set_len(fs::metadata(&journal).unwrap().len() - 3).unwrap();
    let left = entries(&journal) - 1;
    let run = upscale(dir.path(), &[&REDRAW[..], &["--json"]].concat()).success();
    let report: serde_json::Value = serde_json::from_slice(&run.get_output().stdout).unwrap();
    assert_eq!(report["kept_tiles"], left);
    assert!(left >= 36);
    assert_eq!(fs::read(dir.path().join("out.png")).unwrap(), whole);
    assert!(!journal.exists());
}

#[test]
fn what_one_picture_of_a_folder_asks_for_is_skipped() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("in")).unwrap();
    let common = "Steps: 2, Sampler: Euler, Seed: 1, Version: v1.10.1, Size";
    let pictures = [
        ("fine", "a cat", "64x64"),
        ("lora", "a cat <lora:none:1>", "64x64"),
        ("network", "a cat <hypernet:style:1>", "64x64"),
        ("field", "a cat", "large"),
        ("size", "a cat", "16384x128"),
        ("memory", "a cat", "70000x8"),
        ("without", "a cat", ""),
    ];
    for (name, prompt, size) in pictures {
        let text = match size {
            "" => prompt.to_owned(),
            size => format!("{prompt}\n{common}: {size}"),
        };
        write_png(&dir.path().join("in").join(format!("{name}.png")), &gradient(16, 16), &text).unwrap();
    }
    recipe(dir.path(), "steps = 2\n[tiles]\nwidth = 64\n[seams]\ntype = \"band\"\nwidth = 16");
    let run = upscale(dir.path(), &["in", "-o", "out", "--recipe", "recipe.toml"]).code(3);
    let text = said(&run);
    for expected in [
        "1 pictures in out",
        "skipped: lora.png: there is no LoRA `none`",
        "skipped: network.png: the prompt names <hypernet:style>",
        "skipped: field.png: Size: expected a size such as 512x768, found `large`",
        "skipped: size.png: size 16384x",
        "skipped: memory.png: a picture of 70000x8 px would take",
        "skipped: without.png: ",
    ] {
        assert!(text.contains(expected), "expected `{expected}` in: {text}");
    }
    assert_eq!(size(&dir.path().join("out/fine.png")), (64, 64));
    assert_eq!(fs::read_dir(dir.path().join("out")).unwrap().count(), 1);
}

/// An ESRGAN upscaler four times as wide as 4x-UltraSharp, with one block, and zeros alone.
fn write_wide(path: &Path) {
    let wide = 256;
    let mut all = vec![("conv_first".to_owned(), 3, wide)];
    for (j, k) in (1..=3).flat_map(|j| (1..=5).map(move |k| (j, k))) {
        all.push((format!("body.0.rdb{j}.conv{k}"), wide + k - 1, if k == 5 { wide } else { 1 }));
    }
    all.extend(["conv_body", "conv_up1", "conv_up2", "conv_hr"].map(|name| (name.to_owned(), wide, wide)));
    all.push(("conv_last".to_owned(), wide, 3));
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    let mut add = |name: String, shape: &[usize]| {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]});
        header.insert(name, entry);
    };
    for (name, from, to) in all {
        add(format!("{name}.weight"), &[to, from, 3, 3]);
        add(format!("{name}.bias"), &[to]);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = fs::File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
}

#[test]
fn a_picture_beyond_memory_is_refused_with_what_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    write_wide(&path("wide.safetensors"));
    RgbImage::new(4000, 4000).save(path("in.png")).unwrap();
    RgbImage::new(2, 2).save(path("small.png")).unwrap();
    let with = |input: &str, tile: &str| {
        let args = [input, "-o", "out.png", "--upscaler", "wide.safetensors", "--tile", tile];
        upscale(dir.path(), &args)
    };
    // Maps of 16,000 px with 256 channels: 852 GB, and what else there is.
    fails(with("in.png", "0"), 1, &["4000x4000 px in a batch of 1 rows needs 8", "GB of memory, and "]);
    assert!(!path("out.png").exists());
    with("small.png", "0").success();
    // In a folder it is left out; memory may be there the next time, so that no record says that all is done.
    fs::create_dir(path("in")).unwrap();
    ["in.png", "small.png"].iter().for_each(|name| fs::rename(path(name), path("in").join(name)).unwrap());
    for kept in [0, 1] {
        let args = ["in", "-o", "out", "--upscaler", "wide.safetensors", "--tile", "0"];
        let text = said(&upscale(dir.path(), &args).code(3));
        assert!(text.contains("skipped: in.png: ") && text.contains("GB of memory"), "{kept}: {text}");
        assert!(path("out/small.png").exists() && !path("out.run.json").exists());
    }
}

#[test]
fn what_no_recipe_can_do_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    gradient(40, 40).save(dir.path().join("in.png")).unwrap();
    let with = |text: &str, args: &[&str]| {
        recipe(dir.path(), text);
        upscale(dir.path(), &[&REDRAW[..], args].concat())
    };
    fails(with("[tiles]\nwidht = 512", &[]), 2, &["recipe.toml", "line 3", "widht"]);
    fails(
        with("[tiles]\nwidth = 56", &[]),
        2,
        &["tiles of 56x56 px: expected multiples of 8 from 64 to 2048"],
    );
    fails(with("[tiles]\nwidth = 100", &[]), 2, &["tiles of 100x100 px"]);
    fails(with("[tiles]\ntype = \"round\"", &[]), 2, &["recipe.toml", "round"]);
    fails(with("size = \"100x100\"", &[]), 2, &["size 100x100: expected multiples of 8"]);
    fails(with("scale = 2\nsize = \"80x80\"", &[]), 2, &["a scale and a size are given"]);
    fails(with("denoising = 2.0", &[]), 2, &["2"]);
    fails(with("scale = 64", &["--scale", "0"]), 2, &["a scale of 0"]);
    fails(with("size = \"65528x65528\"", &[]), 2, &["65528x65528 px would take 12.9 GB"]);
    // What only the picture tells.
    fails(with("", &[]), 1, &["in.png", "no text that states its size: expected a scale or a size"]);
    gradient(1, 70).save(dir.path().join("in.png")).unwrap();
    with("prompt = \"\"\nsteps = 2\nscale = 2\n[tiles]\nwidth = 64", &[]).success();
    assert_eq!(size(&dir.path().join("out.png")), (64, 192));
    fs::remove_file(dir.path().join("out.png")).unwrap();
    gradient(4000, 1000).save(dir.path().join("in.png")).unwrap();
    fails(with("scale = 60", &[]), 1, &["240000x60032 px would take 43.2 GB"]);
    let band = "[tiles]\nwidth = 512\n[seams]\ntype = \"band\"";
    fails(with(&format!("size = \"16384x1024\"\n{band}"), &[]), 1, &["16384x", "up to 8192"]);
    let checkpoint = model("base").display().to_string();
    let upscaler = ["--upscaler", &checkpoint];
    fails(with("scale = 2", &upscaler), 1, &["Stable Diffusion 1.x checkpoint, expected an ESRGAN upscaler"]);
    let none = ["--checkpoint", "none.safetensors"];
    fails(with("scale = 2", &none), 1, &["none.safetensors"]);
    fails(upscale(dir.path(), &["in.png", "-o", "out.png", "--recipe", "none.toml"]), 2, &["none.toml"]);
    let without = ["in.png", "-o", "out.png", "--upscaler", "lanczos", "--scale", "2", "--seed", "1"];
    fails(upscale(dir.path(), &without), 2, &["--recipe"]);
    assert!(!dir.path().join("out.png").exists());
}

#[test]
fn control_nets_of_a_recipe_steer_its_tiles() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("nets")).unwrap();
    compose_control_net(&path("nets/tile.safetensors")).unwrap();
    gradient(48, 32).save(path("in.png")).unwrap();
    let with = |unit: &str, args: &[&str]| {
        let tiles = "[tiles]\nwidth = 64\npadding = 8\nmask_blur = 2\n";
        recipe(dir.path(), &format!("prompt = \"a cat\"\nsteps = 3\nscale = 2\n{tiles}{unit}"));
        upscale(dir.path(), &[&REDRAW[..], args].concat())
    };
    let net = "[[control]]\nmodel = \"nets/tile.safetensors\"\n";
    with("", &[]).success();
    let plain = fs::read(path("out.png")).unwrap();
    with(&format!("{net}weight = 0.8\npreprocessor = \"tile_resample\"\n"), &[]).success();
    let steered = fs::read(path("out.png")).unwrap();
    assert_ne!(steered, plain);
    let text = read_parameters(&path("out.png")).unwrap().unwrap();
    assert!(text.contains("ControlNet 0: \"Module: tile_resample, Model: tile ["), "{text}");

    // Made again by its text, with the file that it names, and with another of that name.
    fs::copy(path("out.png"), path("first.png")).unwrap();
    recipe(dir.path(), "from = \"first.png\"\ncontrol_dir = \"nets\"\nscale = 2");
    let args = ["in.png", "--output", "again.png", "--recipe", "recipe.toml"];
    let again = upscale(dir.path(), &args).success();
    assert!(!said(&again).contains("another file"), "{}", said(&again));
    assert_eq!(fs::read(path("again.png")).unwrap(), steered);
    let mut bytes = fs::read(path("nets/tile.safetensors")).unwrap();
    bytes[0x10_0100] ^= 1;
    fs::write(path("nets/tile.safetensors"), bytes).unwrap();
    let again = upscale(dir.path(), &args).success();
    assert!(said(&again).contains("another file than the text's: ControlNet 0: `tile ["), "{}", said(&again));
    let found = read_parameters(&path("again.png")).unwrap().unwrap();
    let hash = |text: &str| text.split("Model: tile [").nth(1).unwrap()[..8].to_owned();
    assert_ne!(hash(&found), hash(&text));

    fails(with("[[control]]\nwieght = 1.0\n", &[]), 2, &["recipe.toml", "line 10", "wieght"]);
    fails(with("[[control]]\nweight = 1.0\n", &[]), 2, &["the ControlNet 0 has no `model`"]);
    fails(with(&format!("{net}weight = 3.0\n"), &[]), 2, &["weight is 3, expected 0 to 2"]);
    fails(with(&format!("{net}image = \"none.png\"\n"), &[]), 1, &["none.png"]);
    fs::write(path("bad.png"), "no picture").unwrap();
    fails(with(&format!("{net}image = \"bad.png\"\n"), &[]), 1, &["cannot read the picture `bad.png`"]);
    let checkpoint = format!("[[control]]\nmodel = '{}'\n", model("base").display());
    fails(with(&checkpoint, &[]), 1, &["is a Stable Diffusion 1.x checkpoint, expected a ControlNet"]);
}
