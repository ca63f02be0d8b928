//! The CLIP text encoder.
//!
//! Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"; the layers are those
//! of `CLIPTextModel` in transformers 4.57.6.

use tch::{
    Device, Kind, Tensor,
    nn::{Module, VarStore},
};
use vodka_checkpoint::{
    ClipConfig, Weights,
    keys::{self, Key},
};

use crate::{
    Network, Params, Result, Source,
    attention::multi_head,
    layers::{Embedding, LayerNorm, Linear},
    native::Block,
    network::{read, var_store},
};

/// Turns token ids into the vectors that the UNet attends to.
#[derive(Debug)]
pub struct ClipTextModel {
    config: ClipConfig,
    vars: VarStore,
    token_embedding: Embedding,
    position_embedding: Embedding,
    layers: Vec<Block<ClipLayer>>,
    final_layer_norm: LayerNorm,
    checkpointing: bool,
}

impl ClipTextModel {
    /// Builds the encoder with these weights, frozen: a checkpoint, or a merge without a file.
    pub fn load(weights: &dyn Weights, device: Device, kind: Kind) -> Result<Self> {
        let config = &weights.config().clip;
        Self::new(config, device, kind, &read(weights, keys::clip(config), device, kind))
    }

    /// Builds the encoder with the values of `source`, frozen.
    pub fn new(config: &ClipConfig, device: Device, kind: Kind, source: &Source) -> Result<Self> {
        let mut vars = var_store(device, kind);
        let params = Params::new(&vars, source) / "text_model";
        let ClipConfig { vocab_size, hidden_size, max_positions, .. } = *config;
        let embeddings = &params / "embeddings";
        let layers = &params / "encoder" / "layers";
        let token_embedding = Embedding::new(&(&embeddings / "token_embedding"), vocab_size, hidden_size)?;
        let position_embedding =
            Embedding::new(&(&embeddings / "position_embedding"), max_positions, hidden_size)?;
        let layer = |i| ClipLayer::new(&(&layers / i), config).map(Block::new);
        let layers = (0..config.layers).map(layer).collect::<Result<_>>()?;
        let final_layer_norm = LayerNorm::new(&(&params / "final_layer_norm"), hidden_size)?;
        vars.freeze();
        let config = config.clone();
        let checkpointing = false;
        Ok(Self {
            config,
            vars,
            token_embedding,
            position_embedding,
            layers,
            final_layer_norm,
            checkpointing,
        })
    }

    /// Whether only what goes into each layer is remembered for the way back, and the layer computed once more:
    /// gradient checkpointing. Off at first. The gradients are the same.
    pub fn set_gradient_checkpointing(&mut self, on: bool) {
        self.checkpointing = on;
    }

    /// The shape of the encoder.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// `ids (B, L)` i64 to `(B, L, C)`: the final norm of the output of the layer `clip_skip` from the end.
    ///
    /// Counted as A1111 does: 1 is the last layer, 2 the one before it, `layers + 1` the embeddings.
    ///
    /// # Panics
    /// When `clip_skip` is out of `1..=layers + 1`, an id out of the vocabulary, or L above `max_positions`.
    pub fn forward(&self, ids: &Tensor, clip_skip: i64) -> Tensor {
        self.forward_embedded(&self.embed(ids), clip_skip)
    }

    /// The tokens' own vectors, `ids (B, L)` i64 to `(B, L, C)`, in whose places textual inversion puts others.
    pub fn embed(&self, ids: &Tensor) -> Tensor {
        ids.apply(&self.token_embedding)
    }

    /// As [`ClipTextModel::forward`], from the vectors of [`ClipTextModel::embed`].
    pub fn forward_embedded(&self, tokens: &Tensor, clip_skip: i64) -> Tensor {
        let count = self.layers.len() as i64;
        assert!((1..=count + 1).contains(&clip_skip), "clip_skip is {clip_skip}, with {count} layers");
        let positions = Tensor::arange(tokens.size()[1], (Kind::Int64, tokens.device())); // (L)
        let embedded = tokens + positions.apply(&self.position_embedding); // (B, L, C)
        let used = &self.layers[..(count + 1 - clip_skip) as usize];
        let through = |x: Tensor, layer: &Block<ClipLayer>| match self.checkpointing {
            true => layer.recompute(&[&x], |layer, inputs| inputs[0].apply(layer)),
            false => x.apply(&**layer),
        };
        used.iter().fold(embedded, through).apply(&self.final_layer_norm) // (B, L, C)
    }
}

impl Network for ClipTextModel {
    fn vars(&self) -> &VarStore {
        &self.vars
    }

    fn vars_mut(&mut self) -> &mut VarStore {
        &mut self.vars
    }

    fn keys(&self) -> Vec<Key> {
        keys::clip(&self.config)
    }
}

/// One layer of the encoder: causal self attention and a quick-GELU perceptron, each on the normalised sequence.
#[derive(Debug)]
pub struct ClipLayer {
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: i64,
}

impl ClipLayer {
    /// transformers' `CLIPEncoderLayer`.
    pub fn new(params: &Params, config: &ClipConfig) -> Result<Self> {
        let ClipConfig { hidden_size: c, intermediate_size: wide, heads, .. } = *config;
        assert_eq!(c % heads, 0, "{c} channels for {heads} heads");
        let (attention, mlp) = (params / "self_attn", params / "mlp");
        Ok(Self {
            layer_norm1: LayerNorm::new(&(params / "layer_norm1"), c)?,
            q_proj: Linear::new(&(&attention / "q_proj"), c, c)?,
            k_proj: Linear::new(&(&attention / "k_proj"), c, c)?,
            v_proj: Linear::new(&(&attention / "v_proj"), c, c)?,
            out_proj: Linear::new(&(&attention / "out_proj"), c, c)?,
            layer_norm2: LayerNorm::new(&(params / "layer_norm2"), c)?,
            fc1: Linear::new(&(&mlp / "fc1"), c, wide)?,
            fc2: Linear::new(&(&mlp / "fc2"), wide, c)?,
            heads,
        })
    }
}

impl Module for ClipLayer {
    fn forward(&self, x: &Tensor) -> Tensor {
        let h = x.apply(&self.layer_norm1);
        let (q, k, v) = (h.apply(&self.q_proj), h.apply(&self.k_proj), h.apply(&self.v_proj));
        let x = x + multi_head(&q, &k, &v, self.heads, true).apply(&self.out_proj); // (B, L, C)
        let h = x.apply(&self.layer_norm2).apply(&self.fc1); // (B, L, 4C)
        &x + quick_gelu(&h).apply(&self.fc2) // (B, L, C)
    }
}

/// x σ(1.702 x), OpenAI's approximation of GELU.
fn quick_gelu(x: &Tensor) -> Tensor {
    x * (x * 1.702).sigmoid()
}
