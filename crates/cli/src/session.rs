//! One run of a binary, from the parsed arguments to the exit code.

use std::{
    error::Error,
    fmt,
    io::{self, Write},
    panic,
    process::ExitCode,
};

use serde::Serialize;
use tracing_subscriber::EnvFilter;
use vodka_stage::{Interrupt, Outcome, Report, explain};

use crate::{Exit, Progress};

/// The options that every binary has.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct Common {
    /// Print the resolved plan as JSON and do nothing
    #[arg(long, global = true)]
    pub dry_run: bool,
    /// Print the report as JSON on stdout
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress bar and no notices; errors only
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// A running binary: its options, and the flag that Ctrl-C raises.
#[derive(Debug)]
pub struct Session {
    common: Common,
    interrupt: Interrupt,
}

impl Session {
    /// Starts logging (`RUST_LOG`, warnings by default) and listens for Ctrl-C and the termination signal: the first
    /// asks the stage to save and stop, the second ends the process at once, with exit code 4.
    pub fn start(common: Common) -> Self {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
        hush_caught_panics();
        let interrupt = Interrupt::new();
        let flag = interrupt.clone();
        let handler = move || {
            if flag.is_raised() {
                // The user has asked twice.
                std::process::exit(4);
            }
            flag.raise();
            notice("stopping after the work in hand; once more to stop at once");
        };
        if let Err(error) = ctrlc::set_handler(handler) {
            tracing::warn!("Ctrl-C will not save first: {error}");
        }
        Self { common, interrupt }
    }

    /// The flag that Ctrl-C raises.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// The options of this run.
    pub fn common(&self) -> Common {
        self.common
    }

    /// A progress bar of `total` units.
    pub fn progress(&self, unit: &str, total: u64) -> Progress {
        Progress::new(unit, total, self.common.quiet)
    }

    /// Runs a stage: a wrong plan is a usage error; a dry run prints the plan; else the report is printed.
    pub fn stage<P: Serialize, R: Report, E: Error>(
        &self,
        plan: Result<P, E>,
        run: impl FnOnce(&P, &Self) -> Result<R, E>,
    ) -> ExitCode {
        self.stage_with(plan, run, |_| false)
    }

    /// The same where a run may find out too that the user has said what cannot be: a name that the data lack, say.
    pub fn stage_with<P: Serialize, R: Report, E: Error>(
        &self,
        plan: Result<P, E>,
        run: impl FnOnce(&P, &Self) -> Result<R, E>,
        is_usage: impl FnOnce(&E) -> bool,
    ) -> ExitCode {
        let plan = match plan {
            Ok(plan) => plan,
            Err(error) => return self.fail(&error, Exit::Usage),
        };
        // What cannot be told now could not be told in the report either, at the end of a night.
        if let Err(error) = serde_json::to_value(&plan) {
            return self.fail(&Untold(error), Exit::Usage);
        }
        if self.common.dry_run {
            return self.print_json(&plan, Exit::Done);
        }
        match run(&plan, self) {
            Ok(report) => self.finish(&report),
            Err(error) => {
                let exit = if is_usage(&error) { Exit::Usage } else { Exit::Failed };
                self.fail(&error, exit)
            }
        }
    }

    /// Prints a report and tells the exit code.
    pub fn finish<R: Report>(&self, report: &R) -> ExitCode {
        let exit = Exit::from(report.outcome());
        if self.common.json {
            return self.print_json(report, exit);
        }
        self.say(&report.to_string());
        if report.outcome() == Outcome::Interrupted {
            self.say("interrupted; the same command goes on from here");
        }
        exit.into()
    }

    /// Prints an error and its causes.
    pub fn fail(&self, error: &dyn Error, exit: Exit) -> ExitCode {
        notice(&format!("error: {}", explain(error)));
        exit.into()
    }

    /// Prints a line for people, on stderr.
    pub fn say(&self, text: &str) {
        if !self.common.quiet {
            notice(text);
        }
    }

    /// Prints data as JSON, on stdout.
    pub fn print_json(&self, value: &impl Serialize, exit: Exit) -> ExitCode {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.print(&text, exit),
            Err(error) => self.fail(&Untold(error), Exit::Failed),
        }
    }

    /// Prints data, on stdout.
    pub fn print(&self, text: &str, exit: Exit) -> ExitCode {
        match writeln!(io::stdout(), "{text}") {
            // Whoever closed the pipe has read enough.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => self.fail(&error, Exit::Failed),
            _ => exit.into(),
        }
    }
}

/// A plan or a report that is no JSON: it has a path that is not Unicode.
#[derive(Debug)]
struct Untold(serde_json::Error);

impl fmt::Display for Untold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this run cannot be told as JSON, whose text is UTF-8")
    }
}

impl Error for Untold {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

/// Lets panics that a stage makes reasons to skip a file (a decoder that fails on it) not tear the progress bar.
fn hush_caught_panics() {
    let tell = panic::take_hook();
    panic::set_hook(Box::new(move |panic| match vodka_stage::is_panic_caught() {
        true => tracing::debug!("caught: {panic}"),
        false => tell(panic),
    }));
}

/// Writes a line to stderr. Where nobody can read it (a closed pager, a log on a full disk) the work goes on all the
/// same, and the exit code tells.
pub(crate) fn notice(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
