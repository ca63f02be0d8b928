//! The analysis: against goldens of pandas and kneed, against naive counts on random tables, and as a stage.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::{Path, PathBuf},
};

use polars::prelude::{DataFrame, NamedFrom, ParquetWriter, Series};
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
    let writer = ParquetWriter::new(File::create(path).unwrap()).with_row_group_size(Some(7));
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
