//! What tags do to the pictures of models: with and without each tag, alone and in the negative prompt, by the same seeds.
//!
//! What a user writes is [`Probe`]; [`ProbeConfig`] adds what it reads. [`run`] makes the pictures, has the tagger score them,
//! and writes tables, charts, galleries and a page. The numbers are those of [`statistics`], over seeds.

pub(crate) mod chart;
mod config;
mod gallery;
mod page;
mod plan;
mod response;
pub(crate) mod rows;
mod run;
pub mod statistics;
pub(crate) mod table;

pub use config::{Probe, ProbeConfig, ProbePrompt, Tags};
pub use plan::{Condition, ProbePlan};
pub use response::{Adherence, Diversity, Friedness, Placebos, Response, Results, Verdict};
pub use run::{ProbeEvent, ProbeReport, run};
pub use statistics::Estimate;
