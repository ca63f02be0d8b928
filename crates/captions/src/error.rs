//! What can go wrong between a tag table and a caption.

use std::{io, path::PathBuf};

use polars::prelude::PolarsError;

use crate::rules::RuleKind;

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
        /// The picture.
        image: String,
        /// The tag.
        tag: String,
        /// The score, `NaN`, or `null`.
        found: String,
    },
    /// A row of a tag table that names no picture or no tag.
    #[error("`{path}`: the cell `{column}` is empty in a row {row}")]
    EmptyCell {
        /// The table.
        path: PathBuf,
        /// `image` or `tag`.
        column: &'static str,
        /// What else the row says.
        row: String,
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
    /// Several pictures would have the same caption.
    #[error("the pictures {pictures} share the caption `{caption}`: rename all but one of them{}", match others { 0 => String::new(), n => format!(" (and so with {n} more captions)") })]
    SharedCaption {
        /// All of them.
        pictures: String,
        /// The caption of all.
        caption: PathBuf,
        /// How many more captions are shared.
        others: usize,
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
    /// A configuration file of ours that does not parse.
    #[error(transparent)]
    Config(#[from] vodka_stage::ConfigError),
    /// A rule about a name that no tag can have.
    #[error("`{path}` line {line}, {kind}: expected the name of a tag, without a comma, found {found:?}")]
    RuleName {
        /// The file of rules.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        /// What the rule does.
        kind: RuleKind,
        /// What is there.
        found: String,
    },
    /// Two rules that make different things of one name.
    #[error("`{path}` line {line}: there is another {kind} for `{name}` in `{first}` line {first_line}")]
    RuleTwice {
        /// The file of the second rule.
        path: PathBuf,
        /// Its line, counted from 1.
        line: u64,
        /// What the rules do.
        kind: RuleKind,
        /// The canonical name.
        name: String,
        /// The file of the first rule.
        first: PathBuf,
        /// Its line, counted from 1.
        first_line: u64,
    },
    /// Aliases that lead back to where they began.
    #[error("`{path}` line {line}: the aliases go in a circle: {names}")]
    AliasCircle {
        /// The file of rules.
        path: PathBuf,
        /// The line of one of the aliases, counted from 1.
        line: u64,
        /// The names, with arrows.
        names: String,
    },
    /// A regular expression that is none.
    #[error("`{path}` line {line}, regex")]
    RulePattern {
        /// The file of rules.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        /// What is wrong with it.
        source: Box<regex::Error>,
    },
    /// A file that starts as UTF-16 does and is not.
    #[error("`{path}` starts with the mark of UTF-16 and is not UTF-16")]
    NotUtf16 {
        /// The file.
        path: PathBuf,
    },
    /// A tag table to write whose name does not say in which form.
    #[error("`{path}` ends neither in `.parquet` nor in `.csv`")]
    TableName {
        /// The file that was to be written.
        path: PathBuf,
    },
    /// A tag table whose rows are in another order than that of the pictures.
    #[error("`{path}`: the rows of the picture `{image}` do not lie together: sort the table by `image`")]
    Scattered {
        /// The table.
        path: PathBuf,
        /// A picture that comes again after another.
        image: String,
    },
    /// The user has asked to stop; stages report it as their outcome.
    #[error("stopped")]
    Stopped,
    /// Candidates are to be chosen by a list, and all to be taken.
    #[error("`list` chooses among the candidates and `all_head` takes them all: set one of them")]
    ListAndAllHead,
    /// A table of captions whose name does not say in which form.
    #[error("`{path}` ends neither in `.csv` nor in `.jsonl` nor in `.parquet`")]
    CaptionTableName {
        /// The file.
        path: PathBuf,
    },
    /// Neither a file of captions nor a service, or both.
    #[error("expected either a file of captions or an endpoint, found {found}")]
    CaptionSource {
        /// `both` or `neither`.
        found: &'static str,
    },
    /// A service without a model.
    #[error("an endpoint needs the name of a model")]
    NoModel,
    /// An address that no service can have.
    #[error("expected an address such as `https://HOST/v1`, found `{found}`")]
    Address {
        /// What is there.
        found: String,
    },
    /// A table that holds new captions from elsewhere.
    #[error(
        "`{output}` holds the captions of {found}, not of {wanted}: name another output, or move it away"
    )]
    OtherSource {
        /// The table.
        output: PathBuf,
        /// Where its captions are from.
        found: String,
        /// Where the new ones would be from.
        wanted: String,
    },
    /// A key that no header can carry.
    #[error("the key is empty, or holds spaces or characters that are not ASCII")]
    UnusableKey,
    /// A service that refuses everything.
    #[error("the endpoint answers {status}: {said}")]
    Endpoint {
        /// The HTTP status.
        status: u16,
        /// What it says, without the key.
        said: String,
    },
    /// A service that is elsewhere. Nothing was sent there.
    #[error(
        "the endpoint redirects to `{to}`, which is not followed; name it as the endpoint if you trust it"
    )]
    Redirected {
        /// Where it points.
        to: String,
    },
    /// A service that does not answer.
    #[error("no answer for {pictures} pictures in a row; the last: {reason}")]
    NoAnswers {
        /// How many.
        pictures: u32,
        /// What happened with the last of them.
        reason: String,
    },
    /// A table that names a picture by a path that leads elsewhere.
    #[error("`{path}` names `{image}`, which does not lie in the folder of pictures")]
    OutsideOfFolder {
        /// The table.
        path: PathBuf,
        /// What it names.
        image: String,
    },
    /// A setting that is not one of those that there are.
    #[error("{setting}: expected {expected}, found {found:?}")]
    Setting {
        /// The setting's name.
        setting: &'static str,
        /// What would do.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A text file that is not what it says, or the user.
    #[error("`{path}` is not {encoding}, as its mark or the settings say")]
    NotInEncoding {
        /// The file.
        path: PathBuf,
        /// The encoding's name.
        encoding: &'static str,
    },
    /// A template that cannot be used.
    #[error("the template's line {line}: {reason}")]
    Template {
        /// Counted from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// A file of captions that is not in the format that it should be in.
    #[error("`{path}` {place}: expected {expected}, found {found}")]
    CaptionFile {
        /// The file.
        path: PathBuf,
        /// The line or key.
        place: String,
        /// What would do.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A picture that has two captions which say different things.
    #[error("two captions for the picture `{image}`: {first} and {second}; keep one of them")]
    TwoCaptions {
        /// The picture.
        image: String,
        /// Where one of them is.
        first: String,
        /// Where the other is.
        second: String,
    },
    /// A row of a table that may be about several pictures.
    #[error("{place} names `{key}`, which may be any of {pictures}")]
    AmbiguousKey {
        /// The file, and the place in it.
        place: String,
        /// The name there.
        key: String,
        /// The pictures.
        pictures: String,
    },
    /// A `.orig` that no run has kept.
    #[error(
        "`{original}` is there, but `.vodka-captions` does not say that a run has kept it: put it back in its caption's place, or move it away"
    )]
    ForeignOriginal {
        /// The file.
        original: PathBuf,
    },
    /// A picture that is not the PNG that its name says.
    #[error("`{path}` is not a PNG whose text can be read: {reason}")]
    Png {
        /// The picture.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file or folder that is to be changed, and that its permissions say is not.
    #[error("`{path}` is read-only: allow writing, or write the captions to another folder")]
    ReadOnly {
        /// The file or folder.
        path: PathBuf,
    },
    /// A tag of a picture that was judged to be there and not to be there.
    #[error("`{path}` judges the tag `{tag}` of `{image}` both 1 and 0, on the lines {first} and {second}")]
    Judgement {
        /// The labels.
        path: PathBuf,
        /// The picture.
        image: String,
        /// The tag's canonical name.
        tag: String,
        /// Counted from 1.
        first: u64,
        /// Counted from 1.
        second: u64,
    },
    /// A tag table without any of the selected tags: it comes from a tagger with another vocabulary.
    #[error(
        "`{table}` has none of the {selected} selected tags: it is from a model with another vocabulary (it has `{example}`)"
    )]
    OtherVocabulary {
        /// The tag table.
        table: PathBuf,
        /// How many tags are selected.
        selected: usize,
        /// A tag of the table.
        example: String,
    },
    /// A folder for a report that holds something else.
    #[error(
        "`{path}` holds `{found}`, and no `.vodka-files` there says that a report has written it: choose an empty folder, or delete this one"
    )]
    NotAReport {
        /// The folder.
        path: PathBuf,
        /// A name in it.
        found: String,
    },
    /// A query that cannot be understood or answered.
    #[error(transparent)]
    Query(#[from] crate::query::QueryError),
    /// The same, of a query in a file or of a segment.
    #[error("in {place}")]
    QueryIn {
        /// Where the query stands.
        place: String,
        /// What is wrong with it.
        source: crate::query::QueryError,
    },
    /// Neither or both of two ways to give a query.
    #[error("expected either a query or a file with one, found {found}")]
    OneQuery {
        /// `both` or `neither`.
        found: &'static str,
    },
    /// A dataset of nothing.
    #[error("expected a folder of pictures, a tag table or a table of pictures, found none of them")]
    NoDataset,
    /// A folder of pictures is needed.
    #[error("{what} needs the folder of pictures, and none is given")]
    NoFolder {
        /// What needs it.
        what: &'static str,
    },
    /// A picture with two rows in a table that has one for each.
    #[error("`{path}` names the picture `{image}` twice")]
    ListedTwice {
        /// The table.
        path: PathBuf,
        /// The picture.
        image: String,
    },
    /// A hash that is none.
    #[error(
        "`{path}`: the `{column}` of the picture `{image}`: expected hexadecimal digits, found `{found}`"
    )]
    PictureHash {
        /// The table.
        path: PathBuf,
        /// The picture.
        image: String,
        /// `sha256` (64 digits) or `phash` (16).
        column: &'static str,
        /// What is there.
        found: String,
    },
    /// A table that lacks what is to be compared.
    #[error("`{path}` has no {what} of any picture")]
    NoFacts {
        /// The table of pictures.
        path: PathBuf,
        /// What is missing.
        what: &'static str,
    },
    /// A file that is not ours, or was changed since, where one is to be put.
    #[error(
        "`{path}` is in the way: `.vodka-files` does not say that a run has put it there as it is; move or delete it"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A segment that cannot be.
    #[error("segment `{name}`: {fault}")]
    Segment {
        /// Its name.
        name: String,
        /// What is wrong, with what would do.
        fault: String,
    },
    /// A division into nothing.
    #[error("expected a segment with a query, found none")]
    NoSegments,
}

impl Error {
    /// Whether the user has said what cannot be, on the command line or in a configuration (of which rules, queries and templates
    /// are part), rather than that data are missing or broken.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::UnknownTag { .. }
                | Self::Setting { .. }
                | Self::Range { .. }
                | Self::BothWays { .. }
                | Self::Config(_)
                | Self::RuleName { .. }
                | Self::RuleTwice { .. }
                | Self::AliasCircle { .. }
                | Self::RulePattern { .. }
                | Self::Template { .. }
                | Self::Query(_)
                | Self::QueryIn { .. }
                | Self::Segment { .. }
        )
    }
}
