//! What a merge tells while it runs, and when it has run.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use serde::{Deserialize, Serialize};
use vodka_checkpoint::Precision;
use vodka_stage::{ContentHash, Outcome, Report};

use crate::Kept;

/// What a merge tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MergeEvent {
    /// The parents fit; this many bytes will be written.
    Started {
        /// Bytes of all outputs.
        bytes: u64,
    },
    /// Some more has been merged.
    Merged {
        /// Bytes of all outputs so far.
        bytes: u64,
    },
}

/// What a merge has done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MergeReport {
    /// How it ended.
    pub outcome: Outcome,
    /// Each file.
    pub outputs: Vec<OutputReport>,
}

/// What was done for one file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutputReport {
    /// The file.
    pub path: PathBuf,
    /// Whether it was there already, or has been written.
    pub outcome: Outcome,
    /// Its element type.
    pub precision: Precision,
    /// How many weights it holds, merged or A's.
    pub tensors: u64,
    /// How many of them all parents hold alike; a merge of a model with itself has nothing else.
    pub equal: u64,
    /// The parent that all that was merged is the same as, if there is one: the merge has done nothing.
    pub same_as: Option<String>,
    /// The tensors that are A's as they are, and why.
    pub kept: Vec<KeptTensors>,
    /// Tensors of other parents that A does not have, or modules of LoRAs that no weight has, by the parent's name.
    pub dropped: BTreeMap<String, Vec<String>>,
    /// The file's hash; A1111 shows the first ten digits. None where the merge was interrupted.
    pub sha256: Option<ContentHash>,
}

/// Tensors that are A's for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptTensors {
    /// The reason.
    pub why: Kept,
    /// Their LDM names.
    pub tensors: Vec<String>,
}

impl Report for MergeReport {
    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

impl fmt::Display for MergeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.outcome == Outcome::Interrupted {
            return write!(f, "stopped; what was being written is as it was");
        }
        for (i, output) in self.outputs.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{output}")?;
        }
        Ok(())
    }
}

impl fmt::Display for OutputReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, precision, tensors, equal, .. } = self;
        let path = path.display();
        let hash = self.sha256.map(|hash| hash.short(10)).unwrap_or_default();
        if self.outcome == Outcome::Unchanged {
            return write!(f, "`{path}` is up to date ({precision}, {hash})");
        }
        write!(f, "merged {tensors} tensors into `{path}` ({precision}, {hash})")?;
        if *equal > 0 {
            write!(f, "; {equal} are the same in all parents")?;
        }
        for kept in &self.kept {
            write!(f, "; {} {}", kept.tensors.len(), kept.why)?;
        }
        for (parent, names) in &self.dropped {
            write!(f, "; {} of `{parent}` have no place and are dropped", names.len())?;
        }
        if let Some(parent) = &self.same_as {
            write!(f, "; note: what was merged is the same as `{parent}`")?;
        }
        Ok(())
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vae => f.write_str("of the VAE are those of A"),
            Self::Missing { parent } => write!(f, "are those of A, for `{parent}` has none"),
            Self::Shape { parent, .. } => write!(f, "are those of A, for `{parent}` has another shape"),
            Self::NoLora => f.write_str("are those of A, for no LoRA changes them"),
            Self::Channels { merged } => write!(f, "is merged in its first {merged} input channels only"),
        }
    }
}
