//! What an axis changes from cell to cell.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};
use vodka_noise::{SamplerName, ScheduleName};
use vodka_prompt::take_networks;
use vodka_stage::nearest;

use super::{GridAxis, Values};
use crate::{
    ControlMode, Error, HiresTarget, HiresUpscaler, Preprocessor, Result, Settings, Size, UpscalerChoice,
    control::name_of, parameters::model_name,
};

/// What an axis changes, by the name that A1111's X/Y/Z plot gives it, or a short one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum AxisType {
    /// The model: `[[checkpoints]]`.
    Checkpoint,
    /// Prompt and negative prompt: `[[prompts]]`.
    Prompt,
    /// The seed: `seeds`.
    Seed,
    /// What is put behind the prompt's own negative prompt.
    NegativePrompt,
    /// Prompt search and replace: the first value is looked for in prompt and negative prompt, each takes its place.
    PromptSr,
    /// The weight of a LoRA in the prompt; where the prompt does not name it, it is put at its end.
    LoraWeight,
    /// The sampler.
    Sampler,
    /// The schedule.
    Schedule,
    /// Steps as A1111 counts them.
    Steps,
    /// The CFG scale.
    Cfg,
    /// `WIDTHxHEIGHT`.
    Size,
    /// The layer of the text encoder, counted from the end.
    ClipSkip,
    /// A file or folder with a VAE; `none` is the checkpoint's own.
    Vae,
    /// What makes the picture larger for a hires pass: a name or a file; `off` leaves that pass out.
    HiresUpscaler,
    /// How many times as wide and as high it becomes.
    HiresScale,
    /// Steps of the hires pass.
    HiresSteps,
    /// The sampler of the hires pass.
    HiresSampler,
    /// How much of the larger picture the hires pass gives up.
    Denoising,
    /// The file or folder of a ControlNet, in the place of that of its `[[control]]`.
    ControlModel,
    /// What its residuals are multiplied by.
    ControlWeight,
    /// The share of the steps before which it does nothing.
    ControlStart,
    /// The share behind which it does nothing any more.
    ControlEnd,
    /// Who has the last word.
    ControlMode,
    /// What becomes of its picture first; one that it does not have already has the numbers of the beginning.
    ControlPreprocessor,
}

impl AxisType {
    /// Each with A1111's name and a short one.
    const NAMES: [(Self, &'static str, &'static str); 24] = [
        (Self::Checkpoint, "Checkpoint name", "checkpoint"),
        (Self::Prompt, "Prompt", "prompt"),
        (Self::Seed, "Seed", "seed"),
        (Self::NegativePrompt, "Negative prompt", "negative"),
        (Self::PromptSr, "Prompt S/R", "prompt-sr"),
        (Self::LoraWeight, "LoRA weight", "lora"),
        (Self::Sampler, "Sampler", "sampler"),
        (Self::Schedule, "Schedule type", "schedule"),
        (Self::Steps, "Steps", "steps"),
        (Self::Cfg, "CFG Scale", "cfg"),
        (Self::Size, "Size", "size"),
        (Self::ClipSkip, "Clip skip", "clip-skip"),
        (Self::Vae, "VAE", "vae"),
        (Self::HiresUpscaler, "Hires upscaler", "hires-upscaler"),
        (Self::HiresScale, "Hires upscale", "hires-scale"),
        (Self::HiresSteps, "Hires steps", "hires-steps"),
        (Self::HiresSampler, "Hires sampler", "hires-sampler"),
        (Self::Denoising, "Denoising", "denoising"),
        (Self::ControlModel, "[ControlNet] Model", "control-model"),
        (Self::ControlWeight, "[ControlNet] Weight", "control-weight"),
        (Self::ControlStart, "[ControlNet] Guidance Start", "control-start"),
        (Self::ControlEnd, "[ControlNet] Guidance End", "control-end"),
        (Self::ControlMode, "[ControlNet] Control Mode", "control-mode"),
        (Self::ControlPreprocessor, "[ControlNet] Preprocessor", "control-preprocessor"),
    ];

    /// Whether it is of a ControlNet, of which there may be several.
    fn is_of_control(self) -> bool {
        matches!(self, Self::ControlModel | Self::ControlWeight | Self::ControlStart | Self::ControlEnd)
            || matches!(self, Self::ControlMode | Self::ControlPreprocessor)
    }

    /// A1111's name.
    pub fn name(self) -> &'static str {
        let of = |(kind, name, _): &(Self, &'static str, _)| (*kind == self).then_some(*name);
        Self::NAMES.iter().find_map(of).expect("each has a name")
    }

    /// Whether a value of such an axis is the path of a file and not a name.
    pub(super) fn is_path(self, value: &str) -> bool {
        match self {
            Self::Vae => !is_own_vae(value),
            Self::ControlModel => true,
            Self::HiresUpscaler => {
                let Ok(upscaler) = value.parse();
                matches!(upscaler, HiresUpscaler::Pixels(UpscalerChoice::Model(_))) && !is_off(value)
            }
            _ => false,
        }
    }
}

impl fmt::Display for AxisType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for AxisType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let same = |name: &str| name.eq_ignore_ascii_case(text);
        match Self::NAMES.iter().find(|(_, name, short)| same(name) || same(short)) {
            Some((kind, ..)) => Ok(*kind),
            None => {
                let known = Self::NAMES.iter().flat_map(|(_, name, short)| [*name, *short]);
                Err(Error::AxisType {
                    found: text.to_owned(),
                    nearest: nearest(text, known).map(ToOwned::to_owned),
                })
            }
        }
    }
}

impl TryFrom<String> for AxisType {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<AxisType> for String {
    fn from(kind: AxisType) -> Self {
        kind.to_string()
    }
}

/// An axis of a plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Axis {
    /// What it changes.
    #[serde(rename = "type")]
    pub kind: AxisType,
    /// Its name, which no other axis has.
    pub name: String,
    /// Of a ControlNet, the number of its `[[control]]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<usize>,
    /// At least one.
    pub values: Vec<AxisValue>,
}

/// One value of an axis.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AxisValue {
    /// What stands on the sheet.
    pub label: String,
    /// What it does to the settings.
    #[serde(skip)]
    pub(super) change: Change,
}

/// What a value does to the settings of a cell.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    /// The model of that number.
    Model(usize),
    Prompt {
        prompt: String,
        negative: String,
    },
    Seed(u32),
    Negative(String),
    Replace {
        from: String,
        to: String,
    },
    Lora {
        name: String,
        weight: f64,
    },
    Sampler(SamplerName),
    Schedule(ScheduleName),
    Steps(u32),
    Cfg(f64),
    Size(Size),
    ClipSkip(u32),
    Vae(Option<PathBuf>),
    /// With the hash of its file; none for no hires pass.
    HiresUpscaler(Option<(HiresUpscaler, String)>),
    HiresScale(f64),
    HiresSteps(u32),
    HiresSampler(SamplerName),
    Denoising(f64),
    Control {
        /// The number of the unit.
        unit: usize,
        change: ControlChange,
    },
}

/// What a value does to a ControlNet's unit.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum ControlChange {
    /// The network, and how texts name it.
    Model(PathBuf, String),
    Weight(f64),
    Start(f64),
    End(f64),
    Mode(ControlMode),
    Preprocessor(Preprocessor),
}

impl Change {
    /// When it is done: prompts come before what is put into them, and replacing and leaving out come last.
    pub(super) fn order(&self) -> u8 {
        match self {
            Self::Prompt { .. } => 0,
            Self::Replace { .. } | Self::HiresUpscaler(None) => 2,
            _ => 1,
        }
    }

    /// Does it.
    pub(super) fn apply(&self, settings: &mut Settings) {
        match self {
            Self::Model(_) | Self::Vae(_) => {}
            Self::Prompt { prompt, negative } => {
                settings.prompt.clone_from(prompt);
                settings.negative_prompt.clone_from(negative);
            }
            Self::Seed(seed) => settings.seed = *seed,
            Self::Negative(text) => settings.negative_prompt = behind(&settings.negative_prompt, text),
            Self::Replace { from, to } => {
                settings.prompt = settings.prompt.replace(from, to);
                settings.negative_prompt = settings.negative_prompt.replace(from, to);
            }
            Self::Lora { name, weight } => settings.prompt = with_lora(&settings.prompt, name, *weight),
            Self::Sampler(name) => settings.sampler = *name,
            Self::Schedule(name) => settings.schedule = *name,
            Self::Steps(steps) => settings.steps = *steps,
            Self::Cfg(scale) => settings.cfg_scale = *scale,
            Self::Size(size) => settings.size = *size,
            Self::ClipSkip(skip) => settings.clip_skip = *skip,
            Self::HiresUpscaler(None) => settings.hires = None,
            Self::HiresUpscaler(Some((upscaler, hash))) => {
                let hires = settings.hires.get_or_insert_default();
                hires.upscaler = upscaler.clone();
                hires.upscaler_hash.clone_from(hash);
            }
            Self::HiresScale(scale) => {
                settings.hires.get_or_insert_default().target = HiresTarget::Scale(*scale);
            }
            Self::HiresSteps(steps) => settings.hires.get_or_insert_default().steps = *steps,
            Self::HiresSampler(name) => settings.hires.get_or_insert_default().sampler = Some(*name),
            Self::Denoising(strength) => {
                settings.hires.get_or_insert_default().denoising_strength = *strength;
            }
            Self::Control { unit, change } => {
                let unit = &mut settings.controls[*unit];
                match change {
                    ControlChange::Model(model, name) => {
                        unit.model.clone_from(model);
                        unit.name.clone_from(name);
                    }
                    ControlChange::Weight(weight) => unit.weight = *weight,
                    ControlChange::Start(start) => unit.start = *start,
                    ControlChange::End(end) => unit.end = *end,
                    ControlChange::Mode(mode) => unit.mode = *mode,
                    ControlChange::Preprocessor(other) if other.name() == unit.preprocessor.name() => {}
                    ControlChange::Preprocessor(other) => unit.preprocessor = *other,
                }
            }
        }
    }
}

fn behind(first: &str, second: &str) -> String {
    match (first.trim().is_empty(), second.trim().is_empty()) {
        (true, _) => second.to_owned(),
        (_, true) => first.to_owned(),
        _ => format!("{first}, {second}"),
    }
}

/// The prompt with this weight for the LoRA; weight 0 leaves it out altogether.
fn with_lora(prompt: &str, name: &str, weight: f64) -> String {
    let tag = if weight == 0.0 { String::new() } else { format!("<lora:{name}:{weight}>") };
    let mut rest = prompt;
    let mut found = String::new();
    let mut is_there = false;
    while let Some(start) = rest.find("<lora:") {
        let end = rest[start..].find('>').map_or(rest.len(), |end| start + end + 1);
        let (_, networks) = take_networks(&rest[start..end]);
        let is_it =
            networks.iter().any(|network| network.positional.first().is_some_and(|found| found == name));
        found.push_str(&rest[..start]);
        found.push_str(if is_it { &tag } else { &rest[start..end] });
        is_there |= is_it;
        rest = &rest[end..];
    }
    found.push_str(rest);
    match (is_there, tag.is_empty()) {
        (true, _) | (_, true) => found,
        _ => format!("{found} {tag}"),
    }
}

impl Axis {
    /// The axis that a user wrote.
    ///
    /// # Errors
    /// A value that is none, with its place; an axis that has a key of its own in `grid.toml`.
    pub(super) fn of(written: &GridAxis) -> Result<Self> {
        let name = written.name.clone().unwrap_or_else(|| match (&written.lora, written.unit) {
            (Some(lora), _) => format!("LoRA {lora}"),
            (None, Some(unit @ 1..)) => format!("{} {unit}", written.kind),
            (None, _) => written.kind.to_string(),
        });
        let fault = |message: String| Error::Axis { axis: name.clone(), line: written.line, message };
        if written.lora.is_some() != (written.kind == AxisType::LoraWeight) {
            return Err(fault("`lora` names the LoRA of an axis of the type `LoRA weight`".into()));
        }
        let is_of_control = written.kind.is_of_control();
        if written.unit.is_some() && !is_of_control {
            return Err(fault("`unit` is the number of a `[[control]]`, and this axis is of none".into()));
        }
        let changes = changes(written).map_err(fault)?;
        let fault = |message: String| Error::Axis { axis: name.clone(), line: written.line, message };
        if changes.is_empty() {
            return Err(fault("expected at least one value".into()));
        }
        let labels = written
            .labels
            .clone()
            .unwrap_or_else(|| changes.iter().map(|(label, _)| label.clone()).collect());
        if labels.len() != changes.len() {
            return Err(fault(format!("{} labels for {} values", labels.len(), changes.len())));
        }
        let value = |(label, (_, change))| AxisValue { label, change };
        let unit = is_of_control.then(|| written.unit.unwrap_or(0));
        let values = labels.into_iter().zip(changes).map(value).collect();
        Ok(Self { kind: written.kind, values, name, unit })
    }
}

/// The labels and changes of an axis as it was written.
fn changes(written: &GridAxis) -> Result<Vec<(String, Change)>, String> {
    let values = &written.values;
    let kind = written.kind;
    let integers = |change: fn(u32) -> Change| {
        let numbers = values.integers()?.into_iter().map(|number| {
            let number =
                u32::try_from(number).map_err(|_| format!("{number}: expected 0 to {}", u32::MAX))?;
            Ok((format!("{kind} {number}"), change(number)))
        });
        numbers.collect()
    };
    let numbers = |change: fn(f64) -> Change| {
        let numbers = values.numbers()?.into_iter();
        Ok(numbers.map(|number| (format!("{kind} {number}"), change(number))).collect())
    };
    match kind {
        AxisType::Checkpoint | AxisType::Prompt => {
            let key = if kind == AxisType::Prompt { "prompts" } else { "checkpoints" };
            Err(format!("this axis is written as `[[{key}]]`"))
        }
        AxisType::Seed => integers(Change::Seed),
        AxisType::Steps => integers(Change::Steps),
        AxisType::ClipSkip => integers(Change::ClipSkip),
        AxisType::Cfg => numbers(Change::Cfg),
        AxisType::HiresScale => numbers(Change::HiresScale),
        AxisType::Denoising => numbers(Change::Denoising),
        AxisType::HiresSteps => integers(Change::HiresSteps),
        AxisType::HiresSampler => parsed(values, Change::HiresSampler),
        AxisType::HiresUpscaler => (1..).zip(values.texts()).map(upscaler).collect(),
        AxisType::ControlModel
        | AxisType::ControlWeight
        | AxisType::ControlStart
        | AxisType::ControlEnd
        | AxisType::ControlMode
        | AxisType::ControlPreprocessor => control(written),
        AxisType::LoraWeight => {
            let name = written.lora.clone().unwrap_or_default();
            let numbers = values.numbers()?.into_iter();
            let change = |weight| (format!("{name} {weight}"), Change::Lora { name: name.clone(), weight });
            Ok(numbers.map(change).collect())
        }
        AxisType::Sampler => parsed(values, Change::Sampler),
        AxisType::Schedule => parsed(values, Change::Schedule),
        AxisType::Size => parsed(values, Change::Size),
        AxisType::Vae => {
            let path = |text: &String| Some(PathBuf::from(text)).filter(|_| !is_own_vae(text));
            let label = |path: &Option<PathBuf>| path.as_deref().map_or("own VAE".into(), model_name);
            Ok(values.texts().iter().map(path).map(|path| (label(&path), Change::Vae(path))).collect())
        }
        AxisType::NegativePrompt => {
            let label = |text: &String| {
                if text.is_empty() { "no negative prompt".into() } else { format!("not: {text}") }
            };
            Ok(values.texts().iter().map(|text| (label(text), Change::Negative(text.clone()))).collect())
        }
        AxisType::PromptSr => {
            let from = values.texts().first().cloned().unwrap_or_default();
            if from.is_empty() && !values.is_empty() {
                return Err("the first value is what is looked for: expected a text that is not empty".into());
            }
            let change = |to: &String| (to.clone(), Change::Replace { from: from.clone(), to: to.clone() });
            Ok(values.texts().iter().map(change).collect())
        }
    }
}

fn is_own_vae(text: &str) -> bool {
    matches!(text, "" | "none" | "None")
}

fn is_off(text: &str) -> bool {
    text.eq_ignore_ascii_case("off")
}

/// A change of a unit, with its label.
type Named = (String, ControlChange);

/// Those of an axis of a ControlNet.
fn control(written: &GridAxis) -> Result<Vec<(String, Change)>, String> {
    let (values, kind, unit) = (&written.values, written.kind, written.unit.unwrap_or(0));
    let made = |label: String, change| (label, Change::Control { unit, change });
    let numbers = |change: fn(f64) -> ControlChange| {
        let numbers = values.numbers()?.into_iter();
        Ok(numbers.map(|number| made(format!("{kind} {number}"), change(number))).collect())
    };
    let named = |change: &dyn Fn(&str) -> Result<Named, String>| {
        let texts = (1..).zip(values.texts()).map(|(place, text)| {
            let (label, change) = change(text).map_err(|error| format!("value {place}: {error}"))?;
            Ok(made(label, change))
        });
        texts.collect()
    };
    match kind {
        AxisType::ControlStart => numbers(ControlChange::Start),
        AxisType::ControlEnd => numbers(ControlChange::End),
        AxisType::ControlMode => named(&|text| {
            let mode: ControlMode = text.parse().map_err(|error: Error| error.to_string())?;
            Ok((mode.label().to_owned(), ControlChange::Mode(mode)))
        }),
        AxisType::ControlPreprocessor => named(&|text| {
            let known = || Preprocessor::ALL.map(Preprocessor::name).join(", ");
            let found =
                Preprocessor::named(text).ok_or_else(|| format!("expected {}, found `{text}`", known()))?;
            Ok((found.name().to_owned(), ControlChange::Preprocessor(found)))
        }),
        AxisType::ControlModel => named(&|text| {
            let path = PathBuf::from(text);
            let name = name_of(&path).map_err(|error| error.to_string())?;
            Ok((model_name(&path), ControlChange::Model(path, name)))
        }),
        _ => numbers(ControlChange::Weight),
    }
}

/// The upscaler of a value, or none.
fn upscaler((place, text): (usize, &String)) -> Result<(String, Change), String> {
    if is_off(text) {
        return Ok(("no second pass".into(), Change::HiresUpscaler(None)));
    }
    let Ok(upscaler) = text.parse::<HiresUpscaler>();
    let hash = upscaler.hash().map_err(|error| format!("value {place}: {error}"))?;
    Ok((upscaler.to_string(), Change::HiresUpscaler(Some((upscaler, hash)))))
}

/// Values that are names, each by its own rule.
fn parsed<T: FromStr<Err: fmt::Display> + ToString>(
    values: &Values,
    change: fn(T) -> Change,
) -> Result<Vec<(String, Change)>, String> {
    let parse = |(place, text): (usize, &String)| {
        let value: T = text.parse().map_err(|error: T::Err| format!("value {place}: {error}"))?;
        Ok((value.to_string(), change(value)))
    };
    (1..).zip(values.texts()).map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(kind: &str, values: &str) -> GridAxis {
        GridAxis::new(kind.parse().unwrap(), Values::split(values).unwrap())
    }

    fn said(axis: &GridAxis) -> String {
        Axis::of(axis).unwrap_err().to_string()
    }

    #[test]
    fn names_are_those_of_a1111_and_short_ones() {
        for (kind, name, short) in AxisType::NAMES {
            assert_eq!(
                (name.parse::<AxisType>().unwrap(), short.to_uppercase().parse::<AxisType>().unwrap()),
                (kind, kind)
            );
            assert_eq!(kind.to_string(), name);
        }
        let error = "CFG Skale".parse::<AxisType>().unwrap_err().to_string();
        assert_eq!(error, "unknown type of axis `CFG Skale`, did you mean `CFG Scale`?");
    }

    #[test]
    fn values_change_the_settings() {
        let mut settings = Settings {
            prompt: "a cat, blurry".into(),
            negative_prompt: "blurry".into(),
            ..Settings::default()
        };
        for (kind, value) in [
            ("steps", "7"),
            ("cfg", "2.5"),
            ("seed", "9"),
            ("sampler", "DPM++ 2M"),
            ("schedule", "Karras"),
            ("size", "64x128"),
            ("clip-skip", "2"),
            ("negative", "dark"),
            ("prompt-sr", "blurry, sharp"),
        ] {
            let axis = Axis::of(&axis(kind, value)).unwrap();
            axis.values.last().unwrap().change.apply(&mut settings);
        }
        assert_eq!((settings.steps, settings.cfg_scale, settings.seed, settings.clip_skip), (7, 2.5, 9, 2));
        assert_eq!((settings.sampler.name(), settings.schedule.name()), ("DPM++ 2M", "Karras"));
        assert_eq!((settings.size.width, settings.size.height), (64, 128));
        assert_eq!((&*settings.prompt, &*settings.negative_prompt), ("a cat, sharp", "sharp, dark"));
    }

    #[test]
    fn a_hires_pass_is_there_where_an_axis_says_something_of_it() {
        let change = |kind: &str, value: &str| Axis::of(&axis(kind, value)).unwrap().values.remove(0).change;
        let mut settings = Settings::default();
        for (kind, value) in [
            ("hires-upscaler", "Latent (nearest-exact)"),
            ("hires-scale", "1.5"),
            ("hires-steps", "3"),
            ("hires-sampler", "Heun"),
            ("denoising", "0.4"),
        ] {
            change(kind, value).apply(&mut settings);
        }
        let hires = settings.hires.clone().unwrap();
        assert_eq!((hires.target, hires.steps, hires.denoising_strength), (HiresTarget::Scale(1.5), 3, 0.4));
        let names = (hires.upscaler.to_string(), hires.sampler.unwrap().name());
        assert_eq!(names, ("Latent (nearest-exact)".to_owned(), "Heun"));
        let off = change("hires-upscaler", "off");
        assert!(off.order() > change("hires-steps", "3").order());
        off.apply(&mut settings);
        assert_eq!(settings, Settings::default());
        assert!(said(&axis("hires-upscaler", "off, no/4x.pth")).contains("value 2: cannot read `no/4x.pth`"));
    }

    #[test]
    fn paths_are_told_from_names() {
        let paths = |kind: &str, values: &str| -> Vec<String> {
            axis(kind, values).paths_mut().map(|path| path.clone()).collect()
        };
        let upscalers = "off, Lanczos, Latent (nearest-exact), models/4x.pth";
        assert_eq!(paths("hires-upscaler", upscalers), ["models/4x.pth"]);
        assert_eq!(paths("vae", "none, a.safetensors"), ["a.safetensors"]);
        assert!(paths("sampler", "Euler").is_empty());
    }

    #[test]
    fn a_lora_gets_its_weight_where_it_stands_or_at_the_end() {
        assert_eq!(with_lora("a <lora:x:1>, b <lora:y>", "x", 0.5), "a <lora:x:0.5>, b <lora:y>");
        assert_eq!(with_lora("a", "x", 0.5), "a <lora:x:0.5>");
        assert_eq!(with_lora("a <lora:x:1:2>b", "x", 0.0), "a b");
        assert_eq!(with_lora("a <lora:x", "x", 0.5), "a <lora:x <lora:x:0.5>");
    }

    #[test]
    fn an_axis_of_a_control_net_changes_one_unit() {
        let unit = || crate::ControlUnit {
            preprocessor: Preprocessor::TileResample { rate: 4.0 },
            ..crate::ControlUnit::default()
        };
        let mut settings = Settings { controls: vec![unit(), unit()], ..Settings::default() };
        for (kind, value) in [
            ("[ControlNet] Weight", "0.5"),
            ("control-start", "0.25"),
            ("control-end", "0.75"),
            ("control-mode", "ControlNet is more important"),
            ("control-preprocessor", "tile_resample"),
        ] {
            let mut axis = axis(kind, value);
            axis.unit = Some(1);
            let axis = Axis::of(&axis).unwrap();
            assert_eq!((axis.unit, axis.name.ends_with(" 1")), (Some(1), true));
            axis.values[0].change.apply(&mut settings);
        }
        // Of the same preprocessor the numbers stay.
        let (start, end, mode) = (0.25, 0.75, ControlMode::Control);
        let expected = crate::ControlUnit { weight: 0.5, start, end, mode, ..unit() };
        assert_eq!(settings.controls, [unit(), expected]);
        let other = Axis::of(&axis("control-preprocessor", "blur_gaussian")).unwrap();
        other.values[0].change.apply(&mut settings);
        assert_eq!(settings.controls[0].preprocessor, Preprocessor::BlurGaussian { sigma: 9.0 });
        let error = said(&axis("control-preprocessor", "none, canny"));
        assert!(
            error.contains("value 2: expected none, tile_resample") && error.ends_with("found `canny`"),
            "{error}"
        );
        assert!(said(&axis("control-model", "no/tile.pth")).contains("value 1: cannot read `no/tile.pth`"));
        assert!(said(&axis("control-mode", "both")).contains("value 1: a ControlNet's mode"));
        let mut steps = axis("steps", "3");
        steps.unit = Some(0);
        assert!(said(&steps).contains("`unit` is the number of a `[[control]]`"));
    }

    #[test]
    fn faults_name_axis_and_value() {
        assert_eq!(
            said(&axis("steps", "1, x")).split(": expected").next().unwrap(),
            "the axis `Steps`: value 2, `x`"
        );
        assert!(said(&axis("seed", "-1")).contains("-1: expected 0 to 4294967295"));
        let error = said(&axis("sampler", "Euler, Eular"));
        assert!(error.contains("value 2") && error.contains("did you mean `Euler`?"), "{error}");
        assert!(said(&axis("size", "64")).contains("expected a size such as 512x768"));
        assert!(said(&axis("cfg", "")).contains("at least one value"));
        assert!(said(&axis("prompt-sr", "\"\", b")).contains("a text that is not empty"));
        assert!(said(&axis("prompt", "a")).contains("[[prompts]]"));
        assert!(said(&axis("lora", "1")).contains("names the LoRA"));
        let mut labelled = axis("cfg", "1, 2");
        labelled.labels = Some(vec!["one".into()]);
        assert!(said(&labelled).contains("1 labels for 2 values"));
        labelled.line = Some(3);
        assert!(said(&labelled).starts_with("line 3: the axis `CFG Scale`: "));
    }
}
