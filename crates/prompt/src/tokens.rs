//! Text to the token ids of CLIP.

use std::sync::LazyLock;

use instant_clip_tokenizer::{Token, Tokenizer};
use unicode_normalization::UnicodeNormalization;

/// How many ids a prompt has, [`BOS`] and [`EOS`] among them.
pub const CONTEXT_LENGTH: usize = 77;
/// How many of them are text.
pub const MAX_TOKENS: usize = CONTEXT_LENGTH - 2;
/// The id that begins every prompt.
pub const BOS: i64 = 49406;
/// The id that ends every prompt, and with which Stable Diffusion 1.x pads.
pub const EOS: i64 = 49407;

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
pub fn token_count(text: &str) -> usize {
    encode(text).len()
}

/// The ids of all of the text, without [`BOS`] and [`EOS`] around it.
///
/// Equal to transformers' `CLIPTokenizer` with ftfy installed, save that HTML entities, escape sequences of terminals
/// and wrongly decoded text ("schÃ¶n") stay as they are. `<|startoftext|>` and `<|endoftext|>` are single tokens.
pub fn encode(text: &str) -> Vec<i64> {
    let text = tidy(text).to_lowercase();
    let mut ids = Vec::new();
    let mut rest = text.as_str();
    while let Some((before, special, after)) = split_special(rest) {
        push_words(before, &mut ids);
        ids.push(special);
        rest = after;
    }
    push_words(rest, &mut ids);
    ids
}

/// Splits at the first special token.
fn split_special(text: &str) -> Option<(&str, i64, &str)> {
    let find = |(name, id): (&str, i64)| text.find(name).map(|at| (at, name.len(), id));
    let specials = [("<|startoftext|>", BOS), ("<|endoftext|>", EOS)];
    let (at, length, id) = specials.into_iter().filter_map(find).min()?;
    Some((&text[..at], id, &text[at + length..]))
}

fn push_words(text: &str, ids: &mut Vec<i64>) {
    // The tokenizer has its own spelling of the special tokens, which to CLIP's is plain text; a space after the
    // bracket, where a word ends anyway, changes nothing but that.
    let text = text.replace("<start_of_text>", "< start_of_text>").replace("<end_of_text>", "< end_of_text>");
    let mut tokens = Vec::new();
    TOKENIZER.encode(&text, &mut tokens);
    ids.extend(tokens.into_iter().map(|token: Token| i64::from(token.to_u16())));
}

/// What ftfy does to text before CLIP sees it: no leftovers of Windows-1252, no ligatures, letters of ordinary width,
/// straight quotes, no control characters, composed accents (ftfy 6, `fix_text`).
fn tidy(text: &str) -> String {
    text.chars().map(from_windows).flat_map(spread).map(straight).filter(|c| !is_control(*c)).nfc().collect()
}

/// The character that a byte of Windows-1252, read as Latin-1, was meant to be.
fn from_windows(c: char) -> char {
    const C1: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}',
        '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
    ];
    u32::from(c).checked_sub(0x80).and_then(|i| C1.get(i as usize)).copied().unwrap_or(c)
}

/// The letters of a ligature, and full and half width characters at ordinary width; any other character itself.
fn spread(c: char) -> impl Iterator<Item = char> {
    let (prefix, rest, is_compatible) = match c {
        'ŉ' => (Some('\''), 'n', false),
        'ﬅ' => (Some('ſ'), 't', false),
        'Ĳ' | 'ĳ' | '\u{1c4}'..='\u{1cc}' | '\u{1f1}'..='\u{1f3}' | '\u{fb00}'..='\u{fb06}' => {
            (None, c, true)
        }
        '\u{3000}' | '\u{ff01}'..='\u{ffef}' => (None, c, true),
        _ => (None, c, false),
    };
    let compatible = is_compatible.then_some(rest).into_iter().nfkc();
    prefix.into_iter().chain((!is_compatible).then_some(rest)).chain(compatible)
}

fn straight(c: char) -> char {
    match c {
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => '\'',
        '\u{201c}'..='\u{201f}' => '"',
        '\u{2028}' | '\u{2029}' => '\n',
        _ => c,
    }
}

/// Characters that mean nothing in a line of text; those that separate words are none of them.
fn is_control(c: char) -> bool {
    matches!(c,
        '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}'
        | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}')
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
