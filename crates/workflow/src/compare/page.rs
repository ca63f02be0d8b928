//! `index.html` and `comparison.md`: what was done differently, charts, and the numbers beside each other.

use std::error;

use minijinja::{Value, context};
use serde::Serialize;
use vodka_stage::write_atomic;

use super::{ComparePlan, CompareReport, Line};
use crate::{
    pages::{self, signed_told, told},
    probe::chart::{Forest, Scale},
};

/// The numbers of a measure, a column for each subject.
#[derive(Debug, Serialize)]
struct Row {
    label: String,
    cells: Vec<Cell>,
}

#[derive(Debug, Default, Serialize)]
struct Cell {
    text: String,
    small: String,
    bold: bool,
    link: String,
}

/// The charts: the measure, its file, what the axis counts, and its scale.
const CHARTS: [(&str, &str, &str, Scale); 4] = [
    (
        Line::ASKED,
        "asked.svg",
        "change of the tag's probability, with the tag before the prompt",
        Scale::Linear,
    ),
    (
        Line::REFUSED,
        "refused.svg",
        "change of the tag's probability, with it in the negative prompt",
        Scale::Linear,
    ),
    (Line::SHARPNESS_ASKED, "sharpness-asked.svg", "sharpness with the tag over that without", Scale::Log),
    (
        Line::SHARPNESS_REFUSED,
        "sharpness-refused.svg",
        "sharpness with it negative over that without",
        Scale::Log,
    ),
];

/// Writes charts and pages.
pub(super) fn write(
    plan: &ComparePlan,
    report: &CompareReport,
) -> Result<(), Box<dyn error::Error + Send + Sync>> {
    let charts: Vec<_> = CHARTS.iter().map(|chart| (chart.1, forest(report, chart))).collect();
    let charts: Vec<_> = charts.into_iter().filter(|(_, forest)| forest.has_marks()).collect();
    for (file, forest) in &charts {
        write_atomic(plan.output.join(file), forest.svg(true))?;
    }
    let shown = charts.iter().map(|(file, forest)| (*file, Value::from_safe_string(forest.svg(false))));
    let links = plan.runs.iter().map(|run| {
        let (page, name) = match &run.folder {
            Some(folder) => (folder.join("notebook.html"), &run.name),
            None => (run.probe.join("index.html"), &run.name),
        };
        (name.clone(), pages::link_from(&plan.output, &page))
    });
    let subjects: Vec<_> = report.subjects.iter().map(ToString::to_string).collect();
    let same: Vec<_> = report.same.iter().map(|[copy, first]| format!("{copy} is {first}")).collect();
    let filled = context! {
        runs => report.runs, links => links.collect::<Vec<_>>(), subjects, same, first => subjects.first(),
        differences => report.differences, charts => shown.collect::<Vec<_>>(),
        tags => rows(report, true), plain => rows(report, false), style => pages::style(),
    };
    write_atomic(plan.output.join("comparison.md"), pages::render("compare.md", &filled))?;
    Ok(write_atomic(plan.output.join("index.html"), pages::render("compare.html", &filled))?)
}

fn forest(report: &CompareReport, (measure, _, axis, scale): &(&str, &str, &str, Scale)) -> Forest {
    let rows = table(report, |line| line.measure == *measure);
    Forest {
        title: (*measure).to_owned(),
        axis: (*axis).to_owned(),
        scale: *scale,
        series: report.subjects.iter().map(ToString::to_string).collect(),
        rows: rows
            .into_iter()
            .map(|(label, lines)| {
                let tag = label.split_once(": ").map_or(label.as_str(), |(tag, _)| tag).to_owned();
                (tag, lines.into_iter().map(|line| line.and_then(|(_, line)| line.value)).collect())
            })
            .collect(),
    }
}

/// A line of the table of numbers, with its place in it.
type Placed<'a> = (usize, &'a Line);

/// The lines that are wanted, by what they tell, a place for each subject.
fn table(report: &CompareReport, wanted: impl Fn(&Line) -> bool) -> Vec<(String, Vec<Option<Placed<'_>>>)> {
    let mut rows: Vec<(String, Vec<Option<Placed<'_>>>)> = Vec::new();
    for placed in report.lines.iter().enumerate().filter(|(_, line)| wanted(line)) {
        let (_, line) = placed;
        let label = match &line.tag {
            Some(tag) => format!("{tag}: {}", line.measure),
            None => line.measure.clone(),
        };
        let Some(column) = report.subjects.iter().position(|subject| *subject == line.subject) else {
            continue;
        };
        let place = rows.iter().position(|(known, _)| *known == label).unwrap_or_else(|| {
            rows.push((label, vec![None; report.subjects.len()]));
            rows.len() - 1
        });
        rows[place].1[column] = Some(placed);
    }
    rows
}

fn rows(report: &CompareReport, of_tags: bool) -> Vec<Row> {
    let cell = |placed: Option<Placed<'_>>| {
        let Some((place, line)) = placed else { return Cell::default() };
        Cell {
            text: line.value.as_ref().map(told).unwrap_or_default(),
            small: line.difference.as_ref().map(signed_told).unwrap_or_default(),
            bold: line
                .responds
                .unwrap_or_else(|| line.difference.is_some_and(|difference| difference.is_clear())),
            link: pages::line("comparison.csv", place),
        }
    };
    let found = table(report, |line| line.tag.is_some() == of_tags);
    found
        .into_iter()
        .map(|(label, lines)| Row { label, cells: lines.into_iter().map(cell).collect() })
        .collect()
}
