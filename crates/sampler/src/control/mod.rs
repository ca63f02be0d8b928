//! ControlNet: units as the extension sd-webui-controlnet has them, several at once.
//!
//! What they do is that of Mikubill/sd-webui-controlnet at 56cec5b (`scripts/hook.py`, `scripts/controlnet.py`).

mod config;
mod guide;
mod preprocess;
mod text;

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, ResizeMode, Result};

pub use config::ControlConfig;
pub(crate) use config::{name_of, other_networks, units};
pub(crate) use guide::{Guides, LoadedNets, Prepared};
pub use preprocess::Preprocessor;
pub(crate) use text::{is_unit, units_of, without_signs};

/// The strongest weight of the extension.
const WEIGHT_MAX: f64 = 2.0;
/// The resolutions that preprocessors work at, in pixels of the shorter side.
const RESOLUTIONS_PX: std::ops::RangeInclusive<u32> = 64..=2048;
/// What the soft modes multiply the residuals of each level by, seen from the one below.
const SOFT: f64 = 0.825;

/// A ControlNet with its picture and what the two do: a unit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ControlUnit {
    /// The ControlNet: a file or a diffusers folder.
    #[serde(skip)]
    pub model: PathBuf,
    /// How a picture's text names it: its file without the ending, and eight digits (AutoV1) where they are known.
    pub name: String,
    /// The picture of conditions; where absent, the picture that this one is made from.
    #[serde(skip)]
    pub image: Option<PathBuf>,
    /// What the residuals are multiplied by, 0 to 2.
    pub weight: f64,
    /// The share of the steps before which it does nothing.
    pub start: f64,
    /// The share behind which it does nothing any more.
    pub end: f64,
    /// Who has the last word.
    pub mode: ControlMode,
    /// What becomes of the picture first.
    pub preprocessor: Preprocessor,
    /// The shorter side, in pixels, that the preprocessor works at, if it does at any; 64 to 2048.
    pub resolution_px: u32,
    /// Whether that is instead the one at which the picture is used.
    pub pixel_perfect: bool,
    /// How the picture is brought to the size; of the picture that this one is made from, that one's mode goes before it.
    pub resize_mode: ResizeMode,
}

impl Default for ControlUnit {
    /// What the extension shows at first, without a network.
    fn default() -> Self {
        Self {
            model: PathBuf::new(),
            name: String::new(),
            image: None,
            weight: 1.0,
            start: 0.0,
            end: 1.0,
            mode: ControlMode::Balanced,
            preprocessor: Preprocessor::None,
            resolution_px: 512,
            pixel_perfect: false,
            resize_mode: ResizeMode::Crop,
        }
    }
}

impl ControlUnit {
    /// # Errors
    /// Numbers that the extension does not have either.
    pub(crate) fn check(&self) -> Result<()> {
        let number = |field, expected, found: f64| Error::ControlNumber { field, expected, found };
        if !(0.0..=WEIGHT_MAX).contains(&self.weight) {
            return Err(number("weight", "0 to 2", self.weight));
        }
        if !(0.0..=1.0).contains(&self.start) {
            return Err(number("start", "0 to 1", self.start));
        }
        if !(self.start..=1.0).contains(&self.end) {
            return Err(number("end", "a share from `start` to 1", self.end));
        }
        if !RESOLUTIONS_PX.contains(&self.resolution_px) {
            return Err(number("resolution", "64 to 2048", self.resolution_px.into()));
        }
        self.preprocessor.check()
    }

    /// Whether it acts when such a share of the steps is through.
    pub(crate) fn acts_at(&self, share: f64) -> bool {
        !(share < self.start || share > self.end)
    }
}

/// Who has the last word where prompt and ControlNet disagree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlMode {
    /// "Balanced": all residuals, for prompt and negative prompt.
    #[default]
    Balanced,
    /// "My prompt is more important": weaker residuals the finer they are, for prompt and negative prompt.
    Prompt,
    /// "ControlNet is more important": the same for the prompt alone, so that guidance makes more of them.
    Control,
}

impl ControlMode {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::Balanced, Self::Prompt, Self::Control];

    /// The name: `balanced`, `prompt` or `control`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Balanced => "balanced",
            Self::Prompt => "prompt",
            Self::Control => "control",
        }
    }

    /// As the extension and its texts name it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Balanced => "Balanced",
            Self::Prompt => "My prompt is more important",
            Self::Control => "ControlNet is more important",
        }
    }

    /// What each of `count` residuals is multiplied by, the finest first and the middle last.
    pub fn weights(self, weight: f64, count: usize) -> Vec<f64> {
        let soft = |i: usize| weight * SOFT.powi((count - 1 - i) as i32);
        match self {
            Self::Balanced => vec![weight; count],
            Self::Prompt | Self::Control => (0..count).map(soft).collect(),
        }
    }
}

impl fmt::Display for ControlMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ControlMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let is_it = |mode: &Self| {
            [mode.name(), mode.label()].iter().any(|name| name.eq_ignore_ascii_case(text.trim()))
        };
        let found = Self::ALL.into_iter().find(is_it);
        found.ok_or_else(|| Error::ControlOption {
            option: "mode".to_owned(),
            expected: "balanced, prompt or control".to_owned(),
            found: text.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_layers_are_those_of_the_extension() {
        assert_eq!(ControlMode::Balanced.weights(0.7, 13), [0.7; 13]);
        for mode in [ControlMode::Prompt, ControlMode::Control] {
            let found = mode.weights(2.0, 13);
            assert_eq!((found.len(), found[12]), (13, 2.0));
            // 2 * 0.825, 2 * 0.825^2, 2 * 0.825^6 and 2 * 0.825^12.
            for (i, expected) in [(11, 1.65), (10, 1.361_25), (6, 0.630_599_59), (0, 0.198_827_92)] {
                assert!((found[i] - expected).abs() < 1e-7, "{i}: {}", found[i]);
            }
        }
    }

    #[test]
    fn a_unit_acts_at_its_ends_too() {
        let unit = ControlUnit { start: 0.25, end: 0.75, ..ControlUnit::default() };
        let acting: Vec<u32> = (0..8).filter(|i| unit.acts_at(f64::from(*i) / 8.0)).collect();
        assert_eq!(acting, [2, 3, 4, 5, 6]);
        let all = ControlUnit::default();
        assert!(all.acts_at(0.0) && all.acts_at(1.0));
        let never = ControlUnit { start: 0.51, end: 0.52, ..ControlUnit::default() };
        assert!((0..=10).all(|i| !never.acts_at(f64::from(i) / 10.0)));
    }

    #[test]
    fn numbers_are_checked() {
        let said = |unit: ControlUnit| unit.check().unwrap_err().to_string();
        let base = ControlUnit::default;
        assert_eq!(
            said(ControlUnit { weight: 2.5, ..base() }),
            "a ControlNet's weight is 2.5, expected 0 to 2"
        );
        assert_eq!(
            said(ControlUnit { start: -0.1, ..base() }),
            "a ControlNet's start is -0.1, expected 0 to 1"
        );
        assert_eq!(
            said(ControlUnit { start: 0.5, end: 0.4, ..base() }),
            "a ControlNet's end is 0.4, expected a share from `start` to 1"
        );
        assert!(said(ControlUnit { weight: f64::NAN, ..base() }).contains("NaN"));
        assert_eq!(
            said(ControlUnit { resolution_px: 32, ..base() }),
            "a ControlNet's resolution is 32, expected 64 to 2048"
        );
        let rate = Preprocessor::TileResample { rate: 0.5 };
        assert_eq!(
            said(ControlUnit { preprocessor: rate, ..base() }),
            "a ControlNet's rate is 0.5, expected 1 to 8"
        );
        base().check().unwrap();
    }

    #[test]
    fn modes_have_the_names_of_the_extension_too() {
        for mode in ControlMode::ALL {
            assert_eq!(mode.name().to_uppercase().parse::<ControlMode>().unwrap(), mode);
            assert_eq!(mode.label().parse::<ControlMode>().unwrap(), mode);
        }
        let error = "both".parse::<ControlMode>().unwrap_err().to_string();
        assert_eq!(error, "a ControlNet's mode: expected balanced, prompt or control, found `both`");
    }
}
