//! Files of labels of every kind.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use vodka_tagger::{Category, LabelFile, LabelKind, Labels};

const KINDS: [LabelKind; 6] = [
    LabelKind::Csv,
    LabelKind::Text,
    LabelKind::IdxToTag,
    LabelKind::DatasetInfo,
    LabelKind::TagMapping,
    LabelKind::TagMap,
];

fuzz_target!(|data: &[u8]| {
    let Some((&choice, bytes)) = data.split_first() else { return };
    let kind = KINDS[usize::from(choice) % KINDS.len()];
    // Files of text have no categories of their own.
    let file = LabelFile { category: Some(Category::General), ..LabelFile::new("labels", kind) };
    if let Ok(labels) = Labels::parse(bytes, &file, Path::new("labels")) {
        assert!(labels.iter().all(|label| !label.name.is_empty()));
    }
});
