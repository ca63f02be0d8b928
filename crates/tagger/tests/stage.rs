//! The stage as a library: what it writes, and that it goes on where it was.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::json;
use vodka_stage::{Interrupt, Journal, Outcome};
use vodka_tagger::{Provider, TagConfig, TagEvent, TagReport, run};
use vodka_testkit::{fixture, onnxruntime};

/// The lossless pictures of the awkward ones, in a folder of their own with a subfolder.
fn pictures(dir: &Path) -> PathBuf {
    let images = dir.join("images");
    fs::create_dir_all(images.join("more")).unwrap();
    let source = fixture("images/awkward");
    for name in ["odd.png", "rgba.png", "grey.png", "row.png", "clear.gif"] {
        fs::copy(source.join(name), images.join(name)).unwrap();
    }
    for name in ["la.png", "exact.png", "animated.webp"] {
        fs::copy(source.join(name), images.join("more").join(name)).unwrap();
    }
    images
}

fn config(images: &Path, output: &Path) -> TagConfig {
    TagConfig {
        onnxruntime: onnxruntime(),
        threads: 2,
        batch: 2,
        ..TagConfig::new(fixture("tagger-tiny/dynamic"), images, output)
    }
}

fn tag(config: &TagConfig) -> TagReport {
    run(&config.plan().unwrap(), &Interrupt::new(), &mut |_| {}).unwrap()
}

fn read(path: PathBuf) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn rows_are_ordered_and_the_floor_holds() {
    let dir = tempfile::tempdir().unwrap();
    let report = tag(&config(&pictures(dir.path()), &dir.path().join("out/tags.parquet")));
    assert_eq!((report.outcome, report.found, report.tagged, report.skipped), (Outcome::Done, 8, 8, 0));
    let csv = read(dir.path().join("out/tags.csv"));
    let rows: Vec<(String, f32)> = csv
        .lines()
        .skip(1)
        .map(|line| {
            (line.split(',').next().unwrap().to_owned(), line.rsplit(',').next().unwrap().parse().unwrap())
        })
        .collect();
    assert_eq!(rows.len(), report.rows);
    assert!(rows.iter().all(|(_, score)| (0.1..=1.0).contains(score)), "{csv}");
    assert!(rows.is_sorted_by(|a, b| a.0 < b.0 || a.0 == b.0 && a.1 >= b.1), "{csv}");
    assert!(rows.iter().any(|(image, _)| image == "more/la.png"));
    assert_eq!(read(dir.path().join("out/tags.skipped.csv")), "image,reason\n");
}

#[test]
fn batch_and_threads_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let images = pictures(dir.path());
    let tables: Vec<_> = [(1, 1), (3, 2), (8, 5), (100, 1)]
        .into_iter()
        .map(|(batch, threads)| {
            let output = dir.path().join(format!("{batch}-{threads}/tags.parquet"));
            tag(&TagConfig { batch, threads, ..config(&images, &output) });
            (fs::read(&output).unwrap(), read(output.with_extension("csv")))
        })
        .collect();
    assert!(tables.iter().all(|table| *table == tables[0]));
}

#[test]
fn an_interrupted_run_goes_on_and_writes_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let images = pictures(dir.path());
    fs::write(images.join("b.png"), "no picture").unwrap();
    let whole = dir.path().join("whole/tags.parquet");
    tag(&config(&images, &whole));

    let output = dir.path().join("parts/tags.parquet");
    let plan = config(&images, &output).plan().unwrap();
    let (mut runs, mut resumed_at) = (0, Vec::new());
    loop {
        let interrupt = Interrupt::new();
        let report = run(&plan, &interrupt, &mut |event| match event {
            TagEvent::Started { resumed, .. } => resumed_at.push(resumed),
            TagEvent::Progress { .. } => interrupt.raise(),
            TagEvent::Skipped { .. } => {}
        });
        runs += 1;
        if report.unwrap().outcome != Outcome::Interrupted {
            break;
        }
        assert!(!output.exists());
    }
    assert_eq!((runs, resumed_at), (5, vec![0, 2, 4, 6, 8]));
    for extension in ["parquet", "csv", "skipped.csv"] {
        let bytes = |table: &Path| fs::read(table.with_extension(extension)).unwrap();
        assert_eq!(bytes(&output), bytes(&whole), "{extension}");
    }
    let left: Vec<_> =
        fs::read_dir(output.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4, "the tables, the list and the record: {left:?}");
}

#[test]
fn what_the_journal_has_is_not_done_again() {
    let dir = tempfile::tempdir().unwrap();
    let images = pictures(dir.path());
    let output = dir.path().join("tags.csv");
    let plan = config(&images, &output).plan().unwrap();
    // As a killed run leaves it, but with a score that no model gives.
    let journal = dir.path().join(".tags.csv.journal");
    let (mut journal, _) = Journal::open::<serde_json::Value>(journal, plan.key().unwrap().hash()).unwrap();
    let unlikely = 0.123_f32.to_bits();
    journal.append(&json!([{"image": "odd.png", "finding": {"scores": [[5, unlikely]]}}])).unwrap();
    journal.append(&json!([{"image": "grey.png", "finding": {"scores": [[99, unlikely]]}}])).unwrap();
    drop(journal);
    let report = run(&plan, &Interrupt::new(), &mut |event| {
        if let TagEvent::Started { resumed, .. } = event {
            assert_eq!(resumed, 1, "a tag that there is not makes an entry worthless");
        }
    });
    assert_eq!(report.unwrap().tagged, 8);
    let table = read(output);
    let of = |image: &str| table.lines().filter(|line| line.starts_with(image)).count();
    assert!(table.contains("odd.png,1005,solo,general,0.123\n"), "{table}");
    assert!(of("odd.png") == 1 && of("grey.png") > 1, "{table}");
}

#[test]
fn nothing_changed_is_nothing_done_and_what_changed_is_done_again() {
    let dir = tempfile::tempdir().unwrap();
    let images = pictures(dir.path());
    let first = config(&images, &dir.path().join("tags.parquet"));
    let done = tag(&first);
    let again = tag(&TagConfig { batch: 1, threads: 1, onnxruntime: "not/needed".into(), ..first.clone() });
    assert_eq!(again, TagReport { outcome: Outcome::Unchanged, ..done.clone() });
    assert!(tag(&TagConfig { min_score: 0.4, ..first.clone() }).rows < done.rows);
    fs::remove_file(images.join("odd.png")).unwrap();
    assert_eq!(tag(&first).tagged, 7);
}

/// A copy of the small model.
fn model(dir: &Path) -> PathBuf {
    let model = dir.join("model");
    fs::create_dir_all(&model).unwrap();
    for name in ["model.onnx", "selected_tags.csv"] {
        fs::copy(fixture("tagger-tiny/dynamic").join(name), model.join(name)).unwrap();
    }
    model
}

#[test]
fn the_key_sees_the_provider_and_the_weights_outside_the_network() {
    let dir = tempfile::tempdir().unwrap();
    let images = pictures(dir.path());
    let model = model(dir.path());
    let cpu = TagConfig { model: model.clone(), ..config(&images, &dir.path().join("tags.parquet")) };
    let hash = |config: &TagConfig| config.plan().unwrap().key().unwrap().hash();
    let mut hashes = vec![hash(&cpu), hash(&TagConfig { provider: Provider::Cuda, ..cpu.clone() })];
    for name in ["model.onnx.data", "model.onnx_data", "model.onnx_data_1"] {
        fs::write(model.join(name), "1").unwrap();
        hashes.push(hash(&cpu));
    }
    fs::write(model.join("model.onnx.data"), "2").unwrap();
    hashes.push(hash(&cpu));
    assert!(hashes.iter().enumerate().all(|(i, hash)| !hashes[..i].contains(hash)), "{hashes:?}");
    fs::write(model.join("README.md"), "no part of it").unwrap();
    assert_eq!(hash(&cpu), hashes[5]);
}

#[test]
fn an_unchanged_report_names_the_outputs_as_they_are_asked_for_now() {
    let dir = tempfile::tempdir().unwrap();
    let images = pictures(dir.path());
    let done = tag(&config(&images, &dir.path().join("tags.parquet")));
    let elsewhere = dir.path().join("images/../tags.parquet");
    let again = tag(&config(&images, &elsewhere));
    assert_eq!(again.outcome, Outcome::Unchanged);
    assert_eq!(again.outputs[0], elsewhere);
    assert_eq!(again, TagReport { outcome: Outcome::Unchanged, outputs: again.outputs.clone(), ..done });
}

#[test]
fn the_case_of_the_extension_does_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let images = pictures(dir.path());
    let at = |name: &str| dir.path().join(name);
    let report = tag(&config(&images, &at("tags.CSV")));
    assert_eq!(report.outputs, [at("tags.CSV"), at("tags.skipped.csv")]);
    let table = read(at("tags.CSV"));
    assert!(table.starts_with("image,tag_id,tag,category,score\n"), "{table}");
    let report = tag(&config(&images, &at("more.Parquet")));
    assert_eq!(report.outputs, [at("more.Parquet"), at("more.csv"), at("more.skipped.csv")]);
    assert!(fs::read(at("more.Parquet")).unwrap().starts_with(b"PAR1"));
    assert_eq!(read(at("more.csv")), table);
}

#[test]
fn pictures_that_cannot_be_tagged_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let images = pictures(dir.path());
    let mut expected = String::from("image,reason\n");
    let mut flat = fs::read(images.join("clear.gif")).unwrap();
    flat[6..8].fill(0);
    let height = u16::from_le_bytes([flat[8], flat[9]]);
    fs::write(images.join("flat.gif"), flat).unwrap();
    expected += &format!("flat.gif,\"expected at least 1 x 1 pixels, found 0 x {height}\"\n");
    let mut skipped = 1;
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("nowhere", images.join("gone.png")).unwrap();
        expected += "gone.png,the file cannot be read: No such file or directory (os error 2)\n";
        skipped += 1;
    }
    let report = tag(&config(&images, &dir.path().join("tags.csv")));
    assert_eq!((report.outcome, report.tagged, report.skipped), (Outcome::Skipped, 8, skipped));
    assert_eq!(read(dir.path().join("tags.skipped.csv")), expected);
}

#[test]
fn orientation_can_be_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("images");
    fs::create_dir_all(&images).unwrap();
    for name in ["orientation_1.jpg", "orientation_6.jpg"] {
        fs::copy(fixture("images/awkward").join(name), images.join(name)).unwrap();
    }
    let scores = |name: &str, ignore_orientation: bool| {
        let output = dir.path().join(name);
        tag(&TagConfig { ignore_orientation, min_score: 0.0, ..config(&images, &output) });
        let table = read(output);
        let of = |image: &str| -> Vec<String> {
            table.lines().filter_map(|line| line.strip_prefix(image)).map(str::to_owned).collect()
        };
        (of("orientation_1.jpg"), of("orientation_6.jpg"))
    };
    let (upright, turned) = scores("as-meant.csv", false);
    assert_ne!(upright, turned);
    let (upright, stored) = scores("as-stored.csv", true);
    assert_eq!(upright, stored);
}

#[test]
fn another_family_makes_the_same_kind_of_table() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixture("tagger-families/cl-tagger-v1");
    let output = dir.path().join("tags.csv");
    tag(&TagConfig { model, min_score: 0.0, ..config(&pictures(dir.path()), &output) });
    let table = read(output);
    // Outputs 3 and 7 have no label, and no row.
    let tagged = |tag: &str| table.lines().filter(|line| line.contains(&format!(",{tag},"))).count();
    assert_eq!(
        (tagged("9,;),general"), tagged("21,highres,meta"), tagged("22,best_quality,quality")),
        (8, 8, 8)
    );
    assert_eq!(table.lines().count(), 1 + 8 * 21);
}

#[test]
fn wrong_settings_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let good = config(&pictures(dir.path()), &dir.path().join("tags.parquet"));
    let message = |config: TagConfig| config.plan().unwrap_err().to_string();
    assert_eq!(
        message(TagConfig { min_score: 1.5, ..good.clone() }),
        "`min_score`: expected 0 to 1, found 1.5"
    );
    assert_eq!(
        message(TagConfig { min_score: f64::NAN, ..good.clone() }),
        "`min_score`: expected 0 to 1, found NaN"
    );
    assert_eq!(message(TagConfig { batch: 0, ..good.clone() }), "`batch`: expected 1 to 4096, found 0");
    let many = TagConfig { threads: 9_999_999, ..good.clone() };
    assert_eq!(message(many), "`threads`: expected 0 to 1024, found 9999999");
    let other = TagConfig { output: "tags.txt".into(), ..good.clone() };
    assert_eq!(message(other), "`output`: expected a name ending in .parquet or .csv, found tags.txt");
    let nowhere = TagConfig { images: "nowhere".into(), ..good };
    assert_eq!(message(nowhere), "no folder `nowhere` (the pictures)");
    let unknown = json!({"model": "m", "images": "i", "output": "o.csv", "min_scor": 0.1});
    let error = serde_json::from_value::<TagConfig>(unknown).unwrap_err();
    assert!(error.to_string().contains("unknown field `min_scor`"), "{error}");
}
