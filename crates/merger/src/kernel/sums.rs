//! Methods that need lengths and products of whole tensors.

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

/// The sum of the products of what two functions make of each element, in eight partial sums, so that it is vector code.
fn product(n: usize, x: impl Fn(usize) -> f64, y: impl Fn(usize) -> f64) -> f64 {
    const LANES: usize = 8;
    let mut lanes = [0.0; LANES];
    let whole = n - n % LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += x(start + lane) * y(start + lane);
        }
    }
    lanes.iter().sum::<f64>() + (whole..n).map(|i| x(i) * y(i)).sum::<f64>()
}

/// The shares of A and B: numbers by which the two are multiplied.
pub(super) fn slerp(blocks: &dyn Blocks, alpha: f64) -> Result<State> {
    let sums = sums(blocks, |values| {
        let [a, b] = [values[0], values[1]];
        let (at_a, at_b) = (|i: usize| f64::from(a[i]), |i: usize| f64::from(b[i]));
        vec![product(a.len(), at_a, at_a), product(a.len(), at_b, at_b), product(a.len(), at_a, at_b)]
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
        let of_a = |i: usize| f64::from(a[i] - c[i]);
        let of_b = |i: usize| f64::from(b[i] - c[i]);
        vec![product(a.len(), of_a, of_a), product(a.len(), of_a, of_b)]
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
        let (base, models) = (values[0], &values[1..]);
        let mut sums = Vec::new();
        for (i, x) in models.iter().enumerate() {
            let of_x = |k: usize| f64::from(x[k] - base[k]);
            for y in &models[i..] {
                sums.push(product(base.len(), of_x, |k| f64::from(y[k] - base[k])));
            }
        }
        sums
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
    let share = numbers[0];
    for (i, a) in a.iter_mut().enumerate() {
        let mean = others.iter().map(|other| f64::from(other[i])).sum::<f64>() / others.len() as f64;
        *a = (share * mean + (1.0 - share) * f64::from(*a)) as f32;
    }
}
