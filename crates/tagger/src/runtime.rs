//! ONNX Runtime: where a model can run, which library that takes, and that library loaded once in a process.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Mutex, PoisonError},
};

use ort::{
    environment::Environment,
    ep::{
        ArbitrarilyConfigurableExecutionProvider as _, CUDA, CoreML, DirectML, ExecutionProviderDispatch,
        OpenVINO, TensorRT,
    },
};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Where a model runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// ONNX Runtime's own kernels on the processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU; wants the libraries of `onnxruntime-gpu`.
    Cuda,
    /// An NVIDIA GPU through TensorRT; wants the libraries of `onnxruntime-gpu`, and TensorRT's own.
    TensorRt,
    /// Intel's OpenVINO on the processor; wants the libraries of `onnxruntime-openvino`.
    OpenVino,
    /// Any GPU of a Windows machine; wants the library of `onnxruntime-directml`.
    DirectMl,
    /// Apple's processors; in the library of `onnxruntime` for macOS.
    CoreMl,
}

impl Provider {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Cpu, Self::Cuda, Self::TensorRt, Self::OpenVino, Self::DirectMl, Self::CoreMl];

    /// Its name: `cpu`, `cuda`, `tensorrt`, `openvino`, `directml` or `coreml`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::TensorRt => "tensorrt",
            Self::OpenVino => "openvino",
            Self::DirectMl => "directml",
            Self::CoreMl => "coreml",
        }
    }

    /// What to do where it is not available.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Cpu | Self::OpenVino => "`cargo xtask setup` installs it on Linux x86-64",
            Self::Cuda => {
                "it takes an NVIDIA GPU with its driver, and the GPU build that `cargo xtask setup --gpu` installs"
            }
            Self::TensorRt => {
                "it takes an NVIDIA GPU with its driver, the GPU build that `cargo xtask setup --gpu` installs, and \
                 TensorRT 10 on the loader's path (LD_LIBRARY_PATH)"
            }
            Self::DirectMl => {
                "it is for Windows, with the onnxruntime.dll of the wheel `onnxruntime-directml`"
            }
            Self::CoreMl => "it is for macOS, with the libonnxruntime.dylib of the wheel `onnxruntime`",
        }
    }

    /// Whether one session may be run from several threads at a time.
    ///
    /// ONNX Runtime promises it of all but DirectML; ort's author has seen it go wrong, with GPUs above all. So it is
    /// done only with those that this crate's tests run so. The others lose little, for one batch fills a GPU.
    ///
    /// It is by chance that these are the ones of [`Provider::is_processor`]: that says where the work is done, and
    /// stays as it is when another provider has been tried.
    pub(crate) fn is_concurrent(self) -> bool {
        matches!(self, Self::Cpu | Self::OpenVino)
    }

    /// Whether it runs on the processor, and so shares the cores with what reads the pictures.
    pub fn is_processor(self) -> bool {
        matches!(self, Self::Cpu | Self::OpenVino)
    }

    /// How many pictures it is best given at once. A processor is fastest with one (the next layer finds what the last
    /// one made in the cache), a GPU wants to be filled.
    pub fn default_batch(self) -> usize {
        if self.is_processor() { 1 } else { 16 }
    }

    /// The name that ONNX Runtime has for it.
    pub(crate) fn onnx_name(self) -> &'static str {
        match self {
            Self::Cpu => "CPUExecutionProvider",
            Self::Cuda => "CUDAExecutionProvider",
            Self::TensorRt => "TensorrtExecutionProvider",
            Self::OpenVino => "OpenVINOExecutionProvider",
            Self::DirectMl => "DmlExecutionProvider",
            Self::CoreMl => "CoreMLExecutionProvider",
        }
    }

    /// What to register with a session of so many runs at a time on so many cores. Nothing where the default is what
    /// is wanted.
    pub(crate) fn dispatch(self, lanes: usize, threads: usize) -> Vec<ExecutionProviderDispatch> {
        let providers = match self {
            Self::Cpu => vec![],
            Self::Cuda => vec![CUDA::default().build()],
            // What TensorRT cannot run CUDA can.
            Self::TensorRt => vec![TensorRT::default().build(), CUDA::default().build()],
            Self::OpenVino => vec![openvino(lanes, threads)],
            Self::DirectMl => vec![DirectML::default().build()],
            Self::CoreMl => vec![CoreML::default().build()],
        };
        providers.into_iter().map(ExecutionProviderDispatch::error_on_failure).collect()
    }
}

/// OpenVINO on the processor in f32: left to itself it takes bf16 where the processor can.
fn openvino(lanes: usize, threads: usize) -> ExecutionProviderDispatch {
    OpenVINO::default()
        .with_device_type("CPU")
        .with_num_threads(threads)
        .with_arbitrary_config("num_streams", lanes)
        .with_precision("FP32")
        .build()
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Provider {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|provider| provider.name() == text).ok_or_else(|| Error::UnknownProvider {
            known: Self::ALL.map(Self::name).join(", "),
            found: text.to_owned(),
        })
    }
}

/// Where a model is to run: a provider by name, or the fastest there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum ProviderChoice {
    /// `auto`: CUDA where there is an NVIDIA GPU and the GPU build of ONNX Runtime; otherwise OpenVINO where it is
    /// installed, on x86-64; otherwise the processor.
    Auto,
    /// This one, or an error.
    Only(Provider),
}

impl ProviderChoice {
    /// The provider, and the ONNX Runtime library it takes, in the folder that `cargo xtask setup` fills:
    ///
    /// ```text
    /// onnxruntime/            the build for processors, or the one for NVIDIA GPUs
    /// onnxruntime-openvino/   the one with OpenVINO
    /// ```
    ///
    /// A provider by name gets its library's path whether it is installed or not: opening a model says what is missing.
    pub fn resolve(self, runtime: &Path) -> (Provider, PathBuf) {
        let provider = match self {
            Self::Only(provider) => provider,
            Self::Auto => fastest(runtime, has_nvidia_gpu()),
        };
        (provider, library(runtime, provider))
    }
}

fn fastest(runtime: &Path, has_nvidia_gpu: bool) -> Provider {
    if has_nvidia_gpu && has_gpu_build(&library(runtime, Provider::Cuda)) {
        Provider::Cuda
    } else if cfg!(target_arch = "x86_64") && library(runtime, Provider::OpenVino).is_file() {
        Provider::OpenVino
    } else {
        Provider::Cpu
    }
}

/// The library that serves a provider.
fn library(runtime: &Path, provider: Provider) -> PathBuf {
    let folder = if provider == Provider::OpenVino { "onnxruntime-openvino" } else { "onnxruntime" };
    runtime.join(folder).join(library_name("onnxruntime"))
}

fn library_name(stem: &str) -> String {
    format!("{}{stem}{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX)
}

/// Whether the kernels for CUDA lie beside the library, where that really is.
fn has_gpu_build(library: &Path) -> bool {
    library
        .canonicalize()
        .is_ok_and(|library| library.with_file_name(library_name("onnxruntime_providers_cuda")).is_file())
}

/// Whether the driver of an NVIDIA GPU is installed.
fn has_nvidia_gpu() -> bool {
    let driver =
        if cfg!(windows) { r"C:\Windows\System32\nvcuda.dll" } else { "/proc/driver/nvidia/version" };
    Path::new(driver).exists()
}

impl Default for ProviderChoice {
    fn default() -> Self {
        Self::Only(Provider::default())
    }
}

impl From<Provider> for ProviderChoice {
    fn from(provider: Provider) -> Self {
        Self::Only(provider)
    }
}

impl fmt::Display for ProviderChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Only(provider) => provider.fmt(f),
        }
    }
}

impl FromStr for ProviderChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text.parse().map(Self::Only).map_err(|error| match error {
                Error::UnknownProvider { known, found } => {
                    Error::UnknownProvider { known: format!("auto, {known}"), found }
                }
                other => other,
            }),
        }
    }
}

impl From<ProviderChoice> for String {
    fn from(choice: ProviderChoice) -> Self {
        choice.to_string()
    }
}

impl TryFrom<String> for ProviderChoice {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
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
    open_cuda(library.parent().unwrap_or(Path::new(""))).map_err(|error| failed(error.into()))?;
    let builder = ort::init_from(&asked).map_err(|error| failed(error.into()))?;
    let environment =
        builder.with_name("vodka").with_telemetry(false).build().map_err(|error| failed(Box::new(error)))?;
    *loaded = Some((asked, environment.clone()));
    Ok(environment)
}

/// Opens the CUDA libraries that set-up put beside the link to ONNX Runtime, in the order in which they need each other:
/// the kernels for CUDA name them, and have no path to where the wheels hold them. A test of bins/xtask/src/setup.rs
/// reads this list.
fn open_cuda(folder: &Path) -> Result<(), libloading::Error> {
    let names = [
        "libcudart.so.13",
        "libnvrtc.so.13",
        "libcublasLt.so.13",
        "libcublas.so.13",
        "libcurand.so.10",
        "libcufft.so.12",
        "libcudnn.so.9",
    ];
    // By their real paths, for they look beside themselves for more.
    let found = names.into_iter().filter_map(|name| folder.join(name).canonicalize().ok());
    found.into_iter().try_for_each(ort::util::preload_dylib)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for provider in Provider::ALL {
            assert_eq!(provider.name().parse::<Provider>().unwrap(), provider);
            assert_eq!(provider.name().parse::<ProviderChoice>().unwrap(), provider.into());
            assert_eq!(serde_json::to_value(provider).unwrap(), provider.name());
            assert_eq!(serde_json::to_value(ProviderChoice::Only(provider)).unwrap(), provider.name());
        }
        assert_eq!(serde_json::from_str::<ProviderChoice>("\"auto\"").unwrap(), ProviderChoice::Auto);
        assert_eq!(
            "gpu".parse::<ProviderChoice>().unwrap_err().to_string(),
            "expected an execution provider (auto, cpu, cuda, tensorrt, openvino, directml, coreml), found `gpu`"
        );
    }

    #[test]
    fn the_fastest_provider_is_the_best_that_is_installed() {
        let dir = tempfile::tempdir().unwrap();
        let install = |folder: &str, stem: &str| {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
            fs::write(dir.path().join(folder).join(library_name(stem)), "").unwrap();
        };
        assert_eq!(fastest(dir.path(), true), Provider::Cpu, "nothing is installed");
        install("onnxruntime", "onnxruntime");
        assert_eq!(fastest(dir.path(), true), Provider::Cpu, "the build for processors knows no GPU");
        install("onnxruntime-openvino", "onnxruntime");
        let on_x86 = if cfg!(target_arch = "x86_64") { Provider::OpenVino } else { Provider::Cpu };
        assert_eq!(fastest(dir.path(), true), on_x86);
        install("onnxruntime", "onnxruntime_providers_cuda");
        assert_eq!(fastest(dir.path(), true), Provider::Cuda);
        assert_eq!(fastest(dir.path(), false), on_x86, "no GPU, whatever is installed");
        let (provider, library) = ProviderChoice::Only(Provider::OpenVino).resolve(dir.path());
        assert_eq!(provider, Provider::OpenVino);
        assert!(library.is_file() && library.parent().unwrap().ends_with("onnxruntime-openvino"));
    }
}
