//! `index.html`: one file that shows all cells, with zoom, pan, comparison and the tables of the judging.

use std::{collections::HashMap, io::Write, path::PathBuf, sync::LazyLock};

use base64::{Engine, engine::general_purpose::STANDARD};
use image::RgbImage;
use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde::Serialize;
use vodka_stage::{AtomicFile, ContentHash, Hasher};

use super::{
    AxisType, GridPlan, Judging,
    judge::{Interval, Judgement, Over, Range},
    look::MEASURES,
    run::Run,
    table::{link, shown},
};
use crate::{
    Error, Result,
    numbers::{decimals, short, signed, ticks},
};

/// Each template by its name.
const TEMPLATES: [(&str, &str); 5] = [
    ("page.html", include_str!("templates/page.html")),
    ("tail.html", include_str!("templates/tail.html")),
    ("whiskers.svg", include_str!("templates/whiskers.svg")),
    ("page.css", include_str!("templates/page.css")),
    ("page.js", include_str!("templates/page.js")),
];

static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    for (name, text) in &TEMPLATES[..3] {
        environment.add_template(name, text).expect("the templates are ours");
    }
    environment
});

fn render(template: &str, context: impl Serialize) -> String {
    let filled = ENVIRONMENT.get_template(template).and_then(|template| template.render(context));
    filled.unwrap_or_else(|error| panic!("the template `{template}`: {error:#}"))
}

/// The hash of all templates: other templates make another page.
pub(super) fn version() -> ContentHash {
    let mut hasher = Hasher::default();
    for (name, text) in TEMPLATES {
        hasher.piece(name).piece(text);
    }
    hasher.finish()
}

/// So many pixels are put into the page itself, which some hundred cells of 512 px have; beyond that it shows the files.
const EMBEDDED_PIXELS_MAX: u64 = 120_000_000;
/// Of the pictures in the page; the files are whole.
const JPEG_QUALITY: u8 = 90;

/// What the script knows.
#[derive(Serialize)]
struct Data<'a> {
    axes: Vec<AxisData<'a>>,
    columns: &'a [usize],
    rows: &'a [usize],
    measures: Vec<&'static str>,
}

#[derive(Serialize)]
struct AxisData<'a> {
    name: &'a str,
    values: Vec<&'a str>,
}

#[derive(Serialize)]
struct CellData<'a> {
    /// The number of its picture; cells of equal settings share one.
    picture: Option<usize>,
    file: String,
    size: [u32; 2],
    text: String,
    look: Vec<String>,
    failed: Option<&'a str>,
}

/// What `page.html` is filled with.
#[derive(Serialize)]
struct Page {
    title: String,
    told: String,
    style: &'static str,
    data: String,
    judged: bool,
    against: String,
    seed: u64,
    measures: Vec<&'static str>,
    charts: Vec<String>,
    tables: Vec<Table>,
    odd: Vec<String>,
}

/// The judgements of a category.
#[derive(Serialize)]
struct Table {
    name: String,
    cells: usize,
    /// What its intervals are over.
    over: &'static str,
    rows: Vec<TableRow>,
}

#[derive(Serialize)]
struct TableRow {
    label: String,
    values: Vec<Value>,
}

#[derive(Serialize)]
struct Value {
    own: String,
    range: Option<String>,
    difference: Option<String>,
    difference_range: Option<String>,
    /// Whether the interval of the difference does not hold 0.
    clear: bool,
}

/// Writes the page. No more than one picture is in memory, and one cell's text.
pub(super) fn write(run: &Run<'_>, judging: &Judging) -> Result<PathBuf> {
    let path = run.report.page.clone();
    let failed = |source| Error::from(vodka_stage::Error::Write { path: path.clone(), source });
    let mut file = AtomicFile::create(&path)?;
    file.write_all(render("page.html", page(run, judging)).as_bytes()).map_err(failed)?;
    let mut pictures = Pictures::default();
    let reasons: HashMap<usize, &str> =
        run.report.failed.iter().map(|failed| (failed.cell, failed.reason.as_str())).collect();
    let mut pixels = 0;
    for number in 0..run.report.cells {
        let mut cell = cell(run, number, &mut pictures);
        cell.failed = reasons.get(&(number + 1)).copied();
        pixels += u64::from(cell.size[0]) * u64::from(cell.size[1]);
        writeln!(file, "{},", script_json(&cell)).map_err(failed)?;
    }
    file.write_all(b"];\n</script>\n").map_err(failed)?;
    if pixels <= EMBEDDED_PIXELS_MAX {
        for number in pictures.cells {
            run.check()?;
            let picture = run.store.get(&run.entry(&run.plan.cell(number)))?;
            writeln!(file, "{}", embedded(picture.as_ref())).map_err(failed)?;
        }
    }
    let tail = render("tail.html", minijinja::context! { script => TEMPLATES[4].1 });
    file.write_all(tail.as_bytes()).map_err(failed)?;
    file.commit()?;
    Ok(path)
}

/// The script of a picture; of one that was taken away meanwhile nothing, for the page shows the n-th as the n-th.
fn embedded(picture: Option<&RgbImage>) -> String {
    let source = picture.map(|picture| {
        let jpeg = STANDARD.encode(vodka_images::jpeg(picture, JPEG_QUALITY));
        format!("\"data:image/jpeg;base64,{jpeg}\"")
    });
    format!("<script>PICTURES.push({})</script>", source.as_deref().unwrap_or("null"))
}

/// JSON in a script: no text ends it, whatever a prompt holds.
fn script_json(data: &impl Serialize) -> String {
    let json = serde_json::to_string(data).expect("plain data");
    json.replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}

/// The pictures that the cells show.
#[derive(Default)]
struct Pictures {
    /// The first cell of each.
    cells: Vec<usize>,
    /// Their numbers by the hashes that name their files.
    places: HashMap<String, usize>,
}

fn cell(run: &Run<'_>, number: usize, pictures: &mut Pictures) -> CellData<'static> {
    let cell = run.plan.cell(number);
    let entry = run.entry(&cell);
    let look = run.looks[number];
    let picture = look.map(|_| {
        *pictures.places.entry(entry.name.clone()).or_insert_with(|| {
            pictures.cells.push(number);
            pictures.cells.len() - 1
        })
    });
    CellData {
        picture,
        file: link(&shown(&run.store.path(&entry), &run.plan.output)),
        size: [cell.settings.size.width, cell.settings.size.height],
        text: entry.text,
        look: look.iter().flat_map(|look| MEASURES.map(|measure| short((measure.of)(look)))).collect(),
        failed: None,
    }
}

fn data(plan: &GridPlan) -> Data<'_> {
    let axes = plan.axes.iter().map(|axis| AxisData {
        name: &axis.name,
        values: axis.values.iter().map(|value| value.label.as_str()).collect(),
    });
    let measures = MEASURES.iter().map(|measure| measure.name).collect();
    Data { axes: axes.collect(), columns: &plan.columns, rows: &plan.rows, measures }
}

fn page(run: &Run<'_>, judging: &Judging) -> Page {
    let plan = run.plan;
    let models = plan.axis_of(AxisType::Checkpoint).map_or(&[][..], |axis| &plan.axes[axis].values);
    let label = |model: usize| models[model].label.clone();
    let all: Vec<_> = judging.judgements.iter().filter(|judgement| judgement.category.is_none()).collect();
    let charts = (0..MEASURES.len()).filter_map(|measure| {
        let of: Vec<_> = all.iter().filter(|judgement| judgement.measure == measure).collect();
        let rows: Vec<_> = of.iter().map(|judgement| (label(judgement.model), judgement.own)).collect();
        (!rows.is_empty()).then(|| whiskers(MEASURES[measure].name, &rows))
    });
    let name = |path: &std::path::Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    Page {
        title: name(&plan.output).unwrap_or_else(|| "grid".to_owned()),
        told: told(plan),
        style: TEMPLATES[3].1,
        data: script_json(&data(plan)),
        judged: !all.is_empty(),
        against: models.get(judging.against).map(|value| value.label.clone()).unwrap_or_default(),
        seed: judging.seed,
        measures: MEASURES.iter().map(|measure| measure.name).collect(),
        charts: charts.collect(),
        tables: tables(judging, &label),
        odd: odd(run),
    }
}

/// What all cells share, in words.
fn told(plan: &GridPlan) -> String {
    let settings = &plan.settings;
    let varies = |kind| plan.axis_of(kind).is_some();
    let fixed = [
        (AxisType::Steps, format!("{} steps", settings.steps)),
        (AxisType::Sampler, settings.sampler.to_string()),
        (AxisType::Schedule, format!("schedule {}", settings.schedule)),
        (AxisType::Cfg, format!("CFG scale {}", settings.cfg_scale)),
        (AxisType::Size, settings.size.to_string()),
    ];
    let fixed = fixed.into_iter().filter(|(kind, _)| !varies(*kind)).map(|(_, text)| text);
    std::iter::once(format!("{} cells", plan.cells())).chain(fixed).collect::<Vec<_>>().join(", ")
}

fn tables(judging: &Judging, label: &dyn Fn(usize) -> String) -> Vec<Table> {
    let mut tables: Vec<(Option<&String>, Table)> = Vec::new();
    let mut last = None;
    for Judgement { model, category, own, difference, .. } in &judging.judgements {
        if tables.last().is_none_or(|(of, _)| *of != category.as_ref()) {
            let name = category.clone().unwrap_or_else(|| "All prompts".to_owned());
            let over = "no intervals of fewer than six prompts";
            tables.push((category.as_ref(), Table { name, cells: own.count, over, rows: Vec::new() }));
            last = None;
        }
        let table = &mut tables.last_mut().expect("one was just pushed").1;
        table.cells = table.cells.max(own.count);
        if let Some(range) = own.range {
            table.over = match range.over {
                Over::Prompts => "intervals over prompts",
                Over::Pictures => "intervals over the pictures of one prompt, which say nothing of others",
            };
        }
        if last != Some(*model) {
            table.rows.push(TableRow { label: label(*model), values: Vec::new() });
            last = Some(*model);
        }
        let told = |range: Range, number: fn(f64) -> String| {
            format!("{} to {}", number(range.low), number(range.high))
        };
        table.rows.last_mut().expect("one was just pushed").values.push(Value {
            own: short(own.median),
            range: own.range.map(|range| told(range, short)),
            difference: difference.map(|interval| signed(interval.median)),
            difference_range: difference.and_then(|interval| interval.range).map(|range| told(range, signed)),
            clear: difference.and_then(|interval| interval.range).is_some_and(|range| range.is_clear()),
        });
    }
    tables.into_iter().map(|(_, table)| table).collect()
}

/// Cells that are not what they should be.
fn odd(run: &Run<'_>) -> Vec<String> {
    let plan = run.plan;
    let told = |number: usize| {
        let place = plan.place(number);
        let labels = plan.axes.iter().zip(place).filter(|(axis, _)| axis.values.len() > 1);
        labels
            .map(|(axis, value)| axis.values[value].label.replace('\n', ", "))
            .collect::<Vec<_>>()
            .join("; ")
    };
    let failed = run
        .report
        .failed
        .iter()
        .map(|failed| format!("not made: {}: {}", told(failed.cell - 1), failed.reason));
    let flat = run.looks.iter().enumerate().filter(|(_, look)| look.is_some_and(|look| look.flat));
    failed.chain(flat.map(|(number, _)| format!("flat, nothing to see: {}", told(number)))).collect()
}

#[derive(Serialize)]
struct ChartRow {
    label: String,
    short: String,
    told: String,
    y: u32,
    x: f64,
    /// The ends of its interval, where there is one.
    range: Option<[f64; 2]>,
}

#[derive(Serialize)]
struct Tick {
    x: f64,
    label: String,
}

/// A chart of medians with their intervals, a row for each label.
fn whiskers(title: &str, rows: &[(String, Interval)]) -> String {
    const LEFT: f64 = 150.0;
    const RIGHT: f64 = 495.0;
    let ticks = ticks_of(rows);
    let (least, most) = (ticks[0], *ticks.last().expect("two or more"));
    let x = |value: f64| ((LEFT + (RIGHT - LEFT) * (value - least) / (most - least)) * 10.0).round() / 10.0;
    let row = |(i, (label, interval)): (usize, &(String, Interval))| {
        let short_label: String = match label.chars().count() {
            0..=22 => label.clone(),
            _ => label.chars().take(21).chain(['…']).collect(),
        };
        let range = interval.range.map(|range| format!(" ({} to {})", short(range.low), short(range.high)));
        let told = short(interval.median) + &range.unwrap_or_default();
        ChartRow {
            label: label.clone(),
            short: short_label,
            told,
            y: 34 + 22 * i as u32,
            x: x(interval.median),
            range: interval.range.map(|range| [x(range.low), x(range.high)]),
        }
    };
    let decimals = decimals(&ticks);
    let tick = |value: &f64| Tick { x: x(*value), label: format!("{value:.decimals$}") };
    let height = 34 + 22 * rows.len() as u32 + 12;
    let (ticks, rows): (Vec<_>, Vec<_>) =
        (ticks.iter().map(tick).collect(), rows.iter().enumerate().map(row).collect());
    render("whiskers.svg", minijinja::context! { title, height, ticks, rows })
}

/// Round numbers from below the least to above the most of all intervals.
fn ticks_of(rows: &[(String, Interval)]) -> Vec<f64> {
    let ends =
        |interval: &Interval| interval.range.map_or([interval.median; 2], |range| [range.low, range.high]);
    let least = rows.iter().map(|(_, interval)| ends(interval)[0]).fold(f64::INFINITY, f64::min);
    let most = rows.iter().map(|(_, interval)| ends(interval)[1]).fold(f64::NEG_INFINITY, f64::max);
    ticks(least, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(low: f64, median: f64, high: f64) -> Interval {
        Interval { count: 6, median, range: Some(Range { low, high, over: Over::Prompts }) }
    }

    #[test]
    fn a_picture_that_is_gone_keeps_its_number() {
        assert_eq!(embedded(None), "<script>PICTURES.push(null)</script>");
        let picture = RgbImage::from_pixel(8, 8, image::Rgb([1, 2, 3]));
        assert!(embedded(Some(&picture)).starts_with("<script>PICTURES.push(\"data:image/jpeg;base64,"));
    }

    #[test]
    fn without_an_interval_nothing_is_clear_and_no_whisker_drawn() {
        let few = Interval { count: 3, median: 5.0, range: None };
        let judgement =
            |model, difference| Judgement { model, category: None, measure: 0, own: few, difference };
        let judgements = vec![judgement(0, None), judgement(1, Some(few))];
        let tables = tables(&Judging { judgements, against: 0, seed: 0 }, &|_| "same".to_owned());
        // A row for each checkpoint, whatever it is called.
        assert_eq!((tables[0].rows.len(), tables[0].over), (2, "no intervals of fewer than six prompts"));
        let value = &tables[0].rows[1].values[0];
        assert!(!value.clear && value.range.is_none() && value.difference.as_deref() == Some("+5.00"));
        let svg = whiskers("Sharpness", &[("a".to_owned(), few)]);
        assert!(svg.contains("<circle") && !svg.contains("\"whisker\""), "{svg}");
    }

    #[test]
    fn a_chart_has_a_row_for_each_checkpoint_and_escapes_their_names() {
        let rows =
            [("a <b> & c".to_owned(), interval(1.0, 2.0, 3.0)), ("x".repeat(40), interval(2.0, 2.5, 4.0))];
        let svg = whiskers("Sharpness", &rows);
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.contains("a &lt;b&gt; &amp; c") && svg.contains("…") && !svg.contains("<b>"), "{svg}");
    }
}
