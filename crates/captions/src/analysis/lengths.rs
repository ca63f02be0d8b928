//! How long captions get: CLIP tokens by the most tags and the lowest score.

use vodka_prompt::{MAX_TOKENS, token_count};

use super::LengthEffect;
use crate::{canonical, compose::said, displayed};

/// What a tag adds to a caption.
struct Cost {
    /// As a part of a caption: for telling whether the caption says it already.
    said_as: String,
    /// Tokens with the comma that follows.
    with_comma: usize,
    /// Tokens at the caption's end.
    at_end: usize,
}

/// The captions so far, by setting.
pub(super) struct Lengths {
    costs: Vec<Cost>,
    /// Ascending.
    min_scores: Vec<f32>,
    max_tags: Vec<usize>,
    /// By minimum score, then by most tags: the captions that have a tag at this score.
    sums: Vec<Sum>,
    /// By minimum score: the captions that have none from this one on.
    bare: Vec<Sum>,
    captions: u64,
    /// The tags of the picture in hand, best first.
    order: Vec<(u32, f32)>,
    /// Tokens of so many of them with their commas, and those of the last one without.
    tokens: Vec<Tokens>,
}

#[derive(Clone, Copy, Default)]
struct Sum {
    with_tags: u64,
    tokens: u64,
    max: usize,
    over: u64,
}

#[derive(Clone, Copy, Default)]
struct Tokens {
    with_commas: usize,
    alone: usize,
}

impl Lengths {
    /// Of the tags of a selection, by place.
    pub(super) fn new(selection: &[String], min_scores: &[f32], max_tags: &[usize]) -> Self {
        let cost = |tag: &String| {
            let shown = displayed(tag);
            let shown = shown.trim();
            // A space ends a token whatever stands before it, and the comma may be part of one: tokens of `a, b` are
            // those of `a,` and those of `b`.
            Cost {
                said_as: canonical(shown),
                with_comma: token_count(&format!("{shown},")),
                at_end: token_count(shown),
            }
        };
        Self {
            costs: selection.iter().map(cost).collect(),
            min_scores: min_scores.to_vec(),
            max_tags: max_tags.to_vec(),
            sums: vec![Sum::default(); min_scores.len() * max_tags.len()],
            bare: vec![Sum::default(); min_scores.len()],
            captions: 0,
            order: Vec::new(),
            tokens: Vec::new(),
        }
    }

    /// Adds a picture, with its own caption and the places and scores of its selected tags.
    pub(super) fn add(&mut self, caption: &str, scores: impl Iterator<Item = (u32, f32)>) {
        self.captions += 1;
        let (Some(lowest), Some(most)) = (self.min_scores.first(), self.max_tags.iter().max()) else {
            return;
        };
        let caption = caption.trim();
        self.order.clear();
        self.order.extend(scores.filter(|(_, score)| score >= lowest));
        self.order.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let chosen = &self.order[..self.order.len().min(*most)];
        tokens(&self.costs, caption, chosen, &mut self.tokens);
        let own = if caption.is_empty() { 0 } else { token_count(caption) };
        let sums = self.sums.chunks_exact_mut(self.max_tags.len());
        for ((min_score, sums), bare) in self.min_scores.iter().zip(sums).zip(&mut self.bare) {
            let good = chosen.partition_point(|(_, score)| score >= min_score);
            if good == 0 {
                // Nor at any higher one.
                return bare.add(0, own);
            }
            for (max_tags, sum) in self.max_tags.iter().zip(sums) {
                let tags = good.min(*max_tags);
                let Tokens { with_commas, alone } = self.tokens[tags];
                sum.add(tags, if caption.is_empty() { alone } else { with_commas + own });
            }
        }
    }

    /// Adds what another has measured of the same selection, with the same settings.
    pub(super) fn absorb(&mut self, other: &Self) {
        self.captions += other.captions;
        let pairs = self.sums.iter_mut().zip(&other.sums).chain(self.bare.iter_mut().zip(&other.bare));
        pairs.for_each(|(ours, theirs)| ours.absorb(*theirs));
    }

    pub(super) fn finish(&self) -> Vec<LengthEffect> {
        let mut effects = Vec::new();
        let mut bare = Sum::default();
        for (place, min_score) in self.min_scores.iter().enumerate() {
            bare.absorb(self.bare[place]);
            for (k, max_tags) in self.max_tags.iter().enumerate() {
                let mut sum = self.sums[place * self.max_tags.len() + k];
                sum.absorb(bare);
                effects.push(LengthEffect {
                    max_tags: *max_tags,
                    min_score: *min_score,
                    images_with_tags: sum.with_tags,
                    mean_tokens: sum.tokens as f64 / self.captions.max(1) as f64,
                    max_tokens: sum.max,
                    over_75: sum.over,
                });
            }
        }
        effects
    }
}

impl Sum {
    fn add(&mut self, tags: usize, tokens: usize) {
        self.with_tags += u64::from(tags > 0);
        self.tokens += tokens as u64;
        self.max = self.max.max(tokens);
        self.over += u64::from(tokens > MAX_TOKENS);
    }

    fn absorb(&mut self, other: Self) {
        self.with_tags += other.with_tags;
        self.tokens += other.tokens;
        self.max = self.max.max(other.max);
        self.over += other.over;
    }
}

/// The tokens of the first 0, 1, 2, ... of the chosen tags; those that the caption says already add none.
fn tokens(costs: &[Cost], caption: &str, chosen: &[(u32, f32)], tokens: &mut Vec<Tokens>) {
    // Most analyses are of tags alone.
    let said = (!caption.is_empty()).then(|| said(caption.split(',')));
    let is_said = |name: &String| said.as_ref().map_or(name.is_empty(), |said| said.contains(name));
    let mut so_far = Tokens::default();
    tokens.clear();
    tokens.push(so_far);
    for (place, _) in chosen {
        let cost = &costs[*place as usize];
        if !is_said(&cost.said_as) {
            so_far.alone = so_far.with_commas + cost.at_end;
            so_far.with_commas += cost.with_comma;
        }
        tokens.push(so_far);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Position, TagScore, choose, compose};

    fn selection() -> Vec<String> {
        let names = [
            "blurry_background",
            "poster_(object)",
            ";)",
            "^_^",
            "solo",
            r"\m/",
            "don't_say_\"lazy\"",
            "re:zero",
        ];
        names.map(ToOwned::to_owned).to_vec()
    }

    /// The same by writing each caption.
    fn written(captions: &[(String, Vec<(u32, f32)>)], min_score: f32, max_tags: usize) -> LengthEffect {
        let selection = selection();
        let mut sum = LengthEffect {
            max_tags,
            min_score,
            images_with_tags: 0,
            mean_tokens: 0.0,
            max_tokens: 0,
            over_75: 0,
        };
        for (caption, scores) in captions {
            let scores: Vec<_> =
                scores.iter().map(|(tag, score)| TagScore { tag: *tag as usize, score: *score }).collect();
            let tags: Vec<_> =
                choose(&scores, max_tags, min_score).into_iter().map(|tag| &selection[tag]).collect();
            let tokens = token_count(&compose(caption, &tags, Position::Prepend));
            sum.images_with_tags += u64::from(!tags.is_empty());
            sum.mean_tokens += tokens as f64 / captions.len() as f64;
            sum.max_tokens = sum.max_tokens.max(tokens);
            sum.over_75 += u64::from(tokens > 75);
        }
        sum
    }

    #[test]
    fn a_comma_after_a_bracket_is_one_token_with_it() {
        let mut lengths = Lengths::new(&selection(), &[0.3], &[1, 2]);
        lengths.add("", [(1, 0.9), (4, 0.5)].into_iter());
        lengths.add("a cat", [(4, 0.2)].into_iter());
        let [one, two] = &lengths.finish()[..] else { panic!("two settings") };
        let count = |text| token_count(text) as f64;
        assert_eq!(one.mean_tokens, (count("poster (object)") + count("a cat")) / 2.0);
        assert_eq!(two.mean_tokens, (count("poster (object), solo") + count("a cat")) / 2.0);
        assert_eq!((one.images_with_tags, two.max_tokens), (1, token_count("poster (object), solo")));
        assert_ne!(token_count("(object),"), token_count("(object)") + token_count(","), "why it is so done");
    }

    proptest! {
        #[test]
        fn lengths_are_those_of_the_captions_when_written(
            captions in prop::collection::vec(
                ("[a-z ,;)é'σΣ!]{0,30}|solo, a cat|Blurry background|[a-z]{1,3}( [a-z]{3,4}){60}", prop::collection::btree_map(0_u32..8, 0..=20_u32, 0..8)),
                1..6,
            ),
        ) {
            let score = |(tag, score): (&u32, &u32)| (*tag, *score as f32 / 20.0);
            let captions: Vec<_> = captions
                .iter()
                .map(|(caption, tags)| (caption.clone(), tags.iter().map(score).collect::<Vec<_>>()))
                .collect();
            let mut lengths = Lengths::new(&selection(), &[0.0, 0.3, 0.5], &[0, 1, 3, 8]);
            captions.iter().for_each(|(caption, tags)| lengths.add(caption, tags.iter().copied()));
            for found in lengths.finish() {
                let expected = written(&captions, found.min_score, found.max_tags);
                prop_assert!((found.mean_tokens - expected.mean_tokens).abs() < 1e-9, "{found:?} {expected:?}");
                prop_assert_eq!(LengthEffect { mean_tokens: 0.0, ..found }, LengthEffect { mean_tokens: 0.0, ..expected });
            }
        }
    }
}
