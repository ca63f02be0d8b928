//! `vodka-grid` from `grid.toml` to the sheet, and each of its errors.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fs, path::Path, process, thread};

use assert_cmd::{Command, assert::Assert};
use vodka_testkit::model;

/// Runs the binary on this `grid.toml`.
fn grid(dir: &Path, toml: &str, args: &[&str]) -> Assert {
    Command::from_std(command(dir, toml, args)).assert()
}

/// The binary in a folder without CUDA libraries.
fn command(dir: &Path, toml: &str, args: &[&str]) -> process::Command {
    fs::write(dir.join("grid.toml"), toml).unwrap();
    let mut command = process::Command::new(assert_cmd::cargo::cargo_bin!("vodka-grid"));
    command.current_dir(dir).env("VODKA_RUNTIME", dir).env("OMP_NUM_THREADS", "1").arg("grid.toml");
    let output = if args.contains(&"--output") { &[][..] } else { &["--output", "grid"] };
    command.args(output).args(args);
    command
}

fn toml(checkpoint: &Path, more: &str) -> String {
    let (first, second) = (checkpoint.display(), model("v1"));
    format!(
        r#"steps = 2
size = "64x64"
{more}

[[checkpoints]]
label = "before"
path = "{first}"

[[checkpoints]]
path = "{}"

[[prompts]]
prompt = "a red circle and a blue star"
negative = "blurry"

[[prompts]]
label = "grey"
prompt = "a grey house"
"#,
        second.display()
    )
}

fn stderr(assert: &Assert) -> String {
    String::from_utf8_lossy(&assert.get_output().stderr).into_owned()
}

fn fails(assert: Assert, code: i32, parts: &[&str]) {
    let assert = assert.code(code);
    let text = stderr(&assert);
    assert!(parts.iter().all(|part| text.contains(part)), "expected {parts:?} in: {text}");
}

#[test]
fn a_grid_is_made_goes_on_after_a_kill_and_is_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let text = toml(&model("base"), "seeds = [1, 2]");
    let made = grid(dir.path(), &text, &[]).success();
    assert!(stderr(&made).contains("grid/grid.png: 8 cells, 8 made, 0 kept"), "{}", stderr(&made));
    let at = |name: &str| dir.path().join(name);
    let sheet = fs::read(at("grid/grid.png")).unwrap();
    let again = grid(dir.path(), &text, &[]).success();
    assert!(stderr(&again).contains("is there already"), "{}", stderr(&again));

    // What a kill in the middle leaves: some cells, no sheet, no record.
    for name in ["grid.run.json", "grid/grid.png", "grid/cells/r04-c02.png", "grid/cells/r02-c01.png"] {
        fs::remove_file(at(name)).unwrap();
    }
    fs::write(at("grid/cells/.r02-c01.png.partial"), "half a picture").unwrap();
    let rest = grid(dir.path(), &text, &[]).success();
    assert!(stderr(&rest).contains("2 made, 6 kept"), "{}", stderr(&rest));
    assert_eq!(fs::read(at("grid/grid.png")).unwrap(), sheet);
    assert!(at("grid.run.json").exists());
}

#[test]
fn a_kill_loses_one_cell_at_most() {
    let text = toml(&model("base"), "seeds = [1, 2, 3, 4]").replace("steps = 2", "steps = 8");
    let cells = |dir: &tempfile::TempDir| {
        let entries = fs::read_dir(dir.path().join("grid/cells")).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with('r')).count()
    };
    // Whoever watches may come too late, on a machine with other work: then all of it begins again.
    let (dir, kept) = loop {
        let dir = tempfile::tempdir().unwrap();
        let mut child = command(dir.path(), &text, &["--quiet"]).spawn().unwrap();
        while cells(&dir) < 3 && child.try_wait().unwrap().is_none() {
            thread::yield_now();
        }
        child.kill().unwrap();
        let (status, kept) = (child.wait().unwrap(), cells(&dir));
        assert!(kept >= 3, "it ended before three cells were there: {status}");
        if kept < 16 {
            break (dir, kept);
        }
    };
    let rest = grid(dir.path(), &text, &[]).success();
    let expected = format!("16 cells, {} made, {kept} kept", 16 - kept);
    assert!(stderr(&rest).contains(&expected), "{expected}: {}", stderr(&rest));
}

#[test]
fn a_dry_run_shows_columns_and_rows() {
    let dir = tempfile::tempdir().unwrap();
    let assert = grid(dir.path(), &toml(&model("base"), "seeds = [1, 2]"), &["--dry-run"]).success();
    let plan: serde_json::Value = serde_json::from_slice(&assert.get_output().stdout).unwrap();
    assert_eq!(plan["columns"][1]["label"], "v1");
    assert_eq!(plan["rows"][0]["label"], "a red circle and a blue star\nnot: blurry\nseed 1");
    assert_eq!(plan["rows"][3]["settings"]["seed"], 2);
    assert!(!dir.path().join("grid").exists());
}

#[test]
fn wrong_configurations_are_usage_errors() {
    let dir = tempfile::tempdir().unwrap();
    let base = model("base");
    let cases: [(&str, &[&str]); 5] = [
        ("stepz = 3", &["grid.toml", "line 3", "unknown field `stepz`", "did you mean `steps`?"]),
        ("sampler = \"Eular\"", &["line 3", "unknown sampler `Eular`", "did you mean `Euler`?"]),
        ("schedule = \"Caras\"", &["line 3", "unknown schedule `Caras`"]),
        ("seeds = []", &["the grid has no seeds"]),
        ("clip_skip = -1", &["line 3", "-1"]),
    ];
    for (more, parts) in cases {
        fails(grid(dir.path(), &toml(&base, more), &[]), 2, parts);
    }
    let odd = toml(&base, "").replace("64x64", "64x60");
    fails(grid(dir.path(), &odd, &[]), 2, &["64x60", "multiples of 8"]);
    fails(grid(dir.path(), "prompts = []\ncheckpoints = []", &[]), 2, &["the grid has no checkpoints"]);
    assert!(!dir.path().join("grid").exists());
}

#[test]
fn what_is_not_there_or_damaged_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad.safetensors");
    fails(grid(dir.path(), &toml(&bad, ""), &[]), 1, &["bad.safetensors"]);
    let good = fs::read(model("base")).unwrap();
    fs::write(&bad, &good[..good.len() / 2]).unwrap();
    fails(grid(dir.path(), &toml(&bad, ""), &[]), 1, &["bad.safetensors", "truncated"]);
    fails(grid(dir.path(), &toml(&model("base"), "device = \"cuda\""), &[]), 1, &["cuda", "libtorch_cuda"]);
    fs::write(dir.path().join("file"), "").unwrap();
    fails(grid(dir.path(), &toml(&model("base"), ""), &["--output", "file/grid"]), 1, &["cannot", "file"]);
}
