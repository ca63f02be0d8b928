//! The learning-rate finder's numbers: which rates, where to stop, what to suggest.
//!
//! Smith 2017, arXiv:1506.01186, section 3.3. The loss is not the training loss, which is noise for the most part (each
//! batch has its own timesteps), but that of fixed pictures with fixed noise.

use std::{
    fmt::{self, Write as _},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};
use vodka_stage::{Outcome, Report};

use crate::{
    Error, Result,
    report::nan_for_null,
    watch::{Line, Marks, Plot, smoothed},
};

/// How rates are tried.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FinderSettings {
    /// The first and smallest rate of the UNet. The text encoder's keeps its proportion to it.
    pub lr_min: f64,
    /// The last and largest.
    pub lr_max: f64,
    /// Optimizer steps from the first to the last.
    pub steps: u64,
}

impl Default for FinderSettings {
    /// 100 steps from 1e-8 to 1e-3.
    fn default() -> Self {
        Self { lr_min: 1e-8, lr_max: 1e-3, steps: 100 }
    }
}

impl FinderSettings {
    /// Whether rates can be tried so.
    pub fn check(&self) -> Result<()> {
        let within = |key, value: String, good: bool, expected| match good {
            true => Ok(()),
            false => Err(Error::OutOfRange { key, value, expected }),
        };
        let (min, max) = (self.lr_min, self.lr_max);
        within("lr-min", min.to_string(), min.is_finite() && min > 0.0, "a number above 0")?;
        within("lr-max", max.to_string(), max.is_finite() && max > min, "a number above the smallest rate")?;
        within("lr-steps", self.steps.to_string(), (10..=100_000).contains(&self.steps), "10 to 100000")
    }

    /// The rate of optimizer step `n`, counted from 0: each is the same factor larger than the one before.
    pub fn rate(&self, n: u64) -> f64 {
        let share = n as f64 / (self.steps - 1) as f64;
        self.lr_min * (self.lr_max / self.lr_min).powf(share)
    }
}

/// A rate that was tried.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// The rate of the UNet.
    pub lr: f64,
    /// The loss after the step with it; NaN (in JSON `null`) where it is not finite.
    #[serde(deserialize_with = "nan_for_null")]
    pub loss: f32,
}

/// The loss at which there is no sense in going on: so many times what has been won below the first, above the first.
const DIVERGED: f64 = 4.0;

/// Whether the networks are lost: the loss is not finite, or four times the first, or has risen over the first by four
/// times what it ever fell below it, and by a twentieth.
pub(crate) fn diverged(first: f32, tried: &[Tried]) -> bool {
    let first = f64::from(first);
    let Some(last) = tried.last().map(|tried| f64::from(tried.loss)) else { return false };
    let best = tried.iter().map(|tried| f64::from(tried.loss)).fold(first, f64::min);
    let risen = last - first;
    !last.is_finite()
        || last > DIVERGED * first
        || (risen > 0.05 * first && risen > DIVERGED * (first - best))
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FinderReport {
    /// How it ended.
    pub outcome: Outcome,
    /// The loss before the first step.
    #[serde(deserialize_with = "nan_for_null")]
    pub first: f32,
    /// All rates that were tried, smallest first.
    pub tried: Vec<Tried>,
    /// The rate at which the loss fell fastest; none where it never fell.
    pub suggestion: Option<f64>,
    /// The rate at which the loss was lowest: larger ones do harm.
    pub limit: Option<f64>,
    /// Whether the end was the networks' and not the sweep's.
    pub diverged: bool,
    /// The table.
    pub table: PathBuf,
    /// The graph.
    pub graph: PathBuf,
}

impl Report for FinderReport {
    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

/// The rates of the steepest fall and of the lowest loss, smoothed; none where the loss never fell by a thousandth.
pub(crate) fn suggestion(first: f32, tried: &[Tried]) -> Option<(f64, f64)> {
    let losses: Vec<_> = tried.iter().map(|tried| tried.loss).filter(|loss| loss.is_finite()).collect();
    let smooth: Vec<_> = smoothed(&losses, window(losses.len())).collect();
    let lowest = (0..smooth.len()).min_by(|a, b| smooth[*a].total_cmp(&smooth[*b]))?;
    if smooth[lowest] > 0.999 * f64::from(first) {
        return None;
    }
    // By equal factors of the rate, so differences are slopes.
    let slope = |i: usize| smooth[i] - smooth[i - 1];
    let steepest = (1..=lowest).min_by(|a, b| slope(*a).total_cmp(&slope(*b))).unwrap_or(lowest);
    Some((tried[steepest].lr, tried[lowest].lr))
}

fn window(count: usize) -> usize {
    count / 20
}

/// The table, CSV.
pub(crate) fn table(tried: &[Tried]) -> String {
    let mut text = "step,lr_unet,loss,smoothed\n".to_owned();
    let losses: Vec<_> = tried.iter().map(|tried| tried.loss).collect();
    for (i, (tried, smooth)) in tried.iter().zip(smoothed(&losses, window(losses.len()))).enumerate() {
        let _ = writeln!(text, "{},{:e},{},{smooth:.6}", i + 1, tried.lr, tried.loss);
    }
    text
}

/// The graph.
pub(crate) fn graph(name: &str, first: f32, tried: &[Tried]) -> Plot {
    let losses: Vec<_> = tried.iter().map(|tried| tried.loss).collect();
    let points = |values: Vec<f64>| tried.iter().map(|tried| tried.lr).zip(values).collect::<Vec<_>>();
    // What went wild would press the rest flat.
    let shown = |loss: f64| loss.min(1.5 * f64::from(first));
    let line = |label: &str, marks, values: Vec<f64>| Line {
        label: label.to_owned(),
        marks,
        points: points(values.into_iter().map(shown).collect()),
    };
    Plot {
        title: format!("Loss of {name} by learning rate"),
        x: "learning rate of the UNet".into(),
        y: "loss".into(),
        logarithmic: true,
        lines: vec![
            line("loss", Marks::Band, losses.iter().copied().map(f64::from).collect()),
            line("smoothed", Marks::Line, smoothed(&losses, window(losses.len())).collect()),
        ],
    }
}

impl fmt::Display for FinderReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.tried.len();
        match (self.suggestion, self.limit) {
            (Some(lr), Some(limit)) => write!(
                f,
                "suggested learning rate {lr:.1e}: there the loss fell fastest; above {limit:.1e} it rose again"
            )?,
            _ => write!(
                f,
                "no learning rate to suggest: the loss never fell below its first, {:.4}",
                self.first
            )?,
        }
        if let Some(last) = self.tried.last() {
            let why = if self.diverged { ", where the loss went wild" } else { "" };
            write!(f, "\ntried {count} rates up to {:.1e}{why}; the networks are as they were", last.lr)?;
        }
        write!(f, "\nwrote {}\nwrote {}", self.table.display(), self.graph.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A loss that falls most around 1e-5, is lowest near 1e-4, and goes wild then.
    fn sweep(settings: &FinderSettings) -> Vec<Tried> {
        let loss = |lr: f64| 1.0 - 0.5 / (1.0 + (1e-5 / lr).powi(2)) + (lr / 3e-4).powi(2);
        (0..settings.steps).map(|n| settings.rate(n)).map(|lr| Tried { lr, loss: loss(lr) as f32 }).collect()
    }

    #[test]
    fn rates_go_by_equal_factors_from_the_first_to_the_last() {
        let settings = FinderSettings { lr_min: 1e-8, lr_max: 1e-4, steps: 5 };
        let close = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-9;
        assert!((0..5).zip([1e-8, 1e-7, 1e-6, 1e-5, 1e-4]).all(|(n, lr)| close(settings.rate(n), lr)));
    }

    #[test]
    fn the_suggestion_is_where_the_loss_falls_fastest() {
        let tried = sweep(&FinderSettings::default());
        let (lr, limit) = suggestion(1.0, &tried).unwrap();
        assert!((3e-6..4e-5).contains(&lr), "{lr:e}");
        assert!((5e-5..2e-4).contains(&limit), "{limit:e}");
        let flat: Vec<_> = tried.iter().map(|tried| Tried { loss: 1.0, ..*tried }).collect();
        assert_eq!(suggestion(1.0, &flat), None);
    }

    #[test]
    fn a_sweep_stops_when_the_loss_goes_wild() {
        let tried = sweep(&FinderSettings::default());
        let end = (1..=tried.len()).find(|n| diverged(1.0, &tried[..*n])).unwrap();
        assert!(tried[end - 1].lr > 3e-4, "{:?}", tried[end - 1]);
        assert!(diverged(1.0, &[Tried { lr: 1.0, loss: f32::NAN }]) && !diverged(1.0, &[]));
    }

    #[test]
    fn table_and_graph_have_each_rate() {
        let tried = sweep(&FinderSettings::default());
        let table = table(&tried);
        assert_eq!(table.lines().count(), 101);
        assert!(table.lines().nth(1).unwrap().starts_with("1,1e-8,0.99999"), "{table}");
        assert!(graph("v3", 1.0, &tried).svg().contains("\n1e-5\n"));
    }

    #[test]
    fn impossible_sweeps_are_refused() {
        let said = |settings: FinderSettings| settings.check().unwrap_err().to_string();
        let good = FinderSettings::default();
        assert_eq!(said(FinderSettings { steps: 1, ..good }), "`lr-steps` is 1, expected 10 to 100000");
        assert!(said(FinderSettings { lr_max: 1e-9, ..good }).starts_with("`lr-max` is 0.000000001"));
        assert!(said(FinderSettings { lr_min: 0.0, ..good }).starts_with("`lr-min` is 0"));
    }
}
