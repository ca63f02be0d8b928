//! Runs side by side in one process: what libtorch has once for all of them, and the room on the disk that they need together.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use vodka_sd15::device_type;
use vodka_stage::{RunKey, disk_of, free_space};

use crate::{Error, Result, TrainPlan, state};

/// What libtorch has once in a process: the last bits of a run's sums depend on it.
#[derive(Debug, Clone, Copy)]
struct Common {
    /// Of the processor; MKL has one number of them for all.
    threads: i32,
    /// Whether an interrupted run began with so many, whatever is planned now.
    kept: bool,
    /// `tf32` and `deterministic`, where a GPU is used.
    gpu: Option<[bool; 2]>,
}

impl Common {
    /// The first key in which two runs differ, and its values.
    fn difference(&self, other: &Self) -> Option<(&'static str, [String; 2])> {
        let threads = |common: &Self| match common.kept {
            true => format!("{} (with which it began)", common.threads),
            false => common.threads.to_string(),
        };
        if self.threads != other.threads {
            return Some(("threads", [self, other].map(threads)));
        }
        let pairs = self.gpu?.into_iter().zip(other.gpu?);
        let (key, (own, others)) =
            ["tf32", "deterministic"].into_iter().zip(pairs).find(|(_, (own, others))| own != others)?;
        Some((key, [own, others].map(|value| value.to_string())))
    }
}

/// A run that is on.
#[derive(Debug)]
struct One {
    output: PathBuf,
    common: Common,
    /// How many bytes it has still to write.
    to_come: u64,
}

/// The runs that are on in this process.
struct Running {
    runs: Vec<One>,
    /// libtorch's threads before the first of them.
    threads_before: i32,
}

static RUNNING: Mutex<Running> = Mutex::new(Running { runs: Vec::new(), threads_before: 0 });

fn running() -> MutexGuard<'static, Running> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Running {
    fn enter(&mut self, output: &Path, common: Common) -> Result<()> {
        for other in &self.runs {
            if let Some((key, [value, other_value])) = common.difference(&other.common) {
                let (output, other) = (output.to_path_buf(), other.output.clone());
                return Err(Error::Beside { key, output, value, other, other_value });
            }
        }
        self.runs.push(One { output: output.to_path_buf(), common, to_come: 0 });
        Ok(())
    }

    /// Sets aside `needed` bytes of `free` ones for a run; `shares` says which of the others write to the same disk.
    fn reserve(
        &mut self,
        output: &Path,
        needed: u64,
        free: Option<u64>,
        shares: impl Fn(&Path) -> bool,
    ) -> Result<()> {
        if needed == 0 {
            self.set_to_come(output, 0);
            return Ok(());
        }
        let is_other = |one: &&One| one.output != output && one.to_come > 0 && shares(&one.output);
        let others: Vec<_> = self.runs.iter().filter(is_other).collect();
        let to_come: u64 = others.iter().map(|one| one.to_come).sum();
        match free {
            Some(free) if free < needed.saturating_add(to_come) => {
                let output = output.to_path_buf();
                // By itself it would not fit either.
                if others.is_empty() || free < needed {
                    let (path, for_what) = (output, "what is still to be written");
                    return Err(vodka_stage::Error::NoSpace { path, needed, free, for_what }.into());
                }
                let others = others.into_iter().map(|one| one.output.clone()).collect();
                Err(Error::NoSpaceBeside { output, needed, free, others, to_come })
            }
            _ => {
                self.set_to_come(output, needed);
                Ok(())
            }
        }
    }

    fn set_to_come(&mut self, output: &Path, bytes: u64) {
        self.runs.iter_mut().filter(|one| one.output == output).for_each(|one| one.to_come = bytes);
    }
}

/// A run's place among those of this process, which it leaves when this is dropped; the last one sets libtorch's threads back.
pub(super) struct Beside {
    output: PathBuf,
}

impl Beside {
    /// Sets libtorch's threads: to as many as an interrupted run began with, or else as planned.
    ///
    /// # Errors
    /// [`Error::Beside`]: another run of this process has other numbers.
    pub fn enter(plan: &TrainPlan, key: &RunKey) -> Result<Self> {
        let began_with = if plan.start_over { None } else { state::threads(&plan.output, key) };
        let mut running = running();
        if running.runs.is_empty() {
            running.threads_before = tch::get_num_threads();
        }
        let arithmetic = &plan.settings.arithmetic;
        let common = Common {
            threads: began_with.or(plan.threads.map(|n| n as i32)).unwrap_or(running.threads_before),
            kept: began_with.is_some(),
            gpu: (device_type(&plan.device) != "cpu").then_some([arithmetic.tf32, arithmetic.deterministic]),
        };
        running.enter(&plan.output, common)?;
        tch::set_num_threads(common.threads);
        Ok(Self { output: plan.output.clone() })
    }

    /// Sets so many bytes aside for all that the run has still to write.
    ///
    /// # Errors
    /// [`vodka_stage::Error::NoSpace`]; with others of this process that write to the same disk [`Error::NoSpaceBeside`].
    pub fn reserve(&self, needed: u64) -> Result<()> {
        let disk = disk_of(&self.output);
        let shares = |other: &Path| disk.is_some() && disk_of(other) == disk;
        // Nobody else sets anything aside in between.
        let mut running = running();
        running.reserve(&self.output, needed, free_space(&self.output), shares)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let mut running = running();
        running.runs.retain(|one| one.output != self.output);
        if running.runs.is_empty() {
            tch::set_num_threads(running.threads_before);
        }
    }
}

/// Says how many bytes the run in a folder has still to write, after some of them were written.
pub(super) fn set_to_come(output: &Path, bytes: u64) {
    running().set_to_come(output, bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMON: Common = Common { threads: 1, kept: false, gpu: None };

    fn nobody() -> Running {
        Running { runs: Vec::new(), threads_before: 1 }
    }

    #[test]
    fn what_runs_of_one_process_cannot_have_apart_is_told_with_both_values() {
        let mut running = nobody();
        let gpu = |tf32, deterministic| Common { gpu: Some([tf32, deterministic]), ..COMMON };
        running.enter(Path::new("train/a"), gpu(true, false)).unwrap();
        let mut said = |common| match running.enter(Path::new("train/b"), common) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        };
        assert_eq!(
            said(gpu(false, false)),
            "`tf32` is false for the run in `train/b` and true for the one in `train/a`, which is on in the same process, and \
             libtorch has one for both: let one end before the other begins"
        );
        let deterministic = said(gpu(true, true));
        assert!(
            deterministic.starts_with(
                "`deterministic` is true for the run in `train/b` and false for the one in `train/a`"
            ),
            "{deterministic}"
        );
        let kept = said(Common { threads: 2, kept: true, ..gpu(true, false) });
        assert!(
            kept.starts_with("`threads` is 2 (with which it began) for the run in `train/b` and 1 for"),
            "{kept}"
        );
        assert_eq!(said(gpu(true, false)), "");
        assert_eq!(said(COMMON), "", "on the processor");
    }

    #[test]
    fn room_is_counted_for_all_that_write_to_one_disk() {
        let [a, b, c] = ["train/a", "train/b", "elsewhere/c"].map(Path::new);
        let mut running = nobody();
        [a, b, c].into_iter().for_each(|output| running.enter(output, COMMON).unwrap());
        let shares = |other: &Path| other.starts_with("train");
        let mebi = |n: u64| n << 20;
        running.reserve(c, mebi(900), Some(mebi(1000)), |_| false).unwrap();
        running.reserve(a, mebi(600), Some(mebi(1000)), shares).unwrap();
        running.reserve(b, mebi(400), Some(mebi(1000)), shares).unwrap();
        let said = running.reserve(b, mebi(401), Some(mebi(1000)), shares).unwrap_err().to_string();
        assert_eq!(
            said,
            "the disk of `train/b` has 1000 MB free: 401 MB for what this run has still to write do not fit beside 600 MB of \
             the runs in `train/a`"
        );
        let said = running.reserve(b, mebi(2000), Some(mebi(1000)), shares).unwrap_err().to_string();
        assert_eq!(said, "the disk of `train/b` has 1000 MB free, what is still to be written needs 2000 MB");
        running.reserve(b, 0, Some(0), shares).unwrap();
        // Half of it is written by now.
        running.set_to_come(a, mebi(300));
        running.reserve(b, mebi(401), Some(mebi(701)), shares).unwrap();
        running.runs.retain(|one| one.output != a);
        let said = running.reserve(b, mebi(702), Some(mebi(701)), shares).unwrap_err().to_string();
        assert_eq!(said, "the disk of `train/b` has 701 MB free, what is still to be written needs 702 MB");
        running.reserve(b, u64::MAX, None, shares).unwrap();
    }
}
