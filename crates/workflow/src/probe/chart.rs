//! Forest plots: numbers with their intervals, a row for each tag and a mark for each model or condition.

use serde::Serialize;
use vodka_sampler::numbers::{decimals, ticks};

use super::Estimate;
use crate::pages::{render, told};

/// A forest plot.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Forest {
    pub(crate) title: String,
    /// What the horizontal axis counts.
    pub(crate) axis: String,
    pub(crate) scale: Scale,
    /// What the marks of a row are, in order.
    pub(crate) series: Vec<String>,
    /// Labels, and a number for each series.
    pub(crate) rows: Vec<(String, Vec<Option<Estimate>>)>,
}

/// How the axis goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// In equal steps; no change is 0.
    Linear,
    /// By factors of 2; no change is 1. For ratios, which are not below 0.
    Log,
}

const LEFT: f64 = 170.0;
const RIGHT: f64 = 690.0;
const TOP: f64 = 52.0;
/// The height of a mark's line, and what a row has besides.
const MARK_PX: f64 = 13.0;
const ROW_PX: f64 = 9.0;
/// Ratios beyond are shown at the edge of the chart.
const RATIO_MAX: f64 = 64.0;

#[derive(Serialize)]
struct Row {
    label: String,
    short: String,
    y: f64,
    /// The line below it.
    rule: f64,
    marks: Vec<Mark>,
}

#[derive(Serialize)]
struct Mark {
    series: usize,
    told: String,
    x: f64,
    y: f64,
    range: Option<[f64; 2]>,
}

#[derive(Serialize)]
struct Tick {
    x: f64,
    label: String,
}

#[derive(Serialize)]
struct Key {
    x: f64,
    name: String,
}

impl Forest {
    /// Whether there is any number in it.
    pub(crate) fn has_marks(&self) -> bool {
        self.rows.iter().any(|(_, marks)| marks.iter().any(Option::is_some))
    }

    /// As an SVG document, or for a page that has the style.
    pub(crate) fn svg(&self, is_file: bool) -> String {
        let axis = Axis::of(self);
        let height = |marks: usize| ROW_PX + MARK_PX * marks as f64;
        let mut y = TOP;
        let rows = self.rows.iter().map(|(label, marks)| {
            let top = y;
            y += height(marks.len());
            let mark = |(series, estimate): (usize, &Option<Estimate>)| {
                let estimate = estimate.as_ref()?;
                Some(Mark {
                    series,
                    told: format!("{}: {}", self.series[series], told(estimate)),
                    x: axis.x(estimate.value),
                    y: top + ROW_PX / 2.0 + MARK_PX * (series as f64 + 0.5),
                    range: estimate.range.map(|range| range.map(|end| axis.x(end))),
                })
            };
            let short = match label.chars().count() {
                0..=24 => label.clone(),
                _ => label.chars().take(23).chain(['…']).collect(),
            };
            let marks = marks.iter().enumerate().filter_map(mark).collect();
            Row { label: label.clone(), short, y: top + (y - top) / 2.0, rule: y, marks }
        });
        let rows: Vec<_> = rows.collect();
        let mut x = 0.0;
        let key = self.series.iter().map(|name| {
            let at = x;
            x += 30.0 + 7.0 * name.chars().count() as f64;
            Key { x: at, name: name.clone() }
        });
        let context = minijinja::context! {
            title => self.title, axis => self.axis, is_file, height => y + 34.0, bottom => y, rows,
            key => key.collect::<Vec<_>>(), ticks => axis.ticks(), zero => axis.x(axis.none()),
        };
        render("forest.svg", context)
    }
}

struct Axis {
    scale: Scale,
    /// In the units of the scale.
    ticks: Vec<f64>,
}

impl Axis {
    fn of(forest: &Forest) -> Self {
        let all = forest.rows.iter().flat_map(|(_, marks)| marks).flatten();
        let ends = all.flat_map(|estimate| estimate.range.unwrap_or([estimate.value; 2]));
        let units: Vec<_> = ends.map(|end| forest.scale.units(end)).chain([0.0]).collect();
        let least = units.iter().copied().fold(f64::INFINITY, f64::min);
        let most = units.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let ticks = match forest.scale {
            Scale::Linear => ticks(least, most),
            Scale::Log => {
                let (first, last) = (least.floor() as i32, most.ceil() as i32);
                (first..=last.max(first + 1)).map(f64::from).collect()
            }
        };
        Self { scale: forest.scale, ticks }
    }

    /// Where nothing is changed.
    fn none(&self) -> f64 {
        match self.scale {
            Scale::Linear => 0.0,
            Scale::Log => 1.0,
        }
    }

    fn x(&self, value: f64) -> f64 {
        let (first, last) = (self.ticks[0], self.ticks[self.ticks.len() - 1]);
        let share = ((self.scale.units(value) - first) / (last - first)).clamp(0.0, 1.0);
        ((LEFT + (RIGHT - LEFT) * share) * 10.0).round() / 10.0
    }

    fn ticks(&self) -> Vec<Tick> {
        let decimals = decimals(&self.ticks);
        let tick = |tick: &f64| match self.scale {
            Scale::Linear => Tick { x: self.x(*tick), label: format!("{tick:.decimals$}") },
            Scale::Log if *tick < 0.0 => {
                Tick { x: self.x(tick.exp2()), label: format!("1/{}", (-tick).exp2()) }
            }
            Scale::Log => Tick { x: self.x(tick.exp2()), label: tick.exp2().to_string() },
        };
        self.ticks.iter().map(tick).collect()
    }
}

impl Scale {
    fn units(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Log => value.clamp(1.0 / RATIO_MAX, RATIO_MAX).log2(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(low: f64, value: f64, high: f64) -> Option<Estimate> {
        Some(Estimate { n: 8, value, range: Some([low, high]) })
    }

    fn forest(scale: Scale, rows: Vec<(String, Vec<Option<Estimate>>)>) -> Forest {
        Forest {
            title: "T".into(),
            axis: "change".into(),
            scale,
            series: vec!["a <1>".into(), "b".into()],
            rows,
        }
    }

    #[test]
    fn each_number_has_a_mark_and_names_are_escaped() {
        let rows = vec![
            ("blurry & co".to_owned(), vec![estimate(0.1, 0.2, 0.3), None]),
            (
                "x".repeat(40),
                vec![estimate(-0.1, 0.0, 0.1), Some(Estimate { n: 2, value: 0.5, range: None })],
            ),
        ];
        let svg = forest(Scale::Linear, rows).svg(true);
        assert_eq!((svg.matches("class=\"mark").count(), svg.matches("class=\"whisker").count()), (3, 2));
        assert!(svg.contains("blurry &amp; co") && svg.contains("a &lt;1&gt;: 0.2 (0.1 to 0.3)"), "{svg}");
        assert!(svg.contains("xmlns=") && svg.contains("<style>") && svg.contains('…'));
        assert!(!forest(Scale::Linear, vec![("a".into(), vec![None, None])]).has_marks());
    }

    #[test]
    fn ratios_lie_by_factors_around_one() {
        let rows = vec![("r".to_owned(), vec![estimate(0.2, 0.25, 0.5), estimate(2.0, 4.0, f64::INFINITY)])];
        let forest = forest(Scale::Log, rows);
        let axis = Axis::of(&forest);
        let labels: Vec<_> = axis.ticks().into_iter().map(|tick| tick.label).collect();
        assert_eq!(labels, ["1/8", "1/4", "1/2", "1", "2", "4", "8", "16", "32", "64"]);
        // Half is as far from 1 as double.
        let apart = |a: f64, b: f64| axis.x(a) - axis.x(b);
        assert!((apart(2.0, 1.0) - apart(1.0, 0.5)).abs() < 0.2);
        // The words may say that there is no end; the chart has one.
        assert!(["=\"NaN", "=\"inf"].iter().all(|number| !forest.svg(false).contains(number)));
    }
}
