//! What a merge would do, without doing it.

use std::{path::PathBuf, time::Instant};

use serde::Serialize;
use vodka_checkpoint::{Precision, keys};

use crate::{
    MergePlan, Method, Passes, Result,
    eval::Evaluator,
    merged::{keeps_vae, precision, whole},
    run, write,
};

/// A plan with what it costs; the parents have been opened and fit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Preview {
    /// The steps.
    pub plan: MergePlan,
    /// Each file that would be written.
    pub outputs: Vec<PreviewOutput>,
    /// Bytes that are read from files, each pass counted.
    pub read_bytes: u64,
    /// Bytes that are written.
    pub write_bytes: u64,
    /// How often the parents are gone over.
    pub passes: u64,
    /// Seconds that it may take, by the speed at which a part of the weights was just worked out and by a disk that
    /// writes a gigabyte a second. Hashing of parents whose hash is not known comes on top.
    pub expected_s: f64,
}

/// A file that would be written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PreviewOutput {
    /// The file.
    pub path: PathBuf,
    /// Its element type.
    pub precision: Precision,
    /// Its size, but for its header.
    pub bytes: u64,
}

/// Elements that are worked out to see how long it takes.
const SAMPLE: usize = 1 << 23;

impl Preview {
    /// Opens the parents and checks all that can be without working out the merge.
    ///
    /// # Errors
    /// What [`run`](crate::run) says about parents and the space on the disk.
    pub fn of(plan: &MergePlan) -> Result<Self> {
        let evaluator = Evaluator::open(plan.graph.clone())?;
        let mut outputs = Vec::new();
        for output in &plan.outputs {
            run::check_parents(&evaluator, output)?;
            outputs.push(PreviewOutput {
                path: output.path.clone(),
                precision: precision(&evaluator, output),
                bytes: write::body_bytes(&evaluator, output),
            });
        }
        let write_bytes: u64 = outputs.iter().map(|output| output.bytes).sum();
        write::check_space(outputs.iter().map(|output| (output.path.as_path(), output.bytes)))?;
        let operands: Vec<_> = plan.outputs.iter().map(|output| output.operand).collect();
        let methods = plan.graph.steps_of(&operands).into_iter().map(|step| plan.graph.steps[step].method);
        let passes = methods.map(passes).max().unwrap_or(1);
        let read_bytes = passes * read_bytes(plan, &evaluator);
        let expected_s = expected_s(plan, &evaluator)? + write_bytes as f64 / 1e9;
        Ok(Self { plan: plan.clone(), outputs, read_bytes, write_bytes, passes, expected_s })
    }
}

fn passes(method: Method) -> u64 {
    match method.info().passes {
        Passes::One => 1,
        Passes::Tensor(passes) => passes,
        Passes::Model => 2,
    }
}

/// Bytes of all weights that are read once.
fn read_bytes(plan: &MergePlan, evaluator: &Evaluator) -> u64 {
    let operands: Vec<_> = plan.outputs.iter().map(|output| output.operand).collect();
    let firsts: Vec<_> = operands.iter().map(|operand| plan.graph.first(*operand)).collect();
    let keep_vae = plan.outputs.iter().all(|output| keeps_vae(output, keys::VAE_PREFIX));
    let is_read = |parent: usize, name: &str| {
        firsts.contains(&parent) || !keep_vae || !name.starts_with(keys::VAE_PREFIX)
    };
    let of_parent = |parent: usize| match plan.graph.parents[parent].lora {
        true => std::fs::metadata(&plan.graph.parents[parent].path).map_or(0, |file| file.len()),
        false => {
            let infos = evaluator.checkpoint(parent).infos();
            infos.filter(|(name, _)| is_read(parent, name)).map(|(_, info)| info.bytes()).sum()
        }
    };
    plan.graph.parents_of(&operands).into_iter().map(of_parent).sum()
}

/// Works out some tensors of each output and scales the time by the number of elements.
fn expected_s(plan: &MergePlan, evaluator: &Evaluator) -> Result<f64> {
    let mut seconds = 0.0;
    for output in &plan.outputs {
        let mut keys = keys::all(evaluator.config(output.operand));
        let elements =
            |keys: &[keys::Key]| keys.iter().map(|key| key.shape.iter().product::<usize>()).sum::<usize>();
        let all = elements(&keys);
        // The cosine methods go over the whole model before the first tensor: that is not a sample's work.
        let steps = plan.graph.steps_of(&[output.operand]);
        if steps.iter().any(|step| plan.graph.steps[*step].method.info().passes == Passes::Model) {
            keys.retain(|key| key.ldm.starts_with(keys::VAE_PREFIX));
        }
        let (mut sampled, start) = (0, Instant::now());
        for key in keys.iter().step_by(7) {
            let plan = evaluator.plan(&key.ldm, &[(output.operand, keeps_vae(output, &key.ldm))])?;
            whole(evaluator, &plan, output, precision(evaluator, output))?;
            sampled += key.shape.iter().product::<usize>();
            if sampled >= SAMPLE {
                break;
            }
        }
        seconds += start.elapsed().as_secs_f64() * all as f64 / sampled.max(1) as f64;
    }
    Ok(seconds)
}
