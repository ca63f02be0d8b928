//! Text to the token ids of CLIP.

use std::sync::LazyLock;

use instant_clip_tokenizer::{Token, Tokenizer};
use regex::Regex;

use crate::ftfy::fix_text;

/// How many ids a prompt has, [`BOS`] and [`EOS`] among them.
pub const CONTEXT_LENGTH: usize = 77;
/// How many of them are text.
pub const MAX_TOKENS: usize = CONTEXT_LENGTH - 2;
/// The id that begins every prompt.
pub const BOS: i64 = 49406;
/// The id that ends every prompt, and with which Stable Diffusion 1.x pads.
pub const EOS: i64 = 49407;

static WORD_END: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"[\s\p{L}\p{N}]$").expect("a constant"));
static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(Tokenizer::new);

/// What the text encoder takes: [`BOS`], at most [`MAX_TOKENS`] ids of text, and [`EOS`] to the end.
pub fn token_ids(text: &str) -> [i64; CONTEXT_LENGTH] {
    let mut ids = [EOS; CONTEXT_LENGTH];
    ids[0] = BOS;
    for (id, token) in ids[1..=MAX_TOKENS].iter_mut().zip(encode(text)) {
        *id = token;
    }
    ids
}

/// How many tokens the text has, of which [`token_ids`] keeps the first [`MAX_TOKENS`].
///
/// In time that grows as the text does: of a stretch of more than 4096 bytes without a space the count is one of its pieces, and
/// may be a few too high.
pub fn token_count(text: &str) -> usize {
    // No token goes over a space, and one word of a megabyte would take hours.
    const STRETCH: usize = 4096;
    const PIECE: usize = 256;
    let mut rest = text;
    let mut count = 0;
    while rest.len() > STRETCH {
        let space = rest[..rest.floor_char_boundary(STRETCH)].rfind([' ', '\n']).filter(|at| *at > 0);
        let (piece, after) = rest.split_at(space.unwrap_or_else(|| rest.floor_char_boundary(PIECE)));
        count += encode(piece).len();
        rest = after;
    }
    count + encode(rest).len()
}

/// The ids of all of the text, without [`BOS`] and [`EOS`] around it.
///
/// Equal to transformers' `CLIPTokenizer` with ftfy installed. `<|startoftext|>` and `<|endoftext|>` are single tokens.
pub fn encode(text: &str) -> Vec<i64> {
    let mut ids = Vec::new();
    // Once before and once after the text is mended and lowered, as there; the second time only where a word may begin.
    by_special(text, |_| true, &mut ids, &mut |part, ids| {
        by_special(&fix_text(part).to_lowercase(), begins_word, ids, &mut push_words);
    });
    ids
}

/// Whether a special token behind this text is a word of its own, and no part of a run of signs.
fn begins_word(before: &str) -> bool {
    before.is_empty() || WORD_END.is_match(before)
}

/// Hands on what is between special tokens, whose ids it pushes.
fn by_special(
    text: &str,
    may_follow: fn(&str) -> bool,
    ids: &mut Vec<i64>,
    between: &mut dyn FnMut(&str, &mut Vec<i64>),
) {
    const SPECIALS: [(&str, i64); 2] = [("<|startoftext|>", BOS), ("<|endoftext|>", EOS)];
    let mut start = 0;
    for (at, _) in text.match_indices("<|") {
        let found = SPECIALS.into_iter().find(|(name, _)| text[at..].starts_with(name));
        if let Some((name, id)) = found
            && may_follow(&text[start..at])
        {
            between(&text[start..at], ids);
            ids.push(id);
            start = at + name.len();
        }
    }
    between(&text[start..], ids);
}

fn push_words(text: &str, ids: &mut Vec<i64>) {
    // The tokenizer has its own spelling of the special tokens, which to CLIP's is plain text; a space after the
    // bracket, where a word ends anyway, changes nothing but that.
    let text = text.replace("<start_of_text>", "< start_of_text>").replace("<end_of_text>", "< end_of_text>");
    let mut tokens = Vec::new();
    TOKENIZER.encode(&text, &mut tokens);
    ids.extend(tokens.into_iter().map(|token: Token| i64::from(token.to_u16())));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_framed_and_padded() {
        let ids = token_ids("A photo of a cat");
        assert_eq!(ids[..7], [BOS, 320, 1125, 539, 320, 2368, EOS]);
        assert!(ids[6..].iter().all(|id| *id == EOS));
        assert_eq!(token_ids("")[..2], [BOS, EOS]);
    }

    #[test]
    fn a_long_prompt_is_cut_at_75() {
        let text = "cat ".repeat(100);
        let ids = token_ids(&text);
        assert_eq!(token_count(&text), 100);
        assert_eq!((ids[75], ids[76]), (2368, EOS));
    }

    #[test]
    fn a_text_of_any_length_is_counted() {
        let words = "a photo of a cat, ".repeat(600_000);
        assert!(words.len() > 10_000_000);
        assert_eq!(token_count(&words), 600_000 * token_count("a photo of a cat, "));
        let long = "a photo of a cat's grin, ½ ".repeat(300);
        assert_eq!(token_count(&long), encode(&long).len());
        let word = "wort".repeat(2_500_000);
        assert!(token_count(&word) > 2_000_000);
        let short = "wort".repeat(1000);
        assert_eq!(token_count(&short), encode(&short).len());
    }

    #[test]
    fn special_tokens_are_told_from_their_look_alikes() {
        assert_eq!(encode("cat<|endoftext|>cat<|StartOfText|>"), [2368, EOS, 2368, BOS]);
        assert!(!encode("<end_of_text>").contains(&EOS));
    }

    #[test]
    fn look_alike_characters_are_made_plain() {
        assert_eq!(encode("the artist’s “ﬁne” ｃａｔ"), encode("the artist's \"fine\" cat"));
        assert_eq!(encode("cafe\u{301}"), encode("café"));
        assert_eq!(encode("c\u{0}a\u{feff}t"), encode("cat"));
    }
}
