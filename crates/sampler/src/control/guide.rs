//! Units at work: their networks, what these see, and what they do to each call of the denoiser.

use std::{borrow::Cow, path::PathBuf};

use image::RgbImage;
use tch::{Device, Kind, Tensor};
use vodka_checkpoint::{ControlNetFile, Prediction, UNetConfig};
use vodka_images::decode;
use vodka_noise::{Coefficients, Schedule};
use vodka_sd15::{ControlNet, Network};

use super::{
    ControlMode, ControlUnit, Preprocessor,
    preprocess::{fit_control, pixel_perfect_px},
};
use crate::{Error, ResizeMode, Result, Settings, graph::Inputs, pipeline::Networks, redraw::Part};

/// The ControlNets of the latest pictures, by where they lie.
#[derive(Debug, Default)]
pub(crate) struct LoadedNets(Vec<(PathBuf, Loaded)>);

#[derive(Debug)]
struct Loaded {
    file: ControlNetFile,
    network: ControlNet,
}

impl LoadedNets {
    /// Loads what these units need and is not there, and forgets what they do not need.
    ///
    /// # Errors
    /// A file that is no ControlNet, or one for another UNet.
    pub(crate) fn load(
        &mut self,
        units: &[ControlUnit],
        unet: &UNetConfig,
        device: Device,
        kind: Kind,
    ) -> Result<()> {
        self.0.retain(|(path, _)| units.iter().any(|unit| unit.model == *path));
        for unit in units {
            if self.0.iter().any(|(path, _)| *path == unit.model) {
                continue;
            }
            let file = unit.open(unet)?;
            let mut network = ControlNet::load(&file, device, kind)?;
            network.channels_last();
            self.0.push((unit.model.clone(), Loaded { file, network }));
        }
        Ok(())
    }

    /// How many of the files that these units need are loaded.
    pub(crate) fn count(&self, units: &[ControlUnit]) -> usize {
        self.0.iter().filter(|(path, _)| units.iter().any(|unit| unit.model == *path)).count()
    }

    /// Searches all weights for a value that is no number.
    pub(crate) fn check_finite(&self) -> Result<()> {
        self.0.iter().try_for_each(|(_, loaded)| Ok(loaded.file.check_finite()?))
    }

    fn of(&self, unit: &ControlUnit) -> &ControlNet {
        let found = self.0.iter().find(|(path, _)| *path == unit.model);
        found.map(|(_, loaded)| &loaded.network).expect("all units were loaded")
    }
}

impl ControlUnit {
    /// Whether its file is a ControlNet for this UNet, which is better known before anything is loaded.
    ///
    /// # Errors
    /// A file that is none, or one for another UNet.
    pub(crate) fn check_file(&self, unet: &UNetConfig) -> Result<()> {
        self.open(unet).map(drop)
    }

    fn open(&self, unet: &UNetConfig) -> Result<ControlNetFile> {
        let file = ControlNetFile::open(&self.model, unet)?;
        check_form(&file, unet)?;
        Ok(file)
    }
}

/// Whether the residuals of a ControlNet fit a UNet.
fn check_form(file: &ControlNetFile, unet: &UNetConfig) -> Result<()> {
    let form = |unet: &UNetConfig| {
        let UNetConfig {
            in_channels,
            block_out_channels,
            layers_per_block,
            cross_attention,
            cross_attention_dim,
            ..
        } = unet;
        format!(
            "{in_channels} channels, levels of {block_out_channels:?} with {layers_per_block} layers and attention {cross_attention:?}, \
             a context of {cross_attention_dim}"
        )
    };
    let (expected, found) = (form(unet), form(&file.config().unet));
    match expected == found {
        true => Ok(()),
        false => Err(Error::ControlForm { path: file.path().to_path_buf(), expected, found }),
    }
}

/// A unit with what its preprocessor has made: a picture for all that are made at once, or of parts one for each.
pub(crate) struct Prepared<'a> {
    unit: &'a ControlUnit,
    network: &'a ControlNet,
    pictures: Vec<RgbImage>,
    resize_mode: ResizeMode,
}

impl<'a> Prepared<'a> {
    /// The units of a picture that is, or is made from, `image`, or of parts of a larger one.
    ///
    /// # Errors
    /// A picture that cannot be read, or is not there.
    pub(crate) fn all(
        settings: &'a Settings,
        image: Option<&RgbImage>,
        parts: Option<&[Part]>,
        nets: &'a LoadedNets,
    ) -> Result<Vec<Self>> {
        let units = settings.controls.iter().enumerate();
        units
            .map(|(number, unit)| {
                let seen: Vec<Cow<'_, RgbImage>> = match (parts, &unit.image, image) {
                    (Some(parts), ..) => parts.iter().map(|part| part.control(number)).collect(),
                    (None, Some(path), _) => vec![Cow::Owned(decode(path)?.into_rgb())],
                    (None, None, Some(image)) => vec![Cow::Borrowed(image)],
                    (None, None, None) => return Err(Error::NoControlImage { number }),
                };
                let of_image = settings.image.as_ref().filter(|_| unit.image.is_none());
                let resize_mode = of_image.map_or(unit.resize_mode, |image| image.resize_mode);
                let made = |picture: &Cow<'_, RgbImage>| {
                    let resolution_px = match unit.pixel_perfect {
                        true => pixel_perfect_px(picture, settings.size, resize_mode),
                        false => unit.resolution_px,
                    };
                    unit.preprocessor.of_used(picture, resolution_px, settings.size, resize_mode)
                };
                let pictures = seen.iter().map(made).collect::<Result<_>>()?;
                Ok(Self { unit, network: nets.of(unit), pictures, resize_mode })
            })
            .collect()
    }
}

/// What the units do in one pass.
pub(crate) struct Guides<'a> {
    guides: Vec<Guide<'a>>,
    schedule: &'a Schedule,
    prediction: Prediction,
}

struct Guide<'a> {
    unit: &'a ControlUnit,
    network: &'a ControlNet,
    /// `(B or 1, C, h, w)`
    hint: Tensor,
    colours: Option<Colours>,
}

/// What makes colours those of a picture.
struct Colours {
    /// The latents of the pictures, blurred, `(B or 1, 4, h, w)` in fp32.
    blurred: Tensor,
    /// Half the side of the square over which is blurred.
    reach: i64,
    /// How much of what is blurred goes into the negative prompt's.
    sharpness: Option<f64>,
}

impl<'a> Guides<'a> {
    /// For the pass of these settings: each picture is brought to its size.
    pub(crate) fn new(
        prepared: &'a [Prepared<'a>],
        settings: &Settings,
        networks: &Networks<'_>,
        schedule: &'a Schedule,
    ) -> Result<Self> {
        let is_second = settings.image.as_ref().is_some_and(|image| image.after_calls.is_some());
        let guide = |one: &'a Prepared<'a>| {
            let fitted =
                one.pictures.iter().map(|one_of| fit_control(one_of, settings.size, one.resize_mode));
            let pictures: Vec<_> = fitted.collect();
            let colours = |variation: u32, sharpness| {
                // Twice as far in a hires pass, as there.
                let reach = i64::from(variation) * if is_second { 2 } else { 1 };
                let latents = pictures.iter().map(|picture| networks.encode(picture));
                let latents = Tensor::cat(&latents.collect::<Result<Vec<_>>>()?, 0);
                let latents = latents * networks.vae.config().scaling_factor;
                Ok::<_, Error>(Colours { blurred: blur(&latents, reach), reach, sharpness })
            };
            let colours = match one.unit.preprocessor {
                Preprocessor::TileColorfix { variation } => Some(colours(variation, None)?),
                Preprocessor::TileColorfixSharp { variation, sharpness } => {
                    Some(colours(variation, Some(sharpness * 0.01))?)
                }
                _ => None,
            };
            let (device, kind) = (one.network.vars().device(), one.network.vars().kind());
            let seen = Tensor::cat(&pictures.iter().map(to_tensor).collect::<Vec<_>>(), 0);
            let hint = one.network.embed(&seen.to_device(device).to_kind(kind));
            Ok(Guide { unit: one.unit, network: one.network, hint, colours })
        };
        let guides = prepared.iter().map(guide).collect::<Result<_>>()?;
        Ok(Self { guides, schedule, prediction: networks.prediction })
    }

    /// One call of the denoiser, by `call`, with what the units add: the first `of_prompt` rows are the prompt's, the others the
    /// negative prompt's; `share` of the steps is through.
    pub(crate) fn forward(
        &self,
        mut inputs: Inputs,
        of_prompt: i64,
        share: f64,
        timestep: f64,
        call: &mut dyn FnMut(&Inputs) -> Tensor,
    ) -> Tensor {
        if self.guides.is_empty() {
            return call(&inputs);
        }
        inputs.residuals = self.residuals(&inputs, of_prompt, share);
        let output = call(&inputs);
        let last = self.schedule.timesteps() - 1;
        let level = self.schedule.add_noise((timestep.round_ties_even() as usize).min(last));
        let fixing = self.guides.iter().filter(|guide| guide.unit.weight > 0.0);
        let fixing = fixing.filter_map(|guide| Some((guide.colours.as_ref()?, guide.unit.weight)));
        fixing.fold(output, |output, (colours, weight)| {
            let found = colours.fixed(&inputs.latents, &output, of_prompt, level, self.prediction);
            let weight = weight.clamp(0.0, 1.0);
            found * weight + output * (1.0 - weight)
        })
    }

    /// The sum of what all units that act give; none where none does.
    fn residuals(&self, inputs: &Inputs, of_prompt: i64, share: f64) -> Vec<Tensor> {
        let acting = self.guides.iter().filter(|guide| guide.unit.acts_at(share) && guide.unit.weight > 0.0);
        acting.fold(Vec::new(), |sum: Vec<Tensor>, guide| {
            let found = guide.residuals(inputs, of_prompt);
            if sum.is_empty() || found.is_empty() {
                return if sum.is_empty() { found } else { sum };
            }
            sum.into_iter().zip(found).map(|(a, b)| a + b).collect()
        })
    }
}

impl Guide<'_> {
    /// What the network gives, weighed; where it is for the prompt alone, with nothing for the other rows.
    fn residuals(&self, inputs: &Inputs, of_prompt: i64) -> Vec<Tensor> {
        let rows = inputs.latents.size()[0];
        let seen = if self.unit.mode == ControlMode::Control { of_prompt } else { rows };
        if seen == 0 {
            return Vec::new();
        }
        let of = |all: &Tensor| all.narrow(0, 0, seen);
        let (latents, timesteps, context) = (of(&inputs.latents), of(&inputs.timesteps), of(&inputs.context));
        let hint = for_rows(&self.hint, seen);
        let found = self.network.forward(&latents, &timesteps, &context, &hint);
        let weights = self.unit.mode.weights(self.unit.weight, found.len());
        let weighed = |(residual, weight): (Tensor, f64)| {
            let residual = residual * weight;
            if seen == rows {
                return residual;
            }
            let mut rest = residual.size();
            rest[0] = rows - seen;
            let rest = Tensor::zeros(&rest[..], (residual.kind(), residual.device()));
            Tensor::cat(&[residual, rest], 0)
        };
        found.into_iter().zip(weights).map(weighed).collect()
    }
}

impl Colours {
    /// What the denoiser would have answered had it seen a picture of these colours. `output (B, 4, h, w)` in fp32.
    fn fixed(
        &self,
        latents: &Tensor,
        output: &Tensor,
        of_prompt: i64,
        Coefficients { signal, noise }: Coefficients,
        prediction: Prediction,
    ) -> Tensor {
        let x = latents.to_kind(Kind::Float);
        let seen = match prediction {
            Prediction::Epsilon => (&x - output * noise) / signal,
            Prediction::VPrediction => &x * signal - output * noise,
        };
        let fixed = &seen - blur(&seen, self.reach) + for_rows(&self.blurred, seen.size()[0]);
        let fixed = match self.sharpness {
            Some(sharpness) => {
                let rows = fixed.size()[0];
                let (prompt, rest) =
                    (fixed.narrow(0, 0, of_prompt), fixed.narrow(0, of_prompt, rows - of_prompt));
                let rest = blur(&rest, self.reach) * sharpness + &rest * (1.0 - sharpness);
                Tensor::cat(&[prompt, rest], 0)
            }
            None => fixed,
        };
        match prediction {
            Prediction::Epsilon => (x - fixed * signal) / noise,
            Prediction::VPrediction => (x * signal - fixed) / noise,
        }
    }
}

/// What is of each picture as often as it has rows; of which there is one for all as it is. `(B or 1, C, h, w)`
fn for_rows(of_pictures: &Tensor, rows: i64) -> Tensor {
    match of_pictures.size()[0] {
        1 => of_pictures.shallow_clone(),
        pictures => of_pictures.repeat([rows / pictures, 1, 1, 1]),
    }
}

/// The mean over squares that reach so far to each side, beyond the edges the outermost latents. `(B, 4, h, w)`
fn blur(latents: &Tensor, reach: i64) -> Tensor {
    if latents.size()[0] == 0 {
        return latents.shallow_clone();
    }
    let side = 2 * reach + 1;
    latents.replication_pad2d([reach; 4]).avg_pool2d([side; 2], [1, 1], [0, 0], false, true, None::<i64>)
}

/// `(1, 3, H, W)` in 0..1, fp32.
fn to_tensor(picture: &RgbImage) -> Tensor {
    let (width, height) = picture.dimensions();
    let pixels = Tensor::from_slice(picture.as_raw()).view([1, height.into(), width.into(), 3]);
    pixels.permute([0, 3, 1, 2]).to_kind(Kind::Float) / 255.0
}
