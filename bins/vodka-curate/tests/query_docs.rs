//! Every example of docs/query.md, run as it stands there, and how the commands end.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use assert_cmd::cargo::cargo_bin_cmd;
use tempfile::TempDir;

/// A fenced block: its kind, what else stands on the first line, and its text.
struct Block {
    kind: String,
    name: String,
    text: String,
}

fn blocks() -> Vec<Block> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/query.md");
    let page = fs::read_to_string(path).unwrap();
    let mut blocks = Vec::new();
    for (number, piece) in page.split("```").enumerate() {
        if number % 2 == 1 {
            let (first, text) = piece.split_once('\n').unwrap();
            let (kind, name) = first.split_once(' ').unwrap_or((first, ""));
            blocks.push(Block { kind: kind.to_owned(), name: name.to_owned(), text: text.to_owned() });
        }
    }
    blocks
}

fn write(path: PathBuf, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// The dataset of the page. The pictures are empty files: all that is asked about them is in the tables.
fn world(blocks: &[Block]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for image in ["a.png", "people/a_copy.png", "people/b.jpg", "people/c.jpg"] {
        write(dir.path().join("images").join(image), "");
    }
    for block in blocks.iter().filter(|block| !block.name.is_empty()) {
        let folder = if block.kind == "caption" { "images" } else { "" };
        write(dir.path().join(folder).join(&block.name), &block.text);
    }
    dir
}

/// The words of a command line, with single and double quotes.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, ' ') => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    assert_eq!(quote, None, "{line}");
    words.extend(word);
    words
}

/// What a command line prints, and its exit code.
fn run(dir: &TempDir, line: &str) -> (String, Option<i32>) {
    let words = words(line);
    assert_eq!(words[0], "vodka-curate", "{line}");
    let output = cargo_bin_cmd!("vodka-curate").current_dir(dir.path()).args(&words[1..]).output().unwrap();
    (String::from_utf8([output.stdout, output.stderr].concat()).unwrap(), output.status.code())
}

#[test]
fn each_query_fits_the_pictures_named_behind_it() {
    let blocks = blocks();
    let dir = world(&blocks);
    let mut count = 0;
    for line in blocks.iter().filter(|block| block.kind == "query").flat_map(|block| block.text.lines()) {
        let (_, expected) = line.rsplit_once('#').unwrap();
        let mut command = cargo_bin_cmd!("vodka-curate");
        command
            .current_dir(dir.path())
            .args(["filter", "--images", "images", "--tags", "tags.csv", "--list"]);
        let output = command.args(["--query", line]).output().unwrap();
        let names = String::from_utf8(output.stdout).unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{line}\n{said}");
        assert_eq!(names.lines().collect::<Vec<_>>().join(" "), expected.trim(), "{line}\n{said}");
        count += 1;
    }
    assert!(count > 25, "{count} queries");
}

#[test]
fn each_command_says_what_the_page_says() {
    let blocks = blocks();
    let dir = world(&blocks);
    let mut count = 0;
    for block in &blocks {
        match block.kind.as_str() {
            "sh" => {
                for line in block.text.lines() {
                    let (said, code) = run(&dir, line);
                    assert_eq!(code, Some(0), "{line}\n{said}");
                    count += 1;
                }
            }
            "console" => {
                let (line, expected) = block.text.split_once('\n').unwrap();
                let (said, _) = run(&dir, line.strip_prefix("$ ").unwrap());
                // The notes about what the little dataset lacks are left out of the page.
                let said: Vec<_> = said.lines().filter(|line| !line.starts_with("note: ")).collect();
                assert_eq!(said.join("\n"), expected.trim_end(), "{line}");
                count += 1;
            }
            _ => {}
        }
    }
    assert!(count > 8, "{count} commands");
    let at = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(at("blurred.csv"), "image,reason\na.png,tag:blurry>0.9\n");
    assert_eq!(at("train/people/b.txt"), "A portrait, 30 years old\n");
    assert!(!dir.path().join("train/a.png").exists());
    assert_eq!(at("segments/sharp/people/multiply.txt"), "2\n");
    assert_eq!(at("segments/portraits/people/flip_p.txt"), "0.5\n");
}

#[test]
fn commands_end_as_they_should() {
    let dir = world(&blocks());
    let filter = "vodka-curate filter --images images --tags tags.csv";
    let ends = |line: &str, code| {
        let (said, found) = run(&dir, line);
        assert_eq!(found, Some(code), "{line}\n{said}");
        said
    };
    assert_eq!(ends(&format!("{filter} --query tag:solo --list --null --quiet"), 0), "a.png\0");
    let json = ends(&format!("{filter} --query tag:solo --list --json"), 0);
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["listed"], serde_json::json!(["a.png"]));
    let plan = ends(&format!("{filter} --query 'tag:Solo AND  exists' --count --dry-run"), 0);
    assert!(plan.contains("\"query\": \"tag:solo and exists\""), "{plan}");
    assert!(plan.contains("tags.pictures.csv"), "the table of pictures is found: {plan}");
    // The picture that only the tables know cannot be copied.
    let said = ends(&format!("{filter} --query 'exists or not exists' --copy out"), 3);
    assert!(said.contains("skipped `gone.png`: not on disk"), "{said}");
    let said = ends(&format!("{filter} --query 'tag:' --count"), 2);
    assert_eq!(said, "error: query, byte 4: expected the name of a tag, found the end\n  tag:\n      ^\n");
    write(dir.path().join("wrong.query"), "exists\n  and widht>3\n");
    let said = ends(&format!("{filter} --query-file wrong.query --count"), 2);
    assert!(said.starts_with("error: in `wrong.query`: query, byte 13 (line 2): no field `widht`"), "{said}");
    assert!(said.ends_with("\n    and widht>3\n        ^^^^^\n"), "{said}");
    ends(&format!("{filter} --query exists"), 2);
    ends(&format!("{filter} --query exists --list --count"), 2);
    ends(&format!("{filter} --count"), 2);
    ends("vodka-curate duplicates --pictures tags.pictures.csv --output d.csv --distance 65", 2);
    ends("vodka-curate duplicates --pictures none.csv --output d.csv", 1);
    assert!(ends("vodka-curate segment --config none.toml", 2).contains("none.toml"));
}

#[cfg(target_os = "linux")]
#[test]
fn a_list_that_cannot_be_printed_is_an_error() {
    let dir = world(&blocks());
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_vodka-curate"));
    command.current_dir(dir.path()).args(["filter", "--images", "images", "--query", "exists", "--list"]);
    let output = command.stdout(full).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), said.contains("cannot write the names: ")), (Some(1), true), "{said}");
}
