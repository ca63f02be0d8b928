//! Merges checkpoints: recipes of named steps, streamed, in fp32.
//!
//! The multiplier means what it means in A1111: the share of B. Where A1111 merges everything, this crate leaves the
//! VAE of A alone unless told otherwise ([`VaePolicy`]): VAEs are nearly always the same, and where they are not, a
//! mean of two gives washed out colours.
//!
//! [`METHODS`] is the table of methods; [`kernel`] their arithmetic on slices; [`Recipe`] what a user writes, and
//! [`MergePlan`] what comes of it; [`run`] writes the files, and [`Merged`] shows a result without one.

pub mod blocks;
mod diff;
mod error;
mod eval;
mod extract;
mod graph;
mod identity;
pub mod kernel;
mod lora;
mod merged;
mod metadata;
mod method;
mod named;
mod one;
mod plan;
mod preview;
mod recipe;
mod report;
mod run;
mod verify;
mod weight;
mod write;

pub use diff::{Comparison, Difference, compare};
pub use error::{Error, Result};
pub use eval::Kept;
pub use extract::{ExtractConfig, ExtractReport, extract};
pub use graph::{Graph, Operand, Parent, Step};
pub use identity::{Identity, ParentId};
pub use kernel::{add_difference, weighted_sum};
pub use lora::lora_delta;
pub use merged::Merged;
pub use metadata::RECIPE_KEY;
pub use method::{Info, METHODS, Method, Param, Parents, Passes};
pub use named::NamedMerge;
pub use plan::{MergePlan, MismatchPolicy, OutputPlan, Recipe, RecipeOutput, RecipeStep, VaePolicy};
pub use preview::{Preview, PreviewOutput};
pub use report::{KeptTensors, MergeEvent, MergeReport, OutputReport};
pub use run::run;
pub use verify::{VerifyReport, verify};
pub use vodka_checkpoint::Precision;
pub use weight::{Selector, Weight};
