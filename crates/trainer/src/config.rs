//! `train.json`: the keys of EveryDream2 that are supported, and our own.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, de::DeserializeSeed};
use serde_json::Value;
use vodka_checkpoint::Prediction;

use crate::{
    Arithmetic, CacheMode, Compat, DataRoot, Flaw, OnNan, OptimizerConfig, Result,
    keys::{
        Answer::{Refused, Told},
        Idle,
        Neutral::{self, Bool, Null, Text},
        Notice, Vocabulary, read_json,
    },
    rates::Shape,
    target::LossType,
};

/// A training configuration as EveryDream2's `train.json` writes it. A key that is absent has the default stated here.
/// `null` is the default of any key. The defaults are those of EveryDream2's command line (its `train.json` says others), but
/// for `loss_type` and `zero_frequency_noise_ratio`, which are so only with its `compat` modes.
///
/// [`TrainConfig::read`] and [`TrainConfig::set`] also take EveryDream2's keys for which nothing is to be done: at a value
/// that asks for nothing in silence (`"wandb": false`), at others with a [`Notice`], or, where the user would miss
/// something, with an error that says why. Unknown and repeated keys are errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// The pictures: a folder, searched with everything below it; a JSON list; or several. Required.
    pub data_root: DataRoot,
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
    /// Ours: `cpu`, `cuda` or `cuda:N`. Default: `cpu`, or the GPU that `gpuid` names if it is not the first.
    pub device: Option<String>,
    /// Which GPU, from 0, where `device` does not say it.
    pub gpuid: Option<u32>,
    /// For GPUs of 12 GB, as EveryDream2 had it in 2023: at most 2 pictures in a batch and no accumulation, class
    /// resolution at most 512. Default: false.
    pub lowvram: bool,
    /// Ours: threads of the processor that the networks run on. Default: as many as there are cores. Sums in fp32 come out
    /// differently in their last bits with another number; a run that is gone on with keeps the one it began with.
    pub threads: Option<usize>,
    /// Ours: what may be wrong with pictures, which are then left out: `unreadable`, `no_caption`. Default: nothing.
    pub allow: Vec<Flaw>,
    /// Ours: what matrix products and convolutions are computed in, `fp32`, `bf16` or `fp16`; weights and optimizers have
    /// 32 bits in any case. Default: `fp32` on a processor and with `disable_amp`, else `bf16`; with the `compat` modes of
    /// EveryDream2 `fp16`, as there.
    pub precision: Option<Arithmetic>,
    /// Compute in 32 bits on a GPU too, where `precision` does not say otherwise. Default: false.
    pub disable_amp: Option<bool>,
    /// Ours: the same as `precision` for the VAE. Default: `fp32`.
    pub vae_precision: Option<Arithmetic>,
    /// Ours: let a GPU compute 32-bit products with TF32, as EveryDream2 does. Default: true.
    pub tf32: bool,
    /// Ours: let a GPU use only what gives the same in every run, which is slower. Default: false.
    pub deterministic: bool,
    /// Ours: record the work of a step once for each size of batch and let the GPU repeat it (CUDA graphs). Default: true.
    pub cuda_graphs: bool,
    /// Compute the blocks of the networks once more on the way back, rather than remember what is in them: half the memory
    /// or less, a third more time. Default: false.
    pub gradient_checkpointing: bool,
    /// Ours: what becomes of the run when a loss or a gradient is infinite or not a number; the step is left out in any case.
    /// `stop`: it ends. `skip`: it goes on. `lower_scale`, with `fp16` only: it goes on until the scale of losses is below
    /// 1. Default: `lower_scale` with `fp16`, else `stop`.
    pub on_nan: Option<OnNan>,
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
    /// Multiply `lr` by the pictures of an optimizer step to the power of 0.55, as EveryDream2 had it in 2023. Default:
    /// false.
    pub scale_lr: bool,
    /// How the learning rate goes: `constant`, `linear`, `cosine` or `polynomial`; `optimizer.json` goes before it.
    /// Default: `constant`.
    pub lr_scheduler: Option<Shape>,
    /// Batches until a schedule has come down. Default, also with 0: one and a half times those of the run.
    pub lr_decay_steps: Option<u64>,
    /// Batches until a schedule has risen to the learning rate. Default: a fiftieth of `lr_decay_steps`.
    pub lr_warmup_steps: Option<u64>,
    /// The largest norm of each network's gradients in one step; `optimizer.json` goes before it. Default: any.
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
    /// Start the running means from this checkpoint, a single file or a diffusers folder. Default: from the base.
    pub ema_resume_model: Option<PathBuf>,
    /// Sample the trained networks, also where there are running means. Default: only if `ema_sample_ema_model` is false.
    pub ema_sample_nonema_model: Option<bool>,
    /// Sample the running means. Default: false.
    pub ema_sample_ema_model: Option<bool>,
    /// Which pictures are sampled while training: a `.txt` file with a prompt a line, or a `.json` file; read again before
    /// each round. Default: none.
    pub sample_prompts: Option<PathBuf>,
    /// Batches between two rounds of samples. Default: 250.
    pub sample_steps: u64,
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
    /// How many of a hundred pictures are still there in the last epoch, as EveryDream2 understands it in spite of the name.
    /// Default: 50.
    pub rated_dataset_target_dropout_percent: f64,
    /// How an error becomes a loss: `mse`, `huber`, `mse_huber` or `huber_mse`. Default: `mse`; with `compat` `ed2-head`
    /// `mse_huber`, as there.
    pub loss_type: Option<LossType>,
    /// Ours: what the UNet predicts, `epsilon` or `v_prediction`. Default: what the base checkpoint says of itself, or else
    /// `epsilon`.
    pub prediction_type: Option<Prediction>,
    /// The largest signal-to-noise ratio that counts in a loss's weight (5 as a rule). Default: all weigh the same.
    pub min_snr_gamma: Option<f64>,
    /// The least noisy timestep that is trained, 0 to 999. Default: 0.
    pub timestep_start: i64,
    /// The first timestep that is too noisy, 1 to 1000. Default: 1000.
    pub timestep_end: i64,
    /// Offset noise: so much of one random number for each picture and channel is added to the noise. Default: 0; with the
    /// `compat` modes of EveryDream2 0.02, as there.
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
    /// No checkpoint before this epoch, but for the last. Default: 0.
    pub save_ckpts_from_n_epochs: u64,
    /// A checkpoint whenever the last is so many minutes old, too: which ones there are is up to the clock, what is in
    /// them is not. Default: none; with the `compat` modes of EveryDream2 20 where `save_every_n_epochs` is not said either,
    /// as there.
    pub ckpt_every_n_minutes: Option<f64>,
    /// Keep the training state when the run is done. Default: false.
    pub save_optimizer: bool,
    /// No single-file checkpoints: diffusers folders only. Default: false.
    pub no_save_ckpt: bool,
    /// Ours: diffusers folders, beside single files or in their place. Default: that of `no_save_ckpt`. (EveryDream2
    /// always writes them.)
    pub save_diffusers: Option<bool>,
    /// Do not put `last-` before the name of the last checkpoint. Default: false.
    pub no_prepend_last: bool,
    /// The folder of TensorBoard's event files, in which each run has its own. Default: `logs` in the output folder.
    pub logdir: Option<PathBuf>,
    /// Batches between two entries of TensorBoard's event file. Default: 25.
    pub log_step: u64,
    /// Checkpoints with 32 bits a weight in place of 16. Default: false.
    pub save_full_precision: bool,
    /// Write `ep<N>_batch_schedule.txt` for each epoch: a line a picture, with step, size and what of the batch is repeated.
    /// Default: false.
    pub write_schedule: bool,
    /// Ours: save the training state after each so many batches, beside every checkpoint. Default: not.
    pub state_every_n_steps: Option<u64>,
    /// Ours: save the training state after each so many minutes. Default: 20.
    pub state_every_n_minutes: Option<f64>,
    /// Ours: where what the VAE makes of pictures, and a frozen text encoder of captions, is kept: on `disk` for other runs
    /// too, in `memory`, or nowhere (`off`). It changes no result. Crops that are new in each epoch are not kept. Default:
    /// `disk`.
    pub cache: Option<CacheMode>,
    /// Ours: the folder of the cache; several runs may share one. Default: `vodka-cache` beside `output`.
    pub cache_dir: Option<PathBuf>,
    /// Ours: the most that the cache may hold, in 10^9 bytes; what was not used for longest goes. Default: 50.
    pub cache_size_gb: f64,
    /// Ours: threads that decode pictures ahead of the step. It changes no result. Default: as many as there are cores, at
    /// most 8.
    pub data_threads: Option<usize>,
    /// Ours: how many training states are kept, at least 1. Default: 2.
    pub keep_states: usize,
    /// Leave the text encoder as it is. Default: false.
    pub disable_textenc_training: bool,
    /// Leave the UNet as it is. Default: false.
    pub disable_unet_training: bool,
    /// Not a key: what is to be told of the keys that were read.
    #[serde(skip)]
    pub notices: Vec<Notice>,
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
    #[expect(clippy::too_many_lines, reason = "a line for each key")]
    fn default() -> Self {
        Self {
            data_root: DataRoot::default(),
            caption_root: None,
            resume_ckpt: None,
            output: None,
            save_ckpt_dir: None,
            project_name: None,
            run_name: None,
            device: None,
            gpuid: None,
            lowvram: false,
            threads: None,
            allow: Vec::new(),
            precision: None,
            disable_amp: None,
            vae_precision: None,
            tf32: true,
            deterministic: false,
            cuda_graphs: true,
            gradient_checkpointing: false,
            on_nan: None,
            resolution: 512,
            batch_size: 2,
            grad_accum: 1,
            max_epochs: 300,
            lr: None,
            scale_lr: false,
            lr_scheduler: None,
            lr_decay_steps: None,
            lr_warmup_steps: None,
            clip_grad_norm: None,
            optimizer_config: None,
            ema_decay_rate: None,
            ema_strength_target: None,
            ema_update_interval: 500,
            ema_device: "cpu".to_owned(),
            ema_resume_model: None,
            ema_sample_nonema_model: None,
            ema_sample_ema_model: None,
            sample_prompts: None,
            sample_steps: 250,
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
            loss_type: None,
            prediction_type: None,
            min_snr_gamma: None,
            timestep_start: 0,
            timestep_end: 1000,
            zero_frequency_noise_ratio: None,
            pyramid_noise_discount: None,
            enable_zero_terminal_snr: None,
            embedding_perturbation: None,
            save_every_n_epochs: None,
            save_ckpts_from_n_epochs: 0,
            ckpt_every_n_minutes: None,
            save_optimizer: false,
            no_save_ckpt: false,
            save_diffusers: None,
            no_prepend_last: false,
            logdir: None,
            log_step: 25,
            save_full_precision: false,
            write_schedule: false,
            state_every_n_steps: None,
            state_every_n_minutes: Some(20.0),
            cache: None,
            cache_dir: None,
            cache_size_gb: 50.0,
            data_threads: None,
            keep_states: 2,
            disable_textenc_training: false,
            disable_unet_training: false,
            notices: Vec::new(),
            optimizer: None,
            runtime_dir: ".runtime".into(),
            start_over: false,
        }
    }
}

const OFF: &[Neutral] = &[Bool(false), Null];
const ABSENT: &[Neutral] = &[Null];

/// EveryDream2's keys for which there is nothing to do, or nothing will be done. Sources: victorchall/EveryDream2trainer,
/// `train.py` and `train.json` at 5098db8 (2025-05) and 974d3fa (2023-04).
const IDLE: &[Idle] = &[
    ("amp", ABSENT, Told("deprecated in EveryDream2 too, where only `disable_amp` decides")),
    ("useadam8bit", OFF, Told("the optimizer is said in optimizer.json; `adamw8bit` is the default")),
    ("ed1_mode", OFF, Told("gone from EveryDream2 since 2023-01: attention is as the base model has it")),
    ("disable_xformers", ABSENT, Told("there is no xformers: attention is libtorch's own")),
    ("notebook", OFF, Told("progress is shown alike everywhere")),
    // All three add noise alike.
    (
        "train_sampler",
        &[Text("ddpm"), Text("pndm"), Text("ddim"), Null],
        Refused("expected `ddpm`, `pndm` or `ddim`, which add noise alike"),
    ),
    ("attn_type", &[Text("sdp"), Null], Told("attention is always `sdp`, which computes the same")),
    (
        "wandb",
        OFF,
        Refused("there is no Weights & Biases; its lines are in the TensorBoard files and the log"),
    ),
    ("plugins", ABSENT, Refused("plugins of EveryDream2 are Python")),
    (
        "load_settings_every_epoch",
        OFF,
        Refused("a run keeps the settings it began with; interrupt it and start another from its checkpoint"),
    ),
];

impl TrainConfig {
    /// Reads a `train.json`. What is wrong in it is told with line, column and the nearest known key.
    ///
    /// Other configuration files that it names are relative to the current folder, as in EveryDream2; one that is not there
    /// is looked for beside it.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let (mut config, vocabulary) = (Self::default(), Self::vocabulary());
        read_json(path.as_ref(), vocabulary.fields_of(&mut config))?;
        config.notices = vocabulary.notices();
        let folder = path.as_ref().parent().unwrap_or(Path::new(""));
        let named = [&mut config.optimizer_config, &mut config.validation_config];
        for file in named.into_iter().flatten().filter(|file| !file.exists()) {
            let beside = folder.join(&*file);
            if beside.exists() {
                *file = beside;
            }
        }
        Ok(config)
    }

    /// Reads the keys from within another configuration, a recipe say, by the same rules (for
    /// `#[serde(deserialize_with)]`).
    pub fn from_keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (mut config, vocabulary) = (Self::default(), Self::vocabulary());
        vocabulary.fields_of(&mut config).deserialize(deserializer)?;
        config.notices = vocabulary.notices();
        Ok(config)
    }

    /// Sets one key, as if the file said so.
    pub fn set(&mut self, key: &str, value: Value) -> Result<()> {
        let vocabulary = Self::vocabulary();
        // What was said before counts no longer.
        self.notices.retain(|notice| notice.key != key);
        if vocabulary.admits(key, &value)? {
            let before = self.clone();
            vocabulary.set(self, key, value)?;
            // What is no key does not survive the way through JSON.
            self.notices = before.notices;
            self.optimizer = before.optimizer;
            self.runtime_dir = before.runtime_dir;
            self.start_over = before.start_over;
        }
        self.notices.extend(vocabulary.notices());
        Ok(())
    }

    fn vocabulary() -> Vocabulary {
        Vocabulary::of::<Self>(IDLE)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use vodka_stage::explain;

    use super::*;

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
        let text = r#"{"wandb": false, "ema_decay_rate": null, "attn_type": "sdp", "train_sampler": "ddim"}"#;
        assert_eq!(read(text).unwrap(), TrainConfig::default());
    }

    #[test]
    fn other_values_of_unsupported_keys_are_named() {
        assert_eq!(
            said("{\n  \"plugins\": [\"p\"]\n}"),
            "`plugins` is not supported: plugins of EveryDream2 are Python (found [\"p\"]) at line 3 column 1"
        );
        assert!(said(r#"{"wandb": true}"#).starts_with("`wandb` is not supported: there is no Weights"));
        assert!(said(r#"{"load_settings_every_epoch": true}"#).contains("a run keeps the settings"));
        assert!(said(r#"{"train_sampler": "euler"}"#).contains("expected `ddpm`, `pndm` or `ddim`"));
    }

    #[test]
    fn keys_that_do_nothing_are_told_of() {
        let text = r#"{"amp": false, "useadam8bit": true, "ed1_mode": true, "disable_xformers": false,
            "notebook": true, "attn_type": "xformers", "seed": 1}"#;
        let mut config = read(text).unwrap();
        let keys: Vec<_> = config.notices.iter().map(|notice| notice.key.as_str()).collect();
        assert_eq!(keys, ["amp", "useadam8bit", "ed1_mode", "disable_xformers", "notebook", "attn_type"]);
        assert_eq!(
            config.notices[0].to_string(),
            "`amp` (false): deprecated in EveryDream2 too, where only `disable_amp` decides"
        );
        config.set("attn_type", json!("sdp")).unwrap();
        config.set("seed", json!(2)).unwrap();
        config.set("notebook", json!(false)).unwrap();
        assert_eq!((config.notices.len(), config.seed), (4, 2));
    }

    #[test]
    fn null_is_the_default() {
        let text = r#"{"ema_update_interval": null, "ema_device": null, "cond_dropout": null, "sample_prompts": null}"#;
        assert_eq!(read(text).unwrap(), TrainConfig::default());
        let mut config = read(r#"{"max_epochs": 3, "optimizer_config": "o.json"}"#).unwrap();
        config.set("max_epochs", json!(null)).unwrap();
        config.set("optimizer_config", json!(null)).unwrap();
        assert_eq!(config, TrainConfig::default());
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
        assert!(wrong.contains("expected a whole number from 0 at line 2 column 1"), "{wrong}");
        assert!(said(r#"{"seed": 1, "seed": 2}"#).starts_with("the key `seed` is there twice at line 1"));
    }

    #[test]
    fn single_keys_are_set_by_the_same_rules() {
        let mut config = TrainConfig::default();
        config.set("max_epochs", json!(4)).unwrap();
        config.set("wandb", json!(false)).unwrap();
        assert_eq!(config.max_epochs, 4);
        assert!(config.set("wandb", json!(true)).unwrap_err().to_string().contains("is not supported"));
        assert!(config.set("max_epoch", json!(4)).unwrap_err().to_string().contains("`max_epochs`"));
        assert!(config.set("max_epochs", json!(-1)).is_err());
    }
}
