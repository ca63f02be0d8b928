//! From what the user wrote to what will be done.

use std::path::{Path, PathBuf};

use serde::Serialize;
use vodka_checkpoint::Precision;
use vodka_images::is_image;
use vodka_sd15::{check_device_name, device_type};
use vodka_stage::{RunKey, RunRecord, record_path};

use crate::{
    Compat, Error, OptimizerConfig, Result, TrainConfig,
    ema::{EmaSettings, EmaStrength},
    geometry::CropRule,
    items::Item,
    optimizer::{MainRates, PartSettings},
    state,
    target::LossType,
    validation::ValidationConfig,
};

/// A checked training configuration.
#[derive(Debug, Clone, Serialize)]
pub struct TrainPlan {
    /// Folder with the pictures.
    pub data_root: PathBuf,
    /// Folder with the captions, laid out like `data_root`.
    pub caption_root: PathBuf,
    /// The checkpoint to start from.
    pub base: PathBuf,
    /// Folder for checkpoints, `losses.csv` and the training state.
    pub output: PathBuf,
    /// `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Threads of the processor; `None` leaves it to libtorch.
    pub threads: Option<usize>,
    /// The folder of the native libraries.
    pub runtime_dir: PathBuf,
    /// Ignore a saved state.
    pub start_over: bool,
    /// Save the state after each so many batches, beside every end of an epoch.
    pub state_every_n_steps: Option<u64>,
    /// All else that the weights depend on.
    pub settings: Settings,
}

/// The settings that the outputs of a training run depend on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// What checkpoint names begin with.
    pub name: String,
    /// Random seed.
    pub seed: u64,
    /// Class resolution in pixels.
    pub resolution: u32,
    /// Pictures in a batch.
    pub batch_size: usize,
    /// Batches to an optimizer step.
    pub grad_accum: usize,
    /// How often every picture is trained on.
    pub max_epochs: u64,
    /// Epochs between checkpoints; `None` saves after the last epoch only.
    pub save_every_n_epochs: Option<u64>,
    /// The element type of the checkpoints.
    pub precision: Precision,
    /// The text encoder's layer, counted from the last, which is 1.
    pub clip_skip: i64,
    /// Whose behaviour the run has.
    pub compat: Compat,
    /// How pictures are cut.
    pub crops: CropRule,
    /// Probability of replacing a caption with a single space, where the picture's files say no other.
    pub cond_dropout: f64,
    /// Probability of flipping a picture, where its files say no other.
    pub flip_p: f64,
    /// Shuffle the tags of all captions.
    pub shuffle_tags: bool,
    /// How many tags of a caption stay where they are.
    pub keep_tags: usize,
    /// The share of the pictures that is left out in the end, the worst rated first.
    pub left_out: f64,
    /// How an error becomes a loss.
    pub loss_type: LossType,
    /// The largest signal-to-noise ratio that counts in a loss's weight; `None`: all weigh the same.
    pub min_snr_gamma: Option<f64>,
    /// The timesteps that are trained: from the first to before the second.
    pub timesteps: (i64, i64),
    /// How much of one random number for each picture and channel is added to the noise.
    pub offset_noise: f64,
    /// What each level of pyramid noise weighs to the finer one; `None`: only the finest is there.
    pub pyramid_noise_discount: Option<f64>,
    /// Nothing but noise at the last timestep.
    pub zero_terminal_snr: bool,
    /// The standard deviation of what is added to the text encoder's output, times the square root of its channels.
    pub embedding_perturbation: f64,
    /// The largest norm of a network's gradients in one step; longer ones are shrunk to it. `None`: any.
    pub clip_grad_norm: Option<f64>,
    /// Running means of the weights; `None`: none.
    pub ema: Option<EmaSettings>,
    /// How it is validated; `None`: not.
    pub validation: Option<ValidationConfig>,
    /// How the UNet is trained; `None` leaves it as it is.
    pub unet: Option<PartSettings>,
    /// How the text encoder is trained; `None` leaves it as it is.
    pub text_encoder: Option<PartSettings>,
}

impl TrainConfig {
    /// Checks the configuration by itself: data and base checkpoint may be made by a stage before this one.
    ///
    /// A seed of -1 becomes that of the run whose state or record is in the output folder, so that it goes on, or
    /// else a random one.
    pub fn plan(&self) -> Result<TrainPlan> {
        self.check()?;
        let missing = |key, meaning| Error::MissingKey { key, meaning };
        if self.data_root.as_os_str().is_empty() {
            return Err(missing("data_root", "the folder with the pictures"));
        }
        let base = self.resume_ckpt.clone();
        let output = self.output.as_ref().or(self.save_ckpt_dir.as_ref()).cloned();
        let output = output.ok_or(missing("output", "the folder for checkpoints"))?;
        Ok(TrainPlan {
            data_root: self.data_root.clone(),
            caption_root: self.caption_root.clone().unwrap_or_else(|| self.data_root.clone()),
            base: base.ok_or(missing("resume_ckpt", "the checkpoint to start from"))?,
            device: self.device.clone(),
            threads: self.threads,
            runtime_dir: self.runtime_dir.clone(),
            start_over: self.start_over,
            state_every_n_steps: self.state_every_n_steps,
            settings: self.settings(&output)?,
            output,
        })
    }

    fn settings(&self, output: &Path) -> Result<Settings> {
        let from_file = || self.optimizer_config.as_ref().map(OptimizerConfig::read).transpose();
        let optimizer = self.optimizer.clone().map_or_else(from_file, |optimizer| Ok(Some(optimizer)))?;
        let main = MainRates {
            lr: self.lr,
            lr_scheduler: self.lr_scheduler,
            lr_warmup_steps: self.lr_warmup_steps,
            lr_decay_steps: self.lr_decay_steps,
        };
        let (unet, text_encoder) = optimizer.unwrap_or_default().resolve(&main)?;
        let validation = self.validation_config.as_ref().map(ValidationConfig::read).transpose()?;
        let validation = validation.filter(|validation| validation.validate_training);
        let name = self.project_name.as_ref().or(self.run_name.as_ref());
        Ok(Settings {
            name: name.map_or("vodka", String::as_str).to_owned(),
            seed: u64::try_from(self.seed).unwrap_or_else(|_| self.draw_seed(output)),
            resolution: self.resolution,
            batch_size: self.batch_size,
            grad_accum: self.grad_accum,
            max_epochs: self.max_epochs,
            save_every_n_epochs: self.save_every_n_epochs,
            precision: if self.save_full_precision { Precision::F32 } else { Precision::F16 },
            clip_skip: self.clip_skip.max(1),
            compat: self.compat,
            crops: self.compat.crops(self.crop_variants),
            cond_dropout: self.cond_dropout,
            flip_p: if self.compat.obeys_flip_p() { self.flip_p } else { 0.0 },
            shuffle_tags: self.shuffle_tags,
            keep_tags: if self.compat.obeys_keep_tags() { self.keep_tags } else { 0 },
            left_out: self.left_out(),
            loss_type: self.loss_type,
            min_snr_gamma: self.min_snr_gamma,
            timesteps: (self.timestep_start, self.timestep_end),
            offset_noise: self.zero_frequency_noise_ratio.unwrap_or(0.0).max(0.0),
            pyramid_noise_discount: self.pyramid_noise_discount.filter(|discount| *discount > 0.0),
            zero_terminal_snr: self.enable_zero_terminal_snr.unwrap_or(false),
            embedding_perturbation: self.embedding_perturbation.unwrap_or(0.0),
            clip_grad_norm: self.clip_grad_norm,
            ema: self.ema(),
            validation,
            unet: (!self.disable_unet_training).then_some(unet),
            text_encoder: (!self.disable_textenc_training).then_some(text_encoder),
        })
    }

    fn draw_seed(&self, output: &Path) -> u64 {
        let in_state = || state::seed(output);
        let in_record = || RunRecord::read(&record_path(output)).ok()?.seed;
        let before = if self.start_over { None } else { in_state().or_else(in_record) };
        // As many bits as EveryDream2 draws.
        before.unwrap_or_else(|| u64::from(rand::random::<u32>() >> 2))
    }

    fn check(&self) -> Result<()> {
        check_device_name(&self.device)?;
        let within = |key, value: String, good: bool, expected| match good {
            true => Ok(()),
            false => Err(Error::OutOfRange { key, value, expected }),
        };
        let resolution = self.resolution;
        let good = resolution.is_multiple_of(64) && (64..=2048).contains(&resolution);
        within("resolution", resolution.to_string(), good, "a multiple of 64 from 64 to 2048")?;
        within("batch_size", self.batch_size.to_string(), self.batch_size > 0, "at least 1")?;
        within("grad_accum", self.grad_accum.to_string(), self.grad_accum > 0, "at least 1")?;
        within("max_epochs", self.max_epochs.to_string(), self.max_epochs > 0, "at least 1")?;
        let (threads, good) =
            (self.threads.unwrap_or(1), self.threads.is_none_or(|n| (1..=1024).contains(&n)));
        within("threads", threads.to_string(), good, "1 to 1024, or null")?;
        let every = self.save_every_n_epochs;
        within("save_every_n_epochs", "0".into(), every != Some(0), "at least 1, or null")?;
        within(
            "state_every_n_steps",
            "0".into(),
            self.state_every_n_steps != Some(0),
            "at least 1, or null",
        )?;
        within("seed", self.seed.to_string(), self.seed >= -1, "-1 (random), or 0 and above")?;
        within("clip_skip", self.clip_skip.to_string(), (0..=4).contains(&self.clip_skip), "0 to 4")?;
        let crops = self.crop_variants;
        within("crop_variants", crops.to_string(), (1..=64).contains(&crops), "1 to 64")?;
        let dropout = self.cond_dropout;
        within("cond_dropout", dropout.to_string(), (0.0..=1.0).contains(&dropout), "0.0 to 1.0")?;
        let flip_p = self.flip_p;
        within("flip_p", flip_p.to_string(), (0.0..=1.0).contains(&flip_p), "0.0 to 1.0")?;
        let (key, percent) =
            ("rated_dataset_target_dropout_percent", self.rated_dataset_target_dropout_percent);
        within(key, percent.to_string(), (0.0..100.0).contains(&percent), "0 to below 100")?;
        self.check_noise()?;
        self.check_ema()?;
        let clip = self.clip_grad_norm.unwrap_or(1.0);
        let good = clip.is_finite() && clip > 0.0;
        within("clip_grad_norm", clip.to_string(), good, "a number above 0, or null")?;
        for (key, name) in [("project_name", &self.project_name), ("run_name", &self.run_name)] {
            let name = name.clone().unwrap_or("x".into());
            let good = !name.is_empty() && !name.contains(['/', '\\', '\0']);
            within(key, format!("{name:?}"), good, "a name without slashes")?;
        }
        match self.disable_unet_training && self.disable_textenc_training {
            true => Err(Error::NothingToTrain),
            false => Ok(()),
        }
    }
}

impl TrainConfig {
    /// The share of the pictures that is left out in the end.
    fn left_out(&self) -> f64 {
        if self.rated_dataset { self.rated_dataset_target_dropout_percent / 100.0 } else { 0.0 }
    }

    fn ema(&self) -> Option<EmaSettings> {
        let target = self.ema_strength_target.map(EmaStrength::Target);
        let strength = target.or(self.ema_decay_rate.map(EmaStrength::Decay))?;
        Some(EmaSettings {
            strength,
            interval: self.ema_update_interval,
            warm_up: self.compat.warms_up_ema(),
            on_processor: self.ema_device == "cpu",
        })
    }

    fn check_ema(&self) -> Result<()> {
        let within = |key, value: String, good: bool, expected| match good {
            true => Ok(()),
            false => Err(Error::OutOfRange { key, value, expected }),
        };
        for (key, share) in
            [("ema_decay_rate", self.ema_decay_rate), ("ema_strength_target", self.ema_strength_target)]
        {
            let share = share.unwrap_or(0.5);
            within(key, share.to_string(), share > 0.0 && share < 1.0, "above 0 and below 1, or null")?;
        }
        let interval = self.ema_update_interval;
        within("ema_update_interval", interval.to_string(), interval > 0, "at least 1")?;
        let device = &self.ema_device;
        within(
            "ema_device",
            format!("{device:?}"),
            ["cpu", "cuda"].contains(&device.as_str()),
            "`cpu` or `cuda`",
        )
    }

    fn check_noise(&self) -> Result<()> {
        let within = |key, value: f64, good: bool, expected| match good {
            true => Ok(()),
            false => Err(Error::OutOfRange { key, value: value.to_string(), expected }),
        };
        let gamma = self.min_snr_gamma.unwrap_or(5.0);
        within("min_snr_gamma", gamma, gamma.is_finite() && gamma > 0.0, "a number above 0, or null")?;
        let (start, end) = (self.timestep_start, self.timestep_end);
        within("timestep_start", start as f64, (0..end).contains(&start), "0 to below `timestep_end`")?;
        within("timestep_end", end as f64, (1..=1000).contains(&end), "1 to 1000")?;
        let ratio = self.zero_frequency_noise_ratio.unwrap_or(0.0);
        within("zero_frequency_noise_ratio", ratio, ratio.is_finite() && ratio <= 1.0, "at most 1")?;
        let discount = self.pyramid_noise_discount.unwrap_or(0.0);
        within("pyramid_noise_discount", discount, (0.0..=1.0).contains(&discount), "0 to 1")?;
        let perturbation = self.embedding_perturbation.unwrap_or(0.0);
        let good = perturbation.is_finite() && perturbation >= 0.0;
        within("embedding_perturbation", perturbation, good, "a number from 0")
    }
}

impl TrainPlan {
    /// What the outputs depend on: the settings, and what base checkpoint, pictures and captions hold.
    pub fn key(&self) -> Result<RunKey> {
        let says_something = |path: &Path| {
            path.extension()
                .is_some_and(|e| ["txt", "caption", "yml", "yaml"].iter().any(|known| e == *known))
        };
        let mut settings = serde_json::to_value(&self.settings).expect("settings are plain data");
        settings["device"] = device_type(&self.device).into();
        let key = RunKey::new("train", &settings, Some(self.settings.seed))
            .input("checkpoint", &self.base, |_| true)?
            .input("images", &self.data_root, is_image)?
            .input("captions", &self.caption_root, says_something)?;
        let mut key = match self.caption_root == self.data_root {
            true => key,
            // The files of folders are obeyed where the pictures are.
            false => key.input("options", &self.data_root, says_something)?,
        };
        for (name, root) in self.settings.validation.iter().flat_map(ValidationConfig::folders) {
            let data = |path: &Path| is_image(path) || says_something(path);
            key = key.input(&format!("validation/{name}"), root, data)?;
        }
        Ok(key)
    }
}

impl Settings {
    /// The probability of flipping a picture.
    pub(crate) fn flip_p_of(&self, item: &Item) -> f64 {
        item.flip_p.unwrap_or(self.flip_p)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(changes: serde_json::Value) -> TrainConfig {
        let mut config = TrainConfig {
            data_root: "pictures".into(),
            resume_ckpt: Some("base.safetensors".into()),
            output: Some("nowhere/out".into()),
            lr: Some(1e-6),
            ..TrainConfig::default()
        };
        for (key, value) in changes.as_object().unwrap() {
            config.set(key, value.clone()).unwrap();
        }
        config
    }

    fn said(changes: serde_json::Value) -> String {
        config(changes).plan().unwrap_err().to_string()
    }

    #[test]
    fn a_plan_has_everything_resolved() {
        let plan = config(json!({"clip_skip": 0, "run_name": "v3", "disable_textenc_training": true}))
            .plan()
            .unwrap();
        assert_eq!(plan.caption_root, Path::new("pictures"));
        let settings = plan.settings;
        assert_eq!((settings.clip_skip, settings.name.as_str(), settings.seed), (1, "v3", 555));
        assert_eq!(settings.unet.unwrap().optimizer.lr, 1e-6);
        assert_eq!(settings.text_encoder, None);
    }

    #[test]
    fn a_random_seed_is_drawn_in_the_plan() {
        let plan = config(json!({"seed": -1})).plan().unwrap();
        assert!(plan.settings.seed < 1 << 30);
        let other = config(json!({"seed": -1})).plan().unwrap();
        assert_ne!(plan.settings.seed, other.settings.seed, "one chance in a thousand million");
    }

    #[test]
    fn what_cannot_be_is_named() {
        assert_eq!(said(json!({"data_root": ""})), "`data_root` is missing: the folder with the pictures");
        assert_eq!(said(json!({"output": null})), "`output` is missing: the folder for checkpoints");
        assert_eq!(
            said(json!({"resume_ckpt": null})),
            "`resume_ckpt` is missing: the checkpoint to start from"
        );
        assert_eq!(
            said(json!({"resolution": 500})),
            "`resolution` is 500, expected a multiple of 64 from 64 to 2048"
        );
        assert_eq!(said(json!({"batch_size": 0})), "`batch_size` is 0, expected at least 1");
        assert_eq!(said(json!({"clip_skip": 5})), "`clip_skip` is 5, expected 0 to 4");
        assert_eq!(said(json!({"cond_dropout": 1.5})), "`cond_dropout` is 1.5, expected 0.0 to 1.0");
        assert_eq!(
            said(json!({"project_name": "a/b"})),
            "`project_name` is \"a/b\", expected a name without slashes"
        );
        assert!(
            said(json!({"disable_unet_training": true, "disable_textenc_training": true}))
                .starts_with("nothing to train")
        );
    }
}
