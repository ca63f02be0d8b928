//! Test support: finds fixtures, and compares numbers with a golden's within its stated tolerance.
//!
//! A case is a folder `fixtures/<crate>/<case>/` with `generate.py`, `case.toml` and `golden.safetensors`:
//!
//! ```toml
//! [tolerance.output]
//! max_abs = 1e-4
//! why = "fp32 sums in another order"
//! ```

mod events;
mod models;

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

pub use events::event_values;
pub use models::{MODELS, compose_control_net, compose_demo_model, compose_model, model};

/// A file or folder below `fixtures/`.
///
/// # Panics
/// When it is not there.
pub fn fixture(path: &str) -> PathBuf {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(path);
    assert!(found.exists(), "no fixture at {}", found.display());
    found.canonicalize().expect("it exists")
}

/// The folder of the native libraries that `cargo xtask setup` made.
pub fn runtime_dir() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.runtime");
    env::var_os("VODKA_RUNTIME").map_or_else(default, PathBuf::from)
}

/// The ONNX Runtime library that `cargo xtask setup` installed.
pub fn onnxruntime() -> PathBuf {
    let name = format!("{}onnxruntime{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
    runtime_dir().join("onnxruntime").join(name)
}

/// Numbers with their shape, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// The extent of each axis.
    pub shape: Vec<usize>,
    /// The elements, the last axis fastest.
    pub data: Vec<f32>,
}

/// How far a result may lie from its golden, and why that far.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tolerance {
    /// The largest absolute difference allowed of any element.
    pub max_abs: f64,
    /// The largest mean absolute difference allowed; no limit of its own where absent.
    pub mean_abs: Option<f64>,
    /// Why it is not zero.
    pub why: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseFile {
    tolerance: BTreeMap<String, Tolerance>,
}

/// A golden case: the tensors an original implementation made, and how near we must come.
#[derive(Debug)]
pub struct Case {
    path: PathBuf,
    golden: Vec<u8>,
    tolerance: BTreeMap<String, Tolerance>,
}

impl Case {
    /// Opens `fixtures/<path>`.
    ///
    /// # Panics
    /// When a file is missing or malformed.
    pub fn open(path: &str) -> Self {
        let path = fixture(path);
        let text = fs::read_to_string(path.join("case.toml")).expect("a case has a case.toml");
        let file: CaseFile = toml::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let golden = fs::read(path.join("golden.safetensors")).expect("a case has a golden.safetensors");
        Self { path, golden, tolerance: file.tolerance }
    }

    /// The case's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors in the golden.
    pub fn names(&self) -> Vec<String> {
        self.tensors().names().into_iter().map(ToOwned::to_owned).collect()
    }

    /// A tensor of the golden as f32, whatever its stored type (f32, f64, i64, u8).
    ///
    /// # Panics
    /// When it is not there.
    pub fn array(&self, name: &str) -> Array {
        let tensors = self.tensors();
        let view = tensors.tensor(name).unwrap_or_else(|e| panic!("{}: {name}: {e}", self.path.display()));
        let bytes = view.data();
        let data = match view.dtype() {
            Dtype::F32 => {
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("a chunk"))).collect()
            }
            Dtype::F64 => bytes
                .chunks_exact(8)
                .map(|b| f64::from_le_bytes(b.try_into().expect("a chunk")) as f32)
                .collect(),
            Dtype::I64 => bytes
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes(b.try_into().expect("a chunk")) as f32)
                .collect(),
            Dtype::U8 => bytes.iter().map(|b| f32::from(*b)).collect(),
            other => panic!("{}: {name}: goldens are not stored as {other:?}", self.path.display()),
        };
        Array { shape: view.shape().to_vec(), data }
    }

    /// Compares `actual` with the golden tensor `name`, within the tolerance stated under the same name, or under the
    /// part of the name before the first `/`.
    ///
    /// # Panics
    /// When the shapes differ, or the difference is too large: with the place and both values.
    pub fn check(&self, name: &str, actual: &[f32], shape: &[usize]) {
        let group = name.split('/').next().unwrap_or(name);
        let tolerance = self.tolerance.get(name).or_else(|| self.tolerance.get(group));
        let tolerance =
            tolerance.unwrap_or_else(|| panic!("{}: no tolerance for {name}", self.path.display()));
        let golden = self.array(name);
        assert_eq!(shape, golden.shape, "{}: {name}: shape", self.path.display());
        let label = format!("{}: {name}", self.path.display());
        assert_close(&label, actual, &golden.data, tolerance);
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.golden).unwrap_or_else(|e| panic!("{}: {e}", self.path.display()))
    }
}

/// Compares two slices element by element.
///
/// # Panics
/// When the difference is larger than the tolerance, or a value is not finite.
pub fn assert_close(label: &str, actual: &[f32], expected: &[f32], tolerance: &Tolerance) {
    assert_eq!(actual.len(), expected.len(), "{label}: length");
    let mut worst = (0, 0.0_f64);
    let mut sum = 0.0;
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        let difference = (f64::from(*a) - f64::from(*e)).abs();
        assert!(difference.is_finite(), "{label}: [{i}] is {a}, expected {e}");
        sum += difference;
        if difference > worst.1 {
            worst = (i, difference);
        }
    }
    let (i, difference) = worst;
    assert!(
        difference <= tolerance.max_abs,
        "{label}: [{i}] is {}, expected {}: differs by {difference:e}, allowed {:e} ({})",
        actual[i],
        expected[i],
        tolerance.max_abs,
        tolerance.why
    );
    let mean = sum / actual.len().max(1) as f64;
    let allowed = tolerance.mean_abs.unwrap_or(f64::INFINITY);
    assert!(mean <= allowed, "{label}: the mean difference is {mean:e}, allowed {allowed:e}");
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Tolerance = Tolerance { max_abs: 1.0, mean_abs: Some(0.5), why: String::new() };

    #[test]
    fn near_is_near_enough() {
        assert_close("x", &[1.0, 2.0], &[1.5, 1.5], &ONE);
    }

    #[test]
    fn far_or_not_finite_or_off_on_average_is_not() {
        for actual in [[3.0, 2.0], [f32::NAN, 2.0], [1.9, 2.9]] {
            assert!(std::panic::catch_unwind(|| assert_close("x", &actual, &[1.0, 2.0], &ONE)).is_err());
        }
    }
}
