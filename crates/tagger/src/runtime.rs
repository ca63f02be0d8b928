//! ONNX Runtime: loaded once in a process, from an explicit path.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Mutex, PoisonError},
};

use ort::{
    environment::Environment,
    ep::{CUDA, ExecutionProviderDispatch, OpenVINO},
};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Where a model runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// ONNX Runtime's own kernels on the processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU; wants the libraries of `onnxruntime-gpu`.
    Cuda,
    /// Intel's OpenVINO; wants the libraries of `onnxruntime-openvino`.
    OpenVino,
}

impl Provider {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Cpu, Self::Cuda, Self::OpenVino];

    pub fn default_batch(self) -> usize { 1 }
    pub fn is_concurrent(self) -> bool { true }
    /// What to register with a session. `None` where the default is what is wanted.
    pub(crate) fn dispatch(self) -> Option<ExecutionProviderDispatch> {
        let provider = match self {
            Self::Cpu => return None,
            Self::Cuda => CUDA::default().build(),
            Self::OpenVino => OpenVINO::default().build(),
        };
        Some(provider.error_on_failure())
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::OpenVino => "openvino",
        })
    }
}

impl FromStr for Provider {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = || Self::ALL.map(|provider| provider.to_string()).join(", ");
        Self::ALL
            .into_iter()
            .find(|provider| provider.to_string() == text)
            .ok_or_else(|| Error::UnknownProvider { known: known(), found: text.to_owned() })
    }
}

/// The environment of this process, and the library it came from. It is never dropped: ort allows no second one.
static LOADED: Mutex<Option<(PathBuf, Environment)>> = Mutex::new(None);

/// The environment, made at the first call. Later calls must name the same library.
pub(crate) fn environment(library: &Path) -> Result<Environment> {
    let asked = library.canonicalize().map_err(|_| Error::NoRuntime { path: library.to_path_buf() })?;
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((loaded, environment)) = loaded.as_ref() {
        if *loaded != asked {
            return Err(Error::OtherRuntime { loaded: loaded.clone(), asked });
        }
        return Ok(environment.clone());
    }
    let failed = |source| Error::LoadRuntime { path: asked.clone(), source };
    let builder = ort::init_from(&asked).map_err(|error| failed(error.into()))?;
    let environment =
        builder.with_name("vodka").with_telemetry(false).build().map_err(|error| failed(Box::new(error)))?;
    *loaded = Some((asked, environment.clone()));
    Ok(environment)
}
