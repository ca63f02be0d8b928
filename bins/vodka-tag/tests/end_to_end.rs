//! `vodka-tag` from the command line, on the pictures of the fixture world.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs::{self, File},
    path::Path,
};

use assert_cmd::{Command, cargo::cargo_bin_cmd};
use parquet::{
    file::reader::{FileReader, SerializedFileReader},
    record::RowAccessor,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use vodka_stage::{ContentHash, Journal};
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

    let csv = fs::read_to_string(output.with_extension("csv")).unwrap();
    assert_eq!(csv.lines().next(), Some("image,tag_id,tag,category,score"));
    assert!(csv.contains("räume/") && csv.contains("garden party/"), "{csv}");
    let reader = SerializedFileReader::new(File::open(&output).unwrap()).unwrap();
    let rows: Vec<_> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
    assert_eq!((rows.len(), Some(rows.len() as u64)), (csv.lines().count() - 1, report["rows"].as_u64()));
    assert!(rows.iter().all(|row| row.get_float(4).unwrap() >= 0.1));
    let metadata = reader.metadata().file_metadata().key_value_metadata().unwrap();
    let keys: Vec<_> = metadata.iter().map(|pair| pair.key.as_str()).collect();
    for key in ["vodka.model_sha256", "vodka.labels_sha256", "vodka.preprocessing", "vodka.min_score"] {
        assert!(keys.contains(&key), "{keys:?}");
    }

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
    let output = dir.path().join("tags.parquet");
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
    said(&mut vodka_tag(&tagger(), &images, &dir.path().join("tags.parquet")), 3);
    let csv = fs::read_to_string(dir.path().join("tags.csv")).unwrap();
    assert_eq!(csv, "image,tag_id,tag,category,score\n");
}

#[test]
fn a_killed_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let images = some_pictures(&dir, &["odd.png", "grey.png", "rgba.png", "la.png"]);
    let output = dir.path().join("tags.csv");
    let model = fixture("tagger-tiny/dynamic");
    // The key that a run of these settings has, from the record of one.
    said(&mut vodka_tag(&model, &images, &output), 0);
    let whole = fs::read_to_string(&output).unwrap();
    let record = vodka_stage::RunRecord::read(&dir.path().join("tags.csv.run.json")).unwrap();
    let key = key_of(&record);
    fs::remove_file(dir.path().join("tags.csv.run.json")).unwrap();

    // What a run leaves that is killed after its first batch and while it writes its second, with a mark in it.
    let path = dir.path().join(".tags.csv.journal");
    let (mut journal, _) = Journal::open::<Value>(&path, key).unwrap();
    let mark = 0.987_f32.to_bits();
    journal.append(&json!([{"image": "grey.png", "finding": {"scores": [[5, mark]]}}])).unwrap();
    drop(journal);
    let torn = fs::read_to_string(&path).unwrap() + "[{\"image\": \"la.p";
    fs::write(&path, torn).unwrap();

    let text = said(&mut vodka_tag(&model, &images, &output), 0);
    assert!(text.contains("going on after 1 of 4 pictures"), "{text}");
    let resumed = fs::read_to_string(&output).unwrap();
    let others = |table: &str| -> Vec<String> {
        table.lines().filter(|line| !line.starts_with("grey")).map(str::to_owned).collect()
    };
    assert_eq!(others(&resumed), others(&whole));
    assert!(resumed.contains("grey.png,1005,solo,general,0.987\n"), "{resumed}");
    assert!(!path.exists(), "the journal goes when the run is done");
}

/// The hash of the key that made a record.
fn key_of(record: &vodka_stage::RunRecord) -> ContentHash {
    let mut key = vodka_stage::RunKey::new("tag", &record.settings, record.seed);
    key.inputs.clone_from(&record.inputs);
    key.hash()
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
    expect(
        vodka_tag(&tagger(), &images, &output).args(["--provider", "npu"]),
        2,
        "(auto, cpu, cuda, tensorrt, openvino, directml, coreml), found `npu`",
    );
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
