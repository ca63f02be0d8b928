//! What a table says about how it was made, and the table of pictures beside it.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::OnceLock,
};

use polars::prelude::{DataType, LazyFrame, PolarsResult, StringChunked, col};
use rayon::prelude::*;
use vodka_stage::{RunRecord, record_path};

use super::walk::comes_before;
use crate::{
    Result,
    frame::{broken, check_fields, collect, columns, is_text, listed, metadata, scan},
};

/// So many pictures ahead the next one is looked for.
const AHEAD: usize = 4;

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
        let about = Self::from_metadata(path)?;
        Ok(if about == Self::default() { Self::from_record(path) } else { about })
    }

    fn from_metadata(path: &Path) -> Result<Self> {
        let entries: HashMap<_, _> = metadata(path)?.into_iter().collect();
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

/// The sharpness of pictures.
pub(crate) struct Sharpness {
    names: StringChunked,
    values: Vec<f32>,
    /// Whether the names stand in the order in which the tagger lists pictures.
    is_ordered: bool,
    /// The place of each name, where it is needed and they do not.
    places: OnceLock<HashMap<String, u32>>,
}

impl Sharpness {
    /// Reads a tagger's table of pictures: Parquet or CSV with the columns `image` and `sharpness`.
    ///
    /// # Errors
    /// The file cannot be read; a column is missing or of another type; a sharpness is no number of 0 or more; a
    /// picture stands there twice.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let told = |expected: String, found: String| columns(path, expected, found);
        let mut frame = collect(path, rows(path)?)?;
        frame.rechunk_mut();
        let read = || -> PolarsResult<_> {
            Ok((frame.column("image")?.str()?.clone(), frame.column("sharpness")?.f32()?.clone()))
        };
        let (names, numbers) = read().map_err(broken(path))?;
        let mut values = Vec::with_capacity(names.len());
        for (name, value) in names.iter().zip(numbers.iter()) {
            let name = name.unwrap_or("null");
            match value {
                Some(value) if value >= 0.0 && value.is_finite() => values.push(value),
                found => {
                    let found = found.map_or("no number".to_owned(), |value| value.to_string());
                    return Err(told(format!("a sharpness of 0 or more for `{name}`"), found));
                }
            }
        }
        // In a strict order no picture stands there twice.
        let name = |place: u32| name(&names, place);
        let places = (1..names.len() as u32).into_par_iter();
        let is_ordered = places.all(|place| comes_before(name(place - 1), name(place)));
        let sharpness = Self { names, values, is_ordered, places: OnceLock::new() };
        if !sharpness.is_ordered && sharpness.places().len() < sharpness.values.len() {
            let mut seen = HashSet::new();
            let twice = sharpness.names.iter().flatten().find(|name| !seen.insert(*name));
            return Err(told(format!("one row for `{}`", twice.unwrap_or_default()), "two".to_owned()));
        }
        Ok(sharpness)
    }

    /// The sharpness of a picture. `cursor`, at first 0, goes along where pictures are asked for in the order of the table.
    pub(crate) fn of(&self, image: &str, cursor: &mut u32) -> Option<f32> {
        // Pictures without any tag are in this table and not in the other.
        let ahead = (*cursor..self.values.len() as u32).take(AHEAD);
        let place = match ahead.into_iter().find(|place| self.name(*place) == image) {
            Some(place) => place,
            None if self.is_ordered => self.searched(image)?,
            None => *self.places().get(image)?,
        };
        *cursor = place + 1;
        Some(self.values[place as usize])
    }

    /// The place of a name among names in order.
    fn searched(&self, image: &str) -> Option<u32> {
        let (mut from, mut to) = (0, self.values.len() as u32);
        while from < to {
            let middle = from.midpoint(to);
            match comes_before(self.name(middle), image) {
                true => from = middle + 1,
                false => to = middle,
            }
        }
        (from < self.values.len() as u32 && self.name(from) == image).then_some(from)
    }

    fn places(&self) -> &HashMap<String, u32> {
        let place = |(place, name): (u32, Option<&str>)| (name.unwrap_or("null").to_owned(), place);
        self.places.get_or_init(|| (0..).zip(self.names.iter()).map(place).collect())
    }

    fn name(&self, place: u32) -> &str {
        name(&self.names, place)
    }
}

fn name(names: &StringChunked, place: u32) -> &str {
    names.get(place as usize).unwrap_or("null")
}

/// The columns `image` as text and `sharpness` as f32, null where it is no number.
fn rows(path: &Path) -> Result<LazyFrame> {
    check_fields(path)?;
    let mut rows = scan(path)?;
    let schema = rows.collect_schema().map_err(broken(path))?;
    let names: Vec<_> = schema.iter_names().map(|name| name.as_str()).collect();
    if !["image", "sharpness"].iter().all(|name| names.contains(name)) {
        return Err(columns(path, "the columns image, sharpness", listed(names)));
    }
    if let Some(other) = schema.get("image").filter(|dtype| !is_text(dtype)) {
        return Err(columns(path, "text in the column `image`", format!("{other}")));
    }
    Ok(rows.select([col("image").cast(DataType::String), col("sharpness").cast(DataType::Float32)]))
}
