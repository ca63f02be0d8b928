//! Which block of the model a tensor belongs to.

use crate::keys::UNET_PREFIX;

/// How many block weights there are: BASE, IN00 to IN11, M00, OUT00 to OUT11.
pub const BLOCKS: usize = 26;

/// A block's name as SuperMerger writes it: `BASE`, `IN00` to `IN11`, `M00`, `OUT00` to `OUT11`.
///
/// # Panics
/// From 26 on.
pub fn block_name(block: usize) -> String {
    match block {
        0 => "BASE".to_owned(),
        1..=12 => format!("IN{:02}", block - 1),
        13 => "M00".to_owned(),
        14..=25 => format!("OUT{:02}", block - 14),
        _ => panic!("block {block} of {BLOCKS}"),
    }
}

/// The block of a tensor, by its LDM name, as SuperMerger has it: the time embedding is in IN00, the UNet's last
/// layers in OUT11; the text encoder, the VAE and all else in BASE (0).
pub fn block_of(name: &str) -> usize {
    let Some(rest) = name.strip_prefix(UNET_PREFIX) else { return 0 };
    let number = |rest: &str| rest.split('.').next().and_then(|n| n.parse::<usize>().ok()).map(|n| n.min(11));
    if let Some(rest) = rest.strip_prefix("input_blocks.") {
        return number(rest).map_or(0, |n| 1 + n);
    }
    if let Some(rest) = rest.strip_prefix("output_blocks.") {
        return number(rest).map_or(0, |n| 14 + n);
    }
    match rest.split('.').next() {
        Some("time_embed") => 1,
        Some("middle_block") => 13,
        Some("out") => 25,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_in_the_blocks_of_supermerger() {
        let name = |name: &str| block_name(block_of(&format!("{UNET_PREFIX}{name}")));
        assert_eq!(name("time_embed.0.weight"), "IN00");
        assert_eq!(name("input_blocks.11.0.in_layers.2.weight"), "IN11");
        assert_eq!(name("middle_block.1.norm.weight"), "M00");
        assert_eq!(name("output_blocks.3.1.norm.weight"), "OUT03");
        assert_eq!(name("out.2.bias"), "OUT11");
        assert_eq!(block_of("first_stage_model.encoder.conv_in.weight"), 0);
        assert_eq!(block_of("cond_stage_model.transformer.text_model.final_layer_norm.weight"), 0);
    }
}
