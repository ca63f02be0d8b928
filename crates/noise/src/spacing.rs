//! The noise levels that a sampler visits.

use std::f64::consts::PI;

use crate::{Schedule, ScheduleName};

/// NVIDIA's sigmas for Stable Diffusion 1.5 in ten steps (Sabour et al. 2024, arXiv 2404.14507).
const ALIGN_YOUR_STEPS: [f64; 11] =
    [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029];
/// Both parameters of the schedule "Beta".
const BETA: f64 = 0.6;

impl Schedule {
    /// The sigmas of a schedule, descending, for `steps` steps; the last is 0, save for [`ScheduleName::KlOptimal`], which
    /// ends at the smallest sigma (stable-diffusion-webui 1.10.1, `modules/sd_schedulers.py`; k-diffusion,
    /// `get_sigmas_karras` and its like).
    ///
    /// The length is `steps` + 1, save for [`ScheduleName::Ddim`], which has as many as DDIM has timesteps.
    /// [`ScheduleName::Automatic`] is Uniform here.
    pub fn spaced_sigmas(&self, name: ScheduleName, steps: u32) -> Vec<f64> {
        let table = self.sigmas();
        let (min, max) = (table[0], table[table.len() - 1]);
        let n = f64::from(steps);
        // From 0 to 1, both included.
        let ramp = (0..steps).map(|i| f64::from(i) / f64::from(steps.max(2) - 1));
        let last = (table.len() - 1) as f64;
        let exponential = |w: f64| (max.ln() + w * (min.ln() - max.ln())).exp();
        let mut sigmas: Vec<f64> = match name {
            ScheduleName::Automatic | ScheduleName::Uniform | ScheduleName::Normal => {
                ramp.map(|w| self.t_to_sigma(last - last * w)).collect()
            }
            ScheduleName::Karras => karras_sigmas(steps, min, max),
            ScheduleName::Exponential | ScheduleName::Polyexponential => ramp.map(exponential).collect(),
            ScheduleName::SgmUniform => {
                (0..steps).map(|i| self.t_to_sigma(last - last * f64::from(i) / n)).collect()
            }
            ScheduleName::KlOptimal => {
                let at = |i: u32| f64::from(i) / n;
                return (0..=steps)
                    .map(|i| (at(i) * min.atan() + (1.0 - at(i)) * max.atan()).tan())
                    .collect();
            }
            ScheduleName::AlignYourSteps => ramp.map(align_your_steps).collect(),
            ScheduleName::Simple => {
                let place = |i: u32| table.len() - 1 - (f64::from(i) * table.len() as f64 / n) as usize;
                (0..steps).map(|i| table[place(i)]).collect()
            }
            ScheduleName::Ddim => {
                let gap = (table.len() / steps as usize).max(1);
                let mut sigmas: Vec<f64> = table.iter().skip(1).step_by(gap).copied().collect();
                sigmas.reverse();
                sigmas
            }
            ScheduleName::Beta => ramp.map(|w| min + beta_quantile(1.0 - w, BETA) * (max - min)).collect(),
        };
        sigmas.push(0.0);
        sigmas
    }
}

/// Karras et al. 2022, equation 5, with rho 7; without the 0 at the end.
pub(crate) fn karras_sigmas(n: u32, min: f64, max: f64) -> Vec<f64> {
    let (low, high) = (min.powf(1.0 / 7.0), max.powf(1.0 / 7.0));
    let gaps = f64::from(n.max(2) - 1);
    (0..n).map(|i| (high + f64::from(i) / gaps * (low - high)).powi(7)).collect()
}

/// The table's logarithm, interpolated at `w` in 0..1.
fn align_your_steps(w: f64) -> f64 {
    let place = w * (ALIGN_YOUR_STEPS.len() - 1) as f64;
    let low = (place as usize).min(ALIGN_YOUR_STEPS.len() - 2);
    let rest = place - low as f64;
    let [from, to] = [ALIGN_YOUR_STEPS[low].ln(), ALIGN_YOUR_STEPS[low + 1].ln()];
    (from + rest * (to - from)).exp()
}

/// The quantile of the symmetric beta distribution with both parameters `a`, below 1.
///
/// With `x = sin(u)^2` the density is `2 (sin u cos u)^(2a - 1)`, which is summed between 0 and u by a rule that a
/// singular end does not disturb; the quantile is found by halving.
fn beta_quantile(p: f64, a: f64) -> f64 {
    if p <= 0.0 || p >= 1.0 {
        return p.clamp(0.0, 1.0);
    }
    if p > 0.5 {
        return 1.0 - beta_quantile(1.0 - p, a);
    }
    let density = |u: f64| 2.0 * (u.sin() * u.cos()).powf(2.0 * a - 1.0);
    let half = tanh_sinh(&density, PI / 4.0);
    let (mut low, mut high) = (0.0, PI / 4.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if tanh_sinh(&density, middle) / (2.0 * half) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    low.sin().powi(2)
}

/// The integral from 0 to `end` (Takahasi and Mori 1974).
fn tanh_sinh(f: &dyn Fn(f64) -> f64, end: f64) -> f64 {
    const STEP: f64 = 1.0 / 16.0;
    let mut sum = 0.0;
    for k in -60..=60 {
        let t = f64::from(k) * STEP;
        let s = PI / 2.0 * t.sinh();
        // The distance from the nearer end, without cancellation.
        let near = (-s.abs()).exp() / (2.0 * s.cosh());
        let x = if s < 0.0 { near } else { 1.0 - near } * end;
        let weight = PI / 2.0 * t.cosh() / s.cosh().powi(2);
        if x > 0.0 && weight > 0.0 {
            sum += weight * f(x);
        }
    }
    sum * STEP * end / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The golden vectors of `samplers-and-mergers.md`, made with A1111's formulas.
    const SIGMAS: &[(ScheduleName, &[f64])] = &[
        (
            ScheduleName::Karras,
            &[
                14.61464123,
                9.10292813,
                5.47839199,
                3.16860307,
                1.74941705,
                0.91407227,
                0.44691821,
                0.2013983,
                0.08191024,
                0.02916716,
                0.0,
            ],
        ),
        (
            ScheduleName::Exponential,
            &[
                14.6146412, 7.3248702, 3.6712309, 1.840024, 0.9222215, 0.4622182, 0.2316641, 0.1161103,
                0.0581946, 0.0291672, 0.0,
            ],
        ),
        (
            ScheduleName::SgmUniform,
            &[
                14.6146412, 8.3071722, 5.0924076, 3.3250691, 2.2797303, 1.6155803, 1.1628645, 0.8318837,
                0.5711889, 0.3437048, 0.0,
            ],
        ),
        (
            ScheduleName::KlOptimal,
            &[
                14.6146412, 4.5650367, 2.6328879, 1.7864453, 1.2947673, 0.961588, 0.7116268, 0.5094194,
                0.3356374, 0.1783465, 0.0291672,
            ],
        ),
        (
            ScheduleName::Simple,
            &[
                14.6146412, 8.3028032, 5.0877632, 3.3210831, 2.2764631, 1.6128862, 1.1605783, 0.8298595,
                0.5692849, 0.3416738, 0.0,
            ],
        ),
        (
            ScheduleName::Ddim,
            &[
                8.3906848, 5.1344311, 3.3477636, 2.2928538, 1.6236921, 1.168216, 0.8356528, 0.5740503,
                0.3461867, 0.0413144, 0.0,
            ],
        ),
        (
            ScheduleName::Beta,
            &[
                14.6146412, 13.9277847, 12.4909802, 10.5976078, 8.4424367, 6.2013717, 4.0462006, 2.1528282,
                0.7160236, 0.0291672, 0.0,
            ],
        ),
        (
            ScheduleName::AlignYourSteps,
            &[14.615, 6.11351, 3.56511, 2.39387, 1.64996, 1.13579, 0.74252, 0.44501, 0.16921, 0.029, 0.0],
        ),
    ];

    #[test]
    fn schedules_are_those_of_a1111() {
        let schedule = Schedule::scaled_linear();
        for (name, expected) in SIGMAS {
            let found = schedule.spaced_sigmas(*name, 10);
            assert_eq!(found.len(), expected.len(), "{name}");
            for (f, e) in found.iter().zip(*expected) {
                assert!((f - e).abs() < 6e-6, "{name}: {f} is not {e}");
            }
        }
        assert_eq!(
            schedule.spaced_sigmas(ScheduleName::AlignYourSteps, 11)[..11],
            ALIGN_YOUR_STEPS.map(|s| s.ln().exp())
        );
    }

    #[test]
    fn any_number_of_steps_descends() {
        let schedule = Schedule::scaled_linear();
        for name in ScheduleName::ALL {
            for steps in [1, 2, 3, 7, 30, 1000] {
                let sigmas = schedule.spaced_sigmas(name, steps);
                assert!(sigmas.windows(2).all(|pair| pair[0] > pair[1] && pair[1] >= 0.0), "{name} {steps}");
            }
        }
    }
}
