//! Whatever captions and tags say, every format gives it back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fs, path::Path};

use proptest::prelude::*;
use tempfile::TempDir;
use vodka_captions::{
    CaptionFormat, CaptionSource, IMAGE_PRODUCTION, Joining, KAOMOJI, Position, canonical,
    caption::{self, CaptionConfig, Missing, Style},
    pictures, read_caption, read_captions,
};
use vodka_stage::{Interrupt, Outcome};

/// Names of the kinds that the vocabularies of WD v2 and v3 have, with everything in them that formats stumble over.
const NAMES: [&str; 28] = [
    "1girl",
    "long_hair",
    ";)",
    ":3",
    ":d",
    "^_^",
    "o_o",
    "|_|",
    "||_||",
    "<|>_<|>",
    "(o)_(o)",
    r"\m/",
    r"\||/",
    "don't_say_\"lazy\"",
    "'",
    "\"",
    "poster_(object)",
    "hatsune_miku_(append)",
    "re:zero_kara_hajimeru_isekai_seikatsu",
    "@_@",
    "&",
    "#",
    "- -",
    "yes",
    "null",
    "3:00",
    "pokémon",
    "東方",
];

/// The formats that can hold any caption.
const FORMATS: [CaptionFormat; 8] = [
    CaptionFormat::Txt,
    CaptionFormat::Caption,
    CaptionFormat::Ed2Yaml,
    CaptionFormat::KohyaJson,
    CaptionFormat::Jsonl,
    CaptionFormat::Parquet,
    CaptionFormat::Csv,
    CaptionFormat::Png,
];

const PICTURE: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0:~\x9bU\
    \0\0\0\nIDATx\x9cca\x07\0\0\x11\0\x0c\x93\x0c\xfe\xe9\0\0\0\0IEND\xaeB`\x82";

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(NAMES.to_vec()).prop_map(canonical),
        "[a-z0-9_()'\"\\\\/;:^<>|@=+.~!?&#%*{}\\[\\]é東-]{0,12}[a-z;)^]".prop_map(|name| canonical(&name)),
    ]
}

/// What users write: anything but the character 0, which no text file has.
fn words() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ -~]{0,60}",
        "(a|, |,|\\(|\\)|\\\\|\"|'|: |#|- |\\{|\\}|\n|\r\n|\t|é|東|♥|_|=|~){0,20}",
        "[^\0]{0,40}",
    ]
}

/// A picture for each caption, with the same tags.
fn world(captions: &[String], tags: &[String]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("images/sub 1")).unwrap();
    let mut table = csv::Writer::from_path(at("tags.csv")).unwrap();
    table.write_record(["image", "tag_id", "tag", "category", "score"]).unwrap();
    let mut selection = csv::Writer::from_path(at("selection.csv")).unwrap();
    selection.write_record(["name", "include"]).unwrap();
    for tag in tags {
        selection.write_record([tag, "1"]).unwrap();
    }
    for (number, caption) in captions.iter().enumerate() {
        let image = if number == 0 { "a, \"b\"; c.png".to_owned() } else { format!("sub 1/{number}.png") };
        let path = at("images").join(&image);
        fs::write(&path, PICTURE).unwrap();
        fs::write(path.with_extension("txt"), caption).unwrap();
        for (place, tag) in tags.iter().enumerate() {
            let score = (0.9 - 0.01 * place as f32).to_string();
            table.write_record([&image, "0", tag, "general", &score]).unwrap();
        }
    }
    table.flush().unwrap();
    selection.flush().unwrap();
    dir
}

fn config(root: &Path, format: CaptionFormat, escape: bool) -> CaptionConfig {
    CaptionConfig {
        tags: root.join("tags.csv"),
        selection: root.join("selection.csv"),
        images: root.join("images"),
        output: Some(root.join(format.name())),
        in_place: false,
        max_tags: 9,
        min_score: 0.3,
        position: Position::Prepend,
        missing: Missing::Empty,
        source: CaptionSource::default(),
        format: Some(format),
        style: Style { escape, ..Style::default() },
        without: Vec::new(),
    }
}

fn run(config: &CaptionConfig) -> Outcome {
    caption::run(&config.plan().unwrap(), &Interrupt::new(), &mut |_| {}).unwrap().outcome
}

fn check(captions: &[String], tags: &[String], escape: bool) -> Result<(), TestCaseError> {
    let dir = world(captions, tags);
    let images = dir.path().join("images");
    let pictures = pictures(&images).unwrap();
    for format in FORMATS {
        let config = config(dir.path(), format, escape);
        run(&config);
        let output = config.output.as_ref().unwrap();
        let source = CaptionSource { format, ..CaptionSource::default() };
        let found = read_captions(&source, output, &pictures).unwrap();
        prop_assert_eq!(found.unknown.len() + found.guessed.len(), 0, "{}", format);
        for picture in &pictures {
            let before = read_caption(&images.join(&picture.caption)).unwrap().unwrap().text;
            let expected = Joining { escape, ..Joining::default() }.compose(&before, tags);
            let read = &found.by_image[&picture.image].caption;
            prop_assert_eq!((&read.text, read.joined), (&expected, false), "{} {}", format, picture.image);
        }
    }
    Ok(())
}

#[test]
fn all_odd_names_survive_every_format() {
    let tags: Vec<_> = NAMES.iter().map(|name| canonical(name)).collect();
    for tags in tags.chunks(9) {
        let captions = ["a heart", "on", "a: b # c", " 'x' \"y\" ", "{\"a\": 1}"].map(ToOwned::to_owned);
        check(&captions, tags, false).unwrap();
        check(&captions, tags, true).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn captions_come_back_from_every_format(
        captions in prop::collection::vec(words(), 1..6),
        tags in prop::collection::btree_set(name(), 1..9),
        escape in any::<bool>(),
    ) {
        let tags: Vec<_> = tags.into_iter().filter(|tag| !tag.trim_matches('_').is_empty()).collect();
        prop_assume!(!tags.is_empty());
        check(&captions, &tags, escape)?;
    }
}

/// The shipped list, all emoticons, and names of every other kind that WD v2 and v3 have.
fn all_names() -> Vec<String> {
    let shipped = IMAGE_PRODUCTION
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(',').next());
    let kinds = [
        ";d",
        ">:)",
        ":<",
        "d:",
        "0_0",
        "t_t",
        "u_u",
        "^^^",
        "!",
        "!!",
        "!?",
        "?",
        "??",
        "+++",
        "...",
        "=)",
        "<o>_<o>",
        "\\o/",
        "/\\/\\/\\",
        "\\n/",
        "1990s_(style)",
        "2021",
        "100%_orange",
        "8-bit",
        "no.1",
        "k-pop",
        "u.s._flag",
        "\u{e9}clair",
        "x-ray",
        "ass-to-ass",
        "kiss-shot_acerola-orion_heart-under-blade",
        "ok_sign",
        "on",
        "off",
        "n",
        "true",
        "~",
        "*",
        "{}",
        "[[]]",
        "%s",
        "$1",
        "a&b",
        "c++",
        "#compass",
        "@",
        "http://",
        "'90s",
        "\"\"",
        "rwby:_x",
        "fate/stay_night",
        "idolmaster_(classic)",
        "girls'_frontline",
        "nier:automata",
        "miku_hatsune_(vocaloid_3)",
    ];
    let mut names: Vec<_> = shipped.chain(KAOMOJI).chain(kinds).chain(NAMES).map(canonical).collect();
    names.retain(|name| !name.is_empty() && name != "name");
    names.sort();
    names.dedup();
    names
}

#[test]
fn every_name_comes_back_from_every_format() {
    let names = all_names();
    assert!(names.len() > 140, "{}", names.len());
    for names in names.chunks(9) {
        check(&["a heart".to_owned(), names[0].clone()], names, false).unwrap();
        check(&["a heart".to_owned()], names, true).unwrap();
    }
}
