//! The stage as a library: what it writes, and that it goes on where it was.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::json;
use vodka_stage::{Interrupt, Outcome, Report};
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
    let report = tag(&config(&pictures(dir.path()), &dir.path().join("out/tags.csv")));
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
            (fs::read(&output).unwrap(), fs::read(output.with_extension("pictures.parquet")).unwrap())
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
    let plan = TagConfig { threads: 1, ..config(&images, &output) }.plan().unwrap();
    let mut resumed_at = Vec::new();
    loop {
        let interrupt = Interrupt::new();
        let report = run(&plan, &interrupt, &mut |event| match event {
            TagEvent::Started { resumed, .. } => resumed_at.push(resumed),
            TagEvent::Progress { .. } => interrupt.raise(),
            TagEvent::Skipped { .. } => {}
        })
        .unwrap();
        if report.outcome != Outcome::Interrupted {
            break;
        }
        assert!(!output.exists());
        assert!(report.to_string().contains("of 9 pictures done so far"), "{report}");
    }
    // Each run does the batch that it was stopped in and, as the threads will have it, up to two that were begun by then.
    assert!(resumed_at.len() >= 2 && resumed_at.is_sorted_by(|a, b| a < b), "{resumed_at:?}");
    for extension in ["parquet", "pictures.parquet", "skipped.csv"] {
        let bytes = |table: &Path| fs::read(table.with_extension(extension)).unwrap();
        assert_eq!(bytes(&output), bytes(&whole), "{extension}");
    }
    let mut left: Vec<_> =
        fs::read_dir(output.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    let expected = [
        ".tags.parquet.journal",
        "tags.parquet",
        "tags.parquet.run.json",
        "tags.pictures.parquet",
        "tags.skipped.csv",
    ];
    assert_eq!(left, expected);
}

/// How many pictures a run found done, and what it reports.
fn resume(config: &TagConfig) -> (usize, TagReport) {
    let mut found_done = 0;
    let report = run(&config.plan().unwrap(), &Interrupt::new(), &mut |event| {
        if let TagEvent::Started { resumed, .. } = event {
            found_done = resumed;
        }
    });
    (found_done, report.unwrap())
}

#[test]
fn only_what_is_new_or_changed_is_tagged_again() {
    let dir = tempfile::tempdir().unwrap();
    let images = pictures(dir.path());
    let config = config(&images, &dir.path().join("tags.csv"));
    assert_eq!(resume(&config).0, 0);
    fs::copy(images.join("odd.png"), images.join("new.png")).unwrap();
    fs::copy(images.join("grey.png"), images.join("rgba.png")).unwrap();
    fs::remove_file(images.join("row.png")).unwrap();
    let (found_done, report) = resume(&config);
    assert_eq!((found_done, report.tagged), (6, 8));
    // The same as from nothing.
    let afresh = TagConfig { output: dir.path().join("afresh/tags.csv"), ..config.clone() };
    resume(&afresh);
    for extension in ["csv", "pictures.csv", "skipped.csv"] {
        let of = |config: &TagConfig| read(config.output.with_extension(extension));
        assert_eq!(of(&config), of(&afresh), "{extension}");
    }
    // Touched, but with the content it had.
    let touched = fs::File::options().write(true).open(images.join("odd.png")).unwrap();
    touched.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(resume(&config).1.outcome, Outcome::Unchanged);
    let other = TagConfig { min_score: 0.2, ..config };
    assert_eq!(resume(&other).0, 0, "another run keeps nothing of this one");
}

#[test]
fn a_journal_lost_costs_no_work_where_nothing_changed() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&pictures(dir.path()), &dir.path().join("tags.csv"));
    tag(&config);
    fs::remove_file(dir.path().join(".tags.csv.journal")).unwrap();
    assert_eq!(tag(&config).outcome, Outcome::Unchanged);
}

#[test]
fn the_journal_does_not_grow_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let images = pictures(dir.path());
    let config = config(&images, &dir.path().join("tags.csv"));
    tag(&config);
    let journal = dir.path().join(".tags.csv.journal");
    let size = fs::metadata(&journal).unwrap().len();
    for value in 0..12_u8 {
        for name in ["odd.png", "grey.png", "row.png"] {
            let image = vodka_images::RgbImage::from_pixel(9, 7, vodka_images::Rgb([value; 3]));
            fs::write(images.join(name), bitmap(&image)).unwrap();
        }
        tag(&config);
    }
    assert!(fs::metadata(&journal).unwrap().len() < 3 * size);
}

#[test]
fn a_folder_that_vanishes_ends_the_run_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let images = pictures(dir.path());
    let config = TagConfig { batch: 1, threads: 1, ..config(&images, &dir.path().join("tags.csv")) };
    let away = dir.path().join("away");
    let error = run(&config.plan().unwrap(), &Interrupt::new(), &mut |event| {
        if matches!(event, TagEvent::Started { .. }) {
            fs::rename(&images, &away).unwrap();
        }
    });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("no folder `") && error.contains("images` (the pictures)"), "{error}");
    fs::rename(&away, &images).unwrap();
    assert_eq!(tag(&config).tagged, 8);
}

#[test]
fn settings_tried_in_between_cost_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&pictures(dir.path()), &dir.path().join("tags.csv"));
    tag(&config);
    tag(&TagConfig { min_score: 0.9, ..config.clone() });
    assert_eq!(resume(&config).0, 8, "the first journal was set aside, not thrown away");
}

#[cfg(target_os = "linux")]
#[test]
fn what_can_never_be_read_is_no_news() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    let dir = tempfile::tempdir().unwrap();
    let images = pictures(dir.path());
    for name in [b"a\xff.png", b"a\xfe.png"] {
        fs::copy(images.join("odd.png"), images.join(OsStr::from_bytes(name))).unwrap();
    }
    fs::File::create(images.join("large.png")).unwrap().set_len((1 << 30) + 1).unwrap();
    let config = config(&images, &dir.path().join("tags.csv"));
    let report = tag(&config);
    assert_eq!((report.outcome, report.skipped), (Outcome::Skipped, 3));
    assert!(report.to_string().contains("large.png: expected at most 1073741824 bytes"), "{report}");
    assert_eq!(tag(&config).outcome, Outcome::Unchanged);
}

/// A picture as an uncompressed bitmap, which needs no encoder.
fn bitmap(image: &vodka_images::RgbImage) -> Vec<u8> {
    let (width, height) = image.dimensions();
    let row = (3 * width).next_multiple_of(4);
    let mut bytes = b"BM".to_vec();
    for value in
        [54 + row * height, 0, 54, 40, width, height, 1 | 24 << 16, 0, row * height, 2835, 2835, 0, 0]
    {
        bytes.extend(value.to_le_bytes());
    }
    for y in (0..height).rev() {
        let mut line: Vec<u8> = (0..width).flat_map(|x| image.get_pixel(x, y).0).collect();
        line.resize(row as usize, 0);
        bytes.extend(line);
    }
    bytes
}

#[test]
fn two_tables_do_not_share_a_list_of_skipped_pictures() {
    let dir = tempfile::tempdir().unwrap();
    let images = pictures(dir.path());
    tag(&config(&images, &dir.path().join("tags.csv")));
    let error = config(&images, &dir.path().join("tags.parquet")).plan().unwrap_err().to_string();
    assert!(error.contains("`output`: expected another name before the dot"), "{error}");
    assert!(error.contains("tags.csv` beside it"), "{error}");
    tag(&config(&images, &dir.path().join("more.parquet")));
    assert_eq!(tag(&config(&images, &dir.path().join("tags.csv"))).outcome, Outcome::Unchanged);
}

#[test]
fn the_longest_names_have_their_journals_and_records() {
    let dir = tempfile::tempdir().unwrap();
    let images = pictures(dir.path());
    let output = dir.path().join("n".repeat(242) + ".csv");
    let config = config(&images, &output);
    assert_eq!(tag(&config).tagged, 8);
    assert_eq!(tag(&config).outcome, Outcome::Unchanged);
    tag(&TagConfig { min_score: 0.9, ..config.clone() });
    assert_eq!(resume(&config).0, 8, "its journal was set aside");
}

#[test]
fn one_run_at_a_time_writes_an_output() {
    let dir = tempfile::tempdir().unwrap();
    let plan = config(&pictures(dir.path()), &dir.path().join("tags.csv")).plan().unwrap();
    let mut said = String::new();
    run(&plan, &Interrupt::new(), &mut |event| {
        if matches!(event, TagEvent::Started { .. }) {
            said = run(&plan, &Interrupt::new(), &mut |_| {}).unwrap_err().to_string();
        }
    })
    .unwrap();
    assert!(said.contains(".tags.csv.journal` is held by another run"), "{said}");
}

#[test]
fn the_same_stem_is_no_collision() {
    let dir = tempfile::tempdir().unwrap();
    let images = pictures(dir.path());
    fs::copy(images.join("clear.gif"), images.join("odd.gif")).unwrap();
    tag(&config(&images, &dir.path().join("tags.csv")));
    let table = read(dir.path().join("tags.pictures.csv"));
    assert!(table.contains("\nodd.gif,") && table.contains("\nodd.png,"), "{table}");
}

#[test]
fn pictures_are_measured() {
    let dir = tempfile::tempdir().unwrap();
    let images = pictures(dir.path());
    tag(&config(&images, &dir.path().join("tags.csv")));
    let table = read(dir.path().join("tags.pictures.csv"));
    let header = "image,width,height,sha256,phash,sharpness,sharpness_tile_min,sharpness_tile_median,sharpness_tile_max";
    assert_eq!(table.lines().next(), Some(header));
    let odd: Vec<_> = table.lines().find(|line| line.starts_with("odd.png,")).unwrap().split(',').collect();
    let picture = vodka_images::decode(&images.join("odd.png")).unwrap();
    let measures = vodka_images::measure(&picture);
    assert_eq!([odd[1], odd[2]], [picture.width().to_string(), picture.height().to_string()]);
    assert_eq!(odd[3], vodka_stage::hash_file(images.join("odd.png")).unwrap().to_string());
    assert_eq!(odd[4], format!("{:016x}", measures.phash));
    assert_eq!(odd[5].parse(), Ok(measures.sharpness));
    assert_eq!(odd[8].parse(), Ok(measures.tiles.max));
}

#[test]
fn what_is_left_out_is_told_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let images = pictures(dir.path());
    fs::write(images.join("bad.png"), "no picture").unwrap();
    let config = config(&images, &dir.path().join("tags.parquet"));
    let [first, second] = [tag(&config), tag(&config)];
    assert_eq!((first.outcome, second.outcome), (Outcome::Skipped, Outcome::Unchanged));
    assert_eq!([first, second].map(|report| report.outcome()), [Outcome::Skipped; 2]);
    fs::remove_file(images.join("bad.png")).unwrap();
    assert_eq!(tag(&config).outcome(), Outcome::Done);
}

#[test]
fn nothing_changed_is_nothing_done_and_what_changed_is_done_again() {
    let dir = tempfile::tempdir().unwrap();
    let images = pictures(dir.path());
    let first = config(&images, &dir.path().join("tags.parquet"));
    let done = tag(&first);
    let again = tag(&TagConfig { threads: 1, onnxruntime: "not/needed".into(), ..first.clone() });
    assert_eq!(again, TagReport { outcome: Outcome::Unchanged, speed: None, ..done.clone() });
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

    // What the graph names counts, whatever it is called.
    fs::create_dir(model.join("parts")).unwrap();
    fs::write(model.join("parts/weights.bin"), "1").unwrap();
    assert_eq!(hash(&cpu), hashes[5]);
    let mut network = fs::read(model.join("model.onnx")).unwrap();
    network.extend(graph_with_weights_in("parts/weights.bin"));
    fs::write(model.join("model.onnx"), network).unwrap();
    let first = hash(&cpu);
    fs::write(model.join("parts/weights.bin"), "2").unwrap();
    assert_ne!(hash(&cpu), first);
}

/// A part of an ONNX model: a graph with a tensor whose elements are in that file.
fn graph_with_weights_in(location: &str) -> Vec<u8> {
    let field = |number: u8, content: &[u8]| [&[number << 3 | 2, content.len() as u8][..], content].concat();
    let entry = [field(1, b"location"), field(2, location.as_bytes())].concat();
    let tensor = [field(8, b"w"), field(13, &entry), vec![14 << 3, 1]].concat();
    field(7, &field(5, &tensor))
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
    assert_eq!(
        again,
        TagReport { outcome: Outcome::Unchanged, outputs: again.outputs.clone(), speed: None, ..done }
    );
}

#[test]
fn the_case_of_the_extension_does_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let images = pictures(dir.path());
    let at = |name: &str| dir.path().join(name);
    let report = tag(&config(&images, &at("tags.CSV")));
    assert_eq!(report.outputs, [at("tags.CSV"), at("tags.pictures.csv"), at("tags.skipped.csv")]);
    let table = read(at("tags.CSV"));
    assert!(table.starts_with("image,tag_id,tag,category,score\n"), "{table}");
    let report = tag(&config(&images, &at("more.Parquet")));
    assert_eq!(report.outputs, [at("more.Parquet"), at("more.pictures.parquet"), at("more.skipped.csv")]);
    assert!(fs::read(at("more.Parquet")).unwrap().starts_with(b"PAR1"));
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
    let large = TagConfig { batch: 4097, ..good.clone() };
    assert_eq!(message(large), "`batch`: expected 0 to 4096, found 4097");
    let none = TagConfig { max_pixels: 0, ..good.clone() };
    assert_eq!(message(none), "`max_pixels`: expected at least 1, found 0");
    let many = TagConfig { threads: 9_999_999, ..good.clone() };
    assert_eq!(message(many), "`threads`: expected 0 to 1024, found 9999999");
    let other = TagConfig { output: "tags.txt".into(), ..good.clone() };
    assert_eq!(message(other), "`output`: expected a name ending in .parquet or .csv, found tags.txt");
    let long = TagConfig { output: dir.path().join("n".repeat(240) + ".parquet"), ..good.clone() };
    assert!(message(long).contains("all names get at most 255 bytes, found 257 bytes"));
    let nowhere = TagConfig { images: "nowhere".into(), ..good };
    assert_eq!(message(nowhere), "no folder `nowhere` (the pictures)");
    let unknown = json!({"model": "m", "images": "i", "output": "o.csv", "min_scor": 0.1});
    let error = serde_json::from_value::<TagConfig>(unknown).unwrap_err();
    assert!(error.to_string().contains("unknown field `min_scor`"), "{error}");
}

/// Pictures and their embeddings, as a table has them.
fn embeddings(path: &Path) -> Vec<(String, Vec<f32>)> {
    use parquet::{
        file::reader::{FileReader, SerializedFileReader},
        record::{ListAccessor, RowAccessor},
    };
    let reader = SerializedFileReader::new(fs::File::open(path).unwrap()).unwrap();
    let row = |row: parquet::record::Row| {
        let list = row.get_list(1).unwrap();
        let floats = (0..list.len()).map(|i| list.get_float(i).unwrap()).collect();
        (row.get_string(0).unwrap().clone(), floats)
    };
    reader.get_row_iter(None).unwrap().map(|found| row(found.unwrap())).collect()
}

#[test]
fn embeddings_are_a_table_of_their_own_and_survive_an_interruption() {
    let dir = tempfile::tempdir().unwrap();
    let images = pictures(dir.path());
    fs::write(images.join("b.png"), "no picture").unwrap();
    let with = |output: &str| TagConfig {
        model: fixture("tagger-families/animetimm"),
        embeddings: true,
        threads: 1,
        batch: 1,
        ..config(&images, &dir.path().join(output))
    };
    let report = tag(&with("whole/tags.csv"));
    let table = dir.path().join("whole/tags.embeddings.parquet");
    assert!(report.outputs.contains(&table) && report.to_string().contains("tags.embeddings.parquet"));
    let rows = embeddings(&table);
    assert_eq!(rows.len(), 8);

    // What the engine says of one of them.
    let tagger = vodka_tagger::Tagger::open(&vodka_tagger::TaggerConfig {
        onnxruntime: onnxruntime(),
        ..vodka_tagger::TaggerConfig::new(fixture("tagger-families/animetimm"))
    })
    .unwrap();
    let picture = vodka_images::decode(&images.join("more/la.png")).unwrap();
    let alone = tagger.score_with_embeddings(&[tagger.prepare(&picture)]).unwrap().embeddings.unwrap();
    let (_, found) = rows.iter().find(|(image, _)| image == "more/la.png").unwrap();
    assert_eq!(found, &alone.row(0).to_vec());

    let plan = with("parts/tags.csv").plan().unwrap();
    let interrupt = Interrupt::new();
    run(&plan, &interrupt, &mut |event| {
        if matches!(event, TagEvent::Progress { .. }) {
            interrupt.raise();
        }
    })
    .unwrap();
    assert_eq!(tag(&with("parts/tags.csv")).outcome, Outcome::Skipped);
    assert_eq!(
        fs::read(dir.path().join("parts/tags.embeddings.parquet")).unwrap(),
        fs::read(&table).unwrap()
    );

    // Without them there is no such table, and it is another run.
    tag(&TagConfig { embeddings: false, ..with("without/tags.csv") });
    assert!(!dir.path().join("without/tags.embeddings.parquet").exists());
}

#[test]
fn embeddings_that_no_network_gives_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let images = pictures(dir.path());
    let without = TagConfig { embeddings: true, ..config(&images, &dir.path().join("tags.csv")) };
    let found = run(&without.plan().unwrap(), &Interrupt::new(), &mut |_| {}).unwrap_err().to_string();
    assert!(found.contains("`embeddings`: expected a network with an output for them"), "{found}");
    let two = TagConfig { ensemble: vec![fixture("tagger-families/animetimm")], ..without };
    let found = two.plan().unwrap_err().to_string();
    assert_eq!(found, "`embeddings`: expected one model, found 2 models");
}
