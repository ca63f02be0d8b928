//! From `--device` to a device that libtorch can use.

use std::path::{Path, PathBuf};

use tch::{Cuda, Device};

use crate::{Error, Result};

/// `cpu`, `cuda` or `cuda:N`, ready for use; `runtime_dir` is the folder that `cargo xtask setup` fills.
///
/// The program links the processor's half of libtorch alone. For a CUDA device this loads the other half, which must
/// happen before anything asks libtorch about CUDA: call it first. `cpu` loads and asks nothing.
///
/// # Errors
/// An unknown name; a libtorch that is installed without CUDA or does not load; no driver; no such device.
pub fn parse_device(text: &str, runtime_dir: &Path) -> Result<Device> {
    let Some(ordinal) = ordinal(text)? else { return Ok(Device::Cpu) };
    load_cuda(text, runtime_dir)?;
    crate::cuda::open();
    of_count(text, ordinal, Cuda::device_count())
}

/// The device of this number, where libtorch finds so many.
fn of_count(text: &str, ordinal: usize, count: i64) -> Result<Device> {
    if ordinal as i64 >= count {
        return Err(Error::DeviceCount { device: text.to_owned(), count });
    }
    Ok(Device::Cuda(ordinal))
}

/// Checks the name of a device, without asking whether there is one.
///
/// # Errors
/// An unknown name.
pub fn check_device_name(text: &str) -> Result<()> {
    ordinal(text).map(drop)
}

/// What the numbers depend on: `cuda:1` computes what `cuda` does; the processor rounds otherwise.
pub fn device_type(text: &str) -> &str {
    text.split(':').next().unwrap_or(text)
}

/// Which CUDA device is meant; `None` is the processor.
fn ordinal(text: &str) -> Result<Option<usize>> {
    let unknown = || Error::DeviceName { found: text.to_owned() };
    match text.split_once(':') {
        None if text == "cpu" => Ok(None),
        None if text == "cuda" => Ok(Some(0)),
        // libtorch numbers devices in eight bits.
        Some(("cuda", n)) => n.parse::<u8>().map(|n| Some(n.into())).map_err(|_| unknown()),
        _ => Err(unknown()),
    }
}

/// Opens the library that registers CUDA with libtorch, for as long as the program runs.
fn load_cuda(device: &str, runtime_dir: &Path) -> Result<()> {
    let path = runtime_dir.join("libtorch/lib").join(libloading::library_filename("torch_cuda"));
    // Where the link leads, the loader finds what the library itself needs beside it.
    let Ok(library) = path.canonicalize() else {
        return Err(Error::CudaMissing { device: device.to_owned(), path });
    };
    if cfg!(target_os = "linux") {
        keep(Path::new("libcuda.so.1"))
            .map_err(|source| Error::Driver { device: device.to_owned(), source })?;
    }
    keep(&library).map_err(|source| Error::CudaLibrary { path, source })
}

/// Opens a library with all its symbols visible to those that come later, and never closes it.
fn keep(path: &Path) -> Result<(), libloading::Error> {
    // SAFETY: the constructors of NVIDIA's driver and of libtorch are made to run at load time, on any thread.
    let library = unsafe { open(path.to_path_buf()) }?;
    std::mem::forget(library);
    Ok(())
}

#[cfg(unix)]
unsafe fn open(path: PathBuf) -> Result<libloading::os::unix::Library, libloading::Error> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: as for the caller.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }
}

#[cfg(not(unix))]
unsafe fn open(path: PathBuf) -> Result<libloading::Library, libloading::Error> {
    // SAFETY: as for the caller.
    unsafe { libloading::Library::new(path) }
}

#[cfg(test)]
mod tests {
    use std::{error::Error as _, fs};

    use super::*;

    fn said(device: &str, runtime_dir: &Path) -> String {
        parse_device(device, runtime_dir).unwrap_err().to_string()
    }

    #[test]
    fn the_processor_needs_no_runtime_folder() {
        assert_eq!(parse_device("cpu", Path::new("nowhere")).unwrap(), Device::Cpu);
    }

    #[test]
    fn no_more_devices_than_there_are() {
        assert_eq!(of_count("cuda:1", 1, 2).unwrap(), Device::Cuda(1));
        let said = of_count("cuda:2", 2, 2).unwrap_err().to_string();
        assert_eq!(said, "there is no device `cuda:2`: libtorch finds 2 CUDA devices");
    }

    #[test]
    fn unknown_names_are_errors() {
        for name in ["gpu", "cuda:", "cuda:-1", "cuda:256", "cuda:x", "cpu:0", "CUDA", ""] {
            let expected = format!("unknown device `{name}`, expected `cpu`, `cuda` or `cuda:N`");
            assert_eq!(said(name, Path::new("nowhere")), expected);
        }
        assert_eq!(ordinal("cuda").unwrap(), Some(0));
        assert_eq!(ordinal("cuda:7").unwrap(), Some(7));
    }

    #[test]
    fn a_libtorch_for_the_processor_says_what_to_type() {
        let text = said("cuda", Path::new("nowhere"));
        assert!(text.contains("nowhere/libtorch/lib/libtorch_cuda.so"), "{text}");
        assert!(text.contains("cargo xtask setup --gpu"), "{text}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_library_that_does_not_load_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let lib = dir.path().join("libtorch/lib");
        fs::create_dir_all(&lib).unwrap();
        fs::write(lib.join("libtorch_cuda.so"), "not a library").unwrap();
        let error = parse_device("cuda:1", dir.path()).unwrap_err();
        let cause = error.source().and_then(|open| open.source()).unwrap().to_string();
        match error {
            Error::Driver { .. } => {
                assert_eq!(
                    error.to_string(),
                    "the device `cuda:1` needs the NVIDIA driver, which does not load"
                );
                assert!(cause.contains("libcuda.so.1"), "{cause}");
            }
            Error::CudaLibrary { .. } => assert!(cause.contains("libtorch_cuda.so"), "{cause}"),
            other => panic!("{other}"),
        }
    }
}
