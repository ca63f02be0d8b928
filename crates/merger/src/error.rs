//! What can go wrong in a merge.

use std::path::PathBuf;

use vodka_checkpoint::Mismatch;
use vodka_stage::ContentHash;

use crate::Method;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A merge that cannot be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A parent is damaged or something else than a checkpoint, or the result cannot be written.
    #[error(transparent)]
    Checkpoint(#[from] vodka_checkpoint::Error),
    /// A file cannot be hashed, or the run record not be read or written.
    #[error(transparent)]
    Stage(#[from] vodka_stage::Error),
    /// A recipe cannot be read, or something in it is wrong.
    #[error(transparent)]
    Recipe(#[from] vodka_stage::ConfigError),
    /// A number makes no sense for the method.
    #[error("{name} is {found}, expected {expected}")]
    Param {
        /// The parameter.
        name: &'static str,
        /// The number.
        found: f64,
        /// What it may be.
        expected: String,
    },
    /// A method does not have the parameter.
    #[error("{method} has no {name}")]
    NoParam {
        /// The method.
        method: Method,
        /// The parameter.
        name: String,
    },
    /// A parameter without a default is not given.
    #[error("{method} needs a {name}")]
    MissingParam {
        /// The method.
        method: Method,
        /// The parameter.
        name: &'static str,
    },
    /// Too few or too many checkpoints for the method.
    #[error("{method} takes {least}{} checkpoints, found {found}",
        match .most { None => " or more".to_owned(), Some(most) if most == .least => String::new(), Some(most) => format!(" to {most}") })]
    Parents {
        /// The method.
        method: Method,
        /// The least number it takes.
        least: usize,
        /// The largest number.
        most: Option<usize>,
        /// How many there are.
        found: usize,
    },
    /// The result would replace one of its parents.
    #[error("the output `{path}` is one of the inputs")]
    OutputIsInput {
        /// The output.
        path: PathBuf,
    },
    /// Two results would have one name.
    #[error(
        "two outputs are called `{path}`: where a weight is a list, its {{name}} must be in the name of the file"
    )]
    SameOutput {
        /// The output.
        path: PathBuf,
    },
    /// The output's name promises another format.
    #[error("the output `{path}` does not end in .safetensors")]
    OutputName {
        /// The output.
        path: PathBuf,
    },
    /// Lists of weights make more files than anyone wants.
    #[error("the lists of weights make more than {most} outputs")]
    TooMany {
        /// How many there may be.
        most: usize,
    },
    /// A parent is given that the recipe does not name.
    #[error("the recipe has no parent `{name}`")]
    NoParent {
        /// The name.
        name: String,
    },
    /// One file is given for several outputs.
    #[error("the recipe has {found} outputs, expected one to give a file for")]
    SeveralOutputs {
        /// How many there are.
        found: usize,
    },
    /// A recipe has no output of the name.
    #[error("no output is called `{name}`, expected one of `{}`", .known.join("`, `"))]
    NoOutput {
        /// The name.
        name: String,
        /// The outputs that there are.
        known: Vec<String>,
    },
    /// One result is asked for, and there are several.
    #[error("there are several outputs, expected one of `{}`", .known.join("`, `"))]
    ChooseOutput {
        /// The outputs that there are.
        known: Vec<String>,
    },
    /// A weight is given that no step has.
    #[error("no step has a weight `{name}`, expected one of `{}`", .known.join("`, `"))]
    NoWeight {
        /// The name.
        name: String,
        /// The weights that there are.
        known: Vec<String>,
    },
    /// A weight is given that several steps have.
    #[error("`{name}` is a weight of several steps, expected `{}`", .found.join("` or `"))]
    SeveralWeights {
        /// The name.
        name: String,
        /// The weights that it may mean.
        found: Vec<String>,
    },
    /// A weight is no number, preset or list of 26 numbers.
    #[error("expected a number, the name of a preset, or 26 numbers with commas, found `{found}`{}",
        .nearest.map(|name| format!(", did you mean `{name}`?")).unwrap_or_default())]
    Weight {
        /// What was given.
        found: String,
        /// The preset that is most like it.
        nearest: Option<&'static str>,
    },
    /// A merged file that is to be repeated or verified, but does not say how it was made.
    #[error("the metadata of `{path}` holds no recipe")]
    NoRecipe {
        /// The file.
        path: PathBuf,
    },
    /// A parent has other settings than A, which its shapes do not tell.
    #[error("`{path}` does not fit `{a}`: `{section}` is {found}, expected {expected}")]
    Settings {
        /// The parent.
        path: PathBuf,
        /// The first parent.
        a: PathBuf,
        /// `prediction`, `unet`, `vae` or `clip`.
        section: String,
        /// What A's configuration says.
        expected: String,
        /// What the parent's says.
        found: String,
    },
    /// A selector of a weight means no tensor of the model.
    #[error("the selector {selector} of the step `{step}` matches no tensor of `{path}`")]
    Selector {
        /// The selector, as TOML.
        selector: String,
        /// The step.
        step: String,
        /// The first parent.
        path: PathBuf,
    },
    /// A parent has other tensors than A.
    #[error("`{path}` does not fit `{a}`: {mismatch}")]
    Unlike {
        /// The parent.
        path: PathBuf,
        /// The first parent, which the others must be like.
        a: PathBuf,
        /// How they differ.
        mismatch: Box<Mismatch>,
    },
    /// A parent is not the file that the recipe means.
    #[error("`{path}` has the hash {found}, the recipe asks for {expected}")]
    ParentHash {
        /// The parent.
        path: PathBuf,
        /// What the recipe says.
        expected: ContentHash,
        /// What the file has.
        found: ContentHash,
    },
    /// What was written is not what was worked out: the disk or the memory is at fault.
    #[error("`{path}` was written, but its tensor `{tensor}` reads back otherwise")]
    ReadBack {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
}
