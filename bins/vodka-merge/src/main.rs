//! Merges Stable Diffusion 1.x checkpoints.

mod convert;
mod inspect;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};
use vodka_cli::{Common, Session};
use vodka_merger::{MergeConfig, MergeEvent, Method, Precision, Result, VaePolicy, run};

/// Merges Stable Diffusion 1.x checkpoints, in fp32, one tensor at a time
///
/// A checkpoint is a single .safetensors file or a diffusers folder. The result is a single file whose metadata names
/// its parents. Exit codes: 0 done, 1 failed, 2 wrong usage, 4 interrupted.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

#[derive(Subcommand)]
enum Command {
    /// A * (1 - M) + B * M
    WeightedSum {
        /// The first checkpoint
        a: PathBuf,
        /// The second checkpoint, of which M is the share
        b: PathBuf,
        #[command(flatten)]
        options: Options,
    },
    /// A + M * (B - C)
    AddDifference {
        /// The checkpoint that the difference is added to
        a: PathBuf,
        /// The checkpoint whose difference from C is added
        b: PathBuf,
        /// What B is compared with
        c: PathBuf,
        #[command(flatten)]
        options: Options,
    },
    /// What a TOML file says, with the keys method, a, b, c, multiplier, output, precision and vae
    Run {
        /// The file; relative paths in it start at the current folder
        recipe: PathBuf,
    },
    /// Tell what is in a file: architecture, precision, parts, hashes, metadata, ranges of values
    Inspect(inspect::Arguments),
    /// Write a checkpoint in another form: format, precision, without its EMA copy, with another VAE
    Convert(convert::Arguments),
}

#[derive(Args)]
struct Options {
    /// M: for a weighted sum the share of B, 0 to 1; else any number
    #[arg(long, short, value_name = "M", allow_negative_numbers = true)]
    multiplier: f64,
    /// The .safetensors file to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// fp16, bf16 or fp32; by default that of A
    #[arg(long, value_name = "TYPE")]
    precision: Option<Precision>,
    /// Keep the VAE of A, or merge it like the rest
    #[arg(long, value_enum, default_value_t = Vae::A)]
    vae: Vae,
}

#[derive(Clone, Copy, ValueEnum)]
enum Vae {
    /// That of A
    A,
    /// Merged, as A1111 does
    Merge,
}

impl Command {
    fn run(self, session: &Session) -> ExitCode {
        match self {
            Self::Inspect(arguments) => arguments.run(session),
            Self::Convert(arguments) => arguments.run(session),
            merge => merge.merge(session),
        }
    }

    fn merge(self, session: &Session) -> ExitCode {
        session.stage(self.config().and_then(|config| config.plan()), |plan, session| {
            let bar = session.progress("tensors", 0);
            run(plan, session.interrupt(), &mut |event| match event {
                MergeEvent::Started { tensors } => bar.set_total(tensors),
                MergeEvent::Merged { tensors } => bar.set(tensors),
            })
        })
    }

    fn config(self) -> Result<MergeConfig> {
        let (method, a, b, c, options) = match self {
            Self::WeightedSum { a, b, options } => (Method::WeightedSum, a, b, None, options),
            Self::AddDifference { a, b, c, options } => (Method::AddDifference, a, b, Some(c), options),
            Self::Run { recipe } => return MergeConfig::read(&recipe),
            Self::Inspect(_) | Self::Convert(_) => unreachable!("these merge nothing"),
        };
        let Options { multiplier, output, precision, vae } = options;
        let vae = match vae {
            Vae::A => VaePolicy::A,
            Vae::Merge => VaePolicy::Merge,
        };
        Ok(MergeConfig { method, a, b, c, multiplier, output, precision, vae })
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let session = Session::start(arguments.common);
    arguments.command.run(&session)
}
