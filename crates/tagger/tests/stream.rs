//! Many files through one tagger: in order, with the tags of each alone.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fs, ops::ControlFlow, path::PathBuf};

use vodka_images::decode;
use vodka_tagger::{StreamOptions, TaggedPath, Tagger, TaggerConfig, Tags};
use vodka_testkit::{fixture, onnxruntime};

fn open(lanes: usize) -> Tagger {
    let config = TaggerConfig {
        onnxruntime: onnxruntime(),
        lanes,
        threads: 2,
        ..TaggerConfig::new(fixture("tagger"))
    };
    Tagger::open(&config).unwrap()
}

/// What is said of each path, until `enough` are there.
fn stream(
    tagger: &Tagger,
    paths: &[PathBuf],
    options: StreamOptions,
    enough: usize,
) -> Vec<Result<Tags, String>> {
    let mut said = Vec::new();
    tagger
        .tag_paths(paths, &options, &mut |TaggedPath { path, tags }| {
            assert_eq!(path, paths[said.len()], "in the order of the paths");
            said.push(tags);
            if said.len() == enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    said
}

#[test]
fn paths_are_tagged_in_order_whatever_the_threads() {
    let dir = tempfile::tempdir().unwrap();
    let broken = dir.path().join("broken.png");
    fs::write(&broken, "no picture").unwrap();
    let world = fixture("world/images");
    let mut paths: Vec<_> =
        vodka_images::find(&world).unwrap().iter().map(|path| world.join(path)).take(20).collect();
    paths.insert(3, broken);
    paths.push(dir.path().join("gone.png"));
    let one = open(1);
    let expected: Vec<_> = paths.iter().map(|path| Some(one.tag(&decode(path).ok()?).unwrap())).collect();
    let all = usize::MAX;
    for (lanes, batch, decoders) in [(1, 0, 0), (2, 1, 3), (2, 4, 1), (1, 50, 2), (2, all, 2), (1, 3, all)] {
        let tagger = open(lanes);
        let options = StreamOptions { batch, decoders, ..StreamOptions::default() };
        let said = stream(&tagger, &paths, options, usize::MAX);
        let names = |tags: &Tags| tags.iter().map(|tag| tag.name.clone()).collect::<Vec<_>>();
        for (said, expected) in said.iter().zip(&expected) {
            assert_eq!(said.as_ref().ok().map(names), expected.as_ref().map(names));
        }
        assert_eq!(said.len(), paths.len());
        assert!(said[3].as_ref().unwrap_err().contains("expected PNG, JPEG"), "{:?}", said[3]);
        assert!(said[21].as_ref().unwrap_err().contains("cannot be read"), "{:?}", said[21]);
        assert_eq!(stream(&tagger, &paths, options, 5).len(), 5, "a break ends it");
    }
    assert!(stream(&one, &[], StreamOptions { batch: all, ..StreamOptions::default() }, 1).is_empty());
}

#[cfg(target_os = "linux")]
#[test]
fn names_need_not_be_text() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(OsStr::from_bytes(b"im\xffages/a\xff.png"));
    fs::create_dir(path.parent().unwrap()).unwrap();
    fs::copy(fixture("images/awkward/odd.png"), &path).unwrap();
    let tagger = open(1);
    let expected = tagger.tag(&decode(&path).unwrap()).unwrap();
    let said = stream(&tagger, &[path], StreamOptions::default(), 1);
    assert_eq!(said, [Ok(expected)]);
}
