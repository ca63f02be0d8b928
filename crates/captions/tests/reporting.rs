//! Reports: groups of several words, groups without a tag, and reports that are interrupted.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;

use tempfile::TempDir;
use vodka_captions::report::{self, ReportConfig};
use vodka_stage::{Interrupt, Outcome, record_path};

/// Two pictures, a table and a selection.
fn world() -> (TempDir, ReportConfig) {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("images")).unwrap();
    for (name, text) in [
        ("images/a.png", ""),
        ("images/a.txt", "a heart"),
        ("images/b.png", ""),
        ("selection.csv", "name,include\nsolo,1\nblurry_background,1\n"),
        (
            "tags.csv",
            "image,tag_id,tag,category,score\na.png,1,blurry_background,general,0.9\n\
             a.png,2,very blurry background_art,general,0.4\nb.png,3,background_blurry,general,0.4\n\
             b.png,4,unblurry_background,general,0.4\nb.png,5,night,general,0.4\n",
        ),
    ] {
        fs::write(at(name), text).unwrap();
    }
    let config = ReportConfig {
        tags: at("tags.csv"),
        selection: at("selection.csv"),
        images: at("images"),
        output: at("report"),
        min_score: 0.3,
        groups: ["Blurry background", "night", "qqq"].map(ToOwned::to_owned).to_vec(),
    };
    (dir, config)
}

#[test]
fn a_group_of_two_words_is_found_and_one_without_a_selected_tag_is_named() {
    let (_dir, config) = world();
    let summary = report::run(&config.plan().unwrap(), &Interrupt::new(), &mut |_| {}).unwrap();
    assert_eq!(summary.groups[0].tags, ["blurry_background", "very_blurry_background_art"]);
    assert_eq!(summary.groups[0].selected, ["blurry_background"]);
    let markdown = fs::read_to_string(config.output.join("report.md")).unwrap();
    assert!(markdown.contains("have a tag with `qqq` at any score; no selected tag has it\n"), "{markdown}");
    let text = summary.to_string();
    for line in [
        "50.0 % of the pictures have a tag with `blurry_background` at any score\n",
        "50.0 % of the pictures have a tag with `night` at any score; no selected tag has it\n",
        "0.0 % of the pictures have a tag with `qqq` at any score; no selected tag has it",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn an_interrupted_report_stops_between_tables_and_goes_on() {
    let (_dir, config) = world();
    let plan = config.plan().unwrap();
    let interrupt = Interrupt::new();
    let summary = report::run(&plan, &interrupt, &mut |_| interrupt.raise()).unwrap();
    assert_eq!(summary.outcome, Outcome::Interrupted);
    assert!(summary.to_string().starts_with("stopped before the report"), "{summary}");
    let written: Vec<_> =
        fs::read_dir(&config.output).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(written, ["tags.csv"]);
    assert!(!record_path(&config.output).exists());
    fs::remove_dir_all(&config.output).unwrap();

    report::run(&plan, &interrupt, &mut |_| {}).unwrap();
    assert!(!config.output.exists(), "one that is interrupted at once writes nothing");
    assert_eq!(report::run(&plan, &Interrupt::new(), &mut |_| {}).unwrap().outcome, Outcome::Done);
}
