//! Attention, and the transformer that the UNet puts behind its residual blocks.

use tch::{Device, Kind, Tensor, nn::Module};

use crate::{
    Params, Result,
    layers::{Conv2d, GroupNorm, LayerNorm, Linear},
    native,
};

/// The most channels of a head for which a processor is faster with our attention than with libtorch's.
const NARROW: i64 = 32;

/// softmax(q kᵀ / √d) v for each head, through `scaled_dot_product_attention`, or with narrow heads on a processor ours.
///
/// `q (B, L, C)`, `k (B, M, C)`, `v (B, M, C)` to `(B, L, C)`; each head has d = C / heads channels. With `causal`, no
/// position sees a later one.
pub fn multi_head(q: &Tensor, k: &Tensor, v: &Tensor, heads: i64, causal: bool) -> Tensor {
    let narrow = q.size()[2] <= NARROW * heads;
    let plain = [q, k, v].into_iter().all(|x| x.device() == Device::Cpu && x.kind() == Kind::Float);
    if narrow && plain && !causal {
        return native::attention(q, k, v, heads).expect("as many channels as the heads have together");
    }
    let split = |x: &Tensor| x.unflatten(-1, [heads, -1]).transpose(1, 2); // (B, heads, L, d)
    let none = None::<&Tensor>;
    let y =
        Tensor::scaled_dot_product_attention(&split(q), &split(k), &split(v), none, 0.0, causal, None, false);
    y.transpose(1, 2).flatten(2, 3) // (B, L, C)
}

/// Attention of a sequence to itself or to a context.
#[derive(Debug)]
pub struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: i64,
}

impl Attention {
    /// The UNet's attention: queries, keys and values have no bias.
    ///
    /// # Panics
    /// When `heads` does not divide `channels`, which a checked configuration rules out.
    pub fn new(params: &Params, channels: i64, context_channels: i64, heads: i64) -> Result<Self> {
        assert_eq!(channels % heads, 0, "{channels} channels for {heads} heads");
        Ok(Self {
            to_q: Linear::without_bias(&(params / "to_q"), channels, channels)?,
            to_k: Linear::without_bias(&(params / "to_k"), context_channels, channels)?,
            to_v: Linear::without_bias(&(params / "to_v"), context_channels, channels)?,
            to_out: Linear::new(&(params / "to_out" / 0), channels, channels)?,
            heads,
        })
    }

    /// The VAE's attention: one head, and a bias everywhere.
    pub fn single_head(params: &Params, channels: i64) -> Result<Self> {
        let linear = |params| Linear::new(&params, channels, channels);
        Ok(Self {
            to_q: linear(params / "to_q")?,
            to_k: linear(params / "to_k")?,
            to_v: linear(params / "to_v")?,
            to_out: linear(params / "to_out" / 0)?,
            heads: 1,
        })
    }

    /// `x (B, L, C)` looks at `context (B, M, C')`.
    pub fn forward(&self, x: &Tensor, context: &Tensor) -> Tensor {
        let (q, k, v) = (x.apply(&self.to_q), context.apply(&self.to_k), context.apply(&self.to_v));
        multi_head(&q, &k, &v, self.heads, false).apply(&self.to_out) // (B, L, C)
    }
}

/// GEGLU and the way back: hidden layers of four times the channels, half of them gates.
#[derive(Debug)]
pub struct FeedForward {
    proj: Linear,
    out: Linear,
}

impl FeedForward {
    /// Below `net.0.proj` and `net.2`.
    pub fn new(params: &Params, channels: i64) -> Result<Self> {
        let net = params / "net";
        Ok(Self {
            proj: Linear::new(&(&net / 0 / "proj"), channels, 8 * channels)?,
            out: Linear::new(&(&net / 2), 4 * channels, channels)?,
        })
    }
}

impl Module for FeedForward {
    fn forward(&self, x: &Tensor) -> Tensor {
        let both = x.apply(&self.proj).chunk(2, -1); // (B, L, 4C) twice
        (&both[0] * both[1].gelu("none")).apply(&self.out) // (B, L, C)
    }
}

/// Self attention, cross attention and feed forward, each on the normalised sequence and added to it.
#[derive(Debug)]
pub struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl TransformerBlock {
    /// diffusers' `BasicTransformerBlock`.
    pub fn new(params: &Params, channels: i64, context_channels: i64, heads: i64) -> Result<Self> {
        Ok(Self {
            norm1: LayerNorm::new(&(params / "norm1"), channels)?,
            attn1: Attention::new(&(params / "attn1"), channels, channels, heads)?,
            norm2: LayerNorm::new(&(params / "norm2"), channels)?,
            attn2: Attention::new(&(params / "attn2"), channels, context_channels, heads)?,
            norm3: LayerNorm::new(&(params / "norm3"), channels)?,
            ff: FeedForward::new(&(params / "ff"), channels)?,
        })
    }

    /// `x (B, L, C)`, `context (B, M, C')` to `(B, L, C)`.
    pub fn forward(&self, x: &Tensor, context: &Tensor) -> Tensor {
        let h = x.apply(&self.norm1);
        let x = x + self.attn1.forward(&h, &h);
        let x = &x + self.attn2.forward(&x.apply(&self.norm2), context);
        &x + x.apply(&self.norm3).apply(&self.ff) // (B, L, C)
    }
}

/// A transformer over the pixels of a feature map, added to it.
#[derive(Debug)]
pub struct SpatialTransformer {
    norm: GroupNorm,
    proj_in: Conv2d,
    block: TransformerBlock,
    proj_out: Conv2d,
}

impl SpatialTransformer {
    /// diffusers' `Transformer2DModel` with one block and convolutions for projections, as SD 1.x has it.
    pub fn new(
        params: &Params,
        channels: i64,
        context_channels: i64,
        heads: i64,
        groups: i64,
    ) -> Result<Self> {
        let block = params / "transformer_blocks" / 0;
        Ok(Self {
            norm: GroupNorm::new(&(params / "norm"), groups, channels, 1e-6)?,
            proj_in: Conv2d::new(&(params / "proj_in"), channels, channels, 1)?,
            block: TransformerBlock::new(&block, channels, context_channels, heads)?,
            proj_out: Conv2d::new(&(params / "proj_out"), channels, channels, 1)?,
        })
    }

    /// `x (B, C, H, W)`, `context (B, M, C')` to `(B, C, H, W)`.
    pub fn forward(&self, x: &Tensor, context: &Tensor) -> Tensor {
        let pixels = x.apply(&self.norm).apply(&self.proj_in).flatten(2, 3).transpose(1, 2); // (B, HW, C)
        let pixels = self.block.forward(&pixels, context); // (B, HW, C)
        x + feature_map(&pixels, x).apply(&self.proj_out) // (B, C, H, W)
    }
}

/// `pixels (B, HW, C)` in the shape and the layout of `x (B, C, H, W)`; with the channels last nothing moves.
fn feature_map(pixels: &Tensor, x: &Tensor) -> Tensor {
    let size = x.size();
    let map = pixels.transpose(1, 2).unflatten(2, [size[2], size[3]]); // (B, C, H, W)
    if x.stride()[1] == 1 { map } else { map.contiguous() }
}

/// Single-head self attention over the pixels of a feature map, added to it: the VAE's.
#[derive(Debug)]
pub struct SpatialAttention {
    group_norm: GroupNorm,
    attention: Attention,
}

impl SpatialAttention {
    /// diffusers' `Attention` as the VAE's mid block sets it up.
    pub fn new(params: &Params, channels: i64, groups: i64) -> Result<Self> {
        Ok(Self {
            group_norm: GroupNorm::new(&(params / "group_norm"), groups, channels, 1e-6)?,
            attention: Attention::single_head(params, channels)?,
        })
    }
}

/// Scores of an attention that are had at a time, where queries come in chunks.
const SCORES_MAX: i64 = 1 << 28;

impl SpatialAttention {
    /// The same as [`Module::forward`] for maps so large that a score of each pixel for each would not fit into memory: so many queries
    /// at a time that their scores do. Where libtorch keeps no scores that changes nothing. Five such maps are alive at a time.
    pub(crate) fn in_chunks(&self, x: &Tensor) -> Tensor {
        let pixels = x.apply(&self.group_norm).flatten(2, 3).transpose(1, 2); // (B, HW, C)
        let seen = self.attention.in_chunks(&pixels); // (B, HW, C)
        drop(pixels);
        x + feature_map(&seen, x) // (B, C, H, W)
    }
}

impl Attention {
    /// `x (B, L, C)` looks at itself, some queries at a time.
    fn in_chunks(&self, x: &Tensor) -> Tensor {
        let Self { to_q, to_k, to_v, to_out, heads } = self;
        let (k, v) = (x.apply(to_k), x.apply(to_v));
        let seen = x.empty_like();
        let (rows, count) = (x.size()[0], x.size()[1]);
        let chunk = (SCORES_MAX / (rows * count)).max(1);
        for start in (0..count).step_by(chunk as usize) {
            let len = chunk.min(count - start);
            let q = x.narrow(1, start, len).apply(to_q);
            seen.narrow(1, start, len).copy_(&multi_head(&q, &k, &v, *heads, false).apply(to_out));
        }
        seen // (B, L, C)
    }
}

impl Module for SpatialAttention {
    fn forward(&self, x: &Tensor) -> Tensor {
        let pixels = x.apply(&self.group_norm).flatten(2, 3).transpose(1, 2); // (B, HW, C)
        let seen = self.attention.forward(&pixels, &pixels); // (B, HW, C)
        x + feature_map(&seen, x) // (B, C, H, W)
    }
}
