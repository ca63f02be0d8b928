//! The denoising UNet.
//!
//! Rombach et al. 2022, arXiv:2112.10752; the layers are those of `UNet2DConditionModel` in diffusers 0.38 as
//! Stable Diffusion 1.x configures it.

use tch::{Device, Kind, Tensor, nn::VarStore};
use vodka_checkpoint::{
    UNetConfig, Weights,
    keys::{self, Key},
};

use crate::{
    Network, Params, Result, Source,
    attention::SpatialTransformer,
    layers::{Conv2d, GroupNorm, Linear},
    native::Block as Part,
    network::{read, var_store},
    resnet::{Downsample, ResnetBlock, ResnetConfig, Upsample},
};

/// Predicts the noise in latents, or their velocity.
#[derive(Debug)]
pub struct UNet {
    config: UNetConfig,
    vars: VarStore,
    encoder: Encoder,
    up: Vec<Level<Upsample>>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl UNet {
    /// Builds the UNet with these weights, frozen: a checkpoint, or a merge without a file.
    pub fn load(weights: &dyn Weights, device: Device, kind: Kind) -> Result<Self> {
        let config = &weights.config().unet;
        Self::new(config, device, kind, &read(weights, keys::unet(config), device, kind))
    }

    /// Builds the UNet with the values of `source`, frozen.
    pub fn new(config: &UNetConfig, device: Device, kind: Kind, source: &Source) -> Result<Self> {
        let mut vars = var_store(device, kind);
        let params = Params::new(&vars, source);
        let first = config.block_out_channels[0];
        let mut widths = Widths::new(first);
        let encoder = Encoder::new(&params, config, &mut widths)?;
        let up = up_levels(&(&params / "up_blocks"), config, &mut widths)?;
        let conv_norm_out = GroupNorm::new(&(&params / "conv_norm_out"), config.norm_groups, first, 1e-5)?;
        let conv_out = Conv2d::new(&(&params / "conv_out"), first, config.out_channels, 3)?;
        vars.freeze();
        let config = config.clone();
        Ok(Self { config, vars, encoder, up, conv_norm_out, conv_out })
    }

    /// Whether only what goes into each block is remembered for the way back, and the block computed once more:
    /// gradient checkpointing. Off at first. The gradients are the same.
    pub fn set_gradient_checkpointing(&mut self, on: bool) {
        self.encoder.checkpointing = on;
    }

    /// The shape of the UNet.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// `latents (B, in, h, w)`, `timesteps (B)` of any number type, `context (B, L, C)` to `(B, out, h, w)`.
    ///
    /// Any height and width will do: where halving rounds up, the way back up ends at the size it came from.
    pub fn forward(&self, latents: &Tensor, timesteps: &Tensor, context: &Tensor) -> Tensor {
        self.forward_controlled(latents, timesteps, context, &[])
    }

    /// The same with the residuals of a [`ControlNet`](crate::ControlNet) added to the skip connections, in the order in which these are
    /// made, and to what comes out of the middle; without any where there are none.
    ///
    /// # Panics
    /// When there are some, and not one for each.
    pub fn forward_controlled(
        &self,
        latents: &Tensor,
        timesteps: &Tensor,
        context: &Tensor,
        residuals: &[Tensor],
    ) -> Tensor {
        let Encoded { time, mut skips, mut x } = self.encoder.forward(latents, timesteps, context, None);
        if let [down @ .., middle] = residuals {
            assert_eq!(down.len(), skips.len(), "residuals of another UNet");
            skips.iter_mut().zip(down).for_each(|(skip, residual)| *skip = &*skip + residual);
            x += middle;
        }
        for level in &self.up {
            for block in &level.blocks {
                let skip = skips.pop().expect("as many skips were made as there are blocks");
                x = self.encoder.through(block, &Tensor::cat(&[x, skip], 1), &time, context);
            }
            if let (Some(upsample), Some(next)) = (&level.resample, skips.last()) {
                let (_, _, height, width) = next.size4().expect("feature maps have four axes");
                x = upsample.forward(&x, (height, width));
            }
        }
        x.apply(&self.conv_norm_out).silu().apply(&self.conv_out) // (B, out, h, w)
    }
}

/// All before the way up, which a ControlNet has too.
#[derive(Debug)]
pub(crate) struct Encoder {
    time_embedding: TimeEmbedding,
    conv_in: Conv2d,
    down: Vec<Level<Downsample>>,
    mid: Part<Middle>,
    checkpointing: bool,
}

/// What comes out of an [`Encoder`].
pub(crate) struct Encoded {
    time: Tensor,
    /// In the order in which they are made.
    pub(crate) skips: Vec<Tensor>,
    /// What comes out of the middle.
    pub(crate) x: Tensor,
}

impl Encoder {
    pub(crate) fn new(params: &Params, config: &UNetConfig, widths: &mut Widths) -> Result<Self> {
        let first = config.block_out_channels[0];
        let time_embedding =
            TimeEmbedding::new(&(params / "time_embedding"), first, config.time_embed_dim())?;
        let conv_in = Conv2d::new(&(params / "conv_in"), config.in_channels, first, 3)?;
        let down = down_levels(&(params / "down_blocks"), config, widths)?;
        let mid = Part::new(Middle::new(&(params / "mid_block"), config, widths.current)?);
        Ok(Self { time_embedding, conv_in, down, mid, checkpointing: false })
    }

    /// As [`UNet::forward`]; `hint (B, C, h, w)` is added to the first feature map.
    pub(crate) fn forward(
        &self,
        latents: &Tensor,
        timesteps: &Tensor,
        context: &Tensor,
        hint: Option<&Tensor>,
    ) -> Encoded {
        let time = self.time_embedding.forward(timesteps, latents.kind()); // (B, 4C)
        let mut x = latents.apply(&self.conv_in); // (B, C, h, w)
        if let Some(hint) = hint {
            x += hint;
        }
        let mut skips = vec![x.shallow_clone()];
        for level in &self.down {
            for block in &level.blocks {
                x = self.through(block, &x, &time, context);
                skips.push(x.shallow_clone());
            }
            if let Some(downsample) = &level.resample {
                x = x.apply(downsample);
                skips.push(x.shallow_clone());
            }
        }
        let x = self.through(&self.mid, &x, &time, context);
        Encoded { time, skips, x }
    }

    fn through<B: Conditioned + 'static>(
        &self,
        block: &Part<B>,
        x: &Tensor,
        time: &Tensor,
        context: &Tensor,
    ) -> Tensor {
        match self.checkpointing {
            true => block.recompute(&[x, time, context], |block, inputs| {
                block.forward(&inputs[0], &inputs[1], &inputs[2])
            }),
            false => block.forward(x, time, context),
        }
    }
}

/// A part that depends on the time and on the text.
trait Conditioned {
    /// `x (B, in, h, w)`, `time (B, 4C)`, `context (B, L, C)` to `(B, out, h, w)`.
    fn forward(&self, x: &Tensor, time: &Tensor, context: &Tensor) -> Tensor;
}

impl Network for UNet {
    fn vars(&self) -> &VarStore {
        &self.vars
    }

    fn vars_mut(&mut self) -> &mut VarStore {
        &mut self.vars
    }

    fn keys(&self) -> Vec<Key> {
        keys::unet(&self.config)
    }
}

/// The channels of the feature map, and of the skips that wait for the way up, while the UNet is laid out.
pub(crate) struct Widths {
    current: i64,
    pub(crate) skips: Vec<i64>,
}

impl Widths {
    pub(crate) fn new(first: i64) -> Self {
        Self { current: first, skips: vec![first] }
    }

    /// The map becomes `channels` wide and is kept as a skip; returns its width before.
    fn push(&mut self, channels: i64) -> i64 {
        self.skips.push(channels);
        std::mem::replace(&mut self.current, channels)
    }

    /// The map takes the latest skip beside it and becomes `channels` wide; returns the width of both.
    fn pop(&mut self, channels: i64) -> i64 {
        let skip = self.skips.pop().expect("as many skips were made as there are blocks");
        skip + std::mem::replace(&mut self.current, channels)
    }
}

/// One resolution of the way down or up.
#[derive(Debug)]
struct Level<R> {
    blocks: Vec<Part<Block>>,
    /// The way to the next level; the last has none.
    resample: Option<R>,
}

fn down_levels(params: &Params, config: &UNetConfig, widths: &mut Widths) -> Result<Vec<Level<Downsample>>> {
    let last = config.block_out_channels.len() - 1;
    let mut level = |(i, channels): (usize, &i64)| {
        let params = params / i;
        let blocks = (0..config.layers_per_block)
            .map(|j| {
                Block::new(&params, j, widths.push(*channels), *channels, config, config.cross_attention[i])
                    .map(Part::new)
            })
            .collect::<Result<_>>()?;
        let downsample = || {
            widths.push(*channels);
            Downsample::symmetric(&(&params / "downsamplers" / 0), *channels)
        };
        Ok(Level { blocks, resample: (i < last).then(downsample).transpose()? })
    };
    config.block_out_channels.iter().enumerate().map(&mut level).collect()
}

fn up_levels(params: &Params, config: &UNetConfig, widths: &mut Widths) -> Result<Vec<Level<Upsample>>> {
    let mut level = |(i, (channels, attends)): (usize, (&i64, &bool))| {
        let params = params / i;
        let blocks = (0..=config.layers_per_block)
            .map(|j| {
                Block::new(&params, j, widths.pop(*channels), *channels, config, *attends).map(Part::new)
            })
            .collect::<Result<_>>()?;
        let upsample = || Upsample::new(&(&params / "upsamplers" / 0), *channels);
        Ok(Level { blocks, resample: (!widths.skips.is_empty()).then(upsample).transpose()? })
    };
    let levels = config.block_out_channels.iter().zip(&config.cross_attention).rev();
    levels.enumerate().map(&mut level).collect()
}

/// A residual block, and a transformer behind it in the levels that attend to the text.
#[derive(Debug)]
struct Block {
    resnet: ResnetBlock,
    attention: Option<SpatialTransformer>,
}

impl Block {
    fn new(
        params: &Params,
        i: i64,
        input: i64,
        output: i64,
        config: &UNetConfig,
        attends: bool,
    ) -> Result<Self> {
        let attention = || transformer(&(params / "attentions" / i), output, config);
        Ok(Self {
            resnet: ResnetBlock::new(&(params / "resnets" / i), input, output, resnet_config(config))?,
            attention: attends.then(attention).transpose()?,
        })
    }
}

impl Conditioned for Block {
    fn forward(&self, x: &Tensor, time: &Tensor, context: &Tensor) -> Tensor {
        let x = self.resnet.forward(x, Some(time));
        match &self.attention {
            Some(attention) => attention.forward(&x, context),
            None => x,
        }
    }
}

/// The coarsest level between the two ways: it attends whatever the other levels do.
#[derive(Debug)]
struct Middle {
    first: ResnetBlock,
    attention: SpatialTransformer,
    last: ResnetBlock,
}

impl Middle {
    fn new(params: &Params, config: &UNetConfig, channels: i64) -> Result<Self> {
        let resnet =
            |i| ResnetBlock::new(&(params / "resnets" / i), channels, channels, resnet_config(config));
        let attention = transformer(&(params / "attentions" / 0), channels, config)?;
        Ok(Self { first: resnet(0)?, attention, last: resnet(1)? })
    }
}

impl Conditioned for Middle {
    fn forward(&self, x: &Tensor, time: &Tensor, context: &Tensor) -> Tensor {
        let x = self.first.forward(x, Some(time));
        self.last.forward(&self.attention.forward(&x, context), Some(time))
    }
}

fn resnet_config(config: &UNetConfig) -> ResnetConfig {
    ResnetConfig { groups: config.norm_groups, eps: 1e-5, time_channels: Some(config.time_embed_dim()) }
}

fn transformer(params: &Params, channels: i64, config: &UNetConfig) -> Result<SpatialTransformer> {
    let UNetConfig { cross_attention_dim, attention_heads, norm_groups, .. } = *config;
    SpatialTransformer::new(params, channels, cross_attention_dim, attention_heads, norm_groups)
}

/// A small perceptron on the sinusoids of the timestep.
#[derive(Debug)]
pub struct TimeEmbedding {
    linear_1: Linear,
    linear_2: Linear,
    channels: i64,
}

impl TimeEmbedding {
    /// From `channels` sinusoids to `output` channels.
    pub fn new(params: &Params, channels: i64, output: i64) -> Result<Self> {
        Ok(Self {
            linear_1: Linear::new(&(params / "linear_1"), channels, output)?,
            linear_2: Linear::new(&(params / "linear_2"), output, output)?,
            channels,
        })
    }

    /// `timesteps (B)` to `(B, output)`, computed in `kind` after the sinusoids.
    pub fn forward(&self, timesteps: &Tensor, kind: Kind) -> Tensor {
        let waves = sinusoids(timesteps, self.channels).to_kind(kind); // (B, C)
        waves.apply(&self.linear_1).silu().apply(&self.linear_2) // (B, 4C)
    }
}

/// cos(t f) and then sin(t f) for f from 1 down to almost 1/10000, in fp32: diffusers' `get_timestep_embedding` with
/// `flip_sin_to_cos` and `downscale_freq_shift` 0. `timesteps (B)` to `(B, channels)`, `channels` even.
pub fn sinusoids(timesteps: &Tensor, channels: i64) -> Tensor {
    assert_eq!(channels % 2, 0, "sinusoids come in pairs, not in {channels}");
    let half = channels / 2;
    let steps = Tensor::arange(half, (Kind::Float, timesteps.device())); // (C/2)
    let frequencies = (steps * (-10_000_f64.ln() / half as f64)).exp(); // (C/2)
    let angles = timesteps.to_kind(Kind::Float).unsqueeze(-1) * frequencies; // (B, C/2)
    Tensor::cat(&[angles.cos(), angles.sin()], -1) // (B, C)
}
