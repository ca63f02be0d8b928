//! What can go wrong with a tagger and its model.

use std::{error::Error as StdError, path::PathBuf};

use crate::{Place, Profile, Provider, int8::Left};

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed tagging run or a model that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A folder that is to be read is not there.
    #[error("no folder `{path}` ({what})")]
    NoFolder {
        /// What it is for.
        what: &'static str,
        /// The path as given.
        path: PathBuf,
    },
    /// A file of the model is not there.
    #[error("the model folder `{folder}` has no {names} ({what})")]
    NoModelFile {
        /// The model folder.
        folder: PathBuf,
        /// The names it could have, each in backticks.
        names: String,
        /// What it holds.
        what: &'static str,
    },
    /// A file cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file is no text.
    #[error("`{path}` line {line}: expected UTF-8")]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The line with the first byte that is none, counted from 1.
        line: u64,
    },
    /// A description of a model that means nothing.
    #[error("`{path}`: `{key}`: expected {expected}, found {found}")]
    Description {
        /// The file.
        path: PathBuf,
        /// The key, with the tables around it.
        key: &'static str,
        /// What is allowed.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A name that is no built-in family.
    #[error("no family `{found}`: there are {known}")]
    UnknownFamily {
        /// The families there are.
        known: String,
        /// What was given.
        found: String,
    },
    /// The model is of none of the families whose files it has.
    #[error(
        "`{folder}` is of no known family: it has {found}; {reasons}; describe it in a model.toml beside it"
    )]
    NoFamily {
        /// The model folder.
        folder: PathBuf,
        /// The inputs and outputs of its network.
        found: String,
        /// What each family that could be meant has instead.
        reasons: String,
    },
    /// The model could be of several families.
    #[error(
        "`{folder}` could be of the families {candidates}; name one, or write `family = ...` into a model.toml beside it"
    )]
    Ambiguous {
        /// The model folder.
        folder: PathBuf,
        /// The families.
        candidates: String,
    },
    /// A file of processing steps has one that cannot be followed.
    #[error("`{path}`: `{steps}[{place}]`: expected {expected}, found {found}")]
    Preprocess {
        /// The file.
        path: PathBuf,
        /// The list of steps.
        steps: String,
        /// The place of the step in it, counted from 0.
        place: usize,
        /// What can be followed there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A profile asks for what the family does not do.
    #[error(
        "the profile `{profile}` is for families that pad a picture and then resize it; `{family}` does not"
    )]
    Profile {
        /// The profile.
        profile: Profile,
        /// The family.
        family: String,
    },
    /// A name that is no profile.
    #[error("expected a profile ({known}), found `{found}`")]
    UnknownProfile {
        /// The profiles there are.
        known: String,
        /// What was given.
        found: String,
    },
    /// The user wants to stop; the same goes on where it was.
    #[error("{what} is interrupted")]
    Interrupted {
        /// What was in hand.
        what: String,
    },
    /// A setting is out of range.
    #[error("`{name}`: expected {expected}, found {found}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What is allowed.
        expected: &'static str,
        /// What was given.
        found: String,
    },
    /// There is nothing to tag.
    #[error("no pictures in `{path}` or below it (looked for {extensions})")]
    NoImages {
        /// The image folder.
        path: PathBuf,
        /// The extensions of pictures.
        extensions: String,
    },
    /// A file of labels is malformed.
    #[error("`{path}` {place}: expected {expected}, found {found:?}")]
    Labels {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        place: Place,
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A column is missing in a file of labels.
    #[error("`{path}` has no column `{column}`")]
    NoColumn {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
    },
    /// A file of labels cannot be read as CSV.
    #[error("cannot read the labels `{path}`")]
    LabelsCsv {
        /// The file.
        path: PathBuf,
        /// The parser's reason.
        source: csv::Error,
    },
    /// A file beside the network is not the JSON it should be.
    #[error("`{path}` is not the JSON it should be")]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's reason.
        source: serde_json::Error,
    },
    /// Model and labels do not belong together.
    #[error("`{model}` scores {outputs} tags, but `{labels}` has {rows}: they do not belong together")]
    LabelCount {
        /// The model file.
        model: PathBuf,
        /// The width of its output.
        outputs: usize,
        /// The file of labels.
        labels: PathBuf,
        /// Its rows.
        rows: usize,
    },
    /// ONNX Runtime is not installed where it was looked for.
    #[error("no ONNX Runtime at `{path}`; `cargo xtask setup` installs it")]
    NoRuntime {
        /// The library.
        path: PathBuf,
    },
    /// The library is no ONNX Runtime, or too old a one.
    #[error("cannot load ONNX Runtime from `{path}`; `cargo xtask setup` installs the right one")]
    LoadRuntime {
        /// The library.
        path: PathBuf,
        /// The loader's reason.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// A process can hold one ONNX Runtime.
    #[error("ONNX Runtime is already loaded from `{loaded}`, it cannot be loaded from `{asked}` too")]
    OtherRuntime {
        /// The library in use.
        loaded: PathBuf,
        /// The library asked for.
        asked: PathBuf,
    },
    /// The execution provider that was asked for cannot be used here.
    #[error("the execution provider `{provider}` is not available in this ONNX Runtime: {remedy}")]
    Provider {
        /// The provider.
        provider: Provider,
        /// What it takes.
        remedy: &'static str,
        /// ONNX Runtime's reason.
        source: ort::Error,
    },
    /// The execution provider that was asked for cannot run anything of the model.
    #[error("the execution provider `{provider}` can run no part of `{model}`")]
    Unused {
        /// The provider.
        provider: Provider,
        /// The model file.
        model: PathBuf,
    },
    /// A name that is no execution provider.
    #[error("expected an execution provider ({known}), found `{found}`")]
    UnknownProvider {
        /// The providers there are.
        known: String,
        /// What was given.
        found: String,
    },
    /// ONNX Runtime cannot load or run the model.
    #[error("ONNX Runtime fails on `{model}`")]
    Runtime {
        /// The model file.
        model: PathBuf,
        /// ONNX Runtime's reason.
        source: ort::Error,
    },
    /// The network is not what its description says.
    #[error("`{model}` is no tagger of this kind: expected {expected}, found {found}")]
    Graph {
        /// The model file.
        model: PathBuf,
        /// What it should have.
        expected: String,
        /// What this one has.
        found: String,
    },
    /// Scores that are no probabilities.
    #[error("`{model}` scores `{tag}` with {score}, expected 0 to 1: {hint}")]
    NotAProbability {
        /// The model file.
        model: PathBuf,
        /// The first tag with such a score.
        tag: String,
        /// The score.
        score: f32,
        /// What that looks like, and what helps.
        hint: &'static str,
    },
    /// Scores that look like probabilities put through the logistic function once more.
    #[error(
        "`{model}` scores every tag with 0.5 or more (lowest {lowest}), expected most of them near 0: {hint}"
    )]
    AllHigh {
        /// The model file.
        model: PathBuf,
        /// The lowest score of any tag.
        lowest: f32,
        /// What that looks like, and what helps.
        hint: &'static str,
    },
    /// The scores do not depend on the picture.
    #[error("`{model}` gives the same scores for different pictures: it is damaged or was exported wrongly")]
    Constant {
        /// The model file.
        model: PathBuf,
    },
    /// A file is no ONNX model, or a damaged one.
    #[error("`{model}` is no ONNX model or damaged: at byte {at} expected {expected}, found {found}")]
    NotOnnx {
        /// The model file.
        model: PathBuf,
        /// Where in it.
        at: usize,
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A model in 8 bits would take the place of the one it is made of.
    #[error("`{path}` is the model itself: the one in 8 bits needs another place")]
    SameModel {
        /// The output as given.
        path: PathBuf,
    },
    /// A model in 8 bits would take the place of another one.
    #[error("`{path}` is there already, and no network is written over: name another output")]
    NetworkThere {
        /// The network.
        path: PathBuf,
    },
    /// A model is larger than one ONNX file can be.
    #[error(
        "`{model}` has {bytes} bytes with its weights, expected at most 2 GiB, which is what one ONNX file can have"
    )]
    ModelTooLarge {
        /// The model file.
        model: PathBuf,
        /// Its size, or how much was read of it before it was too large.
        bytes: u64,
    },
    /// A tensor in a file beside the model is not as it should be.
    #[error("`{model}` keeps `{tensor}` in `{location}`: expected {expected}, found {found}")]
    WeightsOutside {
        /// The model file.
        model: PathBuf,
        /// The tensor.
        tensor: String,
        /// The file it is in, relative to the model's folder.
        location: String,
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A model is too old for 8-bit products.
    #[error("`{model}` is of opset {version}, expected 11 or later")]
    Opset {
        /// The model file.
        model: PathBuf,
        /// The version of ONNX's operators; 0 where it has none.
        version: i64,
    },
    /// No matrix product of a model can be quantised.
    #[error("nothing to quantise in `{model}`: {}", nothing(left))]
    NothingToQuantize {
        /// The model file.
        model: PathBuf,
        /// Its matrix products, and why each stays.
        left: Vec<Left>,
    },
    /// A batch cannot be scored.
    #[error("cannot score `{first}`{}", and_more(*.more))]
    Scoring {
        /// The first picture of the batch.
        first: String,
        /// How many more there are in it.
        more: usize,
        /// What went wrong.
        source: Box<Error>,
    },
    /// A table cannot be written.
    #[error("cannot write the table `{path}`")]
    Table {
        /// The table.
        path: PathBuf,
        /// The writer's reason.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The hub has no such model, refuses it without a token, or cannot be reached.
    #[error("no such folder, and cannot get the model `{model}` from {endpoint}")]
    Hub {
        /// The model's name and revision.
        model: String,
        /// The hub.
        endpoint: String,
        /// The reason.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The hub's answer makes no sense, or the model is of another kind.
    #[error("the hub says of the model `{model}`: expected {expected}, found {found}")]
    HubAnswer {
        /// The model's name and revision.
        model: String,
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A model that is to be used without a network is not on this machine.
    #[error("no such folder, offline, and the model `{model}` is not in the hub's cache: no `{missing}`")]
    NotCached {
        /// The model's name and revision.
        model: String,
        /// The first file that was looked for and not found.
        missing: PathBuf,
    },
    /// A file is not what it should be.
    #[error("`{path}` is not the file it should be: expected {expected}, found {found}")]
    WrongContent {
        /// The file.
        path: PathBuf,
        /// Its size or hash as it should be.
        expected: String,
        /// Its size or hash as it is.
        found: String,
    },
    /// A description or a file beside it is malformed.
    #[error(transparent)]
    Config(#[from] vodka_stage::ConfigError),
    /// The pictures cannot be listed.
    #[error(transparent)]
    Images(#[from] vodka_images::Error),
    /// A file of the run cannot be read or written.
    #[error(transparent)]
    Stage(#[from] vodka_stage::Error),
}

fn nothing(left: &[Left]) -> String {
    match left {
        [] => "it has no matrix products".into(),
        [only] => only.to_string(),
        [first, rest @ ..] => format!("{first}, and {} more that stay", rest.len()),
    }
}

fn and_more(more: usize) -> String {
    match more {
        0 => String::new(),
        more => format!(" and {more} more"),
    }
}
