//! Descriptions of models, as users write them.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use vodka_tagger::Description;

fuzz_target!(|text: &str| {
    let _ = Description::parse(text, Path::new("model.toml"));
});
