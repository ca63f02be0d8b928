//! Experiments beside each other: what was done differently, and what came out, by pictures of the same seeds and prompts.
//!
//! [`CompareConfig`] names the output folders of runs, or single probes. [`run`] reads their records and the pictures of one probe of
//! each, and writes tables, charts, a page, and the same in Markdown.

mod config;
mod numbers;
mod page;
mod run;
mod settings;

pub use config::{CompareConfig, ComparePlan, Compared};
pub use numbers::{Line, Subject};
pub use run::{CompareReport, run};
pub use settings::Difference;
