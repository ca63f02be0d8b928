//! In how many bits is computed, and what becomes of a step in which something is infinite or not a number.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};

/// What matrix products and convolutions are computed in. Weights and optimizers have 32 bits in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arithmetic {
    /// 32 bits.
    #[default]
    Fp32,
    /// 16 bits with the range of 32.
    Bf16,
    /// 16 bits that are more exact and reach less far: losses are scaled so that gradients do not vanish.
    Fp16,
}

impl Arithmetic {
    /// What autocast is asked for; `None`: nothing.
    pub fn autocast(self) -> Option<Kind> {
        match self {
            Self::Fp32 => None,
            Self::Bf16 => Some(Kind::BFloat16),
            Self::Fp16 => Some(Kind::Half),
        }
    }
}

/// What becomes of a run in which a loss or a gradient is infinite or not a number. The step is left out in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnNan {
    /// It ends.
    Stop,
    /// It goes on.
    Skip,
    /// It goes on, until the scale of the losses has come down to where it can no more be the reason.
    LowerScale,
}

/// How a training run computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArithmeticSettings {
    /// The UNet, and the text encoder where it is not apart.
    pub networks: Arithmetic,
    /// Whether the text encoder is computed in 32 bits, whatever the UNet is.
    pub exact_text_encoder: bool,
    /// The VAE.
    pub vae: Arithmetic,
    /// Whether 32-bit products may be computed with TF32 on a GPU.
    pub tf32: bool,
    /// Whether a GPU may only use what gives the same in every run.
    pub deterministic: bool,
    /// Whether blocks of the networks are computed twice rather than remembered.
    pub gradient_checkpointing: bool,
}

/// How the scale of losses moves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScalerRule {
    /// What it is multiplied by after so many good steps, and divided by after a bad one.
    pub factor: f64,
    /// Good steps in a row.
    pub interval: i64,
}

impl ScalerRule {
    /// EveryDream2's after so many batches (`train.py` at 5098db8 and, with `of_april`, at 974d3fa).
    pub fn after(batches: u64, tweaks: bool, of_april: bool) -> Self {
        let steps = [
            (500, 1.8, [100, 50]),
            (1000, 1.6, [200, 50]),
            (2000, 1.3, [500, 100]),
            (4000, 1.15, [2000, 100]),
        ];
        let begun = steps.iter().rfind(|(from, ..)| tweaks && batches >= *from);
        begun.map_or(Self { factor: 2.0, interval: 25 }, |(_, factor, intervals)| Self {
            factor: *factor,
            interval: intervals[usize::from(of_april)],
        })
    }
}

/// What is saved of a [`Scaler`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ScalerState {
    /// The scale.
    pub scale: f32,
    /// Good steps since it last moved.
    pub good_steps: i64,
}

impl Default for ScalerState {
    /// EveryDream2's beginning.
    fn default() -> Self {
        Self { scale: 17.5_f32.exp2(), good_steps: 0 }
    }
}

/// What losses are multiplied by in fp16, so that small gradients are not 0: `torch.amp.GradScaler`.
#[derive(Debug)]
pub struct Scaler {
    scale: Tensor,
    good_steps: Tensor,
}

impl Scaler {
    /// One that goes on from a saved state.
    pub fn new(state: ScalerState, device: Device) -> Self {
        Self {
            scale: Tensor::from(state.scale).to_device(device),
            good_steps: Tensor::from(state.good_steps).to_kind(Kind::Int).to_device(device),
        }
    }

    /// The scale. 32-bit, without axes
    pub fn scale(&self) -> &Tensor {
        &self.scale
    }

    /// Moves the scale after a step, in which something was infinite (1) or nothing was (0).
    pub fn update(&mut self, found_inf: &Tensor, rule: ScalerRule) {
        let ScalerRule { factor, interval } = rule;
        // Gradients that come from this step's scale keep it.
        self.scale = self.scale.copy();
        let _ = no_grad(|| {
            self.scale.internal_amp_update_scale_(&self.good_steps, found_inf, factor, 1.0 / factor, interval)
        });
    }

    /// What is to be saved. Waits for the device.
    pub fn state(&self) -> ScalerState {
        ScalerState {
            scale: self.scale.double_value(&[]) as f32,
            good_steps: self.good_steps.int64_value(&[]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_moves_less_and_less_as_in_everydream2() {
        let rule = |batches, tweaks, of_april| {
            let ScalerRule { factor, interval } = ScalerRule::after(batches, tweaks, of_april);
            (factor, interval)
        };
        assert_eq!([0, 499].map(|n| rule(n, true, false)), [(2.0, 25); 2]);
        assert_eq!(
            [500, 1000, 2000, 4000, 99_999].map(|n| rule(n, true, false)),
            [(1.8, 100), (1.6, 200), (1.3, 500), (1.15, 2000), (1.15, 2000)]
        );
        assert_eq!(
            [500, 1000, 2000, 4000].map(|n| rule(n, true, true)),
            [(1.8, 50), (1.6, 50), (1.3, 100), (1.15, 100)]
        );
        assert_eq!(rule(4000, false, false), (2.0, 25));
    }

    #[test]
    fn a_bad_step_halves_the_scale_and_twenty_five_good_ones_double_it() {
        let rule = ScalerRule::after(0, true, false);
        let mut scaler = Scaler::new(ScalerState::default(), Device::Cpu);
        assert_eq!(scaler.state().scale, 185_363.8);
        let [good, bad] = [0.0_f32, 1.0].map(Tensor::from);
        scaler.update(&good, rule);
        assert_eq!(scaler.state().good_steps, 1);
        scaler.update(&bad, rule);
        assert_eq!(scaler.state(), ScalerState { scale: 92_681.9, good_steps: 0 });
        (0..24).for_each(|_| scaler.update(&good, rule));
        let mut resumed = Scaler::new(scaler.state(), Device::Cpu);
        resumed.update(&good, rule);
        assert_eq!(resumed.state(), ScalerState::default());
    }
}
