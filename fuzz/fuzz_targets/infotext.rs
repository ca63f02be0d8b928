//! The `parameters` texts of pictures.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vodka_prompt::Parameters;

fuzz_target!(|text: &str| {
    let Ok(parameters) = text.parse::<Parameters>();
    let Ok(again) = parameters.to_string().parse::<Parameters>();
    // A line of the prompt may look like fields; what is read once is else read again.
    if parameters.fields.len() >= 3 {
        assert_eq!(again.fields, parameters.fields);
    }
});
