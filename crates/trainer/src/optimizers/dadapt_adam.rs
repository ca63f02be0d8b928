//! Adam that finds its learning rate by D-Adaptation.

use tch::{Kind, Tensor};

use super::{Adaptation, Counters, Guard, Moving, OptimizerSettings, parts, total};

/// One step of all parameters; 1 where there was one and 0 where not.
pub(super) fn step(
    moving: &mut [Moving<'_>],
    counters: &mut Counters,
    guard: &Guard,
    settings: &OptimizerSettings,
    adaptation: Adaptation,
) -> Tensor {
    let OptimizerSettings { lr, betas: [_, beta2], weight_decay, .. } = *settings;
    let rate = &counters.d * lr * adaptation.bias_correction(settings.betas, &counters.steps);
    let (mut numerators, mut norms) = (Vec::new(), Vec::new());
    for moving in moving.iter_mut() {
        if !adaptation.decouple {
            moving.gradient = &moving.gradient + moving.parameter.value.detach() * weight_decay;
        }
        let (numerator, norm) = remember(moving, &rate, guard, settings);
        numerators.push(numerator);
        norms.push(norm);
    }
    let norm = total(&norms);
    let root = beta2.sqrt();
    let moves = &guard.ok * norm.not_equal(0.0).to_kind(Kind::Double);
    let moved = Guard::of(moves);
    let numerator = &counters.numerator * root + &rate * total(&numerators) * (1.0 - root);
    let estimate = &numerator / (norm * (1.0 - root));
    let d = counters.d.maximum(&estimate.minimum(&(&counters.d * adaptation.growth_rate)));
    counters.numerator = moved.choose(&numerator, &counters.numerator);
    counters.d = moved.choose(&d, &counters.d);
    for Moving { parameter, .. } in moving {
        let [mean, square, _] = parts(&mut parameter.state);
        let value = &mut parameter.value;
        if adaptation.decouple {
            let _ = value.g_mul_(&moved.decay_by(&rate * weight_decay));
        }
        let _ = value.g_sub_(&(&*mean / (square.sqrt() + settings.epsilon) * &moved.ok));
    }
    moved.ok
}

/// Updates a parameter's running sums; its part of the estimate's numerator and of its denominator.
fn remember(
    moving: &mut Moving<'_>,
    rate: &Tensor,
    guard: &Guard,
    settings: &OptimizerSettings,
) -> (Tensor, Tensor) {
    let OptimizerSettings { betas: [beta1, beta2], epsilon, .. } = *settings;
    let Moving { parameter, gradient } = moving;
    let gradient = &*gradient;
    let [mean, square, sum] = parts(&mut parameter.state);
    let scaled = &*sum / (square.sqrt() + epsilon);
    let numerator = gradient.flatten(0, -1).dot(&scaled.flatten(0, -1));
    let root = beta2.sqrt();
    let new = |share: f64| guard.weight(share);
    let _ = mean.g_mul_(&guard.decay(1.0 - beta1)).g_add_(&(gradient * (rate * new(1.0 - beta1))));
    let _ = square.g_mul_(&guard.decay(1.0 - beta2)).g_add_(&(gradient * gradient * new(1.0 - beta2)));
    let _ = sum.g_mul_(&guard.decay(1.0 - root)).g_add_(&(gradient * (rate * new(1.0 - root))));
    (numerator, sum.abs().sum(Kind::Float))
}
