//! The key map against diffusers' own converter.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;

use vodka_checkpoint::{ModelConfig, keys};

/// The configuration and the lines of a snapshot that `fixtures/checkpoint/keys/generate.py` wrote.
fn snapshot(name: &str) -> (ModelConfig, Vec<String>) {
    let text = fs::read_to_string(vodka_testkit::fixture(&format!("checkpoint/keys/{name}.txt"))).unwrap();
    let mut lines = text.lines().map(ToOwned::to_owned);
    let config = serde_json::from_str(&lines.next().unwrap()).unwrap();
    (config, lines.collect())
}

fn ours(config: &ModelConfig) -> Vec<String> {
    let shape = |shape: &[usize]| shape.iter().map(ToString::to_string).collect::<Vec<_>>().join("x");
    let line = |key: keys::Key| {
        let keys::Key { ldm, diffusers, .. } = &key;
        format!("{ldm} {} {diffusers} {}", shape(&key.shape), shape(&key.diffusers_shape))
    };
    let mut lines: Vec<_> = keys::all(config).into_iter().map(line).collect();
    lines.sort();
    lines
}

fn check(name: &str) {
    let (config, expected) = snapshot(name);
    config.check().unwrap();
    let found = ours(&config);
    for (expected, found) in expected.iter().zip(&found) {
        assert_eq!(expected, found, "{name}");
    }
    assert_eq!(expected.len(), found.len(), "{name}");
}

#[test]
fn stable_diffusion_15_has_the_keys_of_diffusers() {
    let (config, lines) = snapshot("sd15");
    assert_eq!(config, ModelConfig::sd15());
    // What everybody's v1-5-pruned.safetensors holds: 1131 tensors with position_ids.
    assert_eq!(lines.len(), 1130);
    check("sd15");
}

#[test]
fn other_numbers_of_levels_and_layers_have_the_keys_of_diffusers() {
    check("deep");
    check("wide");
}

#[test]
fn stable_diffusion_15_has_1066_million_parameters() {
    let count =
        |keys: Vec<keys::Key>| keys.iter().map(|key| key.shape.iter().product::<usize>()).sum::<usize>();
    let config = ModelConfig::sd15();
    assert_eq!(count(keys::unet(&config.unet)), 859_520_964);
    assert_eq!(count(keys::vae(&config.vae)), 83_653_863);
    assert_eq!(count(keys::clip(&config.clip)), 123_060_480);
}
