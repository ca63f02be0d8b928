//! Samplers: from noise to latents, by calls of a network.
//!
//! A [`Solver`] has all numbers, in f64, and drives a [`Host`], which has the network and the random numbers. Latents may
//! be anything that has linear combinations ([`crate::Latent`]).

mod dpm;
mod dpmpp;
mod model;
mod sigma;
mod timestep;

use crate::{Coefficients, Error, Latent, Result, SamplerName, Schedule, ScheduleName, spacing};

use model::Model;

const MAX_STEPS: u32 = 1000;

/// What a network predicts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Parameterization {
    /// The noise.
    #[default]
    Epsilon,
    /// The velocity, `sqrt(a) * noise - sqrt(1 - a) * picture`.
    V,
}

/// What a network answers.
#[derive(Debug)]
pub struct Output<L> {
    /// With guidance.
    pub guided: L,
    /// For the negative prompt alone; where absent, the same. Only DDIM CFG++ asks.
    pub unguided: Option<L>,
}

/// What a solver needs from outside.
pub trait Host<L> {
    /// Why it may end early: an interruption, or an error.
    type Stop;

    /// Calls the network. `input` has been scaled to unit variance, and `timestep` may be fractional.
    fn predict(&mut self, input: &L, timestep: f64) -> Result<Output<L>, Self::Stop>;

    /// Unit normal noise for the step from one sigma to another, both of which only Brownian noise depends on.
    fn noise(&mut self, from: f64, to: f64) -> Result<L, Self::Stop>;

    /// Told in each step, after its first call of the network: the latents before the step, and the picture that the
    /// network sees in them.
    fn step(&mut self, _step: usize, _x: &L, _denoised: &L) -> Result<(), Self::Stop> {
        Ok(())
    }
}

/// The free numbers of samplers, by their names in k-diffusion and A1111.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SolverOptions {
    /// How much noise is added anew; of itself 0 for DDIM and 1 for the others that have it.
    pub eta: Option<f64>,
    /// Noise that Euler, Heun and DPM2 add before steps.
    pub s_churn: f64,
    /// The smallest sigma at which they do.
    pub s_tmin: f64,
    /// The largest.
    pub s_tmax: f64,
    /// The factor of all added noise.
    pub s_noise: f64,
}

impl Default for SolverOptions {
    fn default() -> Self {
        Self { eta: None, s_churn: 0.0, s_tmin: 0.0, s_tmax: f64::INFINITY, s_noise: 1.0 }
    }
}

/// The noise levels of a run.
#[derive(Debug, Clone, PartialEq)]
enum Levels {
    /// Descending.
    Sigmas(Vec<f64>),
    /// Ascending; walked from the last to the first.
    Timesteps {
        all: Vec<usize>,
        /// The one that a picture is brought to; none where a run begins with noise alone.
        from: Option<usize>,
    },
}

/// A sampler with its noise levels.
#[derive(Debug, Clone, PartialEq)]
pub struct Solver {
    schedule: Schedule,
    sampler: SamplerName,
    levels: Levels,
    /// The smallest sigma above 0 and the largest of the whole schedule.
    range: (f64, f64),
    options: SolverOptions,
}

/// How much of a picture an image-to-image run keeps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Denoising {
    /// 0 keeps the picture, 1 nothing of it.
    pub strength: f64,
    /// Whether all of the steps asked for are made, over a finer schedule: A1111's option "With img2img, do exactly the
    /// amount of steps the slider specifies", and its hires pass. Else the share `strength` of them.
    pub exact_steps: bool,
}

impl Solver {
    /// The noise levels of `sampler` for `steps` steps as A1111 counts them.
    pub fn new(schedule: &Schedule, sampler: SamplerName, spacing: ScheduleName, steps: u32) -> Result<Self> {
        Self::check(sampler, spacing, steps)?;
        Ok(Self::unchecked(schedule, sampler, spacing, steps))
    }

    fn unchecked(schedule: &Schedule, sampler: SamplerName, spacing: ScheduleName, steps: u32) -> Self {
        let levels = if sampler.has_timesteps() {
            Levels::Timesteps { all: ddim_timesteps(schedule, steps), from: None }
        } else if sampler == SamplerName::Lcm
            && matches!(spacing, ScheduleName::Automatic | ScheduleName::Uniform)
        {
            Levels::Sigmas(model::lcm_sigmas(schedule, steps))
        } else {
            Levels::Sigmas(sampler_sigmas(schedule, sampler, spacing, steps))
        };
        Self::with_levels(schedule, sampler, levels)
    }

    fn with_levels(schedule: &Schedule, sampler: SamplerName, levels: Levels) -> Self {
        let options = SolverOptions::default();
        let mut solver = Self { schedule: schedule.clone(), sampler, levels, range: (0.0, 0.0), options };
        let sigmas = solver.sigmas();
        let max = sigmas.first().copied().unwrap_or(1.0);
        solver.range = (sigmas.iter().copied().filter(|sigma| *sigma > 0.0).fold(max, f64::min), max);
        solver
    }

    /// A run over these sigmas, descending.
    ///
    /// # Panics
    /// When the sampler has timesteps.
    pub fn from_sigmas(schedule: &Schedule, sampler: SamplerName, sigmas: Vec<f64>) -> Self {
        assert!(!sampler.has_timesteps(), "{sampler} has timesteps");
        Self::with_levels(schedule, sampler, Levels::Sigmas(sigmas))
    }

    /// The same with other free numbers.
    pub fn with_options(mut self, options: SolverOptions) -> Self {
        self.options = options;
        self
    }

    /// The same for a picture that is there already (stable-diffusion-webui 1.10.1, `modules/sd_samplers_common.py`,
    /// `setup_img2img_steps`).
    pub fn image_to_image(
        schedule: &Schedule,
        sampler: SamplerName,
        spacing: ScheduleName,
        steps: u32,
        denoising: Denoising,
    ) -> Result<Self> {
        Self::check(sampler, spacing, steps)?;
        if !(0.0..=1.0).contains(&denoising.strength) {
            return Err(Error::Strength { found: denoising.strength.to_string() });
        }
        let (steps, t_enc) = image_steps(steps, denoising);
        let mut solver = Self::unchecked(schedule, sampler, spacing, steps);
        match &mut solver.levels {
            Levels::Sigmas(sigmas) => {
                let from = (steps.saturating_sub(t_enc + 1) as usize).min(sigmas.len().saturating_sub(2));
                sigmas.drain(..from);
            }
            Levels::Timesteps { all, from } => {
                // A picture is given the noise of the timestep above the first call's, as there.
                *from = all.get(t_enc as usize).or(all.last()).copied();
                all.truncate(t_enc as usize);
            }
        }
        Ok(solver)
    }

    /// The sampler.
    pub fn sampler(&self) -> SamplerName {
        self.sampler
    }

    /// Whether [`Solver::new`] takes these settings.
    pub fn check(sampler: SamplerName, spacing: ScheduleName, steps: u32) -> Result<()> {
        // DDIM with one step makes no call of the network: A1111 then shows the noise. UniPC begins with three.
        let min = match sampler {
            SamplerName::UniPc => 3,
            _ if sampler.has_timesteps() => 2,
            _ => 1,
        };
        if !(min..=MAX_STEPS).contains(&steps) {
            return Err(Error::Steps { sampler: sampler.name(), found: steps, min, max: MAX_STEPS });
        }
        if sampler.has_timesteps() && spacing != ScheduleName::Automatic {
            return Err(Error::NoChoiceOfSchedule { sampler: sampler.name(), schedule: spacing.name() });
        }
        Ok(())
    }

    /// What the first latents are made of: `signal * picture + noise * unit normal noise`; a run from noise alone has no
    /// picture, and its factor of noise is [`Solver::start`].
    pub fn first(&self) -> Coefficients {
        match &self.levels {
            Levels::Sigmas(sigmas) => {
                Coefficients { signal: 1.0, noise: sigmas.first().copied().unwrap_or(0.0) }
            }
            Levels::Timesteps { all, from } => match from.or(all.last().copied()) {
                Some(t) => self.schedule.add_noise(t),
                None => Coefficients { signal: 1.0, noise: 0.0 },
            },
        }
    }

    /// The factor of the unit normal noise that the latents start as, where there is no picture.
    pub fn start(&self) -> f64 {
        match &self.levels {
            Levels::Sigmas(_) => self.first().noise,
            Levels::Timesteps { .. } => 1.0,
        }
    }

    /// The smallest sigma above 0 and the largest: the ends of a [`crate::BrownianTree`]. A run that enters a schedule in
    /// its middle has those of the whole, as in A1111.
    pub fn sigma_range(&self) -> (f64, f64) {
        self.range
    }

    /// The sigmas, descending; of samplers with timesteps those of the timesteps.
    pub fn sigmas(&self) -> Vec<f64> {
        match &self.levels {
            Levels::Sigmas(sigmas) => sigmas.clone(),
            Levels::Timesteps { all, .. } => {
                all.iter().rev().map(|t| self.schedule.t_to_sigma(*t as f64)).collect()
            }
        }
    }

    /// How often the network will be called; DPM adaptive decides on its way, and this is about the least for it.
    pub fn calls(&self) -> usize {
        let sigmas = self.sigmas();
        let gaps = sigmas.len().saturating_sub(1);
        if gaps == 0 {
            return 0;
        }
        // A step to 0 is of first order.
        let twice = 2 * gaps - usize::from(sigmas.last() == Some(&0.0));
        match self.sampler {
            SamplerName::Heun | SamplerName::Dpm2 | SamplerName::DpmppSde => twice,
            SamplerName::Dpm2A | SamplerName::Dpmpp2sA => twice,
            SamplerName::Plms => gaps + 1,
            SamplerName::UniPc => sigmas.len(),
            SamplerName::DpmFast => gaps,
            SamplerName::DpmAdaptive => 3 * gaps.max(8),
            SamplerName::Restart => {
                let steps = sigma::restart_steps(&sigmas);
                steps.iter().map(|(_, to)| if *to == 0.0 { 1 } else { 2 }).sum()
            }
            _ => gaps,
        }
    }

    /// Runs from the first latents to the last, which are those of a picture.
    ///
    /// # Errors
    /// Whatever the host stops with.
    pub fn run<L: Latent, H: Host<L>>(
        &self,
        x: L,
        parameterization: Parameterization,
        host: &mut H,
    ) -> Result<L, H::Stop> {
        let mut model = Model::new(&self.schedule, self.sampler, parameterization, host);
        let options = &self.options;
        let sigmas = match &self.levels {
            Levels::Sigmas(sigmas) if sigmas.len() < 2 => return Ok(x),
            Levels::Timesteps { all, from } => {
                return match self.sampler {
                    SamplerName::Plms => timestep::plms(&mut model, x, all),
                    SamplerName::UniPc => timestep::unipc(&mut model, x, all, from.is_some()),
                    _ => timestep::ddim(&mut model, x, all, options),
                };
            }
            Levels::Sigmas(sigmas) => sigmas,
        };
        match self.sampler {
            SamplerName::Dpmpp2m => dpmpp::dpmpp_2m(&mut model, x, sigmas),
            SamplerName::DpmppSde => dpmpp::sde(&mut model, x, sigmas, options),
            SamplerName::Dpmpp2mSde => dpmpp::dpmpp_2m_sde(&mut model, x, sigmas, options, false),
            SamplerName::Dpmpp2mSdeHeun => dpmpp::dpmpp_2m_sde(&mut model, x, sigmas, options, true),
            SamplerName::Dpmpp2sA => dpmpp::dpmpp_2s_ancestral(&mut model, x, sigmas, options),
            SamplerName::Dpmpp3mSde => dpmpp::dpmpp_3m_sde(&mut model, x, sigmas, options),
            SamplerName::EulerA => sigma::euler_ancestral(&mut model, x, sigmas, options),
            SamplerName::Euler => sigma::euler(&mut model, x, sigmas, options),
            SamplerName::Lms => sigma::lms(&mut model, x, sigmas),
            SamplerName::Heun => sigma::heun(&mut model, x, sigmas, options),
            SamplerName::Dpm2 => sigma::dpm_2(&mut model, x, sigmas, options),
            SamplerName::Dpm2A => sigma::dpm_2_ancestral(&mut model, x, sigmas, options),
            SamplerName::DpmFast => dpm::fast(&mut model, x, sigmas, options),
            SamplerName::DpmAdaptive => dpm::adaptive(&mut model, x, sigmas, options),
            SamplerName::Restart => sigma::restart(&mut model, x, sigmas, options),
            _ => sigma::lcm(&mut model, x, sigmas),
        }
    }
}

/// The steps of an image-to-image run's schedule, and the number that it enters at, counted from the end less one.
fn image_steps(steps: u32, Denoising { strength, exact_steps }: Denoising) -> (u32, u32) {
    let strength = strength.min(0.999);
    if !exact_steps {
        return (steps, (strength * f64::from(steps)) as u32);
    }
    let all = if strength > 0.0 { (f64::from(steps) / strength) as u32 } else { 0 };
    (all, steps - 1)
}

/// A1111's sigmas: `stable-diffusion-webui` 1.10.1, `modules/sd_samplers_kdiffusion.py`, `get_sigmas`.
fn sampler_sigmas(schedule: &Schedule, sampler: SamplerName, spacing: ScheduleName, steps: u32) -> Vec<f64> {
    let spacing = match spacing {
        // These ask for nothing but the ends of the table.
        _ if matches!(sampler, SamplerName::DpmFast | SamplerName::DpmAdaptive) => ScheduleName::Uniform,
        ScheduleName::Automatic => sampler.default_schedule(),
        chosen => chosen,
    };
    if !sampler.discards_next_to_last() {
        return schedule.spaced_sigmas(spacing, steps);
    }
    let mut sigmas = schedule.spaced_sigmas(spacing, steps + 1);
    let last = sigmas.pop();
    sigmas.pop();
    sigmas.extend(last);
    sigmas
}

/// A1111's timesteps: every `1000 / steps`-th (rounded down) from 1 on, at most 999.
///
/// As A1111 walks from each to the one below, 20 steps are 19 calls of the network and end at timestep 1, not at a
/// picture without noise; 30 steps have 31 timesteps and 30 calls.
fn ddim_timesteps(schedule: &Schedule, steps: u32) -> Vec<usize> {
    let all = schedule.timesteps();
    (0..all).step_by((all / steps.max(1) as usize).max(1)).map(|t| (t + 1).min(all - 1)).collect()
}

/// How far an ancestral step goes down, and how much noise then leads to its end (k-diffusion, `get_ancestral_step`).
fn ancestral_step(from: f64, to: f64, eta: f64) -> (f64, f64) {
    if eta == 0.0 {
        return (to, 0.0);
    }
    let up = to.min(eta * (to * to * (from * from - to * to) / (from * from)).sqrt());
    ((to * to - up * up).max(0.0).sqrt(), up)
}

#[cfg(test)]
mod tests;
