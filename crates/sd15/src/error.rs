//! What can go wrong between a checkpoint, a device and the networks.

use std::{error, path::PathBuf};

use tch::TchError;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a model cannot be built, or a device cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] vodka_checkpoint::Error),
    /// Weights that are in no checkpoint cannot be had.
    #[error(transparent)]
    Weights(Box<dyn error::Error + Send + Sync>),
    /// A tensor of the checkpoint has another shape than the configuration says.
    #[error("`{name}` has the shape {found:?}, expected {expected:?}")]
    Shape {
        /// The tensor's diffusers name.
        name: String,
        /// The shape that the network needs.
        expected: Vec<i64>,
        /// The shape that the file has.
        found: Vec<i64>,
    },
    /// A tensor is stored as something that is no number of ours.
    #[error("`{name}` is stored as {found}, expected F16, BF16, F32 or F64")]
    Dtype {
        /// The tensor's LDM name.
        name: String,
        /// The stored type.
        found: String,
    },
    /// libtorch cannot hold or convert a tensor: most often the device is full.
    #[error("cannot bring `{name}` to the device {device}")]
    Upload {
        /// The tensor's name.
        name: String,
        /// The device.
        device: String,
        /// What libtorch says.
        source: TchError,
    },
    /// A tensor cannot be brought back from its device.
    #[error("cannot copy `{name}` from its device")]
    Download {
        /// The tensor's LDM name.
        name: String,
        /// What libtorch says.
        source: TchError,
    },
    /// No device has this name.
    #[error("unknown device `{found}`, expected `cpu`, `cuda` or `cuda:N`")]
    DeviceName {
        /// What was asked for.
        found: String,
    },
    /// The installed libtorch is for the processor only.
    #[error("the device `{device}` needs `{path}`, which is not installed (type: cargo xtask setup --gpu)")]
    CudaMissing {
        /// What was asked for.
        device: String,
        /// Where the library should be.
        path: PathBuf,
    },
    /// libtorch's CUDA half does not load.
    #[error("cannot load `{path}` (type: cargo xtask setup --gpu)")]
    CudaLibrary {
        /// The library.
        path: PathBuf,
        /// What the dynamic loader says.
        source: libloading::Error,
    },
    /// There is no NVIDIA driver on this machine.
    #[error("the device `{device}` needs the NVIDIA driver, which does not load")]
    Driver {
        /// What was asked for.
        device: String,
        /// What the dynamic loader says.
        source: libloading::Error,
    },
    /// The driver is there, but not as many devices.
    #[error("there is no device `{device}`: libtorch finds {count} CUDA devices")]
    DeviceCount {
        /// What was asked for.
        device: String,
        /// How many there are; 0 also where the driver is too old for CUDA 13.
        count: i64,
    },
}

impl Error {
    /// What [`Weights::tensor`](vodka_checkpoint::Weights::tensor) says.
    pub(crate) fn of_weights(error: Box<dyn error::Error + Send + Sync>) -> Self {
        error.downcast().map_or_else(Self::Weights, |error| Self::Checkpoint(*error))
    }
}
