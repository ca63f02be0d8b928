//! `extract-lora`.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use vodka_cli::{Exit, Session, hash_cache};
use vodka_merger::{Error, ExtractConfig, Precision, extract};

#[derive(Debug, Args)]
pub struct Arguments {
    /// The checkpoint that was trained
    tuned: PathBuf,
    /// The checkpoint that it was trained from
    base: PathBuf,
    /// The .safetensors file to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// The rank of linear layers and 1x1 convolutions
    #[arg(long, value_name = "N", default_value_t = 64)]
    rank: usize,
    /// The rank of 3x3 convolutions; without it the residual blocks are left out
    #[arg(long, value_name = "N")]
    conv_rank: Option<usize>,
    /// fp16, bf16 or fp32
    #[arg(long, value_name = "TYPE", default_value_t = Precision::F16)]
    precision: Precision,
    /// Where a module's numbers are cut off, as by kohya; 1 for not at all
    #[arg(long, value_name = "Q", default_value_t = 0.99)]
    clamp_quantile: f64,
    /// Leave the text encoder out where no weight of it has changed by more
    #[arg(long, value_name = "X", default_value_t = 0.01)]
    min_difference: f64,
}

impl Arguments {
    /// Extracts, and prints what came of it.
    pub fn run(self, session: &Session) -> ExitCode {
        let Self { tuned, base, output, rank, conv_rank, precision, clamp_quantile, min_difference } = self;
        let config = ExtractConfig {
            tuned,
            base,
            output,
            rank,
            conv_rank,
            precision,
            clamp_quantile,
            min_difference,
            hash_cache: hash_cache(),
        };
        if session.common().dry_run {
            return session.print_json(&config, Exit::Done);
        }
        let bar = session.progress("modules", 0);
        let done = extract(&config, session.interrupt(), &mut |done, total| {
            bar.set_total(total);
            bar.set(done);
        });
        match done {
            Ok(report) => session.finish(&report),
            Err(error @ (Error::Param { .. } | Error::OutputName { .. } | Error::OutputIsInput { .. })) => {
                session.fail(&error, Exit::Usage)
            }
            Err(error) => session.fail(&error, Exit::Failed),
        }
    }
}
