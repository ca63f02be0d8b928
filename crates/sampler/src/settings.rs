//! What decides a picture, beside the checkpoint.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use vodka_noise::{SamplerName, ScheduleName, Solver};
use vodka_prompt::{MAX_TOKENS, token_count};

use crate::{Error, Result};

/// Both sides of a picture are divisible by this.
const MULTIPLE: u32 = 8;
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

/// Prompts and numbers; the names are those of A1111.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// What the picture is to show.
    pub prompt: String,
    /// What it is not to show.
    pub negative_prompt: String,
    /// The seed of torch's processor generator, which draws the first noise.
    pub seed: u32,
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
        Ok(Solver::check(self.sampler, self.schedule, self.steps)?)
    }

    /// The prompts of which the text encoder sees only the beginning.
    pub fn cut_prompts(&self) -> Vec<CutPrompt> {
        let cut = |prompt: &String| {
            let tokens = token_count(prompt);
            (tokens > MAX_TOKENS).then(|| CutPrompt { prompt: prompt.clone(), tokens })
        };
        [&self.prompt, &self.negative_prompt].into_iter().filter_map(cut).collect()
    }
}

/// A prompt that is too long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutPrompt {
    /// The whole of it.
    pub prompt: String,
    /// Its tokens, of which the first [`MAX_TOKENS`] count.
    pub tokens: usize,
}

impl fmt::Display for CutPrompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start: String = self.prompt.chars().take(40).collect();
        write!(f, "only the first {MAX_TOKENS} of {} tokens count in: {start}...", self.tokens)
    }
}

impl Default for Settings {
    /// A1111's: 20 steps of Euler, CFG scale 7, 512 px; and the seed 0.
    fn default() -> Self {
        Self {
            prompt: String::new(),
            negative_prompt: String::new(),
            seed: 0,
            steps: 20,
            cfg_scale: 7.0,
            size: Size::default(),
            sampler: SamplerName::Euler,
            schedule: ScheduleName::Automatic,
            clip_skip: 1,
        }
    }
}

impl Default for Size {
    fn default() -> Self {
        Self { width: 512, height: 512 }
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
    fn long_prompts_are_told() {
        let cut = |prompt: String| Settings { prompt, ..Settings::default() }.cut_prompts();
        assert!(cut("cat ".repeat(75)).is_empty());
        let said = cut("cat ".repeat(76))[0].to_string();
        assert!(said.starts_with("only the first 75 of 76 tokens count in: cat cat "), "{said}");
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
