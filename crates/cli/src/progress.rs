//! A progress bar on stderr.

use crate::session::notice;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar with a rate and an estimate of what remains. Where stderr is no terminal only its lines are printed.
#[derive(Debug, Clone)]
pub struct Progress {
    bar: ProgressBar,
    quiet: bool,
}

impl Progress {
    pub(crate) fn new(unit: &str, total: u64, quiet: bool) -> Self {
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        let template = format!("{{wide_bar}} {{pos}}/{{len}} {unit}  {{per_sec}}  {{eta}} left  {{msg}}");
        let style = ProgressStyle::with_template(&template).expect("the template is ours");
        bar.set_style(style);
        Self { bar, quiet }
    }

    /// Sets how many there are, once it is known.
    pub fn set_total(&self, total: u64) {
        self.bar.set_length(total);
    }

    /// Sets how many were done before, which the rate does not count.
    pub fn start_at(&self, done: u64) {
        self.bar.set_position(done);
        self.bar.reset_eta();
    }

    /// Sets how many are done.
    pub fn set(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// Shows a few words behind the bar.
    pub fn message(&self, text: impl Into<String>) {
        self.bar.set_message(text.into());
    }

    /// Prints a line that stays, above the bar.
    pub fn line(&self, text: impl AsRef<str>) {
        if !self.quiet {
            self.bar.suspend(|| notice(text.as_ref()));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
