//! Gives this package's executables the run path to libtorch, and a stand-in that says what to type where it is missing.
//!
//! Cargo hands link arguments to no dependant, so each package that links libtorch carries this file; `cargo xtask
//! tidy` checks that the copies are equal.

use std::{
    env,
    path::{Path, PathBuf},
};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Set by torch-sys; absent with `doc-only`, when nothing is linked.
    let Ok(libtorch) = env::var("DEP_TCH_LIBTORCH_LIB") else { return };
    println!("cargo:rustc-link-arg=-Wl,-rpath,{libtorch}");
    native(Path::new(&libtorch));
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", stand_in().display());
    }
}

/// Builds what the package has in C++ against libtorch, if anything.
fn native(libtorch: &Path) {
    let folder = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("native");
    if !folder.join("torch.cpp").exists() {
        return;
    }
    println!("cargo:rerun-if-changed={}", folder.display());
    let include = libtorch.with_file_name("include");
    let build = |level, file: &str| {
        let mut build = cc::Build::new();
        build
            .cpp(true)
            .std("c++17")
            .opt_level(level)
            .warnings(false)
            .flag("-Wno-psabi")
            .flag("-fno-math-errno");
        for folder in [include.join("torch/csrc/api/include"), include.clone()] {
            build.flag("-isystem").flag(folder);
        }
        build.file(folder.join(file)).compile(file.trim_end_matches(".cpp"));
    };
    build(1, "torch.cpp");
    build(3, "attention.cpp");
    let library = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it")).join("vodka_cuda.so");
    if !cuda(&folder, &include, &library) {
        // The program does without.
        std::fs::write(&library, "").expect("the output folder is ours");
    }
}

/// Builds what needs libtorch's half for CUDA as a library of its own, of which that half is no part; whether it worked.
fn cuda(folder: &Path, include: &Path, library: &Path) -> bool {
    // .runtime/site/torch/include, beside which the headers of the CUDA runtime are.
    let site =
        include.canonicalize().ok().and_then(|include| Some(include.ancestors().nth(2)?.to_path_buf()));
    let Some(headers) = site.map(|site| site.join("nvidia/cu13/include")).filter(|path| path.exists()) else {
        return false;
    };
    let mut command = cc::Build::new().cpp(true).get_compiler().to_command();
    command.args(["-std=c++17", "-O1", "-shared", "-fPIC", "-w"]).arg("-I").arg(folder.join("without_nvcc"));
    for folder in [include.join("torch/csrc/api/include").as_path(), include, &headers] {
        command.arg("-isystem").arg(folder);
    }
    let built = command.arg("-o").arg(library).arg(folder.join("cuda.cpp")).output();
    built.is_ok_and(|output| output.status.success())
}

/// Builds the stand-ins for libtorch's two libraries, which come after the real ones on the run path.
fn stand_in() -> PathBuf {
    let source = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"))
        .join("../../crates/sd15/native/stand_in.c");
    let folder = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it")).join("stand-in");
    std::fs::create_dir_all(&folder).expect("the output folder is ours");
    println!("cargo:rerun-if-changed={}", source.display());
    let mut command = cc::Build::new().get_compiler().to_command();
    command.args(["-shared", "-fPIC", "-O1", "-nostdlib", "-fno-stack-protector", "-o"]);
    let status =
        command.arg(folder.join("libtorch_cpu.so")).arg(&source).status().expect("the C compiler runs");
    assert!(status.success(), "the C compiler failed on {}", source.display());
    std::fs::copy(folder.join("libtorch_cpu.so"), folder.join("libc10.so"))
        .expect("the output folder is ours");
    folder
}
