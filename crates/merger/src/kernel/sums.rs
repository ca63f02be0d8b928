//! Methods that need lengths and products of whole tensors.

use vodka_stage::for_avx2;

use super::{Blocks, Context, State, fold};
use crate::Result;

/// Sums over a tensor: `of_block` gives some sums of a block, and these are added in the order of the blocks.
fn sums(blocks: &dyn Blocks, of_block: impl Fn(&[&[f32]]) -> Vec<f64> + Sync) -> Result<Vec<f64>> {
    let mut total: Vec<f64> = Vec::new();
    fold(
        blocks,
        |_, values| of_block(values),
        |sums| {
            total.resize(sums.len(), 0.0);
            total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        },
    )?;
    Ok(total)
}

/// The sum of the products of elements, in eight partial sums, so that it is vector code.
fn product(x: &[f32], y: &[f32]) -> f64 {
    let mut sum = 0.0;
    add_product(x, y, &mut sum);
    sum
}

for_avx2! {
    fn add_product(x: &[f32], y: &[f32], sum: &mut f64) {
        let mut lanes = [0.0; 8];
        let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<8>(), y.as_chunks::<8>());
        for (x, y) in x.iter().zip(y) {
            for (lane, sum) in lanes.iter_mut().enumerate() {
                *sum += f64::from(x[lane]) * f64::from(y[lane]);
            }
        }
        let rest = x_rest.iter().zip(y_rest).map(|(x, y)| f64::from(*x) * f64::from(*y));
        *sum += lanes.iter().sum::<f64>() + rest.sum::<f64>();
    }
}

fn difference(x: &[f32], y: &[f32]) -> Vec<f32> {
    x.iter().zip(y).map(|(x, y)| x - y).collect()
}

/// The shares of A and B: numbers by which the two are multiplied.
pub(super) fn slerp(blocks: &dyn Blocks, alpha: f64) -> Result<State> {
    let sums = sums(blocks, |values| {
        let [a, b] = [values[0], values[1]];
        vec![product(a, a), product(b, b), product(a, b)]
    })?;
    let (a, b) = (sums[0].sqrt(), sums[1].sqrt());
    let omega = (sums[2] / (a * b)).clamp(-1.0, 1.0).acos();
    let length = (1.0 - alpha) * a + alpha * b;
    let share = |part: f64, norm: f64| (part * omega).sin() / omega.sin() * length / norm;
    let shares = [share(1.0 - alpha, a), share(alpha, b)];
    let shares = if shares.iter().all(|share| share.is_finite()) { shares } else { [1.0 - alpha, alpha] };
    Ok(State::Numbers(shares.to_vec()))
}

/// A and B by their shares.
pub(super) fn blend(a: &mut [f32], b: &[f32], context: &Context) {
    let State::Numbers(shares) = context.state else { panic!("prepared: {:?}", context.state) };
    for (a, b) in a.iter_mut().zip(b) {
        *a = (shares[0] * f64::from(*a) + shares[1] * f64::from(*b)) as f32;
    }
}

/// How much of A - C is in B - C.
pub(super) fn perpendicular(blocks: &dyn Blocks) -> Result<State> {
    let sums = sums(blocks, |values| {
        let [a, b, c] = [values[0], values[1], values[2]];
        let (of_a, of_b) = (difference(a, c), difference(b, c));
        vec![product(&of_a, &of_a), product(&of_a, &of_b)]
    })?;
    // No direction of A: nothing is added.
    Ok(State::Numbers(vec![sums[1] / sums[0]]))
}

pub(super) fn add_perpendicular(a: &mut [f32], b: &[f32], c: &[f32], alpha: f64, context: &Context) {
    let State::Numbers(numbers) = context.state else { panic!("prepared: {:?}", context.state) };
    let part = numbers[0];
    if !part.is_finite() {
        return;
    }
    for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
        let (of_a, of_b) = (f64::from(*a - c), f64::from(b - c));
        *a = (f64::from(*a) + alpha * (of_b - of_a * part)) as f32;
    }
}

/// The share of the mean.
pub(super) fn model_stock(blocks: &dyn Blocks) -> Result<State> {
    let sums = sums(blocks, |values| {
        let deltas: Vec<_> = values[1..].iter().map(|model| difference(model, values[0])).collect();
        let of_x = |(i, x): (usize, &Vec<f32>)| deltas[i..].iter().map(|y| product(x, y)).collect::<Vec<_>>();
        deltas.iter().enumerate().flat_map(of_x).collect()
    })?;
    Ok(State::Numbers(vec![stock_share(&sums)]))
}

/// The share of the mean, from the products of all pairs (i, j) with j >= i, in order.
fn stock_share(products: &[f64]) -> f64 {
    let n = (0..).find(|n| n * (n + 1) / 2 == products.len()).expect("products of all pairs");
    let at = |i: usize, j: usize| products[i * n - i * (i + 1) / 2 + j];
    let mut cosines = Vec::new();
    for i in 0..n {
        for j in i + 1..n {
            let norms = (at(i, i).sqrt() * at(j, j).sqrt()).max(1e-6);
            cosines.push((at(i, j) / norms).clamp(-1.0, 1.0));
        }
    }
    let cosine = cosines.iter().sum::<f64>() / cosines.len() as f64;
    let share = n as f64 * cosine / (1.0 + (n as f64 - 1.0) * cosine);
    // Where the differences cancel each other there is no direction to go.
    if share.is_finite() { share } else { 0.0 }
}

pub(super) fn stock(a: &mut [f32], others: &[&[f32]], context: &Context) {
    let State::Numbers(numbers) = context.state else { panic!("prepared: {:?}", context.state) };
    let (share, count) = (numbers[0], others.len() as f64);
    const PART: usize = 1024;
    let mut sums = [0.0; PART];
    for (part, a) in a.chunks_mut(PART).enumerate() {
        let sums = &mut sums[..a.len()];
        sums.fill(-0.0);
        for other in others {
            add_to(sums, &other[part * PART..][..a.len()]);
        }
        for (a, sum) in a.iter_mut().zip(sums) {
            *a = (share * (*sum / count) + (1.0 - share) * f64::from(*a)) as f32;
        }
    }
}

for_avx2! {
    fn add_to(sums: &mut [f64], values: &[f32]) {
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += f64::from(*value));
    }
}
