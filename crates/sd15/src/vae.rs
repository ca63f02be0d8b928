//! The variational autoencoder between pixels and latents.
//!
//! Rombach et al. 2022, arXiv:2112.10752; the layers are those of `AutoencoderKL` in diffusers 0.38.

use tch::{
    Device, Kind, Tensor,
    nn::{Module, VarStore},
};
use vodka_checkpoint::{
    VaeConfig, Weights,
    keys::{self, Key},
};

use crate::{
    Network, Params, Result, Source,
    attention::SpatialAttention,
    layers::{Conv2d, GroupNorm, Tiling},
    memory,
    native::Autocast,
    network::{read, var_store},
    resnet::{Downsample, ResnetBlock, ResnetConfig, Upsample},
    tiled::{Step, Tiled},
};

const EPS: f64 = 1e-6;

/// Encodes pictures into latents and decodes latents into pictures.
#[derive(Debug)]
pub struct Vae {
    config: VaeConfig,
    vars: VarStore,
    encoder: Encoder,
    quant_conv: Conv2d,
    post_quant_conv: Conv2d,
    decoder: Decoder,
    autocast: Option<Kind>,
    tiles: Option<VaeTiles>,
}

/// How a VAE cuts pictures that are large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VaeTiles {
    /// The side of a tile in pixels, 64 or more; where absent it is [`VaeTiles::SIDE_PX`], and pictures for which memory suffices
    /// are not cut.
    pub side_px: Option<u32>,
    /// Bytes that may be taken; those that are to be had where absent.
    pub memory: Option<u64>,
}

impl VaeTiles {
    /// The side of a tile where none is said.
    pub const SIDE_PX: u32 = 512;
}

impl Vae {
    /// Builds the VAE with these weights, frozen: a checkpoint, or a merge without a file.
    pub fn load(weights: &dyn Weights, device: Device, kind: Kind) -> Result<Self> {
        let config = &weights.config().vae;
        Self::new(config, device, kind, &read(weights, keys::vae(config), device, kind))
    }

    /// Builds the VAE with the values of `source`, frozen.
    pub fn new(config: &VaeConfig, device: Device, kind: Kind, source: &Source) -> Result<Self> {
        let mut vars = var_store(device, kind);
        let params = Params::new(&vars, source);
        let latent = config.latent_channels;
        let encoder = Encoder::new(&(&params / "encoder"), config)?;
        let quant_conv = Conv2d::new(&(&params / "quant_conv"), 2 * latent, 2 * latent, 1)?;
        let post_quant_conv = Conv2d::new(&(&params / "post_quant_conv"), latent, latent, 1)?;
        let decoder = Decoder::new(&(&params / "decoder"), config)?;
        vars.freeze();
        let config = config.clone();
        Ok(Self { config, vars, encoder, quant_conv, post_quant_conv, decoder, autocast: None, tiles: None })
    }

    /// The shape of the VAE; the UNet sees latents multiplied by its `scaling_factor`.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// The 16 bits that pictures are encoded in; `None`, as at first: those of the weights.
    pub fn set_autocast(&mut self, kind: Option<Kind>) {
        self.autocast = kind;
    }

    /// Whether large pictures are cut; `None`, as at first: never. What comes out differs by the rounding of sums in another order
    /// (`tests/networks/tiles.rs` has the bounds). While the edges of pictures are to fit together ([`Tiling`]) none is cut.
    pub fn set_tiles(&mut self, tiles: Option<VaeTiles>) {
        self.tiles = tiles;
    }

    /// What [`Vae::set_tiles`] has said.
    pub fn tiles(&self) -> Option<VaeTiles> {
        self.tiles
    }

    /// `pixels (B, 3, H, W)` in -1..1 to the distribution of their latents, not yet scaled, in the kind of the weights.
    pub fn encode(&self, pixels: &Tensor) -> Moments {
        let _autocast = self.autocast.map(|kind| Autocast::enter(pixels.device(), Some(kind)));
        let encoded = match self.cut(pixels, 1, memory::vae_encoder) {
            Some((side_px, memory)) => self.encoder.in_tiles(pixels, side_px, memory),
            None => pixels.apply(&self.encoder),
        };
        let moments = encoded.apply(&self.quant_conv).to_kind(self.vars.kind());
        let moments = moments.chunk(2, 1); // (B, 4, H/8, W/8) twice
        let [mean, logvar] =
            <[Tensor; 2]>::try_from(moments).expect("an even number of channels gives two halves");
        Moments { mean, logvar: logvar.clamp(-30.0, 20.0) }
    }

    /// `latents (B, 4, h, w)`, no longer scaled, to pixels `(B, 3, 8h, 8w)`, nearly all in -1..1.
    pub fn decode(&self, latents: &Tensor) -> Tensor {
        let latents = latents.apply(&self.post_quant_conv);
        match self.cut(&latents, self.config.downscale(), memory::vae_decoder) {
            Some((side_px, memory)) => self.decoder.in_tiles(&latents, side_px, memory),
            None => latents.apply(&self.decoder),
        }
    }

    /// The side of the tiles that `x (B, C, h, w)` is cut into, each element `scale` pixels wide, and the bytes that kept maps may
    /// take; `None` where it is not cut.
    fn cut(&self, x: &Tensor, scale: i64, needed: NeededBytes) -> Option<(i64, u64)> {
        let tiles = self.tiles.filter(|_| !Tiling::is_on())?;
        let (rows, _, height, width) = x.size4().expect("pictures have four axes");
        let element = x.kind().elt_size_in_bytes() as u64;
        let bytes = |size: [i64; 2]| needed(&self.config, size) * rows as u64 * element;
        let side_px = i64::from(tiles.side_px.unwrap_or(VaeTiles::SIDE_PX));
        let size = [height * scale, width * scale];
        if size.iter().all(|side| *side <= side_px) {
            return None;
        }
        let memory = tiles.memory.or_else(|| memory::available(x.device())).unwrap_or(u64::MAX);
        if tiles.side_px.is_none() && bytes(size) <= memory {
            return None;
        }
        let tile = memory::tile(&self.config, size, side_px);
        Some((side_px, memory.saturating_sub(bytes(tile))))
    }
}

/// Elements that a half of a VAE needs at a time for a picture of this height and width.
type NeededBytes = fn(&VaeConfig, [i64; 2]) -> u64;

impl Network for Vae {
    fn vars(&self) -> &VarStore {
        &self.vars
    }

    fn vars_mut(&mut self) -> &mut VarStore {
        &mut self.vars
    }

    fn keys(&self) -> Vec<Key> {
        keys::vae(&self.config)
    }
}

/// A normal distribution for each latent.
#[derive(Debug)]
pub struct Moments {
    /// The means. `(B, 4, h, w)`
    pub mean: Tensor,
    /// The logarithms of the variances, within -30..20. `(B, 4, h, w)`
    pub logvar: Tensor,
}

impl Moments {
    /// The latents that standard normal `noise (B, 4, h, w)` picks, not yet scaled.
    pub fn sample(&self, noise: &Tensor) -> Tensor {
        &self.mean + (&self.logvar * 0.5).exp() * noise // (B, 4, h, w)
    }
}

/// One resolution of the encoder or decoder.
#[derive(Debug)]
struct Level<R> {
    resnets: Vec<ResnetBlock>,
    /// The way to the next level; the last has none.
    resample: Option<R>,
}

/// A level's residual blocks, the first of which changes the channels.
fn resnets(params: &Params, count: i64, input: i64, output: i64, groups: i64) -> Result<Vec<ResnetBlock>> {
    let resnet = |i| {
        let input = if i == 0 { input } else { output };
        ResnetBlock::new(&(params / "resnets" / i), input, output, resnet_config(groups))
    };
    (0..count).map(resnet).collect()
}

fn resnet_config(groups: i64) -> ResnetConfig {
    ResnetConfig { groups, eps: EPS, time_channels: None }
}

#[derive(Debug)]
struct Encoder {
    conv_in: Conv2d,
    levels: Vec<Level<Downsample>>,
    mid: Middle,
    out: Out,
}

impl Encoder {
    fn new(params: &Params, config: &VaeConfig) -> Result<Self> {
        let widths = &config.block_out_channels;
        let (first, last, groups) = (widths[0], widths[widths.len() - 1], config.norm_groups);
        let level = |(i, channels): (usize, &i64)| {
            let params = params / "down_blocks" / i;
            let input = widths[i.saturating_sub(1)];
            let downsample = || Downsample::asymmetric(&(&params / "downsamplers" / 0), *channels);
            Ok(Level {
                resnets: resnets(&params, config.layers_per_block, input, *channels, groups)?,
                resample: (i + 1 < widths.len()).then(downsample).transpose()?,
            })
        };
        Ok(Self {
            conv_in: Conv2d::new(&(params / "conv_in"), config.in_channels, first, 3)?,
            levels: widths.iter().enumerate().map(level).collect::<Result<_>>()?,
            mid: Middle::new(&(params / "mid_block"), last, groups)?,
            out: Out::new(params, last, 2 * config.latent_channels, groups)?,
        })
    }
}

/// The steps of residual blocks.
fn steps(resnets: &[ResnetBlock]) -> impl Iterator<Item = Step<'_>> {
    resnets.iter().flat_map(|resnet| {
        [
            Step::Norm { norm: &resnet.norm1, forks: true },
            Step::Conv(&resnet.conv1),
            Step::Norm { norm: &resnet.norm2, forks: false },
            Step::Conv(&resnet.conv2),
            Step::Join(resnet.conv_shortcut.as_ref()),
        ]
    })
}

impl Encoder {
    /// The same as [`Module::forward`], the levels in tiles.
    fn in_tiles(&self, pixels: &Tensor, side_px: i64, memory: u64) -> Tensor {
        let levels = self.levels.iter().flat_map(|level| {
            steps(&level.resnets).chain(level.resample.iter().map(|half| Step::Half(&half.conv)))
        });
        let all = [Step::Conv(&self.conv_in)].into_iter().chain(levels).collect();
        let (_, channels, height, width) = pixels.size4().expect("pictures have four axes");
        let size = [height, width];
        let x = Tiled::new(all, channels, size, size, side_px).run(pixels.shallow_clone(), memory);
        self.mid.in_chunks(x).apply(&self.out) // (B, 8, H/8, W/8)
    }
}

impl Module for Encoder {
    fn forward(&self, pixels: &Tensor) -> Tensor {
        let mut x = pixels.apply(&self.conv_in); // (B, C, H, W)
        for level in &self.levels {
            x = level.resnets.iter().fold(x, |x, resnet| resnet.forward(&x, None)).apply_opt(&level.resample);
        }
        x.apply(&self.mid).apply(&self.out) // (B, 8, H/8, W/8)
    }
}

#[derive(Debug)]
struct Decoder {
    conv_in: Conv2d,
    mid: Middle,
    levels: Vec<Level<Upsample>>,
    out: Out,
}

impl Decoder {
    fn new(params: &Params, config: &VaeConfig) -> Result<Self> {
        let widths: Vec<i64> = config.block_out_channels.iter().rev().copied().collect();
        let (first, last, groups) = (widths[0], widths[widths.len() - 1], config.norm_groups);
        let level = |(i, channels): (usize, &i64)| {
            let params = params / "up_blocks" / i;
            let input = widths[i.saturating_sub(1)];
            let upsample = || Upsample::new(&(&params / "upsamplers" / 0), *channels);
            Ok(Level {
                resnets: resnets(&params, config.layers_per_block + 1, input, *channels, groups)?,
                resample: (i + 1 < widths.len()).then(upsample).transpose()?,
            })
        };
        Ok(Self {
            conv_in: Conv2d::new(&(params / "conv_in"), config.latent_channels, first, 3)?,
            mid: Middle::new(&(params / "mid_block"), first, groups)?,
            levels: widths.iter().enumerate().map(level).collect::<Result<_>>()?,
            out: Out::new(params, last, config.in_channels, groups)?,
        })
    }
}

impl Decoder {
    /// The same as [`Module::forward`], the levels in tiles.
    fn in_tiles(&self, latents: &Tensor, side_px: i64, memory: u64) -> Tensor {
        let x = self.mid.in_chunks(latents.apply(&self.conv_in));
        let levels = self.levels.iter().flat_map(|level| {
            let double = level.resample.iter();
            steps(&level.resnets).chain(double.flat_map(|up| [Step::Double, Step::Conv(&up.conv)]))
        });
        let out = [Step::Norm { norm: &self.out.norm, forks: false }, Step::Conv(&self.out.conv)];
        let (_, channels, height, width) = x.size4().expect("feature maps have four axes");
        let picture = [height, width].map(|side| side << (self.levels.len() - 1));
        let tiled = Tiled::new(levels.chain(out).collect(), channels, [height, width], picture, side_px);
        tiled.run(x, memory) // (B, 3, 8h, 8w)
    }
}

impl Module for Decoder {
    fn forward(&self, latents: &Tensor) -> Tensor {
        let mut x = latents.apply(&self.conv_in).apply(&self.mid); // (B, C, h, w)
        for level in &self.levels {
            x = level.resnets.iter().fold(x, |x, resnet| resnet.forward(&x, None));
            if let Some(upsample) = &level.resample {
                let (_, _, height, width) = x.size4().expect("feature maps have four axes");
                x = upsample.forward(&x, (2 * height, 2 * width));
            }
        }
        x.apply(&self.out) // (B, 3, 8h, 8w)
    }
}

/// The coarsest level of either half: attention between two residual blocks.
#[derive(Debug)]
struct Middle {
    first: ResnetBlock,
    attention: SpatialAttention,
    last: ResnetBlock,
}

impl Middle {
    fn new(params: &Params, channels: i64, groups: i64) -> Result<Self> {
        let resnet =
            |i| ResnetBlock::new(&(params / "resnets" / i), channels, channels, resnet_config(groups));
        let attention = SpatialAttention::new(&(params / "attentions" / 0), channels, groups)?;
        Ok(Self { first: resnet(0)?, attention, last: resnet(1)? })
    }
}

impl Middle {
    /// The same as [`Module::forward`], with no more scores of the attention at a time than memory has room for.
    fn in_chunks(&self, x: Tensor) -> Tensor {
        let first = self.first.forward(&x, None);
        drop(x);
        let x = self.attention.in_chunks(&first);
        drop(first);
        self.last.forward(&x, None)
    }
}

impl Module for Middle {
    fn forward(&self, x: &Tensor) -> Tensor {
        let x = self.first.forward(x, None).apply(&self.attention);
        self.last.forward(&x, None)
    }
}

/// The last norm and convolution of either half.
#[derive(Debug)]
struct Out {
    norm: GroupNorm,
    conv: Conv2d,
}

impl Out {
    fn new(params: &Params, input: i64, output: i64, groups: i64) -> Result<Self> {
        let norm = GroupNorm::new(&(params / "conv_norm_out"), groups, input, EPS)?;
        Ok(Self { norm, conv: Conv2d::new(&(params / "conv_out"), input, output, 3)? })
    }
}

impl Module for Out {
    fn forward(&self, x: &Tensor) -> Tensor {
        x.apply(&self.norm).silu().apply(&self.conv)
    }
}
