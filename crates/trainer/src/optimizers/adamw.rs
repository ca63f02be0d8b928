//! AdamW, through libtorch's fused kernels.

use tch::{Kind, Tensor};
use vodka_sd15::native::FusedAdamW;

use super::{Guard, Moving, OptimizerSettings, parts};

/// One step of all parameters, the one after `steps`.
pub(super) fn step(moving: &mut [Moving<'_>], steps: &Tensor, guard: &Guard, settings: &OptimizerSettings) {
    let OptimizerSettings { lr, betas, epsilon, weight_decay, .. } = *settings;
    let (mut means, mut squares) = (Vec::new(), Vec::new());
    for Moving { parameter, .. } in moving.iter_mut() {
        let [mean, square] = parts(&mut parameter.state);
        means.push(mean.shallow_clone());
        squares.push(square.shallow_clone());
    }
    let values: Vec<_> = moving.iter().map(|moving| moving.parameter.value.detach()).collect();
    let gradients: Vec<_> = moving.iter().map(|moving| moving.gradient.shallow_clone()).collect();
    let adamw = FusedAdamW {
        values: &values,
        gradients: &gradients,
        means: &means,
        squares: &squares,
        step: &(steps + 1.0).to_kind(Kind::Float),
        lr,
        betas,
        weight_decay,
        epsilon,
        gradient_scale: guard.divisor.as_ref(),
        found_inf: Some(&guard.found_inf),
    };
    adamw.step().expect("parameters, gradients and states are of one shape and kind");
}
