//! What to merge.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use vodka_checkpoint::Precision;
use vodka_stage::{RunKey, read_toml};

use crate::{Error, Method, Result};

/// A merge as a user writes it. Paths are single `.safetensors` files or diffusers folders.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeConfig {
    /// How the parents become one.
    pub method: Method,
    /// The parent that the result keeps where nothing is merged.
    pub a: PathBuf,
    /// The parent that is mixed in, or whose difference from C is added.
    pub b: PathBuf,
    /// What B is compared with; for add difference only.
    pub c: Option<PathBuf>,
    /// The share of B, or how much of the difference is added.
    pub multiplier: f64,
    /// The file to write.
    pub output: PathBuf,
    /// The element type of the result; where absent, fp16 if A has nothing wider, else fp32.
    pub precision: Option<Precision>,
    /// Where the VAE comes from.
    #[serde(default)]
    pub vae: VaePolicy,
}

/// Where the result's VAE comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VaePolicy {
    /// From A, as it is.
    #[default]
    A,
    /// Merged like the rest, as A1111 does.
    Merge,
}

/// A merge whose settings have been checked; the parents have not been opened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MergePlan {
    /// How the parents become one.
    pub method: Method,
    /// The first parent.
    pub a: PathBuf,
    /// The second parent.
    pub b: PathBuf,
    /// The third parent, for add difference.
    pub c: Option<PathBuf>,
    /// The share of B, or how much of the difference is added.
    pub multiplier: f64,
    /// The file to write.
    pub output: PathBuf,
    /// The element type of the result; that of A where absent.
    pub precision: Option<Precision>,
    /// Where the VAE comes from.
    pub vae: VaePolicy,
}

impl MergeConfig {
    /// Reads a recipe: the fields of this configuration as TOML. Relative paths start at the current folder.
    ///
    /// # Errors
    /// An unknown key, with its line and the nearest known one; a wrong value.
    pub fn read(path: &Path) -> Result<Self> {
        Ok(read_toml(path)?)
    }

    /// Checks what can be checked without opening the parents.
    ///
    /// # Errors
    /// A multiplier outside 0 to 1 for a weighted sum, or not finite; a third parent where none belongs, or none where
    /// one does; an output that is an input, or does not end in `.safetensors`.
    pub fn plan(&self) -> Result<MergePlan> {
        let found = self.multiplier;
        match (self.method, &self.c) {
            (Method::WeightedSum, Some(path)) => return Err(Error::UnusedC { path: path.clone() }),
            (Method::AddDifference, None) => return Err(Error::NoC),
            (Method::WeightedSum, None) if !(0.0..=1.0).contains(&found) => {
                return Err(Error::Multiplier { found, expected: "0 (all A) to 1 (all B)" });
            }
            _ if !found.is_finite() => return Err(Error::Multiplier { found, expected: "a finite number" }),
            _ => {}
        }
        let path = self.output.clone();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            return Err(Error::OutputName { path });
        }
        if [Some(&self.a), Some(&self.b), self.c.as_ref()]
            .into_iter()
            .flatten()
            .any(|input| same_file(input, &path))
        {
            return Err(Error::OutputIsInput { path });
        }
        Ok(MergePlan {
            method: self.method,
            a: self.a.clone(),
            b: self.b.clone(),
            c: self.c.clone(),
            multiplier: self.multiplier,
            output: path,
            precision: self.precision,
            vae: self.vae,
        })
    }
}

impl MergePlan {
    /// All that the result depends on. The parents' names are part of it, since the result's metadata holds them.
    pub fn key(&self) -> Result<RunKey> {
        let names: Vec<_> = self.parents().map(|(_, path)| name(path)).collect();
        let settings = json!({
            "method": self.method,
            "multiplier": self.multiplier,
            "precision": self.precision,
            "vae": self.vae,
            "names": names,
        });
        let key = RunKey::new("merge", &settings, None);
        self.parents().try_fold(key, |key, (letter, path)| Ok(key.input(letter, path, |_| true)?))
    }

    /// The parents by their letters.
    pub(crate) fn parents(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let c = self.c.as_deref().map(|path| ("c", path));
        [("a", self.a.as_path()), ("b", self.b.as_path())].into_iter().chain(c)
    }
}

/// The file's or folder's own name.
pub(crate) fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Whether both paths lead to one file, by whatever links.
fn same_file(a: &Path, b: &Path) -> bool {
    match (fs::canonicalize(a), fs::canonicalize(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> MergeConfig {
        MergeConfig {
            method: Method::WeightedSum,
            a: "a.safetensors".into(),
            b: "b.safetensors".into(),
            c: None,
            multiplier: 0.5,
            output: "out.safetensors".into(),
            precision: None,
            vae: VaePolicy::A,
        }
    }

    #[test]
    fn wrong_settings_are_told_apart() {
        let said = |change: &dyn Fn(&mut MergeConfig)| {
            let mut config = config();
            change(&mut config);
            config.plan().unwrap_err().to_string()
        };
        assert_eq!(said(&|c| c.multiplier = 50.0), "multiplier is 50, expected 0 (all A) to 1 (all B)");
        assert_eq!(said(&|c| c.multiplier = f64::NAN), "multiplier is NaN, expected 0 (all A) to 1 (all B)");
        assert_eq!(
            said(&|c| c.c = Some("c.safetensors".into())),
            "weighted-sum takes two checkpoints, found a third: `c.safetensors`"
        );
        assert_eq!(
            said(&|c| c.method = Method::AddDifference),
            "add-difference needs a third checkpoint: A + multiplier * (B - C)"
        );
        assert_eq!(
            said(&|c| c.output = "out.ckpt".into()),
            "the output `out.ckpt` does not end in .safetensors"
        );
        assert_eq!(
            said(&|c| c.output = "b.safetensors".into()),
            "the output `b.safetensors` is one of the inputs"
        );
    }

    #[cfg(unix)]
    #[test]
    fn an_output_that_is_a_link_to_an_input_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (a, link) = (dir.path().join("a.safetensors"), dir.path().join("link.safetensors"));
        fs::write(&a, "").unwrap();
        std::os::unix::fs::symlink(&a, &link).unwrap();
        let error = MergeConfig { a, output: link, ..config() }.plan().unwrap_err();
        assert!(matches!(error, Error::OutputIsInput { .. }), "{error}");
    }
}
