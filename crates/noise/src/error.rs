//! What can be wrong about a sampler's settings.

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Settings that no solver can be made from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that is no sampler's.
    #[error("unknown sampler `{found}`; did you mean `{nearest}`? known are {known}")]
    UnknownSampler {
        /// The name.
        found: String,
        /// The known name that is the most like it.
        nearest: &'static str,
        /// All names, with commas.
        known: String,
    },
    /// A name that is no schedule's.
    #[error("unknown schedule `{found}`; did you mean `{nearest}`? known are {known}")]
    UnknownSchedule {
        /// The name.
        found: String,
        /// The known name that is the most like it.
        nearest: &'static str,
        /// All names, with commas.
        known: String,
    },
    /// A schedule of sigmas for a sampler that steps through fixed timesteps.
    #[error(
        "the sampler {sampler} has timesteps of its own: expected the schedule Automatic, found {schedule}"
    )]
    NoChoiceOfSchedule {
        /// The sampler.
        sampler: &'static str,
        /// The schedule.
        schedule: &'static str,
    },
    /// A source of random numbers that is neither.
    #[error("unknown source of random numbers `{found}`; known are CPU, NV")]
    UnknownSource {
        /// The name.
        found: String,
    },
    /// A strength of denoising that is no share.
    #[error("the denoising strength is {found}, expected 0 to 1")]
    Strength {
        /// The number.
        found: String,
    },
    /// Too few steps, or too many.
    #[error("{sampler} takes {min} to {max} steps, found {found}")]
    Steps {
        /// The sampler.
        sampler: &'static str,
        /// The number asked for.
        found: u32,
        /// The fewest.
        min: u32,
        /// The most.
        max: u32,
    },
}
