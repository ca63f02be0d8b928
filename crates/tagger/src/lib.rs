//! Tagging: which tags a picture has, and how surely.
//!
//! A model is a folder as its authors publish it: the network as ONNX, and a file that names its tags. What else there is
//! to know about it is in a [`Description`]: those of the known families are built in, see [`families`].
//!
//! As a stage, [`TagConfig::plan`] and [`run`] make the tag table of a folder of pictures. As an engine, [`Tagger`]:
//!
#![doc = include_str!("../README.md")]

mod category;
mod choose;
mod description;
mod engine;
mod error;
mod folder;
mod graph;
mod labels;
mod pipeline;
mod preprocess;
mod profile;
mod runtime;
mod stage;
mod table;
mod tensor;

pub use category::Category;
pub use choose::{Tag, Tags, Threshold, Thresholds, mcut};
pub use description::{
    Activation, Channels, Description, FirstSquare, Fit, LabelFile, LabelKind, Layout, OutputRules,
    PictureRules, PreprocessFile, Resampler, TensorRules, ThresholdRules, families,
};
pub use engine::{Scores, Tagger, TaggerConfig};
pub use error::{Error, Result};
pub use labels::{Label, Labels, Place};
pub use ndarray;
pub use profile::Profile;
pub use runtime::Provider;
pub use stage::{TagConfig, TagEvent, TagPlan, TagReport, run};
pub use tensor::to_tensor;
pub use vodka_images::Picture;
