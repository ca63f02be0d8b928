//! Merge recipes: read, checked and worked out to a plan, of all outputs and of one with another weight.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use vodka_merger::Recipe;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(recipe) = Recipe::parse(text, Path::new("recipe.toml")) else { return };
    if let Ok(plan) = recipe.plan() {
        assert!(!plan.outputs.is_empty() && plan.outputs.len() <= 1000 * data.len());
    }
    if let Ok(plan) = recipe.one(None, &[("multiplier".to_owned(), 0.5.into())]) {
        assert_eq!(plan.outputs.len(), 1);
        assert_eq!(plan.graph.parents_of(&[plan.outputs[0].operand]).len(), plan.graph.parents.len());
    }
});
