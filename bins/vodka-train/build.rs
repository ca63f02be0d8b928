//! Gives this package's executables the run path to libtorch, and a stand-in that says what to type where it is missing.
//!
//! Cargo hands link arguments to no dependant, so each package that links libtorch carries this file; `cargo xtask
//! tidy` checks that the copies are equal.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Set by torch-sys; absent with `doc-only`, when nothing is linked.
    let Ok(libtorch) = env::var("DEP_TCH_LIBTORCH_LIB") else { return };
    println!("cargo:rustc-link-arg=-Wl,-rpath,{libtorch}");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", stand_in().display());
    }
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
