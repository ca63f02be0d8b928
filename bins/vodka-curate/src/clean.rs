//! `vodka-curate clean`: a tag table through cleaning rules.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use vodka_captions::clean::{self, CleanConfig, CleanEvent};
use vodka_cli::Session;

#[derive(Args)]
pub struct Clean {
    /// The tag table, Parquet or CSV (columns: image, tag_id, tag, category, score)
    #[arg(long, value_name = "FILE")]
    tags: PathBuf,
    /// The rules file, TOML; docs/cleaning.md tells what may stand in it
    #[arg(long, value_name = "FILE")]
    rules: PathBuf,
    /// The tag table to write, .parquet or .csv
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
}

impl Clean {
    fn config(self) -> CleanConfig {
        let Self { tags, rules, output } = self;
        CleanConfig { tags, rules, output }
    }
}

impl Clean {
    /// Runs the stage.
    pub fn run(self, session: &Session) -> ExitCode {
        crate::stage(session, self.config().plan(), |plan, session| {
            let bar = session.progress("images", 0);
            clean::run(plan, session.interrupt(), &mut |event| match event {
                CleanEvent::Started { images } => bar.set_total(images),
                CleanEvent::Cleaned { images } => bar.set(images),
            })
        })
    }
}
