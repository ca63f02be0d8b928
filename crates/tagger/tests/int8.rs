//! int8 models through ONNX Runtime: against the original's, and what they cost in tags.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    error::Error as _,
    fs::{self, File},
    path::Path,
};

use vodka_images::{Rgb, RgbImage, decode};
use vodka_tagger::{
    Category, Tagger, TaggerConfig, families,
    int8::{quantize, quantize_folder},
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

/// A copy of a fixture's model in a folder of that name, with files of text beside it.
fn copy(model: &str, to: &Path, texts: &[(&str, &str)]) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(fixture(model)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
    texts.iter().for_each(|(name, text)| fs::write(to.join(name), text).unwrap());
}

#[test]
fn a_copy_is_of_the_same_family_under_any_name() {
    let dir = tempfile::tempdir().unwrap();
    for family in families() {
        let (model, int8) =
            (fixture(&format!("tagger-families/{family}")), dir.path().join(family).join("x"));
        quantize_folder(&model, &int8).unwrap();
        let (float, int8) = (open(&model), open(&int8));
        assert_eq!(int8.description().family, float.description().family);
        assert_eq!(int8.description().max_batch, Some(1));
        assert_eq!((int8.labels(), int8.thresholds()), (float.labels(), float.thresholds()), "{family}");
    }
}

#[test]
fn a_copy_keeps_the_thresholds_of_the_name_it_had() {
    let dir = tempfile::tempdir().unwrap();
    let general = |folder: &Path| open(folder).thresholds().defaults[&Category::General];
    for (at, fixture, model_toml, expected) in [
        ("a/wd-vit-tagger-v3", "wd-v3", None, 0.2614),
        ("b/models--SmilingWolf--wd-v1-4-moat-tagger-v2/snapshots/8452", "wd-v1.4", None, 0.3771),
        ("c/mine", "wd-v3", None, 0.35),
        // What was described is described further.
        (
            "d/wd-vit-tagger-v3",
            "wd-v3",
            Some("family = \"wd-v3\"\nmax_batch = 4\n[thresholds]\ndefault = 0.2\n"),
            0.2614,
        ),
        (
            "e/mine",
            "wd-v3",
            Some("\u{feff}family = \"wd-v3\"\n[thresholds]\ncategories = { general = 0.7 }\n"),
            0.7,
        ),
    ] {
        let (model, int8) = (dir.path().join(at), dir.path().join(at).join("../int8"));
        let texts = model_toml.map(|text| ("model.toml", text));
        copy(&format!("tagger-families/{fixture}"), &model, texts.as_slice());
        quantize_folder(&model, &int8).unwrap();
        assert_eq!((general(&model), general(&int8)), (expected, expected), "{at}");
        let (float, int8) = (open(&model), open(&int8));
        assert_eq!(float.thresholds(), int8.thresholds(), "{at}");
        assert_eq!(
            (&float.description().family, int8.description().max_batch),
            (&int8.description().family, Some(1))
        );
    }
    let text = fs::read_to_string(dir.path().join("a/int8/model.toml")).unwrap();
    assert!(
        text.ends_with("family = \"wd-v3\"\nmax_batch = 1\n\n[thresholds.categories]\ngeneral = 0.2614\n"),
        "{text}"
    );
}

#[test]
fn a_copy_scores_a_picture_the_same_in_any_company() {
    let dir = tempfile::tempdir().unwrap();
    let world = fixture("world/images");
    quantize_folder(&fixture("tagger"), dir.path()).unwrap();
    let (copy, free) = (open(dir.path()), open_quantized(&fixture("tagger")));
    let paths = vodka_images::find(&world).unwrap();
    let pictures: Vec<_> =
        paths.iter().take(4).map(|path| copy.prepare(&decode(&world.join(path)).unwrap())).collect();
    let one_by_one = |tagger: &Tagger| {
        let scores: Vec<_> = pictures.chunks(1).map(|one| tagger.score(one).unwrap()).collect();
        concatenate(Axis(0), &scores.iter().map(|scores| scores.view()).collect::<Vec<_>>()).unwrap()
    };
    assert_eq!(copy.score(&pictures).unwrap(), one_by_one(&copy));
    assert_ne!(free.score(&pictures).unwrap(), one_by_one(&free), "or it would make no difference");
}

#[test]
fn no_network_is_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let (model, other) = (dir.path().join("model"), dir.path().join("other"));
    copy("tagger-families/wd-v3", &model, &[]);
    let before = fs::read(model.join("model.onnx")).unwrap();
    let network = model.join("model.onnx");
    let itself = dir.path().join("other/../model");
    fs::create_dir(&other).unwrap();
    for output in [&model, &itself] {
        let found = quantize_folder(&model, output).unwrap_err().to_string();
        assert!(
            found.contains("model` is the model itself: the one in 8 bits needs another place"),
            "{found}"
        );
        assert!(refusal(&network, &output.join("model.onnx")).contains("model.onnx` is the model itself"));
    }
    fs::write(other.join("another.onnx"), "precious").unwrap();
    let found = quantize_folder(&model, &other).unwrap_err().to_string();
    let expected = "another.onnx` is there already, and no network is written over: name another output";
    assert!(found.contains(expected), "{found}");
    assert!(refusal(&network, &other.join("another.onnx")).contains(expected));
    assert_eq!(fs::read(other.join("another.onnx")).unwrap(), b"precious");
    assert_eq!(fs::read(&network).unwrap(), before);
    assert_eq!(fs::read_dir(&other).unwrap().count(), 1);
    assert!(!model.join("model.toml").exists());
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
