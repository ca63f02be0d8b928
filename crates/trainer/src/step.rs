//! The loss of one batch: pure functions of networks, inputs and noise.

use tch::Tensor;
use vodka_checkpoint::Prediction;
use vodka_noise::Schedule;
use vodka_sd15::{ClipTextModel, UNet};

use crate::target::{LossType, add_noise, min_snr_weight, target, unweighted_losses};

/// What one batch is computed from. All on the device of the networks.
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
    /// What the text encoder makes of them, where that is known already. `(B, 77, C)`
    pub states: Option<Tensor>,
    /// What is added to the text encoder's output. `(B, 77, C)`
    pub perturbation: Option<Tensor>,
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
}

impl Default for Objective {
    /// Noise by Stable Diffusion's schedule, squared errors, all alike, the last layer.
    fn default() -> Self {
        Self {
            schedule: Schedule::scaled_linear(),
            prediction: Prediction::Epsilon,
            loss_type: LossType::Mse,
            min_snr_gamma: None,
            weighted_for: Prediction::Epsilon,
            clip_skip: 1,
        }
    }
}

impl Objective {
    /// The loss of each example (for noise and squared errors: Ho et al. 2020, arXiv:2006.11239, equation 14). `(B)`
    pub fn losses(&self, clip: &ClipTextModel, unet: &UNet, batch: &Batch) -> Tensor {
        let Batch { latents, noise, timesteps, ids, states, perturbation } = batch;
        let context = match states {
            Some(states) => states.shallow_clone(),
            None => clip.forward(ids, self.clip_skip),
        }; // (B, 77, C)
        let context = match perturbation {
            Some(perturbation) => context + perturbation,
            None => context,
        };
        let noisy = add_noise(&self.schedule, latents, noise, timesteps); // (B, 4, h, w)
        let steps = Tensor::from_slice(timesteps).to_device(noisy.device()); // (B)
        let predicted = unet.forward(&noisy, &steps, &context); // (B, 4, h, w)
        let target = target(self.prediction, &self.schedule, latents, noise, timesteps); // (B, 4, h, w)
        let of = self.schedule.timesteps();
        let losses = unweighted_losses(self.loss_type, &predicted, &target, timesteps, of); // (B)
        match self.min_snr_gamma {
            Some(gamma) => losses * self.weights(gamma, timesteps).to_device(predicted.device()),
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
