//! How tags are called: canonical in tables, with spaces in captions.

use unicode_normalization::UnicodeNormalization;

/// The emoticons whose underscores are eyes, arms or noses and stay underscores.
///
/// The list that taggers have handed on since toriato's stable-diffusion-webui-wd14-tagger.
pub const KAOMOJI: [&str; 19] = [
    "0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9", ">_o", "@_@",
    "^_^", "o_o", "u_u", "x_x", "|_|", "||_||",
];

/// The canonical form of a tag's name: without characters that cannot be seen (zero-width ones, byte-order marks, marks
/// of writing direction), in Unicode's composed form (NFC), in lower case, trimmed, one underscore for each run of white
/// space.
///
/// It is its own canonical form.
pub fn canonical(name: &str) -> String {
    if name.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase()) {
        return name.to_owned();
    }
    let composed: String = name.chars().filter(|c| !is_invisible(*c)).nfc().collect();
    // Lower case may come apart into letter and mark, which have a composed form again.
    let lower: String = composed.to_lowercase().nfc().collect();
    let words: Vec<_> = lower.split_whitespace().collect();
    words.join("_")
}

/// Characters of no width and no meaning in a name, which copying from web pages and spreadsheets leaves behind.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    )
}

/// A canonical name as captions write it: underscores as spaces, [`KAOMOJI`] as they are.
pub fn displayed(tag: &str) -> String {
    if KAOMOJI.contains(&tag) { tag.to_owned() } else { tag.replace('_', " ") }
}

/// A category by its name or by Danbooru's number.
pub(crate) fn category_named(cell: &str) -> String {
    let name = match cell.trim().strip_suffix(".0").unwrap_or(cell.trim()) {
        "0" => "general",
        "1" => "artist",
        "3" => "copyright",
        "4" => "character",
        "5" => "meta",
        "9" => "rating",
        other => other,
    };
    name.to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_canonical_name_is_its_own(name in any::<String>()) {
            let once = canonical(&name);
            prop_assert_eq!(&canonical(&once), &once);
            prop_assert!(!once.contains(|c: char| c.is_whitespace() || is_invisible(c)));
        }

        #[test]
        fn marks_case_and_space_around_make_no_other_name(name in "[a-zA-Zäöüéσς가-각]{1,9}( [a-z]{1,3})?") {
            let wanted = canonical(&name);
            let spread: String = name.chars().flat_map(|c| ['\u{200b}', c]).collect();
            prop_assert_eq!(&canonical(&spread), &wanted);
            prop_assert_eq!(&canonical(&format!("\u{feff}\t{name}\u{3000}")), &wanted);
            prop_assert_eq!(canonical(&name.nfd().collect::<String>()), wanted);
        }
    }

    #[test]
    fn spellings_of_one_tag_have_one_name() {
        for name in
            ["blurry_background", " Blurry background\t", "blurry \u{a0} background", "BLURRY_BACKGROUND"]
        {
            assert_eq!(canonical(name), "blurry_background");
        }
        assert_eq!(canonical("caf\u{65}\u{301}"), "caf\u{e9}");
        assert_eq!(canonical("\u{200e}blur\u{ad}ry\u{200b} "), "blurry");
        assert_eq!(canonical("\u{feff}\u{200b}"), "");
        for name in [";)", r"\m/", "don't_say_\"lazy\"", "poster_(object)", "re:zero", "^_^"] {
            assert_eq!(canonical(name), name);
        }
    }

    #[test]
    fn emoticons_keep_their_underscores() {
        assert_eq!(displayed("looking_at_viewer"), "looking at viewer");
        assert_eq!(displayed("<|>_<|>"), "<|>_<|>");
        assert_eq!(displayed("x_x_x"), "x x x");
    }
}
