//! A program that finds no libtorch says what to type.

use std::{env, path::Path, process::Command};

#[test]
fn without_libtorch_a_program_says_what_to_type() {
    // The loader looks here before the run path, so that this very program finds the stand-ins only.
    let folder = Path::new(env!("OUT_DIR")).join("stand-in");
    let program = env::current_exe().unwrap();
    let output = Command::new(program).env("LD_LIBRARY_PATH", &folder).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        said,
        "error: libtorch is not where this program was built with it; type: cargo xtask setup\n"
    );
    assert_eq!(output.status.code(), Some(1));
}
