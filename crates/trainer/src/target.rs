//! What a network is asked for, how wrong its answer is, and what the noise is made of.

use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, Tensor};
use vodka_checkpoint::Prediction;
use vodka_noise::{Coefficients, Schedule};

/// How a difference becomes a loss; the mixes go from one to the other as a straight line in the timestep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// Its square.
    #[default]
    Mse,
    /// Half its square up to 1, and linear from there.
    Huber,
    /// Huber where there is no noise, the square where there is nothing else.
    MseHuber,
    /// The square where there is no noise, Huber where there is nothing else.
    HuberMse,
}

/// The loss of each example, unweighted. `predicted` and `target`: `(B, 4, h, w)`; `noisiness`, the timesteps as a share
/// of all, and the result: `(B)` in 32 bits
pub fn unweighted_losses(
    loss_type: LossType,
    predicted: &Tensor,
    target: &Tensor,
    noisiness: &Tensor,
) -> Tensor {
    let [predicted, target] = [predicted, target].map(|tensor| tensor.to_kind(Kind::Float));
    let mean = |loss: Tensor| loss.mean_dim(&[1_i64, 2, 3][..], false, Kind::Float); // (B)
    let mse = || mean(predicted.mse_loss(&target, Reduction::None));
    let huber = || mean(predicted.huber_loss(&target, Reduction::None, 1.0));
    match loss_type {
        LossType::Mse => mse(),
        LossType::Huber => huber(),
        LossType::MseHuber => mse() * noisiness + huber() * (1.0 - noisiness),
        LossType::HuberMse => huber() * noisiness + mse() * (1.0 - noisiness),
    }
}

/// The factor of an example's loss with min-SNR weighting (Hang et al. 2023, arXiv:2303.09556): the signal-to-noise
/// ratio, at most `gamma`, over what the prediction weighs it by already. It is 1 where there is no signal and noise is
/// predicted.
pub fn min_snr_weight(snr: f64, gamma: f64, prediction: Prediction) -> f64 {
    match prediction {
        Prediction::Epsilon if snr == 0.0 => 1.0,
        Prediction::Epsilon => snr.min(gamma) / snr,
        Prediction::VPrediction => snr.min(gamma) / (snr + 1.0),
    }
}

/// What the network should answer. All `(B, 4, h, w)`
pub fn target(
    prediction: Prediction,
    schedule: &Schedule,
    latents: &Tensor,
    noise: &Tensor,
    timesteps: &[i64],
) -> Tensor {
    match prediction {
        Prediction::Epsilon => noise.shallow_clone(),
        Prediction::VPrediction => {
            let factor = |of: fn(Coefficients) -> f64| factors(schedule, timesteps, of, latents);
            factor(|mix| mix.signal) * noise - factor(|mix| mix.noise) * latents
        }
    }
}

/// The latents as they are at their timesteps. All `(B, 4, h, w)`
pub fn add_noise(schedule: &Schedule, latents: &Tensor, noise: &Tensor, timesteps: &[i64]) -> Tensor {
    let factor = |of: fn(Coefficients) -> f64| factors(schedule, timesteps, of, latents);
    factor(|mix| mix.signal) * latents + factor(|mix| mix.noise) * noise
}

/// `(B, 1, 1, 1)`, on the device of `like`.
fn factors(schedule: &Schedule, timesteps: &[i64], of: fn(Coefficients) -> f64, like: &Tensor) -> Tensor {
    let values: Vec<_> = timesteps.iter().map(|&t| of(schedule.add_noise(t as usize)) as f32).collect();
    Tensor::from_slice(&values).to_device(like.device()).view([-1, 1, 1, 1])
}

/// The sizes of the coarser and coarser levels of pyramid noise for latents of `height` and `width`, until one side is
/// 1; each is smaller than the one before by `factor()`, 2 to 4, to the power of its number, the first by nothing.
pub fn pyramid_sizes(height: i64, width: i64, mut factor: impl FnMut() -> f64) -> Vec<(i64, i64)> {
    const LEVELS: i32 = 10;
    let mut sizes = Vec::new();
    let (mut height, mut width) = (height, width);
    for level in 0..LEVELS {
        let shrink = factor().powi(level);
        let smaller = |side: i64| ((side as f64 / shrink) as i64).max(1);
        (height, width) = (smaller(height), smaller(width));
        sizes.push((height, width));
        if height == 1 || width == 1 {
            break;
        }
    }
    sizes
}

/// Noise of several sizes at once, with a standard deviation of 1 (Whitaker 2023, "Multi-resolution noise for diffusion
/// model training"). The first of `levels` is at full size, the others become so; the one after it weighs 1, each further
/// one `discount` times the one before. Each `(1, 4, ., .)`
pub fn pyramid_noise(levels: &[Tensor], discount: f64) -> Tensor {
    let [full, coarser @ ..] = levels else { panic!("a pyramid has a full-size level") };
    let size = &full.size()[2..];
    let mut noise = full.copy();
    let mut weight = 1.0;
    for level in coarser {
        noise += level.upsample_bilinear2d(size, false, None, None) * weight;
        weight *= discount;
    }
    let deviation = noise.std(true);
    noise / deviation
}

/// What is added to the text encoder's output `(B, 77, C)`: standard normal `numbers` of the same size, of which each comes to
/// have a standard deviation of `strength` over the square root of C (victorchall/EveryDream2trainer, `train.py` at 5098db8).
pub fn perturbation(numbers: &Tensor, strength: f64) -> Tensor {
    let channels = *numbers.size().last().expect("it has the axes of the text encoder's output");
    numbers * (strength / (channels as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use vodka_testkit::Case;

    use super::*;

    fn tensor(case: &Case, name: &str) -> Tensor {
        let array = case.array(name);
        let shape: Vec<_> = array.shape.iter().map(|n| *n as i64).collect();
        Tensor::from_slice(&array.data).view(&shape[..])
    }

    fn check(case: &Case, name: &str, tensor: &Tensor) {
        let shape: Vec<_> = tensor.size().iter().map(|n| *n as usize).collect();
        case.check(name, &Vec::<f32>::try_from(tensor.flatten(0, -1)).unwrap(), &shape);
    }

    const TIMESTEPS: [i64; 4] = [0, 250, 500, 999];

    #[test]
    fn losses_are_those_of_torch() {
        let case = Case::open("trainer/losses");
        let (predicted, noise) = (tensor(&case, "predicted"), tensor(&case, "noise"));
        for (name, loss_type) in [
            ("mse", LossType::Mse),
            ("huber", LossType::Huber),
            ("mse_huber", LossType::MseHuber),
            ("huber_mse", LossType::HuberMse),
        ] {
            let noisiness = Tensor::from_slice(&TIMESTEPS.map(|t| t as f32 / 1000.0));
            let losses = unweighted_losses(loss_type, &predicted, &noise, &noisiness);
            check(&case, &format!("loss/{name}"), &losses);
        }
    }

    #[test]
    fn targets_and_noisy_latents_are_those_of_diffusers() {
        let case = Case::open("trainer/losses");
        let (latents, noise) = (tensor(&case, "latents"), tensor(&case, "noise"));
        let schedule = Schedule::scaled_linear();
        let velocity = target(Prediction::VPrediction, &schedule, &latents, &noise, &TIMESTEPS);
        check(&case, "velocity", &velocity);
        assert_eq!(target(Prediction::Epsilon, &schedule, &latents, &noise, &TIMESTEPS), noise);

        let schedule = schedule.zero_terminal_snr();
        let alphas: Vec<_> = schedule.alphas_cumprod().iter().map(|a| *a as f32).collect();
        case.check("zero_snr/alphas_cumprod", &alphas, &[1000]);
        check(&case, "zero_snr/noisy", &add_noise(&schedule, &latents, &noise, &TIMESTEPS));
    }

    #[test]
    fn min_snr_weighs_as_published() {
        let case = Case::open("trainer/losses");
        let schedule = Schedule::scaled_linear();
        for (name, prediction) in
            [("epsilon", Prediction::Epsilon), ("v_prediction", Prediction::VPrediction)]
        {
            let weight = |t: i64| min_snr_weight(schedule.snr(t as usize), 5.0, prediction) as f32;
            case.check(&format!("min_snr/{name}"), &TIMESTEPS.map(weight), &[4]);
        }
        assert_eq!(min_snr_weight(0.0, 5.0, Prediction::Epsilon), 1.0);
        assert_eq!(min_snr_weight(0.0, 5.0, Prediction::VPrediction), 0.0);
    }

    #[test]
    fn pyramid_noise_is_that_of_torch() {
        let case = Case::open("trainer/losses");
        let levels = [0, 1, 2, 3].map(|level| tensor(&case, &format!("levels/{level}")));
        check(&case, "pyramid", &pyramid_noise(&levels, 0.4));
        assert_eq!(pyramid_sizes(64, 48, || 2.0), [(64, 48), (32, 24), (8, 6), (1, 1)]);
        assert_eq!(pyramid_sizes(64, 64, || 3.9), [(64, 64), (16, 16), (1, 1)]);
    }
}
