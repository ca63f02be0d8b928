//! How well the networks do on pictures that they are not trained on: `validation.json`, the split, and when.
//!
//! The keys and their meaning are EveryDream2's (victorchall/EveryDream2trainer, `data/every_dream_validation.py` and
//! `doc/VALIDATION.md` at 5098db8), and so is the split, to the picture: Python's generator shuffles the same list.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use vodka_noise::PythonRng;

use crate::{
    Error, Result,
    items::Item,
    keys::{
        Answer::Told,
        Idle,
        Neutral::{Any, Bool, Null},
        Notice, Vocabulary, read_json,
    },
};

/// A validation configuration. A key that is absent has the default stated here, which is EveryDream2's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ValidationConfig {
    /// Whether to validate. Default: true.
    pub validate_training: bool,
    /// `automatic`: pictures are taken from the training data; `manual`: they are in a folder of their own. Default:
    /// `automatic`.
    pub val_split_mode: SplitMode,
    /// The share of the pictures that `automatic` takes, rounded up. Default: 0.15.
    pub auto_split_proportion: f64,
    /// The folder of `manual`.
    pub manual_data_root: Option<PathBuf>,
    /// Further folders to validate on, by names of one's own. Default: none.
    pub extra_manual_datasets: BTreeMap<String, PathBuf>,
    /// Whether the loss of some training pictures is measured in the same steady way. Default: false.
    pub stabilize_training_loss: bool,
    /// The share of the training pictures that is measured so, rounded up. Default: 0.15.
    pub stabilize_split_proportion: f64,
    /// How many epochs are between two validations; may be less than one. Default: 1.
    pub every_n_epochs: f64,
    /// Random seed of split, noise and timesteps. Default: 555.
    pub seed: u64,
    /// Pictures in a batch. Default: as in training.
    pub batch_size: Option<usize>,
    /// Not a key: what is to be told of the keys that were read.
    #[serde(skip)]
    pub notices: Vec<Notice>,
}

/// Where the pictures to validate on come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SplitMode {
    /// From the training data.
    #[default]
    Automatic,
    /// From a folder of their own.
    Manual,
    /// There are none but those of `extra_manual_datasets`.
    None,
}

impl Default for ValidationConfig {
    fn default() -> Self {
        Self {
            validate_training: true,
            val_split_mode: SplitMode::Automatic,
            auto_split_proportion: 0.15,
            manual_data_root: None,
            extra_manual_datasets: BTreeMap::new(),
            stabilize_training_loss: false,
            stabilize_split_proportion: 0.15,
            every_n_epochs: 1.0,
            seed: 555,
            batch_size: None,
            notices: Vec::new(),
        }
    }
}

const IDLE: &[Idle] = &[
    ("documentation", &[Any], Told("a note")),
    ("doc", &[Any], Told("a note")),
    ("use_relative_loss", &[Bool(false), Null], Told("does nothing, as in EveryDream2")),
];

/// Names of 2023-04.
const RENAMED: &[(&str, &str)] =
    &[("val_split_proportion", "auto_split_proportion"), ("val_data_root", "manual_data_root")];

/// The name of the pictures that are held out.
pub(crate) const HELD_OUT: &str = "val";

/// The name of the training pictures that are measured in the same way.
pub(crate) const STABILIZED: &str = "stabilize-train";

impl ValidationConfig {
    /// Reads a `validation.json`. What is wrong in it is told with line, column and the nearest known key.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let mut config = Self::default();
        let vocabulary = Vocabulary::of::<Self>(IDLE).renamed(RENAMED);
        read_json(path.as_ref(), vocabulary.fields_of(&mut config))?;
        config.notices = vocabulary.notices();
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let within = |key, value: f64, good: bool, expected| match good {
            true => Ok(()),
            false => Err(Error::OutOfRange { key, value: value.to_string(), expected }),
        };
        for (key, share) in [
            ("auto_split_proportion", self.auto_split_proportion),
            ("stabilize_split_proportion", self.stabilize_split_proportion),
        ] {
            within(key, share, share > 0.0 && share < 1.0, "above 0 and below 1")?;
        }
        let every = self.every_n_epochs;
        within("every_n_epochs", every, every.is_finite() && every > 0.0, "a number above 0")?;
        let batch = self.batch_size.unwrap_or(1);
        within("batch_size", batch as f64, batch > 0, "at least 1, or null")?;
        for name in [HELD_OUT, STABILIZED] {
            if self.extra_manual_datasets.contains_key(name) {
                let expected = "names other than `val` and `stabilize-train`, which are those of the splits";
                return Err(Error::OutOfRange {
                    key: "extra_manual_datasets",
                    value: name.to_owned(),
                    expected,
                });
            }
        }
        let none = self.manual_data_root.is_none() && self.extra_manual_datasets.is_empty();
        match self.val_split_mode == SplitMode::Manual && none {
            true => Err(Error::MissingKey {
                key: "manual_data_root",
                meaning: "the folder with the pictures to validate on",
            }),
            false => Ok(()),
        }
    }

    /// The folders of its own that it validates on.
    pub(crate) fn folders(&self) -> impl Iterator<Item = (&str, &Path)> {
        let manual = self.manual_data_root.as_deref().filter(|_| self.val_split_mode == SplitMode::Manual);
        let extra = self.extra_manual_datasets.iter().map(|(name, root)| (name.as_str(), root.as_path()));
        manual.map(|root| (HELD_OUT, root)).into_iter().chain(extra)
    }

    /// Takes pictures out of those to be trained on (in order of path), and says which of the rest are measured as well:
    /// by name of the set.
    pub(crate) fn split(&self, items: &mut Vec<Item>) -> Vec<(&'static str, Vec<Item>)> {
        let mut sets = Vec::new();
        if self.val_split_mode == SplitMode::Automatic {
            let (held_out, rest) = split(items, self.auto_split_proportion, self.seed);
            *items = rest;
            sets.push((HELD_OUT, held_out));
        }
        if self.stabilize_training_loss && !items.is_empty() {
            sets.push((STABILIZED, split(items, self.stabilize_split_proportion, self.seed).0));
        }
        sets
    }

    /// Whether a validation is due when `done` batches are done of which an epoch has `per_epoch`, and `before` were done
    /// when it was last asked.
    pub(crate) fn is_due(&self, before: u64, done: u64, per_epoch: u64) -> bool {
        let count = |steps: u64| (steps as f64 / (self.every_n_epochs * per_epoch as f64) + 1e-9).floor();
        count(done) > count(before)
    }
}

/// A share of the items, rounded up and at least one, and the others; both in order.
fn split(items: &[Item], share: f64, seed: u64) -> (Vec<Item>, Vec<Item>) {
    let count = ((items.len() as f64 * share).ceil() as usize).clamp(1, items.len());
    let mut order: Vec<_> = (0..items.len()).collect();
    PythonRng::new(seed).shuffle(&mut order);
    let mut taken = vec![false; items.len()];
    order[..count].iter().for_each(|&i| taken[i] = true);
    let of = |wanted: bool| {
        items
            .iter()
            .zip(&taken)
            .filter(|(_, taken)| **taken == wanted)
            .map(|(item, _)| item.clone())
            .collect()
    };
    (of(true), of(false))
}

/// Whether losses of one set have begun to rise: as EveryDream2 says it, when there are more than 11, and the last 5 rise
/// on average.
pub fn diverges(losses: &[f32]) -> bool {
    let last = losses.len().saturating_sub(5);
    losses.len() > 11 && losses[losses.len() - 1] > losses[last]
}

#[cfg(test)]
mod tests {
    use vodka_stage::explain;

    use super::*;
    use crate::{Compat, items::items};

    fn listed(count: usize) -> Vec<Item> {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..count {
            std::fs::write(dir.path().join(format!("{i:03}.png")), "").unwrap();
            std::fs::write(dir.path().join(format!("{i:03}.txt")), "a cat").unwrap();
        }
        items(&[dir.path().into()], None, Compat::Vodka).unwrap().0
    }

    #[test]
    fn the_split_is_everydream2s() {
        let mut items = listed(20);
        let config = ValidationConfig { stabilize_training_loss: true, ..ValidationConfig::default() };
        let sets = config.split(&mut items);
        let names =
            |items: &[Item]| items.iter().map(|item| item.path.display().to_string()).collect::<Vec<_>>();
        // random.seed(555) shuffles 20 to 11, 14, 17, ...
        assert_eq!(
            (sets[0].0, names(&sets[0].1)),
            ("val", vec!["011.png".into(), "014.png".into(), "017.png".into()])
        );
        assert_eq!(items.len(), 17);
        assert_eq!((sets[1].0, sets[1].1.len()), ("stabilize-train", 3));
        assert!(sets[1].1.iter().all(|item| items.contains(item)));
        let share = |n: usize| (n as f64 * 0.15).ceil() as usize;
        assert_eq!((share(10_857), share(10_857 - 1629)), (1629, 1385), "as in the log of Vodka V3");
    }

    #[test]
    fn old_names_are_read_and_told_of() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = r#"{"documentation": {"x": 1}, "val_split_proportion": 0.2, "val_data_root": null,
            "use_relative_loss": true, "batch_size": 3}"#;
        std::fs::write(file.path(), text).unwrap();
        let config = ValidationConfig::read(file.path()).unwrap();
        assert_eq!((config.auto_split_proportion, config.batch_size), (0.2, Some(3)));
        let told: Vec<_> = config.notices.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "`val_split_proportion` (0.2): is the old name of `auto_split_proportion`",
                "`val_data_root` (null): is the old name of `manual_data_root`",
                "`use_relative_loss` (true): does nothing, as in EveryDream2"
            ]
        );
    }

    #[test]
    fn validations_come_as_often_as_they_should() {
        let due = |every_n_epochs, per_epoch| {
            let config = ValidationConfig { every_n_epochs, ..ValidationConfig::default() };
            (1..=20).filter(|step| config.is_due(step - 1, *step, per_epoch)).collect::<Vec<_>>()
        };
        assert_eq!(due(1.0, 5), [5, 10, 15, 20]);
        assert_eq!(due(2.0, 5), [10, 20]);
        assert_eq!(due(0.5, 5), [3, 5, 8, 10, 13, 15, 18, 20]);
        assert_eq!(due(0.01, 3).len(), 20, "at most after every batch");
    }

    #[test]
    fn divergence_needs_twelve_values_and_a_rise() {
        let falling: Vec<_> = (0..12).map(|i| 1.0 - 0.01 * i as f32).collect();
        assert!(!diverges(&falling));
        let rising: Vec<_> =
            falling.iter().enumerate().map(|(i, loss)| if i > 8 { 2.0 + i as f32 } else { *loss }).collect();
        assert!(diverges(&rising) && !diverges(&rising[..11]));
    }

    #[test]
    fn what_is_wrong_in_the_file_is_told() {
        let said = |text: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            explain(&ValidationConfig::read(file.path()).unwrap_err())
        };
        assert!(said(r#"{"validate_trainin": true}"#).contains("did you mean `validate_training`?"));
        assert!(said(r#"{"val_split_mode": "auto"}"#).contains("`automatic`"));
        assert_eq!(said(r#"{"every_n_epochs": 0}"#), "`every_n_epochs` is 0, expected a number above 0");
        assert_eq!(
            said(r#"{"extra_manual_datasets": {"val": "x"}}"#),
            "`extra_manual_datasets` is val, expected names other than `val` and `stabilize-train`, which are those of the splits"
        );
        assert!(said(r#"{"val_split_mode": "manual"}"#).starts_with("`manual_data_root` is missing"));
        assert_eq!(
            said(r#"{"auto_split_proportion": 1.5}"#),
            "`auto_split_proportion` is 1.5, expected above 0 and below 1"
        );
    }
}
