//! Selection, captions and frequencies are those that pandas makes of the same made-up table.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;
use vodka_captions::{
    CaptionSource, Position,
    caption::{self, CaptionConfig, Missing, Style},
    report::{self, GalleryConfig, ReportConfig},
    select::{self, SelectConfig},
};
use vodka_stage::{Interrupt, Outcome};
use vodka_testkit::fixture;

/// A file of the case.
fn golden(name: &str) -> PathBuf {
    fixture("captions/v3_rule").join(name)
}

/// The rows of a CSV file, without the header.
fn rows(path: &Path) -> Vec<Vec<String>> {
    let mut reader = csv::Reader::from_path(path).unwrap();
    reader.records().map(|row| row.unwrap().iter().map(ToOwned::to_owned).collect()).collect()
}

/// Pictures without content, which is not looked at, with the case's captions beside them.
fn world() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for row in rows(&golden("originals.csv")) {
        let picture = dir.path().join("images").join(&row[0]);
        fs::create_dir_all(picture.parent().unwrap()).unwrap();
        fs::write(&picture, "").unwrap();
        fs::write(picture.with_extension("txt"), &row[1]).unwrap();
    }
    dir
}

fn assert_same_text(ours: &Path, golden: &Path) {
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    assert_eq!(read(ours), read(golden), "{} and {}", ours.display(), golden.display());
}

#[test]
fn the_selection_is_that_of_pandas() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("selection.csv");
    let labels = golden("selected_tags.csv");
    let config = SelectConfig {
        labels,
        coverage: 0.8,
        list: None,
        all_head: true,
        include: Vec::new(),
        exclude: Vec::new(),
        output: output.clone(),
    };
    select::run(&config.plan().unwrap(), &Interrupt::new(), &mut |_| {}).unwrap();
    assert_same_text(&output, &golden("golden-selection.csv"));
}

#[test]
fn the_captions_are_those_of_pandas() {
    let dir = world();
    let output = dir.path().join("captions");
    let config = CaptionConfig {
        tags: golden("tags.csv"),
        selection: golden("golden-selection.csv"),
        images: dir.path().join("images"),
        output: Some(output.clone()),
        in_place: false,
        max_tags: 3,
        min_score: 0.3,
        position: Position::Prepend,
        missing: Missing::Error,
        source: CaptionSource::default(),
        format: None,
        style: Style::default(),
        without: Vec::new(),
    };
    let report = caption::run(&config.plan().unwrap(), &Interrupt::new(), &mut |_| {}).unwrap();
    assert_eq!(report.outcome, Outcome::Done);
    let golden_captions = rows(&golden("golden-captions.csv"));
    assert_eq!(report.captions as usize, golden_captions.len());
    for row in golden_captions {
        let caption = fs::read_to_string(output.join(&row[0]).with_extension("txt")).unwrap();
        assert_eq!(caption, format!("{}\n", row[1]), "{}", row[0]);
    }
    let counts = rows(&golden("golden-counts.csv"));
    let doubles: usize = report.doubles.iter().map(|double| double.images).sum();
    assert_eq!(doubles.to_string(), counts[1][1]);
    assert_eq!(report.doubles[0].spellings, [" Blurry ", "blurry"]);
}

#[test]
fn the_frequencies_are_those_of_pandas() {
    let dir = world();
    let output = dir.path().join("report");
    let config = ReportConfig {
        tags: golden("tags.csv"),
        selection: golden("golden-selection.csv"),
        images: dir.path().join("images"),
        output: output.clone(),
        min_score: 0.3,
        groups: vec!["blurry".to_owned()],
        pictures: None,
        labels: None,
        gallery: GalleryConfig::default(),
    };
    let summary = report::run(&config.plan().unwrap(), &Interrupt::new(), &mut |_| {}).unwrap();
    assert_same_text(&output.join("tags.csv"), &golden("golden-tags.csv"));
    assert_same_text(&output.join("histogram.csv"), &golden("golden-histogram.csv"));
    let group = &summary.groups[0];
    assert_eq!(group.tags, ["blurry", "blurry_background"]);
    assert_eq!(group.images.to_string(), rows(&golden("golden-counts.csv"))[0][1]);
    assert_eq!(summary.tagged, summary.images);
}
