//! The real binary under `kill -9`, and on a disk that is full: the same command goes on to the same files.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![cfg(unix)]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use image::{Rgb, RgbImage};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder with pictures, captions and `train.json`.
struct World {
    dir: TempDir,
}

impl World {
    fn new(changes: Value) -> Self {
        let world = Self { dir: folder() };
        fs::create_dir(world.at("data")).unwrap();
        for i in 0..7_u32 {
            let (width, height) = if i < 4 { (70, 64) } else { (128, 64) };
            let pixel = |x: u32, y: u32| Rgb([(x * 3 + 40 * i) as u8, (y * 2) as u8, (x + y) as u8]);
            RgbImage::from_fn(width, height, pixel).save(world.at(&format!("data/{i}.png"))).unwrap();
            fs::write(world.at(&format!("data/{i}.txt")), format!("a star, blue, number {i}")).unwrap();
        }
        let validation = json!({"auto_split_proportion": 0.2, "every_n_epochs": 0.5});
        fs::write(world.at("validation.json"), validation.to_string()).unwrap();
        let mut config = json!({"data_root": "data", "resume_ckpt": vodka_testkit::model("base"), "output": "out",
            "project_name": "tiny", "resolution": 64, "batch_size": 2, "max_epochs": 5, "lr": 1e-3, "threads": 1,
            "save_every_n_epochs": 2, "no_prepend_last": true});
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        fs::write(world.at("train.json"), config.to_string()).unwrap();
        world
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("vodka-train"));
        command.current_dir(self.dir.path()).args(["--config", "train.json"]).args(arguments);
        command
    }

    /// What the binary says when it ends with this exit code.
    fn said(&self, code: i32, arguments: &[&str]) -> String {
        told(self.command(arguments), code)
    }

    /// Starts the binary and kills it once it has said so often that it wrote something; whether it was still alive.
    fn kill_after(&self, times: usize) -> bool {
        let mut child = self.command(&[]).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let wrote = |line: &String| line.starts_with("saved ") || line.starts_with("wrote ");
        let heard = stderr.lines().map_while(Result::ok).filter(wrote).take(times).count();
        child.kill().unwrap(); // SIGKILL
        !child.wait().unwrap().success() && heard == times
    }

    /// Starts the binary and kills it once its log has so many lines more; whether it was still alive.
    fn kill_after_lines(&self, more: usize) -> bool {
        let log = self.at("out/log.jsonl");
        let lines = || fs::read(&log).map_or(0, |text| text.iter().filter(|byte| **byte == b'\n').count());
        let wanted = lines() + more;
        let mut child = self.command(&["--quiet"]).spawn().unwrap();
        while lines() < wanted {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            std::thread::yield_now();
        }
        child.kill().unwrap(); // SIGKILL
        !child.wait().unwrap().success()
    }

    /// What the run has left, but for the configuration, which says where, and for what is told of the time.
    fn files(&self, folder: &str) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(self.at(folder)).unwrap().map(|entry| entry.unwrap().path());
        let mut files: BTreeMap<_, _> = entries
            .filter(|path| path.is_file() && name(path) != "train.effective.json")
            .map(|path| (name(&path), fs::read(path).unwrap()))
            .collect();
        let events = self.at(folder).join("logs/events.out.tfevents.0.vodka");
        if events.exists() {
            let mut values = vodka_testkit::event_values(&events);
            values.retain(|(_, tag, _)| !tag.starts_with("performance/"));
            files.insert("events".to_owned(), format!("{values:?}").into_bytes());
        }
        if let Some(log) = files.get_mut("log.jsonl") {
            let line = |line: &str| {
                let mut line: Value = serde_json::from_str(line).unwrap();
                line.as_object_mut().unwrap().shift_remove("time");
                format!("{line}\n")
            };
            let text = String::from_utf8(log.clone()).unwrap();
            *log = text.lines().map(line).collect::<String>().into_bytes();
        }
        files
    }
}

/// A new folder, in memory where there is room: who is killed loses nothing of what he wrote there either, and does not
/// wait for a disk after each step.
fn folder() -> TempDir {
    const NEEDED: u64 = 1 << 30;
    let memory = Path::new("/dev/shm");
    match memory.is_dir() && vodka_stage::free_space(memory).is_some_and(|free| free > NEEDED) {
        true => tempfile::tempdir_in(memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into()
}

fn told(mut command: Command, code: i32) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

/// Compares two folders by name and content.
fn assert_same(found: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Vec<u8>>, what: &str) {
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected), "{what}");
    let different: Vec<_> = found.iter().filter(|(name, bytes)| expected[*name] != **bytes).collect();
    let different: Vec<_> = different.into_iter().map(|(name, _)| name).collect();
    assert!(different.is_empty(), "{what}: {different:?}");
}

#[test]
fn twenty_one_kills_leave_the_same_files_as_none() {
    const KILLS: usize = 3;
    let configurations = [
        ("adamw", json!({"grad_accum": 2, "flip_p": 0.5, "crop_variants": 2})),
        ("adamw8bit", json!({"validation_config": "validation.json"})),
        ("lion", json!({"ema_decay_rate": 0.9, "ema_update_interval": 2, "disable_textenc_training": true})),
        ("dadapt_adam", json!({"shuffle_tags": true, "cache": "off", "compat": "ed2-head"})),
        (
            "prodigy",
            json!({"validation_config": "validation.json", "ema_decay_rate": 0.9, "ema_update_interval": 1,
            "grad_accum": 2, "clip_grad_norm": 1.0}),
        ),
        (
            "adamw",
            json!({"precision": "fp16", "sample_prompts": "samples.json", "sample_steps": 3, "log_step": 2,
            "state_every_n_steps": 2}),
        ),
        ("adamw8bit", json!({"compat": "ed2-2023-04", "grad_accum": 3, "clip_grad_norm": 1.0})),
    ];
    assert_eq!(KILLS * configurations.len(), 21);
    // Each run has one thread: two are at work.
    std::thread::scope(|scope| {
        for half in [&configurations[..4], &configurations[4..]] {
            scope.spawn(move || {
                for (optimizer, changes) in half {
                    kills_leave_the_same_files(KILLS, optimizer, changes);
                }
            });
        }
    });
}

/// Runs a configuration undisturbed, and once more with kills: just after something was written, and anywhere.
fn kills_leave_the_same_files(kills: usize, optimizer: &str, changes: &Value) {
    let seed = 20_261_127 + changes.to_string().len() as u64;
    let mut random = StdRng::seed_from_u64(seed);
    let mut keys = json!({"optimizer_config": "optimizer.json", "state_every_n_steps": 1, "keep_states": 2});
    keys.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    let world = World::new(keys);
    let optimizer_json = json!({"optimizer": optimizer, "lr": 1e-3, "d0": 1e-3});
    fs::write(world.at("optimizer.json"), optimizer_json.to_string()).unwrap();
    let samples = json!({"cfgs": [2], "num_inference_steps": 1, "samples": [{"prompt": "a star"}]});
    fs::write(world.at("samples.json"), samples.to_string()).unwrap();
    world.said(0, &["--set", "output=whole", "--set", "cache_dir=another"]);
    let mut done = Vec::new();
    while done.len() < kills {
        let (after_lines, times) = (random.random_bool(0.6), random.random_range(1..=3));
        let killed = match after_lines {
            true => world.kill_after_lines(2 * times),
            false => world.kill_after(times),
        };
        done.push(format!("{times} {}", if after_lines { "pairs of lines" } else { "writes" }));
        if !killed {
            // It was through before it could be killed: from the beginning.
            done.clear();
            fs::remove_dir_all(world.at("out")).unwrap();
            let _ = fs::remove_file(world.at("out.run.json"));
        }
    }
    let text = world.said(0, &[]);
    let what = format!("{optimizer} {changes} killed after {done:?}; seed {seed}; then: {text}");
    assert_same(&world.files("out"), &world.files("whole"), &what);
}

#[test]
fn two_runs_at_the_same_time_share_a_cache_and_not_a_folder() {
    let world = World::new(json!({"state_every_n_steps": 1, "cache_dir": "cache"}));
    world.said(0, &["--set", "output=whole", "--set", "cache=off"]);
    let mut children: Vec<_> = ["a", "b", "c"]
        .map(|name| {
            let output = format!("output={name}");
            world.command(&["--quiet", "--set", &output]).spawn().unwrap()
        })
        .into();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    for name in ["a", "b", "c"] {
        assert_same(&world.files(name), &world.files("whole"), name);
    }

    let mut first = world.command(&[]).stderr(Stdio::piped()).spawn().unwrap();
    let stderr = BufReader::new(first.stderr.take().unwrap());
    let mut lines = stderr.lines().map_while(Result::ok);
    assert!(lines.next().is_some(), "it holds the folder");
    // It waits for its first line to be read, or works on; the second is refused in either case while it lives.
    let second = world.command(&[]).output().unwrap();
    let text = String::from_utf8(second.stderr).unwrap();
    let refused = text.contains("out` is held by another run: wait for it, or end it");
    lines.for_each(drop);
    assert!(first.wait().unwrap().success());
    // The first may have been through before the second looked.
    assert!(refused && second.status.code() == Some(1) || text.contains("nothing to do"), "{text}");
    assert_same(&world.files("out"), &world.files("whole"), "out");
}

/// The binary, for which no file can grow beyond so many blocks of 512 bytes: what a full disk does, without one.
fn limited(world: &World, blocks: u64) -> Command {
    let mut command = Command::new("sh");
    let program = assert_cmd::cargo::cargo_bin!("vodka-train");
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" --config train.json");
    command.current_dir(world.dir.path()).args(["-c", &script]).arg(program);
    command
}

#[test]
fn a_disk_that_is_full_leaves_the_last_good_files_and_the_same_command_goes_on() {
    let world = World::new(json!({"state_every_n_steps": 2, "save_every_n_epochs": 1}));
    world.said(0, &["--set", "output=whole"]);
    let size = |name: &str| world.files("whole")[name].len() as u64;
    let checkpoint = size("tiny-ep05-gs00020.safetensors");
    let names = || {
        world
            .files("out")
            .into_keys()
            .filter(|name| name.ends_with(".safetensors") && !name.starts_with("errored-"))
            .collect::<Vec<_>>()
    };

    // No room for a state, which is larger than a checkpoint.
    let text = told(limited(&world, checkpoint / 512 + 100), 1);
    assert!(text.contains("cannot write `out/state-gs00002.safetensors`: "), "{text}");
    assert_eq!(names(), Vec::<String>::new());

    // Killed in the second epoch; then there is no room for a checkpoint either.
    while !world.kill_after(4) {
        fs::remove_dir_all(world.at("out")).unwrap();
    }
    let before = world.files("out");
    assert!(before.contains_key("tiny-ep01-gs00004.safetensors"), "{:?}", names());
    let text = told(limited(&world, checkpoint / 1024), 1);
    assert!(text.contains("cannot write `out/"), "{text}");
    let left = world.files("out");
    assert!(left.keys().all(|name| !name.ends_with(".partial")), "{:?}", left.keys());
    for (name, bytes) in before.iter().filter(|(name, _)| name.ends_with(".safetensors")) {
        assert!(left.get(name) == Some(bytes), "{name} stays as it was");
    }

    let text = world.said(0, &[]);
    assert!(text.contains("going on after step "), "{text}");
    assert_same(&world.files("out"), &world.files("whole"), "out");
}
