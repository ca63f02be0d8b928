//! The ancestry of a merge, as A1111 and its followers write and show it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use vodka_checkpoint::{Checkpoint, Precision};

use crate::{MergePlan, plan::name};

/// A1111's entry for how a checkpoint was merged.
const RECIPE: &str = "sd_merge_recipe";
/// A1111's entry for the checkpoints it was merged from, and those they were merged from.
const MODELS: &str = "sd_merge_models";

/// The metadata of the result, given the parents' hashes in their order. Without a date, so that the same merge makes the same file.
pub(crate) fn metadata(
    plan: &MergePlan,
    precision: Precision,
    parents: &[Checkpoint],
    hashes: &[String],
) -> BTreeMap<String, String> {
    let recipe = json!({
        "type": "vodka",
        "primary_model_hash": hashes[0],
        "secondary_model_hash": hashes[1],
        "tertiary_model_hash": hashes.get(2),
        "interp_method": plan.method.a1111(),
        "multiplier": plan.multiplier,
        "save_as_half": precision == Precision::F16,
        "vae": plan.vae,
    });
    let mut models = Map::new();
    for (parent, hash) in parents.iter().zip(hashes) {
        let model = json!({
            "name": name(parent.path()),
            "legacy_hash": parent.legacy_hash(),
            RECIPE: parsed(parent, RECIPE),
        });
        models.insert(hash.clone(), model);
        if let Some(Value::Object(ancestors)) = parsed(parent, MODELS) {
            models.extend(ancestors);
        }
    }
    let entries = [(RECIPE, recipe), (MODELS, Value::Object(models))];
    entries.into_iter().map(|(key, value)| (key.to_owned(), value.to_string())).collect()
}

/// A parent's own entry, if it has one and it is JSON.
fn parsed(parent: &Checkpoint, entry: &str) -> Option<Value> {
    serde_json::from_str(parent.metadata().get(entry)?).ok()
}
