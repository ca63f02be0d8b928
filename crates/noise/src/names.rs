//! Samplers and schedules by the names that A1111 gives them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A sampler, by the name that A1111 gives it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
#[allow(missing_docs, reason = "their names say all")]
pub enum SamplerName {
    Dpmpp2m,
    DpmppSde,
    Dpmpp2mSde,
    Dpmpp2mSdeHeun,
    Dpmpp2sA,
    Dpmpp3mSde,
    EulerA,
    #[default]
    Euler,
    Lms,
    Heun,
    Dpm2,
    Dpm2A,
    DpmFast,
    DpmAdaptive,
    Restart,
    Ddim,
    DdimCfgpp,
    Plms,
    UniPc,
    Lcm,
}

/// A spacing of the noise levels, by the name that A1111 gives it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum ScheduleName {
    /// The sampler's own, [`SamplerName::default_schedule`].
    #[default]
    Automatic,
    /// Evenly spaced timesteps.
    Uniform,
    /// Karras et al. 2022 with rho 7.
    Karras,
    /// Evenly spaced logarithms.
    Exponential,
    /// Powers of evenly spaced logarithms; with rho 1, as here, the same as Exponential.
    Polyexponential,
    /// Evenly spaced timesteps without the first.
    SgmUniform,
    /// Evenly spaced arc tangents; ends at the smallest sigma, not at 0.
    KlOptimal,
    /// NVIDIA's table for Stable Diffusion 1.5.
    AlignYourSteps,
    /// Every n-th of the trained noise levels.
    Simple,
    /// The same as Uniform.
    Normal,
    /// DDIM's timesteps.
    Ddim,
    /// Quantiles of the beta distribution with 0.6 and 0.6.
    Beta,
}

/// What A1111 knows of a sampler.
struct Facts {
    name: &'static str,
    alias: &'static str,
    schedule: ScheduleName,
    flags: &'static [Flag],
}

#[derive(PartialEq)]
enum Flag {
    /// The network is called twice a step, and prompts are scheduled by calls.
    SecondOrder,
    /// Noise comes from a Brownian tree.
    Brownian,
    /// The generators are seeded anew with ENSD.
    Ensd,
    /// One level more is asked for, and the last but one left out.
    Discard,
    /// Steps through DDIM's timesteps.
    Timesteps,
}

impl SamplerName {
    /// All samplers.
    pub const ALL: [Self; 20] = [
        Self::Dpmpp2m,
        Self::DpmppSde,
        Self::Dpmpp2mSde,
        Self::Dpmpp2mSdeHeun,
        Self::Dpmpp2sA,
        Self::Dpmpp3mSde,
        Self::EulerA,
        Self::Euler,
        Self::Lms,
        Self::Heun,
        Self::Dpm2,
        Self::Dpm2A,
        Self::DpmFast,
        Self::DpmAdaptive,
        Self::Restart,
        Self::Ddim,
        Self::DdimCfgpp,
        Self::Plms,
        Self::UniPc,
        Self::Lcm,
    ];

    /// stable-diffusion-webui 1.10.1, `modules/sd_samplers_kdiffusion.py`, `_timesteps.py` and `_lcm.py`.
    const fn facts(self) -> Facts {
        use Flag::{Brownian, Discard, Ensd, SecondOrder, Timesteps};
        use ScheduleName::{Exponential, Karras, Uniform};
        let (name, alias, schedule, flags): (_, _, _, &'static [Flag]) = match self {
            Self::Dpmpp2m => ("DPM++ 2M", "k_dpmpp_2m", Karras, &[]),
            Self::DpmppSde => ("DPM++ SDE", "k_dpmpp_sde", Karras, &[SecondOrder, Brownian]),
            Self::Dpmpp2mSde => ("DPM++ 2M SDE", "k_dpmpp_2m_sde", Exponential, &[Brownian]),
            Self::Dpmpp2mSdeHeun => ("DPM++ 2M SDE Heun", "k_dpmpp_2m_sde_heun", Exponential, &[Brownian]),
            Self::Dpmpp2sA => ("DPM++ 2S a", "k_dpmpp_2s_a", Karras, &[Ensd, SecondOrder]),
            Self::Dpmpp3mSde => ("DPM++ 3M SDE", "k_dpmpp_3m_sde", Exponential, &[Discard, Brownian]),
            Self::EulerA => ("Euler a", "k_euler_a", Uniform, &[Ensd]),
            Self::Euler => ("Euler", "k_euler", Uniform, &[]),
            Self::Lms => ("LMS", "k_lms", Uniform, &[]),
            Self::Heun => ("Heun", "k_heun", Uniform, &[SecondOrder]),
            Self::Dpm2 => ("DPM2", "k_dpm_2", Karras, &[Discard, SecondOrder]),
            Self::Dpm2A => ("DPM2 a", "k_dpm_2_a", Karras, &[Discard, Ensd, SecondOrder]),
            Self::DpmFast => ("DPM fast", "k_dpm_fast", Uniform, &[Ensd]),
            Self::DpmAdaptive => ("DPM adaptive", "k_dpm_ad", Uniform, &[Ensd]),
            Self::Restart => ("Restart", "restart", Karras, &[SecondOrder]),
            Self::Ddim => ("DDIM", "ddim", Uniform, &[Timesteps]),
            Self::DdimCfgpp => ("DDIM CFG++", "ddim_cfgpp", Uniform, &[Timesteps]),
            Self::Plms => ("PLMS", "plms", Uniform, &[Timesteps]),
            Self::UniPc => ("UniPC", "unipc", Uniform, &[Timesteps]),
            Self::Lcm => ("LCM", "k_lcm", Uniform, &[]),
        };
        Facts { name, alias, schedule, flags }
    }

    /// The name as A1111 writes it.
    pub const fn name(self) -> &'static str {
        self.facts().name
    }

    /// What [`ScheduleName::Automatic`] means to it; nothing to samplers with timesteps of their own.
    pub const fn default_schedule(self) -> ScheduleName {
        self.facts().schedule
    }

    /// Whether the network is called twice a step; prompts are then scheduled over twice the steps.
    pub fn is_second_order(self) -> bool {
        self.facts().flags.contains(&Flag::SecondOrder)
    }

    /// Whether its noise is to come from a [`crate::BrownianTree`].
    pub fn is_brownian(self) -> bool {
        self.facts().flags.contains(&Flag::Brownian)
    }

    /// Whether A1111 writes ENSD into its pictures.
    pub fn uses_ensd(self) -> bool {
        self.facts().flags.contains(&Flag::Ensd)
    }

    /// Whether it steps through DDIM's timesteps, in the space of alphas_cumprod.
    pub fn has_timesteps(self) -> bool {
        self.facts().flags.contains(&Flag::Timesteps)
    }

    pub(crate) fn discards_next_to_last(self) -> bool {
        self.facts().flags.contains(&Flag::Discard)
    }

    /// What the CFG scale is multiplied by.
    pub fn guidance_factor(self) -> f64 {
        if self == Self::DdimCfgpp { 1.0 / 12.5 } else { 1.0 }
    }

    /// Splits a name of before version 1.9, "DPM++ 2M Karras", into sampler and schedule.
    ///
    /// # Errors
    /// No such sampler.
    pub fn split_old(text: &str) -> Result<(Self, ScheduleName)> {
        let error = match text.parse() {
            Ok(sampler) => return Ok((sampler, ScheduleName::Automatic)),
            Err(error) => error,
        };
        for schedule in [ScheduleName::Karras, ScheduleName::Exponential] {
            let start = text.len().saturating_sub(schedule.name().len());
            let is_suffix = text.get(start..).is_some_and(|end| end.eq_ignore_ascii_case(schedule.name()));
            if is_suffix && let Ok(sampler) = text[..start].trim_end().parse() {
                return Ok((sampler, schedule));
            }
        }
        Err(error)
    }
}

impl ScheduleName {
    /// All schedules.
    pub const ALL: [Self; 12] = [
        Self::Automatic,
        Self::Uniform,
        Self::Karras,
        Self::Exponential,
        Self::Polyexponential,
        Self::SgmUniform,
        Self::KlOptimal,
        Self::AlignYourSteps,
        Self::Simple,
        Self::Normal,
        Self::Ddim,
        Self::Beta,
    ];

    /// The name as A1111 writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Automatic => "Automatic",
            Self::Uniform => "Uniform",
            Self::Karras => "Karras",
            Self::Exponential => "Exponential",
            Self::Polyexponential => "Polyexponential",
            Self::SgmUniform => "SGM Uniform",
            Self::KlOptimal => "KL Optimal",
            Self::AlignYourSteps => "Align Your Steps",
            Self::Simple => "Simple",
            Self::Normal => "Normal",
            Self::Ddim => "DDIM",
            Self::Beta => "Beta",
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

/// The name that is the most like `text`.
fn nearest(text: &str, names: &[&'static str]) -> &'static str {
    let distance = |name: &&&str| strsim::damerau_levenshtein(&name.to_lowercase(), &text.to_lowercase());
    names.iter().min_by_key(distance).copied().unwrap_or_default()
}

impl FromStr for SamplerName {
    type Err = Error;

    /// The name or k-diffusion's (`k_euler_a`); upper and lower case are the same.
    fn from_str(text: &str) -> Result<Self> {
        let is_it = |sampler: &Self| {
            let Facts { name, alias, .. } = sampler.facts();
            name.eq_ignore_ascii_case(text) || alias.eq_ignore_ascii_case(text)
        };
        let names = Self::ALL.map(Self::name);
        Self::ALL.into_iter().find(is_it).ok_or_else(|| Error::UnknownSampler {
            found: text.to_owned(),
            nearest: nearest(text, &names),
            known: names.join(", "),
        })
    }
}

impl FromStr for ScheduleName {
    type Err = Error;

    /// Upper and lower case are the same, and `_` or `-` is a space (`sgm_uniform`).
    fn from_str(text: &str) -> Result<Self> {
        let plain = text.replace(['_', '-'], " ");
        let found = Self::ALL.into_iter().find(|schedule| schedule.name().eq_ignore_ascii_case(&plain));
        let names = Self::ALL.map(Self::name);
        found.ok_or_else(|| Error::UnknownSchedule {
            found: text.to_owned(),
            nearest: nearest(text, &names),
            known: names.join(", "),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_any_case_and_unknown_ones_are_told_what_there_is() {
        assert_eq!("ddim".parse(), Ok(SamplerName::Ddim));
        assert_eq!("K_Euler_a".parse(), Ok(SamplerName::EulerA));
        assert_eq!("sgm_uniform".parse(), Ok(ScheduleName::SgmUniform));
        let error = "Eular".parse::<SamplerName>().unwrap_err().to_string();
        assert!(
            error.starts_with("unknown sampler `Eular`; did you mean `Euler`? known are DPM++ 2M, "),
            "{error}"
        );
        let error = "Caras".parse::<ScheduleName>().unwrap_err().to_string();
        assert!(
            error.starts_with("unknown schedule `Caras`; did you mean `Karras`? known are Automatic, "),
            "{error}"
        );
    }

    #[test]
    fn old_names_are_split() {
        let split = |text| SamplerName::split_old(text);
        assert_eq!(split("DPM++ 2M Karras"), Ok((SamplerName::Dpmpp2m, ScheduleName::Karras)));
        assert_eq!(
            split("DPM++ 2M SDE Heun Exponential"),
            Ok((SamplerName::Dpmpp2mSdeHeun, ScheduleName::Exponential))
        );
        assert_eq!(split("Euler a"), Ok((SamplerName::EulerA, ScheduleName::Automatic)));
        assert!(split("Karras").is_err());
        for sampler in SamplerName::ALL {
            assert_eq!(split(sampler.name()), Ok((sampler, ScheduleName::Automatic)));
        }
    }
}
