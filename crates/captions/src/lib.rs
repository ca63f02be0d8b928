//! Tag tables, tag selection, analysis, caption writing.
//!
//! Three stages: [`select`] marks the tags worth having in the tagger's `selected_tags.csv`, [`report`] shows what the
//! selected tags do in a tag table, and [`caption`] puts the best few of them into the captions. What they share is
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
pub mod report;
pub mod select;

mod compose;
mod error;
mod names;
mod originals;
mod selection;
mod sheet;
mod sidecar;
mod table;
mod written;

pub use compose::{Position, TagScore, choose, compose, head};
pub use error::{Error, Result};
pub use names::{KAOMOJI, canonical, displayed};
pub use selection::{Selected, Selection};
pub use sidecar::{Caption, Picture, pictures, read_caption};
pub use table::{Double, Scores, TagFrequency, TagTable};
