//! Adam that finds its learning rate by D-Adaptation.

use tch::Tensor;

use super::{Adaptation, Numbers, OptimizerSettings, Parameter, parts, total};

/// One step of all parameters; whether there was one.
pub(super) fn step(
    moving: &mut [(&mut Parameter, Tensor)],
    numbers: &mut Numbers,
    settings: &OptimizerSettings,
    adaptation: Adaptation,
) -> bool {
    let OptimizerSettings { lr, betas: [_, beta2], weight_decay, .. } = *settings;
    if lr <= 0.0 {
        return false;
    }
    let bias = adaptation.bias_correction(settings.betas, numbers.steps + 1);
    let rate = numbers.d * lr * bias;
    let (mut numerators, mut norms) = (Vec::new(), Vec::new());
    for (parameter, gradient) in moving.iter_mut() {
        if !adaptation.decouple {
            *gradient = &*gradient + parameter.value.detach() * weight_decay;
        }
        let (numerator, norm) = remember(parameter, gradient, rate, settings);
        numerators.push(numerator);
        norms.push(norm);
    }
    let norm = total(&norms);
    let root = beta2.sqrt();
    let numerator = root * numbers.numerator + (1.0 - root) * rate * total(&numerators);
    if norm == 0.0 {
        return false;
    }
    numbers.numerator = numerator;
    let estimate = numerator / ((1.0 - root) * norm);
    numbers.d = numbers.d.max(estimate.min(numbers.d * adaptation.growth_rate));
    for (parameter, _) in moving {
        let [mean, square, _] = parts(&mut parameter.state);
        let value = &mut parameter.value;
        if adaptation.decouple {
            let _ = value.g_mul_scalar_(1.0 - weight_decay * rate);
        }
        let _ = value.g_sub_(&(&*mean / (square.sqrt() + settings.epsilon)));
    }
    true
}

/// Updates a parameter's running sums; its part of the estimate's numerator and of its denominator.
fn remember(
    parameter: &mut Parameter,
    gradient: &Tensor,
    rate: f64,
    settings: &OptimizerSettings,
) -> (Tensor, Tensor) {
    let OptimizerSettings { betas: [beta1, beta2], epsilon, .. } = *settings;
    let [mean, square, sum] = parts(&mut parameter.state);
    let scaled = &*sum / (square.sqrt() + epsilon);
    let numerator = gradient.flatten(0, -1).dot(&scaled.flatten(0, -1));
    let root = beta2.sqrt();
    let _ = mean.g_mul_scalar_(beta1).g_add_(&(gradient * (rate * (1.0 - beta1))));
    let _ = square.g_mul_scalar_(beta2).g_add_(&(gradient * gradient * (1.0 - beta2)));
    let _ = sum.g_mul_scalar_(root).g_add_(&(gradient * (rate * (1.0 - root))));
    (numerator, sum.abs().sum(tch::Kind::Float))
}
