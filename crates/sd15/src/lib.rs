//! The networks of Stable Diffusion 1.x: CLIP text encoder, UNet, VAE; [`ControlNet`], which steers the UNet by a picture; and [`Rrdb`],
//! which makes pictures larger.
//!
//! The first three are driven by [`vodka_checkpoint::ModelConfig`], so that the full SD 1.5 and the tiny models of the tests
//! are the same code. Parameters carry the names that diffusers and transformers give them; [`Network::state`] hands
//! them out under the names of a single-file checkpoint.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use vodka_checkpoint::Checkpoint;
//! use vodka_sd15::{Network, StableDiffusion, parse_device};
//!
//! let device = parse_device("cuda", ".runtime".as_ref())?; // before anything else of tch
//! let checkpoint = Checkpoint::open("v1-5-pruned.safetensors")?;
//! let mut model = StableDiffusion::load(&checkpoint, device, tch::Kind::Half)?; // frozen
//! model.unet.unfreeze();
//! # Ok(())
//! # }
//! ```

pub mod attention;
pub mod clip;
pub mod control_net;
mod cuda;
mod device;
mod error;
mod failure;
pub mod layers;
pub mod memory;
mod model;
pub mod native;
mod network;
pub mod resnet;
pub mod rrdb;
mod tiled;
pub mod unet;
pub mod vae;

pub use clip::ClipTextModel;
pub use control_net::ControlNet;
pub use device::{check_device_name, device_type, parse_device};
pub use error::{Error, Result};
pub use failure::{catch, is_out_of_memory};
pub use model::StableDiffusion;
pub use network::{Network, Params, Source};
pub use rrdb::Rrdb;
pub use unet::UNet;
pub use vae::{Moments, Vae, VaeTiles};
