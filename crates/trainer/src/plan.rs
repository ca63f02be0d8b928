//! From what the user wrote to what will be done.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use serde::Serialize;
use vodka_checkpoint::{Precision, Prediction};
use vodka_images::is_image;
use vodka_sd15::{check_device_name, device_type};
use vodka_stage::{ContentHash, Hasher, Interrupt, RunKey, RunRecord, hash_bytes, hash_file, record_path};
use walkdir::{DirEntry, WalkDir};

use crate::{
    Arithmetic, CacheMode, Compat, DataRoot, Error, Flaw, Freezing, Notice, OnNan, OptimizerConfig, Result,
    TrainConfig, UnetFreezing,
    arithmetic::ArithmeticSettings,
    ema::{EmaSettings, EmaStrength},
    geometry::{CropRule, Cropping},
    items::items,
    optimizer::{MainRates, PartSettings, Resolved},
    samples::SampleFile,
    state,
    target::LossType,
    validation::ValidationConfig,
    zips,
};

const MINUTES_MAX: f64 = 5_256_000.0;

/// A checked training configuration.
#[derive(Debug, Clone, Serialize)]
pub struct TrainPlan {
    /// Where the pictures are.
    pub data_root: DataRoot,
    /// Folder with the captions, laid out like that with the pictures; `None`: that folder.
    pub caption_root: Option<PathBuf>,
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
    /// Save the state after each so many batches, beside every checkpoint.
    pub state_every_n_steps: Option<u64>,
    /// What may be wrong with pictures; they are left out then.
    pub allow: Vec<Flaw>,
    /// Log the norms of gradients.
    pub log_grad_norm: bool,
    /// Write a file for each epoch that says which pictures are in which batch.
    pub write_schedule: bool,
    /// Where the running means start from; `None`: from the base checkpoint.
    pub ema_base: Option<PathBuf>,
    /// What is to be told of keys that do nothing, or not what they say.
    pub notices: Vec<Notice>,
    /// Save the state after each so many minutes.
    pub state_every_n_minutes: Option<f64>,
    /// How many states are kept.
    pub keep_states: usize,
    /// Where what frozen networks make is kept.
    pub cache: CachePlan,
    /// Threads that decode pictures.
    pub data_threads: usize,
    /// Save a checkpoint when the last is so many minutes old, too.
    pub ckpt_every_n_minutes: Option<f64>,
    /// Which pictures are sampled while training.
    pub sample_prompts: Option<PathBuf>,
    /// Batches between two rounds of samples, where the file says nothing else.
    pub sample_steps: u64,
    /// Sample the networks, also where the running means are.
    pub ema_sample_nonema_model: bool,
    /// Sample the running means.
    pub ema_sample_ema_model: bool,
    /// Keep the training state when the run is done.
    pub save_optimizer: bool,
    /// The folder of event files; `None`: in the output folder.
    pub logdir: Option<PathBuf>,
    /// Batches between two entries of the event file.
    pub log_step: u64,
    /// What becomes of the run when something is not finite.
    pub on_nan: OnNan,
    /// Batches between two looks at losses: on a GPU each of them waits for what it does.
    pub read_every_n_steps: u64,
    /// Whether a GPU repeats what it did for a batch of the same size.
    pub cuda_graphs: bool,
    /// All else that the weights depend on.
    pub settings: Settings,
}

/// Where what frozen networks make is kept.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CachePlan {
    /// How.
    pub mode: CacheMode,
    /// The folder, for [`CacheMode::Disk`].
    pub dir: PathBuf,
    /// The most it may hold there.
    pub limit_bytes: u64,
}

impl CachePlan {
    /// The folder, where one is used.
    pub(crate) fn folder(&self) -> Option<&Path> {
        (self.mode == CacheMode::Disk).then_some(self.dir.as_path())
    }
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
    /// The first epoch with a checkpoint, but for the last.
    pub save_ckpts_from_n_epochs: u64,
    /// Write single files.
    pub save_ckpt: bool,
    /// Write diffusers folders.
    pub save_diffusers: bool,
    /// Begin the name of the last checkpoint with `last-`.
    pub prepend_last: bool,
    /// The element type of the checkpoints.
    pub precision: Precision,
    /// How the networks are computed.
    pub arithmetic: ArithmeticSettings,
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
    /// What the UNet predicts; `None`: what the base checkpoint says.
    pub prediction_type: Option<Prediction>,
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
    /// The largest norm of a network's gradients in one step, where its own settings say no other; longer ones are shrunk to it.
    /// `None`: any.
    pub clip_grad_norm: Option<f64>,
    /// Running means of the weights; `None`: none.
    pub ema: Option<EmaSettings>,
    /// How it is validated; `None`: not.
    pub validation: Option<ValidationConfig>,
    /// How the UNet is trained; `None` leaves it as it is.
    pub unet: Option<PartSettings>,
    /// How the text encoder is trained; `None` leaves it as it is.
    pub text_encoder: Option<PartSettings>,
    /// Which parts of the text encoder stay as they are even so.
    pub text_encoder_freezing: Freezing,
    /// Which parts of the UNet stay as they are even so.
    #[serde(skip_serializing_if = "UnetFreezing::is_empty")]
    pub unet_freezing: UnetFreezing,
    /// In fp16: whether the gradient scaler changes its pace at certain steps, as EveryDream2's does.
    pub scaler_tweaks: bool,
}

impl TrainConfig {
    /// Checks the configuration by itself: data and base checkpoint may be made by a stage before this one.
    ///
    /// A seed of -1 becomes that of the run whose state or record is in the output folder, so that it goes on, or
    /// else a random one.
    pub fn plan(&self) -> Result<TrainPlan> {
        self.check()?;
        let mut notices = self.notices.clone();
        self.carried_out(&mut notices)?.planned(notices)
    }

    /// The configuration with what some of its keys do to others done.
    fn carried_out(&self, notices: &mut Vec<Notice>) -> Result<Self> {
        let mut config = self.clone();
        if self.lowvram {
            let mut limit = |key: &str, value: &mut u64, most: u64| {
                if *value > most {
                    notices.push(Notice::new(key, *value, format!("{most} because of `lowvram`")));
                    *value = most;
                }
            };
            let (mut batch, mut accum) = (self.batch_size as u64, self.grad_accum as u64);
            let mut resolution = u64::from(self.resolution);
            if batch > 2 {
                limit("batch_size", &mut batch, 2);
                limit("grad_accum", &mut accum, 1);
            }
            limit("resolution", &mut resolution, 512);
            config.batch_size = batch as usize;
            config.grad_accum = accum as usize;
            config.resolution = resolution as u32;
        }
        if self.scale_lr {
            let missing =
                Error::MissingKey { key: "lr", meaning: "the learning rate that `scale_lr` scales" };
            let lr = self.lr.ok_or(missing)?;
            let scaled = lr * ((config.batch_size * config.grad_accum) as f64).powf(0.55);
            notices.push(Notice::new("lr", lr, format!("{scaled} because of `scale_lr`")));
            config.lr = Some(scaled);
        }
        let gpu = self.gpuid.unwrap_or(0);
        match config.device.as_deref() {
            None if gpu > 0 => config.device = Some(format!("cuda:{gpu}")),
            Some("cuda") if self.gpuid.is_some() => config.device = Some(format!("cuda:{gpu}")),
            None if self.gpuid == Some(0) => {
                notices.push(Notice::new(
                    "gpuid",
                    0,
                    "the first GPU is used with `device` `cuda` only; this run is on the processor",
                ));
            }
            Some(device) if self.gpuid.is_some_and(|_| device != format!("cuda:{gpu}")) => {
                notices.push(Notice::new("gpuid", gpu, format!("`device` says {device}")));
            }
            _ => {}
        }
        self.told_of_compat(notices);
        Ok(config)
    }

    /// Keys that do nothing in this mode, or with the others as they are.
    fn told_of_compat(&self, notices: &mut Vec<Notice>) {
        let mut tell = |told: bool, key: &str, value: serde_json::Value, why: &str| {
            if told {
                notices.push(Notice::new(key, value, why));
            }
        };
        let (compat, everydream2) = (self.compat, self.compat != Compat::Vodka);
        let flips = self.flip_p > 0.0 && !compat.obeys_flip_p();
        tell(
            flips,
            "flip_p",
            self.flip_p.into(),
            "does nothing in this `compat` (D1): use flip_p.txt or YAML",
        );
        let keeps = self.keep_tags > 0 && !compat.obeys_keep_tags();
        tell(keeps, "keep_tags", self.keep_tags.into(), "does nothing in this `compat` (D2)");
        let idle = self.crop_variants > 1 && everydream2;
        tell(
            idle,
            "crop_variants",
            self.crop_variants.into(),
            "does nothing in this `compat`: crops are of each epoch",
        );
        let high = self.cond_dropout > 0.26;
        tell(high, "cond_dropout", self.cond_dropout.into(), "is rather much; 0.04 is usual");
        let no_means = self.ema_resume_model.is_some() && self.ema().is_none();
        tell(
            no_means,
            "ema_resume_model",
            true.into(),
            "does nothing without `ema_decay_rate` or `ema_strength_target`",
        );
    }

    fn planned(self, mut notices: Vec<Notice>) -> Result<TrainPlan> {
        let missing = |key, meaning| Error::MissingKey { key, meaning };
        if self.data_root.is_empty() {
            return Err(missing("data_root", "the folder with the pictures"));
        }
        if let Some(captions) = self.caption_root.as_ref().filter(|_| self.data_root.paths().len() > 1) {
            let value = captions.display().to_string();
            let expected = "none, as `data_root` has several folders";
            return Err(Error::OutOfRange { key: "caption_root", value, expected });
        }
        let base = self.resume_ckpt.clone().ok_or(missing("resume_ckpt", "the checkpoint to start from"))?;
        let output = self.output.as_ref().or(self.save_ckpt_dir.as_ref()).cloned();
        let output = output.ok_or(missing("output", "the folder for checkpoints"))?;
        let base = if base.as_os_str() == FIND_LAST { find_last(&output)? } else { base };
        let optimizer = self.resolved_optimizer()?;
        notices.extend(optimizer.notices.iter().cloned());
        let validation = self.validation_config.as_ref().map(ValidationConfig::read).transpose()?;
        notices.extend(validation.iter().flat_map(|validation| validation.notices.clone()));
        Ok(TrainPlan {
            ckpt_every_n_minutes: self.minutes_to_checkpoints(),
            sample_prompts: self.sample_prompts()?,
            sample_steps: self.sample_steps,
            ema_sample_nonema_model: self.ema_sample_nonema_model.unwrap_or(false),
            ema_sample_ema_model: self.ema_sample_ema_model.unwrap_or(false),
            save_optimizer: self.save_optimizer,
            logdir: self.logdir.clone(),
            log_step: self.log_step,
            base,
            device: self.device.clone().unwrap_or_else(|| "cpu".to_owned()),
            threads: self.threads,
            state_every_n_steps: self.state_every_n_steps,
            state_every_n_minutes: self.state_every_n_minutes,
            keep_states: self.keep_states,
            cache: self.cache_plan(&output),
            data_threads: self.data_threads.unwrap_or_else(|| {
                std::thread::available_parallelism().map_or(2, |cores| cores.get().min(8))
            }),
            log_grad_norm: optimizer.log_grad_norm,
            write_schedule: self.write_schedule,
            notices,
            on_nan: self.on_nan()?,
            // Reported within ten steps.
            read_every_n_steps: if self.is_on_gpu() { 10 } else { 1 },
            cuda_graphs: self.cuda_graphs,
            settings: self.settings(&output, optimizer, validation),
            data_root: self.data_root,
            allow: self.allow,
            caption_root: self.caption_root,
            runtime_dir: self.runtime_dir,
            start_over: self.start_over,
            ema_base: self.ema_resume_model,
            output,
        })
    }

    /// EveryDream2 has a checkpoint every 20 minutes where neither key says how often.
    fn minutes_to_checkpoints(&self) -> Option<f64> {
        let neither = self.ckpt_every_n_minutes.is_none() && self.save_every_n_epochs.is_none();
        let minutes = match neither && self.compat != Compat::Vodka {
            true => Some(20.0),
            false => self.ckpt_every_n_minutes,
        };
        minutes.filter(|minutes| *minutes > 0.0)
    }

    /// A file that is there must be good; one that is not may come.
    fn sample_prompts(&self) -> Result<Option<PathBuf>> {
        let path = self.sample_prompts.clone();
        path.as_deref().map(SampleFile::open).transpose()?;
        Ok(path)
    }

    fn resolved_optimizer(&self) -> Result<Resolved> {
        let from_file = || self.optimizer_config.as_ref().map(OptimizerConfig::read).transpose();
        let optimizer = self.optimizer.clone().map_or_else(from_file, |optimizer| Ok(Some(optimizer)))?;
        optimizer.unwrap_or_default().resolve(&MainRates {
            lr: self.lr,
            lr_scheduler: self.lr_scheduler,
            lr_warmup_steps: self.lr_warmup_steps,
            lr_decay_steps: self.lr_decay_steps,
            without_scale: self.compat.scales_text_encoder_with_unet_only() && self.disable_unet_training,
        })
    }

    fn settings(&self, output: &Path, optimizer: Resolved, validation: Option<ValidationConfig>) -> Settings {
        let name = self.project_name.as_ref().or(self.run_name.as_ref());
        let offset_noise = self.zero_frequency_noise_ratio.unwrap_or(self.compat.offset_noise());
        Settings {
            name: name.map_or("vodka", String::as_str).to_owned(),
            seed: u64::try_from(self.seed).unwrap_or_else(|_| self.draw_seed(output)),
            resolution: self.resolution,
            batch_size: self.batch_size,
            grad_accum: self.grad_accum,
            max_epochs: self.max_epochs,
            save_every_n_epochs: self.save_every_n_epochs.filter(|every| *every > 0),
            save_ckpts_from_n_epochs: self.save_ckpts_from_n_epochs,
            save_ckpt: !self.no_save_ckpt,
            save_diffusers: self.save_diffusers.unwrap_or(self.no_save_ckpt),
            prepend_last: !self.no_prepend_last,
            precision: if self.save_full_precision { Precision::F32 } else { Precision::F16 },
            arithmetic: self.arithmetic(),
            clip_skip: self.clip_skip.max(1),
            compat: self.compat,
            crops: self.compat.crops(self.crop_variants),
            cond_dropout: self.cond_dropout,
            flip_p: if self.compat.obeys_flip_p() { self.flip_p } else { 0.0 },
            shuffle_tags: self.shuffle_tags,
            keep_tags: if self.compat.obeys_keep_tags() { self.keep_tags } else { 0 },
            left_out: self.left_out(),
            loss_type: self.loss_type.unwrap_or(self.compat.loss_type()),
            prediction_type: self.prediction_type,
            min_snr_gamma: self.min_snr_gamma,
            timesteps: (self.timestep_start, self.timestep_end),
            offset_noise: offset_noise.max(0.0),
            pyramid_noise_discount: self.pyramid_noise_discount.filter(|discount| *discount > 0.0),
            zero_terminal_snr: self.enable_zero_terminal_snr.unwrap_or(false),
            embedding_perturbation: self.embedding_perturbation.unwrap_or(0.0),
            clip_grad_norm: self.clip_grad_norm,
            ema: self.ema(),
            validation: validation.filter(|validation| validation.validate_training),
            unet: (!self.disable_unet_training).then_some(optimizer.unet),
            text_encoder: (!self.disable_textenc_training).then_some(optimizer.text_encoder),
            text_encoder_freezing: optimizer.freezing,
            unet_freezing: optimizer.unet_freezing,
            scaler_tweaks: optimizer.scaler_tweaks,
        }
    }

    fn draw_seed(&self, output: &Path) -> u64 {
        let in_state = || state::seed(output);
        let in_record = || RunRecord::read(&record_path(output)).ok()?.seed;
        let before = if self.start_over { None } else { in_state().or_else(in_record) };
        // As many bits as EveryDream2 draws.
        before.unwrap_or_else(|| u64::from(rand::random::<u32>() >> 2))
    }

    fn check(&self) -> Result<()> {
        self.device.as_deref().map_or(Ok(()), check_device_name)?;
        let within = |key, value: String, good: bool, expected| match good {
            true => Ok(()),
            false => Err(Error::OutOfRange { key, value, expected }),
        };
        let resolution = self.resolution;
        let good = resolution.is_multiple_of(64) && (64..=2048).contains(&resolution);
        within("resolution", resolution.to_string(), good, "a multiple of 64 from 64 to 2048")?;
        let (batch, accum, epochs) = (self.batch_size, self.grad_accum, self.max_epochs);
        within("batch_size", batch.to_string(), (1..=65_536).contains(&batch), "1 to 65536")?;
        within("grad_accum", accum.to_string(), (1..=65_536).contains(&accum), "1 to 65536")?;
        within("max_epochs", epochs.to_string(), (1..=10_000_000).contains(&epochs), "1 to 10000000")?;
        let (threads, good) =
            (self.threads.unwrap_or(1), self.threads.is_none_or(|n| (1..=1024).contains(&n)));
        within("threads", threads.to_string(), good, "1 to 1024, or null")?;
        within(
            "state_every_n_steps",
            "0".into(),
            self.state_every_n_steps != Some(0),
            "at least 1, or null",
        )?;
        let minutes = self.state_every_n_minutes.unwrap_or(1.0);
        let good = minutes.is_finite() && minutes > 0.0;
        within("state_every_n_minutes", minutes.to_string(), good, "a number above 0, or null")?;
        within("keep_states", self.keep_states.to_string(), self.keep_states > 0, "at least 1")?;
        let size = self.cache_size_gb;
        within("cache_size_gb", size.to_string(), size.is_finite() && size > 0.0, "a number above 0")?;
        let data_threads = self.data_threads.unwrap_or(1);
        let good = (1..=256).contains(&data_threads);
        within("data_threads", data_threads.to_string(), good, "1 to 256, or null")?;
        let saves = !self.no_save_ckpt || self.save_diffusers != Some(false);
        within("save_diffusers", "false".into(), saves, "true with `no_save_ckpt`, or nothing is saved")?;
        within("sample_steps", "0".into(), self.sample_steps > 0, "at least 1")?;
        within("log_step", "0".into(), self.log_step > 0, "at least 1")?;
        let minutes = self.ckpt_every_n_minutes.unwrap_or(0.0);
        let good = (0.0..=MINUTES_MAX).contains(&minutes);
        within("ckpt_every_n_minutes", minutes.to_string(), good, "0 to 5256000 (ten years), or null")?;
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
        within(key, percent.to_string(), (0.0..=100.0).contains(&percent), "0 to 100")?;
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
    fn cache_plan(&self, output: &Path) -> CachePlan {
        let beside = || output.with_file_name("vodka-cache");
        CachePlan {
            mode: self.cache.unwrap_or(CacheMode::Disk),
            dir: self.cache_dir.clone().unwrap_or_else(beside),
            limit_bytes: (self.cache_size_gb * 1e9) as u64,
        }
    }

    fn is_on_gpu(&self) -> bool {
        self.device.as_deref().is_some_and(|device| device_type(device) != "cpu")
    }

    /// In what the networks are computed.
    fn networks(&self) -> Arithmetic {
        let by_device = match self.is_on_gpu() && !self.disable_amp.unwrap_or(false) {
            false => Arithmetic::Fp32,
            true if self.compat == Compat::Vodka => Arithmetic::Bf16,
            true => Arithmetic::Fp16,
        };
        self.precision.unwrap_or(by_device)
    }

    fn arithmetic(&self) -> ArithmeticSettings {
        ArithmeticSettings {
            networks: self.networks(),
            // EveryDream2 has it outside of autocast while it is trained.
            exact_text_encoder: self.compat != Compat::Vodka && !self.disable_textenc_training,
            vae: self.vae_precision.unwrap_or_default(),
            tf32: self.tf32,
            deterministic: self.deterministic,
            gradient_checkpointing: self.gradient_checkpointing,
        }
    }

    fn on_nan(&self) -> Result<OnNan> {
        let scaled = self.networks() == Arithmetic::Fp16;
        match self.on_nan {
            Some(OnNan::LowerScale) if !scaled => Err(Error::OutOfRange {
                key: "on_nan",
                value: "lower_scale".into(),
                expected: "`stop` or `skip`: losses have a scale in `fp16` only",
            }),
            Some(on_nan) => Ok(on_nan),
            None => Ok(if scaled { OnNan::LowerScale } else { OnNan::Stop }),
        }
    }

    /// The share of the pictures that is left out in the end.
    fn left_out(&self) -> f64 {
        // EveryDream2 means by its percentage what is left in the end.
        if self.rated_dataset { 1.0 - self.rated_dataset_target_dropout_percent / 100.0 } else { 0.0 }
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

/// The value of `resume_ckpt` that stands for the newest checkpoint.
const FIND_LAST: &str = "findlast";

/// The newest checkpoint in the folder that the output folder is in, and below it, but not in the output folder itself,
/// so that a run that goes on starts from the same as before: single files with a step in their name, and diffusers folders.
/// Twins with running means are none.
fn find_last(output: &Path) -> Result<PathBuf> {
    let parent = match output.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => output,
    };
    let entries = WalkDir::new(parent).max_depth(4).sort_by_file_name().into_iter();
    // However it is written: `out`, `./out`, `runs/../out`.
    let own = output.canonicalize().ok();
    let is_own =
        |path: &Path| own.as_ref().is_some_and(|own| path.canonicalize().is_ok_and(|path| path == *own));
    let others = entries.filter_entry(|entry| !(entry.file_type().is_dir() && is_own(entry.path())));
    let checkpoint = |entry: DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = match name == "model_index.json" {
            true => entry.path().parent()?.to_path_buf(),
            // A training state is no model.
            false if name.starts_with("state-") => return None,
            false if name.ends_with(".safetensors") && name.contains("-gs") => entry.path().to_path_buf(),
            false => return None,
        };
        let stem = path.file_name()?.to_string_lossy().into_owned();
        let is_mean = stem.trim_end_matches(".safetensors").ends_with("_ema");
        (!is_mean).then_some((entry.metadata().ok()?.modified().ok()?, path))
    };
    let found = others.filter_map(Result::ok).filter_map(checkpoint).max_by(|a, b| a.0.cmp(&b.0));
    let (_, path) = found.ok_or_else(|| Error::NoLastCheckpoint { folder: parent.to_path_buf() })?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match name.starts_with("errored-") {
        true => Err(Error::ErroredCheckpoint { path: path.clone() }),
        false => Ok(path),
    }
}

/// The configuration that a run had, in its output folder.
pub const EFFECTIVE_JSON: &str = "train.effective.json";

/// How a configuration spells a choice.
fn word(choice: &impl Serialize) -> String {
    match serde_json::to_value(choice).expect("choices are plain data") {
        serde_json::Value::String(name) => name,
        serde_json::Value::Object(object) => object.keys().next().cloned().unwrap_or_default(),
        other => other.to_string(),
    }
}

/// Whether this could be the name of a repository on huggingface.co: an owner and a name.
fn is_hub_name(name: &str) -> bool {
    let mut parts = name.split('/');
    let good = |part: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.starts_with('.') && !part.is_empty() && part.chars().all(plain)
    };
    let two = parts.next().is_some_and(good) && parts.next().is_some_and(good) && parts.next().is_none();
    two && ![".safetensors", ".ckpt"].iter().any(|extension| name.ends_with(extension))
}

impl TrainPlan {
    /// The plan as JSON, without what changes nothing in the outputs: for [`EFFECTIVE_JSON`].
    pub fn effective(&self) -> String {
        let mut plan = serde_json::to_value(self).expect("plans are plain data");
        let plan_keys = plan.as_object_mut().expect("a plan is an object");
        for key in ["output", "runtime_dir", "threads", "start_over"] {
            plan_keys.shift_remove(key);
        }
        serde_json::to_string_pretty(&plan).expect("plans are plain data") + "\n"
    }

    /// What will be done, for people: the settings that say most. All of it is in [`EFFECTIVE_JSON`].
    pub fn summary(&self) -> String {
        let Settings { batch_size, grad_accum, max_epochs, resolution, seed, .. } = self.settings;
        let Settings { compat, arithmetic, loss_type, unet, text_encoder, .. } = &self.settings;
        let roots: Vec<_> = self.data_root.paths().iter().map(|root| root.display().to_string()).collect();
        let part = |part: &Option<PartSettings>| match part {
            None => "as it is".to_owned(),
            Some(PartSettings { optimizer, lr_scheduler, .. }) => {
                format!("{}, lr {:e}, {}", word(&optimizer.method), optimizer.lr, word(lr_scheduler))
            }
        };
        let together = if grad_accum > 1 { format!(", {grad_accum} to a step") } else { String::new() };
        let training =
            format!("{max_epochs} epochs of batches of {batch_size}{together}, at {resolution} pixels");
        let rows = [
            ("base", self.base.display().to_string()),
            ("pictures", roots.join(", ")),
            ("output", self.output.display().to_string()),
            ("device", format!("{}, {}", self.device, word(&arithmetic.networks))),
            ("training", format!("{training}, seed {seed}, compat {}", word(compat))),
            ("loss", word(loss_type)),
            ("UNet", part(unet)),
            ("text encoder", part(text_encoder)),
        ];
        let rows = rows.map(|(name, value)| format!("{name:<13}{value}"));
        format!("{}\n{:<13}{}", rows.join("\n"), "all of it", self.output.join(EFFECTIVE_JSON).display())
    }

    /// Where the event file of the run with this key goes: in the output folder, or into a folder of its own in `logdir`.
    pub(crate) fn event_folder(&self, key: ContentHash) -> PathBuf {
        let Some(logdir) = &self.logdir else { return self.output.join("logs") };
        // The same run may be made in two folders.
        let output = std::path::absolute(&self.output).unwrap_or_else(|_| self.output.clone());
        let place = hash_bytes(output.as_os_str().as_encoded_bytes());
        logdir.join(format!("{}-{}-{}", self.settings.name, key.short(8), place.short(4)))
    }

    /// The folders and lists with the pictures: those of the configuration, and what was in zip files of the folders, unpacked.
    ///
    /// # Errors
    /// A zip file that is damaged, or leads out of its folder; a disk that fails.
    pub(crate) fn roots(&self, interrupt: &Interrupt) -> Result<Vec<PathBuf>> {
        let mut roots = self.data_root.paths().to_vec();
        if self.settings.compat.unpacks_zips() {
            roots.extend(zips::unpack(&roots, &self.output, interrupt)?);
        }
        Ok(roots)
    }

    /// What the outputs depend on: the settings, and what base checkpoint, pictures and captions hold.
    pub fn key(&self) -> Result<RunKey> {
        let says_something = |path: &Path| {
            path.extension()
                .is_some_and(|e| ["txt", "caption", "yml", "yaml", "json"].iter().any(|known| e == *known))
        };
        let name = self.base.to_string_lossy();
        if !self.base.exists() && is_hub_name(&name) {
            return Err(Error::HubModel { name: name.into_owned() });
        }
        let mut settings = serde_json::to_value(&self.settings).expect("settings are plain data");
        settings["device"] = device_type(&self.device).into();
        let mut key = RunKey::new("train", &settings, Some(self.settings.seed)).input(
            "checkpoint",
            &self.base,
            |_| true,
        )?;
        for (i, root) in self.data_root.paths().iter().enumerate() {
            let name = |what: &str| if i == 0 { what.to_owned() } else { format!("{what}/{}", i + 1) };
            if !root.is_dir() && root.exists() {
                key = key.input(&name("list"), root, |_| true)?;
                key = key.input_hashed(&name("images"), root, listed_content(root, self.settings.compat)?);
                continue;
            }
            let zips = self.settings.compat.unpacks_zips();
            key = key.input(&name("images"), root, |path| is_image(path) || zips && zips::is_zip(path))?;
            let captions = self.caption_root.as_deref().unwrap_or(root);
            key = key.input(&name("captions"), captions, says_something)?;
            if self.caption_root.is_some() {
                // The files of folders are obeyed where the pictures are.
                key = key.input(&name("options"), root, says_something)?;
            }
        }
        if let Some(means) = &self.ema_base {
            key = key.input("ema", means, |_| true)?;
        }
        for (name, root) in self.settings.validation.iter().flat_map(ValidationConfig::folders) {
            let data = |path: &Path| is_image(path) || says_something(path);
            key = key.input(&format!("validation/{name}"), root, data)?;
        }
        Ok(key)
    }
}

/// What the pictures of a list hold.
fn listed_content(list: &Path, compat: Compat) -> Result<ContentHash> {
    let (items, bare) = items(&[list.to_path_buf()], None, compat)?;
    let files: BTreeSet<_> =
        items.into_iter().map(|i| i.file).chain(bare.into_iter().map(|b| b.file)).collect();
    let mut hasher = Hasher::default();
    for file in files {
        hasher.piece(file.as_os_str().as_encoded_bytes());
        // A picture that is not there is told of where it is read.
        if let Ok(hash) = hash_file(&file) {
            hasher.piece(hash.to_string());
        }
    }
    Ok(hasher.finish())
}

impl Settings {
    /// How pictures are cut.
    pub(crate) fn cropping(&self) -> Cropping {
        Cropping { rule: self.crops, seed: self.seed }
    }

    /// The largest norms of the gradients of UNet and text encoder: their own, or else that of both (defect D3: with `ed2-head` the
    /// UNet's alone).
    pub(crate) fn max_norms(&self) -> [Option<f64>; 2] {
        let own = [self.unet, self.text_encoder].map(|part| part.and_then(|part| part.clip_grad_norm));
        let both = self.clip_grad_norm;
        [own[0].or(both), own[1].or(both.filter(|_| self.compat.clips_text_encoder()))]
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
        assert_eq!((plan.data_root.paths(), plan.caption_root), (&["pictures".into()][..], None));
        let settings = plan.settings;
        assert_eq!((settings.clip_skip, settings.name.as_str(), settings.seed), (1, "v3", 555));
        assert_eq!(settings.unet.unwrap().optimizer.lr, 1e-6);
        assert_eq!(settings.text_encoder, None);
    }

    /// What is told of a plan.
    fn told(changes: serde_json::Value) -> Vec<String> {
        config(changes).plan().unwrap().notices.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn lowvram_is_that_of_everydream2() {
        let changes = json!({"lowvram": true, "batch_size": 6, "grad_accum": 3, "resolution": 768});
        let settings = config(changes.clone()).plan().unwrap().settings;
        assert_eq!((settings.batch_size, settings.grad_accum, settings.resolution), (2, 1, 512));
        assert_eq!(
            told(changes),
            [
                "`batch_size` (6): 2 because of `lowvram`",
                "`grad_accum` (3): 1 because of `lowvram`",
                "`resolution` (768): 512 because of `lowvram`"
            ]
        );
        let small =
            config(json!({"lowvram": true, "batch_size": 2, "grad_accum": 3})).plan().unwrap().settings;
        assert_eq!((small.batch_size, small.grad_accum), (2, 3));
    }

    #[test]
    fn scale_lr_is_that_of_everydream2() {
        let changes = json!({"scale_lr": true, "batch_size": 4, "grad_accum": 2, "lr": 1e-6});
        let lr = config(changes.clone()).plan().unwrap().settings.unet.unwrap().optimizer.lr;
        // 8 ** 0.55 in Python.
        assert!((lr / 1e-6 - 3.138_336_391_587_08).abs() < 1e-12, "{lr}");
        assert!(told(changes)[0].contains("because of `scale_lr`"));
        assert!(
            said(json!({"scale_lr": true, "lr": null}))
                .starts_with("`lr` is missing: the learning rate that")
        );
    }

    #[test]
    fn gpuid_picks_the_device() {
        let device = |changes| config(changes).plan().unwrap().device;
        assert_eq!(device(json!({"gpuid": 1})), "cuda:1");
        assert_eq!(device(json!({"gpuid": 1, "device": "cuda"})), "cuda:1");
        assert_eq!(device(json!({"gpuid": 0, "device": "cuda"})), "cuda:0");
        assert_eq!(device(json!({"gpuid": 0})), "cpu");
        assert_eq!(device(json!({"gpuid": 1, "device": "cpu"})), "cpu");
        assert!(told(json!({"gpuid": 0}))[0].contains("this run is on the processor"));
        assert_eq!(told(json!({"gpuid": 1, "device": "cpu"})), ["`gpuid` (1): `device` says cpu"]);
        assert!(told(json!({"gpuid": 1, "device": "cuda:1"})).is_empty());
    }

    #[test]
    fn what_a_mode_does_not_do_is_told() {
        let keys = json!({"compat": "ed2-head", "flip_p": 0.5, "keep_tags": 2, "crop_variants": 4, "cond_dropout": 0.3});
        let told = told(keys);
        let keys: Vec<_> = told.iter().map(|notice| notice.split_once(' ').unwrap().0).collect();
        assert_eq!(keys, ["`flip_p`", "`keep_tags`", "`crop_variants`", "`cond_dropout`"]);
        assert!(self::told(json!({"flip_p": 0.5, "keep_tags": 2, "crop_variants": 4})).is_empty());
    }

    #[test]
    fn absent_keys_are_as_in_the_mode() {
        let noise = |changes| {
            let settings = config(changes).plan().unwrap().settings;
            (settings.loss_type, settings.offset_noise)
        };
        assert_eq!(noise(json!({})), (LossType::Mse, 0.0));
        assert_eq!(noise(json!({"compat": "ed2-2023-04"})), (LossType::Mse, 0.02));
        assert_eq!(noise(json!({"compat": "ed2-head"})), (LossType::MseHuber, 0.02));
        let said = json!({"compat": "ed2-head", "loss_type": "mse", "zero_frequency_noise_ratio": 0});
        assert_eq!(noise(said), (LossType::Mse, 0.0));
    }

    #[test]
    fn everydream2_saves_every_twenty_minutes_where_it_is_not_told_when() {
        let minutes = |changes| config(changes).plan().unwrap().ckpt_every_n_minutes;
        assert_eq!(minutes(json!({})), None);
        for compat in ["ed2-2023-04", "ed2-head"] {
            assert_eq!(minutes(json!({"compat": compat})), Some(20.0));
            assert_eq!(minutes(json!({"compat": compat, "ckpt_every_n_minutes": 5})), Some(5.0));
            assert_eq!(minutes(json!({"compat": compat, "ckpt_every_n_minutes": 0})), None);
            assert_eq!(minutes(json!({"compat": compat, "save_every_n_epochs": 10})), None);
        }
    }

    #[test]
    fn rated_percentages_are_what_is_left() {
        let left_out = |percent: f64| {
            let keys = json!({"rated_dataset": true, "rated_dataset_target_dropout_percent": percent});
            config(keys).plan().unwrap().settings.left_out
        };
        assert_eq!((left_out(50.0), left_out(20.0), left_out(100.0)), (0.5, 0.8, 0.0));
    }

    #[test]
    fn the_last_checkpoint_is_found_in_the_other_runs() {
        use std::{
            fs,
            time::{Duration, SystemTime},
        };
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, age_s: u64| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let file = fs::File::create(path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age_s)).unwrap();
        };
        let find = || {
            let output = dir.path().join("second");
            config(json!({"resume_ckpt": "findlast", "output": output})).plan().map(|plan| plan.base)
        };
        assert!(find().unwrap_err().to_string().starts_with("`resume_ckpt` is `findlast`, but there is no"));
        write("first/a-ep01-gs00003.safetensors", 50);
        write("first/a-ep02-gs00006.safetensors", 40);
        write("first/a-ep02-gs00006_ema.safetensors", 30);
        write("first/state-gs00006.safetensors", 20);
        write("second/b-ep01-gs00003.safetensors", 10);
        assert_eq!(find().unwrap(), dir.path().join("first/a-ep02-gs00006.safetensors"));
        write("zero/a-ep9-gs00099/model_index.json", 5);
        assert_eq!(find().unwrap(), dir.path().join("zero/a-ep9-gs00099"));
        write("zero/errored-a-ep9-gs00099/model_index.json", 1);
        assert!(find().unwrap_err().to_string().contains("of a run that ended with an error"));
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
        assert_eq!(said(json!({"batch_size": 0})), "`batch_size` is 0, expected 1 to 65536");
        let huge = u64::MAX;
        for key in ["batch_size", "grad_accum", "max_epochs"] {
            let said = said(json!({key: huge}));
            assert!(said.starts_with(&format!("`{key}` is {huge}, expected 1 to ")), "{said}");
        }
        assert_eq!(said(json!({"clip_skip": 5})), "`clip_skip` is 5, expected 0 to 4");
        assert_eq!(said(json!({"cond_dropout": 1.5})), "`cond_dropout` is 1.5, expected 0.0 to 1.0");
        assert_eq!(
            said(json!({"project_name": "a/b"})),
            "`project_name` is \"a/b\", expected a name without slashes"
        );
        assert_eq!(
            said(json!({"no_save_ckpt": true, "save_diffusers": false})),
            "`save_diffusers` is false, expected true with `no_save_ckpt`, or nothing is saved"
        );
        assert!(
            said(json!({"disable_unet_training": true, "disable_textenc_training": true}))
                .starts_with("nothing to train")
        );
    }
}
