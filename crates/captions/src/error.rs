//! What can go wrong between a tag table and a caption.

use std::{io, path::PathBuf};

use polars::prelude::PolarsError;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure, with the file and the place in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An output cannot be written, or a run record not be read.
    #[error(transparent)]
    Stage(#[from] vodka_stage::Error),
    /// The folder of pictures cannot be listed.
    #[error(transparent)]
    Images(#[from] vodka_images::Error),
    /// A file cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A text file in another encoding.
    #[error("`{path}` is not UTF-8: found the byte {found:#04x} at offset {offset}")]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Where the text stops being UTF-8, in bytes from 0.
        offset: usize,
        /// The byte there.
        found: u8,
    },
    /// A CSV file that does not parse.
    #[error("cannot read the table `{path}`")]
    Csv {
        /// The file.
        path: PathBuf,
        /// What the parser says, with the line.
        source: csv::Error,
    },
    /// A table without the columns it should have, or with a column of another type.
    #[error("`{path}`: expected {expected}, found {found}")]
    Columns {
        /// The table.
        path: PathBuf,
        /// The columns, or the type of one.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A cell that cannot be what its column holds.
    #[error("`{path}` line {line}, column `{column}`: expected {expected}, found {found:?}")]
    Cell {
        /// The table.
        path: PathBuf,
        /// Counted from 1, with the header.
        line: u64,
        /// The column's name.
        column: String,
        /// What would do.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A tag that is wanted on one line and unwanted on another.
    #[error("`{path}` says both 1 and 0 for the tag `{tag}`, on the lines {first} and {second}")]
    Contradiction {
        /// The selection.
        path: PathBuf,
        /// The tag's canonical name.
        tag: String,
        /// Counted from 1.
        first: u64,
        /// Counted from 1.
        second: u64,
    },
    /// The tag table cannot be read or computed with.
    #[error("cannot read the tag table `{path}`")]
    Table {
        /// The table.
        path: PathBuf,
        /// What polars says.
        source: Box<PolarsError>,
    },
    /// A row of a tag table that no tagger writes.
    #[error(
        "`{path}`: the tag `{tag}` of the picture `{image}`: expected a score from 0 to 1, found {found}"
    )]
    Score {
        /// The table.
        path: PathBuf,
        /// The picture, or `null`.
        image: String,
        /// The tag, or `null`.
        tag: String,
        /// The score, `NaN`, or `null`.
        found: String,
    },
    /// A setting outside its range.
    #[error("{setting} is {found}, expected {expected}")]
    Range {
        /// The setting's name.
        setting: &'static str,
        /// Its value.
        found: f64,
        /// What it may be.
        expected: &'static str,
    },
    /// A tag that the vocabulary lacks.
    #[error("no tag `{name}` in `{path}`{}", nearest.as_ref().map(|near| format!(", did you mean `{near}`?")).unwrap_or_default())]
    UnknownTag {
        /// The vocabulary.
        path: PathBuf,
        /// The name, canonical.
        name: String,
        /// The name most like it.
        nearest: Option<String>,
    },
    /// A tag that is to be taken and to be left out.
    #[error("the tag `{name}` is to be both included and excluded")]
    BothWays {
        /// The name, canonical.
        name: String,
    },
    /// A coverage is asked for, and the vocabulary counts nothing.
    #[error("`{path}`: the counts of the general tags are all 0, so none of them covers anything")]
    NoCounts {
        /// The vocabulary.
        path: PathBuf,
    },
    /// No tag is chosen.
    #[error("no tag is selected in `{path}`")]
    NothingSelected {
        /// The selection, or the vocabulary it was to be made from.
        path: PathBuf,
    },
    /// A folder without pictures.
    #[error("no pictures in `{root}`")]
    NoImages {
        /// The folder.
        root: PathBuf,
    },
    /// Table and folder have no picture in common.
    #[error(
        "`{table}` is not about the pictures in `{images}`: it names `{named}`, the folder holds `{held}`"
    )]
    OtherImages {
        /// The tag table.
        table: PathBuf,
        /// The folder.
        images: PathBuf,
        /// A picture of the table.
        named: String,
        /// A picture of the folder.
        held: String,
    },
    /// Two pictures would have the same caption.
    #[error("the pictures `{first}` and `{second}` share the caption `{caption}`: rename one of them")]
    SharedCaption {
        /// A picture.
        first: PathBuf,
        /// Another.
        second: PathBuf,
        /// The caption of both.
        caption: PathBuf,
    },
    /// Pictures without a caption, where that is forbidden.
    #[error("{count} pictures in `{root}` have no caption: {examples}")]
    NoCaption {
        /// The folder.
        root: PathBuf,
        /// How many.
        count: usize,
        /// The first few.
        examples: String,
    },
    /// Neither a folder for the captions nor leave to change them in place, or both.
    #[error("expected either an output folder or `in_place`, found {found}")]
    Destination {
        /// `both` or `neither`.
        found: &'static str,
    },
    /// Captions written among the pictures would be taken for the originals.
    #[error(
        "the output `{output}` and the pictures `{images}` lie in each other: choose another folder, or write in place"
    )]
    Overlap {
        /// The output folder.
        output: PathBuf,
        /// The folder of pictures.
        images: PathBuf,
    },
    /// The output would replace what it is made from.
    #[error("the output `{path}` is the input")]
    OutputIsInput {
        /// The file.
        path: PathBuf,
    },
    /// A file that no run has written, or that was edited since, where a caption is to be.
    #[error("`{path}` is in the way of a caption: no run has written it as it is; move or delete it")]
    InTheWay {
        /// The file.
        path: PathBuf,
    },
    /// A caption was changed after tags had been put into it.
    #[error(
        "`{caption}` was edited after tags were put in; make the change in `{original}`, or delete that to start from the edited caption"
    )]
    Edited {
        /// The caption.
        caption: PathBuf,
        /// The original, which captions are made from.
        original: PathBuf,
    },
    /// A folder for a report that holds something else.
    #[error("`{path}` holds `{found}`, which no report has written: choose an empty folder, or a new one")]
    NotAReport {
        /// The folder.
        path: PathBuf,
        /// A name in it.
        found: String,
    },
    /// A file that no report has written where one of a report is to be.
    #[error("`{path}` is in the way of the report, which has not written it: move or delete it")]
    ForeignFile {
        /// The file.
        path: PathBuf,
    },
}
