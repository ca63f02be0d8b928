//! The scores of one tag, or the highest ones of a group: how many, where, and where the curve bends.

use rayon::prelude::*;

use super::HISTOGRAM_BUCKETS;

/// The steps between 0 and 1 at which the curve of count against threshold is looked at.
const CURVE_STEPS: u32 = 100;

/// Scores in ascending order.
#[derive(Debug, Clone, Default)]
pub(super) struct Distribution(Vec<f32>);

impl Distribution {
    pub(super) fn new(mut scores: Vec<f32>) -> Self {
        scores.sort_unstable_by(f32::total_cmp);
        Self(scores)
    }

    pub(super) fn all(scores: Vec<Vec<f32>>) -> Vec<Self> {
        scores.into_par_iter().map(Self::new).collect()
    }

    pub(super) fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// How many scores are as high as `threshold` or higher.
    pub(super) fn at_least(&self, threshold: f32) -> u64 {
        (self.0.len() - self.0.partition_point(|score| *score < threshold)) as u64
    }

    pub(super) fn at_thresholds(&self, thresholds: &[f32]) -> Vec<u64> {
        thresholds.iter().map(|threshold| self.at_least(*threshold)).collect()
    }

    /// The mean; summed in ascending order, so that it does not depend on the order of the table.
    pub(super) fn mean(&self) -> Option<f64> {
        let sum: f64 = self.0.iter().map(|score| f64::from(*score)).sum();
        (!self.0.is_empty()).then(|| sum / self.0.len() as f64)
    }

    /// How many scores lie in each of [`HISTOGRAM_BUCKETS`] equal widths; a bucket holds its lower bound, the last one 1
    /// as well.
    pub(super) fn histogram(&self) -> Vec<u64> {
        let bound = |k: usize| k as f32 / HISTOGRAM_BUCKETS as f32;
        let above = |k: usize| if k < HISTOGRAM_BUCKETS { self.at_least(bound(k)) } else { 0 };
        (0..HISTOGRAM_BUCKETS).map(|k| above(k) - above(k + 1)).collect()
    }

    /// The quantiles at 0, 10, ... 100 %, between two scores linearly (type 7 of Hyndman and Fan 1996, as in numpy);
    /// empty of no scores.
    pub(super) fn deciles(&self) -> Vec<f32> {
        let Some(last) = self.0.len().checked_sub(1) else { return Vec::new() };
        let quantile = |tenth: usize| {
            let (place, rest) = (tenth * last / 10, tenth * last % 10);
            let [low, high] = [place, (place + 1).min(last)].map(|place| f64::from(self.0[place]));
            (low + (high - low) * rest as f64 / 10.0) as f32
        };
        (0..=10).map(quantile).collect()
    }

    /// The knee of the curve of count against threshold, in steps of 0.01 from `floor` to 1: where it lies furthest below
    /// the straight line between its ends, after both axes are scaled to 0..1. This is Kneedle for a convex, falling
    /// curve (Satopaa, Albrecht, Irwin and Raghavan 2011, section III), of whose maxima the highest is taken. None where
    /// the curve is nowhere 0.01 below the line, and of fewer than ten scores.
    pub(super) fn knee(&self, floor: f32) -> Option<f32> {
        const SCORES_MIN: u64 = 10;
        const DEPTH_MIN: f64 = 0.01;
        let threshold = |step: u32| step as f32 / CURVE_STEPS as f32;
        let first = (0..CURVE_STEPS).find(|step| threshold(*step) >= floor)?;
        let [most, least] = [first, CURVE_STEPS].map(|step| self.at_least(threshold(step)));
        if self.len() < SCORES_MIN || most == least {
            return None;
        }
        let depth = |step: u32| {
            let x = f64::from(step - first) / f64::from(CURVE_STEPS - first);
            let y = (self.at_least(threshold(step)) - least) as f64 / (most - least) as f64;
            (step, 1.0 - x - y)
        };
        // Of equal depths the lowest threshold.
        let deepest =
            (first..=CURVE_STEPS).map(depth).reduce(|best, next| if next.1 > best.1 { next } else { best });
        deepest.filter(|(_, depth)| *depth >= DEPTH_MIN).map(|(step, _)| threshold(step))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_quantiles_can_be_checked_by_hand() {
        let scores = Distribution::new(vec![1.0, 0.05, 0.3, 0.1, 0.3]);
        assert_eq!(scores.len(), 5);
        assert_eq!(
            scores.at_thresholds(&[0.0, 0.3, 0.300_001, 1.0]),
            [5, 3, 1, 1],
            "the threshold itself counts"
        );
        let histogram = scores.histogram();
        assert_eq!(histogram.len(), HISTOGRAM_BUCKETS);
        let there: Vec<_> = histogram.iter().enumerate().filter(|(_, count)| **count > 0).collect();
        assert_eq!(there, [(1, &1), (2, &1), (6, &2), (19, &1)]);
        // Places 0, 0.4, 0.8, ... 4.
        let deciles = scores.deciles();
        assert_eq!((deciles[0], deciles[5], deciles[10]), (0.05, 0.3, 1.0));
        assert!((deciles[1] - 0.07).abs() < 1e-7 && (deciles[9] - 0.72).abs() < 1e-6, "{deciles:?}");
        assert!((scores.mean().unwrap() - 0.35).abs() < 1e-8);
        let none = Distribution::default();
        assert_eq!((none.mean(), none.deciles(), none.histogram().iter().sum::<u64>()), (None, vec![], 0));
        assert_eq!(Distribution::new(vec![0.5]).deciles(), [0.5; 11]);
    }

    #[test]
    fn the_knee_is_where_the_curve_bends() {
        // 90 scores at 0.15 and 10 at 0.95: 100 down to 10 above 0.15, then flat.
        let bent: Vec<_> = [0.15; 90].into_iter().chain([0.95; 10]).collect();
        assert_eq!(Distribution::new(bent).knee(0.1), Some(0.16));
        let uniform = Distribution::new((10..=100).map(|k| k as f32 / 100.0).collect());
        assert_eq!(uniform.knee(0.1), None, "a straight line has no bend");
        assert_eq!(Distribution::new(vec![0.995; 50]).knee(0.1), None, "nothing is lost before the end");
        assert_eq!(Distribution::new(vec![0.2; 9]).knee(0.1), None, "too few to tell");
        assert_eq!(Distribution::new(vec![1.0; 50]).knee(0.1), None);
    }
}
