//! Units in the `parameters` text of a picture, as sd-webui-controlnet writes them: `ControlNet 0: "Module: tile_resample, ..."`.

use vodka_prompt::Parameters;

use super::{ControlMode, ControlUnit, Preprocessor};
use crate::ResizeMode;

/// What the extension writes for a number that a preprocessor does not have.
const UNUSED: f64 = 0.5;

/// The extension's names of the ways to bring a picture to a size, of today and of before.
const RESIZE: [(&str, ResizeMode); 7] = [
    ("Just Resize", ResizeMode::Just),
    ("Crop and Resize", ResizeMode::Crop),
    ("Resize and Fill", ResizeMode::Fill),
    ("Inner Fit (Scale to Fit)", ResizeMode::Crop),
    ("Scale to Fit (Inner Fit)", ResizeMode::Crop),
    ("Outer Fit (Shrink to Fit)", ResizeMode::Fill),
    ("Envelope (Outer Fit)", ResizeMode::Fill),
];

impl ControlUnit {
    /// The value of its field.
    pub(crate) fn text(&self) -> String {
        let (a, b) = match self.preprocessor {
            Preprocessor::None => (UNUSED, UNUSED),
            Preprocessor::TileResample { rate } => (rate, UNUSED),
            Preprocessor::TileColorfix { variation } => (variation.into(), UNUSED),
            Preprocessor::TileColorfixSharp { variation, sharpness } => (variation.into(), sharpness),
            Preprocessor::BlurGaussian { sigma } => (sigma, UNUSED),
        };
        let resize = RESIZE.iter().find(|(_, mode)| *mode == self.resize_mode).map_or("", |(name, _)| name);
        let name = without_signs(&self.name);
        let pixel_perfect = if self.pixel_perfect { "True" } else { "False" };
        // Python writes a point into each of its floats, and so does `{:?}`.
        format!(
            "Module: {}, Model: {name}, Weight: {:?}, Resize Mode: {resize}, Processor Res: {}, Threshold A: {a:?}, \
             Threshold B: {b:?}, Guidance Start: {:?}, Guidance End: {:?}, Pixel Perfect: {pixel_perfect}, Control Mode: {}",
            self.preprocessor.name(),
            self.weight,
            self.resolution_px,
            self.start,
            self.end,
            self.mode.label(),
        )
    }

    /// The unit of a field's value, without its file and its picture; none where it asks for what is not done here.
    fn of_text(text: &str) -> Option<Self> {
        let mut unit = Self::default();
        let (mut preprocessor, mut a, mut b) = (None, None, None);
        for pair in text.split(',') {
            let (key, value) = pair.trim().split_once(": ")?;
            let number = || value.parse::<f64>().ok();
            match key {
                "Module" => preprocessor = Some(Preprocessor::named(value)?),
                "Model" => value.clone_into(&mut unit.name),
                "Weight" => unit.weight = number()?,
                "Resize Mode" => unit.resize_mode = RESIZE.iter().find(|(name, _)| *name == value)?.1,
                "Processor Res" => unit.resolution_px = value.parse().ok()?,
                "Threshold A" => a = Some(number()?),
                "Threshold B" => b = Some(number()?),
                "Guidance Start" => unit.start = number()?,
                "Guidance End" => unit.end = number()?,
                "Pixel Perfect" => unit.pixel_perfect = value == "True",
                "Control Mode" => unit.mode = value.parse::<ControlMode>().ok()?,
                // Older texts say where it acts in a hires pass, which is in both here.
                "Hr Option" if value != "Both" && value != "HiResFixOption.BOTH" => return None,
                _ => {}
            }
        }
        // As there, a number that is none of the preprocessor's is the one that it has at first.
        let with = |preprocessor: Preprocessor| {
            if preprocessor.check().is_ok() {
                Some(preprocessor)
            } else {
                Preprocessor::named(preprocessor.name())
            }
        };
        unit.preprocessor = with(match (preprocessor?, a, b) {
            (Preprocessor::TileResample { .. }, Some(rate), _) => Preprocessor::TileResample { rate },
            (Preprocessor::TileColorfix { .. }, Some(a), _) => {
                Preprocessor::TileColorfix { variation: a as u32 }
            }
            (Preprocessor::TileColorfixSharp { variation, sharpness }, a, b) => {
                Preprocessor::TileColorfixSharp {
                    variation: a.map_or(variation, |a| a as u32),
                    sharpness: b.unwrap_or(sharpness),
                }
            }
            (Preprocessor::BlurGaussian { .. }, Some(sigma), _) => Preprocessor::BlurGaussian { sigma },
            (other, _, _) => other,
        })?;
        unit.check().is_ok().then_some(unit)
    }
}

/// A name without commas and colons, which would end a value.
pub(crate) fn without_signs(name: &str) -> String {
    name.replace([',', ':'], "")
}

/// The unit of a field; none where it is no unit's, or asks for what is not done here.
fn unit_of((name, value): &(String, String)) -> Option<(u32, ControlUnit)> {
    let number = name.strip_prefix("ControlNet ")?.trim().parse().ok()?;
    Some((number, ControlUnit::of_text(value)?))
}

/// Whether a field is a unit that is followed.
pub(crate) fn is_unit(field: &(String, String)) -> bool {
    unit_of(field).is_some()
}

/// The units that a text states, in the order of their numbers.
pub(crate) fn units_of(parameters: &Parameters) -> Vec<ControlUnit> {
    let mut units: Vec<_> = parameters.fields.iter().filter_map(unit_of).collect();
    units.sort_by_key(|(number, _)| *number);
    units.into_iter().map(|(_, unit)| unit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(value: &str) -> (String, String) {
        ("ControlNet 0".to_owned(), value.to_owned())
    }

    #[test]
    fn texts_are_those_of_the_extension() {
        let unit = ControlUnit {
            name: "control_v11f1e_sd15_tile [a371b31b]".into(),
            preprocessor: Preprocessor::TileResample { rate: 1.0 },
            weight: 0.6,
            end: 0.8,
            mode: ControlMode::Prompt,
            ..ControlUnit::default()
        };
        let expected = "Module: tile_resample, Model: control_v11f1e_sd15_tile [a371b31b], Weight: 0.6, Resize Mode: Crop and Resize, \
                        Processor Res: 512, Threshold A: 1.0, Threshold B: 0.5, Guidance Start: 0.0, Guidance End: 0.8, \
                        Pixel Perfect: False, Control Mode: My prompt is more important";
        assert_eq!(unit.text(), expected);
        // Of 1.1.4xx: without what was hidden, and with more.
        let older = "Module: tile_resample, Model: control_v11f1e_sd15_tile [a371b31b], Weight: 0.6, Resize Mode: Crop and Resize, \
                     Low Vram: False, Threshold A: 1, Guidance Start: 0, Guidance End: 0.8, Pixel Perfect: False, Control Mode: My \
                     prompt is more important, Hr Option: Both, Save Detected Map: True";
        for text in [expected, older] {
            assert_eq!(unit_of(&field(text)), Some((0, unit.clone())), "{text}");
        }
    }

    #[test]
    fn each_unit_is_read_as_it_is_written() {
        let preprocessors = [
            Preprocessor::None,
            Preprocessor::TileResample { rate: 2.5 },
            Preprocessor::TileColorfix { variation: 16 },
            Preprocessor::TileColorfixSharp { variation: 4, sharpness: 0.25 },
            Preprocessor::BlurGaussian { sigma: 3.5 },
        ];
        for (i, preprocessor) in preprocessors.into_iter().enumerate() {
            let unit = ControlUnit {
                name: "tile [0123abcd]".into(),
                preprocessor,
                weight: 1.25,
                start: 0.1,
                mode: ControlMode::ALL[i % 3],
                resize_mode: ResizeMode::ALL[i % 3],
                resolution_px: 640,
                pixel_perfect: i % 2 == 0,
                ..ControlUnit::default()
            };
            assert_eq!(unit_of(&field(&unit.text())), Some((0, unit)));
        }
    }

    #[test]
    fn what_is_not_done_is_no_unit() {
        let before = "preprocessor: none, model: x, weight: 1, starting/ending: (0, 1)";
        for text in ["Module: canny, Model: x", "Module: none, Weight: much", "Module", before] {
            assert!(!is_unit(&field(text)), "{text}");
        }
        assert!(!is_unit(&field("Module: none, Model: x, Hr Option: High res only")));
        assert!(!is_unit(&field("Module: none, Model: x, Weight: 7")));
        assert!(!is_unit(&("ControlNet".to_owned(), "Module: none".to_owned())));
        // A number that is out of its range is the one that the preprocessor has at first, as in the extension.
        let (_, unit) = unit_of(&field("Module: tile_resample, Model: x, Threshold A: 64")).unwrap();
        assert_eq!(unit.preprocessor, Preprocessor::TileResample { rate: 1.0 });
    }
}
