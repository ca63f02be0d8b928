//! Samplers as lists of coefficients.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, Result, Schedule};

const MAX_STEPS: u32 = 1000;

/// A sampler, by the name that A1111 gives it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum SamplerName {
    /// Euler's method on the probability-flow equation in sigma.
    #[default]
    Euler,
    /// DDIM with eta 0, over A1111's timesteps.
    Ddim,
}

/// A spacing of the noise levels, by the name that A1111 gives it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum ScheduleName {
    /// The sampler's own: Uniform for Euler.
    #[default]
    Automatic,
    /// Evenly spaced timesteps, [`Schedule::uniform_sigmas`].
    Uniform,
}

impl SamplerName {
    /// All samplers.
    pub const ALL: [Self; 2] = [Self::Euler, Self::Ddim];

    /// The name as A1111 writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Euler => "Euler",
            Self::Ddim => "DDIM",
        }
    }
}

impl ScheduleName {
    /// All schedules.
    pub const ALL: [Self; 2] = [Self::Automatic, Self::Uniform];

    /// The name as A1111 writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Automatic => "Automatic",
            Self::Uniform => "Uniform",
        }
    }
}

impl fmt::Display for SamplerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for ScheduleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SamplerName {
    type Err = Error;

    /// Upper and lower case are the same.
    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|sampler| sampler.name().eq_ignore_ascii_case(text));
        found.ok_or_else(|| Error::UnknownSampler {
            found: text.to_owned(),
            known: Self::ALL.map(Self::name).join(", "),
        })
    }
}

impl FromStr for ScheduleName {
    type Err = Error;

    /// Upper and lower case are the same.
    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|schedule| schedule.name().eq_ignore_ascii_case(text));
        found.ok_or_else(|| Error::UnknownSchedule {
            found: text.to_owned(),
            known: Self::ALL.map(Self::name).join(", "),
        })
    }
}

impl TryFrom<String> for SamplerName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl TryFrom<String> for ScheduleName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<SamplerName> for String {
    fn from(sampler: SamplerName) -> Self {
        sampler.name().to_owned()
    }
}

impl From<ScheduleName> for String {
    fn from(schedule: ScheduleName) -> Self {
        schedule.name().to_owned()
    }
}

/// One call of the network, and what its answer does to the latents `x`.
///
/// The network sees `input * x` at `timestep`. From its answer follows the noise `eps` in the input: the answer
/// itself, or with v prediction `sqrt(alpha_cumprod) * v + sqrt(1 - alpha_cumprod) * input * x`. Then
/// `x := keep * x + move_by * eps`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// The timestep, fractional for Euler.
    pub timestep: f64,
    /// alphas_cumprod at the timestep.
    pub alpha_cumprod: f64,
    /// The factor that gives the network's input unit variance.
    pub input: f64,
    /// The factor of the latents.
    pub keep: f64,
    /// The factor of the noise that the network found.
    pub move_by: f64,
}

/// A sampler with its coefficients for a number of steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Solver {
    /// The factor of the unit normal noise that the latents start as.
    pub start: f64,
    /// The calls of the network, in order.
    pub steps: Vec<Step>,
}

impl Solver {
    /// The coefficients of `sampler` for `steps` steps as A1111 counts them.
    pub fn new(schedule: &Schedule, sampler: SamplerName, spacing: ScheduleName, steps: u32) -> Result<Self> {
        Self::check(sampler, spacing, steps)?;
        Ok(match sampler {
            SamplerName::Euler => Self::euler(schedule, &schedule.uniform_sigmas(steps)),
            SamplerName::Ddim => Self::ddim(schedule, &ddim_timesteps(schedule, steps)),
        })
    }

    /// Whether [`Solver::new`] takes these settings.
    pub fn check(sampler: SamplerName, spacing: ScheduleName, steps: u32) -> Result<()> {
        // DDIM with one step makes no call of the network: A1111 then shows the noise.
        let min = match sampler {
            SamplerName::Euler => 1,
            SamplerName::Ddim => 2,
        };
        if !(min..=MAX_STEPS).contains(&steps) {
            return Err(Error::Steps { sampler: sampler.name(), found: steps, min, max: MAX_STEPS });
        }
        if sampler == SamplerName::Ddim && spacing != ScheduleName::Automatic {
            return Err(Error::NoChoiceOfSchedule { sampler: sampler.name(), schedule: spacing.name() });
        }
        Ok(())
    }

    /// Euler's method from each sigma to the next (Karras et al. 2022, arXiv 2206.00364, algorithm 1 without its
    /// correction; k-diffusion, `sample_euler` with `s_churn` 0). The latents start as noise times the first sigma.
    pub fn euler(schedule: &Schedule, sigmas: &[f64]) -> Self {
        let step = |pair: &[f64]| {
            let (sigma, next) = (pair[0], pair[1]);
            let alpha_cumprod = 1.0 / (sigma * sigma + 1.0);
            Step {
                timestep: schedule.sigma_to_t(sigma),
                alpha_cumprod,
                input: alpha_cumprod.sqrt(),
                keep: 1.0,
                move_by: next - sigma,
            }
        };
        Self { start: sigmas.first().copied().unwrap_or(1.0), steps: sigmas.windows(2).map(step).collect() }
    }

    /// DDIM with eta 0 (Song et al. 2021, arXiv 2010.02502, equation 12) from the last of the ascending `timesteps` down
    /// to the first, where it stops.
    pub fn ddim(schedule: &Schedule, timesteps: &[usize]) -> Self {
        let alphas = schedule.alphas_cumprod();
        let step = |pair: &[usize]| {
            let (a, next) = (alphas[pair[1]], alphas[pair[0]]);
            Step {
                timestep: pair[1] as f64,
                alpha_cumprod: a,
                input: 1.0,
                keep: (next / a).sqrt(),
                move_by: (1.0 - next).sqrt() - (next * (1.0 - a) / a).sqrt(),
            }
        };
        Self { start: 1.0, steps: timesteps.windows(2).rev().map(step).collect() }
    }
}

/// A1111's timesteps: every `1000 / steps`-th (rounded down) from 1 on, at most 999.
///
/// As A1111 walks from each to the one below, 20 steps are 19 calls of the network and end at timestep 1, not at a
/// picture without noise; 30 steps have 31 timesteps and 30 calls.
fn ddim_timesteps(schedule: &Schedule, steps: u32) -> Vec<usize> {
    let all = schedule.timesteps();
    (0..all).step_by((all / steps as usize).max(1)).map(|t| (t + 1).min(all - 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn solver(sampler: SamplerName, steps: u32) -> Solver {
        Solver::new(&Schedule::scaled_linear(), sampler, ScheduleName::Automatic, steps).unwrap()
    }

    #[test]
    fn names_are_read_in_any_case_and_unknown_ones_are_told_what_there_is() {
        assert_eq!("ddim".parse(), Ok(SamplerName::Ddim));
        let error = "Eular".parse::<SamplerName>().unwrap_err();
        assert_eq!(error.to_string(), "unknown sampler `Eular`; known are Euler, DDIM");
        let error = "Karras".parse::<ScheduleName>().unwrap_err();
        assert_eq!(error.to_string(), "unknown schedule `Karras`; known are Automatic, Uniform");
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let check = |sampler, spacing, steps| Solver::check(sampler, spacing, steps).unwrap_err().to_string();
        assert_eq!(
            check(SamplerName::Euler, ScheduleName::Uniform, 0),
            "Euler takes 1 to 1000 steps, found 0"
        );
        assert_eq!(
            check(SamplerName::Ddim, ScheduleName::Automatic, 1),
            "DDIM takes 2 to 1000 steps, found 1"
        );
        assert!(check(SamplerName::Ddim, ScheduleName::Uniform, 9).contains("timesteps of its own"));
    }

    #[test]
    fn euler_starts_at_the_largest_sigma_and_ends_at_none() {
        let euler = solver(SamplerName::Euler, 20);
        assert_eq!(euler.steps.len(), 20);
        assert_eq!(euler.steps[0].timestep, 999.0);
        assert_eq!(euler.steps[19].timestep, 0.0);
        let walked: f64 = euler.steps.iter().map(|step| step.move_by).sum();
        assert!((euler.start + walked).abs() < 1e-12);
    }

    #[test]
    fn ddim_makes_the_calls_that_a1111_makes() {
        let timesteps = |steps| -> Vec<f64> {
            solver(SamplerName::Ddim, steps).steps.iter().map(|s| s.timestep).collect()
        };
        let twenty = timesteps(20);
        assert_eq!((twenty.len(), twenty[0], twenty[18]), (19, 951.0, 51.0));
        let thirty = timesteps(30);
        assert_eq!((thirty.len(), thirty[0], thirty[29]), (30, 991.0, 34.0));
        assert_eq!(timesteps(1000).len(), 999);
    }

    #[test]
    fn a_perfect_network_is_led_back_to_the_picture() {
        // If eps is always the true noise, DDIM lands on the mix of its last level, and Euler on the picture itself.
        let schedule = Schedule::scaled_linear();
        let (picture, noise) = (0.7, -1.3);
        for (sampler, signal, rest) in [
            (SamplerName::Euler, 1.0, 0.0),
            (SamplerName::Ddim, schedule.add_noise(1).signal, schedule.add_noise(1).noise),
        ] {
            let solver = solver(sampler, 20);
            let first = solver.steps[0];
            let a = first.alpha_cumprod;
            let mut x = (a.sqrt() * picture + (1.0 - a).sqrt() * noise) / first.input;
            for step in &solver.steps {
                x = step.keep * x + step.move_by * noise;
            }
            assert!((x - (signal * picture + rest * noise)).abs() < 1e-12, "{sampler}: {x}");
        }
    }
}
