//! Medians and intervals of what was measured, for each checkpoint, over prompts and seeds.

use serde::Serialize;
use vodka_noise::TorchRng;

use super::{
    AxisType, GridPlan,
    look::{Look, MEASURES, Measure},
    run::prompt_of,
};

/// How often the samples are drawn anew for an interval.
const RESAMPLES: usize = 2000;

/// A median with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// How many samples there were.
    pub count: usize,
    /// The median of all.
    pub median: f64,
    /// 2.5 % of the medians of samples drawn anew are below this.
    pub low: f64,
    /// 2.5 % are above this.
    pub high: f64,
}

impl Interval {
    /// The median of the samples' values, with the bootstrap's percentile interval; `None` without samples.
    ///
    /// Each sample has the number of its group. Groups are drawn anew whole, for pictures of one prompt are like each
    /// other; where there is one group only, its samples are. The same seed draws the same.
    pub fn of(samples: &[(usize, f64)], seed: u64) -> Option<Self> {
        let mut groups: Vec<usize> = samples.iter().map(|(group, _)| *group).collect();
        groups.sort_unstable();
        groups.dedup();
        let pools: Vec<Vec<f64>> = match groups.len() {
            0 => return None,
            1 => samples.iter().map(|(_, value)| vec![*value]).collect(),
            _ => {
                let of = |wanted: &usize| {
                    samples.iter().filter(|(group, _)| group == wanted).map(|(_, value)| *value).collect()
                };
                groups.iter().map(of).collect()
            }
        };
        let mut rng = TorchRng::new(seed);
        let mut drawn = Vec::with_capacity(samples.len());
        let mut medians: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                drawn.clear();
                for _ in 0..pools.len() {
                    let place = (u64::from(rng.next_u32()) * pools.len() as u64) >> 32;
                    drawn.extend_from_slice(&pools[place as usize]);
                }
                median(&mut drawn)
            })
            .collect();
        medians.sort_by(f64::total_cmp);
        let mut values: Vec<f64> = samples.iter().map(|(_, value)| *value).collect();
        let edge = RESAMPLES / 40;
        let (low, high) = (medians[edge], medians[RESAMPLES - 1 - edge]);
        Some(Self { count: samples.len(), median: median(&mut values), low, high })
    }
}

/// The middle value, or the mean of the two in the middle.
fn median(values: &mut [f64]) -> f64 {
    let middle = values.len() / 2;
    let (below, upper, _) = values.select_nth_unstable_by(middle, f64::total_cmp);
    let upper = *upper;
    match below.iter().copied().max_by(f64::total_cmp) {
        Some(lower) if values.len().is_multiple_of(2) => f64::midpoint(lower, upper),
        _ => upper,
    }
}

/// A measure of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judgement {
    /// The checkpoint's number on its axis.
    pub model: usize,
    /// The category of the prompts; `None` for all prompts.
    pub category: Option<String>,
    /// The measure, by its place in [`MEASURES`].
    pub measure: usize,
    /// The median of its cells.
    pub own: Interval,
    /// The median of the differences between its cells and those of the checkpoint that it is compared with, which
    /// differ in nothing else; `None` for that one itself.
    pub difference: Option<Interval>,
}

/// All judgements of a grid.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judging {
    /// By category, checkpoint and measure, in this order.
    pub judgements: Vec<Judgement>,
    /// The checkpoint that the others are compared with.
    pub against: usize,
    /// The seed of the bootstrap.
    pub seed: u64,
}

/// Judges every checkpoint by every measure, over all prompts and over those of each category.
pub(super) fn judge(plan: &GridPlan, looks: &[Option<Look>]) -> Judging {
    let (against, seed) = (plan.judge.against, plan.judge.seed);
    let mut judging = Judging { judgements: Vec::new(), against, seed };
    let Some(axis) = plan.axis_of(AxisType::Checkpoint) else { return judging };
    let mut categories = vec![None];
    for category in plan.categories.iter().flatten() {
        if !categories.contains(&Some(category.clone())) {
            categories.push(Some(category.clone()));
        }
    }
    for category in &categories {
        for model in 0..plan.axes[axis].values.len() {
            for (place, measure) in MEASURES.iter().enumerate() {
                let samples = samples(plan, looks, (axis, model), category.as_ref(), measure);
                let others = samples.iter().filter_map(|(group, number, value)| {
                    let mut place = plan.place(*number);
                    place[axis] = against;
                    let other = looks[plan.number_of(&place)].as_ref()?;
                    Some((*group, value - (measure.of)(other)))
                });
                let others: Vec<_> = if model == against { Vec::new() } else { others.collect() };
                let own: Vec<_> = samples.iter().map(|(group, _, value)| (*group, *value)).collect();
                let Some(own) = Interval::of(&own, seed) else { continue };
                let difference = Interval::of(&others, seed);
                judging.judgements.push(Judgement {
                    model,
                    category: category.clone(),
                    measure: place,
                    own,
                    difference,
                });
            }
        }
    }
    judging
}

/// The prompt, the number and the value of every cell of a model that is there.
fn samples(
    plan: &GridPlan,
    looks: &[Option<Look>],
    (axis, model): (usize, usize),
    category: Option<&String>,
    measure: &Measure,
) -> Vec<(usize, usize, f64)> {
    let cells = looks.iter().enumerate().filter_map(|(number, look)| Some((number, look.as_ref()?)));
    let cells = cells.filter_map(|(number, look)| {
        let place = plan.place(number);
        let prompt = prompt_of(plan, &place);
        let is_in = category
            .is_none_or(|wanted| plan.categories.get(prompt).is_some_and(|c| c.as_ref() == Some(wanted)));
        (place[axis] == model && is_in).then(|| (prompt, number, (measure.of)(look)))
    });
    cells.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_medians() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(&mut [7.0]), 7.0);
        assert_eq!(Interval::of(&[], 1), None);
        let same = Interval::of(&[(0, 2.0), (1, 2.0)], 1).unwrap();
        assert_eq!(same, Interval { count: 2, median: 2.0, low: 2.0, high: 2.0 });
    }

    #[test]
    fn an_interval_holds_the_median_and_shrinks_with_more_samples() {
        let samples = |n: usize| -> Vec<_> { (0..n).map(|i| (i, (i * 37 % n) as f64 / n as f64)).collect() };
        let width = |n| {
            let interval = Interval::of(&samples(n), 7).unwrap();
            assert!(interval.low <= interval.median && interval.median <= interval.high, "{interval:?}");
            assert_eq!(interval, Interval::of(&samples(n), 7).unwrap(), "the same seed draws the same");
            interval.high - interval.low
        };
        let (few, many) = (width(25), width(400));
        // 1.96 standard errors of a median of a uniform distribution, 1 / (2 sqrt n), to both sides.
        for (found, n) in [(few, 25.0_f64), (many, 400.0)] {
            let expected = 1.96 / n.sqrt();
            assert!((found / expected - 1.0).abs() < 0.35, "{found} {expected}");
        }
    }

    #[test]
    fn pictures_of_one_prompt_are_drawn_together() {
        // Eight seeds of each of four prompts, and seeds change nothing: no more is known than from four pictures.
        let samples: Vec<_> = (0..32).map(|i| (i / 8, f64::from(i as u32 / 8))).collect();
        let grouped = Interval::of(&samples, 1).unwrap();
        let alone: Vec<_> = (0..4).map(|i| (i, f64::from(i as u32))).collect();
        assert_eq!((grouped.low, grouped.high), {
            let alone = Interval::of(&alone, 1).unwrap();
            (alone.low, alone.high)
        });
        let apart: Vec<_> = samples.iter().enumerate().map(|(i, (_, value))| (i, *value)).collect();
        let apart = Interval::of(&apart, 1).unwrap();
        assert!(apart.high - apart.low < grouped.high - grouped.low);
    }
}
