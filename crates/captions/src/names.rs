//! How tags are called: canonical in tables, with spaces in captions.

/// The emoticons whose underscores are eyes, arms or noses and stay underscores.
///
/// The list that taggers have handed on since toriato's stable-diffusion-webui-wd14-tagger.
pub const KAOMOJI: [&str; 19] = [
    "0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9", ">_o", "@_@",
    "^_^", "o_o", "u_u", "x_x", "|_|", "||_||",
];

/// The canonical form of a tag's name: trimmed, in lower case, one underscore for each run of white space.
///
/// It is its own canonical form.
pub fn canonical(name: &str) -> String {
    let lower = name.to_lowercase();
    let words: Vec<_> = lower.split_whitespace().collect();
    words.join("_")
}

/// A canonical name as captions write it: underscores as spaces, [`KAOMOJI`] as they are.
pub fn displayed(tag: &str) -> String {
    if KAOMOJI.contains(&tag) { tag.to_owned() } else { tag.replace('_', " ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_tag_have_one_name() {
        for name in
            ["blurry_background", " Blurry background\t", "blurry \u{a0} background", "BLURRY_BACKGROUND"]
        {
            assert_eq!(canonical(name), "blurry_background");
        }
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
