//! The rows of tag tables, read and written a piece at a time.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use csv::{ReaderBuilder, StringRecord};
use polars::io::parquet::write::BatchedWriter;
use polars::prelude::{
    Column, DataFrame, DataType, KeyValueMetadata, ParquetCompression, ParquetReader, ParquetWriter,
    PolarsError, PolarsResult, Schema, SerReader,
};
use vodka_stage::AtomicFile;

use crate::{Error, Result, selection::parse_count, sheet, table::wrong_row};

/// The columns of a tag table.
const COLUMNS: [&str; 5] = ["image", "tag_id", "tag", "category", "score"];

/// So many rows are read or written at once, where the file's own groups are smaller.
const GROUP: usize = 1 << 19;

/// A row of a tag table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'a> {
    pub(crate) image: &'a str,
    pub(crate) tag_id: Option<i64>,
    pub(crate) tag: &'a str,
    pub(crate) category: &'a str,
    pub(crate) score: f32,
}

/// What is done with a row; an error ends the reading.
type OnRow<'a> = &'a mut dyn FnMut(Row<'_>) -> Result<()>;

/// Hands over every row of a tag table, Parquet or CSV, in order. A row group of a Parquet file is held in memory, of a
/// CSV file a row.
///
/// # Errors
/// The file cannot be read; a column is missing or of another type; a cell that its column cannot have; a score outside
/// 0 to 1; what `on_row` returns.
pub(crate) fn read(path: &Path, on_row: OnRow<'_>) -> Result<()> {
    match is_parquet(path)? {
        true => read_parquet(path, on_row),
        false => read_csv(path, on_row),
    }
}

fn is_parquet(path: &Path) -> Result<bool> {
    let mut magic = Vec::new();
    let file = File::open(path).and_then(|file| file.take(4).read_to_end(&mut magic));
    file.map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
    Ok(magic == b"PAR1")
}

fn read_csv(path: &Path, on_row: OnRow<'_>) -> Result<()> {
    let unreadable = |source| Error::Read { path: path.to_path_buf(), source };
    let mut start = Vec::new();
    File::open(path).and_then(|file| file.take(4096).read_to_end(&mut start)).map_err(unreadable)?;
    let start = String::from_utf8_lossy(&start);
    let separator = sheet::separator(start.trim_start_matches('\u{feff}'), "image").unwrap_or(b',');
    // The csv crate passes over a byte-order mark by itself.
    let file = File::open(path).map_err(unreadable)?;
    let mut reader = ReaderBuilder::new().delimiter(separator).from_reader(io::BufReader::new(file));
    let broken = |source| Error::Csv { path: path.to_path_buf(), source };
    let header = reader.headers().map_err(broken)?.clone();
    let mut places = [0; 5];
    for (place, column) in places.iter_mut().zip(COLUMNS) {
        let found = header.iter().position(|cell| cell.trim() == column);
        *place = found.ok_or_else(|| columns(path, header.iter()))?;
    }
    let mut record = StringRecord::new();
    while reader.read_record(&mut record).map_err(broken)? {
        let [image, tag_id, tag, category, score] = places.map(|place| &record[place]);
        let line = record.position().map_or(0, csv::Position::line);
        let row =
            Row { image, tag_id: parse_id(path, line, tag_id)?, tag, category, score: parse_score(score) };
        on_row(checked(path, row)?)?;
    }
    Ok(())
}

fn parse_id(path: &Path, line: u64, text: &str) -> Result<Option<i64>> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let id = parse_count(text).and_then(|id| i64::try_from(id).ok()).or_else(|| text.parse().ok());
    id.map(Some).ok_or_else(|| Error::Cell {
        path: path.to_path_buf(),
        line,
        column: "tag_id".to_owned(),
        expected: "a whole number",
        found: text.to_owned(),
    })
}

/// What is no number is none.
fn parse_score(text: &str) -> f32 {
    text.trim().parse().unwrap_or(f32::NAN)
}

/// A row that a tagger could have written.
fn checked<'a>(path: &Path, row: Row<'a>) -> Result<Row<'a>> {
    let Row { image, tag, score, .. } = row;
    if (0.0..=1.0).contains(&score) && !image.is_empty() && !tag.trim().is_empty() {
        return Ok(row);
    }
    let [image, tag] = [image, tag].map(|text| (!text.trim().is_empty()).then(|| text.to_owned()));
    Err(wrong_row(path, image, tag, Some(score.to_string())))
}

fn columns<'a>(path: &Path, found: impl Iterator<Item = &'a str>) -> Error {
    let found: Vec<_> = found.collect();
    Error::Columns {
        path: path.to_path_buf(),
        expected: format!("the columns {}", COLUMNS.join(", ")),
        found: format!("the columns {}", found.join(", ")),
    }
}

fn broken(path: &Path) -> impl Fn(PolarsError) -> Error {
    move |source| Error::Table { path: path.to_path_buf(), source: Box::new(source) }
}

fn open_parquet(path: &Path) -> Result<ParquetReader<File>> {
    let file = File::open(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
    Ok(ParquetReader::new(file))
}

fn read_parquet(path: &Path, on_row: OnRow<'_>) -> Result<()> {
    let broken = broken(path);
    let mut reader = open_parquet(path)?;
    let schema = reader.schema().map_err(&broken)?;
    let names: Vec<_> = schema.iter_names().map(ToString::to_string).collect();
    if COLUMNS.iter().any(|column| !names.iter().any(|name| name == column)) {
        return Err(columns(path, names.iter().map(String::as_str)));
    }
    let sizes: Vec<_> = {
        let metadata = reader.get_metadata().map_err(&broken)?;
        metadata.row_groups.iter().map(|group| group.num_rows()).collect()
    };
    let (mut from, mut rows) = (0, 0);
    for (group, size) in sizes.iter().enumerate() {
        rows += size;
        if rows < GROUP && group + 1 < sizes.len() {
            continue;
        }
        let columns = Some(COLUMNS.map(ToOwned::to_owned).to_vec());
        let frame = open_parquet(path)?.with_columns(columns).with_slice(Some((from, rows))).finish();
        read_frame(path, &frame.map_err(&broken)?, on_row)?;
        (from, rows) = (from + rows, 0);
    }
    Ok(())
}

fn read_frame(path: &Path, frame: &DataFrame, on_row: OnRow<'_>) -> Result<()> {
    let broken = broken(path);
    let column = |name: &str, dtype: &DataType| {
        let column = frame.column(name).map_err(&broken)?;
        let text = |dtype: &DataType| dtype.is_string() || dtype.is_categorical();
        if text(dtype) != text(column.dtype()) {
            let expected = format!("{} in the column `{name}`", if text(dtype) { "text" } else { "numbers" });
            let found = column.dtype().to_string();
            return Err(Error::Columns { path: path.to_path_buf(), expected, found });
        }
        column.strict_cast(dtype).map_err(&broken)
    };
    let [image, tag, category] = ["image", "tag", "category"].map(|name| column(name, &DataType::String));
    let (image, tag, category) = (image?, tag?, category?);
    let (id, score) = (column("tag_id", &DataType::Int64)?, column("score", &DataType::Float32)?);
    let images = image.str().map_err(&broken)?.iter();
    let texts = images.zip(tag.str().map_err(&broken)?.iter()).zip(category.str().map_err(&broken)?.iter());
    let numbers = id.i64().map_err(&broken)?.iter().zip(score.f32().map_err(&broken)?.iter());
    for (((image, tag), category), (tag_id, score)) in texts.zip(numbers) {
        let row = Row {
            image: image.unwrap_or_default(),
            tag_id,
            tag: tag.unwrap_or_default(),
            category: category.unwrap_or_default(),
            score: score.unwrap_or(f32::NAN),
        };
        on_row(checked(path, row)?)?;
    }
    Ok(())
}

/// What a Parquet tag table says about itself: model, preprocessing, floor. Nothing of a CSV file.
pub(crate) fn metadata(path: &Path) -> Result<Vec<(String, String)>> {
    if !is_parquet(path)? {
        return Ok(Vec::new());
    }
    let mut reader = open_parquet(path)?;
    let found = reader.get_metadata().map_err(broken(path))?.key_value_metadata().clone();
    let pairs = found.unwrap_or_default().into_iter().filter_map(|pair| Some((pair.key, pair.value?)));
    // This one describes the columns, and is written anew.
    Ok(pairs.filter(|(key, _)| key != "ARROW:schema").collect())
}

/// A tag table being written: Parquet where the name ends in `.parquet`, else CSV.
pub(crate) struct Writer {
    path: PathBuf,
    file: Shared,
    form: Form,
}

enum Form {
    Csv(Box<csv::Writer<Shared>>),
    Parquet(Box<BatchedWriter<Shared>>, Columns),
}

/// The columns of the group that is being written.
#[derive(Default)]
struct Columns {
    images: Vec<String>,
    ids: Vec<Option<i64>>,
    tags: Vec<String>,
    categories: Vec<String>,
    scores: Vec<f32>,
}

/// A file that a writer holds, and that is committed when the writer is done with it.
#[derive(Clone)]
struct Shared(Arc<Mutex<AtomicFile>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).flush()
    }
}

impl Writer {
    pub(crate) fn create(path: &Path, metadata: Vec<(String, String)>) -> Result<Self> {
        let file = Shared(Arc::new(Mutex::new(AtomicFile::create(path)?)));
        let form = if path.extension().is_some_and(|ending| ending == "parquet") {
            let writer = ParquetWriter::new(file.clone())
                .with_compression(ParquetCompression::Snappy)
                .with_key_value_metadata(Some(KeyValueMetadata::from_static(metadata)));
            let schema = Columns::default().frame().map(|frame| Schema::clone(frame.schema()));
            let writer = schema.and_then(|schema| writer.batched(&schema)).map_err(broken(path))?;
            Form::Parquet(Box::new(writer), Columns::default())
        } else {
            let mut writer = csv::Writer::from_writer(file.clone());
            writer.write_record(COLUMNS).map_err(csv_error(path))?;
            Form::Csv(Box::new(writer))
        };
        Ok(Self { path: path.to_path_buf(), file, form })
    }

    pub(crate) fn push(&mut self, row: Row<'_>) -> Result<()> {
        match &mut self.form {
            Form::Csv(writer) => {
                let (id, score) = (row.tag_id.map(|id| id.to_string()), row.score.to_string());
                let cells = [row.image, id.as_deref().unwrap_or_default(), row.tag, row.category, &score];
                writer.write_record(cells).map_err(csv_error(&self.path))
            }
            Form::Parquet(writer, columns) => {
                columns.push(row);
                match columns.ids.len() < GROUP {
                    true => Ok(()),
                    false => columns.write(writer).map_err(broken(&self.path)),
                }
            }
        }
    }

    pub(crate) fn commit(mut self) -> Result<()> {
        match &mut self.form {
            Form::Csv(writer) => writer
                .flush()
                .map_err(|source| vodka_stage::Error::Write { path: self.path.clone(), source })?,
            Form::Parquet(writer, columns) => {
                let written = columns.write(writer).and_then(|()| writer.finish());
                written.map_err(broken(&self.path))?;
            }
        }
        let Self { file, form, .. } = self;
        drop(form);
        let file = Arc::into_inner(file.0).expect("the writer was the only other owner");
        Ok(file.into_inner().unwrap_or_else(PoisonError::into_inner).commit()?)
    }
}

fn csv_error(path: &Path) -> impl FnOnce(csv::Error) -> Error {
    move |source| Error::Csv { path: path.to_path_buf(), source }
}

impl Columns {
    fn push(&mut self, row: Row<'_>) {
        self.images.push(row.image.to_owned());
        self.ids.push(row.tag_id);
        self.tags.push(row.tag.to_owned());
        self.categories.push(row.category.to_owned());
        self.scores.push(row.score);
    }

    fn frame(self) -> PolarsResult<DataFrame> {
        let columns = vec![
            Column::new("image".into(), self.images),
            Column::new("tag_id".into(), self.ids),
            Column::new("tag".into(), self.tags),
            Column::new("category".into(), self.categories),
            Column::new("score".into(), self.scores),
        ];
        DataFrame::new(columns[0].len(), columns)
    }

    /// Writes what there is as a group; of no rows there is no group.
    fn write(&mut self, writer: &mut BatchedWriter<Shared>) -> PolarsResult<()> {
        let columns = std::mem::take(self);
        match columns.ids.is_empty() {
            true => Ok(()),
            false => writer.write_batch(&columns.frame()?),
        }
    }
}
