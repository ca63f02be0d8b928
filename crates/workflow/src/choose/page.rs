//! `index.html` of a choice: the scorecard, the Pareto view, and what the numbers tell apart.

use std::error;

use minijinja::{Value, context};
use serde::Serialize;
use vodka_sampler::numbers::{decimals, short, ticks};
use vodka_stage::write_atomic;

use super::{Card, ChoosePlan, ChooseReport, Pair};
use crate::{
    pages::{self, signed_told, told},
    probe::Estimate,
};

#[derive(Serialize)]
struct Number {
    text: String,
    small: String,
    link: String,
    bold: bool,
}

#[derive(Serialize)]
struct Row {
    model: String,
    chosen: bool,
    link: String,
    numbers: Vec<Number>,
    front: String,
    rule: String,
}

#[derive(Serialize)]
struct PairRow {
    other: String,
    numbers: Vec<Number>,
}

/// Writes chart and page.
pub(super) fn write(
    plan: &ChoosePlan,
    report: &ChooseReport,
) -> Result<(), Box<dyn error::Error + Send + Sync>> {
    let output = &plan.config.output;
    write_atomic(output.join("pareto.svg"), scatter(report, true))?;
    let is_listed = report.cards.iter().any(|card| card.model == report.against);
    let reference = Some(&report.reference).filter(|_| !is_listed);
    let rows = report.cards.iter().chain(reference).enumerate().map(|(line, card)| row(report, card, line));
    let page = context! {
        name => plan.config.choose.name, chosen => report.choice.model, told => report.told(), tag => report.tag,
        against => report.against, rows => rows.collect::<Vec<_>>(), pairs => pair_rows(&report.pairs),
        chart => Value::from_safe_string(scatter(report, false)),
        probe => plan.config.choose.probe,
        probe_link => pages::link_from(output, &plan.config.probe.join("index.html")),
        style => pages::style(),
    };
    Ok(write_atomic(output.join("index.html"), pages::render("choose.html", page))?)
}

fn row(report: &ChooseReport, card: &Card, line: usize) -> Row {
    let of = |estimate: &Option<Estimate>, small: Option<String>| Number {
        text: estimate.as_ref().map(told).unwrap_or_default(),
        small: small.unwrap_or_default(),
        link: String::new(),
        bold: false,
    };
    let difference = card.adherence_difference.as_ref().map(signed_told);
    let is_candidate = report.cards.iter().any(|candidate| candidate.model == card.model);
    let validation = Number {
        text: card.validation.map(short).unwrap_or_default(),
        small: String::new(),
        link: String::new(),
        bold: false,
    };
    Row {
        model: card.model.clone(),
        chosen: card.model == report.choice.model,
        link: pages::line("scorecard.csv", line),
        numbers: vec![
            of(&card.response, None),
            of(&card.adherence, difference),
            of(&card.friedness, None),
            of(&card.diversity, None),
            validation,
        ],
        front: if card.on_front && is_candidate { "on it".to_owned() } else { String::new() },
        rule: match (is_candidate, card.refused.is_empty()) {
            (false, _) => "reference".to_owned(),
            (true, true) => "may be taken".to_owned(),
            (true, false) => card.refused.join("; "),
        },
    }
}

/// A row for each other candidate, whose pairs follow each other.
fn pair_rows(pairs: &[Pair]) -> Vec<PairRow> {
    let mut rows: Vec<PairRow> = Vec::new();
    for (line, pair) in pairs.iter().enumerate() {
        if rows.last().is_none_or(|row| row.other != pair.other) {
            rows.push(PairRow { other: pair.other.clone(), numbers: Vec::new() });
        }
        let row = rows.last_mut().expect("one was just pushed");
        row.numbers.push(Number {
            text: pair.difference.as_ref().map(signed_told).unwrap_or_default(),
            small: String::new(),
            link: pages::line("pairs.csv", line),
            bold: pair.is_separate,
        });
    }
    rows
}

#[derive(Serialize)]
struct Tick {
    at: f64,
    label: String,
}

#[derive(Serialize)]
struct Point {
    x: f64,
    y: f64,
    x_range: Option<[f64; 2]>,
    y_range: Option<[f64; 2]>,
    style: usize,
    r: f64,
    hollow: bool,
    label: String,
    label_x: f64,
    label_y: f64,
    anchor: &'static str,
    bold: bool,
    told: String,
}

const LEFT: f64 = 60.0;
const RIGHT: f64 = 600.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 370.0;
/// The height of a label's line, and about the width of a letter.
const LABEL_PX: f64 = 15.0;
const LETTER_PX: f64 = 7.5;

/// One of the axes: from a number to a place.
struct Axis {
    ticks: Vec<f64>,
    from: f64,
    to: f64,
}

impl Axis {
    fn of(estimates: &[Estimate], from: f64, to: f64) -> Self {
        let ends = || estimates.iter().flat_map(|found| found.range.unwrap_or([found.value; 2]));
        let (least, most) = (ends().fold(f64::INFINITY, f64::min), ends().fold(f64::NEG_INFINITY, f64::max));
        let ticks = if estimates.is_empty() { vec![0.0, 1.0] } else { ticks(least, most) };
        Self { ticks, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let (first, last) = (self.ticks[0], self.ticks[self.ticks.len() - 1]);
        let share = (value - first) / (last - first);
        ((self.from + (self.to - self.from) * share) * 10.0).round() / 10.0
    }

    fn ticks(&self) -> Vec<Tick> {
        let decimals = decimals(&self.ticks);
        self.ticks
            .iter()
            .map(|tick| Tick { at: self.at(*tick), label: format!("{tick:.decimals$}") })
            .collect()
    }
}

/// Response from left to right, adherence from below: the candidates, and the reference in grey.
fn scatter(report: &ChooseReport, is_file: bool) -> String {
    let is_listed = report.cards.iter().any(|card| card.model == report.against);
    let reference = Some(&report.reference).filter(|_| !is_listed);
    let cards = report.cards.iter().chain(reference);
    let both = cards.filter_map(|card| Some((card, card.response?, card.adherence?)));
    let both: Vec<_> = both.collect();
    let x = Axis::of(&both.iter().map(|(_, response, _)| *response).collect::<Vec<_>>(), LEFT, RIGHT);
    let y = Axis::of(&both.iter().map(|(_, _, adherence)| *adherence).collect::<Vec<_>>(), BOTTOM, TOP);
    let point = |(card, response, adherence): &(&Card, Estimate, Estimate)| {
        let is_chosen = card.model == report.choice.model;
        let is_reference = card.model == report.against && !is_listed;
        let (at_x, at_y) = (x.at(response.value), y.at(adherence.value));
        let to_left = at_x > f64::midpoint(LEFT, RIGHT);
        Point {
            x: at_x,
            y: at_y,
            x_range: response.range.map(|range| range.map(|end| x.at(end))),
            y_range: adherence.range.map(|range| range.map(|end| y.at(end))),
            style: if is_reference { 5 } else { usize::from(is_chosen) },
            r: if is_chosen { 7.0 } else { 5.0 },
            hollow: !card.on_front || is_reference,
            label: card.model.clone(),
            label_x: if to_left { at_x - 9.0 } else { at_x + 9.0 },
            label_y: at_y - 8.0,
            anchor: if to_left { "end" } else { "start" },
            bold: is_chosen,
            told: format!("{}: response {}, adherence {}", card.model, told(response), told(adherence)),
        }
    };
    let mut points: Vec<_> = both.iter().map(point).collect();
    spread(&mut points);
    let context = context! {
        title => format!("Response to {} against adherence", report.tag), is_file, points,
        x_axis => format!("response to {}", report.tag), y_axis => "share of requested things found",
        x_ticks => x.ticks(), y_ticks => y.ticks(),
    };
    pages::render("scatter.svg", context)
}

/// Moves labels up or down so that none lies on one before it.
fn spread(points: &mut [Point]) {
    let of = |point: &Point| {
        let width = LETTER_PX * point.label.chars().count() as f64;
        let left = if point.anchor == "end" { point.label_x - width } else { point.label_x };
        [left, left + width]
    };
    for i in 1..points.len() {
        let (before, rest) = points.split_at_mut(i);
        let [left, right] = of(&rest[0]);
        let beside = before.iter().filter(|other| {
            let [start, end] = of(other);
            left < end && start < right
        });
        let taken: Vec<f64> = beside.map(|other| other.label_y).collect();
        rest[0].label_y = free_place(rest[0].label_y, &taken);
    }
}

/// The place within the plot that is nearest to a label's own and on no other label; its own where there is none.
fn free_place(own: f64, taken: &[f64]) -> f64 {
    let is_free = |y: &f64| taken.iter().all(|other| (other - y).abs() >= LABEL_PX);
    let beside = taken.iter().flat_map(|y| [y + LABEL_PX, y - LABEL_PX]);
    let inside = beside.filter(|y| (TOP - LABEL_PX..=BOTTOM).contains(y));
    let places = std::iter::once(own).chain(inside).filter(is_free);
    places.min_by(|a, b| (a - own).abs().total_cmp(&(b - own).abs())).unwrap_or(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_lie_on_no_other() {
        let point = |label: &str, x: f64, y: f64| Point {
            x,
            y,
            x_range: None,
            y_range: None,
            style: 0,
            r: 5.0,
            hollow: false,
            label: label.to_owned(),
            label_x: x,
            label_y: y,
            anchor: "end",
            bold: false,
            told: String::new(),
        };
        let mut points = [
            point("v3@8", 300.0, 30.0),
            point("v3@12", 310.0, 45.0),
            point("v3@16", 305.0, 31.0),
            point("v2", 80.0, 30.0),
        ];
        spread(&mut points);
        let places: Vec<f64> = points.iter().map(|point| point.label_y).collect();
        assert_eq!(places, [30.0, 45.0, 15.0, 30.0]);
    }

    #[test]
    fn labels_stay_in_the_plot() {
        assert_eq!(free_place(365.0, &[365.0]), 350.0);
        assert_eq!(free_place(20.0, &[20.0]), 35.0);
        assert_eq!(free_place(100.0, &[]), 100.0);
    }

    #[test]
    fn places_lie_between_their_ends() {
        let estimate = |low, value, high| Estimate { n: 8, value, range: Some([low, high]) };
        let axis = Axis::of(&[estimate(0.1, 0.2, 0.9), estimate(-0.3, 0.0, 0.1)], LEFT, RIGHT);
        for value in [-0.3, 0.0, 0.9] {
            assert!((LEFT..=RIGHT).contains(&axis.at(value)), "{value}");
        }
        assert!(axis.at(0.2) < axis.at(0.9));
        let one = Axis::of(&[Estimate { n: 1, value: 0.5, range: None }], BOTTOM, TOP);
        assert!((TOP..=BOTTOM).contains(&one.at(0.5)));
        assert_eq!(Axis::of(&[], LEFT, RIGHT).ticks().len(), 2);
    }
}
