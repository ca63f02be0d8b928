//! The network as solvers see it: latents in, picture or noise out.

use super::{Host, Output, Parameterization, Result};
use crate::{Latent, SamplerName, Schedule};

/// LCM's timesteps: 50 of 1000, the last of each 20.
const LCM_STEPS: usize = 50;

/// A network behind the scalings of its inputs and outputs.
pub(super) struct Model<'a, H> {
    pub(super) host: &'a mut H,
    pub(super) schedule: &'a Schedule,
    parameterization: Parameterization,
    is_lcm: bool,
    pub(super) is_cfgpp: bool,
}

/// The noise that the network sees.
pub(super) struct Noise<L> {
    pub(super) guided: L,
    /// The one for the negative prompt, if it was asked for.
    pub(super) unguided: Option<L>,
}

impl<'a, H> Model<'a, H> {
    pub(super) fn new(
        schedule: &'a Schedule,
        sampler: SamplerName,
        parameterization: Parameterization,
        host: &'a mut H,
    ) -> Self {
        let (is_lcm, is_cfgpp) = (sampler == SamplerName::Lcm, sampler == SamplerName::DdimCfgpp);
        Self { host, schedule, parameterization, is_lcm, is_cfgpp }
    }

    /// The picture in `x`, which is a picture plus `sigma` times noise (k-diffusion, `CompVisDenoiser` and
    /// `CompVisVDenoiser`).
    pub(super) fn denoise<L: Latent>(&mut self, x: &L, sigma: f64) -> Result<L, H::Stop>
    where
        H: Host<L>,
    {
        let scale = 1.0 / (sigma * sigma + 1.0).sqrt();
        let timestep =
            if self.is_lcm { lcm_timestep(self.schedule, sigma) } else { self.schedule.sigma_to_t(sigma) };
        let output = self.host.predict(&L::combine(&[(scale, x)]), timestep)?.guided;
        let (of_x, of_output) = match self.parameterization {
            Parameterization::Epsilon => (1.0, -sigma),
            Parameterization::V => (scale * scale, -sigma * scale),
        };
        if !self.is_lcm {
            return Ok(L::combine(&[(of_x, x), (of_output, &output)]));
        }
        // Luo et al. 2023, arXiv 2310.04378: boundary conditions with sigma_data 0.5 and timesteps times 10.
        let scaled = timestep * 10.0;
        let skip = 0.25 / (scaled * scaled + 0.25);
        let out = scaled / (scaled * scaled + 0.25).sqrt();
        Ok(L::combine(&[(out * of_x + skip, x), (out * of_output, &output)]))
    }

    /// Begins step `i`: the picture in `x`, which the host is shown.
    pub(super) fn begin<L: Latent>(&mut self, i: usize, x: &L, sigma: f64) -> Result<L, H::Stop>
    where
        H: Host<L>,
    {
        let denoised = self.denoise(x, sigma)?;
        self.host.step(i, x, &denoised)?;
        Ok(denoised)
    }

    /// The noise in `x`, which is `sqrt(alpha)` times a picture plus `sqrt(1 - alpha)` times noise.
    pub(super) fn noise_in<L: Latent>(
        &mut self,
        x: &L,
        timestep: f64,
        alpha: f64,
    ) -> Result<Noise<L>, H::Stop>
    where
        H: Host<L>,
    {
        let Output { guided, unguided } = self.host.predict(x, timestep)?;
        let convert = |output: L| match self.parameterization {
            Parameterization::Epsilon => output,
            Parameterization::V => L::combine(&[(alpha.sqrt(), &output), ((1.0 - alpha).sqrt(), x)]),
        };
        let unguided = unguided.filter(|_| self.is_cfgpp).map(convert);
        Ok(Noise { guided: convert(guided), unguided })
    }
}

/// LCM's noise levels, ascending.
fn lcm_table(schedule: &Schedule) -> Vec<f64> {
    let gap = schedule.timesteps() / LCM_STEPS;
    schedule.sigmas().iter().skip(gap - 1).step_by(gap).copied().collect()
}

/// The timestep of LCM that is nearest to a sigma in its logarithm.
fn lcm_timestep(schedule: &Schedule, sigma: f64) -> f64 {
    let gap = schedule.timesteps() / LCM_STEPS;
    let distance = |level: &f64| (level.ln() - sigma.ln()).abs();
    let table = lcm_table(schedule);
    let nearest = (0..table.len()).min_by(|a, b| distance(&table[*a]).total_cmp(&distance(&table[*b])));
    (nearest.unwrap_or(0) * gap + gap - 1) as f64
}

/// LCM's sigmas for a number of steps, evenly spaced over its table (stable-diffusion-webui 1.10.1,
/// `modules/sd_samplers_lcm.py`).
pub(super) fn lcm_sigmas(schedule: &Schedule, steps: u32) -> Vec<f64> {
    let table = lcm_table(schedule);
    let last = (table.len() - 1) as f64;
    let sigma = |i: u32| {
        let place = last - last * f64::from(i) / f64::from(steps.max(2) - 1);
        let low = (place as usize).min(table.len() - 2);
        let rest = place - low as f64;
        ((1.0 - rest) * table[low].ln() + rest * table[low + 1].ln()).exp()
    };
    (0..steps).map(sigma).chain([0.0]).collect()
}
