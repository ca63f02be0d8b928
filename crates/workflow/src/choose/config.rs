//! What a user writes: `[[choose]]` in a recipe, or the options of `vodka choose`.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};
use vodka_captions::canonical;
use vodka_stage::lossy;

use super::Rule;
use crate::{Error, Result};

/// `[[choose]]`: one of the models of a probe, by its numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choose {
    /// The name of the choice, by which mixes, grids and probes call the chosen model.
    pub name: String,
    /// The probe whose numbers decide.
    pub probe: String,
    /// The tag whose response counts.
    pub tag: String,
    /// The candidates. Default: all models of the probe but `against`.
    #[serde(default)]
    pub among: Vec<String>,
    /// The model whose adherence the candidates are to keep. Default: the one that the probe compares with.
    #[serde(default)]
    pub against: Option<String>,
    /// So much less adherence than that of `against` a candidate may have. Default: 0.05, five points.
    #[serde(default = "default_adherence_loss")]
    pub max_adherence_loss: f64,
    /// So much more fried than the training set a candidate may be. Default: 0.1.
    #[serde(default = "default_fried")]
    pub max_fried: f64,
    /// The model to take whatever the numbers say. Default: none.
    #[serde(default)]
    pub choose: Option<String>,
}

fn default_adherence_loss() -> f64 {
    Rule::default().max_adherence_loss
}

fn default_fried() -> f64 {
    Rule::default().max_fried
}

/// A choice with all that it reads.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChooseConfig {
    /// What a user says.
    pub choose: Choose,
    /// The folder of the probe.
    #[serde(serialize_with = "lossy")]
    pub probe: PathBuf,
    /// `validation.csv` and the epoch, of candidates that trainings made.
    pub validation: BTreeMap<String, Validation>,
    /// The folder to fill.
    #[serde(serialize_with = "lossy")]
    pub output: PathBuf,
}

/// Where a model's validation loss stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Validation {
    /// The table of its training; where there is none, there was no validation.
    #[serde(serialize_with = "lossy")]
    pub table: PathBuf,
    /// The epoch after which it was saved.
    pub epoch: u64,
}

/// A checked [`ChooseConfig`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChoosePlan {
    /// What was checked.
    pub config: ChooseConfig,
    /// The canonical name of the tag.
    pub tag: String,
    /// The rule.
    pub rule: Rule,
}

impl ChooseConfig {
    /// Checks what can be checked before the probe has run.
    ///
    /// # Errors
    /// Limits that are none.
    pub fn plan(&self) -> Result<ChoosePlan> {
        let Choose { name, tag, max_adherence_loss, max_fried, .. } = &self.choose;
        for (key, found) in [("max_adherence_loss", *max_adherence_loss), ("max_fried", *max_fried)] {
            if !(0.0..=1.0).contains(&found) {
                return Err(Error::ChooseLimit { choose: name.clone(), key, found });
            }
        }
        let rule = Rule { max_adherence_loss: *max_adherence_loss, max_fried: *max_fried };
        Ok(ChoosePlan { tag: canonical(&tag.replace(' ', "_")), rule, config: self.clone() })
    }
}
