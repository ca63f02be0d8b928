//! `log.jsonl`: what happens in a run, one JSON object a line. What differs from run to run is below `time` in it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::growing::Growing;
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

    /// Starts the log; of one that is there it keeps the lines of the first `done` steps.
    pub fn start(output: &Path, done: Option<u64>) -> Result<Self> {
        let path = Self::path_in(output);
        let before = done.and_then(|done| Some((fs::read_to_string(&path).ok()?, done)));
        let kept = before.map(|(text, done)| {
            let is_kept = |line: &&str| step_of(line).is_some_and(|step| step <= done);
            text.split_inclusive('\n').filter(is_kept).collect::<String>()
        });
        Ok(Self { file: Growing::start(path, kept.unwrap_or_default().as_bytes())? })
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

/// The step of a line; `None` for one that was cut short.
fn step_of(line: &str) -> Option<u64> {
    let line = line.strip_suffix('\n')?;
    serde_json::from_str::<Value>(line).ok()?["step"].as_u64()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_run_that_goes_on_has_no_line_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = Log::path_in(dir.path());
        let line = |step: u64| json!({"event": "step", "step": step, "loss": 0.5});
        let mut log = Log::start(dir.path(), None).unwrap();
        (0..=5).for_each(|step| log.append(&line(step)).unwrap());
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 9]).unwrap();
        let mut log = Log::start(dir.path(), Some(3)).unwrap();
        (4..=5).for_each(|step| log.append(&line(step)).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), whole);
        Log::start(dir.path(), None).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
    }
}
