//! Where `cargo xtask setup` put the native libraries.

use std::{
    env,
    path::{Path, PathBuf},
};

/// The folder `.runtime`: `$VODKA_RUNTIME`; or the nearest above the executable; or that of the checkout it was built in.
pub fn runtime_dir() -> PathBuf {
    if let Some(dir) = env::var_os("VODKA_RUNTIME") {
        return dir.into();
    }
    let executable = env::current_exe().unwrap_or_default();
    let beside = executable.ancestors().map(|folder| folder.join(".runtime")).find(|dir| dir.is_dir());
    beside.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.runtime"))
}
