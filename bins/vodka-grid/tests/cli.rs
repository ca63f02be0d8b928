//! `vodka-grid` from `grid.toml` to the sheet, and each of its errors.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process, thread,
};

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

/// The files below a folder by their paths, hidden ones left out.
fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| match path.is_dir() {
        true => tree(&path).into_iter().map(|(below, bytes)| (path.join(below), bytes)).collect(),
        false => vec![(path.clone(), fs::read(&path).unwrap())],
    });
    files.map(|(path, bytes)| (path.strip_prefix(folder).unwrap().to_path_buf(), bytes)).collect()
}

#[test]
fn a_grid_is_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let text = toml(&model("base"), "seeds = \"1-2\"");
    let made = grid(dir.path(), &text, &[]).success();
    assert!(stderr(&made).contains("grid/index.html: 8 cells, 8 made, 0 kept"), "{}", stderr(&made));
    let again = grid(dir.path(), &text, &[]).success();
    assert!(stderr(&again).contains("is there already, with 8 cells"), "{}", stderr(&again));
    let names: Vec<_> =
        tree(&dir.path().join("grid")).into_keys().filter(|path| !path.starts_with("cells")).collect();
    assert_eq!(names, ["cells.csv", "grid.png", "index.html", "judging.csv"].map(PathBuf::from));
}

/// Starts the grid and kills it (SIGKILL) when so many cells are there; how many then are.
fn kill_at(dir: &Path, text: &str, wanted: usize) -> usize {
    let cells = || {
        let entries = fs::read_dir(dir.join("grid/cells")).into_iter().flatten().flatten();
        entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.')).count()
    };
    let mut child = command(dir, text, &["--quiet"]).spawn().unwrap();
    while cells() < wanted && child.try_wait().unwrap().is_none() {
        thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    cells()
}

#[test]
fn a_grid_that_was_killed_three_times_is_the_one_that_was_not() {
    let text = toml(&model("base"), "seeds = \"1-4\"").replace("steps = 2", "steps = 8");
    let dir = tempfile::tempdir().unwrap();
    let killed = dir.path().join("killed");
    fs::create_dir(&killed).unwrap();
    let mut there = 0;
    for wanted in [2, 6, 11] {
        let now = kill_at(&killed, &text, wanted);
        assert!(now >= there.max(wanted.min(16)), "a cell was lost: {there} cells, then {now}");
        there = now;
    }
    // A kill may come late on a machine with other work; what was made stays all the same.
    let rest = grid(&killed, &text, &[]).success();
    let expected = format!("16 cells, {} made, {there} kept", 16 - there);
    assert!(stderr(&rest).contains(&expected) || there == 16, "{expected}: {}", stderr(&rest));
    let whole = dir.path().join("whole");
    fs::create_dir(&whole).unwrap();
    grid(&whole, &text, &[]).success();
    let (killed, whole) = (tree(&killed.join("grid")), tree(&whole.join("grid")));
    assert_eq!(killed.keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>());
    for (path, bytes) in &killed {
        assert!(bytes == &whole[path], "{} differs", path.display());
    }
}

#[test]
fn a_cell_that_cannot_be_made_is_left_out_and_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let deep = format!("\n[[prompts]]\nlabel = \"deep\"\nprompt = \"{}star\"\n", "(".repeat(1000));
    let text = toml(&model("base"), "") + &deep;
    let reason = "the prompt weighs words by inf, and its picture is not finite; no picture was made";
    let made = grid(dir.path(), &text, &[]);
    fails(
        made,
        3,
        &["6 cells, 4 made, 0 kept", "not made: cell 3 (before; deep; ", "not made: cell 6 (", reason],
    );
    let made = tree(dir.path());
    let table = String::from_utf8(made[Path::new("grid/cells.csv")].clone()).unwrap();
    // No file, no measures.
    assert_eq!(table.lines().filter(|line| line.ends_with(&",".repeat(10))).count(), 2, "{table}");
    let page = String::from_utf8_lossy(&made[Path::new("grid/index.html")]);
    assert!(page.contains(reason) && made.contains_key(Path::new("grid/grid.png")));
    // As long as they are missing, scripts are told of it.
    let again = grid(dir.path(), &text, &["--json"]);
    let report: serde_json::Value = serde_json::from_slice(&again.get_output().stdout).unwrap();
    fails(again, 3, &[]);
    assert_eq!((&report["made"], &report["kept"]), (&0.into(), &4.into()), "{report}");
    assert_eq!(report["failed"][0]["cell"], 3);
    assert_eq!(tree(dir.path()), made);
}

/// A limit on the size of files fails a write as a full disk does, once the signal that comes with it is ignored.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_loses_no_cell() {
    let dir = tempfile::tempdir().unwrap();
    let text = toml(&model("base"), "seeds = \"1-2\"");
    let limited = |blocks: u64| {
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" grid.toml --output grid");
        let mut command = process::Command::new("sh");
        command.args(["-c", &script]).arg(assert_cmd::cargo::cargo_bin!("vodka-grid"));
        command.current_dir(dir.path()).env("VODKA_RUNTIME", dir.path()).env("OMP_NUM_THREADS", "1");
        Command::from_std(command).assert()
    };
    fs::write(dir.path().join("grid.toml"), &text).unwrap();
    // No cell has room.
    fails(limited(4), 1, &["cannot write", "`grid/cells/"]);
    assert!(tree(&dir.path().join("grid")).keys().all(|path| path.extension().is_none()));
    // Each cell has, the page with all of them has not.
    fails(limited(32), 1, &["cannot write", "`grid/"]);
    let cells = |path: &PathBuf| path.starts_with("cells");
    assert_eq!(tree(&dir.path().join("grid")).keys().filter(|path| cells(path)).count(), 8);
    let rest = grid(dir.path(), &text, &[]).success();
    assert!(stderr(&rest).contains("8 cells, 0 made, 8 kept"), "{}", stderr(&rest));
    let left = tree(&dir.path().join("grid"));
    assert!(left.keys().all(|path| !path.to_string_lossy().ends_with(".partial")), "{:?}", left.keys());
}

#[test]
fn checkpoints_and_a_store_come_from_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let (base, v1) = (model("base"), model("v1"));
    let text = "steps = 2\nsize = \"64x64\"\n[[prompts]]\nprompt = \"a <b>house</b>\"";
    let first = format!("old={}", base.display());
    let args = ["--checkpoint", &first, "--checkpoint", v1.to_str().unwrap(), "--store", "store"];
    let made = grid(dir.path(), text, &args).success();
    assert!(stderr(&made).contains("2 cells, 2 made"), "{}", stderr(&made));
    let names: Vec<_> = fs::read_dir(dir.path().join("store")).unwrap().collect();
    assert_eq!(names.len(), 2);
    let page = fs::read_to_string(dir.path().join("grid/index.html")).unwrap();
    assert!(page.contains("\"values\":[\"old\",\"v1\"]") && page.contains("data:image/jpeg;base64,"));
    assert!(!page.contains("<b>house</b>") && page.contains("a \\u003cb>house"), "prompts are no HTML");
    let judging = fs::read_to_string(dir.path().join("grid/judging.csv")).unwrap();
    assert_eq!(judging.lines().count(), 1 + 2 * 8);
    fails(grid(dir.path(), text, &["--checkpoint", "=x"]), 2, &["expected LABEL=PATH"]);

    let pruned = grid(dir.path(), text, &["--checkpoint", &first, "--store", "store", "--prune"]).success();
    assert!(
        stderr(&pruned).contains("1 cells, 0 made, 1 kept, 1 of other grids removed"),
        "{}",
        stderr(&pruned)
    );
}

#[test]
fn a_dry_run_shows_the_axes() {
    let dir = tempfile::tempdir().unwrap();
    let more = "seeds = \"1-2\"\n[[axes]]\ntype = \"cfg\"\nvalues = \"3-9 [3]\"\n";
    let assert = grid(dir.path(), &toml(&model("base"), more), &["--dry-run"]).success();
    let plan: serde_json::Value = serde_json::from_slice(&assert.get_output().stdout).unwrap();
    assert_eq!(plan["axes"][0]["values"][1]["label"], "v1");
    assert_eq!(plan["axes"][1]["values"][0]["label"], "a red circle and a blue star\nnot: blurry");
    assert_eq!(plan["axes"][2]["values"][1]["label"], "seed 2");
    assert_eq!(
        (&plan["axes"][3]["type"], &plan["axes"][3]["values"][1]["label"]),
        (&"CFG Scale".into(), &"CFG Scale 6".into())
    );
    assert_eq!(plan["sheets"], serde_json::json!([3]));
    assert!(!dir.path().join("grid").exists());
}

#[test]
fn wrong_configurations_are_usage_errors() {
    let dir = tempfile::tempdir().unwrap();
    let base = model("base");
    let cases: [(&str, &[&str]); 14] = [
        ("stepz = 3", &["grid.toml", "line 3", "unknown field `stepz`", "did you mean `steps`?"]),
        ("sampler = \"Eular\"", &["line 3", "unknown sampler `Eular`", "did you mean `Euler`?"]),
        ("schedule = \"Caras\"", &["line 3", "unknown schedule `Caras`"]),
        ("seeds = []", &["the grid has no seeds"]),
        ("seeds = \"1-\"", &["the axis `Seed`: value 1, `1-`: expected a number, or a range"]),
        ("seeds = '\"1'", &["line 3, column 9", "the quote at character 1 is not closed"]),
        ("clip_skip = -1", &["line 3", "-1"]),
        ("[[axes]]\ntype = \"CFG\"\nvalues = \"1, x\"", &["line 3: the axis `CFG Scale`: value 2, `x`"]),
        (
            "[[axes]]\ntype = \"Step\"\nvalues = 1",
            &["line 4", "unknown type of axis `Step`", "did you mean `Steps`?"],
        ),
        ("[[axes]]\ntype = \"Steps\"\nvalues = \"4, 0\"", &["steps"]),
        (
            "[[axes]]\ntype = \"Steps\"\nvalues = 4\n[[axes]]\ntype = \"Steps\"\nvalues = 5",
            &["line 6", "a second axis of this"],
        ),
        ("[layout]\ncolumns = [\"cfg\"]", &["the layout names the axis `cfg`", "Checkpoint name"]),
        ("[layout]\ncolumns = [\"seed\", \"Seed\"]", &["the layout names the axis `Seed` twice"]),
        ("[judge]\nagainst = \"befor\"", &["`befor`", "did you mean `before`?"]),
    ];
    for (more, parts) in cases {
        fails(grid(dir.path(), &toml(&base, more), &[]), 2, parts);
    }
    fails(grid(dir.path(), &toml(&base, "[sheet]\nmax_side_px = 5"), &[]), 2, &["at least 256 px"]);
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
