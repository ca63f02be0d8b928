//! Several taggers as one: their scores, put together by the names of the tags.

use std::{collections::HashMap, fmt, str::FromStr};

use ndarray::{Array2, ArrayView1};
use serde::{Deserialize, Serialize};
use vodka_images::{Decoded, RgbImage};

use crate::{Error, Labels, Result, Scores, Tagger, pipeline::Scorer, results::BATCH_MAX};

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
    /// The labels of all are those of the first, then those that each further one adds.
    pub fn new(taggers: Vec<Tagger>, combine: Combine) -> Self {
        let mut labels = Vec::new();
        let mut place_of = HashMap::new();
        let mut knowing = Vec::new();
        let mut members = Vec::new();
        for tagger in taggers {
            let mut places = Vec::new();
            for label in tagger.labels().iter() {
                let place =
                    *place_of.entry((label.name.clone(), label.category.clone())).or_insert_with(|| {
                        labels.push(label.clone());
                        knowing.push(0.0);
                        labels.len() - 1
                    });
                knowing[place] += 1.0;
                places.push(place);
            }
            members.push(Member { tagger, places });
        }
        Self { members, combine, labels: Labels::from(labels), knowing }
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
            return one.tagger.score_with_embeddings(&seen_by(0));
        }
        let mut scores = Array2::zeros((prepared.len(), self.labels.len()));
        for (number, member) in self.members.iter().enumerate() {
            let said = member.tagger.score(&seen_by(number))?;
            for (said, sum) in said.outer_iter().zip(scores.outer_iter_mut()) {
                self.add(member, said, sum);
            }
        }
        Ok(Scores { scores, embeddings: None })
    }
}
