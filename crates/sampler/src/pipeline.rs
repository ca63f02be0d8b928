//! From a prompt to pixels.

use std::path::Path;

use image::RgbImage;
use tch::{Device, Kind, Tensor};
use vodka_checkpoint::Prediction;
use vodka_noise::{
    BrownianTree, Host, Latent, Output, Parameterization, PictureNoise, PictureSeed, SamplerName, Schedule,
    Solver, SolverOptions,
};
use vodka_sd15::{ClipTextModel, Network, UNet, Vae};
use vodka_stage::Interrupt;

use crate::{
    Error, Model, ModelSource, Result, Settings, Size,
    conditioning::{Conditioning, Now, Prompts},
};

/// The networks of one model on one device, ready to make pictures.
#[derive(Debug)]
pub struct Pipeline {
    model: Model,
    clip: ClipTextModel,
    unet: UNet,
    vae: Vae,
}

/// Borrowed networks: a model in training makes its previews with them.
#[derive(Debug, Clone, Copy)]
pub struct Networks<'a> {
    /// The text encoder.
    pub clip: &'a ClipTextModel,
    /// The denoiser.
    pub unet: &'a UNet,
    /// The decoder; better in fp32 whatever the others are, since fp16 overflows in it.
    pub vae: &'a Vae,
    /// What the denoiser predicts.
    pub prediction: Prediction,
}

impl Pipeline {
    /// Loads the checkpoint at `path`: text encoder and UNet in `kind`, the VAE in fp32.
    ///
    /// # Errors
    /// A file that cannot be read, is cut short, is of another architecture, or does not fit into the device's memory.
    pub fn open(path: &Path, device: Device, kind: Kind) -> Result<Self> {
        Self::load(ModelSource::Checkpoint(path.to_path_buf()).open()?, device, kind)
    }

    /// Loads a model that has been opened ([`ModelSource::open`]), in the same way. The tensors of a merge are worked out one
    /// by one and rounded to its element type, so that the networks are those of the file that it would be.
    ///
    /// # Errors
    /// Weights that cannot be read, or do not fit into the device's memory; those of a merge that are not finite.
    pub fn load(model: Model, device: Device, kind: Kind) -> Result<Self> {
        let weights = model.weights();
        Ok(Self {
            clip: ClipTextModel::load(weights, device, kind)?,
            unet: UNet::load(weights, device, kind)?,
            vae: Vae::load(weights, device, Kind::Float)?,
            model,
        })
    }

    /// Makes one picture; `on_step` is told after each call of the UNet how many of how many are done. `None` where
    /// `interrupt` was raised on the way.
    ///
    /// # Errors
    /// Settings that the model cannot do, and values that are not finite: then the weights are searched, and the error
    /// names the tensor if it is one of them.
    pub fn generate(
        &self,
        settings: &Settings,
        interrupt: &Interrupt,
        on_step: &mut dyn FnMut(usize, usize),
    ) -> Result<Option<RgbImage>> {
        let path = self.model.path();
        let result = self.networks().generate(path, settings, interrupt, on_step);
        if let Err(Error::NotFinite { .. }) = result {
            self.model.verify()?;
        }
        result
    }

    fn networks(&self) -> Networks<'_> {
        let prediction = self.model.config().prediction;
        Networks { clip: &self.clip, unet: &self.unet, vae: &self.vae, prediction }
    }
}

impl Networks<'_> {
    /// Makes one picture, as [`Pipeline::generate`] does; errors name the model by `path`.
    pub fn generate(
        &self,
        path: &Path,
        settings: &Settings,
        interrupt: &Interrupt,
        on_step: &mut dyn FnMut(usize, usize),
    ) -> Result<Option<RgbImage>> {
        settings.check()?;
        tch::no_grad(|| {
            let Some(latents) = self.latents(settings, interrupt, on_step)? else { return Ok(None) };
            let not_finite = |what| Error::NotFinite { checkpoint: path.to_path_buf(), what };
            if !is_finite(&latents) {
                return Err(not_finite("latents"));
            }
            let latents = (latents / self.vae.config().scaling_factor).to_kind(self.vae.vars().kind());
            let pixels = self.vae.decode(&latents).to_kind(Kind::Float); // (1, 3, H, W)
            if !is_finite(&pixels) {
                return Err(not_finite("pixels"));
            }
            Ok(Some(to_picture(&pixels)))
        })
    }

    /// The latents of the picture in fp32, scaled. `(1, 4, H/8, W/8)`
    fn latents(
        &self,
        settings: &Settings,
        interrupt: &Interrupt,
        on_step: &mut dyn FnMut(usize, usize),
    ) -> Result<Option<Tensor>> {
        let solver =
            Solver::new(&Schedule::scaled_linear(), settings.sampler, settings.schedule, settings.steps)?
                .with_options(SolverOptions { eta: settings.eta, ..SolverOptions::default() });
        let shape = self.shape(settings)?;
        let conditioning = self.conditioning(settings)?;
        let device = self.unet.vars().device();
        let tensor = |values: Vec<f32>| {
            Tensor::from_slice(&values).view(shape.map(|n| n as i64)).unsqueeze(0).to_device(device) // (1, 4, h, w)
        };
        let mut numbers = PictureNoise::new(settings.picture_seed(), shape);
        let first = tensor(numbers.first());
        let (low, high) = solver.sigma_range();
        let mut tree = settings
            .sampler
            .is_brownian()
            .then(|| BrownianTree::new(settings.seed.into(), low, high, shape.iter().product()));
        let mut noise = |from: f64, to: f64| match &mut tree {
            Some(tree) => tensor(tree.noise(from, to)),
            None => tensor(numbers.more()),
        };
        let mut call = 0;
        let mut predict = |input: &Tensor, timestep: f64| {
            let now = conditioning.at(call);
            call += 1;
            self.guided(input, timestep, &now, settings.guidance())
        };
        let count = solver.calls();
        let mut go_on = |done| {
            on_step(done, count.max(done));
            !interrupt.is_raised()
        };
        let host = Calls { predict: &mut predict, noise: &mut noise, go_on: &mut go_on };
        Ok(solve(&solver, self.prediction, &first, host))
    }

    /// One call of the denoiser for all prompts, or one for the prompt and one for the negative prompt where these are not
    /// equally long.
    fn guided(&self, input: &Tensor, timestep: f64, now: &Now, guidance: f64) -> Output<Tensor> {
        let kind = now.parts.kind();
        let call = |context: &Tensor| {
            let batch = context.size()[0];
            let input = input.to_kind(kind).repeat([batch, 1, 1, 1]); // (B, 4, h, w)
            let timesteps = Tensor::full([batch], timestep, (Kind::Float, context.device()));
            self.unet.forward(&input, &timesteps, context).to_kind(Kind::Float)
        };
        let parts = now.parts.size()[0];
        let (with, without) = match &now.negative {
            None => return Output { guided: call(&now.parts), unguided: None },
            Some(negative) if negative.size()[1] == now.parts.size()[1] => {
                let both = call(&Tensor::cat(&[&now.parts, negative], 0));
                (both.narrow(0, 0, parts), both.narrow(0, parts, 1))
            }
            Some(negative) => (call(&now.parts), call(negative)),
        };
        let towards = |guided: Tensor, (i, weight): (usize, &f64)| {
            guided + (with.narrow(0, i as i64, 1) - &without) * (weight * guidance)
        };
        let guided = now.weights.iter().enumerate().fold(without.shallow_clone(), towards);
        Output { guided, unguided: Some(without) } // (1, 4, h, w)
    }

    /// The shape of the latents, `[4, H/8, W/8]`.
    fn shape(&self, settings: &Settings) -> Result<[usize; 3]> {
        let config = self.vae.config();
        let multiple = config.downscale() as u32;
        let Size { width, height } = settings.size;
        if !width.is_multiple_of(multiple) || !height.is_multiple_of(multiple) {
            return Err(Error::Size { width, height, multiple, max: u32::MAX });
        }
        Ok([config.latent_channels as usize, (height / multiple) as usize, (width / multiple) as usize])
    }

    /// The encoded prompts.
    fn conditioning(&self, settings: &Settings) -> Result<Conditioning> {
        let max = self.clip.config().layers as u32;
        if !(1..=max).contains(&settings.clip_skip) {
            return Err(Error::ClipSkip { found: settings.clip_skip, max });
        }
        Ok(Prompts::parse(settings)?.encode(self.clip, settings.clip_skip.into()))
    }
}

impl Settings {
    /// What decides the noise.
    fn picture_seed(&self) -> PictureSeed {
        PictureSeed {
            seed: self.seed.into(),
            source: self.rng,
            eta_seed_delta: self.ensd.into(),
            variation: (self.subseed_strength != 0.0).then_some((self.subseed.into(), self.subseed_strength)),
            resize_from: None,
        }
    }
}

/// What [`solve`] calls.
pub struct Calls<'a> {
    /// The network with its guidance, from its input and a timestep to its output.
    pub predict: &'a mut dyn FnMut(&Tensor, f64) -> Output<Tensor>,
    /// Unit normal noise for the step from one sigma to another.
    pub noise: &'a mut dyn FnMut(f64, f64) -> Tensor,
    /// Told after each call of the network how many there were; ends it all by `false`, unless it was the last.
    pub go_on: &'a mut dyn FnMut(usize) -> bool,
}

/// Runs a solver from unit normal `noise` to latents, both in fp32; `None` where it was ended.
pub fn solve(solver: &Solver, prediction: Prediction, noise: &Tensor, calls: Calls<'_>) -> Option<Tensor> {
    let parameterization = match prediction {
        Prediction::Epsilon => Parameterization::Epsilon,
        Prediction::VPrediction => Parameterization::V,
    };
    // How many calls an adaptive sampler makes, it does not know.
    let last = if solver.sampler() == SamplerName::DpmAdaptive { usize::MAX } else { solver.calls() };
    let mut host = Counted { calls, done: 0, last };
    solver.run(Latents(noise * solver.start()), parameterization, &mut host).ok().map(|latents| latents.0)
}

/// Latents of a picture, `(1, 4, h, w)`.
struct Latents(Tensor);

impl Latent for Latents {
    fn combine(terms: &[(f64, &Self)]) -> Self {
        let sum = terms.iter().map(|(factor, latents)| &latents.0 * *factor).reduce(|sum, more| sum + more);
        Self(sum.expect("at least one term"))
    }

    fn error(low: &Self, high: &Self, before: &Self, absolute: f64, relative: f64) -> f64 {
        let allowed = (low.0.abs().maximum(&before.0.abs()) * relative).clamp_min(absolute);
        ((&low.0 - &high.0) / allowed).square().mean(Kind::Double).sqrt().double_value(&[])
    }
}

struct Counted<'a> {
    calls: Calls<'a>,
    done: usize,
    last: usize,
}

/// The run was ended by who asked for it.
struct Stopped;

impl Host<Latents> for Counted<'_> {
    type Stop = Stopped;

    fn predict(&mut self, input: &Latents, timestep: f64) -> Result<Output<Latents>, Stopped> {
        let Output { guided, unguided } = (self.calls.predict)(&input.0, timestep);
        self.done += 1;
        if !(self.calls.go_on)(self.done) && self.done != self.last {
            return Err(Stopped);
        }
        Ok(Output { guided: Latents(guided), unguided: unguided.map(Latents) })
    }

    fn noise(&mut self, from: f64, to: f64) -> Result<Latents, Stopped> {
        Ok(Latents((self.calls.noise)(from, to)))
    }
}

fn is_finite(tensor: &Tensor) -> bool {
    tensor.isfinite().all().int64_value(&[]) == 1
}

/// From `(1, 3, H, W)` in -1..1 to 8 bits, cut off as A1111 does it, not rounded.
fn to_picture(pixels: &Tensor) -> RgbImage {
    let pixels = ((pixels.squeeze_dim(0) + 1.0) / 2.0).clamp(0.0, 1.0) * 255.0; // (3, H, W)
    let pixels = pixels.permute([1, 2, 0]).to_kind(Kind::Uint8).contiguous().to_device(Device::Cpu); // (H, W, 3)
    let (height, width, _) = pixels.size3().expect("a picture has three axes");
    let mut bytes = vec![0; pixels.numel()];
    pixels.copy_data(&mut bytes, pixels.numel());
    RgbImage::from_raw(width as u32, height as u32, bytes).expect("three bytes a pixel")
}
