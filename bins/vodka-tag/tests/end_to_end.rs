//! `vodka-tag` from the command line, on the pictures of the fixture world.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Output, Stdio},
};

use assert_cmd::{Command, cargo::cargo_bin_cmd};
use parquet::{
    file::reader::{FileReader, SerializedFileReader},
    record::RowAccessor,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use vodka_testkit::{fixture, runtime_dir};

fn vodka_tag(model: &Path, images: &Path, output: &Path) -> Command {
    let mut command = cargo_bin_cmd!("vodka-tag");
    command.env("VODKA_RUNTIME", runtime_dir()).env_remove("RUST_LOG");
    command.arg("--model").arg(model).arg("--images").arg(images).arg("--output").arg(output);
    command
}

/// Runs a command that must end with `code`, and returns what it said on stderr.
fn said(command: &mut Command, code: i32) -> String {
    let output = command.assert().code(code).get_output().clone();
    String::from_utf8(output.stderr).unwrap()
}

fn world() -> std::path::PathBuf {
    fixture("world/images")
}

fn tagger() -> std::path::PathBuf {
    fixture("tagger")
}

/// A folder with copies of these awkward pictures.
fn some_pictures(dir: &TempDir, names: &[&str]) -> std::path::PathBuf {
    let images = dir.path().join("images");
    fs::create_dir_all(&images).unwrap();
    for name in names {
        fs::copy(fixture("images/awkward").join(name), images.join(name)).unwrap();
    }
    images
}

#[test]
fn a_folder_becomes_a_table_once() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out/tags.parquet");
    let report = vodka_tag(&tagger(), &world(), &output).arg("--json").assert().code(0).get_output().clone();
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    let pictures = pictures_in(&world());
    assert_eq!((&report["outcome"], report["tagged"].as_u64()), (&json!("done"), Some(pictures)));

    let reader = SerializedFileReader::new(File::open(&output).unwrap()).unwrap();
    let rows: Vec<_> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
    assert_eq!(Some(rows.len() as u64), report["rows"].as_u64());
    assert!(rows.iter().all(|row| row.get_float(4).unwrap() >= 0.1));
    for folder in ["räume/", "garden party/"] {
        assert!(rows.iter().any(|row| row.get_string(0).unwrap().starts_with(folder)), "{folder}");
    }
    let metadata = reader.metadata().file_metadata().key_value_metadata().unwrap();
    let keys: Vec<_> = metadata.iter().map(|pair| pair.key.as_str()).collect();
    for key in ["vodka.model_sha256", "vodka.images_sha256", "vodka.profile", "vodka.min_score"] {
        assert!(keys.contains(&key), "{keys:?}");
    }
    let measured = SerializedFileReader::new(File::open(output.with_extension("pictures.parquet")).unwrap());
    assert_eq!(measured.unwrap().metadata().file_metadata().num_rows(), pictures as i64);
    assert!(report["speed"]["images_per_s"].as_f64().unwrap() > 0.0, "{report}");
    assert_eq!(report["provider"], "cpu");

    let record = fs::read(output.with_file_name("tags.parquet.run.json")).unwrap();
    let again = said(vodka_tag(&tagger(), &world(), &output).env("VODKA_RUNTIME", "not/needed"), 0);
    assert!(again.contains("unchanged: nothing to do"), "{again}");
    assert_eq!(fs::read(output.with_file_name("tags.parquet.run.json")).unwrap(), record);
}

fn pictures_in(folder: &Path) -> u64 {
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            count += pictures_in(&path);
        } else if path.extension().is_some_and(|extension| extension != "txt") {
            count += 1;
        }
    }
    count
}

#[test]
fn bad_pictures_are_listed_and_the_others_tagged() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("tags.csv");
    let text = said(&mut vodka_tag(&tagger(), &fixture("world/bad"), &output), 3);
    assert!(
        text.contains("skipped text.png: expected PNG, JPEG, WebP, GIF or BMP, found the text"),
        "{text}"
    );
    assert!(text.contains("3 skipped, listed in") && text.contains("tags.skipped.csv"), "{text}");
    let list = fs::read_to_string(dir.path().join("tags.skipped.csv")).unwrap();
    let lines: Vec<_> = list.lines().collect();
    assert_eq!(lines[..2], ["image,reason", "empty.jpg,the file is empty"]);
    assert_eq!(lines[3..], ["truncated.jpg,the JPEG file is truncated"]);
    let csv = fs::read_to_string(dir.path().join("tags.csv")).unwrap();
    assert!(csv.lines().skip(1).all(|line| line.starts_with("one-pixel.png,")), "{csv}");
}

#[test]
fn with_nothing_but_bad_pictures_the_table_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("images");
    fs::create_dir(&images).unwrap();
    fs::write(images.join("a.png"), "").unwrap();
    said(&mut vodka_tag(&tagger(), &images, &dir.path().join("tags.csv")), 3);
    let csv = fs::read_to_string(dir.path().join("tags.csv")).unwrap();
    assert_eq!(csv, "image,tag_id,tag,category,score\n");
}

/// Starts a command, and calls `stop` when the file at `path` has `bytes`; what it said, and how it ended.
fn stop_at(command: &Command, path: &Path, bytes: u64, stop: impl Fn(&mut Child)) -> Output {
    let mut process = std::process::Command::new(command.get_program());
    process.args(command.get_args()).env("VODKA_RUNTIME", runtime_dir()).stderr(Stdio::piped());
    let mut process = process.spawn().unwrap();
    let mut stop = Some(stop);
    while process.try_wait().unwrap().is_none() {
        if fs::metadata(path).is_ok_and(|metadata| metadata.len() >= bytes)
            && let Some(stop) = stop.take()
        {
            stop(&mut process);
        }
        std::thread::yield_now();
    }
    process.wait_with_output().unwrap()
}

/// Kills a command (SIGKILL) when the file at `path` has `bytes`. False where it was through before.
fn kill_at(command: &Command, path: &Path, bytes: u64) -> bool {
    stop_at(command, path, bytes, |process| process.kill().unwrap()).status.code().is_none()
}

/// How many pictures the whole entries of a journal hold: of batches of less than 128.
fn journaled(journal: &Path) -> usize {
    let bytes = fs::read(journal).unwrap();
    let mut rest = &bytes[72..];
    let mut pictures = 0;
    while let Some((length, check)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let Some(entry) = check.get(4..4 + length) else { break };
        pictures += usize::from(entry[0]);
        rest = &check[4 + length..];
    }
    pictures
}

/// A folder with 300 pictures, every twentieth broken.
fn many_pictures(dir: &TempDir) -> std::path::PathBuf {
    let images = some_pictures(dir, &[]);
    for i in 0..300 {
        let name = ["odd.png", "grey.png", "rgba.png", "la.png", "clear.gif"][i % 5];
        let extension = name.split_once('.').unwrap().1;
        let copy = images.join(format!("{i:03}.{extension}"));
        fs::copy(fixture("images/awkward").join(name), &copy).unwrap();
        if i % 20 == 0 {
            fs::write(copy, "broken").unwrap();
        }
    }
    images
}

#[cfg(unix)]
#[test]
fn control_c_finishes_the_batch_and_the_next_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let images = many_pictures(&dir);
    let output = dir.path().join("parts/tags.csv");
    let journal = dir.path().join("parts/.tags.csv.journal");
    let run = || {
        let mut command = vodka_tag(&fixture("tagger-tiny/dynamic"), &images, &output);
        command.args(["--batch", "2", "--threads", "2"]);
        command
    };
    let interrupt = |process: &mut Child| {
        let id = process.id().to_string();
        assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    };
    // It may be through before the signal is there; then it begins again.
    let stopped = loop {
        let stopped = stop_at(&run(), &journal, 2000, interrupt);
        if stopped.status.code() == Some(4) {
            break stopped;
        }
        assert_eq!(stopped.status.code(), Some(3));
        fs::remove_dir_all(output.parent().unwrap()).unwrap();
    };
    let text = String::from_utf8(stopped.stderr).unwrap();
    assert!(text.contains("stopping after the work in hand"), "{text}");
    assert!(text.contains("of 300 pictures done so far"), "{text}");
    assert!(text.contains("interrupted; the same command goes on from here"), "{text}");
    assert!(!output.exists());
    let done = journaled(&journal);
    assert!((1..300).contains(&done), "{done}");
    let text = said(&mut run(), 3);
    assert!(text.contains(&format!("going on after {done} of 300 pictures")), "{done}: {text}");
}

#[cfg(target_os = "linux")]
#[test]
fn folders_whose_names_are_not_text_are_tagged_and_told() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join(OsStr::from_bytes(b"im\xffages"));
    fs::create_dir(&images).unwrap();
    fs::copy(fixture("images/awkward/odd.png"), images.join("odd.png")).unwrap();
    let output = dir.path().join(OsStr::from_bytes(b"o\xffut/tags.csv"));
    let run = |more: &str| {
        let mut command = vodka_tag(&fixture("tagger-tiny/dynamic"), &images, &output);
        let output = command.arg(more).assert().code(0).get_output().clone();
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let plan = run("--dry-run");
    assert!(plan["config"]["images"].as_str().unwrap().ends_with("/im\u{fffd}ages"), "{plan}");
    let report = run("--json");
    assert_eq!((&report["outcome"], &report["tagged"]), (&json!("done"), &json!(1)));
    assert!(report["outputs"][0].as_str().unwrap().ends_with("/o\u{fffd}ut/tags.csv"), "{report}");
    assert!(fs::read_to_string(&output).unwrap().contains("\nodd.png,"));
    let record = fs::read_to_string(output.with_file_name("tags.csv.run.json")).unwrap();
    assert!(record.contains("im\u{fffd}ages"), "{record}");
    assert_eq!(run("--json")["outcome"], "unchanged");
}

#[cfg(target_os = "linux")]
#[test]
fn an_output_where_nothing_can_be_written_is_told_before_any_work() {
    let dir = tempfile::tempdir().unwrap();
    let images = some_pictures(&dir, &["odd.png"]);
    // Nobody makes a file there, root included.
    let text = said(&mut vodka_tag(&fixture("tagger-tiny/dynamic"), &images, Path::new("/proc/tags.csv")), 1);
    assert!(text.contains("error: cannot write `/proc/.tags.csv.journal`"), "{text}");
}

/// `vodka-tag` that looks for models at a hub which nobody has.
fn vodka_tag_of_hub(dir: &TempDir, model: &str) -> Command {
    let images = some_pictures(dir, &["odd.png"]);
    let mut command = vodka_tag(Path::new(model), &images, &dir.path().join("tags.csv"));
    command.env("HF_ENDPOINT", "http://127.0.0.1:1").env("HF_HOME", dir.path().join("hf"));
    command.env_remove("HF_HUB_CACHE").env_remove("HF_HUB_OFFLINE");
    command
}

#[test]
fn a_download_that_fails_is_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let text = said(&mut vodka_tag_of_hub(&dir, "someone/a-tagger"), 1);
    assert!(text.contains("cannot get the model `someone/a-tagger@main` from http://127.0.0.1:1"), "{text}");
    let text = said(vodka_tag_of_hub(&dir, "someone/a-tagger").arg("--offline"), 2);
    assert!(
        text.contains("offline, and the model `someone/a-tagger@main` is not in the hub's cache"),
        "{text}"
    );
    let text = said(vodka_tag_of_hub(&dir, "someone/a-tagger").args(["--family", "none"]), 2);
    assert!(text.contains("no family `none`"), "{text}");
    let tiny = fixture("tagger-tiny/dynamic").display().to_string();
    let other = "0".repeat(64);
    let text = said(vodka_tag_of_hub(&dir, &tiny).args(["--sha256", &other]), 1);
    assert!(
        text.contains(&format!("model.onnx` is not the file it should be: expected SHA-256 {other}")),
        "{text}"
    );
}

#[test]
fn a_dry_run_downloads_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = vodka_tag_of_hub(&dir, "someone/a-tagger/v2");
    let output = command.arg("--dry-run").assert().code(0).get_output().clone();
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan, json!({"download": ["someone/a-tagger/v2@main"]}));
    assert!(!dir.path().join("hf").exists());
}

#[test]
fn a_killed_run_goes_on_and_ends_as_if_nothing_had_been() {
    let dir = tempfile::tempdir().unwrap();
    let images = many_pictures(&dir);
    let run = |output: &Path| {
        let mut command = vodka_tag(&fixture("tagger-tiny/dynamic"), &images, output);
        command.args(["--batch", "2", "--threads", "2"]);
        command
    };
    let whole = dir.path().join("whole/tags.parquet");
    said(&mut run(&whole), 3);
    let output = dir.path().join("parts/tags.parquet");
    let journal = dir.path().join("parts/.tags.parquet.journal");
    let journal_of_whole = fs::metadata(dir.path().join("whole/.tags.parquet.journal")).unwrap().len();
    // Whoever watches may come too late, on a machine with other work: then all of it begins again.
    while ![4, 2].iter().all(|part| kill_at(&run(&output), &journal, journal_of_whole / part))
        || output.exists()
    {
        fs::remove_dir_all(output.parent().unwrap()).unwrap();
    }
    // All that is in the journal counts; that no more was begun than the network was at, a test of the pipeline says.
    let done = journaled(&journal);
    assert!(done > 100, "{done}");
    let text = said(&mut run(&output), 3);
    assert!(text.contains(&format!("going on after {done} of 300 pictures")), "{done}: {text}");
    for extension in ["parquet", "pictures.parquet", "skipped.csv"] {
        let bytes = |table: &Path| fs::read(table.with_extension(extension)).unwrap();
        assert_eq!(bytes(&output), bytes(&whole), "{extension}");
    }
}

#[test]
fn an_ensemble_has_the_scores_of_all() {
    let dir = tempfile::tempdir().unwrap();
    let images = some_pictures(&dir, &["odd.png"]);
    let tiny = fixture("tagger-tiny/dynamic");
    let scores = |name: &str, arguments: &[&str]| {
        let output = dir.path().join(name);
        said(vodka_tag(&tiny, &images, &output).args(["--min-score", "0"]).args(arguments), 0);
        fs::read_to_string(output).unwrap()
    };
    let fixed = fixture("tagger-tiny/fixed").display().to_string();
    let world = tagger().display().to_string();
    let alone = scores("alone.csv", &[]);
    assert_eq!(scores("max.csv", &["--model", &fixed, "--combine", "max"]), alone, "the same network twice");
    let both = scores("both.csv", &["--model", &world]);
    assert!(both.lines().count() > alone.lines().count(), "the tags of both");
    let votes = scores("votes.csv", &["--model", &world, "--combine", "vote"]);
    assert!(
        votes.lines().skip(1).all(|line| ["0", "0.5", "1"].contains(&line.rsplit(',').next().unwrap())),
        "{votes}"
    );
    let text = said(vodka_tag(&tiny, &images, &dir.path().join("x.csv")).args(["--combine", "sum"]), 2);
    assert!(text.contains("expected mean, max or vote, found sum"), "{text}");
}

#[test]
fn a_quantised_model_tags_nearly_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let small = dir.path().join("int8");
    let mut dry = cargo_bin_cmd!("vodka-tag");
    let plan =
        dry.arg("quantize").arg(tagger()).arg(&small).arg("--dry-run").assert().code(0).get_output().clone();
    let plan: Value = serde_json::from_slice(&plan.stdout).unwrap();
    assert_eq!(plan["network"], json!(tagger().join("model.onnx")));
    assert!(!small.exists(), "a dry run writes nothing");
    let mut quantize = cargo_bin_cmd!("vodka-tag");
    quantize.arg("quantize").arg(tagger()).arg(&small).arg("--json");
    let report = quantize.assert().code(0).get_output().clone();
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert!(
        report["quantized"].as_u64() > Some(0)
            && report["bytes_after"].as_u64() < report["bytes_before"].as_u64()
    );
    let images = some_pictures(&dir, &["odd.png", "grey.png"]);
    let output = dir.path().join("tags.csv");
    said(&mut vodka_tag(&small, &images, &output), 0);
    assert!(fs::read_to_string(output).unwrap().contains("odd.png,"));
    let mut again = cargo_bin_cmd!("vodka-tag");
    let text = said(again.arg("quantize").arg(fixture("world/bad")).arg(dir.path().join("none")), 2);
    assert!(text.contains("has no `model.onnx`"), "{text}");
}

#[test]
fn what_is_missing_or_wrong_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("tags.parquet");
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let images = some_pictures(&dir, &["odd.png"]);
    let tiny = |model: &str| fixture(&format!("tagger-tiny/{model}"));
    let expect = |command: &mut Command, code: i32, expected: &str| {
        let text = said(command, code);
        assert!(text.contains(expected), "expected {expected:?} in {text:?}");
        assert!(!output.exists());
    };
    expect(&mut vodka_tag(&tagger(), &empty, &output), 1, "no pictures in");
    expect(&mut vodka_tag(&tiny("unlabelled"), &images, &output), 2, "has no `selected_tags.csv`");
    expect(&mut vodka_tag(&tiny("mismatch"), &images, &output), 1, "scores 24 tags, but");
    expect(&mut vodka_tag(&tagger(), &dir.path().join("gone"), &output), 2, "no folder");
    expect(vodka_tag(&tagger(), &images, &output).args(["--min-score", "2"]), 2, "expected 0 to 1, found 2");
    expect(vodka_tag(&tagger(), &images, &output).args(["--provider", "npu"]), 2, "found `npu`");
    expect(vodka_tag(&tagger(), &images, &output).args(["--provider", "cuda"]), 1, "`cuda` is not available");
    let no_runtime = |dir: &Path| {
        let mut command = vodka_tag(&tagger(), &images, &output);
        command.env("VODKA_RUNTIME", dir);
        command
    };
    expect(&mut no_runtime(&empty), 1, "`cargo xtask setup` installs it");
    let file = empty.join("a.txt");
    fs::write(&file, "in the way").unwrap();
    expect(&mut vodka_tag(&tagger(), &images, &file.join("tags.parquet")), 1, "cannot create the folder");
}

#[test]
fn a_dry_run_prints_the_plan_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out/tags.parquet");
    let plan = vodka_tag(&tagger(), &world(), &output).arg("--dry-run").assert().code(0).get_output().clone();
    let plan: Value = serde_json::from_slice(&plan.stdout).unwrap();
    assert_eq!(plan["config"]["min_score"], json!(0.1));
    assert!(!dir.path().join("out").exists());
}

#[test]
fn the_record_of_an_automatic_choice_names_what_ran() {
    let dir = tempfile::tempdir().unwrap();
    let images = some_pictures(&dir, &["rgba.png", "grey.png"]);
    let output = dir.path().join("tags.csv");
    vodka_tag(&tagger(), &images, &output).args(["--provider", "auto"]).assert().code(0);
    let record = vodka_stage::RunRecord::read(&output.with_file_name("tags.csv.run.json")).unwrap();
    let ran = record.settings["provider"].as_str().unwrap().to_owned();
    assert!(["cpu", "cuda", "openvino"].contains(&&*ran), "{ran}");
    // The same provider by name is the same run.
    let again = said(vodka_tag(&tagger(), &images, &output).args(["--provider", &ran]), 0);
    assert!(again.contains("unchanged: nothing to do"), "{again}");
}
