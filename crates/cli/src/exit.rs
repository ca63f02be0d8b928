//! Exit codes, and how an error is put into one line.

use std::{error::Error, fmt::Write, process::ExitCode};

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

/// An error with its causes, in one line.
pub fn explain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        // Some libraries repeat their cause in their own text.
        if !text.contains(&said) {
            let _ = write!(text, ": {said}");
        }
        cause = error.source();
    }
    text
}
