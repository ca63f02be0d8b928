//! Which parts of the text encoder stay as they are while the rest is trained.

use serde::{Deserialize, Serialize};

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

#[cfg(test)]
mod tests {
    use super::*;

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
