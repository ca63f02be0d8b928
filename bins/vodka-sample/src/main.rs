//! `vodka-sample`: makes a picture from a prompt.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use vodka_cli::{Common, Session, hash_cache, runtime_dir};
use vodka_sampler::{RandomSource, SampleConfig, SampleEvent, SamplerName, ScheduleName, Size, sample};

/// Makes a picture from a prompt: torch's random numbers, A1111's samplers and `parameters` text.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Single-file checkpoint, diffusers folder, or merge recipe: `mix.toml`, or `mix.toml#OUTPUT` where it has several
    #[arg(long, value_name = "PATH")]
    checkpoint: PathBuf,
    /// Weight in the place of the recipe's, such as multiplier=0.3 or STEP.multiplier=0.3; several times for several
    #[arg(long = "weight", value_name = "NAME=X", value_parser = weight)]
    weights: Vec<(String, String)>,
    /// PNG whose `parameters` text says whatever is not said here: the same picture again
    #[arg(long, value_name = "PNG")]
    from: Option<PathBuf>,
    /// What the picture is to show, in A1111's prompt language
    #[arg(long, value_name = "TEXT", required_unless_present = "from")]
    prompt: Option<String>,
    /// What it is not to show
    #[arg(long, value_name = "TEXT")]
    negative: Option<String>,
    /// Seed of the noise, 0 to 4294967295 [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u32>,
    /// Source of random numbers: CPU (torch's) or NV (a GPU's, computed anywhere) [default: CPU]
    #[arg(long, value_name = "NAME")]
    rng: Option<RandomSource>,
    /// Seed of another noise, for variations [default: 0]
    #[arg(long, value_name = "N")]
    subseed: Option<u32>,
    /// How far to go towards that noise, 0 to 1 [default: 0]
    #[arg(long, value_name = "X")]
    subseed_strength: Option<f64>,
    /// ENSD: what is added to the seed for all noise but the first [default: 0]
    #[arg(long, value_name = "N")]
    ensd: Option<u32>,
    /// How much noise samplers add on the way, 0 to 1 [default: the sampler's]
    #[arg(long, value_name = "X")]
    eta: Option<f64>,
    /// Steps of the sampler, 1 to 1000 [default: 20]
    #[arg(long, value_name = "N")]
    steps: Option<u32>,
    /// CFG scale: how far to go from the negative prompt towards the prompt; 1 leaves the negative prompt out [default: 7]
    #[arg(long, value_name = "X")]
    cfg: Option<f64>,
    /// Width and height in pixels, multiples of 8 [default: 512x512]
    #[arg(long, value_name = "WxH")]
    size: Option<Size>,
    /// Sampler by A1111's name, such as "DPM++ 2M" [default: Euler]
    #[arg(long, value_name = "NAME")]
    sampler: Option<SamplerName>,
    /// Schedule by A1111's name, such as Karras [default: Automatic]
    #[arg(long, value_name = "NAME")]
    schedule: Option<ScheduleName>,
    /// Layer of the text encoder to use, counted from the end [default: 1]
    #[arg(long, value_name = "N")]
    clip_skip: Option<u32>,
    /// Device: cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: String,
    /// PNG file to write
    #[arg(long, short, value_name = "PATH")]
    output: PathBuf,
    #[command(flatten)]
    common: Common,
}

fn weight(text: &str) -> Result<(String, String), String> {
    let (name, weight) = text.split_once('=').ok_or_else(|| format!("expected NAME=X, found `{text}`"))?;
    Ok((name.to_owned(), weight.to_owned()))
}

fn main() -> ExitCode {
    let args = Args::parse();
    let config = SampleConfig {
        checkpoint: args.checkpoint,
        weights: args.weights.into_iter().collect(),
        from: args.from,
        prompt: args.prompt,
        negative: args.negative,
        seed: args.seed,
        rng: args.rng,
        subseed: args.subseed,
        subseed_strength: args.subseed_strength,
        ensd: args.ensd,
        eta: args.eta,
        steps: args.steps,
        cfg: args.cfg,
        size: args.size,
        sampler: args.sampler,
        schedule: args.schedule,
        clip_skip: args.clip_skip,
        device: args.device,
        output: args.output,
        runtime_dir: runtime_dir(),
        hash_cache: hash_cache(),
    };
    Session::start(args.common).stage(config.plan(), |plan, session| {
        let bar = session.progress("steps", u64::from(plan.settings.steps));
        sample::run(plan, session.interrupt(), &mut |event| match event {
            SampleEvent::Loading => bar.message("loading the model"),
            SampleEvent::Step { done, total } => {
                bar.message("");
                bar.set_total(total as u64);
                bar.set(done as u64);
            }
        })
    })
}
