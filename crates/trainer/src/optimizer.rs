//! `optimizer.json`, in the flat form of 2023-04 and in the later one that is split by network.

use std::{fmt, path::Path};

use serde::{
    Deserialize, Serialize,
    de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor},
};
use serde_json::Value;
use vodka_stage::nearest;

use crate::{
    Error, Result,
    freezing::{Freezing, UnetFreezing},
    keys::{
        Answer::Told,
        Idle,
        Neutral::{Any, Null},
        Notice, Vocabulary, read_json,
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
    /// The largest norm of its gradients in one step; `None`: that of the main configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_grad_norm: Option<f64>,
}

/// What the main configuration says of schedules, for where `optimizer.json` says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MainRates {
    pub lr: Option<f64>,
    pub lr_scheduler: Option<Shape>,
    pub lr_warmup_steps: Option<u64>,
    pub lr_decay_steps: Option<u64>,
    /// Whether `text_encoder_lr_scale` counts: EveryDream2 of 2023-04 leaves it out where the UNet is frozen.
    pub without_scale: bool,
}

/// What an `optimizer.json` says; a field that is `None` was not said.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OptimizerConfig {
    base: Group,
    text_encoder: Group,
    freezing: Freezing,
    unet_freezing: UnetFreezing,
    rest: Rest,
    notices: Vec<Notice>,
}

/// The keys beside the groups.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Rest {
    apply_grad_scaler_step_tweaks: bool,
    log_grad_norm: bool,
}

impl Default for Rest {
    /// EveryDream2's.
    fn default() -> Self {
        Self { apply_grad_scaler_step_tweaks: true, log_grad_norm: true }
    }
}

/// What an `optimizer.json` comes to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Resolved {
    pub unet: PartSettings,
    pub text_encoder: PartSettings,
    /// What of the text encoder is not trained.
    pub freezing: Freezing,
    /// What of the UNet is not trained.
    pub unet_freezing: UnetFreezing,
    /// Whether the gradient scaler changes its pace as a run goes on.
    pub scaler_tweaks: bool,
    /// Whether norms of gradients are logged.
    pub log_grad_norm: bool,
    /// What is to be told.
    pub notices: Vec<Notice>,
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
    clip_grad_norm: Option<f64>,
    d0: Option<f64>,
    decouple: Option<bool>,
    growth_rate: Option<f64>,
    use_bias_correction: Option<bool>,
    safeguard_warmup: Option<bool>,
}

/// The optimizers, as EveryDream2 names them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", try_from = "String")]
enum Name {
    #[serde(rename = "adamw")]
    AdamW,
    #[serde(rename = "adamw8bit")]
    AdamW8bit,
    Lion,
    DadaptAdam,
    Prodigy,
}

/// The names of those that are not there, and which comes nearest, with what it differs in.
const ELSEWHERE: [(&str, &str); 7] = [
    ("lion8bit", "`lion`, the same with means in 32 bits"),
    ("dadapt_adan", "`dadapt_adam`, which finds its rate in the same way"),
    ("dadapt_lion", "`dadapt_adam`, which finds its rate in the same way, or `lion`"),
    ("dadapt_sgd", "`dadapt_adam`, which finds its rate in the same way"),
    ("coordinate_dowg", "`prodigy`, which needs no rate either"),
    ("scalar_dowg", "`prodigy`, which needs no rate either"),
    ("adacoor", "`prodigy`, which needs no rate either"),
];

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let known = [
            ("adamw", Self::AdamW),
            ("adamw8bit", Self::AdamW8bit),
            ("lion", Self::Lion),
            ("dadapt_adam", Self::DadaptAdam),
            ("prodigy", Self::Prodigy),
        ];
        if let Some((_, found)) = known.iter().find(|(known, _)| *known == name) {
            return Ok(*found);
        }
        if let Some((_, instead)) = ELSEWHERE.iter().find(|(elsewhere, _)| *elsewhere == name) {
            return Err(format!("`{name}` is not supported; the nearest is {instead}"));
        }
        let meant = nearest(&name, known.map(|(name, _)| name));
        let meant = meant.map_or(String::new(), |near| format!(" (did you mean `{near}`?)"));
        let all: Vec<_> = known.iter().map(|(name, _)| format!("`{name}`")).collect();
        Err(format!("unknown optimizer `{name}`{meant}: expected one of {}", all.join(", ")))
    }
}

const IDLE: &[Idle] = &[
    ("momentum", &[Null], Told("it is of `dadapt_sgd`, which is not supported")),
    ("no_prox", &[Null], Told("it is of `dadapt_adan`, which is not supported")),
];

const IDLE_AT_THE_TOP: &[Idle] = &[("doc", &[Any], Told("a note"))];

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
    pub(crate) fn resolve(&self, main: &MainRates) -> Result<Resolved> {
        let own = &self.text_encoder;
        if own.text_encoder_lr_scale.is_some() {
            let key = "text_encoder_overrides.text_encoder_lr_scale".to_owned();
            return Err(Error::UnknownKey { key, nearest: Some("text_encoder_overrides.lr".to_owned()) });
        }
        let base = &self.base;
        let missing =
            Error::MissingKey { key: "lr", meaning: "the learning rate, here or in optimizer.json" };
        let lr = main.lr.or(base.lr).ok_or(missing)?;
        let scale = base.text_encoder_lr_scale.filter(|_| !main.without_scale);
        let scaled = lr * scale.unwrap_or(1.0);
        let lr_text_encoder = if main.lr.is_some() { scaled } else { own.lr.unwrap_or(scaled) };
        let (unet, text_encoder) = (base.part(lr, main), own.over(base).part(lr_text_encoder, main));
        [&unet, &text_encoder].into_iter().try_for_each(PartSettings::check)?;
        Ok(Resolved {
            unet,
            text_encoder,
            freezing: self.freezing,
            unet_freezing: self.unet_freezing.clone(),
            scaler_tweaks: self.rest.apply_grad_scaler_step_tweaks,
            log_grad_norm: self.rest.log_grad_norm,
            notices: self.notices.iter().cloned().chain(self.overridden(main)).collect(),
        })
    }

    /// What is told where the main configuration's rate goes before those of the file.
    fn overridden(&self, main: &MainRates) -> Option<Notice> {
        let lr = main.lr?;
        let said = [("base", self.base.lr), ("text_encoder_overrides", self.text_encoder.lr)];
        let others: Vec<_> = said
            .into_iter()
            .filter_map(|(group, rate)| Some((group, rate.filter(|rate| *rate != lr)?)))
            .map(|(group, rate)| format!("{rate} of `{group}`"))
            .collect();
        let why = || format!("goes before the rates of optimizer.json ({})", others.join(", "));
        (!others.is_empty()).then(|| Notice::new("lr", lr, why()))
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
            clip_grad_norm: self.clip_grad_norm.or(other.clip_grad_norm),
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
            clip_grad_norm: self.clip_grad_norm,
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
    fn check(&self) -> Result<()> {
        self.optimizer.check()?;
        match self.clip_grad_norm.filter(|norm| !(norm.is_finite() && *norm > 0.0)) {
            None => Ok(()),
            Some(norm) => Err(Error::OutOfRange {
                key: "clip_grad_norm",
                value: norm.to_string(),
                expected: "a number above 0, or null",
            }),
        }
    }

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
        let group = Vocabulary::of::<Group>(IDLE);
        let freezing = Vocabulary::of::<Freezing>(&[]);
        let unet_freezing = Vocabulary::of::<UnetFreezing>(&[]);
        let rest = Vocabulary::of::<Rest>(&[]);
        let sections = ["base", "text_encoder_overrides", "text_encoder_freezing", "unet_freezing"];
        // For the nearest key, the others are of it too.
        let all: Vec<_> = sections.into_iter().chain(rest.keys()).collect();
        let top = Vocabulary::sections(&all, IDLE_AT_THE_TOP);
        let mut seen = Vec::new();
        let config = self.0;
        while let Some(key) = map.next_key::<String>()? {
            if seen.contains(&key) {
                return Err(A::Error::custom(Error::RepeatedKey { key }));
            }
            match key.as_str() {
                "base" => map.next_value_seed(group.fields_of(&mut config.base))?,
                "text_encoder_overrides" => map.next_value_seed(group.fields_of(&mut config.text_encoder))?,
                "text_encoder_freezing" => map.next_value_seed(freezing.fields_of(&mut config.freezing))?,
                "unet_freezing" => map.next_value_seed(unet_freezing.fields_of(&mut config.unet_freezing))?,
                _ if group.has(&key) => group.take(&mut config.base, &key, map.next_value()?)?,
                _ if rest.has(&key) => rest.take(&mut config.rest, &key, map.next_value()?)?,
                _ => {
                    top.admits(&key, &Value::Null).map_err(A::Error::custom)?;
                    map.next_value::<IgnoredAny>()?;
                }
            }
            seen.push(key);
        }
        config.notices = group.notices();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vodka_stage::explain;

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

    fn parts(config: &OptimizerConfig, main: &MainRates) -> (PartSettings, PartSettings) {
        let Resolved { unet, text_encoder, .. } = config.resolve(main).unwrap();
        (unet, text_encoder)
    }

    fn resolve(text: &str, lr: Option<f64>) -> (PartSettings, PartSettings) {
        parts(&read(text).unwrap(), &MainRates { lr, ..MainRates::default() })
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
        let main = MainRates { without_scale: true, ..MainRates::default() };
        assert_eq!(
            parts(&read(FLAT).unwrap(), &main).1.optimizer.lr,
            1e-6,
            "as in 2023 with the UNet frozen"
        );
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
    fn each_network_has_its_own_largest_norm() {
        let norms = |text: &str| {
            let (unet, text) = resolve(text, None);
            (unet.clip_grad_norm, text.clip_grad_norm)
        };
        assert_eq!(norms(r#"{"base": {"lr": 1}}"#), (None, None));
        assert_eq!(norms(r#"{"lr": 1, "clip_grad_norm": 2}"#), (Some(2.0), Some(2.0)));
        let text =
            r#"{"base": {"lr": 1, "clip_grad_norm": 2}, "text_encoder_overrides": {"clip_grad_norm": 0.5}}"#;
        assert_eq!(norms(text), (Some(2.0), Some(0.5)));
        let text = r#"{"base": {"lr": 1}, "text_encoder_overrides": {"clip_grad_norm": 0.5}}"#;
        assert_eq!(norms(text), (None, Some(0.5)));
    }

    #[test]
    fn without_a_file_the_rate_must_be_said() {
        let main = MainRates { lr: Some(1e-5), ..MainRates::default() };
        let (unet, text) = parts(&OptimizerConfig::default(), &main);
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
        let (unet, text) = parts(&read(text).unwrap(), &main);
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
        let wrong = said(r#"{"optimizer": "adam8bit"}"#);
        assert!(wrong.contains("wrong value for `optimizer`: unknown optimizer `adam8bit`"), "{wrong}");
        assert!(wrong.contains("did you mean `adamw8bit`?") && wrong.contains("`prodigy`"), "{wrong}");
        for (name, instead) in ELSEWHERE {
            let wrong = said(&format!(r#"{{"base": {{"optimizer": "{name}"}}}}"#));
            assert!(
                wrong.contains(&format!("`{name}` is not supported; the nearest is {instead}")),
                "{wrong}"
            );
        }
        assert!(said(r#"{"base": {"lr_scheduler": "sine"}}"#).contains("`cosine`"));
        assert!(said("{\"base\": {\n \"learning\": 1}}").contains("unknown key `learning`"));
        let nested = said("{\"base\": {\n \"wieght_decay\": 1}}");
        assert!(nested.contains("(did you mean `weight_decay`?) at line 2"), "{nested}");
        let freezing = said(r#"{"text_encoder_freezing": {"unfreeze_last_layers": 2}}"#);
        assert!(freezing.contains("did you mean `unfreeze_last_n_layers`?"), "{freezing}");
        let freezing = said(r#"{"unet_freezing": {"freezes": ["IN00"]}}"#);
        assert!(freezing.contains("did you mean `freeze`?"), "{freezing}");
        let wrong = said(r#"{"unet_freezing": {"freeze": "IN00"}}"#);
        assert!(
            wrong.contains("wrong value for `freeze`: invalid type: string \"IN00\", expected a list"),
            "{wrong}"
        );
        assert!(said(r#"{"log_grad_nrom": true}"#).contains("did you mean `log_grad_norm`?"));
        assert!(said(r#"{"base": {}, "base": {}}"#).contains("the key `base` is there twice"));
        assert!(said(r#"{"bases": 1}"#).contains("did you mean `base`?"));
    }

    #[test]
    fn what_is_frozen_and_logged_is_read() {
        let text = r#"{"doc": 1, "lr": 1, "text_encoder_freezing": {"unfreeze_last_n_layers": 2, "freeze_embeddings": null},
            "apply_grad_scaler_step_tweaks": false, "log_grad_norm": null, "momentum": 0.9, "no_prox": null}"#;
        let resolved =
            read(text).unwrap().resolve(&MainRates { lr: Some(1e-6), ..MainRates::default() }).unwrap();
        assert_eq!(resolved.freezing.unfreeze_last_n_layers, Some(2));
        assert_eq!((resolved.scaler_tweaks, resolved.log_grad_norm), (false, true));
        let told: Vec<_> = resolved.notices.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "`momentum` (0.9): it is of `dadapt_sgd`, which is not supported",
                "`lr` (1e-6): goes before the rates of optimizer.json (1 of `base`)"
            ]
        );
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
            said(r#"{"base": {"lr": 1}, "text_encoder_overrides": {"clip_grad_norm": 0}}"#),
            "`clip_grad_norm` is 0, expected a number above 0, or null"
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
