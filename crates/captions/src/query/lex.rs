//! Reads a query piece by piece.
//!
//! What a piece is depends on what stands before it: after `tag:` almost anything is a name. So the parser asks for
//! what it wants, and nothing is cut up beforehand.

use std::ops::Range;

use super::{
    fault::{QueryError, QueryFault},
    syntax::Relation,
};

/// A piece of a query, outside names and texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// Letters, digits and underscores that do not start with a digit.
    Word(&'a str),
    Relation(Relation),
    Colon,
    Tilde,
    Open,
    Close,
    End,
    /// Whatever else stands there, up to the next space.
    Other(&'a str),
}

/// A name or a text after `:` or `~`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Value {
    pub text: String,
    pub quoted: bool,
    pub at: Range<usize>,
}

#[derive(Debug, Clone)]
pub(super) struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// Where the last piece taken ends.
    pub fn position(&self) -> usize {
        self.at
    }

    pub fn error(&self, at: Range<usize>, fault: QueryFault) -> QueryError {
        QueryError { text: self.text.to_owned(), at, fault: Box::new(fault) }
    }

    /// The next token and its place, without taking it.
    pub fn peek(&self) -> (Token<'a>, Range<usize>) {
        let start = self.at + blank(&self.text[self.at..], true);
        let rest = &self.text[start..];
        let (token, length) = token(rest);
        (token, start..start + length)
    }

    pub fn take(&mut self) -> (Token<'a>, Range<usize>) {
        let (token, at) = self.peek();
        self.at = at.end;
        (token, at)
    }

    /// A number and what is written close behind it.
    pub fn number(&mut self) -> Result<(&'a str, &'a str, Range<usize>), QueryError> {
        let start = self.at + blank(&self.text[self.at..], true);
        let rest = &self.text[start..];
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let tail = &rest[digits..];
        let unit = tail.len() - tail.trim_start_matches(|c: char| c.is_alphanumeric() || c == '%').len();
        if digits == 0 {
            let (found, at) = self.peek();
            return Err(
                self.error(at, QueryFault::Expected { expected: "a number".into(), found: said(found) })
            );
        }
        self.at = start + digits + unit;
        Ok((&rest[..digits], &tail[..unit], start..self.at))
    }

    /// A name or a text: in quotes, in which `\"` is a quote and `\\` a backslash, or up to a space, a comparison, or a
    /// closing parenthesis that it has not opened.
    pub fn value(&mut self, expected: &str) -> Result<Value, QueryError> {
        let start = self.at + blank(&self.text[self.at..], false);
        let rest = &self.text[start..];
        if rest.starts_with('"') {
            let Some((text, length)) = unquote(rest) else {
                return Err(self.error(start..self.text.len(), QueryFault::Unclosed));
            };
            self.at = start + length;
            return Ok(Value { text, quoted: true, at: start..self.at });
        }
        let length = bare(rest);
        if length == 0 {
            let (found, at) = self.peek();
            let fault = QueryFault::Expected { expected: expected.to_owned(), found: said(found) };
            return Err(self.error(at, fault));
        }
        self.at = start + length;
        Ok(Value { text: rest[..length].to_owned(), quoted: false, at: start..self.at })
    }
}

/// A token as errors name it.
pub(super) fn said(token: Token<'_>) -> String {
    match token {
        Token::Word(text) | Token::Other(text) => format!("`{text}`"),
        Token::Relation(relation) => format!("`{}`", relation.name()),
        Token::Colon => "`:`".into(),
        Token::Tilde => "`~`".into(),
        Token::Open => "`(`".into(),
        Token::Close => "`)`".into(),
        Token::End => "the end".into(),
    }
}

/// How many bytes of white space the text starts with, comments included where they may stand.
fn blank(text: &str, comments: bool) -> usize {
    let mut rest = text.trim_start();
    while comments && rest.starts_with('#') {
        rest = rest.find('\n').map_or("", |end| &rest[end..]).trim_start();
    }
    text.len() - rest.len()
}

/// The token that a text starts with, and its length.
fn token(text: &str) -> (Token<'_>, usize) {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let Some(first) = text.chars().next() else { return (Token::End, 0) };
    // The longer one first.
    let relations = [("==", Relation::Equal)].into_iter();
    let relations = relations.chain(Relation::ALL.iter().map(|relation| (relation.name(), *relation)));
    let found = relations.filter(|(name, _)| text.starts_with(name)).max_by_key(|(name, _)| name.len());
    if let Some((name, relation)) = found {
        return (Token::Relation(relation), name.len());
    }
    match first {
        ':' => (Token::Colon, 1),
        '~' => (Token::Tilde, 1),
        '(' => (Token::Open, 1),
        ')' => (Token::Close, 1),
        c if is_word(c) && !c.is_ascii_digit() => {
            let length = text.find(|c| !is_word(c)).unwrap_or(text.len());
            (Token::Word(&text[..length]), length)
        }
        _ => {
            let length = text.find(char::is_whitespace).unwrap_or(text.len());
            (Token::Other(&text[..length]), length)
        }
    }
}

/// How long a name without quotes is.
fn bare(text: &str) -> usize {
    let mut open = 0;
    for (at, c) in text.char_indices() {
        match c {
            '(' => open += 1,
            ')' if open == 0 => return at,
            ')' => open -= 1,
            '"' | '<' | '>' | '=' => return at,
            '!' if text[at..].starts_with("!=") => return at,
            c if c.is_whitespace() => return at,
            _ => {}
        }
    }
    text.len()
}

/// The content of the quoted text at the start, and its length with the quotes.
fn unquote(text: &str) -> Option<(String, usize)> {
    let mut content = String::new();
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((content, at + 1)),
            '\\' => match chars.next_if(|(_, next)| matches!(next, '"' | '\\')) {
                Some((_, escaped)) => content.push(escaped),
                // So that `"\d+"` is what it looks like.
                None => content.push('\\'),
            },
            c => content.push(c),
        }
    }
    None
}
