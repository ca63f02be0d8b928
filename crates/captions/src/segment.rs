//! Divides a dataset into folders by queries, each with EveryDream2's settings for a whole folder.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use vodka_stage::{Interrupt, Outcome, Report, RunKey, read_toml, record_path};

use crate::{
    Error, Result,
    caption::check_apart,
    filter::{Method, Placed, lines},
    heard,
    place::{Content, Item, folder_settings, items, left_behind, place},
    query::{Dataset, DatasetPlan, Facts, Loaded, Needs, Query, Unread, check_shared, evaluate},
    sheet,
};

/// The stage's name in records.
const STAGE: &str = "segment";

/// The table of segments in the output folder.
const TABLE: &str = "segments.csv";

/// Segments as a user wants them, in TOML.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentConfig {
    /// What is divided.
    pub dataset: Dataset,
    /// The folder to write, with a folder for each segment in it.
    pub output: PathBuf,
    /// How pictures get there; captions are copied.
    #[serde(default)]
    pub method: Method,
    /// A picture goes into every segment it fits, not into the first only.
    #[serde(default)]
    pub overlap: bool,
    /// The folder for pictures that fit no segment; without one they are left out.
    #[serde(default)]
    pub rest: Option<String>,
    /// How settings are written.
    #[serde(default)]
    pub settings: SettingsForm,
    /// The segments, in order.
    pub segment: Vec<Segment>,
}

/// One segment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// The folder's name. That of the rest, if it is there, gives the rest its settings and has no query.
    pub name: String,
    /// Which pictures are in it.
    #[serde(default)]
    pub query: Option<String>,
    /// How often EveryDream2 shows each picture in an epoch; more than 0, a fraction is a share of the pictures.
    #[serde(default)]
    pub multiply: Option<f64>,
    /// The probability that a picture's caption is left out, 0 to 1.
    #[serde(default)]
    pub cond_dropout: Option<f64>,
    /// The probability that a picture is mirrored, 0 to 1.
    #[serde(default)]
    pub flip_p: Option<f64>,
}

/// The files that hold a folder's settings. Either is for one folder, without those below it, so each subfolder of a
/// segment has its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SettingsForm {
    /// `multiply.txt`, `cond_dropout.txt` and `flip_p.txt`, each with a number.
    #[default]
    #[serde(rename = "txt")]
    Text,
    /// `local.yaml` with the same names as keys.
    #[serde(rename = "local.yaml")]
    LocalYaml,
}

/// Segments whose settings and queries have been checked.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SegmentPlan {
    /// What is divided.
    pub dataset: DatasetPlan,
    /// The folder of pictures.
    images: PathBuf,
    /// The folder to write.
    pub output: PathBuf,
    /// How pictures get there.
    pub method: Method,
    /// Whether a picture goes into every segment it fits.
    pub overlap: bool,
    /// How settings are written.
    pub settings: SettingsForm,
    /// The segments with their queries.
    segments: Vec<(Segment, Query)>,
    /// What becomes of the rest.
    rest: Option<Segment>,
}

impl SegmentConfig {
    /// Reads TOML. Its paths start at the current folder.
    ///
    /// # Errors
    /// The file cannot be read; a key that is unknown or has a wrong value, with its line.
    pub fn read(path: &Path) -> Result<Self> {
        Ok(read_toml(path)?)
    }

    /// Checks what can be checked without reading the dataset.
    ///
    /// # Errors
    /// See [`Dataset::plan`]; no folder of pictures, or one that the output overlaps; no segment; a name that is no
    /// folder's or is there twice; a wrong query; a number outside its range.
    pub fn plan(&self) -> Result<SegmentPlan> {
        let dataset = self.dataset.plan()?;
        let images = self.dataset.images.clone().ok_or(Error::NoFolder { what: "segmenting" })?;
        check_apart(&self.output, &images)?;
        dataset.captions().map_or(Ok(()), |captions| check_apart(&self.output, captions))?;
        let mut rest = self.rest.as_ref().map(|name| Segment { name: name.clone(), ..Segment::default() });
        let mut seen = BTreeSet::new();
        let mut segments = Vec::new();
        for segment in &self.segment {
            segment.check(&mut seen)?;
            match &segment.query {
                None if self.rest.as_ref() == Some(&segment.name) => rest = Some(segment.clone()),
                None => return Err(segment.wrong("it has no query")),
                Some(_) if self.rest.as_ref() == Some(&segment.name) => {
                    return Err(segment.wrong("it is the rest, and has a query"));
                }
                Some(text) => {
                    let place = || format!("the query of the segment `{}`", segment.name);
                    let in_place = |source| Error::QueryIn { place: place(), source };
                    let query: Query = text.parse().map_err(in_place)?;
                    dataset.check(&query).map_err(|error| named(error, segment))?;
                    segments.push((segment.clone(), query));
                }
            }
        }
        let has_entry = self.segment.iter().any(|segment| Some(&segment.name) == self.rest.as_ref());
        if let Some(rest) = rest.as_ref().filter(|_| !has_entry) {
            rest.check(&mut seen)?;
        }
        if segments.is_empty() {
            return Err(Error::NoSegments);
        }
        let Self { output, method, overlap, settings, .. } = self.clone();
        Ok(SegmentPlan { dataset, images, output, method, overlap, settings, segments, rest })
    }
}

/// A query's error with the segment it belongs to.
fn named(error: Error, segment: &Segment) -> Error {
    match error {
        Error::Query(source) => {
            Error::QueryIn { place: format!("the query of the segment `{}`", segment.name), source }
        }
        other => other,
    }
}

impl Segment {
    fn wrong(&self, fault: impl Into<String>) -> Error {
        Error::Segment { name: self.name.clone(), fault: fault.into() }
    }

    fn check(&self, seen: &mut BTreeSet<String>) -> Result<()> {
        let name = self.name.as_str();
        let forbidden = |c: char| c.is_control() || r#"/\:*?"<>|"#.contains(c);
        if name.is_empty() || name.starts_with('.') || name.ends_with(['.', ' ']) || name.contains(forbidden)
        {
            return Err(self.wrong("its name is no folder's"));
        }
        // Some systems tell no `A` from `a`.
        if !seen.insert(name.to_lowercase()) {
            return Err(self.wrong("another segment has the same name"));
        }
        // EveryDream2 reads 0 as 1.
        if let Some(multiply) = self.multiply.filter(|multiply| !(multiply.is_finite() && *multiply > 0.0)) {
            return Err(self.wrong(format!("`multiply` is {multiply}, expected more than 0")));
        }
        for (setting, value) in [("cond_dropout", self.cond_dropout), ("flip_p", self.flip_p)] {
            if let Some(value) = value.filter(|value| !(0.0..=1.0).contains(value)) {
                return Err(self.wrong(format!("`{setting}` is {value}, expected 0 to 1")));
            }
        }
        Ok(())
    }

    /// The settings that EveryDream2 gets, by name.
    fn settings(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let settings =
            [("multiply", self.multiply), ("cond_dropout", self.cond_dropout), ("flip_p", self.flip_p)];
        settings.into_iter().filter_map(|(name, value)| Some((name, value?)))
    }

    /// The files with the settings, by name.
    fn files(&self, form: SettingsForm) -> Vec<(String, String)> {
        match form {
            SettingsForm::Text => {
                self.settings().map(|(name, value)| (format!("{name}.txt"), format!("{value}\n"))).collect()
            }
            SettingsForm::LocalYaml => {
                let text: String =
                    self.settings().map(|(name, value)| format!("{name}: {value}\n")).collect();
                let file = ("local.yaml".to_owned(), text);
                Some(file).filter(|(_, text)| !text.is_empty()).into_iter().collect()
            }
        }
    }
}

/// What segmenting tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SegmentEvent {
    /// This many files are to be put.
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

/// What segmenting has done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SegmentReport {
    /// How it ended.
    pub outcome: Outcome,
    /// The folder.
    pub output: PathBuf,
    /// How many pictures there are.
    pub images: u64,
    /// The segments in order, the rest last.
    pub segments: Vec<SegmentCount>,
    /// Pictures that are in no segment.
    pub outside: u64,
    /// What was put into the folder.
    pub placed: Placed,
    /// Pictures that cannot be read.
    pub unread: Vec<Unread>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// How large a segment is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SegmentCount {
    /// The folder's name.
    pub name: String,
    /// The query; none for the rest.
    pub query: Option<String>,
    /// How many pictures are in it.
    pub images: u64,
    /// Their share of all pictures in segments, 0 to 1.
    pub share: f64,
    /// How often each is shown in an epoch.
    pub multiply: f64,
    /// How many pictures EveryDream2 shows of it in an epoch.
    pub shown: f64,
    /// Their share of an epoch, 0 to 1.
    pub shown_share: f64,
}

impl Report for SegmentReport {
    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

impl fmt::Display for SegmentReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let output = self.output.display();
        match self.outcome {
            Outcome::Unchanged => write!(f, "the segments in `{output}` are up to date")?,
            Outcome::Interrupted => write!(f, "stopped before the segments in `{output}` were complete")?,
            Outcome::Done | Outcome::Skipped => write!(f, "segments in `{output}`: {}", self.placed)?,
        }
        let width =
            self.segments.iter().map(|segment| segment.name.chars().count()).max().unwrap_or(0).max(7);
        write!(f, "\n  {:width$}  pictures   share  multiply     shown   share", "segment")?;
        for SegmentCount { name, images, share, multiply, shown, shown_share, .. } in &self.segments {
            let (share, shown_share) = (100.0 * share, 100.0 * shown_share);
            write!(
                f,
                "\n  {name:width$}  {images:>8}  {share:>5.1}%  {multiply:>8}  {shown:>8.1}  {shown_share:>5.1}%"
            )?;
        }
        if self.outside > 0 {
            write!(f, "\n{} of {} pictures are in no segment", self.outside, self.images)?;
        }
        lines(f, self.unread.iter().map(ToString::to_string))?;
        lines(f, self.warnings.iter().map(|warning| format!("note: {warning}")))
    }
}

/// Writes the segments. Like a copy of [`crate::filter`] it goes on where it was killed, writes nothing twice, removes
/// what it has put there and is no longer wanted, and touches nothing else.
///
/// # Errors
/// A query that needs what the dataset does not have, or names a tag that is not there; a file that cannot be read;
/// tables and a folder that have no picture in common; pictures that share a caption, where captions count; a file in the way; an output that cannot be written.
pub fn run(
    plan: &SegmentPlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(SegmentEvent),
) -> Result<SegmentReport> {
    let asked = plan.clone();
    let divided = heard(interrupt, move || asked.divided());
    let Divided { key, all, mut report } = match divided {
        Err(Error::Stopped) => {
            let report = report(plan, &Loaded::default(), &[]);
            return Ok(SegmentReport { outcome: Outcome::Interrupted, ..report });
        }
        divided => divided?,
    };
    on_event(SegmentEvent::Placing { files: all.len() as u64 });
    let on_placed = &mut |files| on_event(SegmentEvent::Placed { files });
    let Some(placed) = place(&plan.output, STAGE, &all, interrupt, on_placed)? else {
        return Ok(SegmentReport { outcome: Outcome::Interrupted, ..report });
    };
    let touched = placed.written + placed.removed > 0;
    report.placed = placed;
    // What is in the folders is compared file by file: hashing it takes as long as copying it.
    key.write(&record_path(&plan.output), &[&plan.output.join(TABLE)], &report)?;
    if !touched && report.outcome == Outcome::Done {
        report.outcome = Outcome::Unchanged;
    }
    Ok(report)
}

/// What is to be put into the folder.
struct Divided {
    key: RunKey,
    all: Vec<Item<'static>>,
    report: SegmentReport,
}

impl SegmentPlan {
    /// Reads the dataset and asks the queries.
    fn divided(&self) -> Result<Divided> {
        let queries: Vec<_> = self.segments.iter().map(|(_, query)| query).collect();
        let needs = Needs::of(queries.iter().copied());
        let on_disk = self.dataset.on_disk(needs)?;
        let key = self.key(&on_disk.pictures, needs)?;
        let loaded = self.dataset.complete(&queries, needs, on_disk)?;
        let members = members(self, &loaded);
        let mut report = report(self, &loaded, &members);
        let all = all_items(self, &loaded.pictures, &members, &mut report)?;
        Ok(Divided { key, all, report })
    }

    fn key(&self, pictures: &[Facts], needs: Needs) -> Result<RunKey> {
        let Dataset { min_score, lenient, .. } = self.dataset.dataset();
        let settings = json!({
            "segments": self.segments,
            "rest": self.rest,
            "overlap": self.overlap,
            "method": self.method,
            "settings": self.settings,
            "min_score": f64::from(*min_score),
            "lenient": lenient,
        });
        self.dataset.inputs(RunKey::new(STAGE, &settings, None), pictures, needs)
    }

    /// The segments, the rest last.
    fn all(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().map(|(segment, _)| segment).chain(&self.rest)
    }
}

/// The places of each segment's pictures, the rest last if there is one.
fn members(plan: &SegmentPlan, loaded: &Loaded) -> Vec<Vec<usize>> {
    let min_score = plan.dataset.dataset().min_score;
    let mut taken = vec![false; loaded.pictures.len()];
    let mut slot = 0;
    let mut members = Vec::new();
    for (_, query) in &plan.segments {
        let fits = evaluate(query, slot, min_score, &loaded.pictures).fits;
        slot += query.score_tests().count();
        let here = |place: &usize| {
            fits[*place] && (plan.overlap || !taken[*place]) && loaded.pictures[*place].on_disk
        };
        let here: Vec<_> = (0..fits.len()).filter(here).collect();
        here.iter().for_each(|place| taken[*place] = true);
        members.push(here);
    }
    if plan.rest.is_some() {
        let rest = (0..taken.len()).filter(|place| !taken[*place] && loaded.pictures[*place].on_disk);
        members.push(rest.collect());
    }
    members
}

fn report(plan: &SegmentPlan, loaded: &Loaded, members: &[Vec<usize>]) -> SegmentReport {
    let all: usize = members.iter().map(Vec::len).sum();
    let weight =
        |segment: &Segment, members: &[usize]| segment.multiply.unwrap_or(1.0) * members.len() as f64;
    let shown_all: f64 = plan.all().zip(members).map(|(segment, members)| weight(segment, members)).sum();
    let share = |part: f64, all: f64| if all > 0.0 { part / all } else { 0.0 };
    let queries = plan.segments.iter().map(|(_, query)| Some(query.to_string())).chain([None]);
    let count = |((segment, members), query): ((&Segment, &Vec<usize>), Option<String>)| SegmentCount {
        name: segment.name.clone(),
        query,
        images: members.len() as u64,
        share: share(members.len() as f64, all as f64),
        multiply: segment.multiply.unwrap_or(1.0),
        shown: weight(segment, members),
        shown_share: share(weight(segment, members), shown_all),
    };
    let inside: BTreeSet<_> = members.iter().flatten().collect();
    SegmentReport {
        outcome: if loaded.unread.is_empty() { Outcome::Done } else { Outcome::Skipped },
        output: plan.output.clone(),
        images: loaded.pictures.len() as u64,
        segments: plan.all().zip(members).zip(queries).map(count).collect(),
        outside: (loaded.pictures.len() - inside.len()) as u64,
        placed: Placed::default(),
        unread: loaded.unread.clone(),
        warnings: loaded.warnings.clone(),
    }
}

/// All files of all segments; what EveryDream2 was told about their old folders becomes a warning.
fn all_items(
    plan: &SegmentPlan,
    pictures: &[Facts],
    members: &[Vec<usize>],
    report: &mut SegmentReport,
) -> Result<Vec<Item<'static>>> {
    let captions = plan.dataset.captions().unwrap_or(&plan.images);
    let mut all = BTreeMap::new();
    let mut old_folders = BTreeSet::new();
    let (mut captioned, mut left) = (BTreeSet::new(), BTreeSet::new());
    for (segment, members) in plan.all().zip(members) {
        let files = segment.files(plan.settings);
        for place in members {
            let image = pictures[*place].image.as_str();
            let items = items(&segment.name, image, &plan.images, captions, plan.method)?;
            if items.len() > 1 {
                captioned.insert(image);
            } else if pictures[*place].caption.is_some() {
                left.insert(image);
            }
            all.extend(items.into_iter().map(|item| (item.name, item.content)));
            let folder = image.rsplit_once('/').map(|(folder, _)| folder);
            old_folders.insert(folder.unwrap_or_default());
            let below = folder.map(|folder| format!("/{folder}")).unwrap_or_default();
            for (name, text) in &files {
                let path = format!("{}{below}/{name}", segment.name);
                let is_another =
                    |before: Content| !matches!(before, Content::Text(before) if before == *text);
                // The caption of a picture `multiply.png`, say.
                if all.insert(path.clone(), Content::Text(text.clone())).is_some_and(is_another) {
                    return Err(segment.wrong(format!("`{path}` would be a caption and a setting")));
                }
            }
        }
    }
    check_shared(captions, captioned)?;
    report.warnings.extend(left_behind(left.len()));
    for folder in old_folders {
        let found = folder_settings(&plan.images.join(folder));
        if !found.is_empty() {
            let folder = plan.images.join(folder);
            report.warnings.push(format!(
                "what EveryDream2 is told about `{}` stays behind: {}",
                folder.display(),
                found.join(", ")
            ));
        }
    }
    all.insert(TABLE.to_owned(), Content::Text(table(&report.segments)));
    Ok(all.into_iter().map(|(name, content)| Item { name, content }).collect())
}

fn table(segments: &[SegmentCount]) -> String {
    let rows = segments.iter().map(|segment| {
        let SegmentCount { name, query, images, share, multiply, shown, shown_share } = segment;
        let share = [share, shown_share].map(|share| format!("{share:.4}"));
        let query = query.clone().unwrap_or_default();
        let [share, shown_share] = share;
        vec![
            name.clone(),
            images.to_string(),
            share,
            multiply.to_string(),
            shown.to_string(),
            shown_share,
            query,
        ]
    });
    let header = ["segment", "pictures", "share", "multiply", "shown", "shown_share", "query"];
    sheet::text(header, rows)
}
