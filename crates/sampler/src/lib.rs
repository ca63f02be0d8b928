//! Text to image, and comparison grids.
//!
//! [`Pipeline`] makes one picture after the other from one checkpoint, or from a merge that is in no file
//! ([`ModelSource`]). On it stand two stages: [`sample::run`] writes a single picture, [`grid::run`] a store of pictures
//! by checkpoint, prompt and any other axes, with sheets, tables and a page of them all.

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
pub use grid::{
    GridAxis, GridCheckpoint, GridConfig, GridEvent, GridLayout, GridPlan, GridPrompt, GridReport, Values,
};
pub use model::{Model, ModelId, ModelSource};
pub use pipeline::{Calls, Networks, Pipeline, solve};
pub use png::{read_parameters, write_png};
pub use sample::{SampleConfig, SampleEvent, SamplePlan, SampleReport};
pub use settings::{Settings, Size};
pub use sheet::strip;
pub use vodka_merger::Weight;
pub use vodka_noise::{RandomSource, SamplerName, ScheduleName};
