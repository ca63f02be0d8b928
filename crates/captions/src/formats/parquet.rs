//! Captions in Parquet files with a column of names and one of captions.

use std::path::Path;

use polars::prelude::{Column, DataFrame, DataType, IntoColumn, NamedFrom, Series};

use super::{Columns, Edits, Row, column};
use crate::{
    Error, Result,
    frame::{broken, of_parquet, texts, write_parquet},
};

/// The rows of a Parquet file.
pub(super) fn rows(path: &Path, bytes: &[u8], columns: &Columns) -> Result<Vec<Row>> {
    let frame = of_parquet(path, bytes)?;
    let (image, caption) = places(path, &frame, columns)?;
    let [images, captions] = [texts(path, &frame.columns()[image])?, texts(path, &frame.columns()[caption])?];
    let row = |(row, (key, caption)): (usize, (Option<String>, Option<String>))| {
        let place = format!("row {}", row + 1);
        let key = key.ok_or_else(|| Error::CaptionFile {
            path: path.to_path_buf(),
            place: place.clone(),
            expected: "the name of a picture",
            found: "null".to_owned(),
        })?;
        Ok(Row { key, caption, place })
    };
    images.into_iter().zip(captions).enumerate().map(row).collect()
}

/// A Parquet file with some captions changed and some added; other columns stay, and are null where rows are added.
pub(super) fn written(
    path: &Path,
    bytes: Option<&[u8]>,
    columns: &Columns,
    edits: &Edits,
) -> Result<Vec<u8>> {
    let broken = broken(path);
    let mut frame = match bytes {
        Some(bytes) => of_parquet(path, bytes)?,
        None => {
            let names = [column(columns.image, "image"), column(columns.caption, "caption")];
            let empty = names.map(|name| Column::new_empty(name.into(), &DataType::String));
            DataFrame::new(0, empty.into()).map_err(&broken)?
        }
    };
    let (image, caption) = places(path, &frame, columns)?;
    let mut captions = texts(path, &frame.columns()[caption])?;
    for (row, new) in &edits.set {
        captions[*row] = Some(new.clone());
    }
    let name = frame.columns()[caption].name().clone();
    frame.replace_column(caption, Series::new(name, captions).into_column()).map_err(&broken)?;
    if !edits.add.is_empty() {
        let added = |(place, column): (usize, &Column)| {
            let name = column.name().clone();
            let keys = || edits.add.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>();
            let texts = || edits.add.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>();
            match place {
                _ if place == image => Series::new(name, keys()).into_column().cast(column.dtype()),
                _ if place == caption => Ok(Series::new(name, texts()).into_column()),
                _ => Ok(Column::full_null(name, edits.add.len(), column.dtype())),
            }
        };
        let added =
            frame.columns().iter().enumerate().map(added).collect::<Result<Vec<_>, _>>().map_err(&broken)?;
        let added = DataFrame::new(edits.add.len(), added).map_err(&broken)?;
        frame = frame.vstack(&added).map_err(&broken)?;
    }
    let mut bytes = Vec::new();
    write_parquet(path, &mut bytes, &mut frame)?;
    Ok(bytes)
}

fn places(path: &Path, frame: &DataFrame, columns: &Columns) -> Result<(usize, usize)> {
    let names: Vec<_> = frame.columns().iter().map(|column| column.name().to_string()).collect();
    Ok((columns.image(path, &names)?, columns.caption(path, &names)?))
}
