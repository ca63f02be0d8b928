//! Files of labels and descriptions with random damage: an error or a result, never a panic.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fs, path::Path, str};

use vodka_tagger::{Category, Description, LabelFile, LabelKind, Labels, families};
use vodka_testkit::fixture;

/// A generator of no quality, but the same everywhere (xorshift64, Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end.max(1) as u64) as usize
    }
}

/// What breaks parsers: quotes, ends, signs, large numbers, text that is no UTF-8.
const PIECES: [&[u8]; 18] = [
    b"\"",
    b",",
    b"\n",
    b"\r",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b"\\",
    b"-1",
    b"18446744073709551616",
    b"1e999",
    b"nan",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"'''",
];

/// The same with a few pieces added, removed, doubled or replaced.
fn damaged(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let end = (at + random.below(12)).min(bytes.len());
        match random.below(5) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => drop(bytes.splice(at..at, PIECES[random.below(PIECES.len())].iter().copied())),
            3 => drop(bytes.splice(at..end, PIECES[random.below(PIECES.len())].iter().copied())),
            _ => {
                let part = bytes[at..end].to_vec();
                let to = random.below(bytes.len() + 1);
                drop(bytes.splice(to..to, part));
            }
        }
    }
    bytes
}

#[test]
fn damaged_labels_never_panic() {
    let kinds = [
        ("wd-v3/selected_tags.csv", LabelKind::Csv),
        ("animetimm/selected_tags.csv", LabelKind::Csv),
        ("joytag/top_tags.txt", LabelKind::Text),
        ("camie-v1/metadata.json", LabelKind::IdxToTag),
        ("camie-v2/camie-tagger-v2-metadata.json", LabelKind::DatasetInfo),
        ("cl-tagger-v1/tag_mapping.json", LabelKind::TagMapping),
    ];
    let mut random = Random(20_261_122);
    let map = br#"{"tag_map": {"a": 0, "b": 1, "c": 2}, "tag_split": {"gen_tag_count": 2, "character_tag_count": 1}}"#;
    let mut files: Vec<_> = kinds
        .map(|(name, kind)| (fs::read(fixture(&format!("tagger-families/{name}"))).unwrap(), kind))
        .into();
    files.push((map.to_vec(), LabelKind::TagMap));
    for (bytes, kind) in files {
        let file = LabelFile { category: Some(Category::General), ..LabelFile::new("labels", kind) };
        let parse = |bytes: &[u8]| Labels::parse(bytes, &file, Path::new("labels"));
        assert!(parse(&bytes).is_ok(), "{kind:?} as it is");
        let (mut read, mut refused) = (0, 0);
        for _ in 0..1000 {
            match parse(&damaged(&bytes, &mut random)) {
                Ok(labels) => {
                    assert!(!labels.is_empty() && labels.iter().all(|label| !label.name.is_empty()));
                    read += 1;
                }
                Err(error) => {
                    assert!(error.to_string().contains("`labels`"), "{error}");
                    refused += 1;
                }
            }
        }
        assert!(read > 0 && refused > 0, "{kind:?}: {read} read, {refused} refused");
    }
}

#[test]
fn damaged_descriptions_never_panic() {
    let mut random = Random(33);
    for family in families() {
        let text = toml::to_string(&Description::family(family).unwrap()).unwrap();
        for _ in 0..300 {
            let bytes = damaged(text.as_bytes(), &mut random);
            if let Ok(text) = str::from_utf8(&bytes)
                && let Err(error) = Description::parse(text, Path::new("model.toml"))
            {
                let found = error.to_string();
                assert!(found.contains("model.toml") || found.starts_with("no family"), "{found}");
            }
        }
    }
}

#[test]
fn damaged_processing_steps_never_panic() {
    let family = Description::family("animetimm").unwrap();
    let bytes = fs::read(fixture("tagger-families/animetimm/preprocess.json")).unwrap();
    let follow = |text: &str| family.clone().follow_steps(text, Path::new("preprocess.json"));
    follow(str::from_utf8(&bytes).unwrap()).unwrap();
    let mut random = Random(5);
    let (mut followed, mut refused) = (0, 0);
    for _ in 0..3000 {
        let damaged = damaged(&bytes, &mut random);
        match str::from_utf8(&damaged).map(follow) {
            Ok(Ok(())) => followed += 1,
            Ok(Err(error)) => {
                assert!(error.to_string().contains("`preprocess.json`"), "{error}");
                refused += 1;
            }
            Err(_) => {}
        }
    }
    assert!(followed > 0 && refused > 0, "{followed} followed, {refused} refused");
}
