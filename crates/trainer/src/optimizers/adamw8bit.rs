//! AdamW whose running means are codes of 8 bits, with one scale for each block of 256.
//!
//! Many parameters are computed at once, one behind the other: each operation of libtorch costs a few microseconds, on a
//! GPU as on a processor, and a network has hundreds of parameters.

use tch::{Device, Kind, Tensor};
use vodka_sd15::native::Bounds;

use super::{Guard, Moving, OptimizerSettings, correction};

/// Values that share a scale.
const BLOCK: i64 = 256;

/// Parameters with fewer values than this keep 32-bit state.
const SMALLEST: usize = 4096;

/// Values that are computed at once, but for a parameter that has more: it bounds the memory for what is in between.
const AT_ONCE: usize = 1 << 22;

/// The states of a parameter: codes and scales of both means, or, for small ones, the means themselves.
pub(super) fn state_of(value: &Tensor) -> Vec<(&'static str, Tensor)> {
    let zeros = |name, kind| (name, value.zeros_like().to_kind(kind));
    if value.numel() < SMALLEST {
        return vec![zeros("exp_avg", Kind::Float), zeros("exp_avg_sq", Kind::Float)];
    }
    let blocks = (value.numel() as i64 + BLOCK - 1) / BLOCK;
    let scales = |name| (name, Tensor::zeros([blocks], (Kind::Float, value.device())));
    vec![
        zeros("exp_avg_codes", Kind::Uint8),
        scales("exp_avg_absmax"),
        zeros("exp_avg_sq_codes", Kind::Uint8),
        scales("exp_avg_sq_absmax"),
    ]
}

/// One step of all parameters, the one after `steps`.
pub(super) fn step(
    moving: &[Moving<'_>],
    steps: &Tensor,
    guard: &Guard,
    settings: &OptimizerSettings,
    maps: &Maps,
) {
    let OptimizerSettings { betas, lr, weight_decay, .. } = *settings;
    let now = Now {
        settings,
        guard,
        maps,
        decay: guard.decay(lr * weight_decay),
        rate: guard.weight(lr),
        corrections: betas.map(|beta| correction(beta, steps)),
    };
    let (small, large): (Vec<_>, Vec<_>) =
        moving.iter().partition(|moving| moving.parameter.value.numel() < SMALLEST);
    groups(&small).for_each(|group| now.step_small(group));
    groups(&large).for_each(|group| now.step_blocks(group));
}

/// Neighbours of up to [`AT_ONCE`] values together.
fn groups<'g, 'm>(moving: &'g [&'m Moving<'m>]) -> impl Iterator<Item = &'g [&'m Moving<'m>]> {
    let mut rest = moving;
    std::iter::from_fn(move || {
        let mut values = 0;
        let fits = |moving: &&&Moving<'_>| {
            values += moving.parameter.value.numel();
            values <= AT_ONCE
        };
        let count = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (group, after) = rest.split_at(count);
        rest = after;
        (!group.is_empty()).then_some(group)
    })
}

/// What all parameters of a step share.
struct Now<'n> {
    settings: &'n OptimizerSettings,
    guard: &'n Guard,
    maps: &'n Maps,
    decay: Tensor,
    rate: Tensor,
    /// What both means have to be divided by.
    corrections: [Tensor; 2],
}

impl Now<'_> {
    fn step_blocks(&self, group: &[&Moving<'_>]) {
        let OptimizerSettings { betas: [beta1, beta2], epsilon, .. } = *self.settings;
        let [correction1, correction2] = &self.corrections;
        let gradient = joined(&gradients(group), BLOCK, 0).view([-1, BLOCK]); // (blocks, 256)
        let Maps { signed, unsigned } = self.maps;
        let (mut mean, first) = signed.decode(&states(group, 0), &states(group, 1));
        let (mut square, second) = unsigned.decode(&states(group, 2), &states(group, 3));
        let _ = mean.g_mul_scalar_(beta1).g_add_(&(&gradient * (1.0 - beta1)));
        let _ = square.g_mul_scalar_(beta2).g_add_(&(&gradient * (1.0 - beta2) * &gradient));
        let denominator = square.sqrt() / correction2.sqrt() + epsilon;
        self.change(group, BLOCK, &(&mean * (&self.rate / correction1) / denominator));
        signed.encode(&mean, first, self.guard);
        unsigned.encode(&square, second, self.guard);
    }

    /// In 32 bits; the same formula with epsilon where bitsandbytes has it for these.
    fn step_small(&self, group: &[&Moving<'_>]) {
        let OptimizerSettings { betas: [beta1, beta2], epsilon, .. } = *self.settings;
        let [correction1, correction2] = &self.corrections;
        let gradient = joined(&gradients(group), 1, 0); // (n)
        let (means, squares) = (states(group, 0), states(group, 1));
        let (mut mean, mut square) = (joined(&means, 1, 0), joined(&squares, 1, 0));
        let new = |beta: f64| self.guard.weight(1.0 - beta);
        let _ = mean.g_mul_(&self.guard.decay(1.0 - beta1)).g_add_(&(&gradient * new(beta1)));
        let _ = square.g_mul_(&self.guard.decay(1.0 - beta2)).g_add_(&(&gradient * new(beta2) * &gradient));
        let correction2 = correction2.sqrt();
        let update = &mean / (square.sqrt() + &correction2 * epsilon);
        self.change(group, 1, &(update * (&self.rate * correction2 / correction1)));
        put(means, 1, &mean);
        put(squares, 1, &square);
    }

    /// Shrinks the weights of a group, and takes from them what is joined in `update`.
    fn change(&self, group: &[&Moving<'_>], block: i64, update: &Tensor) {
        let values: Vec<_> = group.iter().map(|moving| moving.parameter.value.shallow_clone()).collect();
        for (mut value, update) in values.iter().map(Tensor::shallow_clone).zip(apart(&values, block, update))
        {
            let _ = value.g_mul_(&self.decay).g_sub_(&update);
        }
    }
}

fn gradients(group: &[&Moving<'_>]) -> Vec<Tensor> {
    group.iter().map(|moving| moving.gradient.shallow_clone()).collect()
}

/// The part of each parameter's state with this number, in the order of [`state_of`].
fn states(group: &[&Moving<'_>], part: usize) -> Vec<Tensor> {
    group.iter().map(|moving| moving.parameter.state[part].1.shallow_clone()).collect()
}

/// Tensors one behind the other, each filled up to a multiple of `block` values. `(n)`
fn joined(tensors: &[Tensor], block: i64, filling: i64) -> Tensor {
    let padded = tensors.iter().flat_map(|tensor| {
        let flat = tensor.flatten(0, -1);
        let short = padded(&flat, block) - flat.numel() as i64;
        let options = (flat.kind(), flat.device());
        [Some(flat), (short > 0).then(|| Tensor::full([short], filling, options))].into_iter().flatten()
    });
    Tensor::cat(&padded.collect::<Vec<_>>(), 0)
}

/// What lies in `flat` for each of the tensors that were joined so, in its shape.
fn apart<'t>(tensors: &'t [Tensor], block: i64, flat: &Tensor) -> impl Iterator<Item = Tensor> + use<'t> {
    let flat = flat.flatten(0, -1);
    let mut start = 0;
    tensors.iter().map(move |tensor| {
        let part = flat.narrow(0, start, tensor.numel() as i64).view_as(tensor);
        start += padded(tensor, block);
        part
    })
}

/// Overwrites each of the tensors with what lies in `flat` for it.
fn put(mut tensors: Vec<Tensor>, block: i64, flat: &Tensor) {
    let parts: Vec<_> = apart(&tensors, block, flat).collect();
    tensors.iter_mut().zip(parts).for_each(|(tensor, part)| tensor.copy_(&part));
}

/// How many values a tensor is filled up to.
fn padded(tensor: &Tensor, block: i64) -> i64 {
    (tensor.numel() as i64 + block - 1) / block * block
}

/// The 256 values that codes stand for, in increasing order, from -1 or 0 to 1: with a dynamic exponent, so that small
/// values are as exact as large ones (arXiv:2110.02861, section 2.3).
pub fn dynamic_map(signed: bool) -> Vec<f32> {
    const EXPONENTS: i32 = 7;
    let mut map = vec![0.0, 1.0];
    for i in 0..EXPONENTS {
        let fractions = if signed { 1 << i } else { 2 << i };
        let bounds = Tensor::linspace(0.1, 1.0, fractions + 1, (Kind::Float, Device::Cpu));
        let bounds = Vec::<f32>::try_from(bounds).expect("a row of floats");
        let size = 10_f64.powi(i + 1 - EXPONENTS) as f32;
        let values = bounds.windows(2).map(|pair| size * ((pair[0] + pair[1]) / 2.0));
        map.extend(values.flat_map(|value| [Some(value), signed.then_some(-value)]).flatten());
    }
    map.sort_by(f32::total_cmp);
    map
}

/// Both maps, on the device of the parameters.
#[derive(Debug)]
pub(super) struct Maps {
    signed: Codes,
    unsigned: Codes,
}

impl Maps {
    /// For parameters on a device.
    pub fn new(device: Device) -> Self {
        Self { signed: Codes::new(true, device), unsigned: Codes::new(false, device) }
    }
}

/// One of the two maps.
#[derive(Debug)]
struct Codes {
    /// `(256)`
    values: Tensor,
    /// Half-way between neighbours. `(255)`
    bounds: Tensor,
    /// The same for a processor, whose `bucketize` is slow.
    ready: Option<Bounds>,
    /// The code of 0.
    nought: i64,
}

/// The codes of a group of parameters, and the scales of their blocks; and the same, joined.
struct Coded {
    codes: Vec<Tensor>,
    absmax: Vec<Tensor>,
    /// `(blocks * 256)`
    all_codes: Tensor,
    /// `(blocks)`
    all_absmax: Tensor,
}

impl Codes {
    fn new(signed: bool, device: Device) -> Self {
        let map = dynamic_map(signed);
        let nought = map.iter().position(|value| *value == 0.0).expect("0 is in both maps") as i64;
        let values = Tensor::from_slice(&map).to_device(device);
        let bounds = (values.slice(0, 1, None, 1) + values.slice(0, None, -1, 1)) / 2.0;
        let on_processor =
            (device == Device::Cpu).then(|| Vec::<f32>::try_from(&bounds).expect("a row of floats"));
        let ready = on_processor.map(|bounds| Bounds::new(&bounds).expect("codes are far apart"));
        Self { values, bounds, ready, nought }
    }

    /// What the codes stand for; 0 where a last block is filled up. `(blocks, 256)`
    fn decode(&self, codes: &[Tensor], absmax: &[Tensor]) -> (Tensor, Coded) {
        let all_codes = joined(codes, BLOCK, self.nought);
        let all_absmax = joined(absmax, 1, 0);
        let values = self.values.index_select(0, &all_codes.to_kind(Kind::Int)).view([-1, BLOCK]);
        let own = |tensors: &[Tensor]| tensors.iter().map(Tensor::shallow_clone).collect();
        let values = values * all_absmax.unsqueeze(1);
        (values, Coded { codes: own(codes), absmax: own(absmax), all_codes, all_absmax })
    }

    /// The nearest code of each value as a share of its block's largest; of two equally near ones the lower.
    fn encode(&self, values: &Tensor, before: Coded, guard: &Guard) {
        let Coded { codes, absmax, all_codes, all_absmax } = before;
        let largest = values.abs().amax([1], false); // (blocks)
        // A block of zeros has codes of no meaning: they are multiplied by 0.
        let shares = values * largest.reciprocal().clamp_max(f64::from(f32::MAX)).unsqueeze(1);
        let nearest = match &self.ready {
            Some(bounds) => bounds.codes(&shares).expect("32-bit values of a processor"),
            None => shares.bucketize(&self.bounds, true, false).to_kind(Kind::Uint8),
        };
        let nearest = nearest.flatten(0, -1);
        put(codes, BLOCK, &guard.choose(&nearest, &all_codes));
        put(absmax, 1, &guard.choose(&largest, &all_absmax));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_a_processor_are_those_of_a_gpu() {
        for signed in [false, true] {
            let codes = Codes::new(signed, Device::Cpu);
            let random = Tensor::randn([64, BLOCK], (Kind::Float, Device::Cpu)) / 3.0;
            let powers = Tensor::rand([64, BLOCK], (Kind::Float, Device::Cpu)) * -9.0;
            let shares = Tensor::cat(
                &[
                    &random,
                    &(&random * powers.exp()),
                    &codes.bounds.view([1, -1]).pad([0, 1], "constant", 0.0),
                ],
                0,
            );
            let expected = shares.bucketize(&codes.bounds, true, false).to_kind(Kind::Uint8);
            assert_eq!(codes.ready.unwrap().codes(&shares).unwrap(), expected);
        }
    }
}
