//! `log.jsonl`: what happens in a run, one JSON object a line. What differs from run to run is below `time` in it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use vodka_stage::ContentHash;

use super::{growing::Growing, own::claim};
use crate::Result;

/// A log that is being written.
#[derive(Debug)]
pub(crate) struct Log {
    file: Growing,
}

impl Log {
    /// The path of the file in an output folder.
    pub fn path_in(output: &Path) -> PathBuf {
        output.join("log.jsonl")
    }

    /// Starts the log of the run with this key; of one that is there it keeps the lines of the first `done` steps. That of
    /// another run is put aside, as `log-<its key>.jsonl`.
    pub fn start(output: &Path, key: ContentHash, done: Option<u64>) -> Result<Self> {
        let path = Self::path_in(output);
        claim(&path, key, key_of, |other| output.join(format!("log-{other}.jsonl")))?;
        let before = done.and_then(|done| Some((fs::read_to_string(&path).ok()?, done)));
        let kept = before.map(|(text, done)| {
            let is_kept = |line: &&str| step_of(line).is_some_and(|step| step <= done);
            text.split_inclusive('\n').filter(is_kept).collect::<String>()
        });
        let first = || format!("{}\n", json!({"event": "run", "step": 0, "run": key}));
        let kept = kept.filter(|kept| !kept.is_empty()).unwrap_or_else(first);
        Ok(Self { file: Growing::start(path, kept.as_bytes())? })
    }

    /// Adds a line: an object with a `step`.
    pub fn append(&mut self, line: &Value) -> Result<()> {
        self.file.append(format!("{line}\n").as_bytes())
    }

    /// Makes the lines survive a power cut.
    pub fn sync(&self) -> Result<()> {
        self.file.sync()
    }
}

/// The run that a log is of, as its first line says.
fn key_of(log: &[u8]) -> Option<String> {
    let first: Value = serde_json::from_slice(log.split(|byte| *byte == b'\n').next()?).ok()?;
    Some(first["run"].as_str()?.to_owned())
}

/// The step of a line; `None` for one that was cut short.
fn step_of(line: &str) -> Option<u64> {
    let line = line.strip_suffix('\n')?;
    serde_json::from_str::<Value>(line).ok()?["step"].as_u64()
}

#[cfg(test)]
mod tests {
    use vodka_stage::hash_bytes;

    use super::*;

    #[test]
    fn a_run_that_goes_on_has_no_line_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = Log::path_in(dir.path());
        let line = |step: u64| json!({"event": "step", "step": step, "loss": 0.5});
        let key = hash_bytes(b"run");
        let mut log = Log::start(dir.path(), key, None).unwrap();
        (0..=5).for_each(|step| log.append(&line(step)).unwrap());
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 9]).unwrap();
        let mut log = Log::start(dir.path(), key, Some(3)).unwrap();
        (4..=5).for_each(|step| log.append(&line(step)).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), whole);
        Log::start(dir.path(), key, None).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{}\n", json!({"event": "run", "step": 0, "run": key})));
    }

    #[test]
    fn another_runs_log_is_put_aside_and_comes_back_with_its_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = Log::path_in(dir.path());
        let [first, second] = [&b"first"[..], b"second"].map(hash_bytes);
        let line = |loss: f64| json!({"event": "step", "step": 1, "loss": loss});
        Log::start(dir.path(), first, None).unwrap().append(&line(0.1)).unwrap();
        let of_first = fs::read_to_string(&path).unwrap();
        Log::start(dir.path(), second, None).unwrap().append(&line(0.2)).unwrap();
        let of_second = fs::read_to_string(&path).unwrap();
        assert!(!of_second.contains("0.1") && of_second.contains("0.2"), "{of_second}");
        Log::start(dir.path(), first, Some(1)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), of_first);
        let aside = dir.path().join(format!("log-{}.jsonl", second.short(8)));
        assert_eq!(fs::read_to_string(aside).unwrap(), of_second);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
