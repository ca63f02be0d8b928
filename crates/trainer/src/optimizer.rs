//! `optimizer.json`, in the flat form of 2023-04 and in the later one that is split by network.

use std::{fmt, path::Path};

use serde::{
    Deserialize, Serialize,
    de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor},
};
use serde_json::Value;

use crate::{
    Error, Result,
    keys::{
        Neutral::{Any, Bool, Null, Number, Text},
        Pairs, Refused, Vocabulary, explain, read_json, set_field,
    },
};

/// The numbers of AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdamWSettings {
    /// Learning rate.
    pub lr: f64,
    /// Decay rates of the running means of the gradient and of its square.
    pub betas: [f64; 2],
    /// Added to the denominator.
    pub epsilon: f64,
    /// The share, times the learning rate, by which weights shrink in each step.
    pub weight_decay: f64,
}

/// What an `optimizer.json` says; a field that is `None` was not said.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OptimizerConfig {
    base: Group,
    text_encoder: Group,
}

/// The keys of one optimizer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Group {
    lr: Option<f64>,
    betas: Option<[f64; 2]>,
    epsilon: Option<f64>,
    weight_decay: Option<f64>,
    text_encoder_lr_scale: Option<f64>,
}

const REFUSED: &[Refused] = &[
    ("optimizer", &[Text("adamw"), Null]),
    ("lr_scheduler", &[Text("constant"), Null]),
    ("lr_decay_steps", &[Number(0.0), Null]),
    ("lr_warmup_steps", &[Number(0.0), Null]),
    // D-Adaptation and Prodigy.
    ("d0", &[Any]),
    ("decouple", &[Any]),
    ("momentum", &[Any]),
    ("no_prox", &[Any]),
    ("use_bias_correction", &[Any]),
    ("growth_rate", &[Any]),
    ("safeguard_warmup", &[Any]),
];

const REFUSED_FREEZING: &[Refused] = &[
    ("unfreeze_last_n_layers", &[Null]),
    ("freeze_embeddings", &[Bool(false), Null]),
    ("freeze_front_n_layers", &[Null]),
    ("freeze_final_layer_norm", &[Bool(false), Null]),
];

const REFUSED_AT_THE_TOP: &[Refused] = &[
    ("doc", &[Any]),
    // There is no gradient scaler in 32-bit arithmetic.
    ("apply_grad_scaler_step_tweaks", &[Any]),
    ("log_grad_norm", &[Bool(false), Null]),
];

impl OptimizerConfig {
    /// Reads an `optimizer.json`.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let mut config = Self::default();
        read_json(path.as_ref(), Top(&mut config))?;
        Ok(config)
    }

    /// Reads the keys from within another configuration, a recipe say, by the same rules (for
    /// `#[serde(deserialize_with)]`).
    pub fn from_keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut config = Self::default();
        Top(&mut config).deserialize(deserializer)?;
        Ok(config)
    }

    /// The numbers for the UNet and for the text encoder, where `lr` is the main configuration's learning rate.
    ///
    /// `lr` goes before both files' rates, as in EveryDream2; the text encoder's is then scaled by
    /// `text_encoder_lr_scale` where the file says one. Numbers that nobody says are EveryDream2's (and PyTorch's):
    /// betas 0.9 and 0.999, epsilon 1e-8, weight decay 0.01.
    pub fn resolve(&self, lr: Option<f64>) -> Result<(AdamWSettings, AdamWSettings)> {
        let base = &self.base;
        let missing =
            Error::MissingKey { key: "lr", meaning: "the learning rate, here or in optimizer.json" };
        let unet = AdamWSettings {
            lr: lr.or(base.lr).ok_or(missing)?,
            betas: base.betas.unwrap_or([0.9, 0.999]),
            epsilon: base.epsilon.unwrap_or(1e-8),
            weight_decay: base.weight_decay.unwrap_or(0.01),
        };
        let own = &self.text_encoder;
        if own.text_encoder_lr_scale.is_some() {
            let key = "text_encoder_overrides.text_encoder_lr_scale".to_owned();
            return Err(Error::UnknownKey { key, nearest: Some("text_encoder_overrides.lr".to_owned()) });
        }
        let scaled = unet.lr * base.text_encoder_lr_scale.unwrap_or(1.0);
        let text_encoder = AdamWSettings {
            lr: if lr.is_some() { scaled } else { own.lr.unwrap_or(scaled) },
            betas: own.betas.unwrap_or(unet.betas),
            epsilon: own.epsilon.unwrap_or(unet.epsilon),
            weight_decay: own.weight_decay.unwrap_or(unet.weight_decay),
        };
        unet.check()?;
        text_encoder.check()?;
        Ok((unet, text_encoder))
    }
}

impl AdamWSettings {
    fn check(&self) -> Result<()> {
        let within = |key, value: f64, good: bool, expected| match good {
            true => Ok(()),
            false => Err(Error::OutOfRange { key, value: value.to_string(), expected }),
        };
        within("lr", self.lr, self.lr.is_finite() && self.lr > 0.0, "a number above 0")?;
        for beta in self.betas {
            within("betas", beta, (0.0..1.0).contains(&beta), "two numbers from 0 to below 1")?;
        }
        let not_negative = |value: f64| value.is_finite() && value >= 0.0;
        within("epsilon", self.epsilon, self.epsilon.is_finite() && self.epsilon > 0.0, "a number above 0")?;
        within("weight_decay", self.weight_decay, not_negative(self.weight_decay), "a number from 0")
    }
}

/// The object at the top, in either form.
struct Top<'c>(&'c mut OptimizerConfig);

impl<'de> DeserializeSeed<'de> for Top<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Top<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let group = Vocabulary::of::<Group>(REFUSED);
        let freezing = Vocabulary { known: Vec::new(), refused: REFUSED_FREEZING };
        let sections = ["base", "text_encoder_overrides", "text_encoder_freezing"].map(str::to_owned);
        let top = Vocabulary { known: sections.to_vec(), refused: REFUSED_AT_THE_TOP };
        while let Some(key) = map.next_key::<String>()? {
            let OptimizerConfig { base, text_encoder } = &mut *self.0;
            match key.as_str() {
                "base" => map.next_value_seed(group.fields_of(base))?,
                "text_encoder_overrides" => map.next_value_seed(group.fields_of(text_encoder))?,
                "text_encoder_freezing" => {
                    map.next_value_seed(Pairs { vocabulary: &freezing, take: |_: &str, _| Ok(()) })?;
                }
                _ if group.has(&key) => {
                    let value: Value = map.next_value()?;
                    let taken = group.admits(&key, &value).and_then(|admitted| match admitted {
                        true => set_field(base, &key, value),
                        false => Ok(()),
                    });
                    taken.map_err(|error| A::Error::custom(explain(&error)))?;
                }
                _ => {
                    top.admits(&key, &Value::Null).map_err(A::Error::custom)?;
                    let value = map.next_value()?;
                    top.admits(&key, &value).map_err(A::Error::custom)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<OptimizerConfig> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        OptimizerConfig::read(file.path())
    }

    const FLAT: &str = r#"{"doc": "", "optimizer": "adamw", "lr": 1e-6, "betas": [0.9, 0.99], "epsilon": 1e-8,
        "weight_decay": 0.02, "text_encoder_lr_scale": 0.5}"#;
    const SPLIT: &str = r#"{"doc": {"lr": "rate"},
        "base": {"optimizer": "adamw", "lr": 1e-6, "lr_scheduler": "constant", "lr_warmup_steps": null,
            "betas": [0.9, 0.999], "epsilon": 1e-8, "weight_decay": 0.010},
        "text_encoder_overrides": {"optimizer": null, "lr": 3e-7, "betas": null, "weight_decay": 0.5},
        "text_encoder_freezing": {"freeze_embeddings": false, "freeze_front_n_layers": null},
        "apply_grad_scaler_step_tweaks": true}"#;

    #[test]
    fn the_flat_form_scales_the_text_encoders_rate() {
        let (unet, text) = read(FLAT).unwrap().resolve(None).unwrap();
        assert_eq!(unet, AdamWSettings { lr: 1e-6, betas: [0.9, 0.99], epsilon: 1e-8, weight_decay: 0.02 });
        assert_eq!(text, AdamWSettings { lr: 5e-7, ..unet });
        let (unet, text) = read(FLAT).unwrap().resolve(Some(2e-6)).unwrap();
        assert_eq!((unet.lr, text.lr), (2e-6, 1e-6), "the main rate comes first, then the scale");
    }

    #[test]
    fn the_split_form_overrides_the_text_encoders_numbers() {
        let (unet, text) = read(SPLIT).unwrap().resolve(None).unwrap();
        assert_eq!((unet.lr, text.lr), (1e-6, 3e-7));
        assert_eq!((unet.weight_decay, text.weight_decay), (0.01, 0.5));
        assert_eq!(text.betas, unet.betas);
        let (unet, text) = read(SPLIT).unwrap().resolve(Some(2e-6)).unwrap();
        assert_eq!((unet.lr, text.lr), (2e-6, 2e-6), "the main rate is for both");
    }

    #[test]
    fn without_a_file_the_rate_must_be_said() {
        let (unet, text) = OptimizerConfig::default().resolve(Some(1e-5)).unwrap();
        assert_eq!(unet, text);
        let error = OptimizerConfig::default().resolve(None).unwrap_err();
        assert_eq!(error.to_string(), "`lr` is missing: the learning rate, here or in optimizer.json");
    }

    #[test]
    fn what_is_not_supported_or_unknown_is_named() {
        let said = |text: &str| explain(&read(text).unwrap_err());
        assert!(said(r#"{"optimizer": "lion"}"#).contains("`optimizer` is not supported yet"));
        assert!(
            said(r#"{"base": {"lr_scheduler": "cosine"}}"#).contains("`lr_scheduler` is not supported yet")
        );
        assert!(said("{\"base\": {\n \"learning\": 1}}").contains("unknown key `learning`"));
        let nested = said("{\"base\": {\n \"wieght_decay\": 1}}");
        assert!(nested.contains("(did you mean `weight_decay`?) at line 2"), "{nested}");
        assert!(
            said(r#"{"text_encoder_freezing": {"unfreeze_last_n_layers": 2}}"#).contains("not supported yet")
        );
        assert!(said(r#"{"bases": 1}"#).contains("did you mean `base`?"));
    }

    #[test]
    fn impossible_numbers_are_refused() {
        let said = |text: &str| read(text).unwrap().resolve(None).unwrap_err().to_string();
        assert_eq!(said(r#"{"lr": 0}"#), "`lr` is 0, expected a number above 0");
        assert_eq!(
            said(r#"{"lr": 1, "betas": [0.9, 1.0]}"#),
            "`betas` is 1, expected two numbers from 0 to below 1"
        );
        assert_eq!(
            said(r#"{"lr": 1, "weight_decay": -1}"#),
            "`weight_decay` is -1, expected a number from 0"
        );
    }
}
