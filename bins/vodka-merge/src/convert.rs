//! `vodka-merge convert`: from one form of a checkpoint to another.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use vodka_checkpoint::{
    LoraNames, Precision,
    convert::{ConvertConfig, ConvertEvent, Target, Vae, run},
};
use vodka_cli::Session;

#[derive(Args)]
pub(crate) struct Arguments {
    /// A .safetensors, .ckpt or .pt file, or a diffusers folder; a VAE alone or a LoRA will do
    input: PathBuf,
    /// What to write: .safetensors, .ckpt (or .pt, .pth, .bin), or a diffusers folder where the name ends in none of these
    output: PathBuf,
    /// safetensors, ckpt or diffusers, whatever the output's name
    #[arg(long, value_name = "FORM")]
    format: Option<Target>,
    /// fp16, bf16 or fp32; by default each tensor keeps its type
    #[arg(long, value_name = "TYPE")]
    precision: Option<Precision>,
    /// Drop all that is no weight: the EMA copy, the noise schedule, a loss
    #[arg(long)]
    prune: bool,
    /// Take the UNet's weights from the EMA copy
    #[arg(long)]
    use_ema: bool,
    /// Put this VAE in the place of the checkpoint's
    #[arg(long, value_name = "FILE", conflicts_with = "drop_vae")]
    vae: Option<PathBuf>,
    /// Leave the VAE out
    #[arg(long)]
    drop_vae: bool,
    /// Of a LoRA: the names to write, kohya or diffusers; by default its own
    #[arg(long, value_name = "NAMES")]
    names: Option<LoraNames>,
    /// Replace an output that is there
    #[arg(long)]
    overwrite: bool,
}

impl Arguments {
    pub(crate) fn run(self, session: &Session) -> ExitCode {
        let vae = match self.vae {
            Some(path) => Vae::Bake(path),
            None if self.drop_vae => Vae::Drop,
            None => Vae::Keep,
        };
        let Self { input, output, format: target, precision, prune, use_ema, names, overwrite, .. } = self;
        let config =
            ConvertConfig { input, output, target, precision, use_ema, prune, vae, names, overwrite };
        session.stage(config.plan(), |plan, session| {
            let bar = session.progress("bytes", 0);
            run(plan, session.interrupt(), &mut |event| match event {
                ConvertEvent::Started { bytes } => bar.set_total(bytes),
                ConvertEvent::Written { bytes } => bar.set(bytes),
            })
        })
    }
}
