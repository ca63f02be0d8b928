//! Text files in whatever encoding they are: told by a mark, known to be UTF-8, or guessed.

use std::path::Path;

use chardetng::EncodingDetector;
use encoding_rs::{Encoding, ISO_2022_JP, UTF_8, UTF_16BE, UTF_16LE, WINDOWS_1252};

use crate::{Error, Result};

/// The text of some bytes, and what they were taken for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// The text, without a byte-order mark.
    pub text: String,
    /// The encoding's name in the WHATWG standard: `UTF-8`, `UTF-16LE`, `windows-1252`, `Shift_JIS`, ...
    pub encoding: &'static str,
    /// Whether that is a guess: there was no mark, and the bytes are not UTF-8.
    pub guessed: bool,
}

/// The encoding that a user names, by any label of the WHATWG standard: `latin1`, `cp1251`, `sjis`, `utf-16be`, ...
///
/// # Errors
/// No such encoding.
pub fn encoding_named(label: &str) -> Result<&'static Encoding> {
    let label = label.trim();
    // Spreadsheets and Python say `cp1251` for what the standard calls `windows-1251`.
    let windows = label.to_ascii_lowercase().strip_prefix("cp").map(|page| format!("windows-{page}"));
    let found = Encoding::for_label(label.as_bytes())
        .or_else(|| windows.and_then(|label| Encoding::for_label(label.as_bytes())));
    found.ok_or_else(|| Error::Setting {
        setting: "encoding",
        expected: "a name such as `windows-1251`, `shift_jis` or `utf-16le`".to_owned(),
        found: label.to_owned(),
    })
}

/// Decodes a file's bytes: by their byte-order mark; or as UTF-8, if they are; or as UTF-16, if every other byte is 0;
/// or else in the encoding `other`, without which it is guessed.
///
/// UTF-16 without a mark and without a single character of ASCII is not told from a code page.
///
/// # Errors
/// Bytes that are not in the encoding that their mark or the user names.
pub fn decode(path: &Path, bytes: &[u8], other: Option<&'static Encoding>) -> Result<Decoded> {
    let read = |encoding: &'static Encoding, bytes: &[u8], guessed: bool| {
        let text = encoding.decode_without_bom_handling_and_without_replacement(bytes);
        text.map(|text| Decoded { text: text.into_owned(), encoding: encoding.name(), guessed })
    };
    let broken = |encoding: &'static Encoding| Error::NotInEncoding {
        path: path.to_path_buf(),
        encoding: encoding.name(),
    };
    if let Some((encoding, mark)) = Encoding::for_bom(bytes) {
        return read(encoding, &bytes[mark..], false).ok_or_else(|| broken(encoding));
    }
    // Bytes that only look like it (half a pair of surrogates is no text) are of a code page.
    if let Some(encoding) = wide(bytes).filter(|_| other.is_none())
        && let Some(decoded) = read(encoding, bytes, true)
    {
        return Ok(decoded);
    }
    if !bytes.contains(&0x1b)
        && let Some(decoded) = read(UTF_8, bytes, false)
    {
        return Ok(decoded);
    }
    if let Some(encoding) = other {
        return read(encoding, bytes, false).ok_or_else(|| broken(encoding));
    }
    let encoding = guess(bytes);
    // Windows-1252 has a character for every byte.
    let decoded = read(encoding, bytes, encoding != UTF_8).or_else(|| read(WINDOWS_1252, bytes, true));
    decoded.ok_or_else(|| broken(encoding))
}

/// UTF-16 without a mark: text has no 0 in it, but half of a character of ASCII is one, and some are in most captions.
fn wide(bytes: &[u8]) -> Option<&'static Encoding> {
    if !bytes.len().is_multiple_of(2) || !bytes.contains(&0) {
        return None;
    }
    let zeros = |start: usize| bytes.iter().skip(start).step_by(2).filter(|byte| **byte == 0).count();
    let (even, odd) = (zeros(0), zeros(1));
    if 4 * even.max(odd) < bytes.len() / 2 {
        return None;
    }
    match (even, odd) {
        (even, odd) if odd > even => Some(UTF_16LE),
        (even, odd) if even > odd => Some(UTF_16BE),
        _ => None,
    }
}

fn guess(bytes: &[u8]) -> &'static Encoding {
    let mut detector = EncodingDetector::new();
    detector.feed(bytes, true);
    let guess = detector.guess(None, true);
    // An escape alone does not make text Japanese: then it is the UTF-8 that it also is.
    let is_utf8 = std::str::from_utf8(bytes).is_ok();
    if is_utf8 && guess != ISO_2022_JP { UTF_8 } else { guess }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(bytes: &[u8]) -> (String, &'static str, bool) {
        let Decoded { text, encoding, guessed } = decode(Path::new("a.txt"), bytes, None).unwrap();
        (text, encoding, guessed)
    }

    fn utf16(text: &str, unit: impl Fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(unit).collect()
    }

    #[test]
    fn marks_are_believed_and_left_out() {
        assert_eq!(decoded(b"\xef\xbb\xbfsch\xc3\xb6n"), ("schön".to_owned(), "UTF-8", false));
        let little = [b"\xff\xfe".to_vec(), utf16("schön ✓", u16::to_le_bytes)].concat();
        assert_eq!(decoded(&little), ("schön ✓".to_owned(), "UTF-16LE", false));
        let big = [b"\xfe\xff".to_vec(), utf16("schön ✓", u16::to_be_bytes)].concat();
        assert_eq!(decoded(&big), ("schön ✓".to_owned(), "UTF-16BE", false));
        assert_eq!(decoded(b""), (String::new(), "UTF-8", false));
    }

    #[test]
    fn a_single_zero_does_not_make_text_wide() {
        assert_eq!(decoded(b"a long caption, abc\0"), ("a long caption, abc\0".to_owned(), "UTF-8", false));
        let latin = decode(Path::new("a.txt"), &utf16("abc", u16::to_le_bytes), Some(WINDOWS_1252)).unwrap();
        assert_eq!(latin.encoding, "UTF-8", "whoever names an encoding means that UTF-16 is none");
    }

    #[test]
    fn what_only_looks_like_utf16_is_of_a_code_page() {
        // A high surrogate without its other half.
        let bytes = [utf16("a cat", u16::to_le_bytes), vec![0x00, 0xd8, b'b', 0]].concat();
        let (text, encoding, guessed) = decoded(&bytes);
        assert!(text.starts_with("a\0 \0c\0") && guessed, "{text:?}");
        assert!(!encoding.starts_with("UTF-16"), "{encoding}");
    }

    #[test]
    fn what_has_no_mark_is_found_out() {
        assert_eq!(decoded("schön ✓".as_bytes()), ("schön ✓".to_owned(), "UTF-8", false));
        let text = "a girl, 少女, outdoors";
        assert_eq!(decoded(&utf16(text, u16::to_le_bytes)), (text.to_owned(), "UTF-16LE", true));
        assert_eq!(decoded(&utf16(text, u16::to_be_bytes)), (text.to_owned(), "UTF-16BE", true));
        assert_eq!(
            decoded(b"ein sch\xf6nes M\xe4dchen"),
            ("ein schönes Mädchen".to_owned(), "windows-1252", true)
        );
        let russian = "красная машина на улице города";
        let (bytes, ..) = encoding_rs::WINDOWS_1251.encode(russian);
        assert_eq!(decoded(&bytes), (russian.to_owned(), "windows-1251", true));
        let japanese = "赤い車が街の通りを走っています";
        for (encoding, name) in [
            (encoding_rs::SHIFT_JIS, "Shift_JIS"),
            (encoding_rs::EUC_JP, "EUC-JP"),
            (ISO_2022_JP, "ISO-2022-JP"),
        ] {
            let (bytes, ..) = encoding.encode(japanese);
            assert_eq!(decoded(&bytes), (japanese.to_owned(), name, true));
        }
        assert_eq!(decoded(b"\x1b[31mred\x1b[0m").1, "UTF-8");
    }

    #[test]
    fn what_the_user_says_goes_before_a_guess() {
        let path = Path::new("a.txt");
        let bytes = b"\xc4\xc5";
        let read = |label: &str| decode(path, bytes, Some(encoding_named(label).unwrap()));
        assert_eq!(read("cp1251").unwrap().text, "ДЕ");
        assert_eq!(read("latin1").unwrap().text, "ÄÅ");
        assert_eq!(
            read("utf-8").unwrap_err().to_string(),
            "`a.txt` is not UTF-8, as its mark or the settings say"
        );
        assert_eq!(decode(path, "ö".as_bytes(), Some(WINDOWS_1252)).unwrap().text, "ö", "UTF-8 is UTF-8");
        let odd = decode(path, b"\xff\xfea", None).unwrap_err().to_string();
        assert_eq!(odd, "`a.txt` is not UTF-16LE, as its mark or the settings say");
        assert!(encoding_named("klingon").unwrap_err().to_string().ends_with("found \"klingon\""));
    }
}
