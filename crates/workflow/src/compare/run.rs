//! Reads the runs, and writes what they say beside each other.

use std::{
    collections::BTreeSet,
    error, fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use vodka_stage::{Outcome, Report, RunKey, RunRecord, create_dir, lossy, nearest, record_path};

use super::{
    ComparePlan, Difference, Line, Subject,
    numbers::{self, Measured},
    page, settings,
};
use crate::{
    Error, ProbeReport,
    choose::probe_report,
    judge::write_table,
    pages::told,
    probe::{rows::Rows, table::told as cells},
};

/// What the stage's functions return: any stage's error.
type Result<T, E = Box<dyn error::Error + Send + Sync>> = std::result::Result<T, E>;

/// Raised when equal tables make other numbers than before.
const ARITHMETIC: u32 = 2;

/// What the stage has done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompareReport {
    /// How it ended.
    pub outcome: Outcome,
    /// The folder with tables and page.
    #[serde(serialize_with = "lossy")]
    pub output: PathBuf,
    /// The runs, in order.
    pub runs: Vec<String>,
    /// What is not the same in all of them.
    pub differences: Vec<Difference>,
    /// The models that are shown, in order; the others are compared with the first.
    pub subjects: Vec<Subject>,
    /// Models that are the same file as one before them, with pictures that are all among that one's; and that one.
    pub same: Vec<[Subject; 2]>,
    /// All numbers.
    pub lines: Vec<Line>,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.run, self.model)
    }
}

/// A run as it was read.
struct Read {
    name: String,
    report: ProbeReport,
    record: RunRecord,
    rows: Rows,
}

impl ComparePlan {
    /// What the outputs depend on.
    ///
    /// # Errors
    /// Tables or records that cannot be read.
    pub fn key(&self) -> Result<RunKey> {
        #[derive(Serialize)]
        struct Key<'a> {
            arithmetic: u32,
            page: String,
            runs: Vec<&'a str>,
            models: &'a [String],
            differences: Vec<Difference>,
        }
        let key = Key {
            arithmetic: ARITHMETIC,
            page: crate::pages::version().to_string(),
            runs: self.runs.iter().map(|run| run.name.as_str()).collect(),
            models: &self.models,
            differences: self.differences()?,
        };
        let mut key = RunKey::new("compare", &key, None);
        for run in &self.runs {
            let (pictures, record) = (run.probe.join("pictures.csv"), record_path(&run.probe));
            key = key.input(&format!("pictures of {}", run.name), &pictures, |_| true)?;
            key = key.input(&format!("numbers of {}", run.name), &record, |_| true)?;
        }
        Ok(key)
    }

    fn differences(&self) -> Result<Vec<Difference>, Error> {
        let read = |run: &super::Compared| settings::read(run.folder.as_deref(), &run.probe);
        let mut all: Vec<_> = self.runs.iter().map(read).collect::<Result<_, Error>>()?;
        if self.runs.iter().any(|run| run.folder.is_none()) {
            settings::probes(&mut all);
        }
        Ok(settings::differences(&all))
    }

    fn read(&self) -> Result<Vec<Read>, Error> {
        let read = |run: &super::Compared| {
            Ok(Read {
                name: run.name.clone(),
                report: probe_report(&run.probe)?,
                record: RunRecord::read(&record_path(&run.probe))?,
                rows: Rows::read(&run.probe.join("pictures.csv"))?,
            })
        };
        self.runs.iter().map(read).collect()
    }

    /// Every model that is wanted, each file once.
    fn subjects<'r>(&self, runs: &'r [Read]) -> Result<(Vec<Measured<'r>>, Vec<[Subject; 2]>), Error> {
        let known: BTreeSet<&str> =
            runs.iter().flat_map(|run| &run.report.models).map(String::as_str).collect();
        if let Some(name) = self.models.iter().find(|name| !known.contains(name.as_str())) {
            return Err(Error::CompareModel {
                name: name.clone(),
                nearest: nearest(name, known.iter().copied()).map(ToOwned::to_owned),
            });
        }
        let mut found: Vec<(Option<String>, Measured<'r>)> = Vec::new();
        let mut same = Vec::new();
        for run in runs {
            let wanted = |model: &&String| self.models.is_empty() || self.models.contains(model);
            for model in run.report.models.iter().filter(wanted) {
                let subject = Subject { run: run.name.clone(), model: model.clone() };
                let input = run.record.inputs.get(&format!("model {model}"));
                let hash = input.map(|input| input.sha256.to_string());
                let measured = Measured { subject, table: &run.rows, results: &run.report.results };
                let is_same = |(other, before): &&(Option<String>, Measured<'r>)| {
                    hash.is_some() && *other == hash && measured.is_part_of(before)
                };
                match found.iter().find(is_same) {
                    Some((_, before)) => same.push([measured.subject, before.subject.clone()]),
                    None => found.push((hash, measured)),
                }
            }
        }
        Ok((found.into_iter().map(|(_, measured)| measured).collect(), same))
    }
}

/// Reads records and tables, and writes tables, charts and pages.
///
/// # Errors
/// A probe that has not run; a model that none has; files that cannot be read or written.
pub fn run(plan: &ComparePlan) -> Result<CompareReport> {
    let record = record_path(&plan.output);
    let key = plan.key()?;
    if let Some(report) = key.made::<CompareReport>(&record)? {
        return Ok(CompareReport { outcome: Outcome::Unchanged, output: plan.output.clone(), ..report });
    }
    let runs = plan.read()?;
    let (measured, same) = plan.subjects(&runs)?;
    let report = CompareReport {
        outcome: Outcome::Done,
        output: plan.output.clone(),
        runs: plan.runs.iter().map(|run| run.name.clone()).collect(),
        differences: plan.differences()?,
        subjects: measured.iter().map(|measured| measured.subject.clone()).collect(),
        same,
        lines: numbers::lines(&measured),
    };
    create_dir(&plan.output)?;
    write_numbers(&plan.output.join("comparison.csv"), &report)?;
    write_settings(&plan.output.join("settings.csv"), &report)?;
    page::write(plan, &report)?;
    key.write(&record, &[&plan.output], &report)?;
    Ok(report)
}

fn write_numbers(path: &Path, report: &CompareReport) -> Result<(), Error> {
    let head = [
        "run",
        "model",
        "measure",
        "tag",
        "n",
        "value",
        "low",
        "high",
        "difference",
        "difference_low",
        "difference_high",
        "responds",
    ];
    let rows = report.lines.iter().map(|line| {
        let names = [
            line.subject.run.clone(),
            line.subject.model.clone(),
            line.measure.clone(),
            line.tag.clone().unwrap_or_default(),
            line.value.map_or(0, |value| value.n).to_string(),
        ];
        let responds = line.responds.map(|responds| u8::from(responds).to_string()).unwrap_or_default();
        let numbers = cells(line.value).into_iter().chain(cells(line.difference)).chain([responds]);
        names.into_iter().chain(numbers).collect()
    });
    write_table(path, &head, rows)
}

fn write_settings(path: &Path, report: &CompareReport) -> Result<(), Error> {
    let head: Vec<&str> =
        ["job", "setting"].into_iter().chain(report.runs.iter().map(String::as_str)).collect();
    let rows = report.differences.iter().map(|row| {
        let values = row.values.iter().map(|value| value.clone().unwrap_or_default());
        [row.job.clone(), row.setting.clone()].into_iter().chain(values).collect()
    });
    write_table(path, &head, rows)
}

impl Report for CompareReport {
    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

impl fmt::Display for CompareReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { differences, subjects, lines, output, .. } = self;
        write!(
            f,
            "{} models of {} runs, {} settings differ",
            subjects.len(),
            self.runs.len(),
            differences.len()
        )?;
        for subject in subjects {
            let own = || lines.iter().filter(|line| line.subject == *subject);
            let adherence = own().find(|line| line.measure == Line::ADHERENCE).and_then(|line| line.value);
            let asked = own().filter(|line| line.measure == Line::ASKED);
            let respond: Vec<_> =
                asked.filter(|line| line.responds == Some(true)).filter_map(|l| l.tag.as_deref()).collect();
            let adherence = adherence.as_ref().map_or_else(|| "-".to_owned(), told);
            let respond = if respond.is_empty() { "no tag".to_owned() } else { respond.join(", ") };
            write!(f, "\n{subject}: responds to {respond}; adherence {adherence}")?;
        }
        for [copy, first] in &self.same {
            write!(f, "\n{copy} is {first}")?;
        }
        write!(f, "\nlook at {}", output.join("index.html").display())
    }
}
