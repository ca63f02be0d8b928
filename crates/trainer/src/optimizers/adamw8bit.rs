//! AdamW whose running means are codes of 8 bits, with one scale for each block of 256.

use tch::{Device, Kind, Tensor};

use super::{Guard, Moving, OptimizerSettings, correction, parts};

/// Values that share a scale.
const BLOCK: i64 = 256;

/// Parameters with fewer values than this keep 32-bit state.
const SMALLEST: usize = 4096;

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

/// One step of a parameter, the one after `steps`.
pub(super) fn update(moving: &mut Moving<'_>, steps: &Tensor, guard: &Guard, settings: &OptimizerSettings) {
    match moving.parameter.value.numel() < SMALLEST {
        true => update_small(moving, steps, guard, settings),
        false => update_blocks(moving, steps, guard, settings),
    }
}

fn update_blocks(moving: &mut Moving<'_>, steps: &Tensor, guard: &Guard, settings: &OptimizerSettings) {
    let OptimizerSettings { lr, betas: [beta1, beta2], epsilon, weight_decay, .. } = *settings;
    let Moving { parameter, gradient } = moving;
    let [codes1, absmax1, codes2, absmax2] = parts(&mut parameter.state);
    let value = &mut parameter.value;
    let [signed, unsigned] = [true, false].map(|signed| Codes::new(signed, value.device()));
    let mut mean = signed.decode(codes1, absmax1);
    let mut square = unsigned.decode(codes2, absmax2);
    let _ = mean.g_mul_scalar_(beta1).g_add_(&(&*gradient * (1.0 - beta1)));
    let _ = square.g_mul_scalar_(beta2).g_add_(&(&*gradient * (1.0 - beta2) * &*gradient));
    let denominator = square.sqrt() / correction(beta2, steps).sqrt() + epsilon;
    let _ = value.g_mul_(&guard.decay(lr * weight_decay));
    let rate = guard.weight(lr) / correction(beta1, steps);
    let _ = value.g_sub_(&(&mean * rate / denominator));
    signed.encode(&mean, codes1, absmax1, guard);
    unsigned.encode(&square, codes2, absmax2, guard);
}

/// In 32 bits; the same formula with epsilon where bitsandbytes has it for these.
fn update_small(moving: &mut Moving<'_>, steps: &Tensor, guard: &Guard, settings: &OptimizerSettings) {
    let OptimizerSettings { lr, betas: [beta1, beta2], epsilon, weight_decay, .. } = *settings;
    let Moving { parameter, gradient } = moving;
    let [mean, square] = parts(&mut parameter.state);
    let value = &mut parameter.value;
    let new = |beta: f64| guard.weight(1.0 - beta);
    let _ = mean.g_mul_(&guard.decay(1.0 - beta1)).g_add_(&(&*gradient * new(beta1)));
    let _ = square.g_mul_(&guard.decay(1.0 - beta2)).g_add_(&(&*gradient * new(beta2) * &*gradient));
    let correction2 = correction(beta2, steps).sqrt();
    let _ = value.g_mul_(&guard.decay(lr * weight_decay));
    let update = &*mean / (square.sqrt() + &correction2 * epsilon);
    let rate = guard.weight(lr) * correction2 / correction(beta1, steps);
    let _ = value.g_sub_(&(update * rate));
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

/// One of the two maps, on a device.
struct Codes {
    /// `(256)`
    values: Tensor,
    /// Half-way between neighbours. `(255)`
    bounds: Tensor,
}

impl Codes {
    fn new(signed: bool, device: Device) -> Self {
        let values = Tensor::from_slice(&dynamic_map(signed)).to_device(device);
        let bounds = (values.slice(0, 1, None, 1) + values.slice(0, None, -1, 1)) / 2.0;
        Self { values, bounds }
    }

    fn decode(&self, codes: &Tensor, absmax: &Tensor) -> Tensor {
        let values = self.values.index_select(0, &codes.flatten(0, -1).to_kind(Kind::Int)); // (n)
        let scales = absmax.repeat_interleave_self_int(BLOCK, 0, None).slice(0, None, values.size()[0], 1); // (n)
        (values * scales).view_as(codes)
    }

    /// The nearest code of each value as a share of its block's largest; of two equally near ones the lower.
    fn encode(&self, values: &Tensor, codes: &mut Tensor, absmax: &mut Tensor, guard: &Guard) {
        let flat = values.flatten(0, -1); // (n)
        let n = flat.size()[0];
        let blocks = flat.constant_pad_nd([0, (n + BLOCK - 1) / BLOCK * BLOCK - n]).view([-1, BLOCK]);
        let largest = blocks.abs().amax([1], false); // (blocks)
        // A block of zeros has codes of no meaning: they are multiplied by 0.
        let shares = blocks * largest.reciprocal().clamp_max(f64::from(f32::MAX)).unsqueeze(1);
        let nearest = shares.bucketize(&self.bounds, true, false).flatten(0, -1).slice(0, None, n, 1);
        codes.copy_(&guard.choose(&nearest.to_kind(Kind::Uint8).view_as(values), codes));
        absmax.copy_(&guard.choose(&largest, absmax));
    }
}
