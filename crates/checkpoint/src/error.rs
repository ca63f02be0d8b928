//! What can be wrong with a checkpoint.

use std::{fmt, io, path::PathBuf};

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A checkpoint that cannot be read, is not what it should be, or cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of ours could not be written, or one hashed.
    #[error(transparent)]
    Stage(#[from] vodka_stage::Error),
    /// Opening or mapping failed.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// Writing failed; the target is as it was before.
    #[error("cannot write `{path}`")]
    Write {
        /// The file that was to be written.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A part of a diffusers folder is not there.
    #[error("`{path}` holds none of {}", .tried.join(", "))]
    NoFile {
        /// The folder.
        path: PathBuf,
        /// The names that were looked for.
        tried: Vec<&'static str>,
    },
    /// A PyTorch pickle.
    #[error(
        "`{path}` is a PyTorch pickle (.ckpt), expected safetensors: convert it with a tool you trust first"
    )]
    Pickle {
        /// The file.
        path: PathBuf,
    },
    /// The header makes no sense.
    #[error("`{path}` is not a safetensors file")]
    Header {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        source: safetensors::SafeTensorError,
    },
    /// The file is shorter or longer than its header says.
    #[error("`{path}` is {}: its header asks for {expected} bytes, the file has {found}",
        if .found < .expected { "truncated" } else { "damaged" })]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes that the header asks for.
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// A tensor has an element type that we do not read.
    #[error("`{path}`: the tensor `{tensor}` is of type {dtype}, expected a 16, 32 or 64 bit float")]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// Its type, in safetensors' words.
        dtype: String,
    },
    /// The file holds something else than a Stable Diffusion 1.x model.
    #[error("`{path}` is {found}, expected a Stable Diffusion 1.x checkpoint")]
    Architecture {
        /// The file or folder.
        path: PathBuf,
        /// What it is.
        found: Architecture,
    },
    /// A JSON file of a diffusers folder, or the metadata `vodka.config`, does not parse.
    #[error("the configuration in `{path}` is not valid")]
    Config {
        /// The file.
        path: PathBuf,
        /// What the parser says, with line and column.
        source: serde_json::Error,
    },
    /// A diffusers configuration asks for something that Stable Diffusion 1.x does not have.
    #[error("`{path}`: {setting} is {found}, expected {expected}")]
    Setting {
        /// The configuration file.
        path: PathBuf,
        /// The setting's name.
        setting: &'static str,
        /// What is supported.
        expected: &'static str,
        /// What the file says.
        found: String,
    },
    /// The configuration that a checkpoint states, or that its shapes tell, is impossible.
    #[error("`{path}` describes an impossible model")]
    Impossible {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: Box<Error>,
    },
    /// A model that is sound, and wants or gives something else than a text-to-image model.
    #[error("`{path}` is no model that makes pictures from text alone")]
    NotTextToImage {
        /// The file or folder.
        path: PathBuf,
        /// In what it differs.
        source: Box<Error>,
    },
    /// A number of the configuration is impossible.
    #[error("{setting} is {value}, expected 1 to {limit}")]
    OutOfRange {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: i64,
        /// The largest possible value.
        limit: i64,
    },
    /// Channels cannot be divided among groups or heads.
    #[error("{setting} {value} is not divisible by {by} {divisor}")]
    NotDivisible {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: i64,
        /// What divides it.
        by: &'static str,
        /// The divisor.
        divisor: i64,
    },
    /// Two numbers that must be equal are not.
    #[error("{what} disagree: {left} and {right}")]
    Disagree {
        /// The two things.
        what: &'static str,
        /// The first one's number.
        left: i64,
        /// The second one's number.
        right: i64,
    },
    /// Names or shapes are not those of the architecture.
    #[error("`{path}` does not fit its architecture: {mismatch}")]
    Mismatch {
        /// The file or folder.
        path: PathBuf,
        /// What is missing, left over, or of another shape.
        mismatch: Box<Mismatch>,
    },
    /// A tensor that was asked for is not there.
    #[error("`{path}` has no tensor `{tensor}`")]
    NoTensor {
        /// The file or folder.
        path: PathBuf,
        /// The name in LDM form.
        tensor: String,
    },
    /// A weight is NaN or infinite.
    #[error("`{path}`: the tensor `{tensor}` holds {value} at element {index}")]
    NotFinite {
        /// The file or folder, read or to be written.
        path: PathBuf,
        /// The name in LDM form.
        tensor: String,
        /// The place, row-major.
        index: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// A weight is too large for fp16.
    #[error(
        "`{path}`: the tensor `{tensor}` holds {value} at element {index}, more than fp16 can hold (65504): write fp32"
    )]
    Overflow {
        /// The file to be written.
        path: PathBuf,
        /// The name in LDM form.
        tensor: String,
        /// The place, row-major.
        index: usize,
        /// The weight.
        value: f32,
    },
}

impl Error {
    pub(crate) fn read(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Read { path, source }
    }

    pub(crate) fn write(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Write { path, source }
    }
}

/// What a file is, if not a Stable Diffusion 1.x checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Architecture {
    /// Stable Diffusion 2.x (OpenCLIP).
    StableDiffusion2,
    /// Stable Diffusion XL.
    Sdxl,
    /// Stable Diffusion 3.
    StableDiffusion3,
    /// Flux.
    Flux,
    /// A LoRA or one of its kin.
    Lora,
    /// A ControlNet.
    ControlNet,
    /// An embedding of textual inversion.
    Embedding,
    /// The UNet of a diffusers folder without the rest.
    DiffusersUnet,
    /// A VAE without the rest.
    Vae,
    /// A diffusers pipeline of another class.
    Pipeline(String),
    /// None of the above: the first few names.
    Unknown(Vec<String>),
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StableDiffusion2 => "a Stable Diffusion 2.x checkpoint",
            Self::Sdxl => "a Stable Diffusion XL checkpoint",
            Self::StableDiffusion3 => "a Stable Diffusion 3 checkpoint",
            Self::Flux => "a Flux checkpoint",
            Self::Lora => "a LoRA",
            Self::ControlNet => "a ControlNet",
            Self::Embedding => "an embedding (textual inversion)",
            Self::DiffusersUnet => "the UNet of a diffusers folder (open the folder above it)",
            Self::Vae => "a VAE alone",
            Self::Pipeline(class) => return write!(f, "a diffusers folder of the class {class}"),
            Self::Unknown(names) if names.is_empty() => "a file without tensors",
            Self::Unknown(names) => {
                return write!(f, "no diffusion model (it begins with {})", names.join(", "));
            }
        })
    }
}

/// How names and shapes differ from what the configuration asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mismatch {
    /// Tensors that are not there.
    pub missing: Vec<String>,
    /// Tensors that have no place.
    pub unexpected: Vec<String>,
    /// Tensors of another shape.
    pub wrong_shape: Vec<WrongShape>,
}

/// A tensor of another shape than the configuration asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongShape {
    /// The name in LDM form.
    pub tensor: String,
    /// The shape it should have.
    pub expected: Vec<usize>,
    /// The shape it has.
    pub found: Vec<usize>,
}

impl Mismatch {
    /// Whether everything fits.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.wrong_shape.is_empty()
    }
}

impl fmt::Display for WrongShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?}, expected {:?})", self.tensor, self.found, self.expected)
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut groups = Vec::new();
        groups.extend(list("missing", &self.missing));
        groups.extend(list("unexpected", &self.unexpected));
        groups.extend(list("of another shape", &self.wrong_shape));
        f.write_str(&groups.join("; "))
    }
}

/// `12 missing: a, b, ...`: the count and the first ten.
fn list(what: &str, items: &[impl fmt::Display]) -> Option<String> {
    const SHOWN: usize = 10;
    if items.is_empty() {
        return None;
    }
    let mut shown: Vec<_> = items.iter().take(SHOWN).map(ToString::to_string).collect();
    if items.len() > SHOWN {
        shown.push("...".to_owned());
    }
    Some(format!("{} {what}: {}", items.len(), shown.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_show_ten_and_the_count() {
        let names: Vec<_> = (0..12).map(|i| format!("t{i}")).collect();
        let shape = WrongShape { tensor: "w".into(), expected: vec![2], found: vec![3] };
        let mismatch = Mismatch { missing: names, unexpected: vec![], wrong_shape: vec![shape] };
        assert_eq!(
            mismatch.to_string(),
            "12 missing: t0, t1, t2, t3, t4, t5, t6, t7, t8, t9, ...; 1 of another shape: w ([3], expected [2])"
        );
    }
}
