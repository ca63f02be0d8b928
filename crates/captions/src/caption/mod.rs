//! Puts the best tags of each picture into its caption.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::{Path, PathBuf},
    thread,
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use vodka_images::relative_name;
use vodka_stage::{Interrupt, Outcome, Report, RunKey, create_dir, record_path, write_atomic};

pub use crate::Position;
use crate::{
    Caption, Double, Error, Result, Selection, TagScore, TagTable, choose, compose,
    originals::{Original, original_path},
    sheet::decode,
    sidecar::read_bytes,
    written::{Written, remove},
};

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
        let mut key = RunKey::new("caption", &settings, None).input("tags", &self.tags, |_| true)?.input(
            "selection",
            &self.selection,
            |_| true,
        )?;
        key.inputs.insert("captions".to_owned(), Original::input(&self.images, originals, self.in_place()));
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

/// A caption as it should be.
struct Task {
    /// Relative to the output folder.
    caption: PathBuf,
    /// None where an original is to be put back.
    text: Option<String>,
    with_tags: bool,
    /// Whether it is not yet so.
    due: bool,
}

/// Writes the captions, unless they are there already.
///
/// Everything is read and checked before the first caption is written. A caption is one line of UTF-8 that ends with a
/// line feed; each is replaced as a whole. One that is already as it should be is not touched. Nor is any that somebody
/// else has written or edited: what runs have written is on a list in the output folder. In a folder of their own,
/// captions on that list for which there is no picture now are removed.
///
/// In place, captions are always made from the original, `a.txt.orig`, which the first run keeps: other settings leave
/// no old tags behind, and a second run puts none in twice. Where a picture is skipped that was not before, its original
/// is put back.
///
/// # Errors
/// No pictures; two that share a caption; a caption that is not UTF-8 or cannot be read; a table or selection that
/// cannot be read, or is about other pictures; pictures without a caption where [`Missing::Error`] is set; a caption
/// edited after an earlier run, or another file in its place; a caption that cannot be written.
pub fn run(
    plan: &CaptionPlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(CaptionEvent),
) -> Result<CaptionReport> {
    let originals = plan.originals()?;
    let key = plan.key_of(&originals)?;
    let record = record_path(plan.output());
    if let Some(report) = key.made::<CaptionReport>(&record)? {
        return Ok(CaptionReport {
            outcome: Outcome::Unchanged,
            output: plan.output().to_path_buf(),
            ..report
        });
    }
    let mut written = Written::read(plan.output())?;
    let (tasks, mut report) = tasks(plan, &written, &originals)?;
    let images = tasks.iter().filter(|task| task.text.is_some()).count() as u64;
    on_event(CaptionEvent::Started { images });
    report.skipped.iter().for_each(|skipped| on_event(CaptionEvent::Skipped(skipped.clone())));
    for batch in tasks.chunks(BATCH) {
        if interrupt.is_raised() {
            return Ok(CaptionReport { outcome: Outcome::Interrupted, ..report });
        }
        write_batch(plan, &mut written, batch)?;
        report.captions += batch.iter().filter(|task| task.text.is_some()).count() as u64;
        report.with_tags += batch.iter().filter(|task| task.with_tags).count() as u64;
        on_event(CaptionEvent::Captioned { images: report.captions });
    }
    if let Destination::Folder(folder) = &plan.destination {
        create_dir(folder)?;
        written.remove_others(&tasks.iter().map(|task| relative_name(&task.caption)).collect())?;
    }
    written.compact()?;
    write_record(plan, &key, &record, &tasks, &report)?;
    Ok(report)
}

/// Writes a few captions at once: the time goes into waiting until the disk has them, and waits can be shared.
fn write_batch(plan: &CaptionPlan, written: &mut Written, batch: &[Task]) -> Result<()> {
    let due: Vec<_> = batch.iter().filter(|task| task.due).collect();
    written
        .announce(due.iter().filter_map(|task| Some((task.caption.as_path(), line(task.text.as_ref()?)))))?;
    let write = |task: &&Task| {
        let path = plan.output().join(&task.caption);
        match (&task.text, plan.in_place()) {
            (Some(text), false) => Ok(write_atomic(path, line(text))?),
            (Some(text), true) => write_in_place(&path, text),
            (None, _) => put_back(&path),
        }
    };
    thread::scope(|scope| {
        let shares = due.chunks(due.len().div_ceil(WRITERS).max(1));
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
        Destination::Folder(folder) => vec![folder.clone()],
        Destination::InPlace => {
            let there = tasks.iter().filter(|task| task.text.is_some());
            there.map(|task| plan.images.join(&task.caption)).collect()
        }
    };
    let outputs: Vec<_> = outputs.iter().map(PathBuf::as_path).collect();
    key.write(record, &outputs, report)?;
    Ok(())
}

/// Finds out what to write, and all that there is to report except how much was written.
fn tasks(
    plan: &CaptionPlan,
    written: &Written,
    originals: &[Original],
) -> Result<(Vec<Task>, CaptionReport)> {
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
        tasks.extend(task(plan, written, original, &tags, &mut report)?);
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

/// The caption of one picture. Where it is skipped there is a line in the report, and at most an original to put back.
fn task(
    plan: &CaptionPlan,
    written: &Written,
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
        if !original.kept {
            return Ok(None);
        }
        let due = is_due(plan, written, original, None)?;
        return Ok(Some(Task {
            caption: original.picture.caption.clone(),
            text: None,
            with_tags: false,
            due,
        }));
    }
    let Caption { text: before, joined } = found.unwrap_or_default();
    let text = compose(&before, tags, plan.position);
    if joined {
        report.joined.push(image.clone());
    }
    if vodka_prompt::token_count(&text) > vodka_prompt::MAX_TOKENS {
        report.too_long.push(image.clone());
    }
    let with_tags = text != before;
    let due = is_due(plan, written, original, Some(&text))?;
    Ok(Some(Task { caption: original.picture.caption.clone(), text: Some(text), with_tags, due }))
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

/// Whether a caption must be written (or, without a text, put back): it is not yet as it should be, and nobody else's.
fn is_due(plan: &CaptionPlan, written: &Written, original: &Original, text: Option<&str>) -> Result<bool> {
    let caption = &original.picture.caption;
    let path = plan.output().join(caption);
    let Some(found) = read_bytes(&path)? else { return Ok(true) };
    let ours = written.holds(caption, &found);
    if !plan.in_place() {
        return match text.is_some_and(|text| found == line(text).as_bytes()) {
            true => Ok(false),
            false if ours => Ok(true),
            false => Err(Error::InTheWay { path }),
        };
    }
    let says = decode(&path, found.clone()).ok().map(|text| Caption::new(&text));
    if text.is_some_and(|text| says == Some(Caption { text: text.to_owned(), joined: false })) {
        return Ok(false);
    }
    let untouched = found == original.bytes.as_deref().unwrap_or_default();
    match ours || !original.kept || untouched {
        true => Ok(true),
        false => Err(Error::Edited { original: original_path(&path), caption: path }),
    }
}

/// A caption file's content.
fn line(text: &str) -> String {
    format!("{text}\n")
}

/// Writes a caption, after its original has been kept.
fn write_in_place(path: &Path, text: &str) -> Result<()> {
    let original = original_path(path);
    if !original.exists() {
        write_atomic(&original, read_bytes(path)?.unwrap_or_default())?;
    }
    Ok(write_atomic(path, line(text))?)
}

/// Puts the original of a caption back, and leaves no caption where the original is empty: then there was none.
fn put_back(path: &Path) -> Result<()> {
    let original = original_path(path);
    if read_bytes(&original)?.is_some_and(|bytes| !bytes.is_empty()) {
        let failed = |source| vodka_stage::Error::Write { path: path.to_path_buf(), source };
        return Ok(fs::rename(&original, path).map_err(failed)?);
    }
    if path.exists() {
        remove(path)?;
    }
    remove(&original)
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
pub(crate) fn resolved(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let real = path.ancestors().find_map(|ancestor| Some((ancestor, fs::canonicalize(ancestor).ok()?)));
    match real {
        Some((ancestor, real)) => real.join(path.strip_prefix(ancestor).unwrap_or(Path::new(""))),
        None => path,
    }
}
