//! Tag tables through cleaning rules: CSV and Parquet alike, and what is refused.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;

use proptest::prelude::*;
use tempfile::TempDir;
use vodka_captions::{
    Error, Result, RuleHits, Rules, ScoredTag, TagTable, canonical,
    clean::{self, CleanConfig, CleanReport},
    merge_doubles,
};
use vodka_stage::{Interrupt, Outcome, record_path};
use vodka_testkit::fixture;

const HEADER: &str = "image,tag_id,tag,category,score\n";

const RULES: &str = "blacklist = ['artist_*']\n[aliases]\nwide_angle = 'wide_shot'\n\
    [[implication]]\ntag = 'blurry_background'\nimplies = 'blurry'\n[replace]\n1girl = 'woman'\nnever = 'ever'\n";

/// A folder with a table and rules.
fn world(rows: &str, rules: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tags.csv"), format!("{HEADER}{rows}")).unwrap();
    fs::write(dir.path().join("rules.toml"), rules).unwrap();
    dir
}

fn run(dir: &TempDir, tags: &str, output: &str) -> Result<CleanReport> {
    let [tags, rules, output] = [tags, "rules.toml", output].map(|name| dir.path().join(name));
    clean::run(&CleanConfig { tags, rules, output }.plan()?, &Interrupt::new(), &mut |_| {})
}

fn said(rows: &str, rules: &str) -> String {
    run(&world(rows, rules), "tags.csv", "out.csv").unwrap_err().to_string()
}

fn read(dir: &TempDir, name: &str) -> String {
    fs::read_to_string(dir.path().join(name)).unwrap()
}

const ROWS: &str = "a.png,1,blurry,general,0.4\na.png,2,blurry_background,general,0.9\na.png,9,artist_name,meta,1\n\
    b.png,1, Blurry ,general,0.25\nb.png,1,blurry,general,0.75\nb.png,3,wide_angle,general,0.5\n\
    c.png,9,artist_name,meta,0.3\nd.png,4,wide_shot,general,0.125\nd.png,5,1girl,general,0.5\n";

#[test]
fn a_table_is_cleaned_by_the_picture() {
    let dir = world(ROWS, RULES);
    let report = run(&dir, "tags.csv", "out.csv").unwrap();
    let cleaned = "a.png,2,blurry_background,general,0.9\nb.png,1,blurry,general,0.75\nb.png,4,wide_shot,general,0.5\n\
        d.png,4,wide_shot,general,0.125\nd.png,,woman,general,0.5\n";
    assert_eq!(read(&dir, "out.csv"), format!("{HEADER}{cleaned}"));
    assert_eq!((report.outcome, report.images, report.rows, report.rows_left), (Outcome::Done, 4, 9, 5));
    assert_eq!(report.emptied, ["c.png"]);
    let double = &report.doubles[0];
    assert_eq!((double.tag.as_str(), double.images), ("blurry", 1));
    assert_eq!(double.spellings, [" Blurry ", "blurry"]);
    let text = report.to_string();
    assert!(text.starts_with("cleaned the tags of 4 pictures: 9 rows, 5 left in"), "{text}");
    assert!(text.contains("rules.toml` line 1, blacklist `artist_*`: 2 times"), "{text}");
    assert!(text.contains("1 pictures had `blurry` more than once (\" Blurry \", \"blurry\")"), "{text}");
    assert!(text.ends_with("line 9, replace `never -> ever` hit nothing"), "{text}");

    assert_eq!(run(&dir, "tags.csv", "out.csv").unwrap().outcome, Outcome::Unchanged);
    fs::write(dir.path().join("rules.toml"), "").unwrap();
    let report = run(&dir, "tags.csv", "out.csv").unwrap();
    assert_eq!((report.outcome, report.rows_left), (Outcome::Done, 8));
}

#[test]
fn parquet_and_csv_come_out_alike() {
    let dir = world(ROWS, RULES);
    run(&dir, "tags.csv", "direct.csv").unwrap();
    run(&dir, "tags.csv", "clean.parquet").unwrap();
    fs::write(dir.path().join("rules.toml"), "").unwrap();
    run(&dir, "clean.parquet", "through.csv").unwrap();
    assert_eq!(read(&dir, "direct.csv"), read(&dir, "through.csv"));
    let [csv, parquet] =
        ["direct.csv", "clean.parquet"].map(|name| TagTable::open(&dir.path().join(name)).unwrap());
    assert_eq!(csv.images().unwrap(), parquet.images().unwrap());
    assert_eq!(csv.tags(), parquet.tags());

    fs::write(dir.path().join("tags.csv"), HEADER).unwrap();
    run(&dir, "tags.csv", "empty.parquet").unwrap();
    assert!(TagTable::open(&dir.path().join("empty.parquet")).unwrap().images().unwrap().is_empty());
}

#[test]
fn the_table_of_the_v3_case_is_cleaned() {
    let dir = world("", "[aliases]\n'|_|' = 'face'");
    fs::copy(fixture("captions/v3_rule/tags.csv"), dir.path().join("tags.csv")).unwrap();
    let report = run(&dir, "tags.csv", "out.parquet").unwrap();
    assert_eq!(report.doubles[0].tag, "blurry");
    assert!(report.rules[0].hits > 0 && report.warnings.is_empty());
}

#[test]
fn a_table_as_spreadsheets_leave_it_is_read() {
    let dir = world("", "");
    let text = "\u{feff}tag;score;image;category;note;tag_id\r\n\";)\";1;a.png;general;x;7.0\r\n";
    fs::write(dir.path().join("tags.csv"), text).unwrap();
    run(&dir, "tags.csv", "out.csv").unwrap();
    assert_eq!(read(&dir, "out.csv"), format!("{HEADER}a.png,7,;),general,1\n"));
}

#[test]
fn a_tag_with_a_comma_stays() {
    let dir = world(
        "a.png,1,\"hello,_world\",general,0.5\na.png,2,ab,general,0.5\n",
        "[[regex]]\npattern = 'ab'\nreplacement = 'a,b'",
    );
    let report = run(&dir, "tags.csv", "out.csv").unwrap();
    assert_eq!(
        read(&dir, "out.csv"),
        format!("{HEADER}a.png,1,\"hello,_world\",general,0.5\na.png,2,ab,general,0.5\n")
    );
    assert!(report.to_string().contains("line 2, regex `ab -> a,b` made an empty name"), "{report}");
}

#[test]
fn what_no_tagger_writes_is_refused() {
    let scattered = "a.png,1,x,general,0.5\nb.png,1,x,general,0.5\na.png,2,y,general,0.5\n";
    assert!(said(scattered, "").ends_with(
        "tags.csv`: the rows of the picture `a.png` do not lie together: sort the table by `image`"
    ));
    for (score, shown) in [("1.5", "1.5"), ("NaN", "NaN"), ("-0.1", "-0.1"), ("high", "NaN"), ("", "NaN")] {
        let text = said(&format!("a.png,1,x,general,{score}\n"), "");
        assert!(text.ends_with(&format!("expected a score from 0 to 1, found {shown}")), "{text}");
    }
    assert!(
        said("a.png,one,x,general,0.5\n", "")
            .ends_with("line 2, column `tag_id`: expected a whole number, found \"one\"")
    );
    assert!(said("a.png,1,,general,0.5\n", "").contains("the cell `tag` is empty"));
    assert!(said("a.png,1,x\n", "").contains("cannot read the table"));
    assert!(
        said(ROWS, "[aliases]\na = 'b'\nb = 'a'").contains("line 2: the aliases go in a circle: a -> b -> a")
    );

    let dir = world(ROWS, "");
    assert!(run(&dir, "tags.csv", "tags.csv").unwrap_err().to_string().ends_with("is the input"));
    assert!(matches!(run(&dir, "tags.csv", "out.txt"), Err(Error::TableName { .. })));
    assert!(matches!(run(&dir, "none.csv", "out.csv"), Err(Error::Stage(_) | Error::Read { .. })));
    fs::write(dir.path().join("tags.csv"), "image,tag\na,b\n").unwrap();
    assert!(
        run(&dir, "tags.csv", "out.csv").unwrap_err().to_string().contains(
            "expected the columns image, tag_id, tag, category, score, found the columns image, tag"
        )
    );
    fs::write(dir.path().join("tags.csv"), b"PAR1 not really").unwrap();
    assert!(matches!(run(&dir, "tags.csv", "out.csv"), Err(Error::Table { .. })));
}

#[test]
fn an_interrupted_cleaning_writes_nothing() {
    let dir = world(ROWS, RULES);
    let interrupt = Interrupt::new();
    interrupt.raise();
    let [tags, rules, output] = ["tags.csv", "rules.toml", "out.csv"].map(|name| dir.path().join(name));
    let plan = CleanConfig { tags, rules, output: output.clone() }.plan().unwrap();
    let report = clean::run(&plan, &interrupt, &mut |_| {}).unwrap();
    assert_eq!(report.outcome, Outcome::Interrupted);
    assert!(!output.exists() && !record_path(&output).exists());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left behind");
}

#[test]
fn an_output_that_is_an_input_or_somebody_elses_is_refused() {
    let dir = world(ROWS, RULES);
    let error = |tags: &str, output: &str| run(&dir, tags, output).unwrap_err();
    assert!(matches!(error("tags.csv", "out.txt"), Error::TableName { .. }));
    for output in ["tags.csv", "./tags.csv", "x/../tags.csv"] {
        fs::create_dir_all(dir.path().join("x")).unwrap();
        let text = error("tags.csv", output).to_string();
        assert!(text.ends_with("tags.csv` is the input"), "{text}");
    }
    fs::copy(dir.path().join("rules.toml"), dir.path().join("rules.csv")).unwrap();
    let [tags, rules] = ["tags.csv", "rules.csv"].map(|name| dir.path().join(name));
    let onto_rules = CleanConfig { tags, rules: rules.clone(), output: rules };
    assert!(matches!(onto_rules.plan(), Err(Error::OutputIsInput { .. })));

    // Somebody else's table, and ours after an edit.
    fs::write(dir.path().join("out.csv"), "mine").unwrap();
    let text = error("tags.csv", "out.csv").to_string();
    assert!(text.contains("out.csv` is in the way"), "{text}");
    assert_eq!(read(&dir, "out.csv"), "mine");
    fs::remove_file(dir.path().join("out.csv")).unwrap();
    assert_eq!(run(&dir, "tags.csv", "out.csv").unwrap().outcome, Outcome::Done);
    assert_eq!(run(&dir, "tags.csv", "out.csv").unwrap().outcome, Outcome::Unchanged);
    let made = read(&dir, "out.csv");
    fs::write(dir.path().join("out.csv"), format!("{made}mine.png,,mine,general,1\n")).unwrap();
    assert!(error("tags.csv", "out.csv").to_string().contains("out.csv` is in the way"));
    fs::write(dir.path().join("out.csv"), made).unwrap();
    fs::write(dir.path().join("rules.toml"), "blacklist = ['artist_*', 'blurry']\n").unwrap();
    assert_eq!(run(&dir, "tags.csv", "out.csv").unwrap().outcome, Outcome::Done, "our own is replaced");
    assert!(!read(&dir, "out.csv").contains(",blurry,"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// What the stage writes is what the rules make of each picture.
    #[test]
    fn the_stage_does_what_the_rules_say(
        pictures in prop::collection::vec(prop::collection::vec(("( ?[Aab]{1,2} ?|artist_x|1girl)", 0_u8..=100), 1..6), 1..5)
    ) {
        let rules_text = "blacklist = ['artist_*', 'bb']\n[aliases]\nab = 'ba'\n[[implication]]\ntag = 'ba'\nimplies = 'a'\n\
            [replace]\n1girl = 'woman'\n";
        let mut text = String::new();
        let mut expected = Vec::new();
        let rules = Rules::parse(rules_text, "rules.toml".as_ref()).unwrap();
        let mut hits = RuleHits::default();
        for (k, tags) in pictures.iter().enumerate() {
            let score = |percent: u8| f32::from(percent) / 100.0;
            for (tag, percent) in tags {
                text += &format!("{k}.png,1,{tag},general,{}\n", score(*percent));
            }
            let tag = |(tag, percent): &(String, u8)| ScoredTag { name: canonical(tag), score: score(*percent), category: None };
            let mut tags: Vec<_> = tags.iter().map(tag).collect();
            merge_doubles(&mut tags);
            rules.apply(&mut tags, &mut hits);
            expected.extend(tags.into_iter().map(|tag| format!("{k}.png|{}|{}", tag.name, tag.score)));
        }
        let dir = world(&text, rules_text);
        let report = run(&dir, "tags.csv", "out.csv").unwrap();
        let mut reader = csv::Reader::from_path(dir.path().join("out.csv")).unwrap();
        let found: Vec<_> = reader.records().map(|row| row.map(|row| format!("{}|{}|{}", &row[0], &row[2], &row[4])).unwrap()).collect();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(report.rules, rules.report(&hits).into_iter().map(|mut rule| { rule.file = dir.path().join("rules.toml"); rule }).collect::<Vec<_>>());
    }
}
