//! The arithmetic of curation, on plain values: which tags, and how a caption is put together.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{canonical, displayed};

/// Where tags go in a caption.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Position {
    /// Before the caption, where they act most strongly.
    #[default]
    Prepend,
    /// After the caption.
    Append,
    /// In place of the caption, of which nothing stays.
    Replace,
    /// Where the caption has the marker, which goes.
    Marker,
}

/// A tag of a picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TagScore {
    /// The tag's place in the vocabulary, from 0.
    pub tag: usize,
    /// The tagger's probability, 0 to 1.
    pub score: f32,
}

/// The places of the tags with the highest scores: at most `max_tags`, each of at least `min_score`, highest first;
/// equal scores in order of the vocabulary.
pub fn choose(scores: &[TagScore], max_tags: usize, min_score: f32) -> Vec<usize> {
    choose_by(scores, max_tags, |_| min_score)
}

/// As [`choose`], with a minimum score for each tag by its place in the vocabulary.
pub fn choose_by(scores: &[TagScore], max_tags: usize, min_score: impl Fn(usize) -> f32) -> Vec<usize> {
    let mut good: Vec<_> = scores.iter().filter(|tag| tag.score >= min_score(tag.tag)).collect();
    good.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.tag.cmp(&b.tag)));
    good.into_iter().take(max_tags).map(|tag| tag.tag).collect()
}

/// How a caption and tags are put together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joining<'a> {
    /// Where the tags go.
    pub position: Position,
    /// What is between them, and between them and the caption.
    pub separator: &'a str,
    /// What the caption has where the tags are to be, with [`Position::Marker`].
    pub marker: &'a str,
    /// Whether `(`, `)` and `\\` of tags get a `\\` before them, as A1111's and ComfyUI's prompts want it.
    pub escape: bool,
    /// What stands at the head of every caption, as it is spelled here: trigger words.
    pub fixed: &'a [String],
}

impl Default for Joining<'_> {
    fn default() -> Self {
        Self { position: Position::Prepend, separator: ", ", marker: MARKER, escape: false, fixed: &[] }
    }
}

/// The usual marker.
pub const MARKER: &str = "{tags}";

/// Puts tags, given by their canonical names, before or after a caption, separated by `, `.
///
/// A tag that is already one of the caption's comma-separated parts, in whatever case and with spaces or underscores,
/// is not said twice; so composing again with the same tags changes nothing.
pub fn compose(caption: &str, tags: &[impl AsRef<str>], position: Position) -> String {
    Joining { position, ..Joining::default() }.compose(caption, tags)
}

impl Joining<'_> {
    /// Puts tags, given by their canonical names, into a caption.
    ///
    /// What the caption says is not said twice: neither a tag nor a fixed one that is among its parts, in whatever case,
    /// with spaces or underscores, escaped or not. Parts are what commas (and the separator) separate: a tag within a
    /// longer part is another thing.
    pub fn compose(&self, caption: &str, tags: &[impl AsRef<str>]) -> String {
        let caption = caption.trim();
        let (fixed, tags) = self.news(caption, tags);
        let tags = tags.join(self.separator);
        let body = match self.position {
            Position::Prepend => self.join(&[&tags, caption]),
            Position::Append => self.join(&[caption, &tags]),
            Position::Replace => tags,
            Position::Marker => fill(caption, self.marker, &tags),
        };
        self.join(&[&fixed.join(self.separator), &body])
    }

    /// Of the fixed tags and of the tags, as they are shown, those that the caption does not say yet.
    pub fn news(&self, caption: &str, tags: &[impl AsRef<str>]) -> (Vec<String>, Vec<String>) {
        let mut said = self.said(caption);
        let fixed = self.fixed.iter().map(|tag| tag.trim().to_owned());
        let fixed = fixed.filter(|tag| said.insert(canonical(tag))).collect();
        let shown = tags.iter().map(|tag| displayed(tag.as_ref()).trim().to_owned());
        let tags = shown.filter(|tag| said.insert(canonical(tag))).map(|tag| self.shown(tag)).collect();
        (fixed, tags)
    }

    /// A displayed tag as prompts want it.
    pub fn shown(&self, displayed: String) -> String {
        if !self.escape {
            return displayed;
        }
        let escaped = displayed.chars().flat_map(|c| {
            let before = matches!(c, '(' | ')' | '\\').then_some('\\');
            before.into_iter().chain([c])
        });
        escaped.collect()
    }

    /// The canonical names of what the caption says, also of what it says with escapes; and of nothing.
    fn said(&self, caption: &str) -> BTreeSet<String> {
        let caption = match self.position {
            Position::Replace => String::new(),
            Position::Marker => caption.replace(self.marker, ","),
            Position::Prepend | Position::Append => caption.to_owned(),
        };
        let separator = Some(self.separator.trim()).filter(|separator| !separator.is_empty()).unwrap_or(",");
        said(caption.split(',').flat_map(|part| part.split(separator)))
    }

    fn join(&self, parts: &[&str]) -> String {
        let there: Vec<_> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
        there.join(self.separator)
    }
}

/// The canonical names of a caption's parts, also of what they say with escapes; and of nothing.
pub(crate) fn said<'c>(parts: impl Iterator<Item = &'c str>) -> BTreeSet<String> {
    let mut said = BTreeSet::from([String::new()]);
    for part in parts {
        said.insert(canonical(part));
        if part.contains('\\') {
            said.insert(canonical(&unescaped(part)));
        }
    }
    said
}

/// A prompt's part without the `\\` before brackets and before itself.
fn unescaped(part: &str) -> String {
    part.replace("\\(", "(").replace("\\)", ")").replace("\\\\", "\\")
}

/// The caption with the marker's place taken by the tags; without tags a comma goes with the marker.
fn fill(caption: &str, marker: &str, tags: &str) -> String {
    let Some((before, after)) = caption.split_once(marker) else { return caption.to_owned() };
    if !tags.is_empty() {
        return format!("{before}{tags}{after}");
    }
    let (before, after) = (before.trim_end(), after.trim_start());
    let before = match before.strip_suffix(',') {
        Some(shorter) if after.is_empty() || after.starts_with(',') => shorter,
        _ => before,
    };
    let after = if before.is_empty() { after.trim_start_matches([',', ' ']) } else { after };
    let space = if before.is_empty() || after.is_empty() || after.starts_with(',') { "" } else { " " };
    format!("{before}{space}{after}")
}

/// The places of the most frequent tags that together cover at least the share `coverage` of all occurrences, most
/// frequent first; equal counts in the order given. The fewest that suffice: none for a share of 0.
pub fn head(counts: &[u64], coverage: f64) -> Vec<usize> {
    let mut order: Vec<_> = (0..counts.len()).collect();
    order.sort_by_key(|place| std::cmp::Reverse(counts[*place]));
    let count = |place: usize| u128::from(counts[place]);
    let wanted = coverage * (0..counts.len()).map(count).sum::<u128>() as f64;
    let mut before = 0;
    order.retain(|place| {
        let needed = (before as f64) < wanted;
        before += count(*place);
        needed
    });
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scores(values: &[f32]) -> Vec<TagScore> {
        values.iter().enumerate().map(|(tag, score)| TagScore { tag, score: *score }).collect()
    }

    #[test]
    fn the_best_tags_come_first_and_the_vocabulary_breaks_ties() {
        let scores = scores(&[0.3, 0.5, 0.299_999, 0.9, 0.5]);
        assert_eq!(choose(&scores, 3, 0.3), [3, 1, 4]);
        assert_eq!(choose(&scores, 9, 0.3), [3, 1, 4, 0], "a score equal to the minimum counts");
        assert!(choose(&scores, 0, 0.3).is_empty());
    }

    #[test]
    fn a_tag_is_not_said_twice() {
        let tags = ["blurry_background", "solo", "solo"];
        let compose = |caption| compose(caption, &tags, Position::Prepend);
        assert_eq!(compose("a heart"), "blurry background, solo, a heart");
        assert_eq!(compose("a heart, Blurry Background"), "solo, a heart, Blurry Background");
        assert_eq!(compose("a solo heart"), "blurry background, solo, a solo heart", "parts, not substrings");
        assert_eq!(compose("  "), "blurry background, solo");
        assert_eq!(super::compose("a heart", &tags[1..], Position::Append), "a heart, solo");
        assert_eq!(super::compose("a heart", &[""; 0], Position::Append), "a heart");
    }

    #[test]
    fn tags_go_where_they_are_wanted() {
        let tags = ["blurry_background", "solo"];
        let compose = |caption: &str, joining: Joining| joining.compose(caption, &tags);
        let at = |position| Joining { position, ..Joining::default() };
        assert_eq!(compose("a heart, solo", at(Position::Replace)), "blurry background, solo");
        let marker = || at(Position::Marker);
        assert_eq!(compose("a heart, {tags}, in red", marker()), "a heart, blurry background, solo, in red");
        assert_eq!(compose("a heart, {tags}, solo", marker()), "a heart, blurry background, solo");
        let none = |caption: &str| marker().compose(caption, &[""; 0]);
        assert_eq!(none("a heart, {tags}, in red"), "a heart, in red");
        assert_eq!(none("{tags}, a heart"), "a heart");
        assert_eq!(none("a heart, {tags}"), "a heart");
        assert_eq!(none("a {tags} heart"), "a heart");
        assert_eq!(none("{tags}"), "");
        let bars = Joining { separator: " | ", position: Position::Append, ..Joining::default() };
        assert_eq!(compose("a heart | solo", bars), "a heart | solo | blurry background");
    }

    #[test]
    fn fixed_tags_come_first_as_they_are_spelled() {
        let fixed = ["sks_Style".to_owned(), "photo".to_owned()];
        for (position, expected) in [
            (Position::Prepend, "sks_Style, solo, a photo, Photo"),
            (Position::Append, "sks_Style, a photo, Photo, solo"),
            (Position::Replace, "sks_Style, photo, solo"),
        ] {
            let joining = Joining { position, fixed: &fixed, ..Joining::default() };
            assert_eq!(joining.compose("a photo, Photo", &["solo", "photo"]), expected);
        }
    }

    #[test]
    fn brackets_are_escaped_and_known_again() {
        let escape = Joining { escape: true, ..Joining::default() };
        let tags = ["poster_(object)", ";)", r"\m/"];
        let once = escape.compose("a heart", &tags);
        assert_eq!(once, r"poster \(object\), ;\), \\m/, a heart");
        assert_eq!(escape.compose(&once, &tags), once);
        assert_eq!(compose(&once, &tags, Position::Prepend), once, "also without escaping");
    }

    #[test]
    fn the_head_is_the_fewest_tags_that_cover_the_share() {
        let counts = [10, 40, 20, 20, 10];
        assert_eq!(head(&counts, 0.0), [0; 0]);
        assert_eq!(head(&counts, 0.4), [1]);
        assert_eq!(head(&counts, 0.41), [1, 2]);
        assert_eq!(head(&counts, 0.8), [1, 2, 3]);
        assert_eq!(head(&counts, 1.0), [1, 2, 3, 0, 4]);
        assert_eq!(head(&[5, 0], 1.0), [0]);
        assert_eq!(head(&[u64::MAX, u64::MAX, 1], 0.5), [0], "counts may be as large as they like");
    }

    /// Names as vocabularies have them: anything but white space and commas, and not underscores alone.
    fn name() -> impl Strategy<Value = String> {
        "[a-z0-9_()'\"\\\\/;:^<>|@=+.~!?é-]{0,11}[a-z;)^]".prop_map(|name| canonical(&name))
    }

    fn position() -> impl Strategy<Value = Position> {
        prop_oneof![Just(Position::Prepend), Just(Position::Append)]
    }

    proptest! {
        #[test]
        fn composing_twice_is_composing_once(
            caption in "[a-zA-Z_ ,;é\"]{0,40}",
            tags in prop::collection::vec(name(), 0..5),
            position in position(),
        ) {
            let once = compose(&caption, &tags, position);
            prop_assert_eq!(&compose(&once, &tags, position), &once);
        }

        #[test]
        fn a_caption_stays_whole_and_its_tags_can_be_read_back(
            caption in "[a-z ]{0,20}[a-z]",
            tags in prop::collection::btree_set(name(), 0..5),
            position in position(),
        ) {
            let tags: BTreeSet<_> = tags.iter().map(|tag| canonical(&displayed(tag))).collect();
            let tags: Vec<_> = tags.into_iter().filter(|tag| !tag.is_empty() && *tag != canonical(&caption)).collect();
            let text = compose(&caption, &tags, position);
            let mut parts: Vec<_> = text.split(", ").collect();
            let at = if position == Position::Prepend { parts.len() - 1 } else { 0 };
            prop_assert_eq!(parts.remove(at), caption.trim());
            let read: Vec<_> = parts.into_iter().map(canonical).collect();
            prop_assert_eq!(read, tags);
        }

        #[test]
        fn a_head_covers_the_share_and_its_last_tag_is_needed(
            counts in prop::collection::vec(0_u64..1000, 1..40),
            coverage in 0.0..1.0_f64,
        ) {
            let chosen = head(&counts, coverage);
            let sum = |places: &[usize]| places.iter().map(|place| counts[*place]).sum::<u64>() as f64;
            let wanted = coverage * counts.iter().sum::<u64>() as f64;
            prop_assert!(sum(&chosen) >= wanted);
            if let Some((_, shorter)) = chosen.split_last() {
                prop_assert!(sum(shorter) < wanted);
            }
        }
    }
}
