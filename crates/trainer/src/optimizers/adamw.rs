//! AdamW.

use tch::Tensor;

use super::{OptimizerSettings, Parameter, correction, parts};

/// One parameter's step number `step`, counted from 1, in torch's order of operations.
pub(super) fn update(parameter: &mut Parameter, gradient: &Tensor, step: i64, settings: &OptimizerSettings) {
    let OptimizerSettings { lr, betas: [beta1, beta2], epsilon, weight_decay, .. } = *settings;
    let [mean, square] = parts(&mut parameter.state);
    let value = &mut parameter.value;
    let _ = value.g_mul_scalar_(1.0 - lr * weight_decay);
    let _ = mean.lerp_(gradient, 1.0 - beta1);
    let _ = square.g_mul_scalar_(beta2).g_add_(&(gradient * (1.0 - beta2) * gradient));
    let denominator = square.sqrt() / correction(beta2, step).sqrt() + epsilon;
    let _ = value.g_sub_(&(&*mean * (lr / correction(beta1, step)) / denominator));
}
