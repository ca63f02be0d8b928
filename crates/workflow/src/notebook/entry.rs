//! What the notebook tells of one job.

use std::{
    error, fmt, fs,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use image::{ImageFormat, imageops::FilterType};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use vodka_captions::{
    caption::CaptionReport, clean::CleanReport, filter::FilterReport, mix::MixReport,
    recaption::RecaptionReport, report::ReportSummary, select::SelectReport,
};
use vodka_merger::MergeReport;
use vodka_sampler::GridReport;
use vodka_stage::{RunRecord, record_path};
use vodka_tagger::TagReport;
use vodka_trainer::TrainReport;

use crate::{ChooseReport, Error, Job, JudgeReport, ProbeReport, Result, Workflow, pages};

/// The widest that a picture stands in the page, in pixels; the file that it leads to is whole.
const PICTURE_PX: u32 = 1400;
/// The most rows of a table in the page; the file has all.
const ROWS: usize = 60;

/// What the notebook tells of one job. Links are relative to the folder of the workflow.
#[derive(Debug, Serialize)]
pub(super) struct Entry {
    name: String,
    /// What it does, in a sentence.
    told: String,
    /// Its record.
    record: String,
    /// The page that the job made.
    page: Option<String>,
    /// What came of it, in the stage's own words, a line each.
    said: Vec<String>,
    /// Whether that belongs into the summary: what was measured and chosen.
    is_finding: bool,
    /// What it reported, in single values.
    results: Vec<[String; 2]>,
    settings: String,
    /// Name, path, hash.
    inputs: Vec<[String; 3]>,
    pictures: Vec<Picture>,
    tables: Vec<Table>,
}

#[derive(Debug, Serialize)]
struct Picture {
    link: String,
    data: String,
}

#[derive(Debug, Serialize)]
struct Table {
    link: String,
    head: Vec<String>,
    rows: Vec<Vec<String>>,
    /// How many rows are in the file only.
    more: usize,
}

type Cause = Box<dyn error::Error + Send + Sync>;

impl Entry {
    /// Nothing for a job that has left no record.
    pub(super) fn read(workflow: &Workflow, job: &Job) -> Result<Option<Self>> {
        let output = workflow.output_of(job);
        let record = record_path(&output);
        if !record.exists() {
            return Ok(None);
        }
        let found = RunRecord::read(&record)?;
        let reader = Reader { root: workflow.output() };
        let page = output.join("index.html");
        Ok(Some(Self {
            name: job.to_string(),
            told: told(job).to_owned(),
            record: reader.link(&record),
            page: page.exists().then(|| reader.link(&page)),
            said: said(job, &found.report, workflow.output()),
            is_finding: matches!(job, Job::Probe(_) | Job::Choose(_)),
            results: single_values(&found.report),
            settings: serde_json::to_string_pretty(&found.settings).expect("it was JSON"),
            inputs: found
                .inputs
                .iter()
                .map(|(name, input)| {
                    [name.clone(), input.path.display().to_string(), input.sha256.to_string()]
                })
                .collect(),
            pictures: reader.pictures(&pictures(job, &output))?,
            tables: reader.tables(&tables(job, &output))?,
        }))
    }
}

fn told(job: &Job) -> &'static str {
    match job {
        Job::Tag => "The tagger scores every picture.",
        Job::Clean => "The scores go through the rules.",
        Job::Filter => "Pictures are left out.",
        Job::Recaption => "A captioner's captions are put beside those of the pictures.",
        Job::Mix => "Each picture gets the captioner's caption or its own.",
        Job::Select => "The tags worth having are chosen.",
        Job::Report => "What the tags do in the data set, to look at.",
        Job::Caption => "The best tags of each picture go into its caption.",
        Job::Train(_) => "A model is fine-tuned.",
        Job::Merge(_) => "Models are mixed.",
        Job::Grid(_) => "Models are compared on the same prompts and seeds.",
        Job::Judge(_) => "The tagger scores the cells of the grid.",
        Job::Probe(_) => "What tags do to the pictures of models is measured.",
        Job::Choose(_) => "One of the models is chosen by what was measured.",
    }
}

/// What a report says to people, with paths relative to the folder of the workflow. Nothing of one that cannot be read: its
/// values are there.
fn said(job: &Job, report: &Value, output: &Path) -> Vec<String> {
    fn of<R: DeserializeOwned + fmt::Display>(report: &Value) -> Option<String> {
        R::deserialize(report).ok().map(|report| report.to_string())
    }
    let text = match job {
        Job::Tag => of::<TagReport>(report),
        Job::Clean => of::<CleanReport>(report),
        Job::Filter => of::<FilterReport>(report),
        Job::Select => of::<SelectReport>(report),
        Job::Report => of::<ReportSummary>(report),
        Job::Recaption => of::<RecaptionReport>(report),
        Job::Mix => of::<MixReport>(report),
        Job::Caption => of::<CaptionReport>(report),
        Job::Train(_) => of::<TrainReport>(report),
        Job::Merge(_) => of::<MergeReport>(report),
        Job::Grid(_) => of::<GridReport>(report),
        Job::Judge(_) => of::<JudgeReport>(report),
        Job::Probe(_) => of::<ProbeReport>(report),
        Job::Choose(_) => of::<ChooseReport>(report),
    };
    let text = text.unwrap_or_default().replace(&format!("{}/", output.display()), "");
    text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

/// The pictures that a job made to be looked at.
fn pictures(job: &Job, output: &Path) -> Vec<PathBuf> {
    let all_in = |folder: &str, ending: &str, most: usize| {
        let mut files: Vec<PathBuf> = fs::read_dir(output.join(folder))
            .map(|entries| entries.filter_map(|entry| entry.ok()).map(|entry| entry.path()).collect())
            .unwrap_or_default();
        files.retain(|path| path.extension().is_some_and(|found| found == ending));
        files.sort();
        files.truncate(most);
        files
    };
    match job {
        Job::Train(_) => [output.join("losses.svg")].into_iter().filter(|path| path.exists()).collect(),
        Job::Grid(_) => all_in("", "png", 4),
        Job::Probe(_) => [all_in("charts", "svg", 8), all_in("gallery", "png", 3)].concat(),
        Job::Choose(_) => all_in("", "svg", 1),
        _ => Vec::new(),
    }
}

/// The tables of a job that are short enough to be read.
fn tables(job: &Job, output: &Path) -> Vec<PathBuf> {
    let names: &[&str] = match job {
        Job::Probe(_) => &["verdicts.csv", "adherence.csv", "fried.csv", "diversity.csv"],
        Job::Choose(_) => &["scorecard.csv", "pairs.csv"],
        _ => &[],
    };
    names.iter().map(|name| output.join(name)).filter(|path| path.exists()).collect()
}

/// Numbers, words and yes or no; lists and objects are in the record.
fn single_values(report: &Value) -> Vec<[String; 2]> {
    let Value::Object(fields) = report else { return Vec::new() };
    let single = |(name, value): (&String, &Value)| {
        let text = match value {
            Value::Bool(_) | Value::Number(_) => value.to_string(),
            Value::String(text) => text.clone(),
            Value::Null | Value::Array(_) | Value::Object(_) => return None,
        };
        Some([name.replace('_', " "), text])
    };
    fields.iter().filter_map(single).collect()
}

/// Reads files of jobs for the page.
struct Reader<'a> {
    root: &'a Path,
}

impl Reader<'_> {
    fn link(&self, path: &Path) -> String {
        pages::link_from(self.root, path)
    }

    fn pictures(&self, files: &[PathBuf]) -> Result<Vec<Picture>> {
        let picture = |path: &PathBuf| {
            let data = embedded(path).map_err(|source| Error::Notebook { path: path.clone(), source })?;
            Ok(Picture { link: self.link(path), data })
        };
        files.iter().map(picture).collect()
    }

    fn tables(&self, files: &[PathBuf]) -> Result<Vec<Table>> {
        let table = |path: &PathBuf| {
            let read =
                rows(path).map_err(|source| Error::Notebook { path: path.clone(), source: source.into() });
            let (head, mut rows) = read?;
            let more = rows.len().saturating_sub(ROWS);
            rows.truncate(ROWS);
            Ok(Table { link: self.link(path), head, rows, more })
        };
        files.iter().map(table).collect()
    }
}

fn rows(path: &Path) -> Result<(Vec<String>, Vec<Vec<String>>), csv::Error> {
    let mut reader = csv::Reader::from_path(path)?;
    let line = |record: &csv::StringRecord| record.iter().map(short).collect();
    let head = reader.headers()?.iter().map(ToOwned::to_owned).collect();
    let rows = reader.records().map(|record| Ok(line(&record?))).collect::<Result<_, csv::Error>>()?;
    Ok((head, rows))
}

/// A long fraction to four digits; the file has all of them.
fn short(cell: &str) -> String {
    match cell.parse::<f64>() {
        Ok(number) if cell.contains('.') && cell.len() > 7 => format!("{number:.4}"),
        _ => cell.to_owned(),
    }
}

/// A data address: charts as they are, pictures as JPEG and not too wide.
fn embedded(path: &Path) -> Result<String, Cause> {
    if path.extension().is_some_and(|ending| ending == "svg") {
        return Ok(format!("data:image/svg+xml;base64,{}", STANDARD.encode(fs::read(path)?)));
    }
    let picture = vodka_images::decode(path)?.into_rgb();
    let (width, height) = picture.dimensions();
    let picture = if width > PICTURE_PX {
        let height = (u64::from(height) * u64::from(PICTURE_PX) / u64::from(width)).max(1) as u32;
        image::imageops::resize(&picture, PICTURE_PX, height, FilterType::Lanczos3)
    } else {
        picture
    };
    let mut file = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut file, ImageFormat::Jpeg)?;
    Ok(format!("data:image/jpeg;base64,{}", STANDARD.encode(file.into_inner())))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_a_report_single_values_are_told() {
        let report = json!({"images": 5, "left_out": null, "files": ["a"], "mean_loss": 0.25, "name": "v3", "resumed": true});
        let told = single_values(&report);
        let told: Vec<_> = told.iter().map(|[name, value]| format!("{name}={value}")).collect();
        assert_eq!(told, ["images=5", "mean loss=0.25", "name=v3", "resumed=true"]);
        assert!(single_values(&json!([1, 2])).is_empty());
    }

    #[test]
    fn long_fractions_are_cut_and_nothing_else_is() {
        assert_eq!(
            ["0.123456789", "12345678", "0.25", "a.bcdefghij", ""].map(short),
            ["0.1235", "12345678", "0.25", "a.bcdefghij", ""]
        );
    }
}
