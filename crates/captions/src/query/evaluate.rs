//! Asks a query of many pictures at once.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    Query,
    facts::{Facts, check},
    syntax::{Expression, Test},
};

/// Which pictures fit, and how many fit each part of the query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// For each picture whether it fits.
    pub fits: Vec<bool>,
    /// The query and its parts, each before what it is made of.
    pub parts: Vec<Part>,
}

/// How many pictures fit a part of a query, by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// How deep it lies; the whole query is at 0.
    pub depth: usize,
    /// Its text.
    pub text: String,
    /// How many pictures fit.
    pub images: u64,
}

/// Asks a query of pictures. Its scores begin at `first_slot` of [`Facts::scores`]; a tag without a comparison is there
/// at `min_score`, 0 to 1.
///
/// # Panics
/// Where a picture has fewer scores than the query asks for.
pub fn evaluate(query: &Query, first_slot: usize, min_score: f32, pictures: &[Facts]) -> Answer {
    let mut evaluator = Evaluator { pictures, min_score, slot: first_slot, parts: Vec::new() };
    let fits = evaluator.fits(query.expression(), 0);
    Answer { fits, parts: evaluator.parts }
}

struct Evaluator<'a> {
    pictures: &'a [Facts],
    min_score: f32,
    /// The place of the next score.
    slot: usize,
    parts: Vec<Part>,
}

impl Evaluator<'_> {
    fn fits(&mut self, expression: &Expression, depth: usize) -> Vec<bool> {
        let number = self.parts.len();
        self.parts.push(Part { depth, text: expression.to_string(), images: 0 });
        let fits = match expression {
            Expression::Any(parts) => self.joined(parts, depth, |a, b| a | b),
            Expression::All(parts) => self.joined(parts, depth, |a, b| a & b),
            Expression::Not(part) => self.fits(part, depth + 1).into_iter().map(|fits| !fits).collect(),
            Expression::Test(test) => {
                let check = check(test, self.slot, self.min_score);
                self.slot += usize::from(matches!(test, Test::Score { .. }));
                self.pictures.par_iter().map(&check).collect()
            }
        };
        self.parts[number].images = fits.iter().filter(|fits| **fits).count() as u64;
        fits
    }

    fn joined(&mut self, parts: &[Expression], depth: usize, join: fn(bool, bool) -> bool) -> Vec<bool> {
        let mut parts = parts.iter();
        let first = parts.next().expect("the parser makes none without parts");
        let mut all = self.fits(first, depth + 1);
        for part in parts {
            let more = self.fits(part, depth + 1);
            all.iter_mut().zip(more).for_each(|(a, b)| *a = join(*a, b));
        }
        all
    }
}
