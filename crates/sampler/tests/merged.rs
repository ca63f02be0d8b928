//! Pictures of a merge that is in no file are those of its file.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fs, path::Path};

use image::RgbImage;
use tch::{Device, Kind};
use vodka_merger::Recipe;
use vodka_sampler::{ModelSource, Pipeline, Settings, Weight};
use vodka_stage::{HashCache, Interrupt};
use vodka_testkit::model;

/// A graph with block weights, a method that needs whole tensors, and one that needs the whole model.
fn recipe(dir: &Path) -> String {
    let path = |name: &str| model(name).display().to_string();
    format!(
        r#"
[parents]
base = '{}'
v1 = '{}'
v2 = '{}'

[steps.mix]
method = "weighted-sum"
a = "v1"
b = "v2"
multiplier = {{ preset = "GRAD_V", text_encoder = 0.25 }}

[steps.trimmed]
method = "ties"
a = "base"
models = ["mix", "v2"]

[steps.kept]
method = "cosine-a"
a = "v1"
b = "v2"
multiplier = 0.5

[[outputs]]
step = "mix"
file = '{mix}'
precision = "fp32"
vae = "merge"

[[outputs]]
step = "trimmed"
file = '{trimmed}'

[[outputs]]
step = "kept"
file = '{kept}'
"#,
        path("base"),
        path("v1"),
        path("v2"),
        mix = dir.join("mix.safetensors").display(),
        trimmed = dir.join("trimmed.safetensors").display(),
        kept = dir.join("kept.safetensors").display(),
    )
}

fn picture(path: &Path, weights: &[(String, Weight)]) -> RgbImage {
    let model = ModelSource::read(path, weights).unwrap().open().unwrap();
    let pipeline = Pipeline::load(model, Device::Cpu, Kind::Float).unwrap();
    let settings = Settings {
        prompt: "a red circle".into(),
        steps: 3,
        size: "64x64".parse().unwrap(),
        ..Settings::default()
    };
    pipeline.generate(&settings, &Interrupt::new(), &mut |_, _| {}).unwrap().unwrap()
}

#[test]
fn a_merge_without_a_file_makes_the_picture_of_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recipe.toml");
    fs::write(&path, recipe(dir.path())).unwrap();
    let plan = Recipe::read(&path).unwrap().plan().unwrap();
    let at = |name: &str| dir.path().join(format!("recipe.toml#{name}"));
    let lazy = ["mix", "trimmed", "kept"].map(|name| picture(&at(name), &[]));
    assert!(plan.outputs.iter().all(|output| !output.path.exists()), "no file was written");
    vodka_merger::run(&plan, &Interrupt::new(), &mut |_| {}).unwrap();
    for (output, lazy) in plan.outputs.iter().zip(&lazy) {
        assert_eq!(&picture(&output.path, &[]), lazy, "{}", output.path.display());
    }
    assert!(lazy[0] != lazy[1] && lazy[1] != lazy[2], "the merges differ");
}

#[test]
fn weights_go_before_those_of_the_recipe() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recipe.toml");
    fs::write(&path, recipe(dir.path())).unwrap();
    let at = dir.path().join("recipe.toml#mix");
    let weights = |x: f64| [("multiplier".to_owned(), Weight::from(x))];
    assert_eq!(picture(&at, &weights(0.0)), picture(&model("v1"), &[]));
    assert_eq!(picture(&at, &weights(1.0)), picture(&model("v2"), &[]));
    let mut changed = Recipe::read(&path).unwrap();
    changed.set_weight("mix.multiplier", &0.25.into()).unwrap();
    vodka_merger::run(&changed.plan().unwrap(), &Interrupt::new(), &mut |_| {}).unwrap();
    assert_eq!(picture(&at, &weights(0.25)), picture(&dir.path().join("mix.safetensors"), &[]));
}

#[test]
fn a_merge_is_known_by_what_it_is_and_not_by_names_or_places() {
    let dir = tempfile::tempdir().unwrap();
    let id = |name: &str, text: &str, output: &str, weights: &[(String, Weight)]| {
        fs::write(dir.path().join(name), text).unwrap();
        let source = ModelSource::read(&dir.path().join(format!("{name}#{output}")), weights).unwrap();
        source.id(&mut HashCache::default(), &Interrupt::new()).unwrap()
    };
    let text = recipe(dir.path());
    let first = id("a.toml", &text, "mix", &[]);
    let copy = dir.path().join("copy.safetensors");
    fs::copy(model("v2"), &copy).unwrap();
    let other = text.replace("mix", "blend").replace("v2 =", "old =").replace("\"v2\"", "\"old\"");
    let other =
        other.replace(&format!("old = '{}'", model("v2").display()), &format!("old = '{}'", copy.display()));
    let second = id("b.toml", &other, "blend", &[]);
    assert_eq!((first.sha256, first.name.as_str()), (second.sha256, "mix"));
    assert_ne!(first, second);
    let weights = [("multiplier".to_owned(), Weight::from(0.25))];
    assert_ne!(id("a.toml", &text, "mix", &weights).sha256, first.sha256);
    assert_ne!(id("a.toml", &text, "trimmed", &[]).sha256, first.sha256);
    assert_ne!(id("a.toml", &text.replace("fp32", "fp16"), "mix", &[]).sha256, first.sha256);
    let words = first.merge.unwrap().steps;
    assert_eq!(
        words,
        "mix = weighted-sum(a: v1, b: v2, multiplier: { preset = \"GRAD_V\", text_encoder = 0.25 })"
    );
}
