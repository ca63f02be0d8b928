//! Near neighbours among 64-bit hashes, and the groups they make.
//!
//! Hashes are cut into parts. Two hashes that differ in at most `d` bits differ in few bits of at least one part
//! (multi-index hashing: Norouzi, Punjani, Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", 2012), so for
//! each part only the hashes in buckets near one's own need be compared.

use std::sync::atomic::{AtomicU32, Ordering};

use rayon::prelude::*;
use vodka_stage::Interrupt;

/// Sets of numbers that are joined, by several threads at once; the smallest number stands for its set.
#[derive(Debug)]
pub(super) struct Sets(Vec<AtomicU32>);

impl Sets {
    pub fn new(len: usize) -> Self {
        let len = u32::try_from(len).expect("fewer pictures than 2^32");
        Self((0..len).map(AtomicU32::new).collect())
    }

    pub fn of(&self, mut number: u32) -> u32 {
        loop {
            let parent = self.parent(number);
            if parent == number {
                return number;
            }
            // Shortens the way for the next one; that another thread has done so too is fine.
            let above = self.parent(parent);
            self.0[number as usize].store(above, Ordering::Relaxed);
            number = parent;
        }
    }

    pub fn join(&self, a: u32, b: u32) {
        loop {
            let (a, b) = (self.of(a), self.of(b));
            if a == b {
                return;
            }
            let (low, high) = (a.min(b), a.max(b));
            let exchange =
                self.0[high as usize].compare_exchange(high, low, Ordering::Relaxed, Ordering::Relaxed);
            if exchange.is_ok() {
                return;
            }
        }
    }

    fn parent(&self, number: u32) -> u32 {
        self.0[number as usize].load(Ordering::Relaxed)
    }
}

/// Joins all hashes that differ in at most `distance` bits. Whether it came to the end.
pub(super) fn join_near(hashes: &[u64], distance: u32, sets: &Sets, interrupt: &Interrupt) -> bool {
    /// So many hashes are looked up between two looks at the interrupt.
    const BLOCK: usize = 1 << 14;
    for part in parts(hashes.len(), distance) {
        let index = Index::new(hashes, part);
        let numbers: Vec<u32> = (0..hashes.len() as u32).collect();
        let done = numbers.par_chunks(BLOCK).try_for_each(|block| {
            if interrupt.is_raised() {
                return None;
            }
            block.iter().for_each(|number| index.join(hashes[*number as usize], *number, distance, sets));
            Some(())
        });
        if done.is_none() {
            return false;
        }
    }
    true
}

/// A part of the hashes: which bits, and in how many of them near hashes may differ there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    shift: u32,
    bits: u32,
    radius: u32,
}

/// The parts that make the least work for so many hashes.
fn parts(hashes: usize, distance: u32) -> Vec<Part> {
    /// What a look into a bucket costs, in comparisons.
    const LOOK: f64 = 8.0;
    let n = hashes as f64;
    let work = |parts: &[Part]| {
        let of = |part: &Part| {
            let buckets = f64::from(part.bits).exp2();
            buckets + n * neighbours(part.bits, part.radius) * (LOOK + n / buckets)
        };
        parts.iter().map(of).sum::<f64>()
    };
    // One part without bits compares all with all. Buckets of more than 24 bits take too much room.
    let all = vec![Part { shift: 0, bits: 0, radius: 0 }];
    let cut = (3..=16).map(|count| cut(count, distance));
    let better = |a: Vec<Part>, b: Vec<Part>| if work(&b) < work(&a) { b } else { a };
    cut.fold(all, better)
}

/// Cuts the 64 bits into `count` parts. If each of the first `d % count + 1` parts differed in more than `d / count` bits,
/// and each other in at least as many, that would be more than `d` in all: so one of them differs in less.
fn cut(count: u32, distance: u32) -> Vec<Part> {
    let (radius, more) = (distance / count, distance % count);
    let ends: Vec<_> = (0..=count).map(|i| 64 * i / count).collect();
    let part = |i: u32| {
        let (shift, end) = (ends[i as usize], ends[i as usize + 1]);
        let radius = if i <= more { Some(radius) } else { radius.checked_sub(1) };
        radius.map(|radius| Part { shift, bits: end - shift, radius: radius.min(end - shift) })
    };
    (0..count).filter_map(part).collect()
}

/// How many numbers of `bits` bits differ from one in at most `radius` bits.
fn neighbours(bits: u32, radius: u32) -> f64 {
    let mut choices = 1.0;
    let mut all = 1.0;
    for k in 1..=radius {
        choices *= f64::from(bits - k + 1) / f64::from(k);
        all += choices;
    }
    all
}

/// The hashes in order of one of their parts.
struct Index {
    part: Part,
    /// Where the bucket of each value starts, and the end.
    starts: Vec<u32>,
    /// Hashes with their numbers, bucket by bucket.
    entries: Vec<(u64, u32)>,
    /// All numbers that differ from 0 in few enough bits.
    masks: Vec<u32>,
}

impl Index {
    fn new(hashes: &[u64], part: Part) -> Self {
        let mut starts = vec![0_u32; (1 << part.bits) + 1];
        hashes.iter().for_each(|hash| starts[part.of(*hash) + 1] += 1);
        for value in 1..starts.len() {
            starts[value] += starts[value - 1];
        }
        let mut next = starts.clone();
        let mut entries = vec![(0, 0); hashes.len()];
        for (hash, number) in hashes.iter().zip(0..) {
            let place = &mut next[part.of(*hash)];
            entries[*place as usize] = (*hash, number);
            *place += 1;
        }
        Self { part, starts, entries, masks: masks(part.bits, part.radius) }
    }

    fn join(&self, hash: u64, number: u32, distance: u32, sets: &Sets) {
        let value = self.part.of(hash);
        for mask in &self.masks {
            let near = value ^ *mask as usize;
            let bucket = self.starts[near] as usize..self.starts[near + 1] as usize;
            for (other, other_number) in &self.entries[bucket] {
                if (hash ^ other).count_ones() <= distance && *other_number > number {
                    sets.join(number, *other_number);
                }
            }
        }
    }
}

impl Part {
    fn of(self, hash: u64) -> usize {
        (hash >> self.shift) as usize & ((1 << self.bits) - 1)
    }
}

/// All numbers of `bits` bits of which at most `radius` are set.
fn masks(bits: u32, radius: u32) -> Vec<u32> {
    fn grow(mask: u32, from: u32, bits: u32, left: u32, all: &mut Vec<u32>) {
        all.push(mask);
        if left > 0 {
            (from..bits).for_each(|bit| grow(mask | 1 << bit, bit + 1, bits, left - 1, all));
        }
    }
    let mut all = Vec::new();
    grow(0, 0, bits, radius, &mut all);
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn groups(hashes: &[u64], join: impl FnOnce(&Sets)) -> Vec<u32> {
        let sets = Sets::new(hashes.len());
        join(&sets);
        (0..hashes.len() as u32).map(|number| sets.of(number)).collect()
    }

    fn by_brute_force(hashes: &[u64], distance: u32) -> Vec<u32> {
        groups(hashes, |sets| {
            for a in 0..hashes.len() {
                for b in 0..a {
                    if (hashes[a] ^ hashes[b]).count_ones() <= distance {
                        sets.join(a as u32, b as u32);
                    }
                }
            }
        })
    }

    /// As many as make every way of cutting worth its while is too many for a test: each is tried by itself.
    fn by_parts(hashes: &[u64], distance: u32, parts: Vec<Part>) -> Vec<u32> {
        groups(hashes, |sets| {
            for part in parts {
                let index = Index::new(hashes, part);
                hashes.iter().zip(0..).for_each(|(hash, number)| index.join(*hash, number, distance, sets));
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_index_finds_what_brute_force_finds(
            seeds in prop::collection::vec(any::<u64>(), 1..12),
            flips in prop::collection::vec((any::<prop::sample::Index>(), prop::collection::vec(0_u32..64, 0..9)), 0..60),
            distance in 0_u32..12,
            count in 4_u32..=16,
        ) {
            let mut hashes = seeds.clone();
            for (seed, bits) in flips {
                hashes.push(bits.iter().fold(seeds[seed.index(seeds.len())], |hash, bit| hash ^ 1 << bit));
            }
            let expected = by_brute_force(&hashes, distance);
            prop_assert_eq!(&by_parts(&hashes, distance, cut(count, distance)), &expected);
            let found = groups(&hashes, |sets| assert!(join_near(&hashes, distance, sets, &Interrupt::new())));
            prop_assert_eq!(&found, &expected);
        }
    }

    #[test]
    fn large_collections_are_cut_and_small_ones_are_not() {
        assert_eq!(parts(10, 4), [Part { shift: 0, bits: 0, radius: 0 }]);
        for distance in 0..=8 {
            let parts = parts(1_000_000, distance);
            assert!(parts.len() > 1 || distance == 0, "{distance}: {parts:?}");
            assert!(parts.iter().all(|part| part.bits > 0 && part.bits <= 24), "{distance}: {parts:?}");
        }
        assert_eq!(cut(4, 6).iter().map(|part| part.radius).collect::<Vec<_>>(), [1, 1, 1, 0]);
        assert_eq!(cut(16, 4).len(), 5, "five parts of sixteen are enough for four differences");
        assert_eq!(masks(3, 2), [0b000, 0b001, 0b011, 0b101, 0b010, 0b110, 0b100]);
        assert_eq!(neighbours(16, 2), 137.0);
    }

    #[test]
    fn an_interrupt_ends_the_search() {
        let interrupt = Interrupt::new();
        interrupt.raise();
        let hashes = [1, 2, 3];
        assert!(!join_near(&hashes, 4, &Sets::new(3), &interrupt));
    }
}
