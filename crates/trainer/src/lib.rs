//! Fine-tuning of Stable Diffusion 1.x: UNet and text encoder, on pictures with captions.
//!
//! The configuration is EveryDream2's ([`TrainConfig`], [`OptimizerConfig`]); weights and optimizers have 32 bits. Every random
//! number is a function of its place ([`random`]), so that, on a processor, a run that was killed goes on to the same
//! checkpoints, bit for bit, as one that was not.
//!
//! ```no_run
//! # fn main() -> Result<(), vodka_trainer::Error> {
//! let plan = vodka_trainer::TrainConfig::read("train.json")?.plan()?;
//! let report = vodka_trainer::run(&plan, &vodka_stage::Interrupt::new(), &mut |_event| {})?;
//! # Ok(())
//! # }
//! ```

mod ahead;
pub mod arithmetic;
mod audit;
mod buckets;
mod cache;
mod compat;
mod config;
mod data;
mod draft;
pub mod ema;
mod epoch;
mod error;
mod facts;
mod finder;
mod freezing;
pub mod geometry;
pub mod graph;
mod items;
mod keys;
mod optimizer;
pub mod optimizers;
mod options;
mod plan;
pub mod random;
pub mod rates;
#[cfg(test)]
mod recipes;
mod report;
mod run;
mod samples;
mod sources;
mod state;
pub mod step;
pub mod target;
mod validation;
mod watch;
mod zips;

pub use arithmetic::{Arithmetic, OnNan};
pub use audit::{AUDIT_CSV, AUDIT_JSON, AuditReport, BucketUse, Cropped, Flaw, LongCaption, audit};
pub use buckets::{Bucket, buckets, nearest};
pub use cache::CacheMode;
pub use compat::{Compat, Runts};
pub use config::TrainConfig;
pub use data::Skipped;
pub use epoch::{Entry, EpochSettings, Planned, batches, batches_by_epoch, saved_epochs};
pub use error::{Error, Result};
pub use finder::{FinderReport, FinderSettings, Tried};
pub use freezing::{Freezing, UnetFreezing};
pub use keys::Notice;
pub use optimizer::OptimizerConfig;
pub use optimizers::OptimizerSettings;
pub use plan::{EFFECTIVE_JSON, Settings, TrainPlan};
pub use report::{TrainEvent, TrainReport, Validated};
pub use run::{find_lr, run};
pub use samples::{SampleConfig, SampleEntry, SamplePrompt, SampleRound};
pub use sources::DataRoot;
pub use target::LossType;
pub use validation::{SplitMode, ValidationConfig, diverges};
pub use watch::{Phase, Speed, Spent};
