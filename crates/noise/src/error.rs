//! What can be wrong about a sampler's settings.

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Settings that no solver can be made from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that is no sampler's.
    #[error("unknown sampler `{found}`; known are {known}")]
    UnknownSampler {
        /// The name.
        found: String,
        /// All names, with commas.
        known: String,
    },
    /// A name that is no schedule's.
    #[error("unknown schedule `{found}`; known are {known}")]
    UnknownSchedule {
        /// The name.
        found: String,
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
