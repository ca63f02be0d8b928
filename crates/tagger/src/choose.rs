//! From scores to tags: thresholds, and the cut that looks at the scores themselves.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Deref,
    path::Path,
};

use crate::{Category, Description, Label, Labels};

/// A tag of a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Tag {
    /// The canonical name, with underscores.
    pub name: String,
    /// What kind of thing it says.
    pub category: Category,
    /// How sure the model is, 0 to 1.
    pub score: f32,
}

/// The tags of a picture, the surest first, ties in order of the vocabulary. Ratings are not among them: see
/// [`Tags::ratings`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tags {
    tags: Vec<Tag>,
    ratings: Vec<Tag>,
}

impl Tags {
    /// The rating with the highest score; `None` for models without ratings.
    pub fn rating(&self) -> Option<&Tag> {
        self.ratings.first()
    }

    /// All ratings, the surest first. No threshold applies to them.
    pub fn ratings(&self) -> &[Tag] {
        &self.ratings
    }

    /// The tags of one category.
    pub fn of(&self, category: Category) -> impl Iterator<Item = &Tag> {
        self.tags.iter().filter(move |tag| tag.category == category)
    }
}

impl Deref for Tags {
    type Target = [Tag];

    fn deref(&self) -> &[Tag] {
        &self.tags
    }
}

impl IntoIterator for Tags {
    type Item = Tag;
    type IntoIter = std::vec::IntoIter<Tag>;

    fn into_iter(self) -> Self::IntoIter {
        self.tags.into_iter()
    }
}

/// From which score on the tags of a category count.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Threshold {
    /// From this score on. Above 1 no tag of the category counts.
    At(f32),
    /// From the middle of the largest gap between neighbouring scores of the category on, see [`mcut`].
    MCut {
        /// But from no lower score than this.
        floor: f32,
    },
}

/// From which score on tags count: for a tag by name, else for its category, else by what the tagger's authors say.
#[derive(Debug, Clone, PartialEq)]
pub struct Thresholds {
    /// For tags by name.
    pub tags: HashMap<String, f32>,
    /// For categories.
    pub categories: BTreeMap<Category, Threshold>,
    /// Whether the thresholds in the file of labels go before those below.
    pub per_tag: bool,
    /// For categories that nothing above speaks of.
    pub defaults: BTreeMap<Category, f32>,
    /// For what is left.
    pub default: f32,
    /// Whether a score equal to the threshold counts.
    pub inclusive: bool,
}

impl Thresholds {
    /// One threshold for all tags; a score equal to it does not count.
    pub fn at(threshold: f32) -> Self {
        Self {
            tags: HashMap::new(),
            categories: BTreeMap::new(),
            per_tag: false,
            defaults: BTreeMap::new(),
            default: threshold,
            inclusive: false,
        }
    }

    /// What the authors of a tagger say. The path of the model's folder may name a model for which they say more.
    pub fn of(description: &Description, folder: &Path) -> Self {
        let rules = &description.thresholds;
        let mut defaults = rules.categories.clone();
        if let Some((_, threshold)) = rules.of_model(folder) {
            defaults.insert(Category::General, threshold);
        }
        Self { per_tag: rules.per_tag, defaults, inclusive: rules.inclusive, ..Self::at(rules.default) }
    }

    /// The same but for one category.
    #[must_use]
    pub fn with(mut self, category: Category, threshold: Threshold) -> Self {
        self.categories.insert(category, threshold);
        self
    }

    /// The same but for one tag.
    #[must_use]
    pub fn with_tag(mut self, name: impl Into<String>, threshold: f32) -> Self {
        self.tags.insert(name.into(), threshold);
        self
    }

    /// The same but for the cut in both of the categories for which the authors' demo offers it: general tags from
    /// `floor` on (the demo has none; 0 is as the demo), characters from 0.15 on.
    #[must_use]
    pub fn with_mcut(self, floor: f32) -> Self {
        self.with(Category::General, Threshold::MCut { floor })
            .with(Category::Character, Threshold::MCut { floor: 0.15 })
    }

    /// The tags that count.
    ///
    /// # Panics
    /// When there are not as many scores as labels.
    pub fn choose(&self, labels: &Labels, scores: &[f32]) -> Tags {
        assert_eq!(labels.len(), scores.len(), "there is a score for each label");
        let cuts = self.cuts(labels, scores);
        let scored = || labels.iter().zip(scores.iter().copied());
        let counts = |label: &Label, score: f32| self.counts(label, score, &cuts);
        let is_rating = |label: &Label| label.category == Category::Rating;
        Tags {
            tags: ordered(scored().filter(|(label, score)| !is_rating(label) && counts(label, *score))),
            ratings: ordered(scored().filter(|(label, _)| is_rating(label))),
        }
    }

    /// Whether this score of a tag reaches the tag's own threshold or its author's.
    pub(crate) fn reached(&self, label: &Label, score: f32) -> bool {
        self.counts(label, score, &BTreeMap::new())
    }

    fn counts(&self, label: &Label, score: f32, cuts: &BTreeMap<&Category, f32>) -> bool {
        let threshold = self.of_label(label, cuts);
        score > threshold || self.inclusive && score == threshold
    }

    /// The thresholds of the categories that were asked for.
    fn cuts(&self, labels: &Labels, scores: &[f32]) -> BTreeMap<&Category, f32> {
        let of = |category: &Category| -> Vec<f32> {
            let all = labels.iter().zip(scores);
            all.filter(|(label, _)| label.category == *category).map(|(_, score)| *score).collect()
        };
        let cut = |category, threshold: &Threshold| match *threshold {
            Threshold::At(at) => at,
            Threshold::MCut { floor } => mcut(&of(category)).map_or(floor, |cut| cut.max(floor)),
        };
        self.categories.iter().map(|(category, threshold)| (category, cut(category, threshold))).collect()
    }

    fn of_label(&self, label: &Label, cuts: &BTreeMap<&Category, f32>) -> f32 {
        let asked = self.tags.get(&label.name).or_else(|| cuts.get(&label.category)).copied();
        let own = label.threshold.filter(|_| self.per_tag);
        let default = self.defaults.get(&label.category).copied();
        asked.or(own).or(default).unwrap_or(self.default)
    }
}

fn ordered<'a>(tags: impl Iterator<Item = (&'a Label, f32)>) -> Vec<Tag> {
    let tag = |(label, score): (&Label, f32)| Tag {
        name: label.name.clone(),
        category: label.category.clone(),
        score,
    };
    let mut tags: Vec<_> = tags.map(tag).collect();
    // A stable sort, so that ties stay in order.
    tags.sort_by(|a, b| b.score.total_cmp(&a.score));
    tags
}

/// The maximum cut threshold: the middle of the two neighbouring scores that lie furthest apart, the highest two where
/// several pairs do. `None` for fewer than two scores, which have no gap. (Largeron, Moulin, Géry 2012: "MCut: a
/// thresholding strategy for multi-label classification".)
pub fn mcut(scores: &[f32]) -> Option<f32> {
    let mut scores = scores.to_vec();
    scores.sort_by(|a, b| b.total_cmp(a));
    let gap = |pair: &[f32]| pair[0] - pair[1];
    let pairs = scores.windows(2);
    let widest = pairs.reduce(|best, pair| if gap(pair) > gap(best) { pair } else { best })?;
    Some((widest[0] + widest[1]) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LabelFile, LabelKind};

    fn labels() -> Labels {
        let text = "name,category,best_threshold\ngeneral,9,\nexplicit,9,\na,0,0.5\nb,0,\nc,0,\nx,4,\ny,4,0.9\nz,5,\n";
        Labels::parse(text.as_bytes(), &LabelFile::new("l", LabelKind::Csv), Path::new("l")).unwrap()
    }

    const SCORES: [f32; 8] = [0.1, 0.8, 0.4, 0.4, 0.7, 0.85, 0.86, 0.2];

    fn chosen(thresholds: &Thresholds) -> Vec<String> {
        thresholds.choose(&labels(), &SCORES).iter().map(|tag| tag.name.clone()).collect()
    }

    #[test]
    fn the_most_particular_threshold_counts() {
        let all = Thresholds::at(0.3);
        assert_eq!(chosen(&all), ["y", "x", "c", "a", "b"]);
        assert_eq!(chosen(&Thresholds { per_tag: true, ..all.clone() }), ["x", "c", "b"]);
        let category = all.clone().with(Category::Character, Threshold::At(0.855));
        assert_eq!(chosen(&category), ["y", "c", "a", "b"]);
        assert_eq!(chosen(&category.clone().with_tag("x", 0.1).with_tag("b", 1.1)), ["y", "x", "c", "a"]);
        // What is asked for goes before what the file says, and that before the family's defaults.
        assert_eq!(chosen(&Thresholds { per_tag: true, ..category }), ["y", "c", "b"]);
        let defaults = [(Category::General, 0.1), (Category::Meta, 0.1)].into();
        assert_eq!(chosen(&Thresholds { defaults, per_tag: true, ..all }), ["x", "c", "b", "z"]);
    }

    #[test]
    fn equal_scores_count_where_the_family_says_so() {
        let exclusive = Thresholds::at(0.4);
        assert_eq!(chosen(&exclusive), ["y", "x", "c"]);
        assert_eq!(chosen(&Thresholds { inclusive: true, ..exclusive }), ["y", "x", "c", "a", "b"]);
    }

    #[test]
    fn ratings_stand_apart() {
        let tags = Thresholds::at(0.9).choose(&labels(), &SCORES);
        assert_eq!(tags.rating().map(|tag| tag.name.as_str()), Some("explicit"));
        assert_eq!(tags.ratings().len(), 2);
        assert!(tags.is_empty());
        let tags = Thresholds::at(0.0).choose(&labels(), &SCORES);
        assert_eq!(tags.of(Category::Character).count(), 2);
    }

    #[test]
    fn the_cut_has_its_floors() {
        let thresholds = Thresholds::at(0.35);
        // General scores 0.7, 0.4, 0.4: cut at 0.55. Characters 0.86, 0.85: cut between them.
        assert_eq!(chosen(&thresholds.clone().with_mcut(0.0)), ["y", "c"]);
        assert_eq!(chosen(&thresholds.with_mcut(0.75)), ["y"]);
        let low = labels();
        let scores = [0.0, 0.0, 0.02, 0.019, 0.001, 0.1, 0.01, 0.0];
        let cut = |floor| Thresholds::at(0.35).with_mcut(floor).choose(&low, &scores).len();
        assert_eq!((cut(0.0), cut(0.35)), (2, 0));
    }

    #[test]
    fn the_cut_is_the_middle_of_the_first_widest_gap() {
        assert_eq!(mcut(&[0.2, 0.9, 0.8]), Some(0.5));
        assert_eq!(mcut(&[0.75, 0.5, 0.25]), Some(0.625));
        assert_eq!(mcut(&[0.02, 0.019, 0.0185, 0.001]), Some(0.00975));
        assert_eq!((mcut(&[]), mcut(&[0.5])), (None, None));
    }
}
