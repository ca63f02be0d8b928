//! The loss of one batch: pure functions of networks, inputs and noise.

use tch::{Device, Kind, Tensor};
use vodka_checkpoint::Prediction;
use vodka_noise::Schedule;
use vodka_sd15::{ClipTextModel, Network, StableDiffusion, UNet, native::Autocast};

use crate::target::{LossType, add_noise, min_snr_weight, target, unweighted_losses};

/// What one batch is computed from.
#[derive(Debug)]
pub struct Batch {
    /// Posterior samples, scaled. `(B, 4, h, w)`
    pub latents: Tensor,
    /// What is added to them. `(B, 4, h, w)`
    pub noise: Tensor,
    /// How noisy each example is, 0 to 999. `(B)`
    pub timesteps: Vec<i64>,
    /// The captions' token ids. `(B, 77)` i64
    pub ids: Tensor,
    /// What the text encoder makes of them, where that is known. `(B, 77, C)`
    pub states: Option<Tensor>,
    /// What is added to the text encoder's output. `(B, 77, C)`
    pub perturbation: Option<Tensor>,
}

/// What the networks are given for one batch, and what they should answer. All on their device.
#[derive(Debug)]
pub struct Inputs {
    /// `(B, 4, h, w)`
    pub noisy: Tensor,
    /// `(B, 4, h, w)`
    pub target: Tensor,
    /// `(B)` i64
    pub timesteps: Tensor,
    /// The timesteps as a share of all. `(B)`
    pub noisiness: Tensor,
    /// What losses are multiplied by. `(B)`
    pub weights: Option<Tensor>,
    /// `(B, 77)` i64
    pub ids: Tensor,
    /// `(B, 77, C)`
    pub states: Option<Tensor>,
    /// `(B, 77, C)`
    pub perturbation: Option<Tensor>,
}

impl Inputs {
    /// All tensors that there are, in one order; they share what is in them.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = Tensor> {
        let always = [&self.noisy, &self.target, &self.timesteps, &self.noisiness, &self.ids];
        let some = [&self.weights, &self.states, &self.perturbation];
        let all = always.into_iter().chain(some.into_iter().flatten());
        all.map(Tensor::shallow_clone).collect::<Vec<_>>().into_iter()
    }

    /// What tells batches of one size from those of another.
    pub(crate) fn sizes(&self) -> Vec<i64> {
        let given =
            [&self.weights, &self.states, &self.perturbation].map(|tensor| i64::from(tensor.is_some()));
        [self.noisy.size(), self.ids.size(), given.to_vec()].concat()
    }

    /// The same on a device. The host does not wait for it.
    pub fn to_device(&self, device: Device) -> Self {
        let option = |tensor: &Option<Tensor>| tensor.as_ref().map(|tensor| upload(tensor, device));
        Self {
            noisy: upload(&self.noisy, device),
            target: upload(&self.target, device),
            timesteps: upload(&self.timesteps, device),
            noisiness: upload(&self.noisiness, device),
            weights: option(&self.weights),
            ids: upload(&self.ids, device),
            states: option(&self.states),
            perturbation: option(&self.perturbation),
        }
    }
}

/// The tensor on the device; a GPU fetches it when it comes to it, from memory that stays where it is.
pub fn upload(tensor: &Tensor, device: Device) -> Tensor {
    match device.is_cuda() && tensor.device() == Device::Cpu {
        true => tensor.pin_memory(device).to_device_(device, tensor.kind(), true, false),
        false => tensor.to_device(device),
    }
}

/// Adds the gradients of a batch to those that there are: of its losses, each times its weight `(B)`, summed, times the
/// scale. The mean of the losses; without axes. Nothing in it waits for the device.
pub fn accumulate(
    objective: &Objective,
    model: &StableDiffusion,
    inputs: &Inputs,
    weights: &Tensor,
    scale: Option<&Tensor>,
) -> Tensor {
    let losses = objective.losses_of(&model.clip, &model.unet, inputs); // (B)
    let sum = (&losses * weights).sum(Kind::Float);
    scale.map_or(sum.shallow_clone(), |scale| &sum * scale).backward();
    losses.detach().mean(Kind::Float)
}

/// What is asked of the networks.
#[derive(Debug, Clone)]
pub struct Objective {
    /// How much noise a timestep has.
    pub schedule: Schedule,
    /// What the UNet predicts.
    pub prediction: Prediction,
    /// How its error becomes a loss.
    pub loss_type: LossType,
    /// The largest signal-to-noise ratio that counts; `None`: all examples weigh the same.
    pub min_snr_gamma: Option<f64>,
    /// The prediction that weights are made for: the UNet's, but for a defect of EveryDream2 (D6).
    pub weighted_for: Prediction,
    /// The text encoder's layer, counted as A1111 does: 1 is the last.
    pub clip_skip: i64,
    /// The 16 bits that the UNet is computed in; `None`: 32.
    pub unet_autocast: Option<Kind>,
    /// The 16 bits that the text encoder is computed in; `None`: 32.
    pub text_autocast: Option<Kind>,
}

impl Default for Objective {
    /// Noise by Stable Diffusion's schedule, squared errors, all alike, the last layer, 32 bits.
    fn default() -> Self {
        Self {
            schedule: Schedule::scaled_linear(),
            prediction: Prediction::Epsilon,
            loss_type: LossType::Mse,
            min_snr_gamma: None,
            weighted_for: Prediction::Epsilon,
            clip_skip: 1,
            unet_autocast: None,
            text_autocast: None,
        }
    }
}

impl Objective {
    /// The loss of each example (for noise and squared errors: Ho et al. 2020, arXiv:2006.11239, equation 14). `(B)`
    pub fn losses(&self, clip: &ClipTextModel, unet: &UNet, batch: &Batch) -> Tensor {
        self.losses_of(clip, unet, &self.inputs(batch).to_device(unet.vars().device()))
    }

    /// What the networks are given, where the batch is.
    pub fn inputs(&self, batch: &Batch) -> Inputs {
        let Batch { latents, noise, timesteps, ids, states, perturbation } = batch;
        let of = self.schedule.timesteps() as f64;
        let noisiness: Vec<_> = timesteps.iter().map(|&t| (t as f64 / of) as f32).collect();
        let option = |tensor: &Option<Tensor>| tensor.as_ref().map(Tensor::shallow_clone);
        Inputs {
            noisy: add_noise(&self.schedule, latents, noise, timesteps),
            target: target(self.prediction, &self.schedule, latents, noise, timesteps),
            timesteps: Tensor::from_slice(timesteps),
            noisiness: Tensor::from_slice(&noisiness),
            weights: self.min_snr_gamma.map(|gamma| self.weights(gamma, timesteps)),
            ids: ids.shallow_clone(),
            states: option(states),
            perturbation: option(perturbation),
        }
    }

    /// The loss of each example. Nothing in it waits for the device. `(B)`
    pub fn losses_of(&self, clip: &ClipTextModel, unet: &UNet, inputs: &Inputs) -> Tensor {
        let device = inputs.noisy.device();
        let context = match &inputs.states {
            Some(states) => states.shallow_clone(),
            None => {
                let _autocast = Autocast::enter(device, self.text_autocast);
                clip.forward(&inputs.ids, self.clip_skip) // (B, 77, C)
            }
        };
        let context = match &inputs.perturbation {
            Some(perturbation) => context + perturbation,
            None => context,
        };
        let predicted = {
            let _autocast = Autocast::enter(device, self.unet_autocast);
            unet.forward(&inputs.noisy, &inputs.timesteps, &context) // (B, 4, h, w)
        };
        let losses = unweighted_losses(self.loss_type, &predicted, &inputs.target, &inputs.noisiness); // (B)
        match &inputs.weights {
            Some(weights) => losses * weights,
            None => losses,
        }
    }

    /// `(B)`
    fn weights(&self, gamma: f64, timesteps: &[i64]) -> Tensor {
        let weight =
            |&t: &i64| min_snr_weight(self.schedule.snr(t as usize), gamma, self.weighted_for) as f32;
        Tensor::from_slice(&timesteps.iter().map(weight).collect::<Vec<_>>())
    }
}
