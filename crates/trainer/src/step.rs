//! The loss of one batch: pure functions of networks, inputs and noise.

use tch::{Kind, Tensor};
use vodka_noise::{Coefficients, Schedule};
use vodka_sd15::{ClipTextModel, UNet};

/// What one batch is computed from. All on the device of the networks.
#[derive(Debug)]
pub struct Batch {
    /// Posterior samples, scaled. `(B, 4, h, w)`
    pub latents: Tensor,
    /// Standard normal noise. `(B, 4, h, w)`
    pub noise: Tensor,
    /// How noisy each example is, 0 to 999. `(B)`
    pub timesteps: Vec<i64>,
    /// The captions' token ids. `(B, 77)` i64
    pub ids: Tensor,
}

/// The mean squared error of each example's predicted noise (Ho et al. 2020, arXiv:2006.11239, equation 14). `(B)`
///
/// `clip_skip` counts as A1111 does: 1 is the text encoder's last layer.
pub fn losses(
    clip: &ClipTextModel,
    unet: &UNet,
    schedule: &Schedule,
    batch: &Batch,
    clip_skip: i64,
) -> Tensor {
    let context = clip.forward(&batch.ids, clip_skip); // (B, 77, C)
    let noisy = add_noise(schedule, batch); // (B, 4, h, w)
    let timesteps = Tensor::from_slice(&batch.timesteps).to_device(noisy.device()); // (B)
    let predicted = unet.forward(&noisy, &timesteps, &context); // (B, 4, h, w)
    let error = (predicted - &batch.noise).square(); // (B, 4, h, w)
    error.mean_dim(&[1_i64, 2, 3][..], false, Kind::Float) // (B)
}

/// The latents as they are at their timesteps. `(B, 4, h, w)`
fn add_noise(schedule: &Schedule, batch: &Batch) -> Tensor {
    let factor = |of: fn(Coefficients) -> f64| {
        let values: Vec<_> =
            batch.timesteps.iter().map(|&t| of(schedule.add_noise(t as usize)) as f32).collect();
        Tensor::from_slice(&values).to_device(batch.latents.device()).view([-1, 1, 1, 1]) // (B, 1, 1, 1)
    };
    factor(|mix| mix.signal) * &batch.latents + factor(|mix| mix.noise) * &batch.noise
}
