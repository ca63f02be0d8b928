//! Larger pictures drawn again tile by tile: "Ultimate SD upscale".

mod draw;
mod geometry;
mod mask;
mod recipe;
mod run;
mod seam;

pub use geometry::{RedrawTiles, SeamFix, Seams, TileNoise, TileOrder};
pub use recipe::{RedrawConfig, RedrawPlan};
pub(crate) use run::{Redrawing, Source};
pub use seam::SeamMeasure;
