//! Captions as people and programs keep them: beside pictures, in one table for all, in the pictures, in their names.

mod csv;
mod ed2;
mod exif;
mod file_name;
mod json;
mod keys;
mod parquet;
pub(crate) mod png;
mod read;
mod spans;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

pub use read::{CaptionSet, FoundCaption, Guessed, read_captions};
pub(crate) use read::{Gathered, gather};

use crate::{Error, Result, encoding};

/// How captions are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaptionFormat {
    /// `a.txt` beside `a.png`.
    #[default]
    Txt,
    /// `a.caption` beside `a.png`.
    Caption,
    /// EveryDream2's `a.yaml` (or `a.yml`) beside `a.png`.
    Ed2Yaml,
    /// kohya's metadata: one JSON object for all pictures.
    KohyaJson,
    /// One JSON object a line, as in Hugging Face's image folders.
    Jsonl,
    /// One Parquet file for all pictures.
    Parquet,
    /// One CSV file for all pictures.
    Csv,
    /// The text of pictures: read from PNG, and from the EXIF data of JPEG and WebP; written into PNG alone.
    Png,
    /// The names of the pictures, up to the first underscore, as EveryDream2 reads them.
    FileName,
}

impl CaptionFormat {
    /// All of them, in the order in which [`CaptionSource::auto`] looks.
    pub const ALL: [Self; 9] = [
        Self::Txt,
        Self::Caption,
        Self::Ed2Yaml,
        Self::KohyaJson,
        Self::Jsonl,
        Self::Parquet,
        Self::Csv,
        Self::Png,
        Self::FileName,
    ];

    /// Its name on the command line and in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Txt => "txt",
            Self::Caption => "caption",
            Self::Ed2Yaml => "ed2-yaml",
            Self::KohyaJson => "kohya-json",
            Self::Jsonl => "jsonl",
            Self::Parquet => "parquet",
            Self::Csv => "csv",
            Self::Png => "png",
            Self::FileName => "file-name",
        }
    }

    /// The extensions of files beside pictures, the one that is written first; empty for other formats.
    pub(crate) fn extensions(self) -> &'static [&'static str] {
        match self {
            Self::Txt => &["txt"],
            Self::Caption => &["caption"],
            Self::Ed2Yaml => &["yaml", "yml"],
            _ => &[],
        }
    }

    /// The name of the one file for all pictures.
    pub(crate) fn table(self) -> Option<&'static str> {
        match self {
            Self::KohyaJson => Some("meta_cap.json"),
            Self::Jsonl => Some("metadata.jsonl"),
            Self::Parquet => Some("metadata.parquet"),
            Self::Csv => Some("metadata.csv"),
            _ => None,
        }
    }
}

impl fmt::Display for CaptionFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CaptionFormat {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| Error::Setting {
            setting: "format",
            expected: Self::ALL.map(Self::name).join(", "),
            found: name.to_owned(),
        })
    }
}

/// Where captions are read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaptionSource {
    /// How they are kept.
    pub format: CaptionFormat,
    /// Looks at every format instead, for each picture, in the order of [`CaptionFormat::ALL`].
    pub auto: bool,
    /// The table of kohya-json, jsonl, parquet and csv. Without it the file with the usual name in the folder of pictures.
    pub file: Option<PathBuf>,
    /// The folder of txt, caption and ed2-yaml, in which they lie as the pictures do in theirs. Without it that of the pictures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
    /// The column of a table that names pictures, where that is not one of the usual.
    pub image_column: Option<String>,
    /// The column of a table that has captions, where that is not one of the usual.
    pub caption_column: Option<String>,
    /// The encoding of files that have no byte-order mark and are not UTF-8; without it it is guessed.
    pub encoding: Option<String>,
}

impl CaptionSource {
    /// Checks what can be checked without reading.
    ///
    /// # Errors
    /// An encoding that does not exist; a file or a folder for a format that has none.
    pub fn check(&self) -> Result<()> {
        self.encoding.as_deref().map(encoding::encoding_named).transpose()?;
        if let Some(file) = &self.file
            && !self.auto
            && self.format.table().is_none()
        {
            return Err(Error::Setting {
                setting: "source file",
                expected: format!("none with the format {}, which is not one file", self.format),
                found: file.display().to_string(),
            });
        }
        if let Some(folder) = &self.folder
            && (self.auto || self.format.extensions().is_empty())
        {
            return Err(Error::Setting {
                setting: "source folder",
                expected: "one only with txt, caption and ed2-yaml, which are files beside pictures"
                    .to_owned(),
                found: folder.display().to_string(),
            });
        }
        self.table().map(drop)
    }

    /// The same without places: what a run depends on beside the captions themselves.
    pub(crate) fn settings(&self) -> Self {
        Self { file: None, folder: None, ..self.clone() }
    }

    /// The table that captions may be in: the one that is named; or, by the format, the one with the usual name.
    pub(crate) fn table(&self) -> Result<Option<(CaptionFormat, PathBuf)>> {
        let format = match &self.file {
            Some(file) if self.auto => format_of(file)?,
            _ => self.format,
        };
        let usual = || format.table().map(PathBuf::from);
        Ok(self.file.clone().or_else(|| if self.auto { None } else { usual() }).map(|file| (format, file)))
    }

    pub(crate) fn columns(&self) -> Columns<'_> {
        Columns { image: self.image_column.as_deref(), caption: self.caption_column.as_deref() }
    }
}

/// What a table's name says that it is.
pub(crate) fn format_of(file: &Path) -> Result<CaptionFormat> {
    let extension = file.extension().unwrap_or_default().to_ascii_lowercase();
    match extension.to_str().unwrap_or_default() {
        "json" => Ok(CaptionFormat::KohyaJson),
        "jsonl" | "ndjson" => Ok(CaptionFormat::Jsonl),
        "parquet" => Ok(CaptionFormat::Parquet),
        "csv" | "tsv" => Ok(CaptionFormat::Csv),
        _ => Err(Error::Setting {
            setting: "source file",
            expected: "a name that ends with .json, .jsonl, .parquet or .csv".to_owned(),
            found: file.display().to_string(),
        }),
    }
}

/// A row of a table of captions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    /// How the table names the picture.
    pub key: String,
    /// None where the table says that there is none.
    pub caption: Option<String>,
    /// Where the row is in the file.
    pub place: String,
}

/// What is to change in a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Edits {
    /// Captions by the place of their row, from 0.
    pub set: BTreeMap<usize, String>,
    /// Captions that have no row yet, with the key of a new one.
    pub add: Vec<(String, String)>,
}

impl Edits {
    pub(crate) fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty()
    }
}

/// The columns that a user names.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Columns<'a> {
    pub image: Option<&'a str>,
    pub caption: Option<&'a str>,
}

/// How columns with names of pictures are called.
const IMAGE_COLUMNS: [&str; 6] = ["file_name", "filename", "image", "image_path", "path", "file"];

/// How columns with captions are called.
const CAPTION_COLUMNS: [&str; 4] = ["text", "caption", "prompt", "description"];

impl<'a> Columns<'a> {
    fn image_names(&self) -> Vec<&'a str> {
        self.image.map_or_else(|| IMAGE_COLUMNS.to_vec(), |name| vec![name])
    }

    fn image(&self, path: &Path, names: &[String]) -> Result<usize> {
        one_of(path, names, &self.image_names(), "names of pictures (image_column)")
    }

    fn caption(&self, path: &Path, names: &[String]) -> Result<usize> {
        let wanted = self.caption.map_or_else(|| CAPTION_COLUMNS.to_vec(), |name| vec![name]);
        one_of(path, names, &wanted, "captions (caption_column)")
    }
}

/// The one column that has one of the wanted names.
fn one_of(path: &Path, names: &[String], wanted: &[&str], what: &str) -> Result<usize> {
    let is_wanted = |name: &String| wanted.iter().any(|wanted| name.eq_ignore_ascii_case(wanted));
    let mut places = (0..names.len()).filter(|place| is_wanted(&names[*place]));
    match (places.next(), places.next()) {
        (Some(place), None) => Ok(place),
        (found, _) => Err(Error::Columns {
            path: path.to_path_buf(),
            expected: match found {
                None => format!("a column of {what}: {}", wanted.join(", ")),
                Some(_) => format!("one column of {what}"),
            },
            found: format!("the columns {}", names.join(", ")),
        }),
    }
}

fn column(wanted: Option<&str>, usual: &str) -> String {
    wanted.unwrap_or(usual).to_owned()
}

/// A file of captions that has been read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub path: &'a Path,
    pub format: CaptionFormat,
    pub columns: Columns<'a>,
    /// Of what has no mark and is not UTF-8.
    pub encoding: Option<&'static encoding_rs::Encoding>,
}

impl Place<'_> {
    /// The rows of a table.
    pub(crate) fn rows(&self, bytes: &[u8]) -> Result<(Vec<Row>, Option<&'static str>)> {
        if self.format == CaptionFormat::Parquet {
            return Ok((parquet::rows(self.path, bytes, &self.columns)?, None));
        }
        let decoded = encoding::decode(self.path, bytes, self.encoding)?;
        let rows = match self.format {
            CaptionFormat::KohyaJson => json::kohya_rows(self.path, &decoded.text)?,
            CaptionFormat::Jsonl => json::jsonl_rows(self.path, &decoded.text, &self.columns)?,
            _ => csv::rows(self.path, &decoded.text, &self.columns)?,
        };
        Ok((rows, decoded.guessed.then_some(decoded.encoding)))
    }

    /// A table with changes, in UTF-8; a mark stays, for it is how spreadsheets know that.
    pub(crate) fn table(&self, bytes: Option<&[u8]>, edits: &Edits) -> Result<Vec<u8>> {
        if self.format == CaptionFormat::Parquet {
            return parquet::written(self.path, bytes, &self.columns, edits);
        }
        let bytes = bytes.unwrap_or_default();
        let text = encoding::decode(self.path, bytes, self.encoding)?.text;
        let new = match self.format {
            CaptionFormat::KohyaJson => json::kohya_written(self.path, &text, edits)?,
            CaptionFormat::Jsonl => json::jsonl_written(self.path, &text, &self.columns, edits)?,
            _ => csv::written(self.path, &text, &self.columns, edits)?,
        };
        let mark = if encoding_rs::Encoding::for_bom(bytes).is_some() { "\u{feff}" } else { "" };
        Ok(format!("{mark}{new}").into_bytes())
    }

    /// The text of the caption in a file beside a picture; none where it holds only settings.
    pub(crate) fn sidecar(&self, bytes: &[u8]) -> Result<(Option<String>, Option<&'static str>)> {
        let decoded = encoding::decode(self.path, bytes, self.encoding)?;
        let guessed = decoded.guessed.then_some(decoded.encoding);
        match self.format {
            CaptionFormat::Ed2Yaml => Ok((ed2::read(self.path, &decoded.text)?, guessed)),
            _ => Ok((Some(decoded.text), guessed)),
        }
    }

    /// A file beside a picture with this caption, made from what was there.
    pub(crate) fn beside(&self, old: Option<&[u8]>, caption: &str) -> Result<Vec<u8>> {
        if self.format != CaptionFormat::Ed2Yaml {
            return Ok(format!("{caption}\n").into_bytes());
        }
        let old = old.map(|bytes| encoding::decode(self.path, bytes, self.encoding)).transpose()?;
        Ok(ed2::written(self.path, old.as_ref().map(|old| old.text.as_str()), caption)?.into_bytes())
    }
}

/// The name for a copy of a picture that has the caption in it, or why there is none.
pub(crate) fn named(picture: &Path, caption: &str) -> Result<String, String> {
    file_name::written(picture, caption)
}

/// The key of a new row: without the extension for kohya, whose trainer looks for the picture.
pub(crate) fn new_key(format: CaptionFormat, image: &str) -> String {
    match format {
        CaptionFormat::KohyaJson => keys::stem(image).to_owned(),
        _ => image.to_owned(),
    }
}
