//! Merge recipes: read, checked and worked out to a plan.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vodka_merger::parse_any;

fuzz_target!(|data: &[u8]| {
    if let Some(Ok(plan)) = parse_any(data) {
        assert!(!plan.outputs.is_empty() && plan.outputs.len() <= 1000 * data.len());
    }
});
