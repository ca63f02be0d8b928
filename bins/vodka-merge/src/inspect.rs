//! `vodka-merge inspect`: what is in a file.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use vodka_checkpoint::inspect::{Depth, inspect};
use vodka_cli::{Exit, Session};

#[derive(Args)]
pub(crate) struct Arguments {
    /// A .safetensors, .ckpt or .pt file, or a diffusers folder; a VAE or a LoRA will do
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Do not hash the files
    #[arg(long)]
    no_hashes: bool,
    /// Do not read the weights: no ranges of values, no NaN or infinities
    #[arg(long)]
    no_values: bool,
}

impl Arguments {
    pub(crate) fn run(self, session: &Session) -> ExitCode {
        let depth = Depth { hashes: !self.no_hashes, values: !self.no_values };
        let mut exit = ExitCode::from(Exit::Done);
        for path in self.files {
            let printed = match inspect(&path, depth) {
                Ok(found) if session.common().json => session.print_json(&found, Exit::Done),
                Ok(found) => session.print(found.to_string().trim_end(), Exit::Done),
                Err(error) => session.fail(&error, Exit::Failed),
            };
            if printed != ExitCode::from(Exit::Done) {
                exit = printed;
            }
        }
        exit
    }
}
