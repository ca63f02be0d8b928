//! Tagging: which tags a picture has, and how surely.
//!
//! A model is a folder as its authors publish it: the network as ONNX, and a file that names its tags. What else there is
//! to know about it is in a [`Description`]: those of the known families are built in, see [`families`].
//!
//! As a stage, [`TagConfig::plan`] and [`run`] make the tag table of a folder of pictures. As an engine, [`Tagger`]:
//!
#![doc = include_str!("../README.md")]

mod budget;
mod category;
mod choose;
mod config;
mod description;
mod engine;
mod ensemble;
mod error;
mod folder;
mod graph;
pub mod hub;
pub mod int8;
mod labels;
mod model;
mod network;
mod pipeline;
mod preprocess;
mod profile;
mod read;
mod results;
mod runtime;
mod stage;
mod stream;
mod table;
mod tensor;
mod trial;

pub use category::Category;
pub use choose::{Tag, Tags, Threshold, Thresholds, mcut};
pub use config::{TagConfig, TagPlan};
pub use description::{
    Activation, Channels, Description, FirstSquare, Fit, LabelFile, LabelKind, Layout, OutputRules,
    PictureRules, PreprocessFile, Resampler, TensorRules, ThresholdRules, families,
};
pub use engine::{Scores, Tagger, TaggerConfig};
pub use ensemble::Combine;
pub use error::{Error, Result};
pub use labels::{Label, Labels, Place};
pub use ndarray;
pub use network::{Network, NetworkConfig, Port};
pub use profile::Profile;
pub use runtime::{Provider, ProviderChoice};
pub use stage::{SkippedPicture, Speed, TagEvent, TagReport, run};
pub use stream::{StreamOptions, TaggedPath};
pub use tensor::to_tensor;
pub use vodka_images::Picture;
