//! Run records: which stage made a file, with which settings, from which inputs.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{ContentHash, Error, Hasher, Result, beside, hash_bytes, hash_tree, lossy, write_atomic};

/// All that the outputs of a run depend on. Equal keys make equal outputs.
#[derive(Debug, Clone, Serialize)]
pub struct RunKey {
    /// The stage's name, `tag` or `train`.
    pub stage: &'static str,
    /// The settings that the outputs depend on: neither paths (the hashes of what is there stand for them) nor what
    /// only makes it faster (threads, say).
    pub settings: Value,
    /// The seed, where the stage has one.
    pub seed: Option<u64>,
    /// What is read, by a name such as `images` or `checkpoint`.
    pub inputs: BTreeMap<String, Input>,
}

/// Something that a stage reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Where it was found.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// The hash of the file, or of the files of interest in the folder.
    pub sha256: ContentHash,
}

/// Something that a stage has written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// The path, relative to the folder of the record where it lies below it, else absolute.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// The hash of the file, or of the folder's files.
    pub sha256: ContentHash,
}

/// What `<name>.run.json` holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunRecord {
    /// The stage's name.
    pub stage: String,
    /// The version of Vodka.
    pub version: String,
    /// The settings that the outputs depend on.
    pub settings: Value,
    /// The seed, where the stage has one.
    pub seed: Option<u64>,
    /// What was read.
    pub inputs: BTreeMap<String, Input>,
    /// What was written.
    pub outputs: Vec<Output>,
    /// What a later run was about to write, if that was killed before it could say that it had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<Output>,
    /// What the run reported.
    pub report: Value,
}

/// How the outputs on disk stand to a [`RunKey`].
#[derive(Debug)]
pub enum Standing {
    /// They were made with this key and are unchanged: there is nothing to do.
    Current(Box<RunRecord>),
    /// They must be made, for the stated reason.
    Stale(String),
}

impl RunKey {
    /// A key without inputs yet.
    pub fn new(stage: &'static str, settings: &impl Serialize, seed: Option<u64>) -> Self {
        let settings = serde_json::to_value(settings).expect("settings are plain data");
        Self { stage, settings, seed, inputs: BTreeMap::new() }
    }

    /// Adds the file or folder at `path`, of which `keep` chooses the files that count.
    pub fn input(self, name: &str, path: &Path, keep: impl Fn(&Path) -> bool) -> Result<Self> {
        let sha256 = hash_tree(path, keep)?;
        Ok(self.input_hashed(name, path, sha256))
    }

    /// Adds what lies at `path` by a hash of its content that the stage has found itself.
    pub fn input_hashed(mut self, name: &str, path: &Path, sha256: ContentHash) -> Self {
        self.inputs.insert(name.to_owned(), Input { path: path.to_path_buf(), sha256 });
        self
    }

    /// The hash of stage, settings, seed and the inputs' contents (not of their paths).
    pub fn hash(&self) -> ContentHash {
        let mut hasher = Hasher::default();
        hasher.piece(self.stage).piece(self.settings.to_string()).piece(format!("{:?}", self.seed));
        for (name, input) in &self.inputs {
            hasher.piece(name).piece(input.sha256.to_string());
        }
        hasher.finish()
    }

    /// Whether the record at `record` says that the outputs are what this key makes.
    pub fn standing(&self, record: &Path) -> Result<Standing> {
        if !record.exists() {
            return Ok(Standing::Stale("not made yet".into()));
        }
        let found = match RunRecord::read(record) {
            Err(Error::Record { .. }) => return Ok(Standing::Stale("its record cannot be read".into())),
            found => found?,
        };
        if let Some(reason) = self.difference(&found) {
            return Ok(Standing::Stale(reason));
        }
        if found.outputs.is_empty() && !found.pending.is_empty() {
            return Ok(Standing::Stale("the run that was to make it was killed".into()));
        }
        for output in &found.outputs {
            let path = record.parent().unwrap_or(Path::new("")).join(&output.path);
            if !path.exists() {
                return Ok(Standing::Stale(format!("`{}` is missing", path.display())));
            }
            if hash_tree(&path, |_| true)? != output.sha256 {
                return Ok(Standing::Stale(format!("`{}` was changed since", path.display())));
            }
        }
        Ok(Standing::Current(Box::new(found)))
    }

    /// The report of the run that made what is there, if it was made with this key and is unchanged; none where there
    /// is something to do, or where another version wrote a report that this one cannot read.
    pub fn made<R: DeserializeOwned>(&self, record: &Path) -> Result<Option<R>> {
        Ok(match self.standing(record)? {
            Standing::Current(found) => serde_json::from_value(found.report).ok(),
            Standing::Stale(_) => None,
        })
    }

    /// The first thing in which a record differs from this key, in words; `None` where it is of this very run.
    pub fn difference(&self, found: &RunRecord) -> Option<String> {
        if found.stage != self.stage {
            return Some(format!("made by the stage `{}`", found.stage));
        }
        if found.seed != self.seed {
            return Some("the seed changed".into());
        }
        if let Some(change) = changed_setting(&found.settings, &as_read(&self.settings)) {
            return Some(change);
        }
        let names = self.inputs.keys().chain(found.inputs.keys());
        let hash = |inputs: &BTreeMap<String, Input>, name: &str| inputs.get(name).map(|input| input.sha256);
        names
            .into_iter()
            .find(|name| hash(&self.inputs, name) != hash(&found.inputs, name))
            .map(|name| format!("the input `{name}` changed"))
    }

    /// The record of a run that is not through: without outputs and report.
    pub fn begun(&self) -> RunRecord {
        RunRecord {
            stage: self.stage.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            settings: self.settings.clone(),
            seed: self.seed,
            inputs: self.inputs.clone(),
            outputs: Vec::new(),
            pending: Vec::new(),
            report: Value::Null,
        }
    }

    /// Says in the record what is about to be written. Should this run be killed before it writes its own record, the next
    /// one knows by that what it has left ([`RunRecord::guard`]).
    pub fn announce(&self, record: &Path, outputs: &[(&Path, ContentHash)]) -> Result<()> {
        let mut found = RunRecord::read(record).unwrap_or_else(|_| self.begun());
        for output in recorded(record, outputs) {
            if !found.pending.contains(&output) {
                found.pending.push(output);
            }
        }
        found.save(record)
    }

    /// Writes files, each whole or not at all, and then the record. A run that is killed on the way is in nobody's way.
    ///
    /// # Errors
    /// [`Error::InTheWay`], before anything is written; what cannot be written.
    pub fn write_files(
        &self,
        record: &Path,
        files: &[(&Path, &[u8])],
        report: &impl Serialize,
    ) -> Result<RunRecord> {
        files.iter().try_for_each(|(path, bytes)| RunRecord::guard(record, path, bytes))?;
        let outputs: Vec<_> = files.iter().map(|(path, bytes)| (*path, hash_bytes(bytes))).collect();
        self.announce(record, &outputs)?;
        files.iter().try_for_each(|(path, bytes)| write_atomic(*path, bytes))?;
        self.write_hashed(record, &outputs, report)
    }

    /// Writes the record of a finished run, hashing its outputs.
    pub fn write(&self, record: &Path, outputs: &[&Path], report: &impl Serialize) -> Result<RunRecord> {
        let hash = |path: &&Path| Ok((path.to_path_buf(), hash_tree(path, |_| true)?));
        let outputs = outputs.iter().map(hash).collect::<Result<Vec<_>>>()?;
        let outputs: Vec<_> = outputs.iter().map(|(path, sha256)| (path.as_path(), *sha256)).collect();
        self.write_hashed(record, &outputs, report)
    }

    /// Writes the record of a finished run, whose outputs were hashed when they were written.
    pub fn write_hashed(
        &self,
        record: &Path,
        outputs: &[(&Path, ContentHash)],
        report: &impl Serialize,
    ) -> Result<RunRecord> {
        // A path that is not Unicode cannot be told, where its field has not said that it may be told roughly.
        let unsaid = |source: serde_json::Error| Error::write(record)(source.into());
        let report = serde_json::to_value(report).map_err(unsaid)?;
        let record_of_run = RunRecord { outputs: recorded(record, outputs), report, ..self.begun() };
        record_of_run.save(record)?;
        Ok(record_of_run)
    }
}

/// Outputs as the record at `record` names them.
fn recorded(record: &Path, outputs: &[(&Path, ContentHash)]) -> Vec<Output> {
    let folder = record.parent().unwrap_or(Path::new(""));
    let name = |path: &Path| match path.strip_prefix(folder) {
        Ok(below) => below.to_path_buf(),
        Err(_) => std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()),
    };
    outputs.iter().map(|(path, sha256)| Output { path: name(path), sha256: *sha256 }).collect()
}

impl RunRecord {
    /// Makes sure that the file `output` is not there, or is as a run with the record `record` has left it, or already is
    /// what is to be written.
    ///
    /// # Errors
    /// [`Error::InTheWay`]: somebody has edited it, or it is somebody else's.
    pub fn guard(record: &Path, output: &Path, new: &[u8]) -> Result<()> {
        if !output.exists() {
            return Ok(());
        }
        let found = hash_tree(output, |_| true)?;
        let is_ours = || Self::read(record).is_ok_and(|made| made.knows(record, output, found));
        match is_ours() || fs::read(output).is_ok_and(|bytes| bytes == new) {
            true => Ok(()),
            false => Err(Error::InTheWay { path: output.to_path_buf() }),
        }
    }

    /// Whether a run has left this output so, or was about to.
    fn knows(&self, record: &Path, output: &Path, found: ContentHash) -> bool {
        let folder = record.parent().unwrap_or(Path::new(""));
        let is_it = |made: &Path| match (fs::canonicalize(folder.join(made)), fs::canonicalize(output)) {
            (Ok(made), Ok(output)) => made == output,
            _ => false,
        };
        self.outputs.iter().chain(&self.pending).any(|made| made.sha256 == found && is_it(&made.path))
    }

    fn save(&self, record: &Path) -> Result<()> {
        let unsaid = |source: serde_json::Error| Error::write(record)(source.into());
        let text = serde_json::to_string_pretty(self).map_err(unsaid)?;
        write_atomic(record, text + "\n")
    }

    /// Reads a record.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read(path).map_err(Error::read(path))?;
        serde_json::from_slice(&text).map_err(|source| Error::Record { path: path.to_path_buf(), source })
    }
}

/// Where the record of an output file or folder lies: `tags.parquet` has `tags.parquet.run.json` beside it, and so has
/// the folder `grid`.
pub fn record_path(output: &Path) -> PathBuf {
    beside(output, "", ".run.json")
}

/// Settings as they come back from a record: serde_json reads some numbers as their neighbour.
fn as_read(settings: &Value) -> Value {
    serde_json::from_str(&settings.to_string()).expect("what is written as JSON is JSON")
}

/// The first setting in which two runs differ, in words: with both values where they are short.
fn changed_setting(before: &Value, now: &Value) -> Option<String> {
    let (name, before, now) = first_change(before, now)?;
    let name = if name.is_empty() { "settings" } else { &name };
    let text = |value: Option<&Value>| value.map_or_else(|| "absent".to_owned(), Value::to_string);
    let (before, now) = (text(before), text(now));
    Some(match before.len().max(now.len()) {
        0..=SHORT => format!("the setting `{name}` changed from {before} to {now}"),
        _ => format!("the setting `{name}` changed"),
    })
}

/// Values of so many bytes are told.
const SHORT: usize = 60;

/// The path of the first value, keys joined by points, in which two objects differ, and both values.
fn first_change<'v>(
    before: &'v Value,
    now: &'v Value,
) -> Option<(String, Option<&'v Value>, Option<&'v Value>)> {
    let (Some(a), Some(b)) = (before.as_object(), now.as_object()) else {
        return (before != now).then_some((String::new(), Some(before), Some(now)));
    };
    let name = b.keys().chain(a.keys()).find(|name| a.get(*name) != b.get(*name))?;
    match (a.get(name), b.get(name)) {
        (Some(before), Some(now)) => {
            let (inner, before, now) = first_change(before, now)?;
            let path = if inner.is_empty() { name.clone() } else { format!("{name}.{inner}") };
            Some((path, before, now))
        }
        (before, now) => Some((name.clone(), before, now)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stale(standing: Standing) -> String {
        match standing {
            Standing::Stale(reason) => reason,
            Standing::Current(_) => panic!("expected stale outputs"),
        }
    }

    #[test]
    fn what_is_no_record_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let record = dir.path().join("a.run.json");
        fs::write(&record, "{\"stage\": 1}").unwrap();
        let error = RunRecord::read(&record).unwrap_err();
        assert_eq!(error.to_string(), format!("`{}` is not a valid run record", record.display()));
        let reason = std::error::Error::source(&error).unwrap().to_string();
        assert!(reason.contains("line 1 column 11"), "{reason}");
        let said = RunRecord::read(&dir.path().join("b.run.json")).unwrap_err().to_string();
        assert!(said.starts_with("cannot read `"), "{said}");
    }

    #[test]
    fn a_record_tells_what_changed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("in.txt"), "in").unwrap();
        fs::write(at("out.txt"), "out").unwrap();
        let record = record_path(&at("out.txt"));
        let key = |steps: u32, seed| {
            RunKey::new("train", &json!({"lr": 1e-6, "steps": steps}), Some(seed))
                .input("images", &at("in.txt"), |_| true)
                .unwrap()
        };

        assert_eq!(stale(key(1, 1).standing(&record).unwrap()), "not made yet");
        key(1, 1).write(&record, &[&at("out.txt")], &"fine").unwrap();
        assert!(matches!(key(1, 1).standing(&record).unwrap(), Standing::Current(_)));
        assert_eq!(key(1, 1).made::<String>(&record).unwrap().as_deref(), Some("fine"));
        assert_eq!(key(2, 1).made::<String>(&record).unwrap(), None);
        assert_eq!(key(1, 1).made::<u32>(&record).unwrap(), None, "a report of another version");
        assert_eq!(stale(key(2, 1).standing(&record).unwrap()), "the setting `steps` changed from 1 to 2");
        assert_eq!(stale(key(1, 2).standing(&record).unwrap()), "the seed changed");

        fs::write(at("in.txt"), "other").unwrap();
        assert_eq!(stale(key(1, 1).standing(&record).unwrap()), "the input `images` changed");
        fs::write(at("in.txt"), "in").unwrap();
        fs::write(at("out.txt"), "touched").unwrap();
        assert!(stale(key(1, 1).standing(&record).unwrap()).ends_with("was changed since"));
        fs::remove_file(at("out.txt")).unwrap();
        assert!(stale(key(1, 1).standing(&record).unwrap()).ends_with("is missing"));
    }

    #[test]
    fn what_a_killed_run_has_left_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (out, aside, record) = (at("sub/out.csv"), at("aside.csv"), record_path(&at("sub/out.csv")));
        let key = |n: u32| RunKey::new("select", &json!({ "n": n }), None);
        let announce = |n: u32, text: &str| {
            key(n).announce(&record, &[(&out, hash_bytes(text)), (&aside, hash_bytes(text))]).unwrap();
        };
        let run = |n: u32, text: &str| {
            key(n).write_files(&record, &[(&out, text.as_bytes()), (&aside, text.as_bytes())], &n).map(drop)
        };
        let made = |n: u32| key(n).made::<u32>(&record).unwrap();

        // Killed before a file, between the two, and before the record; the next run wants something else.
        for written in 0..3 {
            announce(1, "one");
            [&out, &aside].iter().take(written).for_each(|path| write_atomic(*path, "one").unwrap());
            assert_eq!(stale(key(1).standing(&record).unwrap()), "the run that was to make it was killed");
            run(2, "two").unwrap();
            assert_eq!((made(1), made(2)), (None, Some(2)), "{written} written");
            crate::remove_all(&at("sub")).unwrap();
            fs::remove_file(&aside).unwrap();
        }
        // Killed twice in a row upon what an earlier run has made.
        run(1, "one").unwrap();
        announce(2, "two");
        assert_eq!(made(1), Some(1), "nothing has happened to it yet");
        write_atomic(&out, "two").unwrap();
        assert!(stale(key(1).standing(&record).unwrap()).ends_with("was changed since"));
        announce(3, "three");
        run(4, "four").unwrap();
        assert_eq!(made(4), Some(4));
        assert!(!fs::read_to_string(&record).unwrap().contains("pending"));
        // What nobody was about to write is somebody's.
        write_atomic(&out, "mine").unwrap();
        announce(5, "five");
        let error = run(5, "five").unwrap_err();
        assert!(error.to_string().contains("out.csv` is in the way: no run has left it as it is"), "{error}");
        assert_eq!(fs::read_to_string(&aside).unwrap(), "four", "nothing was written");
        // That it is what is to be written is no obstacle either.
        run(6, "mine").unwrap();
    }

    #[test]
    fn a_number_of_many_digits_is_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out.txt");
        fs::write(&out, "out").unwrap();
        let key = |alpha: f64| RunKey::new("merge", &json!({"alpha": alpha, "rows": [alpha]}), None);
        let alpha = 0.122_677_981_217_605_05;
        key(alpha).write(&record_path(&out), &[&out], &()).unwrap();
        assert!(matches!(key(alpha).standing(&record_path(&out)).unwrap(), Standing::Current(_)));
        assert_eq!(
            stale(key(0.1226).standing(&record_path(&out)).unwrap()),
            "the setting `alpha` changed from 0.12267798121760504 to 0.1226"
        );
    }

    #[test]
    fn a_setting_within_settings_is_told_by_its_path() {
        let change = |before: Value, now: Value| changed_setting(&before, &now);
        let said =
            change(json!({"a": 1, "unet": {"lr": 1, "x": 2}}), json!({"a": 1, "unet": {"lr": 3, "x": 2}}));
        assert_eq!(said.unwrap(), "the setting `unet.lr` changed from 1 to 3");
        let said = change(json!({"ema": null}), json!({"ema": {"interval": 1}}));
        assert_eq!(said.unwrap(), "the setting `ema` changed from null to {\"interval\":1}");
        let said = change(json!({}), json!({"cache": "x".repeat(80)}));
        assert_eq!(said.unwrap(), "the setting `cache` changed");
        assert_eq!(change(json!({"a": [1]}), json!({"a": [1]})), None);
        assert_eq!(change(json!(1), json!(2)).unwrap(), "the setting `settings` changed from 1 to 2");
    }

    #[cfg(unix)]
    #[test]
    fn names_that_are_not_unicode_are_told_roughly_and_nothing_panics() {
        use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

        #[derive(Serialize)]
        struct Said(#[serde(serialize_with = "lossy")] Vec<PathBuf>);

        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join(OsStr::from_bytes(b"im\xffages"));
        let (input, out) = (folder.join("in.txt"), dir.path().join("out.txt"));
        write_atomic(&input, "in").unwrap();
        write_atomic(&out, "out").unwrap();
        let key = RunKey::new("tag", &json!({}), None).input("images", &folder, |_| true).unwrap();
        key.write(&record_path(&out), &[&out], &Said(vec![input.clone()])).unwrap();
        let text = fs::read_to_string(record_path(&out)).unwrap();
        assert!(text.contains("im\u{fffd}ages\"") && text.contains("im\u{fffd}ages/in.txt"), "{text}");
        assert!(matches!(key.standing(&record_path(&out)).unwrap(), Standing::Current(_)));
        let error = key.write(&record_path(&out), &[&out], &input).unwrap_err();
        assert!(error.to_string().ends_with("out.txt.run.json`"), "{error}");
    }

    #[test]
    fn a_damaged_record_is_a_reason_to_run() {
        let dir = tempfile::tempdir().unwrap();
        let record = dir.path().join("out.txt.run.json");
        for text in ["", "{\"stage\": \"tag\"", "[1]"] {
            fs::write(&record, text).unwrap();
            let standing = RunKey::new("tag", &json!({}), None).standing(&record).unwrap();
            assert_eq!(stale(standing), "its record cannot be read", "{text}");
        }
    }
}
