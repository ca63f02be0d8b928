//! The tables of a probe: one of pictures, and one for each kind of number.

use std::{collections::HashMap, path::Path};

use vodka_sampler::grid::MEASURES;

use super::{
    Estimate, Results,
    plan::{ProbePlan, Set},
    response::{Observations, Seen},
    rows::HEAD,
};
use crate::{Result, judge::write_table};

/// Why pictures are missing, by their numbers.
pub(super) type Missing = HashMap<usize, String>;

/// The names of the tables.
pub(super) const TABLES: [&str; 7] = [
    "pictures.csv",
    "responses.csv",
    "placebos.csv",
    "verdicts.csv",
    "adherence.csv",
    "fried.csv",
    "diversity.csv",
];

/// Writes all of them.
pub(super) fn write(
    plan: &ProbePlan,
    set: &Set,
    files: &[String],
    observations: &Observations<'_>,
    missing: &Missing,
    results: &Results,
) -> Result<()> {
    let at = |place: usize| plan.config.output.join(TABLES[place]);
    pictures(&at(0), plan, set, files, observations, missing)?;
    responses(&at(1), results)?;
    placebos(&at(2), results)?;
    verdicts(&at(3), results)?;
    adherence(&at(4), results)?;
    fried(&at(5), results)?;
    diversity(&at(6), results)
}

fn number(value: f64) -> String {
    format!("{:.6}", value + 0.0)
}

fn flag(flag: bool) -> String {
    u8::from(flag).to_string()
}

/// The number and the ends of its interval, empty where there is none.
pub(crate) fn told(estimate: Option<Estimate>) -> [String; 3] {
    let low = estimate.as_ref().and_then(Estimate::low).map(number).unwrap_or_default();
    let high = estimate.as_ref().and_then(Estimate::high).map(number).unwrap_or_default();
    [estimate.map(|estimate| number(estimate.value)).unwrap_or_default(), low, high]
}

fn count(estimate: Option<Estimate>) -> String {
    estimate.map_or(0, |estimate| estimate.n).to_string()
}

fn pictures(
    path: &Path,
    plan: &ProbePlan,
    set: &Set,
    files: &[String],
    observations: &Observations<'_>,
    missing: &Missing,
) -> Result<()> {
    let scored = set.scored();
    let measures = MEASURES.iter().map(|measure| measure.key.to_owned());
    let head = HEAD
        .map(ToOwned::to_owned)
        .into_iter()
        .chain(measures)
        .chain(scored.iter().map(|tag| format!("p:{tag}")));
    let rows = set.shots.iter().enumerate().map(|(place, shot)| {
        let settings = &set.pictures.wanted[place].settings;
        let word = shot.word.map(|word| &set.words[word]);
        let seen = observations.seen.get(shot);
        let expected = &set.expected[shot.seed % set.expected.len()];
        let counted = seen.map(|seen| seen.count(expected));
        let text = |value: Option<String>| value.unwrap_or_default();
        let row = [
            plan.config.models[shot.model].0.clone(),
            text(word.map(|word| word.name.clone())),
            text(word.map(|word| flag(word.is_placebo))),
            shot.condition.name().to_owned(),
            settings.seed.to_string(),
            settings.prompt.clone(),
            settings.negative_prompt.clone(),
            format!("cells/{}", files[place]),
            text(missing.get(&place).cloned()),
            text(counted.map(|counted| counted.requested.to_string())),
            text(counted.map(|counted| counted.found.to_string())),
        ];
        let of = |value: &dyn Fn(&Seen) -> f64| seen.map(value).map(number).unwrap_or_default();
        let measures = MEASURES.iter().map(|measure| of(&|seen| (measure.of)(&seen.look)));
        let scores = scored.iter().map(|tag| of(&|seen| seen.probability(tag)));
        row.into_iter().chain(measures).chain(scores).collect::<Vec<_>>()
    });
    let head: Vec<String> = head.collect();
    write_table(path, &head.iter().map(String::as_str).collect::<Vec<_>>(), rows)
}

fn responses(path: &Path, results: &Results) -> Result<()> {
    let head = [
        "model",
        "word",
        "placebo",
        "condition",
        "measure",
        "tag",
        "n",
        "level",
        "level_low",
        "level_high",
        "pairs",
        "difference",
        "low",
        "high",
        "ratio",
        "ratio_low",
        "ratio_high",
    ];
    let rows = results.responses.iter().map(|row| {
        let head = [
            row.model.clone(),
            row.word.clone(),
            flag(row.placebo),
            row.condition.name().to_owned(),
            row.measure.clone(),
            row.tag.clone().unwrap_or_default(),
            count(row.level),
        ];
        let level = told(row.level).into_iter().chain([count(row.difference)]);
        let changes = told(row.difference).into_iter().chain(told(row.ratio));
        head.into_iter().chain(level).chain(changes).collect::<Vec<_>>()
    });
    write_table(path, &head, rows)
}

fn placebos(path: &Path, results: &Results) -> Result<()> {
    let rows = results.placebos.iter().map(|row| {
        let head = [row.model.clone(), row.condition.name().to_owned(), row.measure.clone()];
        let tag = [row.tag.clone().unwrap_or_default(), count(row.change)];
        head.into_iter().chain(tag).chain(told(row.change)).collect::<Vec<_>>()
    });
    write_table(path, &["model", "condition", "measure", "tag", "words", "change", "low", "high"], rows)
}

fn verdicts(path: &Path, results: &Results) -> Result<()> {
    let head = [
        "model",
        "tag",
        "responds",
        "asked",
        "asked_low",
        "asked_high",
        "placebo_high",
        "refuses",
        "refused",
        "refused_low",
        "refused_high",
        "placebo_low",
    ];
    let rows = results.verdicts.iter().map(|row| {
        let [with, negative] = row.placebo;
        let head = [row.model.clone(), row.tag.clone(), flag(row.responds)];
        let asked = told(row.asked).into_iter().chain([number(with[1]), flag(row.refuses)]);
        let refused = told(row.refused).into_iter().chain([number(negative[0])]);
        head.into_iter().chain(asked).chain(refused).collect::<Vec<_>>()
    });
    write_table(path, &head, rows)
}

fn adherence(path: &Path, results: &Results) -> Result<()> {
    let head = [
        "model",
        "word",
        "condition",
        "thing",
        "requested",
        "found",
        "share",
        "low",
        "high",
        "difference",
        "difference_low",
        "difference_high",
        "pictures",
    ];
    let rows = results.adherence.iter().map(|row| {
        let head = [
            row.model.clone(),
            row.word.clone().unwrap_or_default(),
            row.condition.name().to_owned(),
            row.thing.clone().unwrap_or_else(|| "all".to_owned()),
            row.requested.to_string(),
            row.found.to_string(),
        ];
        let numbers = told(row.share).into_iter().chain(told(row.difference)).chain([count(row.share)]);
        head.into_iter().chain(numbers).collect::<Vec<_>>()
    });
    write_table(path, &head, rows)
}

fn fried(path: &Path, results: &Results) -> Result<()> {
    let head = [
        "model",
        "measure",
        "n",
        "level",
        "low",
        "high",
        "data",
        "difference",
        "difference_low",
        "difference_high",
    ];
    let rows = results.friedness.iter().map(|row| {
        let head = [row.model.clone(), row.measure.clone(), count(row.level)];
        let data = [row.data.map(number).unwrap_or_default()];
        head.into_iter().chain(told(row.level)).chain(data).chain(told(row.difference)).collect::<Vec<_>>()
    });
    write_table(path, &head, rows)
}

fn diversity(path: &Path, results: &Results) -> Result<()> {
    let rows = results.diversity.iter().map(|row| {
        let head = [row.model.clone(), count(row.distance)];
        head.into_iter().chain(told(row.distance)).collect::<Vec<_>>()
    });
    write_table(path, &["model", "prompts", "distance", "low", "high"], rows)
}
