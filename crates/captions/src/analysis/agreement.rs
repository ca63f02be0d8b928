//! Whether a tag's scores agree with what was measured: rank correlation, and how well one tells the other.

use rayon::prelude::*;

use super::{SharpnessAgreement, SharpnessBucket};

/// The equal widths of 0 to 1 that pictures are put into by score.
const BUCKETS: usize = 10;

/// How scores agree with sharpness, in pairs of one picture each; a picture has the tag at `min_score`.
pub(super) fn agreement(tag: &str, pairs: &[(f32, f32)], min_score: f32) -> SharpnessAgreement {
    // Sums then do not depend on the order of the table.
    let mut keys: Vec<_> =
        pairs.par_iter().map(|(score, sharpness)| packed(ordered(*score), ordered(*sharpness))).collect();
    keys.par_sort_unstable();
    let scores: Vec<_> = keys.iter().map(|key| unordered((key >> 32) as u32)).collect();
    let sharpness: Vec<_> = keys.iter().map(|key| unordered(*key as u32)).collect();
    drop(keys);
    let ((score_ranks, buckets), sharpness_ranks) = rayon::join(
        || (ranks_in_order(scores.len(), scores.iter().copied().zip(0..)), buckets(&scores, &sharpness)),
        || ranks(&sharpness),
    );
    let has_tag: Vec<_> = scores.iter().map(|score| *score >= min_score).collect();
    SharpnessAgreement {
        tag: tag.to_owned(),
        images: pairs.len() as u64,
        spearman: correlation(&score_ranks, &sharpness_ranks),
        auc: auc(&sharpness_ranks, &has_tag),
        buckets,
    }
}

/// A number that is ordered as `f32::total_cmp` orders floats.
fn ordered(value: f32) -> u32 {
    let bits = value.to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

fn unordered(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key & !(1 << 31) } else { !key })
}

/// One number sorts faster than two.
fn packed(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// The rank of each value from 1; equal values have the mean of their ranks.
fn ranks(values: &[f32]) -> Vec<f64> {
    let mut keys: Vec<_> = (0..).zip(values).map(|(place, value)| packed(ordered(*value), place)).collect();
    keys.par_sort_unstable();
    ranks_in_order(keys.len(), keys.iter().map(|key| (unordered((key >> 32) as u32), *key as u32)))
}

/// The same of values in ascending order, each with its place.
fn ranks_in_order(count: usize, values: impl Iterator<Item = (f32, u32)> + Clone) -> Vec<f64> {
    let mut ranks = vec![0.0; count];
    let (mut before, mut rest) = (0, values);
    while let Some((value, _)) = rest.clone().next() {
        let equal = rest.clone().take_while(|(other, _)| *other == value).count();
        let rank = before as f64 + (equal + 1) as f64 / 2.0;
        rest.by_ref().take(equal).for_each(|(_, place)| ranks[place as usize] = rank);
        before += equal;
    }
    ranks
}

/// Pearson's correlation; 0 where either is constant. Of ranks it is Spearman's.
fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let sum = |a: &[f64], mean_a: f64, b: &[f64], mean_b: f64| -> f64 {
        a.iter().zip(b).map(|(a, b)| (a - mean_a) * (b - mean_b)).sum()
    };
    let scale = (sum(a, mean_a, a, mean_a) * sum(b, mean_b, b, mean_b)).sqrt();
    if scale > 0.0 { sum(a, mean_a, b, mean_b) / scale } else { 0.0 }
}

/// How probable it is that one without the tag ranks above one with it, ties half (Mann and Whitney's U, scaled); 0.5
/// where there are not both.
fn auc(ranks: &[f64], has_tag: &[bool]) -> f64 {
    let with = has_tag.iter().filter(|has_tag| **has_tag).count() as f64;
    let without = has_tag.len() as f64 - with;
    if with == 0.0 || without == 0.0 {
        return 0.5;
    }
    let sum: f64 = ranks.iter().zip(has_tag).filter(|(_, has_tag)| !**has_tag).map(|(rank, _)| rank).sum();
    (sum - without * (without + 1.0) / 2.0) / (with * without)
}

/// Of pictures in ascending order of score.
fn buckets(scores: &[f32], sharpness: &[f32]) -> Vec<SharpnessBucket> {
    let bound = |k: usize| k as f32 / BUCKETS as f32;
    let start = |k: usize| match k {
        0 => 0,
        BUCKETS => scores.len(),
        k => scores.partition_point(|score| *score < bound(k)),
    };
    let bucket = |k: usize| {
        let values = sharpness[start(k)..start(k + 1)].to_vec();
        SharpnessBucket {
            from: bound(k),
            to: bound(k + 1),
            images: values.len() as u64,
            median: median(values),
        }
    };
    (0..BUCKETS).map(bucket).collect()
}

fn median(mut values: Vec<f32>) -> Option<f64> {
    let last = values.len().checked_sub(1)?;
    let (_, low, above) = values.select_nth_unstable_by(last / 2, f32::total_cmp);
    let low = *low;
    let high = match last % 2 {
        0 => low,
        _ => above.iter().copied().min_by(f32::total_cmp).unwrap_or(low),
    };
    Some((f64::from(low) + f64::from(high)) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_share_their_ranks() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 0.0, 3.0]), [4.0, 2.0, 4.0, 1.0, 4.0]);
        assert!(ranks(&[]).is_empty());
    }

    #[test]
    fn agreement_of_a_few_pictures() {
        let pairs = [(0.9, 10.0), (0.8, 20.0), (0.0, 20.0), (0.0, 90.0)];
        let found = agreement("blurry", &pairs, 0.3);
        // Without the tag 20 and 90, with it 10 and 20: 3.5 of 4 pairs.
        assert_eq!((found.images, found.auc), (4, 0.875));
        // Ranks 4 3 1.5 1.5 and 1 2.5 2.5 4: covariance -3.75, variances 4.5 each.
        assert!((found.spearman + 3.75 / 4.5).abs() < 1e-12, "{}", found.spearman);
        assert_eq!(found.buckets.len(), BUCKETS);
        assert_eq!((found.buckets[0].images, found.buckets[0].median), (2, Some(55.0)));
        assert_eq!((found.buckets[8].from, found.buckets[8].median), (0.8, Some(20.0)));
        assert_eq!((found.buckets[9].to, found.buckets[9].median), (1.0, Some(10.0)));
        assert_eq!(found.buckets[5].median, None);
    }

    #[test]
    fn keys_are_ordered_as_the_floats_are() {
        let floats = [f32::NEG_INFINITY, -2.5, -0.0, 0.0, f32::MIN_POSITIVE, 0.3, 1.0, 2000.0, f32::INFINITY];
        assert!(floats.map(ordered).is_sorted());
        assert_eq!(floats.map(|float| unordered(ordered(float)).to_bits()), floats.map(f32::to_bits));
    }

    #[test]
    fn medians_are_of_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!((median(vec![7.0]), median(vec![])), (Some(7.0), None));
    }

    #[test]
    fn what_is_constant_says_nothing() {
        let found = agreement("blurry", &[(0.5, 1.0), (0.5, 2.0)], 0.3);
        assert_eq!((found.spearman, found.auc), (0.0, 0.5));
        let none = agreement("blurry", &[], 0.3);
        assert_eq!((none.images, none.spearman, none.auc), (0, 0.0, 0.5));
        assert_eq!(agreement("blurry", &[(1.0, 5.0), (0.1, 5.0)], 0.3).auc, 0.5, "ties count half");
    }
}
