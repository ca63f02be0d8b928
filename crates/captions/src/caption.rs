//! Puts the best tags of each picture into its caption.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::{Path, PathBuf},
    thread,
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use vodka_stage::{Interrupt, Outcome, Report, RunKey, RunRecord, Standing, record_path, write_atomic};
use walkdir::WalkDir;

pub use crate::Position;
use crate::{
    Caption, Double, Error, Result, Selection, TagScore, TagTable, choose, compose,
    originals::{Original, original_path},
    sidecar::{read_bytes, read_caption},
};

/// The stage's name in run records.
const STAGE: &str = "caption";

/// So many captions are written between two looks at the interrupt.
const BATCH: usize = 128;

/// So many threads write them.
const WRITERS: usize = 8;

/// Captions as a user wants them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptionConfig {
    /// The tag table: Parquet or CSV.
    pub tags: PathBuf,
    /// The selection: which tags may be used.
    pub selection: PathBuf,
    /// The folder of pictures, with a `.txt` caption beside each.
    pub images: PathBuf,
    /// The folder to write captions to, in which they lie as the pictures do in theirs.
    #[serde(default)]
    pub output: Option<PathBuf>,
    /// Changes the captions beside the pictures instead; each original is kept once as `.txt.orig`.
    #[serde(default)]
    pub in_place: bool,
    /// The most tags that a caption gets.
    #[serde(default = "three")]
    pub max_tags: usize,
    /// The lowest score of a tag worth writing, 0 to 1.
    #[serde(default = "three_tenths")]
    pub min_score: f32,
    /// Where the tags go.
    #[serde(default)]
    pub position: Position,
    /// What happens to pictures without a caption.
    #[serde(default)]
    pub missing: Missing,
}

/// What happens to a picture whose caption is missing or empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// It gets none, and is listed.
    #[default]
    Skip,
    /// It gets a caption of tags alone; without a tag it is skipped.
    Empty,
    /// Nothing is written for any picture.
    Error,
}

/// Where captions are written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Destination {
    /// Into a folder of their own.
    Folder(PathBuf),
    /// Beside the pictures.
    InPlace,
}

/// Captions whose settings have been checked; nothing has been read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CaptionPlan {
    /// The tag table.
    pub tags: PathBuf,
    /// The selection.
    pub selection: PathBuf,
    /// The folder of pictures.
    pub images: PathBuf,
    /// Where captions are written.
    pub destination: Destination,
    /// The most tags that a caption gets.
    pub max_tags: usize,
    /// The lowest score of a tag worth writing.
    pub min_score: f32,
    /// Where the tags go.
    pub position: Position,
    /// What happens to pictures without a caption.
    pub missing: Missing,
}

fn three() -> usize {
    3
}

fn three_tenths() -> f32 {
    0.3
}

impl CaptionConfig {
    /// Checks what can be checked without reading.
    ///
    /// # Errors
    /// A minimum score outside 0 to 1; both an output folder and `in_place`, or neither; an output folder in the
    /// folder of pictures, or the other way round.
    pub fn plan(&self) -> Result<CaptionPlan> {
        check_min_score(self.min_score)?;
        let destination = match (&self.output, self.in_place) {
            (Some(folder), false) => Destination::Folder(folder.clone()),
            (None, true) => Destination::InPlace,
            (Some(_), true) => return Err(Error::Destination { found: "both" }),
            (None, false) => return Err(Error::Destination { found: "neither" }),
        };
        if let Destination::Folder(output) = &destination {
            check_apart(output, &self.images)?;
        }
        let Self { tags, selection, images, max_tags, min_score, position, missing, .. } = self.clone();
        Ok(CaptionPlan { tags, selection, images, destination, max_tags, min_score, position, missing })
    }
}

impl CaptionPlan {
    /// All that the captions depend on: settings, tag table, selection, and the original captions.
    pub fn key(&self) -> Result<RunKey> {
        self.key_of(&self.originals()?)
    }

    /// The folder that the captions are in when the run is through.
    pub fn output(&self) -> &Path {
        match &self.destination {
            Destination::Folder(folder) => folder,
            Destination::InPlace => &self.images,
        }
    }

    fn in_place(&self) -> bool {
        self.destination == Destination::InPlace
    }

    fn originals(&self) -> Result<Vec<Original>> {
        Original::read_all(&self.images, self.in_place())
    }

    fn key_of(&self, originals: &[Original]) -> Result<RunKey> {
        let settings = json!({
            "max_tags": self.max_tags,
            "min_score": decimal(self.min_score),
            "position": self.position,
            "missing": self.missing,
            "in_place": self.in_place(),
        });
        let mut key = RunKey::new(STAGE, &settings, None).input("tags", &self.tags, |_| true)?.input(
            "selection",
            &self.selection,
            |_| true,
        )?;
        key.inputs.insert("captions".to_owned(), Original::input(&self.images, originals));
        Ok(key)
    }
}

/// What captioning tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaptionEvent {
    /// Everything has been read; this many pictures will get a caption.
    Started {
        /// How many.
        images: u64,
    },
    /// A picture gets no caption.
    Skipped(Skipped),
    /// Captions have been written.
    Captioned {
        /// How many have been so far.
        images: u64,
    },
}

/// What captioning has done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaptionReport {
    /// How it ended.
    pub outcome: Outcome,
    /// The folder with the captions.
    pub output: PathBuf,
    /// How many captions there are now.
    pub captions: u64,
    /// How many of them got at least one tag.
    pub with_tags: u64,
    /// Pictures that got no caption, and why.
    pub skipped: Vec<Skipped>,
    /// Pictures that the tag table does not name; their captions are as they were.
    pub untagged: Vec<String>,
    /// How many pictures the tag table names that are not in the folder.
    pub absent: usize,
    /// Pictures whose caption had several lines, now joined by a space.
    pub joined: Vec<String>,
    /// Pictures whose caption has more than 75 CLIP tokens now; trainers cut off the rest.
    pub too_long: Vec<String>,
    /// Tags that pictures have more than once in the table; the highest score counted.
    pub doubles: Vec<Double>,
}

/// A picture that got no caption.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// The picture.
    pub image: String,
    /// Why.
    pub reason: String,
}

impl Report for CaptionReport {
    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

impl fmt::Display for CaptionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let output = self.output.display();
        let Self { captions, with_tags, absent, .. } = self;
        match self.outcome {
            Outcome::Unchanged => write!(f, "the captions in `{output}` are up to date ({captions})")?,
            Outcome::Interrupted => write!(f, "stopped after {captions} captions in `{output}`")?,
            Outcome::Done | Outcome::Skipped => {
                write!(f, "wrote {captions} captions to `{output}`, {with_tags} of them with tags")?;
            }
        }
        let skipped =
            self.skipped.iter().map(|Skipped { image, reason }| format!("skipped `{image}`: {reason}"));
        list(f, &skipped.collect::<Vec<_>>())?;
        for (images, what) in [
            (&self.untagged, "not in the tag table, caption as it was"),
            (&self.joined, "several lines joined"),
            (&self.too_long, "more than 75 tokens"),
        ] {
            list(f, &images.iter().map(|image| format!("`{image}`: {what}")).collect::<Vec<_>>())?;
        }
        for Double { tag, spellings, images } in &self.doubles {
            let spellings: Vec<_> = spellings.iter().map(|name| format!("{name:?}")).collect();
            write!(f, "\n{images} pictures have `{tag}` more than once ({})", spellings.join(", "))?;
        }
        if *absent > 0 {
            write!(f, "\n{absent} pictures of the tag table are not in the folder")?;
        }
        Ok(())
    }
}

/// The first lines of a list, and how many there are more; JSON has them all.
fn list(f: &mut fmt::Formatter<'_>, lines: &[String]) -> fmt::Result {
    const SHOWN: usize = 20;
    lines.iter().take(SHOWN).try_for_each(|line| write!(f, "\n{line}"))?;
    match lines.len().saturating_sub(SHOWN) {
        0 => Ok(()),
        more => write!(f, "\n... and {more} more like that"),
    }
}

/// A caption to be written.
struct Task {
    /// Relative to the output folder.
    caption: PathBuf,
    text: String,
    with_tags: bool,
}

/// Writes the captions, unless they are there already.
///
/// Everything is read and checked before the first caption is written. A caption is one line of UTF-8 that ends with a
/// line feed; each is replaced as a whole. One that is already as it should be is not touched.
///
/// In place, captions are always made from the original, `a.txt.orig`, which the first run keeps: other settings leave
/// no old tags behind, and a second run puts none in twice.
///
/// # Errors
/// No pictures; two that share a caption; a caption that is not UTF-8 or cannot be read; a table or selection that
/// cannot be read, or is about other pictures; pictures without a caption where [`Missing::Error`] is set; a caption
/// edited after an earlier run in place; a caption that cannot be written.
pub fn run(
    plan: &CaptionPlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(CaptionEvent),
) -> Result<CaptionReport> {
    let originals = plan.originals()?;
    let key = plan.key_of(&originals)?;
    let record = record_path(plan.output());
    if let Standing::Current(found) = key.standing(&record)?
        && let Ok(report) = serde_json::from_value::<CaptionReport>(found.report)
    {
        return Ok(CaptionReport {
            outcome: Outcome::Unchanged,
            output: plan.output().to_path_buf(),
            ..report
        });
    }
    let (tasks, mut report) = tasks(plan, &originals)?;
    on_event(CaptionEvent::Started { images: tasks.len() as u64 });
    report.skipped.iter().for_each(|skipped| on_event(CaptionEvent::Skipped(skipped.clone())));
    for batch in tasks.chunks(BATCH) {
        if interrupt.is_raised() {
            return Ok(CaptionReport { outcome: Outcome::Interrupted, ..report });
        }
        write_batch(plan, batch)?;
        report.captions += batch.len() as u64;
        report.with_tags += batch.iter().filter(|task| task.with_tags).count() as u64;
        on_event(CaptionEvent::Captioned { images: report.captions });
    }
    write_record(plan, &key, &record, &tasks, &report)?;
    Ok(report)
}

/// Writes a few captions at once: the time goes into waiting until the disk has them, and waits can be shared.
fn write_batch(plan: &CaptionPlan, batch: &[Task]) -> Result<()> {
    let write = |task: &Task| match &plan.destination {
        Destination::Folder(folder) => write_changed(&folder.join(&task.caption), &task.text),
        Destination::InPlace => write_in_place(&plan.images.join(&task.caption), &task.text),
    };
    thread::scope(|scope| {
        let shares = batch.chunks(batch.len().div_ceil(WRITERS));
        let writers: Vec<_> =
            shares.map(|share| scope.spawn(move || share.iter().try_for_each(write))).collect();
        writers.into_iter().try_for_each(|writer| writer.join().expect("a writer does not panic"))
    })
}

fn write_record(
    plan: &CaptionPlan,
    key: &RunKey,
    record: &Path,
    tasks: &[Task],
    report: &CaptionReport,
) -> Result<()> {
    let outputs = match &plan.destination {
        Destination::Folder(folder) => {
            if RunRecord::read(record).is_ok_and(|before| before.stage == STAGE) {
                remove_leftovers(folder, tasks)?;
            }
            vodka_stage::create_dir(folder)?;
            vec![folder.clone()]
        }
        Destination::InPlace => tasks.iter().map(|task| plan.images.join(&task.caption)).collect(),
    };
    let outputs: Vec<_> = outputs.iter().map(PathBuf::as_path).collect();
    key.write(record, &outputs, report)?;
    Ok(())
}

/// Finds out what to write, and all that there is to report except how much was written.
fn tasks(plan: &CaptionPlan, originals: &[Original]) -> Result<(Vec<Task>, CaptionReport)> {
    let selection = Selection::read(&plan.selection)?;
    let vocabulary = selection.names();
    let mut table = TagTable::open(&plan.tags)?;
    let in_table = table.images()?;
    let images: BTreeSet<_> = originals.iter().map(|original| original.picture.image.as_str()).collect();
    let untagged = check_images(plan, &in_table, &images)?;
    table.restrict(images.iter().copied())?;
    let scores = table.scores(&vocabulary)?;

    let mut report = CaptionReport {
        outcome: Outcome::Done,
        output: plan.output().to_path_buf(),
        captions: 0,
        with_tags: 0,
        skipped: Vec::new(),
        absent: in_table.iter().filter(|image| !images.contains(image.as_str())).count(),
        untagged,
        joined: Vec::new(),
        too_long: Vec::new(),
        doubles: scores.doubles,
    };
    let mut tasks = Vec::new();
    for original in originals {
        let tags = best_tags(plan, &vocabulary, &scores.by_image, &original.picture.image);
        tasks.extend(task(plan, original, &tags, &mut report)?);
    }
    if plan.missing == Missing::Error && !report.skipped.is_empty() {
        return Err(no_caption(plan, &report.skipped));
    }
    if !(report.skipped.is_empty() && report.untagged.is_empty()) {
        report.outcome = Outcome::Skipped;
    }
    Ok((tasks, report))
}

fn best_tags<'a>(
    plan: &CaptionPlan,
    vocabulary: &[&'a str],
    scores: &BTreeMap<String, Vec<TagScore>>,
    image: &str,
) -> Vec<&'a str> {
    let scores = scores.get(image).map(Vec::as_slice).unwrap_or_default();
    choose(scores, plan.max_tags, plan.min_score).into_iter().map(|tag| vocabulary[tag]).collect()
}

/// The caption to write for one picture; none, and a line in the report, where it is skipped.
fn task(
    plan: &CaptionPlan,
    original: &Original,
    tags: &[&str],
    report: &mut CaptionReport,
) -> Result<Option<Task>> {
    let image = &original.picture.image;
    let found = original.caption(&plan.images)?;
    let reason = match &found {
        Some(caption) if !caption.text.is_empty() => None,
        _ if plan.missing == Missing::Empty && !tags.is_empty() => None,
        _ if plan.missing == Missing::Empty => Some("no caption and no tags"),
        Some(_) => Some("the caption is empty"),
        None => Some("no caption"),
    };
    if let Some(reason) = reason {
        report.skipped.push(Skipped { image: image.clone(), reason: reason.to_owned() });
        return Ok(None);
    }
    let Caption { text: before, joined } = found.unwrap_or_default();
    if original.kept {
        check_unedited(&plan.images.join(&original.picture.caption), &before)?;
    }
    let text = compose(&before, tags, plan.position);
    if joined {
        report.joined.push(image.clone());
    }
    if vodka_prompt::token_count(&text) > vodka_prompt::MAX_TOKENS {
        report.too_long.push(image.clone());
    }
    let with_tags = text != before;
    Ok(Some(Task { caption: original.picture.caption.clone(), text, with_tags }))
}

/// The pictures that the table does not name.
fn check_images(
    plan: &CaptionPlan,
    in_table: &BTreeSet<String>,
    images: &BTreeSet<&str>,
) -> Result<Vec<String>> {
    let untagged: Vec<_> =
        images.iter().filter(|image| !in_table.contains(**image)).map(|image| (*image).to_owned()).collect();
    if untagged.len() == images.len() {
        return Err(Error::OtherImages {
            table: plan.tags.clone(),
            images: plan.images.clone(),
            named: in_table.first().cloned().unwrap_or_else(|| "no picture".to_owned()),
            held: untagged.first().cloned().unwrap_or_default(),
        });
    }
    Ok(untagged)
}

fn no_caption(plan: &CaptionPlan, skipped: &[Skipped]) -> Error {
    let mut examples: Vec<_> =
        skipped.iter().take(10).map(|skipped| format!("`{}`", skipped.image)).collect();
    if skipped.len() > examples.len() {
        examples.push("...".to_owned());
    }
    Error::NoCaption { root: plan.images.clone(), count: skipped.len(), examples: examples.join(", ") }
}

/// After a run in place a caption is its original with something before or after it. Whatever else it is, somebody has
/// edited it, and making it anew would throw that work away.
fn check_unedited(caption: &Path, original: &str) -> Result<()> {
    let Some(Caption { text, .. }) = read_caption(caption)? else { return Ok(()) };
    let ours = original.is_empty()
        || text == original
        || text.ends_with(&format!(", {original}"))
        || text.starts_with(&format!("{original}, "));
    match ours {
        true => Ok(()),
        false => Err(Error::Edited { caption: caption.to_path_buf(), original: original_path(caption) }),
    }
}

/// Writes a caption, unless the file holds just that.
fn write_changed(path: &Path, text: &str) -> Result<()> {
    let line = format!("{text}\n");
    if read_bytes(path).is_ok_and(|bytes| bytes.as_deref() == Some(line.as_bytes())) {
        return Ok(());
    }
    Ok(write_atomic(path, line)?)
}

/// Writes a caption, after its original has been kept; a caption that already says the same is left as it is.
fn write_in_place(path: &Path, text: &str) -> Result<()> {
    let before = read_bytes(path)?;
    if let Some(caption) = read_caption(path)?
        && caption == (Caption { text: text.to_owned(), joined: false })
    {
        return Ok(());
    }
    let original = original_path(path);
    if !original.exists() {
        write_atomic(&original, before.unwrap_or_default())?;
    }
    write_changed(path, text)
}

/// Removes the captions that an earlier run wrote for pictures that have none now. The folder is that run's.
fn remove_leftovers(folder: &Path, tasks: &[Task]) -> Result<()> {
    let written: BTreeSet<_> = tasks.iter().map(|task| folder.join(&task.caption)).collect();
    for entry in WalkDir::new(folder).into_iter().flatten() {
        let path = entry.path();
        let is_caption =
            entry.file_type().is_file() && path.extension().is_some_and(|extension| extension == "txt");
        if is_caption && !written.contains(path) {
            let failed = |source| vodka_stage::Error::Write { path: path.to_path_buf(), source };
            fs::remove_file(path).map_err(failed)?;
        }
    }
    Ok(())
}

/// The minimum score must be a score.
pub(crate) fn check_min_score(found: f32) -> Result<()> {
    match (0.0..=1.0).contains(&found) {
        true => Ok(()),
        false => {
            Err(Error::Range { setting: "min_score", found: decimal(found), expected: "a score from 0 to 1" })
        }
    }
}

/// The number that a user means by an f32: 0.3, not 0.30000001192092896.
pub(crate) fn decimal(score: f32) -> f64 {
    score.to_string().parse().unwrap_or_else(|_| score.into())
}

/// Neither folder may lie in the other.
pub(crate) fn check_apart(output: &Path, images: &Path) -> Result<()> {
    let (a, b) = (resolved(output), resolved(images));
    match a.starts_with(&b) || b.starts_with(&a) {
        true => Err(Error::Overlap { output: output.to_path_buf(), images: images.to_path_buf() }),
        false => Ok(()),
    }
}

/// An absolute path, links followed as far as the path exists.
fn resolved(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let real = path.ancestors().find_map(|ancestor| Some((ancestor, fs::canonicalize(ancestor).ok()?)));
    match real {
        Some((ancestor, real)) => real.join(path.strip_prefix(ancestor).unwrap_or(Path::new(""))),
        None => path,
    }
}
