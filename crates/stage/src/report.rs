//! What a stage says when it is through.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a run ended, short of failing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Everything was done.
    Done,
    /// The outputs were already there, made from the same inputs with the same settings.
    Unchanged,
    /// Everything was done that could be; some inputs were skipped and are listed.
    Skipped,
    /// Stopped on request; the same command goes on from there.
    Interrupted,
}

/// The report of a stage: data for `--json`, text for people.
pub trait Report: Serialize + fmt::Display {
    /// How the run ended.
    fn outcome(&self) -> Outcome;
}
