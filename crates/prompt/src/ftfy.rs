//! What the package ftfy does to text before CLIP sees it.
//!
//! A port of its `fix_text` with its own settings (rspeer/python-ftfy 6.3.1, Apache License 2.0): HTML entities, text that was
//! decoded in the wrong encoding ("schÃ¶n"), leftovers of Windows-1252, ligatures, letters of another width, curly quotes, line
//! breaks, escape sequences of terminals, control characters, composed accents. Its tables are taken from the package
//! (`fixtures/prompt/ftfy/generate.py`).

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    sync::LazyLock,
};

use regex::{Captures, Regex, bytes::Regex as Bytes};
use serde::Deserialize;
use unicode_normalization::UnicodeNormalization;

/// Longer lines are fixed in parts of so many characters.
const SEGMENT_MAX: usize = 1_000_000;
/// The byte that a sloppy encoding has for a character that was lost.
const LOST: u8 = 0x1a;
const LOST_CHAR: char = '\u{fffd}';

#[derive(Deserialize)]
struct Data {
    charmaps: BTreeMap<String, String>,
    badness: String,
    detector: String,
    strict: String,
    entities: HashMap<String, String>,
}

/// A one-byte encoding.
struct Charmap {
    is_sloppy: bool,
    is_macroman: bool,
    /// The bytes of characters beyond ASCII.
    bytes: HashMap<char, u8>,
}

struct Tables {
    charmaps: Vec<Charmap>,
    badness: Regex,
    detector: Regex,
    strict: Regex,
    entities: HashMap<String, String>,
}

/// In the order in which they are tried.
const CHARMAPS: [&str; 10] = [
    "latin-1",
    "sloppy-windows-1252",
    "sloppy-windows-1251",
    "sloppy-windows-1250",
    "sloppy-windows-1253",
    "sloppy-windows-1254",
    "sloppy-windows-1257",
    "iso-8859-2",
    "macroman",
    "cp437",
];

static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    let data: Data = serde_json::from_str(include_str!("../data/ftfy.json")).expect("our own file");
    let regex = |pattern: &str| Regex::new(pattern).expect("our own file");
    let charmap = |name: &str| Charmap {
        is_sloppy: name.starts_with("sloppy"),
        is_macroman: name == "macroman",
        bytes: data.charmaps[name].chars().zip(0x80..=0xff).collect(),
    };
    Tables {
        charmaps: CHARMAPS.map(charmap).into(),
        badness: regex(&data.badness),
        // Only where it is looked for: what stands before decides first.
        detector: regex(&format!("^(?:{})", data.detector)),
        strict: regex(&data.strict),
        entities: data.entities,
    }
});

fn bytes_regex(pattern: &str) -> Bytes {
    Bytes::new(&format!("(?-u){pattern}")).expect("a constant")
}

/// UTF-8 in which a space stands where byte A0 was.
static ALTERED: LazyLock<Bytes> = LazyLock::new(|| {
    bytes_regex(concat!(
        r"[\xc2\xc3\xc5\xce\xd0\xd9][ ]",
        r"|[\xe2\xe3][ ][\x80-\x84\x86-\x9f\xa1-\xbf]",
        r"|[\xe0-\xe3][\x80-\x84\x86-\x9f\xa1-\xbf][ ]",
        r"|[\xf0][ ][\x80-\xbf][\x80-\xbf]",
        r"|[\xf0][\x80-\xbf][ ][\x80-\xbf]",
        r"|[\xf0][\x80-\xbf][\x80-\xbf][ ]",
    ))
});
/// UTF-8 of which bytes were lost.
static LOSSY: LazyLock<Bytes> = LazyLock::new(|| {
    bytes_regex(concat!(
        r"[\xc2-\xdf][\x1a]",
        r"|[\xc2-\xc3][?]",
        r"|\xed[\xa0-\xaf][\x1a?]\xed[\xb0-\xbf][\x1a?\x80-\xbf]",
        r"|\xed[\xa0-\xaf][\x1a?\x80-\xbf]\xed[\xb0-\xbf][\x1a?]",
        r"|[\xe0-\xef][\x1a?][\x1a\x80-\xbf]",
        r"|[\xe0-\xef][\x1a\x80-\xbf][\x1a?]",
        r"|[\xf0-\xf4][\x1a?][\x1a\x80-\xbf][\x1a\x80-\xbf]",
        r"|[\xf0-\xf4][\x1a\x80-\xbf][\x1a?][\x1a\x80-\xbf]",
        r"|[\xf0-\xf4][\x1a\x80-\xbf][\x1a\x80-\xbf][\x1a?]",
        r"|\x1a",
    ))
});
static ENTITY: LazyLock<Regex> = LazyLock::new(|| Regex::new("&#?[0-9A-Za-z]{1,24};").expect("a constant"));
/// What follows an ampersand to make an entity.
static LINK: LazyLock<Regex> = LazyLock::new(|| Regex::new("#?[0-9A-Za-z]{1,24};").expect("a constant"));
static TERMINAL: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\x1b\[((?:\d|;)*)([a-zA-Z])").expect("a constant"));

/// The text with everything mended that ftfy mends, line by line.
pub(crate) fn fix_text(text: &str) -> String {
    let mut fixed = String::with_capacity(text.len());
    let mut is_html = false;
    for line in text.split_inclusive('\n') {
        let mut rest = line;
        while !rest.is_empty() {
            let end = rest.char_indices().nth(SEGMENT_MAX).map_or(rest.len(), |(at, _)| at);
            let segment;
            (segment, rest) = rest.split_at(end);
            // What looks like HTML keeps its entities, to the end of the text.
            is_html |= segment.contains('<');
            fixed.push_str(&fix_segment(segment, is_html));
        }
    }
    fixed
}

fn fix_segment(text: &str, mut is_html: bool) -> String {
    is_html |= text.contains('<');
    let mut text = text.to_owned();
    loop {
        let before = text.clone();
        if !is_html {
            text = unescape(&text).into_owned();
        }
        let unescaped = text.clone();
        text = fix_encoding(text);
        text = text.chars().map(from_windows).flat_map(spread).map(straight).collect();
        text = text.replace("\r\n", "\n").replace(['\r', '\u{2028}', '\u{2029}', '\u{85}'], "\n");
        text = TERMINAL.replace_all(&text, "").into_owned();
        text = text.chars().filter(|c| !is_control(*c)).nfc().collect();
        if text == before {
            return text;
        }
        if text == unescaped && !is_html {
            text = shorten(text);
        }
    }
}

/// Takes from `&amp;amp;amp;` what the next rounds would take one by one: where each entity of the text is such a chain, and
/// nothing but entities changed in the last round, nothing else changes as long as each chain has a link.
fn shorten(text: String) -> String {
    let becomes = |entity: &str| unescape(entity) != entity;
    let is_ampersand = |entity: &str| unescape(entity) == "&";
    let mut chains = Vec::new();
    for found in ENTITY.find_iter(&text).filter(|found| becomes(found.as_str())) {
        let links = LINK.find_iter(&text[found.start() + 1..]).scan(0, |end, link| {
            let follows = link.start() == *end && is_ampersand(&format!("&{}", link.as_str()));
            *end = link.end();
            follows.then_some(link.end())
        });
        let ends: Vec<usize> = links.map(|end| found.start() + 1 + end).collect();
        if ends.len() < 2 {
            return text;
        }
        chains.push((found.start() + 1, ends));
    }
    let Some(rounds) = chains.iter().map(|(_, ends)| ends.len() - 1).min() else { return text };
    let mut short = String::with_capacity(text.len());
    let mut copied = 0;
    for (start, ends) in chains {
        short.push_str(&text[copied..start]);
        copied = ends[rounds - 1];
    }
    short.push_str(&text[copied..]);
    short
}

/// HTML's entities that end with a semicolon, by name and by number.
fn unescape(text: &str) -> Cow<'_, str> {
    ENTITY.replace_all(text, |found: &Captures<'_>| {
        let whole = &found[0];
        let name = &whole[1..whole.len() - 1];
        let known = TABLES.entities.get(name).cloned();
        known.or_else(|| numbered(name.strip_prefix('#')?)).unwrap_or_else(|| whole.to_owned())
    })
}

/// The character of a number, decimal or after an x; as Python's `html.unescape` makes it of impossible ones.
fn numbered(number: &str) -> Option<String> {
    let (digits, radix) = match number.strip_prefix(['x', 'X']) {
        Some(digits) => (digits, 16),
        None => (number, 10),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let number = u32::from_str_radix(digits.trim_start_matches('0'), radix);
    let number = if digits.trim_start_matches('0').is_empty() { 0 } else { number.unwrap_or(u32::MAX) };
    Some(match number {
        0 | 0xd800..=0xdfff | 0x11_0000.. => LOST_CHAR.to_string(),
        0x0d => "\r".to_owned(),
        // What looks as if some of it were left is left as a whole, as there.
        0x3b => return None,
        0x80..=0x9f => from_windows(char::from_u32(number)?).to_string(),
        // Control characters and those that are none.
        0x1..=0x8 | 0xb | 0xe..=0x1f | 0x7f | 0xfdd0..=0xfdef => String::new(),
        _ if number & 0xfffe == 0xfffe => String::new(),
        _ => char::from_u32(number)?.to_string(),
    })
}

/// Whether something in the text is more likely wrongly decoded than meant.
fn is_bad(text: &str) -> bool {
    !text.is_ascii() && TABLES.badness.is_match(text)
}

fn fix_encoding(mut text: String) -> String {
    loop {
        let fixed = fix_encoding_once(&text);
        if fixed == text {
            return text;
        }
        text = fixed;
    }
}

fn fix_encoding_once(text: &str) -> String {
    if !is_bad(text) {
        return text.to_owned();
    }
    let mut latin = None;
    for (i, charmap) in TABLES.charmaps.iter().enumerate() {
        let Some(bytes) = charmap.encode(text) else { continue };
        if i == 0 {
            latin = Some(bytes.clone());
        }
        if let Some(decoded) = charmap.decode_again(bytes) {
            return decoded;
        }
    }
    let fixed = decode_inconsistent(text);
    if fixed != text {
        return fixed;
    }
    // Latin-1 that was meant to be Windows-1252, but where that has no such characters.
    if let Some(bytes) = latin
        && bytes.iter().all(|byte| !matches!(byte, 0x81 | 0x8d | 0x8f | 0x90 | 0x9d))
    {
        let fixed: String = text.chars().map(from_windows).collect();
        if fixed != text {
            return fixed;
        }
    }
    text.chars().map(from_windows).collect()
}

impl Charmap {
    /// The bytes that the text was decoded from, if it was in this encoding.
    fn encode(&self, text: &str) -> Option<Vec<u8>> {
        let byte = |c: char| match c {
            LOST_CHAR if self.is_sloppy => Some(LOST),
            '\u{1a}' if self.is_sloppy => None,
            c if c.is_ascii() => Some(c as u8),
            c => self.bytes.get(&c).copied(),
        };
        text.chars().map(byte).collect()
    }

    /// The bytes as UTF-8, as far as they are, or nearly.
    fn decode_again(&self, mut bytes: Vec<u8>) -> Option<String> {
        if !self.is_macroman && ALTERED.is_match(&bytes) {
            bytes = restore_a0(&bytes);
        }
        if self.is_sloppy {
            bytes = LOSSY.replace_all(&bytes, "\u{fffd}".as_bytes()).into_owned();
        }
        if bytes.iter().any(|byte| matches!(byte, 0xed | 0xc0)) {
            return decode_variants(&bytes);
        }
        String::from_utf8(bytes).ok()
    }
}

/// Puts byte A0 back where a space took its place; "Ã la mode" keeps its space too.
fn restore_a0(bytes: &[u8]) -> Vec<u8> {
    let mut words = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let stays = |after: &[u8]| {
            [b" ".as_slice(), b"quele", b"quela", b"quilo", b"s "].iter().any(|word| after.starts_with(word))
        };
        if rest.starts_with(b"\xc3 ") && !stays(&rest[2..]) {
            words.extend(b"\xc3\xa0 ");
            at += 2;
        } else {
            words.push(rest[0]);
            at += 1;
        }
    }
    let replace = |found: &regex::bytes::Captures<'_>| -> Vec<u8> {
        found[0].iter().map(|byte| if *byte == b' ' { 0xa0 } else { *byte }).collect()
    };
    ALTERED.replace_all(&words, replace).into_owned()
}

/// UTF-8 with surrogates that were encoded apart, and with the NUL of Java.
fn decode_variants(bytes: &[u8]) -> Option<String> {
    let mut text = String::with_capacity(bytes.len());
    let mut rest = bytes;
    while !rest.is_empty() {
        match *rest {
            [0xc0, 0x80, ..] => {
                text.push('\0');
                rest = &rest[2..];
            }
            [0xed, b1 @ 0xa0..=0xaf, b2 @ 0x80..=0xbf, 0xed, b4 @ 0xb0..=0xbf, b5 @ 0x80..=0xbf, ..] => {
                let bits = |byte: u8, mask: u8, shift: u32| u32::from(byte & mask) << shift;
                let code = bits(b1, 0x0f, 16) + bits(b2, 0x3f, 10) + bits(b4, 0x0f, 6) + bits(b5, 0x3f, 0);
                text.push(char::from_u32(code + 0x1_0000)?);
                rest = &rest[6..];
            }
            _ => {
                let special = |i: &usize| {
                    matches!(rest[*i..], [0xc0, 0x80, ..] | [0xed, 0xa0..=0xaf, _, 0xed, 0xb0..=0xbf, ..])
                };
                let end = (1..rest.len()).find(special).unwrap_or(rest.len());
                text.push_str(std::str::from_utf8(&rest[..end]).ok()?);
                rest = &rest[end..];
            }
        }
    }
    Some(text)
}

/// Mends what looks like UTF-8 in another encoding, wherever it is in the text.
fn decode_inconsistent(text: &str) -> String {
    let is_strict = |c: char| !c.is_ascii() && TABLES.strict.is_match(c.encode_utf8(&mut [0; 4]));
    let mut fixed = String::with_capacity(text.len());
    let mut before = None;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        // As a look-behind: a long run of what is looked for is not read anew from each of its characters.
        let may_start = !first.is_ascii() && !before.is_some_and(is_strict);
        let found = may_start.then(|| TABLES.detector.find(rest)).flatten();
        let (part, after) = rest.split_at(found.map_or(first.len_utf8(), |found| found.end()));
        match found.is_some() && part.len() < text.len() && is_bad(part) {
            true => fixed.push_str(&fix_encoding(part.to_owned())),
            false => fixed.push_str(part),
        }
        before = part.chars().next_back();
        rest = after;
    }
    fixed
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
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_examples_of_ftfy() {
        for (text, expected) in [
            ("âœ” No problems", "✔ No problems"),
            ("&macr;\\_(ã\u{83}\u{84})_/&macr;", "¯\\_(ツ)_/¯"),
            ("Broken text&hellip; it&#x2019;s ﬂubberiﬁc!", "Broken text... it's flubberific!"),
            ("ＬＯＵＤ　ＮＯＩＳＥＳ", "LOUD NOISES"),
            ("sÃ³", "só"),
            ("voilÃ le travail", "voilà le travail"),
            ("P&EACUTE;REZ", "PÉREZ"),
            ("<em>&lt;</em>", "<em>&lt;</em>"),
            ("\u{1b}[36;44mI'm blue\u{1b}[0m", "I'm blue"),
            ("â€œ like this â€�", "\" like this �"),
        ] {
            assert_eq!(fix_text(text).replace('…', "..."), expected, "{text}");
        }
    }

    #[test]
    fn numbers_are_those_of_python() {
        let cases =
            [("65", "A"), ("x41", "A"), ("0", "\u{fffd}"), ("150", "–"), ("1", ""), ("xD800", "\u{fffd}")];
        for (number, expected) in cases {
            assert_eq!(numbered(number).as_deref(), Some(expected), "{number}");
        }
        assert_eq!(numbered("99999999999999999999").as_deref(), Some("\u{fffd}"));
        assert_eq!([numbered("x"), numbered("4g"), numbered(""), numbered("59")], [const { None }; 4]);
    }

    #[test]
    fn hostile_text_takes_no_time() {
        // Read anew from each character, 100 kB took minutes.
        let run = format!("©{}", "Ã©".repeat(25_000));
        assert_eq!(fix_text(&run), run);
        for (link, end) in [("amp;", "lt;"), ("#38;", "#60;"), ("#x26;amp;AMP;", "lt;")] {
            let chain = format!("é &{}{end} &{}b", link.repeat(25_000), link.repeat(24_000));
            assert_eq!(fix_text(&chain), "é < &b", "{link}");
        }
    }

    #[test]
    fn chains_that_are_shortened_end_as_those_that_are_not() {
        // Without `shorten`, and with ftfy, each of these is the last text.
        for (text, expected) in [
            ("&amp;amp;amp;lt; &amp;amp;eacute;", "< é"),
            ("&amp;amp;Atilde;&copy; &amp;amp;amp;copy;", "é ©"),
            ("&amp;amp;amp", "&amp"),
            ("&amp;amp;amp;amp;none; &lt;", "&none; <"),
            ("&amp;amp;#27;[0m &amp;amp;#1;a", "[0m a"),
        ] {
            assert_eq!(fix_text(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_comes_to_rest(text in "[ -~Ã©Â€œâ\u{80}-\u{ff}ðŸ˜]{0,40}") {
            let fixed = fix_text(&text);
            prop_assert_eq!(fix_text(&fixed), fixed);
        }
    }
}
