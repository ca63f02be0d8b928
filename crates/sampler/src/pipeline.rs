//! From a prompt to pixels.

use std::path::Path;

use image::RgbImage;
use tch::{Device, Kind, Tensor};
use vodka_checkpoint::{Checkpoint, Prediction};
use vodka_noise::{Schedule, Solver, TorchRng};
use vodka_prompt::{CONTEXT_LENGTH, EOS, token_ids};
use vodka_sd15::{ClipTextModel, Network, UNet, Vae};
use vodka_stage::Interrupt;

use crate::{Error, ModelId, Result, Settings, Size};

/// The networks of one checkpoint on one device, ready to make pictures.
#[derive(Debug)]
pub struct Pipeline {
    checkpoint: Checkpoint,
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
        let checkpoint = Checkpoint::open(path)?;
        checkpoint.check_names()?;
        checkpoint.check_text_to_image(EOS + 1, CONTEXT_LENGTH as i64)?;
        Ok(Self {
            clip: ClipTextModel::load(&checkpoint, device, kind)?,
            unet: UNet::load(&checkpoint, device, kind)?,
            vae: Vae::load(&checkpoint, device, Kind::Float)?,
            checkpoint,
        })
    }

    /// How pictures name this checkpoint; hashes the file at the first call.
    pub fn model(&self) -> Result<ModelId> {
        Ok(ModelId::new(self.checkpoint.path(), self.checkpoint.sha256()?))
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
        let path = self.checkpoint.path();
        let result = self.networks().generate(path, settings, interrupt, on_step);
        if let Err(Error::NotFinite { .. }) = result {
            self.checkpoint.verify()?;
        }
        result
    }

    fn networks(&self) -> Networks<'_> {
        let prediction = self.checkpoint.config().prediction;
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
            Solver::new(&Schedule::scaled_linear(), settings.sampler, settings.schedule, settings.steps)?;
        let noise = self.noise(settings)?;
        let context = self.context(settings)?;
        let (batch, device, kind) = (context.size()[0], context.device(), context.kind());
        let mut predict = |input: &Tensor, timestep: f64| {
            let input = input.to_kind(kind).repeat([batch, 1, 1, 1]); // (2, 4, h, w)
            let timesteps = Tensor::full([batch], timestep, (Kind::Float, device));
            let output = self.unet.forward(&input, &timesteps, &context).to_kind(Kind::Float);
            if batch == 1 {
                return output;
            }
            let (with, without) = (output.narrow(0, 0, 1), output.narrow(0, 1, 1));
            &without + (with - &without) * settings.cfg_scale // (1, 4, h, w)
        };
        let count = solver.steps.len();
        let mut go_on = |done| {
            on_step(done, count);
            !interrupt.is_raised()
        };
        Ok(solve(&solver, self.prediction, &noise, &mut predict, &mut go_on))
    }

    /// Unit normal noise as torch draws it on the processor, on the device.
    fn noise(&self, settings: &Settings) -> Result<Tensor> {
        let config = self.vae.config();
        let multiple = config.downscale() as u32;
        let Size { width, height } = settings.size;
        if !width.is_multiple_of(multiple) || !height.is_multiple_of(multiple) {
            return Err(Error::Size { width, height, multiple, max: u32::MAX });
        }
        let shape = [config.latent_channels, i64::from(height / multiple), i64::from(width / multiple)];
        let values = TorchRng::new(settings.seed.into()).randn(shape.iter().product::<i64>() as usize);
        let noise = Tensor::from_slice(&values).view(shape).unsqueeze(0); // (1, 4, h, w)
        Ok(noise.to_device(self.unet.vars().device()))
    }

    /// The encoded prompts: prompt and negative prompt, or the prompt alone where there is no guidance. `(2, 77, C)`
    fn context(&self, settings: &Settings) -> Result<Tensor> {
        let max = self.clip.config().layers as u32;
        if !(1..=max).contains(&settings.clip_skip) {
            return Err(Error::ClipSkip { found: settings.clip_skip, max });
        }
        let mut ids = token_ids(&settings.prompt).to_vec();
        if settings.cfg_scale != 1.0 {
            ids.extend(token_ids(&settings.negative_prompt));
        }
        let device = self.clip.vars().device();
        let ids = Tensor::from_slice(&ids).view([-1, CONTEXT_LENGTH as i64]).to_device(device);
        Ok(self.clip.forward(&ids, settings.clip_skip.into()))
    }
}

/// Runs a solver from unit normal `noise` to latents, both in fp32.
///
/// `predict` is the network with its guidance, from its input and a timestep to its output; `go_on` is told after each
/// step how many are done, and ends it all by `false`, unless it was the last.
pub fn solve(
    solver: &Solver,
    prediction: Prediction,
    noise: &Tensor,
    predict: &mut dyn FnMut(&Tensor, f64) -> Tensor,
    go_on: &mut dyn FnMut(usize) -> bool,
) -> Option<Tensor> {
    let mut x = noise * solver.start;
    for (i, step) in solver.steps.iter().enumerate() {
        let input = &x * step.input;
        let output = predict(&input, step.timestep);
        let eps = match prediction {
            Prediction::Epsilon => output,
            Prediction::VPrediction => {
                output * step.alpha_cumprod.sqrt() + input * (1.0 - step.alpha_cumprod).sqrt()
            }
        };
        x = x * step.keep + eps * step.move_by;
        let done = i + 1;
        if !go_on(done) && done < solver.steps.len() {
            return None;
        }
    }
    Some(x)
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
