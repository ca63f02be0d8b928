//! The tag table: one row for each picture and tag, as Parquet and as CSV.

use std::{io::Write, path::Path, sync::Arc};

use parquet::{
    basic::Compression,
    data_type::{ByteArray, ByteArrayType, FloatType, Int64Type},
    errors::ParquetError,
    file::{
        metadata::KeyValue,
        properties::WriterProperties,
        writer::{SerializedFileWriter, SerializedRowGroupWriter},
    },
    schema::parser::parse_message_type,
};
use vodka_stage::AtomicFile;

use crate::{Error, Labels, Result};

/// The columns of both forms of the table.
const COLUMNS: [&str; 5] = ["image", "tag_id", "tag", "category", "score"];

const SCHEMA: &str = "message tags {
    REQUIRED BYTE_ARRAY image (UTF8);
    REQUIRED INT64 tag_id;
    REQUIRED BYTE_ARRAY tag (UTF8);
    REQUIRED BYTE_ARRAY category (UTF8);
    REQUIRED FLOAT score;
}";

/// So many rows are held in memory and can be read apart from the others.
const ROWS_PER_GROUP: usize = 1 << 20;

/// The tags of one picture that reach the floor.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tagged {
    /// The picture, relative to the image folder, with `/`.
    pub image: String,
    /// Places in the vocabulary with their scores, the highest first, ties in order of the vocabulary.
    pub scores: Vec<(usize, f32)>,
}

/// Writes the table as Parquet, with `metadata` as key and value.
pub(crate) fn write_parquet(
    path: &Path,
    tagged: &[Tagged],
    labels: &Labels,
    metadata: Vec<(String, String)>,
) -> Result<()> {
    let file =
        parquet_into(AtomicFile::create(path)?, tagged, labels, metadata).map_err(table_error(path))?;
    Ok(file.commit()?)
}

fn parquet_into(
    file: AtomicFile,
    tagged: &[Tagged],
    labels: &Labels,
    metadata: Vec<(String, String)>,
) -> Result<AtomicFile, ParquetError> {
    let metadata = metadata.into_iter().map(|(key, value)| KeyValue::new(key, value)).collect();
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_key_value_metadata(Some(metadata))
        .build();
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties))?;
    let names: Vec<_> = labels.iter().map(|label| ByteArray::from(label.name.as_str())).collect();
    let categories: Vec<_> = labels.iter().map(|label| ByteArray::from(label.category.as_str())).collect();
    let mut rows = tagged.iter().flat_map(|picture| {
        let image = ByteArray::from(picture.image.as_str());
        picture.scores.iter().map(move |(label, score)| (image.clone(), *label, *score))
    });
    loop {
        let chunk: Vec<_> = rows.by_ref().take(ROWS_PER_GROUP).collect();
        if chunk.is_empty() {
            return writer.into_inner();
        }
        let (mut images, mut at, mut scores) = (Vec::new(), Vec::new(), Vec::new());
        for (image, label, score) in chunk {
            images.push(image);
            at.push(label);
            scores.push(score);
        }
        let ids: Vec<_> = at.iter().map(|label| labels[*label].tag_id).collect();
        let of = |values: &[ByteArray]| -> Vec<_> { at.iter().map(|label| values[*label].clone()).collect() };
        let mut group = writer.next_row_group()?;
        write_column::<ByteArrayType>(&mut group, &images)?;
        write_column::<Int64Type>(&mut group, &ids)?;
        write_column::<ByteArrayType>(&mut group, &of(&names))?;
        write_column::<ByteArrayType>(&mut group, &of(&categories))?;
        write_column::<FloatType>(&mut group, &scores)?;
        group.close()?;
    }
}

fn write_column<T: parquet::data_type::DataType>(
    group: &mut SerializedRowGroupWriter<'_, AtomicFile>,
    values: &[T::T],
) -> Result<(), ParquetError> {
    let mut column = group.next_column()?.expect("the schema has as many columns as are written");
    column.typed::<T>().write_batch(values, None, None)?;
    column.close()
}

/// Writes the table as CSV.
pub(crate) fn write_csv(path: &Path, tagged: &[Tagged], labels: &Labels) -> Result<()> {
    let rows = tagged.iter().flat_map(|picture| {
        picture.scores.iter().map(|(label, score)| {
            let label = &labels[*label];
            let (id, score) = (label.tag_id.to_string(), score.to_string());
            [picture.image.clone(), id, label.name.clone(), label.category.to_string(), score]
        })
    });
    write_records(path, COLUMNS, rows)
}

/// Writes the list of skipped pictures, each with the reason, as CSV.
pub(crate) fn write_skipped(path: &Path, skipped: &[(String, String)]) -> Result<()> {
    write_records(path, ["image", "reason"], skipped.iter().map(|(image, reason)| [image, reason]))
}

fn write_records<const N: usize, T: AsRef<[u8]>>(
    path: &Path,
    header: [&str; N],
    rows: impl Iterator<Item = [T; N]>,
) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    let mut writer = csv::Writer::from_writer(&mut file);
    let written = writer.write_record(header).and_then(|()| {
        for row in rows {
            writer.write_record(row)?;
        }
        Ok(writer.flush()?)
    });
    drop(writer);
    written.map_err(table_error(path))?;
    file.flush().map_err(table_error(path))?;
    Ok(file.commit()?)
}

fn table_error<E: Into<Box<dyn std::error::Error + Send + Sync>>>(path: &Path) -> impl FnOnce(E) -> Error {
    let path = path.to_path_buf();
    |source| Error::Table { path, source: source.into() }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use parquet::{
        file::reader::{FileReader, SerializedFileReader},
        record::RowAccessor,
    };

    use super::*;
    use crate::{LabelFile, LabelKind};

    fn labels() -> Labels {
        let text = "tag_id,name,category\n9,general,9\n7,\"don't_say_\"\"lazy\"\"\",4\n8,\\m/,0\n";
        let file = LabelFile::new("selected_tags.csv", LabelKind::Csv);
        Labels::parse(text.as_bytes(), &file, Path::new("selected_tags.csv")).unwrap()
    }

    fn tagged() -> Vec<Tagged> {
        let one =
            |image: &str, scores: &[(usize, f32)]| Tagged { image: image.into(), scores: scores.to_vec() };
        vec![one("a, b.png", &[(2, 1.0), (0, 0.1)]), one("c.png", &[]), one("d/é.png", &[(1, 0.333_333_34)])]
    }

    #[test]
    fn both_forms_hold_the_same_rows() {
        let dir = tempfile::tempdir().unwrap();
        let (parquet, csv) = (dir.path().join("t.parquet"), dir.path().join("t.csv"));
        write_parquet(&parquet, &tagged(), &labels(), vec![("vodka.floor".into(), "0.1".into())]).unwrap();
        write_csv(&csv, &tagged(), &labels()).unwrap();
        assert_eq!(
            fs::read_to_string(&csv).unwrap(),
            "image,tag_id,tag,category,score\n\
             \"a, b.png\",8,\\m/,general,1\n\
             \"a, b.png\",9,general,rating,0.1\n\
             d/é.png,7,\"don't_say_\"\"lazy\"\"\",character,0.33333334\n"
        );
        let reader = SerializedFileReader::new(File::open(&parquet).unwrap()).unwrap();
        let metadata = reader.metadata().file_metadata().key_value_metadata().unwrap();
        assert_eq!((metadata[0].key.as_str(), metadata[0].value.as_deref()), ("vodka.floor", Some("0.1")));
        let mut lines = vec![COLUMNS.map(str::to_owned).to_vec()];
        for row in reader.get_row_iter(None).unwrap() {
            let row = row.unwrap();
            let text = |i| row.get_string(i).unwrap().clone();
            let (id, score) = (row.get_long(1).unwrap().to_string(), row.get_float(4).unwrap().to_string());
            lines.push(vec![text(0), id, text(2), text(3), score]);
        }
        let mut csv = csv::ReaderBuilder::new().has_headers(false).from_path(&csv).unwrap();
        let csv_lines: Vec<Vec<_>> =
            csv.records().map(|line| line.unwrap().iter().map(str::to_owned).collect()).collect();
        assert_eq!(csv_lines, lines);
    }

    #[test]
    fn an_empty_table_has_its_columns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.parquet");
        write_parquet(&path, &[], &labels(), Vec::new()).unwrap();
        let reader = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();
        let schema = reader.metadata().file_metadata().schema();
        let names: Vec<_> = schema.get_fields().iter().map(|field| field.name().to_owned()).collect();
        assert_eq!(
            (names, reader.metadata().file_metadata().num_rows()),
            (COLUMNS.map(str::to_owned).to_vec(), 0)
        );
    }
}
