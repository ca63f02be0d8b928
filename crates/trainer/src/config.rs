//! `train.json`: the keys of EveryDream2 that are supported, and our own.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, de::DeserializeSeed};
use serde_json::Value;

use crate::{
    Compat, OptimizerConfig, Result,
    keys::{
        Neutral::{self, Any, Bool, Null, Number, Text},
        Refused, Vocabulary, read_json, set_field,
    },
    rates::Shape,
    target::LossType,
};

/// A training configuration as EveryDream2's `train.json` writes it. A key that is absent has the default stated here.
/// That is EveryDream2's, but for what is not supported yet: an absent `loss_type` is `mse` here and `mse_huber` there,
/// an absent `zero_frequency_noise_ratio` 0 and 0.02, `disable_amp` true and false, and without `save_every_n_epochs` there is no checkpoint every 20 minutes.
///
/// [`TrainConfig::read`] and [`TrainConfig::set`] accept the other keys of EveryDream2 at the value at which they ask for
/// nothing (`"wandb": false`), and refuse them by name at any other. Unknown and repeated keys are errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Folder with the pictures, searched with everything below it. Required.
    pub data_root: PathBuf,
    /// Ours: folder with the captions, laid out like `data_root`, as `vodka-curate caption --output` writes it.
    /// Default: `data_root` itself.
    pub caption_root: Option<PathBuf>,
    /// The checkpoint to start from: a single `.safetensors` file or a diffusers folder. Required.
    pub resume_ckpt: Option<PathBuf>,
    /// Ours: folder for checkpoints, `losses.csv` and the training state. Required, unless `save_ckpt_dir` says it.
    pub output: Option<PathBuf>,
    /// EveryDream2's name for `output`.
    pub save_ckpt_dir: Option<PathBuf>,
    /// What checkpoint names begin with. Default: `run_name`, or else `vodka`.
    pub project_name: Option<String>,
    /// Used where there is no `project_name`.
    pub run_name: Option<String>,
    /// Ours: `cpu`, `cuda` or `cuda:N`. Default: `cpu`.
    pub device: String,
    /// Ours: threads of the processor that the networks run on. Default: as many as there are cores. Sums in fp32 come out
    /// differently in their last bits with another number; a run that is gone on with keeps the one it began with.
    pub threads: Option<usize>,
    /// Class resolution in pixels, a multiple of 64; every picture goes into the bucket of this class that has the
    /// nearest shape. Default: 512.
    pub resolution: u32,
    /// Pictures in a batch. Default: 2.
    pub batch_size: usize,
    /// Batches to an optimizer step; gradients are averaged. A step never reaches over the end of an epoch. Default: 1.
    pub grad_accum: usize,
    /// How often every picture is trained on. Default: 300.
    pub max_epochs: u64,
    /// Learning rate of UNet and text encoder; goes before those of `optimizer.json`.
    pub lr: Option<f64>,
    /// How the learning rate goes: `constant`, `linear`, `cosine` or `polynomial`; `optimizer.json` goes before it.
    /// Default: `constant`.
    pub lr_scheduler: Option<Shape>,
    /// Batches until a schedule has come down. Default, also with 0: one and a half times those of the run.
    pub lr_decay_steps: Option<u64>,
    /// Batches until a schedule has risen to the learning rate. Default: a fiftieth of `lr_decay_steps`.
    pub lr_warmup_steps: Option<u64>,
    /// The largest norm of each network's gradients in one step. Default: any.
    pub clip_grad_norm: Option<f64>,
    /// `optimizer.json`, in either of its forms. Default: EveryDream2's, AdamW8bit.
    pub optimizer_config: Option<PathBuf>,
    /// Keep running means of the trained weights, of which so much stays in each update, 0 to 1; each checkpoint then has
    /// a twin with `_ema` in its name. Default: none.
    pub ema_decay_rate: Option<f64>,
    /// The same, said by how much of the first weights stays over the whole run; goes before `ema_decay_rate`.
    pub ema_strength_target: Option<f64>,
    /// Batches between two updates of the means. Default: 500.
    pub ema_update_interval: u64,
    /// Where the means are kept: `cpu` or `cuda`. Default: `cpu`.
    pub ema_device: String,
    /// `validation.json`. Default: no validation.
    pub validation_config: Option<PathBuf>,
    /// Random seed; -1 draws one. Default: 555.
    pub seed: i64,
    /// Which of the text encoder's last layers is used, 0 and 1 the last, 2 the one before; at most 4. Default: 0.
    pub clip_skip: i64,
    /// Ours: whose behaviour the run has, `ed2-2023-04`, `ed2-head` or `vodka`. Default: `vodka`.
    pub compat: Compat,
    /// Ours: how many crops a picture has: the first is its middle, the others are drawn once, up to 2 % off each side. For
    /// `compat` `vodka`; EveryDream2's modes cut anew in each epoch. Default: 1.
    pub crop_variants: u64,
    /// Probability of replacing a caption with a single space. Default: 0.04.
    pub cond_dropout: f64,
    /// Probability of flipping a picture. Default: 0.
    pub flip_p: f64,
    /// Put the tags of each caption, what is behind its first comma, in another order each time. Default: false.
    pub shuffle_tags: bool,
    /// How many tags of a caption stay where they are. Default: 0.
    pub keep_tags: usize,
    /// Leave out more and more pictures with every epoch, the worse rated sooner. Default: false.
    pub rated_dataset: bool,
    /// How many of a hundred pictures are left out in the end. Default: 50.
    pub rated_dataset_target_dropout_percent: f64,
    /// How an error becomes a loss: `mse`, `huber`, `mse_huber` or `huber_mse`. Default: `mse`.
    pub loss_type: LossType,
    /// The largest signal-to-noise ratio that counts in a loss's weight (5 as a rule). Default: all weigh the same.
    pub min_snr_gamma: Option<f64>,
    /// The least noisy timestep that is trained, 0 to 999. Default: 0.
    pub timestep_start: i64,
    /// The first timestep that is too noisy, 1 to 1000. Default: 1000.
    pub timestep_end: i64,
    /// Offset noise: so much of one random number for each picture and channel is added to the noise. Default: 0.
    pub zero_frequency_noise_ratio: Option<f64>,
    /// Pyramid noise: noise of several sizes, each weighing this times the finer one, 0 to 1. Default: none.
    pub pyramid_noise_discount: Option<f64>,
    /// Train with nothing but noise at the last timestep; for `v_prediction`. Default: false.
    pub enable_zero_terminal_snr: Option<bool>,
    /// Random numbers of this standard deviation, over the square root of their number in a token, are added to the text
    /// encoder's output. Default: 0.
    pub embedding_perturbation: Option<f64>,
    /// A checkpoint after each so many epochs; there is always one after the last epoch. Default: none but that.
    pub save_every_n_epochs: Option<u64>,
    /// Checkpoints with 32 bits a weight in place of 16. Default: false.
    pub save_full_precision: bool,
    /// Ours: save the training state after each so many batches, beside every end of an epoch. Default: not.
    pub state_every_n_steps: Option<u64>,
    /// Leave the text encoder as it is. Default: false.
    pub disable_textenc_training: bool,
    /// Leave the UNet as it is. Default: false.
    pub disable_unet_training: bool,
    /// Not a key: what `optimizer_config` would say; goes before it.
    #[serde(skip)]
    pub optimizer: Option<OptimizerConfig>,
    /// Not a key: the folder that `cargo xtask setup` filled, where a GPU's half of libtorch is found.
    #[serde(skip)]
    pub runtime_dir: PathBuf,
    /// Not a key: start over, whatever state the output folder holds.
    #[serde(skip)]
    pub start_over: bool,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            data_root: PathBuf::new(),
            caption_root: None,
            resume_ckpt: None,
            output: None,
            save_ckpt_dir: None,
            project_name: None,
            run_name: None,
            device: "cpu".to_owned(),
            threads: None,
            resolution: 512,
            batch_size: 2,
            grad_accum: 1,
            max_epochs: 300,
            lr: None,
            lr_scheduler: None,
            lr_decay_steps: None,
            lr_warmup_steps: None,
            clip_grad_norm: None,
            optimizer_config: None,
            ema_decay_rate: None,
            ema_strength_target: None,
            ema_update_interval: 500,
            ema_device: "cpu".to_owned(),
            validation_config: None,
            seed: 555,
            clip_skip: 0,
            compat: Compat::Vodka,
            crop_variants: 1,
            cond_dropout: 0.04,
            flip_p: 0.0,
            shuffle_tags: false,
            keep_tags: 0,
            rated_dataset: false,
            rated_dataset_target_dropout_percent: 50.0,
            loss_type: LossType::Mse,
            min_snr_gamma: None,
            timestep_start: 0,
            timestep_end: 1000,
            zero_frequency_noise_ratio: None,
            pyramid_noise_discount: None,
            enable_zero_terminal_snr: None,
            embedding_perturbation: None,
            save_every_n_epochs: None,
            save_full_precision: false,
            state_every_n_steps: None,
            disable_textenc_training: false,
            disable_unet_training: false,
            optimizer: None,
            runtime_dir: ".runtime".into(),
            start_over: false,
        }
    }
}

const OFF: &[Neutral] = &[Bool(false), Null];
const NOUGHT: &[Neutral] = &[Number(0.0), Null];
const ABSENT: &[Neutral] = &[Null];

/// EveryDream2's other keys. Sources: victorchall/EveryDream2trainer, `train.py` and `train.json` at 5098db8 (2025-05)
/// and 974d3fa (2023-04).
const REFUSED: &[Refused] = &[
    // Only 32-bit arithmetic so far. `amp` is deprecated there.
    ("amp", OFF),
    ("disable_amp", &[Bool(true)]),
    ("attn_type", &[Text("sdp"), Null]),
    ("disable_xformers", &[Any]),
    ("gradient_checkpointing", OFF),
    ("lowvram", OFF),
    ("gpuid", NOUGHT),
    ("scale_lr", OFF),
    ("useadam8bit", OFF),
    // All three add noise alike.
    ("train_sampler", &[Text("ddpm"), Text("pndm"), Text("ddim"), Null]),
    ("sample_prompts", ABSENT),
    // Says nothing without `sample_prompts`.
    ("sample_steps", &[Any]),
    ("ckpt_every_n_minutes", NOUGHT),
    ("save_ckpts_from_n_epochs", NOUGHT),
    ("save_optimizer", OFF),
    ("no_save_ckpt", OFF),
    ("no_prepend_last", &[Bool(true), Null]),
    // Where and how often TensorBoard files are written there; `losses.csv` has every step.
    ("logdir", &[Any]),
    ("log_step", &[Any]),
    ("wandb", OFF),
    ("notebook", OFF),
    ("write_schedule", OFF),
    ("load_settings_every_epoch", OFF),
    ("ed1_mode", OFF),
    ("plugins", ABSENT),
    ("ema_resume_model", ABSENT),
    // Pictures are not sampled during training yet.
    ("ema_sample_nonema_model", &[Any]),
    ("ema_sample_ema_model", &[Any]),
];

impl TrainConfig {
    /// Reads a `train.json`. What is wrong in it is told with line, column and the nearest known key.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let mut config = Self::default();
        read_json(path.as_ref(), Self::vocabulary().fields_of(&mut config))?;
        Ok(config)
    }

    /// Reads the keys from within another configuration, a recipe say, by the same rules (for
    /// `#[serde(deserialize_with)]`).
    pub fn from_keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut config = Self::default();
        Self::vocabulary().fields_of(&mut config).deserialize(deserializer)?;
        Ok(config)
    }

    /// Sets one key, as if the file said so.
    pub fn set(&mut self, key: &str, value: Value) -> Result<()> {
        match Self::vocabulary().admits(key, &value)? {
            true => {
                let before = self.clone();
                set_field(self, key, value)?;
                // What is no key does not survive the way through JSON.
                self.optimizer = before.optimizer;
                self.runtime_dir = before.runtime_dir;
                self.start_over = before.start_over;
                Ok(())
            }
            false => Ok(()),
        }
    }

    fn vocabulary() -> Vocabulary {
        Vocabulary::of::<Self>(REFUSED)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::keys::explain;

    fn read(text: &str) -> Result<TrainConfig> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        TrainConfig::read(file.path())
    }

    fn said(text: &str) -> String {
        let error = explain(&read(text).unwrap_err());
        error.split_once("`: ").unwrap().1.to_owned()
    }

    #[test]
    fn a_file_sets_what_it_names_and_leaves_the_rest() {
        let config = read(r#"{"data_root": "in", "batch_size": 4, "lr": 1.5e-7, "seed": -1}"#).unwrap();
        let expected = TrainConfig {
            data_root: "in".into(),
            batch_size: 4,
            lr: Some(1.5e-7),
            seed: -1,
            ..TrainConfig::default()
        };
        assert_eq!(config, expected);
        assert_eq!(read("\u{feff}{}").unwrap(), TrainConfig::default());
    }

    #[test]
    fn neutral_values_of_unsupported_keys_are_fine() {
        let text = r#"{"wandb": false, "ema_decay_rate": null, "amp": false, "disable_amp": true,
            "log_step": 25, "ema_sample_ema_model": true}"#;
        assert_eq!(read(text).unwrap(), TrainConfig::default());
    }

    #[test]
    fn other_values_of_unsupported_keys_are_named() {
        assert_eq!(
            said("{\n  \"gpuid\": 0.5\n}"),
            "`gpuid` is not supported yet: expected 0 or null, found 0.5 at line 3 column 1"
        );
        assert_eq!(
            said(r#"{"attn_type": "slice"}"#),
            "`attn_type` is not supported yet: expected \"sdp\" or null, found \"slice\" at line 1 column 22"
        );
    }

    #[test]
    fn an_unknown_key_is_told_with_its_place_and_the_nearest_known_one() {
        assert_eq!(
            said("{\n  \"seed\": 1,\n  \"batchsize\": 4\n}"),
            "unknown key `batchsize` (did you mean `batch_size`?) at line 3 column 13"
        );
        assert!(said(r#"{"wanb": false}"#).contains("did you mean `wandb`?"));
        assert_eq!(said(r#"{"": 1}"#), "unknown key `` at line 1 column 3");
    }

    #[test]
    fn broken_json_wrong_types_and_repeated_keys_are_told_with_their_place() {
        assert_eq!(said("{\"seed\": 1,\n}"), "trailing comma at line 2 column 1");
        assert!(said("{\"seed\": 1} x").starts_with("trailing characters at line 1"));
        assert!(said("[1]").contains("expected an object at line 1"), "{}", said("[1]"));
        let wrong = said("{\"batch_size\": \"four\"\n}");
        assert!(wrong.starts_with("wrong value for `batch_size`: invalid type: string \"four\""), "{wrong}");
        assert!(wrong.contains("at line 2 column 1"), "{wrong}");
        assert!(said(r#"{"seed": 1, "seed": 2}"#).starts_with("the key `seed` is there twice at line 1"));
    }

    #[test]
    fn single_keys_are_set_by_the_same_rules() {
        let mut config = TrainConfig::default();
        config.set("max_epochs", json!(4)).unwrap();
        config.set("wandb", json!(false)).unwrap();
        assert_eq!(config.max_epochs, 4);
        assert!(config.set("wandb", json!(true)).unwrap_err().to_string().contains("not supported yet"));
        assert!(config.set("max_epoch", json!(4)).unwrap_err().to_string().contains("`max_epochs`"));
        assert!(config.set("max_epochs", json!(-1)).is_err());
    }
}
