//! `index.html`, and the charts as files: one page that needs nothing beside it.

use std::error;

use base64::{Engine, engine::general_purpose::STANDARD};
use minijinja::context;
use serde::Serialize;
use vodka_sampler::numbers::short;
use vodka_stage::{create_dir, remove_all, write_atomic};

use super::{
    Adherence, Condition, Estimate, Placebos, Response, Results, Tags, Verdict,
    chart::{Forest, Scale},
    gallery,
    plan::{ProbePlan, Set},
    response::{FOUND, RATIO, RESPONSE_MIN},
};
use crate::pages::{self, signed_told, told};

/// Of the sheets in the page; the files are whole.
const JPEG_QUALITY: u8 = 90;

/// A text that leads to the line it came from.
#[derive(Debug, Clone, Default, Serialize)]
struct Number {
    text: String,
    link: String,
}

impl Number {
    fn new(text: Option<String>, table: &str, line: usize) -> Self {
        Self { text: text.unwrap_or_default(), link: pages::line(table, line) }
    }
}

#[derive(Debug, Clone, Default, Serialize)]
struct Cell {
    /// Without the word.
    before: String,
    level: Number,
    change: Number,
    bold: bool,
}

#[derive(Debug, Clone, Serialize)]
struct Row {
    label: String,
    /// The heading of its sheet.
    sheet: String,
    condition: String,
    cells: Vec<Cell>,
}

#[derive(Serialize)]
struct Summary {
    name: String,
    responds: String,
    refuses: String,
    neither: String,
}

#[derive(Serialize)]
struct Chart {
    file: String,
    svg: String,
}

#[derive(Serialize)]
struct Sheet {
    id: String,
    label: String,
    file: String,
    data: String,
}

/// Writes charts and page.
pub(super) fn write(
    plan: &ProbePlan,
    set: &Set,
    results: &Results,
    missing: usize,
) -> Result<(), Box<dyn error::Error + Send + Sync>> {
    let output = &plan.config.output;
    let folder = output.join("charts");
    remove_all(&folder)?;
    create_dir(&folder)?;
    let view = View { plan, set, results };
    let mut charts = Vec::new();
    for (file, forest) in view.charts().into_iter().filter(|(_, forest)| forest.has_marks()) {
        write_atomic(output.join(&file), forest.svg(true))?;
        charts.push(Chart { file, svg: forest.svg(false) });
    }
    let sheets = (0..set.words.len()).map(|word| view.sheet(word)).collect::<Result<Vec<_>, _>>()?;
    let probe = &plan.config.probe;
    let shown = &probe.prompts[..probe.prompts.len().min(3)];
    let quoted = shown.iter().map(|prompt| format!("“{}”", prompt.prompt)).collect::<Vec<_>>().join(", ");
    let page = context! {
        name => probe.name, told => view.told(), summaries => view.summaries(), response_min => RESPONSE_MIN,
        models => view.models(), tags => view.tag_rows(), charts, sharpness => view.sharpness_rows(),
        found => FOUND.to_string(), against => plan.config.models[plan.against].0, adherence => view.adherence_rows(),
        sampled => view.sampled(), fried => view.fried_rows(), sheets, shown_prompts => quoted, how => view.how(),
        prompts => probe.prompts, files => view.files(), missing,
        style => pages::style(),
    };
    Ok(write_atomic(output.join("index.html"), pages::render("probe.html", page))?)
}

/// What the page shows.
struct View<'a> {
    plan: &'a ProbePlan,
    set: &'a Set,
    results: &'a Results,
}

impl View<'_> {
    fn models(&self) -> Vec<&str> {
        self.plan.config.models.iter().map(|(name, _)| name.as_str()).collect()
    }

    fn files(&self) -> Vec<[String; 2]> {
        self.plan
            .config
            .models
            .iter()
            .map(|(name, path)| [name.clone(), path.display().to_string()])
            .collect()
    }

    fn told(&self) -> String {
        let probe = &self.plan.config.probe;
        format!(
            "{} pictures: {} models, {} tags, {} placebos, up to {} seeds; {} steps of {}, CFG scale {}, {}",
            self.set.shots.len(),
            self.plan.config.models.len(),
            self.set.words.iter().filter(|word| !word.is_placebo).count(),
            probe.placebo.len(),
            self.set.seeds(),
            probe.steps,
            probe.sampler,
            probe.cfg,
            probe.size,
        )
    }

    fn how(&self) -> String {
        let probe = &self.plan.config.probe;
        let tags = match probe.tags {
            Tags::Selection => "the tags of the selection",
            Tags::Listed(_) => "the tags that the probe lists",
        };
        format!(
            "For each model and {tags}, pictures of the same seeds: the tag alone as the prompt; before the prompt, as in \
             captions; the prompt without it; and the prompt with the tag in the negative prompt. Seeds {} to {} take the \
             prompts below in turn. Placebos are words that stand in no caption, probed in the same way, but \
             not alone. The tagger {} scored every picture. Differences are between pictures of one seed and one prompt; intervals are percentile intervals \
             of 2000 bootstrap samples over seeds, none of fewer than six.",
            probe.first_seed,
            probe.first_seed as usize + self.set.seeds().max(1) - 1,
            self.plan.config.tagger.model.display(),
        )
    }

    fn sampled(&self) -> String {
        match &self.plan.config.data {
            Some(data) => {
                format!("{} pictures of {} at most", self.plan.config.probe.sample, data.display())
            }
            None => "no pictures, for no training set was given".to_owned(),
        }
    }

    fn summaries(&self) -> Vec<Summary> {
        let of = |name: &str| {
            let all: Vec<_> = self.results.verdicts.iter().filter(|row| row.model == name).collect();
            let names = |keep: fn(&Verdict) -> bool| {
                let names: Vec<_> = all.iter().filter(|row| keep(row)).map(|row| row.tag.as_str()).collect();
                if names.is_empty() { "none".to_owned() } else { names.join(", ") }
            };
            Summary {
                name: name.to_owned(),
                responds: names(|row| row.responds),
                refuses: names(|row| row.refuses),
                neither: names(|row| !row.responds && !row.refuses),
            }
        };
        self.models().into_iter().map(of).collect()
    }

    /// The line of a response, and the response.
    fn response(
        &self,
        model: &str,
        word: &str,
        condition: Condition,
        (measure, tag): (&str, Option<&str>),
    ) -> Option<(usize, &Response)> {
        let is_it = |row: &Response| {
            row.model == model
                && row.word == word
                && row.condition == condition
                && row.measure == measure
                && row.tag.as_deref() == tag
        };
        self.results.responses.iter().enumerate().find(|(_, row)| is_it(row))
    }

    fn verdict(&self, model: &str, tag: &str) -> Option<&Verdict> {
        self.results.verdicts.iter().find(|row| row.model == model && row.tag == tag)
    }

    /// A word's cell: its level without and with it, and what `change` makes of the response.
    fn cell(
        &self,
        model: &str,
        word: &str,
        condition: Condition,
        measure: (&str, Option<&str>),
        change: fn(&Response) -> Option<String>,
    ) -> Cell {
        let before = self.response(model, word, Condition::Without, measure);
        let level = |row: &Response| row.level.map(|level| short(level.value));
        let Some((line, row)) = self.response(model, word, condition, measure) else {
            return Cell::default();
        };
        let number = |text| Number::new(text, "responses.csv", line);
        Cell {
            before: before.and_then(|(_, row)| level(row)).unwrap_or_default(),
            level: number(level(row)),
            change: number(change(row)),
            bold: false,
        }
    }

    fn rows(&self, word: usize, cell: &dyn Fn(&str, Condition) -> Cell) -> [Row; 2] {
        let conditions = [(Condition::With, "with"), (Condition::Negative, "negative")];
        conditions.map(|(condition, name)| {
            let word_of = &self.set.words[word];
            let is_first = condition == Condition::With;
            let kind = if word_of.is_placebo { " (placebo)" } else { "" };
            Row {
                label: if is_first { format!("{}{kind}", word_of.name) } else { String::new() },
                sheet: if is_first { format!("word-{word}") } else { String::new() },
                condition: name.to_owned(),
                cells: self.models().into_iter().map(|model| cell(model, condition)).collect(),
            }
        })
    }

    fn tag_rows(&self) -> Vec<Row> {
        let tags = self.set.words.iter().enumerate().filter(|(_, word)| !word.is_placebo);
        let rows = tags.flat_map(|(place, word)| {
            self.rows(place, &|model, condition| {
                let change = |row: &Response| row.difference.map(|change| signed_told(&change));
                let measure = ("probability", Some(word.name.as_str()));
                let verdict = self.verdict(model, &word.name);
                let bold = verdict.is_some_and(|verdict| match condition {
                    Condition::Negative => verdict.refuses,
                    _ => verdict.responds,
                });
                Cell { bold, ..self.cell(model, &word.name, condition, measure, change) }
            })
        });
        rows.collect()
    }

    fn sharpness_rows(&self) -> Vec<Row> {
        let rows = (0..self.set.words.len()).flat_map(|place| {
            let word = &self.set.words[place].name;
            self.rows(place, &|model, condition| {
                let change = |row: &Response| row.ratio.map(|ratio| format!("×{}", told(&ratio)));
                let found =
                    self.response(model, word, condition, (RATIO, None)).and_then(|(_, row)| row.ratio);
                let is_other = |[low, high]: [f64; 2]| low > 1.0 || high < 1.0;
                let bold = found.and_then(|ratio| ratio.range).is_some_and(is_other);
                Cell { bold, ..self.cell(model, word, condition, (RATIO, None), change) }
            })
        });
        rows.collect()
    }

    fn adherence_rows(&self) -> Vec<Row> {
        let plain = |row: &&Adherence| row.word.is_none();
        let mut things: Vec<&Option<String>> = Vec::new();
        for row in self.results.adherence.iter().filter(plain) {
            if !things.contains(&&row.thing) {
                things.push(&row.thing);
            }
        }
        let cell = |model: &str, thing: &Option<String>| {
            let is_it = |row: &Adherence| row.model == model && row.word.is_none() && row.thing == *thing;
            let found = self.results.adherence.iter().enumerate().find(|(_, row)| is_it(row));
            let Some((line, row)) = found else { return Cell::default() };
            let share = |estimate: &Estimate| told(&scaled(estimate, 100.0)) + " %";
            let level = row
                .share
                .as_ref()
                .map(|found| format!("{} of {}: {}", row.found, row.requested, share(found)));
            let change =
                row.difference.as_ref().map(|change| signed_told(&scaled(change, 100.0)) + " points");
            let number = |text| Number::new(text, "adherence.csv", line);
            let bold = row.difference.as_ref().is_some_and(Estimate::is_clear);
            Cell { before: String::new(), level: number(level), change: number(change), bold }
        };
        let row = |thing: &Option<String>| Row {
            label: thing.clone().unwrap_or_else(|| "all".to_owned()),
            sheet: String::new(),
            condition: String::new(),
            cells: self.models().into_iter().map(|model| cell(model, thing)).collect(),
        };
        things.into_iter().map(row).collect()
    }

    fn fried_rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        for (line, row) in self.results.friedness.iter().enumerate() {
            let place = rows.iter().position(|known| known.label == row.measure);
            let place = place.unwrap_or_else(|| {
                let condition = row.data.map(short).unwrap_or_default();
                let label = row.measure.clone();
                rows.push(Row { label, sheet: String::new(), condition, cells: Vec::new() });
                rows.len() - 1
            });
            let number = |text| Number::new(text, "fried.csv", line);
            rows[place].cells.push(Cell {
                before: String::new(),
                level: number(row.level.as_ref().map(told)),
                change: number(row.difference.as_ref().map(signed_told)),
                bold: row.difference.as_ref().is_some_and(Estimate::is_clear),
            });
        }
        let distances = self.results.diversity.iter().enumerate().map(|(line, row)| Cell {
            level: Number::new(row.distance.as_ref().map(told), "diversity.csv", line),
            ..Cell::default()
        });
        let cells = distances.collect();
        let condition = String::new();
        rows.push(Row { label: "diversity".to_owned(), sheet: String::new(), condition, cells });
        rows
    }

    fn sheet(&self, word: usize) -> Result<Sheet, Box<dyn error::Error + Send + Sync>> {
        let file = gallery::file(self.set, word);
        let path = self.plan.config.output.join(&file);
        let picture = vodka_images::decode(&path)?.into_rgb();
        let jpeg = STANDARD.encode(vodka_images::jpeg(&picture, JPEG_QUALITY));
        let of = &self.set.words[word];
        let label = if of.is_placebo { format!("{} (placebo)", of.name) } else { of.name.clone() };
        let data = format!("data:image/jpeg;base64,{jpeg}");
        Ok(Sheet { id: format!("word-{word}"), label, file, data })
    }

    /// All charts with the names of their files.
    fn charts(&self) -> Vec<(String, Forest)> {
        let tags: Vec<_> = self.set.words.iter().filter(|word| !word.is_placebo).collect();
        let change = |model: &str, word: &str, condition, tag: &str| {
            let (_, row) = self.response(model, word, condition, ("probability", Some(tag)))?;
            row.difference
        };
        let conditions =
            [(Condition::With, "with the tag"), (Condition::Negative, "tag in the negative prompt")];
        let axis = "change of the tag's probability".to_owned();
        let mut charts = Vec::new();
        for (condition, told) in conditions {
            let row = |tag: &str| {
                let marks = self.models().into_iter().map(|model| change(model, tag, condition, tag));
                (tag.to_owned(), marks.collect())
            };
            let forest = Forest {
                title: format!("Models side by side: {told}"),
                axis: axis.clone(),
                scale: Scale::Linear,
                series: self.models().into_iter().map(ToOwned::to_owned).collect(),
                rows: tags.iter().map(|word| row(&word.name)).collect(),
            };
            charts.push((format!("charts/models-{}.svg", condition.name()), forest));
        }
        let has_placebos = tags.len() < self.set.words.len();
        for (i, model) in self.models().into_iter().enumerate() {
            let row = |tag: &str| {
                let own = conditions.map(|(condition, _)| change(model, tag, condition, tag));
                let placebos = conditions.map(|(condition, _)| self.placebos(model, tag, condition));
                let marks = own.into_iter().zip(placebos).flat_map(|(own, placebos)| [own, placebos]);
                (tag.to_owned(), marks.step_by(if has_placebos { 1 } else { 2 }).collect())
            };
            let names = ["with the tag", "with one more placebo", "tag negative", "placebo negative"];
            let series = names.into_iter().step_by(if has_placebos { 1 } else { 2 });
            let forest = Forest {
                title: format!("{model}: each tag"),
                axis: axis.clone(),
                scale: Scale::Linear,
                series: series.map(ToOwned::to_owned).collect(),
                rows: tags.iter().map(|word| row(&word.name)).collect(),
            };
            charts.push((format!("charts/tags-{:02}.svg", i + 1), forest));
            charts.push((format!("charts/sharpness-{:02}.svg", i + 1), self.sharpness_chart(model)));
        }
        charts
    }

    fn sharpness_chart(&self, model: &str) -> Forest {
        let ratio = |word: &str, condition| self.response(model, word, condition, (RATIO, None))?.1.ratio;
        let row = |word: &super::plan::Word| {
            let label = if word.is_placebo { format!("{} (placebo)", word.name) } else { word.name.clone() };
            (
                label,
                [Condition::With, Condition::Negative].map(|condition| ratio(&word.name, condition)).into(),
            )
        };
        Forest {
            title: format!("{model}: sharpness"),
            axis: "sharpness over that without the word".to_owned(),
            scale: Scale::Log,
            series: ["with the word", "in the negative prompt"].map(ToOwned::to_owned).into(),
            rows: self.set.words.iter().map(row).collect(),
        }
    }

    /// Where one more placebo would change a tag's probability.
    fn placebos(&self, model: &str, tag: &str, condition: Condition) -> Option<Estimate> {
        let is_it = |row: &&Placebos| {
            row.model == model && row.tag.as_deref() == Some(tag) && row.condition == condition
        };
        self.results.placebos.iter().find(is_it)?.change
    }
}

fn scaled(estimate: &Estimate, factor: f64) -> Estimate {
    let range = estimate.range.map(|range| range.map(|end| factor * end));
    Estimate { n: estimate.n, value: factor * estimate.value, range }
}
