//! Prodigy: D-Adaptation that starts faster.

use tch::{Kind, Tensor};

use super::{Adaptation, Numbers, OptimizerSettings, Parameter, parts, total};

/// One step of all parameters; whether there was one.
pub(super) fn step(
    moving: &mut [(&mut Parameter, Tensor)],
    numbers: &mut Numbers,
    settings: &OptimizerSettings,
    adaptation: Adaptation,
) -> bool {
    let OptimizerSettings { lr, betas: [_, beta2], epsilon, weight_decay, .. } = *settings;
    if lr <= 0.0 {
        return false;
    }
    let bias = adaptation.bias_correction(settings.betas, numbers.steps + 1);
    let (d, d0) = (numbers.d, adaptation.d0);
    let rate = d * lr * bias;
    let weight = d / d0 * if adaptation.safeguard_warmup { d } else { rate };
    let (mut numerators, mut norms) = (Vec::new(), Vec::new());
    for (parameter, gradient) in moving.iter_mut() {
        if !adaptation.decouple {
            *gradient = &*gradient + parameter.value.detach() * weight_decay;
        }
        let (numerator, norm) = remember(parameter, gradient, d, weight, settings);
        numerators.push(numerator);
        norms.push(norm);
    }
    let norm = total(&norms);
    if norm == 0.0 {
        return false;
    }
    numbers.numerator = numbers.numerator * beta2.sqrt() + d / d0 * rate * total(&numerators);
    let estimate = numbers.numerator / norm;
    let begun = if d == d0 { d.max(estimate) } else { d };
    numbers.d_max = numbers.d_max.max(estimate);
    numbers.d = numbers.d_max.min(begun * adaptation.growth_rate);
    for (parameter, _) in moving {
        let [mean, square, _, _] = parts(&mut parameter.state);
        let value = &mut parameter.value;
        let denominator = square.sqrt() + numbers.d * epsilon;
        if adaptation.decouple {
            let _ = value.g_mul_scalar_(1.0 - weight_decay * rate);
        }
        let _ = value.g_sub_(&(&*mean * rate / denominator));
    }
    true
}

/// Updates a parameter's running sums; its part of the estimate's numerator and of its denominator.
fn remember(
    parameter: &mut Parameter,
    gradient: &Tensor,
    d: f64,
    weight: f64,
    settings: &OptimizerSettings,
) -> (Tensor, Tensor) {
    let [beta1, beta2] = settings.betas;
    let value = parameter.value.detach();
    let [mean, square, sum, start] = parts(&mut parameter.state);
    let way = &*start - value;
    let numerator = gradient.flatten(0, -1).dot(&way.flatten(0, -1));
    let _ = mean.g_mul_scalar_(beta1).g_add_(&(gradient * (d * (1.0 - beta1))));
    let _ = square.g_mul_scalar_(beta2).g_add_(&(gradient * gradient * (d * d * (1.0 - beta2))));
    let _ = sum.g_mul_scalar_(beta2.sqrt()).g_add_(&(gradient * weight));
    (numerator, sum.abs().sum(Kind::Float))
}
