//! Which tags the names in a query mean.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Query,
    fault::{QueryError, QueryFault},
    parse::unknown,
    syntax::{Pattern, ScoreKind},
};
use crate::{canonical, glob::Glob};

/// The category of ratings.
const RATING: &str = "rating";

/// The tags that may be asked for: each canonical name with its categories, which are canonical as well.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    tags: BTreeMap<String, BTreeSet<String>>,
}

impl Names {
    /// Adds a tag, and a category where one is known.
    pub fn add(&mut self, tag: &str, category: Option<&str>) {
        let categories = self.tags.entry(canonical(tag)).or_default();
        categories.extend(category.map(canonical).filter(|category| !category.is_empty()));
    }

    /// The tags meant by each test of the query that asks for a score, in order. A name that means none is an error,
    /// or, where `lenient`, a warning.
    ///
    /// # Errors
    /// A tag, rating or category that is not there, with the nearest that is.
    pub fn resolve(&self, query: &Query, lenient: bool) -> Result<(Vec<Vec<&str>>, Vec<String>), QueryError> {
        let mut warnings = Vec::new();
        let mut meant = Vec::new();
        for (number, kind, name) in query.score_tests() {
            let tags = self.meant(kind, name);
            if tags.is_empty() {
                let fault = self.unknown(kind, name);
                match lenient {
                    true => warnings.push(fault.to_string()),
                    false => return Err(query.error(number, fault)),
                }
            }
            meant.push(tags);
        }
        Ok((meant, warnings))
    }

    /// The tags that a name means.
    fn meant(&self, kind: ScoreKind, name: &Pattern) -> Vec<&str> {
        let fits = fits(name);
        let tags = self.tags.iter().filter(|(tag, categories)| match kind {
            ScoreKind::Tag => fits(tag),
            ScoreKind::Rating => categories.contains(RATING) && (fits(tag) || fits(short(tag))),
            ScoreKind::Category => categories.iter().any(|category| fits(category)),
        });
        tags.map(|(tag, _)| tag.as_str()).collect()
    }

    fn unknown(&self, kind: ScoreKind, name: &Pattern) -> QueryFault {
        let (Pattern::Exact(name) | Pattern::Glob(name)) = name;
        let tags = self.tags.iter();
        match kind {
            ScoreKind::Tag => unknown("tag", name, tags.map(|(tag, _)| tag.as_str())),
            ScoreKind::Rating => {
                let ratings = tags.filter(|(_, categories)| categories.contains(RATING));
                unknown("rating", name, ratings.map(|(tag, _)| short(tag)))
            }
            ScoreKind::Category => unknown(
                "category",
                name,
                tags.flat_map(|(_, categories)| categories.iter().map(String::as_str)),
            ),
        }
    }
}

/// A rating without the prefix that some taggers give it.
fn short(tag: &str) -> &str {
    tag.strip_prefix("rating:").unwrap_or(tag)
}

fn fits(name: &Pattern) -> Box<dyn Fn(&str) -> bool + '_> {
    match name {
        Pattern::Exact(name) => Box::new(move |tag| tag == name),
        Pattern::Glob(text) => {
            let glob = Glob::plain(text);
            Box::new(move |tag| glob.fits(tag))
        }
    }
}
