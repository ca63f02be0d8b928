//! Whether a tag's scores agree with what was measured: rank correlation, and how well one tells the other.

use super::{SharpnessAgreement, SharpnessBucket};

/// The equal widths of 0 to 1 that pictures are put into by score.
const BUCKETS: usize = 10;

/// How scores agree with sharpness, in pairs of one picture each; a picture has the tag at `min_score`.
pub(super) fn agreement(tag: &str, mut pairs: Vec<(f32, f32)>, min_score: f32) -> SharpnessAgreement {
    // Sums then do not depend on the order of the table.
    pairs.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let (scores, sharpness): (Vec<_>, Vec<_>) = pairs.iter().copied().unzip();
    let sharpness_ranks = ranks(&sharpness);
    let has_tag: Vec<_> = scores.iter().map(|score| *score >= min_score).collect();
    SharpnessAgreement {
        tag: tag.to_owned(),
        images: pairs.len() as u64,
        spearman: correlation(&ranks(&scores), &sharpness_ranks),
        auc: auc(&sharpness_ranks, &has_tag),
        buckets: buckets(&pairs),
    }
}

/// The rank of each value from 1; equal values have the mean of their ranks.
fn ranks(values: &[f32]) -> Vec<f64> {
    let mut order: Vec<_> = (0..values.len()).collect();
    order.sort_unstable_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for equal in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let rank = before as f64 + (equal.len() + 1) as f64 / 2.0;
        equal.iter().for_each(|place| ranks[*place] = rank);
        before += equal.len();
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

fn buckets(pairs: &[(f32, f32)]) -> Vec<SharpnessBucket> {
    let bound = |k: usize| k as f32 / BUCKETS as f32;
    let mut sharpness = vec![Vec::new(); BUCKETS];
    for (score, sharp) in pairs {
        let bucket = (1..BUCKETS).take_while(|k| *score >= bound(*k)).count();
        sharpness[bucket].push(*sharp);
    }
    let bucket = |(k, values): (usize, Vec<f32>)| SharpnessBucket {
        from: bound(k),
        to: bound(k + 1),
        images: values.len() as u64,
        median: median(values),
    };
    sharpness.into_iter().enumerate().map(bucket).collect()
}

fn median(mut values: Vec<f32>) -> Option<f64> {
    values.sort_unstable_by(f32::total_cmp);
    let last = values.len().checked_sub(1)?;
    Some((f64::from(values[last / 2]) + f64::from(values[last.div_ceil(2)])) / 2.0)
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
        let found = agreement("blurry", pairs.to_vec(), 0.3);
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
    fn what_is_constant_says_nothing() {
        let found = agreement("blurry", vec![(0.5, 1.0), (0.5, 2.0)], 0.3);
        assert_eq!((found.spearman, found.auc), (0.0, 0.5));
        let none = agreement("blurry", vec![], 0.3);
        assert_eq!((none.images, none.spearman, none.auc), (0, 0.0, 0.5));
        assert_eq!(agreement("blurry", vec![(1.0, 5.0), (0.1, 5.0)], 0.3).auc, 0.5, "ties count half");
    }
}
