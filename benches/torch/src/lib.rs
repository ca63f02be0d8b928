//! The training step on random latents and captions, as the trainer takes it, timed: what `peer_train.py` does with
//! PyTorch and diffusers.

pub mod sampling;

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use clap::Parser;
use tch::{Cuda, Device, Kind, TchError, Tensor};
use vodka_checkpoint::{Checkpoint, ModelConfig};
use vodka_sd15::{Network, StableDiffusion, native, parse_device};
use vodka_trainer::{
    Arithmetic, OptimizerSettings,
    arithmetic::{Scaler, ScalerRule, ScalerState},
    graph::Recorder,
    optimizers::{Method, Optimizer, Part, step_together},
    step::{Batch, Inputs, Objective, upload},
};

/// The training step of Vodka's trainer, timed
#[derive(Debug, Parser)]
pub struct Options {
    /// Diffusers folder of the model, as `make_sd.py` writes it
    pub model: PathBuf,
    /// Steps that are timed; three come before them
    #[arg(long, default_value_t = 10)]
    pub steps: usize,
    /// Pictures in a batch
    #[arg(long, default_value_t = 4)]
    pub batch: i64,
    /// Width and height in pixels
    #[arg(long, default_value_t = 512)]
    pub resolution: i64,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// fp32, bf16 or fp16
    #[arg(long, default_value = "fp32", value_parser = arithmetic)]
    pub dtype: Arithmetic,
    /// adamw, adamw8bit or lion
    #[arg(long, default_value = "adamw", value_parser = method)]
    pub optimizer: Method,
    /// Train the text encoder too
    #[arg(long)]
    pub text_encoder: bool,
    /// Gradient checkpointing
    #[arg(long)]
    pub checkpointing: bool,
    /// No CUDA graphs
    #[arg(long)]
    pub no_graphs: bool,
    /// The folder with libtorch/lib/libtorch_cuda.so
    #[arg(long, default_value = ".runtime")]
    pub runtime: PathBuf,
}

fn arithmetic(text: &str) -> Result<Arithmetic, String> {
    match text {
        "fp32" => Ok(Arithmetic::Fp32),
        "bf16" => Ok(Arithmetic::Bf16),
        "fp16" => Ok(Arithmetic::Fp16),
        _ => Err("expected fp32, bf16 or fp16".into()),
    }
}

fn method(text: &str) -> Result<Method, String> {
    match text {
        "adamw" => Ok(Method::AdamW),
        "adamw8bit" => Ok(Method::AdamW8bit),
        "lion" => Ok(Method::Lion),
        _ => Err("expected adamw, adamw8bit or lion".into()),
    }
}

/// What was measured.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// The median of a whole step.
    pub step_s: f64,
    /// The median of what the networks take of it, forth and back: the limit.
    pub networks_s: f64,
    /// The most memory: of the GPU where there is one and that is known, else of the process.
    pub peak_bytes: u64,
}

/// Times the step.
///
/// # Errors
/// A model that cannot be read, a device that is not there, too little memory.
pub fn measure(options: &Options) -> Result<Measured, Box<dyn Error>> {
    let device = parse_device(&options.device, &options.runtime)?;
    native::set_arithmetic(true, true, false)?;
    let mut bench = Bench::new(options, device)?;
    let (mut steps, mut networks) = (Vec::new(), Vec::new());
    for i in 0..options.steps + 3 {
        synchronise(device);
        let start = Instant::now();
        let losses = bench.accumulate()?;
        // A GPU is not waited for between: that would be another step than the trainer's.
        let accumulated = start.elapsed();
        bench.step(&losses);
        synchronise(device);
        if i >= 3 {
            steps.push(start.elapsed().as_secs_f64());
            networks.push(accumulated.as_secs_f64());
        }
    }
    if device.is_cuda() {
        networks.clear();
        for _ in 0..options.steps {
            synchronise(device);
            let start = Instant::now();
            let _ = bench.accumulate()?;
            synchronise(device);
            networks.push(start.elapsed().as_secs_f64());
        }
    }
    let gpu = native::peak_bytes(device);
    let peak_bytes = gpu.unwrap_or_else(peak_of_process);
    Ok(Measured { step_s: median(steps), networks_s: median(networks), peak_bytes })
}

/// What is said where CUDA graphs were to be measured and there are none.
pub(crate) fn without_graphs(reason: &str) -> String {
    format!("no CUDA graphs, so measure with --no-graphs: {reason}")
}

/// Everything that a step needs.
struct Bench {
    model: StableDiffusion,
    unet: Optimizer,
    text_encoder: Option<Optimizer>,
    scaler: Option<Scaler>,
    recorder: Recorder,
    objective: Objective,
    batch: Batch,
    device: Device,
    step: u64,
}

impl Bench {
    fn new(options: &Options, device: Device) -> Result<Self, Box<dyn Error>> {
        tch::manual_seed(0);
        let checkpoint = Checkpoint::open(&options.model)?;
        let mut model = StableDiffusion::load(&checkpoint, device, Kind::Float)?;
        model.unet.channels_last();
        model.unet.set_gradient_checkpointing(options.checkpointing);
        model.clip.set_gradient_checkpointing(options.checkpointing && options.text_encoder);
        let settings = OptimizerSettings {
            method: options.optimizer,
            lr: 1e-7,
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            weight_decay: 0.01,
        };
        let unet = trainable(&mut model.unet, settings);
        let text_encoder = options.text_encoder.then(|| trainable(&mut model.clip, settings));
        let kind = options.dtype.autocast();
        let objective = Objective { unet_autocast: kind, text_autocast: kind, ..Objective::default() };
        let scaled = options.dtype == Arithmetic::Fp16;
        let (recorder, failed) = Recorder::new(!options.no_graphs, device);
        if let Some(error) = failed {
            return Err(without_graphs(&error.to_string()).into());
        }
        let mut batch = random_batch(options, &model.config);
        if !options.text_encoder {
            let ids = batch.ids.to_device(device);
            batch.states = Some(tch::no_grad(|| model.clip.forward(&ids, 1)).to_device(Device::Cpu));
        }
        Ok(Self {
            model,
            unet,
            text_encoder,
            scaler: scaled.then(|| Scaler::new(ScalerState::default(), device)),
            recorder,
            objective,
            batch,
            device,
            step: 0,
        })
    }

    /// New noise and timesteps, as in every step of the trainer, and the way through the networks and back.
    fn accumulate(&mut self) -> Result<Tensor, TchError> {
        let Batch { latents, noise, timesteps, .. } = &mut self.batch;
        *noise = latents.randn_like();
        let drawn = Tensor::randint(1000, [latents.size()[0]], (Kind::Int64, Device::Cpu));
        *timesteps = Vec::try_from(drawn).expect("whole numbers");
        let inputs: Inputs = self.objective.inputs(&self.batch);
        let n = inputs.noisy.size()[0];
        let weights = Tensor::full([n], 1.0 / n as f64, (Kind::Float, Device::Cpu));
        let (inputs, weights) = (inputs.to_device(self.device), upload(&weights, self.device));
        let scale = self.scaler.as_ref().map(Scaler::scale);
        self.recorder.accumulate(&self.objective, &self.model, inputs, weights, scale)
    }

    fn step(&mut self, loss: &Tensor) {
        self.step += 1;
        let part = |optimizer| Part { optimizer, lr: 1e-7, max_norm: None };
        let parts = [part(Some(&mut self.unet)), part(self.text_encoder.as_mut())];
        let scale = self.scaler.as_ref().map(Scaler::scale);
        let (found_inf, _) =
            step_together(parts, &[loss.shallow_clone()], scale, self.recorder.keeps_gradients());
        if let Some(scaler) = &mut self.scaler {
            scaler.update(&found_inf, ScalerRule::after(self.step, true, false));
        }
    }
}

fn trainable(network: &mut impl Network, settings: OptimizerSettings) -> Optimizer {
    network.unfreeze();
    Optimizer::new(network.vars().variables(), settings)
}

fn random_batch(options: &Options, config: &ModelConfig) -> Batch {
    let side = options.resolution / config.vae.downscale();
    let latents = Tensor::randn([options.batch, 4, side, side], (Kind::Float, Device::Cpu));
    Batch {
        noise: latents.zeros_like(),
        latents,
        timesteps: Vec::new(),
        ids: Tensor::randint(config.clip.vocab_size, [options.batch, 77], (Kind::Int64, Device::Cpu)),
        states: None,
        perturbation: None,
    }
}

fn synchronise(device: Device) {
    if let Device::Cuda(ordinal) = device {
        Cuda::synchronize(ordinal as i64);
    }
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn peak_of_process() -> u64 {
    let status = fs::read_to_string(Path::new("/proc/self/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0) * 1024
}
