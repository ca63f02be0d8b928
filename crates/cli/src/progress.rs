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

/// A time in its two largest units: `2 h 05 min`, `3 min 20 s`, `12 s`.
pub fn in_words(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match (hours, minutes) {
        (0, 0) => format!("{seconds} s"),
        (0, _) => format!("{minutes} min {:02} s", seconds % 60),
        (0..48, _) => format!("{hours} h {:02} min", minutes % 60),
        _ => format!("{} d {:02} h", hours / 24, hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_two_units() {
        let said = [0.2, 59.6, 200.0, 7500.0, 200_000.0].map(in_words);
        assert_eq!(said, ["0 s", "1 min 00 s", "3 min 20 s", "2 h 05 min", "2 d 07 h"]);
    }
}
