//! A smoothed difference: SuperMerger's `smoothAdd`, which filters with scipy.

use rayon::prelude::*;

use super::{Blocks, Context, State, whole};
use crate::Result;

/// B - C after a median of 3 along every axis at once and a Gaussian of sigma 1 along each axis.
pub(super) fn smoothed_difference(blocks: &dyn Blocks) -> Result<State> {
    let difference = whole(blocks, |values, out| {
        out.extend(values[1].iter().zip(values[2]).map(|(b, c)| b - c));
    })?;
    // An axis of one element is its own mirror: it changes neither filter.
    let shape: Vec<_> = blocks.shape().iter().copied().filter(|extent| *extent != 1).collect();
    let mut filtered = median(&difference, &shape);
    drop(difference);
    for axis in 0..shape.len() {
        gaussian(&mut filtered, &shape, axis);
    }
    Ok(State::Whole(filtered))
}

/// `a + alpha * filtered`.
pub(super) fn add(a: &mut [f32], alpha: f64, context: &Context) {
    let State::Whole(filtered) = context.state else { panic!("prepared: {:?}", context.state) };
    let alpha = alpha as f32;
    for (a, filtered) in a.iter_mut().zip(&filtered[context.start..]) {
        *a += alpha * filtered;
    }
}

/// The median over the neighbours at a distance of at most 1 along each axis; an edge is its own neighbour, as
/// scipy's `reflect` has it.
fn median(values: &[f32], shape: &[usize]) -> Vec<f32> {
    let row = shape.last().copied().unwrap_or(1).max(1);
    let mut out = vec![0.0; values.len()];
    out.par_chunks_mut(row).enumerate().for_each_init(Vec::new, |window, (index, out)| {
        let rows = neighbour_rows(index, shape);
        for (i, out) in out.iter_mut().enumerate() {
            window.clear();
            for start in &rows {
                let line = &values[start * row..(start + 1) * row];
                let around = [line[i.saturating_sub(1)], line[i], line[(i + 1).min(row - 1)]];
                window.extend_from_slice(if shape.is_empty() { &around[1..2] } else { &around });
            }
            let middle = window.len() / 2;
            *out = *window.select_nth_unstable_by(middle, f32::total_cmp).1;
        }
    });
    out
}

/// The rows (along the last axis) at a distance of at most 1 along each of the other axes.
fn neighbour_rows(index: usize, shape: &[usize]) -> Vec<usize> {
    let mut rows = vec![0];
    let (mut left, mut stride) = (index, 1);
    for extent in shape[..shape.len().saturating_sub(1)].iter().rev() {
        let at = left % extent;
        left /= extent;
        let around = [at.saturating_sub(1), at, (at + 1).min(extent - 1)];
        rows = rows.iter().flat_map(|row| around.map(|at| row + at * stride)).collect();
        stride *= extent;
    }
    rows
}

/// Standard deviations at which the Gaussian is cut, as scipy's default.
const RADIUS: usize = 4;

/// scipy's `gaussian_filter1d` with sigma 1 along one axis: sums in f64, symmetrical pairs first.
fn gaussian(values: &mut [f32], shape: &[usize], axis: usize) {
    let weights = gaussian_weights();
    let extent = shape[axis];
    let stride: usize = shape[axis + 1..].iter().product();
    values.par_chunks_mut(extent * stride).for_each(|slab| {
        let mut line = vec![0.0; extent + 2 * RADIUS];
        for first in 0..stride {
            for (i, value) in line.iter_mut().enumerate() {
                *value = f64::from(slab[first + mirror(i, extent) * stride]);
            }
            for i in 0..extent {
                let centre = i + RADIUS;
                let mut sum = line[centre] * weights[0];
                for distance in (1..=RADIUS).rev() {
                    sum += (line[centre - distance] + line[centre + distance]) * weights[distance];
                }
                slab[first + i * stride] = sum as f32;
            }
        }
    });
}

/// Where the element `i` of a line that is extended by the radius on both sides is taken from: `c b a | a b c | c b a`.
fn mirror(i: usize, extent: usize) -> usize {
    let period = 2 * extent as isize;
    let place = (i as isize - RADIUS as isize).rem_euclid(period) as usize;
    if place < extent { place } else { 2 * extent - 1 - place }
}

/// exp(-x^2 / 2) for the distances 0 to 4, with the sum 1 over both sides.
fn gaussian_weights() -> [f64; RADIUS + 1] {
    let mut weights: [f64; RADIUS + 1] = std::array::from_fn(|x| (-0.5 * (x * x) as f64).exp());
    let sum = weights[0] + 2.0 * weights[1..].iter().sum::<f64>();
    weights.iter_mut().for_each(|weight| *weight /= sum);
    weights
}
