//! The stage: what is there already stays, the rest is written.

use std::{collections::BTreeMap, path::Path};

use serde_json::json;
use vodka_checkpoint::{Checkpoint, Mismatch, ModelConfig, Part, WrongShape, keys};
use vodka_stage::{ContentHash, HashCache, Interrupt, Outcome, RunKey, record_path};

use crate::{
    Error, MergeEvent, MergePlan, MergeReport, MismatchPolicy, OutputPlan, OutputReport, Result, VaePolicy,
    Weight,
    eval::{Evaluator, is_wider_input},
    merged::{checkpoints_of, keeps_vae, precision},
    metadata::recipe_text,
    write,
};

/// Merges, but for outputs that are there already.
///
/// All outputs of the same tensors are made in one pass over the parents. Parents are read with plain reads into buffers of a fixed size, and
/// what is written is written at its place, so that memory does not grow with the number or size of parents; methods that
/// need a whole tensor hold the largest one. Results do not depend on the number of threads.
///
/// # Errors
/// A parent that is damaged, of another architecture or shape than A, not the file that the recipe means, or holds a weight
/// that is not finite; a selector that matches no tensor; a result that is not finite or too large for its type; an output that cannot be written. What is in its
/// place by then is whole and has its record; of the rest nothing is left behind.
pub fn run(
    plan: &MergePlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(MergeEvent),
) -> Result<MergeReport> {
    let evaluator = Evaluator::open(plan.graph.clone())?;
    for output in &plan.outputs {
        check_parents(&evaluator, output)?;
    }
    // Before the parents are read to be hashed: of what is not there at all.
    let new = plan.outputs.iter().filter(|output| !output.path.exists());
    write::check_space(new.map(|output| (output.path.as_path(), write::body_bytes(&evaluator, output))))?;
    let mut cache = HashCache::open(plan.hash_cache.as_deref());
    let interrupted = || MergeReport { outcome: Outcome::Interrupted, outputs: Vec::new() };
    let Some(hashes) = hash_parents(plan, &mut cache, interrupt)? else { return Ok(interrupted()) };
    let mut reports = BTreeMap::new();
    let mut left = Vec::new();
    for (index, output) in plan.outputs.iter().enumerate() {
        if interrupt.is_raised() {
            return Ok(interrupted());
        }
        let key = key(plan, output, &evaluator, &hashes);
        match key.made::<OutputReport>(&record_path(&output.path))? {
            Some(report) => {
                let path = output.path.clone();
                reports.insert(index, OutputReport { outcome: Outcome::Unchanged, path, ..report });
            }
            None => left.push((index, key)),
        }
    }
    let left_bytes = |(index, _): &(usize, _)| {
        let output: &OutputPlan = &plan.outputs[*index];
        (output.path.as_path(), write::body_bytes(&evaluator, output))
    };
    write::check_space(left.iter().map(left_bytes))?;
    let mut outcome = if left.is_empty() { Outcome::Unchanged } else { Outcome::Done };
    for group in alike(&evaluator, plan, left) {
        let outputs: Vec<_> = group.iter().map(|(index, _)| &plan.outputs[*index]).collect();
        let mut on_written = |i: usize, report: OutputReport| {
            let (index, key) = &group[i];
            let sha256 = report.sha256.expect("what is written is hashed");
            key.write_hashed(&record_path(&report.path), &[(&report.path, sha256)], &report)?;
            cache.remember(&report.path, sha256);
            reports.insert(*index, report);
            Ok(())
        };
        if !write::write(&evaluator, plan, &outputs, &hashes, interrupt, on_event, &mut on_written)? {
            outcome = Outcome::Interrupted;
            break;
        }
    }
    cache.save();
    Ok(MergeReport { outcome, outputs: reports.into_values().collect() })
}

/// Groups the outputs that have the same tensors in the same shapes, whatever their precision: a group is made in one
/// pass.
fn alike<T>(evaluator: &Evaluator, plan: &MergePlan, left: Vec<(usize, T)>) -> Vec<Vec<(usize, T)>> {
    let mut groups: Vec<Vec<(usize, T)>> = Vec::new();
    let config = |index: usize| evaluator.config(plan.outputs[index].operand);
    for (index, key) in left {
        match groups.iter_mut().find(|group| keys::all(config(group[0].0)) == keys::all(config(index))) {
            Some(group) => group.push((index, key)),
            None => groups.push(vec![(index, key)]),
        }
    }
    groups
}

impl MergePlan {
    /// All that each output depends on, in their order: for whoever asks whether they are there already.
    ///
    /// # Errors
    /// A parent that is not there, damaged, or not the file that the recipe means.
    pub fn keys(&self) -> Result<Vec<RunKey>> {
        let evaluator = Evaluator::open(self.graph.clone())?;
        let mut cache = HashCache::open(self.hash_cache.as_deref());
        let hashes = hash_parents(self, &mut cache, &Interrupt::new())?.expect("nobody has interrupted it");
        Ok(self.outputs.iter().map(|output| key(self, output, &evaluator, &hashes)).collect())
    }
}

/// The hashes of all parents, which must be those that the recipe asks for; none where it was interrupted.
pub(crate) fn hash_parents(
    plan: &MergePlan,
    cache: &mut HashCache,
    interrupt: &Interrupt,
) -> Result<Option<Vec<ContentHash>>> {
    let parents = &plan.graph.parents;
    let paths: Vec<&Path> = parents.iter().map(|parent| parent.path.as_path()).collect();
    let Some(hashes) = cache.of(&paths, interrupt)? else { return Ok(None) };
    for (parent, found) in parents.iter().zip(&hashes) {
        if let Some(expected) = parent.sha256.filter(|expected| expected != found) {
            return Err(Error::ParentHash { path: parent.path.clone(), expected, found: *found });
        }
    }
    Ok(Some(hashes))
}

/// All that an output depends on. The parents' names are part of it, since the output's metadata holds them.
fn key(plan: &MergePlan, output: &OutputPlan, evaluator: &Evaluator, hashes: &[ContentHash]) -> RunKey {
    let recipe = recipe_text(plan, output, precision(evaluator, output), None);
    let key = RunKey::new("merge", &json!({"recipe": recipe}), None);
    plan.parents_of(output).into_iter().fold(key, |key, index| {
        let parent = &plan.graph.parents[index];
        key.input_hashed(&parent.name, &parent.path, hashes[index])
    })
}

/// Checks that the parents of an output fit each other, and its weights the model.
pub(crate) fn check_parents(evaluator: &Evaluator, output: &OutputPlan) -> Result<()> {
    let a = evaluator.graph.first(output.operand);
    evaluator.checkpoint(a).check_names()?;
    check_selectors(evaluator, output)?;
    let mut others = checkpoints_of(evaluator, output).into_iter().filter(|parent| *parent != a);
    others.try_for_each(|other| check_fit(evaluator, output, a, other))
}

/// A selector that means nothing is a slip of the pen.
fn check_selectors(evaluator: &Evaluator, output: &OutputPlan) -> Result<()> {
    let a = evaluator.checkpoint(evaluator.graph.first(output.operand));
    for step in evaluator.graph.steps_of(&[output.operand]) {
        let step = &evaluator.graph.steps[step];
        let mut selectors = step.params.iter().flat_map(Weight::selectors);
        if let Some(selector) = selectors.find(|selector| !a.names().any(|name| selector.matches(name))) {
            let (selector, step) = (selector.to_string(), step.name.clone());
            return Err(Error::Selector { selector, step, path: a.path().to_path_buf() });
        }
    }
    Ok(())
}

/// Checks that a parent fits A.
pub(crate) fn check_fit(evaluator: &Evaluator, output: &OutputPlan, a: usize, other: usize) -> Result<()> {
    let (a, other) = (evaluator.checkpoint(a), evaluator.checkpoint(other));
    a.check_names()?;
    if output.mismatched == MismatchPolicy::Error {
        match output.vae {
            VaePolicy::A => other.check_names_of(&[Part::Unet, Part::TextEncoder])?,
            VaePolicy::Merge => other.check_names()?,
        }
        check_alike(a, other, output)?;
    }
    check_settings(a, other, output)
}

/// Every tensor of A that is merged must be in the other parent, in the same shape, and nothing else.
fn check_alike(a: &Checkpoint, other: &Checkpoint, output: &OutputPlan) -> Result<()> {
    let mut mismatch = Mismatch::default();
    let is_merged = |name: &&str| !keeps_vae(output, name);
    for name in a.names().filter(is_merged) {
        let expected = a.info(name)?.shape;
        match other.info(name) {
            Err(_) => mismatch.missing.push(name.to_owned()),
            Ok(info) if info.shape != expected && !is_wider_input(name, &expected, &info.shape) => {
                mismatch.wrong_shape.push(WrongShape {
                    tensor: name.to_owned(),
                    expected,
                    found: info.shape,
                });
            }
            Ok(_) => {}
        }
    }
    let left_over = other.names().filter(is_merged).filter(|name| a.info(name).is_err());
    mismatch.unexpected = left_over.map(ToOwned::to_owned).collect();
    if mismatch.is_empty() {
        return Ok(());
    }
    let (path, a) = (other.path().to_path_buf(), a.path().to_path_buf());
    Err(Error::Unlike { path, a, mismatch: Box::new(mismatch) })
}

/// What shapes do not tell must be alike too: heads, groups of the norms, what the UNet predicts.
fn check_settings(a: &Checkpoint, other: &Checkpoint, output: &OutputPlan) -> Result<()> {
    let (expected, found) = (settings(a.config(), output), settings(other.config(), output));
    let sections = expected.as_object().expect("a configuration is an object");
    match sections.keys().find(|section| expected[*section] != found[*section]) {
        None => Ok(()),
        Some(section) => Err(Error::Settings {
            path: other.path().to_path_buf(),
            a: a.path().to_path_buf(),
            section: section.clone(),
            expected: expected[section].to_string(),
            found: found[section].to_string(),
        }),
    }
}

/// What must be alike. How many channels the UNet takes, the shapes tell.
fn settings(config: &ModelConfig, output: &OutputPlan) -> serde_json::Value {
    if output.mismatched == MismatchPolicy::KeepA {
        let unet = [config.unet.attention_heads, config.unet.norm_groups];
        return json!({"prediction": config.prediction, "unet": unet, "clip": config.clip.heads});
    }
    let mut settings = serde_json::to_value(config).expect("configurations are plain data");
    if output.vae == VaePolicy::A {
        settings["vae"].take();
    }
    settings["unet"]["in_channels"].take();
    settings
}
