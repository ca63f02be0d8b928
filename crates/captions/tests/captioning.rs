//! Captions in a folder of their own and in place, and every way in which they can be refused.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fs, path::PathBuf};

use tempfile::TempDir;
use vodka_captions::{
    CaptionSource, Error, Position, Result,
    caption::{self, CaptionConfig, CaptionEvent, CaptionReport, Missing, Style},
};
use vodka_stage::{FolderLock, Interrupt, Outcome, Report, record_path};

const TAGS: &str = "image,tag_id,tag,category,score\n\
    a.png,1,blurry,general,0.9\na.png,2,solo,general,0.4\na.png,3,^_^,general,0.4\na.png,4,outdoors,general,0.2\n\
    sub/b.jpg,4,outdoors,general,0.5\nsub/b.jpg,2,solo,general,0.1\ngone.png,1,blurry,general,0.9\n";

/// Two pictures with captions, a table and a selection.
fn world() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(&dir, "images/a.png", "");
    write(&dir, "images/a.txt", "a heart");
    write(&dir, "images/sub/b.jpg", "");
    write(&dir, "images/sub/b.txt", "\u{feff}a tree, Outdoors\r\n");
    write(&dir, "tags.csv", TAGS);
    write(&dir, "selection.csv", "name,include\nblurry,1\nsolo,1\n^_^,1\noutdoors,1\nnight,0\n");
    dir
}

fn write(dir: &TempDir, name: &str, text: impl AsRef<[u8]>) {
    let path = dir.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn read(dir: &TempDir, name: &str) -> String {
    fs::read_to_string(dir.path().join(name)).unwrap()
}

fn config(dir: &TempDir) -> CaptionConfig {
    let at = |name: &str| dir.path().join(name);
    CaptionConfig {
        tags: at("tags.csv"),
        selection: at("selection.csv"),
        images: at("images"),
        output: Some(at("captions")),
        in_place: false,
        max_tags: 3,
        min_score: 0.3,
        position: Position::Prepend,
        missing: Missing::Skip,
        source: CaptionSource::default(),
        format: None,
        style: Style::default(),
        without: Vec::new(),
    }
}

fn in_place(dir: &TempDir) -> CaptionConfig {
    CaptionConfig { output: None, in_place: true, ..config(dir) }
}

fn run(config: &CaptionConfig) -> Result<CaptionReport> {
    caption::run(&config.plan()?, &Interrupt::new(), &mut |_| {})
}

fn said(config: &CaptionConfig) -> String {
    run(config).unwrap_err().to_string()
}

#[test]
fn captions_lie_as_the_pictures_do() {
    let dir = world();
    let report = run(&config(&dir)).unwrap();
    assert_eq!((report.outcome, report.captions, report.with_tags, report.absent), (Outcome::Done, 2, 1, 1));
    assert_eq!(read(&dir, "captions/a.txt"), "blurry, solo, ^_^, a heart\n");
    assert_eq!(read(&dir, "captions/sub/b.txt"), "a tree, Outdoors\n");
    assert_eq!(read(&dir, "images/a.txt"), "a heart", "the originals stay");
    assert_eq!(run(&config(&dir)).unwrap().outcome, Outcome::Unchanged);

    let appended = CaptionConfig { position: Position::Append, max_tags: 1, ..config(&dir) };
    assert_eq!(run(&appended).unwrap().outcome, Outcome::Done);
    assert_eq!(read(&dir, "captions/a.txt"), "a heart, blurry\n");
}

#[test]
fn a_changed_input_makes_the_captions_anew() {
    let dir = world();
    let outcome = || run(&config(&dir)).unwrap().outcome;
    outcome();
    write(&dir, "images/a.txt", "a star");
    assert_eq!(outcome(), Outcome::Done);
    assert_eq!(read(&dir, "captions/a.txt"), "blurry, solo, ^_^, a star\n");
    fs::remove_file(dir.path().join("captions/a.txt")).unwrap();
    assert_eq!(outcome(), Outcome::Done);
    write(&dir, "selection.csv", "name,include\nsolo,1\n");
    assert_eq!(outcome(), Outcome::Done);
    assert_eq!(read(&dir, "captions/a.txt"), "solo, a star\n");
    assert_eq!(outcome(), Outcome::Unchanged);
}

#[test]
fn a_folder_of_captions_is_made_from_originals_too() {
    let dir = world();
    run(&in_place(&dir)).unwrap();
    run(&CaptionConfig { min_score: 0.5, ..config(&dir) }).unwrap();
    assert_eq!(read(&dir, "captions/a.txt"), "blurry, a heart\n", "without the tags of the run in place");
    assert_eq!(read(&dir, "images/a.txt"), "blurry, solo, ^_^, a heart\n", "which stays as it was");
}

#[test]
fn in_place_starts_from_the_original_and_never_says_a_tag_twice() {
    let dir = world();
    assert_eq!(run(&in_place(&dir)).unwrap().captions, 2);
    assert_eq!(read(&dir, "images/a.txt"), "blurry, solo, ^_^, a heart\n");
    assert_eq!(read(&dir, "images/a.txt.orig"), "a heart");
    assert!(!dir.path().join("images/sub/b.txt.orig").exists(), "what gets no tag is not touched");
    assert_eq!(run(&in_place(&dir)).unwrap().outcome, Outcome::Unchanged);

    let fewer = CaptionConfig { max_tags: 1, ..in_place(&dir) };
    assert_eq!(run(&fewer).unwrap().outcome, Outcome::Done);
    assert_eq!(read(&dir, "images/a.txt"), "blurry, a heart\n", "no old tags are left");
    fs::remove_file(record_path(&dir.path().join("images"))).unwrap();
    run(&fewer).unwrap();
    assert_eq!(read(&dir, "images/a.txt"), "blurry, a heart\n", "nor are there any twice without a record");

    write(&dir, "images/a.txt", "a broken heart");
    let error = said(&fewer);
    assert!(error.contains("a.txt` was edited after") && error.contains("a.txt.orig"), "{error}");
    assert_eq!(read(&dir, "images/a.txt"), "a broken heart");
    fs::remove_file(dir.path().join("images/a.txt.orig")).unwrap();
    run(&fewer).unwrap();
    assert_eq!(read(&dir, "images/a.txt"), "blurry, a broken heart\n");
}

#[test]
fn pictures_without_a_caption_are_skipped_or_captioned_or_refused() {
    let dir = world();
    run(&config(&dir)).unwrap();
    fs::remove_file(dir.path().join("images/a.txt")).unwrap();
    write(&dir, "images/sub/b.txt", " \n");
    write(&dir, "images/c.png", "");
    write(&dir, "images/c.txt", "a cross");
    let with = |missing| CaptionConfig { missing, ..config(&dir) };

    let error = said(&with(Missing::Error));
    assert!(
        error.contains("2 pictures in") && error.ends_with("have no caption: `a.png`, `sub/b.jpg`"),
        "{error}"
    );

    let report = run(&with(Missing::Skip)).unwrap();
    assert_eq!(report.outcome, Outcome::Skipped);
    let reasons: Vec<_> = report.skipped.iter().map(|skipped| skipped.reason.as_str()).collect();
    assert_eq!(reasons, ["no caption", "the caption is empty"]);
    assert_eq!(report.untagged, ["c.png"]);
    assert_eq!(read(&dir, "captions/c.txt"), "a cross\n");
    assert!(!dir.path().join("captions/a.txt").exists(), "the caption of an earlier run does not stay");

    let report = run(&with(Missing::Empty)).unwrap();
    assert_eq!((report.captions, report.skipped.len()), (3, 0));
    assert_eq!(read(&dir, "captions/a.txt"), "blurry, solo, ^_^\n");
    assert_eq!(read(&dir, "captions/sub/b.txt"), "outdoors\n");
    let report = run(&CaptionConfig { min_score: 0.6, ..with(Missing::Empty) }).unwrap();
    assert_eq!(report.skipped[0].reason, "no caption and no tags");

    let beside = CaptionConfig { missing: Missing::Empty, ..in_place(&dir) };
    run(&beside).unwrap();
    assert_eq!(read(&dir, "images/a.txt"), "blurry, solo, ^_^\n");
    run(&CaptionConfig { max_tags: 1, ..beside }).unwrap();
    assert_eq!(read(&dir, "images/a.txt"), "blurry\n");
}

#[test]
fn what_cannot_be_read_stops_before_anything_is_written() {
    let dir = world();
    write(&dir, "images/sub/b.txt", b"\xff\xfea");
    let error = said(&config(&dir));
    assert!(error.contains("b.txt` is not UTF-16LE, as its mark or the settings say"), "{error}");
    assert!(!dir.path().join("captions").exists());

    let dir = world();
    write(&dir, "images/a.webp", "");
    write(&dir, "images/a.jpg", "");
    let error = said(&config(&dir));
    assert!(
        ["a.jpg`, ", "a.png` and ", "a.webp` share the caption", "a.txt`"]
            .iter()
            .all(|part| error.contains(part)),
        "{error}"
    );

    let dir = world();
    fs::remove_file(dir.path().join("images/a.txt")).unwrap();
    write(&dir, "images/a.txt/file", "");
    assert!(said(&config(&dir)).ends_with("a.txt`"));

    let dir = world();
    write(&dir, "tags.csv", "image,tag_id,tag,category,score\nx.png,1,blurry,general,0.9\n");
    let error = said(&config(&dir));
    assert!(error.contains("it names `x.png`, the folder holds `a.png`"), "{error}");

    let dir = world();
    write(&dir, "empty/note.txt", "");
    let empty = CaptionConfig { images: dir.path().join("empty"), ..config(&dir) };
    assert!(said(&empty).starts_with("no pictures in"));
}

#[test]
fn wrong_settings_are_refused_by_the_plan() {
    let dir = world();
    let images = dir.path().join("images");
    let said = |config: CaptionConfig| config.plan().unwrap_err().to_string();
    assert_eq!(
        said(CaptionConfig { min_score: 1.1, ..config(&dir) }),
        "min_score is 1.1, expected a score from 0 to 1"
    );
    assert!(said(CaptionConfig { in_place: true, ..config(&dir) }).ends_with("found both"));
    assert!(said(CaptionConfig { output: None, ..config(&dir) }).ends_with("found neither"));
    for output in
        [images.clone(), images.join("new/captions"), dir.path().to_path_buf(), images.join("../images/x")]
    {
        let error = CaptionConfig { output: Some(output), ..config(&dir) }.plan().unwrap_err();
        assert!(matches!(error, Error::Overlap { .. }), "{error}");
    }
    let beside: PathBuf = dir.path().join("images2");
    assert!(CaptionConfig { output: Some(beside), ..config(&dir) }.plan().is_ok());
}

#[test]
fn an_interrupted_run_goes_on() {
    let dir = world();
    let mut rows = TAGS.to_owned();
    for i in 0..200 {
        write(&dir, &format!("images/c{i:03}.png"), "");
        write(&dir, &format!("images/c{i:03}.txt"), "a cross");
        rows += &format!("c{i:03}.png,1,blurry,general,0.5\n");
    }
    write(&dir, "tags.csv", rows);
    let interrupt = Interrupt::new();
    let plan = config(&dir).plan().unwrap();
    let report = caption::run(&plan, &interrupt.clone(), &mut |event| {
        if matches!(event, CaptionEvent::Captioned { .. }) {
            interrupt.raise();
        }
    });
    let report = report.unwrap();
    assert_eq!(report.outcome, Outcome::Interrupted);
    assert!(0 < report.captions && report.captions < 202, "{}", report.captions);
    assert!(dir.path().join("captions/a.txt").exists() && !dir.path().join("captions/sub/b.txt").exists());
    assert!(!record_path(&dir.path().join("captions")).exists());
    fs::remove_file(dir.path().join("images/c000.txt")).unwrap();
    assert!(dir.path().join("captions/c000.txt").exists());
    assert_eq!(run(&config(&dir)).unwrap().outcome, Outcome::Skipped);
    assert!(
        !dir.path().join("captions/c000.txt").exists(),
        "what the first run left is removed by the second"
    );
    assert_eq!(read(&dir, "captions/c199.txt"), "blurry, a cross\n");
    assert_eq!(read(&dir, "captions/sub/b.txt"), "a tree, Outdoors\n");
}

#[test]
fn long_captions_and_captions_of_several_lines_are_reported() {
    let dir = world();
    write(&dir, "images/a.txt", format!("a heart\n\n{}", "and a star ".repeat(30)));
    let report = run(&config(&dir)).unwrap();
    assert_eq!(report.joined, ["a.png"]);
    assert_eq!((report.too_long[0].image.as_str(), report.too_long[0].tokens), ("a.png", 99));
    assert!(read(&dir, "captions/a.txt").starts_with("blurry, solo, ^_^, a heart and a star and"));
}

#[test]
fn an_edited_caption_is_not_overwritten_however_much_it_looks_like_ours() {
    let dir = world();
    run(&in_place(&dir)).unwrap();
    let fewer = CaptionConfig { max_tags: 1, ..in_place(&dir) };
    for edited in ["night, a heart\n", "a heart, night\n", "", "blurry, solo, ^_^, a heart, night\n"] {
        write(&dir, "images/a.txt", edited);
        let error = run(&fewer).unwrap_err();
        assert!(matches!(error, Error::Edited { .. }) && error.to_string().contains("a.txt`"), "{error}");
        assert_eq!(read(&dir, "images/a.txt"), edited);
    }
    write(&dir, "images/a.txt", "a heart");
    run(&fewer).unwrap();
    assert_eq!(read(&dir, "images/a.txt"), "blurry, a heart\n", "the original is nobody's edit");

    let dir = world();
    fs::remove_file(dir.path().join("images/a.txt")).unwrap();
    let empty = CaptionConfig { missing: Missing::Empty, ..in_place(&dir) };
    run(&empty).unwrap();
    write(&dir, "images/a.txt", "written by hand");
    for config in [CaptionConfig { max_tags: 1, ..empty }, in_place(&dir)] {
        assert!(matches!(run(&config), Err(Error::Edited { .. })));
        assert_eq!(read(&dir, "images/a.txt"), "written by hand");
    }
}

#[test]
fn only_what_a_run_wrote_is_removed_or_replaced() {
    let dir = world();
    write(&dir, "captions/notes.txt", "buy milk");
    run(&config(&dir)).unwrap();
    fs::remove_file(dir.path().join("images/a.png")).unwrap();
    run(&config(&dir)).unwrap();
    assert!(!dir.path().join("captions/a.txt").exists(), "ours goes with its picture");
    assert_eq!(read(&dir, "captions/notes.txt"), "buy milk");

    write(&dir, "images/a.png", "");
    run(&config(&dir)).unwrap();
    write(&dir, "captions/a.txt", "written by hand");
    let error = run(&config(&dir)).unwrap_err();
    assert!(matches!(error, Error::Foreign { .. }) && error.to_string().contains("a.txt`"), "{error}");
    fs::remove_file(dir.path().join("images/a.png")).unwrap();
    run(&config(&dir)).unwrap();
    assert_eq!(read(&dir, "captions/a.txt"), "written by hand");
}

#[test]
fn captions_that_were_copied_elsewhere_are_known_by_their_content() {
    let dir = world();
    run(&config(&dir)).unwrap();
    // As `cp -r` leaves them: with other times.
    fs::create_dir_all(dir.path().join("moved/sub")).unwrap();
    for name in ["a.txt", "sub/b.txt", ".vodka-files"] {
        let bytes = fs::read(dir.path().join("captions").join(name)).unwrap();
        fs::write(dir.path().join("moved").join(name), bytes).unwrap();
    }
    let moved = CaptionConfig { output: Some(dir.path().join("moved")), max_tags: 1, ..config(&dir) };
    assert_eq!(run(&moved).unwrap().captions, 2);
    assert_eq!(read(&dir, "moved/a.txt"), "blurry, a heart\n");
}

#[test]
fn a_killed_run_leaves_nothing_to_the_next() {
    let dir = world();
    run(&config(&dir)).unwrap();
    fs::remove_file(record_path(&dir.path().join("captions"))).unwrap();
    fs::remove_file(dir.path().join("images/a.txt")).unwrap();
    let appended = CaptionConfig { position: Position::Append, ..config(&dir) };
    assert_eq!(run(&appended).unwrap().captions, 1);
    assert!(!dir.path().join("captions/a.txt").exists());
    assert_eq!(run(&appended).unwrap().outcome, Outcome::Unchanged);
}

#[test]
fn a_picture_that_is_skipped_now_gets_its_original_back() {
    let dir = world();
    fs::remove_file(dir.path().join("images/a.txt")).unwrap();
    write(&dir, "images/sub/b.txt", " \n");
    let empty = CaptionConfig { missing: Missing::Empty, ..in_place(&dir) };
    run(&empty).unwrap();
    assert_eq!(read(&dir, "images/a.txt"), "blurry, solo, ^_^\n");
    assert_eq!(read(&dir, "images/sub/b.txt"), "outdoors\n");
    assert_eq!(run(&empty).unwrap().outcome, Outcome::Unchanged, "its own empty original changes nothing");

    let report = run(&in_place(&dir)).unwrap();
    assert_eq!((report.outcome, report.captions, report.skipped.len()), (Outcome::Skipped, 0, 2));
    assert!(!dir.path().join("images/a.txt").exists(), "there was none");
    assert_eq!(read(&dir, "images/sub/b.txt"), " \n");
    assert!(
        !dir.path().join("images/a.txt.orig").exists() && !dir.path().join("images/sub/b.txt.orig").exists()
    );
    assert_eq!(run(&in_place(&dir)).unwrap().outcome, Outcome::Unchanged);

    write(&dir, "images/a.txt", "a heart");
    assert_eq!(run(&in_place(&dir)).unwrap().captions, 1);
    assert_eq!(
        read(&dir, "images/a.txt"),
        "blurry, solo, ^_^, a heart\n",
        "what is written now is the original"
    );
}

#[test]
fn a_table_from_another_model_or_floor_is_told() {
    let dir = world();
    assert!(run(&config(&dir)).unwrap().warnings.is_empty());
    let key = vodka_stage::RunKey::new("tag", &serde_json::json!({ "min_score": 0.35 }), None);
    key.write(&record_path(&dir.path().join("tags.csv")), &[], &"").unwrap();
    write(&dir, "selection.csv", "name,include,threshold\nblurry,1,0.5\nsolo,1,0.2\nsunset,1,\n");
    let report = run(&config(&dir)).unwrap();
    let [floor, missing] = report.warnings.as_slice() else { panic!("{:?}", report.warnings) };
    assert!(
        floor.contains("from the score 0.35 on") && floor.contains(" 0.2, 0.3 are those at 0.35"),
        "{floor}"
    );
    assert_eq!(missing, "1 selected tags are not in the tag table: `sunset`");
    assert!(report.to_string().ends_with(&format!("\nwarning: {floor}\nwarning: {missing}")), "{report}");

    write(&dir, "selection.csv", "name,include\nsunset,1\n");
    assert!(matches!(run(&config(&dir)), Err(Error::OtherVocabulary { selected: 1, .. })));
}

#[test]
fn pictures_on_a_list_are_left_out() {
    let dir = world();
    write(&dir, "no.csv", "image,reason\na.png,blurred\nelsewhere.png,x\n");
    let without =
        |config: CaptionConfig| CaptionConfig { without: vec![dir.path().join("no.csv")], ..config };
    let report = run(&without(config(&dir))).unwrap();
    assert_eq!((report.outcome, report.captions, report.excluded), (Outcome::Done, 1, 1));
    assert!(report.to_string().contains("\n1 pictures are left out, as listed"), "{report}");
    assert!(!dir.path().join("captions/a.txt").exists());
    assert_eq!(run(&without(config(&dir))).unwrap().outcome, Outcome::Unchanged);
    // A list that is not the same any more is a reason to run, and what is not wanted any more goes.
    write(&dir, "no.csv", "sub/b.jpg\n");
    assert_eq!(run(&without(config(&dir))).unwrap().captions, 1);
    assert!(dir.path().join("captions/a.txt").exists() && !dir.path().join("captions/sub/b.txt").exists());

    // In place their originals come back, and one that would share a caption is no trouble.
    run(&in_place(&dir)).unwrap();
    assert_eq!(read(&dir, "images/a.txt"), "blurry, solo, ^_^, a heart\n");
    write(&dir, "no.csv", "a.png\nsub/b.png\n");
    write(&dir, "images/sub/b.png", "");
    run(&without(in_place(&dir))).unwrap();
    assert_eq!(read(&dir, "images/a.txt"), "a heart");
    write(&dir, "no.csv", b"\xff\xfe");
    assert!(said(&without(config(&dir))).contains("no.csv` is not UTF-8"));
}

#[test]
fn a_second_run_tells_as_the_first_did_that_pictures_are_left_out() {
    let dir = world();
    fs::remove_file(dir.path().join("images/a.txt")).unwrap();
    let first = run(&config(&dir)).unwrap();
    assert_eq!((first.outcome, first.outcome()), (Outcome::Skipped, Outcome::Skipped));
    let second = run(&config(&dir)).unwrap();
    assert_eq!((second.outcome, second.outcome()), (Outcome::Unchanged, Outcome::Skipped));
    assert!(second.to_string().contains("skipped `a.png`: no caption"), "{second}");
}

#[test]
fn fixed_tags_are_not_counted_as_tags() {
    let dir = world();
    let style = Style { fixed: vec!["sks".to_owned()], ..Style::default() };
    let report = run(&CaptionConfig { style, ..config(&dir) }).unwrap();
    assert_eq!((report.captions, report.with_tags), (2, 1));
    assert_eq!(read(&dir, "captions/sub/b.txt"), "sks, a tree, Outdoors\n");
}

#[test]
fn missing_captions_alone_are_what_missing_is_about() {
    let dir = world();
    write(&dir, "images/a.txt", "a heart without a place");
    write(&dir, "images/sub/b.txt", "a tree, {tags}");
    let marked = CaptionConfig { position: Position::Marker, missing: Missing::Error, ..config(&dir) };
    let report = run(&marked).unwrap();
    assert_eq!((report.captions, report.skipped.len()), (1, 1), "another reason to skip is no error");
    fs::remove_file(dir.path().join("images/sub/b.txt")).unwrap();
    let error = said(&marked);
    assert!(error.contains("`sub/b.jpg`") && !error.contains("`a.png`"), "{error}");
}

#[test]
#[cfg(unix)]
fn a_folder_that_another_run_writes_is_refused() {
    let dir = world();
    let out = dir.path().join("captions");
    let mut held = None;
    let plan = config(&dir).plan().unwrap();
    // The run takes the folder that it makes before it tells that it starts.
    caption::run(&plan, &Interrupt::new(), &mut |event| {
        if let CaptionEvent::Started { .. } = event {
            held = Some(FolderLock::take(&out).unwrap_err().to_string());
        }
    })
    .unwrap();
    assert!(held.unwrap().contains("is held by another run"));
}

#[test]
fn undo_removes_no_record_of_another_stage() {
    let dir = world();
    run(&in_place(&dir)).unwrap();
    let record = record_path(&dir.path().join("images"));
    let other =
        fs::read_to_string(&record).unwrap().replace("\"stage\": \"caption\"", "\"stage\": \"filter\"");
    fs::write(&record, &other).unwrap();
    let undo = vodka_captions::undo::UndoConfig { images: dir.path().join("images"), force: false };
    vodka_captions::undo::run(&undo.plan().unwrap(), &Interrupt::new(), &mut |_| {}).unwrap();
    assert_eq!(fs::read_to_string(&record).unwrap(), other);
    assert_eq!(read(&dir, "images/a.txt"), "a heart");
}
