//! The arguments of `vodka-curate segment`.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use vodka_captions::segment::{self, SegmentConfig, SegmentEvent};
use vodka_cli::Session;

#[derive(Args)]
pub struct Arguments {
    /// The TOML file with the segments (docs/query.md#segments)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

impl Arguments {
    pub fn run(self, session: &Session) -> ExitCode {
        let plan = SegmentConfig::read(&self.config).and_then(|config| config.plan());
        crate::stage(session, plan, |plan, session| {
            let bar = session.progress("files", 0);
            segment::run(plan, session.interrupt(), &mut |event| match event {
                SegmentEvent::Placing { files } => bar.set_total(files),
                SegmentEvent::Placed { files } => bar.set(files),
            })
        })
    }
}
