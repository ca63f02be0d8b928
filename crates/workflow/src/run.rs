//! Runs the jobs of a recipe, one after the other; trainings side by side where the recipe says so.

use std::{
    fmt,
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Sender},
    },
    thread,
};

use serde::Serialize;
use serde_json::Value;
use vodka_stage::{Interrupt, Outcome, Report, create_dir};

use crate::{
    Error, Job, Result, Workflow,
    notebook::{self, Stand},
    stages::Progress,
};

/// Something that happened in a workflow.
#[derive(Debug)]
pub enum WorkflowEvent<'a> {
    /// A job begins.
    Begins {
        /// The job.
        job: &'a Job,
        /// From 1.
        number: usize,
        /// All jobs.
        of: usize,
    },
    /// A job is at work.
    Progress {
        /// The job.
        job: &'a Job,
        /// How far it is.
        progress: Progress,
    },
    /// A job has failed; those beside it go on.
    Failed {
        /// The job.
        job: &'a Job,
        /// Why.
        error: &'a Error,
    },
    /// A job is through, or was found done.
    Ends {
        /// What it reported.
        report: &'a JobReport,
    },
}

/// What one job has done.
#[derive(Debug, Clone, Serialize)]
pub struct JobReport {
    /// The job.
    pub job: Job,
    /// How it ended.
    pub outcome: Outcome,
    /// What it says to people.
    pub text: String,
    /// The stage's own report.
    pub data: Value,
}

/// What a workflow has done.
#[derive(Debug, Clone, Serialize)]
pub struct WorkflowReport {
    /// How it ended.
    pub outcome: Outcome,
    /// The jobs that ran or were found done.
    pub jobs: Vec<JobReport>,
    /// What to look at: the notebook, the report, and the pages of grids and probes.
    pub look_at: Vec<PathBuf>,
}

/// Runs every job whose outputs are not there as they should be. A job that was killed goes on where it was.
///
/// # Errors
/// The first job that fails ends the run; what was made before stays, and trainings beside it go on to their ends.
pub fn run(
    workflow: &Workflow,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(WorkflowEvent<'_>),
) -> Result<WorkflowReport> {
    workflow.check()?;
    let _lock = lock(workflow.output())?;
    let mut jobs: Vec<JobReport> = Vec::new();
    for group in workflow.groups() {
        let done = together(workflow, group, jobs.len(), interrupt, on_event)?;
        let stopped = done.iter().find(|report| report.outcome == Outcome::Interrupted);
        let stopped = stopped.map(|report| report.job.clone());
        jobs.extend(done);
        let next = workflow.jobs().get(jobs.len()).filter(|_| interrupt.is_raised());
        if let Some(at) = stopped.as_ref().or(next) {
            tell(workflow, Stand::Stopped(at));
            return Ok(WorkflowReport { outcome: Outcome::Interrupted, jobs, look_at: Vec::new() });
        }
    }
    notebook::write(workflow, Stand::Done)?;
    Ok(WorkflowReport { outcome: overall(&jobs), jobs, look_at: workflow.look_at() })
}

/// What a job's thread tells, by the job's place in its group.
enum Said {
    Begins,
    Progress(Progress),
    Ends(Result<JobReport>),
}

/// Runs the jobs of a group, as many at a time as the recipe says, and gives the reports of those that ran, in their order.
/// After a job that fails or is interrupted no other begins.
fn together(
    workflow: &Workflow,
    group: &[Job],
    before: usize,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(WorkflowEvent<'_>),
) -> Result<Vec<JobReport>> {
    let of = workflow.jobs().len();
    let next = AtomicUsize::new(0);
    let mut reports: Vec<Option<JobReport>> = group.iter().map(|_| None).collect();
    let mut is_told = vec![false; group.len()];
    let mut failed: Option<(usize, Error)> = None;
    let tell_of_work = |reports: &[Option<JobReport>], is_told: &[bool]| {
        if let Some(i) = (0..group.len()).find(|i| is_told[*i] && reports[*i].is_none()) {
            tell(workflow, Stand::AtWork(&group[i]));
        }
    };
    thread::scope(|scope| {
        let (say, said) = mpsc::channel();
        for _ in 0..workflow.trainings_at_once().min(group.len()) {
            let say = say.clone();
            scope.spawn(|| work(workflow, group, &next, interrupt, say));
        }
        drop(say);
        for (i, said) in said {
            let job = &group[i];
            match said {
                Said::Begins => on_event(WorkflowEvent::Begins { job, number: before + i + 1, of }),
                Said::Progress(progress) => {
                    // Of jobs that are found done there is no progress.
                    if !std::mem::replace(&mut is_told[i], true) {
                        tell_of_work(&reports, &is_told);
                    }
                    on_event(WorkflowEvent::Progress { job, progress });
                }
                Said::Ends(Ok(report)) => {
                    on_event(WorkflowEvent::Ends { report: &report });
                    reports[i] = Some(report);
                    tell_of_work(&reports, &is_told);
                }
                Said::Ends(Err(error)) => {
                    on_event(WorkflowEvent::Failed { job, error: &error });
                    is_told[i] = false;
                    failed.get_or_insert((i, error));
                }
            }
        }
    });
    match failed {
        Some((i, error)) => {
            tell(workflow, Stand::Stopped(&group[i]));
            Err(error)
        }
        None => Ok(reports.into_iter().flatten().collect()),
    }
}

/// Takes one job of the group after the other.
fn work(
    workflow: &Workflow,
    group: &[Job],
    next: &AtomicUsize,
    interrupt: &Interrupt,
    say: Sender<(usize, Said)>,
) {
    // The receiver listens until all are through.
    let say = |i, said| say.send((i, said)).unwrap_or_default();
    loop {
        let i = next.fetch_add(1, Ordering::Relaxed);
        let Some(job) = group.get(i) else { return };
        say(i, Said::Begins);
        let mut on_progress = |progress| say(i, Said::Progress(progress));
        let result = workflow.plan(job).and_then(|plan| plan.run(job, interrupt, &mut on_progress));
        let is_through = result.as_ref().is_ok_and(|report| report.outcome != Outcome::Interrupted);
        if !is_through || interrupt.is_raised() {
            next.store(group.len(), Ordering::Relaxed);
        }
        say(i, Said::Ends(result));
    }
}

/// Writes the notebook of a run that is not through: a page that cannot be written is not worth a night's work.
fn tell(workflow: &Workflow, stand: Stand<'_>) {
    notebook::write(workflow, stand).ok();
}

/// Keeps a second run out of the folder, for as long as the file is open: a killed run leaves no lock behind.
fn lock(output: &Path) -> Result<File> {
    create_dir(output)?;
    let failed = |source| Error::Output { output: output.to_path_buf(), source };
    let file = File::create(output.join(".lock")).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Busy { output: output.to_path_buf() }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Skipped inputs anywhere are worth an exit code of their own; unchanged means that no job had anything to do.
fn overall(jobs: &[JobReport]) -> Outcome {
    if jobs.iter().any(|report| report.outcome == Outcome::Skipped) {
        Outcome::Skipped
    } else if jobs.iter().all(|report| report.outcome == Outcome::Unchanged) {
        Outcome::Unchanged
    } else {
        Outcome::Done
    }
}

impl Workflow {
    /// The jobs in their order, those together that may run side by side: trainings in a row, none of which starts from another.
    fn groups(&self) -> impl Iterator<Item = &[Job]> {
        self.jobs().chunk_by(|a, b| matches!((a, b), (Job::Train(_), Job::Train(_))))
    }

    /// The files that a person will want to open.
    fn look_at(&self) -> Vec<PathBuf> {
        let sheets = self.jobs().iter().filter_map(|job| match job {
            Job::Grid(_) | Job::Report | Job::Probe(_) | Job::Choose(_) => {
                Some(self.output_of(job).join("index.html"))
            }
            _ => None,
        });
        std::iter::once(self.output().join(notebook::PAGE)).chain(sheets).collect()
    }
}

impl Report for WorkflowReport {
    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

impl fmt::Display for WorkflowReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unchanged = self.jobs.iter().filter(|report| report.outcome == Outcome::Unchanged).count();
        match self.outcome {
            Outcome::Unchanged => write!(f, "nothing to do: all {unchanged} jobs are done already")?,
            Outcome::Interrupted => {
                let through =
                    self.jobs.iter().filter(|report| report.outcome != Outcome::Interrupted).count();
                write!(f, "{through} jobs are through")?;
            }
            _ => write!(f, "{} jobs are through, {unchanged} of them were done already", self.jobs.len())?,
        }
        if !self.look_at.is_empty() {
            write!(f, "\nlook at:")?;
        }
        self.look_at.iter().try_for_each(|path| write!(f, "\n  {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_run_is_kept_out_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock(dir.path()).unwrap();
        assert!(lock(dir.path()).unwrap_err().to_string().starts_with("another run works in"));
        drop(first);
        lock(dir.path()).unwrap();
    }
}
