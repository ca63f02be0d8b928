//! `vodka-sample upscale`: makes pictures larger.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use vodka_cli::{Common, Session, hash_cache, runtime_dir};
use vodka_sampler::{
    Precision, ResizeMode, Size, Tiles, UpscaleConfig, UpscaleEvent, UpscalerChoice, upscale,
};

#[derive(Debug, Args)]
pub(crate) struct Upscale {
    /// Picture, or folder of pictures
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// Larger picture (.png, .jpg or .webp), or folder for them
    #[arg(long, short, value_name = "PATH")]
    output: PathBuf,
    /// Lanczos, Nearest, or the file of an ESRGAN upscaler (.pth or .safetensors) [default: the recipe's, else Lanczos]
    #[arg(long, value_name = "NAME|FILE", required_unless_present = "recipe")]
    upscaler: Option<UpscalerChoice>,
    /// How many times as wide and as high [default: what the recipe says; without one, what the upscaler makes]
    #[arg(long, value_name = "X", conflicts_with = "size")]
    scale: Option<f64>,
    /// Width and height in pixels instead
    #[arg(long, value_name = "WxH")]
    size: Option<Size>,
    /// How pictures are brought to that: just, crop or fill
    #[arg(long, value_name = "NAME", default_value_t, requires = "size", conflicts_with = "recipe")]
    resize_mode: ResizeMode,
    /// Side in pixels of the tiles that an upscaler sees, 64 to 8192; 0 for the whole picture at once
    #[arg(long, value_name = "PX", default_value_t = Tiles::default().tile_px)]
    tile: u32,
    /// How far tiles overlap at least, in pixels
    #[arg(long, value_name = "PX", default_value_t = Tiles::default().overlap_px)]
    overlap: u32,
    /// What an upscaler computes in: fp32, fp16 or bf16 [default: fp32]
    #[arg(long, value_name = "NAME")]
    precision: Option<Precision>,
    /// Recipe (TOML) by which the larger picture is drawn again tile by tile, as Ultimate SD upscale does it, with the ControlNets that it
    /// names
    #[arg(long, value_name = "FILE", help_heading = "Draw again, tile by tile")]
    recipe: Option<PathBuf>,
    /// Checkpoint in place of the recipe's
    #[arg(long, value_name = "PATH", requires = "recipe", help_heading = "Draw again, tile by tile")]
    checkpoint: Option<PathBuf>,
    /// Prompt in place of the recipe's [default, if that has none: the picture's own]
    #[arg(long, value_name = "TEXT", requires = "recipe", help_heading = "Draw again, tile by tile")]
    prompt: Option<String>,
    /// Negative prompt in place of the recipe's [default, if that has none: the picture's own]
    #[arg(long, value_name = "TEXT", requires = "recipe", help_heading = "Draw again, tile by tile")]
    negative: Option<String>,
    /// Seed in place of the recipe's
    #[arg(long, value_name = "N", requires = "recipe", help_heading = "Draw again, tile by tile")]
    seed: Option<u32>,
    /// How much of the larger picture is given up, 0 to 1, in place of what the recipe says
    #[arg(long, value_name = "X", requires = "recipe", help_heading = "Draw again, tile by tile")]
    denoising: Option<f64>,
    /// Device: cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: String,
}

pub(crate) fn run(args: Upscale, common: Common) -> ExitCode {
    let config = UpscaleConfig {
        input: args.input,
        output: args.output,
        upscaler: args.upscaler,
        scale: args.scale,
        size: args.size,
        resize_mode: args.resize_mode,
        tiles: Tiles { tile_px: args.tile, overlap_px: args.overlap },
        precision: args.precision,
        recipe: args.recipe,
        checkpoint: args.checkpoint,
        prompt: args.prompt,
        negative: args.negative,
        seed: args.seed,
        denoising: args.denoising,
        device: args.device,
        runtime_dir: runtime_dir(),
        hash_cache: hash_cache(),
    };
    Session::start(common).stage(config.plan(), |plan, session| {
        let bar = session.progress("pictures", plan.count as u64);
        upscale::run(plan, session.interrupt(), &mut |event| match event {
            UpscaleEvent::Loading => bar.message("loading the upscaler"),
            UpscaleEvent::LoadingModel => bar.message("loading the model"),
            UpscaleEvent::Redrawing { done, total } => {
                bar.message(format!("drawing tile {} of {total}", done + 1));
            }
            UpscaleEvent::WithoutGraphs { reason } => bar.line(format!("without CUDA graphs: {reason}")),
            UpscaleEvent::Tile { done, total } => bar.message(format!("tile {done} of {total}")),
            UpscaleEvent::Pictures { done, .. } => bar.set(done as u64),
            UpscaleEvent::Skipped { picture, reason } => {
                bar.line(format!("skipped: {}: {reason}", picture.display()));
            }
        })
    })
}
