//! Pictures, a change of the checkpoint and a grid, timed as the sampler makes them.

use std::{
    error::Error,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    time::Instant,
};

use clap::{Parser, Subcommand};
use tch::{Kind, Tensor, no_grad};
use vodka_checkpoint::{Checkpoint, ControlNetConfig, RrdbConfig, VaeConfig};
use vodka_sampler::{
    Batch, GridCheckpoint, GridConfig, GridPrompt, Hires, HiresUpscaler, ImageToImage, Load, ModelSource,
    Pipeline, Precision, ResizeMode, RgbImage, SamplerName, ScheduleName, Settings, Size, Tiles,
    UpscaleConfig, UpscaleEvent, Upscaler, UpscalerChoice, grid, upscale, write_picture,
};
use vodka_sd15::{
    ControlNet, Network, Rrdb, StableDiffusion, UNet, Vae, VaeTiles, memory, native, parse_device,
};
use vodka_stage::{Interrupt, parse_toml};

use crate::{median, peak_of_process, synchronise, without_graphs};

/// The sampler, timed; CFG scale 7.5, as `peer_sample.py` has it
#[derive(Debug, Parser)]
pub struct Options {
    /// What is timed
    #[command(subcommand)]
    pub what: What,
    /// File or diffusers folder of the model
    #[arg(long, global = true, default_value = "model")]
    pub model: PathBuf,
    /// Steps of a picture
    #[arg(long, global = true, default_value_t = 20)]
    pub steps: u32,
    /// Width and height in pixels
    #[arg(long, global = true, default_value_t = 512)]
    pub size: u32,
    /// cpu, cuda or cuda:N
    #[arg(long, global = true, default_value = "cpu")]
    pub device: String,
    /// fp32, bf16 or fp16
    #[arg(long, global = true, default_value = "fp32")]
    pub dtype: String,
    /// The sampler. Its calls of the UNet must be as many as the peer's, whose DDIM makes one a step; A1111's, and so ours, makes
    /// one less
    #[arg(long, global = true, default_value = "Euler")]
    pub sampler: SamplerName,
    /// The spacing of the noise levels
    #[arg(long, global = true, default_value = "Automatic")]
    pub schedule: ScheduleName,
    /// No CUDA graphs
    #[arg(long, global = true)]
    pub no_graphs: bool,
    /// The folder with libtorch/lib/libtorch_cuda.so
    #[arg(long, global = true, default_value = ".runtime")]
    pub runtime: PathBuf,
}

/// What is timed.
#[derive(Debug, Clone, Subcommand)]
pub enum What {
    /// Pictures of one prompt: seconds for all, bytes at most
    Pictures {
        /// Pictures at once
        #[arg(long, default_value_t = 1)]
        batch: u32,
        /// How often, each with other seeds
        #[arg(long, default_value_t = 1)]
        count: u32,
    },
    /// What the networks alone take for so many pictures at once, of ready tensors: seconds. In a process of its own, for what was
    /// loaded and dropped before changes how memory is had
    Networks {
        /// Pictures at once
        #[arg(long, default_value_t = 1)]
        batch: u32,
    },
    /// Another checkpoint in the networks' place: seconds to read its files, to load it, to put it in their place
    Change {
        /// The other checkpoint
        other: PathBuf,
    },
    /// A picture with a hires pass to twice the size, by LANCZOS, with as many steps: seconds, and seconds of the first pass and of
    /// image to image in its place
    Hires,
    /// A drawn picture of --size, made larger by an ESRGAN upscaler: seconds
    Upscale {
        /// The upscaler
        file: PathBuf,
        /// The side of a tile in pixels
        #[arg(long, default_value_t = Tiles::default().tile_px)]
        tile: u32,
        /// How far tiles overlap
        #[arg(long, default_value_t = Tiles::default().overlap_px)]
        overlap: u32,
    },
    /// A drawn picture of --size, made four times as large by LANCZOS and drawn again in tiles of --size, by Ultimate upscale with a chessboard's
    /// order: seconds a tile, all but the first call of the UNet and with the finished file
    Ultimate {
        /// A folder for what is written, which is emptied
        folder: PathBuf,
        /// Tiles at once
        #[arg(long, default_value_t = 1)]
        batch: usize,
    },
    /// What a part needs for a picture of --size beyond its weights, and what the estimate says: bytes. Linux only
    Memory {
        /// unet (for a prompt and a negative prompt), control (the same with a ControlNet), upscaler (an ESRGAN network of 64
        /// features and 23 blocks, random, in one tile), encoder or decoder
        part: String,
        /// The side in pixels of the VAE's tiles; none for the whole picture
        #[arg(long)]
        tile: Option<u32>,
        /// Bytes that the VAE may take in tiles; what there is where absent
        #[arg(long)]
        limit: Option<u64>,
    },
    /// A grid of two prompts and two seeds: seconds, and seconds of its pictures made and written one after the other
    Grid {
        /// A folder for the output, which is emptied
        folder: PathBuf,
    },
}

impl Options {
    fn settings(&self, seed: u32) -> Settings {
        let size = Size { width: self.size, height: self.size };
        let Self { sampler, schedule, steps, .. } = *self;
        let prompt = PROMPTS[0].to_owned();
        Settings { prompt, seed, size, sampler, schedule, steps, cfg_scale: 7.5, ..Settings::default() }
    }

    fn precision(&self) -> Result<Precision, Box<dyn Error>> {
        match self.dtype.as_str() {
            "fp32" => Ok(Precision::F32),
            "bf16" => Ok(Precision::BF16),
            "fp16" => Ok(Precision::F16),
            other => Err(format!("expected fp32, bf16 or fp16, found `{other}`").into()),
        }
    }

    fn load(&self) -> Result<Load, Box<dyn Error>> {
        let kind = match self.precision()? {
            Precision::F32 => Kind::Float,
            Precision::BF16 => Kind::BFloat16,
            Precision::F16 => Kind::Half,
        };
        let device = parse_device(&self.device, &self.runtime)?;
        Ok(Load { vae_kind: kind, graphs: !self.no_graphs, ..Load::new(device, kind) })
    }
}

const PROMPTS: [&str; 2] = ["mountain lake at dawn, pine forest, mist", "a fox in fresh snow, close-up"];

/// Does it; the numbers that were measured.
///
/// # Errors
/// A model that cannot be read, a device that is not there, too little memory.
pub fn measure(options: &Options) -> Result<Vec<f64>, Box<dyn Error>> {
    let load = options.load()?;
    match &options.what {
        What::Pictures { batch, count } => pictures(options, &load, *batch, *count),
        What::Networks { batch } => Ok(vec![networks(options, &load, (*batch).into())?]),
        What::Change { other } => change(options, &load, other),
        What::Hires => hires(options, &load),
        What::Upscale { file, tile, overlap } => {
            enlarged(options, &load, file, Tiles { tile_px: *tile, overlap_px: *overlap })
        }
        What::Ultimate { folder, batch } => Ok(vec![ultimate(options, folder, *batch)?]),
        What::Memory { part, tile, limit } => {
            let tiles = VaeTiles { side_px: *tile, memory: *limit };
            memory_of(options, &load, part, tile.map(|_| tiles))
        }
        What::Grid { folder } => in_grid(options, &load, folder),
    }
}

fn open(path: &Path, load: &Load) -> Result<Pipeline, Box<dyn Error>> {
    Ok(Pipeline::load_with(ModelSource::Checkpoint(path.into()).open()?, load)?)
}

fn pictures(options: &Options, load: &Load, batch: u32, count: u32) -> Result<Vec<f64>, Box<dyn Error>> {
    let pipeline = open(&options.model, load)?;
    let make = |first: u32| {
        let settings: Vec<_> = (first..first + batch).map(|seed| options.settings(seed)).collect();
        let batch = Batch { settings: &settings, image: None };
        pipeline.generate_batch(batch, &Interrupt::new(), &mut |_, _| {})
    };
    if load.device.is_cuda() {
        make(0)?;
        if let Some(reason) = pipeline.without_graphs() {
            return Err(without_graphs(&reason).into());
        }
        synchronise(load.device);
    }
    let start = Instant::now();
    for i in 0..count {
        make(i * batch)?;
    }
    synchronise(load.device);
    let all = start.elapsed().as_secs_f64();
    let peak = native::peak_bytes(load.device).unwrap_or_else(peak_of_process);
    Ok(vec![all, peak as f64])
}

/// What a batch takes in UNet and VAE alone, of ready tensors.
fn networks(options: &Options, load: &Load, batch: i64) -> Result<f64, Box<dyn Error>> {
    let mut model = StableDiffusion::load(&Checkpoint::open(&options.model)?, load.device, load.kind)?;
    model.unet.channels_last();
    model.vae.channels_last();
    let side = i64::from(options.size) / model.config.vae.downscale();
    let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, load.device)).to_kind(load.kind);
    let latents = random(&[2 * batch, 4, side, side]);
    let context = random(&[2 * batch, 77, model.config.clip.hidden_size]);
    let timesteps = Tensor::full([2 * batch], 500.0, (Kind::Float, load.device));
    let timed = |act: &dyn Fn() -> Tensor| {
        synchronise(load.device);
        let start = Instant::now();
        let _ = act();
        synchronise(load.device);
        start.elapsed().as_secs_f64()
    };
    // The first call is slower than the others; a few are enough where one takes long.
    let lasting = |act: &dyn Fn() -> Tensor| {
        let (first, mut calls) = (timed(act), Vec::new());
        while calls.len() < 11 && (calls.is_empty() || first + calls.iter().sum::<f64>() < 6.0) {
            calls.push(timed(act));
        }
        median(calls)
    };
    Ok(no_grad(|| {
        let unet = || model.unet.forward(&latents, &timesteps, &context);
        let decode = || model.vae.decode(&latents.narrow(0, 0, batch));
        f64::from(options.steps) * lasting(&unet) + lasting(&decode)
    }))
}

fn change(options: &Options, load: &Load, other: &Path) -> Result<Vec<f64>, Box<dyn Error>> {
    read(other)?;
    let start = Instant::now();
    read(other)?;
    let reading = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let pipeline = open(&options.model, load)?;
    let loading = start.elapsed().as_secs_f64();
    let model = ModelSource::Checkpoint(other.into());
    let mut pipeline = Some(pipeline);
    let mut changes = Vec::new();
    for _ in 0..3 {
        let start = Instant::now();
        pipeline = pipeline.map(|pipeline| pipeline.replace(model.open()?, load)).transpose()?;
        synchronise(load.device);
        changes.push(start.elapsed().as_secs_f64());
    }
    Ok(vec![reading, loading, median(changes)])
}

/// Reads a file, or all of a folder, once.
fn read(path: &Path) -> Result<(), Box<dyn Error>> {
    if path.is_dir() {
        return fs::read_dir(path)?.try_for_each(|entry| read(&entry?.path()));
    }
    let (mut file, mut buffer) = (File::open(path)?, vec![0; 1 << 20]);
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

fn hires(options: &Options, load: &Load) -> Result<Vec<f64>, Box<dyn Error>> {
    let pipeline = open(&options.model, load)?;
    let upscaler = HiresUpscaler::Pixels(UpscalerChoice::Lanczos);
    let hires = Hires { upscaler, denoising_strength: 0.5, ..Hires::default() };
    let first = options.settings(0);
    let both = Settings { hires: Some(hires), ..first.clone() };
    let image = ImageToImage { denoising_strength: 0.5, exact_steps: true, ..ImageToImage::default() };
    let size = Size { width: 2 * options.size, height: 2 * options.size };
    let second = Settings { image: Some(image), size, ..first.clone() };
    let make = |settings: &Settings, image: Option<&RgbImage>| -> Result<_, Box<dyn Error>> {
        let start = Instant::now();
        let batch = Batch { settings: std::slice::from_ref(settings), image };
        let made = pipeline.generate_batch(batch, &Interrupt::new(), &mut |_, _| {})?;
        synchronise(load.device);
        let picture = made.and_then(|mut pictures| pictures.pop()).expect("it was not interrupted");
        Ok((picture, start.elapsed().as_secs_f64()))
    };
    // Each shape is slower the first time.
    make(&Settings { steps: 2, ..both.clone() }, None)?;
    let (_, seconds) = make(&both, None)?;
    let (picture, of_first) = make(&first, None)?;
    let (_, of_second) = make(&second, Some(&picture))?;
    Ok(vec![seconds, of_first, of_second])
}

fn ultimate(options: &Options, folder: &Path, batch: usize) -> Result<f64, Box<dyn Error>> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    let (input, recipe) = (folder.join("in.png"), folder.join("recipe.toml"));
    write_picture(&input, &drawn(options.size), "")?;
    let Options { ref model, steps, size, sampler, schedule, ref dtype, .. } = *options;
    let (model, prompt) = (fs::canonicalize(model)?, PROMPTS[0]);
    let text = format!(
        "checkpoint = '{}'\nprompt = '{prompt}'\nsampler = '{sampler}'\nschedule = '{schedule}'\nsteps = {steps}\nexact_steps = true\ncfg = 7.5\n\
         scale = 4\nbatch_size = {batch}\nprecision = '{dtype}'\nvae_precision = '{dtype}'\n[tiles]\ntype = 'chess'\nwidth = {size}\n",
        model.display()
    );
    fs::write(&recipe, text)?;
    let config = UpscaleConfig {
        input,
        output: folder.join("out.png"),
        upscaler: None,
        recipe: Some(recipe),
        checkpoint: None,
        prompt: None,
        negative: None,
        seed: None,
        denoising: None,
        scale: None,
        size: None,
        resize_mode: ResizeMode::Just,
        tiles: Tiles::default(),
        precision: None,
        device: options.device.clone(),
        runtime_dir: options.runtime.clone(),
        hash_cache: None,
    };
    // The first call loads the model, and is slower.
    let (mut since, mut tiles, mut lost) = (None, 0, None);
    upscale::run(&config.plan()?, &Interrupt::new(), &mut |event| match event {
        UpscaleEvent::Redrawing { done, total } if done > 0 && since.is_none() => {
            (since, tiles) = (Some(Instant::now()), total - done);
        }
        UpscaleEvent::WithoutGraphs { reason } => lost = Some(without_graphs(reason)),
        _ => {}
    })?;
    match (since, lost) {
        (Some(since), None) => Ok(since.elapsed().as_secs_f64() / tiles as f64),
        (_, Some(lost)) if !options.no_graphs => Err(lost.into()),
        _ => Err("all tiles were made at once: nothing is left to time".into()),
    }
}

/// A picture that no two tiles of are alike.
fn drawn(side: u32) -> RgbImage {
    let draw = |x: u32, y: u32| [x % 256, y % 256, (x * y) % 256].map(|value| value as u8);
    RgbImage::from_fn(side, side, |x, y| draw(x, y).into())
}

fn enlarged(options: &Options, load: &Load, file: &Path, tiles: Tiles) -> Result<Vec<f64>, Box<dyn Error>> {
    let upscaler = Upscaler::open(&UpscalerChoice::Model(file.into()), tiles, load.device, load.kind)?;
    let scale = upscaler.scale().ok_or("the upscaler is no network")?.into();
    let make = |side| upscaler.enlarge(&drawn(side), scale, &Interrupt::new(), &mut |_, _| {});
    make(options.size.min(32))?;
    synchronise(load.device);
    let start = Instant::now();
    make(options.size)?;
    Ok(vec![start.elapsed().as_secs_f64()])
}

fn memory_of(
    options: &Options,
    load: &Load,
    part: &str,
    tiles: Option<VaeTiles>,
) -> Result<Vec<f64>, Box<dyn Error>> {
    let checkpoint = Checkpoint::open(&options.model)?;
    let side = i64::from(options.size);
    let (measured, elements) = no_grad(|| match part {
        "unet" | "control" => memory_of_unet(&checkpoint, load, side, part == "control"),
        "upscaler" => memory_of_upscaler(load, side),
        "encoder" | "decoder" => memory_of_vae(&checkpoint, load, side, part == "encoder", tiles),
        other => {
            let expected = "unet, control, upscaler, encoder or decoder";
            Err(format!("expected {expected}, found `{other}`").into())
        }
    })?;
    Ok(vec![measured, elements as f64 * load.kind.elt_size_in_bytes() as f64])
}

/// Bytes that were measured, and elements by the rule.
type Memory = Result<(f64, u64), Box<dyn Error>>;

/// By how much the process's peak is more when `act` does a picture of this side.
fn most(side: i64, act: &dyn Fn(i64)) -> Result<f64, Box<dyn Error>> {
    // What libtorch makes once it has by now.
    act(64);
    fs::write("/proc/self/clear_refs", "5")?;
    let before = peak_of_process();
    act(side);
    Ok((peak_of_process() - before) as f64)
}

fn noise(load: &Load, shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, load.device)).to_kind(load.kind)
}

fn memory_of_unet(checkpoint: &Checkpoint, load: &Load, side: i64, is_controlled: bool) -> Memory {
    let config = checkpoint.config();
    let (kind, device) = (load.kind, load.device);
    let mut unet = UNet::load(checkpoint, device, kind)?;
    unet.channels_last();
    let form = ControlNetConfig { unet: config.unet.clone(), ..ControlNetConfig::sd15() };
    let random = |_: &str, shape: &[i64]| Ok(noise(load, shape) * 0.02);
    let mut control = is_controlled.then(|| ControlNet::new(&form, device, kind, &random)).transpose()?;
    control.iter_mut().for_each(Network::channels_last);
    let context = noise(load, &[2, 77, config.unet.cross_attention_dim]);
    let timesteps = Tensor::full([2], 500.0, (Kind::Float, device));
    let latents = |side: i64| [side / config.vae.downscale(); 2];
    let forward = |side: i64| {
        let [height, width] = latents(side);
        let latents = noise(load, &[2, config.unet.in_channels, height, width]);
        let residuals = control.as_ref().map_or_else(Vec::new, |control| {
            let hint = control.embed(&noise(load, &[1, 3, side, side]));
            control.forward(&latents, &timesteps, &context, &hint)
        });
        drop(unet.forward_controlled(&latents, &timesteps, &context, &residuals));
    };
    let residuals = if is_controlled { memory::residuals(&config.unet, latents(side)) } else { 0 };
    let maps = memory::unet(&config.unet, latents(side)) + residuals;
    Ok((most(side, &forward)?, 2 * maps + memory::largest(&unet.keys())))
}

fn memory_of_upscaler(load: &Load, side: i64) -> Memory {
    let form = RrdbConfig { features: 64, growth: 32, blocks: 23, doublings: 2, unshuffle: 1, plus: false };
    let random = |_: &str, shape: &[i64]| Ok(noise(load, shape) * 0.02);
    let mut upscaler = Rrdb::new(&form, load.device, load.kind, &random)?;
    upscaler.channels_last();
    let forward = |side: i64| drop(upscaler.forward(&noise(load, &[1, 3, side, side])));
    Ok((most(side, &forward)?, memory::upscaler(&form, [side; 2])))
}

fn memory_of_vae(
    checkpoint: &Checkpoint,
    load: &Load,
    side: i64,
    is_encoder: bool,
    tiles: Option<VaeTiles>,
) -> Memory {
    let config = &checkpoint.config().vae;
    let mut vae = Vae::load(checkpoint, load.device, load.kind)?;
    vae.channels_last();
    vae.set_tiles(tiles);
    let elements = |whole: fn(&VaeConfig, [i64; 2]) -> u64| match tiles {
        Some(VaeTiles { side_px: Some(tile), .. }) => memory::vae_in_tiles(config, [side; 2], tile.into()),
        _ => whole(config, [side; 2]),
    };
    if is_encoder {
        let encode = |side: i64| drop(vae.encode(&noise(load, &[1, 3, side, side])));
        return Ok((most(side, &encode)?, elements(memory::vae_encoder)));
    }
    let latents = |side: i64| noise(load, &[1, 4, side / config.downscale(), side / config.downscale()]);
    let decode = |side: i64| drop(vae.decode(&latents(side)));
    Ok((most(side, &decode)?, elements(memory::vae_decoder)))
}

fn in_grid(options: &Options, load: &Load, folder: &Path) -> Result<Vec<f64>, Box<dyn Error>> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    let all = options.settings(0);
    let config = GridConfig {
        checkpoints: vec![GridCheckpoint::new(None, &options.model)],
        prompts: PROMPTS.map(|prompt| GridPrompt::new(prompt, "")).to_vec(),
        seeds: Some([0, 1].into_iter().collect()),
        steps: all.steps,
        cfg: all.cfg_scale,
        size: all.size,
        sampler: all.sampler,
        device: options.device.clone(),
        precision: options.precision()?,
        vae_precision: options.precision()?,
        output: folder.join("grid"),
        runtime_dir: options.runtime.clone(),
        ..parse_toml("", Path::new("grid.toml"))?
    };
    let plan = config.plan()?;
    let start = Instant::now();
    grid::run(&plan, &Interrupt::new(), &mut |_| {})?;
    let whole = start.elapsed().as_secs_f64();
    let pipeline = open(&options.model, load)?;
    let mut alone = 0.0;
    for (prompt, seed) in PROMPTS.iter().flat_map(|prompt| [(prompt, 0), (prompt, 1)]) {
        let settings = Settings { prompt: (*prompt).to_owned(), ..options.settings(seed) };
        let start = Instant::now();
        let picture = pipeline.generate(&settings, &Interrupt::new(), &mut |_, _| {})?;
        write_picture(&folder.join("alone.png"), &picture.expect("it was not interrupted"), "")?;
        alone += start.elapsed().as_secs_f64();
    }
    Ok(vec![whole, alone])
}
