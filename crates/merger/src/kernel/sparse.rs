//! Methods that keep some elements of the others' differences from A.

use std::mem;

use vodka_stage::for_avx2;

use super::{Blocks, Context, State, fold};
use crate::Result;

/// For each of the others, the least size of a difference that is kept: its largest `int(density n)` elements, one at
/// least.
pub(super) fn ties_limits(blocks: &dyn Blocks, density: f64) -> Result<State> {
    let n: usize = blocks.shape().iter().product();
    let kept = ((density * n as f64) as usize).max(1);
    if kept >= n {
        return Ok(State::Numbers(Vec::new()));
    }
    let limits = sizes_of_ranks(blocks, &[n - kept])?;
    Ok(State::Numbers(limits.into_iter().map(|sizes| f64::from(sizes[0])).collect()))
}

/// For each of the others, the least and the largest size of a difference that is kept.
pub(super) fn breadcrumbs_limits(blocks: &dyn Blocks, density: f64, gamma: f64) -> Result<State> {
    let n: usize = blocks.shape().iter().product();
    if density >= 1.0 {
        return Ok(State::Numbers(Vec::new()));
    }
    let (kept, top) = ((density * n as f64) as usize, (gamma * n as f64) as usize);
    // Fewer of the largest are dropped where else less than `density` would be left.
    let (bottom, end) = match (kept + top).cmp(&n) {
        std::cmp::Ordering::Greater => (0, kept),
        _ => (n - kept - top, n - top),
    };
    if bottom >= end {
        let others = others_of(blocks)?;
        return Ok(State::Numbers([f64::INFINITY, f64::NEG_INFINITY].repeat(others)));
    }
    let limits = sizes_of_ranks(blocks, &[bottom, end - 1])?;
    Ok(State::Numbers(limits.into_iter().flatten().map(f64::from).collect()))
}

fn others_of(blocks: &dyn Blocks) -> Result<usize> {
    let mut others = 0;
    if blocks.shape().iter().product::<usize>() > 0 {
        blocks.read(0, &mut |_, values| others = values.len() - 1)?;
    }
    Ok(others)
}

/// Half of a float's bits.
const BINS: usize = 1 << 16;

/// The bits of a difference's size; sizes order as their bits do.
fn size_bits(x: f32, a: f32) -> usize {
    (x - a).abs().to_bits() as usize
}

/// For each of the others, the sizes of its differences from A that have the given ranks (0 is the smallest), exactly:
/// the upper half of their bits from one count over all elements, the lower halves from a second one.
fn sizes_of_ranks(blocks: &dyn Blocks, ranks: &[usize]) -> Result<Vec<Vec<f32>>> {
    let others = others_of(blocks)?;
    let mut upper = vec![vec![0_u32; BINS]; others];
    let add = |total: &mut Vec<Vec<u32>>, bins: Vec<Vec<u32>>| {
        for (total, bins) in total.iter_mut().flatten().zip(bins.into_iter().flatten()) {
            *total += bins;
        }
    };
    let by_upper = |values: &[&[f32]]| {
        let mut bins = vec![vec![0_u32; BINS]; others];
        for (x, bins) in values[1..].iter().zip(&mut bins) {
            x.iter().zip(values[0]).for_each(|(x, a)| bins[size_bits(*x, *a) >> 16] += 1);
        }
        bins
    };
    fold(blocks, |_, values| by_upper(values), |bins| add(&mut upper, bins))?;

    // For each of the others and each rank: its upper bin, and its rank in there.
    let find = |bins: &Vec<u32>| ranks.iter().map(|rank| bin_of(bins, *rank)).collect::<Vec<_>>();
    let found: Vec<_> = upper.iter().flat_map(find).collect();
    let mut lower = vec![vec![0_u32; BINS]; found.len()];
    let by_lower = |values: &[&[f32]]| {
        let mut bins = vec![vec![0_u32; BINS]; found.len()];
        let by_other = bins.chunks_mut(ranks.len()).zip(found.chunks(ranks.len()));
        for (x, (bins, found)) in values[1..].iter().zip(by_other) {
            for (x, a) in x.iter().zip(values[0]) {
                let bits = size_bits(*x, *a);
                for (bins, (upper, _)) in bins.iter_mut().zip(found) {
                    // Seldom: no more than a hundredth of the elements, unless many are equal.
                    if bits >> 16 == *upper {
                        bins[bits % BINS] += 1;
                    }
                }
            }
        }
        bins
    };
    fold(blocks, |_, values| by_lower(values), |bins| add(&mut lower, bins))?;
    let size = |(bins, (upper, left)): (&Vec<u32>, &(usize, usize))| {
        f32::from_bits((upper << 16 | bin_of(bins, *left).0) as u32)
    };
    let sizes: Vec<f32> = lower.iter().zip(&found).map(size).collect();
    Ok(sizes.chunks(ranks.len()).map(<[f32]>::to_vec).collect())
}

/// The bin that holds the element of this rank, and the element's rank within it.
pub(super) fn bin_of(bins: &[u32], rank: usize) -> (usize, usize) {
    let mut left = rank;
    for (bin, count) in bins.iter().enumerate() {
        match left.checked_sub(*count as usize) {
            Some(rest) => left = rest,
            None => return (bin, left),
        }
    }
    panic!("rank {rank} of {} elements", bins.iter().sum::<u32>());
}

pub(super) fn ties(a: &mut [f32], others: &[&[f32]], multiplier: f64, context: &Context) {
    let State::Numbers(limits) = context.state else { panic!("prepared: {:?}", context.state) };
    agreeing(a, others, multiplier, |other, _, deltas| {
        if let Some(limit) = limits.get(other) {
            trim(deltas, *limit as f32, f32::INFINITY);
        }
    });
}

/// Elements that are worked out together.
const PART: usize = 1024;

/// A and the mean of those differences that have the sign of their sum, once `change` has been over those of each of the others,
/// from an element of the block on.
fn agreeing(a: &mut [f32], others: &[&[f32]], multiplier: f64, change: impl Fn(usize, usize, &mut [f32])) {
    let multiplier = multiplier as f32;
    let mut deltas = vec![[0.0_f32; PART]; others.len()];
    let (mut sums, mut mixed, mut counts) = ([0.0_f32; PART], [0.0_f32; PART], [0.0_f32; PART]);
    for (part, a) in a.chunks_mut(PART).enumerate() {
        let (start, n) = (part * PART, a.len());
        sums[..n].fill(0.0);
        for (other, (deltas, x)) in deltas.iter_mut().zip(others).enumerate() {
            let deltas = &mut deltas[..n];
            subtract(&x[start..start + n], a, deltas);
            change(other, start, deltas);
            add_to(&mut sums[..n], deltas);
        }
        mixed[..n].fill(0.0);
        counts[..n].fill(0.0);
        for deltas in &deltas {
            add_agreeing(&deltas[..n], &sums[..n], &mut mixed[..n], &mut counts[..n]);
        }
        add_means(a, &mixed[..n], &counts[..n], multiplier);
    }
}

for_avx2! {
    fn subtract(x: &[f32], a: &[f32], deltas: &mut [f32]) {
        deltas.iter_mut().zip(x).zip(a).for_each(|((delta, x), a)| *delta = x - a);
    }
}

for_avx2! {
    /// Leaves the differences whose size is from the one to the other, and nothing of the rest.
    fn trim(deltas: &mut [f32], low: f32, high: f32) {
        for delta in deltas {
            // Without a branch: which elements stay is as good as random.
            let is_kept = (delta.abs() >= low) & (delta.abs() <= high);
            *delta = if is_kept { *delta } else { 0.0 };
        }
    }
}

for_avx2! {
    fn add_to(sums: &mut [f32], deltas: &[f32]) {
        sums.iter_mut().zip(deltas).for_each(|(sum, delta)| *sum += delta);
    }
}

for_avx2! {
    /// Adds and counts what has the sign of the sum.
    fn add_agreeing(deltas: &[f32], sums: &[f32], mixed: &mut [f32], counts: &mut [f32]) {
        for (((delta, sum), mixed), count) in deltas.iter().zip(sums).zip(mixed).zip(counts) {
            let agrees = if *sum >= 0.0 { *delta > 0.0 } else { *delta < 0.0 };
            *mixed += if agrees { *delta } else { 0.0 };
            *count += if agrees { 1.0 } else { 0.0 };
        }
    }
}

for_avx2! {
    fn add_means(a: &mut [f32], mixed: &[f32], counts: &[f32], multiplier: f32) {
        for ((a, mixed), count) in a.iter_mut().zip(mixed).zip(counts) {
            let moved = *a + mixed / count * multiplier;
            *a = if *count > 0.0 { moved } else { *a };
        }
    }
}

pub(super) fn breadcrumbs(a: &mut [f32], others: &[&[f32]], multiplier: f64, context: &Context) {
    let State::Numbers(limits) = context.state else { panic!("prepared: {:?}", context.state) };
    mean(a, others, multiplier, |other, _, deltas| {
        if let Some([low, high]) = limits.get(2 * other..2 * other + 2) {
            trim(deltas, *low as f32, *high as f32);
        }
    });
}

/// A and the mean of the differences, once `change` has been over those of each of the others, from an element of the block on.
fn mean(a: &mut [f32], others: &[&[f32]], multiplier: f64, change: impl Fn(usize, usize, &mut [f32])) {
    let (multiplier, count) = (multiplier as f32, others.len() as f32);
    let (mut sums, mut deltas) = ([0.0_f32; PART], [0.0_f32; PART]);
    for (part, a) in a.chunks_mut(PART).enumerate() {
        let (start, n) = (part * PART, a.len());
        let (sums, deltas) = (&mut sums[..n], &mut deltas[..n]);
        // The zero that changes nothing: of no differences the sum is what A's -0 stays -0 with.
        sums.fill(-0.0);
        for (other, x) in others.iter().enumerate() {
            subtract(&x[start..start + n], a, deltas);
            change(other, start, deltas);
            add_to(sums, deltas);
        }
        for (a, sum) in a.iter_mut().zip(sums) {
            *a += *sum / count * multiplier;
        }
    }
}

/// `a + multiplier * mean(delta / density where keep, else 0)`; `keep` tells for one of the others and an element of the
/// block whether it is kept.
pub fn dare(
    a: &mut [f32],
    others: &[&[f32]],
    multiplier: f64,
    density: f64,
    keep: impl Fn(usize, usize) -> bool,
) {
    if density <= 0.0 {
        return;
    }
    let scale = density as f32;
    mean(a, others, multiplier, |other, start, deltas| {
        for (i, delta) in (start..).zip(deltas) {
            *delta = if keep(other, i) { *delta / scale } else { 0.0 };
        }
    });
}

/// Numbers of DELLA.
#[derive(Debug, Clone, Copy)]
pub struct DellaParams {
    /// How much of the difference is added.
    pub multiplier: f64,
    /// The mean probability with which an element is kept.
    pub density: f64,
    /// How far probabilities go from it.
    pub epsilon: f64,
}

/// A and the mean of those differences that agree in their sign, each kept with a probability and divided by it; `keep`
/// tells for one of the others, an element of the block and its probability whether it is kept. The block is of whole
/// rows of `row` elements.
///
/// # Panics
/// When it is not.
pub fn della(
    a: &mut [f32],
    others: &[&[f32]],
    params: DellaParams,
    row: usize,
    keep: impl Fn(usize, usize, f32) -> bool,
) {
    let DellaParams { multiplier, density, epsilon } = params;
    if density <= 0.0 {
        return;
    }
    assert_eq!(a.len() % row, 0, "whole rows of {row}");
    let chances: Vec<Vec<f32>> =
        others.iter().map(|other| chances(a, other, row, density, epsilon)).collect();
    agreeing(a, others, multiplier, |other, start, deltas| {
        for ((i, delta), chance) in (start..).zip(deltas).zip(&chances[other][start..]) {
            // Without a branch, for what is kept is random: all bits or none.
            let mask = u32::from(keep(other, i, *chance)).wrapping_neg();
            *delta = f32::from_bits((*delta / chance).to_bits() & mask);
        }
    });
}

/// Whether an element is kept, by the seed of its tensor, its place in it and its probability.
pub(super) fn kept(context: &Context, other: usize, i: usize, chance: f64) -> bool {
    uniform(context.seed, other, context.start + i) < chance
}

/// The probability with which each element is kept, by the rank of its size in its row; of equals the first is the
/// smaller.
fn chances(a: &[f32], other: &[f32], row: usize, density: f64, epsilon: f64) -> Vec<f32> {
    if density >= 1.0 {
        return vec![1.0; a.len()];
    }
    let mut chances = vec![density as f32; a.len()];
    if row < 2 {
        return chances;
    }
    let of_rank = |rank: usize| {
        let part = rank as f32 / (row - 1) as f32;
        let chance = (density - epsilon) as f32 + part * 2.0 * epsilon as f32;
        chance.clamp(f32::MIN_POSITIVE, 1.0)
    };
    let of_ranks: Vec<f32> = (0..row).map(of_rank).collect();
    let (mut order, mut spare) = (Vec::with_capacity(row), Vec::with_capacity(row));
    for ((a, other), chances) in a.chunks(row).zip(other.chunks(row)).zip(chances.chunks_mut(row)) {
        order.clear();
        let key = |(i, (a, x)): (usize, (&f32, &f32))| (size_bits(*x, *a) as u64) << 32 | i as u64;
        order.extend(a.iter().zip(other).enumerate().map(key));
        sort_by_upper(&mut order, &mut spare);
        for (key, chance) in order.iter().zip(&of_ranks) {
            chances[*key as u32 as usize] = *chance;
        }
    }
    chances
}

/// Sorts by the upper half; equals stay in their order.
fn sort_by_upper(keys: &mut Vec<u64>, spare: &mut Vec<u64>) {
    // Fewer passes, if there are so many keys that more bins cost little beside them.
    match keys.len() {
        0..4096 => sort_by_digits::<8, 4>(keys, spare),
        _ => sort_by_digits::<11, 3>(keys, spare),
    }
}

/// Sorts by so many digits of so many bits each, from the lowest of the upper half on.
fn sort_by_digits<const BITS: usize, const DIGITS: usize>(keys: &mut Vec<u64>, spare: &mut Vec<u64>) {
    spare.resize(keys.len(), 0);
    let digit = |key: u64, index: usize| (key >> (32 + BITS * index)) as usize % (1 << BITS);
    let mut places = vec![0_u32; DIGITS << BITS];
    for key in &*keys {
        (0..DIGITS).for_each(|index| places[(index << BITS) + digit(*key, index)] += 1);
    }
    for (index, places) in places.chunks_mut(1 << BITS).enumerate() {
        let mut next = 0;
        places.iter_mut().for_each(|place| next += mem::replace(place, next));
        for key in &*keys {
            let place = &mut places[digit(*key, index)];
            spare[*place as usize] = *key;
            *place += 1;
        }
        mem::swap(keys, spare);
    }
}

/// A number from 0 to below 1 for an element of one of the others: SplitMix64's mix of seed, other and place, so that it
/// depends on nothing else.
pub(crate) fn uniform(seed: u64, other: usize, place: usize) -> f64 {
    let mixed = mix(mix(seed.wrapping_add(other as u64)).wrapping_add(place as u64));
    // The upper 53 bits, all that an f64 holds; from a signed number, for which processors have an instruction.
    (mixed >> 11).cast_signed() as f64 / (1_u64 << 53) as f64
}

/// One step of SplitMix64 (Steele, Lea and Flood 2014).
pub(crate) fn mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn keys_are_sorted_by_their_upper_halves(halves in vec(prop_oneof![0..3_u32, any::<u32>()], 0..300)) {
            let keys = (0..).zip(&halves).map(|(i, half)| u64::from(*half) << 32 | i);
            let mut keys: Vec<u64> = keys.collect();
            let mut sorted = keys.clone();
            sorted.sort_unstable();
            let mut others = keys.clone();
            sort_by_digits::<8, 4>(&mut keys, &mut vec![7; 5]);
            prop_assert_eq!(&keys, &sorted);
            sort_by_digits::<11, 3>(&mut others, &mut vec![7; 500]);
            prop_assert_eq!(others, sorted);
        }
    }

    #[test]
    fn random_numbers_are_even_and_depend_on_everything() {
        let n = 100_000;
        let below = (0..n).filter(|place| uniform(7, 0, *place) < 0.3).count();
        assert!((29_000..31_000).contains(&below), "{below}");
        assert_ne!(uniform(7, 0, 0), uniform(8, 0, 0));
        assert_ne!(uniform(7, 0, 0), uniform(7, 1, 0));
        // The first output of SplitMix64 for the seed 0, as its authors print it.
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
    }
}
