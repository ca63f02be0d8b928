//! WD14-family tagging: which tags a picture has, and how surely.
//!
//! A model is a folder with `model.onnx` (float32 NHWC pixels in, BGR, 0..255; probabilities out) and
//! `selected_tags.csv` (`tag_id,name,category,count`, one row for each output), as SmilingWolf publishes them.
//!
//! As a stage, [`TagConfig::plan`] and [`run`] make the tag table of a folder of pictures. As an engine:
//!
//! ```no_run
//! use std::path::Path;
//! use vodka_tagger::{Provider, Tagger, TaggerConfig};
//!
//! let tagger = Tagger::open(&TaggerConfig {
//!     model: "models/wd-v1-4-convnextv2-tagger-v2".into(),
//!     onnxruntime: ".runtime/onnxruntime/libonnxruntime.so".into(),
//!     provider: Provider::Cpu,
//!     threads: 4,
//!     ..TaggerConfig::new("")
//! })?;
//! let picture = vodka_images::decode(Path::new("cat.png"))?;
//! let scores = tagger.tag(&[picture])?; // (1, labels)
//! for (label, score) in tagger.labels().iter().zip(scores.row(0)) {
//!     if *score > 0.35 {
//!         println!("{} {score:.3}", label.name);
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod config;
mod engine;
mod ensemble;
mod error;
pub mod hub;
pub mod int8;
mod labels;
mod network;
mod pipeline;
mod read;
mod results;
mod runtime;
mod stage;
mod table;

pub use config::{TagConfig, TagPlan};
pub use engine::{Profile, Tagger, TaggerConfig};
pub use ensemble::Combine;
pub use error::{Error, Result};
pub use labels::{Label, Labels};
pub use ndarray;
pub use network::{Network, NetworkConfig, Port};
pub use runtime::{Provider, ProviderChoice};
pub use stage::{Speed, TagEvent, TagReport, run};
pub use vodka_images::Picture;
