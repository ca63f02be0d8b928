//! Top-k of values that have no more bits than fp16 and bf16 have: by counting each value, without sorting.

use std::{iter, ops::Range};

use rayon::prelude::*;

use super::{Region, ordered};
use crate::{
    Result,
    kernel::{Blocks, sparse::bin_of},
};

/// The lowest bits of an f32, which no value of fp16 or bf16 has.
const LOW: u32 = 13;
/// The values that the other bits tell apart.
pub(super) const BINS: usize = 1 << (32 - LOW);
/// Parts of a tensor that are gone over side by side: no more, for each has its own counts.
const PARTS: usize = 8;

/// What [`by_sorting`](super::by_sorting) makes; none where a value has more bits.
///
/// Beside the result it holds twelve bytes for each value that there may be, once a part.
pub(super) fn by_counting(blocks: &dyn Blocks, n: usize, region: &Region) -> Result<Option<Vec<f32>>> {
    let per_part = n.div_ceil(blocks.block_len()).div_ceil(rayon::current_num_threads().min(PARTS)).max(1);
    let ends: Vec<_> = (0..n.div_ceil(blocks.block_len())).step_by(per_part).collect();
    let parts: Vec<Range<usize>> =
        ends.iter().map(|first| *first..(first + per_part).min(n.div_ceil(blocks.block_len()))).collect();
    let counts = parts.par_iter().map(|part| Counts::of(blocks, part.clone()));
    let Some(counts) = counts.collect::<Result<Option<Vec<_>>>>()? else { return Ok(None) };
    let runs = runs(&counts, region);
    let cursors = cursors(&counts, &runs);
    drop(counts);
    let mut result = vec![0.0; n];
    let parts = parts.into_par_iter().zip(cursors);
    result
        .par_chunks_mut(per_part * blocks.block_len())
        .zip(parts)
        .try_for_each(|(result, (part, cursors))| place(blocks, part, cursors, &runs, result))?;
    Ok(Some(result))
}

/// How often each value comes in a part of A and of B.
struct Counts {
    a: Vec<u32>,
    b: Vec<u32>,
}

impl Counts {
    fn of(blocks: &dyn Blocks, part: Range<usize>) -> Result<Option<Self>> {
        let mut counts = Self { a: vec![0; BINS], b: vec![0; BINS] };
        let mut all = 0;
        for block in part {
            blocks.read(block, &mut |_, values| {
                for (a, b) in values[0].iter().zip(values[1]) {
                    all |= a.to_bits() | b.to_bits();
                    counts.a[bin_of_a(*a)] += 1;
                    counts.b[bin_of_b(*b)] += 1;
                }
            })?;
            if all % (1 << LOW) != 0 {
                return Ok(None);
            }
        }
        Ok(Some(counts))
    }
}

/// In the order of all floats, where -0 comes before 0.
fn bin_of_a(a: f32) -> usize {
    let bits = a.to_bits();
    ((if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }) >> LOW) as usize
}

fn bin_of_b(b: f32) -> usize {
    (ordered(b) >> LOW) as usize
}

fn value_of(bin: usize) -> f32 {
    let bits = (bin as u32) << LOW;
    f32::from_bits(if bits >> 31 == 1 { bits & !(1 << 31) } else { !bits >> LOW << LOW })
}

/// Elements of A that are alike.
struct Run {
    count: u32,
    value: f32,
    /// Whether they are put at the places of B's.
    is_taken: bool,
}

/// A's elements in their order.
fn runs(counts: &[Counts], region: &Region) -> Vec<Run> {
    let mut a = vec![0; BINS];
    for part in counts {
        a.iter_mut().zip(&part.a).for_each(|(total, count)| *total += count);
    }
    let (negative, positive) = a.split_at(BINS / 2);
    let by_size: Vec<u32> = positive.iter().zip(negative.iter().rev()).map(|(x, y)| x + y).collect();
    let sizes = region.sizes(|rank| value_of(BINS / 2 + bin_of(&by_size, rank).0));
    let run = |(bin, count): (usize, &u32)| {
        let value = value_of(bin);
        Run { count: *count, value, is_taken: sizes.has(value) }
    };
    a.iter().enumerate().filter(|(_, count)| **count > 0).map(run).collect()
}

/// Where in A's order elements of a part of B go that are alike: the run, and how many are left of it.
#[derive(Debug, Clone, Copy, Default)]
struct Cursor {
    run: u32,
    left: u32,
}

impl Cursor {
    /// Goes on by so many elements.
    fn advance(&mut self, runs: &[Run], mut count: u32) {
        while count > self.left {
            count -= self.left;
            self.run += 1;
            self.left = runs[self.run as usize].count;
        }
        self.left -= count;
    }
}

/// For each part and each value of B, where its elements go: those of smaller values come first, and of equal ones those of
/// the parts before.
fn cursors(counts: &[Counts], runs: &[Run]) -> Vec<Vec<Cursor>> {
    let mut cursors: Vec<_> =
        iter::repeat_with(|| vec![Cursor::default(); BINS]).take(counts.len()).collect();
    let mut next = Cursor { run: 0, left: runs.first().map_or(0, |run| run.count) };
    for bin in 0..BINS {
        for (cursors, counts) in cursors.iter_mut().zip(counts) {
            if counts.b[bin] > 0 {
                cursors[bin] = next;
                next.advance(runs, counts.b[bin]);
            }
        }
    }
    cursors
}

/// A's elements of a part, or those that are in the place of B's.
fn place(
    blocks: &dyn Blocks,
    part: Range<usize>,
    mut cursors: Vec<Cursor>,
    runs: &[Run],
    result: &mut [f32],
) -> Result<()> {
    let first = part.start * blocks.block_len();
    for block in part {
        blocks.read(block, &mut |start, values| {
            let result = &mut result[start - first..];
            for ((result, a), b) in result.iter_mut().zip(values[0]).zip(values[1]) {
                let cursor = &mut cursors[bin_of_b(*b)];
                cursor.advance(runs, 1);
                let run = &runs[cursor.run as usize];
                *result = if run.is_taken { run.value } else { *a };
            }
        })?;
    }
    Ok(())
}
