//! Which pictures go into which batch.

use std::collections::BTreeMap;

use crate::{
    Bucket, Runts,
    random::{Purpose, Stream},
};

/// What batches are made from: a picture that can be trained on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entry {
    /// The size it has in a batch.
    pub bucket: Bucket,
    /// How often it comes in an epoch; of a fraction the epoch's draw decides.
    pub multiply: f64,
    /// Pictures with the same number here share batches with no others.
    pub batch_id: Option<usize>,
    /// Its chance to stay, to the others', where epochs grow smaller.
    pub rating: f64,
}

/// A batch of an epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// Indices of entries.
    pub pictures: Vec<usize>,
    /// How often each of them came before in the epoch: each time it has other random numbers.
    pub copies: Vec<u64>,
    /// Factor of the loss of each.
    pub loss_scale: f64,
    /// How many pictures there were for it, where they were too few for a batch, else 0: with those that are repeated there
    /// are more in it.
    pub runt: usize,
}

/// How epochs are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EpochSettings {
    /// Pictures in a batch.
    pub batch_size: usize,
    /// Batches to an optimizer step.
    pub grad_accum: usize,
    /// Random seed.
    pub seed: u64,
    /// What becomes of pictures that do not fill a batch.
    pub runts: Runts,
    /// How many epochs there are.
    pub max_epochs: u64,
    /// Which share of the pictures is left out in the end, 0 to 1.
    pub left_out: f64,
    /// Whether an epoch that leaves some out takes each of the others once, whatever its `multiply`.
    pub subsets_once: bool,
}

/// The batches of one epoch, counted from 1.
///
/// As EveryDream2 makes them: the pictures are drawn and shuffled, each bucket is cut into batches, what is left of a
/// named batch joins the unnamed ones, and the batches are shuffled as units; those of one name stay together where
/// gradients are accumulated.
pub fn batches(entries: &[Entry], settings: &EpochSettings, epoch: u64) -> Vec<Planned> {
    let mut stream = Stream::new(settings.seed, Purpose::Order, epoch, 0);
    let mut order = drawn(entries, settings, epoch);
    stream.shuffle(&mut order);
    let mut buckets = BTreeMap::<(Option<usize>, Bucket), Vec<usize>>::new();
    for picture in order {
        let Entry { batch_id, bucket, .. } = entries[picture];
        buckets.entry((batch_id, bucket)).or_default().push(picture);
    }
    join_remainders(&mut buckets, settings.batch_size);
    let mut named = BTreeMap::<Option<usize>, Vec<Planned>>::new();
    for ((id, _), pictures) in buckets {
        let chunks = pictures.chunks(settings.batch_size);
        let planned = chunks.map(|chunk| batch(chunk, settings, &mut stream)).collect::<Vec<_>>();
        named.entry(id).or_default().extend(planned);
    }
    let mut batches = in_groups(named, settings.grad_accum, &mut stream);
    let mut came = vec![0; entries.len()];
    for Planned { pictures, copies, .. } in &mut batches {
        let mut next = |&i: &usize| {
            came[i] += 1;
            came[i] - 1
        };
        *copies = pictures.iter().map(&mut next).collect();
    }
    batches
}

/// How many batches each epoch has, from the first.
pub fn batches_by_epoch(entries: &[Entry], settings: &EpochSettings) -> Vec<usize> {
    let whole = entries.iter().all(|entry| entry.multiply.fract() == 0.0);
    let epochs = if whole && settings.left_out == 0.0 { 1 } else { settings.max_epochs };
    let mut lengths: Vec<_> = (1..=epochs).map(|epoch| batches(entries, settings, epoch).len()).collect();
    lengths.resize(settings.max_epochs as usize, lengths[0]);
    lengths
}

/// The pictures of an epoch, as often as they come.
fn drawn(entries: &[Entry], settings: &EpochSettings, epoch: u64) -> Vec<usize> {
    let stream = |purpose, i: usize| Stream::new(settings.seed, purpose, epoch, i as u64);
    let mut all: Vec<_> = (0..entries.len()).collect();
    if settings.left_out > 0.0 {
        let share = 1.0 - settings.left_out * epoch.saturating_sub(1) as f64 / settings.max_epochs as f64;
        let count = (entries.len() as f64 * share - 1e-9).ceil() as usize;
        all = draw(all, count, |i| (entries[i].rating, stream(Purpose::Rating, i)));
        if settings.subsets_once && share < 1.0 {
            return all;
        }
    }
    let total: f64 = all.iter().map(|&i| entries[i].multiply).sum();
    let mut order: Vec<_> =
        all.iter().flat_map(|&i| std::iter::repeat_n(i, entries[i].multiply.floor() as usize)).collect();
    // Sums of decimal fractions may end just below a whole number.
    let missing = ((total + 1e-6).floor() as usize).saturating_sub(order.len());
    let fraction = |i: usize| entries[i].multiply.fract();
    let fractions: Vec<_> = all.into_iter().filter(|&i| fraction(i) > 0.0).collect();
    order.extend(draw(fractions, missing, |i| (fraction(i), stream(Purpose::Multiply, i))));
    order
}

/// So many of the pictures, each at most once, with chances in proportion to their weights (Efraimidis and Spirakis 2006).
fn draw(pictures: Vec<usize>, count: usize, weight: impl Fn(usize) -> (f64, Stream)) -> Vec<usize> {
    let key = |i: usize| {
        let (weight, mut stream) = weight(i);
        // The logarithm of uniform to the power of 1 / weight.
        (1.0 - stream.uniform()).ln() / weight.max(f64::MIN_POSITIVE)
    };
    let mut keyed: Vec<_> = pictures.into_iter().map(|i| (key(i), i)).collect();
    keyed.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut drawn: Vec<_> = keyed.into_iter().take(count).map(|(_, i)| i).collect();
    drawn.sort_unstable();
    drawn
}

/// Moves what does not fill a named batch to the unnamed ones of its bucket.
fn join_remainders(buckets: &mut BTreeMap<(Option<usize>, Bucket), Vec<usize>>, batch_size: usize) {
    let mut left = Vec::new();
    for ((id, bucket), pictures) in buckets.iter_mut() {
        if id.is_some() {
            let whole = pictures.len() / batch_size * batch_size;
            left.push((*bucket, pictures.split_off(whole)));
        }
    }
    for (bucket, pictures) in left {
        if !pictures.is_empty() {
            buckets.entry((None, bucket)).or_default().extend(pictures);
        }
    }
}

fn batch(chunk: &[usize], settings: &EpochSettings, stream: &mut Stream) -> Planned {
    let mut pictures = chunk.to_vec();
    let missing = settings.batch_size - chunk.len();
    match settings.runts {
        Runts::Repeated { power } if missing > 0 => {
            pictures.extend((0..missing).map(|_| chunk[stream.below(chunk.len() as i64) as usize]));
            let share = chunk.len() as f64 / settings.batch_size as f64;
            Planned { pictures, copies: Vec::new(), loss_scale: share.powf(power), runt: chunk.len() }
        }
        Runts::Small if missing > 0 => {
            Planned { pictures, copies: Vec::new(), loss_scale: 1.0, runt: chunk.len() }
        }
        _ => Planned { pictures, copies: Vec::new(), loss_scale: 1.0, runt: 0 },
    }
}

/// The batches in random order, in groups of `size` for one optimizer step each, of which a named batch shares its own
/// with batches of its name as far as there are.
fn in_groups(named: BTreeMap<Option<usize>, Vec<Planned>>, size: usize, stream: &mut Stream) -> Vec<Planned> {
    let mut singles = Vec::new();
    let mut together = Vec::new();
    for (id, mut batches) in named {
        stream.shuffle(&mut batches);
        if id.is_none() || size == 1 {
            singles.extend(batches);
            continue;
        }
        while !batches.is_empty() {
            let rest = batches.split_off(size.min(batches.len()));
            together.push(std::mem::replace(&mut batches, rest));
        }
    }
    stream.shuffle(&mut singles);
    // First fit, largest first; single batches then fill what is free.
    together.sort_by_key(|group| std::cmp::Reverse(group.len()));
    let mut groups: Vec<Vec<Planned>> = Vec::new();
    for batches in together {
        match groups.iter_mut().find(|group| group.len() + batches.len() <= size) {
            Some(group) => group.extend(batches),
            None => groups.push(batches),
        }
    }
    let mut singles = singles.into_iter();
    for group in &mut groups {
        let free = size - group.len();
        group.extend(singles.by_ref().take(free));
    }
    let rest: Vec<_> = singles.collect();
    groups.extend(rest.chunks(size).map(<[_]>::to_vec));
    stream.shuffle(&mut groups);
    // Only the last may be incomplete, for steps are counted in whole groups.
    groups.sort_by_key(|group| group.len() < size);
    groups.concat()
}

/// The batches of each optimizer step: `size` together, but of the first ones `before` are done already.
pub fn groups(batches: &[Planned], size: usize, before: usize) -> impl Iterator<Item = &[Planned]> {
    let first = (size - before % size).min(batches.len());
    let (first, rest) = batches.split_at(first);
    Some(first).filter(|first| !first.is_empty()).into_iter().chain(rest.chunks(size))
}

/// Where epochs begin and end in the count of a run's batches. Epochs are counted from 1, batches that are done from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Epochs {
    /// The batches that are done before each epoch, and after the last.
    bounds: Vec<u64>,
}

impl Epochs {
    /// Epochs of these lengths.
    pub fn new(lengths: &[usize]) -> Self {
        let ends = lengths.iter().scan(0, |end, length| {
            *end += *length as u64;
            Some(*end)
        });
        Self { bounds: [0].into_iter().chain(ends).collect() }
    }

    /// All batches of the run.
    pub fn steps(&self) -> u64 {
        self.end(self.bounds.len() as u64 - 1)
    }

    /// The batches that are done at the end of an epoch.
    pub fn end(&self, epoch: u64) -> u64 {
        self.bounds[epoch as usize]
    }

    /// How many epochs are done when `step` batches are.
    pub fn done(&self, step: u64) -> u64 {
        self.bounds.partition_point(|bound| *bound <= step) as u64 - 1
    }

    /// How many batches of the epoch they are in are done when `step` batches are.
    pub fn done_within(&self, step: u64) -> usize {
        (step - self.end(self.done(step))) as usize
    }
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
    const ENTRY: Entry = Entry { bucket: SQUARE, multiply: 1.0, batch_id: None, rating: 1.0 };
    const SETTINGS: EpochSettings = EpochSettings {
        batch_size: 4,
        grad_accum: 1,
        seed: 555,
        runts: Runts::Small,
        max_epochs: 10,
        left_out: 0.0,
        subsets_once: false,
    };

    fn entries() -> Vec<Entry> {
        (0..23).map(|i| Entry { bucket: if i % 3 == 0 { WIDE } else { SQUARE }, ..ENTRY }).collect()
    }

    fn counts(batches: &[Planned], entries: usize) -> Vec<usize> {
        let mut counts = vec![0; entries];
        batches.iter().flat_map(|batch| &batch.pictures).for_each(|&i| counts[i] += 1);
        counts
    }

    #[test]
    fn every_picture_is_in_one_batch_of_its_shape() {
        let entries = entries();
        let batches = batches(&entries, &SETTINGS, 1);
        assert_eq!(counts(&batches, 23), [1; 23]);
        let alike = |batch: &Planned| {
            batch.pictures.iter().all(|&i| entries[i].bucket == entries[batch.pictures[0]].bucket)
        };
        assert!(batches.iter().all(alike));
        // 8 wide ones and 15 square ones.
        assert_eq!(batches.len(), 2 + 4);
        assert_eq!(batches_by_epoch(&entries, &SETTINGS), [6; 10]);
    }

    #[test]
    fn epochs_and_seeds_differ_and_are_repeatable() {
        let entries = entries();
        let first = batches(&entries, &SETTINGS, 1);
        assert_eq!(batches(&entries, &SETTINGS, 1), first);
        assert_ne!(batches(&entries, &SETTINGS, 2), first);
        assert_ne!(batches(&entries, &EpochSettings { seed: 556, ..SETTINGS }, 1), first);
    }

    #[test]
    fn pictures_come_as_often_as_they_should() {
        let mut entries = entries();
        (entries[0].multiply, entries[1].multiply, entries[2].multiply) = (3.0, 0.0, 2.5);
        (3..23).for_each(|i| entries[i].multiply = 0.3);
        // 3 + 0 + 2.5 + 20 * 0.3 is 11.5.
        let mut often = vec![0; 23];
        for epoch in 1..=400 {
            let counts = counts(&batches(&entries, &SETTINGS, epoch), 23);
            assert_eq!(counts.iter().sum::<usize>(), 11);
            assert_eq!((counts[0], counts[1]), (3, 0));
            let copies = |i: usize| {
                let all = batches(&entries, &SETTINGS, epoch);
                let all =
                    all.into_iter().flat_map(|planned| planned.pictures.into_iter().zip(planned.copies));
                all.filter(|(picture, _)| *picture == i).map(|(_, copy)| copy).collect::<Vec<_>>()
            };
            assert_eq!((copies(0), copies(3).len()), (vec![0, 1, 2], counts[3]));
            assert!((2..=3).contains(&counts[2]) && counts[3..].iter().all(|n| *n <= 1));
            often.iter_mut().zip(counts).for_each(|(often, n)| *often += n);
        }
        assert!(often[3..].iter().all(|n| (80..160).contains(n)), "{often:?}");
        assert_eq!(batches_by_epoch(&entries, &SETTINGS).len(), 10);
    }

    #[test]
    fn runts_are_repeated_where_everydream2_does() {
        let entries = entries();
        let settings = EpochSettings { runts: Runts::Repeated { power: 1.5 }, ..SETTINGS };
        let batches = batches(&entries, &settings, 1);
        assert!(batches.iter().all(|batch| batch.pictures.len() == 4));
        let runts: Vec<_> = batches.iter().filter(|batch| batch.loss_scale != 1.0).collect();
        assert_eq!(runts.len(), 1, "15 square ones leave 3");
        assert_eq!(runts[0].loss_scale, 0.75_f64.powf(1.5));
        assert_eq!(counts(&batches, 23).iter().sum::<usize>(), 24);
    }

    #[test]
    fn named_batches_stay_by_themselves_and_together() {
        let mut entries = vec![ENTRY; 40];
        (0..14).for_each(|i| entries[i].batch_id = Some(0));
        (14..20).for_each(|i| entries[i].batch_id = Some(1));
        let settings = EpochSettings { grad_accum: 3, ..SETTINGS };
        let batches = batches(&entries, &settings, 1);
        assert_eq!(counts(&batches, 40), [1; 40]);
        let name = |batch: &Planned| {
            let ids: Vec<_> = batch.pictures.iter().map(|&i| entries[i].batch_id).collect();
            ids.iter().all(|id| *id == ids[0]).then_some(ids[0]).flatten()
        };
        // 14 make three batches and leave two, 6 one and two.
        let groups: Vec<Vec<_>> = batches.chunks(3).map(|group| group.iter().map(name).collect()).collect();
        assert!(groups.contains(&vec![Some(0); 3]), "{groups:?}");
        assert_eq!(groups.concat().iter().filter(|id| **id == Some(1)).count(), 1);
        assert_eq!(batches.len(), 10);
    }

    #[test]
    fn rated_pictures_go_the_worst_first() {
        let entries: Vec<_> =
            (0..100).map(|i| Entry { rating: if i < 50 { 0.1 } else { 1.0 }, ..ENTRY }).collect();
        let settings = EpochSettings { left_out: 0.5, ..SETTINGS };
        assert_eq!(counts(&batches(&entries, &settings, 1), 100), [1; 100]);
        let last = counts(&batches(&entries, &settings, 10), 100);
        assert_eq!(last.iter().sum::<usize>(), 55, "0.5 of nine tenths are left out");
        let (bad, good) = (last[..50].iter().sum::<usize>(), last[50..].iter().sum::<usize>());
        assert!(good > 40 && bad < 15, "{good} good and {bad} bad");
    }

    #[test]
    fn subsets_of_everydream2_take_each_picture_once() {
        let entries = vec![Entry { multiply: 2.0, ..ENTRY }; 40];
        let settings = EpochSettings { left_out: 0.5, subsets_once: true, ..SETTINGS };
        assert_eq!(counts(&batches(&entries, &settings, 1), 40), [2; 40], "the first epoch is a whole one");
        let last = counts(&batches(&entries, &settings, 10), 40);
        assert!(last.iter().all(|n| *n <= 1) && last.iter().sum::<usize>() == 22, "{last:?}");
        let ours = EpochSettings { subsets_once: false, ..settings };
        assert_eq!(counts(&batches(&entries, &ours, 10), 40).iter().sum::<usize>(), 44);
        assert_eq!(batches_by_epoch(&entries, &settings)[0], 20);
    }

    #[test]
    fn optimizer_steps_have_their_batches() {
        let batches = batches(&entries(), &SETTINGS, 1);
        let sizes = |size, before| groups(&batches, size, before).map(<[_]>::len).collect::<Vec<_>>();
        assert_eq!(sizes(4, 0), [4, 2], "six batches");
        assert_eq!(sizes(4, 6), [2, 4], "after six of the epoch before");
        assert_eq!(sizes(4, 3), [1, 4, 1]);
        assert_eq!(sizes(1, 5), [1; 6]);
        assert_eq!(sizes(9, 2), [6]);
        assert_eq!(groups(&[], 4, 0).count(), 0);
    }

    #[test]
    fn runts_say_how_many_they_were() {
        for runts in [Runts::Small, Runts::Repeated { power: 1.0 }] {
            let batches = batches(&entries(), &EpochSettings { runts, ..SETTINGS }, 1);
            let found: Vec<_> = batches.iter().map(|batch| batch.runt).filter(|runt| *runt > 0).collect();
            assert_eq!(found, [3], "15 square ones");
        }
    }

    #[test]
    fn steps_are_told_by_epochs_of_any_length() {
        let epochs = Epochs::new(&[3, 2, 4]);
        assert_eq!((epochs.steps(), epochs.end(2)), (9, 5));
        let at = |step| (epochs.done(step), epochs.done_within(step));
        assert_eq!([0, 2, 3, 4, 5, 8, 9].map(at), [(0, 0), (0, 2), (1, 0), (1, 1), (2, 0), (2, 3), (3, 0)]);
    }

    #[test]
    fn the_last_epoch_is_always_saved() {
        let saved = |max, every| saved_epochs(max, every).collect::<Vec<_>>();
        assert_eq!(saved(100, Some(25)), [25, 50, 75, 100]);
        assert_eq!(saved(5, Some(2)), [2, 4, 5]);
        assert_eq!(saved(5, None), [5]);
    }
}
