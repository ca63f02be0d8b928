//! Captions in place through the real binary: killed at any moment, shown before, and taken back.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

const PICTURES: usize = 1500;

fn original(number: usize) -> String {
    format!("picture {number}, with a caption\r\n")
}

/// The caption with this many tags.
fn tagged(number: usize, tags: usize) -> String {
    let tags: String = ["blurry, ", "solo, "][..tags].concat();
    format!("{tags}picture {number}, with a caption\n")
}

fn world(pictures: usize) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("images")).unwrap();
    let mut tags = "image,tag_id,tag,category,score\n".to_owned();
    for number in 0..pictures {
        let picture = dir.path().join(format!("images/{number}.png"));
        fs::write(&picture, "").unwrap();
        fs::write(picture.with_extension("txt"), original(number)).unwrap();
        tags += &format!("{number}.png,1,blurry,general,0.9\n{number}.png,2,solo,general,0.5\n");
    }
    fs::write(dir.path().join("tags.csv"), tags).unwrap();
    fs::write(dir.path().join("selection.csv"), "name,include\nblurry,1\nsolo,1\n").unwrap();
    dir
}

fn curate(dir: &TempDir, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vodka-curate"));
    command.current_dir(dir.path()).args(arguments).stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

fn caption<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let always =
        ["caption", "--tags", "tags.csv", "--selection", "selection.csv", "--images", "images", "--in-place"];
    [&always, more].concat()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.is_file()).map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

fn originals(images: &Path) -> usize {
    let names = fs::read_dir(images).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().ends_with(".txt.orig")).count()
}

#[test]
fn killed_at_any_moment_every_caption_is_old_or_new_and_undo_brings_all_back() {
    let dir = world(PICTURES);
    let images = dir.path().join("images");
    let before = files(&images);
    let mut kills = 0;
    // A fast machine may finish a run before it is killed; from the second round on there are originals at once, and a run
    // is killed before it can be through.
    for (round, max_tags) in ["1", "2"].into_iter().cycle().enumerate() {
        if round >= 4 && kills >= 2 {
            break;
        }
        let mut child = curate(&dir, &caption(&["--quiet", "--max-tags", max_tags])).spawn().unwrap();
        let enough = (round + 1).min(5) * PICTURES / 6;
        while child.try_wait().unwrap().is_none() && originals(&images) < enough {
            std::thread::yield_now();
        }
        // SIGKILL: nothing in the process hears of it.
        child.kill().unwrap();
        kills += usize::from(!child.wait().unwrap().success());
        for number in 0..PICTURES {
            let found = fs::read_to_string(images.join(format!("{number}.txt"))).unwrap();
            let whole = found == original(number) || (1..=2).any(|tags| found == tagged(number, tags));
            assert!(whole, "{number}.txt is neither old nor new: {found:?}");
        }
    }
    let output = curate(&dir, &["undo", "--images", "images"]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(files(&images), before);
    assert!(!dir.path().join("images.run.json").exists());
}

#[test]
fn times_permissions_and_links_come_back_too() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    let dir = world(3);
    let images = dir.path().join("images");
    let at = |name: &str| images.join(name);
    fs::rename(at("1.txt"), dir.path().join("1.txt")).unwrap();
    symlink("../1.txt", at("1.txt")).unwrap();
    fs::remove_file(at("2.txt")).unwrap();
    let file = fs::File::options().write(true).open(at("0.txt")).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_000_000)).unwrap();
    let stat = || {
        let found = fs::symlink_metadata(at("0.txt")).unwrap();
        (found.mode(), found.mtime(), found.mtime_nsec(), found.ino())
    };
    let before = (stat(), files(&images));
    let status = curate(&dir, &caption(&["--missing", "empty"])).status().unwrap();
    assert!(status.success());
    assert_eq!(fs::read_to_string(at("0.txt")).unwrap(), tagged(0, 2));
    assert_eq!(fs::metadata(at("0.txt")).unwrap().mode() & 0o777, 0o640, "no more may read it than before");
    assert_eq!(fs::read_to_string(at("1.txt")).unwrap(), tagged(1, 2));
    assert_eq!(fs::read_to_string(dir.path().join("1.txt")).unwrap(), original(1), "what is linked to stays");
    assert!(at("2.txt").exists());
    assert!(curate(&dir, &["undo", "--images", "images"]).status().unwrap().success());
    assert_eq!((stat(), files(&images)), before);
    assert_eq!(fs::read_link(at("1.txt")).unwrap(), Path::new("../1.txt"));
}

#[test]
fn undo_leaves_what_was_edited_unless_it_is_forced() {
    let dir = world(3);
    let images = dir.path().join("images");
    let before = files(&images);
    assert!(curate(&dir, &caption(&[])).status().unwrap().success());
    assert_eq!(fs::read_to_string(images.join("0.txt")).unwrap(), tagged(0, 2));
    fs::write(images.join("1.txt"), "mine").unwrap();

    let undo =
        |more: &[&str]| curate(&dir, &[&["undo", "--images", "images"], more].concat()).output().unwrap();
    let output = undo(&[]);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert_eq!(
        said(&output),
        "put 2 originals back, and removed 0 captions that there were not before\n\
         `images/1.txt`: edited since tags were put in, left as it is (--force puts its original back)\n"
    );
    assert_eq!(fs::read_to_string(images.join("1.txt")).unwrap(), "mine");
    assert_eq!(fs::read_to_string(images.join("0.txt")).unwrap(), original(0));

    assert!(undo(&["--force"]).status.success());
    assert_eq!(files(&images), before);
    let output = undo(&["--json"]);
    assert!(
        output.status.success() && said(&output).contains("\"outcome\": \"unchanged\""),
        "{}",
        said(&output)
    );
    let output = curate(&dir, &["undo", "--images", "nowhere"]).output().unwrap();
    assert_eq!((output.status.code(), said(&output).contains("cannot read `nowhere`")), (Some(2), true));
}

#[test]
fn a_difference_is_shown_and_nothing_is_written() {
    let dir = world(2);
    let before = files(&dir.path().join("images"));
    let shown = |more: &[&str]| {
        let output =
            curate(&dir, &caption(&[&["--diff", "--max-tags", "1"], more].concat())).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(
        shown(&[]),
        "0.png (images/0.txt)\n- picture 0, with a caption\n+ {+blurry+}, picture 0, with a caption\n\
         1.png (images/1.txt)\n- picture 1, with a caption\n+ {+blurry+}, picture 1, with a caption\n\
         2 captions would change, 0 are as they should be\n"
    );
    let json: serde_json::Value = serde_json::from_str(&shown(&["--json"])).unwrap();
    assert_eq!(json["changes"][1]["inserted"], serde_json::json!(["blurry"]));
    assert_eq!(files(&dir.path().join("images")), before);

    assert!(curate(&dir, &caption(&["--max-tags", "2"])).status().unwrap().success());
    assert!(shown(&[]).starts_with(
        "0.png (images/0.txt)\n- blurry, [-solo-], picture 0, with a caption\n+ blurry, picture 0, with a caption\n"
    ));
    assert!(curate(&dir, &caption(&["--max-tags", "1"])).status().unwrap().success());
    assert_eq!(shown(&[]), "0 captions would change, 2 are as they should be\n");
}

#[test]
fn wrong_arguments_are_told_with_what_would_do() {
    let dir = world(1);
    for (arguments, expected) in [
        (
            &["--source", "docx"][..],
            "format: expected txt, caption, ed2-yaml, kohya-json, jsonl, parquet, csv, png, file-name, found \"docx\"",
        ),
        (
            &["--format", "csv"],
            "format: expected none: in place captions stay in the format that they are in, found \"csv\"",
        ),
        (&["--source", "file-name"], "in place pictures are not renamed"),
        (
            &["--template", "{{ taggs }}"],
            "the template's line 1: no variable `taggs`, expected caption, tags",
        ),
        (
            &["--template", "{{ tags }}", "--position", "append"],
            "position: expected none, since a template says where the tags go",
        ),
        (&["--threshold", "blurry"], "expected a name, `=` and a score from 0 to 1"),
        (&["--threshold", "blurry=1.5"], "threshold is 1.5, expected a score from 0 to 1"),
        (&["--encoding", "klingon"], "encoding: expected a name such as `windows-1251`"),
        (&["--source-file", "x.json"], "source file: expected none with the format txt"),
        // What only the data can tell.
        (&["--threshold", "blury=0.5"], "no tag `blury` in `selection.csv`, did you mean `blurry`?"),
        (
            &["--category-threshold", "character=0.5"],
            "category threshold: expected none: `selection.csv` has no column `category`",
        ),
    ] {
        let output = curate(&dir, &caption(arguments)).output().unwrap();
        let text = said(&output);
        assert_eq!((output.status.code(), text.contains(expected)), (Some(2), true), "{arguments:?}: {text}");
    }
    let output = curate(&dir, &caption(&["--source", "csv"])).output().unwrap();
    let text = said(&output);
    let expected = "cannot read `images/metadata.csv`";
    assert_eq!((output.status.code(), text.contains(expected)), (Some(1), true), "{text}");
}
