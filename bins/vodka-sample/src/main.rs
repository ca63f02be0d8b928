//! `vodka-sample`: makes a picture from a prompt.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use vodka_cli::{Common, Session, runtime_dir};
use vodka_sampler::{SampleConfig, SampleEvent, SamplerName, ScheduleName, Size, sample};

/// Makes a picture from a prompt: torch's random numbers, A1111's samplers and `parameters` text.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Single-file checkpoint (.safetensors), or diffusers folder
    #[arg(long, value_name = "PATH")]
    checkpoint: PathBuf,
    /// What the picture is to show; at most 75 tokens count
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// What it is not to show
    #[arg(long, value_name = "TEXT", default_value = "")]
    negative: String,
    /// Seed of the first noise, 0 to 4294967295
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u32,
    /// Steps of the sampler, 1 to 1000
    #[arg(long, value_name = "N", default_value_t = 20)]
    steps: u32,
    /// CFG scale: how far to go from the negative prompt towards the prompt; 1 leaves the negative prompt out
    #[arg(long, value_name = "X", default_value_t = 7.0)]
    cfg: f64,
    /// Width and height in pixels, multiples of 8
    #[arg(long, value_name = "WxH", default_value_t = Size::default())]
    size: Size,
    /// Sampler: Euler or DDIM
    #[arg(long, value_name = "NAME", default_value = "Euler")]
    sampler: SamplerName,
    /// Schedule: Automatic or Uniform
    #[arg(long, value_name = "NAME", default_value = "Automatic")]
    schedule: ScheduleName,
    /// Layer of the text encoder to use, counted from the end
    #[arg(long, value_name = "N", default_value_t = 1)]
    clip_skip: u32,
    /// Device: cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: String,
    /// PNG file to write
    #[arg(long, short, value_name = "PATH")]
    output: PathBuf,
    #[command(flatten)]
    common: Common,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let config = SampleConfig {
        checkpoint: args.checkpoint,
        prompt: args.prompt,
        negative: args.negative,
        seed: args.seed,
        steps: args.steps,
        cfg: args.cfg,
        size: args.size,
        sampler: args.sampler,
        schedule: args.schedule,
        clip_skip: args.clip_skip,
        device: args.device,
        output: args.output,
        runtime_dir: runtime_dir(),
    };
    Session::start(args.common).stage(config.plan(), |plan, session| {
        let bar = session.progress("steps", u64::from(plan.settings.steps));
        sample::run(plan, session.interrupt(), &mut |event| match event {
            SampleEvent::Loading => bar.message("loading the checkpoint"),
            SampleEvent::Step { done, total } => {
                bar.message("");
                bar.set_total(total as u64);
                bar.set(done as u64);
            }
        })
    })
}
