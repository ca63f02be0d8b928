//! Weights on disk: formats, key names, hashes, metadata, atomic writing.
//!
//! A Stable Diffusion 1.x model is a set of named tensors and a few numbers that no tensor tells. [`Checkpoint`] opens
//! a single `.safetensors` file or a diffusers folder and shows both under one set of names, those of the original
//! single file ("LDM names"); [`keys`] is the complete map between these and the names of diffusers; [`write_checkpoint`]
//! writes the single file that every program of the field reads.

mod checkpoint;
mod config;
mod detect;
mod diffusers;
mod error;
mod file;
pub mod keys;
mod tensor;
mod write;

pub use checkpoint::Checkpoint;
pub use config::{ClipConfig, ModelConfig, Prediction, UNetConfig, VaeConfig};
pub use error::{Architecture, Error, Mismatch, Result, WrongShape};
pub use tensor::{Dtype, TensorView};
pub use write::{CONFIG_KEY, Precision, Values, write_checkpoint};
