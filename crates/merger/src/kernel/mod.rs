//! The arithmetic of the methods, on slices.
//!
//! A method has two halves. [`prepare`] looks over a whole tensor where the method needs numbers of it; [`apply`] makes
//! a block of the result from the same block of the parents. Sums over a tensor are f64, in an order that does not
//! depend on the number of threads.

mod elementwise;
mod lora;
mod median;
mod powers;
mod ranks;
mod smooth;
mod sparse;
mod sums;

pub use elementwise::{add_difference, weighted_sum};
pub use lora::LoraDelta;
pub use ranks::Similarities;
pub use ranks::{Range, similarities};
pub(crate) use sparse::mix;
pub use sparse::{DellaParams, dare, della};

use rayon::prelude::*;

use crate::{Method, Result};

/// The parents' values of one tensor, in blocks.
pub trait Blocks: Sync {
    /// The extent of each axis.
    fn shape(&self) -> &[usize];
    /// The elements of a block; the last one may have fewer.
    fn block_len(&self) -> usize;
    /// Reads block `index` and hands over its first element's place and, for each parent, the values.
    fn read(&self, index: usize, take: &mut dyn FnMut(usize, &[&[f32]])) -> Result<()>;
}

/// What a method needs of the whole tensor.
#[derive(Debug, Clone)]
pub enum State {
    /// Nothing.
    None,
    /// Some numbers, as the method has them.
    Numbers(Vec<f64>),
    /// A value for each element.
    Whole(Vec<f32>),
    /// A value for each column: the elements that differ only in the first index.
    Columns(Vec<f32>),
}

/// What a method is told of the block in hand.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The method's numbers, in the order of its parameters.
    pub params: &'a [f64],
    /// The seed of what is random, for this tensor.
    pub seed: u64,
    /// The place of the block's first element in the tensor, row-major.
    pub start: usize,
    /// The extent of each axis of the tensor.
    pub shape: &'a [usize],
    /// What [`prepare`] made.
    pub state: &'a State,
}

impl Context<'_> {
    /// The elements of a row: all that share the first index; the whole tensor where it has but one axis.
    fn row(&self) -> usize {
        row(self.shape)
    }
}

/// The elements of a row: all that share the first index; the whole tensor where it has but one axis.
pub(crate) fn row(shape: &[usize]) -> usize {
    match shape {
        [_, rest @ ..] if !rest.is_empty() => rest.iter().product(),
        _ => shape.iter().product(),
    }
}

/// Looks over a whole tensor, where the method needs it. The cosine methods need the whole model and are prepared by the
/// engine.
pub fn prepare(method: Method, blocks: &dyn Blocks, params: &[f64]) -> Result<State> {
    match method {
        Method::Slerp => sums::slerp(blocks, params[0]),
        Method::Perpendicular => sums::perpendicular(blocks),
        Method::ModelStock => sums::model_stock(blocks),
        Method::Ties => sparse::ties_limits(blocks, params[1]),
        Method::Breadcrumbs => sparse::breadcrumbs_limits(blocks, params[1], params[2]),
        Method::SmoothAdd => smooth::smoothed_difference(blocks),
        Method::TopK => ranks::top_k(blocks, params[0], params[1]),
        _ => Ok(State::None),
    }
}

/// Makes a block of the result from the same block of the parents: `out` holds A's values and receives the result.
///
/// # Panics
/// When the blocks are not of one length, or the state is not that of the method.
pub fn apply(method: Method, out: &mut [f32], others: &[&[f32]], context: &Context) {
    assert!(others.iter().all(|other| other.len() == out.len()), "blocks of one length");
    let params = context.params;
    match (method, others) {
        (Method::WeightedSum, [b]) => weighted_sum(out, b, params[0]),
        (Method::AddDifference, [b, c]) => add_difference(out, b, c, params[0]),
        (Method::SumTwice, [b, c]) => elementwise::sum_twice(out, b, c, params[0], params[1]),
        (Method::TripleSum, [b, c]) => elementwise::triple_sum(out, b, c, params[0], params[1]),
        (Method::TrainDifference, [b, c]) => elementwise::train_difference(out, b, c, params[0]),
        (Method::Geometric, [b]) => elementwise::geometric(out, b, params[0]),
        (Method::MultiplyDifference, [b, c]) => {
            elementwise::multiply_difference(out, b, c, params[0], params[1]);
        }
        (Method::TensorSum, [b]) => elementwise::tensor_sum(out, b, params[0], params[1], context),
        (Method::Clip, bounds) => elementwise::clip(out, bounds),
        (Method::ApplyLora, deltas) => elementwise::add(out, deltas, params[0]),
        (Method::CosineA | Method::CosineB, [b]) => ranks::mix_columns(out, b, context),
        (Method::TopK, [_]) => ranks::take(out, context),
        (Method::SmoothAdd, [_, _]) => smooth::add(out, params[0], context),
        (Method::Slerp, [b]) => sums::blend(out, b, context),
        (Method::Perpendicular, [b, c]) => sums::add_perpendicular(out, b, c, params[0], context),
        (Method::ModelStock, others) => sums::stock(out, others, context),
        (Method::Ties, others) => sparse::ties(out, others, params[0], context),
        (Method::Breadcrumbs, others) => sparse::breadcrumbs(out, others, params[0], context),
        (Method::Dare, others) => {
            dare(out, others, params[0], params[1], |other, i| sparse::kept(context, other, i, params[1]));
        }
        (Method::Della, others) => {
            let [multiplier, density, epsilon] = [params[0], params[1], params[2]];
            let numbers = DellaParams { multiplier, density, epsilon };
            della(out, others, numbers, context.row(), |other, i, chance| {
                sparse::kept(context, other, i, f64::from(chance))
            });
        }
        (method, others) => panic!("{method} of {} checkpoints", 1 + others.len()),
    }
}

/// Goes over all blocks in parallel and puts what comes of each together in the order of the blocks.
fn fold<T: Send>(
    blocks: &dyn Blocks,
    of_block: impl Fn(usize, &[&[f32]]) -> T + Sync,
    mut together: impl FnMut(T),
) -> Result<()> {
    // A few blocks a thread at a time, so that what comes of all blocks is never in memory at once.
    let batch = 4 * rayon::current_num_threads();
    let elements: usize = blocks.shape().iter().product();
    let indices: Vec<_> = (0..elements.div_ceil(blocks.block_len())).collect();
    for indices in indices.chunks(batch) {
        let results: Vec<_> = indices
            .par_iter()
            .map(|index| {
                let mut result = None;
                blocks.read(*index, &mut |start, values| result = Some(of_block(start, values)))?;
                Ok(result.expect("a block that is read is handed over"))
            })
            .collect::<Result<_>>()?;
        results.into_iter().for_each(&mut together);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tensors in memory, in blocks of any length.
    pub(super) struct Memory {
        pub(super) shape: Vec<usize>,
        pub(super) values: Vec<Vec<f32>>,
        pub(super) block: usize,
    }

    impl Blocks for Memory {
        fn shape(&self) -> &[usize] {
            &self.shape
        }

        fn block_len(&self) -> usize {
            self.block
        }

        fn read(&self, index: usize, take: &mut dyn FnMut(usize, &[&[f32]])) -> Result<()> {
            let start = index * self.block;
            let end = (start + self.block).min(self.values[0].len());
            take(start, &self.values.iter().map(|values| &values[start..end]).collect::<Vec<_>>());
            Ok(())
        }
    }

    pub(super) fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|x| x.to_bits()).collect()
    }
}
