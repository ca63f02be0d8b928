//! Lion.

use tch::Tensor;

use super::{OptimizerSettings, Parameter, parts};

/// One parameter's step. The weights decay by `lr * weight_decay`.
pub(super) fn update(parameter: &mut Parameter, gradient: &Tensor, _step: i64, settings: &OptimizerSettings) {
    let OptimizerSettings { lr, betas: [beta1, beta2], weight_decay, .. } = *settings;
    let [mean] = parts(&mut parameter.state);
    let value = &mut parameter.value;
    let _ = value.g_mul_scalar_(1.0 - lr * weight_decay);
    let direction = (&*mean * beta1 + gradient * (1.0 - beta1)).sgn();
    let _ = value.g_sub_(&(direction * lr));
    let _ = mean.g_mul_scalar_(beta2).g_add_(&(gradient * (1.0 - beta2)));
}
