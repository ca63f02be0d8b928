//! Text to image, and comparison grids.
//!
//! [`Pipeline`] makes one picture after the other from one checkpoint, or from a merge that is in no file
//! ([`ModelSource`]). On it stand two stages: [`sample::run`] writes a
//! single picture, [`grid::run`] a folder of pictures by checkpoint and prompt with a labelled sheet of them all.

mod conditioning;
mod error;
pub mod grid;
mod model;
mod parameters;
mod pipeline;
mod png;
pub mod sample;
mod settings;
mod sheet;

pub use error::{Error, Result};
pub use grid::{GridCheckpoint, GridConfig, GridEvent, GridPlan, GridPrompt, GridReport};
pub use model::{Model, ModelId, ModelSource};
pub use pipeline::{Calls, Networks, Pipeline, solve};
pub use png::{read_parameters, write_png};
pub use sample::{SampleConfig, SampleEvent, SamplePlan, SampleReport};
pub use settings::{Settings, Size};
pub use sheet::strip;
pub use vodka_merger::Weight;
pub use vodka_noise::{RandomSource, SamplerName, ScheduleName};
