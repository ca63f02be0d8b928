//! Where things lie that no argument names: the native libraries, and what is remembered between runs.

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

/// The file in the user's cache folder in which the hashes of files are remembered, by path, size and time of change.
pub fn hash_cache() -> Option<PathBuf> {
    let folder = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = folder("XDG_CACHE_HOME").or_else(|| folder("LOCALAPPDATA"));
    let cache = cache.or_else(|| folder("HOME").map(|home| home.join(".cache")));
    cache.map(|cache| cache.join("vodka/hashes.json"))
}
