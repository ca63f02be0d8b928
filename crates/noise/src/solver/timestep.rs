//! Samplers over DDIM's timesteps, in the space of alphas_cumprod.

use super::{Host, Result, SolverOptions, model::Model};
use crate::{Latent, Schedule};

/// From the level `a` to the level `to`, along the noise `eps` in `x`.
fn ddim_step<L: Latent>(x: &L, eps: &L, a: f64, to: f64) -> L {
    let kept = (to / a).sqrt();
    L::combine(&[(kept, x), ((1.0 - to).sqrt() - kept * (1.0 - a).sqrt(), eps)])
}

/// The picture in `x`.
fn picture<L: Latent>(x: &L, eps: &L, a: f64) -> L {
    L::combine(&[(1.0 / a.sqrt(), x), (-((1.0 - a) / a).sqrt(), eps)])
}

/// DDIM (Song et al. 2021, arXiv 2010.02502, equation 12), and DDIM CFG++ (Chung et al. 2024, arXiv 2406.08070), which
/// goes on along the noise for the negative prompt, from the last of the ascending `timesteps` down to the first, where
/// it stops.
pub(super) fn ddim<L: Latent, H: Host<L>>(
    model: &mut Model<'_, H>,
    mut x: L,
    timesteps: &[usize],
    options: &SolverOptions,
) -> Result<L, H::Stop> {
    let alphas = model.schedule.alphas_cumprod();
    let eta = options.eta.unwrap_or(0.0);
    for (i, pair) in timesteps.windows(2).rev().enumerate() {
        let (a, to) = (alphas[pair[1]], alphas[pair[0]]);
        let eps = model.noise_in(&x, pair[1] as f64, a)?;
        let denoised = picture(&x, &eps.guided, a);
        model.host.step(i, &x, &denoised)?;
        let up = eta * ((1.0 - to) / (1.0 - a) * (1.0 - a / to)).sqrt();
        let direction = eps.unguided.as_ref().unwrap_or(&eps.guided);
        let moved = L::combine(&[(to.sqrt(), &denoised), ((1.0 - to - up * up).sqrt(), direction)]);
        x = moved;
        if up > 0.0 {
            x = L::combine(&[
                (1.0, &x),
                (up, &model.host.noise(((1.0 - a) / a).sqrt(), ((1.0 - to) / to).sqrt())?),
            ]);
        }
    }
    Ok(x)
}

/// PLMS (Liu et al. 2022, arXiv 2202.09778): multistep of fourth order, begun by an improved step of Euler's.
pub(super) fn plms<L: Latent, H: Host<L>>(
    model: &mut Model<'_, H>,
    mut x: L,
    timesteps: &[usize],
) -> Result<L, H::Stop> {
    let alphas = model.schedule.alphas_cumprod();
    let mut old: Vec<L> = Vec::new(); // the latest first
    for (i, pair) in timesteps.windows(2).rev().enumerate() {
        let (a, to) = (alphas[pair[1]], alphas[pair[0]]);
        let eps = model.noise_in(&x, pair[1] as f64, a)?.guided;
        model.host.step(i, &x, &picture(&x, &eps, a))?;
        let mixed = match &old[..] {
            [] => {
                let next = ddim_step(&x, &eps, a, to);
                let there = model.noise_in(&next, pair[0] as f64, to)?.guided;
                L::combine(&[(0.5, &eps), (0.5, &there)])
            }
            [one] => L::combine(&[(1.5, &eps), (-0.5, one)]),
            [one, two] => L::combine(&[(23.0 / 12.0, &eps), (-16.0 / 12.0, one), (5.0 / 12.0, two)]),
            [one, two, three, ..] => L::combine(&[
                (55.0 / 24.0, &eps),
                (-59.0 / 24.0, one),
                (37.0 / 24.0, two),
                (-9.0 / 24.0, three),
            ]),
        };
        x = ddim_step(&x, &mixed, a, to);
        old.insert(0, eps);
        old.truncate(3);
    }
    Ok(x)
}

/// The order of [`unipc`].
const ORDER: usize = 3;

/// A noise level of [`unipc`]: its time, in 1/N to 1 for N timesteps, and what follows from it.
struct Level {
    timestep: f64,
    alpha: f64,
    /// Half the logarithm of the signal-to-noise ratio.
    lambda: f64,
}

impl Level {
    /// The logarithm of alphas_cumprod is interpolated linearly (wl-zhao/UniPC, `NoiseScheduleVP`, "discrete").
    fn new(schedule: &Schedule, time: f64) -> Self {
        let alphas = schedule.alphas_cumprod();
        let timestep = (time * alphas.len() as f64 - 1.0).clamp(0.0, (alphas.len() - 1) as f64);
        let low = (timestep as usize).min(alphas.len() - 2);
        let rest = timestep - low as f64;
        let log = alphas[low].ln() * (1.0 - rest) + alphas[low + 1].ln() * rest;
        let alpha = log.exp();
        Self { timestep, alpha, lambda: 0.5 * (alpha / (1.0 - alpha)).ln() }
    }

    fn sigma(&self) -> f64 {
        (1.0 - self.alpha).sqrt()
    }
}

/// UniPC of order three with B(h) = h and times evenly spaced (Zhao et al. 2023, arXiv 2302.04867, bh1), from noise, or
/// for an image from the last timestep, to timestep 0.
pub(super) fn unipc<L: Latent, H: Host<L>>(
    model: &mut Model<'_, H>,
    mut x: L,
    timesteps: &[usize],
    is_image: bool,
) -> Result<L, H::Stop> {
    let steps = timesteps.len();
    let Some(last) = timesteps.last() else { return Ok(x) };
    let all = model.schedule.timesteps() as f64;
    let start = if is_image { (*last + 1) as f64 / all } else { 1.0 };
    let time = |i: usize| start + (1.0 / all - start) * i as f64 / steps as f64;
    let levels: Vec<Level> = (0..=steps).map(|i| Level::new(model.schedule, time(i))).collect();
    let mut pictures: Vec<L> = vec![picture_at(model, &x, &levels[0])?]; // the latest first
    model.host.step(0, &x, &pictures[0])?;
    for step in 1..=steps {
        let order = ORDER.min(step).min(steps + 1 - step);
        let basis = Basis::new(&levels, step, order);
        let predicted = basis.apply(&x, &pictures, None, &basis.predictor());
        if step == steps {
            return Ok(predicted);
        }
        let seen = picture_at(model, &predicted, &levels[step])?;
        x = basis.apply(&x, &pictures, Some(&seen), &basis.corrector());
        model.host.step(step, &x, &seen)?;
        pictures.insert(0, seen);
        pictures.truncate(ORDER);
    }
    Ok(x)
}

fn picture_at<L: Latent, H: Host<L>>(model: &mut Model<'_, H>, x: &L, level: &Level) -> Result<L, H::Stop> {
    let eps = model.noise_in(x, level.timestep, level.alpha)?.guided;
    Ok(picture(x, &eps, level.alpha))
}

/// The numbers of one step of UniPC.
struct Basis {
    /// The factors of the latents and the last picture.
    kept: f64,
    moved: f64,
    /// The factor of the correction.
    scale: f64,
    /// Where the older pictures are, the step's length being 1, and at last 1 for the picture at its end.
    places: Vec<f64>,
    right: Vec<f64>,
}

impl Basis {
    fn new(levels: &[Level], step: usize, order: usize) -> Self {
        let (from, to) = (&levels[step - 1], &levels[step]);
        let h = to.lambda - from.lambda;
        let mut places: Vec<f64> = (2..=order).map(|i| (levels[step - i].lambda - from.lambda) / h).collect();
        places.push(1.0);
        let hh = -h;
        let mut phi = hh.exp_m1() / hh - 1.0;
        let mut factorial = 1.0;
        let mut right = Vec::new();
        for i in 1..=order {
            right.push(phi * factorial / hh);
            factorial *= (i + 1) as f64;
            phi = phi / hh - 1.0 / factorial;
        }
        let signal = to.alpha.sqrt();
        Self {
            kept: to.sigma() / from.sigma(),
            moved: -signal * hh.exp_m1(),
            scale: -signal * hh,
            places,
            right,
        }
    }

    fn predictor(&self) -> Vec<f64> {
        match self.places.len() {
            1 => Vec::new(),
            2 => vec![0.5],
            n => vandermonde(&self.places[..n - 1], &self.right[..n - 1]),
        }
    }

    fn corrector(&self) -> Vec<f64> {
        if self.places.len() == 1 { vec![0.5] } else { vandermonde(&self.places, &self.right) }
    }

    /// The step with these factors of the pictures' differences to the last one: the older ones', then that of `seen`.
    fn apply<L: Latent>(&self, x: &L, pictures: &[L], seen: Option<&L>, factors: &[f64]) -> L {
        let others = pictures.iter().skip(1).take(self.places.len() - 1).chain(seen);
        let mut terms = vec![(self.kept, x)];
        let mut of_last = self.moved;
        for ((picture, place), factor) in others.zip(&self.places).zip(factors) {
            let factor = self.scale * factor / place;
            terms.push((factor, picture));
            of_last -= factor;
        }
        terms.push((of_last, &pictures[0]));
        L::combine(&terms)
    }
}

/// Solves `sum over j of places[j]^i * r[j] = right[i]`, by elimination.
fn vandermonde(places: &[f64], right: &[f64]) -> Vec<f64> {
    let n = places.len();
    let mut rows: Vec<Vec<f64>> =
        (0..n).map(|i| places.iter().map(|place| place.powi(i as i32)).chain([right[i]]).collect()).collect();
    for column in 0..n {
        let largest = (column..n).max_by(|a, b| rows[*a][column].abs().total_cmp(&rows[*b][column].abs()));
        rows.swap(column, largest.unwrap_or(column));
        let pivot = rows[column].clone();
        for (_, row) in rows.iter_mut().enumerate().filter(|(i, _)| *i != column) {
            let factor = row[column] / pivot[column];
            row.iter_mut().zip(&pivot).for_each(|(value, from)| *value -= factor * from);
        }
    }
    (0..n).map(|i| rows[i][n] / rows[i][i]).collect()
}
