//! A result that is not in a file: its tensors are worked out when they are asked for.

use std::error;

use rayon::prelude::*;
use vodka_checkpoint::{ModelConfig, Precision, TensorView, Weights, all_below, keys};

use crate::{
    Kept, MergePlan, OutputPlan, Result, VaePolicy,
    eval::{Evaluator, KeyPlan, Opened},
    run,
};

/// One of a plan's results, as a checkpoint that is not written: what a sampler loads for a grid of weights.
#[derive(Debug)]
pub struct Merged {
    evaluator: Evaluator,
    output: OutputPlan,
    precision: Precision,
}

impl Merged {
    /// Opens the parents of one of the plan's outputs and checks that they fit. Weights are not read yet.
    ///
    /// # Errors
    /// Whatever [`run`](crate::run) says about parents.
    ///
    /// # Panics
    /// When the plan has fewer outputs.
    pub fn open(plan: &MergePlan, output: usize) -> Result<Self> {
        let output = plan.outputs[output].clone();
        let evaluator = Evaluator::open(plan.graph.clone())?;
        run::check_parents(&evaluator, &output)?;
        let precision = precision(&evaluator, &output);
        Ok(Self { evaluator, output, precision })
    }

    /// The model's configuration: that of A.
    pub fn config(&self) -> &ModelConfig {
        self.evaluator.config(self.output.operand)
    }

    /// The element type of the tensors.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The names of all weights, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = keys::all(self.config()).into_iter().map(|key| key.ldm).collect();
        names.sort();
        names
    }

    /// A tensor by its LDM name, worked out now, bit for bit what a file would hold.
    ///
    /// # Errors
    /// A file that cannot be read; a weight that is not finite, or too large for the precision.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'static>> {
        let keep_a = keeps_vae(&self.output, name);
        let plan = self.evaluator.plan(name, &[(self.output.operand, keep_a)])?;
        let (shape, data) = whole(&self.evaluator, &plan, &self.output, self.precision)?;
        Ok(TensorView { dtype: self.precision.dtype(), shape, data: data.into() })
    }
}

impl Weights for Merged {
    fn config(&self) -> &ModelConfig {
        self.config()
    }

    fn tensor(&self, name: &str) -> Result<TensorView<'_>, Box<dyn error::Error + Send + Sync>> {
        Ok(self.tensor(name)?)
    }
}

/// Whether a tensor of an output is A's because it is of the VAE.
pub(crate) fn keeps_vae(output: &OutputPlan, name: &str) -> bool {
    output.vae == VaePolicy::A && name.starts_with(keys::VAE_PREFIX)
}

/// The element type of an output.
pub(crate) fn precision(evaluator: &Evaluator, output: &OutputPlan) -> Precision {
    let first = evaluator.graph.first(output.operand);
    output.precision.unwrap_or_else(|| evaluator.checkpoint(first).precision())
}

/// The shape and the bytes of a tensor for the single output that the plan is for.
pub(crate) fn whole(
    evaluator: &Evaluator,
    plan: &KeyPlan,
    output: &OutputPlan,
    precision: Precision,
) -> Result<(Vec<usize>, Vec<u8>)> {
    let chunks: Vec<_> = plan.chunks().collect();
    let values = chunks.into_par_iter().map(|(start, len)| {
        let mut chunk = Vec::with_capacity(len);
        evaluator
            .chunk(plan, &plan.targets, (start, len), &mut |_, values| chunk.extend_from_slice(values[0]))?;
        Ok(chunk)
    });
    let values = values.collect::<Result<Vec<_>>>()?.concat();
    let (shape, values) = widen(evaluator, plan, output, values)?;
    let mut bytes = vec![0; values.len() * precision.size()];
    encode(&output.path, &plan.name, precision, 0, &values, &mut bytes)?;
    Ok((shape, bytes))
}

/// Puts merged input channels into A's tensor, where that has more.
fn widen(
    evaluator: &Evaluator,
    plan: &KeyPlan,
    output: &OutputPlan,
    values: Vec<f32>,
) -> Result<(Vec<usize>, Vec<f32>)> {
    if !matches!(plan.kept.first(), Some(Some(Kept::Channels { .. }))) {
        return Ok((plan.shape.clone(), values));
    }
    let a = evaluator.checkpoint(evaluator.graph.first(output.operand)).tensor(&plan.name)?;
    let kernel: usize = plan.shape[2..].iter().product();
    let mut wide = a.to_f32();
    for (wide, narrow) in wide.chunks_mut(a.shape[1] * kernel).zip(values.chunks(plan.shape[1] * kernel)) {
        wide[..narrow.len()].copy_from_slice(narrow);
    }
    Ok((a.shape, wide))
}

/// Rounds values to the output's type, `start` being the place of the first one.
///
/// # Errors
/// A value that is not finite, or would become so.
pub(crate) fn encode(
    path: &std::path::Path,
    tensor: &str,
    precision: Precision,
    start: usize,
    values: &[f32],
    out: &mut [u8],
) -> Result<()> {
    precision.encode(values, out);
    if all_below(values, precision.overflow()) {
        return Ok(());
    }
    let fits = |x: &f32| x.abs() < precision.overflow();
    let index = values.iter().position(|x| !fits(x)).expect("one was seen");
    let (path, tensor, value) = (path.to_path_buf(), tensor.to_owned(), values[index]);
    let index = start + index;
    Err(match value.is_finite() {
        true => vodka_checkpoint::Error::Overflow { path, tensor, index, value, precision },
        false => vodka_checkpoint::Error::NotFinite { path, tensor, index, value },
    }
    .into())
}

/// The checkpoints among the parents that an output depends on.
pub(crate) fn checkpoints_of(evaluator: &Evaluator, output: &OutputPlan) -> Vec<usize> {
    let parents = evaluator.graph.parents_of(&[output.operand]);
    parents.into_iter().filter(|parent| matches!(evaluator.parents[*parent], Opened::Checkpoint(_))).collect()
}
