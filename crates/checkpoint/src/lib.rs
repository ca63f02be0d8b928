//! Weights on disk: formats, key names, hashes, metadata, atomic writing.
//!
//! A Stable Diffusion 1.x model is a set of named tensors and a few numbers that no tensor tells. [`Checkpoint`] opens
//! a single `.safetensors` file or a diffusers folder and shows both under one set of names, those of the original
//! single file ("LDM names"); [`keys`] is the complete map between these and the names of diffusers; [`write_checkpoint`]
//! writes the single file that every program of the field reads.

pub mod blocks;
mod checkpoint;
mod config;
mod control_net;
pub mod convert;
mod detect;
mod diffusers;
mod diffusers_write;
mod error;
mod file;
mod folder;
mod half_floats;
mod hashes;
mod header;
pub mod inspect;
pub mod keys;
mod layout;
mod lora;
mod lora_adapter;
mod lora_convert;
mod pickle;
mod tensor;
mod tokenizer;
mod torch;
mod torch_write;
mod upscaler;
mod vae;
mod weights;
mod write;

pub use checkpoint::{Checkpoint, Ema, Part, ema_name};
pub use config::{ClipConfig, ControlNetConfig, ModelConfig, Prediction, UNetConfig, VaeConfig};
pub use control_net::ControlNetFile;
pub use diffusers_write::write_diffusers;
pub use error::{Architecture, Error, LoraShapes, Mismatch, Result, StorageFault, WrongShape};
pub use file::{Format, WeightFile, same_file};
pub use half_floats::all_below;
pub use hashes::{Hashes, known};
pub use header::Misfit;
pub use layout::{
    SafetensorsWriter, TensorSpec, check_free_space, config_entry, in_file_order, model_spec, position_ids,
    position_ids_name, single_file_tensors,
};
pub use lora::{Lora, LoraModule, lora_name};
pub use lora_convert::LoraNames;
pub use pickle::PickleError;
pub use tensor::{Dtype, Place, TensorInfo, TensorView};
pub use upscaler::{RrdbConfig, Upscaler};
pub use weights::Weights;
pub use write::{CONFIG_KEY, Precision, Values, write_checkpoint};
