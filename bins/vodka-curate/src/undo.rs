//! The arguments of `undo`.

use std::path::PathBuf;

use clap::Args;
use vodka_captions::undo::UndoConfig;

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
    pub fn config(self) -> UndoConfig {
        let Self { images, force } = self;
        UndoConfig { images, force }
    }
}
