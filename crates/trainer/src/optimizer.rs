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
        Neutral::{Any, Bool, Null},
        Pairs, Refused, Vocabulary, explain, read_json, set_field,
    },
    optimizers::{Adaptation, Method, OptimizerSettings},
    rates::{RateSchedule, Shape},
};

/// How one network is trained.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PartSettings {
    /// Its optimizer.
    pub optimizer: OptimizerSettings,
    /// The shape of its learning rate's schedule.
    pub lr_scheduler: Shape,
    /// Batches from 0 to the full rate; `None`: a fiftieth of the decay.
    pub lr_warmup_steps: Option<u64>,
    /// Batches until the end of the way down; `None`: one and a half times those of the whole run.
    pub lr_decay_steps: Option<u64>,
}

/// What the main configuration says of schedules, for where `optimizer.json` says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MainRates {
    pub lr: Option<f64>,
    pub lr_scheduler: Option<Shape>,
    pub lr_warmup_steps: Option<u64>,
    pub lr_decay_steps: Option<u64>,
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
    optimizer: Option<Name>,
    lr: Option<f64>,
    betas: Option<[f64; 2]>,
    epsilon: Option<f64>,
    weight_decay: Option<f64>,
    text_encoder_lr_scale: Option<f64>,
    lr_scheduler: Option<Shape>,
    lr_warmup_steps: Option<u64>,
    lr_decay_steps: Option<u64>,
    d0: Option<f64>,
    decouple: Option<bool>,
    growth_rate: Option<f64>,
    use_bias_correction: Option<bool>,
    safeguard_warmup: Option<bool>,
}

/// The optimizers, as EveryDream2 names them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Name {
    #[serde(rename = "adamw")]
    AdamW,
    #[serde(rename = "adamw8bit")]
    AdamW8bit,
    Lion,
    DadaptAdam,
    Prodigy,
}

const REFUSED: &[Refused] = &[
    // Of optimizers that are not there: D-Adaptation's SGD and Adan.
    ("momentum", &[Any]),
    ("no_prox", &[Any]),
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

    /// How UNet and text encoder are trained.
    ///
    /// What the text encoder's part does not say is as for the UNet; what neither says is as in the main configuration,
    /// or else EveryDream2's default: `adamw8bit`, betas 0.9 and 0.999, epsilon 1e-8, weight decay 0.01, a constant
    /// rate. The main configuration's `lr` goes before both rates of the file, as in EveryDream2; the text encoder's is
    /// then scaled by `text_encoder_lr_scale` where the file says one. A schedule's 0 steps mean that the file does not
    /// say how many.
    pub(crate) fn resolve(&self, main: &MainRates) -> Result<(PartSettings, PartSettings)> {
        let own = &self.text_encoder;
        if own.text_encoder_lr_scale.is_some() {
            let key = "text_encoder_overrides.text_encoder_lr_scale".to_owned();
            return Err(Error::UnknownKey { key, nearest: Some("text_encoder_overrides.lr".to_owned()) });
        }
        let base = &self.base;
        let missing =
            Error::MissingKey { key: "lr", meaning: "the learning rate, here or in optimizer.json" };
        let lr = main.lr.or(base.lr).ok_or(missing)?;
        let scaled = lr * base.text_encoder_lr_scale.unwrap_or(1.0);
        let lr_text_encoder = if main.lr.is_some() { scaled } else { own.lr.unwrap_or(scaled) };
        let parts = (base.part(lr, main), own.over(base).part(lr_text_encoder, main));
        parts.0.optimizer.check()?;
        parts.1.optimizer.check()?;
        Ok(parts)
    }
}

impl Group {
    /// This group, and for what it does not say the other.
    fn over(&self, other: &Self) -> Self {
        Self {
            optimizer: self.optimizer.or(other.optimizer),
            lr: self.lr.or(other.lr),
            betas: self.betas.or(other.betas),
            epsilon: self.epsilon.or(other.epsilon),
            weight_decay: self.weight_decay.or(other.weight_decay),
            text_encoder_lr_scale: None,
            lr_scheduler: self.lr_scheduler.or(other.lr_scheduler),
            lr_warmup_steps: said(self.lr_warmup_steps).or(other.lr_warmup_steps),
            lr_decay_steps: said(self.lr_decay_steps).or(other.lr_decay_steps),
            d0: self.d0.or(other.d0),
            decouple: self.decouple.or(other.decouple),
            growth_rate: self.growth_rate.or(other.growth_rate),
            use_bias_correction: self.use_bias_correction.or(other.use_bias_correction),
            safeguard_warmup: self.safeguard_warmup.or(other.safeguard_warmup),
        }
    }

    fn part(&self, lr: f64, main: &MainRates) -> PartSettings {
        let method = self.method();
        // EveryDream2 leaves Prodigy its own.
        let betas = if matches!(method, Method::Prodigy(_)) { None } else { self.betas };
        let optimizer = OptimizerSettings {
            method,
            lr,
            betas: betas.unwrap_or([0.9, 0.999]),
            epsilon: self.epsilon.unwrap_or(1e-8),
            weight_decay: self.weight_decay.unwrap_or(0.01),
        };
        PartSettings {
            optimizer,
            lr_scheduler: self.lr_scheduler.or(main.lr_scheduler).unwrap_or_default(),
            lr_warmup_steps: said(self.lr_warmup_steps).or(main.lr_warmup_steps),
            lr_decay_steps: said(self.lr_decay_steps).or(said(main.lr_decay_steps)),
        }
    }

    fn method(&self) -> Method {
        let adaptation = |use_bias_correction| Adaptation {
            d0: self.d0.unwrap_or(1e-6),
            growth_rate: self.growth_rate.unwrap_or(f64::MAX),
            decouple: self.decouple.unwrap_or(true),
            use_bias_correction: self.use_bias_correction.unwrap_or(use_bias_correction),
            safeguard_warmup: self.safeguard_warmup.unwrap_or(true),
        };
        match self.optimizer {
            None | Some(Name::AdamW8bit) => Method::AdamW8bit,
            Some(Name::AdamW) => Method::AdamW,
            Some(Name::Lion) => Method::Lion,
            Some(Name::DadaptAdam) => Method::DAdaptAdam(adaptation(false)),
            Some(Name::Prodigy) => Method::Prodigy(adaptation(true)),
        }
    }
}

/// A number of steps; 0 says nothing.
fn said(steps: Option<u64>) -> Option<u64> {
    steps.filter(|steps| *steps > 0)
}

impl PartSettings {
    /// The schedule in a run of so many batches.
    pub fn schedule(&self, steps: u64) -> RateSchedule {
        let decay_steps = self.lr_decay_steps.unwrap_or(steps + steps / 2);
        let warmup_steps = self.lr_warmup_steps.unwrap_or(decay_steps / 50);
        RateSchedule { shape: self.lr_scheduler, warmup_steps, decay_steps }
    }
}

impl OptimizerSettings {
    fn check(&self) -> Result<()> {
        let within = |key, value: f64, good: bool, expected| match good {
            true => Ok(()),
            false => Err(Error::OutOfRange { key, value: value.to_string(), expected }),
        };
        let positive = |value: f64| value.is_finite() && value > 0.0;
        within("lr", self.lr, positive(self.lr), "a number above 0")?;
        for beta in self.betas {
            within("betas", beta, (0.0..1.0).contains(&beta), "two numbers from 0 to below 1")?;
        }
        within("epsilon", self.epsilon, positive(self.epsilon), "a number above 0")?;
        let decay = self.weight_decay;
        within("weight_decay", decay, decay.is_finite() && decay >= 0.0, "a number from 0")?;
        if let Method::DAdaptAdam(adaptation) | Method::Prodigy(adaptation) = self.method {
            let Adaptation { d0, growth_rate, .. } = adaptation;
            within("d0", d0, positive(d0), "a number above 0")?;
            within("growth_rate", growth_rate, growth_rate >= 1.0, "a number from 1")?;
        }
        Ok(())
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

    fn resolve(text: &str, lr: Option<f64>) -> (PartSettings, PartSettings) {
        read(text).unwrap().resolve(&MainRates { lr, ..MainRates::default() }).unwrap()
    }

    fn rates(text: &str, lr: Option<f64>) -> (f64, f64) {
        let (unet, text) = resolve(text, lr);
        (unet.optimizer.lr, text.optimizer.lr)
    }

    #[test]
    fn the_flat_form_scales_the_text_encoders_rate() {
        let (unet, text) = resolve(FLAT, None);
        let expected = OptimizerSettings {
            method: Method::AdamW,
            lr: 1e-6,
            betas: [0.9, 0.99],
            epsilon: 1e-8,
            weight_decay: 0.02,
        };
        assert_eq!(unet.optimizer, expected);
        assert_eq!(text.optimizer, OptimizerSettings { lr: 5e-7, ..expected });
        assert_eq!(rates(FLAT, Some(2e-6)), (2e-6, 1e-6), "the main rate comes first, then the scale");
    }

    #[test]
    fn the_split_form_overrides_the_text_encoders_numbers() {
        let (unet, text) = resolve(SPLIT, None);
        assert_eq!((unet.optimizer.lr, text.optimizer.lr), (1e-6, 3e-7));
        assert_eq!((unet.optimizer.weight_decay, text.optimizer.weight_decay), (0.01, 0.5));
        assert_eq!(text.optimizer.betas, unet.optimizer.betas);
        assert_eq!(rates(SPLIT, Some(2e-6)), (2e-6, 2e-6), "the main rate is for both");
    }

    #[test]
    fn without_a_file_the_rate_must_be_said() {
        let main = MainRates { lr: Some(1e-5), ..MainRates::default() };
        let (unet, text) = OptimizerConfig::default().resolve(&main).unwrap();
        assert_eq!(unet, text);
        assert_eq!(unet.optimizer.method, Method::AdamW8bit, "EveryDream2's default");
        let error = OptimizerConfig::default().resolve(&MainRates::default()).unwrap_err();
        assert_eq!(error.to_string(), "`lr` is missing: the learning rate, here or in optimizer.json");
    }

    #[test]
    fn each_network_has_its_own_optimizer_and_schedule() {
        let text = r#"{"base": {"optimizer": "dadapt_adam", "lr": 1.0, "d0": 1e-5, "growth_rate": 1.02,
                "lr_scheduler": "cosine", "lr_decay_steps": 0},
            "text_encoder_overrides": {"optimizer": "lion", "lr": 1e-7, "lr_scheduler": "linear",
                "lr_warmup_steps": 5, "lr_decay_steps": 90}}"#;
        let main = MainRates { lr_decay_steps: Some(700), ..MainRates::default() };
        let (unet, text) = read(text).unwrap().resolve(&main).unwrap();
        let Method::DAdaptAdam(adaptation) = unet.optimizer.method else { panic!("{unet:?}") };
        assert_eq!((adaptation.d0, adaptation.growth_rate, adaptation.decouple), (1e-5, 1.02, true));
        let schedule = unet.schedule(100);
        assert_eq!(schedule, RateSchedule { shape: Shape::Cosine, warmup_steps: 14, decay_steps: 700 });
        assert_eq!(text.optimizer.method, Method::Lion);
        let schedule = text.schedule(100);
        assert_eq!(schedule, RateSchedule { shape: Shape::Linear, warmup_steps: 5, decay_steps: 90 });
        let (unet, _) = resolve(r#"{"lr": 1e-6, "lr_scheduler": "cosine"}"#, None);
        let schedule = unet.schedule(100);
        assert_eq!(schedule, RateSchedule { shape: Shape::Cosine, warmup_steps: 3, decay_steps: 150 });
    }

    #[test]
    fn what_is_not_there_or_unknown_is_named() {
        let said = |text: &str| explain(&read(text).unwrap_err());
        let wrong = said(r#"{"optimizer": "dowg"}"#);
        assert!(wrong.contains("wrong value for `optimizer`") && wrong.contains("`lion`"), "{wrong}");
        assert!(said(r#"{"base": {"lr_scheduler": "sine"}}"#).contains("`cosine`"));
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
        let said = |text: &str| read(text).unwrap().resolve(&MainRates::default()).unwrap_err().to_string();
        assert_eq!(said(r#"{"lr": 0}"#), "`lr` is 0, expected a number above 0");
        assert_eq!(
            said(r#"{"lr": 1, "betas": [0.9, 1.0]}"#),
            "`betas` is 1, expected two numbers from 0 to below 1"
        );
        assert_eq!(
            said(r#"{"lr": 1, "weight_decay": -1}"#),
            "`weight_decay` is -1, expected a number from 0"
        );
        assert_eq!(
            said(r#"{"lr": 1, "optimizer": "prodigy", "d0": 0}"#),
            "`d0` is 0, expected a number above 0"
        );
    }
}
