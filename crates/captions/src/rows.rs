//! The rows of tag tables, read and written a piece at a time.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use csv::{ReaderBuilder, StringRecord};
use polars::io::parquet::write::BatchedWriter;
use polars::prelude::{Column, DataFrame, DataType, PolarsResult};
use vodka_stage::AtomicFile;

use crate::{
    Error, Result,
    frame::{self, broken, listed},
    selection::parse_count,
    table::{COLUMNS, scan, wrong_row},
};

/// So many rows are written at once.
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

/// Hands over every row of a tag table, Parquet or CSV, in order. A few batches of a Parquet file are held in memory, of a
/// CSV file a row.
///
/// # Errors
/// The file cannot be read; a column is missing or of another type; a cell that its column cannot have; a score outside
/// 0 to 1; what `on_row` returns.
pub(crate) fn read(path: &Path, on_row: OnRow<'_>) -> Result<()> {
    match frame::is_parquet(path)? {
        true => read_parquet(path, on_row),
        false => read_csv(path, on_row),
    }
}

fn read_csv(path: &Path, on_row: OnRow<'_>) -> Result<()> {
    let unreadable = |source| Error::Read { path: path.to_path_buf(), source };
    let separator = frame::separator(path)?;
    // The csv crate passes over a byte-order mark by itself.
    let file = File::open(path).map_err(unreadable)?;
    let mut reader = ReaderBuilder::new().delimiter(separator).from_reader(io::BufReader::new(file));
    let broken = |source| Error::Csv { path: path.to_path_buf(), source };
    let header = reader.headers().map_err(broken)?.clone();
    let mut places = [0; 5];
    for (place, column) in places.iter_mut().zip(COLUMNS) {
        let found = header.iter().position(|cell| cell.trim() == column);
        *place = found.ok_or_else(|| frame::columns(path, listed(COLUMNS), listed(header.iter())))?;
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

fn read_parquet(path: &Path, on_row: OnRow<'_>) -> Result<()> {
    frame::for_each_batch(path, scan(path)?, |batch| read_batch(path, &batch, on_row).map(|()| true))
}

fn read_batch(path: &Path, batch: &DataFrame, on_row: OnRow<'_>) -> Result<()> {
    let broken = broken(path);
    let column = |name: &str| batch.column(name).map_err(&broken);
    let [image, tag, category] = [column("image")?, column("tag")?, column("category")?];
    let id = column("tag_id")?;
    if !id.dtype().is_primitive_numeric() {
        return Err(frame::columns(path, "numbers in the column `tag_id`", id.dtype().to_string()));
    }
    let (id, score) = (id.strict_cast(&DataType::Int64).map_err(&broken)?, column("score")?);
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
            let empty = Columns::default().frame().map_err(broken(path))?;
            let writer =
                frame::parquet_groups(file.clone(), empty.schema(), metadata).map_err(broken(path))?;
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

    /// The whole file, beside its place, to be committed.
    pub(crate) fn finish(mut self) -> Result<AtomicFile> {
        match &mut self.form {
            Form::Csv(writer) => writer.flush().map_err(write_error(&self.path))?,
            Form::Parquet(writer, columns) => {
                let written = columns.write(writer).and_then(|()| writer.finish());
                written.map_err(broken(&self.path))?;
            }
        }
        let Self { path, file, form } = self;
        drop(form);
        let file = Arc::into_inner(file.0).expect("the writer was the only other owner");
        let mut file = file.into_inner().unwrap_or_else(PoisonError::into_inner);
        file.flush().map_err(write_error(&path))?;
        Ok(file)
    }
}

fn write_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Stage(vodka_stage::Error::Write { path: path.to_path_buf(), source })
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
