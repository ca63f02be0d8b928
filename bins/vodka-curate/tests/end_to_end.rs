//! `vodka-curate` as a user runs it: select, report, caption; every documented error with its text and exit code.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fs, path::Path, process::Output};

use assert_cmd::cargo::cargo_bin_cmd;
use serde_json::Value;
use tempfile::TempDir;
use vodka_testkit::fixture;

/// Runs `vodka-curate` with the words of `line` in `dir`.
fn curate(dir: &TempDir, line: &str) -> Output {
    let mut command = cargo_bin_cmd!("vodka-curate");
    command.current_dir(dir.path()).args(line.split_whitespace()).output().unwrap()
}

/// Runs it, checks the exit code, and returns what it says to people.
fn said(dir: &TempDir, line: &str, code: i32) -> String {
    let output = curate(dir, line);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{line}\n{text}");
    text
}

fn write(dir: &TempDir, name: &str, text: impl AsRef<[u8]>) {
    let path = dir.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn read(dir: &TempDir, name: &str) -> String {
    fs::read_to_string(dir.path().join(name)).unwrap()
}

const SELECT: &str = "select --labels selected_tags.csv --coverage 0.8 --output selection.csv";
const REPORT: &str = "report --tags tags.csv --selection selection.csv --images images --output report";
const CAPTION: &str = "caption --tags tags.csv --selection selection.csv --images images --output captions";
const IN_PLACE: &str = "caption --tags tags.csv --selection selection.csv --images images --in-place";

/// A vocabulary, two pictures with captions, and a tag table.
fn world() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(fixture("captions/v3_rule/selected_tags.csv"), dir.path().join("selected_tags.csv")).unwrap();
    // What they show does not matter here, nor that they are called what they are not.
    let picture = fs::read(fixture("world/images/000.webp")).unwrap();
    write(&dir, "images/a.png", &picture);
    write(&dir, "images/a.txt", "a heart\n");
    write(&dir, "images/sub dir/b.jpg", &picture);
    write(&dir, "images/sub dir/b.txt", "two stars");
    let rows = [
        "a.png,101,solo,general,0.98",
        "a.png,103,blurry,general,0.4",
        "a.png,107,indoors,general,0.2",
        "sub dir/b.jpg,105,outdoors,general,0.7",
        "sub dir/b.jpg,103,blurry,general,0.15",
    ];
    write(&dir, "tags.csv", format!("image,tag_id,tag,category,score\n{}\n", rows.join("\n")));
    dir
}

/// The same, with a selection of four tags.
fn selected() -> TempDir {
    let dir = world();
    let chosen = "--coverage 0 --include blurry,solo,outdoors,Indoors";
    said(&dir, &SELECT.replace("--coverage 0.8", chosen), 0);
    dir
}

#[test]
fn from_a_vocabulary_to_captions() {
    let dir = selected();
    assert!(read(&dir, "selection.csv").contains("103,blurry,0,2600,1\n"));

    let text = said(&dir, REPORT, 0);
    assert!(text.contains("100.0 % of the pictures have a tag with `blurry` at any score"), "{text}");
    assert!(read(&dir, "report/tags.csv").contains("blurry,2,1,0.2750,2600\n"));
    assert!(read(&dir, "report/histogram.csv").contains("blurry,0,1,0,0,1,0,0,0,0,0\n"));
    assert!(read(&dir, "report/groups.csv").contains("blurry,blurry,2,1.0000\n"));
    assert!(read(&dir, "report/captions.csv").contains("a.png,ok,2,1\n"));
    assert!(read(&dir, "report/report.md").contains("2 pictures have a caption"));
    let slashes = |name| read(&dir, name).replace("&#x2f;", "/");
    assert!(slashes("report/tags/outdoors.html").contains("href=\"../../images/sub%20dir/b.jpg\""));
    assert!(slashes("report/index.html").contains("href=\"tags/blurry.html\""));

    let text = said(&dir, CAPTION, 0);
    assert!(text.contains("wrote 2 captions to `captions`, 2 of them with tags"), "{text}");
    assert_eq!(read(&dir, "captions/a.txt"), "solo, blurry, a heart\n");
    assert_eq!(read(&dir, "captions/sub dir/b.txt"), "outdoors, two stars\n");
    assert!(dir.path().join("captions.run.json").exists());

    for line in [REPORT, CAPTION] {
        let text = said(&dir, line, 0);
        assert!(text.contains("up to date"), "{text}");
    }
}

#[test]
fn the_head_of_the_vocabulary_is_selected() {
    let dir = world();
    let text = said(&dir, SELECT, 0);
    assert!(
        text.contains("selected 6 tags into `selection.csv`: 9 of 25 general tags are candidates"),
        "{text}"
    );
    assert!(
        text.contains("12 tags of it are too rare to be candidates: depth_of_field, upper_body,"),
        "{text}"
    );
    assert!(text.contains("the vocabulary lacks 55 listed tags: black_background,"), "{text}");
    assert!(read(&dir, "selection.csv").contains("101,solo,0,7200,0\n"), "not about how a picture is made");
    write(&dir, "mine.txt", "# people\nsolo\n1*\n");
    said(&dir, &format!("{SELECT} --list mine.txt --exclude @mine.txt --include depth_of_*"), 0);
    assert!(read(&dir, "selection.csv").contains("109,depth_of_field,0,1200,1\n"));
    let text = said(&dir, &format!("{SELECT} --list mine.txt --all-head"), 2);
    assert!(text.contains("cannot be used with"), "{text}");

    let all = &format!("{SELECT} --all-head");
    said(&dir, all, 0);
    let selection = read(&dir, "selection.csv");
    assert!(selection.contains("101,solo,0,7200,1\n") && selection.contains("109,depth_of_field,0,1200,0\n"));
    assert!(selection.contains("9999999,general,9,40000,0\n"), "ratings are not general tags");
    assert!(said(&dir, all, 0).contains("up to date"));
    let text = said(&dir, &format!("{all} --exclude solo"), 0);
    assert!(text.contains("selected"), "another setting is another run: {text}");
    assert!(read(&dir, "selection.csv").contains("101,solo,0,7200,0\n"));
}

#[test]
fn a_tag_table_is_cleaned() {
    let dir = world();
    write(
        &dir,
        "rules.toml",
        "blacklist = ['so?o']\n[aliases]\nindoors = 'inside'\n[replace]\nnever = 'ever'\n",
    );
    let line = "clean --tags tags.csv --rules rules.toml --output clean.csv";
    let text = said(&dir, line, 0);
    assert!(text.contains("cleaned the tags of 2 pictures: 5 rows, 4 left in `clean.csv`"), "{text}");
    assert!(text.contains("warning: `rules.toml` line 5, replace `never -> ever` hit nothing"), "{text}");
    assert!(read(&dir, "clean.csv").contains("a.png,,inside,general,0.2\n"));
    assert!(said(&dir, line, 0).contains("up to date"));
    // As a run leaves it that is killed before its record; with other rules the next one makes another table.
    let mut record: Value = serde_json::from_str(&read(&dir, "clean.csv.run.json")).unwrap();
    record["pending"] = record["outputs"].take();
    (record["outputs"], record["report"]) = (Value::Array(Vec::new()), Value::Null);
    write(&dir, "clean.csv.run.json", record.to_string());
    write(&dir, "rules.toml", "[replace]\nindoors = 'room'\n");
    said(&dir, line, 0);
    assert!(read(&dir, "clean.csv").contains("a.png,,room,general,0.2\n"));
    write(&dir, "clean.csv", "mine");
    let text = said(&dir, line, 1);
    assert!(text.contains("`clean.csv` is in the way: no run has left it as it is"), "{text}");
    fs::remove_file(dir.path().join("clean.csv")).unwrap();
    write(&dir, "rules.toml", "[aliases]\na = 'b'\nb = 'a'\n");
    let text = said(&dir, line, 2);
    assert!(text.contains("error: `rules.toml` line 2: the aliases go in a circle: a -> b -> a"), "{text}");
    assert!(said(&dir, &line.replace("clean.csv", "tags.csv"), 2).contains("is the input"));
}

#[test]
fn captions_in_place_come_from_the_originals() {
    let dir = selected();
    said(&dir, &format!("{IN_PLACE} --position append"), 0);
    assert_eq!(read(&dir, "images/a.txt"), "a heart, solo, blurry\n");
    assert_eq!(read(&dir, "images/a.txt.orig"), "a heart\n");
    said(&dir, &format!("{IN_PLACE} --max-tags 1"), 0);
    assert_eq!(read(&dir, "images/a.txt"), "solo, a heart\n");
    assert!(said(&dir, &format!("{IN_PLACE} --max-tags 1"), 0).contains("up to date"));
    write(&dir, "images/a.txt", "solo, my heart\n");
    let text = said(&dir, IN_PLACE, 1);
    assert!(text.contains("was edited after tags were put in") && text.contains("a.txt.orig"), "{text}");
}

#[test]
fn a_dry_run_prints_the_plan_and_json_the_report() {
    let dir = selected();
    let json = |line: &str| -> Value { serde_json::from_slice(&curate(&dir, line).stdout).unwrap() };
    let plan = json(&format!("{CAPTION} --dry-run"));
    assert_eq!(plan["max_tags"], 3);
    assert_eq!(plan["destination"]["folder"], "captions");
    assert!(!dir.path().join("captions").exists());
    let report = json(&format!("{CAPTION} --json"));
    assert_eq!((&report["outcome"], &report["with_tags"]), (&"done".into(), &2.into()));
    assert_eq!(json(&format!("{CAPTION} --json"))["outcome"], "unchanged");
    assert_eq!(json(&format!("{SELECT} --dry-run"))["coverage"], 0.8);
    assert_eq!(json(&format!("{REPORT} --json"))["images"], 2);
}

#[test]
fn a_report_tells_of_broken_and_missing_pictures() {
    let dir = selected();
    write(&dir, "images/a.png", "no picture");
    fs::remove_file(dir.path().join("images/sub dir/b.jpg")).unwrap();
    let text = said(&dir, REPORT, 3);
    assert!(
        text.contains("skipped `a.png`: expected PNG, JPEG, WebP, GIF or BMP, found the text \"no picture\""),
        "{text}"
    );
    assert!(text.contains("skipped `sub dir/b.jpg`: it is not in `images`"), "{text}");
}

#[test]
fn pictures_without_a_caption_are_skipped_or_captioned_or_refused() {
    let dir = selected();
    fs::remove_file(dir.path().join("images/a.txt")).unwrap();
    let text = said(&dir, CAPTION, 3);
    assert!(text.contains("skipped `a.png`: no caption"), "{text}");
    assert!(!dir.path().join("captions/a.txt").exists());
    let text = said(&dir, &format!("{CAPTION} --missing error"), 1);
    assert!(text.contains("1 pictures in `images` have no caption: `a.png`"), "{text}");
    said(&dir, &format!("{CAPTION} --missing empty"), 0);
    assert_eq!(read(&dir, "captions/a.txt"), "solo, blurry\n");
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let dir = selected();
    write(&dir, "rules.toml", "[aliass]\na = \"b\"\n");
    let cases = [
        (SELECT.replace("0.8", "80"), "coverage is 80, expected a share from 0 to 1"),
        (format!("{SELECT} --include solo --exclude solo"), "both included and excluded"),
        (SELECT.replace("selection.csv", "selected_tags.csv"), "is the input"),
        (SELECT.replace("selection.csv", "./selected_tags.csv"), "is the input"),
        (format!("{CAPTION} --min-score 30"), "min_score is 30, expected a score from 0 to 1"),
        (format!("{REPORT} --min-score 30"), "min_score is 30"),
        (format!("{REPORT} --thumbnail-px 8"), "thumbnail_px is 8, expected 64 to 1024 pixels"),
        (CAPTION.replace("captions", "images/new"), "lie in each other"),
        (format!("{CAPTION} --in-place"), "cannot be used with"),
        (IN_PLACE.replace("--in-place", ""), "required arguments were not provided"),
        (format!("{CAPTION} --position middle"), "invalid value 'middle'"),
        // Names that only the data can tell to be none.
        (
            SELECT.replace("selection.csv", "x.csv") + " --include blury",
            "no tag `blury` in `selected_tags.csv`, did you mean `blurry`?",
        ),
        (
            format!("{CAPTION} --threshold blury=0.5"),
            "no tag `blury` in `selection.csv`, did you mean `blurry`?",
        ),
        (format!("{CAPTION} --threshold blury=0.5 --diff"), "no tag `blury` in `selection.csv`"),
        (format!("{CAPTION} --category-threshold hero=0.5"), "category threshold: expected"),
        (
            "filter --tags tags.csv --query tag:blury --count".to_owned(),
            "no tag `blury`, did you mean `blurry`?",
        ),
        (
            "clean --tags tags.csv --rules rules.toml --output clean.csv".to_owned(),
            "unknown field `aliass`, did you mean `aliases`?",
        ),
    ];
    for (line, expected) in cases {
        let text = said(&dir, &line, 2);
        assert!(text.contains(expected), "{line}\n{text}");
    }
}

#[test]
fn each_bad_input_has_its_words_and_exit_code_1() {
    type Spoil = fn(&TempDir);
    let tags = |rows: &str| format!("image,tag_id,tag,category,score\n{rows}\n");
    let cases: [(Spoil, &str, &str); 11] = [
        (|_| {}, "select --labels selected_tags.csv --output x.csv --coverage 0", "no tag is selected in"),
        (|_| {}, "select --labels none.csv --output x.csv", "cannot read `none.csv`"),
        (
            |dir| write(dir, "selection.csv", "name,include\nblurry,1\nsolo,maybe\n"),
            CAPTION,
            "`selection.csv` line 3, column `include`: expected 0 (not wanted) or 1 (wanted), found \"maybe\"",
        ),
        (
            |dir| write(dir, "selection.csv", "name,count\nblurry,1\n"),
            CAPTION,
            "expected a column `include` or `keep`, found the columns name, count",
        ),
        (
            |dir| write(dir, "tags.csv", "image,tag\na.png,solo\n"),
            CAPTION,
            "expected the columns image, tag_id, tag, category, score, found the columns image, tag",
        ),
        (|dir| write(dir, "tags.csv", "PAR1 and no more"), REPORT, "cannot read the tag table `tags.csv`"),
        (
            |dir| write(dir, "images/a.txt", b"\xff\xfea"),
            CAPTION,
            "a.txt` is not UTF-16LE, as its mark or the settings say",
        ),
        (|dir| write(dir, "images/a.webp", ""), CAPTION, "share the caption"),
        (|dir| fs::remove_dir_all(dir.path().join("images")).unwrap(), CAPTION, "images"),
        (
            |dir| {
                fs::rename(dir.path().join("images/a.png"), dir.path().join("images/z.txt.bak"))
                    .and_then(|()| fs::remove_file(dir.path().join("images/sub dir/b.jpg")))
                    .unwrap();
            },
            CAPTION,
            "no pictures in `images`",
        ),
        (|dir| write(dir, "captions", "a file in the way"), CAPTION, "captions"),
    ];
    for (spoil, line, expected) in cases {
        let dir = selected();
        spoil(&dir);
        let text = said(&dir, line, 1);
        assert!(text.starts_with("error: ") && text.contains(expected), "{line}\n{text}");
    }
    let dir = selected();
    write(&dir, "captions/a.txt", "written by hand");
    assert!(
        said(&dir, CAPTION, 1).contains(
            "a.txt` is in the way: `.vodka-files` does not say that a run has put it there as it is"
        )
    );
    write(&dir, "tags.csv", tags("x.png,1,solo,general,0.5"));
    assert!(said(&dir, CAPTION, 1).contains("it names `x.png`, the folder holds `a.png`"));
    write(&dir, "tags.csv", tags("a.png,1,solo,general,1.5"));
    assert!(said(&dir, CAPTION, 1).contains("expected a score from 0 to 1, found 1.5"));
}

#[test]
fn the_demo_world_is_captioned() {
    let dir = selected();
    let images = fixture("world/images");
    let rows: Vec<_> =
        fs::read_to_string(fixture("world/truth.csv")).unwrap().lines().skip(1).map(table_rows).collect();
    write(&dir, "tags.csv", format!("image,tag_id,tag,category,score\n{}", rows.concat()));
    let line = CAPTION.replace("--images images", &format!("--images {}", images.display()));
    said(&dir, &line, 0);
    let caption = |name: &str| fs::read_to_string(Path::new(&images).join(name)).unwrap();
    let ours = read(&dir, "captions/000.txt");
    assert_eq!(ours, format!("indoors, {}\n", caption("000.txt").trim()));
}

/// The true tags of a picture of the world, each with the score 0.9.
fn table_rows(truth: &str) -> String {
    let mut cells = truth.split(',');
    let (image, tags) = (cells.next().unwrap(), cells.next().unwrap());
    tags.split(' ').map(|tag| format!("{image},0,{tag},general,0.9\n")).collect()
}

#[test]
fn the_tags_are_analysed() {
    let dir = selected();
    let analyse = "analyse --tags tags.csv --selection selection.csv --thresholds 0.1,0.3 --output analysis";
    let text = said(&dir, analyse, 0);
    assert!(text.contains("analysed 4 tags of 2 pictures (2 tagged, 5 rows) to `analysis`"), "{text}");
    assert!(
        read(&dir, "analysis/tags.csv").contains("blurry,general,2,0.2750,2,1,"),
        "counts at both thresholds"
    );
    let found: Value = serde_json::from_str(&read(&dir, "analysis/analysis.json")).unwrap();
    assert_eq!(found["cooccurrence"]["counts"][0].as_array().map(Vec::len), Some(4));
    assert!(said(&dir, analyse, 0).contains("the analysis in `analysis` is up to date"));
    let text = said(&dir, &analyse.replace("0.1,0.3", "0.1,3"), 2);
    assert!(text.contains("thresholds is 3, expected scores from 0 to 1"), "{text}");
}
