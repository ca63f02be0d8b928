//! What decides a picture, beside the checkpoint.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use vodka_noise::{Denoising, RandomSource, SamplerName, Schedule, ScheduleName, Solver, SolverOptions};
use vodka_prompt::Emphasis;

use crate::{ControlUnit, Error, Hires, Result, conditioning::Prompts};

/// Both sides of a picture are divisible by this.
pub(crate) const MULTIPLE: u32 = 8;
/// The longest side, in pixels.
const MAX_SIDE_PX: u32 = 8192;

/// The size of a picture in pixels, written `512x768`: width by height.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Size {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
}

/// How a picture is brought to the size of the one that is made of it (A1111's option "Resize mode").
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResizeMode {
    /// "Just resize": to the size, whatever becomes of its proportions.
    #[default]
    Just,
    /// "Crop and resize": it covers the size, and what sticks out is cut off.
    Crop,
    /// "Resize and fill": it fits into the size, and its outermost rows or columns fill the rest.
    Fill,
}

/// What there is to say of a picture that is made from another.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImageToImage {
    /// 0 keeps the picture, 1 nothing of it.
    pub denoising_strength: f64,
    /// Whether all steps are made, over a finer schedule; else the share `denoising_strength` of them.
    pub exact_steps: bool,
    /// How it is brought to the size.
    pub resize_mode: ResizeMode,
    /// The first ten digits of the SHA-256 of its file; nothing where that is not known.
    pub hash: String,
    /// Of a hires pass, the calls of the first pass, on which the prompts' steps count on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after_calls: Option<u32>,
}

impl Default for ImageToImage {
    /// A1111's strength, 0.75.
    fn default() -> Self {
        Self {
            denoising_strength: 0.75,
            exact_steps: false,
            resize_mode: ResizeMode::Just,
            hash: String::new(),
            after_calls: None,
        }
    }
}

/// Prompts and numbers; the names are those of A1111.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// What the picture is to show.
    pub prompt: String,
    /// What it is not to show.
    pub negative_prompt: String,
    /// The seed of the noise.
    pub seed: u32,
    /// Where random numbers come from.
    pub rng: RandomSource,
    /// The seed of another noise, and how far to go towards that, 0 to 1.
    pub subseed: u32,
    /// 0 leaves `subseed` out.
    pub subseed_strength: f64,
    /// ENSD: what is added to the seed for all noise but the first; 0 goes on with one generator.
    pub ensd: u32,
    /// How much noise samplers add on the way; their own where absent.
    pub eta: Option<f64>,
    /// Steps as A1111 counts them.
    pub steps: u32,
    /// How far to go from the negative prompt towards the prompt; 1 leaves the negative prompt out.
    pub cfg_scale: f64,
    /// The size of the picture.
    pub size: Size,
    /// The sampler.
    pub sampler: SamplerName,
    /// The spacing of the noise levels.
    pub schedule: ScheduleName,
    /// The layer of the text encoder, counted from the end; 1 is the last.
    pub clip_skip: u32,
    /// What brackets in prompts do.
    pub emphasis: Emphasis,
    /// The rule of before 1.6.0 for the `when` of `[from:to:when]`.
    pub old_prompt_rule: bool,
    /// Whether the picture's edges fit together.
    pub tiling: bool,
    /// The size of the picture whose noise is put into the middle of this one's.
    pub seed_resize_from: Option<Size>,
    /// Where it is made from another picture.
    pub image: Option<ImageToImage>,
    /// The ControlNets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub controls: Vec<ControlUnit>,
    /// The hires pass, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hires: Option<Hires>,
}

impl Settings {
    /// Whether a picture can be made with these, as far as no checkpoint is needed to tell.
    pub fn check(&self) -> Result<()> {
        let Size { width, height } = self.size;
        let fits = |side: u32| side > 0 && side <= MAX_SIDE_PX && side.is_multiple_of(MULTIPLE);
        if !fits(width) || !fits(height) {
            return Err(Error::Size { width, height, multiple: MULTIPLE, max: MAX_SIDE_PX });
        }
        if !(self.cfg_scale.is_finite() && self.cfg_scale >= 0.0) {
            return Err(Error::CfgScale { found: self.cfg_scale });
        }
        if self.clip_skip == 0 {
            return Err(Error::ClipSkipZero);
        }
        if !(0.0..=1.0).contains(&self.subseed_strength) {
            return Err(Error::SubseedStrength { found: self.subseed_strength });
        }
        if let Some(found) = self.eta.filter(|eta| !(0.0..=1.0).contains(eta)) {
            return Err(Error::Eta { found });
        }
        if let Some(Size { width, height }) = self.seed_resize_from
            && !(fits(width) && fits(height))
        {
            return Err(Error::Size { width, height, multiple: MULTIPLE, max: MAX_SIDE_PX });
        }
        self.solver(&Schedule::scaled_linear())?;
        Prompts::check(self)?;
        self.controls.iter().try_for_each(ControlUnit::check)?;
        // A hires pass has a picture too, which is none that could be shown to a ControlNet.
        if self.image.is_none()
            && let Some(number) = self.controls.iter().position(|unit| unit.image.is_none())
        {
            return Err(Error::NoControlImage { number });
        }
        match &self.hires {
            Some(_) if self.image.is_some() => Err(Error::HiresOfImage),
            Some(hires) => hires.check(self),
            None => Ok(()),
        }
    }

    /// The settings of each pass, in their order.
    pub(crate) fn passes(&self) -> Vec<Self> {
        let first = Self { hires: None, ..self.clone() };
        let second = self.hires.as_ref().map(|hires| hires.second(&first));
        [Some(first), second].into_iter().flatten().collect()
    }

    /// The calls of the denoiser that prompts are scheduled over, as A1111 counts them.
    pub(crate) fn scheduled_calls(&self) -> u32 {
        self.steps * if self.sampler.is_second_order() { 2 } else { 1 }
    }

    /// The steps of the run, as A1111 tells them to extensions: those of a picture that is made from another are fewer.
    pub(crate) fn steps_of_run(&self) -> u32 {
        match &self.image {
            Some(image) if !image.exact_steps => {
                (image.denoising_strength.min(0.999) * f64::from(self.steps)) as u32 + 1
            }
            _ => self.steps,
        }
    }

    /// The noise levels, of a model that was trained with these.
    pub(crate) fn solver(&self, table: &Schedule) -> Result<Solver> {
        let solver = match &self.image {
            None => Solver::new(table, self.sampler, self.schedule, self.steps)?,
            Some(image) => {
                let denoising =
                    Denoising { strength: image.denoising_strength, exact_steps: image.exact_steps };
                Solver::image_to_image(table, self.sampler, self.schedule, self.steps, denoising)?
            }
        };
        Ok(solver.with_options(SolverOptions { eta: self.eta, ..SolverOptions::default() }))
    }

    /// What the difference between the prompts is multiplied by.
    pub(crate) fn guidance(&self) -> f64 {
        self.cfg_scale * self.sampler.guidance_factor()
    }
}

impl Default for Settings {
    /// A1111's: 20 steps of Euler, CFG scale 7, 512 px; and the seed 0.
    fn default() -> Self {
        Self {
            prompt: String::new(),
            negative_prompt: String::new(),
            seed: 0,
            rng: RandomSource::Cpu,
            subseed: 0,
            subseed_strength: 0.0,
            ensd: 0,
            eta: None,
            steps: 20,
            cfg_scale: 7.0,
            size: Size::default(),
            sampler: SamplerName::Euler,
            schedule: ScheduleName::Automatic,
            clip_skip: 1,
            emphasis: Emphasis::Original,
            old_prompt_rule: false,
            tiling: false,
            seed_resize_from: None,
            image: None,
            controls: Vec::new(),
            hires: None,
        }
    }
}

impl Default for Size {
    fn default() -> Self {
        Self { width: 512, height: 512 }
    }
}

impl ResizeMode {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::Just, Self::Crop, Self::Fill];

    /// The name: `just`, `crop` or `fill`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Just => "just",
            Self::Crop => "crop",
            Self::Fill => "fill",
        }
    }
}

impl fmt::Display for ResizeMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ResizeMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|mode| mode.name().eq_ignore_ascii_case(text.trim()));
        found.ok_or_else(|| Error::ResizeMode { found: text.to_owned() })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

impl FromStr for Size {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let sides = text.split_once('x').map(|(width, height)| (width.parse(), height.parse()));
        match sides {
            Some((Ok(width), Ok(height))) => Ok(Self { width, height }),
            _ => Err(Error::SizeForm { found: text.to_owned() }),
        }
    }
}

impl TryFrom<String> for Size {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_checked() {
        assert_eq!("512x768".parse::<Size>().unwrap(), Size { width: 512, height: 768 });
        for text in ["512", "512x", "x8", "512X768", "-8x8", "8 x 8"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        let check = |text: &str| Settings { size: text.parse().unwrap(), ..Settings::default() }.check();
        check("8x8192").unwrap();
        for text in ["100x64", "64x100", "0x64", "8200x64"] {
            assert!(check(text).unwrap_err().to_string().contains("multiples of 8"), "{text}");
        }
    }

    #[test]
    fn shares_must_be_shares_and_prompts_must_parse() {
        let check = |settings: Settings| settings.check().unwrap_err().to_string();
        let error = check(Settings { subseed_strength: 1.5, ..Settings::default() });
        assert_eq!(error, "the variation seed's strength is 1.5, expected 0 to 1");
        let error = check(Settings { eta: Some(-1.0), ..Settings::default() });
        assert_eq!(error, "eta is -1, expected 0 to 1");
        let error = check(Settings { negative_prompt: "(a:1.2.3)".into(), ..Settings::default() });
        assert_eq!(error, "the weight `1.2.3` in a prompt is no number");
    }

    #[test]
    fn the_last_layer_is_the_first() {
        let error = Settings { clip_skip: 0, ..Settings::default() }.check().unwrap_err();
        assert_eq!(error.to_string(), "clip skip is 0, expected at least 1, the last layer");
    }

    #[test]
    fn guidance_must_be_a_number() {
        for cfg_scale in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(Settings { cfg_scale, ..Settings::default() }.check().is_err());
        }
    }
}
