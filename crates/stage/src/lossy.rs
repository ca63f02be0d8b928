//! Paths as JSON has them: text, whatever bytes a file system takes for a name.

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

/// One path or several.
pub trait Paths {
    /// Writes what is not Unicode as U+FFFD.
    ///
    /// # Errors
    /// The serializer's.
    fn serialize_lossy<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error>;
}

/// For serde's `serialize_with`: a path that is told to people, and by which nothing is found again. Left to itself serde
/// fails on names that are not Unicode.
///
/// # Errors
/// The serializer's.
pub fn lossy<P: Paths, S: Serializer>(paths: &P, serializer: S) -> Result<S::Ok, S::Error> {
    paths.serialize_lossy(serializer)
}

struct Lossy<'a>(&'a Path);

impl Serialize for Lossy<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_string_lossy())
    }
}

impl Paths for PathBuf {
    fn serialize_lossy<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Lossy(self).serialize(serializer)
    }
}

impl Paths for Option<PathBuf> {
    fn serialize_lossy<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.as_deref().map(Lossy).serialize(serializer)
    }
}

impl Paths for Vec<PathBuf> {
    fn serialize_lossy<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(|path| Lossy(path)))
    }
}
