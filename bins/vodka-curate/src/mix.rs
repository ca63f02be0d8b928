//! `vodka-curate mix`: original and new captions, by a share.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use vodka_captions::mix::{self, MixConfig, MixEvent};
use vodka_cli::Session;

#[derive(Args)]
pub struct Mix {
    /// The table that `recaption` wrote (columns: image, original, new, model)
    #[arg(long, value_name = "FILE")]
    captions: PathBuf,
    /// The share of pictures that get the new caption; 0 to 1
    #[arg(long, value_name = "SHARE")]
    share: f64,
    /// Other seeds choose other pictures
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// The folder to write captions to, in the same subfolders as the pictures
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
}

impl Mix {
    fn config(self) -> MixConfig {
        let Self { captions, share, seed, output } = self;
        MixConfig { captions, share, seed, output }
    }
}

impl Mix {
    /// Runs the stage.
    pub fn run(self, session: &Session) -> ExitCode {
        crate::stage(session, self.config().plan(), |plan, session| {
            let bar = session.progress("captions", 0);
            mix::run(plan, session.interrupt(), &mut |event| match event {
                MixEvent::Started { images } => bar.set_total(images),
                MixEvent::Wrote { images } => bar.set(images),
            })
        })
    }
}
