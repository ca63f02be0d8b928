//! Tests: the power fails after any change of a file, and nothing is lost.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
};

use proptest::prelude::*;
use tempfile::TempDir;
use vodka_stage::{Interrupt, record_path};

use crate::{
    CaptionFormat, CaptionSource, Position, Result,
    caption::{self, CaptionConfig, Missing, Style},
    disk::Disk,
    undo::{self, UndoConfig},
};

type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// Pictures with captions in every format, of every sort: none, empty, with line ends, in UTF-16.
fn world() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let mut png = Vec::new();
    let mut encoder = png::Encoder::new(&mut png, 1, 1);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.add_text_chunk("Description".to_owned(), "a heart".to_owned()).unwrap();
    encoder.write_header().unwrap().write_image_data(&[7]).unwrap();
    for name in ["a", "b", "c", "sub/d", "e"] {
        write(&format!("images/{name}.png"), &png);
    }
    write("images/a.txt", b"a heart");
    write("images/b.txt", b"");
    write("images/sub/d.txt", b"\xff\xfed\0\r\0\n\0");
    write("images/e.txt", b"blurry\n");
    write("images/a.yaml", b"rating: 2 # good\nmain_prompt: a heart\n");
    write("images/sub/d.yml", b"tags: [d]\n");
    write(
        "images/meta_cap.json",
        b"{\"a\": {\"caption\": \"a heart\", \"n\": 1.50}, \"e\": {\"tags\": \"blurry\"}}",
    );
    write("images/metadata.csv", b"\xef\xbb\xbfimage;caption\r\nsub/d.png;d\r\na.png;\"a; heart\"\r\n");
    write("images/metadata.jsonl", b"{\"file_name\": \"a.png\", \"text\": \"a heart\"}\n");
    let mut tags = "image,tag_id,tag,category,score\n".to_owned();
    for name in ["a", "b", "c", "sub/d", "e"] {
        tags += &format!("{name}.png,1,blurry,general,0.9\n{name}.png,2,solo,general,0.5\n");
    }
    write("tags.csv", tags.as_bytes());
    write("selection.csv", b"name,include\nblurry,1\nsolo,1\n");
    dir
}

fn config(dir: &TempDir, format: CaptionFormat, max_tags: usize) -> CaptionConfig {
    CaptionConfig {
        tags: dir.path().join("tags.csv"),
        selection: dir.path().join("selection.csv"),
        images: dir.path().join("images"),
        output: None,
        in_place: true,
        max_tags,
        min_score: 0.3,
        position: Position::Append,
        missing: if max_tags == 0 { Missing::Skip } else { Missing::Empty },
        source: CaptionSource { format, ..CaptionSource::default() },
        format: None,
        style: Style::default(),
        without: Vec::new(),
    }
}

fn run(disk: &Disk, config: &CaptionConfig) -> Result<()> {
    caption::run_on(disk, &config.plan()?, &Interrupt::new(), &mut |_| {}).map(drop)
}

fn undo(disk: &Disk, dir: &TempDir) -> Result<()> {
    let plan = UndoConfig { images: dir.path().join("images"), force: false }.plan()?;
    undo::run_on(disk, &plan, &Interrupt::new(), &mut |_| {}).map(drop)
}

/// All files, also hidden ones.
fn tree(root: &Path) -> Tree {
    let mut tree = Tree::new();
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => tree.extend(self::tree(&path)),
            false => drop(tree.insert(path.clone(), fs::read(&path).unwrap())),
        }
    }
    tree
}

/// What people see: neither hidden files, nor kept originals.
fn captions(dir: &TempDir) -> Tree {
    let mut tree = tree(&dir.path().join("images"));
    tree.retain(|path, _| {
        let name = path.file_name().unwrap().to_str().unwrap();
        !name.starts_with('.') && !name.ends_with(".orig")
    });
    tree
}

const FORMATS: [CaptionFormat; 6] = [
    CaptionFormat::Txt,
    CaptionFormat::Ed2Yaml,
    CaptionFormat::KohyaJson,
    CaptionFormat::Csv,
    CaptionFormat::Jsonl,
    CaptionFormat::Png,
];

/// The captions of a run that nothing disturbs.
fn undisturbed(format: CaptionFormat, max_tags: usize) -> Tree {
    static KNOWN: Mutex<BTreeMap<(CaptionFormat, usize), Tree>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap();
    known.entry((format, max_tags)).or_insert_with(|| made_undisturbed(format, max_tags)).clone()
}

fn made_undisturbed(format: CaptionFormat, max_tags: usize) -> Tree {
    let dir = world();
    run(&Disk::default(), &config(&dir, format, max_tags)).unwrap();
    relative(&dir)
}

/// Every caption is one of those that it may be.
fn assert_whole(dir: &TempDir, may_be: &[&Tree]) {
    let names = may_be.iter().flat_map(|tree| tree.keys());
    let now = captions(dir);
    for name in names {
        let found = now.get(&dir.path().join(name));
        let good = may_be.iter().any(|tree| tree.get(name) == found);
        assert!(good, "{} is neither old nor new: {found:?}", name.display());
    }
}

fn relative(dir: &TempDir) -> Tree {
    let captions = captions(dir).into_iter();
    captions.map(|(path, bytes)| (path.strip_prefix(dir.path()).unwrap().to_path_buf(), bytes)).collect()
}

/// The names of the files that differ.
fn differing(a: &Tree, b: &Tree) -> Vec<PathBuf> {
    let names = a.keys().chain(b.keys()).filter(|name| a.get(*name) != b.get(*name));
    names.cloned().collect()
}

#[test]
fn a_crash_after_any_change_leaves_old_or_new_and_undo_works() {
    for format in FORMATS {
        let new = undisturbed(format, 2);
        for changes in 0.. {
            let dir = world();
            let (before, old) = (tree(dir.path()), relative(&dir));
            let crashed = run(&Disk::failing_after(changes), &config(&dir, format, 2));
            assert_whole(&dir, &[&old, &new]);
            undo(&Disk::default(), &dir).unwrap();
            let differing = differing(&tree(dir.path()), &before);
            assert!(differing.is_empty(), "{format} after {changes} changes: {differing:?}");
            if crashed.is_ok() {
                assert!(changes > 3, "{format} changes files");
                assert_ne!(old, new, "{format} changes captions");
                break;
            }
        }
    }
}

#[test]
fn a_second_run_ends_as_if_the_first_had_not_been() {
    for format in FORMATS {
        let dir = world();
        run(&Disk::default(), &config(&dir, format, 2)).unwrap();
        run(&Disk::default(), &config(&dir, format, 1)).unwrap();
        assert_eq!(relative(&dir), undisturbed(format, 1), "{format}: no old tags are left");
        let before = tree(&dir.path().join("images"));
        fs::remove_file(record_path(&dir.path().join("images"))).unwrap();
        run(&Disk::failing_after(0), &config(&dir, format, 1)).unwrap();
        assert_eq!(tree(&dir.path().join("images")), before, "{format}: nothing is written a second time");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, ..ProptestConfig::default() })]

    #[test]
    fn runs_and_undos_that_crash_anywhere_lose_nothing(
        format in prop::sample::select(FORMATS.to_vec()),
        steps in prop::collection::vec((0..4_usize, 0..40_u64), 1..5),
    ) {
        let dir = world();
        let before = tree(dir.path());
        let mut may_be = vec![relative(&dir)];
        may_be.extend((0..3).map(|max_tags| undisturbed(format, max_tags)));
        for (step, changes) in steps {
            let disk = Disk::failing_after(changes);
            let _ = if step == 3 { undo(&disk, &dir) } else { run(&disk, &config(&dir, format, step)) };
            assert_whole(&dir, &may_be.iter().collect::<Vec<_>>());
        }
        undo(&Disk::default(), &dir).unwrap();
        prop_assert_eq!(differing(&tree(dir.path()), &before), [""; 0].map(PathBuf::from));
    }
}
