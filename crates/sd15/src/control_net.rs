//! ControlNet: a copy of the UNet's way down that sees a picture of conditions, and gives residuals to the UNet.
//!
//! Zhang et al. 2023, arXiv:2302.05543; the layers are those of `ControlNetModel` in diffusers 0.38
//! (`models/controlnets/controlnet.py`) as Stable Diffusion 1.x configures it.

use tch::{Device, Kind, Tensor, nn::VarStore};
use vodka_checkpoint::{
    ControlNetConfig, ControlNetFile,
    keys::{self, Key},
};

use crate::{
    Network, Params, Result, Source,
    layers::Conv2d,
    network::{bring, var_store},
    unet::{Encoded, Encoder, Widths},
};

/// Steers a UNet by a picture.
#[derive(Debug)]
pub struct ControlNet {
    config: ControlNetConfig,
    vars: VarStore,
    hint: HintLayers,
    encoder: Encoder,
    /// One for each skip connection.
    down: Vec<Conv2d>,
    middle: Conv2d,
}

impl ControlNet {
    /// Builds the network with the weights of a file, frozen.
    ///
    /// # Errors
    /// A weight that is no number of ours, or does not fit into the device's memory.
    pub fn load(file: &ControlNetFile, device: Device, kind: Kind) -> Result<Self> {
        Self::new(file.config(), device, kind, &|name, shape| {
            bring(name, &file.tensor(name)?, shape, device, kind)
        })
    }

    /// Builds the network with the values of `source` by their diffusers names, frozen.
    pub fn new(config: &ControlNetConfig, device: Device, kind: Kind, source: &Source) -> Result<Self> {
        let mut vars = var_store(device, kind);
        let params = Params::new(&vars, source);
        let mut widths = Widths::new(config.unet.block_out_channels[0]);
        let hint = HintLayers::new(&(&params / "controlnet_cond_embedding"), config)?;
        let encoder = Encoder::new(&params, &config.unet, &mut widths)?;
        let residual = |params: Params, width: i64| Conv2d::new(&params, width, width, 1);
        let down = widths.skips.iter().enumerate();
        let down = down.map(|(i, width)| residual(&params / "controlnet_down_blocks" / i, *width));
        let down = down.collect::<Result<_>>()?;
        let coarsest = config.unet.block_out_channels.last().copied().unwrap_or_default();
        let middle = residual(&params / "controlnet_mid_block", coarsest)?;
        vars.freeze();
        Ok(Self { config: config.clone(), vars, hint, encoder, down, middle })
    }

    /// The form of the network.
    pub fn config(&self) -> &ControlNetConfig {
        &self.config
    }

    /// What the first layers see in a picture, which is the same at every step: `picture (B, 3, H, W)` in 0..1 to
    /// `(B, C, H/8, W/8)`.
    pub fn embed(&self, picture: &Tensor) -> Tensor {
        self.hint.forward(picture)
    }

    /// `latents (B, in, h, w)`, `timesteps (B)`, `context (B, L, C)` and `hint (B or 1, C, h, w)` of [`ControlNet::embed`] to the residuals
    /// of each skip connection and then of the middle, for [`UNet::forward_controlled`](crate::UNet::forward_controlled).
    pub fn forward(
        &self,
        latents: &Tensor,
        timesteps: &Tensor,
        context: &Tensor,
        hint: &Tensor,
    ) -> Vec<Tensor> {
        let Encoded { skips, x, .. } = self.encoder.forward(latents, timesteps, context, Some(hint));
        let down = skips.iter().zip(&self.down).map(|(skip, layer)| skip.apply(layer));
        down.chain([x.apply(&self.middle)]).collect()
    }
}

impl Network for ControlNet {
    fn vars(&self) -> &VarStore {
        &self.vars
    }

    fn vars_mut(&mut self) -> &mut VarStore {
        &mut self.vars
    }

    fn keys(&self) -> Vec<Key> {
        keys::control_net(&self.config)
    }
}

/// Eight convolutions from a picture to a feature map of an eighth of its size.
#[derive(Debug)]
struct HintLayers {
    layers: Vec<Conv2d>,
    last: Conv2d,
}

impl HintLayers {
    fn new(params: &Params, config: &ControlNetConfig) -> Result<Self> {
        let hints = config.hint_channels;
        let colours = ControlNetConfig::PICTURE_CHANNELS as i64;
        let mut layers = vec![Conv2d::new(&(params / "conv_in"), colours, hints[0], 3)?];
        for (i, pair) in hints.windows(2).enumerate() {
            let at = |k: usize| params / "blocks" / (2 * i + k);
            layers.push(Conv2d::new(&at(0), pair[0], pair[0], 3)?);
            layers.push(Conv2d::strided(&at(1), pair[0], pair[1], 3, 2, 1)?);
        }
        let last = Conv2d::new(&(params / "conv_out"), hints[3], config.unet.block_out_channels[0], 3)?;
        Ok(Self { layers, last })
    }

    fn forward(&self, picture: &Tensor) -> Tensor {
        let seen = self.layers.iter().fold(picture.shallow_clone(), |x, layer| x.apply(layer).silu());
        seen.apply(&self.last) // (B, C, H/8, W/8)
    }
}
