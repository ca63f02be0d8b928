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

impl Outcome {
    /// How a run ended that has or has not left inputs out. One that found everything there tells so as the first did, until
    /// nothing is left out any more: what a script is told depends on what there is, not on when it was made.
    #[must_use]
    pub fn with_skips(self, any: bool) -> Self {
        match self {
            Self::Done | Self::Unchanged if any => Self::Skipped,
            outcome => outcome,
        }
    }
}

/// The report of a stage: data for `--json`, text for people.
pub trait Report: Serialize + fmt::Display {
    /// How the run ended.
    fn outcome(&self) -> Outcome;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_told_each_time() {
        use Outcome::{Done, Interrupted, Skipped, Unchanged};
        let all = [Done, Unchanged, Skipped, Interrupted];
        assert_eq!(all.map(|outcome| outcome.with_skips(false)), all);
        let with = all.map(|outcome| outcome.with_skips(true));
        assert_eq!(with, [Skipped, Skipped, Skipped, Interrupted]);
    }
}
