//! The model of which tests make checkpoints.

use vodka_checkpoint::{ClipConfig, ModelConfig, UNetConfig, VaeConfig};

/// Two levels of four and eight channels.
pub fn model() -> ModelConfig {
    ModelConfig {
        unet: UNetConfig {
            block_out_channels: vec![4, 8],
            layers_per_block: 1,
            cross_attention: vec![true, false],
            cross_attention_dim: 6,
            attention_heads: 2,
            norm_groups: 2,
            ..UNetConfig::sd15()
        },
        vae: VaeConfig {
            block_out_channels: vec![2, 4],
            layers_per_block: 1,
            norm_groups: 2,
            ..VaeConfig::sd15()
        },
        clip: ClipConfig {
            vocab_size: 11,
            hidden_size: 6,
            intermediate_size: 8,
            layers: 2,
            heads: 3,
            max_positions: 5,
        },
        ..ModelConfig::sd15()
    }
}
