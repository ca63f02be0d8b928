//! What was done differently: the settings in the records of runs, and what their jobs have read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use vodka_stage::{Input, RunRecord, record_path};

use crate::Result;

/// A setting that is not the same in all runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The job, by its output: `captions`, `train/v3`; the probe is `probe`.
    pub job: String,
    /// The setting: `unet.optimizer.lr`; `file: NAME` for what was read, whose values are beginnings of hashes; empty where a
    /// run has no such job.
    pub setting: String,
    /// What it is in each run, in order; none where the job or the setting is not there.
    pub values: Vec<Option<String>>,
}

/// The settings of a run's jobs that make data and models, and those of its probe: by job and key.
pub(super) type Settings = BTreeMap<String, BTreeMap<String, String>>;

/// What the probe's settings are called.
const PROBE: &str = "probe";
/// Settings that say how a page looks, and which pictures follow from the others.
const DERIVED: [&str; 2] = ["page", "cells"];
/// How much of a hash is told.
const HASH_CHARS: usize = 8;

/// Reads the records of a run, if there is one: of all that makes data and models; and that of the probe.
///
/// # Errors
/// A record that cannot be read.
pub(super) fn read(run: Option<&Path>, probe: &Path) -> Result<Settings> {
    let mut settings = Settings::new();
    let folders = run.map(|run| ["", "train/", "mixes/", "chosen/"].map(|prefix| (prefix, run.join(prefix))));
    for (prefix, folder) in folders.into_iter().flatten() {
        for (name, path) in records(&folder) {
            settings.insert(format!("{prefix}{name}"), of(&RunRecord::read(&path)?));
        }
    }
    let mut probe = of(&RunRecord::read(&record_path(probe))?);
    // Its models are what is compared.
    probe.retain(|key, _| !key.starts_with("file: model ") && key != "probe.name" && key != "probe.models");
    settings.insert(PROBE.to_owned(), probe);
    Ok(settings)
}

/// Leaves only the probes: all that is known of single ones.
pub(super) fn probes(all: &mut [Settings]) {
    all.iter_mut().for_each(|settings| settings.retain(|job, _| job == PROBE));
}

fn of(record: &RunRecord) -> BTreeMap<String, String> {
    let mut flat = BTreeMap::new();
    flatten(String::new(), &record.settings, &mut flat);
    flat.retain(|key, _| !DERIVED.contains(&key.as_str()));
    flat.extend(record.seed.map(|seed| ("seed".to_owned(), seed.to_string())));
    let hash = |input: &Input| input.sha256.to_string().chars().take(HASH_CHARS).collect();
    flat.extend(record.inputs.iter().map(|(name, input)| (format!("file: {name}"), hash(input))));
    flat
}

fn records(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let named = |path: PathBuf| {
        let name = path.file_name()?.to_str()?.strip_suffix(".run.json")?.to_owned();
        Some((name, path))
    };
    entries.filter_map(|entry| named(entry.path())).collect()
}

/// `{"a": {"b": 1}}` is `a.b` = `1`; lists are one value.
fn flatten(key: String, value: &Value, into: &mut BTreeMap<String, String>) {
    let Value::Object(fields) = value else {
        let text = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
        // A recipe in a recipe has lines.
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        into.insert(key, text);
        return;
    };
    for (name, value) in fields {
        let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
        flatten(key, value, into);
    }
}

/// What is not the same in all of them.
pub(super) fn differences(all: &[Settings]) -> Vec<Difference> {
    let jobs: BTreeSet<&String> = all.iter().flat_map(BTreeMap::keys).collect();
    let mut differences = Vec::new();
    for job in jobs {
        if all.iter().any(|settings| !settings.contains_key(job)) {
            let there = |settings: &Settings| settings.get(job).map(|_| "there".to_owned());
            let values = all.iter().map(there).collect();
            differences.push(Difference { job: job.clone(), setting: String::new(), values });
            // Of data all is told that was done to them; a model more is a model more.
            if job.contains('/') {
                continue;
            }
        }
        let of = |settings: &Settings, key: &String| settings.get(job).and_then(|job| job.get(key)).cloned();
        let keys: BTreeSet<&String> =
            all.iter().filter_map(|s| s.get(job)).flat_map(BTreeMap::keys).collect();
        for key in keys {
            let values: Vec<_> = all.iter().map(|settings| of(settings, key)).collect();
            let mut there =
                all.iter().zip(&values).filter(|(settings, _)| settings.contains_key(job)).map(|(_, v)| v);
            let first = there.next();
            if there.any(|value| Some(value) != first) || values.iter().flatten().count() == 1 {
                differences.push(Difference { job: job.clone(), setting: key.clone(), values });
            }
        }
    }
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(job: &str, json: &str) -> Settings {
        let mut flat = BTreeMap::new();
        flatten(String::new(), &serde_json::from_str(json).unwrap(), &mut flat);
        Settings::from([(job.to_owned(), flat)])
    }

    #[test]
    fn only_what_differs_is_told_by_job_and_key() {
        let a = settings("train/v3", r#"{"unet": {"lr": 1e-3, "betas": [0.9, 0.999]}, "seed": 1}"#);
        let b = settings("train/v3", r#"{"unet": {"lr": 2e-3, "betas": [0.9, 0.999]}, "seed": 1}"#);
        let found = differences(&[a.clone(), b]);
        let value = |text: &str| Some(text.to_owned());
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].setting.as_str(), &found[0].values[..]),
            ("unet.lr", &[value("0.001"), value("0.002")][..])
        );
        assert!(differences(&[a.clone(), a]).is_empty());
        // A job that only one has is told with what it does.
        let found = differences(&[Settings::new(), settings("pictures", r#"{"query": "not x"}"#)]);
        assert_eq!(found.len(), 2);
        assert_eq!((found[1].setting.as_str(), &found[1].values[..]), ("query", &[None, value("not x")][..]));
        let found = differences(&[Settings::new(), settings("train/control", r#"{"seed": 1}"#)]);
        assert_eq!((found.len(), &found[0].values[..]), (1, &[None, value("there")][..]));
    }

    #[test]
    fn what_was_read_is_told_by_its_hash_and_a_page_is_no_setting() {
        let dir = tempfile::tempdir().unwrap();
        let (probe, read) = (dir.path().join("probe"), dir.path().join("read"));
        let record = |content: &str| {
            fs::write(&read, content).unwrap();
            let settings = serde_json::json!({ "page": content, "cfg": 7.0, "text": "a\nb" });
            let key = vodka_stage::RunKey::new("probe", &settings, Some(5));
            let key = key.input("tagger 1", &read, |_| true).unwrap();
            let key = key.input("model v3", &read, |_| true).unwrap();
            fs::create_dir_all(&probe).unwrap();
            key.write(&record_path(&probe), &[&probe], &()).unwrap();
            super::read(None, &probe).unwrap()
        };
        let (a, b) = (record("one"), record("two"));
        let found = differences(&[a, b]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].job.as_str(), found[0].setting.as_str()), ("probe", "file: tagger 1"));
        assert_eq!(found[0].values[0].as_ref().unwrap().len(), HASH_CHARS);
    }
}
