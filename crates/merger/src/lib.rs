//! Merges checkpoints: weighted sum and add difference, tensor by tensor, in fp32.
//!
//! The multiplier means what it means in A1111: the share of B. Where A1111 merges everything, this crate leaves the
//! VAE of A alone unless told otherwise ([`VaePolicy`]): VAEs are nearly always the same, and where they are not, a
//! mean of two gives washed out colours.

mod error;
mod merge;
mod metadata;
mod method;
mod plan;

pub use error::{Error, Result};
pub use merge::{MergeEvent, MergeReport, run};
pub use method::{Method, add_difference, weighted_sum};
pub use plan::{MergeConfig, MergePlan, VaePolicy};
pub use vodka_checkpoint::Precision;
