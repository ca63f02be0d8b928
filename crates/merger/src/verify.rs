//! Whether a merged file is what its own recipe makes.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use vodka_checkpoint::{Checkpoint, position_ids, position_ids_name};
use vodka_stage::{HashCache, Interrupt, Outcome, Report};

use crate::{MergePlan, Merged, OutputPlan, Recipe, Result, run};

/// What came of looking at a merged file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// How it ended.
    pub outcome: Outcome,
    /// The file.
    pub path: PathBuf,
    /// How many tensors were looked at.
    pub tensors: u64,
    /// Those that the recipe makes otherwise.
    pub differing: Vec<String>,
}

impl Report for VerifyReport {
    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 10;
        let Self { path, tensors, differing, .. } = self;
        let path = path.display();
        if differing.is_empty() {
            return write!(f, "`{path}`: all {tensors} tensors are what its recipe makes");
        }
        let shown = differing.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        let more = if differing.len() > SHOWN { ", ..." } else { "" };
        write!(
            f,
            "`{path}`: {} of {tensors} tensors are not what its recipe makes: {shown}{more}",
            differing.len()
        )
    }
}

/// Works every tensor of a merged file out again, from the recipe in its metadata, and compares it bit for bit. The
/// parents' hashes must be those of the recipe. `parents` are places of parents that have moved, by name.
///
/// # Errors
/// A file without a recipe; what [`run`](crate::run) says about parents.
pub fn verify(
    path: &Path,
    recipe: Recipe,
    hash_cache: Option<&Path>,
    interrupt: &Interrupt,
    on_tensor: &mut dyn FnMut(u64, u64),
) -> Result<VerifyReport> {
    let mut recipe = recipe;
    // What is read is not written.
    for output in &mut recipe.outputs {
        output.file = path.with_extension("verify.safetensors");
    }
    let plan = MergePlan { hash_cache: hash_cache.map(Path::to_path_buf), ..recipe.plan()? };
    let mut report = VerifyReport {
        outcome: Outcome::Interrupted,
        path: path.to_path_buf(),
        tensors: 0,
        differing: Vec::new(),
    };
    if run::hash_parents(&plan, &mut HashCache::open(hash_cache), interrupt)?.is_none() {
        return Ok(report);
    }
    let file = Checkpoint::open(path)?;
    let output = OutputPlan { precision: Some(file.precision()), ..plan.outputs[0].clone() };
    let merged = Merged::open(&MergePlan { outputs: vec![output], ..plan }, 0)?;
    let names = merged.names();
    for name in &names {
        if interrupt.is_raised() {
            return Ok(report);
        }
        let expected = merged.tensor(name)?;
        let found = file.tensor(name);
        if !found.is_ok_and(|found| found == expected) {
            report.differing.push(name.clone());
        }
        report.tensors += 1;
        on_tensor(report.tensors, names.len() as u64);
    }
    let added = file.names().filter(|name| !names.iter().any(|known| known == name));
    report.differing.extend(added.map(ToOwned::to_owned));
    // Beside the weights a file of ours holds `position_ids` and nothing else.
    let positions = position_ids_name();
    let expected = position_ids(merged.config().clip.max_positions);
    if !file.extra(&positions).is_ok_and(|found| *found.data == *expected) {
        report.differing.push(positions.clone());
    }
    let added = file.extras().map(|(name, _)| name).filter(|name| *name != positions);
    report.differing.extend(added.map(ToOwned::to_owned));
    report.outcome = Outcome::Done;
    Ok(report)
}
