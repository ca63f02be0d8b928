//! The network of ESRGAN upscalers: residual-in-residual dense blocks, then doublings.
//!
//! Wang et al. 2018, arXiv:1809.00219; the layers are those of `RRDBNet` in chaiNNer-org/spandrel 0.4.2
//! (`architectures/ESRGAN/__arch/RRDB.py`), with the shortcuts of ESRGAN+ and the pixel unshuffle of Real-ESRGAN.

use tch::{Device, Kind, Tensor, nn::VarStore};
use vodka_checkpoint::{RrdbConfig, Upscaler, keys::Key};

use crate::{
    Network, Params, Result, Source,
    layers::Conv2d,
    network::{bring, var_store},
};

/// The slope of all activations below 0.
const SLOPE: f64 = 0.2;
/// What every residual is multiplied by.
const RESIDUAL: f64 = 0.2;

/// Makes pictures larger, or clears them at their size.
#[derive(Debug)]
pub struct Rrdb {
    config: RrdbConfig,
    vars: VarStore,
    conv_first: Conv2d,
    body: Vec<[DenseBlock; 3]>,
    conv_body: Conv2d,
    ups: Vec<Conv2d>,
    conv_hr: Conv2d,
    conv_last: Conv2d,
    slope: Tensor,
}

impl Rrdb {
    /// Builds the network with the weights of a file, frozen.
    ///
    /// # Errors
    /// A weight that is no number of ours, or does not fit into the device's memory.
    pub fn load(file: &Upscaler, device: Device, kind: Kind) -> Result<Self> {
        Self::new(file.config(), device, kind, &|name, shape| {
            bring(name, &file.tensor(name)?, shape, device, kind)
        })
    }

    /// Builds the network with the values of `source` by their Real-ESRGAN names, frozen.
    pub fn new(config: &RrdbConfig, device: Device, kind: Kind, source: &Source) -> Result<Self> {
        let mut vars = var_store(device, kind);
        let params = Params::new(&vars, source);
        let features = config.features;
        let conv = |name: &str, input, output| Conv2d::new(&(&params / name), input, output, 3);
        let dense = |i: i64, j: i64| DenseBlock::new(&(&params / "body" / i / format!("rdb{j}")), config);
        let block = |i| Ok([dense(i, 1)?, dense(i, 2)?, dense(i, 3)?]);
        let input = 3 * config.unshuffle * config.unshuffle;
        let conv_first = conv("conv_first", input, features)?;
        let body = (0..config.blocks).map(block).collect::<Result<_>>()?;
        let conv_body = conv("conv_body", features, features)?;
        let up = |k| conv(&format!("conv_up{k}"), features, features);
        let ups = (1..=config.doublings).map(up).collect::<Result<_>>()?;
        let conv_hr = conv("conv_hr", features, features)?;
        let conv_last = conv("conv_last", features, 3)?;
        vars.freeze();
        let slope = Tensor::from(SLOPE).view(1).to_kind(kind).to_device(device);
        let config = config.clone();
        Ok(Self { config, vars, conv_first, body, conv_body, ups, conv_hr, conv_last, slope })
    }

    /// The form of the network.
    pub fn config(&self) -> &RrdbConfig {
        &self.config
    }

    /// `pixels (B, 3, H, W)` in 0..1 to `(B, 3, scale H, scale W)`, nearly all in 0..1. What pixel unshuffle needs beyond the
    /// right and lower edges is reflected, and repeated where a picture is too small for that.
    pub fn forward(&self, pixels: &Tensor) -> Tensor {
        let (_, _, height, width) = pixels.size4().expect("pictures have four axes");
        let unshuffle = self.config.unshuffle;
        let x = match unshuffle {
            1 => pixels.apply(&self.conv_first),
            n => padded(pixels, n).pixel_unshuffle(n).apply(&self.conv_first),
        }; // (B, C, h, w)
        let body = self.body.iter().fold(x.shallow_clone(), |x, block| {
            block.iter().fold(x.shallow_clone(), |x, dense| dense.forward(&x, &self.slope)) * RESIDUAL + x
        });
        let mut x = x + body.apply(&self.conv_body);
        for up in &self.ups {
            let (_, _, h, w) = x.size4().expect("feature maps have four axes");
            x = x.upsample_nearest2d([2 * h, 2 * w], None, None).apply(up).prelu(&self.slope);
        }
        let x = x.apply(&self.conv_hr).prelu(&self.slope).apply(&self.conv_last);
        let scale = self.config.scale();
        x.narrow(2, 0, scale * height).narrow(3, 0, scale * width)
    }
}

impl Network for Rrdb {
    fn vars(&self) -> &VarStore {
        &self.vars
    }

    fn vars_mut(&mut self) -> &mut VarStore {
        &mut self.vars
    }

    /// Both names are Real-ESRGAN's.
    fn keys(&self) -> Vec<Key> {
        let key = |(name, shape): (String, Vec<usize>)| Key {
            ldm: name.clone(),
            diffusers: name,
            diffusers_shape: shape.clone(),
            shape,
        };
        self.config.weights().into_iter().map(key).collect()
    }
}

/// Makes both sides multiples of `n`.
fn padded(pixels: &Tensor, n: i64) -> Tensor {
    let (_, _, height, width) = pixels.size4().expect("pictures have four axes");
    let missing = |side: i64| (n - side % n) % n;
    let pad = |pixels: Tensor, amount: i64, side: i64, all: [i64; 4]| match amount {
        0 => pixels,
        // A reflection does not repeat the edge itself.
        amount if amount < side => pixels.pad(all, "reflect", None),
        _ => pixels.pad(all, "replicate", None),
    };
    let (right, below) = (missing(width), missing(height));
    let pixels = pad(pixels.shallow_clone(), right, width, [0, right, 0, 0]);
    pad(pixels, below, height, [0, 0, 0, below])
}

/// Five convolutions, each of which sees all that is before it.
#[derive(Debug)]
struct DenseBlock {
    convs: Vec<Conv2d>,
    last: Conv2d,
    /// The shortcut of ESRGAN+.
    shortcut: Option<Tensor>,
}

impl DenseBlock {
    fn new(params: &Params, config: &RrdbConfig) -> Result<Self> {
        let (features, growth) = (config.features, config.growth);
        let conv = |k: i64, output| {
            Conv2d::new(&(params / format!("conv{k}")), features + (k - 1) * growth, output, 3)
        };
        let shortcut = || (params / "conv1x1").tensor("weight", &[growth, features, 1, 1]);
        Ok(Self {
            convs: (1..=4).map(|k| conv(k, growth)).collect::<Result<_>>()?,
            last: conv(5, features)?,
            shortcut: config.plus.then(shortcut).transpose()?,
        })
    }

    /// `x (B, C, h, w)` to the same shape.
    fn forward(&self, x: &Tensor, slope: &Tensor) -> Tensor {
        let mut all = vec![x.shallow_clone()];
        for (k, conv) in self.convs.iter().enumerate() {
            let mut more = Tensor::cat(&all, 1).apply(conv).prelu(slope); // (B, gc, h, w)
            if let Some(shortcut) = &self.shortcut {
                more = match k {
                    1 => more + x.conv2d(shortcut, None::<&Tensor>, [1, 1], [0, 0], [1, 1], 1),
                    3 => more + &all[2],
                    _ => more,
                };
            }
            all.push(more);
        }
        Tensor::cat(&all, 1).apply(&self.last) * RESIDUAL + x
    }
}
