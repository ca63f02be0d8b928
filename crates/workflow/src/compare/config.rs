//! Which runs, and which of their probes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Serialize;
use vodka_stage::{lossy, nearest, record_path};

use crate::{Error, Result};

/// A comparison as a user wants it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CompareConfig {
    /// Output folders of runs, or folders of probes; two at least. The others are compared with the first.
    pub runs: Vec<PathBuf>,
    /// The probe of each run, for those that are no probes themselves. Default: the one that there is.
    pub probe: Option<String>,
    /// The models to show. Default: all, each file once.
    pub models: Vec<String>,
    /// The folder to fill.
    #[serde(serialize_with = "lossy")]
    pub output: PathBuf,
}

/// A run, and its probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// The name of its folder.
    pub name: String,
    /// Its folder; none of a probe alone.
    pub folder: Option<PathBuf>,
    /// The folder of the probe.
    #[serde(serialize_with = "lossy")]
    pub probe: PathBuf,
}

/// A checked [`CompareConfig`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ComparePlan {
    /// The runs, in order.
    pub runs: Vec<Compared>,
    /// The models to show; all where none is named.
    pub models: Vec<String>,
    /// The folder to fill.
    #[serde(serialize_with = "lossy")]
    pub output: PathBuf,
}

impl CompareConfig {
    /// Finds the probes.
    ///
    /// # Errors
    /// Fewer than two runs, or two of one name; a folder that is neither a run's nor a probe's; no probe of that name, or several and none is
    /// named.
    pub fn plan(&self) -> Result<ComparePlan> {
        if self.runs.len() < 2 {
            return Err(Error::CompareFew { found: self.runs.len() });
        }
        let mut runs: Vec<Compared> = Vec::new();
        for folder in &self.runs {
            let run = self.compared(folder)?;
            if let Some(other) = runs.iter().find(|other| other.name == run.name) {
                let (first, second) = (other.probe.clone(), run.probe);
                return Err(Error::CompareTwice { name: run.name, first, second });
            }
            runs.push(run);
        }
        Ok(ComparePlan { runs, models: self.models.clone(), output: self.output.clone() })
    }

    fn compared(&self, folder: &Path) -> Result<Compared> {
        let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf());
        let name = absolute.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if is_probe(folder) {
            return Ok(Compared { name, folder: None, probe: folder.to_path_buf() });
        }
        let entries = fs::read_dir(folder.join("probes")).into_iter().flatten().flatten();
        let folders = entries.map(|entry| entry.path()).filter(|path| is_probe(path));
        let mut probes: Vec<String> = folders.filter_map(|path| name_of(&path)).collect();
        probes.sort();
        let wrong = |nearest: Option<&str>| Error::CompareProbe {
            folder: folder.to_path_buf(),
            wanted: self.probe.clone(),
            found: probes.clone(),
            nearest: nearest.map(ToOwned::to_owned),
        };
        let probe = match (&self.probe, &probes[..]) {
            (None, [only]) => only,
            (Some(wanted), _) => probes
                .iter()
                .find(|name| *name == wanted)
                .ok_or_else(|| wrong(nearest(wanted, probes.iter().map(String::as_str))))?,
            (None, _) => return Err(wrong(None)),
        };
        Ok(Compared { name, folder: Some(folder.to_path_buf()), probe: folder.join("probes").join(probe) })
    }
}

fn is_probe(folder: &Path) -> bool {
    folder.join("pictures.csv").is_file() && record_path(folder).is_file()
}

fn name_of(path: &Path) -> Option<String> {
    path.file_name().map(|name| name.to_string_lossy().into_owned())
}
