//! A weight that may differ from block to block, from part to part and from tensor to tensor.

use std::{fmt, str::FromStr};

use vodka_checkpoint::Part;
use vodka_stage::{glob_matches, nearest};

use crate::{
    Error,
    blocks::{BLOCKS, BlockWeights, PRESETS, block_name, block_of, preset},
};

/// A number for every tensor.
///
/// What is told most narrowly counts: the last selector that matches a tensor, else the number of its part, else that
/// of its block, else the number for all.
#[derive(Debug, Clone, PartialEq)]
pub struct Weight {
    all: f64,
    /// The name of a preset, or the numbers as they were written.
    blocks: Option<(Option<String>, BlockWeights)>,
    text_encoder: Option<f64>,
    unet: Option<f64>,
    vae: Option<f64>,
    selectors: Vec<Selector>,
}

/// A number for the tensors that two globs match.
#[derive(Debug, Clone, PartialEq)]
pub struct Selector {
    /// What the LDM name must match: `*` stands for any characters, `?` for one.
    pub keys: String,
    /// What the block's name must match.
    pub block: Option<String>,
    /// The number.
    pub value: f64,
}

impl Selector {
    /// Whether it means a tensor, by its LDM name.
    pub(crate) fn matches(&self, name: &str) -> bool {
        let block = |glob: &String| glob_matches(glob, &block_name(block_of(name)));
        glob_matches(&self.keys, name) && self.block.as_ref().is_none_or(block)
    }
}

impl From<f64> for Weight {
    fn from(all: f64) -> Self {
        Self { all, blocks: None, text_encoder: None, unet: None, vae: None, selectors: Vec::new() }
    }
}

impl Weight {
    /// One number for each block; `preset` is their name, if they have one.
    pub fn of_blocks(preset: Option<String>, blocks: BlockWeights) -> Self {
        Self { blocks: Some((preset, blocks)), ..Self::from(0.0) }
    }

    /// Puts another number for BASE: the text encoder, the VAE and all that is not the UNet.
    #[must_use]
    pub fn with_base(mut self, base: f64) -> Self {
        let blocks = self.blocks.get_or_insert((None, [self.all; BLOCKS]));
        blocks.0 = None;
        blocks.1[0] = base;
        self
    }

    /// Puts a number for a part.
    #[must_use]
    pub fn with_part(mut self, part: Part, value: f64) -> Self {
        *match part {
            Part::TextEncoder => &mut self.text_encoder,
            Part::Unet => &mut self.unet,
            Part::Vae => &mut self.vae,
        } = Some(value);
        self
    }

    /// Puts a number for the tensors that a selector matches, before those put earlier.
    #[must_use]
    pub fn with_selector(mut self, selector: Selector) -> Self {
        self.selectors.push(selector);
        self
    }

    /// The number for a tensor, by its LDM name.
    pub fn at(&self, name: &str) -> f64 {
        if let Some(selector) = self.selectors.iter().rev().find(|selector| selector.matches(name)) {
            return selector.value;
        }
        let part = Part::of(name).and_then(|part| match part {
            Part::TextEncoder => self.text_encoder,
            Part::Unet => self.unet,
            Part::Vae => self.vae,
        });
        part.unwrap_or_else(|| self.blocks.as_ref().map_or(self.all, |(_, blocks)| blocks[block_of(name)]))
    }

    /// The selectors, in the order in which they were put.
    pub(crate) fn selectors(&self) -> &[Selector] {
        &self.selectors
    }

    /// All numbers that it may give.
    pub fn values(&self) -> impl Iterator<Item = f64> {
        let blocks: &[f64] =
            self.blocks.as_ref().map_or(std::slice::from_ref(&self.all), |(_, blocks)| blocks);
        let parts = [self.text_encoder, self.unet, self.vae].into_iter().flatten();
        blocks.iter().copied().chain(parts).chain(self.selectors.iter().map(|selector| selector.value))
    }

    /// The number for every tensor, if it is one.
    pub fn constant(&self) -> Option<f64> {
        let plain = self.blocks.is_none() && self.selectors.is_empty();
        let whole = self.text_encoder.is_none() && self.unet.is_none() && self.vae.is_none();
        (plain && whole).then_some(self.all)
    }

    /// How it is named in the name of a file: its number, or its preset.
    pub fn label(&self) -> String {
        match (&self.blocks, self.constant()) {
            (_, Some(all)) => all.to_string(),
            (Some((Some(preset), _)), None) => {
                preset.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
            }
            _ => "blocks".to_owned(),
        }
    }
}

/// As on a command line: a number, the name of a preset, or 26 numbers with commas between.
impl FromStr for Weight {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if let Ok(number) = text.parse::<f64>() {
            return Ok(number.into());
        }
        if let Some(blocks) = preset(text) {
            return Ok(Self::of_blocks(Some(text.to_owned()), blocks));
        }
        let numbers: Result<Vec<f64>, _> = text.split(',').map(|number| number.trim().parse()).collect();
        let blocks = numbers.ok().and_then(|numbers| BlockWeights::try_from(numbers).ok());
        let wrong = || Error::Weight { found: text.to_owned(), nearest: nearest(text, PRESETS) };
        blocks.map(|blocks| Self::of_blocks(None, blocks)).ok_or_else(wrong)
    }
}

/// As TOML, on one line.
impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(all) = self.constant() {
            return write!(f, "{}", number(all));
        }
        let mut fields = Vec::new();
        match &self.blocks {
            Some((Some(preset), _)) => fields.push(format!("preset = \"{preset}\"")),
            Some((None, blocks)) => {
                let blocks: Vec<_> = blocks.iter().map(|weight| number(*weight)).collect();
                fields.push(format!("blocks = [{}]", blocks.join(", ")));
            }
            None => fields.push(format!("value = {}", number(self.all))),
        }
        let parts = [("text_encoder", self.text_encoder), ("unet", self.unet), ("vae", self.vae)];
        for (name, value) in parts {
            fields.extend(value.map(|value| format!("{name} = {}", number(value))));
        }
        if !self.selectors.is_empty() {
            let selectors: Vec<_> = self.selectors.iter().map(ToString::to_string).collect();
            fields.push(format!("select = [{}]", selectors.join(", ")));
        }
        write!(f, "{{ {} }}", fields.join(", "))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |text: &String| toml::Value::from(text.as_str()).to_string();
        write!(f, "{{ keys = {}, ", quoted(&self.keys))?;
        if let Some(block) = &self.block {
            write!(f, "block = {}, ", quoted(block))?;
        }
        write!(f, "value = {} }}", number(self.value))
    }
}

/// A number as TOML, which wants a point in a float.
pub(crate) fn number(value: f64) -> String {
    let text = value.to_string();
    if text.contains(['.', 'n', 'i']) { text } else { format!("{text}.0") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::preset;

    const ATTENTION: &str = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight";
    const CLIP: &str = "cond_stage_model.transformer.text_model.final_layer_norm.weight";

    #[test]
    fn the_narrowest_number_counts() {
        let weight = Weight::of_blocks(Some("OUT12".to_owned()), preset("OUT12").unwrap());
        assert_eq!((weight.at(ATTENTION), weight.at(CLIP)), (0.0, 0.0));
        let weight = weight.with_base(0.3).with_part(Part::Unet, 0.5);
        assert_eq!((weight.at(ATTENTION), weight.at(CLIP)), (0.5, 0.3));
        let select = |keys: &str, block: Option<&str>, value| Selector {
            keys: keys.to_owned(),
            block: block.map(ToOwned::to_owned),
            value,
        };
        let weight = weight.with_selector(select("*attn2*", Some("IN*"), 0.7));
        assert_eq!(weight.at(ATTENTION), 0.7);
        let weight = weight.with_selector(select("*attn2*", Some("OUT*"), 0.8));
        assert_eq!(weight.at(ATTENTION), 0.7);
        let weight = weight.with_selector(select("*", None, 0.9));
        assert_eq!(weight.at(ATTENTION), 0.9);
        assert_eq!(Weight::from(0.5).to_string(), "0.5");
        assert_eq!(Weight::from(1.0).to_string(), "1.0");
        assert!(weight.to_string().starts_with("{ blocks = [0.3, 0.0, "), "{weight}");
    }
}
