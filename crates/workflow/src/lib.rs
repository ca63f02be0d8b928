//! The recipe: which stage, on what, already done or not.
//!
//! A [`Recipe`] names every stage of the V3 experiment. [`Workflow::open`] puts them in order as [`Job`]s; [`run`] makes
//! those whose outputs are not what their inputs and settings would make; [`Workflow::status`] only looks.

pub mod choose;
pub mod compare;
mod error;
mod jobs;
mod judge;
mod notebook;
mod pages;
pub mod probe;
mod recipe;
mod run;
mod stages;
mod status;

pub use choose::{Choose, ChooseConfig, ChoosePlan, ChooseReport};
pub use compare::{CompareConfig, ComparePlan, CompareReport};
pub use error::{Error, Result};
pub use jobs::{Job, Workflow};
pub use judge::{Effect, Found, JudgePlan, JudgeReport, Side};
pub use probe::{Probe, ProbeConfig, ProbePlan, ProbeReport};
pub use recipe::Recipe;
pub use run::{JobReport, WorkflowEvent, WorkflowReport, run};
pub use stages::{Plan, Progress, of_probe};
pub use status::{JobStatus, State};
pub use vodka_tagger::hub::{Download, HubConfig};

/// The recipe that `vodka init` writes: the V3 experiment with the numbers that its authors published.
pub const TEMPLATE: &str = include_str!("template.toml");
