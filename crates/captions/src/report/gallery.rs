//! Which pictures a report shows for a tag: a few from each bucket of scores.

use std::collections::BTreeMap;

use crate::TagScore;

/// The buckets of a gallery and the bars of a histogram, each of 5 %.
pub(super) const BUCKETS: usize = 20;

/// A picture with its score for a tag.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scored<'a> {
    /// The picture's name in the tag table.
    pub(super) image: &'a str,
    /// 0 to 1.
    pub(super) score: f32,
}

/// The pictures of a tag whose scores lie in a bucket.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Bucket<'a> {
    /// Which of the [`BUCKETS`].
    pub(super) place: usize,
    /// How many pictures there are.
    pub(super) images: usize,
    /// Those that are shown, the highest score first.
    pub(super) shown: Vec<Scored<'a>>,
}

/// The lower bound of a bucket, or the upper one of that before it.
pub(super) fn bound(place: usize) -> f32 {
    place as f32 / BUCKETS as f32
}

/// The bucket of a score: it holds its lower bound, and the last one 1 as well.
pub(super) fn bucket_of(score: f32) -> usize {
    (1..BUCKETS).rev().find(|place| score >= bound(*place)).unwrap_or(0)
}

/// For each of `tags` tags its scores, in order of the pictures' names.
pub(super) fn by_tag(scores: &BTreeMap<String, Vec<TagScore>>, tags: usize) -> Vec<Vec<Scored<'_>>> {
    let mut by_tag = vec![Vec::new(); tags];
    for (image, found) in scores {
        for TagScore { tag, score } in found {
            by_tag[*tag].push(Scored { image, score: *score });
        }
    }
    by_tag
}

/// The buckets of a tag that are not empty, the highest first, with at most `shown` pictures of each.
///
/// Within a bucket they are taken at equal steps from the highest score to the lowest, so that the same table always
/// shows the same pictures, and pictures of one series, which stand side by side in the table, do not crowd out others.
pub(super) fn buckets<'a>(scores: &[Scored<'a>], shown: usize) -> Vec<Bucket<'a>> {
    let mut inside = vec![Vec::new(); BUCKETS];
    for scored in scores {
        inside[bucket_of(scored.score)].push(*scored);
    }
    let mut buckets = Vec::new();
    for (place, mut inside) in inside.into_iter().enumerate().rev() {
        if !inside.is_empty() {
            // Stable: equal scores stay in order of the names.
            inside.sort_by(|a, b| b.score.total_cmp(&a.score));
            buckets.push(Bucket { place, images: inside.len(), shown: spread(&inside, shown) });
        }
    }
    buckets
}

/// At most `n` of the items, at equal steps, with the first and the last.
fn spread<T: Copy>(items: &[T], n: usize) -> Vec<T> {
    match (items.len(), n) {
        (len, n) if len <= n => items.to_vec(),
        (len, 1) => vec![items[len / 2]],
        (len, n) => (0..n).map(|i| items[i * (len - 1) / (n - 1)]).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_its_lower_bound() {
        for place in 0..BUCKETS {
            assert_eq!(bucket_of(bound(place)), place);
            assert_eq!(bucket_of(bound(place + 1).next_down()), place);
        }
        assert_eq!([0.35, 0.399_99, 0.95, 1.0].map(bucket_of), [7, 7, 19, 19]);
    }

    #[test]
    fn pictures_are_spread_over_a_bucket() {
        let names: Vec<_> = (0..100).map(|i| format!("{i:03}.png")).collect();
        let scores: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(i, image)| Scored { image, score: 0.9 + i as f32 / 1e4 })
            .collect();
        let found = buckets(&scores, 4);
        assert_eq!((found.len(), found[0].place, found[0].images), (1, 18, 100));
        let shown: Vec<_> = found[0].shown.iter().map(|scored| scored.image).collect();
        assert_eq!(shown, ["099.png", "066.png", "033.png", "000.png"]);
        assert_eq!(buckets(&scores, 1)[0].shown[0].image, "049.png");
        assert!(buckets(&scores, 0)[0].shown.is_empty());
        assert_eq!(buckets(&scores[..3], 4)[0].shown.len(), 3);
        assert_eq!(buckets(&[], 4), []);
    }
}
