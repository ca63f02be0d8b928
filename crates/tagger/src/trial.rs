//! The trial of a model: two runs of a large network take longer than all else about opening it.

use std::{
    sync::{
        Mutex, PoisonError,
        mpsc::{Receiver, RecvError, RecvTimeoutError, channel},
    },
    thread,
    time::Duration,
};

use crate::Result;

/// How long opening a model waits for the verdict.
pub(crate) const PATIENCE: Duration = Duration::from_millis(500);

/// Whether a model has been found to make sense.
#[derive(Debug)]
pub(crate) struct Trial(Mutex<State>);

#[derive(Debug)]
enum State {
    Running(Receiver<Result<()>>),
    Passed,
    Failed,
}

impl Trial {
    /// Begins it, and waits a moment: the verdict on a small model is there at once.
    pub fn start(patience: Duration, try_out: impl FnOnce() -> Result<()> + Send + 'static) -> Result<Self> {
        let (done, verdict) = channel();
        thread::spawn(move || done.send(try_out()));
        let state = match verdict.recv_timeout(patience) {
            Ok(verdict) => verdict.map(|()| State::Passed)?,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => State::Running(verdict),
        };
        Ok(Self(Mutex::new(state)))
    }

    /// Waits for the verdict. A model that has failed is tried again, to say once more what is wrong with it.
    pub fn verdict(&self, try_again: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let verdict = match &*state {
            State::Passed => return Ok(()),
            State::Running(verdict) => verdict.recv().unwrap_or_else(|RecvError| try_again()),
            State::Failed => try_again(),
        };
        *state = if verdict.is_ok() { State::Passed } else { State::Failed };
        verdict
    }
}

impl Drop for Trial {
    /// Waits: a process must not end while ONNX Runtime is at work.
    fn drop(&mut self) {
        if let State::Running(verdict) = self.0.get_mut().unwrap_or_else(PoisonError::into_inner) {
            let _ = verdict.recv();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    fn failed() -> Result<()> {
        Err(Error::Constant { model: "m".into() })
    }

    #[test]
    fn a_quick_verdict_comes_with_opening() {
        let long = Duration::from_secs(3600);
        assert!(matches!(Trial::start(long, failed), Err(Error::Constant { .. })));
        let passed = Trial::start(long, || Ok(())).unwrap();
        passed.verdict(|| panic!("it has passed")).unwrap();
    }

    #[test]
    fn a_slow_verdict_comes_before_any_score_and_again() {
        let (go, gate) = channel();
        let trial = Trial::start(Duration::ZERO, move || {
            gate.recv().unwrap();
            failed()
        });
        let trial = trial.unwrap();
        go.send(()).unwrap();
        assert!(trial.verdict(|| panic!("the first verdict is still to come")).is_err());
        assert!(trial.verdict(failed).is_err());
        trial.verdict(|| Ok(())).unwrap();
        trial.verdict(|| panic!("it has passed")).unwrap();
    }
}
