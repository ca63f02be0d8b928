//! Lion.

use tch::Tensor;

use super::{Guard, Moving, OptimizerSettings, parts};

/// One step of a parameter. The weights decay by `lr * weight_decay`.
pub(super) fn update(moving: &mut Moving<'_>, _steps: &Tensor, guard: &Guard, settings: &OptimizerSettings) {
    let OptimizerSettings { lr, betas: [beta1, beta2], weight_decay, .. } = *settings;
    let Moving { parameter, gradient } = moving;
    let [mean] = parts(&mut parameter.state);
    let value = &mut parameter.value;
    let _ = value.g_mul_(&guard.decay(lr * weight_decay));
    let direction = (&*mean * beta1 + &*gradient * (1.0 - beta1)).sgn();
    let _ = value.g_sub_(&(direction * guard.weight(lr)));
    let _ = mean.g_mul_(&guard.decay(1.0 - beta2)).g_add_(&(&*gradient * guard.weight(1.0 - beta2)));
}
