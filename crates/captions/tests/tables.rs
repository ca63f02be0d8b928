//! Tag tables: CSV and Parquet alike, and what is wrong with those that no tagger wrote.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use polars::prelude::{DataFrame, DataType, IntoLazy, NamedFrom, ParquetWriter, Series, col};
use vodka_captions::{Error, TagScore, TagTable};
use vodka_testkit::fixture;

const HEADER: &str = "image,tag_id,tag,category,score\n";

fn write(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("tags.csv");
    fs::write(&path, text).unwrap();
    path
}

/// The error that a table is answered with.
fn said(text: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let error = TagTable::open(&write(dir.path(), text)).unwrap_err();
    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    format!("{error}: {cause}")
}

/// The case's table as Parquet, with the types that the tagger writes.
fn parquet_twin(dir: &Path) -> PathBuf {
    let mut reader = csv::Reader::from_path(fixture("captions/v3_rule/tags.csv")).unwrap();
    let rows: Vec<_> = reader.records().map(Result::unwrap).collect();
    let text = |k: usize, name: &str| {
        Series::new(name.into(), rows.iter().map(|row| row[k].to_owned()).collect::<Vec<_>>()).into()
    };
    let columns = ["image", "tag_id", "tag", "category", "score"]
        .iter()
        .enumerate()
        .map(|(k, name)| text(k, name))
        .collect();
    let frame = DataFrame::new(rows.len(), columns).unwrap().lazy();
    let typed = [col("tag_id").cast(DataType::Int64), col("score").cast(DataType::Float32)];
    let mut frame = frame.with_columns(typed).collect().unwrap();
    let path = dir.join("tags.parquet");
    ParquetWriter::new(File::create(&path).unwrap()).finish(&mut frame).unwrap();
    path
}

#[test]
fn parquet_and_csv_say_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let parquet = TagTable::open(&parquet_twin(dir.path())).unwrap();
    let csv = TagTable::open(&fixture("captions/v3_rule/tags.csv")).unwrap();
    assert_eq!(parquet.images().unwrap(), csv.images().unwrap());
    assert_eq!(parquet.tags(), csv.tags());
    let vocabulary = ["solo", "blurry", "|_|"];
    let [parquet, csv] = [parquet, csv].map(|table| table.scores(&vocabulary).unwrap());
    assert!(parquet.by_image.len() > 150);
    assert_eq!(parquet.by_image, csv.by_image);
    assert_eq!(parquet.doubles, csv.doubles);
}

#[test]
fn doubles_are_merged_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let rows = "a.png,1,blurry,general,0.25\na.png,1,\" Blurry\",general,0.75\nb.png,1,blurry ,general,0.5\n";
    let mut table = TagTable::open(&write(dir.path(), &format!("{HEADER}{rows}"))).unwrap();
    let scores = table.scores(&["solo", "blurry"]).unwrap();
    assert_eq!(scores.by_image["a.png"], [TagScore { tag: 1, score: 0.75 }]);
    assert_eq!(scores.by_image["b.png"], [TagScore { tag: 1, score: 0.5 }]);
    assert_eq!((scores.doubles[0].tag.as_str(), scores.doubles[0].images), ("blurry", 1));
    assert_eq!(scores.doubles[0].spellings, [" Blurry", "blurry", "blurry "]);
    table.restrict(["b.png", "c.png"]).unwrap();
    assert_eq!(table.images().unwrap().len(), 1);
}

#[test]
fn a_table_from_a_spreadsheet_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let text = "\u{feff}tag;image;score;note;category;tag_id\r\n;);a.png;1;x;general;1\r\n"
        .replace(";);", "\";)\";");
    let table = TagTable::open(&write(dir.path(), &text)).unwrap();
    assert_eq!(table.scores(&[";)"]).unwrap().by_image["a.png"], [TagScore { tag: 0, score: 1.0 }]);
}

#[test]
fn wrong_tables_are_told_apart() {
    let text = said("image,tag,score\na.png,solo,0.5\n");
    assert!(
        text.contains(
            "expected the columns image, tag_id, tag, category, score, found the columns image, tag, score"
        ),
        "{text}"
    );
    let text = said(&format!("{HEADER}a.png,1,solo,general,1.5\n"));
    assert!(
        text.contains("the tag `solo` of the picture `a.png`: expected a score from 0 to 1, found 1.5"),
        "{text}"
    );
    let text = said(&format!("{HEADER}a.png,1,solo,general,0.5\na.png,1,solo,general,NaN\n"));
    assert!(text.contains("found NaN"), "{text}");
    let text = said(&format!("{HEADER}a.png,1,solo,general,\n"));
    assert!(text.contains("found null"), "{text}");
    let text = said(&format!("{HEADER}a.png,1,,general,0.5\n"));
    assert!(
        text.contains("the cell `tag` is empty in a row with the picture `a.png` and the score 0.5"),
        "{text}"
    );
    let text = said(&format!("{HEADER},1,solo,general,0.5\n"));
    assert!(
        text.contains("the cell `image` is empty in a row with the tag `solo` and the score 0.5"),
        "{text}"
    );
    let text = said(&format!("{HEADER}a.png,1,solo,general,high\n"));
    assert!(text.contains("cannot read the tag table") && text.contains("high"), "{text}");
    assert!(said("").contains("cannot read the tag table"));
    assert!(matches!(TagTable::open(Path::new("no/tags.csv")), Err(Error::Read { .. })));
}

#[test]
fn rows_with_more_or_fewer_fields_are_errors() {
    let text = said(&format!("{HEADER}a.png,1,solo,general,0.5\na.png,1,blurry,general,0,95\n"));
    assert!(text.contains("tags.csv") && text.contains("line: 3") && text.contains("6 fields"), "{text}");
    let text = said("image;tag_id;tag;category;score\na.png;1;solo;general\n");
    assert!(text.contains("line: 2") && text.contains("4 fields"), "{text}");
    let dir = tempfile::tempdir().unwrap();
    let text = format!("{HEADER}a.png,1,\"a, \"\"b\"\"\",general,0.5\r\n");
    TagTable::open(&write(dir.path(), &text)).unwrap();
}

#[test]
fn a_table_of_other_types_or_cut_short_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tags.parquet");
    let numbers = |name: &str| Series::new(name.into(), [1_i64]).into();
    let columns = ["image", "tag_id", "tag", "category", "score"].map(numbers).to_vec();
    ParquetWriter::new(File::create(&path).unwrap())
        .finish(&mut DataFrame::new(1, columns).unwrap())
        .unwrap();
    let error = TagTable::open(&path).unwrap_err().to_string();
    assert!(error.contains("expected text in the column `image`, found i64"), "{error}");

    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(matches!(TagTable::open(&path), Err(Error::Table { .. })));
}

#[test]
fn a_table_without_rows_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    let table = TagTable::open(&write(dir.path(), HEADER)).unwrap();
    assert!(table.images().unwrap().is_empty());
    assert!(table.scores(&["solo"]).unwrap().by_image.is_empty());
}
