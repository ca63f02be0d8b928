//! What the pictures of a probe say, in numbers: responses, adherence, friedness, diversity. Values in, values out.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use vodka_sampler::grid::{Look, MEASURES};

use super::{
    Condition, Estimate,
    plan::{Shot, Word},
    statistics::{self, Count},
};

/// A tag whose score is this or more is there: the threshold that WD14 taggers are used with.
pub(super) const FOUND: f32 = 0.35;
/// A tag responds where it changes its own probability by this at least.
pub(super) const RESPONSE_MIN: f64 = 0.1;
/// The measure whose ratio is told too: the sharpness of pictures differs by factors.
pub(super) const RATIO: &str = "sharpness";
/// The measures that are compared with the training set.
const FRIED: [&str; 5] = ["saturation", "clipped", "fried", "colourfulness", "contrast"];

/// A picture that is there and has its scores.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Seen {
    /// How it looks.
    pub(super) look: Look,
    /// The same, very small: numbers 0 to 1.
    pub(super) thumb: Vec<f32>,
    /// The tagger's scores; what is not there is 0.
    pub(super) scores: HashMap<String, f32>,
}

impl Seen {
    pub(super) fn probability(&self, tag: &str) -> f64 {
        self.scores.get(tag).copied().unwrap_or_default().into()
    }

    /// How many of the expected tags are there.
    pub(super) fn count(&self, expected: &[String]) -> Count {
        let found = expected.iter().filter(|tag| self.probability(tag) >= FOUND.into()).count();
        Count { found, requested: expected.len() }
    }
}

/// All that was seen.
pub(super) struct Observations<'a> {
    pub(super) models: &'a [String],
    /// The number of the model that the others are compared with.
    pub(super) against: usize,
    pub(super) words: &'a [Word],
    /// What each prompt expects; seeds take prompts in turn.
    pub(super) expected: &'a [Vec<String>],
    /// The pictures that are there.
    pub(super) seen: BTreeMap<Shot, Seen>,
}

/// A number of the pictures of one word in one condition, by one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// The model.
    pub model: String,
    /// The tag or the placebo.
    pub word: String,
    /// Whether it is a placebo.
    pub placebo: bool,
    /// What the pictures are made with.
    pub condition: Condition,
    /// `probability`, or a measure of how pictures look.
    pub measure: String,
    /// Whose probability; of a tag its own, of a placebo that of each tag.
    pub tag: Option<String>,
    /// The median.
    pub level: Option<Estimate>,
    /// The change against the prompt without the word, between pictures of one seed: of probabilities the mean, else the
    /// median.
    pub difference: Option<Estimate>,
    /// The geometric mean of its ratio to that without the word, between pictures of one seed.
    pub ratio: Option<Estimate>,
}

/// How much of what prompts ask for is in the pictures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Adherence {
    /// The model.
    pub model: String,
    /// The word in the prompts; none for the prompts as they are.
    pub word: Option<String>,
    /// What the pictures are made with.
    pub condition: Condition,
    /// The thing; none for all of them.
    pub thing: Option<String>,
    /// How often things were requested.
    pub requested: usize,
    /// How often they were found.
    pub found: usize,
    /// Their share.
    pub share: Option<Estimate>,
    /// The share less that of the model that is compared with, by the same seeds.
    pub difference: Option<Estimate>,
}

/// How the pictures of plain prompts look beside those of the training set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Friedness {
    /// The model.
    pub model: String,
    /// The measure.
    pub measure: String,
    /// The median of its pictures.
    pub level: Option<Estimate>,
    /// The median of the training set's; none where there is none.
    pub data: Option<f64>,
    /// The first less the second, which is taken as it is.
    pub difference: Option<Estimate>,
}

/// How different the pictures of one prompt are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Diversity {
    /// The model.
    pub model: String,
    /// The mean distance of two pictures of a prompt, over prompts; none where no prompt has two.
    pub distance: Option<Estimate>,
}

/// Whether a model responds to a tag.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The model.
    pub model: String,
    /// The tag.
    pub tag: String,
    /// How the tag before the prompt changes its probability.
    pub asked: Option<Estimate>,
    /// How the tag in the negative prompt changes it.
    pub refused: Option<Estimate>,
    /// Between which numbers, 0 among them, one more placebo would change it, before the prompt and in the negative prompt.
    pub placebo: [[f64; 2]; 2],
    /// The probability rises where it is asked for.
    pub responds: bool,
    /// The probability falls where it is in the negative prompt.
    pub refuses: bool,
}

/// What words do that stand in no caption, by one model in one condition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Placebos {
    /// The model.
    pub model: String,
    /// What the pictures are made with.
    pub condition: Condition,
    /// `probability`, whose change is meant, or `sharpness`, whose ratio.
    pub measure: String,
    /// Whose probability.
    pub tag: Option<String>,
    /// The mean over words (for ratios the geometric one), and between which numbers one more word would lie with 95 %; none
    /// without placebos.
    pub change: Option<Estimate>,
}

/// All numbers of a probe.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// By model, word, condition and measure.
    pub responses: Vec<Response>,
    /// By model, condition and measure.
    pub placebos: Vec<Placebos>,
    /// By model and tag.
    pub verdicts: Vec<Verdict>,
    /// By model, word, condition and thing.
    pub adherence: Vec<Adherence>,
    /// By model and measure.
    pub friedness: Vec<Friedness>,
    /// By model.
    pub diversity: Vec<Diversity>,
}

type Value<'v> = dyn Fn(&Seen) -> f64 + 'v;

impl Observations<'_> {
    fn get(&self, model: usize, word: Option<usize>, condition: Condition, seed: usize) -> Option<&Seen> {
        let word = word.filter(|_| condition != Condition::Without);
        self.seen.get(&Shot { model, word, condition, seed })
    }

    fn tags(&self) -> impl Iterator<Item = &str> {
        self.words.iter().filter(|word| !word.is_placebo).map(|word| word.name.as_str())
    }

    fn seeds(&self) -> usize {
        self.words.iter().map(|word| word.seeds).max().unwrap_or_default()
    }

    /// A number of the pictures of a word in a condition beside those without it.
    fn response(
        &self,
        [model, word]: [usize; 2],
        condition: Condition,
        (measure, tag): (&str, Option<&str>),
        value: &Value<'_>,
    ) -> Response {
        let of = |condition, seed| self.get(model, Some(word), condition, seed).map(value);
        let seeds = 0..self.words[word].seeds;
        let level = statistics::level(seeds.clone().filter_map(|seed| of(condition, seed)));
        let is_changed = condition != Condition::Without;
        let both = |seed| Some((of(condition, seed)?, of(Condition::Without, seed)?));
        let pairs: Vec<_> = seeds.filter(|_| is_changed).filter_map(both).collect();
        let difference = if tag.is_some() { statistics::mean_difference } else { statistics::difference };
        Response {
            model: self.models[model].clone(),
            word: self.words[word].name.clone(),
            placebo: self.words[word].is_placebo,
            condition,
            measure: measure.to_owned(),
            tag: tag.map(ToOwned::to_owned),
            level,
            difference: difference(&pairs),
            ratio: if measure == RATIO { statistics::ratio(&pairs) } else { None },
        }
    }

    fn responses(&self, model: usize) -> Vec<Response> {
        let mut all = Vec::new();
        for (place, word) in self.words.iter().enumerate() {
            let tags: Vec<&str> = if word.is_placebo { self.tags().collect() } else { vec![&word.name] };
            for &condition in word.conditions() {
                for tag in &tags {
                    let value = |seen: &Seen| seen.probability(tag);
                    let measure = ("probability", Some(*tag));
                    all.push(self.response([model, place], condition, measure, &value));
                }
                for measure in &MEASURES {
                    let value = |seen: &Seen| (measure.of)(&seen.look);
                    all.push(self.response([model, place], condition, (measure.key, None), &value));
                }
            }
        }
        all
    }

    /// What was counted by a model, by seed.
    fn counts(
        &self,
        model: usize,
        word: Option<usize>,
        condition: Condition,
        thing: Option<&str>,
    ) -> BTreeMap<usize, Count> {
        let seeds = word.map_or(self.seeds(), |word| self.words[word].seeds);
        let count = |seed: usize| {
            let expected = &self.expected[seed % self.expected.len()];
            let asked: Vec<_> =
                expected.iter().filter(|tag| thing.is_none_or(|thing| *tag == thing)).cloned().collect();
            let seen = self.get(model, word, condition, seed)?;
            (!asked.is_empty()).then(|| (seed, seen.count(&asked)))
        };
        (0..seeds).filter_map(count).collect()
    }

    fn adherence_of(
        &self,
        model: usize,
        word: Option<usize>,
        condition: Condition,
        thing: Option<&str>,
    ) -> Adherence {
        let counts = self.counts(model, word, condition, thing);
        let others = self.counts(self.against, word, condition, thing);
        let pairs: Vec<_> =
            counts.iter().filter_map(|(seed, count)| Some((*count, *others.get(seed)?))).collect();
        let all: Vec<_> = counts.into_values().collect();
        let difference = (model != self.against).then(|| statistics::share_difference(&pairs)).flatten();
        Adherence {
            model: self.models[model].clone(),
            word: word.map(|word| self.words[word].name.clone()),
            condition,
            thing: thing.map(ToOwned::to_owned),
            requested: all.iter().map(|count| count.requested).sum(),
            found: all.iter().map(|count| count.found).sum(),
            share: statistics::share(&all),
            difference,
        }
    }

    fn adherence(&self, model: usize) -> Vec<Adherence> {
        let mut things: Vec<&str> = Vec::new();
        for tag in self.expected.iter().flatten() {
            if !things.contains(&tag.as_str()) {
                things.push(tag);
            }
        }
        let of = |thing| self.adherence_of(model, None, Condition::Without, thing);
        let mut all = vec![of(None)];
        all.extend(things.into_iter().map(|thing| of(Some(thing))));
        for word in 0..self.words.len() {
            let of = |condition| self.adherence_of(model, Some(word), condition, None);
            all.extend([Condition::With, Condition::Negative].map(of));
        }
        all
    }

    /// The pictures of plain prompts of a model, by their seeds.
    fn plain(&self, model: usize) -> impl Iterator<Item = (usize, &Seen)> {
        let get = move |seed| Some((seed, self.get(model, None, Condition::Without, seed)?));
        (0..self.seeds()).filter_map(get)
    }

    fn friedness(&self, model: usize, data: &[Look]) -> Vec<Friedness> {
        let measures = MEASURES.iter().filter(|measure| FRIED.contains(&measure.key));
        let of = |measure: &vodka_sampler::grid::Measure| {
            let data = statistics::level(data.iter().map(measure.of)).map(|level| level.value);
            let values: Vec<_> = self.plain(model).map(|(_, seen)| (measure.of)(&seen.look)).collect();
            let against = |data: f64| statistics::level(values.iter().map(|value| value - data));
            Friedness {
                model: self.models[model].clone(),
                measure: measure.key.to_owned(),
                level: statistics::level(values.iter().copied()),
                data,
                difference: data.and_then(against),
            }
        };
        measures.map(of).collect()
    }

    fn diversity(&self, model: usize) -> Diversity {
        let mut prompts: Vec<Vec<&[f32]>> = vec![Vec::new(); self.expected.len()];
        for (seed, seen) in self.plain(model) {
            prompts[seed % self.expected.len()].push(&seen.thumb);
        }
        Diversity { model: self.models[model].clone(), distance: statistics::diversity(&prompts) }
    }

    /// All numbers; `data` are pictures of the training set.
    pub(super) fn results(&self, data: &[Look]) -> Results {
        let mut results = Results::default();
        for model in 0..self.models.len() {
            let responses = self.responses(model);
            let name = &self.models[model];
            let tags: Vec<_> = self.tags().collect();
            let placebos = Placebos::of(name, &tags, &responses);
            let verdict = |tag: &&str| Verdict::of(name, tag, &responses, &placebos);
            results.verdicts.extend(tags.iter().map(verdict));
            results.placebos.extend(placebos);
            results.responses.extend(responses);
            results.adherence.extend(self.adherence(model));
            results.friedness.extend(self.friedness(model, data));
            results.diversity.push(self.diversity(model));
        }
        results
    }
}

impl Placebos {
    /// Of the responses of one model, for each tag and for sharpness.
    fn of(model: &str, tags: &[&str], responses: &[Response]) -> Vec<Self> {
        let measures = tags.iter().map(|tag| ("probability", Some(*tag))).chain([(RATIO, None)]);
        let both = measures.flat_map(|measure| [(Condition::With, measure), (Condition::Negative, measure)]);
        let placebos = both.map(|(condition, (measure, tag))| {
            let is_it = |row: &&Response| {
                row.placebo
                    && row.condition == condition
                    && row.measure == measure
                    && row.tag.as_deref() == tag
            };
            let rows = responses.iter().filter(is_it);
            let change = if tag.is_some() {
                statistics::further(&rows.filter_map(|row| row.difference).collect::<Vec<_>>())
            } else {
                let logs = rows.filter_map(|row| row.ratio).map(|ratio| ratio.map(f64::ln));
                statistics::further(&logs.collect::<Vec<_>>()).map(|change| change.map(f64::exp))
            };
            let tag = tag.map(ToOwned::to_owned);
            Self { model: model.to_owned(), condition, measure: measure.to_owned(), tag, change }
        });
        placebos.collect()
    }
}

impl Verdict {
    /// A tag responds where the interval of the change of its probability lies above 0 and above where one more placebo
    /// would lie, and the change is [`RESPONSE_MIN`] or more; it refuses where the same holds below.
    fn of(model: &str, tag: &str, responses: &[Response], placebos: &[Placebos]) -> Self {
        let own = |condition| {
            let is_it = |row: &&Response| {
                row.word == tag && row.condition == condition && row.tag.as_deref() == Some(tag)
            };
            responses.iter().find(is_it).and_then(|row| row.difference)
        };
        let placebo = |condition| {
            let is_it = |row: &&Placebos| row.condition == condition && row.tag.as_deref() == Some(tag);
            let range = placebos.iter().find(is_it).and_then(|row| row.change?.range);
            range.map_or([0.0; 2], |[low, high]| [low.min(0.0), high.max(0.0)])
        };
        let (asked, refused) = (own(Condition::With), own(Condition::Negative));
        let [with, negative] = [Condition::With, Condition::Negative].map(placebo);
        let rises =
            |change: &Estimate| change.value >= RESPONSE_MIN && change.low().is_some_and(|low| low > with[1]);
        let falls = |change: &Estimate| {
            change.value <= -RESPONSE_MIN && change.high().is_some_and(|high| high < negative[0])
        };
        Self {
            model: model.to_owned(),
            tag: tag.to_owned(),
            responds: asked.as_ref().is_some_and(rises),
            refuses: refused.as_ref().is_some_and(falls),
            asked,
            refused,
            placebo: [with, negative],
        }
    }
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};

    use super::*;

    fn word(name: &str, is_placebo: bool, seeds: usize) -> Word {
        Word { name: name.into(), text: name.into(), is_placebo, seeds }
    }

    fn seen(scores: &[(&str, f32)], grey: u8) -> Seen {
        let picture = RgbImage::from_fn(16, 16, |x, y| Rgb([if (x + y) % 2 == 0 { grey } else { 0 }; 3]));
        let scores = scores.iter().map(|(tag, score)| ((*tag).to_owned(), *score)).collect();
        Seen { look: Look::of(&picture), thumb: vec![f32::from(grey) / 255.0; 4], scores }
    }

    /// Two models, of which the second knows what blurry is.
    fn observe(f: impl FnOnce(&mut Observations<'_>)) {
        let models = ["v2".to_owned(), "v3".to_owned()];
        let words = [word("blurry", false, 8), word("glorp", true, 8)];
        let expected = [vec!["red".to_owned(), "circle".to_owned()], vec!["star".to_owned()]];
        let mut observations = Observations {
            models: &models,
            against: 0,
            words: &words,
            expected: &expected,
            seen: BTreeMap::new(),
        };
        for model in 0..2 {
            for seed in 0..8 {
                let mut put = |word, condition, blur: f32, grey: u8| {
                    // The second model has forgotten stars.
                    let star = if model == 0 { 0.9 } else { 0.1 };
                    let scores = [("blurry", blur), ("red", 0.8), ("circle", 0.2), ("star", star)];
                    observations.seen.insert(Shot { model, word, condition, seed }, seen(&scores, grey));
                };
                let knows = model == 1;
                put(None, Condition::Without, 0.2 + 0.01 * seed as f32, 100 + seed as u8);
                for word in 0..2 {
                    let is_tag = word == 0 && knows;
                    let word = Some(word);
                    put(
                        word,
                        Condition::With,
                        if is_tag { 0.9 } else { 0.22 },
                        if is_tag { 40 } else { 104 },
                    );
                    put(word, Condition::Alone, if is_tag { 0.95 } else { 0.2 }, 80);
                    put(
                        word,
                        Condition::Negative,
                        if is_tag { 0.02 } else { 0.24 },
                        if is_tag { 200 } else { 103 },
                    );
                }
            }
        }
        f(&mut observations);
    }

    fn find<'r>(
        results: &'r Results,
        model: &str,
        word: &str,
        condition: Condition,
        measure: &str,
    ) -> &'r Response {
        let is_it = |response: &&Response| {
            response.model == model
                && response.word == word
                && response.condition == condition
                && response.measure == measure
        };
        results.responses.iter().find(is_it).unwrap()
    }

    #[test]
    fn a_tag_is_told_from_a_placebo_and_a_model_that_knows_it_from_one_that_does_not() {
        observe(|observations| {
            let results = observations.results(&[]);
            let verdict =
                |model: &str| results.verdicts.iter().find(|verdict| verdict.model == model).unwrap();
            assert!(verdict("v3").responds && verdict("v3").refuses);
            assert!(!verdict("v2").responds && !verdict("v2").refuses);
            let with = find(&results, "v3", "blurry", Condition::With, "probability");
            assert!((with.level.unwrap().value - 0.9).abs() < 1e-6);
            assert!((with.difference.unwrap().value - 0.665).abs() < 1e-6, "{with:?}");
            assert_eq!(with.difference.unwrap().n, 8);
            // Contrast to the second power.
            let sharp = find(&results, "v3", "blurry", Condition::Negative, "sharpness").ratio.unwrap();
            assert!(sharp.value > 2.0 && sharp.low().unwrap() > 2.0, "{sharp:?}");
            let blurred = find(&results, "v3", "blurry", Condition::With, "sharpness").ratio.unwrap();
            assert!(blurred.value < 0.5, "{blurred:?}");
            let plain = find(&results, "v3", "blurry", Condition::Without, "sharpness");
            assert!(plain.level.is_some() && plain.difference.is_none() && plain.ratio.is_none());
            let placebo = find(&results, "v3", "glorp", Condition::With, "probability");
            assert!(placebo.placebo && placebo.tag.as_deref() == Some("blurry"));
        });
    }

    #[test]
    fn a_change_that_a_placebo_makes_too_is_no_response() {
        observe(|observations| {
            for seed in 0..8 {
                let shot = Shot { model: 1, word: Some(1), condition: Condition::With, seed };
                observations.seen.insert(shot, seen(&[("blurry", 0.95)], 100));
            }
            let results = observations.results(&[]);
            let verdict = results.verdicts.iter().find(|verdict| verdict.model == "v3").unwrap();
            assert!(!verdict.responds && verdict.refuses && verdict.placebo[0][1] > 0.7, "{verdict:?}");
        });
    }

    /// A verdict on a tag that changes its probability by 0.5 (0.4 to 0.6), beside placebos that change it so much.
    fn beside(placebos: &[f64], own: f64) -> Verdict {
        let response = |word: &str, placebo, value: f64| Response {
            model: "v3".into(),
            word: word.into(),
            placebo,
            condition: Condition::With,
            measure: "probability".into(),
            tag: Some("blurry".into()),
            level: None,
            difference: Some(Estimate { n: 24, value, range: Some([value - 0.1, value + 0.1]) }),
            ratio: None,
        };
        let words = placebos.iter().map(|value| response("glorp", true, *value));
        let responses: Vec<_> = words.chain([response("blurry", false, own)]).collect();
        Verdict::of("v3", "blurry", &responses, &Placebos::of("v3", &["blurry"], &responses))
    }

    #[test]
    fn a_tag_must_do_more_than_one_more_word_would() {
        assert!(beside(&[], 0.2).responds && !beside(&[], 0.05).responds && !beside(&[], 0.09).responds);
        // Of few placebos the ends of their intervals count, of more the spread.
        assert!(beside(&[0.25], 0.5).responds && !beside(&[0.35], 0.5).responds);
        assert!(beside(&[0.0, 0.05, 0.1, 0.05], 0.5).responds);
        assert!(!beside(&[0.0, 0.3, 0.0, 0.3], 0.5).responds);
        // One word that does the same is not all words, and half of them are.
        let mut words = [0.0; 12];
        words[7] = 0.5;
        assert!(beside(&words, 0.5).responds);
        assert!(!beside(&[0.0, 0.5, 0.0, 0.5, 0.0, 0.5], 0.5).responds);
    }

    #[test]
    fn requested_things_are_counted_and_compared_by_seed() {
        observe(|observations| {
            let results = observations.results(&[]);
            let find = |model: &str, thing: Option<&str>| {
                let is_it = |row: &&Adherence| {
                    row.model == model && row.word.is_none() && row.thing.as_deref() == thing
                };
                results.adherence.iter().find(is_it).unwrap()
            };
            // Four seeds ask for a red circle, four for a star.
            let all = find("v2", None);
            assert_eq!((all.requested, all.found, all.difference), (12, 8, None));
            assert_eq!((find("v3", None).found, find("v3", Some("circle")).found), (4, 0));
            let stars = find("v3", Some("star"));
            assert_eq!((stars.requested, stars.found, stars.difference.unwrap().value), (4, 0, -1.0));
            assert!((find("v3", None).difference.unwrap().value + 1.0 / 3.0).abs() < 1e-9);
            // Of each word before the prompt and in the negative prompt.
            assert_eq!(results.adherence.iter().filter(|row| row.word.is_some()).count(), 8);
        });
    }

    #[test]
    fn pictures_that_are_missing_count_nowhere() {
        observe(|observations| {
            for seed in [0, 1] {
                observations.seen.remove(&Shot { model: 1, word: None, condition: Condition::Without, seed });
            }
            observations.seen.remove(&Shot { model: 1, word: Some(0), condition: Condition::With, seed: 2 });
            let results = observations.results(&[]);
            let with = find(&results, "v3", "blurry", Condition::With, "probability");
            assert_eq!((with.level.unwrap().n, with.difference.unwrap().n), (7, 5));
            assert_eq!(with.difference.unwrap().range, None);
            let verdict = results.verdicts.iter().find(|verdict| verdict.model == "v3").unwrap();
            assert!(!verdict.responds, "five pairs have no interval");
        });
        observe(|observations| {
            observations.seen.clear();
            let results = observations.results(&[]);
            assert!(results.responses.iter().all(|response| response.level.is_none()));
            assert!(results.adherence.iter().all(|row| row.share.is_none() && row.requested == 0));
        });
    }

    #[test]
    fn looks_are_compared_with_the_training_set() {
        observe(|observations| {
            let data = [seen(&[], 100).look; 3];
            let results = observations.results(&data);
            let contrast =
                results.friedness.iter().find(|row| row.model == "v2" && row.measure == "contrast").unwrap();
            let expected =
                seen(&[], 103).look.contrast / 2.0 + seen(&[], 104).look.contrast / 2.0 - data[0].contrast;
            assert!((contrast.difference.unwrap().value - expected).abs() < 1e-9, "{contrast:?}");
            assert_eq!(contrast.data, Some(data[0].contrast));
            let without = observations.results(&[]);
            assert!(without.friedness.iter().all(|row| row.data.is_none() && row.difference.is_none()));
            // Seeds 0, 2, 4, 6 are of the first prompt: levels 100, 102, 104, 106.
            let distance = results.diversity[0].distance.unwrap().value;
            let expected = (2.0 * 3.0 + 4.0 * 2.0 + 6.0) / 6.0 / 255.0;
            assert!((distance - expected).abs() < 1e-6, "{distance} {expected}");
        });
    }
}
