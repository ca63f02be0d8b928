//! The query language: which pictures of a dataset have what.
//!
//! `tag:blurry>0.9 and not tag:monochrome and width>=768 and tokens<=75`; the grammar and what each field means are in
//! `docs/query.md`. A [`Query`] is parsed without a dataset, asked of [`Facts`] on values, or of a [`Dataset`] on disk.
//!
//! ```
//! use vodka_captions::query::Query;
//! let query: Query = r#"tag:"Blurry Background" > 90% and not (width<768 or height<768)"#.parse()?;
//! assert_eq!(query.to_string(), "tag:blurry_background>90% and not (width<768 or height<768)");
//! let error = "tag:blurry and widht>=768".parse::<Query>().unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     "query, byte 15: no field `widht`, did you mean `width`?\n  tag:blurry and widht>=768\n                 ^^^^^"
//! );
//! # Ok::<(), vodka_captions::query::QueryError>(())
//! ```

mod dataset;
mod evaluate;
mod exclusions;
mod facts;
mod fault;
mod lex;
mod names;
mod parse;
mod pictures;
mod syntax;

#[cfg(test)]
mod tests;

use std::{fmt, ops::Range, str::FromStr};

use serde::{Serialize, Serializer};

pub use dataset::{Dataset, DatasetPlan, Loaded, Unread};
pub(crate) use dataset::{Needs, check_shared};
pub use evaluate::{Answer, Part, evaluate};
pub use exclusions::read_exclusions;
pub(crate) use exclusions::{exclusions, read_all_exclusions};
pub use facts::{Facts, Sharpness};
pub use fault::{QueryError, QueryFault};
pub use names::Names;
pub use pictures::{PictureFacts, PictureTable};
pub use syntax::{
    Bound, Expression, Flag, NumberField, Pattern, Relation, ScoreKind, Test, TextField, TextMatch, Unit,
};

/// A query that has been parsed. Two are equal when they say the same, however they are spelled.
#[derive(Debug, Clone)]
pub struct Query {
    text: String,
    expression: Expression,
    /// The place of each test in the text, in order.
    places: Vec<Range<usize>>,
}

impl Query {
    /// What it says.
    pub fn expression(&self) -> &Expression {
        &self.expression
    }

    /// A fault of the test with this number.
    fn error(&self, test: usize, fault: QueryFault) -> QueryError {
        QueryError { text: self.text.clone(), at: self.places[test].clone(), fault: Box::new(fault) }
    }

    /// The tests that ask for a score, in order: each picture has one score for each of them.
    pub(crate) fn score_tests(&self) -> impl Iterator<Item = (usize, ScoreKind, &Pattern)> {
        let tests = self.expression.tests().into_iter().enumerate();
        tests.filter_map(|(number, test)| match test {
            Test::Score { kind, name, .. } => Some((number, *kind, name)),
            _ => None,
        })
    }
}

impl PartialEq for Query {
    fn eq(&self, other: &Self) -> bool {
        self.expression == other.expression
    }
}

impl FromStr for Query {
    type Err = QueryError;

    fn from_str(text: &str) -> Result<Self, QueryError> {
        let (expression, places) = parse::parse(text)?;
        Ok(Self { text: text.to_owned(), expression, places })
    }
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.expression.fmt(f)
    }
}

impl Serialize for Query {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
