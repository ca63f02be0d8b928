//! The scales of LoRA files that PEFT and diffusers write: they stand in the metadata, and in no tensor.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// The metadata entry of diffusers (0.34 and later) that holds PEFT's `LoraConfig` for each network, keys behind `unet.` and
/// `text_encoder.`, or without where the file is of one network.
pub(crate) const ADAPTER_KEY: &str = "lora_adapter_metadata";

/// What the metadata say of scales.
#[derive(Debug, Default)]
pub(crate) struct Adapter(Map<String, Value>);

impl Adapter {
    /// From a header's `__metadata__`; nothing where it says nothing that can be read.
    pub(crate) fn of(metadata: &BTreeMap<String, String>) -> Self {
        let entries = metadata.get(ADAPTER_KEY).and_then(|text| serde_json::from_str(text).ok());
        Self(entries.unwrap_or_default())
    }

    /// The numerator of a module's scale, by its name in the file; the rank where the metadata do not say.
    ///
    /// As `LoraConfig` of PEFT 0.17 has it: `alpha_pattern` before `lora_alpha`, and the square root of the rank in the
    /// place of the rank with `use_rslora`.
    pub(crate) fn alpha(&self, module: &str, rank: usize) -> f64 {
        let module = module.strip_prefix("base_model.model.").unwrap_or(module);
        let networks = ["unet.", "text_encoder."];
        let network = networks.into_iter().find(|network| module.starts_with(network)).unwrap_or_default();
        let inner = &module[network.len()..];
        let get = |key: &str| self.0.get(&format!("{network}{key}"));
        let patterns = get("alpha_pattern").and_then(Value::as_object);
        let fits = |pattern: &str| {
            let pattern = pattern.trim_start_matches('^').trim_end_matches('$');
            inner == pattern || inner.strip_suffix(pattern).is_some_and(|before| before.ends_with('.'))
        };
        let of_pattern = patterns
            .into_iter()
            .flatten()
            .find(|(pattern, _)| fits(pattern))
            .and_then(|(_, alpha)| alpha.as_f64());
        let Some(alpha) = of_pattern.or_else(|| get("lora_alpha")?.as_f64()) else { return rank as f64 };
        match get("use_rslora").and_then(Value::as_bool) {
            Some(true) => alpha * (rank as f64).sqrt(),
            _ => alpha,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_those_of_the_configuration() {
        let text = r#"{"unet.lora_alpha": 4, "unet.alpha_pattern": {"attn1.to_q": 8, "^mid_block.proj$": 2},
            "text_encoder.lora_alpha": 3.0, "text_encoder.use_rslora": true, "text_encoder.alpha_pattern": {}}"#;
        let adapter = Adapter::of(&BTreeMap::from([(ADAPTER_KEY.to_owned(), text.to_owned())]));
        assert_eq!(adapter.alpha("unet.down_blocks.0.attn1.to_k", 16), 4.0);
        assert_eq!(adapter.alpha("unet.down_blocks.0.attn1.to_q", 16), 8.0);
        assert_eq!(adapter.alpha("unet.down_blocks.0.myattn1.to_q", 16), 4.0);
        assert_eq!(adapter.alpha("base_model.model.unet.mid_block.proj", 16), 2.0);
        assert_eq!(adapter.alpha("text_encoder.text_model.q_proj", 16), 12.0);
        assert_eq!(adapter.alpha("down_blocks.0.attn1.to_q", 16), 16.0);
        let bare = BTreeMap::from([(ADAPTER_KEY.to_owned(), r#"{"lora_alpha": 1}"#.to_owned())]);
        assert_eq!(Adapter::of(&bare).alpha("down_blocks.0.attn1.to_q", 16), 1.0);
        assert_eq!(Adapter::of(&BTreeMap::new()).alpha("unet.x", 16), 16.0);
    }
}
