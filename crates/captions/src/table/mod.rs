//! Tag tables: which tagger score each picture has for each tag.

mod about;
mod coded;
mod parallel;
mod walk;
mod warnings;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use polars::prelude::{
    AnyValue, Column, DataFrame, DataType, Expr, IntoLazy, JoinArgs, JoinType, LazyFrame, PolarsError,
    UniqueKeepStrategy, col, len, lit,
};
use serde::{Deserialize, Serialize};

pub(crate) use about::{About, Sharpness};
pub(crate) use walk::{Scored, Visitor, Walked, categories, walk};
pub(crate) use warnings::{below_floor, list, missing_tags, other_vocabulary};

use crate::{
    Error, Result, TagScore, canonical,
    frame::{self, broken, check_fields, collect, columns, is_text, listed},
};

/// The columns of a tag table.
pub(crate) const COLUMNS: [&str; 5] = ["image", "tag_id", "tag", "category", "score"];

/// A tag table on disk, Parquet or CSV: one row per picture and tag. Rows are read when they are asked for, and only
/// those that are asked for are held in memory.
///
/// Tags are known by their [`canonical`] names, however the table spells them.
pub struct TagTable {
    path: PathBuf,
    rows: LazyFrame,
    /// Each spelling in the table, with its canonical form.
    spellings: Vec<(String, String)>,
}

impl std::fmt::Debug for TagTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TagTable")
            .field("path", &self.path)
            .field("spellings", &self.spellings.len())
            .finish()
    }
}

/// The scores of a vocabulary's tags.
#[derive(Debug, Clone, Default)]
pub struct Scores {
    /// By picture, in order of the vocabulary; pictures with none of the tags are not listed.
    pub by_image: BTreeMap<String, Vec<TagScore>>,
    /// Tags that pictures have more than once; the highest score counts.
    pub doubles: Vec<Double>,
}

/// A tag that pictures have more than once, mostly because the table spells it in several ways.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Double {
    /// The canonical name.
    pub tag: String,
    /// How the table spells it.
    pub spellings: Vec<String>,
    /// How many pictures have it more than once.
    pub images: usize,
}

impl TagTable {
    /// Opens a tag table and checks its columns and scores.
    ///
    /// # Errors
    /// The file cannot be read; a row of a CSV has more or fewer fields than the header; a column is missing or of
    /// another type; a score is missing, not a number, or not within 0 to 1.
    pub fn open(path: &Path) -> Result<Self> {
        check_fields(path)?;
        let mut table = Self { path: path.to_path_buf(), rows: scan(path)?, spellings: Vec::new() };
        table.check_scores()?;
        let tags = table.collect(table.rows.clone().group_by([col("tag")]).agg([len().alias("rows")]))?;
        let mut spellings: Vec<_> =
            table.strings(&tags, "tag")?.map(|tag| (tag.to_owned(), canonical(tag))).collect();
        spellings.sort();
        table.spellings = spellings;
        Ok(table)
    }

    /// The canonical names of all tags in the table.
    pub fn tags(&self) -> BTreeSet<&str> {
        self.spellings.iter().map(|(_, name)| name.as_str()).collect()
    }

    /// The pictures that the table names.
    pub fn images(&self) -> Result<BTreeSet<String>> {
        let images = self.rows.clone().select([col("image")]).unique(None, UniqueKeepStrategy::Any);
        let images = self.collect(images)?;
        Ok(self.strings(&images, "image")?.map(ToOwned::to_owned).collect())
    }

    /// Leaves the rows of these pictures only.
    pub fn restrict<'a>(&mut self, images: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let images: Vec<_> = images.into_iter().collect();
        let images = self.frame(vec![Column::new("image".into(), images)])?;
        self.rows = join(self.rows.clone(), images, "image");
        Ok(())
    }

    /// The scores of the tags of `vocabulary`, given by their canonical names.
    pub fn scores(&self, vocabulary: &[&str]) -> Result<Scores> {
        let found = self.collect(self.merged(vocabulary)?)?;
        let images = self.strings(&found, "image")?;
        let (places, scores, rows) =
            (self.numbers(&found, "place")?, self.numbers(&found, "score")?, self.numbers(&found, "rows")?);
        let mut by_image: BTreeMap<String, Vec<TagScore>> = BTreeMap::new();
        let mut doubled: BTreeMap<usize, usize> = BTreeMap::new();
        for (((image, place), score), rows) in images.zip(places).zip(scores).zip(rows) {
            let tag = place as usize;
            // The scores come from f32 and have lost nothing on the way.
            by_image.entry(image.to_owned()).or_default().push(TagScore { tag, score: score as f32 });
            if rows > 1.0 {
                *doubled.entry(tag).or_default() += 1;
            }
        }
        by_image.values_mut().for_each(|tags| tags.sort_by_key(|tag| tag.tag));
        let double = |(tag, images): (usize, usize)| {
            let spelled = self.spellings.iter().filter(|(_, name)| name == vocabulary[tag]);
            let spellings = spelled.map(|(spelling, _)| spelling.clone()).collect();
            Double { tag: vocabulary[tag].to_owned(), spellings, images }
        };
        Ok(Scores { by_image, doubles: doubled.into_iter().map(double).collect() })
    }

    /// One row per picture and tag: `image`, `place` in the vocabulary, the highest `score`, and of how many `rows`.
    fn merged(&self, vocabulary: &[&str]) -> Result<LazyFrame> {
        let places: BTreeMap<_, _> = (0_u32..).zip(vocabulary).map(|(place, tag)| (*tag, place)).collect();
        let wanted = self.spellings.iter().filter_map(|(spelling, name)| {
            places.get(name.as_str()).map(|place| (spelling.as_str(), *place))
        });
        let (spellings, places): (Vec<_>, Vec<_>) = wanted.unzip();
        let wanted =
            self.frame(vec![Column::new("tag".into(), spellings), Column::new("place".into(), places)])?;
        let rows = join(self.rows.clone(), wanted, "tag");
        Ok(rows
            .group_by([col("image"), col("place")])
            .agg([col("score").max().alias("score"), len().alias("rows")]))
    }

    /// Names a row that no tagger writes.
    fn check_scores(&self) -> Result<()> {
        let score = || col("score");
        // In polars' order NaN is above every number.
        let wrong = score().lt(lit(0_f32)).or(score().gt(lit(1_f32)));
        let missing = [col("image"), col("tag"), score()].map(Expr::is_null);
        let wrong = missing.into_iter().fold(wrong, Expr::or);
        let found = self.collect(self.rows.clone().filter(wrong).limit(1))?;
        if found.height() == 0 {
            return Ok(());
        }
        let cell = |name| {
            let cell = found.column(name).and_then(|column| column.get(0));
            cell.map(|cell| text(&cell)).map_err(|source| self.broken(source))
        };
        Err(wrong_row(&self.path, cell("image")?, cell("tag")?, cell("score")?))
    }

    fn collect(&self, query: LazyFrame) -> Result<DataFrame> {
        collect(&self.path, query)
    }

    fn strings<'a>(
        &self,
        frame: &'a DataFrame,
        name: &str,
    ) -> Result<impl Iterator<Item = &'a str> + use<'a>> {
        let column = frame.column(name).and_then(Column::str).map_err(|source| self.broken(source))?;
        Ok(column.iter().flatten())
    }

    /// A column of numbers, all of which fit an f64 exactly.
    fn numbers(&self, frame: &DataFrame, name: &str) -> Result<impl Iterator<Item = f64> + use<>> {
        let column = frame.column(name).and_then(|column| column.cast(&DataType::Float64));
        let column = column.and_then(|column| column.f64().cloned()).map_err(|source| self.broken(source))?;
        Ok(column.to_vec().into_iter().flatten())
    }

    fn frame(&self, columns: Vec<Column>) -> Result<LazyFrame> {
        let height = columns.first().map_or(0, Column::len);
        Ok(DataFrame::new(height, columns).map_err(|source| self.broken(source))?.lazy())
    }

    fn broken(&self, source: PolarsError) -> Error {
        broken(&self.path)(source)
    }
}

/// Of spellings with their canonical forms, the forms that are spelled in several ways.
pub(crate) fn respelled(spellings: &[(String, String)]) -> Vec<(String, Vec<String>)> {
    let mut spelled: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (spelling, name) in spellings {
        spelled.entry(name).or_default().push(spelling.clone());
    }
    let several = spelled.into_iter().filter(|(_, spellings)| spellings.len() > 1);
    several.map(|(name, spellings)| (name.to_owned(), spellings)).collect()
}

fn join(rows: LazyFrame, wanted: LazyFrame, column: &str) -> LazyFrame {
    rows.join(wanted, [col(column)], [col(column)], JoinArgs::new(JoinType::Inner))
}

/// The rows of a table, with `image`, `tag` and `category` as text and `score` as f32; `tag_id` as it is.
pub(crate) fn scan(path: &Path) -> Result<LazyFrame> {
    let mut rows = frame::scan(path)?;
    let schema = rows.collect_schema().map_err(broken(path))?;
    let names: Vec<_> = schema.iter_names().map(|name| name.as_str()).collect();
    if COLUMNS.iter().any(|column| !names.contains(column)) {
        return Err(columns(path, listed(COLUMNS), listed(names)));
    }
    for (name, dtype) in schema.iter() {
        let expected = match name.as_str() {
            "image" | "tag" if !is_text(dtype) => "text",
            "score" if !(dtype.is_primitive_numeric() || dtype.is_string()) => "numbers",
            _ => continue,
        };
        return Err(columns(path, format!("{expected} in the column `{name}`"), format!("{dtype}")));
    }
    Ok(rows.select([
        col("image").cast(DataType::String),
        col("tag_id"),
        col("tag").cast(DataType::String),
        col("category").cast(DataType::String),
        col("score").strict_cast(DataType::Float32),
    ]))
}

/// The text of a cell, if it is not empty.
fn text(cell: &AnyValue<'_>) -> Option<String> {
    (!cell.is_null()).then(|| cell.str_value().into_owned())
}

/// What is wrong with a row that no tagger writes; empty cells are none.
pub(crate) fn wrong_row(
    path: &Path,
    image: Option<String>,
    tag: Option<String>,
    found: Option<String>,
) -> Error {
    let path = path.to_path_buf();
    let found = found.unwrap_or_else(|| "null".to_owned());
    let row = |what: &str, name: Option<String>| {
        let name = name.map_or("with nothing else".to_owned(), |name| format!("{what} `{name}`"));
        format!("{name} and the score {found}")
    };
    match (image, tag) {
        (None, tag) => Error::EmptyCell { row: row("with the tag", tag), path, column: "image" },
        (image, None) => Error::EmptyCell { row: row("with the picture", image), path, column: "tag" },
        (Some(image), Some(tag)) => Error::Score { path, image, tag, found },
    }
}

/// The table of pictures that the tagger has written beside a tag table, `tags.pictures.parquet` for `tags.parquet`, if it
/// is there.
pub(crate) fn pictures_beside(tags: &Path) -> Option<PathBuf> {
    let extension = tags.extension()?.to_string_lossy().into_owned();
    Some(tags.with_extension(format!("pictures.{extension}"))).filter(|path| path.is_file())
}
