//! DPM-Solver with steps of orders one to three, fixed and adaptive (Lu et al. 2022, arXiv 2206.00927).
//!
//! As k-diffusion has it, `t` is `-ln sigma`, and a run goes from the largest sigma to the smallest above 0.

use super::{Host, Result, SolverOptions, ancestral_step, model::Model};
use crate::Latent;

const RELATIVE: f64 = 0.05;
const ABSOLUTE: f64 = 0.0078;
const FIRST_STEP: f64 = 0.05;
const ACCEPT: f64 = 0.81;

/// The noise in `x` at `t`, and the picture.
fn noise_at<L: Latent, H: Host<L>>(model: &mut Model<'_, H>, x: &L, t: f64) -> Result<(L, L), H::Stop> {
    let sigma = (-t).exp();
    let denoised = model.denoise(x, sigma)?;
    Ok((L::combine(&[(1.0 / sigma, x), (-1.0 / sigma, &denoised)]), denoised))
}

fn order_1<L: Latent>(x: &L, eps: &L, t: f64, next: f64) -> L {
    L::combine(&[(1.0, x), (-(-next).exp() * (next - t).exp_m1(), eps)])
}

/// The step of second order from the noise at the start and at the share `r1` of the way.
fn order_2<L: Latent>(x: &L, eps: &L, eps_r1: &L, r1: f64, t: f64, next: f64) -> L {
    let all = (-next).exp() * (next - t).exp_m1();
    let change = all / (2.0 * r1);
    L::combine(&[(1.0, x), (change - all, eps), (-change, eps_r1)])
}

/// The step of third order, with the noise at a third of the way given.
fn order_3<L: Latent, H: Host<L>>(
    model: &mut Model<'_, H>,
    x: &L,
    eps: &L,
    eps_r1: &L,
    t: f64,
    next: f64,
) -> Result<L, H::Stop> {
    let (r1, r2) = (1.0 / 3.0, 2.0 / 3.0);
    let h = next - t;
    let s2 = t + r2 * h;
    let all = (-s2).exp() * (r2 * h).exp_m1();
    let change = (-s2).exp() * (r2 / r1) * ((r2 * h).exp_m1() / (r2 * h) - 1.0);
    let u2 = L::combine(&[(1.0, x), (change - all, eps), (-change, eps_r1)]);
    let (eps_r2, _) = noise_at(model, &u2, s2)?;
    let all = (-next).exp() * h.exp_m1();
    let change = (-next).exp() / r2 * (h.exp_m1() / h - 1.0);
    Ok(L::combine(&[(1.0, x), (change - all, eps), (-change, &eps_r2)]))
}

/// How far a step with noise goes down in `t`, and how much noise it then adds.
fn split(t: f64, next: f64, end: f64, eta: f64) -> (f64, f64) {
    if eta == 0.0 {
        return (next, 0.0);
    }
    let (down, _) = ancestral_step((-t).exp(), (-next).exp(), eta);
    let to = end.min(-down.ln());
    (to, ((-2.0 * next).exp() - (-2.0 * to).exp()).max(0.0).sqrt())
}

fn add_noise<L: Latent, H: Host<L>>(
    model: &mut Model<'_, H>,
    x: L,
    (t, next): (f64, f64),
    factor: f64,
) -> Result<L, H::Stop> {
    // Drawn in any case, as k-diffusion draws it.
    let noise = model.host.noise((-t).exp(), (-next).exp())?;
    Ok(L::combine(&[(1.0, &x), (factor, &noise)]))
}

/// The ends of a run in `t`: that of the first sigma and that of the last above 0.
fn ends(sigmas: &[f64]) -> (f64, f64) {
    let last = sigmas.iter().rev().find(|sigma| **sigma > 0.0).copied().unwrap_or(1.0);
    (-sigmas[0].ln(), -last.ln())
}

/// `sample_dpm_fast`, with as many calls of the network as there are steps.
pub(super) fn fast<L: Latent, H: Host<L>>(
    model: &mut Model<'_, H>,
    mut x: L,
    sigmas: &[f64],
    options: &SolverOptions,
) -> Result<L, H::Stop> {
    let calls = sigmas.len() - 1;
    let (start, end) = ends(sigmas);
    let count = calls / 3 + 1;
    let mut orders = vec![3; count - 1];
    orders.push(calls % 3);
    if calls.is_multiple_of(3) {
        orders = vec![3; count.saturating_sub(2)];
        orders.extend([2, 1]);
    }
    let at = |i: usize| start + (end - start) * i as f64 / count as f64;
    for (i, order) in orders.into_iter().enumerate() {
        let (t, next) = (at(i), at(i + 1));
        let (to, up) = split(t, next, end, options.eta.unwrap_or(1.0));
        let (eps, denoised) = noise_at(model, &x, t)?;
        model.host.step(i, &x, &denoised)?;
        let r1 = if order == 3 { 1.0 / 3.0 } else { 0.5 };
        x = if order == 1 {
            order_1(&x, &eps, t, to)
        } else {
            let s1 = t + r1 * (to - t);
            let (eps_r1, _) = noise_at(model, &order_1(&x, &eps, t, s1), s1)?;
            match order {
                2 => order_2(&x, &eps, &eps_r1, r1, t, to),
                _ => order_3(model, &x, &eps, &eps_r1, t, to)?,
            }
        };
        x = add_noise(model, x, (t, next), up * options.s_noise)?;
    }
    Ok(x)
}

/// `sample_dpm_adaptive` of order three.
pub(super) fn adaptive<L: Latent, H: Host<L>>(
    model: &mut Model<'_, H>,
    mut x: L,
    sigmas: &[f64],
    options: &SolverOptions,
) -> Result<L, H::Stop> {
    let (mut s, end) = ends(sigmas);
    let eta = options.eta.unwrap_or(1.0);
    let order = if eta == 0.0 { 3.0 } else { 1.5 };
    let mut h = FIRST_STEP;
    let mut before: Option<L> = None;
    let mut step = 0;
    while s < end - 1e-5 {
        let t = end.min(s + h);
        let (to, up) = split(s, t, end, eta);
        let (eps, denoised) = noise_at(model, &x, s)?;
        model.host.step(step, &x, &denoised)?;
        step += 1;
        let s1 = s + (to - s) / 3.0;
        let (eps_r1, _) = noise_at(model, &order_1(&x, &eps, s, s1), s1)?;
        let low = order_2(&x, &eps, &eps_r1, 1.0 / 3.0, s, to);
        let high = order_3(model, &x, &eps, &eps_r1, s, to)?;
        let error = L::error(&low, &high, before.as_ref().unwrap_or(&x), ABSOLUTE, RELATIVE);
        // k-diffusion's controller with nothing but its integral part.
        let factor = 1.0 + ((1.0 / (error + 1e-8)).powf(1.0 / order) - 1.0).atan();
        h *= factor;
        if factor >= ACCEPT {
            x = add_noise(model, high, (s, t), up * options.s_noise)?;
            before = Some(low);
            s = t;
        }
    }
    Ok(x)
}
