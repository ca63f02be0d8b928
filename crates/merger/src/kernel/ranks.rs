//! Methods that need an order or columns: top-k, and the mixes by cosine.

mod counting;

use rayon::prelude::*;
use vodka_stage::for_avx2;

use self::counting::BINS;
use super::{Blocks, Context, State, fold};
use crate::{Method, Result};

/// The whole result of top-k: A's values in the order of B's, where their ranks by size are in the region.
pub(super) fn top_k(blocks: &dyn Blocks, alpha: f64, beta: f64) -> Result<State> {
    let n: usize = blocks.shape().iter().product();
    assert!(u32::try_from(n).is_ok(), "a tensor of {n} elements");
    let region = Region::new(alpha, beta, n);
    // Counting goes over all values that there may be, however few there are.
    let counted = if n < BINS { None } else { counting::by_counting(blocks, n, &region)? };
    Ok(State::Whole(match counted {
        Some(result) => result,
        None => by_sorting(blocks, n, &region)?,
    }))
}

/// Of any values. Beside the result it holds the places of B's elements and A's values in their order: one after the other,
/// so that no more than twelve bytes an element are in memory at once.
fn by_sorting(blocks: &dyn Blocks, n: usize, region: &Region) -> Result<Vec<f32>> {
    let order = Order::of(blocks, n)?;
    let mut result = Vec::with_capacity(n);
    fold(blocks, |_, values| values[0].to_vec(), |a| result.extend_from_slice(&a))?;
    let mut sorted = result.clone();
    sorted.par_sort_unstable_by(f32::total_cmp);
    let sizes = region.sizes(|rank| size_of_rank(&sorted, rank));
    for (rank, a) in sorted.into_iter().enumerate() {
        if sizes.has(a) {
            result[order.place(rank)] = a;
        }
    }
    Ok(result)
}

/// The size that so many of the sizes of sorted values come before.
fn size_of_rank(sorted: &[f32], rank: usize) -> f32 {
    let (negative, positive) = sorted.split_at(sorted.partition_point(|x| x.is_sign_negative()));
    // Of `rank + 1` smallest sizes so many are of positive values: the first count at which the next of them is no smaller
    // than the last of the others.
    let others = |count: usize| rank + 1 - count;
    let size =
        |count: usize| count.checked_sub(1).map_or(0.0, |index| negative[negative.len() - 1 - index].abs());
    let (mut low, mut high) = ((rank + 1).saturating_sub(negative.len()), positive.len().min(rank + 1));
    while low < high {
        let middle = usize::midpoint(low, high);
        match positive[middle] < size(others(middle)) {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    let of_positive = low.checked_sub(1).map_or(0.0, |index| positive[index]);
    of_positive.max(size(others(low)))
}

/// The places of a tensor's elements in the order of their values; of equals the first one comes first.
struct Order(Vec<u64>);

impl Order {
    /// Of B.
    fn of(blocks: &dyn Blocks, n: usize) -> Result<Self> {
        let mut keys: Vec<u64> = Vec::with_capacity(n);
        let key = |(place, b): (usize, &f32)| u64::from(ordered(*b)) << 32 | place as u64;
        let of_block = |start, values: &[&[f32]]| (start..).zip(values[1]).map(key).collect::<Vec<_>>();
        fold(blocks, of_block, |of_block| keys.extend_from_slice(&of_block))?;
        keys.par_sort_unstable();
        // Only the places are left, two in the room of one key.
        for i in 0..n.div_ceil(2) {
            let place = |index: usize| keys.get(index).map_or(0, |key| key & u64::from(u32::MAX));
            keys[i] = place(2 * i) | place(2 * i + 1) << 32;
        }
        keys.truncate(n.div_ceil(2));
        keys.shrink_to_fit();
        Ok(Self(keys))
    }

    fn place(&self, rank: usize) -> usize {
        (self.0[rank / 2] >> (32 * (rank % 2))) as u32 as usize
    }
}

/// The bits of a float in the order of the floats; zeros of both signs are equal.
fn ordered(x: f32) -> u32 {
    let bits = (x + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// The ranks by size from `first` up to `last`, or those that are not.
struct Region {
    first: usize,
    last: usize,
    inverted: bool,
}

impl Region {
    /// From `offset` on, as many as `width` says, both shares of `n`; what goes over the end goes on at the beginning.
    fn new(width: f64, offset: f64, n: usize) -> Self {
        let (width, offset) = (width.min(1.0), offset % 1.0);
        let at = |share: f64| (share * n as f64).round_ties_even() as usize;
        match width + offset <= 1.0 {
            true => Self { first: at(offset), last: at(width + offset), inverted: false },
            false => Self { first: at(width + offset - 1.0), last: at(offset), inverted: true },
        }
    }

    /// The sizes of its ranks, where `size` tells that of a rank (0 is the smallest).
    fn sizes(&self, size: impl Fn(usize) -> f32) -> Sizes {
        let at = |rank: usize| rank.checked_sub(1).map_or(-1.0, &size);
        Sizes { low: at(self.first), high: at(self.last), inverted: self.inverted }
    }
}

/// Sizes above `low` and up to `high`, or those that are not.
struct Sizes {
    low: f32,
    high: f32,
    inverted: bool,
}

impl Sizes {
    fn has(&self, a: f32) -> bool {
        (self.low < a.abs() && a.abs() <= self.high) != self.inverted
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
    let mut sums = Sums::new(columns);
    fold(
        blocks,
        |start, values| of_columns(start % columns, columns, values[0], values[1]),
        |parts| parts.iter().for_each(|(first, part)| sums.add(*first, part)),
    )?;
    Ok(of_sums(method, &sums.rows()))
}

/// For each of some columns that follow each other the sums of squares of A and of B and of their product.
struct Sums([Vec<f64>; 3]);

impl Sums {
    fn new(columns: usize) -> Self {
        Self(std::array::from_fn(|_| vec![0.0; columns]))
    }

    /// Adds those of a part of the columns, from `first` on.
    fn add(&mut self, first: usize, part: &Self) {
        for (sums, part) in self.0.iter_mut().zip(&part.0) {
            sums[first..].iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
    }

    fn rows(&self) -> Vec<[f64; 3]> {
        let [a, b, ab] = &self.0;
        a.iter().zip(b).zip(ab).map(|((a, b), ab)| [*a, *b, *ab]).collect()
    }
}

/// The sums of a block that starts in the column `first`: of the columns from there to the last one, and where it goes on, from
/// the first one on.
fn of_columns(first: usize, columns: usize, a: &[f32], b: &[f32]) -> [(usize, Sums); 2] {
    let n = a.len().min(columns);
    let mut sums = Sums::new(n);
    for (a, b) in a.chunks(n.max(1)).zip(b.chunks(n.max(1))) {
        add_products(a, b, &mut sums.0);
    }
    let rest = Sums(sums.0.each_mut().map(|sums| sums.split_off((columns - first).min(n))));
    [(first, sums), (0, rest)]
}

for_avx2! {
    fn add_products(a: &[f32], b: &[f32], sums: &mut [Vec<f64>; 3]) {
        let n = a.len();
        let [of_a, of_b, of_ab] = sums.each_mut().map(|sums| &mut sums[..n]);
        let b = &b[..n];
        for i in 0..n {
            let (a, b) = (f64::from(a[i]), f64::from(b[i]));
            of_a[i] += a * a;
            of_b[i] += b * b;
            of_ab[i] += a * b;
        }
    }
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
    if let [share] = shares.as_slice() {
        return a.iter_mut().zip(b).for_each(|(a, b)| *a = b * (1.0 - share) + *a * share);
    }
    let column = context.start % shares.len();
    let head = (shares.len() - column).min(a.len());
    let ((head_a, a), (head_b, b)) = (a.split_at_mut(head), b.split_at(head));
    mix(head_a, head_b, &shares[column..]);
    for (a, b) in a.chunks_mut(shares.len()).zip(b.chunks(shares.len())) {
        mix(a, b, shares);
    }
}

for_avx2! {
    fn mix(a: &mut [f32], b: &[f32], shares: &[f32]) {
        for ((a, b), share) in a.iter_mut().zip(b).zip(shares) {
            *a = b * (1.0 - share) + *a * share;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::kernel::tests::{Memory, bits};

    /// Values of fp16 or bf16, some of them often.
    fn few_bits() -> impl Strategy<Value = f32> {
        let half = any::<u16>().prop_map(|bits| half::f16::from_bits(bits).to_f32());
        let brain = any::<u16>().prop_map(|bits| half::bf16::from_bits(bits).to_f32());
        prop_oneof![Just(0.0_f32), Just(-0.0), Just(1.5), Just(-1.5), half, brain]
            .prop_filter("finite", |x| x.is_finite())
    }

    proptest! {
        #[test]
        fn counting_makes_what_sorting_makes(
            values in vec((few_bits(), few_bits()), 1..300),
            block in 1..100_usize,
            width in 0.0..1.0_f64,
            offset in 0.0..1.0_f64,
        ) {
            let n = values.len();
            let (a, b): (Vec<_>, Vec<_>) = values.into_iter().unzip();
            let memory = Memory { shape: vec![n], values: vec![a, b], block };
            let region = Region::new(width, offset, n);
            let counted = counting::by_counting(&memory, n, &region).unwrap().expect("few bits");
            let sorted = by_sorting(&memory, n, &region).unwrap();
            prop_assert_eq!(bits(&counted), bits(&sorted));
        }

        #[test]
        fn sizes_of_ranks_are_those_of_sorted_sizes(
            values in vec(prop_oneof![Just(0.0_f32), Just(-0.0_f32), Just(-2.5), Just(2.5), -9.0_f32..9.0], 1..40),
        ) {
            let (mut sorted, mut sizes) = (values.clone(), values);
            sorted.sort_unstable_by(f32::total_cmp);
            sizes.iter_mut().for_each(|x| *x = x.abs());
            sizes.sort_unstable_by(f32::total_cmp);
            let found: Vec<f32> = (0..sizes.len()).map(|rank| size_of_rank(&sorted, rank)).collect();
            prop_assert_eq!(found, sizes);
        }
    }

    #[test]
    fn values_of_more_bits_are_not_counted() {
        let memory = Memory { shape: vec![2], values: vec![vec![0.5, 0.1], vec![0.5, 0.25]], block: 1 };
        assert_eq!(counting::by_counting(&memory, 2, &Region::new(0.5, 0.0, 2)).unwrap(), None);
    }
}
