//! Methods that need an order or columns: top-k, and the mixes by cosine.

use super::{Blocks, Context, State, fold};
use crate::{Method, Result};

/// The whole result of top-k: A's values in the order of B's, where their ranks by size are in the region.
pub(super) fn top_k(blocks: &dyn Blocks, alpha: f64, beta: f64) -> Result<State> {
    let n: usize = blocks.shape().iter().product();
    assert!(u32::try_from(n).is_ok(), "a tensor of {n} elements");
    // B's elements with their places, in the order of the values: of equals the first one comes first.
    let (mut order, mut result): (Vec<u64>, Vec<f32>) = (Vec::with_capacity(n), Vec::with_capacity(n));
    fold(
        blocks,
        |start, values| {
            let key = |(i, b): (usize, &f32)| u64::from(ordered(*b)) << 32 | (start + i) as u64;
            (values[1].iter().enumerate().map(key).collect::<Vec<_>>(), values[0].to_vec())
        },
        |(keys, a)| {
            order.extend_from_slice(&keys);
            result.extend_from_slice(&a);
        },
    )?;
    rayon::slice::ParallelSliceMut::par_sort_unstable(order.as_mut_slice());
    let order: Vec<u32> = order.into_iter().map(|key| key as u32).collect();

    let (first, last, inverted) = region(alpha, beta, n);
    let (low, high) = {
        let mut sizes: Vec<f32> = result.iter().map(|a| a.abs()).collect();
        let mut at = |rank: usize| match rank.checked_sub(1) {
            None => -1.0,
            Some(index) => *sizes.select_nth_unstable_by(index, f32::total_cmp).1,
        };
        (at(first), at(last))
    };
    let mut sorted = result.clone();
    rayon::slice::ParallelSliceMut::par_sort_unstable_by(sorted.as_mut_slice(), f32::total_cmp);
    for (a, place) in sorted.into_iter().zip(order) {
        if (low < a.abs() && a.abs() <= high) != inverted {
            result[place as usize] = a;
        }
    }
    Ok(State::Whole(result))
}

/// The bits of a float in the order of the floats; zeros of both signs are equal.
fn ordered(x: f32) -> u32 {
    let bits = (x + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// The ranks from `offset` on, as many as `width` says, and whether it is those that are not meant.
fn region(width: f64, offset: f64, n: usize) -> (usize, usize, bool) {
    let (width, offset) = (width.min(1.0), offset % 1.0);
    let at = |share: f64| (share * n as f64).round_ties_even() as usize;
    match width + offset <= 1.0 {
        true => (at(offset), at(width + offset), false),
        false => (at(width + offset - 1.0), at(offset), true),
    }
}

/// The values that were made beforehand.
pub(super) fn take(out: &mut [f32], context: &Context) {
    let State::Whole(values) = context.state else { panic!("prepared: {:?}", context.state) };
    out.copy_from_slice(&values[context.start..context.start + out.len()]);
}

/// How alike two tensors are.
#[derive(Debug, Clone, PartialEq)]
pub struct Similarities {
    /// For each column (along the first axis), what is mixed by.
    pub combined: Vec<f32>,
    /// For each column, what is pooled over the model to find the range.
    pub pooled: Vec<f32>,
}

/// Compares two tensors column by column.
pub fn similarities(method: Method, blocks: &dyn Blocks) -> Result<Similarities> {
    let columns = match blocks.shape() {
        [_, rest @ ..] => rest.iter().product::<usize>(),
        [] => 1,
    };
    let mut sums = vec![[0.0_f64; 3]; columns];
    fold(
        blocks,
        |start, values| of_columns(start, columns, values[0], values[1]),
        |parts| {
            for (first, part) in parts {
                for (sum, part) in sums[first..].iter_mut().zip(part) {
                    sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
                }
            }
        },
    )?;
    Ok(of_sums(method, &sums))
}

type Part = (usize, Vec<[f64; 3]>);

/// The sums of squares of A and B and of their product for each column that the block touches.
fn of_columns(start: usize, columns: usize, a: &[f32], b: &[f32]) -> Vec<Part> {
    let n = a.len().min(columns);
    let first = start % columns;
    let mut sums = vec![[0.0; 3]; n];
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        let (a, b) = (f64::from(*a), f64::from(*b));
        let sum = &mut sums[i % columns % n];
        sum[0] += a * a;
        sum[1] += b * b;
        sum[2] += a * b;
    }
    // What goes beyond the last column starts at the first again.
    let rest = sums.split_off((columns - first).min(n));
    vec![(first, sums), (0, rest)]
}

fn of_sums(method: Method, sums: &[[f64; 3]]) -> Similarities {
    // torch's cosine_similarity does not divide by less than 1e-8 for a length.
    let cosine = |[a, b, ab]: &[f64; 3]| ab / (a.sqrt().max(1e-8) * b.sqrt().max(1e-8));
    let cosines: Vec<f64> = sums.iter().map(cosine).collect();
    let of_tensor = match method {
        // Columns of length 1, but for those that are zero.
        Method::CosineA => {
            let count = |index: usize| sums.iter().filter(|sums| sums[index] > 0.0).count() as f64;
            cosines.iter().sum::<f64>() / (count(0).sqrt() * count(1).sqrt())
        }
        _ => {
            let total = |index: usize| sums.iter().map(|sums| sums[index]).sum::<f64>();
            total(2) / (total(0).sqrt() * total(1).sqrt())
        }
    };
    let combined: Vec<f32> = cosines.iter().map(|cosine| f64::midpoint(*cosine, of_tensor) as f32).collect();
    let pooled = match method {
        Method::CosineA => cosines.into_iter().map(|cosine| cosine as f32).collect(),
        _ => combined.clone(),
    };
    Similarities { combined, pooled }
}

/// The least and the largest of what was pooled, without the lowest and the highest hundredth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    low: f32,
    high: f32,
}

impl Range {
    /// Of the values of all tensors; those that are no numbers are left out. None where nothing is left.
    pub fn of(mut pooled: Vec<f32>) -> Option<Self> {
        pooled.retain(|value| !value.is_nan());
        pooled.sort_unstable_by(f32::total_cmp);
        let low = percentile(&pooled, 0.01)?;
        pooled.retain(|value| f64::from(*value) >= low);
        let high = percentile(&pooled, 0.99)?;
        pooled.retain(|value| f64::from(*value) <= high);
        Some(Self { low: *pooled.first()?, high: *pooled.last()? })
    }

    /// The share of A in each column.
    pub fn shares(self, combined: &[f32], alpha: f64) -> Vec<f32> {
        let (span, alpha) = (self.high - self.low, alpha.abs() as f32);
        let share = |combined: &f32| {
            let share = (combined - self.low) / span - alpha;
            // Tensors of nothing but zeros have no angle: A.
            if share.is_nan() { 1.0 } else { share.clamp(0.0, 1.0) }
        };
        combined.iter().map(share).collect()
    }
}

/// numpy's percentile with the method `midpoint`, of sorted values.
fn percentile(sorted: &[f32], part: f64) -> Option<f64> {
    let place = part * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(f64::midpoint(f64::from(below), f64::from(above)))
}

/// A and B by the share of A in each column.
pub(super) fn mix_columns(a: &mut [f32], b: &[f32], context: &Context) {
    let State::Columns(shares) = context.state else { panic!("prepared: {:?}", context.state) };
    for (i, (a, b)) in a.iter_mut().zip(b).enumerate() {
        let share = shares[(context.start + i) % shares.len()];
        *a = b * (1.0 - share) + *a * share;
    }
}
