//! From the text of a query to its [`Expression`].

use std::ops::Range;

use regex::Regex;
use vodka_images::EXTENSIONS;
use vodka_stage::nearest;

use super::{
    fault::{QueryError, QueryFault},
    lex::{Scanner, Token, Value, said},
    syntax::{
        Bound, Expression, Flag, NumberField, Pattern, Relation, ScoreKind, Test, TextField, TextMatch, Unit,
    },
};
use crate::canonical;

/// So many parentheses and `not`s may stand within each other.
const DEPTH_MAX: usize = 200;

/// The expression, and the place of each of its tests.
pub(super) fn parse(text: &str) -> Result<(Expression, Vec<Range<usize>>), QueryError> {
    let mut parser = Parser { scanner: Scanner::new(text), places: Vec::new(), depth: 0 };
    let expression = parser.any()?;
    match parser.scanner.peek() {
        (Token::End, _) => Ok((expression, parser.places)),
        (found, at) => Err(parser.unexpected(at, found)),
    }
}

struct Parser<'a> {
    scanner: Scanner<'a>,
    places: Vec<Range<usize>>,
    depth: usize,
}

impl Parser<'_> {
    fn any(&mut self) -> Result<Expression, QueryError> {
        let mut parts = vec![self.all()?];
        while self.keyword("or") {
            parts.push(self.all()?);
        }
        Ok(one_or(parts, Expression::Any))
    }

    fn all(&mut self) -> Result<Expression, QueryError> {
        let mut parts = vec![self.single()?];
        while self.keyword("and") {
            parts.push(self.single()?);
        }
        Ok(one_or(parts, Expression::All))
    }

    fn single(&mut self) -> Result<Expression, QueryError> {
        let (_, at) = self.scanner.peek();
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.scanner.error(at, QueryFault::Deep { limit: DEPTH_MAX }));
        }
        let expression = if self.keyword("not") {
            Expression::Not(Box::new(self.single()?))
        } else if self.scanner.peek().0 == Token::Open {
            self.scanner.take();
            let inner = self.any()?;
            match self.scanner.take() {
                (Token::Close, _) => inner,
                (found, at) => return Err(self.expected("`and`, `or` or `)`", at, found)),
            }
        } else {
            Expression::Test(self.test()?)
        };
        self.depth -= 1;
        Ok(expression)
    }

    fn test(&mut self) -> Result<Test, QueryError> {
        let (token, at) = self.scanner.take();
        let Token::Word(word) = token else {
            return Err(self.expected("a test such as `tag:blurry` or `width>=768`", at, token));
        };
        let place = self.places.len();
        self.places.push(at.clone());
        let name = word.to_lowercase();
        let kind = ScoreKind::ALL.into_iter().find(|kind| kind.name() == name);
        let test = if let Some(kind) = kind {
            self.score(kind)?
        } else if let Some(field) = NumberField::named(&name) {
            self.number(field)?
        } else if let Some(field) = TextField::named(&name) {
            self.text(field)?
        } else if let Some(flag) = Flag::named(&name) {
            Test::Flag(flag)
        } else {
            return Err(self.scanner.error(at, unknown("field", &name, fields())));
        };
        let start = self.places[place].start;
        self.places[place] = start..self.scanner.position();
        Ok(test)
    }

    fn score(&mut self, kind: ScoreKind) -> Result<Test, QueryError> {
        self.colon()?;
        let Value { text, quoted, at } = self.scanner.value(&format!("the name of a {}", kind.name()))?;
        let name = canonical(&text);
        if name.is_empty() {
            let expected = format!("the name of a {}", kind.name());
            let fault = QueryFault::Expected { expected, found: "an empty text".into() };
            return Err(self.scanner.error(at, fault));
        }
        let is_glob = !quoted && name.contains(['*', '?']);
        let name = if is_glob { Pattern::Glob(name) } else { Pattern::Exact(name) };
        let Token::Relation(relation) = self.scanner.peek().0 else {
            return Ok(Test::Score { kind, name, bound: None });
        };
        self.scanner.take();
        let (bound, at) = self.bound(relation, kind.name(), &[Unit::Percent])?;
        if bound.value() > 1.0 {
            let found = format!("{}{}", bound.number, bound.unit.name());
            return Err(self.scanner.error(at, QueryFault::Score { found }));
        }
        Ok(Test::Score { kind, name, bound: Some(bound) })
    }

    fn number(&mut self, field: NumberField) -> Result<Test, QueryError> {
        let relation = match self.scanner.take() {
            (Token::Relation(relation), _) => relation,
            (found, at) => {
                return Err(self.expected("a comparison: `<`, `<=`, `>`, `>=`, `=` or `!=`", at, found));
            }
        };
        let (bound, _) = self.bound(relation, field.name(), field.units())?;
        Ok(Test::Number { field, bound })
    }

    fn bound(
        &mut self,
        relation: Relation,
        field: &'static str,
        units: &[Unit],
    ) -> Result<(Bound, Range<usize>), QueryError> {
        let (digits, unit, at) = self.scanner.number()?;
        let Some(number) = digits.parse().ok().filter(|number: &f64| number.is_finite()) else {
            let fault = QueryFault::Expected { expected: "a number".into(), found: format!("`{digits}`") };
            return Err(self.scanner.error(at, fault));
        };
        let unit = unit.to_lowercase();
        let fault = match Unit::named(&unit) {
            Some(unit) if unit == Unit::One || units.contains(&unit) => {
                return Ok((Bound { relation, number, unit }, at));
            }
            Some(unit) => QueryFault::Unit { field, unit: unit.name() },
            None => unknown("unit", &unit, Unit::ALL.iter().map(|unit| unit.name())),
        };
        Err(self.scanner.error(at, fault))
    }

    fn text(&mut self, field: TextField) -> Result<Test, QueryError> {
        let takes_regex = matches!(field, TextField::Caption | TextField::Name | TextField::Folder);
        match self.scanner.take() {
            (Token::Colon, _) => {}
            (Token::Tilde, _) if takes_regex => return self.regex(field),
            (found, at) => {
                let expected = if takes_regex { "`:` or `~`" } else { "`:`" };
                return Err(self.expected(expected, at, found));
            }
        }
        let Value { text, at, .. } = self.scanner.value("a text")?;
        let text = match field {
            TextField::Format => match format_of(&text.to_lowercase()) {
                Some(format) => format.to_owned(),
                None => return Err(self.scanner.error(at, unknown("format", &text, EXTENSIONS))),
            },
            TextField::Hash if text.is_empty() || !text.chars().all(|c| c.is_ascii_hexdigit()) => {
                let (expected, found) = ("hexadecimal digits".into(), format!("`{text}`"));
                return Err(self.scanner.error(at, QueryFault::Expected { expected, found }));
            }
            TextField::Hash => text.to_lowercase(),
            _ => text,
        };
        Ok(Test::Text { field, text: TextMatch::Plain(text) })
    }

    fn regex(&mut self, field: TextField) -> Result<Test, QueryError> {
        let Value { text, at, .. } = self.scanner.value("a regular expression in quotes")?;
        self.check_regex(Regex::new(&text), &at)?;
        Ok(Test::Text { field, text: TextMatch::Regex(text) })
    }

    fn check_regex(&self, regex: Result<Regex, regex::Error>, at: &Range<usize>) -> Result<(), QueryError> {
        let Err(error) = regex else { return Ok(()) };
        let said = error.to_string();
        // Below its own carets the crate says what is wrong.
        let reason = said.lines().last().unwrap_or_default();
        let reason = reason.trim_start_matches("error: ").to_owned();
        Err(self.scanner.error(at.clone(), QueryFault::Regex { reason }))
    }

    fn colon(&mut self) -> Result<(), QueryError> {
        match self.scanner.take() {
            (Token::Colon, _) => Ok(()),
            (found, at) => Err(self.expected("`:`", at, found)),
        }
    }

    /// Takes a word, in any case, if it is next.
    fn keyword(&mut self, word: &str) -> bool {
        let is_next = matches!(self.scanner.peek().0, Token::Word(next) if next.eq_ignore_ascii_case(word));
        if is_next {
            self.scanner.take();
        }
        is_next
    }

    fn expected(&self, expected: &str, at: Range<usize>, found: Token<'_>) -> QueryError {
        let fault = QueryFault::Expected { expected: expected.to_owned(), found: said(found) };
        self.scanner.error(at, fault)
    }

    /// Something after a whole expression.
    fn unexpected(&self, at: Range<usize>, found: Token<'_>) -> QueryError {
        let expected = match found {
            Token::Other(text) if text.starts_with('&') => "`and`",
            Token::Other(text) if text.starts_with('|') => "`or`",
            _ => "`and`, `or` or the end",
        };
        self.expected(expected, at, found)
    }
}

fn one_or(mut parts: Vec<Expression>, several: fn(Vec<Expression>) -> Expression) -> Expression {
    if parts.len() == 1 { parts.remove(0) } else { several(parts) }
}

fn fields() -> impl Iterator<Item = &'static str> {
    let scores = ScoreKind::ALL.into_iter().map(ScoreKind::name);
    let numbers = NumberField::ALL.iter().map(|field| field.name());
    let texts = TextField::ALL.iter().map(|field| field.name());
    scores.chain(numbers).chain(texts).chain(Flag::ALL.iter().map(|flag| flag.name()))
}

pub(super) fn unknown<'a>(
    what: &'static str,
    name: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> QueryFault {
    let known = known.into_iter().filter(|known| !known.is_empty());
    QueryFault::Unknown { what, name: name.to_owned(), nearest: nearest(name, known).map(ToOwned::to_owned) }
}

/// The format that an ending in lower case stands for.
pub(super) fn format_of(ending: &str) -> Option<&'static str> {
    match ending {
        "jpg" | "jpeg" | "jfif" => Some("jpeg"),
        ending => EXTENSIONS.into_iter().find(|known| *known == ending),
    }
}
