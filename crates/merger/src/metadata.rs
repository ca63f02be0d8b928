//! What a merged file says of itself: the recipe in full, and the ancestry as A1111 and its followers show it.

use std::{
    collections::BTreeMap,
    fmt::Write,
    path::{Component, Path, PathBuf},
};

use serde_json::{Map, Value, json};
use vodka_checkpoint::{Checkpoint, Precision, model_spec};
use vodka_stage::ContentHash;

use crate::{
    MergePlan, Operand, OutputPlan,
    eval::{Evaluator, Opened},
    plan::name,
};

/// The metadata entry that holds the recipe, as TOML.
pub const RECIPE_KEY: &str = "vodka.recipe";
/// A1111's entry for how a checkpoint was merged.
const A1111_RECIPE: &str = "sd_merge_recipe";
/// A1111's entry for the checkpoints it was merged from, and those they were merged from.
const A1111_MODELS: &str = "sd_merge_models";

/// The metadata of an output, given the hashes of all parents. Without a date, so that the same merge makes the same file.
pub(crate) fn metadata(
    plan: &MergePlan,
    output: &OutputPlan,
    precision: Precision,
    evaluator: &Evaluator,
    hashes: &[ContentHash],
) -> BTreeMap<String, String> {
    let parents = parents_in_order(plan, output);
    let hash = |n: usize| parents.get(n).map(|parent| hashes[*parent].to_string());
    let (title, multiplier) = match output.operand {
        Operand::Step(step) => {
            let step = &plan.graph.steps[step];
            let multiplier = step.params.first().map(|weight| match weight.constant() {
                Some(constant) => json!(constant),
                None => json!(weight.to_string()),
            });
            (step.method.info().title, multiplier)
        }
        Operand::Parent(_) => ("No interpolation", None),
    };
    let recipe = json!({
        "type": "vodka",
        "custom_name": "",
        "config_source": 0,
        "bake_in_vae": "",
        "discard_weights": "",
        "is_inpainting": evaluator.config(output.operand).unet.in_channels == 9,
        "is_instruct_pix2pix": evaluator.config(output.operand).unet.in_channels == 8,
        "primary_model_hash": hash(0),
        "secondary_model_hash": hash(1),
        "tertiary_model_hash": hash(2),
        "interp_method": title,
        "multiplier": multiplier,
        "save_as_half": precision == Precision::F16,
        "vae": output.vae,
    });
    let names: Vec<_> = parents.iter().map(|parent| name(&plan.graph.parents[*parent].path)).collect();
    let title = format!("{title} of {}", names.join(", "));
    let mut models = Map::new();
    for parent in parents {
        let path = &plan.graph.parents[parent].path;
        let mut model = json!({"name": name(path), "legacy_hash": Value::Null, A1111_RECIPE: Value::Null});
        if let Opened::Checkpoint(checkpoint) = &evaluator.parents[parent] {
            model["legacy_hash"] = json!(checkpoint.legacy_hash());
            model[A1111_RECIPE] = json!(parsed(checkpoint, A1111_RECIPE));
            if let Some(Value::Object(ancestors)) = parsed(checkpoint, A1111_MODELS) {
                for (hash, ancestor) in ancestors {
                    models.entry(hash).or_insert(ancestor);
                }
            }
        }
        models.insert(hashes[parent].to_string(), model);
    }
    let text = recipe_text(plan, output, precision, Some(hashes));
    let mut entries = model_spec(evaluator.config(output.operand), &title);
    entries.extend(
        [
            ("modelspec.merged_from", names.join(", ")),
            (A1111_RECIPE, recipe.to_string()),
            (A1111_MODELS, Value::Object(models).to_string()),
            (RECIPE_KEY, text),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    );
    entries
}

/// A parent's own entry, if it has one and it is JSON.
fn parsed(parent: &Checkpoint, entry: &str) -> Option<Value> {
    serde_json::from_str(parent.metadata().get(entry)?).ok()
}

/// The parents of an output, the one it keeps first.
pub(crate) fn parents_in_order(plan: &MergePlan, output: &OutputPlan) -> Vec<usize> {
    let first = plan.graph.first(output.operand);
    let others = plan.parents_of(output).into_iter().filter(|parent| *parent != first);
    std::iter::once(first).chain(others).collect()
}

/// The recipe of one output as TOML, which [`Recipe::parse`](crate::Recipe::parse) reads. Parents are named by their path
/// from the output's folder; the file itself is not named, so that its name is not in its content.
pub(crate) fn recipe_text(
    plan: &MergePlan,
    output: &OutputPlan,
    precision: Precision,
    hashes: Option<&[ContentHash]>,
) -> String {
    let graph = &plan.graph;
    let name = |operand: &Operand| match operand {
        Operand::Parent(parent) => &graph.parents[*parent].name,
        Operand::Step(step) => &graph.steps[*step].name,
    };
    let mut text = String::from("[parents]\n");
    for index in plan.parents_of(output) {
        let parent = &graph.parents[index];
        let path = quoted(&relative(&parent.path, &output.path));
        let sha256 = hashes.map(|hashes| format!(", sha256 = \"{}\"", hashes[index])).unwrap_or_default();
        let _ = writeln!(text, "{} = {{ path = {path}{sha256} }}", quoted(&parent.name));
    }
    for index in graph.steps_of(&[output.operand]) {
        let step = &graph.steps[index];
        let info = step.method.info();
        let _ = write!(text, "\n[steps.{}]\nmethod = \"{}\"\n", quoted(&step.name), info.name);
        let mut keys = vec!["a"];
        keys.extend(info.parents.letters());
        for (key, operand) in keys.into_iter().zip(&step.operands) {
            let _ = writeln!(text, "{key} = {}", quoted(name(operand)));
        }
        if let Some(list) = info.parents.list() {
            let others: Vec<_> = step.operands[1..].iter().map(|operand| quoted(name(operand))).collect();
            let _ = writeln!(text, "{list} = [{}]", others.join(", "));
        }
        for (param, weight) in info.params.iter().zip(&step.params) {
            let _ = writeln!(text, "{} = {weight}", param.name);
        }
        if let Some(seed) = step.seed {
            let _ = writeln!(text, "seed = {seed}");
        }
    }
    let (step, vae, mismatched) = (quoted(name(&output.operand)), output.vae, output.mismatched);
    let _ = write!(
        text,
        "\n[[outputs]]\nstep = {step}\nprecision = \"{precision}\"\nvae = \"{vae}\"\nmismatched = \"{mismatched}\"\n"
    );
    text
}

/// A TOML string; the escapes of JSON are among those of TOML.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("strings are plain data").replace('\u{7f}', "\\u007F")
}

/// The way from the folder of `from` to `path`, with `/`; the name alone where the two have nothing in common but the
/// root, since all of a path is nobody else's business.
fn relative(path: &Path, from: &Path) -> String {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let clean = |path: PathBuf| {
        let mut clean = PathBuf::new();
        for part in path.components() {
            match part {
                Component::ParentDir => drop(clean.pop()),
                part => clean.push(part),
            }
        }
        clean
    };
    let (path, from) = (clean(absolute(path)), clean(absolute(from)));
    let folder = from.parent().unwrap_or(Path::new(""));
    let common = path.components().zip(folder.components()).take_while(|(a, b)| a == b).count();
    let is_name = |part: &Component| matches!(part, Component::Normal(_));
    if !path.components().take(common).any(|part| is_name(&part))
        && folder.components().any(|part| is_name(&part))
    {
        return name(&path);
    }
    let up = folder.components().skip(common).map(|_| "..".to_owned());
    let down = path.components().skip(common).map(|part| part.as_os_str().to_string_lossy().into_owned());
    up.chain(down).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_start_at_the_output() {
        let relative = |path: &str, from: &str| relative(Path::new(path), Path::new(from));
        assert_eq!(relative("a.safetensors", "out.safetensors"), "a.safetensors");
        assert_eq!(
            relative("models/a.safetensors", "mixes/new/out.safetensors"),
            "../../models/a.safetensors"
        );
        assert_eq!(relative("./x/../a", "out"), "a");
        if cfg!(unix) {
            assert_eq!(relative("/data/a", "/home/me/out"), "a");
            assert_eq!(relative("/data/models/a", "/data/out"), "models/a");
        }
    }
}
