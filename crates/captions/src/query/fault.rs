//! What can be wrong with a query, and how it is shown.

use std::{fmt, ops::Range};

/// A query that cannot be understood or answered, with the place of the fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryError {
    /// The whole query.
    pub text: String,
    /// The bytes that the fault is about, from 0.
    pub at: Range<usize>,
    /// What is wrong.
    pub fault: Box<QueryFault>,
}

/// What is wrong with a query.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueryFault {
    /// Something else should stand there.
    #[error("expected {expected}, found {found}")]
    Expected {
        /// What would do.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A name that nothing has.
    #[error("no {what} `{name}`{}", nearest.as_ref().map(|near| format!(", did you mean `{near}`?")).unwrap_or_default())]
    Unknown {
        /// What it should be the name of: a field, a tag, a rating, a category, a format, a unit.
        what: &'static str,
        /// The name.
        name: String,
        /// The known name most like it.
        nearest: Option<String>,
    },
    /// A score outside its range.
    #[error("a score is from 0 to 1 (0% to 100%), found {found}")]
    Score {
        /// As it is written.
        found: String,
    },
    /// A unit that the field is not measured in.
    #[error("`{field}` does not take the unit `{unit}`")]
    Unit {
        /// The field.
        field: &'static str,
        /// The unit.
        unit: &'static str,
    },
    /// A regular expression that is none.
    #[error("not a regular expression: {reason}")]
    Regex {
        /// What the regex crate says, in one line.
        reason: String,
    },
    /// A text without its end.
    #[error("the text has no closing `\"`")]
    Unclosed,
    /// Too many things within each other.
    #[error("more than {limit} parentheses and `not`s within each other")]
    Deep {
        /// How many there may be.
        limit: usize,
    },
    /// A field that the dataset given says nothing about.
    #[error("`{field}` needs {needed}, and none is given")]
    Needs {
        /// The field.
        field: &'static str,
        /// What it needs.
        needed: &'static str,
    },
}

impl std::error::Error for QueryError {}

impl fmt::Display for QueryError {
    /// The fault with its byte, the line it is in, and carets below the bytes it is about.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Range { start, end } = self.at;
        let line_start = self.text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = self.text[start..].find('\n').map_or(self.text.len(), |at| start + at);
        let line = self.text[line_start..line_end].trim_end();
        write!(f, "query, byte {start}")?;
        if self.text.trim_end().contains('\n') {
            write!(f, " (line {})", self.text[..start].matches('\n').count() + 1)?;
        }
        let width = |text: &str| text.chars().count();
        let before = width(&self.text[line_start..start]);
        let carets = width(&self.text[start..end.clamp(start, line_end)]).max(1);
        let line: String = line.chars().map(|c| if c == '\t' { ' ' } else { c }).collect();
        write!(f, ": {}\n  {line}\n  {}{}", self.fault, " ".repeat(before), "^".repeat(carets))
    }
}
