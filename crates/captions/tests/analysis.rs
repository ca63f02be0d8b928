//! The analysis: against goldens of pandas and kneed, against naive counts on random tables, and as a stage.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::{Path, PathBuf},
};

use polars::{
    io::parquet::write::KeyValueMetadata,
    prelude::{DataFrame, NamedFrom, ParquetWriter, Series},
};
use proptest::prelude::*;
use serde_json::{Value, json};
use vodka_captions::{
    Error,
    analysis::{
        AnalyseConfig, AnalyseReport, Analysed, Analysis, AnalysisInputs, HISTOGRAM_BUCKETS, Settings,
        analyse, run,
    },
};
use vodka_stage::{Interrupt, Outcome, record_path};
use vodka_testkit::fixture;

const HEADER: &str = "image,tag_id,tag,category,score\n";

fn inputs(tags: &Path, selection: &[&str]) -> AnalysisInputs {
    AnalysisInputs {
        tags: tags.to_path_buf(),
        selection_path: PathBuf::from("selection.csv"),
        selection: selection.iter().map(|tag| (*tag).to_owned()).collect(),
        captions: None,
        images: PathBuf::new(),
        pictures: None,
        labels: None,
        settings: Settings::default(),
    }
}

fn analysed(inputs: &AnalysisInputs) -> Analysed {
    analyse(inputs, &Interrupt::new()).unwrap().unwrap()
}

fn near(found: f64, golden: &Value, max_abs: f64, what: &str) {
    let golden = golden.as_f64().unwrap_or_else(|| panic!("{what}: {golden}"));
    assert!((found - golden).abs() <= max_abs, "{what}: {found}, golden {golden}");
}

/// The fixture's analysis and its golden.
fn golden() -> (Analysis, Value) {
    let case = |name: &str| fixture("captions/analysis").join(name);
    let golden: Value = serde_json::from_slice(&fs::read(case("golden.json")).unwrap()).unwrap();
    let selection: Vec<_> = golden["tags"].as_object().unwrap().keys().map(String::as_str).collect();
    let mut inputs = inputs(&fixture("captions/v3_rule/tags.csv"), &selection);
    inputs.pictures = Some(case("pictures.csv"));
    inputs.labels = Some(case("labels.csv"));
    inputs.settings.thresholds = vec![0.3, 0.5, 0.75, 0.95];
    inputs.settings.groups = golden["groups"].as_object().unwrap().keys().cloned().collect();
    let Analysed { analysis, warnings } = analysed(&inputs);
    assert_eq!(
        warnings,
        ["1 selected tags are not in the tag table: `not_there`", "no tag of the table has the word `girl`"]
    );
    (analysis, golden)
}

#[test]
fn tags_agree_with_pandas_and_kneed() {
    let (analysis, golden) = golden();
    assert_eq!(json!([analysis.images, analysis.rows]), json!([golden["images"], golden["rows"]]));
    near(analysis.lowest_score.into(), &golden["lowest_score"], 0.0, "lowest");
    for tag in &analysis.tags {
        let golden = &golden["tags"][&tag.tag];
        let counts = json!({ "images": tag.images, "at": tag.at_threshold, "histogram": tag.histogram });
        for (name, found) in counts.as_object().unwrap() {
            assert_eq!(*found, golden[name], "{name} of {}", tag.tag);
        }
        let suggestion = tag.suggestion.as_ref();
        match tag.mean_score {
            None => assert!(golden["mean"].is_null() && tag.quantiles.is_empty() && suggestion.is_none()),
            Some(mean) => {
                near(mean, &golden["mean"], 1e-12, "mean");
                assert_eq!(tag.quantiles.len(), 11);
                for (found, golden) in tag.quantiles.iter().zip(golden["quantiles"].as_array().unwrap()) {
                    near((*found).into(), golden, 6e-8, &tag.tag);
                }
                let knee = suggestion.unwrap().knee.unwrap();
                near(knee.into(), &golden["knee"], 1e-7, &format!("knee of {}", tag.tag));
            }
        }
        let best = suggestion.and_then(|suggestion| suggestion.from_labels.as_ref());
        assert_eq!(best.is_some(), golden["best"].is_object(), "{}", tag.tag);
        if let Some(best) = best {
            let golden = &golden["best"];
            near(best.threshold.into(), &golden["threshold"], 0.0, "threshold");
            near(best.f1, &golden["f1"], 1e-12, "f1");
            near(best.precision, &golden["precision"], 1e-12, "precision");
            near(best.recall, &golden["recall"], 1e-12, "recall");
            assert_eq!(json!(best.labels), golden["labels"]);
        }
    }
    let categories: BTreeSet<_> = analysis.tags.iter().map(|tag| tag.category.as_str()).collect();
    assert_eq!(categories, BTreeSet::from(["", "general"]));
}

#[test]
fn groups_pairs_and_sharpness_agree_with_pandas() {
    let (analysis, golden) = golden();
    for group in &analysis.groups {
        let found = json!({ "tags": group.tags, "images": group.images, "at": group.at_threshold });
        assert_eq!(found, golden["groups"][&group.word], "{}", group.word);
    }
    assert_eq!(json!(analysis.cooccurrence.counts), golden["pairs"]);
    let (found, golden) = (analysis.sharpness.unwrap(), &golden["sharpness"]);
    assert_eq!(json!(found.images), golden["images"]);
    near(found.spearman, &golden["spearman"], 1e-12, "spearman");
    near(found.auc, &golden["auc"], 1e-12, "auc");
    let medians: Vec<_> = found.buckets.iter().map(|bucket| bucket.median).collect();
    assert_eq!(json!(medians), golden["medians"]);
    assert_eq!(found.buckets.iter().map(|bucket| bucket.images).sum::<u64>(), found.images);
}

/// A row of a made-up table.
type Row = (String, String, f32);

fn csv_table(path: &Path, rows: &[Row]) {
    let rows = rows.iter().map(|(image, tag, score)| format!("\"{image}\",1,\"{tag}\",general,{score}\n"));
    fs::write(path, HEADER.to_owned() + &rows.collect::<String>()).unwrap();
}

fn parquet_table(path: &Path, rows: &[Row]) {
    let text = |values: Vec<String>, name: &str| Series::new(name.into(), values).into();
    let columns = vec![
        text(rows.iter().map(|row| row.0.clone()).collect(), "image"),
        Series::new("tag_id".into(), vec![1_i64; rows.len()]).into(),
        text(rows.iter().map(|row| row.1.clone()).collect(), "tag"),
        text(vec!["general".to_owned(); rows.len()], "category"),
        Series::new("score".into(), rows.iter().map(|row| row.2).collect::<Vec<_>>()).into(),
    ];
    let floor = KeyValueMetadata::from_static(vec![("vodka.min_score".to_owned(), "0.25".to_owned())]);
    let writer = ParquetWriter::new(File::create(path).unwrap()).with_row_group_size(Some(7));
    let writer = writer.with_key_value_metadata(Some(floor));
    writer.finish(&mut DataFrame::new(rows.len(), columns).unwrap()).unwrap();
}

const NAMES: [&str; 6] = ["blurry", " Blurry", "blurry_background", "solo", "a tag of a long name", "rating"];
const SELECTION: [&str; 4] = ["solo", "blurry", "a_tag_of_a_long_name", "absent"];

/// Counts by the plainest means.
struct Naive {
    highest: BTreeMap<(String, String), f32>,
}

impl Naive {
    fn new(rows: &[Row]) -> Self {
        let mut highest = BTreeMap::new();
        for (image, tag, score) in rows {
            let best = highest.entry((image.clone(), vodka_captions::canonical(tag))).or_insert(0.0_f32);
            *best = best.max(*score);
        }
        Self { highest }
    }

    fn scores(&self, tag: &str) -> Vec<f32> {
        self.highest.iter().filter(|((_, other), _)| other == tag).map(|(_, score)| *score).collect()
    }

    fn images_with(&self, has: impl Fn(&str) -> bool, threshold: f32) -> BTreeSet<&str> {
        let found = self.highest.iter().filter(|((_, tag), score)| has(tag) && **score >= threshold);
        found.map(|((image, _), _)| image.as_str()).collect()
    }
}

fn check(analysis: &Analysis, rows: &[Row]) {
    let naive = Naive::new(rows);
    let images: BTreeSet<_> = rows.iter().map(|row| &row.0).collect();
    assert_eq!(
        (analysis.images, analysis.tagged, analysis.rows),
        (images.len() as u64, images.len() as u64, rows.len() as u64)
    );
    assert_eq!(analysis.lowest_score, rows.iter().map(|row| row.2).fold(1.0, f32::min));
    for tag in &analysis.tags {
        let scores = naive.scores(&tag.tag);
        let at_least = |threshold: f32| scores.iter().filter(|score| **score >= threshold).count() as u64;
        assert_eq!(tag.images, scores.len() as u64, "{}", tag.tag);
        let at: Vec<_> = analysis.thresholds.iter().map(|threshold| at_least(*threshold)).collect();
        assert_eq!(tag.at_threshold, at);
        let mut histogram = vec![0; HISTOGRAM_BUCKETS];
        for score in &scores {
            let bucket =
                (1..HISTOGRAM_BUCKETS).filter(|k| *score >= *k as f32 / HISTOGRAM_BUCKETS as f32).count();
            histogram[bucket] += 1;
        }
        assert_eq!(tag.histogram, histogram);
    }
    let blurry = |tag: &str| tag.split('_').any(|word| word == "blurry");
    let group = &analysis.groups[0];
    assert_eq!(group.images, naive.images_with(blurry, 0.0).len() as u64);
    for (threshold, found) in analysis.thresholds.iter().zip(&group.at_threshold) {
        assert_eq!(*found, naive.images_with(blurry, *threshold).len() as u64);
    }
    for (a, counts) in SELECTION.iter().zip(&analysis.cooccurrence.counts) {
        for (b, found) in SELECTION.iter().zip(counts) {
            let with = |name: &'static str| naive.images_with(move |tag| tag == name, 0.3);
            assert_eq!(*found, with(a).intersection(&with(b)).count() as u64, "{a} and {b}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn counts_are_those_of_a_naive_count(
        rows in prop::collection::vec((0..9_usize, 0..NAMES.len(), 0..=64_u32), 1..120),
        is_sorted in any::<bool>(),
    ) {
        let image = |k: usize| if k.is_multiple_of(2) { format!("{k}.png") } else { format!("a long folder, {k}/picture.png") };
        let mut rows: Vec<Row> =
            rows.into_iter().map(|(k, tag, score)| (image(k), NAMES[tag].to_owned(), score as f32 / 64.0)).collect();
        rows.push((image(0), "solo".to_owned(), 0.5));
        if is_sorted {
            rows.sort_by(|a, b| a.0.cmp(&b.0));
        }
        let dir = tempfile::tempdir().unwrap();
        let [csv, parquet] = ["t.csv", "t.parquet"].map(|name| dir.path().join(name));
        csv_table(&csv, &rows);
        parquet_table(&parquet, &rows);
        let [mut csv, parquet] = [csv, parquet].map(|path| analysed(&inputs(&path, &SELECTION)).analysis);
        check(&csv, &rows);
        prop_assert_eq!(&csv, &parquet);
        rows.sort_by(|a, b| a.0.cmp(&b.0).then(a.2.total_cmp(&b.2)));
        let ordered = dir.path().join("ordered.parquet");
        parquet_table(&ordered, &rows);
        csv.spellings.sort();
        prop_assert_eq!(analysed(&inputs(&ordered, &SELECTION)).analysis, csv, "the order of rows changes nothing");
    }
}

/// A small table in a folder, its pictures with captions, and a stage that analyses it.
struct Small {
    dir: tempfile::TempDir,
}

impl Small {
    fn new() -> Self {
        let small = Self { dir: tempfile::tempdir().unwrap() };
        let rows = "a.png,1,blurry,general,0.9\na.png,2,solo,general,0.35\na.png,3,night,general,0.1\n\
                    b.png,1,Blurry,general,0.35\nb.png,4,blurry_background,general,0.95\nc.png,2,solo,general,0.5\n";
        small.write("tags.csv", &(HEADER.to_owned() + rows));
        small.write("selection.csv", "name,include\nblurry,1\nsolo,1\nnight,0\n");
        small.write("tags.pictures.csv", "image,width,sharpness\na.png,1,10\nb.png,1,20.5\nc.png,1,300\n");
        for (name, caption) in [("a", "a red circle"), ("b", ""), ("c", "solo, a star"), ("d", "a heart")] {
            small.write(&format!("images/{name}.png"), "");
            small.write(&format!("images/{name}.txt"), caption);
        }
        small
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.at(name).parent().unwrap()).unwrap();
        fs::write(self.at(name), text).unwrap();
    }

    fn config(&self) -> AnalyseConfig {
        let paths = json!({
            "tags": self.at("tags.csv"), "selection": self.at("selection.csv"), "output": self.at("out"),
            "thresholds": [0.5, 0.3, 0.9, 0.5],
        });
        serde_json::from_value(paths).unwrap()
    }

    fn run(&self, config: &AnalyseConfig) -> vodka_captions::Result<AnalyseReport> {
        run(&config.plan()?, &Interrupt::new(), &mut |_| {})
    }

    fn said(&self, config: &AnalyseConfig) -> String {
        let text = self.run(config).unwrap_err().to_string();
        text.replace(&format!("{}/", self.dir.path().display()), "")
    }

    fn warnings(&self, config: &AnalyseConfig) -> Vec<String> {
        let folder = format!("{}/", self.dir.path().display());
        self.run(config).unwrap().warnings.iter().map(|warning| warning.replace(&folder, "")).collect()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.at("out").join(name)).unwrap()
    }
}

#[test]
fn the_stage_writes_what_can_be_checked_by_hand() {
    let small = Small::new();
    let config = AnalyseConfig { max_tags: vec![1, 3], ..small.config() };
    let report = small.run(&config).unwrap();
    assert_eq!((report.outcome, report.images, report.tagged, report.rows), (Outcome::Done, 3, 3, 6));
    let text = report.to_string();
    for line in [
        "analysed 2 tags of 3 pictures (3 tagged, 6 rows) to `",
        "\n66.7 % of the pictures have a tag with `blurry` at any score",
        "\n`blurry` and sharpness: Spearman -1.000, area under the curve 1.000",
        "\n`blurry` is spelled in 2 ways",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let tags = small.read("tags.csv");
    assert_eq!(
        tags,
        "tag,category,images,mean_score,at_0.3,at_0.5,at_0.9,knee,best_threshold,best_f1,precision,recall,labels\n\
         blurry,general,2,0.6250,2,1,1,,,,,,\nsolo,general,2,0.4250,2,1,0,,,,,,\n"
    );
    assert_eq!(small.read("cooccurrence.csv"), "tag,blurry,solo\nblurry,2,1\nsolo,1,2\n");
    assert_eq!(
        small.read("groups.csv"),
        "word,tags,images,share,at_0.3,at_0.5,at_0.9\nblurry,blurry blurry_background,2,0.6667,2,2,2\n"
    );
    assert!(small.read("histogram.csv").contains("blurry,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0,0,1,0\n"));
    assert!(small.read("quantiles.csv").contains("solo,0.35,0.365,0.38"), "{}", small.read("quantiles.csv"));
    let sharpness = small.read("sharpness.csv");
    assert!(sharpness.contains("blurry,0,1,3,,-1.0000,1.0000\nblurry,0,0.1,1,300,,\n"), "{sharpness}");
    // `blurry`, `blurry` and `solo` alone; then `blurry, solo`, `blurry` and `solo`.
    let lengths = small.read("lengths.csv");
    assert!(lengths.contains("1,0.3,3,1.0000,1,0\n3,0.3,3,1.6667,3,0\n"), "{lengths}");
    let analysis: Analysis = serde_json::from_str(&small.read("analysis.json")).unwrap();
    assert_eq!((analysis.lowest_score, analysis.thresholds), (0.1, vec![0.3, 0.5, 0.9]));

    assert_eq!(small.run(&config).unwrap().outcome, Outcome::Unchanged);
    fs::remove_file(small.at("out/tags.csv")).unwrap();
    assert_eq!(small.run(&config).unwrap().outcome, Outcome::Done, "a table was missing");
    small.write("tags.pictures.csv", "image,sharpness\na.png,1\n");
    assert_eq!(small.run(&config).unwrap().outcome, Outcome::Done, "the table beside it counts");
}

#[test]
fn with_a_folder_its_pictures_count_and_its_captions() {
    let small = Small::new();
    fs::remove_file(small.at("images/b.png")).unwrap();
    let images = Some(small.at("images"));
    let config = AnalyseConfig { images, max_tags: vec![3], thresholds: vec![0.3], ..small.config() };
    let report = small.run(&config).unwrap();
    assert_eq!((report.images, report.tagged, report.rows), (3, 2, 4));
    assert_eq!(
        report.warnings,
        [
            "1 pictures of the tag table are not in the folder",
            "1 pictures of the folder are not in the tag table"
        ]
    );
    // `blurry, solo, a red circle` (7 tokens), `solo, a star` as it is (4), and `a heart` (2).
    assert!(small.read("lengths.csv").contains("3,0.3,2,4.3333,7,0\n"), "{}", small.read("lengths.csv"));
    small.write("images/a.txt", "a red square");
    assert_eq!(small.run(&config).unwrap().outcome, Outcome::Done, "a caption was changed");
    small.write("elsewhere/z.png", "");
    let config = AnalyseConfig { images: Some(small.at("elsewhere")), ..config };
    assert_eq!(
        small.said(&config),
        "`tags.csv` is not about the pictures in `elsewhere`: it names `a.png`, the folder holds `z.png`"
    );
}

#[test]
fn an_interrupted_analysis_leaves_no_record() {
    let small = Small::new();
    let (config, interrupt) = (small.config(), Interrupt::new());
    interrupt.raise();
    let report = run(&config.plan().unwrap(), &interrupt, &mut |_| {}).unwrap();
    assert_eq!(report.outcome, Outcome::Interrupted);
    assert!(report.to_string().starts_with("stopped before the analysis in"), "{report}");
    assert!(!small.at("out").exists() && !record_path(&small.at("out")).exists());
    assert_eq!(small.run(&config).unwrap().outcome, Outcome::Done);
}

#[test]
fn files_of_others_are_not_overwritten() {
    let small = Small::new();
    small.write("out/tags.csv", "mine");
    let said = small.said(&small.config());
    assert!(said.contains("tags.csv` is in the way"), "{said}");
    assert_eq!(fs::read_to_string(small.at("out/tags.csv")).unwrap(), "mine");
}

#[test]
fn a_file_that_somebody_has_edited_stays() {
    let small = Small::new();
    assert_eq!(small.run(&small.config()).unwrap().outcome, Outcome::Done);
    small.write("out/tags.csv", "mine");
    let said = small.said(&small.config());
    assert!(said.contains("tags.csv` is in the way"), "{said}");
    assert_eq!(fs::read_to_string(small.at("out/tags.csv")).unwrap(), "mine");
    fs::remove_file(small.at("out/tags.csv")).unwrap();
    assert_eq!(small.run(&small.config()).unwrap().outcome, Outcome::Done);
}

#[test]
fn a_killed_analysis_is_in_nobodys_way() {
    let small = Small::new();
    let config = small.config();
    let other = AnalyseConfig { min_score: 0.5, thresholds: vec![0.2], ..config.clone() };
    // Killed after the files and before the record; and while files were written, of which the list then says so.
    small.run(&config).unwrap();
    fs::remove_file(record_path(&small.at("out"))).unwrap();
    assert_eq!(small.run(&other).unwrap().outcome, Outcome::Done);
    let made = small.read("tags.csv");
    small.run(&config).unwrap();
    fs::remove_file(record_path(&small.at("out"))).unwrap();
    let pending: String = small
        .read(".vodka-files")
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| {
            let mut entry: Value = serde_json::from_str(line).unwrap();
            let name = entry["name"].as_str().unwrap().to_owned();
            entry["pending"] = vodka_stage::hash_bytes(small.read(&name)).to_string().into();
            (entry["file"], entry["sha256"]) = (Value::Null, Value::Null);
            format!("\n{entry}")
        })
        .collect();
    small.write("out/.vodka-files", &pending);
    fs::remove_file(small.at("out/analysis.json")).unwrap();
    assert_eq!(small.run(&other).unwrap().outcome, Outcome::Done);
    assert_eq!(small.read("tags.csv"), made);
    assert_eq!(small.run(&other).unwrap().outcome, Outcome::Unchanged);
}

#[test]
fn labels_suggest_thresholds() {
    let small = Small::new();
    small.write(
        "labels.csv",
        "image,tag,label\na.png,blurry,1\nb.png,blurry,0\nz.png,blurry,1\nc.png,night,0\n",
    );
    let config = AnalyseConfig { labels: Some(small.at("labels.csv")), ..small.config() };
    assert_eq!(
        small.warnings(&config),
        [
            "labels of tags that are not selected: `night`",
            "labels of 1 pictures that the tag table does not name"
        ]
    );
    assert!(small.read("tags.csv").contains(",,0.9,1.0000,1.0000,1.0000,2\n"), "{}", small.read("tags.csv"));
}

#[test]
fn a_table_of_another_floor_or_model_is_told() {
    let small = Small::new();
    small.write("vocabulary.csv", "tag_id,name,category,count\n");
    let record = |stage: &str, file: &str, labels: &str| {
        let key = vodka_stage::RunKey::new("tag", &json!({ "min_score": 0.35 }), None);
        let hash = |text: &str| vodka_stage::hash_bytes(text);
        let key = key.input_hashed("labels", Path::new("l"), hash(labels)).input_hashed(
            "model",
            Path::new("m"),
            hash(stage),
        );
        key.write(&record_path(&small.at(file)), &[], &"").unwrap();
    };
    record("one", "tags.csv", "v3");
    record("other", "tags.pictures.csv", "v3");
    record("select", "selection.csv", "v2");
    assert_eq!(
        small.warnings(&small.config()),
        [
            "`tags.csv` was written from the score 0.35 on: what is below is not in it, counts at 0.3 are those at 0.35",
            "`tags.csv` and the selection `selection.csv` are of models with different vocabularies",
            "`tags.csv` and `tags.pictures.csv` are of different models",
        ]
    );
    small.write("selection.csv", "name,include\nsunset,1\nsketch,1\n");
    assert_eq!(
        small.said(&small.config()),
        "`tags.csv` has none of the 2 selected tags: it is from a model with another vocabulary (it has `blurry`)"
    );
}

#[test]
fn wrong_inputs_are_told() {
    let small = Small::new();
    let config = small.config();
    let with = |change: &dyn Fn(&mut AnalyseConfig)| {
        let mut config = small.config();
        change(&mut config);
        small.said(&config)
    };
    assert_eq!(with(&|c| c.thresholds = vec![0.3, 1.5]), "thresholds is 1.5, expected scores from 0 to 1");
    assert_eq!(with(&|c| c.min_score = -0.1), "min_score is -0.1, expected a score from 0 to 1");
    assert!(with(&|c| c.images = Some(small.at("out/images"))).contains("lie in each other"));
    for (score, found) in [("1.5", "1.5"), ("NaN", "NaN"), ("", "null")] {
        small.write(
            "tags.csv",
            &format!("{HEADER}a.png,1,solo,general,0.5\nb.png,1,blurry,general,{score}\n"),
        );
        assert_eq!(
            small.said(&config),
            format!(
                "`tags.csv`: the tag `blurry` of the picture `b.png`: expected a score from 0 to 1, found {found}"
            )
        );
    }
    small.write("tags.csv", &format!("{HEADER}a.png,1,blurry,general,high\n"));
    assert_eq!(small.said(&config), "cannot read the tag table `tags.csv`");
    small.write("tags.csv", &format!("{HEADER}a.png,1,blurry,general,0.5\n"));
    small.write("tags.pictures.csv", "image,sharpness\na.png,sharp\n");
    assert_eq!(
        small.said(&config),
        "`tags.pictures.csv`: expected a sharpness of 0 or more for `a.png`, found no number"
    );
    small.write("tags.pictures.csv", "image,sharpness\nb.png,1\na.png,2\nb.png,3\n");
    assert_eq!(small.said(&config), "`tags.pictures.csv`: expected one row for `b.png`, found two");
    small.write("tags.pictures.csv", "image,width\na.png,1\n");
    assert_eq!(
        small.said(&config),
        "`tags.pictures.csv`: expected the columns image, sharpness, found the columns image, width"
    );
    small.write("tags.pictures.csv", "image,sharpness\nz.png,1\n");
    assert_eq!(small.warnings(&config)[0], "`tags.pictures.csv` has none of the pictures of the tag table");
    small.write("tags.csv", HEADER);
    let report = small.run(&config).unwrap();
    assert_eq!((report.images, report.rows), (0, 0), "an empty table is no error");
    assert!(matches!(with(&|c| c.tags = small.at("no.csv")), text if text.starts_with("cannot read")));
}

#[test]
fn the_floor_in_the_metadata_of_parquet_counts() {
    let small = Small::new();
    let path = small.at("tags.parquet");
    parquet_table(&path, &[("a.png".to_owned(), "blurry".to_owned(), 0.5)]);
    let mut low = inputs(&path, &["blurry"]);
    assert_eq!(analysed(&low).warnings, [""; 0]);
    low.settings.thresholds = vec![0.1, 0.2, 0.25];
    let warnings = analysed(&low).warnings;
    assert!(warnings[0].ends_with("was written from the score 0.25 on: what is below is not in it, counts at 0.1, 0.2 are those at 0.25"), "{warnings:?}");
    let rows: Vec<Row> = (0..40).map(|k| (format!("{k:02}.png"), "blurry".to_owned(), 0.5)).collect();
    parquet_table(&path, &rows);
    assert_eq!(analysed(&inputs(&path, &["blurry"])).analysis.tags[0].images, 40, "several row groups");
    let error = analyse(&inputs(&small.at("no.parquet"), &["blurry"]), &Interrupt::new()).unwrap_err();
    assert!(matches!(error, Error::Read { .. }), "{error}");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = analyse(&inputs(&path, &["blurry"]), &Interrupt::new()).unwrap_err();
    assert!(matches!(error, Error::Table { .. }), "{error}");
}

#[test]
fn rows_with_more_or_fewer_fields_and_empty_cells_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let tags = dir.path().join("tags.csv");
    let error = |rows: &str| {
        fs::write(&tags, format!("{HEADER}{rows}")).unwrap();
        analyse(&inputs(&tags, &["blurry"]), &Interrupt::new()).unwrap_err()
    };
    assert!(matches!(error("a.png,1,blurry,general,0,95\n"), Error::Csv { .. }));
    assert!(matches!(error("a.png,1,blurry,general\n"), Error::Csv { .. }));
    let empty = error("a.png,1,,general,0.5\n").to_string();
    assert!(empty.contains("the cell `tag` is empty in a row with the picture `a.png`"), "{empty}");
}
