//! Installs libtorch and ONNX Runtime from pinned PyPI wheels into `.runtime/`.
//!
//! ```text
//! .runtime/site/                  the wheels, as pip unpacked them
//! .runtime/site-openvino/         one more, whose files have the names of another's
//! .runtime/libtorch/              lib and include, as torch-sys wants them: what LIBTORCH in .cargo/config.toml names
//! .runtime/onnxruntime/           libonnxruntime.so, and what it takes to use a GPU where one is set up
//! .runtime/onnxruntime-openvino/  libonnxruntime.so with OpenVINO
//! .runtime/manifest.json          what was installed, and the hashes of the libraries; written last
//! ```

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::{Deserialize, Serialize};
use vodka_stage::{ContentHash, hash_bytes, hash_file, remove_all, write_atomic};

use crate::{Result, process::say, root};

const TORCH_VERSION: &str = "2.11.0";
const CPU: &str = include_str!("../runtime-cpu.txt");
const GPU: &str = include_str!("../runtime-gpu.txt");
const OPENVINO: &str = include_str!("../runtime-openvino.txt");
/// What ONNX Runtime's kernels for CUDA need to load; the tagger opens them (crates/tagger/src/runtime.rs).
const CUDA_LIBRARIES: [&str; 7] = [
    "libcudart.so.13",
    "libnvrtc.so.13",
    "libcublasLt.so.13",
    "libcublas.so.13",
    "libcurand.so.10",
    "libcufft.so.12",
    "libcudnn.so.9",
];
/// The wheels that hold these, and what these need in turn.
const CUDA_WHEELS: [&str; 7] = [
    "nvidia-cublas",
    "nvidia-cuda-nvrtc",
    "nvidia-cuda-runtime",
    "nvidia-cudnn-cu13",
    "nvidia-cufft",
    "nvidia-curand",
    "nvidia-nvjitlink",
];
/// What libtorch_cpu needs to load, by the folder of the wheels that holds it.
const CPU_LIBRARIES: [(&str, &str); 5] = [
    ("torch/lib", "libtorch_cpu.so"),
    ("torch/lib", "libc10.so"),
    ("torch/lib", "libgomp.so.1"),
    ("nvidia/cu13/lib", "libcudart.so.13"),
    ("nvidia/cu13/lib", "libcupti.so.13"),
];

#[derive(Debug, Default, clap::Args)]
pub struct Options {
    /// Install what a processor needs (1.6 GB); the default where there is no NVIDIA GPU
    #[arg(long, conflicts_with = "gpu")]
    cpu: bool,
    /// Install the CUDA libraries as well (6 GB); the default where there is an NVIDIA GPU
    #[arg(long)]
    gpu: bool,
    /// Use the libtorch 2.11.0 in this folder (with lib/ and include/) instead of installing one
    #[arg(long, value_name = "DIR")]
    libtorch: Option<PathBuf>,
}

/// What `.runtime/manifest.json` says.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Manifest {
    /// The hash of the list of wheels.
    wheels: ContentHash,
    /// A libtorch that was there already, where one is used.
    libtorch: Option<PathBuf>,
    /// The libraries, relative to `.runtime`, and their content.
    libraries: BTreeMap<PathBuf, ContentHash>,
}

impl Manifest {
    /// Whether this version of the project would install these wheels, for whichever kind of machine.
    fn is_pinned(&self) -> bool {
        let own = self.libtorch.is_some();
        [false, true].into_iter().any(|gpu| hash_bytes(wanted(gpu, own)) == self.wheels)
    }
}

pub fn run(options: &Options) -> Result {
    let runtime = root().join(".runtime");
    let gpu = options.gpu || (!options.cpu && options.libtorch.is_none() && has_nvidia_gpu());
    let wheels = wanted(gpu, options.libtorch.is_some());
    let libtorch = options.libtorch.as_ref().map(|dir| check_libtorch(dir)).transpose()?;
    if let Some(manifest) = installed(&runtime) {
        let named = options.cpu || options.gpu || libtorch.is_some();
        let as_named = manifest.wheels == hash_bytes(&wheels) && manifest.libtorch == libtorch;
        if as_named || (!named && manifest.is_pinned()) {
            say(&format!(
                "set up already: {} libraries in .runtime/ are as installed",
                manifest.libraries.len()
            ));
            return Ok(());
        }
    }
    if libtorch.is_none() {
        check_platform()?;
    }
    say(
        "installing libtorch and ONNX Runtime with pip (a minute for a processor, some minutes for a GPU) ...",
    );
    install(&runtime, "site", &main_list(gpu, libtorch.is_some()))?;
    install(&runtime, "site-openvino", OPENVINO)?;
    lay_out(&runtime, gpu, libtorch.as_deref())?;
    let manifest = Manifest { wheels: hash_bytes(&wheels), libtorch, libraries: hash_libraries(&runtime)? };
    write_atomic(runtime.join("manifest.json"), serde_json::to_string_pretty(&manifest)?)?;
    say(&format!(
        "installed {} into .runtime/",
        if gpu { "libtorch with CUDA" } else { "libtorch for the processor" }
    ));
    Ok(())
}

/// All wheels; of those for `site` only what ONNX Runtime needs where libtorch is there already.
fn wanted(gpu: bool, only_onnxruntime: bool) -> String {
    main_list(gpu, only_onnxruntime) + OPENVINO
}

/// The wheels that go into `site`.
fn main_list(gpu: bool, only_onnxruntime: bool) -> String {
    let all = if gpu { GPU } else { CPU };
    let needed = |wheel: &str| wheel.starts_with("onnxruntime") || (gpu && CUDA_WHEELS.contains(&wheel));
    let keep = |line: &&str| !only_onnxruntime || line.split("==").next().is_some_and(needed);
    all.lines().filter(keep).map(|line| line.to_owned() + "\n").collect()
}

/// The manifest, if all that it names is there and unchanged.
fn installed(runtime: &Path) -> Option<Manifest> {
    let manifest: Manifest = serde_json::from_slice(&fs::read(runtime.join("manifest.json")).ok()?).ok()?;
    let unchanged =
        |(path, hash): (&PathBuf, &ContentHash)| hash_file(runtime.join(path)).ok().as_ref() == Some(hash);
    (!manifest.libraries.is_empty() && manifest.libraries.iter().all(unchanged)).then_some(manifest)
}

fn has_nvidia_gpu() -> bool {
    Path::new("/proc/driver/nvidia/version").exists()
}

fn check_platform() -> Result {
    let (system, processor) = (std::env::consts::OS, std::env::consts::ARCH);
    if (system, processor) == ("linux", "x86_64") {
        return Ok(());
    }
    Err(format!(
        "the pinned wheels are for Linux on x86_64, this is {system} on {processor}: install libtorch {TORCH_VERSION} \
         yourself and name it with `cargo xtask setup --libtorch DIR`, or set LIBTORCH; tagging, curating and merging \
         need none"
    )
    .into())
}

/// Whether a folder holds the libtorch that tch was made for.
fn check_libtorch(dir: &Path) -> Result<PathBuf> {
    let dir = dir.canonicalize().map_err(|error| format!("no libtorch at {}: {error}", dir.display()))?;
    for part in ["lib/libtorch_cpu.so", "lib/libc10.so", "include/torch/csrc/api/include/torch/torch.h"] {
        if !dir.join(part).exists() {
            return Err(format!("{} is no libtorch: {part} is missing", dir.display()).into());
        }
    }
    // The archives of pytorch.org have the first file, the wheels the second.
    let version = fs::read_to_string(dir.join("build-version"))
        .or_else(|_| fs::read_to_string(dir.join("version.py")))
        .map_err(|error| format!("cannot tell the version of {}: {error}", dir.display()))?;
    if version.contains(TORCH_VERSION) {
        return Ok(dir);
    }
    let found = version.lines().next().unwrap_or_default();
    Err(format!("{} is libtorch {found}, expected {TORCH_VERSION}", dir.display()).into())
}

/// Has pip unpack the wheels beside their place, and moves them there whole.
fn install(runtime: &Path, name: &str, wheels: &str) -> Result {
    let partial = runtime.join(format!("{name}.partial"));
    remove_all(&partial)?;
    fs::create_dir_all(runtime).map_err(|error| format!("cannot create {}: {error}", runtime.display()))?;
    let list = runtime.join("wheels.txt");
    write_atomic(&list, wheels)?;
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--require-hashes",
    ]);
    pip.args(["--only-binary=:all:", "--implementation", "cp", "--python-version", "3.12"]);
    for abi in ["cp312", "abi3", "none"] {
        pip.args(["--abi", abi]);
    }
    for glibc in 5..=28 {
        pip.args(["--platform", &format!("manylinux_2_{glibc}_x86_64")]);
    }
    for old in ["manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64"] {
        pip.args(["--platform", old]);
    }
    pip.arg("--target").arg(&partial).arg("--requirement").arg(&list);
    let output = pip.stdin(Stdio::null()).output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "python3 is not installed: install Python 3 with pip".to_owned(),
        _ => format!("cannot run python3: {error}"),
    })?;
    if !output.status.success() {
        return Err(why_pip_failed(&String::from_utf8_lossy(&output.stderr)).into());
    }
    let site = runtime.join(name);
    remove_all(&site)?;
    fs::rename(&partial, &site).map_err(|error| format!("cannot move {}: {error}", partial.display()))?;
    fs::remove_file(&list).map_err(|error| format!("cannot remove {}: {error}", list.display()).into())
}

/// One line for what pip says in many.
fn why_pip_failed(stderr: &str) -> String {
    let last = stderr.lines().rev().find(|line| line.contains("ERROR")).or_else(|| stderr.lines().last());
    let last = last.unwrap_or("no message").trim().to_owned();
    let has = |words: &[&str]| words.iter().any(|word| stderr.contains(word));
    let cause = if has(&["No module named pip"]) {
        "pip is not installed: install python3-pip"
    } else if has(&["No space left", "Disk quota exceeded"]) {
        "the disk is full: libtorch needs 1.6 GB for a processor, 6 GB for a GPU, and pip as much again for a moment"
    } else if has(&["THESE PACKAGES DO NOT MATCH THE HASHES"]) {
        "a wheel is not the one that was pinned: a proxy or a mirror changed it"
    } else if has(&["Connection", "Temporary failure", "timed out", "Max retries", "ProxyError"]) {
        "pip cannot reach PyPI: check the network, or name a libtorch with --libtorch DIR"
    } else if has(&["Permission denied", "Read-only file system"]) {
        "the folder .runtime/ cannot be written to"
    } else {
        "pip failed"
    };
    format!("{cause} ({last})")
}

/// Makes the folders of links.
fn lay_out(runtime: &Path, gpu: bool, own_libtorch: Option<&Path>) -> Result {
    let site = runtime.join("site");
    let libtorch = runtime.join("libtorch");
    remove_all(&libtorch)?;
    match own_libtorch {
        Some(dir) => link(dir, &libtorch)?,
        None => {
            fs::create_dir_all(libtorch.join("lib"))?;
            let libraries = if gpu { gpu_libraries(&site)? } else { cpu_libraries(&site) };
            for library in libraries {
                link(&library, &libtorch.join("lib").join(file_name(&library)))?;
            }
            if !gpu {
                link(Path::new("libtorch_cpu.so"), &libtorch.join("lib/libtorch.so"))?;
            }
            link(&site.join("torch/include"), &libtorch.join("include"))?;
        }
    }
    let mut cuda = if gpu { cuda_libraries(&site)? } else { vec![] };
    cuda.retain(|library| CUDA_LIBRARIES.contains(&&*file_name(library)));
    lay_out_onnxruntime(runtime, "onnxruntime", &site, &cuda)?;
    lay_out_onnxruntime(runtime, "onnxruntime-openvino", &runtime.join("site-openvino"), &[])
}

/// Links to the library itself, which finds its providers where it really lies, and to what these need.
fn lay_out_onnxruntime(runtime: &Path, name: &str, site: &Path, needed: &[PathBuf]) -> Result {
    let folder = runtime.join(name);
    remove_all(&folder)?;
    fs::create_dir_all(&folder)?;
    let found = shared_objects(&site.join("onnxruntime/capi"))?;
    let library = found.iter().find(|path| file_name(path).starts_with("libonnxruntime.so"));
    let library = library.ok_or_else(|| format!("the wheel of {name} holds no libonnxruntime.so"))?;
    link(library, &folder.join("libonnxruntime.so"))?;
    needed.iter().try_for_each(|library| link(library, &folder.join(file_name(library))))
}

fn file_name(path: &Path) -> String {
    path.file_name().expect("a library has a name").to_string_lossy().into_owned()
}

fn cpu_libraries(site: &Path) -> Vec<PathBuf> {
    CPU_LIBRARIES.iter().map(|(folder, name)| site.join(folder).join(name)).collect()
}

/// Every library of torch and of the CUDA wheels, which find each other in one folder.
fn gpu_libraries(site: &Path) -> Result<Vec<PathBuf>> {
    let mut libraries = shared_objects(&site.join("torch/lib"))?;
    libraries.extend(cuda_libraries(site)?);
    Ok(libraries)
}

/// Every library of the CUDA wheels.
fn cuda_libraries(site: &Path) -> Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    let nvidia = site.join("nvidia");
    let folders =
        fs::read_dir(&nvidia).map_err(|error| format!("cannot read {}: {error}", nvidia.display()))?;
    for folder in folders {
        let lib = folder?.path().join("lib");
        if lib.is_dir() {
            libraries.extend(shared_objects(&lib)?);
        }
    }
    Ok(libraries)
}

fn shared_objects(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(folder).map_err(|error| format!("cannot read {}: {error}", folder.display()))?;
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.map(|e| e.path())).collect::<io::Result<_>>()?;
    found.retain(|path| path.to_string_lossy().contains(".so"));
    found.sort();
    Ok(found)
}

/// The hash of every library that the folders link to.
fn hash_libraries(runtime: &Path) -> Result<BTreeMap<PathBuf, ContentHash>> {
    let mut hashes = BTreeMap::new();
    for folder in ["libtorch/lib", "onnxruntime", "onnxruntime-openvino"] {
        for path in shared_objects(&runtime.join(folder))? {
            let relative = path.strip_prefix(runtime).expect("it lies below").to_path_buf();
            hashes.insert(relative, hash_file(&path)?);
        }
    }
    Ok(hashes)
}

/// A link by relative path where target and link lie in one tree, so that the checkout can be moved.
fn link(target: &Path, at: &Path) -> Result {
    let folder = at.parent().expect("a link lies in a folder");
    let shared = folder.ancestors().find(|ancestor| ancestor.ends_with(".runtime"));
    let relative = shared.and_then(|shared| {
        let below = target.strip_prefix(shared).ok()?;
        let up = folder.strip_prefix(shared).ok()?.components().count();
        Some((0..up).map(|_| "..").collect::<PathBuf>().join(below))
    });
    #[cfg(unix)]
    std::os::unix::fs::symlink(relative.as_deref().unwrap_or(target), at)
        .map_err(|error| format!("cannot link {}: {error}", at.display()))?;
    #[cfg(not(unix))]
    let _ = relative;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_pip_fails_has_its_line() {
        for (stderr, expected) in [
            ("/usr/bin/python3: No module named pip", "pip is not installed"),
            (
                "x\nERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
                "disk is full",
            ),
            ("WARNING: Retrying\nERROR: Max retries exceeded", "cannot reach PyPI"),
            (
                "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE",
                "not the one that was pinned",
            ),
            ("ERROR: something new", "pip failed (ERROR: something new)"),
        ] {
            let line = why_pip_failed(stderr);
            assert!(line.contains(expected) && !line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn a_folder_that_is_no_libtorch_is_refused_with_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |dir: &Path| check_libtorch(dir).unwrap_err().to_string();
        assert!(refused(dir.path()).contains("lib/libtorch_cpu.so is missing"));
        for file in ["lib/libtorch_cpu.so", "lib/libc10.so", "include/torch/csrc/api/include/torch/torch.h"] {
            write_atomic(dir.path().join(file), "").unwrap();
        }
        write_atomic(dir.path().join("build-version"), "2.4.0+cpu\n").unwrap();
        assert!(refused(dir.path()).ends_with("is libtorch 2.4.0+cpu, expected 2.11.0"));
        write_atomic(dir.path().join("build-version"), "2.11.0+cpu\n").unwrap();
        assert!(check_libtorch(dir.path()).is_ok());
    }

    #[test]
    fn every_wheel_is_pinned_by_version_and_hash() {
        for line in
            CPU.lines().chain(GPU.lines()).chain(OPENVINO.lines()).filter(|line| !line.starts_with('#'))
        {
            assert!(line.contains("==") && line.contains(" --hash=sha256:"), "{line}");
        }
        assert!(
            CPU.contains(&format!("torch=={TORCH_VERSION}"))
                && GPU.contains(&format!("torch=={TORCH_VERSION}"))
        );
        assert_eq!(main_list(false, true).lines().count(), 1);
        let beside_own = main_list(true, true);
        for wheel in CUDA_WHEELS.iter().chain(&["onnxruntime-gpu"]) {
            assert!(beside_own.contains(&format!("{wheel}==")), "{wheel}");
        }
        assert!(!beside_own.contains("torch==") && beside_own.lines().count() == CUDA_WHEELS.len() + 1);
    }

    #[test]
    fn the_gpu_build_gets_its_libraries_beside_one_s_own_libtorch_too() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(".runtime").join(name);
        for site in ["site", "site-openvino"] {
            write_atomic(at(site).join("onnxruntime/capi/libonnxruntime.so.1"), "code").unwrap();
        }
        for name in CUDA_LIBRARIES {
            write_atomic(at("site/nvidia/cu13/lib").join(name), "code").unwrap();
        }
        write_atomic(at("site/nvidia/cu13/lib/libnvJitLink.so.13"), "code").unwrap();
        let own = dir.path().join("libtorch");
        write_atomic(own.join("lib/libc10.so"), "code").unwrap();
        lay_out(&at(""), true, Some(&own)).unwrap();
        let linked = |folder: &str| shared_objects(&at(folder)).unwrap().len();
        assert_eq!((linked("libtorch/lib"), linked("onnxruntime")), (1, 1 + CUDA_LIBRARIES.len()));
        for path in shared_objects(&at("onnxruntime")).unwrap() {
            assert_eq!(fs::read_to_string(&path).unwrap(), "code", "{}", path.display());
        }
        lay_out(&at(""), false, Some(&own)).unwrap();
        assert_eq!(linked("onnxruntime"), 1);
    }

    #[test]
    fn the_tagger_opens_what_is_linked() {
        let tagger = include_str!("../../../crates/tagger/src/runtime.rs");
        let start = tagger.find("fn open_cuda").unwrap();
        let list = tagger[start..].split_once("let names = [").unwrap().1.split_once(']').unwrap().0;
        let names: Vec<&str> = list.split(',').map(|name| name.trim().trim_matches('"')).collect();
        assert_eq!(names[..names.len() - 1], CUDA_LIBRARIES, "one list is not the other");
    }

    #[test]
    fn a_changed_library_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let onnxruntime = ["onnxruntime/libonnxruntime.so", "onnxruntime-openvino/libonnxruntime.so"];
        for name in onnxruntime.into_iter().chain(["libtorch/lib/libc10.so"]) {
            write_atomic(at(name), "code").unwrap();
        }
        let libraries = hash_libraries(dir.path()).unwrap();
        assert_eq!(libraries.len(), 3);
        let manifest = Manifest { wheels: hash_bytes(CPU), libtorch: None, libraries };
        write_atomic(at("manifest.json"), serde_json::to_string(&manifest).unwrap()).unwrap();
        assert_eq!(installed(dir.path()), Some(manifest));
        write_atomic(at("libtorch/lib/libc10.so"), "cod").unwrap();
        assert_eq!(installed(dir.path()), None, "an interrupted or damaged install is made again");
    }
}
