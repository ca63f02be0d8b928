//! Lists, excludes, copies or links the pictures that fit a query.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use vodka_stage::{Interrupt, Outcome, Report, RunKey, record_path};

pub use crate::place::{Method, Placed};
use crate::{
    Error, Result,
    caption::{check_apart, resolved},
    heard,
    place::{Item, items, left_behind, place},
    query::{
        Dataset, DatasetPlan, Facts, Loaded, Needs, Part, Query, Unread, check_shared, evaluate, exclusions,
    },
    sheet::read_text,
};

/// The stage's name in records and on lists.
const STAGE: &str = "filter";

/// A filter as a user wants it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilterConfig {
    /// What is asked.
    pub dataset: Dataset,
    /// The query.
    #[serde(default)]
    pub query: Option<String>,
    /// A file with the query, which may have comments from `#` to the end of the line.
    #[serde(default)]
    pub query_file: Option<PathBuf>,
    /// What happens to the pictures that fit.
    pub action: Action,
    /// Whether the report tells how many pictures fit each part of the query.
    #[serde(default)]
    pub explain: bool,
}

/// What happens to the pictures that fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// They are counted.
    Count,
    /// They are named, one event each.
    List,
    /// They are put on a list of pictures to leave out, which [`Dataset::without`] takes.
    Exclude {
        /// The CSV to write: `image`, `reason`.
        output: PathBuf,
    },
    /// They are put into another folder with their captions, in the same subfolders.
    Place {
        /// The folder.
        output: PathBuf,
        /// How.
        method: Method,
    },
}

/// A filter whose settings and query have been checked.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FilterPlan {
    /// What is asked.
    pub dataset: DatasetPlan,
    /// The query.
    pub query: Query,
    /// What happens to the pictures that fit.
    pub action: Action,
    /// Whether the report tells how many pictures fit each part of the query.
    pub explain: bool,
}

impl FilterConfig {
    /// Parses the query and checks what can be checked without reading the dataset.
    ///
    /// # Errors
    /// See [`Dataset::plan`]; no query, or two; one that is wrong, or needs what the dataset does not have; pictures that
    /// are to be put into the folder they are in; a list that would replace what it is made from.
    pub fn plan(&self) -> Result<FilterPlan> {
        let dataset = self.dataset.plan()?;
        let query = match (&self.query, &self.query_file) {
            (Some(text), None) => text.parse()?,
            (None, Some(path)) => read_query(path)?,
            (Some(_), Some(_)) => return Err(Error::OneQuery { found: "both" }),
            (None, None) => return Err(Error::OneQuery { found: "neither" }),
        };
        dataset.check(&query)?;
        if let Action::Exclude { output } = &self.action {
            let Dataset { tags, pictures, labels, without, .. } = dataset.dataset();
            let mut inputs = tags.iter().chain(pictures).chain(labels).chain(without).chain(&self.query_file);
            if inputs.any(|input| resolved(input) == resolved(output)) {
                return Err(Error::OutputIsInput { path: output.clone() });
            }
        }
        if let Action::Place { output, .. } = &self.action {
            let images = dataset.dataset().images.as_ref();
            check_apart(output, images.ok_or(Error::NoFolder { what: "copying" })?)?;
            dataset.captions().map_or(Ok(()), |captions| check_apart(output, captions))?;
        }
        Ok(FilterPlan { dataset, query, action: self.action.clone(), explain: self.explain })
    }
}

/// A query in a file.
fn read_query(path: &Path) -> Result<Query> {
    let place = || format!("`{}`", path.display());
    read_text(path)?.parse().map_err(|source| Error::QueryIn { place: place(), source })
}

/// What is known before the query is asked.
enum Asked {
    /// The list is there already.
    There(Box<FilterReport>),
    /// The dataset, and the key of what is written.
    Loaded(Option<RunKey>, Loaded),
}

impl FilterPlan {
    fn output(&self) -> Option<&PathBuf> {
        match &self.action {
            Action::Exclude { output } | Action::Place { output, .. } => Some(output),
            Action::Count | Action::List => None,
        }
    }

    /// Reads the dataset, unless nothing is to be done.
    fn asked(&self) -> Result<Asked> {
        let needs = Needs::of([&self.query]);
        let on_disk = self.dataset.on_disk(needs)?;
        let key = self.output().map(|_| self.key_of(&on_disk.pictures, needs)).transpose()?;
        if let (Some(key), Action::Exclude { output }) = (&key, &self.action)
            && let Some(report) = key.made::<FilterReport>(&record_path(output))?
        {
            let output = Some(output.clone());
            return Ok(Asked::There(Box::new(FilterReport {
                outcome: Outcome::Unchanged,
                output,
                ..report
            })));
        }
        Ok(Asked::Loaded(key, self.dataset.complete(&[&self.query], needs, on_disk)?))
    }

    /// All that the list or the folder depends on; what lies in a folder is compared file by file when it runs.
    ///
    /// # Errors
    /// The dataset cannot be read.
    pub fn key(&self) -> Result<RunKey> {
        let needs = Needs::of([&self.query]);
        self.key_of(&self.dataset.on_disk(needs)?.pictures, needs)
    }

    fn key_of(&self, pictures: &[Facts], needs: Needs) -> Result<RunKey> {
        let Dataset { min_score, lenient, .. } = self.dataset.dataset();
        let settings = json!({
            "query": self.query,
            "min_score": f64::from(*min_score),
            "lenient": lenient,
            "explain": self.explain,
            "method": match &self.action { Action::Place { method, .. } => Some(method), _ => None },
        });
        self.dataset.inputs(RunKey::new(STAGE, &settings, None), pictures, needs)
    }
}

/// What a filter tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilterEvent {
    /// A picture fits ([`Action::List`]).
    Fits {
        /// The picture, as tables name it.
        image: String,
    },
    /// This many files are to be put ([`Action::Place`]).
    Placing {
        /// How many.
        files: u64,
    },
    /// Files have been put.
    Placed {
        /// How many so far.
        files: u64,
    },
}

/// What a filter has done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FilterReport {
    /// How it ended.
    pub outcome: Outcome,
    /// The query, in its plain spelling.
    pub query: String,
    /// How many pictures were asked.
    pub images: u64,
    /// How many fit.
    pub fit: u64,
    /// The file or folder that was written.
    pub output: Option<PathBuf>,
    /// Those that fit, where they are listed.
    pub listed: Vec<String>,
    /// How many fit each part of the query, where that was wanted.
    pub parts: Vec<Part>,
    /// What was put into the folder.
    pub placed: Option<Placed>,
    /// Pictures that fit and are not on disk.
    pub missing: Vec<String>,
    /// Pictures that cannot be read.
    pub unread: Vec<Unread>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

impl FilterReport {
    /// Before anything has been read.
    fn empty(plan: &FilterPlan) -> Self {
        Self {
            outcome: Outcome::Done,
            query: plan.query.to_string(),
            images: 0,
            fit: 0,
            output: plan.output().cloned(),
            listed: Vec::new(),
            parts: Vec::new(),
            placed: None,
            missing: Vec::new(),
            unread: Vec::new(),
            warnings: Vec::new(),
        }
    }
}

impl Report for FilterReport {
    fn outcome(&self) -> Outcome {
        self.outcome.with_skips(!self.missing.is_empty() || !self.unread.is_empty())
    }
}

impl fmt::Display for FilterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { images, fit, query, .. } = self;
        write!(f, "{fit} of {images} pictures fit `{query}`")?;
        explained(f, &self.parts)?;
        if let Some(output) = &self.output {
            let output = output.display();
            match (self.outcome, &self.placed) {
                (Outcome::Unchanged, _) => write!(f, "\n`{output}` is up to date")?,
                (_, Some(placed)) => write!(f, "\nin `{output}`: {placed}")?,
                (Outcome::Interrupted, None) => write!(f, "\nstopped before `{output}` was complete")?,
                (_, None) => write!(f, "\nlisted in `{output}`")?,
            }
        }
        let missing = self.missing.iter().map(|image| format!("skipped `{image}`: not on disk"));
        lines(f, missing)?;
        lines(f, self.unread.iter().map(ToString::to_string))?;
        lines(f, self.warnings.iter().map(|warning| format!("note: {warning}")))
    }
}

impl fmt::Display for Placed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { written, there, removed, left } = self;
        write!(f, "{written} files written, {there} there already, {removed} removed")?;
        lines(f, left.iter().map(|name| format!("left `{name}`: changed since it was put there")))
    }
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "skipped `{}`: {}", self.image, self.reason)
    }
}

/// A line for each part of a query, indented, with its count at the left.
pub(crate) fn explained(f: &mut fmt::Formatter<'_>, parts: &[Part]) -> fmt::Result {
    let width = parts.iter().map(|part| part.images.to_string().len()).max().unwrap_or(0);
    parts.iter().try_for_each(|Part { depth, text, images }| {
        write!(f, "\n  {images:>width$}  {:indent$}{text}", "", indent = 2 * depth)
    })
}

/// The first lines of a list, and how many there are more; JSON has them all.
pub(crate) fn lines(f: &mut fmt::Formatter<'_>, lines: impl IntoIterator<Item = String>) -> fmt::Result {
    const SHOWN: usize = 20;
    let mut lines = lines.into_iter();
    lines.by_ref().take(SHOWN).try_for_each(|line| write!(f, "\n{line}"))?;
    match lines.count() {
        0 => Ok(()),
        more => write!(f, "\n... and {more} more like that"),
    }
}

/// Asks the query and does what is wanted with the pictures that fit.
///
/// A copy goes on where it was killed; a second one writes nothing, and one with another query removes what does not fit
/// any more. Files that no run has put there, or that were changed since, are never touched.
///
/// # Errors
/// A query that needs what the dataset does not have, or names a tag that is not there; a file that cannot be read;
/// tables and a folder that have no picture in common; pictures that share a caption, where captions count; a file in the way; an output that cannot be written.
pub fn run(
    plan: &FilterPlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(FilterEvent),
) -> Result<FilterReport> {
    let asked = plan.clone();
    let (key, loaded) = match heard(interrupt, move || asked.asked()) {
        Err(Error::Stopped) => {
            return Ok(FilterReport { outcome: Outcome::Interrupted, ..FilterReport::empty(plan) });
        }
        Ok(Asked::There(report)) => return Ok(*report),
        Ok(Asked::Loaded(key, loaded)) => (key, loaded),
        Err(error) => return Err(error),
    };
    let answer = evaluate(&plan.query, 0, plan.dataset.dataset().min_score, &loaded.pictures);
    let fits = loaded.pictures.iter().zip(&answer.fits).filter(|(_, fits)| **fits);
    let fits: Vec<_> = fits.map(|(facts, _)| facts).collect();
    let mut report = FilterReport {
        images: loaded.pictures.len() as u64,
        fit: fits.len() as u64,
        parts: if plan.explain { answer.parts } else { Vec::new() },
        unread: loaded.unread,
        warnings: loaded.warnings,
        ..FilterReport::empty(plan)
    };
    let complete = act(plan, &fits, &mut report, interrupt, on_event)?;
    if !complete {
        return Ok(FilterReport { outcome: Outcome::Interrupted, ..report });
    }
    if !report.missing.is_empty() || !report.unread.is_empty() {
        report.outcome = Outcome::Skipped;
    }
    match (key, &plan.action) {
        (Some(key), Action::Exclude { output }) => {
            let fits = fits.iter().map(|facts| (facts.image.clone(), plan.query.to_string()));
            // Not over one that somebody has edited: lists are there for that.
            key.write_files(&record_path(output), &[(output, exclusions(fits).as_bytes())], &report)?;
        }
        (Some(key), Action::Place { output, .. }) => {
            // What is in a folder is compared file by file: hashing it takes as long as copying it.
            key.write(&record_path(output), &[], &report)?;
        }
        _ => {}
    }
    let untouched = report.placed.as_ref().is_some_and(|placed| placed.written + placed.removed == 0);
    if untouched && report.outcome == Outcome::Done {
        report.outcome = Outcome::Unchanged;
    }
    Ok(report)
}

/// Does what is wanted with the pictures that fit, but for the list to leave out, which is written with its record. Whether
/// it came to the end.
fn act(
    plan: &FilterPlan,
    fits: &[&Facts],
    report: &mut FilterReport,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(FilterEvent),
) -> Result<bool> {
    match &plan.action {
        Action::Count => {}
        Action::List => {
            report.listed = fits.iter().map(|facts| facts.image.clone()).collect();
            report.listed.iter().for_each(|image| on_event(FilterEvent::Fits { image: image.clone() }));
        }
        Action::Exclude { .. } => return Ok(!interrupt.is_raised()),
        Action::Place { output, method } => {
            let here = fits.iter().copied().filter(|facts| facts.on_disk);
            let missing = fits.iter().filter(|facts| !facts.on_disk).map(|facts| facts.image.clone());
            report.missing = missing.collect();
            let (all, left) = all_items(plan, here, *method)?;
            report.warnings.extend(left_behind(left));
            on_event(FilterEvent::Placing { files: all.len() as u64 });
            let mut on_placed = |files| on_event(FilterEvent::Placed { files });
            report.placed = place(output, STAGE, &all, interrupt, &mut on_placed)?;
            return Ok(report.placed.is_some());
        }
    }
    Ok(true)
}

/// The pictures with their captions, and how many have captions that do not go with them.
fn all_items<'a>(
    plan: &FilterPlan,
    pictures: impl Iterator<Item = &'a Facts>,
    method: Method,
) -> Result<(Vec<Item<'static>>, usize)> {
    let Some(root) = &plan.dataset.dataset().images else {
        return Err(Error::NoFolder { what: "copying" });
    };
    let captions = plan.dataset.captions().unwrap_or(root);
    let mut all = Vec::new();
    let mut captioned = Vec::new();
    let mut left = 0;
    for facts in pictures {
        let items = items("", &facts.image, root, captions, method)?;
        if items.len() > 1 {
            captioned.push(facts.image.as_str());
        } else {
            left += usize::from(facts.caption.is_some());
        }
        all.extend(items);
    }
    check_shared(captions, captioned)?;
    Ok((all, left))
}
