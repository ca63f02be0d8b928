//! `vodka-sample`: makes a picture from a prompt, and pictures larger.

mod upscale;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use vodka_cli::{Common, Session, hash_cache, runtime_dir};
use vodka_sampler::{
    ControlConfig, Emphasis, Precision, RandomSource, ResizeMode, SampleConfig, SampleEvent, SamplerName,
    ScheduleName, Size, sample,
};

/// Makes a picture from a prompt: torch's random numbers, A1111's samplers and `parameters` text
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 done but some pictures were skipped (listed), 4 interrupted.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    sample: Option<Sample>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make pictures larger, by a rule or by an ESRGAN upscaler
    Upscale(upscale::Upscale),
}

#[derive(Debug, Args)]
struct Sample {
    /// Single-file checkpoint, diffusers folder, or merge recipe: `mix.toml`, or `mix.toml#OUTPUT` where it has several
    #[arg(long, value_name = "PATH")]
    checkpoint: PathBuf,
    /// Weight in the place of the recipe's, such as multiplier=0.3 or STEP.multiplier=0.3; several times for several
    #[arg(long = "weight", value_name = "NAME=X", value_parser = weight)]
    weights: Vec<(String, String)>,
    /// Picture whose `parameters` text says whatever is not said here: the same picture again
    #[arg(long, value_name = "PICTURE")]
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
    /// What brackets in prompts do: Original, "No norm", Ignore or None [default: Original]
    #[arg(long, value_name = "NAME")]
    emphasis: Option<Emphasis>,
    /// Make a picture whose edges fit together
    #[arg(long)]
    tiling: bool,
    /// Size of the picture whose noise is put into the middle of this one's
    #[arg(long, value_name = "WxH")]
    seed_resize_from: Option<Size>,
    /// Picture to make this one from
    #[arg(long, value_name = "PICTURE", help_heading = "Image to image")]
    init_image: Option<PathBuf>,
    /// How much of that, or of the larger picture in a hires pass, is given up, 0 to 1 [default: 0.75, of a hires pass 0.7]
    #[arg(long, value_name = "X", help_heading = "Image to image")]
    denoising: Option<f64>,
    /// How it is brought to the size: just, crop or fill [default: just]
    #[arg(long, value_name = "NAME", help_heading = "Image to image")]
    resize_mode: Option<ResizeMode>,
    /// Make all steps, over a finer schedule, and not the share of them that --denoising says
    #[arg(long, help_heading = "Image to image")]
    exact_steps: bool,
    /// ControlNet with its picture, such as model=tile.pth,image=a.png,weight=0.8,end=0.7; may be given again. Keys: model, image
    /// (the --init-image where absent), weight (1), start (0), end (1), mode=balanced|prompt|control, preprocessor=none|tile_resample|
    /// tile_colorfix|tile_colorfix+sharp|blur_gaussian with rate (1), variation (8), sharpness (1), sigma (9) and resolution (512) or
    /// pixel_perfect=true, resize_mode=just|crop|fill (crop)
    #[arg(long = "control", value_name = "KEY=X,...", help_heading = "ControlNet")]
    controls: Vec<ControlConfig>,
    /// Folder of ControlNets, for those that the text of a picture names
    #[arg(long, value_name = "DIR", help_heading = "ControlNet")]
    control_dir: Option<PathBuf>,
    /// Make the picture larger in a second pass, so many times as wide and as high [default, if another --hires option is given: 2]
    #[arg(long, value_name = "X", conflicts_with = "hires_size", help_heading = "Hires fix")]
    hires_scale: Option<f64>,
    /// Make it this large; a side of 0 is the one that fits the other
    #[arg(long, value_name = "WxH", help_heading = "Hires fix")]
    hires_size: Option<Size>,
    /// Latent, "Latent (antialiased)", "Latent (bicubic)", "Latent (bicubic antialiased)", "Latent (nearest)", "Latent
    /// (nearest-exact)", Lanczos, Nearest, or the file of an ESRGAN upscaler [default: Latent]
    #[arg(long, value_name = "NAME|FILE", help_heading = "Hires fix")]
    hires_upscaler: Option<String>,
    /// Steps of the second pass [default: those of the first]
    #[arg(long, value_name = "N", help_heading = "Hires fix")]
    hires_steps: Option<u32>,
    /// Its sampler [default: the first's]
    #[arg(long, value_name = "NAME", help_heading = "Hires fix")]
    hires_sampler: Option<SamplerName>,
    /// Its schedule [default: the first's]
    #[arg(long, value_name = "NAME", help_heading = "Hires fix")]
    hires_schedule: Option<ScheduleName>,
    /// Its prompt [default: the first's]
    #[arg(long, value_name = "TEXT", help_heading = "Hires fix")]
    hires_prompt: Option<String>,
    /// Its negative prompt [default: the first's]
    #[arg(long, value_name = "TEXT", help_heading = "Hires fix")]
    hires_negative: Option<String>,
    /// Folder of upscalers, for those that the text of a picture names
    #[arg(long, value_name = "DIR", help_heading = "Hires fix")]
    upscaler_dir: Option<PathBuf>,
    /// Pictures that are made at once [default: 1]
    #[arg(long, value_name = "N", help_heading = "Several pictures")]
    batch_size: Option<u32>,
    /// How many times; the seed goes up by one from picture to picture [default: 1]
    #[arg(long, value_name = "N", help_heading = "Several pictures")]
    batch_count: Option<u32>,
    /// Folder of LoRA files, for <lora:name:weight> in the prompt
    #[arg(long, value_name = "DIR", help_heading = "What prompts may name")]
    lora_dir: Option<PathBuf>,
    /// Folder of textual-inversion embeddings, which prompts name by the names of the files
    #[arg(long, value_name = "DIR", help_heading = "What prompts may name")]
    embedding_dir: Option<PathBuf>,
    /// Folder of wildcards: __name__ becomes a line of name.txt, chosen by the seed
    #[arg(long, value_name = "DIR", help_heading = "What prompts may name")]
    wildcard_dir: Option<PathBuf>,
    /// File of styles, A1111's styles.csv; may be given again
    #[arg(long = "styles", value_name = "FILE", help_heading = "What prompts may name")]
    style_files: Vec<PathBuf>,
    /// Style of those files to add to the prompts; may be given again
    #[arg(
        long = "style",
        value_name = "NAME",
        requires = "style_files",
        help_heading = "What prompts may name"
    )]
    styles: Vec<String>,
    /// VAE in place of the checkpoint's: a file, or a diffusers folder
    #[arg(long, value_name = "PATH", help_heading = "Networks")]
    vae: Option<PathBuf>,
    /// What text encoder and UNet compute in: fp32, fp16 or bf16 [default: fp32]
    #[arg(long, value_name = "NAME", help_heading = "Networks")]
    precision: Option<Precision>,
    /// What the VAE computes in; a picture that comes out as NaN is done again in fp32 [default: fp32]
    #[arg(long, value_name = "NAME", help_heading = "Networks")]
    vae_precision: Option<Precision>,
    /// Side in pixels of the tiles in which the VAE takes large pictures, a multiple of 8 from 64 to 8192; 0 for whole pictures
    /// [default: whole where memory suffices, else 512]
    #[arg(long, value_name = "PX", help_heading = "Networks")]
    vae_tile: Option<u32>,
    /// Device: cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: String,
    /// Picture to write: .png, .jpg or .webp; of several, a.png becomes a-1.png, a-2.png, ...
    #[arg(long, short, value_name = "PATH")]
    output: PathBuf,
}

fn weight(text: &str) -> Result<(String, String), String> {
    let (name, weight) = text.split_once('=').ok_or_else(|| format!("expected NAME=X, found `{text}`"))?;
    Ok((name.to_owned(), weight.to_owned()))
}

fn main() -> ExitCode {
    let Arguments { command, sample, common } = Arguments::parse();
    match (command, sample) {
        (Some(Command::Upscale(args)), _) => upscale::run(args, common),
        (None, Some(args)) => run(args, common),
        (None, None) => unreachable!("clap asks for a checkpoint where there is no subcommand"),
    }
}

fn run(args: Sample, common: Common) -> ExitCode {
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
        emphasis: args.emphasis,
        tiling: args.tiling.then_some(true),
        seed_resize_from: args.seed_resize_from,
        init_image: args.init_image,
        denoising: args.denoising,
        resize_mode: args.resize_mode,
        exact_steps: args.exact_steps.then_some(true),
        controls: args.controls,
        control_dir: args.control_dir,
        hires_scale: args.hires_scale,
        hires_size: args.hires_size,
        hires_upscaler: args.hires_upscaler,
        hires_steps: args.hires_steps,
        hires_sampler: args.hires_sampler,
        hires_schedule: args.hires_schedule,
        hires_prompt: args.hires_prompt,
        hires_negative: args.hires_negative,
        upscaler_dir: args.upscaler_dir,
        batch_size: args.batch_size,
        batch_count: args.batch_count,
        precision: args.precision,
        vae_precision: args.vae_precision,
        vae_tile: args.vae_tile,
        vae: args.vae,
        lora_dir: args.lora_dir,
        embedding_dir: args.embedding_dir,
        wildcard_dir: args.wildcard_dir,
        style_files: args.style_files,
        styles: args.styles,
        device: args.device,
        output: args.output,
        runtime_dir: runtime_dir(),
        hash_cache: hash_cache(),
    };
    Session::start(common).stage(config.plan(), |plan, session| {
        let bar = session.progress("steps", u64::from(plan.pictures[0].settings.steps));
        sample::run(plan, session.interrupt(), &mut |event| match event {
            SampleEvent::Loading => bar.message("loading the model"),
            SampleEvent::WithoutGraphs { reason } => bar.line(format!("without CUDA graphs: {reason}")),
            SampleEvent::Step { done, total } => {
                bar.message("");
                bar.set_total(total as u64);
                bar.set(done as u64);
            }
        })
    })
}
