//! The layers that every network is made of: each is its parameters and one call of libtorch.

use std::cell::Cell;

use tch::{Tensor, nn::Module};

use crate::{Params, Result};

/// A matrix product, with or without a bias. `(.., in)` to `(.., out)`.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// `weight (out, in)`, `bias (out)`.
    pub fn new(params: &Params, input: i64, output: i64) -> Result<Self> {
        let bias = Some(params.tensor("bias", &[output])?);
        Ok(Self { bias, ..Self::without_bias(params, input, output)? })
    }

    /// `weight (out, in)`.
    pub fn without_bias(params: &Params, input: i64, output: i64) -> Result<Self> {
        Ok(Self { weight: params.tensor("weight", &[output, input])?, bias: None })
    }
}

impl Module for Linear {
    fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }
}

thread_local! {
    static TILING: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, what lies beyond an edge for the convolutions of this thread is the opposite edge and not zeros, so that
/// pictures can be laid side by side (A1111's option "Tiling").
#[derive(Debug)]
pub struct Tiling {
    before: bool,
}

impl Tiling {
    /// Switches it on or off.
    pub fn enter(on: bool) -> Self {
        Self { before: TILING.replace(on) }
    }

    /// Whether it is on, on this thread.
    pub fn is_on() -> bool {
        TILING.get()
    }
}

impl Drop for Tiling {
    fn drop(&mut self) {
        TILING.set(self.before);
    }
}

/// A square convolution. `(B, in, H, W)` to `(B, out, H', W')`.
#[derive(Debug)]
pub struct Conv2d {
    pub(crate) weight: Tensor,
    bias: Tensor,
    stride: i64,
    pub(crate) padding: i64,
}

impl Conv2d {
    /// `weight (out, in, kernel, kernel)`, `bias (out)`; padded so that height and width stay as they are.
    pub fn new(params: &Params, input: i64, output: i64, kernel: i64) -> Result<Self> {
        Self::strided(params, input, output, kernel, 1, kernel / 2)
    }

    /// The same with any stride and padding.
    pub fn strided(
        params: &Params,
        input: i64,
        output: i64,
        kernel: i64,
        stride: i64,
        padding: i64,
    ) -> Result<Self> {
        let weight = params.tensor("weight", &[output, input, kernel, kernel])?;
        Ok(Self { weight, bias: params.tensor("bias", &[output])?, stride, padding })
    }

    /// The convolution of a part of a map, with so many columns and rows of zeros beyond its left, right, upper and lower sides and
    /// nothing beyond the others.
    pub(crate) fn padded_by(&self, x: &Tensor, sides: [i64; 4]) -> Tensor {
        let conv = |x: &Tensor| x.conv2d(&self.weight, Some(&self.bias), [self.stride; 2], [0; 2], [1, 1], 1);
        if sides == [0; 4] { conv(x) } else { conv(&x.constant_pad_nd(sides)) }
    }
}

impl Module for Conv2d {
    fn forward(&self, x: &Tensor) -> Tensor {
        let conv = |x: &Tensor, padding: i64| {
            x.conv2d(&self.weight, Some(&self.bias), [self.stride; 2], [padding; 2], [1, 1], 1)
        };
        if self.padding > 0 && TILING.get() {
            return conv(&x.pad([self.padding; 4], "circular", None), 0);
        }
        conv(x, self.padding)
    }
}

/// Normalisation over groups of channels. `(B, C, ..)` to the same shape.
#[derive(Debug)]
pub struct GroupNorm {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
    pub(crate) groups: i64,
    pub(crate) eps: f64,
}

impl GroupNorm {
    /// `weight (channels)`, `bias (channels)`.
    ///
    /// # Panics
    /// When `groups` does not divide `channels`, which a checked configuration rules out.
    pub fn new(params: &Params, groups: i64, channels: i64, eps: f64) -> Result<Self> {
        assert_eq!(channels % groups, 0, "{channels} channels in {groups} groups");
        let weight = params.tensor("weight", &[channels])?;
        Ok(Self { weight, bias: params.tensor("bias", &[channels])?, groups, eps })
    }
}

impl Module for GroupNorm {
    fn forward(&self, x: &Tensor) -> Tensor {
        x.group_norm(self.groups, Some(&self.weight), Some(&self.bias), self.eps, true)
    }
}

/// Normalisation over the last axis, eps 1e-5. `(.., C)` to the same shape.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    /// `weight (channels)`, `bias (channels)`.
    pub fn new(params: &Params, channels: i64) -> Result<Self> {
        Ok(Self { weight: params.tensor("weight", &[channels])?, bias: params.tensor("bias", &[channels])? })
    }
}

impl Module for LayerNorm {
    fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), 1e-5, true)
    }
}

/// A table of vectors. `(..)` i64 to `(.., C)`.
#[derive(Debug)]
pub struct Embedding {
    weight: Tensor,
}

impl Embedding {
    /// `weight (rows, channels)`.
    pub fn new(params: &Params, rows: i64, channels: i64) -> Result<Self> {
        Ok(Self { weight: params.tensor("weight", &[rows, channels])? })
    }
}

impl Module for Embedding {
    fn forward(&self, ids: &Tensor) -> Tensor {
        Tensor::embedding(&self.weight, ids, -1, false, false)
    }
}
