//! What training says while it runs and when it is through.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Deserializer, Serialize};
use vodka_stage::{Outcome, Report};

use crate::{AuditReport, Notice, Phase, SampleRound, Skipped, Speed, Spent, TrainPlan};

/// Something that happened in a training run.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum TrainEvent<'a> {
    /// A key does nothing, or not what it says.
    Notice(Notice),
    /// So many of the pictures are looked at.
    Audited {
        /// Pictures that are through.
        done: usize,
        /// All pictures.
        total: usize,
    },
    /// All pictures are looked at.
    Audit(Box<AuditReport>),
    /// So many of the pictures were looked at once more, for the run: those that the audit has seen are not decoded again.
    Loaded {
        /// Pictures that are through, bad ones among them.
        done: usize,
        /// All pictures.
        total: usize,
    },
    /// A picture cannot be read and is left out.
    Skipped(Skipped),
    /// Training begins, or goes on.
    Started {
        /// Batches of the whole run.
        steps: u64,
        /// Batches that an interrupted run has done already.
        done: u64,
        /// Batches of an epoch.
        steps_per_epoch: u64,
    },
    /// A batch is done.
    Step {
        /// From 1.
        epoch: u64,
        /// From 1, over all epochs.
        step: u64,
        /// The mean over the batch's pictures.
        loss: f32,
        /// How fast it goes.
        speed: Speed,
        /// What losses are multiplied by in fp16, after the step.
        grad_scale: Option<f32>,
    },
    /// Sample pictures are due. Who does not answer has none.
    Sample(SampleRound<'a>),
    /// The file that says which samples to make cannot be read, or not be used; what it said before is.
    SamplesUnreadable {
        /// What is wrong.
        reason: String,
    },
    /// Sample pictures cannot be made, and the run goes on without.
    SamplesFailed {
        /// Batches that are done.
        step: u64,
        /// What is wrong.
        reason: String,
    },
    /// The run was interrupted and its state is saved, but what is for other programs is not.
    InterruptedNotSaved {
        /// What is wrong.
        reason: String,
    },
    /// An epoch is done.
    Epoch {
        /// From 1.
        epoch: u64,
        /// All epochs of the run.
        epochs: u64,
        /// The mean over its batches.
        loss: f32,
        /// How fast it goes.
        speed: Speed,
    },
    /// The validation loss of a set has begun to rise: the model learns its pictures by heart.
    Diverges {
        /// Batches that were done.
        step: u64,
        /// The name of the set.
        set: String,
    },
    /// A step was left out, because something in it was infinite or not a number; the weights are as before it.
    StepLeftOut {
        /// `loss` or `gradient`.
        what: &'static str,
        /// From 1.
        epoch: u64,
        /// Its last batch, from 1, over all epochs.
        step: u64,
        /// The pictures of its batches, relative to the data folder.
        pictures: Vec<PathBuf>,
        /// What losses are multiplied by in fp16, from now on.
        scale: Option<f32>,
    },
    /// A set of pictures was validated on.
    Validated {
        /// Batches that were done.
        step: u64,
        /// The name of the set: `val`, `stabilize-train`, or one of the user's.
        set: String,
        /// The mean over its pictures.
        loss: f32,
    },
    /// A training state is written.
    StateSaved {
        /// The file.
        path: PathBuf,
    },
    /// A training state is damaged; the one before it is gone on from, if there is one.
    StateRefused {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// What frozen networks make cannot be kept, and is made again when it is needed.
    CacheFailed {
        /// The folder of the cache.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The cache cannot hold what one epoch needs, so most of it is made again in each.
    CacheTooSmall {
        /// About what this run needs.
        needed_bytes: u64,
        /// What the cache may hold.
        limit_bytes: u64,
    },
    /// What is in the output folder is of another run: it is not gone on from, and will be replaced.
    AnotherRun {
        /// The training state, or the record of a run that is through.
        path: PathBuf,
        /// In what the runs differ.
        change: String,
    },
    /// A checkpoint is written.
    Saved {
        /// The file.
        path: PathBuf,
    },
}

/// How validation went on one set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Validated {
    /// The name of the set.
    pub set: String,
    /// The loss before training. Losses that are not finite are `null` in JSON, and come back as NaN.
    #[serde(deserialize_with = "nan_for_null")]
    pub first: f32,
    /// The last loss.
    #[serde(deserialize_with = "nan_for_null")]
    pub last: f32,
    /// Whether it has been rising lately.
    pub diverges: bool,
}

/// JSON has no numbers that are not finite; serde_json writes `null` for them.
pub(crate) fn nan_for_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f32::NAN))
}

fn nans_for_nulls<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<(f32, f32)>, D::Error> {
    let losses: Option<(Option<f32>, Option<f32>)> = Option::deserialize(deserializer)?;
    Ok(losses.map(|(first, last)| (first.unwrap_or(f32::NAN), last.unwrap_or(f32::NAN))))
}

/// What a training run has done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TrainReport {
    /// How it ended.
    pub outcome: Outcome,
    /// Random seed.
    pub seed: u64,
    /// Pictures that were trained on.
    pub pictures: usize,
    /// Batches so far.
    pub steps: u64,
    /// Batches of the whole run.
    pub total_steps: u64,
    /// The mean loss of the first epoch, and of the last one; of what there is of it when interrupted. NaN (in JSON `null`)
    /// for an epoch of which all steps were left out.
    #[serde(deserialize_with = "nans_for_nulls")]
    pub losses: Option<(f32, f32)>,
    /// How validation went.
    #[serde(default)]
    pub validations: Vec<Validated>,
    /// The last batches of the steps that were left out, because something in them was infinite or not a number.
    #[serde(default)]
    pub left_out_steps: Vec<u64>,
    /// How many captions have more than 75 tokens, and are cut there.
    pub long_captions: usize,
    /// The checkpoints, oldest first.
    pub checkpoints: Vec<PathBuf>,
    /// Those with running means of the weights, oldest first.
    #[serde(default)]
    pub ema_checkpoints: Vec<PathBuf>,
    /// Pictures that were left out.
    pub skipped: Vec<Skipped>,
    /// Where the time went, since the run began or went on; on a GPU in the steps that were measured.
    #[serde(default)]
    pub spent: Vec<Spent>,
}

impl TrainReport {
    /// The report of a run that was interrupted before its first batch.
    pub(crate) fn nothing_yet(plan: &TrainPlan) -> Self {
        Self {
            outcome: Outcome::Interrupted,
            seed: plan.settings.seed,
            pictures: 0,
            steps: 0,
            total_steps: 0,
            losses: None,
            validations: Vec::new(),
            left_out_steps: Vec::new(),
            long_captions: 0,
            checkpoints: Vec::new(),
            ema_checkpoints: Vec::new(),
            skipped: Vec::new(),
            spent: Vec::new(),
        }
    }

    /// What a run took: `data 3 %, UNet and text encoder 80 %, ...`
    fn shares(&self) -> Option<String> {
        let total: f64 = self.spent.iter().map(|spent| spent.seconds).sum();
        let share = |spent: &Spent| format!("{} {:.0} %", spent.phase.name(), 100.0 * spent.seconds / total);
        let largest = self.spent.iter().max_by(|a, b| a.seconds.total_cmp(&b.seconds))?;
        let shares = self.spent.iter().map(share).collect::<Vec<_>>().join(", ");
        let hint = match largest.phase {
            Phase::Data => "; the step waits for pictures: cache them, or give it more processor cores",
            Phase::Vae => "; most of it went into the VAE: cache its results",
            Phase::Validation => "; most of it went into validation: do it less often",
            Phase::Samples => "; most of it went into sample pictures: make fewer",
            Phase::Saving => "; most of it went into saving: do it less often",
            Phase::Networks | Phase::Optimizer => "",
        };
        Some(format!("time: {shares}{hint}"))
    }
}

impl Report for TrainReport {
    fn outcome(&self) -> Outcome {
        self.outcome.with_skips(!self.skipped.is_empty())
    }
}

impl fmt::Display for TrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pictures, steps, total_steps, .. } = self;
        match self.outcome {
            Outcome::Unchanged => {
                write!(f, "nothing to do: trained already on {pictures} pictures, {steps} steps")
            }
            _ if steps < total_steps => {
                write!(f, "trained on {pictures} pictures, {steps} of {total_steps} steps")
            }
            _ => write!(f, "trained on {pictures} pictures, {steps} steps"),
        }?;
        if let Some((first, last)) = self.losses {
            write!(f, ", loss {first:.4} in the first epoch, {last:.4} in the last")?;
        }
        for Validated { set, first, last, diverges } in &self.validations {
            write!(f, "\n{set}: loss {first:.4} before training, {last:.4} in the end")?;
            if *diverges {
                write!(f, "; it has been rising: an earlier checkpoint may be better")?;
            }
        }
        if let Some(shares) = self.shares() {
            write!(f, "\n{shares}")?;
        }
        if let Some(first) = self.left_out_steps.first() {
            let count = self.left_out_steps.len();
            write!(
                f,
                "\n{count} steps were left out, the first at {first}: a loss or a gradient was not finite"
            )?;
        }
        if self.long_captions > 0 {
            write!(f, "\n{} captions have more than 75 tokens and are cut there", self.long_captions)?;
        }
        for Skipped { image, reason } in &self.skipped {
            write!(f, "\nskipped {image}: {reason}")?;
        }
        for path in self.checkpoints.iter().chain(&self.ema_checkpoints) {
            let verb = if self.outcome == Outcome::Unchanged { "found" } else { "wrote" };
            write!(f, "\n{verb} {}", path.display())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_that_are_not_finite_go_through_json() {
        let plain = r#"{"outcome": "done", "seed": 1, "pictures": 1, "steps": 1, "total_steps": 1, "losses": null,
            "long_captions": 0, "checkpoints": [], "skipped": []}"#;
        let mut report: TrainReport = serde_json::from_str(plain).unwrap();
        assert_eq!(report.losses, None);
        let set = || "val".to_owned();
        report.losses = Some((0.5, f32::NAN));
        report.validations =
            vec![Validated { set: set(), first: f32::INFINITY, last: 0.25, diverges: false }];
        let json = serde_json::to_string(&report).unwrap();
        let read: TrainReport = serde_json::from_str(&json).unwrap();
        let (first, last) = read.losses.unwrap();
        assert!(first == 0.5 && last.is_nan());
        assert!(read.validations[0].first.is_nan() && read.validations[0].last == 0.25);
        assert_eq!(serde_json::to_string(&read).unwrap(), json);
    }
}
