//! Which parts of the networks stay as they are while the rest is trained.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use vodka_checkpoint::{
    blocks::{block_name, block_of},
    keys::{Key, UNET_PREFIX},
};
use vodka_stage::glob_matches;

use crate::{Error, Result};

/// What of the text encoder is frozen: `text_encoder_freezing` of `optimizer.json`, as EveryDream2 understands it
/// (victorchall/EveryDream2trainer, `optimizer/optimizers.py` at 5098db8). A field that is `None` was not said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Freezing {
    /// So many layers at the end are trained, all others are not, nor, unless it is said, are the embeddings.
    pub unfreeze_last_n_layers: Option<i64>,
    /// The older key: so many layers at the start are not trained; of a negative number, all but so many at the end.
    pub freeze_front_n_layers: Option<i64>,
    /// Whether the embeddings of tokens and positions are frozen.
    pub freeze_embeddings: Option<bool>,
    /// Whether the layer norm after the last layer is frozen.
    pub freeze_final_layer_norm: Option<bool>,
}

impl Freezing {
    /// How many of the last layers are trained, in a text encoder of `layers`.
    pub(crate) fn trained_layers(&self, layers: i64) -> Result<i64> {
        let front = self.freeze_front_n_layers.map(|front| if front < 0 { -front } else { layers - front });
        let (key, value) = match (self.unfreeze_last_n_layers, self.freeze_front_n_layers) {
            (None, Some(front)) => ("freeze_front_n_layers", front),
            (last, _) => ("unfreeze_last_n_layers", last.unwrap_or(layers)),
        };
        let trained = self.unfreeze_last_n_layers.or(front).unwrap_or(layers);
        match trained > 0 {
            true => Ok(trained.min(layers)),
            false => Err(Error::OutOfRange {
                key,
                value: value.to_string(),
                expected: "a number that leaves at least one layer to be trained",
            }),
        }
    }

    /// Whether a parameter, by its name in the network, is trained, in a text encoder of `layers`.
    ///
    /// # Errors
    /// No layer is left.
    pub(crate) fn trains(&self, name: &str, layers: i64) -> Result<bool> {
        let trained = self.trained_layers(layers)?;
        let part = name.strip_prefix("text_model.").unwrap_or(name);
        if part.starts_with("embeddings.") {
            return Ok(!self.freeze_embeddings.unwrap_or(trained < layers));
        }
        if part.starts_with("final_layer_norm.") {
            return Ok(!self.freeze_final_layer_norm.unwrap_or(false));
        }
        let layer =
            part.strip_prefix("encoder.layers.").and_then(|rest| rest.split('.').next()?.parse::<i64>().ok());
        Ok(layer.is_none_or(|layer| layer >= layers - trained))
    }
}

/// What of the UNet is frozen: `unet_freezing` of `optimizer.json`, a key of our own. Each entry is a glob over the names of
/// blocks, as SuperMerger has them ([`block_of`]), and over the LDM names of weights, with and without their prefix.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UnetFreezing {
    /// What is not trained.
    pub freeze: Vec<String>,
    /// What of it is trained even so.
    pub unfreeze: Vec<String>,
}

impl UnetFreezing {
    /// Whether all of the UNet is trained.
    pub(crate) fn is_empty(&self) -> bool {
        self.freeze.is_empty() && self.unfreeze.is_empty()
    }

    /// The diffusers names of the weights that are not trained, of a UNet with these.
    ///
    /// # Errors
    /// An entry that fits none of them, or nothing is left to be trained.
    pub(crate) fn frozen(&self, keys: &[Key]) -> Result<BTreeSet<String>> {
        let fits = |glob: &String, key: &Key| {
            let bare = key.ldm.strip_prefix(UNET_PREFIX).unwrap_or(&key.ldm);
            let block = block_name(block_of(&key.ldm));
            [&block, bare, &key.ldm].iter().any(|name| glob_matches(glob, name))
        };
        for (key, globs) in [("freeze", &self.freeze), ("unfreeze", &self.unfreeze)] {
            if let Some(entry) = globs.iter().find(|glob| !keys.iter().any(|key| fits(glob, key))) {
                let blocks: BTreeSet<_> = keys.iter().map(|key| block_of(&key.ldm)).collect();
                let blocks = blocks.into_iter().map(block_name).collect();
                return Err(Error::UnetFreezing { key, entry: entry.clone(), blocks });
            }
        }
        let is_frozen = |key: &&Key| {
            let of = |globs: &[String]| globs.iter().any(|glob| fits(glob, key));
            of(&self.freeze) && !of(&self.unfreeze)
        };
        let frozen: BTreeSet<_> = keys.iter().filter(is_frozen).map(|key| key.diffusers.clone()).collect();
        match frozen.len() < keys.len() {
            true => Ok(frozen),
            false => Err(Error::OutOfRange {
                key: "unet_freezing",
                value: format!("{:?}", self.freeze),
                expected: "something that is left to be trained; `disable_unet_training` leaves all of the UNet as it is",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use vodka_checkpoint::{ModelConfig, keys};

    use super::*;

    fn unet(freeze: &[&str], unfreeze: &[&str]) -> Result<BTreeSet<String>> {
        let [freeze, unfreeze] =
            [freeze, unfreeze].map(|globs| globs.iter().map(|glob| (*glob).to_owned()).collect());
        UnetFreezing { freeze, unfreeze }.frozen(&keys::unet(&ModelConfig::sd15().unet))
    }

    #[test]
    fn blocks_and_weights_of_the_unet_are_frozen_by_name() {
        let count = |freeze: &[&str], unfreeze: &[&str]| unet(freeze, unfreeze).unwrap().len();
        let all = keys::unet(&ModelConfig::sd15().unet).len();
        assert_eq!(count(&[], &[]), 0);
        assert_eq!(unet(&["OUT11"], &[]).unwrap(), unet(&["output_blocks.11.*", "out.*"], &[]).unwrap());
        let first = unet(&["IN00"], &[]).unwrap();
        assert!(first.contains("conv_in.weight") && first.contains("time_embedding.linear_2.bias"));
        assert_eq!(first.len(), 6, "{first:?}");
        let sides = count(&["IN*"], &[]) + count(&["M00"], &[]) + count(&["OUT*"], &[]);
        assert_eq!(sides, all, "each weight is in one block");
        assert_eq!(count(&["IN*", "OUT*"], &["OUT11"]), all - count(&["M00"], &[]) - count(&["OUT11"], &[]));
        // Queries, keys, values, and the way out with its bias, of sixteen transformers.
        assert_eq!(count(&["*"], &["*.attn2.*"]), all - 16 * 5);
        assert_eq!(count(&["model.diffusion_model.middle_block.*"], &[]), count(&["M00"], &[]));
    }

    #[test]
    fn what_fits_nothing_of_the_unet_or_leaves_nothing_is_refused() {
        let said = |freeze: &[&str], unfreeze: &[&str]| unet(freeze, unfreeze).unwrap_err().to_string();
        let wrong = said(&["IN00", "IN12"], &[]);
        assert!(
            wrong.starts_with(
                "`IN12` of `unet_freezing.freeze` fits nothing in the UNet: its blocks are IN00, IN01, "
            ),
            "{wrong}"
        );
        assert!(
            wrong.contains("IN11, M00, OUT00") && wrong.ends_with("like `input_blocks.1.*` or `*.attn2.*`"),
            "{wrong}"
        );
        assert!(said(&["*"], &["attn2"]).starts_with("`attn2` of `unet_freezing.unfreeze` fits nothing"));
        assert_eq!(
            said(&["IN*", "M00", "OUT*"], &[]),
            "`unet_freezing` is [\"IN*\", \"M00\", \"OUT*\"], expected something that is left to be trained; \
             `disable_unet_training` leaves all of the UNet as it is"
        );
    }

    /// The parts that are trained, of a text encoder of twelve layers: `e`, numbers of layers, `n`.
    fn trained(freezing: Freezing) -> String {
        let trains = |name: &str| freezing.trains(name, 12).unwrap();
        let layers = (0..12).filter(|n| trains(&format!("text_model.encoder.layers.{n}.mlp.fc1.weight")));
        let parts = [
            ("e", "text_model.embeddings.token_embedding.weight"),
            ("n", "text_model.final_layer_norm.bias"),
        ];
        let [embeddings, norm] = parts.map(|(short, name)| if trains(name) { short } else { "" });
        let layers: Vec<_> = layers.map(|n| n.to_string()).collect();
        format!("{embeddings} {} {norm}", layers.join(" ")).trim().to_owned()
    }

    const ALL: Freezing = Freezing {
        unfreeze_last_n_layers: None,
        freeze_front_n_layers: None,
        freeze_embeddings: None,
        freeze_final_layer_norm: None,
    };

    #[test]
    fn what_is_said_is_frozen_and_the_embeddings_with_the_first_layers() {
        assert_eq!(trained(ALL), "e 0 1 2 3 4 5 6 7 8 9 10 11 n");
        assert_eq!(trained(Freezing { unfreeze_last_n_layers: Some(2), ..ALL }), "10 11 n");
        assert_eq!(
            trained(Freezing { unfreeze_last_n_layers: Some(12), ..ALL }),
            "e 0 1 2 3 4 5 6 7 8 9 10 11 n"
        );
        assert_eq!(trained(Freezing { unfreeze_last_n_layers: Some(40), ..ALL }).len(), trained(ALL).len());
        assert_eq!(trained(Freezing { freeze_front_n_layers: Some(10), ..ALL }), "10 11 n");
        assert_eq!(trained(Freezing { freeze_front_n_layers: Some(-3), ..ALL }), "9 10 11 n");
        let both = Freezing { freeze_front_n_layers: Some(1), unfreeze_last_n_layers: Some(1), ..ALL };
        assert_eq!(trained(both), "11 n", "the newer key goes first");
        let kept = Freezing { unfreeze_last_n_layers: Some(1), freeze_embeddings: Some(false), ..ALL };
        assert_eq!(trained(kept), "e 11 n");
        let frozen = Freezing { freeze_embeddings: Some(true), freeze_final_layer_norm: Some(true), ..ALL };
        assert_eq!(trained(frozen), "0 1 2 3 4 5 6 7 8 9 10 11");
    }

    #[test]
    fn something_must_be_left() {
        let said = |freezing: Freezing| {
            freezing.trains("text_model.final_layer_norm.bias", 12).unwrap_err().to_string()
        };
        let expected = "expected a number that leaves at least one layer to be trained";
        let none = said(Freezing { unfreeze_last_n_layers: Some(0), ..ALL });
        assert_eq!(none, format!("`unfreeze_last_n_layers` is 0, {expected}"));
        let front = said(Freezing { freeze_front_n_layers: Some(12), ..ALL });
        assert_eq!(front, format!("`freeze_front_n_layers` is 12, {expected}"));
    }
}
