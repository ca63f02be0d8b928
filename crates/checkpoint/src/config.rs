//! The numbers that define a model: widths, depths, heads.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What the UNet's output means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise that was added.
    #[default]
    Epsilon,
    /// The velocity of Salimans and Ho, arXiv:2202.00512, section 4.
    VPrediction,
}

/// A whole Stable Diffusion 1.x model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// The denoiser.
    pub unet: UNetConfig,
    /// The image encoder and decoder.
    pub vae: VaeConfig,
    /// The text encoder.
    pub clip: ClipConfig,
    /// What the denoiser predicts.
    #[serde(default)]
    pub prediction: Prediction,
    /// Whether it was trained with nothing but noise at the last timestep: diffusers' `rescale_betas_zero_snr`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub zero_terminal_snr: bool,
}

/// The UNet: levels from the finest to the coarsest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UNetConfig {
    /// Channels of the input; 4 latent ones, more for inpainting models.
    pub in_channels: i64,
    /// Channels of the prediction.
    pub out_channels: i64,
    /// Channels of each level.
    pub block_out_channels: Vec<i64>,
    /// Residual blocks of each level on the way down; one more on the way up.
    pub layers_per_block: i64,
    /// Which levels attend to the text (`CrossAttnDownBlock2D` in diffusers' terms). The middle always does.
    pub cross_attention: Vec<bool>,
    /// Channels of the text's embedding.
    pub cross_attention_dim: i64,
    /// Attention heads in every level; diffusers' `attention_head_dim`, by an old accident of naming.
    pub attention_heads: i64,
    /// Groups of every group normalisation.
    pub norm_groups: i64,
}

/// A ControlNet (Zhang et al. 2023, arXiv:2302.05543).
#[derive(Debug, Clone, PartialEq)]
pub struct ControlNetConfig {
    /// The UNet whose way down and middle it has; the output's channels say nothing here.
    pub unet: UNetConfig,
    /// Channels of the layers that see the picture, which is halved between each two of these.
    pub hint_channels: [i64; 4],
}

/// The VAE: levels from the finest to the coarsest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VaeConfig {
    /// Channels of the pictures, in and out.
    pub in_channels: i64,
    /// Channels of the latents.
    pub latent_channels: i64,
    /// Channels of each level.
    pub block_out_channels: Vec<i64>,
    /// Residual blocks of each level of the encoder; one more in the decoder.
    pub layers_per_block: i64,
    /// Groups of every group normalisation.
    pub norm_groups: i64,
    /// What latents are multiplied by before the UNet sees them.
    pub scaling_factor: f64,
}

/// The CLIP text encoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClipConfig {
    /// Rows of the token table.
    pub vocab_size: i64,
    /// Channels.
    pub hidden_size: i64,
    /// Channels inside the feed-forward layers.
    pub intermediate_size: i64,
    /// Transformer layers.
    pub layers: i64,
    /// Attention heads.
    pub heads: i64,
    /// The longest token sequence.
    pub max_positions: i64,
}

impl ModelConfig {
    /// Stable Diffusion 1.5.
    pub fn sd15() -> Self {
        Self {
            unet: UNetConfig::sd15(),
            vae: VaeConfig::sd15(),
            clip: ClipConfig::sd15(),
            prediction: Prediction::Epsilon,
            zero_terminal_snr: false,
        }
    }

    /// Checks that such a model can exist: everything positive, channels divisible by groups and heads, and the text
    /// encoder as wide as the UNet expects.
    pub fn check(&self) -> Result<()> {
        self.unet.check()?;
        self.vae.check()?;
        self.clip.check()?;
        equal("the UNet's context and the text encoder", self.unet.cross_attention_dim, self.clip.hidden_size)
    }

    /// Checks that the model makes pictures from text alone: a UNet from latents to latents (an inpainting model's takes
    /// more), and a text encoder for CLIP's `vocab_size` tokens at `positions` places.
    pub fn check_text_to_image(&self, vocab_size: i64, positions: i64) -> Result<()> {
        equal("the UNet's input and the latent", self.unet.in_channels, self.vae.latent_channels)?;
        equal("the UNet's output and the latent", self.unet.out_channels, self.vae.latent_channels)?;
        equal("clip.vocab_size and CLIP's vocabulary", self.clip.vocab_size, vocab_size)?;
        equal("clip.max_positions and CLIP's positions", self.clip.max_positions, positions)
    }
}

impl ControlNetConfig {
    /// Pictures of conditions are red, green and blue.
    pub const PICTURE_CHANNELS: usize = 3;

    /// That of Stable Diffusion 1.5.
    pub fn sd15() -> Self {
        Self { unet: UNetConfig::sd15(), hint_channels: [16, 32, 96, 256] }
    }

    /// Checks that such a network can exist, as [`ModelConfig::check`] does.
    pub fn check(&self) -> Result<()> {
        self.unet.check()?;
        let positive = |channels: &i64| positive("controlnet.hint_channels", *channels);
        self.hint_channels.iter().try_for_each(positive)
    }
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self::sd15()
    }
}

impl UNetConfig {
    /// That of Stable Diffusion 1.5.
    pub fn sd15() -> Self {
        Self {
            in_channels: 4,
            out_channels: 4,
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: 2,
            cross_attention: vec![true, true, true, false],
            cross_attention_dim: 768,
            attention_heads: 8,
            norm_groups: 32,
        }
    }

    /// Channels of the time embedding: four times those of the first level.
    pub fn time_embed_dim(&self) -> i64 {
        4 * self.block_out_channels[0]
    }

    fn check(&self) -> Result<()> {
        positive("unet.in_channels", self.in_channels)?;
        positive("unet.out_channels", self.out_channels)?;
        at_most(LAYERS_MAX, "unet.layers_per_block", self.layers_per_block)?;
        positive("unet.cross_attention_dim", self.cross_attention_dim)?;
        levels("unet.block_out_channels", "the number of the UNet's levels", &self.block_out_channels)?;
        equal(
            "unet.cross_attention and unet.block_out_channels",
            self.cross_attention.len() as i64,
            self.block_out_channels.len() as i64,
        )?;
        for channels in &self.block_out_channels {
            divisible("unet.block_out_channels", *channels, "norm_groups", self.norm_groups)?;
            divisible("unet.block_out_channels", *channels, "attention_heads", self.attention_heads)?;
        }
        Ok(())
    }
}

impl VaeConfig {
    /// That of Stable Diffusion 1.5.
    pub fn sd15() -> Self {
        Self {
            in_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            norm_groups: 32,
            scaling_factor: 0.18215,
        }
    }

    /// How many pixels a latent stands for along each side: 8 with four levels.
    pub fn downscale(&self) -> i64 {
        1 << (self.block_out_channels.len() - 1)
    }

    fn check(&self) -> Result<()> {
        positive("vae.in_channels", self.in_channels)?;
        positive("vae.latent_channels", self.latent_channels)?;
        at_most(LAYERS_MAX, "vae.layers_per_block", self.layers_per_block)?;
        levels("vae.block_out_channels", "the number of the VAE's levels", &self.block_out_channels)?;
        for channels in &self.block_out_channels {
            divisible("vae.block_out_channels", *channels, "norm_groups", self.norm_groups)?;
        }
        Ok(())
    }
}

impl ClipConfig {
    /// That of Stable Diffusion 1.5: the text half of CLIP ViT-L/14.
    pub fn sd15() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 768,
            intermediate_size: 3072,
            layers: 12,
            heads: 12,
            max_positions: 77,
        }
    }

    fn check(&self) -> Result<()> {
        positive("clip.vocab_size", self.vocab_size)?;
        positive("clip.hidden_size", self.hidden_size)?;
        positive("clip.intermediate_size", self.intermediate_size)?;
        at_most(LAYERS_MAX, "clip.layers", self.layers)?;
        positive("clip.max_positions", self.max_positions)?;
        divisible("clip.hidden_size", self.hidden_size, "heads", self.heads)
    }
}

/// More is a damaged file: no model comes near, and lists of names stay short.
const SIZE_MAX: i64 = 1 << 20;
const LAYERS_MAX: i64 = 256;
const LEVELS_MAX: i64 = 16;

fn positive(setting: &'static str, value: i64) -> Result<()> {
    at_most(SIZE_MAX, setting, value)
}

fn at_most(limit: i64, setting: &'static str, value: i64) -> Result<()> {
    match (1..=limit).contains(&value) {
        true => Ok(()),
        false => Err(Error::OutOfRange { setting, value, limit }),
    }
}

fn levels(setting: &'static str, number: &'static str, channels: &[i64]) -> Result<()> {
    at_most(LEVELS_MAX, number, channels.len() as i64)?;
    channels.iter().try_for_each(|channels| positive(setting, *channels))
}

fn divisible(setting: &'static str, value: i64, by: &'static str, divisor: i64) -> Result<()> {
    positive(by, divisor)?;
    match value % divisor {
        0 => Ok(()),
        _ => Err(Error::NotDivisible { setting, value, by, divisor }),
    }
}

fn equal(what: &'static str, left: i64, right: i64) -> Result<()> {
    match left == right {
        true => Ok(()),
        false => Err(Error::Disagree { what, left, right }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inpainting_model_or_another_vocabulary_makes_no_pictures_from_text_alone() {
        let sd15 = ModelConfig::sd15();
        sd15.check_text_to_image(49408, 77).unwrap();
        let inpainting =
            ModelConfig { unet: UNetConfig { in_channels: 9, ..UNetConfig::sd15() }, ..sd15.clone() };
        let said =
            |config: &ModelConfig, tokens| config.check_text_to_image(tokens, 77).unwrap_err().to_string();
        assert!(said(&inpainting, 49408).contains("the UNet's input"), "{}", said(&inpainting, 49408));
        assert!(said(&sd15, 1000).contains("clip.vocab_size"), "{}", said(&sd15, 1000));
    }

    #[test]
    fn sd15_is_a_possible_model() {
        ModelConfig::sd15().check().unwrap();
        assert_eq!(VaeConfig::sd15().downscale(), 8);
    }

    #[test]
    fn impossible_models_are_told_apart() {
        let said = |change: &dyn Fn(&mut ModelConfig)| {
            let mut config = ModelConfig::sd15();
            change(&mut config);
            config.check().unwrap_err().to_string()
        };
        assert_eq!(
            said(&|c| c.unet.block_out_channels[0] = 48),
            "unet.block_out_channels 48 is not divisible by norm_groups 32"
        );
        assert_eq!(said(&|c| c.clip.layers = 0), "clip.layers is 0, expected 1 to 256");
        assert_eq!(
            said(&|c| c.vae.block_out_channels.clear()),
            "the number of the VAE's levels is 0, expected 1 to 16"
        );
        assert_eq!(said(&|c| c.unet.in_channels = -1), "unet.in_channels is -1, expected 1 to 1048576");
        assert_eq!(
            said(&|c| c.unet.cross_attention_dim = 1024),
            "the UNet's context and the text encoder disagree: 1024 and 768"
        );
    }
}
