//! Which pictures go into which batch.

use std::collections::BTreeMap;

use crate::{
    Bucket,
    random::{Purpose, Stream},
};

/// The batches of one epoch, as indices into `buckets`, which holds the bucket of each picture.
///
/// As EveryDream2 does it: the pictures are shuffled, each bucket is cut into batches, and the batches are shuffled as
/// units. What is left of a bucket makes a smaller batch, where EveryDream2 fills it up with repetitions: every picture
/// is in exactly one batch of an epoch.
pub fn batches(buckets: &[Bucket], batch_size: usize, seed: u64, epoch: u64) -> Vec<Vec<usize>> {
    let mut stream = Stream::new(seed, Purpose::Order, epoch, 0);
    let mut order: Vec<usize> = (0..buckets.len()).collect();
    stream.shuffle(&mut order);
    let mut by_bucket = BTreeMap::<Bucket, Vec<usize>>::new();
    for picture in order {
        by_bucket.entry(buckets[picture]).or_default().push(picture);
    }
    let mut batches: Vec<_> =
        by_bucket.values().flat_map(|pictures| pictures.chunks(batch_size)).map(<[_]>::to_vec).collect();
    stream.shuffle(&mut batches);
    batches
}

/// How many batches every epoch has.
pub fn batches_per_epoch(buckets: &[Bucket], batch_size: usize) -> usize {
    let mut counts = BTreeMap::<Bucket, usize>::new();
    for bucket in buckets {
        *counts.entry(*bucket).or_default() += 1;
    }
    counts.values().map(|count| count.div_ceil(batch_size)).sum()
}

/// The epochs after which a checkpoint is saved: every `every`th, and the last.
pub fn saved_epochs(max_epochs: u64, every: Option<u64>) -> impl Iterator<Item = u64> {
    // The plan refuses 0.
    let every = every.filter(|every| *every > 0).unwrap_or(max_epochs);
    (1..=max_epochs).filter(move |epoch| epoch.is_multiple_of(every) || *epoch == max_epochs)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDE: Bucket = Bucket { width: 640, height: 384 };
    const SQUARE: Bucket = Bucket { width: 512, height: 512 };

    fn pictures() -> Vec<Bucket> {
        (0..23).map(|i| if i % 3 == 0 { WIDE } else { SQUARE }).collect()
    }

    #[test]
    fn every_picture_is_in_one_batch_of_its_shape() {
        let buckets = pictures();
        let batches = batches(&buckets, 4, 555, 1);
        let mut seen: Vec<_> = batches.concat();
        seen.sort_unstable();
        assert_eq!(seen, (0..23).collect::<Vec<_>>());
        assert!(batches.iter().all(|batch| batch.iter().all(|&i| buckets[i] == buckets[batch[0]])));
        // 8 wide ones and 15 square ones.
        assert_eq!(batches.len(), 2 + 4);
        assert_eq!(batches_per_epoch(&buckets, 4), 6);
    }

    #[test]
    fn epochs_and_seeds_differ_and_are_repeatable() {
        let buckets = pictures();
        let first = batches(&buckets, 4, 555, 1);
        assert_eq!(batches(&buckets, 4, 555, 1), first);
        assert_ne!(batches(&buckets, 4, 555, 2), first);
        assert_ne!(batches(&buckets, 4, 556, 1), first);
    }

    #[test]
    fn the_last_epoch_is_always_saved() {
        let saved = |max, every| saved_epochs(max, every).collect::<Vec<_>>();
        assert_eq!(saved(100, Some(25)), [25, 50, 75, 100]);
        assert_eq!(saved(5, Some(2)), [2, 4, 5]);
        assert_eq!(saved(5, None), [5]);
    }
}
