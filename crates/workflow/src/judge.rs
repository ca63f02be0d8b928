//! Joins a grid's cells with the tagger's scores of them: are the tags there that a prompt asks for, and what does a tag in
//! a prompt change. Neither the sampler nor the tagger knows the other; both tables are read from their files.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use vodka_sampler::grid::Interval;
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
    /// The median of their scores, with its interval over prompts.
    pub score: [f64; 3],
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
    /// The median change of the tag's score, with its interval over prompts.
    pub score: [f64; 3],
    /// The same of the sharpness.
    pub sharpness: [f64; 3],
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
    /// The items of both prompts.
    prompts: [Vec<String>; 2],
    /// Everything else that decides the picture.
    rest: Vec<String>,
    file: String,
    sharpness: f64,
    scores: HashMap<String, f32>,
}

impl Cell {
    fn score(&self, tag: &str) -> f64 {
        self.scores.get(tag).copied().unwrap_or_default().into()
    }
}

/// The comma-separated parts of a prompt as tags are written: small letters, underscores, no brackets, weights or networks.
fn items(prompt: &str) -> Vec<String> {
    let mut plain = String::new();
    let mut depth = 0_usize;
    for c in prompt.chars() {
        match c {
            '<' => depth += 1,
            '>' => depth = depth.saturating_sub(1),
            '\n' if depth == 0 => plain.push(','),
            _ if depth == 0 => plain.push(c),
            _ => {}
        }
    }
    let item = |part: &str| {
        // Brackets that belong to a name are no emphasis.
        let part = part.replace("BREAK", " ").replace("\\(", "\u{1}").replace("\\)", "\u{2}");
        let part = part.trim().trim_matches(|c| matches!(c, '(' | ')' | '[' | ']' | '{' | '}')).to_owned();
        let is_weight = |text: &str| text.trim().parse::<f32>().is_ok();
        let part = match part.rsplit_once(':') {
            Some((text, weight)) if is_weight(weight) => text.to_owned(),
            _ => part,
        };
        let part = part.replace('\u{1}', "(").replace('\u{2}', ")").to_lowercase();
        part.split([' ', '_']).filter(|word| !word.is_empty()).collect::<Vec<_>>().join("_")
    };
    plain.split(',').map(item).filter(|item| !item.is_empty()).collect()
}

/// The `<lora:...>` of a prompt, which are no items and decide the picture all the same.
fn networks(prompt: &str) -> String {
    let parts = prompt.split('<').skip(1).filter_map(|part| part.split_once('>'));
    parts.map(|(network, _)| network).collect::<Vec<_>>().join(",")
}

/// The tags of the vocabulary in these items: the longest runs of words that are tags, from the left.
fn requested(items: &[String], vocabulary: &BTreeSet<String>) -> BTreeSet<String> {
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

fn three(interval: Option<Interval>) -> [f64; 3] {
    interval.map_or([0.0; 3], |interval| [interval.median, interval.low, interval.high])
}

/// The numbers of the prompts, for intervals over them.
fn groups(cells: &[Cell]) -> Vec<usize> {
    let mut places = HashMap::new();
    let group = |cell: &Cell| {
        let next = places.len();
        *places.entry(cell.prompts.clone()).or_insert(next)
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
            for tag in requested(&cell.prompts[0], vocabulary) {
                let sample = (*group, cell.score(&tag));
                scores.entry(None).or_default().push(sample);
                scores.entry(Some(tag)).or_default().push(sample);
            }
        }
        all.extend(scores.into_iter().map(|(tag, samples)| Found {
            checkpoint: checkpoint.to_owned(),
            tag,
            requested: samples.len(),
            found: samples.iter().filter(|(_, score)| *score >= FOUND.into()).count(),
            score: three(Interval::of(&samples, SEED)),
        }));
    }
    all
}

/// Changes of a tag's score and of the sharpness, with the numbers of the prompts.
type Samples = (Vec<(usize, f64)>, Vec<(usize, f64)>);

/// What each tag changes, where the grid has cells with and without it that differ in nothing else.
fn effects(cells: &[Cell], vocabulary: &BTreeSet<String>) -> Vec<Effect> {
    let key = |cell: &Cell, prompts: [Vec<String>; 2]| (cell.checkpoint.clone(), cell.rest.clone(), prompts);
    let by_key: HashMap<_, _> = cells.iter().map(|cell| (key(cell, cell.prompts.clone()), cell)).collect();
    let groups = groups(cells);
    let mut changes: BTreeMap<(usize, String, Side), Samples> = BTreeMap::new();
    let names = checkpoints(cells);
    for (cell, group) in cells.iter().zip(&groups) {
        for (side, prompt) in [(Side::Positive, 0), (Side::Negative, 1)] {
            for (place, tag) in cell.prompts[prompt].iter().enumerate() {
                if !vocabulary.contains(tag) {
                    continue;
                }
                let mut without = cell.prompts.clone();
                without[prompt].remove(place);
                let Some(other) = by_key.get(&key(cell, without)) else { continue };
                let checkpoint = names.iter().position(|name| *name == cell.checkpoint).unwrap_or_default();
                let (scores, sharpness) = changes.entry((checkpoint, tag.clone(), side)).or_default();
                scores.push((*group, cell.score(tag) - other.score(tag)));
                sharpness.push((*group, cell.sharpness - other.sharpness));
            }
        }
    }
    let effect = |((checkpoint, tag, side), (scores, sharpness)): ((usize, _, _), Samples)| Effect {
        checkpoint: names[checkpoint].to_owned(),
        tag,
        side,
        pairs: scores.len(),
        score: three(Interval::of(&scores, SEED)),
        sharpness: three(Interval::of(&sharpness, SEED)),
    };
    changes.into_iter().map(effect).collect()
}

impl JudgePlan {
    /// What the tables depend on.
    ///
    /// # Errors
    /// Cells or a model that cannot be read.
    pub fn key(&self) -> Result<RunKey, Box<dyn std::error::Error + Send + Sync>> {
        let tagger = self.tagger().plan()?.key()?;
        let key = RunKey::new("judge", &serde_json::json!({"found": FOUND, "version": 1}), None);
        let key = key.input_hashed("scores", &self.tagger.images, tagger.hash());
        Ok(key.input("cells", &self.cells, |_| true)?.input("labels", &self.labels, |_| true)?)
    }

    /// The tagger, which keeps scores that a recipe would leave out.
    fn tagger(&self) -> TagConfig {
        TagConfig { min_score: MIN_SCORE, embeddings: false, ..self.tagger.clone() }
    }

    fn read_cells(&self) -> Result<Vec<Cell>> {
        let mut cells = Vec::new();
        let (columns, rows) = table(&self.cells)?;
        let place = |name: &str| column(&self.cells, &columns, name);
        let (prompt, negative, file) = (place("prompt")?, place("negative_prompt")?, place("file")?);
        let (checkpoint, sharpness) = (place("axis: Checkpoint name")?, place("sharpness")?);
        let rest =
            ["model_hash", "seed", "steps", "cfg_scale", "sampler", "schedule", "size", "clip_skip", "vae"];
        let rest = rest.iter().map(|name| place(name)).collect::<Result<Vec<_>>>()?;
        for row in rows.iter().filter(|row| !row[file].is_empty()) {
            let name = Path::new(&row[file]).file_name().unwrap_or_default();
            cells.push(Cell {
                checkpoint: row[checkpoint].to_owned(),
                prompts: [items(&row[prompt]), items(&row[negative])],
                rest: rest
                    .iter()
                    .map(|place| row[*place].to_owned())
                    .chain([networks(&row[prompt])])
                    .collect(),
                file: name.to_string_lossy().into_owned(),
                sharpness: row[sharpness].parse().unwrap_or_default(),
                scores: HashMap::new(),
            });
        }
        Ok(cells)
    }

    /// Puts the scores to the cells.
    fn join(&self, cells: &mut [Cell]) -> Result<()> {
        let mut scores: HashMap<String, HashMap<String, f32>> = HashMap::new();
        let path = &self.tagger.output;
        let (columns, rows) = table(path)?;
        let place = |name: &str| column(path, &columns, name);
        let (image, tag, score) = (place("image")?, place("tag")?, place("score")?);
        for row in &rows {
            let score = row[score].parse().unwrap_or_default();
            scores.entry(row[image].to_owned()).or_default().insert(row[tag].to_owned(), score);
        }
        for cell in cells {
            cell.scores = scores.get(&cell.file).cloned().unwrap_or_default();
        }
        Ok(())
    }

    fn write(&self, report: &JudgeReport) -> Result<()> {
        let number = |value: &f64| format!("{:.6}", value + 0.0);
        let found = report.found.iter().map(|found| {
            let share = found.found as f64 / found.requested.max(1) as f64;
            let tag = found.tag.clone().unwrap_or_else(|| "all".to_owned());
            let head = [found.checkpoint.clone(), tag, found.requested.to_string(), found.found.to_string()];
            head.into_iter().chain([number(&share)]).chain(found.score.iter().map(number)).collect::<Vec<_>>()
        });
        let head = ["checkpoint", "tag", "requested", "found", "share", "score", "score_low", "score_high"];
        write_table(&self.output.join("requested.csv"), &head, found)?;
        let effects = report.effects.iter().map(|effect| {
            let Effect { checkpoint, tag, side, pairs, score, sharpness } = effect;
            let head = [checkpoint.clone(), tag.clone(), side.name().to_owned(), pairs.to_string()];
            head.into_iter().chain(score.iter().chain(sharpness).map(number)).collect::<Vec<_>>()
        });
        let head = [
            "checkpoint",
            "tag",
            "prompt",
            "pairs",
            "score_change",
            "score_low",
            "score_high",
            "sharpness_change",
            "sharpness_low",
            "sharpness_high",
        ];
        write_table(&self.output.join("effects.csv"), &head, effects)
    }
}

/// The head and the rows of a table.
fn table(path: &Path) -> Result<(csv::StringRecord, Vec<csv::StringRecord>)> {
    let failed = |source| Error::Table { path: path.to_path_buf(), source };
    let mut table = csv::Reader::from_path(path).map_err(failed)?;
    let columns = table.headers().map_err(failed)?.clone();
    let rows = table.records().collect::<Result<_, _>>().map_err(failed)?;
    Ok((columns, rows))
}

fn column(path: &Path, columns: &csv::StringRecord, name: &str) -> Result<usize> {
    let missing = || Error::Column { path: path.to_path_buf(), column: name.to_owned() };
    columns.iter().position(|column| column == name).ok_or_else(missing)
}

fn write_table(path: &Path, head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> Result<()> {
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
        return Ok(JudgeReport { outcome: Outcome::Unchanged, output: plan.output.clone(), ..report });
    }
    let mut report = JudgeReport {
        outcome: Outcome::Done,
        output: plan.output.clone(),
        cells: 0,
        found: Vec::new(),
        effects: Vec::new(),
    };
    let tagged = vodka_tagger::run(&plan.tagger().plan()?, interrupt, on_event)?;
    if tagged.outcome == Outcome::Interrupted {
        return Ok(JudgeReport { outcome: Outcome::Interrupted, ..report });
    }
    let mut cells = plan.read_cells()?;
    plan.join(&mut cells)?;
    let (columns, labels) = table(&plan.labels)?;
    let name = column(&plan.labels, &columns, "name")?;
    let vocabulary = labels.iter().map(|row| row[name].to_owned()).collect();
    report.cells = cells.len();
    report.found = found(&cells, &vocabulary);
    report.effects = effects(&cells, &vocabulary);
    plan.write(&report)?;
    key.write(&record, &[&plan.output], &report)?;
    Ok(report)
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
        for Found { checkpoint, requested, found, score, .. } in
            self.found.iter().filter(|found| found.tag.is_none())
        {
            let checkpoint = checkpoint.replace('\n', ", ");
            write!(
                f,
                "\n{checkpoint}: {found} of {requested} requested tags found, median score {:.2}",
                score[0]
            )?;
        }
        for Effect { checkpoint, tag, side, pairs, score: [median, low, high], .. } in &self.effects {
            let checkpoint = checkpoint.replace('\n', ", ");
            write!(
                f,
                "\n{checkpoint}: `{tag}` in the {} prompt: {median:+.3} ({low:+.3} to {high:+.3}, {pairs} pairs)",
                side.name()
            )?;
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
            prompts: [items(prompt), items(negative)],
            rest: vec![seed.to_string()],
            file: String::new(),
            sharpness: f64::from(seed) + if negative.contains("blurry") { 10.0 } else { 0.0 },
            scores: scores.iter().map(|(tag, score)| ((*tag).to_owned(), *score)).collect(),
        }
    }

    #[test]
    fn items_are_written_as_tags() {
        assert_eq!(
            items(
                "A Red Circle, (upper body:1.2), [blurry], <lora:x:0.5>, ((solo)), saber \\(fate\\)\nlooking at viewer,"
            ),
            ["a_red_circle", "upper_body", "blurry", "solo", "saber_(fate)", "looking_at_viewer"]
        );
        assert_eq!(items(" , <a"), [""; 0]);
        assert_eq!(networks("a <lora:x:0.5> b<lora:y>"), "lora:x:0.5,lora:y");
    }

    #[test]
    fn the_longest_runs_of_words_that_are_tags_are_requested() {
        let known = vocabulary(&["blurry", "blurry_background", "circle", "red", "upper_body"]);
        let of = |prompt: &str| requested(&items(prompt), &known).into_iter().collect::<Vec<_>>();
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
        assert!((found[0].score[0] - 0.5).abs() < 1e-6);
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
        assert!((effects[0].score[0] + 0.6).abs() < 1e-6 && (effects[0].sharpness[0] - 10.0).abs() < 1e-6);
        assert!((effects[1].score[0] - 0.5).abs() < 1e-6 && effects[1].sharpness[0] == 0.0);
    }
}
