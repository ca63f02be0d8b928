//! Tag tables, tag selection, analysis, caption writing.
//!
//! The stages: [`select`] marks the tags worth having in the tagger's `selected_tags.csv`, [`clean`] puts a tag table
//! through rules, [`analysis`] counts tags, [`report`] shows what they do, and [`caption`] puts the best few of them into the
//! captions, which [`undo`] takes back. [`recaption`] gets captions from elsewhere, and [`mix`] takes a share of them.
//! [`filter`], [`segment`] and [`duplicates`] choose pictures, the first two by a [`query`]. Captions are read
//! ([`read_captions`]) and written in every [`CaptionFormat`]. What they share is
//! plain: [`canonical`] names, [`choose`] and [`compose`] on values, [`TagTable`] and [`Selection`] on files.
//!
//! ```
//! use vodka_captions::{Position, TagScore, choose, compose};
//! let vocabulary = ["blurry_background", "solo", "^_^"];
//! let scores = [TagScore { tag: 2, score: 0.9 }, TagScore { tag: 0, score: 0.35 }, TagScore { tag: 1, score: 0.2 }];
//! let best: Vec<_> = choose(&scores, 3, 0.3).into_iter().map(|tag| vocabulary[tag]).collect();
//! assert_eq!(compose("a red circle", &best, Position::Prepend), "^_^, blurry background, a red circle");
//! ```

pub mod analysis;
pub mod caption;
pub mod clean;
pub mod duplicates;
pub mod filter;
pub mod mix;
pub mod query;
pub mod recaption;
pub mod report;
pub mod segment;
pub mod select;
pub mod undo;

mod caption_table;
mod captioned;
mod compose;
#[cfg(test)]
mod crash;
mod disk;
mod encoding;
mod error;
mod formats;
mod frame;
mod glob;
mod heard;
mod lists;
mod names;
mod place;
mod rows;
mod rules;
mod selection;
mod sheet;
mod sidecar;
mod table;
mod template;
mod written;

pub use caption_table::CaptionPair;
pub use compose::{Joining, MARKER, Position, TagScore, choose, choose_by, compose, head};
pub use encoding::{Decoded, decode, encoding_named};
pub use error::{Error, Result};
pub use formats::{CaptionFormat, CaptionSet, CaptionSource, FoundCaption, Guessed, read_captions};
pub(crate) use formats::{Edits, Gathered, Place, gather, named, new_key, png};
pub(crate) use heard::{heard, stop_if};
pub use lists::IMAGE_PRODUCTION;
pub use names::{KAOMOJI, canonical, displayed};
pub use rules::{ImplicationMode, RuleFileUse, RuleHits, RuleKind, RuleUse, Rules, ScoredTag, merge_doubles};
pub use selection::{Selected, Selection, vocabulary};
pub use sidecar::{Caption, Picture, pictures, read_caption};
pub use table::{Double, Scores, TagTable};
pub use template::Facts;
