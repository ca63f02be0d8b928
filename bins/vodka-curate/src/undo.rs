//! The arguments of `undo`.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use vodka_captions::undo::{self, UndoConfig};
use vodka_cli::Session;

#[derive(Args)]
pub struct Undo {
    /// The folder of pictures in which captions were changed in place
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// Put originals back also where captions were edited since
    #[arg(long)]
    force: bool,
}

impl Undo {
    /// Runs the stage.
    pub fn run(self, session: &Session) -> ExitCode {
        crate::stage(session, self.config().plan(), |plan, session| {
            let bar = session.progress("files", 0);
            undo::run(plan, session.interrupt(), &mut |done| bar.set(done))
        })
    }

    fn config(self) -> UndoConfig {
        let Self { images, force } = self;
        UndoConfig { images, force }
    }
}
