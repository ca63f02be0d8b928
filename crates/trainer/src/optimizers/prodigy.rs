//! Prodigy: D-Adaptation that starts faster.

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
    let OptimizerSettings { lr, betas: [_, beta2], epsilon, weight_decay, .. } = *settings;
    let (d, d0) = (counters.d.shallow_clone(), adaptation.d0);
    let rate = &d * lr * adaptation.bias_correction(settings.betas, &counters.steps);
    let weight = &d / d0 * if adaptation.safeguard_warmup { &d } else { &rate };
    let (mut numerators, mut norms) = (Vec::new(), Vec::new());
    for moving in moving.iter_mut() {
        if !adaptation.decouple {
            moving.gradient = &moving.gradient + moving.parameter.value.detach() * weight_decay;
        }
        let (numerator, norm) = remember(moving, &d, &weight, guard, settings);
        numerators.push(numerator);
        norms.push(norm);
    }
    let norm = total(&norms);
    let moved = Guard::of(&guard.ok * norm.not_equal(0.0).to_kind(Kind::Double));
    let numerator = &counters.numerator * beta2.sqrt() + &d / d0 * &rate * total(&numerators);
    let estimate = &numerator / norm;
    // At the first estimate it may jump.
    let begun = d.maximum(&estimate).where_self(&d.eq(d0), &d);
    let d_max = counters.d_max.maximum(&estimate);
    let new = d_max.minimum(&(begun * adaptation.growth_rate));
    counters.numerator = moved.choose(&numerator, &counters.numerator);
    counters.d_max = moved.choose(&d_max, &counters.d_max);
    counters.d = moved.choose(&new, &d);
    let rate = moved.weigh(&rate);
    for Moving { parameter, .. } in moving {
        let [mean, square, _, _] = parts(&mut parameter.state);
        let value = &mut parameter.value;
        let denominator = square.sqrt() + &counters.d * epsilon;
        if adaptation.decouple {
            let _ = value.g_mul_(&moved.decay_by(&rate * weight_decay));
        }
        let _ = value.g_sub_(&(&*mean * &rate / denominator));
    }
    moved.ok
}

/// Updates a parameter's running sums; its part of the estimate's numerator and of its denominator.
fn remember(
    moving: &mut Moving<'_>,
    d: &Tensor,
    weight: &Tensor,
    guard: &Guard,
    settings: &OptimizerSettings,
) -> (Tensor, Tensor) {
    let [beta1, beta2] = settings.betas;
    let Moving { parameter, gradient } = moving;
    let gradient = &*gradient;
    let value = parameter.value.detach();
    let [mean, square, sum, start] = parts(&mut parameter.state);
    let way = &*start - value;
    let numerator = gradient.flatten(0, -1).dot(&way.flatten(0, -1));
    let new = |share: f64| guard.weight(share);
    let _ = mean.g_mul_(&guard.decay(1.0 - beta1)).g_add_(&(gradient * (d * new(1.0 - beta1))));
    let _ =
        square.g_mul_(&guard.decay(1.0 - beta2)).g_add_(&(gradient * gradient * (d * d * new(1.0 - beta2))));
    let _ = sum.g_mul_(&guard.decay(1.0 - beta2.sqrt())).g_add_(&(gradient * guard.weigh(weight)));
    (numerator, sum.abs().sum(Kind::Float))
}
