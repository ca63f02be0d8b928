//! Choosing a model by what a probe measured: a scorecard, a rule that is told in words, and what the numbers do not tell apart.
//!
//! What a user writes is [`Choose`]; [`ChooseConfig`] adds the probe's folder. [`run`] reads its tables and writes the scorecard, the pairs
//! and a page. The chosen model has the name of the section for mixes, grids and probes after it.

mod card;
mod config;
mod page;
mod run;

pub use card::{By, Card, Choice, Pair, Rule};
pub use config::{Choose, ChooseConfig, ChoosePlan, Validation};
pub(crate) use run::probe_report;
pub use run::{ChooseReport, run};
