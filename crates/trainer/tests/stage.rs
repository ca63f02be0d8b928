//! The stage as a whole: resumption, determinism, what is skipped and what is refused.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc},
    thread,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use vodka_checkpoint::{Checkpoint, Prediction};
use vodka_images::RgbImage;
use vodka_stage::{ContentHash, Interrupt, Outcome, free_space, hash_bytes, hash_file};
use vodka_testkit::event_values;
use vodka_trainer::{
    EFFECTIVE_JSON, Error, FinderSettings, Phase, Result, TrainConfig, TrainEvent, TrainReport, find_lr, run,
};

/// Pictures with captions in a folder of their own, and a configuration that trains the tiny model on them.
struct World {
    dir: TempDir,
    config: TrainConfig,
    _company: Company,
}

/// Who else trains in this process meanwhile: others, or nobody.
#[expect(dead_code, reason = "held, not read")]
enum Company {
    Others(RwLockReadGuard<'static, ()>),
    Nobody(RwLockWriteGuard<'static, ()>),
}

static TRAINING: RwLock<()> = RwLock::new(());

impl World {
    fn new() -> Self {
        Self::within(Company::Others(TRAINING.read().unwrap_or_else(PoisonError::into_inner)))
    }

    /// For runs that are compared bit for bit with other numbers of threads or in bf16: libtorch keeps the number of threads, and
    /// what oneDNN has prepared for it, for the whole process.
    fn alone() -> Self {
        Self::within(Company::Nobody(TRAINING.write().unwrap_or_else(PoisonError::into_inner)))
    }

    fn within(company: Company) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir_all(data.join("sub")).unwrap();
        // Two shapes, so that there are incomplete batches.
        for (i, (width, height)) in
            [(64, 64), (96, 90), (80, 80), (128, 64), (120, 60)].into_iter().enumerate()
        {
            let colour = |x: u32, y: u32| image_pixel(i as u32, x, y);
            let name = data.join(if i == 4 { "sub/4.png".to_owned() } else { format!("{i}.png") });
            RgbImage::from_fn(width, height, colour).save(&name).unwrap();
            fs::write(name.with_extension("txt"), format!("a red circle number {i}\n")).unwrap();
        }
        let mut config = TrainConfig {
            data_root: data.into(),
            resume_ckpt: Some(vodka_testkit::model("base")),
            ..TrainConfig::default()
        };
        let keys = json!({"resolution": 64, "batch_size": 2, "max_epochs": 3, "lr": 1e-3, "save_every_n_epochs": 1,
            "project_name": "tiny", "cond_dropout": 0.3, "threads": 1});
        set(&mut config, keys);
        Self { dir, config, _company: company }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Trains into the folder `output`.
    fn train(
        &self,
        output: &str,
        changes: Value,
        on_event: &mut dyn FnMut(TrainEvent, &Interrupt),
    ) -> Result<TrainReport> {
        let mut config = TrainConfig { output: Some(self.at(output)), ..self.config.clone() };
        set(&mut config, changes);
        let interrupt = Interrupt::new();
        run(&config.plan()?, &interrupt, &mut |event| on_event(event, &interrupt))
    }

    /// Holds a run into `beside` at its start, and what comes of `act` meanwhile.
    fn beside<R>(&self, changes: Value, act: impl FnOnce() -> R) -> R {
        thread::scope(|scope| {
            let ((begin, begun), (end, ended)) = (mpsc::channel(), mpsc::channel::<()>());
            scope.spawn(move || {
                let on_event = &mut |event: TrainEvent, interrupt: &Interrupt| {
                    if matches!(event, TrainEvent::Started { .. }) {
                        begin.send(()).unwrap();
                        // Until the other end is dropped.
                        ended.recv().unwrap_err();
                        interrupt.raise();
                    }
                };
                let report = self.train("beside", changes, on_event).unwrap();
                assert_eq!(report.outcome, Outcome::Interrupted);
            });
            begun.recv().unwrap();
            let result = act();
            drop(end);
            result
        })
    }

    /// Trains undisturbed.
    fn undisturbed(&self, output: &str, changes: Value) -> TrainReport {
        self.train(output, changes, &mut |_, _| ()).unwrap()
    }

    fn error(&self, changes: Value) -> Error {
        self.train("out", changes, &mut |_, _| ()).unwrap_err()
    }

    /// The hashes of what is in an output folder, by name. What is told of the time is left out.
    fn files(&self, output: &str) -> BTreeMap<String, ContentHash> {
        let folder = self.at(output);
        let entries = walk(&folder).into_iter().map(|path| {
            let name = path.strip_prefix(&folder).unwrap().to_string_lossy().into_owned();
            let hash = match name.as_str() {
                LOG => hash_bytes(self.log(output).as_bytes()),
                EVENTS => hash_bytes(format!("{:?}", self.events(output)).as_bytes()),
                _ => hash_file(path).unwrap(),
            };
            (name, hash)
        });
        entries.collect()
    }

    /// The log without its times.
    fn log(&self, output: &str) -> String {
        let text = fs::read_to_string(self.at(output).join(LOG)).unwrap();
        let line = |line| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            line.as_object_mut().unwrap().shift_remove("time");
            format!("{line}\n")
        };
        text.lines().map(line).collect()
    }

    /// What TensorBoard is told, but for how fast it went.
    fn events(&self, output: &str) -> Vec<(u64, String, f32)> {
        let mut values = event_values(&self.at(output).join(EVENTS));
        values.retain(|(_, tag, _)| !tag.starts_with("performance/"));
        values
    }
}

const LOG: &str = "log.jsonl";
const EVENTS: &str = "logs/events.out.tfevents.0.vodka";
/// What every run leaves beside its checkpoints.
const BESIDE: [&str; 10] = [
    "audit.cache.json",
    "audit.csv",
    "audit.json",
    "exposures.csv",
    LOG,
    EVENTS,
    "losses.csv",
    "losses.png",
    "losses.svg",
    EFFECTIVE_JSON,
];

/// The files below a folder.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

fn image_pixel(i: u32, x: u32, y: u32) -> vodka_images::Rgb<u8> {
    vodka_images::Rgb([(x * 3 + 40 * i) as u8, (y * 2) as u8, (x + y + 7 * i) as u8])
}

fn set(config: &mut TrainConfig, keys: Value) {
    for (key, value) in keys.as_object().unwrap() {
        config.set(key, value.clone()).unwrap();
    }
}

/// Does something at the end of a step.
fn at_step(wanted: u64, mut act: impl FnMut(&Interrupt)) -> impl FnMut(TrainEvent, &Interrupt) {
    move |event, interrupt| match event {
        TrainEvent::Step { step, .. } if step == wanted => act(interrupt),
        _ => {}
    }
}

#[test]
fn a_run_leaves_checkpoints_losses_and_nothing_else() {
    let world = World::new();
    let report = world.undisturbed("out", json!({}));
    assert_eq!((report.outcome, report.pictures, report.steps), (Outcome::Done, 5, 9));
    let names: Vec<_> = world.files("out").into_keys().collect();
    let checkpoints = [
        "tiny-ep01-gs00003.safetensors",
        "tiny-ep02-gs00006.safetensors",
        "last-tiny-ep03-gs00009.safetensors",
    ];
    let mut expected = [&BESIDE[..], &checkpoints[..]].concat();
    expected.sort_unstable();
    assert_eq!(names, expected);
    let exposures = fs::read_to_string(world.at("out/exposures.csv")).unwrap();
    assert_eq!(exposures, "image,exposures\n0.png,3\n1.png,3\n2.png,3\n3.png,3\nsub/4.png,3\n");
    assert_eq!(report.checkpoints, checkpoints.map(|name| world.at("out").join(name)));
    let losses = fs::read_to_string(world.at("out/losses.csv")).unwrap();
    assert_eq!(losses.lines().count(), 10);
    assert!(losses.lines().nth(4).unwrap().starts_with("2,4,"), "{losses}");
    assert!(losses.lines().all(|line| line.ends_with(",1e-3,1e-3") || line.ends_with("lr_text_encoder")));
    Checkpoint::open(&report.checkpoints[2]).unwrap().verify().unwrap();

    let again = world.undisturbed("out", json!({}));
    assert_eq!((again.outcome, again.checkpoints), (Outcome::Unchanged, report.checkpoints));
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_files() {
    let world = World::new();
    world.undisturbed("whole", json!({}));
    for step in [1, 3, 5] {
        let output = format!("interrupted-{step}");
        let report = world.train(&output, json!({}), &mut at_step(step, Interrupt::raise)).unwrap();
        assert_eq!((report.outcome, report.steps), (Outcome::Interrupted, step));
        let mut started = None;
        let on_event = &mut |event: TrainEvent, _: &Interrupt| {
            if let TrainEvent::Started { done, .. } = event {
                started = Some(done);
            }
        };
        let report = world.train(&output, json!({}), on_event).unwrap();
        assert_eq!((report.outcome, started), (Outcome::Done, Some(step)));
        assert_eq!(world.files(&output), world.files("whole"), "interrupted after step {step}");
    }
}

#[test]
fn a_run_that_dies_goes_on_from_its_last_state_to_the_same_files() {
    let world = World::new();
    let keys = || json!({"state_every_n_steps": 2, "grad_accum": 2});
    world.undisturbed("whole", keys());
    for step in [1, 4, 8] {
        let output = format!("died-{step}");
        let die = || world.train(&output, keys(), &mut at_step(step, |_| panic!("killed by the test")));
        assert!(catch_unwind(AssertUnwindSafe(die)).is_err());
        world.undisturbed(&output, keys());
        assert_eq!(world.files(&output), world.files("whole"), "died after step {step}");
    }
}

#[test]
fn every_option_changes_the_run_and_goes_on_to_the_same_files() {
    let world = World::new();
    let plain = world.undisturbed("plain", json!({})).losses;
    let optimizer =
        json!({"base": {"clip_grad_norm": 1e-3}, "unet_freezing": {"freeze": ["IN*", "*.attn1.*"]}});
    fs::write(world.at("parts.json"), optimizer.to_string()).unwrap();
    for (i, option) in [
        json!({"loss_type": "huber"}),
        json!({"min_snr_gamma": 0.5}),
        json!({"timestep_start": 700}),
        json!({"zero_frequency_noise_ratio": 0.1}),
        json!({"pyramid_noise_discount": 0.4}),
        json!({"enable_zero_terminal_snr": true}),
        json!({"embedding_perturbation": 20.0}),
        json!({"clip_grad_norm": 1e-3}),
        json!({"optimizer_config": world.at("parts.json")}),
        json!({"lr_scheduler": "cosine"}),
    ]
    .into_iter()
    .enumerate()
    {
        let [whole, parts] = ["whole", "parts"].map(|name| format!("{name}-{i}"));
        assert_ne!(world.undisturbed(&whole, option.clone()).losses, plain, "{option}");
        world.train(&parts, option.clone(), &mut at_step(4, Interrupt::raise)).unwrap();
        world.undisturbed(&parts, option.clone());
        assert_eq!(world.files(&parts), world.files(&whole), "{option}");
    }
}

#[test]
fn every_optimizer_trains_and_goes_on_to_the_same_files() {
    let world = World::new();
    for optimizer in ["adamw", "adamw8bit", "lion", "dadapt_adam", "prodigy"] {
        let file = world.at("optimizer.json");
        fs::write(&file, json!({"optimizer": optimizer, "lr": 1e-3, "d0": 1e-3}).to_string()).unwrap();
        let keys = json!({"optimizer_config": file});
        let [whole, parts] = ["whole", "parts"].map(|name| format!("{name}-{optimizer}"));
        let (first, last) = world.undisturbed(&whole, keys.clone()).losses.unwrap();
        assert_ne!(first, last);
        world.train(&parts, keys.clone(), &mut at_step(4, Interrupt::raise)).unwrap();
        world.undisturbed(&parts, keys);
        assert_eq!(world.files(&parts), world.files(&whole), "{optimizer}");
    }
}

#[test]
fn files_beside_the_pictures_are_obeyed_and_the_run_goes_on_to_the_same_files() {
    let world = World::new();
    let write = |name: &str, text: &str| fs::write(world.at("data").join(name), text).unwrap();
    write("0.yaml", "tags: [round, red]\nflip_p: 0.5\nshuffle_tags: true\ncond_dropout: 0\n");
    write("sub/multiply.txt", "2.5");
    write("sub/local.yaml", "loss_scale: 0.5");
    let keys = || json!({"state_every_n_steps": 1, "grad_accum": 2});
    let report = world.undisturbed("whole", keys());
    // Five pictures, one of them two or three times.
    assert_eq!((report.pictures, report.steps), (5, report.total_steps));
    assert!(report.steps > 9, "{report:?}");
    let exposures = fs::read_to_string(world.at("whole/exposures.csv")).unwrap();
    let counts: Vec<u64> =
        exposures.lines().skip(1).map(|line| line.rsplit_once(',').unwrap().1.parse().unwrap()).collect();
    assert_eq!(counts[..4], [3; 4]);
    assert!((6..=9).contains(&counts[4]), "2.5 times in each of three epochs: {exposures}");
    for step in [3, 7] {
        let output = format!("parts-{step}");
        world.train(&output, keys(), &mut at_step(step, Interrupt::raise)).unwrap();
        world.undisturbed(&output, keys());
        assert_eq!(world.files(&output), world.files("whole"), "interrupted after step {step}");
    }
    write("sub/multiply.txt", "often");
    let said = world.error(keys()).to_string();
    assert!(said.ends_with("multiply.txt`: `multiply` is often, expected a number"), "{said}");
}

#[test]
fn held_out_pictures_are_validated_on_and_not_trained_on() {
    let world = World::new();
    let file = world.at("validation.json");
    let config =
        json!({"auto_split_proportion": 0.4, "stabilize_training_loss": true, "every_n_epochs": 0.5});
    fs::write(&file, config.to_string()).unwrap();
    let keys = || json!({"validation_config": file});
    let report = world.undisturbed("whole", keys());
    assert_eq!(report.pictures, 3);
    let sets: Vec<_> = report.validations.iter().map(|validated| validated.set.as_str()).collect();
    assert_eq!(sets, ["val", "stabilize-train"]);
    let text = fs::read_to_string(world.at("whole/validation.csv")).unwrap();
    assert!(text.starts_with("epoch,step,set,loss\n0,0,val,"), "{text}");
    // Before training and twice in each of three epochs, on two sets.
    assert_eq!(text.lines().count(), 1 + 2 * 7, "{text}");
    for step in [1, 2, 4] {
        let output = format!("parts-{step}");
        world.train(&output, keys(), &mut at_step(step, Interrupt::raise)).unwrap();
        world.undisturbed(&output, keys());
        assert_eq!(world.files(&output), world.files("whole"), "interrupted after step {step}");
    }
    // Validation draws no random number of training's.
    fs::write(&file, json!({"auto_split_proportion": 0.4, "every_n_epochs": 3}).to_string()).unwrap();
    assert_eq!(world.undisturbed("seldom", keys()).losses, report.losses);
}

#[test]
fn running_means_are_checkpoints_of_their_own() {
    let world = World::new();
    let keys = || json!({"ema_decay_rate": 0.9, "ema_update_interval": 2, "state_every_n_steps": 1});
    let report = world.undisturbed("whole", keys());
    let names: Vec<_> = report.ema_checkpoints.iter().map(|path| path.file_name().unwrap()).collect();
    assert_eq!(names[2], "last-tiny-ep03-gs00009_ema.safetensors");
    let weights = |path: &PathBuf| {
        let name = "model.diffusion_model.out.2.weight";
        let bytes = fs::read(path).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let json: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        let at = |i: usize| json[name]["data_offsets"][i].as_u64().unwrap() as usize + 8 + header;
        bytes[at(0)..at(1)].to_vec()
    };
    let [first, live] = [0, 2].map(|i| weights(&report.checkpoints[i]));
    let mean = weights(&report.ema_checkpoints[2]);
    assert!(mean != live && mean != first, "a mean is neither the last weights nor the first");
    let plain = world.undisturbed("plain", json!({}));
    assert_eq!(weights(&plain.checkpoints[2]), live, "means do not touch the training");
    for step in [1, 5] {
        let output = format!("parts-{step}");
        world.train(&output, keys(), &mut at_step(step, Interrupt::raise)).unwrap();
        world.undisturbed(&output, keys());
        assert_eq!(world.files(&output), world.files("whole"), "interrupted after step {step}");
    }
}

#[test]
fn defects_of_everydream2_can_be_had() {
    let world = World::new();
    let losses = |output: &str, changes: Value| world.undisturbed(output, changes).losses;
    let plain = losses("plain", json!({}));
    assert_ne!(losses("runts-2023", json!({"compat": "ed2-2023-04"})), plain);
    assert_ne!(losses("flips", json!({"flip_p": 1.0})), plain);
    let head = losses("head", json!({"compat": "ed2-head"}));
    assert_ne!(head, plain);
    assert_eq!(losses("d1", json!({"compat": "ed2-head", "flip_p": 1.0})), head, "flip_p did nothing");
    fs::remove_file(world.at("data/0.txt")).unwrap();
    assert!(matches!(world.error(json!({})), Error::MissingCaptions { .. }));
    losses("named", json!({"compat": "ed2-head"}));
}

#[test]
fn another_setting_starts_anew_and_never_starts_over() {
    let world = World::new();
    let started = |changes: Value, start_over: bool| {
        let mut done_before = None;
        let mut config = TrainConfig { output: Some(world.at("out")), start_over, ..world.config.clone() };
        set(&mut config, changes);
        let interrupt = Interrupt::new();
        let on_event = &mut |event: TrainEvent| match event {
            TrainEvent::Started { done, .. } => done_before = Some(done),
            TrainEvent::Step { step: 4, .. } => interrupt.raise(),
            _ => {}
        };
        run(&config.plan().unwrap(), &interrupt, on_event).unwrap();
        done_before
    };
    assert_eq!(started(json!({}), false), Some(0));
    assert_eq!(started(json!({"lr": 1e-4}), false), Some(0), "a state of another run is not gone on from");
    assert_eq!(started(json!({"lr": 1e-4}), true), Some(0));
    assert_eq!(started(json!({"lr": 1e-4}), false), Some(4));
    assert_eq!(
        started(json!({"lr": 1e-3}), false),
        Some(0),
        "nor from one that another run has begun to overwrite"
    );
}

#[test]
fn another_run_that_is_interrupted_before_it_has_something_leaves_the_states_of_the_first() {
    let world = World::new();
    world.undisturbed("whole", json!({}));
    world.train("out", json!({}), &mut at_step(4, Interrupt::raise)).unwrap();
    let before = world.files("out");
    let other = || json!({"lr": 1e-4});
    // Right after it says that it starts anew.
    let at_once = &mut |event: TrainEvent, interrupt: &Interrupt| match event {
        TrainEvent::AnotherRun { .. } => interrupt.raise(),
        TrainEvent::Step { .. } => panic!("it was interrupted"),
        _ => {}
    };
    let report = world.train("out", other(), at_once).unwrap();
    assert_eq!((report.outcome, report.steps), (Outcome::Interrupted, 0));
    // Pictures that are gone before the first step.
    let [data, away] = ["data", "away"].map(|name| world.at(name));
    let gone = &mut |event: TrainEvent, _: &Interrupt| {
        if let TrainEvent::AnotherRun { .. } = event {
            fs::rename(&data, &away).unwrap();
        }
    };
    let mut keys = other();
    keys["cache"] = "off".into();
    let error = world.train("out", keys, gone).unwrap_err();
    assert!(matches!(error, Error::PictureGone { .. }), "{error}");
    fs::rename(&away, &data).unwrap();

    let after = world.files("out");
    for name in before.keys().filter(|name| name.ends_with(".safetensors")) {
        assert_eq!(after.get(name), before.get(name), "{name}");
    }
    let mut started = None;
    world
        .train("out", json!({}), &mut |event, _| {
            if let TrainEvent::Started { done, .. } = event {
                started = Some(done);
            }
        })
        .unwrap();
    assert_eq!(started, Some(4));
    let mut files = world.files("out");
    let asides: Vec<_> = files.keys().filter(|name| name.starts_with("log-")).cloned().collect();
    assert_eq!(asides.len(), 1, "the other run's log");
    files.retain(|name, _| !name.starts_with("log-") && (!name.starts_with("logs/") || name == EVENTS));
    assert_eq!(files, world.files("whole"));
}

#[test]
fn losses_that_are_not_finite_are_no_reason_to_begin_again() {
    let world = World::new();
    let file = world.at("validation.json");
    fs::write(&file, json!({"auto_split_proportion": 0.4}).to_string()).unwrap();
    // The first step spoils the weights; then all are left out.
    let keys = || {
        json!({"lr": 1e20, "on_nan": "skip", "validation_config": file, "state_every_n_steps": 1,
        "save_full_precision": true})
    };
    let report = world.undisturbed("whole", keys());
    let (first, last) = report.losses.unwrap();
    assert!(first.is_finite() && last.is_nan() && report.validations[0].last.is_nan(), "{report:?}");
    let again = world.undisturbed("whole", keys());
    assert_eq!((again.outcome, again.steps), (Outcome::Unchanged, report.steps));
    assert!(again.losses.unwrap().1.is_nan());

    world.train("out", keys(), &mut at_step(4, Interrupt::raise)).unwrap();
    let mut started = None;
    let on_event = &mut |event: TrainEvent, _: &Interrupt| match event {
        TrainEvent::Started { done, .. } => started = Some(done),
        TrainEvent::StateRefused { path, reason } => panic!("{}: {reason}", path.display()),
        _ => {}
    };
    world.train("out", keys(), on_event).unwrap();
    assert_eq!(started, Some(4));
    assert_eq!(world.files("out"), world.files("whole"));
    // Of steps that were left out no picture is told to have been trained on.
    let exposures = fs::read_to_string(world.at("out/exposures.csv")).unwrap();
    let sum: u64 =
        exposures.lines().skip(1).map(|line| line.rsplit_once(',').unwrap().1.parse::<u64>().unwrap()).sum();
    assert!((1..=2).contains(&sum), "those of the first step: {exposures}");
}

#[test]
fn an_epoch_without_batches_is_an_error_of_its_own() {
    let world = World::new();
    fs::write(world.at("data/multiply.txt"), "0").unwrap();
    fs::write(world.at("data/sub/multiply.txt"), "0").unwrap();
    let said = world.error(json!({})).to_string();
    assert_eq!(said, "epoch 1 has no batches: the `multiply` of its pictures leaves all of them out");
}

#[test]
fn what_a_vae_makes_that_is_not_finite_is_told_with_the_picture() {
    let world = World::new();
    let mut bytes = fs::read(world.config.resume_ckpt.clone().unwrap()).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let at = &json["first_stage_model.encoder.conv_out.weight"];
    assert_eq!(at["dtype"], "F16");
    let [start, end] = [0, 1].map(|i| header + at["data_offsets"][i].as_u64().unwrap() as usize);
    // 60000: finite, but not what is summed of it in 16 bits.
    bytes[start..end].chunks_exact_mut(2).for_each(|number| number.copy_from_slice(&[0x53, 0x7b]));
    fs::write(world.at("large.safetensors"), bytes).unwrap();
    let keys = json!({"resume_ckpt": world.at("large.safetensors"), "vae_precision": "fp16"});
    let said = world.error(keys).to_string();
    assert!(
        said.starts_with("what the VAE makes of `")
            && said.contains(".png` is not finite; a VAE in 16 bits may be"),
        "{said}"
    );
}

#[test]
fn too_little_memory_for_samples_is_told_and_the_run_goes_on() {
    let world = World::new();
    let prompts = world.at("prompts.txt");
    fs::write(&prompts, "a cat").unwrap();
    let keys = json!({"sample_prompts": prompts, "sample_steps": 3, "max_epochs": 1, "ema_decay_rate": 0.5,
        "ema_update_interval": 1, "ema_sample_ema_model": true});
    let mut told = Vec::new();
    let report = world.train("out", keys, &mut |event, _| match event {
        TrainEvent::Sample(_) => drop(tch::Tensor::zeros([1 << 50], (tch::Kind::Float, tch::Device::Cpu))),
        TrainEvent::SamplesFailed { step, reason } => told.push((step, reason)),
        _ => {}
    });
    let plain = world.undisturbed("plain", json!({"max_epochs": 1}));
    assert_eq!(report.unwrap().losses, plain.losses);
    let [(3, reason)] = &told[..] else { panic!("{told:?}") };
    assert!(
        reason.ends_with("; smaller ones need less: `size` or `resolution` in the file of `sample_prompts`")
    );
}

#[test]
fn a_round_of_samples_that_was_interrupted_is_made_when_the_run_goes_on() {
    let world = World::new();
    let prompts = world.at("prompts.txt");
    fs::write(&prompts, "a cat\na dog").unwrap();
    let keys = || json!({"sample_prompts": prompts, "sample_steps": 3});
    world.train("whole", keys(), &mut |event, _| give_strips(event)).unwrap();
    // In the middle of the run, and in its last step.
    for step in [6, 9] {
        let output = format!("out-{step}");
        let mut asked = Vec::new();
        let report = world.train(&output, keys(), &mut |event, interrupt| match event {
            TrainEvent::Sample(round) if round.step == step => {
                asked.push(round.step);
                round.give(0, RgbImage::new(8, 8));
                interrupt.raise();
            }
            event => give_strips(event),
        });
        let report = report.unwrap();
        assert_eq!((report.outcome, report.steps, asked), (Outcome::Interrupted, step, vec![step]));
        let mut asked = Vec::new();
        let report = world.train(&output, keys(), &mut |event, _| {
            if let TrainEvent::Sample(round) = &event {
                asked.push(round.step);
            }
            give_strips(event);
        });
        assert_eq!(report.unwrap().outcome, Outcome::Done);
        assert_eq!(asked, (step..=9).step_by(3).collect::<Vec<_>>(), "none twice");
        let [mut found, mut whole] = [output.as_str(), "whole"].map(|output| world.files(output));
        // At the end of an epoch it is told after that.
        found.remove(EVENTS);
        whole.remove(EVENTS);
        assert_eq!(found, whole);
        let sorted = |output: &str| {
            let mut events: Vec<_> = world
                .events(output)
                .into_iter()
                .map(|(step, tag, value)| (step, tag, value.to_bits()))
                .collect();
            events.sort();
            events
        };
        assert_eq!(sorted(&output), sorted("whole"));
    }
}

#[test]
fn a_run_keeps_the_number_of_threads_it_began_with() {
    let world = World::alone();
    world.undisturbed("whole", json!({}));
    world.train("out", json!({}), &mut at_step(4, Interrupt::raise)).unwrap();
    let before = tch::get_num_threads();
    world.undisturbed("out", json!({"threads": 2}));
    assert_eq!(tch::get_num_threads(), before);
    assert_eq!(world.files("out"), world.files("whole"));
}

#[test]
fn runs_side_by_side_have_one_number_of_threads() {
    let world = World::alone();
    world.train("kept", json!({"threads": 2}), &mut at_step(4, Interrupt::raise)).unwrap();
    world.beside(json!({}), || {
        let said = |output: &str, threads: u64| {
            let refused = world.train(output, json!({"threads": threads}), &mut |_, _| ()).unwrap_err();
            assert!(matches!(refused, Error::Beside { .. }), "{refused}");
            refused.to_string().replace(&*world.dir.path().to_string_lossy(), "")
        };
        let other = said("other", 2);
        assert!(
            other.starts_with("`threads` is 2 for the run in `/other` and 1 for the one in `/beside`"),
            "{other}"
        );
        let kept = said("kept", 1);
        assert!(
            kept.starts_with(
                "`threads` is 2 (with which it began) for the run in `/kept` and 1 for the one in `/beside`"
            ),
            "{kept}"
        );
        assert_eq!(world.undisturbed("same", json!({"max_epochs": 1})).outcome, Outcome::Done);
    });
    assert_eq!(world.undisturbed("kept", json!({})).outcome, Outcome::Done, "by itself it goes on");
}

#[test]
fn runs_side_by_side_need_room_for_all() {
    let world = World::new();
    let report = world.undisturbed("first", json!({"max_epochs": 1}));
    let checkpoint = fs::metadata(&report.checkpoints[0]).unwrap().len();
    // Six tenths of the disk for each.
    let epochs = free_space(world.dir.path()).unwrap() / checkpoint * 6 / 10;
    let keys = || json!({"max_epochs": epochs});
    world.beside(keys(), || {
        let error = world.error(keys());
        let Error::NoSpaceBeside { needed, free, others, to_come, .. } = &error else { panic!("{error}") };
        assert!(others.contains(&world.at("beside")) && needed < free && to_come < free, "{error}");
        assert!(error.to_string().contains("do not fit beside "), "{error}");
    });
    let begins = &mut |event: TrainEvent, interrupt: &Interrupt| {
        if matches!(event, TrainEvent::Started { .. }) {
            interrupt.raise();
        }
    };
    assert_eq!(world.train("out", keys(), begins).unwrap().outcome, Outcome::Interrupted, "it fits alone");
}

#[test]
fn a_random_seed_is_kept_when_the_run_goes_on() {
    let world = World::new();
    let keys = || json!({"seed": -1});
    let first = world.train("out", keys(), &mut at_step(4, Interrupt::raise)).unwrap();
    let second = world.undisturbed("out", keys());
    assert_eq!((second.outcome, second.seed), (Outcome::Done, first.seed));
    assert_eq!(world.undisturbed("out", keys()).outcome, Outcome::Unchanged);
}

#[test]
fn what_is_trained_changes_and_what_is_frozen_does_not() {
    let world = World::new();
    let base = Checkpoint::open(world.config.resume_ckpt.clone().unwrap()).unwrap();
    let changed = |key: &str, prefix: &str| {
        let output = format!("{key}-out");
        let report = world.undisturbed(&output, json!({key: true, "max_epochs": 1}));
        let trained = Checkpoint::open(&report.checkpoints[0]).unwrap();
        let differs =
            |name: &&str| base.tensor(name).unwrap().to_f32() != trained.tensor(name).unwrap().to_f32();
        let of_part: Vec<_> = base.names().filter(|name| name.starts_with(prefix)).collect();
        (of_part.iter().copied().filter(differs).count(), of_part.len())
    };
    let (unet, clip, vae) = ("model.diffusion_model.", "cond_stage_model.", "first_stage_model.");
    let frozen_text = "disable_textenc_training";
    let (count, all) = changed(frozen_text, unet);
    assert!(2 * count > all, "{count} of {all} tensors of the UNet changed");
    assert_eq!(changed(frozen_text, clip).0, 0);
    assert_eq!(changed(frozen_text, vae).0, 0);
    assert_eq!(changed("disable_unet_training", unet).0, 0);
    assert!(changed("disable_unet_training", clip).0 > 10);
}

#[test]
fn captions_may_lie_in_a_folder_of_their_own() {
    let world = World::new();
    let with_captions_at = |root: &Path| json!({"caption_root": root, "max_epochs": 1});
    let undisturbed = world.undisturbed("beside", json!({"max_epochs": 1}));
    for name in ["0", "1", "2", "3", "sub/4"] {
        let (from, to) = (world.at(&format!("data/{name}.txt")), world.at(&format!("captions/{name}.txt")));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::rename(from, to).unwrap();
    }
    let report = world.undisturbed("apart", with_captions_at(&world.at("captions")));
    assert_eq!(report.losses, undisturbed.losses);
    let made = |output: &str| {
        // The configuration names the folder of the captions; its hash is in the log.
        let told = |name: &str| [EFFECTIVE_JSON, LOG].contains(&name);
        world.files(output).into_iter().filter(|(name, _)| !told(name)).collect::<Vec<_>>()
    };
    assert_eq!(made("apart"), made("beside"));
    let error = world.error(json!({"max_epochs": 1})).to_string();
    assert!(error.contains("5 of the pictures") && error.contains("`sub/4.png`"), "{error}");
}

#[test]
fn bad_pictures_are_skipped_and_named() {
    let world = World::new();
    fs::write(world.at("data/bad.png"), "not a picture").unwrap();
    fs::write(world.at("data/bad.txt"), "a caption").unwrap();
    fs::write(world.at("data/empty.jpg"), "").unwrap();
    let mut seen = Vec::new();
    let on_event = &mut |event: TrainEvent, _: &Interrupt| {
        if let TrainEvent::Skipped(skipped) = event {
            seen.push(skipped.image);
        }
    };
    let error = world.error(json!({"max_epochs": 1}));
    assert!(matches!(error, Error::Unreadable { count: 2, .. }), "{error}");
    let allowed = json!({"max_epochs": 1, "allow": ["unreadable"]});
    let report = world.train("out", allowed, on_event).unwrap();
    assert_eq!((report.outcome, report.pictures), (Outcome::Skipped, 5));
    let mut listed: Vec<_> = report.skipped.iter().map(|skipped| skipped.image.clone()).collect();
    assert_eq!(seen, listed);
    listed.sort();
    assert_eq!(listed, ["bad.png", "empty.jpg"]);
    assert!(report.to_string().contains("skipped bad.png: "), "{report}");
}

#[test]
fn data_that_cannot_be_trained_on_is_an_error() {
    let world = World::new();
    fs::write(world.at("data/2.txt"), " \n").unwrap();
    assert!(world.error(json!({})).to_string().ends_with("have no caption: `2.png`"));
    fs::create_dir(world.at("none")).unwrap();
    assert!(matches!(world.error(json!({"data_root": world.at("none")})), Error::NoPictures { .. }));
    fs::write(world.at("none/a.png"), "x").unwrap();
    fs::write(world.at("none/a.txt"), "x").unwrap();
    let error = world.error(json!({"data_root": world.at("none")}));
    assert!(
        error.to_string().starts_with("1 of the pictures cannot be read; the first is `a.png`"),
        "{error}"
    );
    let error = world.error(json!({"data_root": world.at("none"), "allow": ["unreadable"]}));
    assert!(error.to_string().starts_with("none of the 1 pictures in"), "{error}");
    assert!(world.error(json!({"data_root": world.at("nowhere")})).to_string().contains("nowhere"));
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_names_the_pictures() {
    let world = World::new();
    let error = world.error(json!({"lr": 1e20, "state_every_n_steps": 1}));
    let Error::NotFinite { epoch: 1, step: 2, pictures, .. } = &error else { panic!("{error:?}") };
    assert!(!pictures.is_empty());
    assert!(error.to_string().contains("is not finite in epoch 1, step 2, with the pictures `"), "{error}");
    assert!(world.at("out/state-gs00001.safetensors").exists(), "the state after step 1 stays");
}

/// Gradients of this picture are infinite; its losses are not.
fn spoil(world: &World) {
    fs::write(world.at("data/sub/loss_scale.txt"), "1e39").unwrap();
}

#[test]
fn a_gradient_that_is_not_finite_leaves_the_step_out_as_asked() {
    let world = World::new();
    spoil(&world);
    let mut told = Vec::new();
    let report = world.train("skip", json!({"on_nan": "skip"}), &mut |event, _| {
        if let TrainEvent::StepLeftOut { what: "gradient", step, pictures, scale: None, .. } = event {
            assert!(pictures.contains(&"sub/4.png".into()), "{pictures:?}");
            told.push(step);
        }
    });
    let report = report.unwrap();
    assert_eq!((report.outcome, &report.left_out_steps, told.len()), (Outcome::Skipped, &told, 3));
    assert!(report.to_string().contains("3 steps were left out, the first at "), "{report}");
    Checkpoint::open(&report.checkpoints[2]).unwrap().verify().unwrap();

    // Steps that are left out do not go into the state either.
    let error = world.train("stop", json!({"state_every_n_steps": 1}), &mut |_, _| ()).unwrap_err();
    let Error::NotFinite { what: "gradient", step, pictures, .. } = &error else { panic!("{error:?}") };
    assert_eq!(*step, told[0]);
    assert!(pictures.contains(&"sub/4.png".into()));

    let wrong = world.error(json!({"on_nan": "lower_scale"}));
    assert!(wrong.to_string().starts_with("`on_nan` is lower_scale, expected `stop` or `skip`"), "{wrong}");
}

#[test]
fn losses_that_are_read_late_are_the_same_and_all_there() {
    let world = World::new();
    spoil(&world);
    let train = |output: &str, every: u64, changes: Value| {
        let mut config = TrainConfig { output: Some(world.at(output)), ..world.config.clone() };
        set(&mut config, json!({"on_nan": "skip", "grad_accum": 2, "state_every_n_steps": 2}));
        set(&mut config, changes);
        let mut plan = config.plan().unwrap();
        plan.read_every_n_steps = every;
        let mut steps = Vec::new();
        let interrupt = Interrupt::new();
        let report = run(&plan, &interrupt, &mut |event| match event {
            TrainEvent::Step { step, loss, .. } => steps.push((step, loss.to_bits())),
            TrainEvent::StepLeftOut { step, .. } => steps.push((step, 0)),
            _ => {}
        });
        let mut files = world.files(output);
        // It says how often they are read.
        files.remove("train.effective.json");
        (report.unwrap().left_out_steps, steps, files)
    };
    let at_once = train("at-once", 1, json!({}));
    assert_eq!(train("late", 10, json!({})), at_once);
    // The scale is that of each step, not of when it is looked at.
    let scaled =
        || json!({"precision": "fp16", "on_nan": "lower_scale", "log_step": 1, "state_every_n_steps": null});
    let at_once = train("at-once-fp16", 1, scaled());
    assert!(!at_once.0.is_empty(), "the scale changed");
    assert_eq!(train("late-fp16", 10, scaled()), at_once);
}

#[test]
fn every_precision_resumes_to_the_bit() {
    let world = World::alone();
    for precision in ["bf16", "fp16"] {
        let changes = json!({"precision": precision, "max_epochs": 2, "save_every_n_epochs": 2,
            "vae_precision": "bf16",
            "gradient_checkpointing": true, "state_every_n_steps": 1});
        let (whole, parts) = (format!("{precision}-whole"), format!("{precision}-parts"));
        let report = world.undisturbed(&whole, changes.clone());
        assert_eq!(report.outcome, Outcome::Done);
        world.train(&parts, changes.clone(), &mut at_step(4, Interrupt::raise)).unwrap();
        world.undisturbed(&parts, changes);
        assert_eq!(world.files(&parts), world.files(&whole), "{precision}");
    }
}

#[test]
fn v_prediction_is_trained_where_the_base_or_the_configuration_says_so() {
    let world = World::new();
    let noise = world.undisturbed("noise", json!({"max_epochs": 1}));
    let keys = || {
        json!({"prediction_type": "v_prediction", "max_epochs": 1, "enable_zero_terminal_snr": true,
        "min_snr_gamma": 5.0, "save_diffusers": true, "save_full_precision": true})
    };
    let report = world.undisturbed("v", keys());
    assert_ne!(report.losses, noise.losses);
    world.train("parts", keys(), &mut at_step(2, Interrupt::raise)).unwrap();
    world.undisturbed("parts", keys());
    assert_eq!(world.files("parts"), world.files("v"));
    let trained = &report.checkpoints[0];
    for path in [trained.clone(), trained.with_extension("")] {
        let config = Checkpoint::open(path).unwrap().config().clone();
        assert_eq!((config.prediction, config.zero_terminal_snr), (Prediction::VPrediction, true));
    }
    let folder = trained.with_extension("");
    let scheduler = fs::read_to_string(folder.join("scheduler/scheduler_config.json")).unwrap();
    assert!(scheduler.contains(r#""rescale_betas_zero_snr": true"#), "{scheduler}");

    assert_eq!(Checkpoint::open(trained).unwrap().metadata()["modelspec.prediction_type"], "v");
    // To go on from it is to train with v, unless it is said otherwise.
    let after = |base: &Path, output: &str, prediction: Value| {
        let keys = json!({"resume_ckpt": base, "max_epochs": 1, "prediction_type": prediction});
        world.undisturbed(output, keys).losses
    };
    let stated = after(trained, "stated", json!("v_prediction"));
    assert_eq!(after(trained, "found", json!(null)), stated);
    assert_ne!(after(trained, "other", json!("epsilon")), stated);
}

#[test]
fn broken_pictures_of_one_name_in_two_folders_are_both_skipped() {
    let world = World::new();
    let held_out = world.at("held-out");
    fs::create_dir(&held_out).unwrap();
    for folder in [world.at("data"), held_out.clone()] {
        fs::write(folder.join("bad.png"), "not a picture").unwrap();
        fs::write(folder.join("bad.txt"), "a caption").unwrap();
    }
    fs::copy(world.at("data/0.png"), held_out.join("0.png")).unwrap();
    fs::write(held_out.join("0.txt"), "a circle").unwrap();
    let file = world.at("validation.json");
    let validation =
        json!({"val_split_mode": "manual", "manual_data_root": held_out, "stabilize_training_loss": true});
    fs::write(&file, validation.to_string()).unwrap();
    let keys = json!({"validation_config": file, "allow": ["unreadable"], "max_epochs": 1});
    let mut told = 0;
    let on_event =
        &mut |event: TrainEvent, _: &Interrupt| told += usize::from(matches!(event, TrainEvent::Skipped(_)));
    let report = world.train("out", keys, on_event).unwrap();
    assert_eq!((report.outcome, report.skipped.len(), told), (Outcome::Skipped, 2, 2));
}

#[test]
fn eight_pictures_are_learned_by_heart() {
    let world = World::new();
    let data = world.at("eight");
    fs::create_dir(&data).unwrap();
    for i in 0..8 {
        let picture = RgbImage::from_fn(64, 64, |x, y| image_pixel(i, x, y));
        picture.save(data.join(format!("{i}.png"))).unwrap();
        fs::write(data.join(format!("{i}.txt")), format!("picture {i}")).unwrap();
    }
    let optimizer = world.at("optimizer.json");
    fs::write(&optimizer, r#"{"optimizer": "adamw", "weight_decay": 0.0}"#).unwrap();
    // Almost nothing but noise is to be seen: to know it is to know the picture.
    let report = world.undisturbed(
        "out",
        json!({"data_root": data, "batch_size": 8, "max_epochs": 150, "lr": 3e-3, "cond_dropout": 0.0,
            "timestep_start": 600, "save_every_n_epochs": null, "optimizer_config": optimizer}),
    );
    let (first, last) = report.losses.unwrap();
    assert!(first > 0.5 && last < 0.05, "{first} {last}");
}

#[test]
fn a_bad_base_checkpoint_is_an_error_that_names_it() {
    let world = World::new();
    let whole = fs::read(world.config.resume_ckpt.clone().unwrap()).unwrap();
    let truncated = world.at("truncated.safetensors");
    fs::write(&truncated, &whole[..whole.len() / 2]).unwrap();
    let error = world.error(json!({"resume_ckpt": truncated}));
    assert!(
        matches!(error, Error::Checkpoint(_)) && error.to_string().contains("truncated.safetensors"),
        "{error}"
    );
    let nan = world.at("nan.safetensors");
    let mut bytes = whole;
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&0x7e00_u16.to_le_bytes());
    fs::write(&nan, bytes).unwrap();
    let error = world.error(json!({"resume_ckpt": nan}));
    assert!(
        matches!(error, Error::Checkpoint(_)) && error.to_string().contains("nan.safetensors"),
        "{error}"
    );
}

#[test]
fn a_layer_that_the_text_encoder_does_not_have_is_an_error() {
    let error = World::new().error(json!({"clip_skip": 3}));
    assert_eq!(error.to_string(), "`clip_skip` is 3, expected at most the layers of the text encoder");
}

#[test]
fn an_earlier_checkpoint_that_is_gone_is_an_error() {
    let world = World::new();
    world.train("out", json!({}), &mut at_step(4, Interrupt::raise)).unwrap();
    fs::remove_file(world.at("out/tiny-ep01-gs00003.safetensors")).unwrap();
    let said = world.error(json!({})).to_string();
    assert!(
        said.ends_with(
            "tiny-ep01-gs00003.safetensors` was written by the run in hand and is gone; put it back, or start over with \
             `--resume never`"
        ),
        "{said}"
    );
}

#[test]
fn a_log_and_events_tell_each_step_once() {
    let world = World::new();
    let file = world.at("validation.json");
    fs::write(&file, json!({"auto_split_proportion": 0.4, "stabilize_training_loss": true}).to_string())
        .unwrap();
    let optimizer = world.at("optimizer.json");
    fs::write(&optimizer, json!({"log_grad_norm": true}).to_string()).unwrap();
    let keys = || json!({"validation_config": file, "optimizer_config": optimizer, "log_step": 2, "clip_grad_norm": 1e-3});
    world.train("out", keys(), &mut at_step(3, Interrupt::raise)).unwrap();
    world.undisturbed("out", keys());
    let log = world.log("out");
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str| lines.iter().filter(|line| line["event"] == kind).cloned().collect::<Vec<_>>();
    let steps: Vec<_> = of("step").iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=steps.len() as u64).collect::<Vec<_>>());
    assert!(of("step").iter().all(|line| line["grad_norm_unet"].as_f64().unwrap() > 0.0), "{log}");
    assert_eq!((of("epoch").len(), of("checkpoint").len(), of("validation").len()), (3, 3, 2 * 4));
    let losses = fs::read_to_string(world.at("out/losses.csv")).unwrap();
    let losses: Vec<f32> =
        losses.lines().skip(1).map(|line| line.split(',').nth(2).unwrap().parse().unwrap()).collect();
    let events = world.events("out");
    let values = |tag: &str| {
        let of_tag = events.iter().filter(|(_, found, _)| found == tag);
        of_tag.map(|(step, _, value)| (*step, *value)).collect::<Vec<_>>()
    };
    assert_eq!(values("loss/log_step")[0], (2, (losses[0] + losses[1]) / 2.0));
    assert_eq!(values("loss/log_step").len(), steps.len() / 2);
    assert_eq!(values("hyperparameter/lr unet")[0], (2, 1e-3));
    assert_eq!(values("loss/epoch").len(), 3);
    assert!(values("optimizer/te_grad_norm").iter().all(|(_, norm)| *norm == 1e-3), "all were longer");
    let before = values("optimizer/te_pre_clip_norm");
    assert!(before.len() == steps.len() && before.iter().all(|(_, norm)| *norm > 1e-3), "{before:?}");
    let [val, stable, all] = ["loss/val", "loss/stabilize-train", "loss/_all_val_combined"].map(values);
    assert_eq!((val.len(), val[0].0, stable.len()), (4, 0, 4));
    assert!((all[3].1 - (val[3].1 + stable[3].1) / 2.0).abs() < 1e-6);
    let told = event_values(&world.at("out").join(EVENTS));
    assert!(told.iter().any(|(_, tag, value)| tag == "performance/images per second" && *value > 0.0));
    let time = fs::read_to_string(world.at("out").join(LOG)).unwrap();
    assert!(time.lines().nth(1).unwrap().contains("validation"), "before the first step: {time}");
    assert!(time.contains(r#""time":{"images_per_s":"#), "{time}");
}

#[test]
fn a_folder_for_logs_holds_a_folder_for_each_run() {
    let world = World::new();
    let keys = |lr: f64| json!({"logdir": world.at("logs"), "max_epochs": 1, "lr": lr});
    world.undisturbed("a", keys(1e-3));
    world.undisturbed("b", keys(1e-4));
    let folders: Vec<_> =
        fs::read_dir(world.at("logs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(folders.len(), 2);
    // The same run in another folder has its own.
    world.undisturbed("c", keys(1e-4));
    assert_eq!(fs::read_dir(world.at("logs")).unwrap().count(), 3);
    for folder in folders {
        assert!(folder.file_name().unwrap().to_string_lossy().starts_with("tiny-"));
        assert!(folder.join("events.out.tfevents.0.vodka").exists());
    }
}

#[test]
fn the_graph_of_losses_is_drawn_at_each_checkpoint() {
    let world = World::new();
    let file = world.at("validation.json");
    fs::write(&file, json!({"auto_split_proportion": 0.4, "stabilize_training_loss": true}).to_string())
        .unwrap();
    let svg = || fs::read_to_string(world.at("out/losses.svg"));
    let mut first = None;
    let on_event = &mut |event: TrainEvent, _: &Interrupt| match event {
        TrainEvent::Step { step: 1, .. } => assert!(svg().is_err(), "not before the first checkpoint"),
        TrainEvent::Saved { .. } => drop(first.get_or_insert_with(|| svg().unwrap())),
        _ => {}
    };
    world.train("out", json!({"validation_config": file}), on_event).unwrap();
    let last = svg().unwrap();
    assert_ne!(first.unwrap(), last);
    for text in
        ["Loss of tiny", "training", "training, smoothed", "validation: val", "training pictures, stabilised"]
    {
        assert!(last.contains(&format!("\n{text}\n")), "{text}");
    }
    let png = vodka_images::decode(&world.at("out/losses.png")).unwrap().into_rgb();
    assert_eq!(png.dimensions(), (1000, 560));
}

#[test]
fn checkpoints_are_called_as_in_everydream2_and_come_when_they_should() {
    let world = World::new();
    let names = |output: &str| {
        let names = world.files(output).into_keys().filter(|name| name.ends_with(".safetensors"));
        names.collect::<Vec<_>>()
    };
    world.undisturbed("late", json!({"save_ckpts_from_n_epochs": 2, "no_prepend_last": true}));
    assert_eq!(names("late"), ["tiny-ep02-gs00006.safetensors", "tiny-ep03-gs00009.safetensors"]);
    world.undisturbed("plain", json!({"no_prepend_last": true, "save_optimizer": true}));
    assert!(world.at("plain/state-gs00009.safetensors").exists(), "`save_optimizer` keeps the state");
    // Each step is later than no time at all.
    let timed = world.undisturbed("timed", json!({"no_prepend_last": true, "ckpt_every_n_minutes": 1e-9}));
    let by_the_clock: Vec<_> =
        names("timed").into_iter().filter(|name| !names("plain").contains(name)).collect();
    let expected =
        ["ep00-gs00001", "ep00-gs00002", "ep01-gs00004", "ep01-gs00005", "ep02-gs00007", "ep02-gs00008"];
    assert_eq!(by_the_clock, expected.map(|name| format!("tiny-{name}.safetensors")));
    assert_eq!(timed.checkpoints.len(), 3, "those of the epochs");
    let files = |output: &str| {
        let all = world.files(output);
        names(output).into_iter().map(move |name| (name.clone(), all[&name])).collect::<BTreeMap<_, _>>()
    };
    let timed = files("timed");
    for (name, hash) in files("plain").into_iter().filter(|(name, _)| name.starts_with("tiny")) {
        assert_eq!(timed[&name], hash, "{name}: the clock does not touch the training");
    }
}

#[test]
fn what_stops_leaves_a_checkpoint_that_goes_when_it_goes_on() {
    let world = World::new();
    world.train("out", json!({}), &mut at_step(4, Interrupt::raise)).unwrap();
    let interrupted = world.at("out/interrupted-gs00004.safetensors");
    Checkpoint::open(&interrupted).unwrap().verify().unwrap();
    world.undisturbed("out", json!({}));
    assert!(!interrupted.exists());
    let said = world.train("bad", json!({"lr": 1e20}), &mut |_, _| ()).unwrap_err();
    assert!(matches!(said, Error::NotFinite { .. }), "{said}");
    // With such weights there is nothing to keep; with others there is.
    let broken = &mut |event: TrainEvent, _: &Interrupt| {
        if let TrainEvent::Step { step: 4, .. } = event {
            fs::remove_dir_all(world.at("bad/samples")).unwrap();
            fs::write(world.at("bad/samples"), "in the way").unwrap();
        }
        if let TrainEvent::Sample(round) = event {
            round.give(0, RgbImage::new(8, 8));
        }
    };
    let prompts = world.at("prompts.txt");
    fs::write(&prompts, "a cat").unwrap();
    let error =
        world.train("bad", json!({"sample_prompts": prompts, "sample_steps": 1}), broken).unwrap_err();
    assert!(matches!(error, Error::Stage(_)), "{error}");
    let errored = world.at("bad/errored-tiny-ep01-gs00004.safetensors");
    Checkpoint::open(&errored).unwrap().verify().unwrap();
    fs::remove_file(world.at("bad/samples")).unwrap();
    world.undisturbed("bad", json!({"sample_prompts": prompts}));
    assert!(!errored.exists());
}

#[test]
fn a_checkpoint_says_what_it_is_and_where_it_comes_from() {
    let world = World::new();
    let metadata = |output: &str| {
        let report = world.undisturbed(output, json!({"max_epochs": 1}));
        Checkpoint::open(&report.checkpoints[0]).unwrap().metadata().clone()
    };
    let first = metadata("first");
    for (key, value) in [
        ("modelspec.sai_model_spec", "1.0.1"),
        ("modelspec.architecture", "stable-diffusion-v1"),
        ("modelspec.title", "last-tiny-ep01-gs00003"),
        ("modelspec.resolution", "64x64"),
        ("modelspec.prediction_type", "epsilon"),
        ("modelspec.timestep_range", "0,1000"),
        ("vodka.train.step", "3"),
    ] {
        assert_eq!(first[key], value, "{key}");
    }
    let bytes = fs::read(world.at("first/last-tiny-ep01-gs00003.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    assert_eq!(first["modelspec.hash_sha256"], format!("0x{}", hash_bytes(&bytes[header..])));
    assert!(first["vodka.train"].contains("\"resolution\":64"), "{}", first["vodka.train"]);
    fs::write(world.at("data/1.txt"), "another caption").unwrap();
    let second = metadata("second");
    assert_ne!(first["vodka.train.data"], second["vodka.train.data"]);
    assert_eq!(first["vodka.train.base"], second["vodka.train.base"]);
}

/// Hands in a strip for each prompt, which says its number.
fn give_strips(event: TrainEvent) {
    if let TrainEvent::Sample(round) = event {
        assert_eq!(round.cfgs, [7.0, 4.0, 1.01]);
        for (i, prompt) in round.prompts.iter().enumerate() {
            let grey = if round.ema { 200 } else { 50 };
            assert_eq!((prompt.width, prompt.height), (64, 64));
            round.give(i, RgbImage::from_pixel(3 * 64, 64, vodka_images::Rgb([grey; 3])));
        }
    }
}

#[test]
fn samples_are_asked_for_and_kept_and_do_not_touch_the_training() {
    let world = World::new();
    let prompts = world.at("prompts.json");
    let file = |prompt: &str| {
        let samples =
            json!([{"prompt": prompt, "seed": 3}, {"random_caption": true, "negative_prompt": "blue"}]);
        fs::write(&prompts, json!({"generate_pretrain_samples": true, "samples": samples}).to_string())
            .unwrap();
    };
    file("a cat!");
    let keys = || {
        json!({"sample_prompts": prompts, "sample_steps": 4, "ema_decay_rate": 0.9,
        "ema_update_interval": 1, "ema_sample_ema_model": true, "ema_sample_nonema_model": true})
    };
    let plain = world.undisturbed("plain", json!({"ema_decay_rate": 0.9, "ema_update_interval": 1}));
    let mut unreadable = 0;
    let on_event = &mut |event: TrainEvent, _: &Interrupt| match event {
        // Edited while it runs: first rightly, then wrongly.
        TrainEvent::Step { step: 1, .. } => file("a dog"),
        TrainEvent::Step { step: 5, .. } => fs::write(&prompts, "{").unwrap(),
        TrainEvent::SamplesUnreadable { .. } => unreadable += 1,
        event => give_strips(event),
    };
    let report = world.train("out", keys(), on_event).unwrap();
    assert_eq!((report.losses, unreadable), (plain.losses, 1));
    let (with, without) = (world.files("out"), world.files("plain"));
    for (name, hash) in without.iter().filter(|(name, _)| ![EVENTS, EFFECTIVE_JSON].contains(&name.as_str()))
    {
        assert_eq!(with.get(name), Some(hash), "{name}");
    }
    let names: Vec<_> = with.keys().filter_map(|name| name.strip_prefix("samples/")).collect();
    for name in [
        "gs00000-000-a cat.jpg",
        "gs00004-000-a dog.jpg",
        "gs00008-000-ema_a dog.jpg",
        "gs00008-000-a dog.txt",
    ] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    assert_eq!(
        names.len(),
        3 * 2 * 2 * 2,
        "three rounds, two prompts, two models, picture and text: {names:?}"
    );
    let text = fs::read_to_string(world.at("out/samples/gs00004-000-a dog.txt")).unwrap();
    assert_eq!(text, "a dog\n seed: 3");
    let captions: Vec<_> =
        names.iter().filter(|name| name.starts_with("gs00004-001-a red circle number")).collect();
    assert_eq!(captions.len(), 2, "{names:?}");
    let tags: Vec<_> = world
        .events("out")
        .into_iter()
        .filter(|(step, tag, _)| *step == 8 && tag.starts_with("sample"))
        .collect();
    let tags: Vec<_> = tags.iter().map(|(_, tag, _)| tag.as_str()).collect();
    assert_eq!(tags, ["sample_000_a dog", "sample_001", "sample_000_ema_a dog", "sample_001ema_"]);
}

#[test]
fn a_broken_file_of_samples_is_an_error_before_the_run() {
    let world = World::new();
    let prompts = world.at("prompts.json");
    fs::write(&prompts, r#"{"scheduler": "dpm+"}"#).unwrap();
    let error = world.error(json!({"sample_prompts": prompts}));
    assert!(error.to_string().contains("prompts.json") && matches!(error, Error::InFile { .. }), "{error}");
    // One that is not there yet may come.
    let keys = json!({"sample_prompts": world.at("later.txt"), "sample_steps": 1, "max_epochs": 1});
    world.train("out", keys, &mut |event, _| give_strips(event)).unwrap();
    assert!(world.at("out/samples").exists(), "captions stand in for it");
}

#[test]
fn the_learning_rate_finder_finds_where_the_loss_falls_and_touches_nothing() {
    let world = World::new();
    let report = world.train("out", json!({}), &mut at_step(4, Interrupt::raise)).unwrap();
    assert_eq!(report.outcome, Outcome::Interrupted);
    let before = world.files("out");
    let mut config = TrainConfig { output: Some(world.at("out")), ..world.config.clone() };
    set(&mut config, json!({"optimizer_config": null}));
    let settings = FinderSettings { lr_min: 1e-6, lr_max: 10.0, steps: 40 };
    let found = find_lr(&config.plan().unwrap(), &settings, &Interrupt::new(), &mut |_| ()).unwrap();
    assert!(found.diverged && found.tried.len() < 40, "{found:?}");
    let (lr, limit) = (found.suggestion.unwrap(), found.limit.unwrap());
    assert!(lr < limit && limit < 1.0, "{found:?}");
    let rates: Vec<_> = found.tried.iter().map(|tried| tried.lr).collect();
    assert!(rates.windows(2).all(|pair| pair[1] > pair[0]));
    let table = fs::read_to_string(world.at("out/find-lr/find-lr.csv")).unwrap();
    assert_eq!(table.lines().count(), found.tried.len() + 1);
    assert!(world.at("out/find-lr/find-lr.svg").exists() && world.at("out/find-lr/find-lr.png").exists());
    let mut after = world.files("out");
    after.retain(|name, _| !name.starts_with("find-lr/"));
    assert_eq!(after, before, "neither checkpoints nor state are touched");
    assert!(!walk(&world.at("out/find-lr")).iter().any(|path| path.ends_with(".safetensors")));
    let said = found.to_string();
    assert!(said.starts_with("suggested learning rate ") && said.contains("went wild"), "{said}");
}

#[test]
fn a_report_says_where_the_time_went() {
    let world = World::new();
    let report = world.undisturbed("out", json!({"max_epochs": 1}));
    let phases: Vec<_> = report.spent.iter().map(|spent| spent.phase).collect();
    for phase in [Phase::Data, Phase::Vae, Phase::Networks, Phase::Optimizer, Phase::Saving] {
        assert!(phases.contains(&phase), "{phases:?}");
    }
    let said = report.to_string();
    assert!(said.contains("\ntime: data ") && said.contains("UNet and text encoder "), "{said}");
    let record = fs::read_to_string(world.at("out.run.json")).unwrap();
    assert!(record.contains("\"spent\": []"), "no time in the record: {record}");
}

#[test]
fn a_checkpoint_may_be_a_diffusers_folder_too_or_only_that() {
    let world = World::new();
    let keys = || json!({"save_diffusers": true, "ema_decay_rate": 0.5, "ema_update_interval": 1});
    let report = world.undisturbed("both", keys());
    assert_eq!(world.undisturbed("both", keys()).outcome, Outcome::Unchanged);
    for path in report.checkpoints.iter().chain(&report.ema_checkpoints) {
        let [file, folder] =
            [path.clone(), path.with_extension("")].map(|path| Checkpoint::open(path).unwrap());
        folder.check_names().unwrap();
        for name in file.names() {
            let [file, folder] = [&file, &folder].map(|checkpoint| checkpoint.tensor(name).unwrap().to_f32());
            assert_eq!(file, folder, "{name}");
        }
    }
    world.train("parts", keys(), &mut at_step(4, Interrupt::raise)).unwrap();
    assert!(world.at("parts/interrupted-gs00004").is_dir());
    world.undisturbed("parts", keys());
    assert_eq!(world.files("parts"), world.files("both"));
    let report = world.undisturbed("folders", json!({"no_save_ckpt": true}));
    assert_eq!(report.checkpoints[2], world.at("folders/last-tiny-ep03-gs00009"));
    assert!(world.files("folders").keys().all(|name| !name.ends_with("gs00009.safetensors")));
    fs::remove_dir_all(world.at("both/tiny-ep01-gs00003")).unwrap();
    assert_eq!(world.undisturbed("both", keys()).outcome, Outcome::Done, "made again");
}
