//! Several taggers as one: their scores, put together by the names of the tags.

use std::{borrow::Cow, collections::HashMap, fmt, str::FromStr};

use ndarray::{Array2, ArrayView1};
use serde::{Deserialize, Serialize};
use vodka_images::{Decoded, RgbImage};

use crate::{
    Category, Error, Label, Labels, Result, Scores, Tagger, model::is_finite, pipeline::Scorer,
    results::BATCH_MAX,
};

/// How the scores of several taggers become one. A tagger has a say on the tags that it knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Combine {
    /// The mean: what is known to gain most (averaging two WD taggers of 2022 brought F1 from 0.694 to 0.704).
    #[default]
    Mean,
    /// The highest.
    Max,
    /// The share of the taggers whose own threshold for the tag is reached.
    Vote,
}

impl Combine {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Mean, Self::Max, Self::Vote];
}

impl fmt::Display for Combine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mean => "mean",
            Self::Max => "max",
            Self::Vote => "vote",
        })
    }
}

impl FromStr for Combine {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|combine| combine.to_string() == text);
        found.ok_or_else(|| Error::Setting {
            name: "combine",
            expected: "mean, max or vote",
            found: text.to_owned(),
        })
    }
}

/// The labels of several taggers as one list.
struct Joined {
    labels: Vec<Label>,
    /// For each label, how many taggers know it.
    knowing: Vec<f32>,
    /// For each tagger, the places of its labels in the list.
    places: Vec<Vec<usize>>,
}

/// The labels of the first, then those that each further one adds. A tag is known by its name, whatever category each tagger
/// has it in; ratings alone are apart from tags that are called like them. Where one tagger has a name in two categories,
/// the category counts too.
fn join<'a>(vocabularies: impl Iterator<Item = &'a [Label]>) -> Joined {
    let mut joined = Joined { labels: Vec::new(), knowing: Vec::new(), places: Vec::new() };
    let mut by_name: HashMap<(bool, Cow<'a, str>), Vec<usize>> = HashMap::new();
    for vocabulary in vocabularies {
        let key = |label: &'a Label| (label.category == Category::Rating, Cow::from(&*label.name));
        let mut places: Vec<Option<usize>> = vec![None; vocabulary.len()];
        let mut taken = vec![false; joined.labels.len()];
        // Who has the very category goes first.
        for any_category in [false, true] {
            for (place, label) in places.iter_mut().zip(vocabulary).filter(|(place, _)| place.is_none()) {
                let known = by_name.get(&key(label)).into_iter().flatten().copied();
                let fits = |known: &usize| any_category || joined.labels[*known].category == label.category;
                *place = known.filter(|known| !taken[*known]).find(fits);
                if let Some(place) = *place {
                    taken[place] = true;
                }
            }
        }
        for (place, label) in places.iter_mut().zip(vocabulary) {
            let place = *place.get_or_insert_with(|| {
                by_name.entry(key(label)).or_default().push(joined.labels.len());
                joined.labels.push(label.clone());
                joined.knowing.push(0.0);
                joined.labels.len() - 1
            });
            joined.knowing[place] += 1.0;
        }
        joined.places.push(places.into_iter().flatten().collect());
    }
    joined
}

/// Taggers that see the same pictures.
pub(crate) struct Ensemble {
    members: Vec<Member>,
    combine: Combine,
    labels: Labels,
    /// For each label, how many members know it.
    knowing: Vec<f32>,
}

struct Member {
    tagger: Tagger,
    /// For each of its labels, the place among the labels of all.
    places: Vec<usize>,
}

impl Ensemble {
    pub fn new(taggers: Vec<Tagger>, combine: Combine) -> Self {
        let Joined { labels, knowing, places } = join(taggers.iter().map(|tagger| &tagger.labels()[..]));
        let members = taggers.into_iter().zip(places).map(|(tagger, places)| Member { tagger, places });
        Self { members: members.collect(), combine, labels: Labels::from(labels), knowing }
    }

    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    pub fn taggers(&self) -> impl Iterator<Item = &Tagger> {
        self.members.iter().map(|member| &member.tagger)
    }

    /// How many pictures to score together where so many are asked for: a network that takes a fixed number gets
    /// whole batches of it.
    pub fn batch(&self, asked: usize) -> usize {
        let whole = |batch: usize, fixed: usize| match batch.next_multiple_of(fixed) {
            many if many <= BATCH_MAX => many,
            _ => fixed,
        };
        self.taggers().filter_map(Tagger::fixed_batch).fold(asked, whole)
    }

    /// Down to which length of the longer side pictures may be decoded for all of them.
    pub fn reduce_to(&self) -> Option<u32> {
        let wanted: Option<Vec<u32>> = self.taggers().map(Tagger::reduce_to).collect();
        wanted?.into_iter().max()
    }

    /// The picture as each member wants to see it.
    pub fn prepare(&self, decoded: &Decoded) -> Vec<RgbImage> {
        self.taggers().map(|tagger| tagger.prepare_decoded(decoded)).collect()
    }

    /// Adds what one member says of a picture to what the others have said.
    fn add(&self, member: &Member, said: ArrayView1<f32>, mut sum: ndarray::ArrayViewMut1<f32>) {
        let labels = member.tagger.labels().iter();
        for ((label, place), score) in labels.zip(&member.places).zip(said) {
            let sum = &mut sum[*place];
            match self.combine {
                Combine::Mean => *sum += score / self.knowing[*place],
                Combine::Max => *sum = sum.max(*score),
                Combine::Vote if member.tagger.thresholds().reached(label, *score) => {
                    *sum += 1.0 / self.knowing[*place];
                }
                Combine::Vote => {}
            }
        }
    }
}

impl Scorer for Ensemble {
    /// Of one member also the embeddings; those of several have nothing to do with each other.
    fn score(&self, prepared: &[&[RgbImage]]) -> Result<Scores> {
        let seen_by = |number: usize| prepared.iter().map(|images| &images[number]).collect::<Vec<_>>();
        if let [one] = self.members.as_slice() {
            return one.tagger.score_each(&seen_by(0));
        }
        let mut scores = Array2::zeros((prepared.len(), self.labels.len()));
        let mut have_scores = vec![true; prepared.len()];
        for (number, member) in self.members.iter().enumerate() {
            let said = member.tagger.score_each(&seen_by(number))?.scores;
            for ((said, sum), has_scores) in
                said.outer_iter().zip(scores.outer_iter_mut()).zip(&mut have_scores)
            {
                *has_scores &= is_finite(said);
                self.add(member, said, sum);
            }
        }
        // What one cannot score the others do not score either: their mean would be of other models than in the next row.
        for (mut row, _) in scores.outer_iter_mut().zip(have_scores).filter(|(_, has_scores)| !has_scores) {
            row.fill(f32::NAN);
        }
        Ok(Scores { scores, embeddings: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(names: &[(&str, Category)]) -> Vec<Label> {
        let label = |(name, category): &(&str, Category)| Label {
            tag_id: 0,
            name: (*name).to_owned(),
            category: category.clone(),
            threshold: None,
        };
        names.iter().map(label).collect()
    }

    #[test]
    fn a_tag_is_one_whatever_category_each_model_has_it_in() {
        use Category::{Character, Copyright, General, Meta, Rating};
        let first =
            labels(&[("sensitive", Rating), ("solo", General), ("fate", Copyright), ("highres", General)]);
        let second =
            labels(&[("highres", Meta), ("solo", General), ("sensitive", General), ("saber", Character)]);
        let joined = join([&first[..], &second].into_iter());
        let found: Vec<_> =
            joined.labels.iter().map(|label| (&*label.name, label.category.clone())).collect();
        let expected = [
            ("sensitive", Rating),
            ("solo", General),
            ("fate", Copyright),
            ("highres", General),
            ("sensitive", General),
            ("saber", Character),
        ];
        assert_eq!(found, expected, "the category is the first model's; a rating is no tag");
        assert_eq!(joined.places, [vec![0, 1, 2, 3], vec![3, 1, 4, 5]]);
        assert_eq!(joined.knowing, [1.0, 2.0, 1.0, 2.0, 1.0, 1.0]);
    }

    #[test]
    fn a_name_that_a_model_has_twice_is_two_tags() {
        use Category::{Character, Copyright, General};
        let twice = labels(&[("fate", General), ("fate", Copyright)]);
        let once = labels(&[("fate", Copyright)]);
        let other = labels(&[("fate", Character)]);
        let joined = join([&once[..], &twice, &other].into_iter());
        assert_eq!(joined.places, [vec![0], vec![1, 0], vec![0]]);
        assert_eq!(joined.knowing, [3.0, 1.0]);
    }
}
