//! Files of processing steps, `preprocess.json`.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use vodka_tagger::Description;

fuzz_target!(|text: &str| {
    let mut description = Description::family("animetimm").expect("it is built in");
    if description.follow_steps(text, Path::new("preprocess.json")).is_ok() {
        assert!(description.picture.size.is_some_and(|size| size > 0), "{description:?}");
    }
});
