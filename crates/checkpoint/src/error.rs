//! What can be wrong with a checkpoint.

use std::{fmt, io, path::PathBuf};

use crate::{Misfit, Part, PickleError, Precision};

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
    #[error("`{path}` holds none of {}, nor an fp16 variant or shards", .tried.join(", "))]
    NoFile {
        /// The folder.
        path: PathBuf,
        /// The names that were looked for.
        tried: Vec<String>,
    },
    /// A pickle that is damaged, or wants to run something.
    #[error("`{path}` is not a pickle that can be read")]
    Pickle {
        /// The file.
        path: PathBuf,
        /// Why.
        source: PickleError,
    },
    /// A pickle, but not one of a tensor file.
    #[error("`{path}` is a pickle, but not one that PyTorch saved")]
    NotTorch {
        /// The file.
        path: PathBuf,
    },
    /// A pickle too large to be the table of contents of a checkpoint.
    #[error("`{path}`: its pickle has {found} bytes, at most {limit} are read")]
    PickleSize {
        /// The file.
        path: PathBuf,
        /// Its bytes, uncompressed.
        found: usize,
        /// The most that are read.
        limit: usize,
    },
    /// A file of PyTorch that holds something else than named tensors.
    #[error("`{path}` holds no dictionary of tensors")]
    NoState {
        /// The file.
        path: PathBuf,
    },
    /// A zip archive that cannot be read.
    #[error("`{path}` is not a whole zip archive")]
    Archive {
        /// The file.
        path: PathBuf,
        /// What the zip reader says.
        source: zip::result::ZipError,
    },
    /// An entry of a zip archive that is damaged, encrypted, or compressed in a way that PyTorch does not use.
    #[error("`{path}`: the entry `{entry}` of the archive cannot be read")]
    Entry {
        /// The file.
        path: PathBuf,
        /// The entry, or the tensor that lies in it.
        entry: String,
    },
    /// A zip archive that PyTorch has not written.
    #[error("`{path}` is a zip archive with {found} entries `data.pkl`, expected one: not a file of PyTorch")]
    NoPickle {
        /// The file.
        path: PathBuf,
        /// How many there are.
        found: usize,
    },
    /// A file that was saved on another kind of machine.
    #[error("`{path}` is big-endian, expected little-endian")]
    BigEndian {
        /// The file.
        path: PathBuf,
    },
    /// A tensor of a PyTorch file that does not fit its elements.
    #[error("`{path}`: the tensor `{tensor}` {fault}")]
    Storage {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// What is wrong.
        fault: StorageFault,
    },
    /// Two tensors of one name.
    #[error("`{path}` has two tensors named `{tensor}`")]
    Duplicate {
        /// The file.
        path: PathBuf,
        /// The name.
        tensor: String,
    },
    /// The header makes no sense.
    #[error("`{path}` is not a safetensors file")]
    Header {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        source: safetensors::SafeTensorError,
    },
    /// A tensor has another size in the header than its type and shape give it.
    #[error("`{path}`: {misfit}")]
    TensorBytes {
        /// The file.
        path: PathBuf,
        /// The tensor, and what was expected.
        misfit: Box<Misfit>,
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
    /// The file holds something else than a VAE or a checkpoint with one.
    #[error("`{path}` is {found}, expected a VAE or a checkpoint with one")]
    NotVae {
        /// The file or folder.
        path: PathBuf,
        /// What it is.
        found: Architecture,
    },
    /// The file holds something else than a ControlNet for Stable Diffusion 1.x.
    #[error("`{path}` is {found}, expected a ControlNet for Stable Diffusion 1.x")]
    NotControlNet {
        /// The file or folder.
        path: PathBuf,
        /// What it is.
        found: Architecture,
    },
    /// The file holds something else than an ESRGAN upscaler.
    #[error("`{path}` is {found}, expected an ESRGAN upscaler")]
    NotUpscaler {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: Architecture,
    },
    /// An upscaler of grey or transparent pictures.
    #[error("the upscaler `{path}` makes {output} channels of {input}, expected 3 of 3, 12 or 48")]
    UpscalerChannels {
        /// The file.
        path: PathBuf,
        /// Channels of its first convolution.
        input: i64,
        /// Channels of its last one.
        output: i64,
    },
    /// An upscaler that makes pictures smaller, or far larger than any known.
    #[error(
        "the upscaler `{path}` doubles {doublings} times what it has made 1/{unshuffle}, expected a scale of 1 to 16"
    )]
    UpscalerScale {
        /// The file.
        path: PathBuf,
        /// How often it doubles.
        doublings: i64,
        /// By how much it makes pictures smaller before.
        unshuffle: i64,
    },
    /// The file holds something else than a LoRA for Stable Diffusion 1.x.
    #[error("`{path}` is {found}, expected a LoRA for Stable Diffusion 1.x")]
    NotLora {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: Architecture,
    },
    /// A relative of LoRA whose formula is another.
    #[error("`{path}` is {kind}, expected a LoRA (`lora_down`, `lora_up`)")]
    LoraKind {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// A LoRA is to be converted by what only checkpoints have.
    #[error("`{path}` is a LoRA: {why}")]
    LoraOption {
        /// The file.
        path: PathBuf,
        /// Why it cannot be.
        why: &'static str,
    },
    /// A convolution that is taken apart twice, which diffusers cannot say.
    #[error("`{path}`: `{tensor}` (Tucker's decomposition) has no name in diffusers")]
    LoraTucker {
        /// The file.
        path: PathBuf,
        /// The middle tensor.
        tensor: String,
    },
    /// A LoRA of which no tensor belongs to a weight of the model.
    #[error("`{path}` changes no weight of the model (it begins with {})", .names.join(", "))]
    LoraForeign {
        /// The file.
        path: PathBuf,
        /// The first few names.
        names: Vec<String>,
    },
    /// One of a module's two matrices is not there.
    #[error("`{path}`: `{tensor}` has no other half")]
    LoraHalf {
        /// The file.
        path: PathBuf,
        /// The half that is there.
        tensor: String,
    },
    /// A module's matrices do not fit each other, or not the weight.
    #[error("`{path}`: `{tensor}` {shapes}")]
    LoraShape {
        /// The file.
        path: PathBuf,
        /// The name of `down`.
        tensor: String,
        /// The three shapes.
        shapes: Box<LoraShapes>,
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
    /// A whole part is not there.
    #[error("`{path}` has no {part}")]
    NoPart {
        /// The file or folder.
        path: PathBuf,
        /// The part.
        part: Part,
    },
    /// The EMA copy was asked for, and there is none.
    #[error("`{path}` has no EMA weights (`model_ema.`)")]
    NoEma {
        /// The file or folder.
        path: PathBuf,
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
    /// A weight is too large for the precision of the file.
    #[error(
        "`{path}`: the tensor `{tensor}` holds {value} at element {index}, more than {precision} can hold ({}): write fp32",
        .precision.largest()
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
        /// The precision.
        precision: Precision,
    },
    /// The result would replace what it is made of.
    #[error("the output `{path}` is one of the inputs")]
    OutputIsInput {
        /// The output.
        path: PathBuf,
    },
    /// The output is there already, and may not be replaced.
    #[error("the output `{path}` is there already")]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// The file to be written is larger than what is free where it would lie.
    #[error("cannot write `{path}`: it needs {needed} bytes, {available} are free")]
    DiskFull {
        /// The file to be written.
        path: PathBuf,
        /// Its size in bytes.
        needed: u64,
        /// What the disk has left, in bytes.
        available: u64,
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

/// The shapes of a LoRA's matrices and of the weight that they should change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoraShapes {
    /// The shape of the weight, in LDM form.
    pub weight: Vec<usize>,
    /// The shape of `down`.
    pub down: Vec<usize>,
    /// The shape of `up`.
    pub up: Vec<usize>,
}

impl fmt::Display for LoraShapes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { weight, down, up } = self;
        write!(
            f,
            "of shape {down:?} and its other half of shape {up:?} do not fit a weight of shape {weight:?}"
        )
    }
}

/// How a tensor of a PyTorch file does not fit its elements.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StorageFault {
    /// There are no elements of this name.
    Missing {
        /// The name.
        storage: String,
    },
    /// There are fewer than the tensor has.
    TooShort {
        /// Bytes that it needs.
        needed: usize,
        /// Bytes that are there.
        found: usize,
    },
    /// There are more than were saved, and they would have to be decompressed.
    TooLong {
        /// Bytes that its storage is said to have.
        announced: usize,
        /// Bytes that would come out.
        found: usize,
    },
    /// It has more elements than were saved.
    TooMany {
        /// Its shape.
        shape: Vec<usize>,
    },
}

impl fmt::Display for StorageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { storage } => write!(f, "needs the storage `{storage}`, which is not there"),
            Self::TooShort { needed, found } => write!(f, "needs {needed} bytes, its storage has {found}"),
            Self::TooLong { announced, found } => {
                write!(f, "is of a storage of {announced} bytes, of which {found} are compressed")
            }
            Self::TooMany { shape } => write!(f, "of shape {shape:?} is larger than its storage"),
        }
    }
}

/// What a file is, if not a Stable Diffusion 1.x checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Architecture {
    /// Stable Diffusion 1.x, where something else is expected.
    StableDiffusion1,
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
    /// A LoRA for Stable Diffusion XL.
    SdxlLora,
    /// A ControlNet.
    ControlNet,
    /// A ControlNet for Stable Diffusion 2.x.
    StableDiffusion2ControlNet,
    /// A ControlNet for Stable Diffusion XL.
    SdxlControlNet,
    /// An embedding of textual inversion.
    Embedding,
    /// An upscaler of ESRGAN's form.
    Upscaler,
    /// The UNet of a diffusers folder without the rest.
    DiffusersUnet,
    /// A VAE without the rest.
    Vae,
    /// A text encoder without the rest.
    TextEncoder,
    /// A TorchScript archive: a program with its weights.
    TorchScript,
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
            Self::StableDiffusion1 => "a Stable Diffusion 1.x checkpoint",
            Self::Lora => "a LoRA",
            Self::SdxlLora => "a LoRA for Stable Diffusion XL",
            Self::ControlNet => "a ControlNet",
            Self::StableDiffusion2ControlNet => "a ControlNet for Stable Diffusion 2.x",
            Self::SdxlControlNet => "a ControlNet for Stable Diffusion XL",
            Self::Embedding => "an embedding (textual inversion)",
            Self::Upscaler => "an ESRGAN upscaler",
            Self::DiffusersUnet => "the UNet of a diffusers folder (open the folder above it)",
            Self::Vae => "a VAE alone",
            Self::TextEncoder => "a text encoder alone",
            Self::TorchScript => "a TorchScript archive",
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
