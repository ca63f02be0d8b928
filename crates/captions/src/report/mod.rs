//! A folder of pages to look at before tags are written: numbers, charts, and pictures for each tag and score.
//!
//! What the pages show is [`ReportData`], which `data.json` holds; how they show it is in `templates/`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use vodka_prompt::{MAX_TOKENS, token_count};
use vodka_stage::{Interrupt, Outcome, Report, RunKey, record_path};

use self::{
    charts::{Chart, Place},
    gallery::{Scored, buckets, by_tag},
    thumbnails::Thumbnails,
};
use crate::{
    Caption, Error, Picture, Result, Selection, TagTable,
    analysis::{Analysed, Analysis, AnalysisInputs, Settings, analyse, has_word},
    canonical,
    caption::{check_apart, check_min_score, decimal},
    captioned::Captioned,
    heard,
    place::{Folder, Item, Size},
    table::{Scores, pictures_beside},
};

mod charts;
mod data;
mod gallery;
mod links;
mod page;
mod tables;
mod templates;
mod thumbnails;

pub use data::{BucketData, PictureData, ReportData, TagData};
pub use thumbnails::Thumbnail;

/// The stage's name in records.
const STAGE: &str = "report";

/// The page that is written last: where it is, the report is whole.
const INDEX: &str = "index.html";

/// The problems that are named on the screen; `problems.csv` has all.
const NAMED: usize = 20;

/// A report as a user wants it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportConfig {
    /// The tag table: Parquet or CSV.
    pub tags: PathBuf,
    /// The selection.
    pub selection: PathBuf,
    /// The folder of pictures, with captions in any format.
    pub images: PathBuf,
    /// The folder to write: missing, empty, or a former report.
    pub output: PathBuf,
    /// The score from which on a tag counts as good enough to write, 0 to 1.
    #[serde(default = "three_tenths")]
    pub min_score: f32,
    /// Words, or several in a row: for each, the share of pictures that have any tag with them in its name.
    #[serde(default = "blurry")]
    pub groups: Vec<String>,
    /// The tagger's table of pictures, for their sharpness; by default the one beside the tag table, if it is there.
    #[serde(default)]
    pub pictures: Option<PathBuf>,
    /// What somebody has judged, for thresholds: CSV with the columns `image`, `tag` and `label` (0 or 1).
    #[serde(default)]
    pub labels: Option<PathBuf>,
    /// The pictures that are shown for each tag.
    #[serde(default)]
    pub gallery: GalleryConfig,
}

/// Which pictures are shown, and how large.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GalleryConfig {
    /// The most pictures of a tag for each 5 % of score. 8 by default; 0 for none.
    pub per_bucket: usize,
    /// The longer side of a thumbnail in pixels, 64 to 1024. 256 by default.
    pub thumbnail_px: u32,
}

impl Default for GalleryConfig {
    fn default() -> Self {
        Self { per_bucket: 8, thumbnail_px: 256 }
    }
}

/// A report whose settings have been checked; nothing has been read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReportPlan {
    /// The tag table.
    pub tags: PathBuf,
    /// The selection.
    pub selection: PathBuf,
    /// The folder of pictures.
    pub images: PathBuf,
    /// The folder to write.
    pub output: PathBuf,
    /// The score from which on a tag counts as good enough to write.
    pub min_score: f32,
    /// Words, canonical.
    pub groups: Vec<String>,
    /// The tagger's table of pictures.
    pub pictures: Option<PathBuf>,
    /// What somebody has judged.
    pub labels: Option<PathBuf>,
    /// The pictures that are shown for each tag.
    pub gallery: GalleryConfig,
}

fn three_tenths() -> f32 {
    0.3
}

fn blurry() -> Vec<String> {
    vec!["blurry".to_owned()]
}

impl ReportConfig {
    /// Checks what can be checked without reading.
    ///
    /// # Errors
    /// A minimum score outside 0 to 1; thumbnails of another size than 64 to 1024 px; an output folder in the folder of
    /// pictures, or the other way round.
    pub fn plan(&self) -> Result<ReportPlan> {
        check_min_score(self.min_score)?;
        let px = self.gallery.thumbnail_px;
        if !(64..=1024).contains(&px) {
            let (setting, expected) = ("thumbnail_px", "64 to 1024 pixels");
            return Err(Error::Range { setting, found: px.into(), expected });
        }
        check_apart(&self.output, &self.images)?;
        let Self { tags, selection, images, output, min_score, labels, gallery, .. } = self.clone();
        let groups = self.groups.iter().map(|word| canonical(word)).collect();
        let pictures = self.pictures.clone().or_else(|| pictures_beside(&tags));
        Ok(ReportPlan { tags, selection, images, output, min_score, groups, pictures, labels, gallery })
    }
}

impl ReportPlan {
    /// All that the report depends on: settings, tag table, selection, captions, and the pictures that it shows.
    pub fn key(&self) -> Result<RunKey> {
        let Inputs { captioned, read, key } = self.inputs()?;
        let thumbnails = Thumbnails::open(&self.images, &self.output, self.gallery.thumbnail_px);
        Ok(with_shown(&key, &self.images, &captioned, &read.shown(), &thumbnails))
    }

    /// Reads everything but the pictures.
    fn inputs(&self) -> Result<Inputs> {
        let captioned = Captioned::originals(&self.images)?;
        let read = Read::new(self, &captioned)?;
        Ok(Inputs { captioned, read, key: self.key_of_tables()? })
    }

    /// The key as far as it is of settings and tables.
    fn key_of_tables(&self) -> Result<RunKey> {
        let settings = json!({
            "min_score": decimal(self.min_score),
            "groups": self.groups,
            "gallery": self.gallery,
            "link_to_images": links::link_to_folder(&self.output, &self.images),
            "templates": templates::version(),
        });
        let mut key = RunKey::new(STAGE, &settings, None).input("tags", &self.tags, |_| true)?.input(
            "selection",
            &self.selection,
            |_| true,
        )?;
        for (name, path) in [("pictures", &self.pictures), ("labels", &self.labels)] {
            if let Some(path) = path {
                key = key.input(name, path, |_| true)?;
            }
        }
        Ok(key)
    }

    fn analysis_inputs(&self, read: &Read, captions: BTreeMap<String, String>) -> AnalysisInputs {
        let mut settings =
            Settings { min_score: self.min_score, groups: self.groups.clone(), ..Settings::default() };
        if !settings.thresholds.contains(&self.min_score) {
            settings.thresholds.push(self.min_score);
            settings.thresholds.sort_by(f32::total_cmp);
        }
        AnalysisInputs {
            tags: self.tags.clone(),
            selection_path: self.selection.clone(),
            selection: read.selection.names().into_iter().map(ToOwned::to_owned).collect(),
            captions: Some(captions),
            images: self.images.clone(),
            pictures: self.pictures.clone(),
            labels: self.labels.clone(),
            settings,
        }
    }
}

/// What a report tells while it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReportEvent {
    /// The pictures to be shown are known.
    Started {
        /// How many.
        pictures: u64,
    },
    /// Thumbnails have been made or found.
    Thumbnails {
        /// How many so far.
        done: u64,
    },
    /// A file has been written.
    Wrote {
        /// The file.
        path: PathBuf,
    },
}

/// What a report says in short; the pages say it at length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReportSummary {
    /// How it ended.
    pub outcome: Outcome,
    /// The folder.
    pub output: PathBuf,
    /// How many pictures are in the folder of pictures.
    pub images: usize,
    /// How many of them the tag table names.
    pub tagged: usize,
    /// How many tags are selected.
    pub tags: usize,
    /// How many pictures are shown.
    pub shown: usize,
    /// The groups.
    pub groups: Vec<Group>,
    /// The captions.
    pub captions: CaptionStatistics,
    /// Tags that the table spells in several ways, and how; they were counted as one.
    pub spellings: Vec<(String, Vec<String>)>,
    /// Pictures that are missing, or were to be shown and cannot be read.
    pub skipped: Vec<Problem>,
    /// What the user should know about the inputs.
    pub warnings: Vec<String>,
}

/// A picture that was left out, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The picture's name in the tag table.
    pub image: String,
    /// What is wrong with it.
    pub problem: String,
}

/// The tags that share a word, or several in a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// The word or words, canonical: with underscores.
    pub word: String,
    /// The tags of the table that have it, selected or not.
    pub tags: Vec<String>,
    /// The selected tags that have it, in the table or not.
    pub selected: Vec<String>,
    /// How many pictures have at least one of them, at any score that the table holds.
    pub images: u64,
    /// The same as a share of all pictures.
    pub share: f64,
}

impl Group {
    /// What must be said where no caption will have such a tag.
    fn note(&self) -> &'static str {
        if self.selected.is_empty() { "; no selected tag has it" } else { "" }
    }
}

/// The captions as they are. Tokens are CLIP tokens without begin and end.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CaptionStatistics {
    /// Pictures with a caption.
    pub present: usize,
    /// Pictures without.
    pub missing: usize,
    /// Pictures with an empty one.
    pub empty: usize,
    /// Captions of several lines.
    pub several_lines: usize,
    /// The mean number of tokens of a caption.
    pub mean_tokens: f64,
    /// The most tokens of a caption.
    pub max_tokens: usize,
    /// Captions of more than 75 tokens, of which trainers cut off the rest.
    pub too_long: usize,
}

impl Report for ReportSummary {
    fn outcome(&self) -> Outcome {
        self.outcome.with_skips(!self.skipped.is_empty())
    }
}

impl fmt::Display for ReportSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let output = self.output.display();
        match self.outcome {
            Outcome::Unchanged => write!(f, "the report in `{output}` is up to date")?,
            Outcome::Interrupted => return write!(f, "stopped before the report in `{output}` was complete"),
            Outcome::Done | Outcome::Skipped => self.fmt_numbers(f)?,
        }
        for Problem { image, problem } in self.skipped.iter().take(NAMED) {
            write!(f, "\nskipped `{image}`: {problem}")?;
        }
        match self.skipped.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, "\nand {more} more, see `{}`", self.output.join("problems.csv").display()),
        }
    }
}

impl ReportSummary {
    fn interrupted(plan: &ReportPlan) -> Self {
        Self {
            outcome: Outcome::Interrupted,
            output: plan.output.clone(),
            images: 0,
            tagged: 0,
            tags: 0,
            shown: 0,
            groups: Vec::new(),
            captions: CaptionStatistics::default(),
            spellings: Vec::new(),
            skipped: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn fmt_numbers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tags, images, tagged, shown, .. } = self;
        write!(f, "wrote a report on {tags} tags of {images} pictures ({tagged} tagged, {shown} shown) to ")?;
        write!(f, "`{}`", self.output.join(INDEX).display())?;
        for group in &self.groups {
            let Group { word, share, .. } = group;
            write!(f, "\n{:.1} % of the pictures have a tag with `{word}` at any score", 100.0 * share)?;
            f.write_str(group.note())?;
        }
        for (tag, spellings) in &self.spellings {
            write!(f, "\n`{tag}` is spelled in {} ways", spellings.len())?;
        }
        self.warnings.iter().try_for_each(|warning| write!(f, "\nwarning: {warning}"))
    }
}

/// One picture's caption, measured.
struct Measured {
    image: String,
    status: &'static str,
    tokens: usize,
    parts: usize,
}

/// All that is read before the first picture.
struct Inputs {
    captioned: Captioned,
    read: Read,
    /// Of settings and tables.
    key: RunKey,
}

/// The whole key.
fn with_shown(
    key: &RunKey,
    images: &Path,
    captioned: &Captioned,
    shown: &BTreeSet<&str>,
    thumbnails: &Thumbnails,
) -> RunKey {
    let mut key = key.clone();
    key.inputs.insert("captions".to_owned(), captioned.input(images));
    key.inputs.insert("shown".to_owned(), thumbnails.input(shown));
    key
}

/// What is read before it is known whether there is anything to do.
struct Read {
    selection: Selection,
    /// Of the selected tags, without the pictures that are missing.
    scores: Scores,
    /// Pictures that the table names and the folder lacks.
    missing: Vec<String>,
    /// Pictures that the folder has and the table does not name.
    untagged: Vec<String>,
    /// The most pictures to show in a bucket.
    per_bucket: usize,
}

impl Read {
    fn new(plan: &ReportPlan, captioned: &Captioned) -> Result<Self> {
        let selection = Selection::read(&plan.selection)?;
        let mut table = TagTable::open(&plan.tags)?;
        let named = table.images()?;
        let held: BTreeSet<_> = captioned.pictures.iter().map(|picture| picture.image.as_str()).collect();
        let missing: Vec<_> = named.iter().filter(|image| !held.contains(image.as_str())).cloned().collect();
        if let Some(named) = missing.first().filter(|_| missing.len() == named.len()) {
            return Err(Error::OtherImages {
                table: plan.tags.clone(),
                images: plan.images.clone(),
                named: named.clone(),
                held: held.first().copied().unwrap_or_default().to_owned(),
            });
        }
        let untagged = held.iter().filter(|image| !named.contains(**image));
        let untagged = untagged.map(|image| (*image).to_owned()).collect();
        table.restrict(held.iter().copied())?;
        let scores = table.scores(&selection.names())?;
        Ok(Self { selection, scores, missing, untagged, per_bucket: plan.gallery.per_bucket })
    }

    /// The scores of each selected tag.
    fn by_tag(&self) -> Vec<Vec<Scored<'_>>> {
        by_tag(&self.scores.by_image, self.selection.tags.len())
    }

    /// The pictures that any gallery shows.
    fn shown(&self) -> BTreeSet<&str> {
        let by_tag = self.by_tag();
        let shown = by_tag.iter().flat_map(|scores| buckets(scores, self.per_bucket));
        shown.flat_map(|bucket| bucket.shown).map(|scored| scored.image).collect()
    }
}

/// Writes the report, unless it is there already.
///
/// # Errors
/// No pictures; two that share a caption; a caption, table or selection that cannot be read; a table about other
/// pictures; an output folder that holds something else, or cannot be written.
pub fn run(
    plan: &ReportPlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(ReportEvent),
) -> Result<ReportSummary> {
    match make(plan, interrupt, on_event) {
        Err(Error::Stopped) => Ok(ReportSummary::interrupted(plan)),
        done => done,
    }
}

fn make(
    plan: &ReportPlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(ReportEvent),
) -> Result<ReportSummary> {
    let mut folder = Folder::open(&plan.output, STAGE)?.replacing_edited();
    check_report(&plan.output, &folder)?;
    let asked = plan.clone();
    let Inputs { captioned, read, key } = heard(interrupt, move || asked.inputs())?;
    let shown = read.shown();
    let mut thumbnails = Thumbnails::open(&plan.images, &plan.output, plan.gallery.thumbnail_px);
    let key = |thumbnails: &Thumbnails| with_shown(&key, &plan.images, &captioned, &shown, thumbnails);
    // Else the pictures would have to be read to know it, and then once more for their thumbnails.
    if thumbnails.know(&shown)
        && let Some(summary) = made(plan, &key(&thumbnails))?
    {
        return Ok(summary);
    }
    let (captions, measured) = captions(&captioned);
    let analysed = analyse(&plan.analysis_inputs(&read, captions), interrupt)?.ok_or(Error::Stopped)?;
    let mut data = data(plan, &read, &measured, analysed);
    data.warnings.extend_from_slice(&captioned.warnings);
    let files = files(&data, &measured);
    folder.guard(files.iter().map(|file| file.name.as_str()))?;
    folder.take()?;
    on_event(ReportEvent::Started { pictures: shown.len() as u64 });
    let on_done = &mut |done| on_event(ReportEvent::Thumbnails { done });
    thumbnails.make(&mut folder, &shown, interrupt, on_done)?;
    if let Some(summary) = made(plan, &key(&thumbnails))? {
        return Ok(summary);
    }
    add_thumbnails(&mut data, &thumbnails);
    write(&mut folder, plan, &files, &data, interrupt, on_event)?;
    let names = thumbnails.names();
    folder.close(files.iter().map(|file| file.name.as_str()).chain(names.iter().map(String::as_str)))?;
    let outcome = if data.problems.is_empty() { Outcome::Done } else { Outcome::Skipped };
    let summary = summary(plan, data, shown.len(), outcome);
    key(&thumbnails).write(&record_path(&plan.output), &[&plan.output], &summary)?;
    Ok(summary)
}

/// A folder that holds something must be a report: nobody wants its pages among their files.
fn check_report(root: &Path, folder: &Folder) -> Result<()> {
    let unread = |source| Error::Read { path: root.to_path_buf(), source };
    if !folder.is_empty() || !root.exists() {
        return Ok(());
    }
    let names = fs::read_dir(root).and_then(|entries| {
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    });
    let names: BTreeSet<String> = names.map_err(unread)?;
    match names.into_iter().find(|name| !name.starts_with('.')) {
        Some(found) => Err(Error::NotAReport { path: root.to_path_buf(), found }),
        None => Ok(()),
    }
}

/// Writes the pages, the index last; meanwhile there is none.
fn write(
    folder: &mut Folder,
    plan: &ReportPlan,
    files: &[File],
    data: &ReportData,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(ReportEvent),
) -> Result<()> {
    folder.remove(INDEX)?;
    let (index, pages): (Vec<_>, Vec<_>) = files.iter().partition(|file| file.name == INDEX);
    for files in [pages, index] {
        let items: Vec<_> = files.iter().map(|file| file.item(data)).collect();
        let mut told = 0;
        folder.put(&items.iter().collect::<Vec<_>>(), interrupt, &mut |done| {
            for file in &files[told..done as usize] {
                on_event(ReportEvent::Wrote { path: plan.output.join(&file.name) });
            }
            told = done as usize;
        })?;
    }
    Ok(())
}

/// The summary of the report that is there already.
fn made(plan: &ReportPlan, key: &RunKey) -> Result<Option<ReportSummary>> {
    let made = key.made::<ReportSummary>(&record_path(&plan.output))?;
    let unchanged = |made| ReportSummary { outcome: Outcome::Unchanged, output: plan.output.clone(), ..made };
    Ok(made.map(unchanged))
}

/// All but what the thumbnails tell.
fn data(plan: &ReportPlan, read: &Read, measured: &[Measured], analysed: Analysed) -> ReportData {
    let Analysed { analysis, warnings } = analysed;
    let missing = read.missing.iter().map(|image| Problem {
        image: image.clone(),
        problem: format!("it is not in `{}`", plan.images.display()),
    });
    ReportData {
        min_score: plan.min_score,
        images: measured.len() as u64,
        tagged: (measured.len() - read.untagged.len()) as u64,
        groups: groups(&analysis, &read.selection.names(), measured.len()),
        captions: statistics(measured),
        caption_tokens: caption_tokens(measured),
        tags: tag_data(plan, read, &analysis),
        unused: analysis.tags.iter().filter(|tag| tag.images == 0).map(|tag| tag.tag.clone()).collect(),
        analysis,
        problems: missing.collect(),
        untagged: read.untagged.clone(),
        warnings,
    }
}

/// The selected tags, the most frequent first.
fn tag_data(plan: &ReportPlan, read: &Read, analysis: &Analysis) -> Vec<TagData> {
    let names = read.selection.names();
    let link_to_images = links::link_to_folder(&plan.output, &plan.images);
    let picture = |Scored { image, score }: &Scored<'_>| PictureData {
        image: (*image).to_owned(),
        score: *score,
        link: links::link_to_picture(&link_to_images, image),
        thumbnail: None,
        problem: None,
    };
    let percent = |place: usize| (100 * place / gallery::BUCKETS) as u32;
    let places: BTreeMap<_, _> =
        analysis.tags.iter().enumerate().map(|(place, tag)| (tag.tag.as_str(), place)).collect();
    let by_tag = read.by_tag();
    let tags = names.iter().zip(links::slugs(&names)).zip(&by_tag).zip(&read.selection.tags);
    let mut tags: Vec<_> = tags
        .filter_map(|(((name, slug), scores), selected)| {
            let enough = scores.iter().filter(|scored| scored.score >= plan.min_score);
            let buckets = buckets(scores, plan.gallery.per_bucket).into_iter().map(|bucket| BucketData {
                from_percent: percent(bucket.place),
                to_percent: percent(bucket.place + 1),
                images: bucket.images as u64,
                pictures: bucket.shown.iter().map(picture).collect(),
            });
            Some(TagData {
                tag: (*name).to_owned(),
                place: *places.get(name)?,
                slug,
                count: selected.count,
                images_at_min_score: enough.count() as u64,
                buckets: buckets.collect(),
            })
        })
        .collect();
    // Stable: tags that are equally frequent stay in order of the vocabulary.
    tags.sort_by_key(|tag| std::cmp::Reverse(tag.images_at_min_score));
    tags
}

fn add_thumbnails(data: &mut ReportData, thumbnails: &Thumbnails) {
    let mut broken = BTreeMap::new();
    let buckets = data.tags.iter_mut().flat_map(|tag| &mut tag.buckets);
    for picture in buckets.flat_map(|bucket| &mut bucket.pictures) {
        match thumbnails.of(&picture.image) {
            Some(Ok(thumbnail)) => picture.thumbnail = Some(thumbnail),
            Some(Err(problem)) => {
                picture.problem = Some(problem.to_owned());
                broken.insert(picture.image.clone(), problem.to_owned());
            }
            None => {}
        }
    }
    data.problems.extend(broken.into_iter().map(|(image, problem)| Problem { image, problem }));
}

/// A file of the report.
struct File<'a> {
    name: String,
    content: Box<dyn Fn(&ReportData) -> String + Send + Sync + 'a>,
}

impl<'a> File<'a> {
    fn new(name: impl Into<String>, content: impl Fn(&ReportData) -> String + Send + Sync + 'a) -> Self {
        Self { name: name.into(), content: Box::new(content) }
    }

    fn item<'i>(&'i self, data: &'i ReportData) -> Item<'i> {
        Item::made(&self.name, Size::Small, move || Ok((self.content)(data).into_bytes()))
    }

    fn chart(
        name: impl Into<String>,
        chart: impl Fn(&ReportData) -> Option<Chart> + Send + Sync + 'a,
    ) -> Self {
        Self::new(name, move |data| chart(data).map(|chart| chart.svg(Place::File)).unwrap_or_default())
    }
}

/// The files in the order in which they are written: the index last, for it says that all are there.
fn files<'a>(data: &ReportData, measured: &'a [Measured]) -> Vec<File<'a>> {
    let mut files: Vec<_> = tables::TABLES.map(|(name, _, table)| File::new(name, table)).into();
    files.push(File::new("captions.csv", |_| tables::captions(measured)));
    files.push(File::chart("charts/tags.svg", |data| Some(charts::tags(data))));
    files.push(File::chart("charts/captions.svg", |data| Some(charts::captions(data))));
    if charts::cooccurrence(data).is_some() {
        files.push(File::chart("charts/cooccurrence.svg", charts::cooccurrence));
    }
    if data.analysis.sharpness.is_some() {
        files.push(File::chart("charts/sharpness.svg", charts::sharpness));
    }
    for (place, tag) in data.tags.iter().enumerate() {
        let chart = format!("charts/tag-{}.svg", tag.slug);
        files.push(File::chart(chart, move |data| Some(charts::histogram(data, &data.tags[place]))));
        files.push(File::new(format!("tags/{}.html", tag.slug), move |data| page::tag(data, place)));
    }
    files.push(File::new("style.css", |_| templates::render("style.css", ())));
    files.push(File::new("report.js", |_| templates::SCRIPT.to_owned()));
    files.push(File::new("data.json", json_text));
    files.push(File::new("report.md", page::markdown));
    files.push(File::new(INDEX, page::index));
    files
}

fn json_text(data: &ReportData) -> String {
    serde_json::to_string(data).expect("the data is plain") + "\n"
}

fn summary(plan: &ReportPlan, data: ReportData, shown: usize, outcome: Outcome) -> ReportSummary {
    ReportSummary {
        outcome,
        output: plan.output.clone(),
        images: data.images as usize,
        tagged: data.tagged as usize,
        tags: data.tags.len(),
        shown,
        groups: data.groups,
        captions: data.captions,
        spellings: data.analysis.spellings,
        skipped: data.problems,
        warnings: data.warnings,
    }
}

fn groups(analysis: &Analysis, selected: &[&str], images: usize) -> Vec<Group> {
    let group = |group: &crate::analysis::GroupShare| {
        let has_word = |tag: &&str| has_word(tag, &group.word);
        Group {
            word: group.word.clone(),
            tags: group.tags.clone(),
            selected: selected.iter().copied().filter(has_word).map(ToOwned::to_owned).collect(),
            images: group.images,
            share: group.images as f64 / images.max(1) as f64,
        }
    };
    analysis.groups.iter().map(group).collect()
}

/// The text of each picture's caption, empty where there is none, and what there is to say about it.
fn captions(captioned: &Captioned) -> (BTreeMap<String, String>, Vec<Measured>) {
    let mut texts = BTreeMap::new();
    let mut measured = Vec::with_capacity(captioned.pictures.len());
    for Picture { image, .. } in &captioned.pictures {
        let caption = captioned.captions.get(image);
        measured.push(measure(image.clone(), caption));
        texts.insert(image.clone(), caption.map_or(String::new(), |caption| caption.text.clone()));
    }
    (texts, measured)
}

fn measure(image: String, caption: Option<&Caption>) -> Measured {
    let status = match caption {
        None => "missing",
        Some(Caption { text, .. }) if text.is_empty() => "empty",
        Some(Caption { joined: true, .. }) => "several lines",
        Some(_) => "ok",
    };
    let text = caption.map(|caption| caption.text.as_str()).unwrap_or_default();
    let parts = text.split(',').filter(|part| !part.trim().is_empty()).count();
    Measured { image, status, tokens: token_count(text), parts }
}

fn statistics(measured: &[Measured]) -> CaptionStatistics {
    let with = |status| measured.iter().filter(|caption| caption.status == status).count();
    let [missing, empty] = ["missing", "empty"].map(with);
    let present = measured.len() - missing - empty;
    let tokens = || measured.iter().map(|caption| caption.tokens);
    CaptionStatistics {
        present,
        missing,
        empty,
        several_lines: with("several lines"),
        mean_tokens: tokens().sum::<usize>() as f64 / present.max(1) as f64,
        max_tokens: tokens().max().unwrap_or(0),
        too_long: tokens().filter(|tokens| *tokens > MAX_TOKENS).count(),
    }
}

/// Captions of 1 to 5 tokens, 6 to 10, and so on, and last those of more than fit.
fn caption_tokens(measured: &[Measured]) -> Vec<u64> {
    let mut counts = vec![0; MAX_TOKENS / 5 + 1];
    let last = counts.len() - 1;
    for tokens in measured.iter().map(|caption| caption.tokens).filter(|tokens| *tokens > 0) {
        counts[((tokens - 1) / 5).min(last)] += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_counted_by_their_tokens() {
        let caption = |tokens| Measured { image: String::new(), status: "ok", tokens, parts: 1 };
        let counts = caption_tokens(&[0, 1, 5, 6, 75, 76, 300].map(caption));
        assert_eq!((counts.len(), &counts[..2], &counts[14..]), (16, &[2, 1][..], &[1, 2][..]));
    }
}
