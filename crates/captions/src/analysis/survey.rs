//! One pass over a tag table, in which everything is gathered that an analysis is made of.

use std::collections::{BTreeMap, HashMap};

use polars::prelude::PlHashSet;

use super::{CoOccurrence, LengthEffect, Settings, labels::Labels, lengths::Lengths};
use crate::table::{Scored, Sharpness, Visitor};

/// What the pass looks up.
pub(super) struct Wanted<'a> {
    /// The selected tags, by canonical name.
    pub(super) selection: &'a [String],
    pub(super) settings: &'a Settings,
    /// The pictures that count, with their captions; without it all count.
    pub(super) captions: Option<&'a BTreeMap<String, String>>,
    pub(super) sharpness: Option<&'a Sharpness>,
    pub(super) labels: &'a Labels,
}

/// What the pass has found.
pub(super) struct Survey<'a> {
    wanted: &'a Wanted<'a>,
    /// The place of each selected tag.
    places: HashMap<&'a str, u32>,
    /// By number of the tag in the table.
    tags: Vec<Tag>,
    pub(super) tagged: u64,
    pub(super) rows: u64,
    pub(super) lowest_score: f32,
    /// A picture of the table, the first in order of name.
    pub(super) example: Option<String>,
    /// How many pictures of the table do not count.
    pub(super) absent: u64,
    /// By place: whether the table has the tag, and the scores of all pictures.
    pub(super) is_there: Vec<bool>,
    pub(super) scores: Vec<Vec<f32>>,
    /// By group: its tags, and the highest score of each picture that has one.
    pub(super) group_tags: Vec<Vec<String>>,
    pub(super) group_scores: Vec<Vec<f32>>,
    /// How often two places come together, by the lower one and the higher one.
    pairs: Vec<u64>,
    lengths: Lengths,
    /// Score and sharpness of each picture.
    pub(super) sharpness: Vec<(f32, f32)>,
    /// Where the next one's sharpness should be.
    cursor: u32,
    /// By place: score and judgement.
    pub(super) judged: Vec<Vec<(Option<f32>, bool)>>,
    /// The judged pictures that the table names.
    pub(super) judged_images: u64,
    /// The pictures that the table names, where captions of the others are to be measured too.
    seen: PlHashSet<&'a str>,
    scratch: Scratch,
}

/// What a tag of the table is to the analysis.
struct Tag {
    place: Option<u32>,
    groups: Vec<u32>,
    tells_sharpness: bool,
}

/// The picture in hand.
#[derive(Default)]
struct Scratch {
    /// Places and scores of its selected tags.
    selected: Vec<(u32, f32)>,
    /// By group, the highest score; negative where there is none.
    groups: Vec<f32>,
    /// Places of the tags that come together.
    together: Vec<u32>,
}

impl<'a> Survey<'a> {
    pub(super) fn new(wanted: &'a Wanted<'a>) -> Self {
        let (settings, tags) = (wanted.settings, wanted.selection.len());
        let groups = settings.groups.len();
        let together = settings.cooccurrence_max.min(tags);
        Self {
            wanted,
            places: wanted.selection.iter().map(String::as_str).zip(0..).collect(),
            tags: Vec::new(),
            tagged: 0,
            rows: 0,
            lowest_score: f32::INFINITY,
            example: None,
            absent: 0,
            is_there: vec![false; tags],
            scores: vec![Vec::new(); tags],
            group_tags: vec![Vec::new(); groups],
            group_scores: vec![Vec::new(); groups],
            pairs: vec![0; together * together],
            lengths: Lengths::new(wanted.selection, &settings.thresholds, &settings.max_tags),
            sharpness: Vec::new(),
            cursor: 0,
            judged: vec![Vec::new(); tags],
            judged_images: 0,
            seen: PlHashSet::default(),
            scratch: Scratch { groups: vec![-1.0; groups], ..Scratch::default() },
        }
    }

    /// Measures the captions of pictures that the table does not name, too.
    pub(super) fn lengths(&mut self) -> Vec<LengthEffect> {
        for (image, caption) in self.wanted.captions.into_iter().flatten() {
            if !self.seen.contains(image.as_str()) {
                self.lengths.add(caption, [].into_iter());
            }
        }
        self.lengths.finish()
    }

    pub(super) fn cooccurrence(&self) -> CoOccurrence {
        let tags = self.together();
        let count = |a: usize, b: usize| self.pairs[a.min(b) * tags + a.max(b)];
        CoOccurrence {
            tags: self.wanted.selection[..tags].to_vec(),
            min_score: self.wanted.settings.min_score,
            counts: (0..tags).map(|a| (0..tags).map(|b| count(a, b)).collect()).collect(),
        }
    }

    /// How many tags, from the first, are counted together.
    fn together(&self) -> usize {
        self.pairs.len().isqrt()
    }

    fn count_pairs(&mut self) {
        let tags = self.together();
        let min_score = self.wanted.settings.min_score;
        let together = &mut self.scratch.together;
        together.clear();
        let good = self
            .scratch
            .selected
            .iter()
            .filter(|(place, score)| (*place as usize) < tags && *score >= min_score);
        together.extend(good.map(|(place, _)| *place));
        together.sort_unstable();
        for (k, a) in together.iter().enumerate() {
            let row = *a as usize * tags;
            together[k..].iter().for_each(|b| self.pairs[row + *b as usize] += 1);
        }
    }

    fn judge(&mut self, image: &str) {
        let Some(judged) = self.wanted.labels.0.get(image) else { return };
        self.judged_images += 1;
        for (tag, has_tag) in judged {
            let Some(place) = self.places.get(tag.as_str()) else { continue };
            let score =
                self.scratch.selected.iter().find(|(other, _)| other == place).map(|(_, score)| *score);
            self.judged[*place as usize].push((score, *has_tag));
        }
    }

    /// The caption of a picture; none where it does not count.
    fn caption(&mut self, image: &str) -> Option<&'a str> {
        let Some(captions) = self.wanted.captions else { return Some("") };
        let (image, caption) = captions.get_key_value(image)?;
        self.seen.insert(image);
        Some(caption)
    }
}

impl Visitor for Survey<'_> {
    fn tag(&mut self, tag: &str) -> bool {
        let Settings { groups, sharpness_tag, .. } = self.wanted.settings;
        let place = self.places.get(tag).copied();
        let of = (0..).zip(groups).filter(|(_, word)| has_word(tag, word)).map(|(group, _)| group);
        let found = Tag { place, groups: of.collect(), tells_sharpness: tag == sharpness_tag };
        if let Some(place) = place {
            self.is_there[place as usize] = true;
        }
        found.groups.iter().for_each(|group| self.group_tags[*group as usize].push(tag.to_owned()));
        let is_wanted = place.is_some() || !found.groups.is_empty() || found.tells_sharpness;
        self.tags.push(found);
        is_wanted
    }

    fn picture(&mut self, picture: &Scored<'_>) {
        if self.example.as_deref().is_none_or(|example| picture.image < example) {
            self.example = Some(picture.image.to_owned());
        }
        let Some(caption) = self.caption(picture.image) else {
            self.absent += 1;
            return;
        };
        self.tagged += 1;
        self.rows += picture.rows;
        self.lowest_score = self.lowest_score.min(picture.lowest);
        self.scratch.selected.clear();
        // Who has no score has one below the floor.
        let mut tells_sharpness = 0.0;
        for (tag, score) in picture.scores {
            let tag = &self.tags[*tag as usize];
            if let Some(place) = tag.place {
                self.scratch.selected.push((place, *score));
                self.scores[place as usize].push(*score);
            }
            for group in &tag.groups {
                let best = &mut self.scratch.groups[*group as usize];
                *best = best.max(*score);
            }
            if tag.tells_sharpness {
                tells_sharpness = *score;
            }
        }
        for (best, scores) in self.scratch.groups.iter_mut().zip(&mut self.group_scores) {
            if *best >= 0.0 {
                scores.push(*best);
            }
            *best = -1.0;
        }
        if let Some(table) = self.wanted.sharpness
            && let Some(sharpness) = table.of(picture.image, &mut self.cursor)
        {
            self.sharpness.push((tells_sharpness, sharpness));
        }
        self.count_pairs();
        self.lengths.add(caption, self.scratch.selected.iter().copied());
        self.judge(picture.image);
    }

    fn absorb(&mut self, other: Self) {
        let both = |ours: &mut Vec<Vec<f32>>, theirs: Vec<Vec<f32>>| {
            ours.iter_mut().zip(theirs).for_each(|(ours, mut theirs)| ours.append(&mut theirs));
        };
        self.tagged += other.tagged;
        self.rows += other.rows;
        self.lowest_score = self.lowest_score.min(other.lowest_score);
        self.example = self.example.take().into_iter().chain(other.example).min();
        self.absent += other.absent;
        both(&mut self.scores, other.scores);
        both(&mut self.group_scores, other.group_scores);
        self.pairs.iter_mut().zip(other.pairs).for_each(|(ours, theirs)| *ours += theirs);
        self.lengths.absorb(&other.lengths);
        self.sharpness.extend(other.sharpness);
        self.judged.iter_mut().zip(other.judged).for_each(|(ours, theirs)| ours.extend(theirs));
        self.judged_images += other.judged_images;
        self.seen.extend(other.seen);
    }
}

/// Whether a canonical name has a word, or several in a row, between its underscores.
pub(crate) fn has_word(tag: &str, word: &str) -> bool {
    format!("_{tag}_").contains(&format!("_{word}_"))
}
