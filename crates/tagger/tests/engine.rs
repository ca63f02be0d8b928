//! The engine against ONNX Runtime's own Python and Pillow, and against models that are no good.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{error::Error as _, fs, path::Path};

use vodka_images::decode;
use vodka_tagger::{Error, Picture, Provider, Tagger, TaggerConfig, ndarray::Array2};
use vodka_testkit::{Case, fixture, onnxruntime};

fn open_at(model: &Path, provider: Provider) -> Result<Tagger, Error> {
    Tagger::open(&TaggerConfig {
        model: model.into(),
        onnxruntime: onnxruntime(),
        provider,
        threads: 1,
        ..TaggerConfig::default()
    })
}

fn scores(tagger: &Tagger, pictures: &[Picture]) -> Array2<f32> {
    let prepared: Vec<_> = pictures.iter().map(|picture| tagger.prepare(picture)).collect();
    tagger.score(&prepared).unwrap()
}

fn open(model: &str) -> Result<Tagger, Error> {
    open_at(&fixture(&format!("tagger-tiny/{model}")), Provider::Cpu)
}

fn message(result: Result<Tagger, Error>) -> String {
    let error = result.unwrap_err();
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// The names of the golden pictures, and the pictures.
fn pictures(case: &Case) -> Vec<(String, Picture)> {
    let name = |golden: &String| golden.strip_prefix("scores/").unwrap().to_owned();
    let mut names: Vec<_> = case.names().iter().map(name).collect();
    names.sort();
    let read = |name: String| {
        let picture = decode(&fixture(&format!("images/awkward/{name}"))).unwrap();
        (name, picture)
    };
    names.into_iter().map(read).collect()
}

#[test]
fn scores_are_those_of_the_original() {
    let case = Case::open("tagger-tiny");
    let (names, pictures): (Vec<_>, Vec<_>) = pictures(&case).into_iter().unzip();
    for model in ["dynamic", "fixed"] {
        let tagger = open(model).unwrap();
        assert_eq!(tagger.size_px(), 64);
        let scores = scores(&tagger, &pictures);
        assert_eq!(scores.dim(), (names.len(), tagger.labels().len()));
        for (name, row) in names.iter().zip(scores.outer_iter()) {
            case.check(&format!("scores/{name}"), row.as_slice().unwrap(), &[row.len()]);
        }
    }
}

#[test]
fn the_trained_tagger_scores_the_world_as_the_original_does() {
    let case = Case::open("tagger-world");
    let tagger = open_at(&fixture("tagger"), Provider::Cpu).unwrap();
    let names = case.names();
    let read =
        |name: &String| decode(&fixture("world/images").join(name.split_once('/').unwrap().1)).unwrap();
    let scores = scores(&tagger, &names.iter().map(read).collect::<Vec<_>>());
    for (name, row) in names.iter().zip(scores.outer_iter()) {
        case.check(name, row.as_slice().unwrap(), &[row.len()]);
    }
}

#[test]
fn no_pictures_have_no_scores() {
    for model in ["dynamic", "fixed"] {
        let tagger = open(model).unwrap();
        assert_eq!(tagger.score::<vodka_images::RgbImage>(&[]).unwrap().dim(), (0, 24));
        assert!(tagger.tag_batch(&[]).unwrap().is_empty());
    }
}

#[test]
fn models_that_are_no_taggers_are_told_apart() {
    let cases = [
        ("mismatch", "scores 24 tags, but"),
        ("mismatch", "selected_tags.csv` has 23: they do not belong together"),
        ("unlabelled", "has no `selected_tags.csv`, `tags_v0.9_13k.json`, `metadata.json`"),
        (
            "nchw",
            "nchw` is of no known family: it has the inputs `input` Tensor<f32>(N, 3, 64, 64) and the outputs `output` \
             Tensor<f32>(N, 24); wd-v3, wd-v1.4: expected one input, float32 [batch, side, side, 3]; animetimm: expected \
             `preprocess.json`; pixai-v0.9: expected 3 outputs; describe it in a model.toml beside it",
        ),
        ("logits", "expected 0 to 1: its outputs are logits; set activation = \"sigmoid\""),
        ("twice", "scores every tag with 0.5 or more"),
        ("twice", "its graph puts the logistic function twice"),
        ("constant", "gives the same scores for different pictures"),
    ];
    for (model, expected) in cases {
        let found = message(open(model));
        assert!(found.contains(expected), "{model}: {found}");
    }
}

#[test]
fn a_damaged_model_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let whole = fixture("tagger-tiny/dynamic");
    fs::copy(whole.join("selected_tags.csv"), dir.path().join("selected_tags.csv")).unwrap();
    let bytes = fs::read(whole.join("model.onnx")).unwrap();
    fs::write(dir.path().join("model.onnx"), &bytes[..bytes.len() / 2]).unwrap();
    let found = message(open_at(dir.path(), Provider::Cpu));
    assert!(found.contains("ONNX Runtime fails on") && found.contains("model.onnx"), "{found}");
    fs::remove_file(dir.path().join("model.onnx")).unwrap();
    let found = message(open_at(dir.path(), Provider::Cpu));
    assert!(found.contains("has no `model.onnx`, ") && found.contains("(the network)"), "{found}");
    let found = message(open_at(&dir.path().join("nowhere"), Provider::Cpu));
    assert!(found.contains("no folder") && found.contains("nowhere"), "{found}");
}

#[test]
fn one_process_has_one_runtime() {
    open("dynamic").unwrap();
    open("dynamic").expect("the same library again is fine");
    let with = |library: &Path| {
        message(Tagger::open(&TaggerConfig {
            model: fixture("tagger-tiny/dynamic"),
            onnxruntime: library.into(),
            threads: 1,
            ..TaggerConfig::default()
        }))
    };
    let found = with(&fixture("tagger-tiny/case.toml"));
    assert!(found.contains("already loaded from"), "{found}");
    let found = with(Path::new("no/libonnxruntime.so"));
    assert_eq!(found, "no ONNX Runtime at `no/libonnxruntime.so`; `cargo xtask setup` installs it");
}

#[test]
fn a_provider_that_is_not_there_is_an_error() {
    // The runtime that `cargo xtask setup --cpu` installs has none of these.
    for (provider, remedy) in [
        (Provider::Cuda, "the GPU build that `cargo xtask setup --gpu` installs"),
        (Provider::TensorRt, "TensorRT 10 on the loader's path"),
        (Provider::OpenVino, "`cargo xtask setup` installs it"),
        (Provider::DirectMl, "it is for Windows"),
        (Provider::CoreMl, "it is for macOS"),
    ] {
        let found = message(open_at(&fixture("tagger-tiny/dynamic"), provider));
        let expected = format!("the execution provider `{provider}` is not available in this ONNX Runtime: ");
        assert!(found.contains(&expected) && found.contains(remedy), "{found}");
    }
    assert_eq!(open("dynamic").unwrap().provider(), Provider::Cpu);
}
