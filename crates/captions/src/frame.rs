//! Tables on disk through polars: the one place that opens, reads and writes them.
//!
//! What a file is says its content, not its name: Parquet begins with `PAR1`, all else is CSV, separated by whatever the header
//! has a column `image` with.

use std::{
    fs::File,
    io::{Cursor, Read, Write},
    path::Path,
    sync::mpsc::sync_channel,
    thread,
};

use polars::io::parquet::write::BatchedWriter;
use polars::prelude::{
    Column, DataFrame, DataType, Engine, KeyValueMetadata, LazyCsvReader, LazyFileListReader, LazyFrame,
    ParquetCompression, ParquetReader, ParquetWriter, PlRefPath, PlanCallback, PolarsError, PolarsResult,
    ScanArgsParquet, Schema, SerReader,
};

use crate::{Error, Result, sheet};

/// So many batches of rows may wait.
const BATCHES: usize = 2;

/// What polars says of a table, as an error of ours.
pub(crate) fn broken(path: &Path) -> impl Fn(PolarsError) -> Error {
    move |source| Error::Table { path: path.to_path_buf(), source: Box::new(source) }
}

/// The error that a table has other columns, or columns of another type.
pub(crate) fn columns(path: &Path, expected: impl Into<String>, found: impl Into<String>) -> Error {
    Error::Columns { path: path.to_path_buf(), expected: expected.into(), found: found.into() }
}

/// `the columns a, b`.
pub(crate) fn listed<N: AsRef<str>>(names: impl IntoIterator<Item = N>) -> String {
    let names: Vec<_> = names.into_iter().map(|name| name.as_ref().to_owned()).collect();
    format!("the columns {}", names.join(", "))
}

pub(crate) fn is_parquet(path: &Path) -> Result<bool> {
    Ok(start(path)?.starts_with(b"PAR1"))
}

/// What separates the cells of a CSV.
pub(crate) fn separator(path: &Path) -> Result<u8> {
    let start = start(path)?;
    let start = String::from_utf8_lossy(&start);
    Ok(sheet::separator(start.trim_start_matches('\u{feff}'), "image").unwrap_or(b','))
}

fn start(path: &Path) -> Result<Vec<u8>> {
    let mut start = Vec::new();
    let file = File::open(path).and_then(|file| file.take(4096).read_to_end(&mut start));
    file.map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
    Ok(start)
}

/// The rows of a table of any columns, of CSV all of them as text: what is a number is said when it is cast.
pub(crate) fn scan(path: &Path) -> Result<LazyFrame> {
    let name = PlRefPath::try_from_path(path).map_err(broken(path))?;
    let rows = match is_parquet(path)? {
        true => LazyFrame::scan_parquet(name, ScanArgsParquet { glob: false, ..Default::default() }),
        false => LazyCsvReader::new(name)
            .with_separator(separator(path)?)
            .with_infer_schema_length(Some(0))
            .with_glob(false)
            .finish(),
    };
    rows.map_err(broken(path))
}

/// Makes sure that each row of a CSV has as many fields as the header. Polars drops those that are too many, so that a
/// decimal comma would cut a score, and fills up those that are too few.
pub(crate) fn check_fields(path: &Path) -> Result<()> {
    if is_parquet(path)? {
        return Ok(());
    }
    let file = File::open(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
    let separator = separator(path)?;
    let mut reader =
        csv::ReaderBuilder::new().delimiter(separator).buffer_capacity(1 << 20).from_reader(file);
    let mut record = csv::ByteRecord::new();
    let mut next = || reader.read_byte_record(&mut record);
    while next().map_err(|source| Error::Csv { path: path.to_path_buf(), source })? {}
    Ok(())
}

/// All rows of a query.
pub(crate) fn collect(path: &Path, rows: LazyFrame) -> Result<DataFrame> {
    Ok(rows.collect_with_engine(Engine::Streaming).map_err(broken(path))?.unwrap_single())
}

/// Hands over batches of rows in order, as long as `take` says to go on. The next ones are read meanwhile.
pub(crate) fn for_each_batch(
    path: &Path,
    rows: LazyFrame,
    mut take: impl FnMut(DataFrame) -> Result<bool>,
) -> Result<()> {
    let (send, batches) = sync_channel(BATCHES);
    // Polars stops where nobody wants more.
    let hand_over = PlanCallback::new(move |batch| Ok(send.send(batch).is_err()));
    let rows = rows.sink_batches(hand_over, true, None).map_err(broken(path))?;
    thread::scope(|scope| {
        let reader = scope.spawn(move || rows.collect_with_engine(Engine::Streaming));
        // Consumed, and with it the end of the channel, before the reader is waited for.
        let taken = batches.into_iter().map(&mut take).find(|taken| !matches!(taken, Ok(true)));
        let read = reader.join().expect("polars says by an error what went wrong");
        read.map_err(broken(path))?;
        taken.unwrap_or(Ok(true)).map(|_| ())
    })
}

/// The table in these bytes of a Parquet file.
pub(crate) fn of_parquet(path: &Path, bytes: &[u8]) -> Result<DataFrame> {
    ParquetReader::new(Cursor::new(bytes)).finish().map_err(broken(path))
}

/// What a Parquet file says about itself. Nothing of a CSV file.
pub(crate) fn metadata(path: &Path) -> Result<Vec<(String, String)>> {
    if !is_parquet(path)? {
        return Ok(Vec::new());
    }
    let file = File::open(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
    let mut reader = ParquetReader::new(file);
    let found = reader.get_metadata().map_err(broken(path))?.key_value_metadata().clone();
    let pairs = found.unwrap_or_default().into_iter().filter_map(|pair| Some((pair.key, pair.value?)));
    // This one describes the columns, and is written anew.
    Ok(pairs.filter(|(key, _)| key != "ARROW:schema").collect())
}

pub(crate) fn is_text(dtype: &DataType) -> bool {
    dtype.is_string() || dtype.is_categorical()
}

/// A column of text, as it is.
///
/// # Errors
/// It is of another type.
pub(crate) fn text(path: &Path, column: &Column) -> Result<Column> {
    match is_text(column.dtype()) {
        true => column.cast(&DataType::String).map_err(broken(path)),
        false => {
            let expected = format!("text in the column `{}`", column.name());
            Err(columns(path, expected, column.dtype().to_string()))
        }
    }
}

/// The cells of a column of text.
///
/// # Errors
/// As [`text`].
pub(crate) fn texts(path: &Path, column: &Column) -> Result<Vec<Option<String>>> {
    let column = text(path, column)?;
    let texts = column.str().map_err(broken(path))?;
    Ok(texts.iter().map(|text| text.map(ToOwned::to_owned)).collect())
}

/// Writes a table as Parquet.
pub(crate) fn write_parquet(path: &Path, to: impl Write, frame: &mut DataFrame) -> Result<()> {
    ParquetWriter::new(to).finish(frame).map_err(broken(path))?;
    Ok(())
}

/// Starts a Parquet file that is written in groups of rows.
pub(crate) fn parquet_groups<W: Write>(
    to: W,
    schema: &Schema,
    metadata: Vec<(String, String)>,
) -> PolarsResult<BatchedWriter<W>> {
    ParquetWriter::new(to)
        .with_compression(ParquetCompression::Snappy)
        .with_key_value_metadata(Some(KeyValueMetadata::from_static(metadata)))
        .batched(schema)
}
