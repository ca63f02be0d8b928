//! Filters, segments and duplicates on disk: what they write, how they go on, and every way in which they refuse.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;
use vodka_captions::{
    Error, Result,
    duplicates::{self, DuplicatesConfig, DuplicatesReport, Kind},
    filter::{self, Action, FilterConfig, FilterEvent, FilterReport, Method},
    query::{Dataset, read_exclusions},
    segment::{self, Segment, SegmentConfig, SegmentReport, SettingsForm},
};
use vodka_stage::{Interrupt, Outcome, hash_bytes, record_path};
use vodka_testkit::fixture;

const TAGS: &str = "image,tag_id,tag,category,score\n\
    a.png,1,blurry,general,0.95\na.png,2,solo,general,0.8\nsub/b.jpg,1,blurry,general,0.4\n\
    sub/b.jpg,1, Blurry,general,0.6\nsub/c.jpg,2,solo,general,0.7\nsub/c.jpg,3,explicit,rating,0.9\n";

/// Three pictures, two captions, a tag table.
fn world() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("images/a.png", "a"),
        ("images/a.txt", "a heart"),
        ("images/sub/b.jpg", "bb"),
        ("images/sub/b.txt", "a tree, outdoors"),
        ("images/sub/b.yaml", "multiply: 2\n"),
        ("images/sub/c.jpg", "ccc"),
        ("tags.csv", TAGS),
    ] {
        write(&dir, name, text);
    }
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

fn dataset(dir: &TempDir) -> Dataset {
    let at = |name: &str| Some(dir.path().join(name));
    Dataset { images: at("images"), tags: at("tags.csv"), ..Dataset::default() }
}

fn config(dir: &TempDir, query: &str, action: Action) -> FilterConfig {
    let query = Some(query.to_owned());
    FilterConfig { dataset: dataset(dir), query, query_file: None, action, explain: false }
}

fn run(config: &FilterConfig) -> Result<FilterReport> {
    filter::run(&config.plan()?, &Interrupt::new(), &mut |_| {})
}

fn listed(dir: &TempDir, query: &str) -> Vec<String> {
    run(&config(dir, query, Action::List)).unwrap().listed
}

fn said(config: &FilterConfig) -> String {
    run(config).unwrap_err().to_string()
}

fn copied(dir: &TempDir, query: &str, method: Method) -> FilterConfig {
    config(dir, query, Action::Place { output: dir.path().join("out"), method })
}

/// The files of a folder, hidden ones apart.
fn files(root: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(root).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        match path.is_dir() {
            true => found.extend(files(&path).into_iter().map(|below| format!("{name}/{below}"))),
            false if name.starts_with('.') => {}
            false => {
                found.insert(name);
            }
        }
    }
    found
}

fn names(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn pictures_are_listed_in_order_and_counted() {
    let dir = world();
    assert_eq!(listed(&dir, "tag:blurry"), ["a.png", "sub/b.jpg"]);
    assert_eq!(listed(&dir, "tag:blurry>0.5"), ["a.png", "sub/b.jpg"], "the highest of two spellings counts");
    assert_eq!(listed(&dir, "rating:explicit or captioned and not bytes>1"), ["a.png", "sub/c.jpg"]);
    assert_eq!(listed(&dir, "tokens>=4"), ["sub/b.jpg"]);
    let mut events = Vec::new();
    let plan = config(&dir, "tag:solo", Action::List).plan().unwrap();
    filter::run(&plan, &Interrupt::new(), &mut |event| events.push(event)).unwrap();
    assert_eq!(events, ["a.png", "sub/c.jpg"].map(|image| FilterEvent::Fits { image: image.to_owned() }));
    let report = run(&FilterConfig { explain: true, ..config(&dir, "not tag:solo", Action::Count) }).unwrap();
    assert_eq!(report.to_string(), "1 of 3 pictures fit `not tag:solo`\n  1  not tag:solo\n  2    tag:solo");
}

#[test]
fn a_list_of_exclusions_is_written_once_and_read_back() {
    let dir = world();
    let output = dir.path().join("blurred.csv");
    let exclude = config(&dir, "tag:blurry", Action::Exclude { output: output.clone() });
    assert_eq!(run(&exclude).unwrap().outcome, Outcome::Done);
    assert_eq!(read(&dir, "blurred.csv"), "image,reason\na.png,tag:blurry\nsub/b.jpg,tag:blurry\n");
    assert_eq!(run(&exclude).unwrap().outcome, Outcome::Unchanged);
    assert!(record_path(&output).exists());
    fs::write(&output, "image,reason\nedited,\n").unwrap();
    let error = said(&exclude);
    assert!(error.contains("blurred.csv` is in the way"), "{error}");
    assert_eq!(read(&dir, "blurred.csv"), "image,reason\nedited,\n", "what somebody has edited stays");
    fs::remove_file(&output).unwrap();
    assert_eq!(run(&exclude).unwrap().outcome, Outcome::Done);

    write(&dir, "images/a.txt", "a caption");
    let onto = Action::Exclude { output: dir.path().join("images/a.txt") };
    let error = said(&config(&dir, "tag:blurry", onto));
    assert!(error.contains("a.txt` is in the way"), "{error}");
    assert_eq!(read(&dir, "images/a.txt"), "a caption");
    let mut into_itself = exclude;
    into_itself.dataset.without = vec![output.clone()];
    assert!(said(&into_itself).ends_with("blurred.csv` is the input"));

    let without = |path: PathBuf| {
        let dataset = Dataset { without: vec![path], ..dataset(&dir) };
        run(&FilterConfig { dataset, ..config(&dir, "tag:solo or not tag:solo", Action::List) })
            .unwrap()
            .listed
    };
    assert_eq!(without(output), ["sub/c.jpg"]);
    write(&dir, "names.txt", "sub/c.jpg\na.png\n");
    assert_eq!(without(dir.path().join("names.txt")), ["sub/b.jpg"]);
    write(&dir, "sheet.csv", "\u{feff}note;Image\r\n\"x; y\";a.png\r\n");
    assert_eq!(read_exclusions(&dir.path().join("sheet.csv")).unwrap(), names(&["a.png"]));
}

#[test]
fn a_copy_keeps_folders_and_takes_captions_along() {
    let dir = world();
    let out = dir.path().join("out");
    let all = copied(&dir, "tag:blurry", Method::Copy);
    let report = run(&all).unwrap();
    assert_eq!(files(&out), names(&["a.png", "a.txt", "sub/b.jpg", "sub/b.txt", "sub/b.yaml"]));
    assert_eq!(report.placed.unwrap().written, 5);
    let again = run(&all).unwrap();
    assert_eq!((again.outcome, again.placed.unwrap().there), (Outcome::Unchanged, 5));

    // Another query: what does not fit goes, with its folder.
    run(&copied(&dir, "tag:blurry>0.9", Method::Copy)).unwrap();
    assert_eq!(files(&out), names(&["a.png", "a.txt"]));
    assert!(!out.join("sub").exists());

    // The original changes: so does the copy. The copy changes: it stays as it is.
    write(&dir, "images/a.txt", "a red heart");
    run(&all).unwrap();
    assert_eq!(read(&dir, "out/a.txt"), "a red heart");
    fs::write(out.join("sub/b.txt"), "edited").unwrap();
    let error = said(&all);
    assert!(
        error.ends_with("sub/b.txt` is in the way: `.vodka-files` does not say that a run has put it there as it is; move or delete it"),
        "{error}"
    );
    let report = run(&copied(&dir, "tag:blurry>0.9", Method::Copy)).unwrap();
    assert_eq!(report.placed.unwrap().left, ["sub/b.txt"]);
    assert_eq!(files(&out), names(&["a.png", "a.txt", "sub/b.txt"]));
}

#[test]
fn foreign_files_are_left_alone() {
    let dir = world();
    let all = copied(&dir, "tag:blurry", Method::Copy);
    write(&dir, "out/mine.txt", "mine");
    write(&dir, "out/sub/b.jpg", "other");
    let error = said(&all);
    assert!(error.contains("sub/b.jpg` is in the way"), "{error}");
    assert_eq!(files(&dir.path().join("out")), names(&["mine.txt", "sub/b.jpg"]), "nothing was written");
    // The same bytes are no obstacle, and not ours either.
    write(&dir, "out/sub/b.jpg", "bb");
    run(&all).unwrap();
    run(&copied(&dir, "tag:blurry>0.9", Method::Copy)).unwrap();
    assert_eq!(files(&dir.path().join("out")), names(&["a.png", "a.txt", "mine.txt", "sub/b.jpg"]));
}

#[test]
fn a_killed_copy_goes_on() {
    let dir = world();
    let all = copied(&dir, "tag:blurry", Method::Copy);
    let interrupt = Interrupt::new();
    interrupt.raise();
    let report = filter::run(&all.plan().unwrap(), &interrupt, &mut |_| {}).unwrap();
    assert_eq!(report.outcome, Outcome::Interrupted);
    assert!(!dir.path().join("out").exists());
    run(&all).unwrap();
    // As if killed before the list was complete, with a torn line and a half-written file.
    let list = dir.path().join("out/.vodka-files");
    let text = fs::read_to_string(&list).unwrap();
    let lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!((lines.len(), lines[0].contains("pending")), (5, false));
    let pending = pending("a.png", "\"copy\"", "a");
    fs::write(&list, format!("\n{pending}\n{}", &lines[1][..20])).unwrap();
    fs::write(dir.path().join("out/.a.png.partial"), "x").unwrap();
    fs::remove_file(dir.path().join("out/sub/b.yaml")).unwrap();
    assert_eq!(run(&all).unwrap().placed.unwrap().written, 1);
    assert!(!dir.path().join("out/.a.png.partial").exists());
    assert_eq!(run(&all).unwrap().outcome, Outcome::Unchanged);
}

/// A line of the list about a file that a killed run was about to write.
fn pending(name: &str, method: &str, content: &str) -> String {
    let hash = hash_bytes(content);
    format!(
        "{{\"name\":\"{name}\",\"stage\":\"filter\",\"method\":{method},\"source\":null,\"file\":null,\"pending\":\"{hash}\"}}"
    )
}

#[cfg(unix)]
#[test]
fn after_a_kill_only_what_was_to_be_written_is_ours() {
    let dir = world();
    let all = copied(&dir, "tag:blurry>0.9", Method::Copy);
    let place = |content: &str, lines: String| {
        write(&dir, "out/a.png", content);
        write(&dir, "out/.vodka-files", lines);
    };
    let list = |what: &str| pending("a.png", "\"copy\"", what);
    // As long as the picture is; a text; a link; and without a word on what was to be written.
    place("x", list("a"));
    assert!(said(&all).contains("a.png` is in the way"));
    place("x", list("a").replace("\"copy\"", "null"));
    assert!(said(&all).contains("a.png` is in the way"));
    place("x", list("a").split(",\"pending").next().unwrap().to_owned() + "}");
    assert!(said(&all).contains("a.png` is in the way"));
    fs::remove_file(dir.path().join("out/a.png")).unwrap();
    std::os::unix::fs::symlink("/nowhere", dir.path().join("out/a.png")).unwrap();
    write(&dir, "out/.vodka-files", list("a"));
    assert!(said(&all).contains("a.png` is in the way"));
    fs::remove_file(dir.path().join("out/a.png")).unwrap();
    // What was to be written is replaced.
    place("old", list("old"));
    run(&all).unwrap();
    assert_eq!(read(&dir, "out/a.png"), "a");
    // Killed before a file of an earlier run was replaced: that is still ours.
    let text = read(&dir, "out/.vodka-files");
    let line = text.lines().find(|line| line.contains("a.png")).unwrap();
    let line = format!("{},\"pending\":\"{}\"}}", line.strip_suffix('}').unwrap(), hash_bytes("new"));
    write(&dir, "out/.vodka-files", line);
    write(&dir, "images/a.png", "new");
    run(&all).unwrap();
    assert_eq!(read(&dir, "out/a.png"), "new");
}

#[test]
fn captions_that_stay_behind_are_told() {
    let dir = world();
    fs::remove_file(dir.path().join("images/a.txt")).unwrap();
    fs::remove_file(dir.path().join("images/sub/b.txt")).unwrap();
    fs::remove_file(dir.path().join("images/sub/b.yaml")).unwrap();
    write(&dir, "images/metadata.jsonl", "{\"file_name\": \"a.png\", \"text\": \"a heart\"}\n");
    let report = run(&copied(&dir, "captioned", Method::Copy)).unwrap();
    assert_eq!(report.fit, 1);
    let note = "the captions of 1 pictures stay behind: they are in no file that goes with one";
    assert!(report.warnings.iter().any(|warning| warning.starts_with(note)), "{report}");
    let mut config = segments(&dir);
    config.segment[0].query = Some("captioned".to_owned());
    let report = divide(&config).unwrap();
    assert!(report.warnings.iter().any(|warning| warning.starts_with(note)), "{report}");
}

#[cfg(unix)]
#[test]
fn links_lead_to_the_pictures_and_captions_are_copies() {
    use std::os::unix::fs::MetadataExt;

    let dir = world();
    let node = |name: &str| fs::metadata(dir.path().join(name)).unwrap().ino();
    run(&copied(&dir, "tag:blurry", Method::HardLink)).unwrap();
    assert_eq!(node("out/sub/b.jpg"), node("images/sub/b.jpg"));
    assert_ne!(node("out/sub/b.txt"), node("images/sub/b.txt"));
    assert_eq!(run(&copied(&dir, "tag:blurry", Method::HardLink)).unwrap().outcome, Outcome::Unchanged);

    // Another way of putting them there replaces what the first has put there.
    run(&copied(&dir, "tag:blurry", Method::Symlink)).unwrap();
    let target = fs::read_link(dir.path().join("out/a.png")).unwrap();
    assert_eq!(target, fs::canonicalize(dir.path().join("images/a.png")).unwrap());
    assert_eq!(run(&copied(&dir, "tag:blurry", Method::Symlink)).unwrap().outcome, Outcome::Unchanged);
    run(&copied(&dir, "tag:blurry", Method::Copy)).unwrap();
    assert_ne!(node("out/a.png"), node("images/a.png"));
    assert_eq!(
        run(&copied(&dir, "tag:solo and not tag:solo", Method::Copy)).unwrap().placed.unwrap().removed,
        5
    );
    assert_eq!(read(&dir, "images/a.png"), "a", "the originals stay");
}

#[test]
fn what_a_query_needs_must_be_there() {
    let dir = world();
    let with = |change: &dyn Fn(&mut Dataset), query: &str| {
        let mut config = config(&dir, query, Action::Count);
        change(&mut config.dataset);
        said(&config)
    };
    let needs = |change: &dyn Fn(&mut Dataset), query: &str| {
        with(change, query).lines().next().unwrap().split_once(": ").unwrap().1.to_owned()
    };
    assert_eq!(needs(&|d| d.tags = None, "exists and tag:a"), "`tag` needs the tag table, and none is given");
    assert_eq!(
        needs(&|d| d.images = None, "exists"),
        "`exists` needs the folder of pictures, and none is given"
    );
    assert_eq!(
        needs(&|d| d.images = None, "tokens<3"),
        "`tokens` needs the folder of pictures, and none is given"
    );
    assert_eq!(
        needs(&|d| d.images = None, "bytes<3"),
        "`bytes` needs the folder of pictures, and none is given"
    );
    assert_eq!(needs(&|_| {}, "sharpness<3"), "`sharpness` needs the table of pictures, and none is given");
    assert_eq!(needs(&|_| {}, "duplicate"), "`duplicate` needs the table of pictures, and none is given");
    assert_eq!(
        needs(&|d| d.images = None, "width<3"),
        "`width` needs the table or the folder of pictures, and none is given"
    );
    assert_eq!(with(&|d| d.min_score = 2.0, "exists"), "min_score is 2, expected a score from 0 to 1");
    assert_eq!(
        with(&|d| *d = Dataset::default(), "exists"),
        "expected a folder of pictures, a tag table or a table of pictures, found none of them"
    );
    assert!(with(&|d| d.images = Some(dir.path().join("sub")), "exists").contains("sub"));
    assert!(with(&|_| {}, "tag:blury").starts_with("query, byte 0: no tag `blury`, did you mean `blurry`?"));
}

#[test]
fn a_query_comes_in_one_way() {
    let dir = world();
    let count = |query: Option<&str>, file: Option<&str>| {
        let query_file = file.map(|name| dir.path().join(name));
        let query = query.map(ToOwned::to_owned);
        run(&FilterConfig { query, query_file, ..config(&dir, "", Action::Count) })
    };
    write(&dir, "q.txt", "\u{feff}# sharp ones\r\nnot tag:blurry # these\r\nand exists\r\n");
    assert_eq!(count(None, Some("q.txt")).unwrap().fit, 1);
    let error = |query, file| count(query, file).unwrap_err();
    assert_eq!(error(None, None).to_string(), "expected either a query or a file with one, found neither");
    assert_eq!(
        error(Some("exists"), Some("q.txt")).to_string(),
        "expected either a query or a file with one, found both"
    );
    write(&dir, "q.txt", "exists\nand widht>3\n");
    let wrong = error(None, Some("q.txt"));
    assert!(wrong.to_string().starts_with("in `") && wrong.to_string().ends_with("q.txt`"), "{wrong}");
    let source = std::error::Error::source(&wrong).unwrap().to_string();
    assert!(
        source.starts_with("query, byte 11 (line 2): no field `widht`, did you mean `width`?"),
        "{source}"
    );
}

#[test]
fn bad_datasets_are_told() {
    let dir = world();
    let list = |query: &str| run(&config(&dir, query, Action::List)).unwrap();
    // Without a table, sizes come from the headers; these files are no pictures.
    let report = list("width>0");
    assert_eq!((report.outcome, report.unread.len()), (Outcome::Skipped, 3));
    let reason = "skipped `a.png`: expected PNG, JPEG, WebP, GIF or BMP, found the text \"a\"";
    assert!(report.to_string().contains(reason), "{report}");
    assert!(report.to_string().contains("note: the size of 3 pictures is not known"), "{report}");
    let report = list("tag:blurry<0.2");
    assert!(
        report.to_string().contains("note: `tag:blurry<0.2`: the tag table has no score below 0.4"),
        "{report}"
    );
    write(&dir, "tags.csv", TAGS.replace("a.png", "gone.png"));
    let report = list("tag:blurry");
    assert!(report.to_string().contains("note: 1 pictures of the tables are not in"), "{report}");
    assert!(report.to_string().contains("note: 1 of 3 pictures are not in the tag table"), "{report}");
    assert_eq!(list("not exists").listed, ["gone.png"]);
    let report = run(&copied(&dir, "tag:blurry and (exists or not exists)", Method::Copy)).unwrap();
    assert_eq!((report.outcome, report.missing), (Outcome::Skipped, vec!["gone.png".to_owned()]));
    let dataset = Dataset { lenient: true, ..dataset(&dir) };
    let report = run(&FilterConfig { dataset, ..config(&dir, "not tag:blury", Action::Count) }).unwrap();
    assert_eq!(report.fit, 3);
    assert!(report.warnings.contains(&"no tag `blury`, did you mean `blurry`?".to_owned()), "{report}");
    write(&dir, "tags.csv", TAGS.replace("sub/", "other/").replace("a.png", "other.png"));
    assert!(matches!(run(&config(&dir, "tag:blurry", Action::Count)), Err(Error::OtherImages { .. })));
    write(&dir, "tags.csv", TAGS.replace("0.95", "1.5"));
    assert!(matches!(run(&config(&dir, "tag:blurry", Action::Count)), Err(Error::Score { .. })));
    assert_eq!(listed(&dir, "captioned").len(), 2, "a table that is not asked is not read");
}

#[test]
fn captions_that_are_shared_or_no_files_are_errors() {
    let dir = world();
    write(&dir, "images/a.jpg", "other");
    let error = said(&config(&dir, "captioned", Action::Count));
    assert!(["a.jpg", "a.png", "a.txt"].iter().all(|name| error.contains(name)), "{error}");
    let error = said(&copied(&dir, "exists", Method::Copy));
    assert!(error.contains("share the caption"), "{error}");
    assert_eq!(listed(&dir, "exists").len(), 4, "what needs no captions is no matter");
    fs::remove_file(dir.path().join("images/a.jpg")).unwrap();
    fs::create_dir(dir.path().join("images/sub/c.txt")).unwrap();
    assert!(said(&config(&dir, "captioned", Action::Count)).contains("c.txt"));
    assert!(said(&copied(&dir, "exists", Method::Copy)).contains("c.txt"));
}

#[test]
fn an_output_among_the_pictures_is_refused() {
    let dir = world();
    let place = |output: PathBuf| config(&dir, "exists", Action::Place { output, method: Method::Copy });
    assert!(said(&place(dir.path().join("images/sub"))).contains("lie in each other"));
    assert!(said(&place(dir.path().to_path_buf())).contains("lie in each other"));
    let mut config = place(dir.path().join("out"));
    config.dataset.images = None;
    config.query = Some("tag:blurry".into());
    assert_eq!(said(&config), "copying needs the folder of pictures, and none is given");
}

#[test]
fn captions_without_pictures_are_hashed_and_edits_are_seen() {
    let dir = world();
    let output = dir.path().join("few.csv");
    let mut exclude = config(&dir, "tokens<=3", Action::Exclude { output });
    exclude.dataset.images = None;
    exclude.dataset.captions = Some(dir.path().join("images"));
    assert_eq!(run(&exclude).unwrap().fit, 2);
    assert_eq!(run(&exclude).unwrap().outcome, Outcome::Unchanged);
    write(&dir, "images/a.txt", "a heart, red, with an arrow");
    let report = run(&exclude).unwrap();
    assert_eq!((report.outcome, report.fit), (Outcome::Done, 1));
    assert_eq!(read(&dir, "few.csv"), "image,reason\nsub/c.jpg,tokens<=3\n");
}

#[test]
fn a_glob_may_be_as_long_as_it_likes() {
    let dir = world();
    for query in ["name:", "folder:"] {
        let query = format!("{query}{}*", "?".repeat(200_000));
        assert!(listed(&dir, &query).is_empty(), "{}", &query[..10]);
    }
    assert_eq!(listed(&dir, &format!("name:a{}.png", "*".repeat(200_000))), ["a.png"]);
}

#[test]
fn several_tests_of_the_same_tags_have_their_own_scores() {
    let dir = world();
    assert_eq!(listed(&dir, "tag:blurry>0.9 and tag:solo<0.9 and tag:*>0.9"), ["a.png"]);
    assert_eq!(listed(&dir, "tag:blurry=0 and tag:*l*>=0.7"), ["sub/c.jpg"]);
}

/// Sizes from headers are those of the decoded pictures, also of those that EXIF turns.
#[test]
fn sizes_come_from_headers() {
    let root = fixture("images/awkward");
    let mut count = 0;
    for path in vodka_images::find(&root).unwrap() {
        let path = root.join(path);
        if let Ok(picture) = vodka_images::decode(&path) {
            assert_eq!(vodka_images::size(&path).unwrap(), picture.size(), "{}", path.display());
            count += 1;
        }
    }
    assert!(count > 20, "{count}");
    let dir = tempfile::tempdir().unwrap();
    write(&dir, "a.png", "");
    let reason = |path: &Path| match vodka_images::size(path).unwrap_err() {
        vodka_images::Error::Picture { source, .. } => source.reason(),
        other => panic!("{other}"),
    };
    assert_eq!(reason(&dir.path().join("a.png")), "the file is empty");
    assert!(reason(&dir.path().join("b.png")).starts_with("the file cannot be read"));
}

#[test]
fn a_table_of_pictures_is_taken_and_checked() {
    let dir = world();
    let table = "image,width,height,sha256,phash,sharpness\n\
        a.png,10,20,,,1.5\nsub/b.jpg,30,20,,,2.5\n";
    write(&dir, "tags.pictures.csv", table);
    assert_eq!(listed(&dir, "aspect>1"), ["sub/b.jpg"]);
    let report = run(&config(&dir, "sharpness!=1.5", Action::List)).unwrap();
    assert_eq!(report.listed, ["sub/b.jpg"], "what is not known fits nothing");
    assert!(report.to_string().contains("note: the sharpness of 1 pictures is not known"), "{report}");
    let error = |text: &str| {
        write(&dir, "tags.pictures.csv", text);
        said(&config(&dir, "sharpness<1", Action::Count))
    };
    assert!(error("name,width\na.png,1\n").contains("expected a column `image`"));
    assert!(error("image,sharpness\na.png,1\na.png,2\n").ends_with("names the picture `a.png` twice"));
    let wrong = error("image,sha256,sharpness\na.png,xyz,1\n");
    assert!(
        wrong.ends_with("the `sha256` of the picture `a.png`: expected hexadecimal digits, found `xyz`"),
        "{wrong}"
    );
    assert!(error("image,sharpness\na.png,much\n").starts_with("cannot read the tag table"));
}

fn segments(dir: &TempDir) -> SegmentConfig {
    let segment = |name: &str, query: &str| Segment {
        name: name.to_owned(),
        query: Some(query.to_owned()),
        ..Segment::default()
    };
    SegmentConfig {
        dataset: dataset(dir),
        output: dir.path().join("segments"),
        method: Method::Copy,
        overlap: false,
        rest: Some("rest".to_owned()),
        settings: SettingsForm::Text,
        segment: vec![
            Segment { multiply: Some(2.5), ..segment("blurred", "tag:blurry>0.9") },
            Segment { cond_dropout: Some(0.1), flip_p: Some(0.0), ..segment("solo", "tag:solo") },
        ],
    }
}

fn divide(config: &SegmentConfig) -> Result<SegmentReport> {
    segment::run(&config.plan()?, &Interrupt::new(), &mut |_| {})
}

#[test]
fn the_first_segment_that_fits_has_the_picture() {
    let dir = world();
    let mut config = segments(&dir);
    let out = config.output.clone();
    let report = divide(&config).unwrap();
    let all = [
        "blurred/a.png",
        "blurred/a.txt",
        "blurred/multiply.txt",
        "rest/sub/b.jpg",
        "rest/sub/b.txt",
        "rest/sub/b.yaml",
        "segments.csv",
        "solo/sub/c.jpg",
        "solo/sub/cond_dropout.txt",
        "solo/sub/flip_p.txt",
    ];
    assert_eq!(files(&out), names(&all));
    assert_eq!(read(&dir, "segments/blurred/multiply.txt"), "2.5\n");
    assert_eq!(read(&dir, "segments/solo/sub/flip_p.txt"), "0\n");
    assert_eq!(
        read(&dir, "segments/segments.csv"),
        "segment,pictures,share,multiply,shown,shown_share,query\n\
         blurred,1,0.3333,2.5,2.5,0.5556,tag:blurry>0.9\nsolo,1,0.3333,1,1,0.2222,tag:solo\nrest,1,0.3333,1,1,0.2222,\n"
    );
    assert_eq!(report.outside, 0);
    assert_eq!(divide(&config).unwrap().outcome, Outcome::Unchanged);

    config.overlap = true;
    config.rest = None;
    config.settings = SettingsForm::LocalYaml;
    let report = divide(&config).unwrap();
    let all = [
        "blurred/a.png",
        "blurred/a.txt",
        "blurred/local.yaml",
        "segments.csv",
        "solo/a.png",
        "solo/a.txt",
        "solo/local.yaml",
        "solo/sub/c.jpg",
        "solo/sub/local.yaml",
    ];
    assert_eq!(files(&out), names(&all));
    assert_eq!(read(&dir, "segments/solo/sub/local.yaml"), "cond_dropout: 0.1\nflip_p: 0\n");
    assert_eq!((report.outside, report.segments[1].images), (1, 2));
    assert!(report.to_string().ends_with("\n1 of 3 pictures are in no segment"), "{report}");
}

#[test]
fn settings_of_the_rest_and_of_old_folders() {
    let dir = world();
    let mut config = segments(&dir);
    config.segment.push(Segment { name: "rest".into(), multiply: Some(0.5), ..Segment::default() });
    write(&dir, "images/sub/multiply.txt", "3");
    let report = divide(&config).unwrap();
    assert_eq!(read(&dir, "segments/rest/sub/multiply.txt"), "0.5\n");
    assert_eq!(report.segments[2].shown, 0.5);
    assert!(report.warnings[0].ends_with("sub` stays behind: multiply.txt"), "{report}");
    // A picture whose caption has the name of a setting.
    write(&dir, "images/multiply.png", "x");
    write(&dir, "images/multiply.txt", "a sign");
    write(&dir, "tags.csv", format!("{TAGS}multiply.png,1,blurry,general,1\n"));
    assert_eq!(
        divide(&config).unwrap_err().to_string(),
        "segment `blurred`: `blurred/multiply.txt` would be a caption and a setting"
    );
}

#[test]
fn wrong_segments_are_told() {
    let dir = world();
    let said = |change: &dyn Fn(&mut SegmentConfig)| {
        let mut config = segments(&dir);
        change(&mut config);
        divide(&config).unwrap_err().to_string()
    };
    assert_eq!(
        said(&|c| c.segment[1].name = "Blurred".into()),
        "segment `Blurred`: another segment has the same name"
    );
    assert_eq!(said(&|c| c.segment[0].name = "a/b".into()), "segment `a/b`: its name is no folder's");
    assert_eq!(said(&|c| c.rest = Some("..".into())), "segment `..`: its name is no folder's");
    assert_eq!(said(&|c| c.rest = Some("SOLO".into())), "segment `SOLO`: another segment has the same name");
    assert_eq!(said(&|c| c.segment[0].query = None), "segment `blurred`: it has no query");
    assert_eq!(said(&|c| c.rest = Some("solo".into())), "segment `solo`: it is the rest, and has a query");
    assert_eq!(
        said(&|c| c.segment[0].multiply = Some(0.0)),
        "segment `blurred`: `multiply` is 0, expected more than 0"
    );
    assert_eq!(
        said(&|c| c.segment[0].flip_p = Some(1.5)),
        "segment `blurred`: `flip_p` is 1.5, expected 0 to 1"
    );
    assert_eq!(said(&|c| c.segment.clear()), "expected a segment with a query, found none");
    assert_eq!(
        said(&|c| c.segment[0].query = Some("sharpness>1".into())),
        "in the query of the segment `blurred`"
    );
    assert_eq!(said(&|c| c.segment[0].query = Some("tag:".into())), "in the query of the segment `blurred`");
    assert!(said(&|c| c.output = dir.path().join("images/x")).contains("lie in each other"));
    assert_eq!(
        said(&|c| c.dataset.images = None),
        "segmenting needs the folder of pictures, and none is given"
    );
    write(&dir, "s.toml", "output = \"x\"\nsegmnet = []\n");
    let error = SegmentConfig::read(&dir.path().join("s.toml")).unwrap_err().to_string();
    assert!(error.ends_with("line 2, column 1: unknown field `segmnet`, did you mean `segment`?"), "{error}");
}

const PICTURES: &str = "image,width,height,sha256,phash,sharpness\n\
    a.png,100,100,H1,00000000ffffffff,5\n\
    b.png,100,100,H1,00000000ffffffff,5\n\
    c.png,200,100,H2,00000000fffffff0,1\n\
    d.png,100,100,H3,00000000ffffff00,9\n\
    e.png,100,100,H4,8000000000000000,0\n\
    f.png,100,100,H5,8000000000000000,0\n\
    g.png,100,100,H5,8000000000000000,0\n\
    h.png,100,100,H6,ffffffff00000000,3\n";

fn pictures() -> String {
    (1..=6).fold(PICTURES.to_owned(), |text, n| text.replace(&format!("H{n}"), &n.to_string().repeat(64)))
}

fn duplicates(dir: &TempDir) -> DuplicatesConfig {
    write(dir, "pictures.csv", pictures());
    DuplicatesConfig {
        pictures: dir.path().join("pictures.csv"),
        images: None,
        without: Vec::new(),
        distance: Some(4),
        output: dir.path().join("groups.csv"),
        exclude: Some(dir.path().join("spare.csv")),
    }
}

fn find(config: &DuplicatesConfig) -> Result<DuplicatesReport> {
    duplicates::run(&config.plan()?, &Interrupt::new(), &mut |_| {})
}

fn groups(report: &DuplicatesReport) -> Vec<(Kind, u32, Vec<&str>)> {
    let names = |group: &duplicates::Group| group.members.len();
    assert!(report.groups.iter().all(|group| names(group) > 1));
    let group = |group: &'_ duplicates::Group| (group.kind, group.largest_distance_from_kept);
    report
        .groups
        .iter()
        .map(|g| (group(g).0, group(g).1, g.members.iter().map(|member| member.image.as_str()).collect()))
        .collect()
}

#[test]
fn groups_are_chained_and_the_best_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = duplicates(&dir);
    let report = find(&config).unwrap();
    // c is 4 bits from a and from d, which are 8 from each other; c has the most pixels, d is sharper than a.
    assert_eq!(
        groups(&report),
        [(Kind::Near, 4, vec!["c.png", "d.png", "a.png", "b.png"]), (Kind::Exact, 0, vec!["f.png", "g.png"])]
    );
    assert_eq!((report.images, report.flat), (8, 3));
    assert!(report.to_string().contains("note: 3 pictures are flat"), "{report}");
    assert_eq!(
        read(&dir, "spare.csv"),
        "image,reason\nd.png,looks like c.png (4 bits apart)\na.png,looks like c.png (4 bits apart)\n\
         b.png,looks like c.png (4 bits apart)\ng.png,the same file as f.png\n"
    );
    let table = read(&dir, "groups.csv");
    let hash = "1".repeat(64);
    assert!(table.starts_with("group,kind,largest_distance_from_kept,keep,image,like,distance,"), "{table}");
    assert!(
        table.contains(&format!("\n1,near,4,0,a.png,c.png,4,100,100,5,,{hash},00000000ffffffff\n")),
        "{table}"
    );
    assert_eq!(find(&config).unwrap().outcome, Outcome::Unchanged);

    config.distance = Some(3);
    assert_eq!(groups(&find(&config).unwrap())[0], (Kind::Exact, 0, vec!["a.png", "b.png"]));
    config.distance = None;
    assert_eq!(groups(&find(&config).unwrap()).len(), 2);
    config.distance = Some(64);
    assert_eq!(groups(&find(&config).unwrap())[0].2.len(), 5, "all but the flat ones");
    config.without = vec![dir.path().join("without.txt")];
    write(&dir, "without.txt", "c.png\nh.png\n");
    config.distance = Some(4);
    assert_eq!(groups(&find(&config).unwrap())[0].2, ["a.png", "b.png"]);
}

#[test]
fn what_is_like_nothing_kept_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = duplicates(&dir);
    config.pictures = dir.path().join("chain.csv");
    // Each is 4 bits from the next; a and d are the best, and 12 bits apart.
    let table = "image,width,height,sha256,phash\n\
        a.png,90,90,1,00000000ffffffff\nb.png,10,10,2,00000000fffffff0\nc.png,20,20,3,00000000ffffff00\n\
        d.png,30,30,4,00000000fffff000\n";
    write(
        &dir,
        "chain.csv",
        (1..=4).fold(table.to_owned(), |text, n| {
            text.replace(&format!(",{n},"), &format!(",{},", n.to_string().repeat(64)))
        }),
    );
    let report = find(&config).unwrap();
    assert_eq!(groups(&report), [(Kind::Near, 4, vec!["a.png", "d.png", "c.png", "b.png"])]);
    assert_eq!(
        read(&dir, "spare.csv"),
        "image,reason\nc.png,looks like d.png (4 bits apart)\nb.png,looks like a.png (4 bits apart)\n"
    );
    let said = "keep `a.png`, `d.png`, like `c.png` (4), `b.png` (4): at most 4 bits from what is kept";
    assert!(report.to_string().contains(said), "{report}");
}

#[test]
fn the_folder_tells_sizes_and_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = duplicates(&dir);
    for (name, text) in [("a.png", "1"), ("b.png", "123"), ("new.png", ""), ("f.png", "1")] {
        write(&dir, &format!("images/{name}"), text);
    }
    config.images = Some(dir.path().join("images"));
    let report = find(&config).unwrap();
    assert_eq!(groups(&report), [(Kind::Exact, 0, vec!["b.png", "a.png"])], "the larger file is kept");
    assert_eq!((report.images, report.absent, report.unknown), (3, 5, 1));
}

#[test]
fn a_search_can_be_refused_and_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let config = duplicates(&dir);
    let said = |change: &dyn Fn(&mut DuplicatesConfig)| {
        let mut config = config.clone();
        change(&mut config);
        find(&config).unwrap_err().to_string()
    };
    assert_eq!(said(&|c| c.distance = Some(65)), "distance is 65, expected a number of bits from 0 to 64");
    assert!(said(&|c| c.output = c.pictures.clone()).ends_with("is the input"));
    assert!(said(&|c| c.exclude = Some(c.output.clone())).ends_with("groups.csv` is the input"));
    write(&dir, "bare.csv", "image,sha256\na.png,\n");
    assert!(said(&|c| c.pictures = dir.path().join("bare.csv")).ends_with("has no sha256 of any picture"));
    write(&dir, "bare.csv", format!("image,sha256\na.png,{}\n", "1".repeat(64)));
    assert!(said(&|c| c.pictures = dir.path().join("bare.csv")).ends_with("has no phash of any picture"));
    let interrupt = Interrupt::new();
    interrupt.raise();
    let report = duplicates::run(&config.plan().unwrap(), &interrupt, &mut |_| {}).unwrap();
    assert_eq!(report.outcome, Outcome::Interrupted);
    assert!(!config.output.exists());
}

#[test]
fn groups_are_written_once_and_nothing_of_others_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let config = duplicates(&dir);
    assert_eq!(find(&config).unwrap().outcome, Outcome::Done);
    let (groups, spare) = (read(&dir, "groups.csv"), read(&dir, "spare.csv"));
    assert_eq!(find(&config).unwrap().outcome, Outcome::Unchanged);
    // Somebody who goes through the list by hand keeps that.
    write(&dir, "spare.csv", "image,reason\n");
    let other = DuplicatesConfig { distance: Some(0), ..config.clone() };
    for config in [&config, &other] {
        let text = find(config).unwrap_err().to_string();
        assert!(text.contains("spare.csv` is in the way"), "{text}");
        assert_eq!(
            (read(&dir, "groups.csv"), read(&dir, "spare.csv")),
            (groups.clone(), "image,reason\n".into())
        );
    }
    write(&dir, "spare.csv", &spare);
    assert_eq!(find(&other).unwrap().outcome, Outcome::Done, "our own are replaced");
    assert_ne!(read(&dir, "groups.csv"), groups);
    write(&dir, "mine.csv", "mine");
    let onto = DuplicatesConfig { output: dir.path().join("mine.csv"), exclude: None, ..config.clone() };
    assert!(find(&onto).unwrap_err().to_string().contains("mine.csv` is in the way"));
    assert_eq!(read(&dir, "mine.csv"), "mine");
    let list = DuplicatesConfig { without: vec![dir.path().join("spare.csv")], ..config };
    assert!(matches!(list.plan(), Err(Error::OutputIsInput { .. })));
}

#[test]
fn what_another_stage_has_put_there_is_not_ours() {
    let dir = world();
    run(&copied(&dir, "tag:blurry", Method::Copy)).unwrap();
    let before = files(&dir.path().join("out"));
    // Segments of other pictures into the same folder: nothing of the copy is removed, by the one or the other.
    let divided = SegmentConfig { output: dir.path().join("out"), ..segments(&dir) };
    divide(&divided).unwrap();
    let both = files(&dir.path().join("out"));
    assert!(before.is_subset(&both) && before.len() < both.len());
    run(&copied(&dir, "tag:blurry>0.9", Method::Copy)).unwrap();
    let after = files(&dir.path().join("out"));
    let segments: BTreeSet<_> = both.difference(&before).cloned().collect();
    assert!(segments.is_subset(&after), "{after:?}");
    assert!(!before.is_subset(&after), "what the copy no longer wants goes");
}
