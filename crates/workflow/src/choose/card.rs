//! The scorecard of models, the rule, and what the numbers tell apart. Values in, values out.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::probe::{
    Estimate,
    statistics::{self, Count},
};

/// The measures of which the worst is how fried a model is.
pub(super) const FRIED: [&str; 3] = ["saturation", "clipped", "contrast"];

/// The measures [`FRIED`] of a picture.
type Looks = [f64; 3];

/// What was measured on the pictures of one seed of a model.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Seed {
    /// The probability of the tag, before the prompt and in the negative prompt.
    pub(super) with: Option<f64>,
    pub(super) negative: Option<f64>,
    /// What was found in the picture of the plain prompt.
    pub(super) count: Option<Count>,
    /// The measures [`FRIED`] of that picture.
    pub(super) looks: Option<Looks>,
}

/// The seeds of a model.
pub(super) type Seeds = BTreeMap<u64, Seed>;

/// All that the cards are made of.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Measured {
    /// By model.
    pub(super) seeds: BTreeMap<String, Seeds>,
    /// The training set's medians of [`FRIED`]; those of the model that is compared with where there is none.
    pub(super) data: [f64; 3],
    /// By model.
    pub(super) diversity: BTreeMap<String, Estimate>,
    /// By model.
    pub(super) validation: BTreeMap<String, f64>,
}

/// The numbers of one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Card {
    /// The model.
    pub model: String,
    /// How far the tag moves its own probability: the mean, over seeds, of that with the tag before the prompt less that with
    /// the tag in the negative prompt. -1 to 1.
    pub response: Option<Estimate>,
    /// The share of what plain prompts ask for that is found.
    pub adherence: Option<Estimate>,
    /// The same less that of the model that is compared with, by the same seeds.
    pub adherence_difference: Option<Estimate>,
    /// By how much the plain pictures are more fried than the training set: of saturation, clipping and contrast, the largest
    /// difference of the medians.
    pub friedness: Option<Estimate>,
    /// How different pictures of one prompt are.
    pub diversity: Option<Estimate>,
    /// The loss on the validation set.
    pub validation: Option<f64>,
    /// Why the rule does not take it; none where it may.
    pub refused: Vec<String>,
    /// Whether no other candidate is at least as good in response, adherence, friedness and diversity, and better in one.
    pub on_front: bool,
}

/// What a candidate must keep to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// So much less adherence than the model that is compared with.
    pub max_adherence_loss: f64,
    /// So much more fried than the training set.
    pub max_fried: f64,
}

impl Default for Rule {
    fn default() -> Self {
        Self { max_adherence_loss: 0.05, max_fried: 0.1 }
    }
}

/// Who has chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// The rule.
    Rule,
    /// The rule, but no candidate keeps to its limits, so that they were left out.
    ResponseAlone,
    /// The user.
    User,
}

/// The chosen model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// Its name.
    pub model: String,
    /// Who has chosen it.
    pub by: By,
    /// What the rule takes.
    pub rule_takes: Option<String>,
}

/// The chosen model beside another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// The other one.
    pub other: String,
    /// `response`, `adherence` or `friedness`.
    pub measure: String,
    /// The chosen one's number less that of the other one, by the same seeds.
    pub difference: Option<Estimate>,
    /// Whether the interval does not hold 0.
    pub is_separate: bool,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the candidate with the largest response to the tag, among those whose adherence is at most {} points below the \
             reference's and that are at most {} more fried than the training set",
            (1000.0 * self.max_adherence_loss).round() / 10.0,
            self.max_fried
        )
    }
}

impl Measured {
    /// The cards of candidates, in order.
    pub(super) fn cards(&self, among: &[String], against: &str, rule: &Rule) -> Vec<Card> {
        let mut cards: Vec<_> = among.iter().map(|model| self.card(model, against, rule)).collect();
        let scores: Vec<_> = cards.iter().map(scores).collect();
        for (place, card) in cards.iter_mut().enumerate() {
            card.on_front = !scores.iter().any(|other| dominates(other, &scores[place]));
        }
        cards
    }

    fn seeds(&self, model: &str) -> impl Iterator<Item = &Seed> {
        self.seeds.get(model).into_iter().flat_map(BTreeMap::values)
    }

    /// The seeds that both models have.
    fn both(&self, model: &str, other: &str) -> Vec<(Seed, Seed)> {
        let (Some(first), Some(second)) = (self.seeds.get(model), self.seeds.get(other)) else {
            return Vec::new();
        };
        first.iter().filter_map(|(seed, values)| Some((*values, *second.get(seed)?))).collect()
    }

    fn card(&self, model: &str, against: &str, rule: &Rule) -> Card {
        let counts: Vec<_> = self.seeds(model).filter_map(|seed| seed.count).collect();
        let looks: Vec<_> = self.seeds(model).filter_map(|seed| seed.looks).collect();
        let mut card = Card {
            model: model.to_owned(),
            response: statistics::mean(self.seeds(model).filter_map(Seed::response)),
            adherence: statistics::share(&counts),
            adherence_difference: self.difference(model, against, "adherence"),
            friedness: Estimate::of(looks.len(), |drawn| {
                excess(&drawn.iter().map(|place| looks[*place]).collect::<Vec<_>>(), self.data)
            }),
            diversity: self.diversity.get(model).copied(),
            validation: self.validation.get(model).copied(),
            refused: Vec::new(),
            on_front: false,
        };
        if card.response.is_none() {
            card.refused.push("its response was not measured".to_owned());
        }
        // The reference itself loses nothing against itself.
        let loss = card.adherence_difference.map_or(0.0, |change| -change.value);
        if loss > rule.max_adherence_loss {
            card.refused.push(format!("its adherence is {:.1} points below the reference's", 100.0 * loss));
        }
        if let Some(fried) = card.friedness.filter(|fried| fried.value > rule.max_fried) {
            card.refused.push(format!("it is {:.3} more fried than the training set", fried.value));
        }
        card
    }

    /// A measure of one model less that of another, by the same seeds.
    fn difference(&self, model: &str, other: &str, measure: &str) -> Option<Estimate> {
        if model == other {
            return None;
        }
        let both = self.both(model, other);
        match measure {
            "response" => {
                let of = |(a, b): &(Seed, Seed)| Some((a.response()?, b.response()?));
                statistics::mean_difference(&both.iter().filter_map(of).collect::<Vec<_>>())
            }
            "adherence" => {
                let of = |(a, b): &(Seed, Seed)| Some((a.count?, b.count?));
                statistics::share_difference(&both.iter().filter_map(of).collect::<Vec<_>>())
            }
            _ => {
                let of = |(a, b): &(Seed, Seed)| Some((a.looks?, b.looks?));
                let pairs: Vec<_> = both.iter().filter_map(of).collect();
                let side = |drawn: &[usize], side: fn(&(Looks, Looks)) -> Looks| {
                    excess(&drawn.iter().map(|place| side(&pairs[*place])).collect::<Vec<_>>(), self.data)
                };
                Estimate::of(pairs.len(), |drawn| side(drawn, |pair| pair.0) - side(drawn, |pair| pair.1))
            }
        }
    }

    /// The chosen model beside all other candidates.
    pub(super) fn pairs(&self, chosen: &str, among: &[String]) -> Vec<Pair> {
        let others = among.iter().filter(|other| *other != chosen);
        let pairs = others.flat_map(|other| {
            ["response", "adherence", "friedness"].map(|measure| {
                let difference = self.difference(chosen, other, measure);
                let is_separate = difference.as_ref().is_some_and(Estimate::is_clear);
                Pair { other: other.clone(), measure: measure.to_owned(), difference, is_separate }
            })
        });
        pairs.collect()
    }
}

impl Seed {
    fn response(&self) -> Option<f64> {
        Some(self.with? - self.negative?)
    }
}

/// The largest difference of the medians from the training set's; NaN of no pictures.
fn excess(looks: &[[f64; 3]], data: [f64; 3]) -> f64 {
    let of =
        |i: usize| vodka_sampler::median(&mut looks.iter().map(|look| look[i]).collect::<Vec<_>>()) - data[i];
    (0..3).map(of).fold(f64::NAN, f64::max)
}

/// What is better when it is more: response, adherence, less friedness, diversity. What was not measured is the worst.
fn scores(card: &Card) -> [f64; 4] {
    let of = |estimate: &Option<Estimate>| estimate.map(|estimate| estimate.value);
    let friedness = of(&card.friedness).map(|fried| -fried);
    [of(&card.response), of(&card.adherence), friedness, of(&card.diversity)]
        .map(|score| score.unwrap_or(f64::NEG_INFINITY))
}

fn dominates(a: &[f64; 4], b: &[f64; 4]) -> bool {
    a.iter().zip(b).all(|(a, b)| a >= b) && a.iter().zip(b).any(|(a, b)| a > b)
}

/// What the rule takes, unless the user has chosen; none where no candidate has a response. Of equal ones the first.
pub(super) fn choose(cards: &[Card], user: Option<&str>) -> Option<Choice> {
    let best = |keep: &dyn Fn(&&Card) -> bool| {
        let response = |card: &Card| card.response.map(|response| response.value);
        let candidates = cards.iter().filter(keep).filter_map(|card| Some((response(card)?, card)));
        candidates
            .reduce(|best, next| if next.0 > best.0 { next } else { best })
            .map(|(_, card)| card.model.clone())
    };
    let (by, rule_takes) = match best(&|card| card.refused.is_empty()) {
        Some(model) => (By::Rule, Some(model)),
        None => (By::ResponseAlone, best(&|_| true)),
    };
    match user {
        Some(model) => Some(Choice { model: model.to_owned(), by: By::User, rule_takes }),
        None => rule_takes.map(|model| Choice { model: model.clone(), by, rule_takes: Some(model) }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seeds(n: u64, with: f64, negative: f64, found: impl Fn(u64) -> usize, looks: [f64; 3]) -> Seeds {
        let seed = |i: u64| Seed {
            with: Some(with + 0.001 * i as f64),
            negative: Some(negative),
            count: Some(Count { found: found(i), requested: 2 }),
            looks: Some(looks),
        };
        (0..n).map(|i| (i, seed(i))).collect()
    }

    fn measured() -> Measured {
        let plain = [0.3, 0.01, 0.2];
        let seeds = [
            ("v2", seeds(20, 0.3, 0.28, |_| 2, plain)),
            ("ep1", seeds(20, 0.7, 0.2, |_| 2, plain)),
            ("ep2", seeds(20, 0.9, 0.1, |i| usize::from(i > 0) + 1, plain)),
            ("ep3", seeds(20, 0.95, 0.0, |i| usize::from(i % 2 == 0) + 1, plain)),
            ("ep4", seeds(20, 0.99, 0.0, |_| 2, [0.5, 0.01, 0.2])),
        ];
        let seeds = seeds.into_iter().map(|(name, seeds)| (name.to_owned(), seeds)).collect();
        Measured { seeds, data: plain, ..Measured::default() }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_rule_takes_the_largest_response_that_costs_little() {
        let measured = measured();
        let among = names(&["ep1", "ep2", "ep3", "ep4"]);
        let cards = measured.cards(&among, "v2", &Rule::default());
        let refused: Vec<_> = cards.iter().map(|card| card.refused.join("; ")).collect();
        assert_eq!(
            refused,
            [
                "",
                "",
                "its adherence is 25.0 points below the reference's",
                "it is 0.200 more fried than the training set"
            ]
        );
        let choice = choose(&cards, None).unwrap();
        assert_eq!((choice.model.as_str(), choice.by), ("ep2", By::Rule));
        let choice = choose(&cards, Some("ep4")).unwrap();
        assert_eq!(
            (choice.model.as_str(), choice.by, choice.rule_takes.as_deref()),
            ("ep4", By::User, Some("ep2"))
        );
        // What is worse in all, and what is not.
        assert_eq!(cards.iter().map(|card| card.on_front).collect::<Vec<_>>(), [true, true, true, true]);
        let strict = Rule { max_adherence_loss: 0.0, max_fried: 0.0 };
        let among = names(&["ep3", "ep4"]);
        let choice = choose(&measured.cards(&among, "v2", &strict), None).unwrap();
        assert_eq!((choice.model.as_str(), choice.by), ("ep4", By::ResponseAlone));
        assert_eq!(choose(&[], None), None);
    }

    #[test]
    fn models_that_the_numbers_do_not_tell_apart_are_told() {
        let mut measured = measured();
        // Of half the seeds a little more, of the other half a little less.
        let mut twin = measured.seeds["ep2"].clone();
        for (i, seed) in &mut twin {
            seed.with = seed.with.map(|with| with + if i % 2 == 0 { 0.05 } else { -0.05 });
        }
        measured.seeds.insert("twin".to_owned(), twin);
        let pairs = measured.pairs("ep2", &names(&["ep1", "ep2", "twin"]));
        let told = |other: &str, measure: &str| {
            pairs.iter().find(|pair| pair.other == other && pair.measure == measure).unwrap()
        };
        assert_eq!(pairs.len(), 6);
        assert!(told("ep1", "response").is_separate && !told("twin", "response").is_separate);
        assert!((told("ep1", "response").difference.unwrap().value - 0.3).abs() < 1e-9);
        assert!(!told("ep1", "friedness").is_separate);
    }

    #[test]
    fn what_was_not_measured_is_no_response() {
        let mut measured = measured();
        for seed in measured.seeds.get_mut("ep2").unwrap().values_mut() {
            seed.negative = None;
        }
        let cards = measured.cards(&names(&["ep2", "none"]), "v2", &Rule::default());
        assert!(cards.iter().all(|card| card.refused[0] == "its response was not measured"), "{cards:?}");
        assert_eq!(choose(&cards, None), None);
        assert_eq!(choose(&cards, Some("ep2")).unwrap().rule_takes, None);
    }

    proptest! {
        #[test]
        fn what_is_on_the_front_is_beaten_by_nobody(
            all in prop::collection::vec((0.0..1.0_f64, 0..=2_usize, 0.0..1.0_f64), 1..6),
        ) {
            let names: Vec<_> = (0..all.len()).map(|i| format!("m{i}")).collect();
            let model = |(with, found, look): &(f64, usize, f64)| seeds(6, *with, 0.0, |_| *found, [*look; 3]);
            let seeds = names.iter().cloned().zip(all.iter().map(model)).collect();
            let measured = Measured { seeds, ..Measured::default() };
            let cards = measured.cards(&names, "m0", &Rule::default());
            prop_assert!(cards.iter().any(|card| card.on_front));
            for (i, card) in cards.iter().enumerate() {
                let is_beaten = all.iter().any(|other| {
                    let (a, b) = (other, &all[i]);
                    a.0 >= b.0 && a.1 >= b.1 && a.2 <= b.2 && a != b
                });
                prop_assert_eq!(card.on_front, !is_beaten, "{:?}", all);
            }
        }
    }
}
