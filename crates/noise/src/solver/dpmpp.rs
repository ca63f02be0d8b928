//! k-diffusion's samplers of the DPM-Solver++ family (Lu et al. 2022, arXiv 2211.01095).
//!
//! All steps are in `t = -ln sigma`, and `h` is how far a step goes in it.

use super::{Host, Result, SolverOptions, ancestral_step, model::Model};
use crate::Latent;

/// `1 - exp(-h)`.
fn decay(h: f64) -> f64 {
    -(-h).exp_m1()
}

/// The step of first order to `next`: exact if the picture stays.
fn towards<L: Latent>(x: &L, picture: &L, sigma: f64, next: f64) -> L {
    let kept = next / sigma;
    L::combine(&[(kept, x), (1.0 - kept, picture)])
}

/// `sample_dpmpp_2m`.
pub(super) fn dpmpp_2m<L: Latent, H: Host<L>>(
    model: &mut Model<'_, H>,
    mut x: L,
    sigmas: &[f64],
) -> Result<L, H::Stop> {
    let mut before: Option<(L, f64)> = None;
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let denoised = model.begin(i, &x, sigma)?;
        let h = (sigma / next).ln();
        x = match &before {
            Some((old, h_last)) if next > 0.0 => {
                let factor = h / (2.0 * h_last);
                let picture = L::combine(&[(1.0 + factor, &denoised), (-factor, old)]);
                towards(&x, &picture, sigma, next)
            }
            _ => towards(&x, &denoised, sigma, next),
        };
        before = Some((denoised, h));
    }
    Ok(x)
}

/// `sample_dpmpp_2s_ancestral`.
pub(super) fn dpmpp_2s_ancestral<L: Latent, H: Host<L>>(
    model: &mut Model<'_, H>,
    mut x: L,
    sigmas: &[f64],
    options: &SolverOptions,
) -> Result<L, H::Stop> {
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let denoised = model.begin(i, &x, sigma)?;
        let (down, up) = ancestral_step(sigma, next, options.eta.unwrap_or(1.0));
        x = if down == 0.0 {
            denoised
        } else {
            let middle = (sigma * down).sqrt();
            let between = towards(&x, &denoised, sigma, middle);
            towards(&x, &model.denoise(&between, middle)?, sigma, down)
        };
        if next > 0.0 {
            let noise = model.host.noise(sigma, next)?;
            x = L::combine(&[(1.0, &x), (options.s_noise * up, &noise)]);
        }
    }
    Ok(x)
}

/// `sample_dpmpp_sde` with r = 1/2.
pub(super) fn sde<L: Latent, H: Host<L>>(
    model: &mut Model<'_, H>,
    mut x: L,
    sigmas: &[f64],
    options: &SolverOptions,
) -> Result<L, H::Stop> {
    let eta = options.eta.unwrap_or(1.0);
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let denoised = model.begin(i, &x, sigma)?;
        if next == 0.0 {
            x = denoised;
            continue;
        }
        let middle = (sigma * next).sqrt();
        let to = |picture: &L, target: f64, model: &mut Model<'_, H>| {
            let (down, up) = ancestral_step(sigma, target, eta);
            let noise = model.host.noise(sigma, target)?;
            let kept = down / sigma;
            Ok::<L, H::Stop>(L::combine(&[(kept, &x), (1.0 - kept, picture), (options.s_noise * up, &noise)]))
        };
        let between = to(&denoised, middle, model)?;
        let second = model.denoise(&between, middle)?;
        let whole = to(&second, next, model)?;
        x = whole;
    }
    Ok(x)
}

/// `sample_dpmpp_2m_sde`, whose correction is the midpoint rule's or Heun's.
pub(super) fn dpmpp_2m_sde<L: Latent, H: Host<L>>(
    model: &mut Model<'_, H>,
    mut x: L,
    sigmas: &[f64],
    options: &SolverOptions,
    is_heun: bool,
) -> Result<L, H::Stop> {
    let eta = options.eta.unwrap_or(1.0);
    let mut before: Option<(L, f64)> = None;
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let denoised = model.begin(i, &x, sigma)?;
        if next == 0.0 {
            x = denoised;
            continue;
        }
        let h = (sigma / next).ln();
        let whole = h * (1.0 + eta);
        let change = match &before {
            None => 0.0,
            Some((_, h_last)) if is_heun => (1.0 - decay(whole) / whole) * h / h_last,
            Some((_, h_last)) => 0.5 * decay(whole) * h / h_last,
        };
        let mut terms = vec![((-whole).exp(), &x), (decay(whole) + change, &denoised)];
        if let Some((old, _)) = &before {
            terms.push((-change, old));
        }
        let moved = L::combine(&terms);
        x = add_noise(model, moved, pair, decay(2.0 * eta * h), options)?;
        before = Some((denoised, h));
    }
    Ok(x)
}

/// `sample_dpmpp_3m_sde`.
pub(super) fn dpmpp_3m_sde<L: Latent, H: Host<L>>(
    model: &mut Model<'_, H>,
    mut x: L,
    sigmas: &[f64],
    options: &SolverOptions,
) -> Result<L, H::Stop> {
    let eta = options.eta.unwrap_or(1.0);
    let mut before: Vec<(L, f64)> = Vec::new(); // the latest first
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let denoised = model.begin(i, &x, sigma)?;
        if next == 0.0 {
            x = denoised;
            continue;
        }
        let h = (sigma / next).ln();
        let whole = h * (1.0 + eta);
        let phi_2 = 1.0 - decay(whole) / whole;
        let mut terms = vec![((-whole).exp(), &x), (decay(whole), &denoised)];
        match &before[..] {
            [] => {}
            [(old, h_1)] => terms.extend([(phi_2 * h / h_1, &denoised), (-phi_2 * h / h_1, old)]),
            [(old, h_1), (older, h_2), ..] => {
                let (r0, r1) = (h_1 / h, h_2 / h);
                let phi_3 = phi_2 / whole - 0.5;
                // Of the differences to the last picture, and of that to the one before.
                let first = phi_2 * (1.0 + r0 / (r0 + r1)) - phi_3 / (r0 + r1);
                let second = -phi_2 * r0 / (r0 + r1) + phi_3 / (r0 + r1);
                terms.extend([
                    (first / r0, &denoised),
                    (second / r1 - first / r0, old),
                    (-second / r1, older),
                ]);
            }
        }
        let moved = L::combine(&terms);
        x = add_noise(model, moved, pair, decay(2.0 * eta * h), options)?;
        before.insert(0, (denoised, h));
        before.truncate(2);
    }
    Ok(x)
}

/// Adds noise of a share of the variance at the end of a step; none is drawn where there is none to add.
fn add_noise<L: Latent, H: Host<L>>(
    model: &mut Model<'_, H>,
    x: L,
    pair: &[f64],
    variance: f64,
    options: &SolverOptions,
) -> Result<L, H::Stop> {
    if variance == 0.0 {
        return Ok(x);
    }
    let noise = model.host.noise(pair[0], pair[1])?;
    Ok(L::combine(&[(1.0, &x), (pair[1] * variance.sqrt() * options.s_noise, &noise)]))
}
