//! `diff` and `verify`.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use vodka_cli::{Exit, Session, hash_cache};
use vodka_merger::{compare, verify};
use vodka_stage::Outcome;

use crate::{Moved, recipe_at};

#[derive(Debug, Args)]
pub struct DiffArguments {
    /// The checkpoint that changes are counted from
    a: PathBuf,
    /// The other one
    b: PathBuf,
    /// Write the numbers of all blocks and tensors to this file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Draw the relative distance of each block
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// How many of the most changed tensors are shown
    #[arg(long, value_name = "N", default_value_t = 10)]
    most: usize,
}

impl DiffArguments {
    /// Prints the table, or all numbers as JSON.
    pub fn run(self, session: &Session) -> ExitCode {
        let comparison = match compare(&self.a, &self.b) {
            Ok(comparison) => comparison,
            Err(error) => return session.fail(&error, Exit::Failed),
        };
        let files = [(self.csv, comparison.csv()), (self.svg, comparison.svg())];
        for (path, text) in files {
            let Some(path) = path else { continue };
            if let Err(error) = vodka_stage::write_atomic(path, text) {
                return session.fail(&error, Exit::Failed);
            }
        }
        match session.common().json {
            true => session.print_json(&comparison, Exit::Done),
            false => session.print(comparison.text(self.most).trim_end(), Exit::Done),
        }
    }
}

#[derive(Debug, Args)]
pub struct VerifyArguments {
    /// A merged .safetensors file
    file: PathBuf,
    #[command(flatten)]
    moved: Moved,
}

impl VerifyArguments {
    /// Prints how many tensors are as the recipe makes them; fails where not all are.
    pub fn run(self, session: &Session) -> ExitCode {
        let recipe = match recipe_at(&self.file, None, &self.moved) {
            Ok(recipe) => recipe,
            Err(error) => return session.fail(&error, Exit::Failed),
        };
        let bar = session.progress("tensors", 0);
        let mut tell = |done, total| {
            bar.set_total(total);
            bar.set(done);
        };
        match verify(&self.file, recipe, hash_cache().as_deref(), session.interrupt(), &mut tell) {
            Err(error) => session.fail(&error, Exit::Failed),
            Ok(report) if report.outcome == Outcome::Done && !report.differing.is_empty() => {
                match session.common().json {
                    true => session.print_json(&report, Exit::Failed),
                    false => {
                        session.say(&report.to_string());
                        Exit::Failed.into()
                    }
                }
            }
            Ok(report) => session.finish(&report),
        }
    }
}
