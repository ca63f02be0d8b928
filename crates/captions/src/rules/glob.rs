//! Patterns with `*` and `?`, which fit whole names only.

use crate::canonical;

/// A pattern: `*` stands for any characters, also none, `?` for one; `\*` and `\?` stand for themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Glob(Vec<Piece>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Any,
    One,
    This(char),
}

impl Glob {
    /// Reads a pattern, which is made canonical as names are.
    pub(crate) fn new(pattern: &str) -> Self {
        let mut pieces = Vec::new();
        let pattern = canonical(pattern);
        let mut chars = pattern.chars().peekable();
        while let Some(c) = chars.next() {
            pieces.push(match c {
                '\\' => Piece::This(chars.next_if(|c| matches!(c, '*' | '?')).unwrap_or(c)),
                '*' => Piece::Any,
                '?' => Piece::One,
                _ => Piece::This(c),
            });
        }
        Self(pieces)
    }

    /// The one name that fits, where the pattern has neither `*` nor `?`.
    pub(crate) fn name(&self) -> Option<String> {
        let this = |piece: &Piece| if let Piece::This(c) = piece { Some(*c) } else { None };
        self.0.iter().map(this).collect()
    }

    /// Whether the whole of a canonical name fits.
    pub(crate) fn fits(&self, name: &str) -> bool {
        let name: Vec<_> = name.chars().collect();
        let pieces = &self.0;
        let (mut at, mut piece) = (0, 0);
        // The last `*`, and where what it stands for ends so far.
        let mut star = None;
        while at < name.len() {
            match pieces.get(piece) {
                Some(Piece::Any) => {
                    star = Some((piece, at));
                    piece += 1;
                }
                Some(Piece::One) => (at, piece) = (at + 1, piece + 1),
                Some(Piece::This(c)) if *c == name[at] => (at, piece) = (at + 1, piece + 1),
                _ => match star {
                    Some((place, end)) => {
                        star = Some((place, end + 1));
                        (at, piece) = (end + 1, place + 1);
                    }
                    None => return false,
                },
            }
        }
        pieces[piece..].iter().all(|piece| *piece == Piece::Any)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use regex::Regex;

    use super::*;

    /// The same as a regular expression.
    fn expression(pattern: &str) -> Regex {
        let escaped = regex::escape(pattern).replace(r"\*", ".*").replace(r"\?", ".");
        Regex::new(&format!("(?s)^{escaped}$")).unwrap()
    }

    proptest! {
        #[test]
        fn globs_fit_as_regular_expressions_do(pattern in "[ab*?]{0,8}", name in "[ab]{0,8}") {
            prop_assert_eq!(Glob::new(&pattern).fits(&name), expression(&pattern).is_match(&name));
        }
    }

    #[test]
    fn whole_names_fit_and_escapes_are_plain() {
        assert!(Glob::new("Blurry *").fits("blurry_background"));
        assert!(!Glob::new("blurry").fits("blurry_background"));
        assert!(!Glob::new("background").fits("blurry_background"));
        assert_eq!(Glob::new(r"\?").name().as_deref(), Some("?"));
        assert_eq!(Glob::new(r"\m/").name().as_deref(), Some(r"\m/"));
        assert_eq!(Glob::new("a*").name(), None);
        assert!(Glob::new("*").fits("") && !Glob::new("?").fits(""));
    }
}
