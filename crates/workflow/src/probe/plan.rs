//! A probe that has been checked: its words, and the pictures that it wants.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use vodka_captions::{Selection, canonical, displayed, vocabulary};
use vodka_sampler::{ModelSource, Pictures, Settings, WantedPicture};
use vodka_stage::nearest;

use super::{Probe, ProbeConfig, ProbePrompt, Tags};
use crate::{Error, Result};

/// So many pixels are made at once where nobody says how many pictures: 32 pictures of 64x64.
const BATCH_PIXELS: u32 = 32 * 64 * 64;
/// The most pictures at once where nobody says it.
const BATCH_MAX: u32 = 32;

/// What a picture is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// The word is the whole prompt.
    Alone,
    /// The word stands before the prompt, as tags do in captions.
    With,
    /// The prompt as it is.
    Without,
    /// The prompt, and the word in the negative prompt.
    Negative,
}

impl Condition {
    /// All, in the order of tables and pages.
    pub const ALL: [Self; 4] = [Self::Without, Self::With, Self::Alone, Self::Negative];

    /// Its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::With => "with",
            Self::Without => "without",
            Self::Negative => "negative",
        }
    }
}

/// A checked [`ProbeConfig`].
#[derive(Debug, Clone, Serialize)]
pub struct ProbePlan {
    /// What was checked.
    pub config: ProbeConfig,
    /// The models, in the order of the probe.
    pub models: Vec<ModelSource>,
    /// The number of the model that the others are compared with.
    pub against: usize,
    /// How many pictures are made at once.
    pub batch: usize,
    /// The tagger's tags.
    #[serde(skip)]
    vocabulary: BTreeSet<String>,
}

/// A tag or a placebo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// As it is called.
    pub name: String,
    /// As it stands in prompts.
    pub text: String,
    /// Whether it stands in no caption.
    pub is_placebo: bool,
    /// How many seeds it has.
    pub seeds: usize,
}

impl Word {
    /// What pictures are made with it, and the prompt as it is. Placebos are there to be compared with tags in prompts, so
    /// that they need no pictures of their own.
    pub fn conditions(&self) -> &'static [Condition] {
        use Condition::{Alone, Negative, With, Without};
        if self.is_placebo { &[Without, With, Negative] } else { &[Without, With, Alone, Negative] }
    }
}

/// A picture that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shot {
    /// The number of its model.
    pub model: usize,
    /// The number of its word; none without one.
    pub word: Option<usize>,
    /// What it is made with.
    pub condition: Condition,
    /// The number of its seed, from 0.
    pub seed: usize,
}

/// What a plan makes of the selection: words, and the pictures in order.
#[derive(Debug, Clone)]
pub struct Set {
    /// The tags, then the placebos.
    pub words: Vec<Word>,
    /// The tags that the prompts expect, in the order of the prompts.
    pub expected: Vec<Vec<String>>,
    /// All pictures.
    pub shots: Vec<Shot>,
    /// The same for the sampler.
    pub pictures: Pictures,
}

impl Set {
    /// The tags whose scores are asked for: those that are probed, and those that prompts expect.
    pub fn scored(&self) -> Vec<String> {
        let probed = self.words.iter().filter(|word| !word.is_placebo).map(|word| word.name.clone());
        let all: BTreeSet<_> = probed.chain(self.expected.iter().flatten().cloned()).collect();
        all.into_iter().collect()
    }

    /// The most seeds that a word has.
    pub fn seeds(&self) -> usize {
        self.words.iter().map(|word| word.seeds).max().unwrap_or_default()
    }
}

impl ProbeConfig {
    /// Checks all that can be checked without a selection, which may be made later.
    ///
    /// # Errors
    /// A list that is empty, a tag that the tagger does not know, a prompt that expects nothing, settings that make no
    /// picture.
    pub fn plan(&self) -> Result<ProbePlan> {
        let probe = &self.probe;
        let source = |(_, path): &(String, PathBuf)| {
            ModelSource::read(path, &[]).map_err(|source| self.settings_fault(source.into()))
        };
        let models = self.models.iter().map(source).collect::<Result<Vec<_>>>()?;
        let against = match &probe.against {
            None => 0,
            Some(name) => self.models.iter().position(|(known, _)| known == name).ok_or_else(|| {
                let nearest = nearest(name, probe.models.iter().map(String::as_str)).map(ToOwned::to_owned);
                Error::ProbeAgainst { probe: probe.name.clone(), name: name.clone(), nearest }
            })?,
        };
        let vocabulary = vocabulary(&self.labels).map_err(|source| self.settings_fault(source.into()))?;
        let plan = ProbePlan { models, against, batch: probe.batch(), vocabulary, config: self.clone() };
        plan.check()?;
        Ok(plan)
    }

    fn settings_fault(&self, source: Box<dyn std::error::Error + Send + Sync>) -> Error {
        Error::Settings { job: format!("probe {}", self.probe.name), source }
    }
}

impl Probe {
    fn batch(&self) -> usize {
        let fitting = BATCH_PIXELS / (self.size.width * self.size.height).max(1);
        self.batch.unwrap_or_else(|| fitting.min(BATCH_MAX)).max(1) as usize
    }

    fn empty(&self, what: &'static str) -> Error {
        Error::ProbeEmpty { probe: self.name.clone(), what }
    }

    /// The prompt of a seed.
    pub(super) fn prompt(&self, seed: usize) -> &ProbePrompt {
        &self.prompts[seed % self.prompts.len()]
    }

    /// Prompts and numbers of a picture.
    fn settings(&self, word: &str, condition: Condition, seed: usize) -> Settings {
        let ProbePrompt { prompt, negative, .. } = self.prompt(seed);
        let (prompt, negative) = match condition {
            Condition::Alone => (word.to_owned(), negative.clone()),
            Condition::With => (before(word, prompt), negative.clone()),
            Condition::Without => (prompt.clone(), negative.clone()),
            Condition::Negative => (prompt.clone(), before(word, negative)),
        };
        Settings {
            prompt,
            negative_prompt: negative,
            seed: self.first_seed.wrapping_add(seed as u32),
            steps: self.steps,
            cfg_scale: self.cfg,
            size: self.size,
            sampler: self.sampler,
            schedule: self.schedule,
            clip_skip: self.clip_skip,
            ..Settings::default()
        }
    }
}

fn before(word: &str, prompt: &str) -> String {
    if prompt.trim().is_empty() { word.to_owned() } else { format!("{word}, {prompt}") }
}

/// A tag as captions write it, in the language of prompts, where brackets mean something.
fn prompt_text(tag: &str) -> String {
    let mut text = String::new();
    for c in displayed(tag).chars() {
        if matches!(c, '(' | ')' | '[' | ']' | '\\') {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

impl ProbePlan {
    fn check(&self) -> Result<()> {
        let probe = &self.config.probe;
        for (what, is_empty) in [
            ("models", probe.models.is_empty()),
            ("prompts", probe.prompts.is_empty()),
            ("tags", probe.tags == Tags::Listed(Vec::new())),
            ("seeds", probe.seeds == 0),
            ("pictures at once", probe.batch == Some(0)),
        ] {
            if is_empty {
                return Err(probe.empty(what));
            }
        }
        if probe.tags == Tags::Selection && self.config.selection.is_none() {
            return Err(probe.empty("selection"));
        }
        let unexpected = probe.prompts.iter().find(|prompt| prompt.expect.is_empty());
        if let Some(ProbePrompt { prompt, .. }) = unexpected {
            return Err(Error::ProbeExpect { probe: probe.name.clone(), prompt: prompt.clone() });
        }
        for tag in probe.prompts.iter().flat_map(|prompt| &prompt.expect) {
            self.check_tag(tag)?;
        }
        match &probe.tags {
            // The selection may not be there yet.
            Tags::Selection => self.set_of(Vec::new())?,
            Tags::Listed(tags) => self.set_of(tags.iter().map(|tag| canonical(tag)).collect())?,
        };
        Ok(())
    }

    fn check_tag(&self, tag: &str) -> Result<()> {
        let name = canonical(&tag.replace(' ', "_"));
        if self.vocabulary.contains(&name) {
            return Ok(());
        }
        Err(Error::ProbeTag {
            probe: self.config.probe.name.clone(),
            tag: tag.to_owned(),
            labels: self.config.labels.clone(),
            nearest: nearest(&name, self.vocabulary.iter().map(String::as_str)).map(ToOwned::to_owned),
        })
    }

    /// The words and pictures, with the tags of the selection where they are asked for.
    ///
    /// # Errors
    /// A selection that cannot be read or has no tag; a tag that the tagger does not know; a placebo that is a tag.
    pub(crate) fn set(&self) -> Result<Set, Box<dyn std::error::Error + Send + Sync>> {
        let tags = match (&self.config.probe.tags, &self.config.selection) {
            (Tags::Listed(tags), _) => tags.iter().map(|tag| canonical(tag)).collect(),
            (Tags::Selection, Some(path)) => {
                Selection::read(path)?.names().into_iter().map(ToOwned::to_owned).collect()
            }
            (Tags::Selection, None) => return Err(self.config.probe.empty("selection").into()),
        };
        let set = self.set_of(tags)?;
        let known: BTreeSet<_> = set.words.iter().map(|word| &word.name).collect();
        match self.config.probe.seeds_of.keys().find(|tag| !known.contains(tag)) {
            Some(tag) => Err(Error::ProbeSeedsOf {
                probe: self.config.probe.name.clone(),
                tag: tag.clone(),
                nearest: nearest(tag, known.iter().map(|name| name.as_str())).map(ToOwned::to_owned),
            }
            .into()),
            None => Ok(set),
        }
    }

    fn set_of(&self, tags: Vec<String>) -> Result<Set> {
        let words = self.words(tags)?;
        let probe = &self.config.probe;
        let expected = probe.prompts.iter().map(|prompt| {
            prompt.expect.iter().map(|tag| canonical(&tag.replace(' ', "_"))).collect::<Vec<_>>()
        });
        let most = words.iter().map(|word| word.seeds).max().unwrap_or(probe.seeds as usize);
        let mut shots = Vec::new();
        for model in 0..self.models.len() {
            let without = |seed| Shot { model, word: None, condition: Condition::Without, seed };
            shots.extend((0..most).map(without));
            for (place, word) in words.iter().enumerate() {
                for condition in word.conditions().iter().filter(|of| **of != Condition::Without) {
                    let shot = |seed| Shot { model, word: Some(place), condition: *condition, seed };
                    shots.extend((0..word.seeds).map(shot));
                }
            }
        }
        let wanted = shots.iter().map(|shot| {
            let word = shot.word.map_or("", |word| words[word].text.as_str());
            let settings = probe.settings(word, shot.condition, shot.seed);
            WantedPicture { model: shot.model, settings }
        });
        let pictures = Pictures {
            models: self.models.clone(),
            wanted: wanted.collect(),
            device: self.config.device.clone(),
            precision: probe.precision,
            vae_precision: probe.vae_precision,
            batch: self.batch,
            store: self.config.output.join("cells"),
            hash_cache: self.config.hash_cache.clone(),
            runtime_dir: self.config.runtime_dir.clone(),
        };
        let expected = expected.collect();
        pictures.check().map_err(|source| self.config.settings_fault(source.into()))?;
        Ok(Set { words, expected, shots, pictures })
    }

    fn words(&self, tags: Vec<String>) -> Result<Vec<Word>> {
        let probe = &self.config.probe;
        let mut seeds_of: BTreeMap<String, u32> = BTreeMap::new();
        for (word, seeds) in &probe.seeds_of {
            if *seeds == 0 {
                return Err(probe.empty("seeds"));
            }
            seeds_of.insert(word.clone(), *seeds);
        }
        let word = |name: &str, is_placebo| Word {
            name: name.to_owned(),
            text: if is_placebo { name.to_owned() } else { prompt_text(name) },
            is_placebo,
            seeds: seeds_of.get(name).copied().unwrap_or(probe.seeds) as usize,
        };
        let mut words: Vec<Word> = Vec::new();
        for tag in &tags {
            self.check_tag(tag)?;
            words.push(word(tag, false));
        }
        for placebo in &probe.placebo {
            if self.vocabulary.contains(&canonical(placebo)) {
                return Err(Error::ProbePlacebo {
                    probe: probe.name.clone(),
                    word: placebo.clone(),
                    file: None,
                });
            }
            words.push(word(placebo, true));
        }
        let mut seen = BTreeSet::new();
        match words.iter().find(|word| !seen.insert(&word.name)) {
            Some(word) => Err(Error::ProbeTwice { probe: probe.name.clone(), word: word.name.clone() }),
            None => Ok(words),
        }
    }

    /// No placebo stands in a caption of the training set.
    pub(crate) fn check_placebos(&self) -> Result<()> {
        let placebos: Vec<_> = self.config.probe.placebo.iter().map(|word| word.to_lowercase()).collect();
        if placebos.is_empty() {
            return Ok(());
        }
        for folder in &self.config.captions {
            for file in texts(folder)? {
                let read = |source| vodka_stage::Error::Read { path: file.clone(), source };
                let text = String::from_utf8_lossy(&fs::read(&file).map_err(read)?).to_lowercase();
                if let Some(place) = placebos.iter().position(|placebo| has_words(&text, placebo)) {
                    let (probe, word) = (&self.config.probe, self.config.probe.placebo[place].clone());
                    return Err(Error::ProbePlacebo { probe: probe.name.clone(), word, file: Some(file) });
                }
            }
        }
        Ok(())
    }
}

/// The captions in a folder and below.
fn texts(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |source| vodka_stage::Error::Read { path: folder.to_path_buf(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            found.extend(texts(&path)?);
        } else if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("txt")) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a text has these words, whole, in this order.
fn has_words(text: &str, words: &str) -> bool {
    let is_end = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric());
    text.match_indices(words).any(|(at, _)| {
        is_end(text[..at].chars().next_back()) && is_end(text[at + words.len()..].chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_stand_in_front_and_brackets_mean_nothing() {
        assert_eq!(before("blurry", "a cat"), "blurry, a cat");
        assert_eq!(before("blurry", " "), "blurry");
        assert_eq!(prompt_text("saber_(fate)"), "saber \\(fate\\)");
        assert_eq!(prompt_text("^_^"), "^_^");
        assert_eq!(prompt_text("blurry_background"), "blurry background");
    }

    #[test]
    fn words_are_whole_words() {
        assert!(has_words("a glorp, b", "glorp") && has_words("glorp", "glorp"));
        assert!(!has_words("a glorps", "glorp") && !has_words("unglorp", "glorp"));
        assert!(has_words("glorps glorp zug", "glorp zug"));
    }
}
