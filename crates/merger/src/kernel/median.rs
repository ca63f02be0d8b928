//! The median over the neighbours of every element, by sorting networks: a comparison of two rows of numbers at a time, so
//! that it is vector code, and what neighbouring elements both need is sorted once.

/// Elements that are worked out side by side.
const LANES: usize = 16;
type Lanes = [i32; LANES];

/// Comparisons that sort: each puts the smaller of two places' values into the first of them.
struct Network {
    comparisons: Vec<[u16; 2]>,
    /// The places in the order of their values.
    order: Vec<u16>,
}

impl Network {
    /// Merges sorted lists of these lengths, which lie one behind the other.
    fn merging(lengths: &[usize]) -> Self {
        let mut end = 0;
        let list = |length: &usize| {
            end += *length as u16;
            (end - *length as u16..end).collect()
        };
        let lists: Vec<Vec<u16>> = lengths.iter().map(list).collect();
        let mut comparisons = Vec::new();
        let order = merged(&lists, &mut comparisons);
        Self { comparisons, order }
    }

    /// The values in their order, once they have been compared.
    #[inline(always)]
    fn take(&self, compared: &[Lanes], out: &mut [Lanes]) {
        out.iter_mut().zip(&self.order).for_each(|(out, place)| *out = compared[usize::from(*place)]);
    }

    /// Without the comparisons that none of these ranks depends on.
    fn for_ranks(mut self, ranks: std::ops::RangeInclusive<usize>) -> Self {
        let mut used = vec![false; self.order.len()];
        self.order[ranks].iter().for_each(|place| used[usize::from(*place)] = true);
        let mut kept: Vec<[u16; 2]> = Vec::new();
        for pair in self.comparisons.iter().rev() {
            let [a, b] = pair.map(usize::from);
            if used[a] || used[b] {
                (used[a], used[b]) = (true, true);
                kept.push(*pair);
            }
        }
        kept.reverse();
        self.comparisons = kept;
        self
    }
}

fn merged(lists: &[Vec<u16>], comparisons: &mut Vec<[u16; 2]>) -> Vec<u16> {
    match lists {
        [] => Vec::new(),
        [list] => list.clone(),
        _ => {
            let (left, right) = lists.split_at(lists.len() / 2);
            let (left, right) = (merged(left, comparisons), merged(right, comparisons));
            merge(&left, &right, comparisons)
        }
    }
}

/// Batcher's odd-even merge of sorted lists of any length (Knuth, The Art of Computer Programming 3, 5.3.4).
fn merge(x: &[u16], y: &[u16], comparisons: &mut Vec<[u16; 2]>) -> Vec<u16> {
    match (x, y) {
        ([], list) | (list, []) => return list.to_vec(),
        ([x], [y]) => {
            comparisons.push([*x, *y]);
            return vec![*x, *y];
        }
        _ => {}
    }
    let every_other = |list: &[u16], first: usize| list.iter().skip(first).step_by(2).copied().collect();
    let part = |first: usize| -> [Vec<u16>; 2] { [every_other(x, first), every_other(y, first)] };
    let [even, odd] = [part(0), part(1)].map(|[x, y]| merge(&x, &y, comparisons));
    let mut order = vec![even[0]];
    for i in 0..odd.len().max(even.len() - 1) {
        match (even.get(i + 1), odd.get(i)) {
            (Some(even), Some(odd)) => {
                comparisons.push([*even, *odd]);
                order.extend([*even, *odd]);
            }
            (even, odd) => order.extend(even.or(odd)),
        }
    }
    order
}

/// To be inlined into vector code, as all below that [`Median::of_row`] calls.
#[inline(always)]
fn compare(comparisons: &[[u16; 2]], values: &mut [Lanes]) {
    for [i, j] in comparisons {
        let (a, b) = (values[usize::from(*i)], values[usize::from(*j)]);
        let (mut low, mut high) = (a, b);
        for lane in 0..LANES {
            low[lane] = a[lane].min(b[lane]);
            high[lane] = a[lane].max(b[lane]);
        }
        values[usize::from(*i)] = low;
        values[usize::from(*j)] = high;
    }
}

/// Stands for no value in a pair: less than all others.
const NONE: u16 = u16::MAX;

/// The least of the larger ones of pairs.
#[inline(always)]
fn least_of_larger(pairs: &[[u16; 2]], x: &[Lanes], y: &[Lanes]) -> Lanes {
    let mut least = [i32::MAX; LANES];
    for [i, j] in pairs {
        let x = x[usize::from(*i)];
        let y = if *j == NONE { x } else { y[usize::from(*j)] };
        for lane in 0..LANES {
            least[lane] = least[lane].min(x[lane].max(y[lane]));
        }
    }
    least
}

/// Which values of two sorted lists, the first one twice as long, have that of the rank `rank` (from 1) of all as the least of
/// their larger ones: if `i` of the smallest are in the first list, it is the larger of its i-th and the other's (rank - i)-th.
fn pairs(length: usize, rank: usize, first: impl Fn(usize) -> u16) -> Vec<[u16; 2]> {
    let pair = |i: usize| [first(i - 1), if i == rank { NONE } else { (rank - i - 1) as u16 }];
    (rank - length..=rank.min(2 * length)).map(pair).collect()
}

/// Three lists that meet at a place of an axis: that of the place and those of its neighbours, an edge being its own.
enum Meeting {
    /// The first one counts twice.
    Edge([usize; 2]),
    Inner([usize; 3]),
}

impl Meeting {
    fn at(place: usize, extent: usize) -> Self {
        match place {
            0 => Self::Edge([0, 1]),
            _ if place + 1 == extent => Self::Edge([place, place - 1]),
            _ => Self::Inner([place - 1, place, place + 1]),
        }
    }
}

/// How lists along an axis of the kernel become lists three times as long.
struct Join {
    edge: Network,
    inner: Network,
    length: usize,
}

impl Join {
    fn new(length: usize) -> Self {
        let edge = Network::merging(&[2 * length, length]);
        let inner = Network::merging(&[length; 3]);
        Self { edge, inner, length }
    }

    /// The sorted list of a meeting of `lists`.
    #[inline(always)]
    fn join<'a>(
        &self,
        meeting: &Meeting,
        lists: impl Fn(usize) -> &'a [Lanes],
        work: &mut [Lanes],
        out: &mut [Lanes],
    ) {
        let (length, work) = (self.length, &mut work[..out.len()]);
        let network = match meeting {
            Meeting::Edge([twice, once]) => {
                for (pair, value) in work.chunks_exact_mut(2).zip(lists(*twice)) {
                    (pair[0], pair[1]) = (*value, *value);
                }
                copy(lists(*once), &mut work[2 * length..]);
                &self.edge
            }
            Meeting::Inner(all) => {
                work.chunks_exact_mut(length).zip(all).for_each(|(work, place)| copy(lists(*place), work));
                &self.inner
            }
        };
        compare(&network.comparisons, work);
        network.take(work, out);
    }
}

/// Without a call for a few lines of numbers.
#[inline(always)]
fn copy(from: &[Lanes], to: &mut [Lanes]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
}

/// How the median is picked from the lists along the last axis.
struct Pick {
    edge: Vec<[u16; 2]>,
    inner: Network,
    inner_pairs: Vec<[u16; 2]>,
}

impl Pick {
    fn new(length: usize) -> Self {
        let rank = 3 * length / 2 + 1;
        // Two of three lists are merged, as far as the third leaves a choice.
        let inner = Network::merging(&[length; 2]).for_ranks(rank - length - 1..=rank.min(2 * length) - 1);
        let edge = pairs(length, rank, |i| (i / 2) as u16);
        let inner_pairs = pairs(length, rank, |i| inner.order[i]);
        Self { edge, inner, inner_pairs }
    }

    #[inline(always)]
    fn pick<'a>(&self, meeting: &Meeting, lists: impl Fn(usize) -> &'a [Lanes], work: &mut [Lanes]) -> Lanes {
        match meeting {
            Meeting::Edge([twice, once]) => least_of_larger(&self.edge, lists(*twice), lists(*once)),
            Meeting::Inner([a, b, c]) => {
                let (a, b) = (lists(*a), lists(*b));
                let work = &mut work[..a.len() + b.len()];
                copy(a, work);
                copy(b, &mut work[a.len()..]);
                compare(&self.inner.comparisons, work);
                least_of_larger(&self.inner_pairs, work, lists(*c))
            }
        }
    }
}

/// Finds medians over the neighbours at a distance of at most 1 along each axis; an edge is its own neighbour, as
/// scipy's `reflect` has it.
pub(super) struct Median {
    kernel: Vec<usize>,
    /// Sorts the neighbours along rows and lanes; of these there are three or nine.
    first: Network,
    has_rows: bool,
    /// For the axes of the kernel but the first, the last one first.
    joins: Vec<Join>,
    pick: Option<Pick>,
}

impl Median {
    /// For tensors of the axes rows (if there are some), lanes, and those of a kernel.
    pub(super) fn new(has_rows: bool, kernel: &[usize]) -> Self {
        let mut length = if has_rows { 9 } else { 3 };
        let mut first = Network::merging(&vec![1; length]);
        let mut joins = Vec::new();
        for _ in kernel.iter().skip(1) {
            joins.push(Join::new(length));
            length *= 3;
        }
        let pick = (!kernel.is_empty()).then(|| Pick::new(length));
        if pick.is_none() {
            first = first.for_ranks(length / 2..=length / 2);
        }
        Self { kernel: kernel.to_vec(), first, has_rows, joins, pick }
    }

    /// A number as a key that integers order as `total_cmp` does; the key of a key is the number.
    pub(super) fn key(value: f32) -> i32 {
        let bits = value.to_bits().cast_signed();
        bits ^ ((bits >> 31).cast_unsigned() >> 1).cast_signed()
    }

    fn value(key: i32) -> f32 {
        f32::from_bits((key ^ ((key >> 31).cast_unsigned() >> 1).cast_signed()).cast_unsigned())
    }

    /// Keys of a line of so many lanes, with one before, one behind, and what vectors need.
    pub(super) fn stride(lanes: usize) -> usize {
        lanes.next_multiple_of(LANES) + 2
    }

    /// The medians of a row: (planes, lanes), from the keys of the row and its two neighbours, each (planes, stride).
    pub(super) fn of_row(&self, rows: &[&[i32]; 3], stride: usize, lanes: usize, out: &mut [f64]) {
        of_row(self, rows, stride, lanes, out);
    }

    /// Sorts the neighbours along rows and lanes, but does not put them in their order.
    #[inline(always)]
    fn sort<'a>(&self, rows: &[&[i32]; 3], start: usize, work: &'a mut [Lanes]) -> &'a [Lanes] {
        let rows = if self.has_rows { &rows[..] } else { &rows[1..2] };
        let work = &mut work[..3 * rows.len()];
        for (work, row) in work.chunks_exact_mut(3).zip(rows) {
            for (shift, work) in work.iter_mut().enumerate() {
                *work = *row[start + shift..].first_chunk().expect("a line has room for whole vectors");
            }
        }
        compare(&self.first.comparisons, work);
        work
    }
}

vodka_stage::for_avx2! {
    fn of_row(median: &Median, rows: &[&[i32]; 3], stride: usize, lanes: usize, out: &mut [f64]) {
        let Median { kernel, first, joins, .. } = median;
        let planes: usize = kernel.iter().product();
        let length = joins.iter().fold(first.order.len(), |length, _| 3 * length);
        let room = || vec![[0; LANES]; planes * length];
        let (mut lists, mut next, mut work) = (room(), room(), vec![[0; LANES]; 3 * length]);
        for start in (0..lanes).step_by(LANES) {
            let n = LANES.min(lanes - start);
            for plane in 0..planes {
                let sorted = median.sort(rows, plane * stride + start, &mut work);
                if median.pick.is_none() {
                    let middle = first.order[sorted.len() / 2];
                    put(&sorted[usize::from(middle)], &mut out[plane * lanes + start..][..n]);
                } else {
                    first.take(sorted, &mut lists[plane * first.order.len()..][..first.order.len()]);
                }
            }
            let Some(pick) = &median.pick else { continue };
            let (mut stride, mut length) = (1, first.order.len());
            for (join, extent) in joins.iter().zip(kernel.iter().rev()) {
                for (plane, out) in next.chunks_exact_mut(3 * length).take(planes).enumerate() {
                    let place = plane / stride % extent;
                    let first = plane - place * stride;
                    let list = |i: usize| &lists[(first + i * stride) * length..][..length];
                    join.join(&Meeting::at(place, *extent), list, &mut work, out);
                }
                std::mem::swap(&mut lists, &mut next);
                (stride, length) = (stride * extent, 3 * length);
            }
            for plane in 0..planes {
                let (place, first) = (plane / stride, plane % stride);
                let list = |i: usize| &lists[(first + i * stride) * length..][..length];
                let found = pick.pick(&Meeting::at(place, kernel[0]), list, &mut work);
                put(&found, &mut out[plane * lanes + start..][..n]);
            }
        }
    }
}

#[inline(always)]
fn put(keys: &Lanes, out: &mut [f64]) {
    out.iter_mut().zip(keys).for_each(|(out, key)| *out = f64::from(Median::value(*key)));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A network that sorts every list of zeros and ones sorts everything (Knuth 5.3.4, Z).
    #[test]
    fn networks_sort() {
        for lengths in
            [vec![1; 9], vec![1; 3], vec![18, 9], vec![9; 3], vec![27; 2], vec![2, 5], vec![4, 0, 3]]
        {
            let network = Network::merging(&lengths);
            // Lists that are sorted are as many zeros as one likes, and then ones.
            let mut counts = vec![vec![]];
            for length in &lengths {
                counts = counts
                    .iter()
                    .flat_map(|counts| (0..=*length).map(move |zeros| [counts.clone(), vec![zeros]].concat()))
                    .collect();
            }
            for zeros in counts {
                let of_list = |(length, zeros): (&usize, &usize)| -> Vec<Lanes> {
                    (0..*length).map(|i| [i32::from(i >= *zeros); LANES]).collect()
                };
                let mut values: Vec<Lanes> = lengths.iter().zip(&zeros).flat_map(of_list).collect();
                compare(&network.comparisons, &mut values);
                let found: Vec<i32> =
                    network.order.iter().map(|place| values[usize::from(*place)][3]).collect();
                assert!(found.is_sorted(), "{lengths:?} {zeros:?}: {found:?}");
            }
        }
    }

    #[test]
    fn keys_are_in_the_order_of_the_numbers() {
        let numbers = [f32::MIN, -1.0, -f32::MIN_POSITIVE, -0.0, 0.0, 1e-40, 1.0, f32::MAX];
        assert!(numbers.map(Median::key).is_sorted());
        assert!(numbers.iter().all(|x| Median::value(Median::key(*x)).to_bits() == x.to_bits()));
    }
}
