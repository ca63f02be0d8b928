//! The numbers of each model of each run, beside those of the first. Values in, values out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::probe::{
    Condition, Estimate, Results,
    rows::{Row, Rows},
    statistics,
};

/// The measures of how plain pictures look.
const LOOKS: [&str; 4] = ["sharpness", "saturation", "clipped", "contrast"];

/// A model of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The run.
    pub run: String,
    /// The model, as the run calls it.
    pub model: String,
}

/// A number of a subject.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Whose.
    pub subject: Subject,
    /// What is measured: [`Line::ASKED`] and the others.
    pub measure: String,
    /// The tag, of measures of a tag.
    pub tag: Option<String>,
    /// The number.
    pub value: Option<Estimate>,
    /// The number less that of the first subject, by pictures of the same seeds and prompts; none where there are none, and of ratios and diversity.
    pub difference: Option<Estimate>,
    /// Whether the run's own probe says that the model responds to the tag, or refuses it; of [`Line::ASKED`] and [`Line::REFUSED`].
    pub responds: Option<bool>,
}

impl Line {
    /// How the tag before the prompt changes its own probability.
    pub const ASKED: &str = "probability with the tag";
    /// How the tag in the negative prompt changes it.
    pub const REFUSED: &str = "probability with it negative";
    /// The sharpness with the tag over that without, by seed.
    pub const SHARPNESS_ASKED: &str = "sharpness ratio with the tag";
    /// The same with the tag in the negative prompt.
    pub const SHARPNESS_REFUSED: &str = "sharpness ratio with it negative";
    /// The share of requested things that are found in plain pictures.
    pub const ADHERENCE: &str = "adherence";
    /// How different pictures of one prompt are.
    pub const DIVERSITY: &str = "diversity";
}

/// The pictures of a subject and what its probe says.
pub(super) struct Measured<'a> {
    pub(super) subject: Subject,
    pub(super) table: &'a Rows,
    pub(super) results: &'a Results,
}

/// A picture without the model: pictures that have the same are compared.
type Shot<'a> = (Option<&'a str>, Condition, u64, &'a str, &'a str);

/// The pictures with and without a word, by their seed and the prompt without it.
type Pairs<'a> = BTreeMap<(u64, &'a str), (&'a Row, &'a Row)>;

fn shot(row: &Row) -> Shot<'_> {
    (row.word.as_deref(), row.condition, row.seed, &row.prompt, &row.negative_prompt)
}

impl<'a> Measured<'a> {
    fn rows(&self) -> impl Iterator<Item = &'a Row> {
        let model = self.subject.model.clone();
        self.table.rows.iter().filter(move |row| row.model == model)
    }

    /// Whether all its pictures are among those of another one, as alike as all numbers tell that both have.
    pub(super) fn is_part_of(&self, other: &Self) -> bool {
        let others: BTreeMap<_, _> = other.rows().map(|row| (shot(row), row)).collect();
        let measures = self.table.shared_with(other.table);
        !measures.is_empty()
            && self.rows().all(|row| {
                others.get(&shot(row)).is_some_and(|other| {
                    row.count == other.count
                        && measures.iter().all(|(own, theirs)| row.numbers[*own] == other.numbers[*theirs])
                })
            })
    }

    fn plain(&self) -> BTreeMap<Shot<'a>, &'a Row> {
        self.rows().filter(|row| row.condition == Condition::Without).map(|row| (shot(row), row)).collect()
    }

    /// The tags that its probe has asked for.
    pub(super) fn tags(&self) -> Vec<&'a str> {
        let mut tags: Vec<&str> = Vec::new();
        for tag in self.rows().filter(|row| !row.is_placebo).filter_map(|row| row.word.as_deref()) {
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        tags
    }

    fn pairs(&self, tag: &str, condition: Condition) -> Pairs<'a> {
        let plain: BTreeMap<u64, &Row> = self.plain().into_values().map(|row| (row.seed, row)).collect();
        let with = self.rows().filter(|row| row.word.as_deref() == Some(tag) && row.condition == condition);
        let pair = |row: &'a Row| {
            let without = *plain.get(&row.seed)?;
            Some(((row.seed, without.prompt.as_str()), (row, without)))
        };
        with.filter_map(pair).collect()
    }

    /// The changes of a number by a tag.
    fn changes(&self, tag: &str, condition: Condition, number: &str) -> BTreeMap<(u64, &'a str), f64> {
        let Some(place) = self.table.place(number) else { return BTreeMap::new() };
        let change =
            |(key, (with, without)): (_, (&Row, &Row))| (key, with.numbers[place] - without.numbers[place]);
        self.pairs(tag, condition).into_iter().map(change).collect()
    }

    fn line(&self, measure: &str, tag: Option<&str>) -> Line {
        Line {
            subject: self.subject.clone(),
            measure: measure.to_owned(),
            tag: tag.map(ToOwned::to_owned),
            value: None,
            difference: None,
            responds: None,
        }
    }

    /// The numbers of a tag.
    pub(super) fn of_tag(&self, tag: &str, first: &Measured<'_>) -> Vec<Line> {
        let number = format!("p:{tag}");
        let verdict = self.results.verdicts.iter().find(|v| v.model == self.subject.model && v.tag == tag);
        let probability = |measure, condition, responds: Option<bool>| {
            let own = self.changes(tag, condition, &number);
            let others = first.changes(tag, condition, &number);
            let both = own.iter().filter_map(|(key, change)| Some((*change, *others.get(key)?)));
            let both: Vec<_> = both.collect();
            Line {
                value: statistics::mean(own.into_values()),
                difference: (self.subject != first.subject)
                    .then(|| statistics::mean_difference(&both))
                    .flatten(),
                responds,
                ..self.line(measure, Some(tag))
            }
        };
        let sharpness = |measure, condition| {
            let place = self.table.place("sharpness");
            let pairs = self.pairs(tag, condition).into_values();
            let pairs = pairs.filter_map(|(a, b)| place.map(|place| (a.numbers[place], b.numbers[place])));
            Line { value: statistics::ratio(&pairs.collect::<Vec<_>>()), ..self.line(measure, Some(tag)) }
        };
        vec![
            probability(Line::ASKED, Condition::With, verdict.map(|verdict| verdict.responds)),
            probability(Line::REFUSED, Condition::Negative, verdict.map(|verdict| verdict.refuses)),
            sharpness(Line::SHARPNESS_ASKED, Condition::With),
            sharpness(Line::SHARPNESS_REFUSED, Condition::Negative),
        ]
    }

    /// The numbers of plain pictures.
    pub(super) fn of_plain(&self, first: &Measured<'_>) -> Vec<Line> {
        let (own, others) = (self.plain(), first.plain());
        let is_first = self.subject == first.subject;
        let both: Vec<_> = own.iter().filter_map(|(shot, row)| Some((*row, *others.get(shot)?))).collect();
        let counts: Vec<_> = own.values().map(|row| row.count).collect();
        let pairs: Vec<_> = both.iter().map(|(a, b)| (a.count, b.count)).collect();
        let mut lines = vec![Line {
            value: statistics::share(&counts),
            difference: (!is_first).then(|| statistics::share_difference(&pairs)).flatten(),
            ..self.line(Line::ADHERENCE, None)
        }];
        for measure in LOOKS {
            let (Some(place), Some(other)) = (self.table.place(measure), first.table.place(measure)) else {
                continue;
            };
            let pairs: Vec<_> = both.iter().map(|(a, b)| (a.numbers[place], b.numbers[other])).collect();
            lines.push(Line {
                value: statistics::level(own.values().map(|row| row.numbers[place])),
                difference: (!is_first).then(|| statistics::difference(&pairs)).flatten(),
                ..self.line(measure, None)
            });
        }
        let diversity = self.results.diversity.iter().find(|row| row.model == self.subject.model);
        lines
            .push(Line { value: diversity.and_then(|row| row.distance), ..self.line(Line::DIVERSITY, None) });
        lines
    }
}

/// All numbers: of each tag the subjects one after the other, then those of plain pictures. The first subject is what the others are compared with.
pub(super) fn lines(all: &[Measured<'_>]) -> Vec<Line> {
    let Some(first) = all.first() else { return Vec::new() };
    let mut tags: Vec<&str> = Vec::new();
    for tag in all.iter().flat_map(Measured::tags) {
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    let of_tags = tags.iter().flat_map(|tag| all.iter().flat_map(|measured| measured.of_tag(tag, first)));
    of_tags.chain(all.iter().flat_map(|measured| measured.of_plain(first))).collect()
}
