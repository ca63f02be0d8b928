//! Medians and intervals of what was measured, for each checkpoint, over prompts and seeds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    AxisType, GridPlan,
    axes::Change,
    look::{Look, MEASURES},
    run::prompt_of,
};
use crate::{
    Result,
    bootstrap::{bootstrap, median},
};

/// A median with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// How many samples there were.
    pub count: usize,
    /// The median of all.
    pub median: f64,
    /// None of fewer than six groups.
    pub range: Option<Range>,
}

/// The ends of an interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Range {
    /// 2.5 % of the medians of samples drawn anew are below this.
    pub low: f64,
    /// 2.5 % are above this.
    pub high: f64,
    /// What was drawn anew.
    pub over: Over,
}

/// What is drawn anew for an interval, which holds for others of that kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Over {
    /// Prompts, with all their pictures.
    Prompts,
    /// Pictures of a single prompt: nothing is said of other prompts.
    Pictures,
}

impl Over {
    /// Its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prompts => "prompts",
            Self::Pictures => "pictures",
        }
    }
}

impl Range {
    /// Whether it does not hold 0.
    pub fn is_clear(&self) -> bool {
        self.low > 0.0 || self.high < 0.0
    }
}

impl Interval {
    /// The median of the samples' values, with the bootstrap's percentile interval; `None` without samples.
    ///
    /// Each sample has the number of its prompt. Prompts are drawn anew whole, for pictures of one prompt are like each
    /// other; where there is one only, its pictures are. The same seed draws the same.
    pub fn of(samples: &[(usize, f64)], seed: u64) -> Option<Self> {
        let mut groups: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        for (group, value) in samples {
            groups.entry(*group).or_default().push(*value);
        }
        let (over, pools) = match groups.len() {
            0 => return None,
            1 => (Over::Pictures, samples.iter().map(|(_, value)| vec![*value]).collect()),
            _ => (Over::Prompts, groups.into_values().collect::<Vec<_>>()),
        };
        let mut values: Vec<f64> = samples.iter().map(|(_, value)| *value).collect();
        let range = range(&pools, over, seed);
        Some(Self { count: samples.len(), median: median(&mut values), range })
    }
}

fn range(pools: &[Vec<f64>], over: Over, seed: u64) -> Option<Range> {
    let mut values = Vec::new();
    let mut of_drawn = |drawn: &[usize]| {
        values.clear();
        drawn.iter().for_each(|place| values.extend_from_slice(&pools[*place]));
        median(&mut values)
    };
    let (low, high) = bootstrap(pools.len(), seed, &mut of_drawn)?;
    Some(Range { low, high, over })
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

/// A cell that is there.
struct Seen<'a> {
    number: usize,
    look: &'a Look,
    /// The number of the first prompt with the same text: negative prompts make no prompt another.
    group: usize,
    category: Option<&'a String>,
}

/// Judges every checkpoint by every measure, over all prompts and over those of each category. `check` is asked before each
/// interval whether to go on.
pub(super) fn judge(
    plan: &GridPlan,
    looks: &[Option<Look>],
    check: &dyn Fn() -> Result<()>,
) -> Result<Judging> {
    let (against, seed) = (plan.judge.against, plan.judge.seed);
    let mut judging = Judging { judgements: Vec::new(), against, seed };
    let Some(axis) = plan.axis_of(AxisType::Checkpoint) else { return Ok(judging) };
    let mut categories = vec![None];
    for category in plan.categories.iter().flatten() {
        if !categories.contains(&Some(category)) {
            categories.push(Some(category));
        }
    }
    let seen = seen(plan, looks, axis);
    for category in categories {
        for (model, cells) in seen.iter().enumerate() {
            let cells: Vec<_> =
                cells.iter().filter(|cell| category.is_none() || cell.category == category).collect();
            for (place, measure) in MEASURES.iter().enumerate() {
                check()?;
                let own: Vec<_> = cells.iter().map(|cell| (cell.group, (measure.of)(cell.look))).collect();
                let others = cells.iter().filter(|_| model != against).filter_map(|cell| {
                    let mut place = plan.place(cell.number);
                    place[axis] = against;
                    let other = looks[plan.number_of(&place)].as_ref()?;
                    Some((cell.group, (measure.of)(cell.look) - (measure.of)(other)))
                });
                let others: Vec<_> = others.collect();
                let Some(own) = Interval::of(&own, seed) else { continue };
                let difference = Interval::of(&others, seed);
                let category = category.cloned();
                judging.judgements.push(Judgement { model, category, measure: place, own, difference });
            }
        }
    }
    Ok(judging)
}

/// The cells that are there, by model.
fn seen<'a>(plan: &'a GridPlan, looks: &'a [Option<Look>], axis: usize) -> Vec<Vec<Seen<'a>>> {
    let groups = groups(plan);
    let mut seen: Vec<Vec<Seen<'a>>> = plan.axes[axis].values.iter().map(|_| Vec::new()).collect();
    for (number, look) in looks.iter().enumerate() {
        let Some(look) = look else { continue };
        let place = plan.place(number);
        let prompt = prompt_of(plan, &place);
        let category = plan.categories.get(prompt).and_then(Option::as_ref);
        seen[place[axis]].push(Seen { number, look, group: groups[prompt], category });
    }
    seen
}

/// For each prompt the number of the first with the same text.
fn groups(plan: &GridPlan) -> Vec<usize> {
    let Some(axis) = plan.axis_of(AxisType::Prompt) else { return vec![0] };
    let text = |change: &Change| match change {
        Change::Prompt { prompt, .. } => prompt.clone(),
        _ => String::new(),
    };
    let mut first = BTreeMap::new();
    let values = plan.axes[axis].values.iter().enumerate();
    values.map(|(i, value)| *first.entry(text(&value.change)).or_insert(i)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equal_samples_the_interval_is_a_point() {
        assert_eq!(Interval::of(&[], 1), None);
        let same: Vec<_> = (0..6).map(|i| (i, 2.0)).collect();
        let range = Some(Range { low: 2.0, high: 2.0, over: Over::Prompts });
        assert_eq!(Interval::of(&same, 1), Some(Interval { count: 6, median: 2.0, range }));
    }

    #[test]
    fn of_fewer_than_six_groups_there_is_no_interval() {
        let samples = |groups: usize, each: usize| -> Vec<_> {
            (0..groups * each).map(|i| (i % groups, 1.0 + i as f64)).collect()
        };
        let over = |samples: &[(usize, f64)]| Interval::of(samples, 1).unwrap().range.map(|range| range.over);
        // Three prompts of a hundred pictures are three prompts.
        assert_eq!(over(&samples(3, 100)), None);
        assert_eq!(over(&samples(5, 1)), None);
        assert_eq!(over(&samples(6, 1)), Some(Over::Prompts));
        // Of one prompt, its pictures are drawn, and that is said.
        assert_eq!(over(&samples(1, 5)), None);
        assert_eq!(over(&samples(1, 6)), Some(Over::Pictures));
    }

    #[test]
    fn negative_prompts_make_no_prompt_another() {
        let mut config: crate::GridConfig =
            vodka_stage::parse_toml("size = \"64x64\"", std::path::Path::new("g.toml")).unwrap();
        config.checkpoints = vec![crate::GridCheckpoint::new(None, "a.safetensors")];
        let prompts = [("sun", ""), ("moon", ""), ("sun", "blurry"), ("moon", "dark")];
        config.prompts = prompts.map(|(prompt, negative)| crate::GridPrompt::new(prompt, negative)).into();
        assert_eq!(groups(&config.plan().unwrap()), [0, 1, 0, 1]);
    }

    #[test]
    fn an_interval_holds_the_median_and_shrinks_with_more_samples() {
        let samples = |n: usize| -> Vec<_> { (0..n).map(|i| (i, (i * 37 % n) as f64 / n as f64)).collect() };
        let width = |n| {
            let interval = Interval::of(&samples(n), 7).unwrap();
            let range = interval.range.unwrap();
            assert!(range.low <= interval.median && interval.median <= range.high, "{interval:?}");
            assert_eq!(interval, Interval::of(&samples(n), 7).unwrap(), "the same seed draws the same");
            range.high - range.low
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
        // Eight seeds of each of eight prompts, and seeds change nothing: no more is known than from eight pictures.
        let samples: Vec<_> = (0..64).map(|i| (i / 8, f64::from(i as u32 / 8))).collect();
        let range = |samples: &[(usize, f64)]| Interval::of(samples, 1).unwrap().range.unwrap();
        let alone: Vec<_> = (0..8).map(|i| (i, f64::from(i as u32))).collect();
        assert_eq!(range(&samples), range(&alone));
        let apart: Vec<_> = samples.iter().enumerate().map(|(i, (_, value))| (i, *value)).collect();
        let (grouped, apart) = (range(&samples), range(&apart));
        assert!(apart.high - apart.low < grouped.high - grouped.low);
    }
}
