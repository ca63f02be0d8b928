//! The stage that makes a grid of pictures: checkpoints, prompts, seeds and any other axes.
//!
//! What a user writes is [`GridConfig`]; [`GridPlan`] is its axes and what every cell is made of. Cells lie in a
//! store, each under the hash of all that decides it. [`run`] makes those that are missing, checkpoint by
//! checkpoint, and writes the sheets, the table and the page.

mod axes;
mod config;
mod judge;
mod look;
mod page;
mod plan;
mod run;
mod sheets;
mod table;
mod values;

pub use axes::{Axis, AxisType, AxisValue};
pub use config::{
    GridAxis, GridCheckpoint, GridConfig, GridHires, GridLayout, GridPrompt, JudgeConfig, SheetConfig,
    TooLarge,
};
pub use judge::{Interval, Judgement, Judging, Over, Range};
pub use look::{Look, MEASURES, Measure};
pub use plan::{Cell, GridPlan};
pub use run::{FailedCell, GridEvent, GridReport, run};
pub use values::Values;
