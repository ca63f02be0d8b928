//! What a table says about how it was made, and the table of pictures beside it.

use std::{collections::HashMap, fs::File, path::Path};

use polars::prelude::{DataType, Engine, ParquetReader, PolarsResult, SerReader, col};
use vodka_stage::{RunRecord, record_path};

use super::{broken, is_parquet, is_text, scan_csv, scan_parquet};
use crate::{Error, Result};

/// How a table was made, as far as it or the record beside it tells.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct About {
    /// The lowest score that was written.
    pub(crate) floor: Option<f32>,
    /// The hash of the tagger's vocabulary.
    pub(crate) labels: Option<String>,
    /// The hash of the network.
    pub(crate) model: Option<String>,
    /// The hash of the pictures.
    pub(crate) images: Option<String>,
}

impl About {
    /// Reads the metadata of a Parquet file, and where that says nothing, `<name>.run.json`.
    ///
    /// # Errors
    /// The file or its metadata cannot be read.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let about = if is_parquet(path)? { Self::from_metadata(path)? } else { Self::default() };
        Ok(if about == Self::default() { Self::from_record(path) } else { about })
    }

    fn from_metadata(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
        let mut reader = ParquetReader::new(file);
        let metadata = reader.get_metadata().map_err(|source| broken(path, source))?;
        let entries = metadata.key_value_metadata.iter().flatten();
        let entries: HashMap<_, _> =
            entries.filter_map(|entry| Some((entry.key.as_str(), entry.value.clone()?))).collect();
        let get = |name: &str| entries.get(name).cloned();
        Ok(Self {
            floor: get("vodka.min_score").and_then(|floor| floor.parse().ok()),
            labels: get("vodka.labels_sha256"),
            model: get("vodka.model_sha256"),
            images: get("vodka.images_sha256"),
        })
    }

    /// A record that is not there, or not a tagger's, tells nothing.
    fn from_record(path: &Path) -> Self {
        let Some(record) = RunRecord::read(&record_path(path)).ok().filter(|record| record.stage == "tag")
        else {
            return Self::default();
        };
        let hash = |name: &str| record.inputs.get(name).map(|input| input.sha256.to_string());
        let floor = record.settings.get("min_score").and_then(serde_json::Value::as_f64);
        Self {
            floor: floor.map(|floor| floor as f32),
            labels: hash("labels"),
            model: hash("model"),
            images: hash("images"),
        }
    }
}

/// The sharpness of each picture, from a tagger's table of pictures: Parquet or CSV with the columns `image` and
/// `sharpness`.
///
/// # Errors
/// The file cannot be read; a column is missing or of another type; a sharpness is no number of 0 or more; a picture
/// stands there twice.
pub(crate) fn sharpness(path: &Path) -> Result<HashMap<String, f32>> {
    let told = |expected: String, found: String| Error::Columns { path: path.to_path_buf(), expected, found };
    let mut rows = if is_parquet(path)? { scan_parquet(path) } else { scan_csv(path) }
        .map_err(|source| broken(path, source))?;
    let schema = rows.collect_schema().map_err(|source| broken(path, source))?;
    let names: Vec<_> = schema.iter_names().map(|name| name.as_str()).collect();
    if !["image", "sharpness"].iter().all(|name| names.contains(name)) {
        let expected = "the columns image, sharpness".to_owned();
        return Err(told(expected, format!("the columns {}", names.join(", "))));
    }
    if let Some(other) = schema.get("image").filter(|dtype| !is_text(dtype)) {
        return Err(told("text in the column `image`".to_owned(), format!("{other}")));
    }
    let columns = [
        col("image").cast(DataType::String),
        // Not strict: what is no number becomes null, and is told below with its picture.
        col("sharpness").cast(DataType::Float32),
    ];
    let frame = rows.select(columns).collect_with_engine(Engine::Streaming);
    let frame = frame.map_err(|source| broken(path, source))?.unwrap_single();
    let read = || -> PolarsResult<_> {
        Ok((frame.column("image")?.str()?.clone(), frame.column("sharpness")?.f32()?.clone()))
    };
    let (images, values) = read().map_err(|source| broken(path, source))?;
    let mut sharpness = HashMap::with_capacity(images.len());
    for (image, value) in images.iter().zip(values.iter()) {
        let image = image.unwrap_or("null");
        let Some(value) = value.filter(|value| *value >= 0.0 && value.is_finite()) else {
            let found = value.map_or("no number".to_owned(), |value| value.to_string());
            return Err(told(format!("a sharpness of 0 or more for `{image}`"), found));
        };
        if sharpness.insert(image.to_owned(), value).is_some() {
            return Err(told(format!("one row for `{image}`"), "two".to_owned()));
        }
    }
    Ok(sharpness)
}
