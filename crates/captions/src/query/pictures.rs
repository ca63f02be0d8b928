//! The tagger's second table: one row for each picture.

use std::path::{Path, PathBuf};

use polars::prelude::{Column, DataFrame, DataType, col, len};
use vodka_stage::ContentHash;

use super::Sharpness;
use crate::{
    Error, Result,
    frame::{broken, check_fields, collect, columns, listed, scan},
};

/// A row of the table; what the table has no column for is not known.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PictureFacts {
    /// The picture's path, with `/`.
    pub image: String,
    /// Width and height in pixels.
    pub size: Option<(u32, u32)>,
    /// The SHA-256 of the file.
    pub hash: Option<ContentHash>,
    /// The perceptual hash ([`vodka_images::Measures::phash`]).
    pub phash: Option<u64>,
    /// How sharp it is.
    pub sharpness: Option<Sharpness>,
}

/// What is known of pictures, in order of the table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PictureTable {
    /// Where it was read.
    pub path: PathBuf,
    /// Each picture once.
    pub rows: Vec<PictureFacts>,
}

const SHARPNESS: [&str; 4] =
    ["sharpness", "sharpness_tile_min", "sharpness_tile_median", "sharpness_tile_max"];

impl PictureTable {
    /// Reads `tags.pictures.parquet` or `.csv`, as the tagger writes it: only the column `image` must be there.
    ///
    /// # Errors
    /// The file cannot be read; no column `image`; a picture that is there twice; a hash or a number that is none.
    pub fn read(path: &Path) -> Result<Self> {
        let frame = Frame::read(path)?;
        let images = frame.texts("image")?.ok_or_else(|| frame.lacks("image"))?;
        let (widths, heights) = (frame.numbers("width")?, frame.numbers("height")?);
        let (hashes, phashes) = (frame.texts("sha256")?, frame.texts("phash")?);
        let sharpness = SHARPNESS.map(|name| frame.numbers(name));
        let [whole, min, median, max] = sharpness;
        let (whole, min, median, max) = (whole?, min?, median?, max?);
        let at =
            |column: &Option<Vec<Option<f64>>>, row: usize| column.as_ref().and_then(|column| column[row]);
        let mut rows = Vec::with_capacity(images.len());
        for (row, image) in images.into_iter().enumerate() {
            let text = |column: &Option<Vec<Option<String>>>| column.as_ref()?[row].clone();
            let image = image.unwrap_or_default();
            let size = at(&widths, row).zip(at(&heights, row)).map(|(w, h)| (w as u32, h as u32));
            let sharpness = at(&whole, row).map(|whole| {
                // A table of another maker may have the first only.
                let or_whole = |column| at(column, row).unwrap_or(whole) as f32;
                Sharpness {
                    whole: whole as f32,
                    min: or_whole(&min),
                    median: or_whole(&median),
                    max: or_whole(&max),
                }
            });
            let hash =
                text(&hashes).map(|text| frame.parsed(&image, "sha256", &text, |text| text.parse().ok()));
            let phash = text(&phashes).map(|text| frame.parsed(&image, "phash", &text, hexadecimal));
            rows.push(PictureFacts {
                size,
                hash: hash.transpose()?,
                phash: phash.transpose()?,
                sharpness,
                image,
            });
        }
        let mut names: Vec<_> = rows.iter().map(|row| row.image.as_str()).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Error::ListedTwice { path: path.to_path_buf(), image: pair[0].to_owned() }),
            None => Ok(Self { path: path.to_path_buf(), rows }),
        }
    }
}

fn hexadecimal(text: &str) -> Option<u64> {
    (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok())?
}

/// What a tag table names.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    /// The pairs of tag and category, as the table spells them.
    pub(crate) tags: Vec<(String, Option<String>)>,
    /// The lowest score in the table.
    pub(crate) lowest: Option<f64>,
}

/// Reads what a tag table names.
pub(crate) fn vocabulary(path: &Path) -> Result<Vocabulary> {
    let rows = scan(path)?.select([
        col("tag").cast(DataType::String),
        col("category").cast(DataType::String),
        col("score").cast(DataType::Float32),
    ]);
    let pairs = rows.group_by([col("tag"), col("category")]).agg([col("score").min(), len().alias("rows")]);
    let frame = Frame { path: path.to_path_buf(), frame: collect(path, pairs)? };
    let tags = frame.texts("tag")?.unwrap_or_default();
    let categories = frame.texts("category")?.unwrap_or_default();
    let pairs = tags.into_iter().zip(categories).filter_map(|(tag, category)| Some((tag?, category)));
    let lowest = frame.numbers("score")?.unwrap_or_default().into_iter().flatten().reduce(f64::min);
    Ok(Vocabulary { tags: pairs.collect(), lowest })
}

struct Frame {
    path: PathBuf,
    frame: DataFrame,
}

impl Frame {
    fn read(path: &Path) -> Result<Self> {
        check_fields(path)?;
        let frame = collect(path, scan(path)?)?;
        Ok(Self { path: path.to_path_buf(), frame })
    }

    fn column(&self, name: &str, as_type: &DataType) -> Result<Option<Column>> {
        let Ok(column) = self.frame.column(name) else { return Ok(None) };
        let column = column.strict_cast(as_type).map_err(broken(&self.path))?;
        Ok(Some(column))
    }

    fn texts(&self, name: &str) -> Result<Option<Vec<Option<String>>>> {
        let Some(column) = self.column(name, &DataType::String)? else { return Ok(None) };
        let texts = column.str().map_err(broken(&self.path))?;
        Ok(Some(
            texts.iter().map(|text| text.filter(|text| !text.is_empty()).map(ToOwned::to_owned)).collect(),
        ))
    }

    fn numbers(&self, name: &str) -> Result<Option<Vec<Option<f64>>>> {
        let Some(column) = self.column(name, &DataType::Float64)? else { return Ok(None) };
        let numbers = column.f64().map_err(broken(&self.path))?;
        Ok(Some(numbers.iter().collect()))
    }

    fn lacks(&self, name: &str) -> Error {
        columns(&self.path, format!("a column `{name}`"), listed(self.frame.get_column_names()))
    }

    fn parsed<T>(
        &self,
        image: &str,
        column: &'static str,
        text: &str,
        parse: fn(&str) -> Option<T>,
    ) -> Result<T> {
        parse(text).ok_or_else(|| Error::PictureHash {
            path: self.path.clone(),
            image: image.to_owned(),
            column,
            found: text.to_owned(),
        })
    }
}
