//! k-diffusion's samplers of Karras et al. (2022, arXiv 2206.00364) and their like, over sigmas.

use super::{Host, Result, SolverOptions, ancestral_step, model::Model, spacing::karras_sigmas};
use crate::Latent;

/// The slope of the latents by sigma, from the picture in them.
fn slope<L: Latent>(x: &L, denoised: &L, sigma: f64) -> L {
    L::combine(&[(1.0 / sigma, x), (-1.0 / sigma, denoised)])
}

/// `x + factor * other`.
fn plus<L: Latent>(x: &L, factor: f64, other: &L) -> L {
    L::combine(&[(1.0, x), (factor, other)])
}

/// Adds the noise of `s_churn` before a step; the sigma after it.
fn churn<L: Latent, H: Host<L>>(
    model: &mut Model<'_, H>,
    x: L,
    sigmas: &[f64],
    i: usize,
    options: &SolverOptions,
) -> Result<(L, f64), H::Stop> {
    let sigma = sigmas[i];
    if options.s_churn <= 0.0 {
        return Ok((x, sigma));
    }
    // Drawn in any case, as k-diffusion draws it.
    let noise = model.host.noise(sigma, sigmas[i + 1])?;
    if !(options.s_tmin..=options.s_tmax).contains(&sigma) {
        return Ok((x, sigma));
    }
    let gamma = (options.s_churn / (sigmas.len() - 1) as f64).min(2_f64.sqrt() - 1.0);
    let hat = sigma * (1.0 + gamma);
    Ok((plus(&x, options.s_noise * (hat * hat - sigma * sigma).sqrt(), &noise), hat))
}

/// `sample_euler`.
pub(super) fn euler<L: Latent, H: Host<L>>(
    model: &mut Model<'_, H>,
    mut x: L,
    sigmas: &[f64],
    options: &SolverOptions,
) -> Result<L, H::Stop> {
    for i in 0..sigmas.len() - 1 {
        let (churned, hat) = churn(model, x, sigmas, i, options)?;
        let denoised = model.begin(i, &churned, hat)?;
        x = plus(&churned, sigmas[i + 1] - hat, &slope(&churned, &denoised, hat));
    }
    Ok(x)
}

/// `sample_euler_ancestral`.
pub(super) fn euler_ancestral<L: Latent, H: Host<L>>(
    model: &mut Model<'_, H>,
    mut x: L,
    sigmas: &[f64],
    options: &SolverOptions,
) -> Result<L, H::Stop> {
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let denoised = model.begin(i, &x, sigma)?;
        let (down, up) = ancestral_step(sigma, next, options.eta.unwrap_or(1.0));
        x = plus(&x, down - sigma, &slope(&x, &denoised, sigma));
        if next > 0.0 {
            x = plus(&x, options.s_noise * up, &model.host.noise(sigma, next)?);
        }
    }
    Ok(x)
}

/// `sample_heun`.
pub(super) fn heun<L: Latent, H: Host<L>>(
    model: &mut Model<'_, H>,
    mut x: L,
    sigmas: &[f64],
    options: &SolverOptions,
) -> Result<L, H::Stop> {
    for i in 0..sigmas.len() - 1 {
        let (churned, hat) = churn(model, x, sigmas, i, options)?;
        x = heun_step(model, i, &churned, hat, sigmas[i + 1])?;
    }
    Ok(x)
}

/// One step of Heun's method; of Euler's to 0.
fn heun_step<L: Latent, H: Host<L>>(
    model: &mut Model<'_, H>,
    i: usize,
    x: &L,
    sigma: f64,
    next: f64,
) -> Result<L, H::Stop> {
    let denoised = model.begin(i, x, sigma)?;
    let first = slope(x, &denoised, sigma);
    let euler = plus(x, next - sigma, &first);
    if next == 0.0 {
        return Ok(euler);
    }
    let second = slope(&euler, &model.denoise(&euler, next)?, next);
    let half = (next - sigma) / 2.0;
    Ok(L::combine(&[(1.0, x), (half, &first), (half, &second)]))
}

/// `sample_dpm_2`.
pub(super) fn dpm_2<L: Latent, H: Host<L>>(
    model: &mut Model<'_, H>,
    mut x: L,
    sigmas: &[f64],
    options: &SolverOptions,
) -> Result<L, H::Stop> {
    for i in 0..sigmas.len() - 1 {
        let (churned, hat) = churn(model, x, sigmas, i, options)?;
        x = midpoint_step(model, i, &churned, hat, sigmas[i + 1])?;
    }
    Ok(x)
}

/// `sample_dpm_2_ancestral`.
pub(super) fn dpm_2_ancestral<L: Latent, H: Host<L>>(
    model: &mut Model<'_, H>,
    mut x: L,
    sigmas: &[f64],
    options: &SolverOptions,
) -> Result<L, H::Stop> {
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let (down, up) = ancestral_step(sigma, next, options.eta.unwrap_or(1.0));
        x = midpoint_step(model, i, &x, sigma, down)?;
        if down != 0.0 {
            x = plus(&x, options.s_noise * up, &model.host.noise(sigma, next)?);
        }
    }
    Ok(x)
}

/// One step with the slope in the middle of the logarithms; of Euler's method to 0.
fn midpoint_step<L: Latent, H: Host<L>>(
    model: &mut Model<'_, H>,
    i: usize,
    x: &L,
    sigma: f64,
    next: f64,
) -> Result<L, H::Stop> {
    let denoised = model.begin(i, x, sigma)?;
    let first = slope(x, &denoised, sigma);
    if next == 0.0 {
        return Ok(plus(x, -sigma, &first));
    }
    let middle = (sigma * next).sqrt();
    let between = plus(x, middle - sigma, &first);
    let second = slope(&between, &model.denoise(&between, middle)?, middle);
    Ok(plus(x, next - sigma, &second))
}

/// `sample_lms` with order 4; its integrals are exact here, there by quadrature to 1e-4.
pub(super) fn lms<L: Latent, H: Host<L>>(
    model: &mut Model<'_, H>,
    mut x: L,
    sigmas: &[f64],
) -> Result<L, H::Stop> {
    let mut slopes: Vec<L> = Vec::new(); // the latest first
    for i in 0..sigmas.len() - 1 {
        let denoised = model.begin(i, &x, sigmas[i])?;
        slopes.insert(0, slope(&x, &denoised, sigmas[i]));
        slopes.truncate(4);
        let nodes: Vec<f64> = (0..slopes.len()).map(|j| sigmas[i - j]).collect();
        let factors = (0..slopes.len()).map(|j| lagrange_integral(&nodes, j, sigmas[i], sigmas[i + 1]));
        let mut terms: Vec<(f64, &L)> = factors.zip(&slopes).collect();
        terms.push((1.0, &x));
        x = L::combine(&terms);
    }
    Ok(x)
}

/// The integral from `a` to `b` of the polynomial that is 1 at node `j` and 0 at the others, at most three.
fn lagrange_integral(nodes: &[f64], j: usize, a: f64, b: f64) -> f64 {
    let value = |x: f64| -> f64 {
        let others = nodes.iter().enumerate().filter(|(k, _)| *k != j);
        others.map(|(_, node)| (x - node) / (nodes[j] - node)).product()
    };
    // Gauss and Legendre's rule with two points is exact up to degree three.
    let (middle, reach) = ((a + b) / 2.0, (b - a) / 2.0 / 3_f64.sqrt());
    (b - a) / 2.0 * (value(middle - reach) + value(middle + reach))
}

/// Where a Restart run goes: pairs of sigmas, each step Heun's; a pair that begins higher than the last ended needs noise
/// (Xu et al. 2023, arXiv 2306.14878; the intervals are those of stable-diffusion-webui 1.10.1,
/// `modules/sd_samplers_extra.py`).
pub(super) fn restart_steps(sigmas: &[f64]) -> Vec<(f64, f64)> {
    let steps = sigmas.len() - 1;
    let (restart_steps, times) = match steps {
        ..20 => return pairs(sigmas),
        20..36 => (9, 1),
        _ => (steps / 4, 2),
    };
    let mut base = karras_sigmas((steps - restart_steps * times) as u32, sigmas[steps - 1], sigmas[0]);
    base.push(0.0);
    let nearest = |to: f64| {
        let distance = |i: &usize| (base[*i] - to).abs();
        (0..base.len()).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(0)
    };
    let (low, high) = (nearest(0.1), nearest(2.0));
    let mut all = pairs(&base[..=low]);
    if high < low {
        let again = karras_sigmas(restart_steps as u32 + 1, base[low], base[high]);
        for _ in 0..times {
            all.extend(pairs(&again));
        }
    }
    all.extend(pairs(&base[low..]));
    all
}

fn pairs(sigmas: &[f64]) -> Vec<(f64, f64)> {
    sigmas.windows(2).map(|pair| (pair[0], pair[1])).collect()
}

/// A1111's Restart.
pub(super) fn restart<L: Latent, H: Host<L>>(
    model: &mut Model<'_, H>,
    mut x: L,
    sigmas: &[f64],
    options: &SolverOptions,
) -> Result<L, H::Stop> {
    let mut last = sigmas[0];
    for (i, (sigma, next)) in restart_steps(sigmas).into_iter().enumerate() {
        if last < sigma {
            let factor = options.s_noise * (sigma * sigma - last * last).sqrt();
            x = plus(&x, factor, &model.host.noise(last, sigma)?);
        }
        x = heun_step(model, i, &x, sigma, next)?;
        last = next;
    }
    Ok(x)
}

/// A1111's LCM: each step goes to the picture and back up.
pub(super) fn lcm<L: Latent, H: Host<L>>(
    model: &mut Model<'_, H>,
    mut x: L,
    sigmas: &[f64],
) -> Result<L, H::Stop> {
    for (i, pair) in sigmas.windows(2).enumerate() {
        let denoised = model.begin(i, &x, pair[0])?;
        x = denoised;
        if pair[1] > 0.0 {
            x = plus(&x, pair[1], &model.host.noise(pair[0], pair[1])?);
        }
    }
    Ok(x)
}
