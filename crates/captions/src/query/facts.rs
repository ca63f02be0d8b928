//! What is known of a picture, and whether it passes a test.

use regex::Regex;
use vodka_prompt::token_count;
use vodka_stage::ContentHash;

use super::{
    parse::format_of,
    syntax::{Flag, NumberField, Test, TextField, TextMatch},
};
use crate::glob::Glob;

/// All that a query may ask of a picture. What is not known fits no comparison, neither `=` nor `!=`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// The picture, as tables name it: its path with `/`.
    pub image: String,
    /// Whether it is on disk.
    pub on_disk: bool,
    /// Whether the tag table names it.
    pub tagged: bool,
    /// Whether a picture before it in order of name has the same content.
    pub duplicate: bool,
    /// Width and height in pixels.
    pub size: Option<(u32, u32)>,
    /// The size of the file.
    pub bytes: Option<u64>,
    /// How sharp it is.
    pub sharpness: Option<Sharpness>,
    /// The SHA-256 of the file.
    pub hash: Option<ContentHash>,
    /// The caption; none where there is no such file.
    pub caption: Option<String>,
    /// For each test of the query for a score, in order: the highest score of the tags it means, 0 where the picture
    /// has none of them.
    pub scores: Vec<f32>,
}

/// The variance of the Laplacian, as the tagger measures it ([`vodka_images::Measures`]).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sharpness {
    /// Of the whole picture.
    pub whole: f32,
    /// Of the most blurred of 4 x 4 tiles.
    pub min: f32,
    /// Of the tiles in the middle.
    pub median: f32,
    /// Of the sharpest tile.
    pub max: f32,
}

/// Whether a picture passes.
pub(super) type Check = Box<dyn Fn(&Facts) -> bool + Sync>;

/// The check of a test; `slot` is the place of its score, if it asks for one.
pub(super) fn check(test: &Test, slot: usize, min_score: f32) -> Check {
    match test {
        // Scores are f32: 0.9 in a table is the f32 nearest to 0.9, and so is the 0.9 of the query.
        Test::Score { bound: Some(bound), .. } => {
            let (relation, value) = (bound.relation, bound.value() as f32);
            Box::new(move |facts| relation.holds(facts.scores[slot], value))
        }
        Test::Score { bound: None, .. } => {
            Box::new(move |facts| facts.scores[slot] > 0.0 && facts.scores[slot] >= min_score)
        }
        Test::Number { field, bound } => {
            let (field, relation, value) = (*field, bound.relation, bound.value());
            Box::new(move |facts| facts.number(field).is_some_and(|number| relation.holds(number, value)))
        }
        Test::Text { field, text: TextMatch::Plain(text) } => plain_check(*field, text),
        Test::Text { field, text: TextMatch::Regex(regex) } => {
            let regex = Regex::new(regex).expect("checked when it was parsed");
            let field = *field;
            Box::new(move |facts| facts.text(field).is_some_and(|text| regex.is_match(text)))
        }
        Test::Flag(flag) => {
            let flag = *flag;
            Box::new(move |facts| facts.flag(flag))
        }
    }
}

fn plain_check(field: TextField, text: &str) -> Check {
    match field {
        TextField::Caption => {
            let text = text.to_lowercase();
            Box::new(move |facts| {
                facts.caption.as_ref().is_some_and(|caption| caption.to_lowercase().contains(&text))
            })
        }
        TextField::Name => {
            let whole = text.contains('/');
            let glob = Glob::of_paths(text);
            Box::new(move |facts| glob.fits(if whole { &facts.image } else { last_part(&facts.image) }))
        }
        TextField::Folder => {
            let glob = Glob::of_paths(text);
            Box::new(move |facts| {
                let folders = facts.image.match_indices('/').map(|(end, _)| &facts.image[..end]);
                folders.chain(["."]).any(|folder| glob.fits(folder))
            })
        }
        TextField::Format => {
            let format = text.to_owned();
            Box::new(move |facts| facts.format().is_some_and(|found| found == format))
        }
        TextField::Hash => {
            let digits = text.to_owned();
            Box::new(move |facts| facts.hash.is_some_and(|hash| hash.to_string().starts_with(&digits)))
        }
    }
}

impl Facts {
    fn number(&self, field: NumberField) -> Option<f64> {
        let size = self.size.map(|(width, height)| (f64::from(width), f64::from(height)));
        let sharpness = |of: fn(Sharpness) -> f32| self.sharpness.map(|sharpness| f64::from(of(sharpness)));
        let caption = self.caption.as_deref().unwrap_or_default();
        match field {
            NumberField::Width => size.map(|(width, _)| width),
            NumberField::Height => size.map(|(_, height)| height),
            NumberField::Pixels => size.map(|(width, height)| width * height),
            NumberField::Aspect => size.map(|(width, height)| width / height),
            NumberField::Bytes => self.bytes.map(|bytes| bytes as f64),
            NumberField::Megabytes => self.bytes.map(|bytes| bytes as f64 / 1e6),
            NumberField::Sharpness => sharpness(|sharpness| sharpness.whole),
            NumberField::SharpnessMin => sharpness(|sharpness| sharpness.min),
            NumberField::SharpnessMedian => sharpness(|sharpness| sharpness.median),
            NumberField::SharpnessMax => sharpness(|sharpness| sharpness.max),
            NumberField::Tokens => Some(token_count(caption) as f64),
            NumberField::Words => Some(caption.split_whitespace().count() as f64),
        }
    }

    /// What a regular expression is compared with.
    fn text(&self, field: TextField) -> Option<&str> {
        match field {
            TextField::Caption => self.caption.as_deref(),
            TextField::Name => Some(&self.image),
            TextField::Folder => Some(self.image.rsplit_once('/').map_or(".", |(folder, _)| folder)),
            TextField::Format | TextField::Hash => None,
        }
    }

    fn flag(&self, flag: Flag) -> bool {
        match flag {
            Flag::Exists => self.on_disk,
            Flag::Captioned => self.caption.as_ref().is_some_and(|caption| !caption.is_empty()),
            Flag::Duplicate => self.duplicate,
            Flag::Tagged => self.tagged,
        }
    }

    fn format(&self) -> Option<&'static str> {
        let (_, ending) = last_part(&self.image).rsplit_once('.')?;
        format_of(&ending.to_lowercase())
    }
}

fn last_part(image: &str) -> &str {
    image.rsplit_once('/').map_or(image, |(_, name)| name)
}
