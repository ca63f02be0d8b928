//! int8 models through ONNX Runtime: against the original's, and what they cost in tags.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    error::Error as _,
    fs::{self, File},
    path::Path,
};

use vodka_images::{Rgb, RgbImage, decode};
use vodka_tagger::{
    Tagger, TaggerConfig,
    int8::quantize,
    ndarray::{Array2, Axis, concatenate},
};
use vodka_testkit::{fixture, onnxruntime};

fn open(model: &Path) -> Tagger {
    let model = model.to_path_buf();
    let config = TaggerConfig { onnxruntime: onnxruntime(), threads: 1, ..TaggerConfig::new(model) };
    Tagger::open(&config).unwrap()
}

/// The model of a fixture in int8.
fn open_quantized(model: &Path) -> Tagger {
    let dir = tempfile::tempdir().unwrap();
    quantize(&model.join("model.onnx"), &dir.path().join("model.onnx")).unwrap();
    fs::copy(model.join("selected_tags.csv"), dir.path().join("selected_tags.csv")).unwrap();
    open(dir.path())
}

/// The largest and the mean difference of scores.
fn differences(a: &Array2<f32>, b: &Array2<f32>) -> (f32, f32) {
    let differences = (a - b).abs();
    (differences.iter().copied().fold(0.0, f32::max), differences.mean().unwrap())
}

#[test]
fn scores_are_those_of_the_original_int8_model() {
    let gradient = RgbImage::from_fn(32, 32, |x, y| Rgb([(x * 8) as u8, (y * 8) as u8, ((x + y) * 4) as u8]));
    let noise = |x: u32, y: u32| {
        Rgb([0, 1, 2].map(|c| ((x * 31 + y * 977 + c * 57).wrapping_mul(2_654_435_761) >> 24) as u8))
    };
    let pictures =
        [gradient, RgbImage::from_fn(32, 32, noise), RgbImage::from_pixel(32, 32, Rgb([200, 30, 90]))];
    let model = fixture("tagger-int8/model");
    let ours = open_quantized(&model).score(&pictures).unwrap();
    // The original's model runs here too: what 8-bit products give depends on the processor.
    let original = open(&fixture("tagger-int8/original")).score(&pictures).unwrap();
    let (largest, _) = differences(&ours, &original);
    assert!(largest <= 1e-5, "{largest}");
    let float = open(&model).score(&pictures).unwrap();
    let (largest, mean) = differences(&ours, &float);
    assert!(largest > 0.0 && largest < 0.05 && mean < 0.01, "int8 costs {largest}, {mean} on average");
}

#[test]
fn the_trained_tagger_finds_the_same_tags_in_int8() {
    let model = fixture("tagger");
    let world = fixture("world/images");
    let paths = vodka_images::find(&world).unwrap();
    let tagger = open(&model);
    let read = |path| tagger.prepare(&decode(&world.join(path)).unwrap());
    let pictures: Vec<_> = paths.iter().map(read).collect();
    let float = tagger.score(&pictures).unwrap();
    let tags = float.iter().filter(|score| **score >= 0.3).count();
    assert!(tags > 3 * pictures.len());
    let tagger = open_quantized(&model);
    // What is multiplied is quantised by batch, so batches differ a little.
    for batch in [1, 8] {
        let scores: Vec<_> = pictures.chunks(batch).map(|chunk| tagger.score(chunk).unwrap()).collect();
        let views: Vec<_> = scores.iter().map(|scores| scores.view()).collect();
        let int8 = concatenate(Axis(0), &views).unwrap();
        let (largest, mean) = differences(&float, &int8);
        let changed = float.iter().zip(&int8).filter(|(a, b)| (**a >= 0.3) != (**b >= 0.3)).count();
        println!(
            "batch {batch}: {changed} of {tags} tags changed, scores by {largest} at most, {mean} on average"
        );
        assert!(changed * 100 <= tags, "{changed} of {tags} tags appear or vanish");
        assert!(largest < 0.1 && mean < 2e-3, "scores differ by {largest}, {mean} on average");
    }
}

#[test]
fn the_report_says_what_was_done() {
    let dir = tempfile::tempdir().unwrap();
    let (model, output) = (fixture("tagger-int8/model/model.onnx"), dir.path().join("new/int8.onnx"));
    let report = quantize(&model, &output).unwrap();
    assert_eq!((report.quantized, report.left.len()), (5, 2));
    assert_eq!(report.bytes_before, fs::metadata(&model).unwrap().len());
    assert_eq!(report.bytes_after, fs::metadata(&output).unwrap().len());
    let text = report.to_string();
    assert!(text.contains("int8.onnx`: 5 of 7 matrix products in int8, 0.0 MB of 0.0 MB"), "{text}");
    assert!(text.contains("left in float32: `gram` (the second factor is no constant)"), "{text}");
}

fn refusal(model: &Path, output: &Path) -> String {
    let error = quantize(model, output).unwrap_err();
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

#[test]
fn a_refused_model_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out/model.onnx");
    let whole = fixture("tagger-int8/model/model.onnx");
    let found = refusal(&dir.path().join("no.onnx"), &output);
    assert!(found.starts_with("cannot read `") && found.contains("no.onnx"), "{found}");

    let damaged = dir.path().join("damaged.onnx");
    let bytes = fs::read(&whole).unwrap();
    fs::write(&damaged, &bytes[..bytes.len() / 2]).unwrap();
    let found = refusal(&damaged, &output);
    assert!(found.contains("damaged.onnx` is no ONNX model or damaged: at byte"), "{found}");

    let once = dir.path().join("once.onnx");
    quantize(&whole, &once).unwrap();
    let found = refusal(&once, &output);
    let expected = "once.onnx`: `gram` (the second factor is no constant), and 1 more that stay";
    assert!(found.starts_with("nothing to quantise in") && found.contains(expected), "{found}");

    let large = dir.path().join("large.onnx");
    File::create(&large).unwrap().set_len(1 << 31).unwrap(); // sparse
    let found = refusal(&large, &output);
    assert!(found.contains("has 2147483648 bytes with its weights, expected at most 2 GiB"), "{found}");
    assert!(!output.exists());

    let found = refusal(&whole, &damaged.join("model.onnx"));
    assert!(found.starts_with("cannot create the folder `") && found.contains("damaged.onnx"), "{found}");
}
