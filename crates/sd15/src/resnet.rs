//! Residual blocks and the changes of resolution between them.

use tch::{Tensor, nn::Module};

use crate::{
    Params, Result,
    layers::{Conv2d, GroupNorm, Linear},
};

/// Two normalised convolutions added to their input, with the time embedding between them where there is one.
#[derive(Debug)]
pub struct ResnetBlock {
    pub(crate) norm1: GroupNorm,
    pub(crate) conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    pub(crate) norm2: GroupNorm,
    pub(crate) conv2: Conv2d,
    pub(crate) conv_shortcut: Option<Conv2d>,
}

/// What all residual blocks of a network have in common.
#[derive(Debug, Clone, Copy)]
pub struct ResnetConfig {
    /// The groups of both norms.
    pub groups: i64,
    /// The eps of both norms: 1e-5 in the UNet, 1e-6 in the VAE.
    pub eps: f64,
    /// The channels of the time embedding; `None` in the VAE.
    pub time_channels: Option<i64>,
}

impl ResnetBlock {
    /// diffusers' `ResnetBlock2D`: a 1x1 shortcut where the channels change.
    pub fn new(params: &Params, input: i64, output: i64, config: ResnetConfig) -> Result<Self> {
        let ResnetConfig { groups, eps, time_channels } = config;
        let time = |channels| Linear::new(&(params / "time_emb_proj"), channels, output);
        let shortcut = || Conv2d::new(&(params / "conv_shortcut"), input, output, 1);
        Ok(Self {
            norm1: GroupNorm::new(&(params / "norm1"), groups, input, eps)?,
            conv1: Conv2d::new(&(params / "conv1"), input, output, 3)?,
            time_emb_proj: time_channels.map(time).transpose()?,
            norm2: GroupNorm::new(&(params / "norm2"), groups, output, eps)?,
            conv2: Conv2d::new(&(params / "conv2"), output, output, 3)?,
            conv_shortcut: (input != output).then(shortcut).transpose()?,
        })
    }

    /// `x (B, in, H, W)`, `time (B, T)` to `(B, out, H, W)`.
    ///
    /// # Panics
    /// When a block with a time projection gets no time, or the other way round.
    pub fn forward(&self, x: &Tensor, time: Option<&Tensor>) -> Tensor {
        let h = x.apply(&self.norm1).silu().apply(&self.conv1); // (B, out, H, W)
        let h = match (&self.time_emb_proj, time) {
            (Some(proj), Some(time)) => h + time.silu().apply(proj).unsqueeze(-1).unsqueeze(-1),
            (None, None) => h,
            (proj, time) => panic!("time projection: {}, time: {}", proj.is_some(), time.is_some()),
        };
        let h = h.apply(&self.norm2).silu().apply(&self.conv2);
        x.apply_opt(&self.conv_shortcut) + h // (B, out, H, W)
    }
}

/// Half the height and width by a strided convolution.
#[derive(Debug)]
pub struct Downsample {
    pub(crate) conv: Conv2d,
    asymmetric: bool,
}

impl Downsample {
    /// The UNet's: a row and a column of zeros on every side. `(B, C, H, W)` to `(B, C, ⌈H/2⌉, ⌈W/2⌉)`.
    pub fn symmetric(params: &Params, channels: i64) -> Result<Self> {
        let conv = Conv2d::strided(&(params / "conv"), channels, channels, 3, 2, 1)?;
        Ok(Self { conv, asymmetric: false })
    }

    /// The VAE's: zeros at the right and at the bottom only. `(B, C, H, W)` to `(B, C, ⌊H/2⌋, ⌊W/2⌋)`.
    pub fn asymmetric(params: &Params, channels: i64) -> Result<Self> {
        let conv = Conv2d::strided(&(params / "conv"), channels, channels, 3, 2, 0)?;
        Ok(Self { conv, asymmetric: true })
    }
}

impl Module for Downsample {
    fn forward(&self, x: &Tensor) -> Tensor {
        if self.asymmetric { x.constant_pad_nd([0, 1, 0, 1]).apply(&self.conv) } else { x.apply(&self.conv) }
    }
}

/// Nearest-neighbour enlargement and a convolution.
#[derive(Debug)]
pub struct Upsample {
    pub(crate) conv: Conv2d,
}

impl Upsample {
    /// diffusers' `Upsample2D`.
    pub fn new(params: &Params, channels: i64) -> Result<Self> {
        Ok(Self { conv: Conv2d::new(&(params / "conv"), channels, channels, 3)? })
    }

    /// `x (B, C, h, w)` to `(B, C, height, width)`.
    pub fn forward(&self, x: &Tensor, (height, width): (i64, i64)) -> Tensor {
        x.upsample_nearest2d([height, width], None, None).apply(&self.conv)
    }
}
