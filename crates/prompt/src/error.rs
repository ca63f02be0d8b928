//! What can be wrong about a prompt or a file of styles.

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The few things that A1111 refuses too; all else in a prompt is text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `(x:w)` with a `w` of digits and points that is no number.
    #[error("the weight `{found}` in a prompt is no number")]
    Weight {
        /// The text.
        found: String,
    },
    /// An embedding that no chunk can hold.
    #[error("the embedding `{name}` has {vectors} vectors, of which a chunk holds {max}")]
    EmbeddingLength {
        /// The name.
        name: String,
        /// Its length in tokens.
        vectors: usize,
        /// The length of a chunk.
        max: usize,
    },
    /// A weight in `<lora:name:weight>` that is no number.
    #[error("the weight `{found}` of `{network}` is no number")]
    NetworkWeight {
        /// What the text between the angle brackets names.
        network: String,
        /// The text.
        found: String,
    },
    /// A file of styles without the columns that it needs.
    #[error(
        "a file of styles has the columns name, prompt and negative_prompt; there is no column `{missing}`"
    )]
    StyleColumn {
        /// The name.
        missing: &'static str,
    },
    /// A style that no file has.
    #[error("there is no style `{found}`; known are {known}")]
    UnknownStyle {
        /// The name.
        found: String,
        /// All names, with commas.
        known: String,
    },
}
