//! `vodka-sample upscale` from the command line to the larger picture, and each of its errors.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fs, path::Path};

use assert_cmd::{Command, assert::Assert};
use image::{Rgb, RgbImage, Rgba, RgbaImage};
use vodka_sampler::{read_parameters, write_png};
use vodka_testkit::{fixture, model};

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
