//! Captions read from and written to every format, and each way in which they can be put together.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, fs};

use tempfile::TempDir;
use vodka_captions::{
    CaptionFormat, CaptionSource, Error, Position, Result,
    caption::{self, CaptionConfig, CaptionDiff, CaptionReport, Missing, Style},
    pictures, read_captions,
    undo::{self, UndoConfig, UndoReport},
};
use vodka_stage::{Interrupt, Outcome};

const TAGS: &str = "image,tag_id,tag,category,score\n\
    a.png,1,blurry,general,0.9\na.png,2,hatsune_miku_(append),character,0.8\na.png,3,solo,general,0.4\n\
    a.png,4,general,rating,0.7\na.png,5,explicit,rating,0.2\n\
    sub/b.png,1,blurry,general,0.5\nsub/b.png,3,solo,general,0.45\n";

const SELECTION: &str = "name,category,include,threshold\ngeneral,9,0,\nexplicit,9,0,\nblurry,0,1,\n\
    hatsune_miku_(append),4,1,\nsolo,0,1,\n";

/// Two pictures without captions, a table and a selection.
fn world() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut png = Vec::new();
    let mut encoder = png::Encoder::new(&mut png, 1, 1);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.write_header().unwrap().write_image_data(&[7]).unwrap();
    write(&dir, "images/a.png", &png);
    write(&dir, "images/sub/b.png", &png);
    write(&dir, "tags.csv", TAGS);
    write(&dir, "selection.csv", SELECTION);
    dir
}

fn write(dir: &TempDir, name: &str, bytes: impl AsRef<[u8]>) {
    let path = dir.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
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

fn source(format: CaptionFormat) -> CaptionSource {
    CaptionSource { format, ..CaptionSource::default() }
}

fn auto() -> CaptionSource {
    CaptionSource { auto: true, ..CaptionSource::default() }
}

fn in_place(dir: &TempDir, source: CaptionSource) -> CaptionConfig {
    CaptionConfig { output: None, in_place: true, max_tags: 1, source, ..config(dir) }
}

fn run(config: &CaptionConfig) -> Result<CaptionReport> {
    caption::run(&config.plan()?, &Interrupt::new(), &mut |_| {})
}

fn said(config: &CaptionConfig) -> String {
    run(config).unwrap_err().to_string()
}

fn undo(dir: &TempDir, force: bool) -> Result<UndoReport> {
    let plan = UndoConfig { images: dir.path().join("images"), force }.plan()?;
    undo::run(&plan, &Interrupt::new(), &mut |_| {})
}

fn diff_of(dir: &TempDir) -> CaptionDiff {
    caption::diff(&in_place(dir, auto()).plan().unwrap(), &Interrupt::new()).unwrap()
}

fn with_captions() -> TempDir {
    let dir = world();
    write(&dir, "images/a.txt", "a heart");
    write(&dir, "images/sub/b.caption", "a star");
    dir
}

/// What the pictures' captions are, as a source has them.
fn found(dir: &TempDir, source: &CaptionSource) -> BTreeMap<String, String> {
    let root = dir.path().join("images");
    let found = read_captions(source, &root, &pictures(&root).unwrap()).unwrap();
    found.by_image.into_iter().map(|(image, found)| (image, found.caption.text)).collect()
}

/// The caption of `a.png`, made with this style from `a heart`.
fn styled(position: Position, style: Style) -> String {
    let dir = world();
    write(&dir, "images/a.txt", "a heart");
    run(&CaptionConfig { position, style, ..config(&dir) }).unwrap();
    read(&dir, "captions/a.txt")
}

#[test]
fn thresholds_of_tags_go_before_columns_and_categories() {
    let style = |thresholds: &[(&str, f32)], categories: &[(&str, f32)]| {
        let map =
            |list: &[(&str, f32)]| list.iter().map(|(name, score)| ((*name).to_owned(), *score)).collect();
        Style { thresholds: map(thresholds), category_thresholds: map(categories), ..Style::default() }
    };
    let with = |selection: &str, style: Style| {
        let dir = world();
        write(&dir, "images/a.txt", "a heart");
        write(&dir, "selection.csv", selection);
        run(&CaptionConfig { style, ..config(&dir) }).map(|_| read(&dir, "captions/a.txt"))
    };
    assert_eq!(with(SELECTION, style(&[], &[])).unwrap(), "blurry, hatsune miku (append), solo, a heart\n");
    assert_eq!(with(SELECTION, style(&[], &[("character", 0.85)])).unwrap(), "blurry, solo, a heart\n");
    assert_eq!(
        with(SELECTION, style(&[("Hatsune miku (append)", 0.8)], &[("4", 0.85), ("general", 0.95)])).unwrap(),
        "hatsune miku (append), a heart\n"
    );
    let columns =
        SELECTION.replace("blurry,0,1,", "blurry,0,1,0.95").replace("solo,0,1,", "solo,0,1,\"0,2\"");
    assert_eq!(
        with(&columns, style(&[], &[("general", 1.0)])).unwrap(),
        "hatsune miku (append), solo, a heart\n"
    );
    assert_eq!(
        with(&columns, style(&[("blurry", 0.9)], &[])).unwrap(),
        "blurry, hatsune miku (append), solo, a heart\n"
    );

    let said = |selection: &str, style: Style| with(selection, style).unwrap_err().to_string();
    assert!(said(SELECTION, style(&[("blury", 0.5)], &[])).ends_with("did you mean `blurry`?"));
    assert_eq!(
        said(SELECTION, style(&[], &[("persons", 0.5)])),
        "category threshold: expected character, general, rating, found \"persons\""
    );
    let error = said(&SELECTION.replace("solo,0,1,", "solo,0,1,high"), style(&[], &[]));
    assert!(
        error.ends_with(
            "line 6, column `threshold`: expected a score from 0 to 1, or nothing, found \"high\""
        ),
        "{error}"
    );
}

#[test]
fn captions_are_put_together_as_the_style_says() {
    let text = |text: &str| text.to_owned();
    let default = Style::default;
    let fixed = || vec![text("sks_style")];
    for (position, style, expected) in [
        (Position::Replace, default(), "blurry, hatsune miku (append), solo\n"),
        (
            Position::Append,
            Style { separator: text(" | "), ..default() },
            "a heart | blurry | hatsune miku (append) | solo\n",
        ),
        (
            Position::Prepend,
            Style { escape: true, ..default() },
            "blurry, hatsune miku \\(append\\), solo, a heart\n",
        ),
        (
            Position::Append,
            Style { fixed: fixed(), ..default() },
            "sks_style, a heart, blurry, hatsune miku (append), solo\n",
        ),
        (
            Position::Prepend,
            Style {
                fixed: fixed(),
                template: Some(text(
                    "{{ tags | join(', ') }}. {{ caption }}; {{ rating }}/{{ characters | first }} {{ stem }}\n{{ all_tags | length }}",
                )),
                ..default()
            },
            "sks_style, blurry, hatsune miku (append), solo. a heart; general/hatsune miku (append) a 3\n",
        ),
    ] {
        assert_eq!(styled(position, style), expected);
    }
    let dir = world();
    write(&dir, "images/a.txt", "a heart, {tags}, in red");
    write(&dir, "images/sub/b.txt", "no marker");
    let report = run(&CaptionConfig { position: Position::Marker, max_tags: 1, ..config(&dir) }).unwrap();
    assert_eq!(read(&dir, "captions/a.txt"), "a heart, blurry, in red\n");
    assert_eq!(report.skipped[0].reason, "no `{tags}` in the caption");
}

#[test]
fn wrong_styles_are_refused_by_the_plan() {
    let dir = world();
    let said = |style: Style| CaptionConfig { style, ..config(&dir) }.plan().unwrap_err().to_string();
    let text = |text: &str| text.to_owned();
    assert_eq!(
        said(Style { separator: text(",\n"), ..Style::default() }),
        "separator: expected text on one line, found \",\\n\""
    );
    assert_eq!(
        said(Style { marker: text(" "), ..Style::default() }),
        "marker: expected text on one line, found \" \""
    );
    assert_eq!(
        said(Style { fixed: vec![text("a\nb")], ..Style::default() }),
        "fixed: expected text on one line, found \"a\\nb\""
    );
}

#[test]
fn captions_are_found_wherever_they_are() {
    use CaptionFormat::{Caption, Csv, Ed2Yaml, FileName, Jsonl, KohyaJson, Png};
    let both = |a: &str, b: &str| {
        BTreeMap::from(
            [("a.png", a), ("sub/b.png", b)].map(|(image, text)| (image.to_owned(), text.to_owned())),
        )
    };
    for (format, files, expected) in [
        (Caption, vec![("a.caption", "a heart\n"), ("sub/b.caption", "a\nstar")], both("a heart", "a star")),
        (
            Ed2Yaml,
            vec![("a.yaml", "main_prompt: a heart\ntags: [x, y]"), ("sub/b.yml", "caption: a star, z")],
            both("a heart, x, y", "a star, z"),
        ),
        (
            KohyaJson,
            vec![(
                "meta_cap.json",
                "{\"a\": {\"caption\": \"a heart\", \"tags\": \"x\"}, \"/elsewhere/sub/b.png\": {\"tags\": \"a star\"}}",
            )],
            both("a heart, x", "a star"),
        ),
        (
            Jsonl,
            vec![(
                "metadata.jsonl",
                "{\"file_name\": \"a.png\", \"text\": \"a heart\"}\n\n{\"file_name\": \"sub/b.png\", \"text\": \"a star\"}\n",
            )],
            both("a heart", "a star"),
        ),
        (
            Csv,
            vec![(
                "metadata.csv",
                "\u{feff}id;Caption;Image\r\n1;\"a \"\"heart\"\"; red\";a.png\r\n2;a star;sub\\b.png\r\n",
            )],
            both("a \"heart\"; red", "a star"),
        ),
        (FileName, vec![], both("a", "b")),
        (Png, vec![], BTreeMap::new()),
    ] {
        let dir = world();
        files.iter().for_each(|(name, text)| write(&dir, &format!("images/{name}"), text));
        assert_eq!(found(&dir, &source(format)), expected, "{format}");
        if !matches!(format, FileName | Png) {
            assert_eq!(found(&dir, &auto()), expected, "{format}, found out");
        }
    }
}

#[test]
fn what_says_two_things_is_an_error_that_names_both() {
    let dir = world();
    write(&dir, "images/a.txt", "a heart");
    write(&dir, "images/a.caption", "a heart\r\n");
    let auto = CaptionConfig { source: auto(), ..config(&dir) };
    assert_eq!(run(&auto).unwrap().captions, 1, "the same twice is no contradiction");
    write(&dir, "images/a.caption", "a star");
    let error = said(&auto).replace(&dir.path().display().to_string(), "");
    assert_eq!(
        error,
        "two captions for the picture `a.png`: `/images/a.txt` and `/images/a.caption`; keep one of them"
    );
    assert_eq!(run(&config(&dir)).unwrap().captions, 1, "only auto looks at both");

    write(&dir, "images/meta_cap.json", "{\"a\": {\"caption\": \"x\"}, \"a.png\": {\"caption\": \"y\"}}");
    let kohya = CaptionConfig { source: source(CaptionFormat::KohyaJson), ..config(&dir) };
    let error = said(&kohya).replace(&dir.path().display().to_string(), "");
    assert_eq!(
        error,
        "two captions for the picture `a.png`: `/images/meta_cap.json` (key `a`) and `/images/meta_cap.json` (key `a.png`); keep one of them"
    );
    write(&dir, "images/meta_cap.json", "{\"a\": {\"caption\": \"x\"}, \"b\": {}}");
    write(&dir, "images/a.jpg", "");
    let error = said(&CaptionConfig { format: Some(CaptionFormat::Csv), ..kohya });
    assert!(
        error.ends_with("meta_cap.json` key `a` names `a`, which may be any of `a.jpg`, `a.png`"),
        "{error}"
    );
}

#[test]
fn broken_tables_are_errors_with_their_place() {
    for (format, name, text, expected) in [
        (
            CaptionFormat::KohyaJson,
            "meta_cap.json",
            "{\n\"a\": }",
            "meta_cap.json` line 2: expected an object with a member for each picture, found expected value at line 2 column 6",
        ),
        (
            CaptionFormat::KohyaJson,
            "meta_cap.json",
            "{\"a\": \"b\"}",
            "meta_cap.json` key `a`: expected an object with `caption` or `tags`, found \"b\"",
        ),
        (
            CaptionFormat::KohyaJson,
            "meta_cap.json",
            "{\"a\": {\"caption\": 3}}",
            "meta_cap.json` key `a`: expected text, found `caption`: 3",
        ),
        (
            CaptionFormat::Jsonl,
            "metadata.jsonl",
            "{\"file_name\": \"a.png\", \"text\": \"x\"}\n[]\n",
            "metadata.jsonl` line 2: expected an object, found another value",
        ),
        (
            CaptionFormat::Jsonl,
            "metadata.jsonl",
            "{\"file_name\": \"a.png\", \"label\": \"x\"}\n",
            "expected a column of captions (caption_column): text, caption, prompt, description, found the columns file_name, label",
        ),
        (
            CaptionFormat::Csv,
            "metadata.csv",
            "image,text,caption\na.png,x,y\n",
            "expected one column of captions (caption_column), found the columns image, text, caption",
        ),
        (CaptionFormat::Ed2Yaml, "a.yaml", "tags: x", "a.yaml` `tags`: expected a list, found `x`"),
        (CaptionFormat::Parquet, "metadata.parquet", "PAR1", "metadata.parquet`"),
    ] {
        let dir = world();
        write(&dir, &format!("images/{name}"), text);
        let error = said(&CaptionConfig { source: source(format), ..config(&dir) });
        assert!(error.ends_with(expected), "{error}");
        assert!(!dir.path().join("captions").exists());
    }
}

#[test]
fn encodings_are_guessed_and_reported_or_as_the_user_says() {
    let dir = world();
    write(&dir, "images/a.txt", b"ein sch\xf6nes Herz");
    write(&dir, "images/sub/b.txt", "\u{feff}ein Stern");
    let report = run(&config(&dir)).unwrap();
    assert_eq!(report.guessed.len(), 1);
    assert_eq!(report.guessed[0].encoding, "windows-1252");
    assert!(report.to_string().contains("a.txt`: not UTF-8, taken for windows-1252"), "{report}");
    assert_eq!(read(&dir, "captions/a.txt"), "blurry, hatsune miku (append), solo, ein schönes Herz\n");

    let cyrillic = CaptionSource { encoding: Some("cp1251".to_owned()), ..CaptionSource::default() };
    let report = run(&CaptionConfig { source: cyrillic, max_tags: 0, ..config(&dir) }).unwrap();
    assert_eq!((report.guessed.len(), read(&dir, "captions/a.txt")), (0, "ein schцnes Herz\n".to_owned()));

    run(&in_place(&dir, CaptionSource::default())).unwrap();
    assert_eq!(read(&dir, "images/a.txt"), "blurry, ein schönes Herz\n");
    undo(&dir, false).unwrap();
    assert_eq!(fs::read(dir.path().join("images/a.txt")).unwrap(), b"ein sch\xf6nes Herz", "nothing is lost");
}

#[test]
fn in_a_table_nothing_changes_but_the_captions() {
    let kohya = "{\n    \"a\": {\"n\": 1.50, \"caption\": \"a heart\", \"tags\": \"x\"},\n\t\"gone\": {\"caption\": \"?\"},\n  \"sub/b\": {  \"train_resolution\": [512, 512]}\n}";
    let dir = world();
    write(&dir, "images/meta_cap.json", kohya);
    let config =
        CaptionConfig { missing: Missing::Empty, ..in_place(&dir, source(CaptionFormat::KohyaJson)) };
    let report = run(&config).unwrap();
    assert_eq!((report.unknown, report.captions), (vec!["gone".to_owned()], 2));
    let expected = kohya.replace("\"a heart\"", "\"blurry, a heart\"") + "\n";
    let added = expected.replace("\n}\n", ",\n  \"sub/b\": {\n    \"caption\": \"blurry\"\n  }\n}\n");
    let now = read(&dir, "images/meta_cap.json");
    assert!(
        now == added || now == expected.replace("{  \"train", "{\"caption\": \"blurry\",   \"train"),
        "{now}"
    );
    assert_eq!(run(&config).unwrap().outcome, Outcome::Unchanged);
    run(&CaptionConfig { position: Position::Append, ..config }).unwrap();
    assert!(read(&dir, "images/meta_cap.json").contains("\"caption\": \"a heart\", \"tags\": \"x, blurry\""));
    undo(&dir, false).unwrap();
    assert_eq!(read(&dir, "images/meta_cap.json"), kohya);

    let csv = "\u{feff}id;Caption;image\r\n1;\"a; heart\";a.png\r\n2;;gone.png\r\n";
    write(&dir, "elsewhere/my.csv", csv);
    let source =
        CaptionSource { file: Some(dir.path().join("elsewhere/my.csv")), ..source(CaptionFormat::Csv) };
    let config = CaptionConfig { missing: Missing::Empty, ..in_place(&dir, source.clone()) };
    run(&config).unwrap();
    let expected =
        "\u{feff}id;Caption;image\r\n1;\"blurry, a; heart\";a.png\r\n2;;gone.png\r\n;blurry;sub/b.png\r\n";
    assert_eq!(read(&dir, "elsewhere/my.csv"), expected);
    assert_eq!(undo(&dir, false).unwrap().restored, 1);
    assert_eq!(read(&dir, "elsewhere/my.csv"), csv);
    run(&CaptionConfig { source, format: Some(CaptionFormat::Csv), max_tags: 1, ..self::config(&dir) })
        .unwrap();
    assert_eq!(read(&dir, "captions/my.csv"), expected.replace(";blurry;sub/b.png\r\n", ""));
}

#[test]
fn captions_may_lie_in_a_folder_apart() {
    let dir = world();
    write(&dir, "images/a.txt", "beside the picture");
    write(&dir, "apart/a.txt", "apart");
    write(&dir, "apart/sub/b.txt", "also apart");
    let folder = Some(dir.path().join("apart"));
    let source = CaptionSource { folder: folder.clone(), ..CaptionSource::default() };
    let config = CaptionConfig { source: source.clone(), max_tags: 1, ..config(&dir) };
    run(&config).unwrap();
    assert_eq!(read(&dir, "captions/a.txt"), "blurry, apart\n");
    assert!(read(&dir, "captions/sub/b.txt").contains("also apart"));
    assert_eq!(run(&config).unwrap().outcome, Outcome::Unchanged);
    write(&dir, "apart/a.txt", "other words");
    run(&config).unwrap();
    assert_eq!(read(&dir, "captions/a.txt"), "blurry, other words\n");

    let said = |config: &CaptionConfig| run(config).unwrap_err().to_string();
    let png = CaptionSource { format: CaptionFormat::Png, ..source.clone() };
    assert!(
        said(&CaptionConfig { source: png, ..config.clone() })
            .contains("source folder: expected one only with txt")
    );
    assert!(said(&in_place(&dir, source)).contains("source folder: expected none: in place"));
    assert!(said(&CaptionConfig { output: folder, ..config.clone() }).contains("lie in each other"));
    let gone = CaptionSource { folder: Some(dir.path().join("gone")), ..CaptionSource::default() };
    assert!(said(&CaptionConfig { source: gone, ..config }).contains("cannot read"));
}

#[test]
fn pictures_can_hold_captions_in_them_and_in_their_names() {
    let dir = world();
    write(&dir, "images/a.txt", "a heart ♥");
    write(&dir, "images/c.jpg", "");
    write(&dir, "images/c.txt", "a cross");
    let png = CaptionConfig { format: Some(CaptionFormat::Png), max_tags: 1, ..config(&dir) };
    let report = run(&png).unwrap();
    let reasons: Vec<_> = report.skipped.iter().map(|skipped| skipped.reason.as_str()).collect();
    assert_eq!(reasons, ["only PNG pictures can hold a caption", "no caption"]);
    let images = dir.path().join("images");
    let read_back = |format| {
        let found = read_captions(&source(format), &dir.path().join("captions"), &pictures(&images).unwrap());
        found.unwrap().by_image.remove("a.png").map(|found| found.caption.text)
    };
    assert_eq!(read_back(CaptionFormat::Png).unwrap(), "blurry, a heart ♥");
    assert_eq!(run(&png).unwrap().outcome, Outcome::Unchanged);

    let names = CaptionConfig { format: Some(CaptionFormat::FileName), max_tags: 1, ..config(&dir) };
    run(&names).unwrap();
    assert!(dir.path().join("captions/blurry, a heart ♥_a.png").is_file());
    assert!(dir.path().join("captions/a cross_c.jpg").is_file());
    assert!(
        !dir.path().join("captions/a.png").exists(),
        "what an earlier run wrote and nobody wants is gone"
    );

    let dir = world();
    write(&dir, "images/a.png", "not a PNG");
    let report =
        run(&CaptionConfig { missing: Missing::Empty, ..in_place(&dir, source(CaptionFormat::Png)) })
            .unwrap();
    assert_eq!((report.captions, report.skipped.len()), (1, 1));
    assert_eq!(report.skipped[0].reason, "it is another format, or cut off");
    let back = caption::diff(&in_place(&dir, source(CaptionFormat::Png)).plan().unwrap(), &Interrupt::new())
        .unwrap();
    let shown = back.to_string().replace(&dir.path().display().to_string(), "");
    assert!(
        shown.starts_with("/images/sub/b.png: the original is put back\n1 captions would change, 0 are"),
        "{shown}"
    );
    let text = CaptionDiff { coloured: true, ..diff_of(&with_captions()) };
    assert!(text.to_string().contains("\n- a heart\n+ \u{1b}[32mblurry\u{1b}[0m, a heart\n"), "{text}");
}

#[test]
fn auto_writes_each_caption_where_it_was() {
    let dir = world();
    write(&dir, "images/a.caption", "a heart");
    write(&dir, "images/sub/b.yaml", "rating: 2\nmain_prompt: a star\n");
    write(&dir, "images/a red house_01.png", "");
    write(&dir, "tags.csv", format!("{TAGS}a red house_01.png,1,blurry,general,0.5\n"));
    let config = in_place(&dir, auto());
    assert_eq!(run(&config).unwrap().captions, 3);
    assert_eq!(read(&dir, "images/a.caption"), "blurry, a heart\n");
    assert_eq!(
        read(&dir, "images/sub/b.yaml"),
        "rating: 2\nmain_prompt: blurry, a star\n".replace("blurry, a star", "blurry") + "tags:\n- a star\n"
    );
    assert_eq!(read(&dir, "images/a red house_01.txt"), "blurry, a red house\n");
    assert_eq!(run(&config).unwrap().outcome, Outcome::Unchanged);
    let report = undo(&dir, false).unwrap();
    assert_eq!((report.restored, report.removed), (2, 1));
    assert!(!dir.path().join("images/a red house_01.txt").exists());
    assert_eq!(undo(&dir, false).unwrap().outcome, Outcome::Unchanged);
}

#[test]
fn what_may_not_be_changed_is_not() {
    let dir = world();
    write(&dir, "images/a.txt", "a heart");
    write(&dir, "images/sub/b.txt", "a star");
    let config = in_place(&dir, CaptionSource::default());
    let read_only = |name: &str, yes: bool| {
        let path = dir.path().join(name);
        let mut permissions = fs::metadata(&path).unwrap().permissions();
        permissions.set_readonly(yes);
        fs::set_permissions(&path, permissions).unwrap();
    };
    for name in ["images/sub/b.txt", "images/sub"] {
        read_only(name, true);
        let error = said(&config);
        assert!(
            error.ends_with(&format!(
                "{name}` is read-only: allow writing, or write the captions to another folder"
            )),
            "{error}"
        );
        read_only(name, false);
        assert_eq!(read(&dir, "images/a.txt"), "a heart", "nothing is written where something cannot be");
    }
    write(&dir, "images/a.txt.orig", "a merge's leftover");
    assert!(matches!(run(&config), Err(Error::ForeignOriginal { .. })));
    fs::remove_file(dir.path().join("images/a.txt.orig")).unwrap();
    run(&config).unwrap();
    read_only("images/a.txt", true);
    assert!(matches!(undo(&dir, false), Err(Error::ReadOnly { .. })));
    assert_eq!(read(&dir, "images/sub/b.txt"), "blurry, a star\n");
    read_only("images/a.txt", false);
    assert_eq!(undo(&dir, false).unwrap().restored, 2);
}

#[test]
fn captions_in_a_folder_are_nothing_to_undo() {
    let dir = world();
    write(&dir, "images/a.txt", "a heart");
    run(&config(&dir)).unwrap();
    let plan = UndoConfig { images: dir.path().join("captions"), force: true }.plan().unwrap();
    let report = undo::run(&plan, &Interrupt::new(), &mut |_| {}).unwrap();
    assert_eq!(report.outcome, Outcome::Unchanged);
    assert_eq!(
        run(&config(&dir)).unwrap().outcome,
        Outcome::Unchanged,
        "the list and the captions are there"
    );
}

#[test]
fn a_row_without_a_caption_gets_one_and_stays_one() {
    let dir = world();
    let table = r#"{"a": {"train_resolution": [512, 512]}, "b": {"caption": "a tree"}}"#;
    write(&dir, "images/meta_cap.json", table);
    let config =
        CaptionConfig { missing: Missing::Empty, ..in_place(&dir, source(CaptionFormat::KohyaJson)) };
    run(&config).unwrap();
    let text = read(&dir, "images/meta_cap.json");
    assert_eq!(text.matches("\"a\"").count(), 1, "{text}");
    assert!(text.contains("train_resolution") && text.contains("blurry"), "{text}");
}

#[test]
fn every_table_that_is_read_counts() {
    let dir = world();
    write(&dir, "images/meta_cap.json", r#"{"a": {"caption": "one"}}"#);
    write(&dir, "images/captions.csv", "image,caption\nb.png,two\n");
    let config = CaptionConfig { source: auto(), ..config(&dir) };
    assert_ne!(run(&config).unwrap().outcome, Outcome::Unchanged);
    assert_eq!(run(&config).unwrap().outcome, Outcome::Unchanged);
    write(&dir, "images/meta_cap.json", r#"{"a": {"caption": "three"}}"#);
    assert_ne!(run(&config).unwrap().outcome, Outcome::Unchanged);
}

#[test]
fn a_table_about_something_else_is_no_matter_for_auto() {
    let dir = with_captions();
    let before = found(&dir, &auto());
    write(&dir, "images/captions.csv", "id,price\n1,2\n");
    write(&dir, "images/metadata.csv", "id,price\n1,2\n");
    assert_eq!(found(&dir, &auto()), before);
}

#[test]
fn the_text_of_jpeg_pictures_is_read_and_not_written() {
    let dir = with_captions();
    // An EXIF segment with a user comment, as A1111 writes its parameters.
    let text = "a cross\nNegative prompt: blurry\nSteps: 20, Seed: 1";
    let mut exif = b"Exif\0\0II\x2a\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x1a\0\0\0\0\0\0\0".to_vec();
    exif.extend(b"\x01\0\x86\x92\x07\0");
    exif.extend((text.len() as u32 + 8).to_le_bytes());
    exif.extend(b"\x2c\0\0\0\0\0\0\0ASCII\0\0\0");
    exif.extend(text.as_bytes());
    let jpeg =
        [b"\xff\xd8\xff\xe1", &(exif.len() as u16 + 2).to_be_bytes()[..], &exif, b"\xff\xda\0\x02"].concat();
    write(&dir, "images/c.jpg", &jpeg);
    write(&dir, "tags.csv", format!("{TAGS}c.jpg,1,blurry,general,0.9\n"));
    run(&CaptionConfig { source: auto(), max_tags: 1, ..config(&dir) }).unwrap();
    assert_eq!(read(&dir, "captions/c.txt"), "blurry, a cross\n");
    // In place it becomes a file beside the picture.
    run(&in_place(&dir, auto())).unwrap();
    assert_eq!(read(&dir, "images/c.txt"), "blurry, a cross\n");
    assert_eq!(fs::read(dir.path().join("images/c.jpg")).unwrap(), jpeg);
    undo(&dir, false).unwrap();
    let report = run(&in_place(&dir, source(CaptionFormat::Png))).unwrap();
    assert!(report.skipped.iter().any(|skipped| {
        skipped.image == "c.jpg" && skipped.reason == "only PNG pictures can hold a caption"
    }));
}
