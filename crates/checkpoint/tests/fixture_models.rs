//! The tiny models of `fixtures/models` are what this crate takes for a Stable Diffusion 1.x checkpoint.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use vodka_checkpoint::{CONFIG_KEY, Checkpoint, ModelConfig, Precision};
use vodka_testkit::{MODELS, fixture, model};

#[test]
fn every_generation_is_complete_and_finite() {
    for name in MODELS {
        let checkpoint = Checkpoint::open(model(name)).unwrap();
        checkpoint.verify().unwrap();
        assert_eq!(checkpoint.precision(), Precision::F16, "{name}");
    }
}

#[test]
fn the_configuration_is_the_one_the_generator_wrote() {
    let checkpoint = Checkpoint::open(model("base")).unwrap();
    let written = std::fs::read_to_string(fixture("models/config.json")).unwrap();
    let config: ModelConfig = serde_json::from_str(&written).unwrap();
    assert_eq!(checkpoint.config(), &config);
    assert_eq!(checkpoint.config().vae.downscale(), 8);
    // The generator lists settings in our order, so that a rewritten file carries the same text.
    assert_eq!(checkpoint.metadata()[CONFIG_KEY], serde_json::to_string(&config).unwrap());
}
