//! The attention part of A1111's prompt language: brackets that weigh, escapes, and `BREAK`.

use std::sync::LazyLock;

use regex::Regex;

use crate::{Error, Result};

/// What a pair of round brackets multiplies by; a pair of square brackets divides.
const STEP: f64 = 1.1;
/// How A1111 tells its own mark of a break from the same word written by a user.
const BREAK: (&str, f64) = ("BREAK", -1.0);

/// A part of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// Text with the weight of its tokens; 1 is none.
    Text {
        /// Without the syntax around it.
        text: String,
        /// What its brackets multiply to.
        weight: f64,
    },
    /// The word `BREAK`: the rest begins a new chunk.
    Break,
}

static TOKEN: LazyLock<Regex> = LazyLock::new(|| {
    let token = r"\\[()\[\]\\]|\\|\(|\[|:\s*([+-]?[.\d]+)\s*\)|\)|\]|[^\\()\[\]:]+|:";
    Regex::new(token).expect("a constant")
});
static BREAK_WORD: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\s*\bBREAK\b\s*").expect("a constant"));

/// Splits a prompt by weight: `(x)` is 1.1, `[x]` its inverse, `(x:w)` is w; what is nested multiplies; `\(` and its
/// like are the character; neighbours of one weight are one piece. Open brackets reach to the end; what is no syntax
/// is text (stable-diffusion-webui 1.10.1, `modules/prompt_parser.py`, `parse_prompt_attention`).
///
/// As there, a `BREAK` inside of weighing brackets is a word like any other, and an empty prompt is one empty piece.
///
/// # Errors
/// A weight that is no number, such as `(x:1.2.3)`.
pub fn parse_attention(prompt: &str) -> Result<Vec<Piece>> {
    let mut found: Vec<(String, f64)> = Vec::new();
    let (mut round, mut square) = (Vec::new(), Vec::new());
    let multiply = |found: &mut [(String, f64)], from: usize, by: f64| {
        found[from..].iter_mut().for_each(|(_, weight)| *weight *= by);
    };
    for token in TOKEN.captures_iter(prompt) {
        let text = &token[0];
        match (text, token.get(1)) {
            ("(", _) => round.push(found.len()),
            ("[", _) => square.push(found.len()),
            (_, Some(weight)) if !round.is_empty() => {
                let weight = read_weight(weight.as_str())?;
                multiply(&mut found, round.pop().unwrap_or_default(), weight);
            }
            (")", _) if !round.is_empty() => multiply(&mut found, round.pop().unwrap_or_default(), STEP),
            ("]", _) if !square.is_empty() => {
                multiply(&mut found, square.pop().unwrap_or_default(), 1.0 / STEP);
            }
            _ => match text.strip_prefix('\\') {
                Some(escaped) => found.push((escaped.to_owned(), 1.0)),
                None => push_text(text, &mut found),
            },
        }
    }
    for from in round {
        multiply(&mut found, from, STEP);
    }
    for from in square {
        multiply(&mut found, from, 1.0 / STEP);
    }
    if found.is_empty() {
        found.push((String::new(), 1.0));
    }
    Ok(merge(found).into_iter().map(piece).collect())
}

fn push_text(text: &str, found: &mut Vec<(String, f64)>) {
    for (i, part) in BREAK_WORD.split(text).enumerate() {
        if i > 0 {
            found.push((BREAK.0.to_owned(), BREAK.1));
        }
        found.push((part.to_owned(), 1.0));
    }
}

fn merge(found: Vec<(String, f64)>) -> Vec<(String, f64)> {
    let mut merged: Vec<(String, f64)> = Vec::with_capacity(found.len());
    for (text, weight) in found {
        match merged.last_mut() {
            Some((before, same)) if *same == weight => before.push_str(&text),
            _ => merged.push((text, weight)),
        }
    }
    merged
}

fn piece((text, weight): (String, f64)) -> Piece {
    if (text.as_str(), weight) == BREAK { Piece::Break } else { Piece::Text { text, weight } }
}

/// A weight as Python's `float` reads it from signs, points and decimal digits of any script.
fn read_weight(text: &str) -> Result<f64> {
    let ascii: String = text.chars().map(|c| c.to_digit(10).map_or(c, ascii_digit)).collect();
    ascii.parse().map_err(|_| Error::Weight { found: text.to_owned() })
}

fn ascii_digit(digit: u32) -> char {
    char::from_digit(digit, 10).expect("below ten")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(prompt: &str) -> Vec<(String, f64)> {
        let found = parse_attention(prompt).unwrap().into_iter().map(|piece| match piece {
            Piece::Text { text, weight } => (text, (weight * 1e6).round() / 1e6),
            Piece::Break => ("BREAK".into(), -1.0),
        });
        found.collect()
    }

    fn check(prompt: &str, expected: &[(&str, f64)]) {
        let expected: Vec<_> = expected.iter().map(|(text, weight)| ((*text).to_owned(), *weight)).collect();
        assert_eq!(pieces(prompt), expected, "{prompt}");
    }

    #[test]
    fn the_examples_of_a1111() {
        check("normal text", &[("normal text", 1.0)]);
        check("an (important) word", &[("an ", 1.0), ("important", 1.1), (" word", 1.0)]);
        check("(unbalanced", &[("unbalanced", 1.1)]);
        check(r"\(literal\]", &[("(literal]", 1.0)]);
        check("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]);
        check(
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            &[
                ("a ", 1.0),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        );
    }

    #[test]
    fn what_is_no_syntax_is_text() {
        check("", &[("", 1.0)]);
        check("a) b] c:1.2) d:e", &[("a) b] c:1.2) d:e", 1.0)]);
        check(r"\a \\ \", &[(r"a \ ", 1.0)]);
        check("(x:1.2e3)", &[("x:1.2e3", 1.1)]);
        check("(x: -.5 )", &[("x", -0.5)]);
        check("[x:2]", &[("x:2", 0.909_091)]);
    }

    #[test]
    fn a_break_is_a_word_of_its_own_outside_of_brackets() {
        check("a BREAK b", &[("a", 1.0), ("BREAK", -1.0), ("b", 1.0)]);
        check("aBREAK BREAKs", &[("aBREAK BREAKs", 1.0)]);
        check("BREAK\nBREAK", &[("", 1.0), ("BREAK", -1.0), ("", 1.0), ("BREAK", -1.0), ("", 1.0)]);
        check("(a BREAK b)", &[("a", 1.1), ("BREAK", -1.1), ("b", 1.1)]);
    }

    #[test]
    fn a_weight_that_is_no_number_is_an_error() {
        for (prompt, found) in [("(x:1.2.3)", "1.2.3"), ("(x:.)", ".")] {
            let said = parse_attention(prompt).unwrap_err().to_string();
            assert_eq!(said, format!("the weight `{found}` in a prompt is no number"));
        }
        check("x:.) 1.2.3)", &[("x:.) 1.2.3)", 1.0)]);
    }
}
