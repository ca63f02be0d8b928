//! Prompts that are composed of several with `AND`.

use std::sync::LazyLock;

use regex::Regex;

/// One of the prompts that `AND` joins.
#[derive(Debug, Clone, PartialEq)]
pub struct Subprompt {
    /// The prompt.
    pub text: String,
    /// How much it counts against the others.
    pub weight: f64,
}

static AND: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\bAND\b").expect("a constant"));
static WEIGHT: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?s)^(.*?)(?:\s*:\s*([-+]?(?:[0-9]+\.?|[0-9]*\.[0-9]+)))?\s*$").expect("a constant")
});

/// Splits at the word `AND`; each part may end with `:weight` (stable-diffusion-webui 1.10.1,
/// `modules/prompt_parser.py`, `get_multicond_prompt_list`).
///
/// With the guidance `g`, a picture is `u + sum of g * weight * (c - u)` over the parts' predictions `c`, and `u` that of
/// the negative prompt, which is not split.
pub fn parse_and(prompt: &str) -> Vec<Subprompt> {
    let part = |part: &str| {
        let Some(found) = WEIGHT.captures(part) else {
            return Subprompt { text: part.to_owned(), weight: 1.0 };
        };
        let weight = found.get(2).and_then(|weight| weight.as_str().parse().ok());
        Subprompt { text: found[1].to_owned(), weight: weight.unwrap_or(1.0) }
    };
    AND.split(prompt).map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_their_weights() {
        let parts = |prompt| -> Vec<(String, f64)> {
            parse_and(prompt).into_iter().map(|part| (part.text, part.weight)).collect()
        };
        let expect = |expected: &[(&str, f64)]| -> Vec<(String, f64)> {
            expected.iter().map(|(text, weight)| ((*text).into(), *weight)).collect()
        };
        assert_eq!(parts("a cat"), expect(&[("a cat", 1.0)]));
        assert_eq!(
            parts("a cat :1.2 AND a dog: -.5\nAND x:1.2.3"),
            expect(&[("a cat", 1.2), (" a dog", -0.5), (" x:1.2.3", 1.0)])
        );
        assert_eq!(parts("SAND ANDY and"), expect(&[("SAND ANDY and", 1.0)]));
        assert_eq!(parts("AND"), expect(&[("", 1.0), ("", 1.0)]));
        assert_eq!(parts("(a:1.2)"), expect(&[("(a:1.2)", 1.0)]));
    }
}
