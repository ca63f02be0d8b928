//! Exit codes.

use std::process::ExitCode;

use vodka_stage::Outcome;

/// How a process ends, as its exit code tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: everything was done, or was there already.
    Done,
    /// 1: failed.
    Failed,
    /// 2: the command line or a configuration is wrong.
    Usage,
    /// 3: finished, but some inputs were skipped (and are listed).
    Skipped,
    /// 4: interrupted; the same command goes on from there.
    Interrupted,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Skipped => 3,
            Exit::Interrupted => 4,
        })
    }
}

impl From<Outcome> for Exit {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done | Outcome::Unchanged => Self::Done,
            Outcome::Skipped => Self::Skipped,
            Outcome::Interrupted => Self::Interrupted,
        }
    }
}
