//! Joins a grid's cells with the tagger's scores of them: are the tags there that a prompt asks for, and what does a tag in
//! a prompt change. Neither the sampler nor the tagger knows the other; both tables are read from their files.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use vodka_captions::{TagTable, canonical, vocabulary};
use vodka_sampler::{PromptItem, Settings, TakenPrompt, TimedItems, grid::Interval};
use vodka_stage::{AtomicFile, Interrupt, Outcome, Report, RunKey, record_path};
use vodka_tagger::{TagConfig, TagEvent};

use crate::{Error, Result};

/// A tag whose score is this or more is there: the threshold that WD14 taggers are used with.
const FOUND: f32 = 0.35;
/// Scores below are taken for 0.
const MIN_SCORE: f64 = 0.01;
/// A tag of more words is not looked for.
const WORDS_MAX: usize = 5;
/// The seed of the intervals.
const SEED: u64 = 0;

/// What is joined, checked.
#[derive(Debug, Clone, Serialize)]
pub struct JudgePlan {
    /// The tagger, over the grid's cells.
    pub tagger: TagConfig,
    /// The grid's table.
    pub cells: PathBuf,
    /// The tagger's vocabulary.
    pub labels: PathBuf,
    /// The folder for the tables.
    pub output: PathBuf,
}

/// What the stage has done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JudgeReport {
    /// How it ended.
    pub outcome: Outcome,
    /// The folder with the tables.
    pub output: PathBuf,
    /// How many cells were joined.
    pub cells: usize,
    /// The pictures that the tagger could not score, by their names; they count nowhere.
    #[serde(default)]
    pub skipped: Vec<String>,
    /// For each checkpoint, the share of the requested tags that were found.
    pub found: Vec<Found>,
    /// What a tag in a prompt changes, for each checkpoint.
    pub effects: Vec<Effect>,
}

/// How many of the requested tags a checkpoint shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// The checkpoint's label.
    pub checkpoint: String,
    /// The tag; none for all of them.
    pub tag: Option<String>,
    /// How often tags were requested.
    pub requested: usize,
    /// How often they were found.
    pub found: usize,
    /// The median of their scores, with its interval.
    pub score: Interval,
}

/// What a tag in a prompt changes: cells with it against cells that differ in nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Effect {
    /// The checkpoint's label.
    pub checkpoint: String,
    /// The tag.
    pub tag: String,
    /// `positive` or `negative`: the prompt that has it.
    pub side: Side,
    /// How many pairs of cells there are.
    pub pairs: usize,
    /// The median change of the tag's score, with its interval.
    pub score: Interval,
    /// The same of the sharpness.
    pub sharpness: Interval,
}

/// One of the two prompts of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The prompt.
    Positive,
    /// The negative prompt.
    Negative,
}

impl Side {
    const fn name(self) -> &'static str {
        match self {
            Self::Positive => "positive",
            Self::Negative => "negative",
        }
    }
}

/// A cell of the grid with its scores.
#[derive(Debug, Clone, PartialEq)]
struct Cell {
    checkpoint: String,
    /// Both prompts.
    prompts: [Prompt; 2],
    /// Everything else that decides the picture.
    rest: Vec<String>,
    file: String,
    sharpness: f64,
    scores: HashMap<String, f32>,
}

impl Cell {
    /// What is below the tagger's floor is 0.
    fn score(&self, tag: &str) -> f64 {
        self.scores.get(tag).copied().unwrap_or_default().into()
    }
}

/// A prompt as the sampler reads it.
#[derive(Debug, Clone, PartialEq)]
struct Prompt {
    /// What is looked for tags, each item once.
    tags: BTreeSet<String>,
    /// The items of a prompt that stays what it is: as a tag would be written, and as it was, with its weights.
    items: Option<Vec<(String, String)>>,
    /// All that it says, whatever it is written like, without the networks that it names.
    text: String,
    /// Those networks.
    networks: String,
}

impl Prompt {
    fn of(taken: &TakenPrompt) -> Self {
        let both = |item: &PromptItem| (canonical(&item.text().replace('_', " ")), item.to_string());
        let texts = |(weight, texts): &(f64, TimedItems)| {
            let texts = texts.iter().map(|(end, items)| (end, shown(items.iter().map(ToString::to_string))));
            format!("{weight} {:?}", texts.collect::<Vec<_>>())
        };
        Self {
            tags: taken.items().map(|item| both(item).0).filter(|tag| !tag.is_empty()).collect(),
            items: taken.plain().map(|items| items.iter().map(both).collect()),
            text: match taken.plain() {
                Some(items) => shown(items.iter().map(ToString::to_string)),
                None => format!("{:?}", taken.parts.iter().map(texts).collect::<Vec<_>>()),
            },
            networks: format!("{:?}", taken.networks),
        }
    }

    /// The text without the item at that place.
    fn without(&self, place: usize) -> Option<String> {
        let mut items: Vec<_> = self.items.as_ref()?.iter().map(|(_, item)| item.clone()).collect();
        items.remove(place);
        Some(shown(items.into_iter()))
    }

    /// The tags that stand for themselves, and once: with their places.
    fn single(&self, vocabulary: &BTreeSet<String>) -> Vec<(usize, &str)> {
        let items = self.items.as_deref().unwrap_or_default();
        let times = |wanted: &str| items.iter().filter(|(tag, _)| tag == wanted).count();
        let tags = items.iter().enumerate().map(|(place, (tag, _))| (place, tag.as_str()));
        tags.filter(|(_, tag)| vocabulary.contains(*tag) && times(tag) == 1).collect()
    }
}

/// Items in one text. What comes before the first is nothing, whatever it was before another.
fn shown(items: impl Iterator<Item = String>) -> String {
    let bare = |(place, item): (usize, String)| match item.split_once(' ') {
        found if place == 0 => found.map_or_else(String::new, |(_, parts)| parts.to_owned()),
        _ => item,
    };
    items.enumerate().map(bare).collect::<Vec<_>>().join("; ")
}

/// The tags of the vocabulary in these items: the longest runs of words that are tags, from the left.
fn requested(items: &BTreeSet<String>, vocabulary: &BTreeSet<String>) -> BTreeSet<String> {
    let mut tags = BTreeSet::new();
    for item in items {
        let words: Vec<_> = item.split('_').collect();
        let mut start = 0;
        while start < words.len() {
            let longest = (1..=WORDS_MAX.min(words.len() - start)).rev();
            let tag = longest.map(|len| (len, words[start..start + len].join("_")));
            match tag.into_iter().find(|(_, tag)| vocabulary.contains(tag)) {
                Some((len, tag)) => {
                    tags.insert(tag);
                    start += len;
                }
                None => start += 1,
            }
        }
    }
    tags
}

/// The tags that the tables are about.
fn wanted(cells: &[Cell], vocabulary: &BTreeSet<String>) -> BTreeSet<String> {
    let mut wanted = BTreeSet::new();
    for cell in cells {
        wanted.extend(requested(&cell.prompts[0].tags, vocabulary));
        let single = cell.prompts.iter().flat_map(|prompt| prompt.single(vocabulary));
        wanted.extend(single.map(|(_, tag)| tag.to_owned()));
    }
    wanted
}

/// The numbers of the positive prompts, for intervals over them: a prompt with five negative ones is one.
fn groups(cells: &[Cell]) -> Vec<usize> {
    let mut places = HashMap::new();
    let group = |cell: &Cell| {
        let next = places.len();
        *places.entry(cell.prompts[0].text.clone()).or_insert(next)
    };
    cells.iter().map(group).collect()
}

fn checkpoints(cells: &[Cell]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for cell in cells {
        if !names.contains(&cell.checkpoint.as_str()) {
            names.push(&cell.checkpoint);
        }
    }
    names
}

/// The requested tags of each checkpoint: all together, then one by one.
fn found(cells: &[Cell], vocabulary: &BTreeSet<String>) -> Vec<Found> {
    let groups = groups(cells);
    let mut all = Vec::new();
    for checkpoint in checkpoints(cells) {
        let mut scores: BTreeMap<Option<String>, Vec<(usize, f64)>> = BTreeMap::new();
        for (cell, group) in cells.iter().zip(&groups).filter(|(cell, _)| cell.checkpoint == checkpoint) {
            for tag in requested(&cell.prompts[0].tags, vocabulary) {
                let sample = (*group, cell.score(&tag));
                scores.entry(None).or_default().push(sample);
                scores.entry(Some(tag)).or_default().push(sample);
            }
        }
        all.extend(scores.into_iter().filter_map(|(tag, samples)| {
            Some(Found {
                checkpoint: checkpoint.to_owned(),
                tag,
                requested: samples.len(),
                found: samples.iter().filter(|(_, score)| *score >= FOUND.into()).count(),
                score: Interval::of(&samples, SEED)?,
            })
        }));
    }
    all
}

/// Changes of a tag's score and of the sharpness, with the numbers of the prompts.
type Samples = (Vec<(usize, f64)>, Vec<(usize, f64)>);

/// What each tag changes, where the grid has cells with and without it that differ in nothing else.
fn effects(cells: &[Cell], vocabulary: &BTreeSet<String>) -> Vec<Effect> {
    let key = |cell: &Cell| {
        let networks = [0, 1].map(|side: usize| cell.prompts[side].networks.clone());
        (cell.checkpoint.clone(), cell.rest.clone(), networks)
    };
    let texts = |cell: &Cell| [0, 1].map(|side: usize| cell.prompts[side].text.clone());
    let by_key: HashMap<_, _> = cells.iter().map(|cell| ((key(cell), texts(cell)), cell)).collect();
    let groups = groups(cells);
    let mut changes: BTreeMap<(usize, String, Side), Samples> = BTreeMap::new();
    let names = checkpoints(cells);
    for (cell, group) in cells.iter().zip(&groups) {
        for (side, prompt) in [(Side::Positive, 0), (Side::Negative, 1)] {
            for (place, tag) in cell.prompts[prompt].single(vocabulary) {
                let mut without = texts(cell);
                let Some(text) = cell.prompts[prompt].without(place) else { continue };
                without[prompt] = text;
                let Some(other) = by_key.get(&(key(cell), without)) else { continue };
                let checkpoint = names.iter().position(|name| *name == cell.checkpoint).unwrap_or_default();
                let (scores, sharpness) = changes.entry((checkpoint, tag.to_owned(), side)).or_default();
                scores.push((*group, cell.score(tag) - other.score(tag)));
                sharpness.push((*group, cell.sharpness - other.sharpness));
            }
        }
    }
    let effect = |((checkpoint, tag, side), (scores, sharpness)): ((usize, _, _), Samples)| {
        Some(Effect {
            checkpoint: names[checkpoint].to_owned(),
            tag,
            side,
            pairs: scores.len(),
            score: Interval::of(&scores, SEED)?,
            sharpness: Interval::of(&sharpness, SEED)?,
        })
    };
    changes.into_iter().filter_map(effect).collect()
}

/// Whether a column of cells is an axis that changes more than what they are compared by anyway: a hires pass, a ControlNet.
fn is_setting_of_its_own(column: &str) -> bool {
    let others = ["Checkpoint name", "Prompt", "Negative prompt", "Prompt S/R"];
    column.strip_prefix("axis: ").is_some_and(|axis| !others.contains(&axis))
}

impl JudgePlan {
    /// What the tables depend on.
    ///
    /// # Errors
    /// Cells or a model that cannot be read.
    pub fn key(&self) -> Result<RunKey, Box<dyn std::error::Error + Send + Sync>> {
        let tagger = self.tagger().plan()?.key()?;
        let key = RunKey::new("judge", &serde_json::json!({"found": FOUND, "version": 2}), None);
        let key = key.input_hashed("scores", &self.tagger.images, tagger.hash());
        Ok(key.input("cells", &self.cells, |_| true)?.input("labels", &self.labels, |_| true)?)
    }

    /// The tagger, which keeps scores that a recipe would leave out.
    fn tagger(&self) -> TagConfig {
        TagConfig { min_score: MIN_SCORE, embeddings: false, ..self.tagger.clone() }
    }

    /// The cells that have a picture, each picture once.
    fn read_cells(&self) -> Result<Vec<Cell>> {
        let mut cells = Vec::new();
        let mut seen = BTreeSet::new();
        let path = &self.cells;
        let failed = |source| Error::Table { path: path.clone(), source };
        let mut table = csv::Reader::from_path(path).map_err(failed)?;
        let columns = table.headers().map_err(failed)?.clone();
        let place = |name: &str| column(path, &columns, name);
        let (prompt, negative, file) = (place("prompt")?, place("negative_prompt")?, place("file")?);
        let (checkpoint, sharpness) = (place("axis: Checkpoint name")?, place("sharpness")?);
        let (steps, sampler) = (place("steps")?, place("sampler")?);
        let rest =
            ["model_hash", "seed", "steps", "cfg_scale", "sampler", "schedule", "size", "clip_skip", "vae"];
        let mut rest = rest.iter().map(|name| place(name)).collect::<Result<Vec<_>>>()?;
        rest.extend((0..columns.len()).filter(|place| is_setting_of_its_own(&columns[*place])));
        for row in table.records() {
            let row = row.map_err(failed)?;
            // Cells of equal settings share a picture.
            if row[file].is_empty() || !seen.insert((row[checkpoint].to_owned(), row[file].to_owned())) {
                continue;
            }
            let wrong = |place: usize, expected| Error::Cell {
                path: path.clone(),
                line: row.position().map_or(0, csv::Position::line),
                column: columns[place].to_owned(),
                expected,
                found: row[place].to_owned(),
            };
            let settings = Settings {
                prompt: row[prompt].to_owned(),
                negative_prompt: row[negative].to_owned(),
                steps: row[steps].parse().map_err(|_| wrong(steps, "a number of steps"))?,
                sampler: row[sampler].parse().map_err(|_| wrong(sampler, "a sampler"))?,
                ..Settings::default()
            };
            let prompts =
                TakenPrompt::both(&settings).map_err(|_| wrong(prompt, "prompts that make a picture"))?;
            let number = row[sharpness].parse::<f64>().ok().filter(|number| number.is_finite());
            cells.push(Cell {
                checkpoint: row[checkpoint].to_owned(),
                prompts: prompts.each_ref().map(Prompt::of),
                rest: rest.iter().map(|place| row[*place].to_owned()).collect(),
                file: Path::new(&row[file]).file_name().unwrap_or_default().to_string_lossy().into_owned(),
                sharpness: number.ok_or_else(|| wrong(sharpness, "a number"))?,
                scores: HashMap::new(),
            });
        }
        Ok(cells)
    }

    /// Puts the scores of these tags to the cells. The rows of others are read past.
    fn join(&self, cells: &mut [Cell], wanted: &BTreeSet<String>) -> Result<(), vodka_captions::Error> {
        let wanted: Vec<_> = wanted.iter().map(String::as_str).collect();
        let scores = TagTable::open(&self.tagger.output)?.scores(&wanted)?.by_image;
        for cell in cells {
            let found = scores.get(&cell.file).into_iter().flatten();
            cell.scores = found.map(|score| (wanted[score.tag].to_owned(), score.score)).collect();
        }
        Ok(())
    }

    fn write(&self, report: &JudgeReport) -> Result<()> {
        let number = |value: f64| format!("{:.6}", value + 0.0);
        let told = |interval: &Interval| {
            let end = |value: Option<f64>| value.map(number).unwrap_or_default();
            let range = interval.range;
            let over = range.map(|range| range.over.name().to_owned()).unwrap_or_default();
            let ends = [range.map(|range| range.low), range.map(|range| range.high)].map(end);
            [number(interval.median)].into_iter().chain(ends).chain([over])
        };
        let found = report.found.iter().map(|found| {
            let share = found.found as f64 / found.requested.max(1) as f64;
            let tag = found.tag.clone().unwrap_or_else(|| "all".to_owned());
            let head = [found.checkpoint.clone(), tag, found.requested.to_string(), found.found.to_string()];
            head.into_iter().chain([number(share)]).chain(told(&found.score)).collect::<Vec<_>>()
        });
        let head =
            ["checkpoint", "tag", "requested", "found", "share", "score", "score_low", "score_high", "over"];
        write_table(&self.output.join("requested.csv"), &head, found)?;
        let effects = report.effects.iter().map(|effect| {
            let Effect { checkpoint, tag, side, pairs, score, sharpness } = effect;
            let head = [checkpoint.clone(), tag.clone(), side.name().to_owned(), pairs.to_string()];
            head.into_iter().chain(told(score)).chain(told(sharpness)).collect::<Vec<_>>()
        });
        let head = [
            "checkpoint",
            "tag",
            "prompt",
            "pairs",
            "score_change",
            "score_low",
            "score_high",
            "score_over",
            "sharpness_change",
            "sharpness_low",
            "sharpness_high",
            "sharpness_over",
        ];
        write_table(&self.output.join("effects.csv"), &head, effects)
    }
}

pub(crate) fn column(path: &Path, columns: &csv::StringRecord, name: &str) -> Result<usize> {
    let missing = || Error::Column { path: path.to_path_buf(), column: name.to_owned() };
    columns.iter().position(|column| column == name).ok_or_else(missing)
}

pub(crate) fn write_table(path: &Path, head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> Result<()> {
    let failed = |source| Error::Table { path: path.to_path_buf(), source };
    let mut file = AtomicFile::create(path)?;
    let mut table = csv::Writer::from_writer(&mut file);
    table.write_record(head).map_err(failed)?;
    for row in rows {
        table.write_record(row).map_err(failed)?;
    }
    table.flush().map_err(|source| failed(source.into()))?;
    drop(table);
    Ok(file.commit()?)
}

/// Tags the cells and joins the scores.
///
/// # Errors
/// Those of the tagger; tables that cannot be read or written.
pub(crate) fn run(
    plan: &JudgePlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(TagEvent),
) -> Result<JudgeReport, Box<dyn std::error::Error + Send + Sync>> {
    let key = plan.key()?;
    let record = record_path(&plan.output);
    if let Some(report) = key.made::<JudgeReport>(&record)? {
        let outcome = outcome(&report.skipped, Outcome::Unchanged);
        return Ok(JudgeReport { outcome, output: plan.output.clone(), ..report });
    }
    let mut report = JudgeReport {
        outcome: Outcome::Done,
        output: plan.output.clone(),
        cells: 0,
        skipped: Vec::new(),
        found: Vec::new(),
        effects: Vec::new(),
    };
    // What is wrong with it is told before the tagger is at work for hours.
    let vocabulary = vocabulary(&plan.labels)?;
    let mut cells = plan.read_cells()?;
    let tagger = plan.tagger().plan()?;
    let tagged = vodka_tagger::run(&tagger, interrupt, on_event)?;
    if tagged.outcome == Outcome::Interrupted {
        return Ok(JudgeReport { outcome: Outcome::Interrupted, ..report });
    }
    let skipped = images_of(&tagger.skipped)?;
    cells.retain(|cell| {
        let is_known = !skipped.contains(&cell.file);
        report.skipped.extend((!is_known).then(|| cell.file.clone()));
        is_known
    });
    let wanted = wanted(&cells, &vocabulary);
    plan.join(&mut cells, &wanted)?;
    report.outcome = outcome(&report.skipped, Outcome::Done);
    report.cells = cells.len();
    report.found = found(&cells, &vocabulary);
    report.effects = effects(&cells, &vocabulary);
    plan.write(&report)?;
    key.write(&record, &[&plan.output], &report)?;
    Ok(report)
}

fn outcome(skipped: &[String], otherwise: Outcome) -> Outcome {
    if skipped.is_empty() { otherwise } else { Outcome::Skipped }
}

/// The pictures in the tagger's list of those that it skipped.
pub(crate) fn images_of(path: &Path) -> Result<BTreeSet<String>> {
    let failed = |source| Error::Table { path: path.to_path_buf(), source };
    let mut table = csv::Reader::from_path(path).map_err(failed)?;
    let image = column(path, table.headers().map_err(failed)?, "image")?;
    table.records().map(|row| Ok(row.map_err(failed)?[image].to_owned())).collect()
}

impl Report for JudgeReport {
    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

impl fmt::Display for JudgeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let output = self.output.display();
        match self.outcome {
            Outcome::Unchanged => return write!(f, "{output} is there already"),
            Outcome::Interrupted => return write!(f, "the cells are not all tagged yet"),
            Outcome::Done | Outcome::Skipped => write!(f, "{output}: {} cells", self.cells)?,
        }
        if !self.skipped.is_empty() {
            write!(f, "; left out, for they have no scores: {}", self.skipped.join(", "))?;
        }
        for Found { checkpoint, requested, found, score, .. } in
            self.found.iter().filter(|found| found.tag.is_none())
        {
            let checkpoint = checkpoint.replace('\n', ", ");
            write!(
                f,
                "\n{checkpoint}: {found} of {requested} requested tags found, median score {:.2}",
                score.median
            )?;
        }
        for Effect { checkpoint, tag, side, pairs, score, .. } in &self.effects {
            let checkpoint = checkpoint.replace('\n', ", ");
            let range = match score.range {
                Some(range) => {
                    format!("{:+.3} to {:+.3} over {}, ", range.low, range.high, range.over.name())
                }
                None => "no interval of fewer than six prompts, ".to_owned(),
            };
            let (side, median) = (side.name(), score.median);
            write!(f, "\n{checkpoint}: `{tag}` in the {side} prompt: {median:+.3} ({range}{pairs} pairs)")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary(tags: &[&str]) -> BTreeSet<String> {
        tags.iter().map(ToString::to_string).collect()
    }

    fn cell(checkpoint: &str, prompt: &str, negative: &str, seed: u32, scores: &[(&str, f32)]) -> Cell {
        Cell {
            checkpoint: checkpoint.into(),
            prompts: prompts(prompt, negative),
            rest: vec![seed.to_string()],
            file: String::new(),
            sharpness: f64::from(seed) + if negative.contains("blurry") { 10.0 } else { 0.0 },
            scores: scores.iter().map(|(tag, score)| ((*tag).to_owned(), *score)).collect(),
        }
    }

    fn prompts(prompt: &str, negative: &str) -> [Prompt; 2] {
        let settings =
            Settings { prompt: prompt.into(), negative_prompt: negative.into(), ..Settings::default() };
        TakenPrompt::both(&settings).unwrap().each_ref().map(Prompt::of)
    }

    #[test]
    fn cells_that_differ_in_an_axis_of_its_own_are_not_compared() {
        let columns = ["axis: Denoising", "axis: Prompt", "axis: Checkpoint name", "seed", "axis: mine"];
        assert_eq!(columns.map(is_setting_of_its_own), [true, false, false, false, true]);
    }

    #[test]
    fn prompts_are_read_as_the_sampler_reads_them() {
        let of = |prompt: &str| {
            let known =
                vocabulary(&["smile", ">_<", ":3", "blurry", "solo", "break", "saber_(fate)", "upper_body"]);
            requested(&prompts(prompt, "")[0].tags, &known).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(of("smile, >_<, :3, (blurry:1.2), Solo"), [":3", ">_<", "blurry", "smile", "solo"]);
        assert_eq!(of("BREAKFAST, a\n# smile\nsolo <lora:blurry:1>"), ["solo"]);
        assert_eq!(of("saber \\(fate\\) BREAK upper  body"), ["saber_(fate)", "upper_body"]);
    }

    #[test]
    fn the_longest_runs_of_words_that_are_tags_are_requested() {
        let known = vocabulary(&["blurry", "blurry_background", "circle", "red", "upper_body"]);
        let of =
            |prompt: &str| requested(&prompts(prompt, "")[0].tags, &known).into_iter().collect::<Vec<_>>();
        assert_eq!(of("a red circle, blurry background"), ["blurry_background", "circle", "red"]);
        assert_eq!(of("portrait, upper body shot"), ["upper_body"]);
        assert_eq!(of("a dog"), [""; 0]);
    }

    #[test]
    fn requested_tags_are_found_by_their_score() {
        let known = vocabulary(&["circle", "star"]);
        let cells = [
            cell("a", "a circle", "", 1, &[("circle", 0.9)]),
            cell("a", "a circle and a star", "", 1, &[("circle", 0.1), ("star", 0.5)]),
            cell("b", "a circle", "star", 1, &[]),
        ];
        let found = found(&cells, &known);
        let told: Vec<_> = found
            .iter()
            .map(|found| (&*found.checkpoint, found.tag.as_deref(), found.requested, found.found))
            .collect();
        assert_eq!(
            told,
            [
                ("a", None, 3, 2),
                ("a", Some("circle"), 2, 1),
                ("a", Some("star"), 1, 1),
                ("b", None, 1, 0),
                ("b", Some("circle"), 1, 0),
            ]
        );
        assert!((found[0].score.median - 0.5).abs() < 1e-6 && found[0].score.range.is_none());
    }

    #[test]
    fn the_effect_of_a_tag_is_that_of_cells_which_differ_in_nothing_else() {
        let known = vocabulary(&["blurry", "heart"]);
        let mut cells = Vec::new();
        for seed in [1, 2] {
            cells.push(cell("a", "heart, room", "", seed, &[("blurry", 0.8), ("heart", 0.9)]));
            cells.push(cell("a", "heart, room", "blurry", seed, &[("blurry", 0.2), ("heart", 0.9)]));
            cells.push(cell("a", "room", "blurry", seed, &[("heart", 0.4)]));
            cells.push(cell("a", "blurry, tree", "", seed, &[("blurry", 0.9)]));
        }
        let effects = effects(&cells, &known);
        let told: Vec<_> = effects.iter().map(|effect| (&*effect.tag, effect.side, effect.pairs)).collect();
        assert_eq!(told, [("blurry", Side::Negative, 2), ("heart", Side::Positive, 2)]);
        assert!(
            (effects[0].score.median + 0.6).abs() < 1e-6 && (effects[0].sharpness.median - 10.0).abs() < 1e-6
        );
        assert!((effects[1].score.median - 0.5).abs() < 1e-6 && effects[1].sharpness.median == 0.0);
    }

    #[test]
    fn cells_of_other_weights_are_other_cells() {
        let known = vocabulary(&["blurry"]);
        let cells = [
            cell("a", "room", "", 1, &[("blurry", 0.5)]),
            cell("a", "room", "blurry", 1, &[("blurry", 0.4)]),
            cell("a", "room", "(blurry:1.4)", 1, &[("blurry", 0.1)]),
            // What has the tag twice has it still when it is taken once.
            cell("a", "room", "blurry, blurry", 1, &[("blurry", 0.0)]),
            // Another weight of the rest, and another network.
            cell("a", "(room:1.2)", "blurry", 1, &[("blurry", 0.0)]),
            cell("a", "room <lora:x:1>", "blurry", 1, &[("blurry", 0.0)]),
            cell("a", "[room:sea:3]", "blurry", 1, &[("blurry", 0.0)]),
        ];
        let effects = effects(&cells, &known);
        assert_eq!((effects.len(), effects[0].pairs), (1, 2));
        // The mean of -0.1 and -0.4.
        assert!((effects[0].score.median + 0.25).abs() < 1e-6, "{effects:?}");
    }

    #[test]
    fn a_prompt_with_many_negative_ones_is_one() {
        let known = vocabulary(&["blurry", "heart"]);
        let negatives = ["", "blurry", "dark", "dark, blurry", "flat", "flat, blurry", "old, blurry", "old"];
        let of = |prompts: &[&str]| {
            let cells: Vec<_> = prompts
                .iter()
                .flat_map(|prompt| negatives.map(|negative| cell("a", prompt, negative, 1, &[])))
                .collect();
            effects(&cells, &known)[0].score
        };
        let one = of(&["sea"]);
        assert_eq!((one.count, one.range), (4, None));
        assert_eq!(of(&["sea", "sun"]).range, None);
        let six = of(&["sea", "sun", "sky", "ice", "oak", "elm"]).range.unwrap();
        assert_eq!(six.over, vodka_sampler::grid::Over::Prompts);
    }

    /// A table of two cells, and what the tagger made of them.
    fn plan(dir: &Path, sharpness: &str) -> JudgePlan {
        let at = |name: &str| dir.join(name);
        let head = "axis: Checkpoint name,model_hash,prompt,negative_prompt,seed,steps,cfg_scale,sampler,schedule,\
                    size,clip_skip,vae,file,sharpness";
        let row = |seed: u32, sharpness: &str| {
            format!("a,0,\"heart, >_<\",,{seed},20,7,Euler,Automatic,64x64,1,,cells/{seed}.png,{sharpness}")
        };
        let text = format!("{head}\n{}\n{}\n{}\n", row(1, "5"), row(2, sharpness), row(1, "5"));
        std::fs::write(at("cells.csv"), text).unwrap();
        std::fs::write(
            at("tags.csv"),
            "image,tag_id,tag,category,score\n1.png,1,heart,general,0.9\n1.png,2,dog,general,0.5\n",
        )
        .unwrap();
        std::fs::write(at("tags.skipped.csv"), "image,reason\n2.png,cut off\n").unwrap();
        JudgePlan {
            tagger: TagConfig::new(dir, dir, at("tags.csv")),
            cells: at("cells.csv"),
            labels: at("labels.csv"),
            output: at("judged"),
        }
    }

    #[test]
    fn scores_of_other_tags_are_read_past_and_each_picture_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(dir.path(), "4");
        let known = vocabulary(&["heart", ">_<", "dog"]);
        let mut cells = plan.read_cells().unwrap();
        assert_eq!(cells.len(), 2);
        let wanted = wanted(&cells, &known);
        assert_eq!(wanted.iter().collect::<Vec<_>>(), [">_<", "heart"]);
        plan.join(&mut cells, &wanted).unwrap();
        assert_eq!(cells[0].scores, HashMap::from([("heart".to_owned(), 0.9)]));
        assert!(images_of(&dir.path().join("tags.skipped.csv")).unwrap().contains(&cells[1].file));
        assert_eq!(outcome(&["2.png".to_owned()], Outcome::Unchanged), Outcome::Skipped);
    }

    #[test]
    fn a_number_that_is_none_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let error = plan(dir.path(), "much").read_cells().unwrap_err().to_string();
        assert!(
            error.ends_with("cells.csv`, line 3, column `sharpness`: expected a number, found \"much\""),
            "{error}"
        );
        assert!(plan(dir.path(), "NaN").read_cells().is_err());
    }
}
