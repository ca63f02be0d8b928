//! The tables: tags (one row for each picture and tag), pictures (one row each), and the list of what was skipped.
//!
//! Rows go to disk as they come, in row groups, so that a table takes no more memory than one group.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
    sync::Arc,
};

use parquet::{
    basic::Compression,
    data_type::{ByteArray, ByteArrayType, DataType, FloatType, Int32Type, Int64Type},
    errors::ParquetError,
    file::{
        metadata::KeyValue,
        properties::WriterProperties,
        writer::{SerializedFileWriter, SerializedRowGroupWriter},
    },
    schema::parser::parse_message_type,
};
use vodka_stage::AtomicFile;

use crate::{
    Error, Labels, Result,
    read::{Facts, Looks},
};

/// So many rows are held in memory and can be read apart from the others.
const ROWS_PER_GROUP: usize = 1 << 18;
/// The same of a table with a list of floats in each row, which is as wide as a network.
const LISTS_PER_GROUP: usize = 1 << 13;

/// A column that is being filled.
enum Column {
    Text(Vec<ByteArray>),
    Int(Vec<i32>),
    Long(Vec<i64>),
    Float(Vec<f32>),
    /// All lists, one after the other, and for each float whether it goes on with a list.
    Floats(Vec<f32>, Vec<i16>),
}

/// What one cell holds.
pub(crate) enum Cell {
    Text(ByteArray),
    Int(i32),
    Long(i64),
    Float(f32),
    Floats(Vec<f32>),
}

impl Cell {
    fn text(text: &str) -> Self {
        Self::Text(ByteArray::from(text))
    }

    fn to_csv(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Text(text) => text.data().into(),
            Self::Int(number) => number.to_string().into_bytes().into(),
            Self::Long(number) => number.to_string().into_bytes().into(),
            Self::Float(number) => number.to_string().into_bytes().into(),
            Self::Floats(_) => unreachable!("lists are for Parquet"),
        }
    }
}

/// A table on its way to disk, as Parquet or as CSV, by its name.
pub(crate) struct Table {
    path: PathBuf,
    form: Form,
    rows: usize,
    rows_per_group: usize,
}

enum Form {
    Parquet { writer: SerializedFileWriter<AtomicFile>, columns: Vec<Column> },
    Csv(csv::Writer<AtomicFile>),
}

/// The names of columns, each with its Parquet type.
pub(crate) type Columns = [(&'static str, &'static str)];

/// The columns of the table of tags.
pub(crate) const TAGS: &Columns = &[
    ("image", "BYTE_ARRAY"),
    ("tag_id", "INT64"),
    ("tag", "BYTE_ARRAY"),
    ("category", "BYTE_ARRAY"),
    ("score", "FLOAT"),
];

/// The columns of the table of pictures.
pub(crate) const PICTURES: &Columns = &[
    ("image", "BYTE_ARRAY"),
    ("width", "INT32"),
    ("height", "INT32"),
    ("sha256", "BYTE_ARRAY"),
    ("phash", "BYTE_ARRAY"),
    ("sharpness", "FLOAT"),
    ("sharpness_tile_min", "FLOAT"),
    ("sharpness_tile_median", "FLOAT"),
    ("sharpness_tile_max", "FLOAT"),
];

/// The columns of the table of embeddings, which is Parquet.
pub(crate) const EMBEDDINGS: &Columns = &[("image", "BYTE_ARRAY"), ("embedding", "FLOATS")];

/// The columns of the list of skipped pictures.
pub(crate) const SKIPPED: &Columns = &[("image", "BYTE_ARRAY"), ("reason", "BYTE_ARRAY")];

impl Table {
    /// Starts a table; what ends in `.parquet` is Parquet.
    pub fn create(path: &Path, columns: &Columns) -> Result<Self> {
        let file = AtomicFile::create(path)?;
        let is_parquet = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("parquet"));
        let form = match is_parquet {
            true => parquet(file, columns).map_err(table_error(path))?,
            false => {
                let mut writer = csv::Writer::from_writer(file);
                let header = columns.iter().map(|(name, _)| name);
                writer.write_record(header).map_err(table_error(path))?;
                Form::Csv(writer)
            }
        };
        let has_lists = columns.iter().any(|(_, kind)| *kind == "FLOATS");
        let rows_per_group = if has_lists { LISTS_PER_GROUP } else { ROWS_PER_GROUP };
        Ok(Self { path: path.to_path_buf(), form, rows: 0, rows_per_group })
    }

    pub fn push<const N: usize>(&mut self, row: [Cell; N]) -> Result<()> {
        self.rows += 1;
        let is_full = self.rows.is_multiple_of(self.rows_per_group);
        match &mut self.form {
            Form::Csv(writer) => {
                writer.write_record(row.iter().map(|cell| cell.to_csv())).map_err(table_error(&self.path))
            }
            Form::Parquet { writer, columns } => {
                assert_eq!(columns.len(), N, "a cell for each column");
                columns.iter_mut().zip(row).for_each(|(column, cell)| column.push(cell));
                if !is_full {
                    return Ok(());
                }
                write_group(writer, columns).map_err(table_error(&self.path))
            }
        }
    }

    /// Writes what is left, and `metadata` where the form has room for it; tells how many rows there are.
    pub fn finish(self, metadata: Vec<(String, String)>) -> Result<usize> {
        let file = match self.form {
            Form::Csv(writer) => {
                writer.into_inner().map_err(|error| table_error(&self.path)(error.into_error()))?
            }
            Form::Parquet { writer, columns } => {
                finish_parquet(writer, columns, metadata).map_err(table_error(&self.path))?
            }
        };
        file.commit()?;
        Ok(self.rows)
    }
}

fn parquet(file: AtomicFile, columns: &Columns) -> Result<Form, ParquetError> {
    let field = |(name, kind): &(&str, &str)| match *kind {
        "BYTE_ARRAY" => format!("REQUIRED BYTE_ARRAY {name} (UTF8);"),
        "FLOATS" => {
            format!("REQUIRED group {name} (LIST) {{ REPEATED group list {{ REQUIRED FLOAT element; }} }}")
        }
        kind => format!("REQUIRED {kind} {name};"),
    };
    let fields: Vec<_> = columns.iter().map(field).collect();
    let schema = parse_message_type(&format!("message table {{ {} }}", fields.join(" ")))?;
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties))?;
    let columns = columns.iter().map(|(_, kind)| Column::new(kind)).collect();
    Ok(Form::Parquet { writer, columns })
}

fn finish_parquet(
    mut writer: SerializedFileWriter<AtomicFile>,
    mut columns: Vec<Column>,
    metadata: Vec<(String, String)>,
) -> Result<AtomicFile, ParquetError> {
    write_group(&mut writer, &mut columns)?;
    for (key, value) in metadata {
        writer.append_key_value_metadata(KeyValue::new(key, value));
    }
    writer.into_inner()
}

/// Writes a row group and empties the columns; of no rows there is no group.
fn write_group(
    writer: &mut SerializedFileWriter<AtomicFile>,
    columns: &mut [Column],
) -> Result<(), ParquetError> {
    if columns.iter().all(Column::is_empty) {
        return Ok(());
    }
    let mut group = writer.next_row_group()?;
    for column in columns {
        match column {
            Column::Text(values) => write_column::<ByteArrayType>(&mut group, values),
            Column::Int(values) => write_column::<Int32Type>(&mut group, values),
            Column::Long(values) => write_column::<Int64Type>(&mut group, values),
            Column::Float(values) => write_column::<FloatType>(&mut group, values),
            Column::Floats(values, goes_on) => write_lists(&mut group, values, goes_on),
        }?;
    }
    group.close().map(|_| ())
}

fn write_column<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, AtomicFile>,
    values: &mut Vec<T::T>,
) -> Result<(), ParquetError> {
    let mut column = group.next_column()?.expect("the schema has as many columns as are written");
    column.typed::<T>().write_batch(values, None, None)?;
    values.clear();
    column.close()
}

/// Every list has a float at least.
fn write_lists(
    group: &mut SerializedRowGroupWriter<'_, AtomicFile>,
    values: &mut Vec<f32>,
    goes_on: &mut Vec<i16>,
) -> Result<(), ParquetError> {
    let mut column = group.next_column()?.expect("the schema has as many columns as are written");
    column.typed::<FloatType>().write_batch(values, Some(&vec![1; values.len()]), Some(goes_on))?;
    values.clear();
    goes_on.clear();
    column.close()
}

impl Column {
    fn new(kind: &str) -> Self {
        match kind {
            "BYTE_ARRAY" => Self::Text(Vec::new()),
            "INT32" => Self::Int(Vec::new()),
            "INT64" => Self::Long(Vec::new()),
            "FLOAT" => Self::Float(Vec::new()),
            "FLOATS" => Self::Floats(Vec::new(), Vec::new()),
            kind => unreachable!("no column of ours is {kind}"),
        }
    }

    fn push(&mut self, cell: Cell) {
        match (self, cell) {
            (Self::Text(values), Cell::Text(value)) => values.push(value),
            (Self::Int(values), Cell::Int(value)) => values.push(value),
            (Self::Long(values), Cell::Long(value)) => values.push(value),
            (Self::Float(values), Cell::Float(value)) => values.push(value),
            (Self::Floats(values, goes_on), Cell::Floats(list)) => {
                goes_on.extend((0..list.len()).map(|place| i16::from(place > 0)));
                values.extend(list);
            }
            _ => unreachable!("a row has the types of its columns"),
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Text(values) => values.is_empty(),
            Self::Int(values) => values.is_empty(),
            Self::Long(values) => values.is_empty(),
            Self::Float(values) | Self::Floats(values, _) => values.is_empty(),
        }
    }
}

/// The labels as cells, made once for a whole table.
pub(crate) struct LabelCells(Vec<(i64, ByteArray, ByteArray)>);

impl LabelCells {
    pub fn new(labels: &Labels) -> Self {
        let cells = |label: &crate::Label| {
            (label.tag_id, ByteArray::from(label.name.as_str()), ByteArray::from(label.category.as_str()))
        };
        Self(labels.iter().map(cells).collect())
    }

    /// The rows of one picture in the table of tags.
    pub fn rows<'a>(&'a self, image: &str, scores: &'a [(u32, f32)]) -> impl Iterator<Item = [Cell; 5]> + 'a {
        let image = ByteArray::from(image);
        scores.iter().map(move |(place, score)| {
            let (id, name, category) = &self.0[*place as usize];
            [
                Cell::Text(image.clone()),
                Cell::Long(*id),
                Cell::Text(name.clone()),
                Cell::Text(category.clone()),
                Cell::Float(*score),
            ]
        })
    }
}

/// A row of the table of pictures.
pub(crate) fn picture_row(image: &str, facts: &Facts, looks: &Looks) -> [Cell; 9] {
    let Facts { width, height, sha256, .. } = facts;
    let Looks { phash, sharpness, tile_sharpness: [tile_min, tile_median, tile_max] } = looks;
    [
        Cell::text(image),
        Cell::Int(width.cast_signed()),
        Cell::Int(height.cast_signed()),
        Cell::text(&sha256.to_string()),
        Cell::text(&format!("{phash:016x}")),
        Cell::Float(*sharpness),
        Cell::Float(*tile_min),
        Cell::Float(*tile_median),
        Cell::Float(*tile_max),
    ]
}

/// A row of the table of embeddings.
pub(crate) fn embedding_row(image: &str, embedding: &[f32]) -> [Cell; 2] {
    [Cell::text(image), Cell::Floats(embedding.to_vec())]
}

/// A row of the list of skipped pictures.
pub(crate) fn skipped_row(image: &str, reason: &str) -> [Cell; 2] {
    [Cell::text(image), Cell::text(reason)]
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
        record::{ListAccessor, RowAccessor},
    };

    use super::*;
    use crate::{LabelFile, LabelKind};

    fn labels() -> Labels {
        let text = "tag_id,name,category\n9,general,9\n7,\"don't_say_\"\"lazy\"\"\",4\n8,\\m/,0\n";
        Labels::parse(text.as_bytes(), &LabelFile::new("l", LabelKind::Csv), Path::new("l")).unwrap()
    }

    fn write(path: &Path) -> usize {
        let cells = LabelCells::new(&labels());
        let mut table = Table::create(path, TAGS).unwrap();
        let pictures: [(&str, &[(u32, f32)]); 3] =
            [("a, b.png", &[(2, 1.0), (0, 0.1)]), ("c.png", &[]), ("d/é.png", &[(1, 0.333_333_34)])];
        for (image, scores) in pictures {
            cells.rows(image, scores).try_for_each(|row| table.push(row)).unwrap();
        }
        table.finish(vec![("vodka.floor".into(), "0.1".into())]).unwrap()
    }

    #[test]
    fn both_forms_hold_the_same_rows() {
        let dir = tempfile::tempdir().unwrap();
        let (parquet, csv) = (dir.path().join("t.parquet"), dir.path().join("t.csv"));
        assert_eq!((write(&parquet), write(&csv)), (3, 3));
        assert_eq!(
            fs::read_to_string(&csv).unwrap(),
            "image,tag_id,tag,category,score\n\
             \"a, b.png\",8,\\m/,general,1\n\
             \"a, b.png\",9,general,rating,0.1\n\
             d/é.png,7,\"don't_say_\"\"lazy\"\"\",character,0.33333334\n"
        );
        let reader = SerializedFileReader::new(File::open(&parquet).unwrap()).unwrap();
        let metadata = reader.metadata().file_metadata().key_value_metadata().unwrap();
        let floor = metadata.iter().find(|entry| entry.key == "vodka.floor").unwrap();
        assert_eq!(floor.value.as_deref(), Some("0.1"));
        let mut lines = vec![TAGS.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>()];
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
    fn groups_are_written_as_they_fill() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.parquet");
        let mut table = Table::create(&path, SKIPPED).unwrap();
        for i in 0..=2 * ROWS_PER_GROUP {
            table.push(skipped_row("a.png", &i.to_string())).unwrap();
        }
        assert_eq!(table.finish(Vec::new()).unwrap(), 2 * ROWS_PER_GROUP + 1);
        let reader = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();
        let groups: Vec<_> = reader.metadata().row_groups().iter().map(|group| group.num_rows()).collect();
        assert_eq!(groups, [ROWS_PER_GROUP as i64, ROWS_PER_GROUP as i64, 1]);
        let last = reader.get_row_iter(None).unwrap().last().unwrap().unwrap();
        assert_eq!(last.get_string(1).unwrap(), &(2 * ROWS_PER_GROUP).to_string());
    }

    #[test]
    fn a_list_of_floats_is_a_column() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.embeddings.parquet");
        let mut table = Table::create(&path, EMBEDDINGS).unwrap();
        let lists: Vec<Vec<f32>> = (0..=LISTS_PER_GROUP).map(|i| vec![i as f32, 0.5, -1.0]).collect();
        for list in &lists {
            table.push(embedding_row("a.png", list)).unwrap();
        }
        assert_eq!(table.finish(Vec::new()).unwrap(), lists.len());
        let reader = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();
        assert_eq!(reader.metadata().num_row_groups(), 2);
        let list = |row: &parquet::record::Row| {
            let list = row.get_list(1).unwrap();
            (0..list.len()).map(|i| list.get_float(i).unwrap()).collect::<Vec<_>>()
        };
        let found: Vec<_> = reader.get_row_iter(None).unwrap().map(|row| list(&row.unwrap())).collect();
        assert_eq!(found, lists);
    }

    #[test]
    fn an_empty_table_has_its_columns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.parquet");
        Table::create(&path, PICTURES).unwrap().finish(Vec::new()).unwrap();
        let reader = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();
        let metadata = reader.metadata().file_metadata();
        let names: Vec<_> =
            metadata.schema().get_fields().iter().map(|field| field.name().to_owned()).collect();
        let expected: Vec<_> = PICTURES.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!((names, metadata.num_rows()), (expected, 0));
    }
}
