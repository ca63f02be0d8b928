//! Patterns with `*` and `?`, which fit whole texts only.

use crate::canonical;

/// A pattern: `*` stands for any characters, also none, `?` for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Glob(Vec<Piece>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    /// Any characters.
    Any,
    /// Any characters without a `/`.
    AnyOfPart,
    /// A character.
    One,
    /// A character that is no `/`.
    OneOfPart,
    This(char),
}

impl Glob {
    /// Reads a pattern of names, which is made canonical as names are; `\*` and `\?` stand for themselves.
    pub(crate) fn of_names(pattern: &str) -> Self {
        let mut pieces = Vec::new();
        let pattern = canonical(pattern);
        let mut chars = pattern.chars().peekable();
        while let Some(c) = chars.next() {
            pieces.push(match c {
                '\\' => Piece::This(chars.next_if(|c| matches!(c, '*' | '?')).unwrap_or(c)),
                c => Piece::new(c),
            });
        }
        Self(pieces)
    }

    /// Takes a pattern of names as it is.
    pub(crate) fn plain(pattern: &str) -> Self {
        Self(pattern.chars().map(Piece::new).collect())
    }

    /// Takes a pattern of paths as it is: neither `*` nor `?` is a `/`; `**` is any text still.
    pub(crate) fn of_paths(pattern: &str) -> Self {
        let mut pieces = Vec::new();
        let mut chars = pattern.chars().peekable();
        while let Some(c) = chars.next() {
            pieces.push(match (Piece::new(c), c) {
                (Piece::Any, _) if chars.next_if_eq(&'*').is_some() => Piece::Any,
                (Piece::Any, _) => Piece::AnyOfPart,
                (Piece::One, _) => Piece::OneOfPart,
                (piece, _) => piece,
            });
        }
        Self(pieces)
    }

    /// The one text that fits, where the pattern has neither `*` nor `?`.
    pub(crate) fn name(&self) -> Option<String> {
        let this = |piece: &Piece| if let Piece::This(c) = piece { Some(*c) } else { None };
        self.0.iter().map(this).collect()
    }

    /// Whether the whole of a text fits.
    pub(crate) fn fits(&self, text: &str) -> bool {
        let text: Vec<_> = text.chars().collect();
        let pieces = &self.0;
        let (mut at, mut piece) = (0, 0);
        // The last `Any` and the last `AnyOfPart` after it, and where what they stand for ends so far. What an earlier one
        // could take, the later one can too.
        let (mut any, mut any_of_part) = (None, None);
        while at < text.len() {
            match pieces.get(piece) {
                Some(Piece::Any) => {
                    (any, any_of_part) = (Some((piece, at)), None);
                    piece += 1;
                    continue;
                }
                Some(Piece::AnyOfPart) => {
                    any_of_part = Some((piece, at));
                    piece += 1;
                    continue;
                }
                Some(fitting) if fitting.fits(text[at]) => {
                    (at, piece) = (at + 1, piece + 1);
                    continue;
                }
                _ => {}
            }
            match (any_of_part, any) {
                (Some((place, end)), _) if text[end] != '/' => {
                    any_of_part = Some((place, end + 1));
                    (at, piece) = (end + 1, place + 1);
                }
                (_, Some((place, end))) => {
                    (any, any_of_part) = (Some((place, end + 1)), None);
                    (at, piece) = (end + 1, place + 1);
                }
                _ => return false,
            }
        }
        pieces[piece..].iter().all(|piece| matches!(piece, Piece::Any | Piece::AnyOfPart))
    }
}

impl Piece {
    fn new(c: char) -> Self {
        match c {
            '*' => Self::Any,
            '?' => Self::One,
            c => Self::This(c),
        }
    }

    /// Whether it stands for this one character.
    fn fits(self, c: char) -> bool {
        match self {
            Self::Any | Self::AnyOfPart => false,
            Self::One => true,
            Self::OneOfPart => c != '/',
            Self::This(this) => this == c,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use regex::Regex;

    use super::*;

    /// The same as a regular expression.
    fn expression(pattern: &str, paths: bool) -> Regex {
        let escaped = regex::escape(pattern);
        let escaped = match paths {
            true => escaped.replace(r"\*\*", ".<any>").replace(r"\*", "[^/]*").replace(r"\?", "[^/]"),
            false => escaped.replace(r"\*", ".<any>").replace(r"\?", "."),
        };
        Regex::new(&format!("(?s)^{}$", escaped.replace("<any>", "*"))).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn globs_fit_as_regular_expressions_do(pattern in "[ab*?]{0,8}", name in "[ab]{0,8}") {
            let expected = expression(&pattern, false).is_match(&name);
            prop_assert_eq!(Glob::of_names(&pattern).fits(&name), expected);
            prop_assert_eq!(Glob::plain(&pattern).fits(&name), expected);
        }

        #[test]
        fn in_paths_a_slash_is_only_for_two_stars(pattern in "[ab/*?]{0,9}", path in "[ab/]{0,9}") {
            prop_assert_eq!(Glob::of_paths(&pattern).fits(&path), expression(&pattern, true).is_match(&path));
        }
    }

    #[test]
    fn whole_names_fit_and_escapes_are_plain() {
        assert!(Glob::of_names("Blurry *").fits("blurry_background"));
        assert!(!Glob::of_names("blurry").fits("blurry_background"));
        assert!(!Glob::of_names("background").fits("blurry_background"));
        assert_eq!(Glob::of_names(r"\?").name().as_deref(), Some("?"));
        assert_eq!(Glob::of_names(r"\m/").name().as_deref(), Some(r"\m/"));
        assert_eq!(Glob::of_names("a*").name(), None);
        assert!(Glob::of_names("*").fits("") && !Glob::of_names("?").fits(""));
        assert!(Glob::plain(r"\*").fits(r"\m/") && !Glob::plain(r"\*").fits("*"));
    }
}
