//! What there is, and what is to be done.

use std::fmt;

use serde::Serialize;
use vodka_stage::{Standing, record_path};

use crate::{Error, Job, Result, Workflow};

/// How a job stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Its outputs are what its inputs and settings make.
    Done,
    /// It is to be run, for this reason.
    Due(String),
    /// It waits for another job.
    Waits(Job),
}

/// A job and how it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JobStatus {
    /// The job.
    pub job: Job,
    /// How it stands.
    pub state: State,
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.job.to_string();
        match &self.state {
            State::Done => write!(f, "done   {name}"),
            State::Due(reason) => write!(f, "due    {name}: {reason}"),
            State::Waits(job) => write!(f, "waits  {name}: for `{job}`"),
        }
    }
}

impl Workflow {
    /// How every job stands; hashes the inputs, runs nothing.
    pub fn status(&self) -> Result<Vec<JobStatus>> {
        let mut all: Vec<JobStatus> = Vec::new();
        for job in self.jobs() {
            let needs = self.needs(job);
            let open = all.iter().find(|before| before.state != State::Done && needs.contains(&before.job));
            let state = match open {
                Some(before) => State::Waits(before.job.clone()),
                None => self.state(job)?,
            };
            all.push(JobStatus { job: job.clone(), state });
        }
        Ok(all)
    }

    fn state(&self, job: &Job) -> Result<State> {
        let key = self.plan(job)?.key().map_err(|source| Error::Stage { job: job.to_string(), source })?;
        Ok(match key.standing(&record_path(&self.output_of(job)))? {
            Standing::Current(_) => State::Done,
            Standing::Stale(reason) => State::Due(reason),
        })
    }
}
