//! The data path: caches that change nothing but the time, pictures that change or vanish, and states that are damaged.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::PathBuf,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use vodka_images::{Rgb, RgbImage};
use vodka_stage::{ContentHash, FolderLock, Interrupt, Outcome, hash_file};
use vodka_trainer::{Error, Result, TrainConfig, TrainEvent, TrainReport, run};

/// Pictures with captions in a folder of their own, and a configuration that trains the tiny model on them.
struct World {
    dir: TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(world.at("data")).unwrap();
        for i in 0..6 {
            let (width, height) = if i % 2 == 0 { (70, 64) } else { (130, 66) };
            world.draw(i, width, height, 40 * i as u8);
            fs::write(world.at(&format!("data/{i}.txt")), format!("a red circle number {i}")).unwrap();
        }
        world
    }

    fn draw(&self, i: u32, width: u32, height: u32, blue: u8) {
        let pixel = |x: u32, y: u32| Rgb([(x * 3 + 40 * i) as u8, (y * 2) as u8, blue]);
        RgbImage::from_fn(width, height, pixel).save(self.at(&format!("data/{i}.bmp"))).unwrap();
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self, output: &str, changes: Value) -> TrainConfig {
        let mut config = TrainConfig {
            data_root: self.at("data").into(),
            resume_ckpt: Some(vodka_testkit::model("base")),
            output: Some(self.at(output)),
            ..TrainConfig::default()
        };
        let keys = json!({"resolution": 64, "batch_size": 2, "max_epochs": 2, "lr": 1e-3, "cond_dropout": 0.3,
            "project_name": "tiny", "threads": 1});
        for (key, value) in keys.as_object().unwrap().iter().chain(changes.as_object().unwrap()) {
            config.set(key, value.clone()).unwrap();
        }
        config
    }

    /// Trains into the folder `output`.
    fn train(
        &self,
        output: &str,
        changes: Value,
        on_event: &mut dyn FnMut(TrainEvent, &Interrupt),
    ) -> Result<TrainReport> {
        let interrupt = Interrupt::new();
        run(&self.config(output, changes).plan()?, &interrupt, &mut |event| on_event(event, &interrupt))
    }

    fn undisturbed(&self, output: &str, changes: Value) -> TrainReport {
        self.train(output, changes, &mut |_, _| ()).unwrap()
    }

    /// What the run has left, but for the configuration, which says where, and the log, which tells the time.
    fn files(&self, output: &str) -> BTreeMap<String, ContentHash> {
        let entries = fs::read_dir(self.at(output)).unwrap().map(|entry| entry.unwrap().path());
        let told = ["train.effective.json", "log.jsonl"];
        let is_made = |path: &PathBuf| path.is_file() && !told.iter().any(|name| path.ends_with(name));
        let files = entries.filter(is_made);
        files
            .map(|path| (path.file_name().unwrap().to_string_lossy().into(), hash_file(path).unwrap()))
            .collect()
    }

    /// The files in the cache's folder, the index apart.
    fn entries(&self, cache: &str) -> Vec<PathBuf> {
        let list =
            |path: PathBuf| fs::read_dir(path).into_iter().flatten().map(|entry| entry.unwrap().path());
        list(self.at(cache).join("entries")).flat_map(list).collect()
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
fn caches_and_threads_change_no_result() {
    let world = World::new();
    let validation = world.at("validation.json");
    fs::write(&validation, json!({"auto_split_proportion": 0.3}).to_string()).unwrap();
    for (name, option) in [
        ("plain", json!({})),
        ("crops", json!({"crop_variants": 3, "flip_p": 0.5, "max_epochs": 4})),
        ("frozen", json!({"disable_textenc_training": true})),
        ("head", json!({"compat": "ed2-head", "resolution": 64})),
    ] {
        let with = |changes: Value| {
            let mut keys = option.clone();
            keys["validation_config"] = json!(validation);
            keys["cache_dir"] = json!(world.at(&format!("cache-{name}")));
            keys.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            keys
        };
        world.undisturbed(&format!("{name}-off"), with(json!({"cache": "off"})));
        assert_eq!(world.entries(&format!("cache-{name}")).len(), 0);
        for (i, changes) in [
            json!({"cache": "memory", "data_threads": 1}),
            json!({"data_threads": 5}),
            json!({"data_threads": 1}),
            // Room for two entries.
            json!({"cache_size_gb": 2e-6}),
        ]
        .into_iter()
        .enumerate()
        {
            let output = format!("{name}-{i}");
            world.undisturbed(&output, with(changes));
            assert_eq!(world.files(&output), world.files(&format!("{name}-off")), "{output}");
        }
    }
}

#[test]
fn what_is_cached_is_not_made_again_and_needs_no_picture() {
    let world = World::new();
    let picture = world.at("data/3.bmp");
    let bytes = fs::read(&picture).unwrap();
    let keys = || json!({"max_epochs": 4, "state_every_n_steps": 2});
    world.undisturbed("whole", keys());
    let entries = world.entries("vodka-cache");
    assert_eq!(entries.len(), 6, "one a picture");

    // The picture vanishes while the run is on.
    let remove = || at_step(1, |_: &Interrupt| fs::remove_file(&picture).unwrap());
    let report = world.train("cached", keys(), &mut remove()).unwrap();
    assert_eq!(report.outcome, Outcome::Done);
    assert_eq!(world.files("cached"), world.files("whole"));
    fs::write(&picture, &bytes).unwrap();

    // Without a cache it is missed, after what was done before is saved.
    let mut keys = keys();
    keys["cache"] = json!("off");
    let error = world.train("gone", keys.clone(), &mut remove()).unwrap_err();
    let said = error.to_string();
    assert!(matches!(error, Error::PictureGone { .. }), "{said}");
    assert!(
        said.contains("data/3.bmp` cannot be read any more: ") && said.ends_with("command goes on"),
        "{said}"
    );
    fs::write(&picture, &bytes).unwrap();
    let mut started = 0;
    world
        .train("gone", keys.clone(), &mut |event: TrainEvent, _| {
            if let TrainEvent::Started { done, .. } = event {
                started = done;
            }
        })
        .unwrap();
    assert!(started > 0, "it goes on from the state that was saved");
    assert_eq!(world.files("gone"), world.files("whole"));

    // Another picture in its place.
    let exchange = &mut at_step(1, |_| world.draw(3, 130, 66, 1));
    let said = world.train("changed", keys, exchange).unwrap_err().to_string();
    assert!(said.contains("data/3.bmp` was changed since the run began"), "{said}");
}

#[test]
fn a_picture_that_was_edited_is_encoded_again() {
    let world = World::new();
    let off = || json!({"cache": "off"});
    let before = world.undisturbed("before", json!({})).losses;
    // Other pixels, the same number of bytes, and the old time.
    let picture = world.at("data/2.bmp");
    let time = fs::metadata(&picture).unwrap().modified().unwrap();
    let size = fs::metadata(&picture).unwrap().len();
    world.draw(2, 70, 64, 200);
    assert_eq!(fs::metadata(&picture).unwrap().len(), size);
    File::options().write(true).open(&picture).unwrap().set_modified(time).unwrap();
    let after = world.undisturbed("after", json!({})).losses;
    assert_eq!(after, world.undisturbed("after-off", off()).losses);
    assert_ne!(after, before);
    assert_eq!(world.entries("vodka-cache").len(), 7, "one picture is new");
    // Another resolution, crop or mirror image is something else as well.
    for (i, changes) in
        [json!({"resolution": 128}), json!({"crop_variants": 2, "seed": 3}), json!({"flip_p": 1.0})]
            .into_iter()
            .enumerate()
    {
        let before = world.entries("vodka-cache").len();
        let mut uncached = changes.clone();
        uncached["cache"] = json!("off");
        let losses = world.undisturbed(&format!("other-{i}"), changes).losses;
        assert_eq!(losses, world.undisturbed(&format!("other-off-{i}"), uncached).losses);
        assert!(world.entries("vodka-cache").len() > before);
    }
}

#[test]
fn a_damaged_cache_is_made_again() {
    let world = World::new();
    world.undisturbed("whole", json!({}));
    for (i, path) in world.entries("vodka-cache").iter().enumerate() {
        let mut bytes = fs::read(path).unwrap();
        match i % 3 {
            0 => bytes.truncate(bytes.len() / 2),
            1 => bytes.clear(),
            _ => {
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
            }
        }
        fs::write(path, bytes).unwrap();
    }
    fs::write(world.at("vodka-cache/pictures.index"), "nonsense").unwrap();
    world.undisturbed("again", json!({}));
    assert_eq!(world.files("again"), world.files("whole"));
}

#[test]
fn a_cache_that_cannot_be_written_is_told_of_and_the_run_goes_on() {
    let world = World::new();
    world.undisturbed("whole", json!({}));
    fs::create_dir(world.at("cache")).unwrap();
    let mut told = 0;
    let block = &mut |event: TrainEvent, _: &Interrupt| match event {
        // A file where the folder of the entries should be.
        TrainEvent::Started { .. } => {
            fs::remove_dir_all(world.at("cache/entries")).unwrap();
            fs::write(world.at("cache/entries"), "").unwrap();
        }
        TrainEvent::CacheFailed { path, .. } => {
            assert_eq!(path, world.at("cache"));
            told += 1;
        }
        _ => {}
    };
    world.train("out", json!({"cache_dir": world.at("cache")}), block).unwrap();
    assert!(told > 0);
    assert_eq!(world.files("out"), world.files("whole"));
    let mut needed = 0;
    let small = &mut |event: TrainEvent, _: &Interrupt| {
        if let TrainEvent::CacheTooSmall { needed_bytes, .. } = event {
            needed = needed_bytes;
        }
    };
    world.train("small", json!({"cache_size_gb": 1e-6}), small).unwrap();
    assert!(needed > 1000, "{needed}");
}

#[test]
fn copies_of_a_picture_in_an_epoch_have_random_numbers_of_their_own() {
    let world = World::new();
    fs::write(world.at("data/multiply.txt"), "4").unwrap();
    let report =
        world.undisturbed("out", json!({"lr": 1e-30, "cond_dropout": 0.0, "max_epochs": 1, "batch_size": 1}));
    assert_eq!(report.steps, 24);
    let losses = fs::read_to_string(world.at("out/losses.csv")).unwrap();
    let losses: Vec<_> = losses.lines().skip(1).map(|line| line.split(',').nth(2).unwrap()).collect();
    let different: std::collections::BTreeSet<_> = losses.iter().collect();
    assert_eq!(different.len(), 24, "the weights stay, so equal numbers would give equal losses: {losses:?}");
}

#[test]
fn a_damaged_state_is_passed_over_and_the_run_goes_on_to_the_same_files() {
    let world = World::new();
    let keys = || json!({"state_every_n_steps": 1, "max_epochs": 3});
    world.undisturbed("whole", keys());
    world.train("out", keys(), &mut at_step(5, Interrupt::raise)).unwrap();
    let state = world.at("out/state-gs00005.safetensors");
    let mut bytes = fs::read(&state).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&state, bytes).unwrap();
    let mut events = Vec::new();
    world
        .train("out", keys(), &mut |event: TrainEvent, _| match event {
            TrainEvent::StateRefused { path, reason } => events.push((path, reason)),
            TrainEvent::Started { done, .. } => assert_eq!(done, 4),
            _ => {}
        })
        .unwrap();
    let [(path, reason)] = &events[..] else { panic!("{events:?}") };
    assert!(*path == state && reason.starts_with("its checksum is "), "{reason}");
    assert_eq!(world.files("out"), world.files("whole"));
}

#[test]
fn states_are_saved_by_the_clock_and_that_changes_nothing() {
    let world = World::new();
    world.undisturbed("whole", json!({}));
    let mut saved = 0;
    let count = &mut |event: TrainEvent, _: &Interrupt| {
        saved += u32::from(matches!(event, TrainEvent::StateSaved { .. }));
    };
    world.train("out", json!({"state_every_n_minutes": 1e-9, "keep_states": 3}), count).unwrap();
    assert_eq!(saved, 7, "after each step but the last");
    assert_eq!(world.files("out"), world.files("whole"));
}

#[test]
fn what_changed_since_the_last_run_is_said() {
    let world = World::new();
    let changed = |changes: Value, interrupt_at: u64| {
        let mut said = Vec::new();
        let on_event = &mut |event: TrainEvent, interrupt: &Interrupt| match event {
            TrainEvent::AnotherRun { change, .. } => said.push(change),
            TrainEvent::Step { step, .. } if step == interrupt_at => interrupt.raise(),
            _ => {}
        };
        let report = world.train("out", changes, on_event).unwrap();
        (report.outcome, said)
    };
    assert_eq!(changed(json!({}), 2), (Outcome::Interrupted, vec![]));
    let change = "the setting `max_epochs` changed from 2 to 3".to_owned();
    assert_eq!(changed(json!({"max_epochs": 3}), 2), (Outcome::Interrupted, vec![change]));
    fs::write(world.at("data/0.txt"), "another caption").unwrap();
    let change = "the input `captions` changed".to_owned();
    assert_eq!(changed(json!({"max_epochs": 3}), 0), (Outcome::Done, vec![change]));
    assert_eq!(changed(json!({"max_epochs": 3}), 0), (Outcome::Unchanged, vec![]));
    let change = "the setting `max_epochs` changed from 3 to 4".to_owned();
    assert_eq!(changed(json!({"max_epochs": 4}), 0), (Outcome::Done, vec![change]));
}

#[cfg(unix)]
#[test]
fn two_runs_in_one_folder_and_a_disk_that_is_too_small_are_refused() {
    let world = World::new();
    fs::create_dir(world.at("out")).unwrap();
    let held = FolderLock::take(&world.at("out")).unwrap();
    let said = world.train("out", json!({}), &mut |_, _| ()).unwrap_err().to_string();
    assert!(said.ends_with("out` is held by another run: wait for it, or end it"), "{said}");
    drop(held);
    // Ten million checkpoints of 2.4 MB, with twins.
    let many = json!({"max_epochs": 10_000_000, "save_every_n_epochs": 1, "save_full_precision": true,
        "ema_decay_rate": 0.9});
    let said = world.train("out", many, &mut |_, _| ()).unwrap_err().to_string();
    assert!(said.contains(" MB free, what is still to be written needs "), "{said}");
    assert!(!world.files("out").keys().any(|name| name.ends_with(".safetensors")));
}
