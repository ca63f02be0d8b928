//! What can go wrong in a merge.

use std::path::PathBuf;

use vodka_checkpoint::Mismatch;

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
    /// The multiplier makes no sense for the method.
    #[error("multiplier is {found}, expected {expected}")]
    Multiplier {
        /// The multiplier.
        found: f64,
        /// What it may be.
        expected: &'static str,
    },
    /// Add difference without a third checkpoint.
    #[error("add-difference needs a third checkpoint: A + multiplier * (B - C)")]
    NoC,
    /// Weighted sum with a third checkpoint.
    #[error("weighted-sum takes two checkpoints, found a third: `{path}`")]
    UnusedC {
        /// The third checkpoint.
        path: PathBuf,
    },
    /// The result would replace one of its parents.
    #[error("the output `{path}` is one of the inputs")]
    OutputIsInput {
        /// The output.
        path: PathBuf,
    },
    /// The output's name promises another format.
    #[error("the output `{path}` does not end in .safetensors")]
    OutputName {
        /// The output.
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
    /// A recipe cannot be read.
    #[error(transparent)]
    Recipe(#[from] vodka_stage::ConfigError),
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
}
