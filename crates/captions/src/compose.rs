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
    let mut good: Vec<_> = scores.iter().filter(|tag| tag.score >= min_score).collect();
    good.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.tag.cmp(&b.tag)));
    good.into_iter().take(max_tags).map(|tag| tag.tag).collect()
}

/// Puts tags, given by their canonical names, before or after a caption, separated by `, `.
///
/// A tag that is already one of the caption's comma-separated parts, in whatever case and with spaces or underscores,
/// is not said twice; so composing again with the same tags changes nothing.
pub fn compose(caption: &str, tags: &[impl AsRef<str>], position: Position) -> String {
    let caption = caption.trim();
    let mut said: BTreeSet<_> = caption.split(',').map(canonical).collect();
    let mut parts = Vec::new();
    for tag in tags {
        let shown = displayed(tag.as_ref());
        if said.insert(canonical(&shown)) {
            parts.push(shown.trim().to_owned());
        }
    }
    if !caption.is_empty() {
        let at = if position == Position::Prepend { parts.len() } else { 0 };
        parts.insert(at, caption.to_owned());
    }
    parts.join(", ")
}

/// The places of the most frequent tags that together cover at least the share `coverage` of all occurrences, most
/// frequent first; equal counts in the order given. The fewest that suffice: none for a share of 0.
pub fn head(counts: &[u64], coverage: f64) -> Vec<usize> {
    let mut order: Vec<_> = (0..counts.len()).collect();
    order.sort_by_key(|place| std::cmp::Reverse(counts[*place]));
    let wanted = coverage * counts.iter().sum::<u64>() as f64;
    let mut before = 0;
    order.retain(|place| {
        let needed = (before as f64) < wanted;
        before += counts[*place];
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
    fn the_head_is_the_fewest_tags_that_cover_the_share() {
        let counts = [10, 40, 20, 20, 10];
        assert_eq!(head(&counts, 0.0), [0; 0]);
        assert_eq!(head(&counts, 0.4), [1]);
        assert_eq!(head(&counts, 0.41), [1, 2]);
        assert_eq!(head(&counts, 0.8), [1, 2, 3]);
        assert_eq!(head(&counts, 1.0), [1, 2, 3, 0, 4]);
        assert_eq!(head(&[5, 0], 1.0), [0]);
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
