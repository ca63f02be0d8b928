//! Text to image, and comparison grids.
//!
//! [`Pipeline`] makes one picture after the other, or several at once, from one checkpoint or from a merge that is in no file
//! ([`ModelSource`]); a [`Library`] holds the LoRA files and embeddings that their prompts may name. On it stand two stages:
//! [`sample::run`] writes a single picture or a few, [`grid::run`] a store of pictures
//! by checkpoint, prompt and any other axes, with sheets, tables and a page of them all. A third, [`upscale::run`], makes
//! pictures larger.

mod ahead;
mod bootstrap;
mod conditioning;
mod control;
mod embedding;
mod error;
mod fit;
mod graph;
pub mod grid;
mod hires;
mod items;
mod library;
mod loras;
mod making;
mod memory;
mod model;
pub mod numbers;
mod parameters;
mod picture_file;
mod pictures;
mod pipeline;
mod redraw;
pub mod sample;
mod settings;
mod sheet;
mod store;
mod texts;
pub mod upscale;

pub use bootstrap::{SAMPLES_MIN, bootstrap, median};
pub use control::{ControlConfig, ControlMode, ControlUnit, Preprocessor};
pub use error::{Error, Result};
pub use grid::{
    GridAxis, GridCheckpoint, GridConfig, GridEvent, GridHires, GridLayout, GridPlan, GridPrompt, GridReport,
    Values,
};
pub use hires::{Hires, HiresTarget, HiresUpscaler, LatentMode};
pub use image::RgbImage;
pub use items::{TakenPrompt, TimedItems};
pub use library::{Library, Used};
pub use memory::Need;
pub use model::{ControlId, Model, ModelId, ModelSource};
pub use parameters::not_followed;
pub use picture_file::{PictureFormat, read_parameters, write_picture, write_png};
pub use pictures::{PictureEvent, Pictures, WantedPicture};
pub use pipeline::{Batch, Calls, Form, Load, Networks, Pipeline, solve};
pub use sample::{SampleConfig, SampleEvent, SamplePlan, SampleReport};
pub use settings::{ImageToImage, ResizeMode, Settings, Size};
pub use sheet::{labelled, strip};
pub use upscale::{
    RedrawConfig, RedrawPlan, RedrawTiles, SeamFix, SeamMeasure, Seams, Target, TileNoise, TileOrder, Tiles,
    UpscaleConfig, UpscaleEvent, UpscalePlan, UpscaleReport, Upscaler, UpscalerChoice,
};
pub use vodka_checkpoint::Precision;
pub use vodka_merger::Weight;
pub use vodka_noise::{RandomSource, SamplerName, ScheduleName};
pub use vodka_prompt::{Emphasis, PromptItem};
pub use vodka_sd15::VaeTiles;
