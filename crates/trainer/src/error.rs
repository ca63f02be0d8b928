//! What can go wrong in training.

use std::path::PathBuf;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a training configuration cannot be used, or a run cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A configuration file is not JSON, or a key in it is wrong.
    #[error("cannot use `{path}`")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },
    /// A value in a configuration file that cannot be used.
    #[error("cannot use `{path}`")]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<Error>,
    },
    /// A key that neither EveryDream2 nor we know.
    #[error("unknown key `{key}`{}", nearest.as_ref().map_or(String::new(), |n| format!(" (did you mean `{n}`?)")))]
    UnknownKey {
        /// The key.
        key: String,
        /// The known key that is spelt most like it.
        nearest: Option<String>,
    },
    /// A key of EveryDream2 that is not and will not be supported, at a value that asks for something.
    #[error("`{key}` is not supported: {why} (found {value})")]
    RefusedKey {
        /// The key.
        key: String,
        /// Its value.
        value: serde_json::Value,
        /// Why not, and what there is in its place.
        why: &'static str,
    },
    /// The same key twice in one object.
    #[error("the key `{key}` is there twice")]
    RepeatedKey {
        /// The key.
        key: String,
    },
    /// A value of the wrong type.
    #[error("wrong value for `{key}`: {reason}")]
    KeyValue {
        /// The key.
        key: String,
        /// What was expected and found.
        reason: String,
    },
    /// A key that has no default is absent.
    #[error("`{key}` is missing: {meaning}")]
    MissingKey {
        /// The key.
        key: &'static str,
        /// What it stands for.
        meaning: &'static str,
    },
    /// A value outside of what the key allows.
    #[error("`{key}` is {value}, expected {expected}")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// No checkpoint of another run to start from.
    #[error("`resume_ckpt` is `findlast`, but there is no checkpoint of another run in or below `{folder}`")]
    NoLastCheckpoint {
        /// The folder that the output folder is in.
        folder: PathBuf,
    },
    /// The newest checkpoint is of a run that failed.
    #[error(
        "`resume_ckpt` is `findlast`, and the newest checkpoint `{path}` is of a run that ended with an error: name the one to start from"
    )]
    ErroredCheckpoint {
        /// The checkpoint.
        path: PathBuf,
    },
    /// A base checkpoint that is not on this machine, and whose name is that of a repository on the hub.
    #[error(
        "`resume_ckpt` `{name}` is not here; if it is a model on huggingface.co, fetch it first (`hf download {name} --local-dir DIR`) and name that folder"
    )]
    HubModel {
        /// What is said.
        name: String,
    },
    /// A checkpoint to start running means from that is of another architecture.
    #[error(
        "`ema_resume_model` `{path}` does not fit the base model: `{name}` is not in it, or has another shape"
    )]
    EmaModel {
        /// The checkpoint.
        path: PathBuf,
        /// The weight.
        name: String,
    },
    /// A name of `unet_freezing` that is none.
    #[error(
        "`{entry}` of `unet_freezing.{key}` fits nothing in the UNet: its blocks are {}, and its weights have names like `input_blocks.1.*` or `*.attn2.*`",
        blocks.join(", ")
    )]
    UnetFreezing {
        /// `freeze` or `unfreeze`.
        key: &'static str,
        /// What is said.
        entry: String,
        /// The blocks of the base model's UNet.
        blocks: Vec<String>,
    },
    /// Both networks are frozen.
    #[error("nothing to train: `disable_unet_training` and `disable_textenc_training` are both true")]
    NothingToTrain,
    /// Something that no pictures can come from.
    #[error("`{root}` is neither a folder nor a list of pictures (.json)")]
    NoData {
        /// The file.
        root: PathBuf,
    },
    /// No pictures in the data folder.
    #[error("no pictures in `{root}`")]
    NoPictures {
        /// The data folder.
        root: PathBuf,
    },
    /// None of the pictures can be read.
    #[error("none of the {count} pictures in `{root}` can be read; the first is `{first}`: {reason}")]
    NoGoodPictures {
        /// The data folder.
        root: PathBuf,
        /// How many there are.
        count: usize,
        /// The first of them.
        first: PathBuf,
        /// Why it cannot be read.
        reason: String,
    },
    /// Pictures that cannot be decoded.
    #[error(
        "{count} of the pictures cannot be read; the first is `{first}`: {reason}; see `{report}`, and allow `unreadable` to go on without them"
    )]
    Unreadable {
        /// How many there are.
        count: usize,
        /// The first of them.
        first: String,
        /// Why it cannot be read.
        reason: String,
        /// The audit's rows.
        report: PathBuf,
    },
    /// A picture that could be read when the run began, and cannot now, or is another.
    #[error(
        "`{file}` has changed since the run began: {reason}; leave the data alone while it is trained on, and go on with the same command"
    )]
    DataChanged {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Pictures without a caption, or with an empty one.
    #[error("{} of the pictures in `{root}` have no caption: {}", pictures.len(), listed(pictures))]
    MissingCaptions {
        /// The folder that was searched for captions.
        root: PathBuf,
        /// The pictures, relative to the data folder.
        pictures: Vec<PathBuf>,
    },
    /// A zip file that cannot be read.
    #[error("cannot unpack `{archive}`")]
    Zip {
        /// The zip file.
        archive: PathBuf,
        /// What is wrong with it.
        source: zip::result::ZipError,
    },
    /// A file in a zip file that is not unpacked.
    #[error("`{entry}` in `{archive}` is not unpacked: {reason}")]
    ZipEntry {
        /// The zip file.
        archive: PathBuf,
        /// The name in it.
        entry: String,
        /// Why not.
        reason: &'static str,
    },
    /// A file that is unpacked cannot be written.
    #[error("cannot unpack to `{path}`")]
    Unpack {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A caption that is not text.
    #[error("the caption `{path}` cannot be read")]
    Caption {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A resolution at which the network cannot work.
    #[error("`resolution` is {resolution}, but this model works on multiples of {stride} pixels")]
    Stride {
        /// The class resolution in pixels.
        resolution: u32,
        /// How many pixels one position of the deepest level covers.
        stride: u32,
    },
    /// A file beside a picture or in a folder that is not YAML.
    #[error("`{path}` is not YAML")]
    Yaml {
        /// The file.
        path: PathBuf,
        /// What the parser says, with line and column.
        source: serde_norway::Error,
    },
    /// A key that no file beside a picture may have.
    #[error("`{path}`: unknown key `{key}`{}", nearest.as_ref().map(|near| format!(" (did you mean `{near}`?)")).unwrap_or_default())]
    UnknownOption {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The known key most like it.
        nearest: Option<String>,
    },
    /// A value that its key cannot have.
    #[error("`{path}`: `{key}` is {found}, expected {expected}")]
    OptionValue {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What would do.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A picture that was there when the run began, and is not in the cache, is gone or broken.
    #[error("`{path}` cannot be read any more: {reason}; put it back, and the same command goes on")]
    PictureGone {
        /// The picture.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A picture that is not in the cache is another one than when the run began.
    #[error("`{path}` was changed since the run began; put it back, and the same command goes on")]
    PictureChanged {
        /// The picture.
        path: PathBuf,
    },
    /// The VAE makes numbers of a picture that are infinite or none.
    #[error(
        "what the VAE makes of `{path}` is not finite; a VAE in 16 bits may be the reason, or a damaged one"
    )]
    LatentsNotFinite {
        /// The picture.
        path: PathBuf,
    },
    /// A file of prompts that cannot be read.
    #[error("the prompts `{path}` cannot be read")]
    Samples {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file of prompts of an unknown kind.
    #[error("the prompts `{path}` are of an unknown kind, expected a name that ends in .txt or .json")]
    SamplesName {
        /// The file.
        path: PathBuf,
    },
    /// A sampler that is not there.
    #[error("there is no scheduler `{found}`: the nearest that is there is `{nearest}`")]
    Scheduler {
        /// What was asked for.
        found: String,
        /// What comes nearest to it.
        nearest: String,
    },
    /// The loss, or a gradient, is infinite or not a number. The weights were not touched by it.
    #[error("the {what} is not finite in epoch {epoch}, step {step}, with the pictures {}", listed(pictures))]
    NotFinite {
        /// `loss` or `gradient`.
        what: &'static str,
        /// The epoch, from 1.
        epoch: u64,
        /// The step, from 1, over all epochs.
        step: u64,
        /// The pictures of the batches in hand.
        pictures: Vec<PathBuf>,
    },
    /// A device or the processor had not enough memory for a batch.
    #[error(
        "not enough memory for {pictures} pictures of {width}x{height} pixels ({place}); what helps: {lower}"
    )]
    OutOfMemory {
        /// Where it was: epoch and step, the validation set, or the picture that the VAE was given.
        place: String,
        /// How many are in the batch.
        pictures: usize,
        /// The width of its bucket.
        width: u32,
        /// The height of its bucket.
        height: u32,
        /// What makes a batch need less.
        lower: String,
        /// What libtorch says.
        source: Box<tch::TchError>,
    },
    /// A device or the processor had not enough memory for what is no batch.
    #[error("not enough memory for {what}; what helps: {lower}")]
    NoMemory {
        /// For what.
        what: &'static str,
        /// What makes it need less.
        lower: String,
        /// What libtorch says.
        source: tch::TchError,
    },
    /// An epoch in which no picture is trained on.
    #[error("epoch {epoch} has no batches: the `multiply` of its pictures leaves all of them out")]
    EmptyEpoch {
        /// The epoch, from 1.
        epoch: u64,
    },
    /// Runs side by side in one process that differ in what libtorch has once in a process.
    #[error(
        "`{key}` is {value} for the run in `{output}` and {other_value} for the one in `{other}`, which is on in the same process, and libtorch has one for both: let one end before the other begins"
    )]
    Beside {
        /// The key.
        key: &'static str,
        /// The output folder of the run that cannot begin.
        output: PathBuf,
        /// Its value.
        value: String,
        /// The output folder of the run that is on.
        other: PathBuf,
        /// That run's value.
        other_value: String,
    },
    /// Runs side by side in one process that together write more than there is room for.
    #[error(
        "the disk of `{output}` has {} MB free: {} MB for what this run has still to write do not fit beside {} MB of the runs in {}",
        free >> 20, needed.div_ceil(1 << 20), to_come.div_ceil(1 << 20), listed(others)
    )]
    NoSpaceBeside {
        /// The folder that was to be written to.
        output: PathBuf,
        /// How many bytes this run needs.
        needed: u64,
        /// How many there are.
        free: u64,
        /// The output folders of the others that write to the same disk.
        others: Vec<PathBuf>,
        /// How many bytes these have still to write.
        to_come: u64,
    },
    /// A saved state that cannot be gone on from.
    #[error("the training state `{path}` is damaged; delete it, or start over with `--resume never`")]
    State {
        /// The state file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A tensor in a saved state that does not fit the model.
    #[error("in the training state `{path}`, `{name}` has {found} bytes, expected {expected}")]
    StateTensor {
        /// The state file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its size, 0 where it is missing.
        found: usize,
        /// The size that the model asks for.
        expected: usize,
    },
    /// A checkpoint that the run in hand has written is gone.
    #[error(
        "`{path}` was written by the run in hand and is gone; put it back, or start over with `--resume never`"
    )]
    MissingCheckpoint {
        /// The checkpoint.
        path: PathBuf,
    },
    /// libtorch refused an operation.
    #[error("libtorch failed while {doing}")]
    Torch {
        /// What was being done.
        doing: &'static str,
        /// What it says.
        source: tch::TchError,
    },
    /// Files, run records.
    #[error(transparent)]
    Stage(#[from] vodka_stage::Error),
    /// The base checkpoint, or writing one.
    #[error(transparent)]
    Checkpoint(#[from] vodka_checkpoint::Error),
    /// Building the networks, or the device.
    #[error(transparent)]
    Network(#[from] vodka_sd15::Error),
    /// Finding the pictures.
    #[error(transparent)]
    Images(#[from] vodka_images::Error),
}

impl Error {
    /// Whether it was met before the weights were touched, so that what was done before is worth saving.
    pub(crate) fn is_of_data(&self) -> bool {
        matches!(self, Self::PictureGone { .. } | Self::PictureChanged { .. } | Self::LatentsNotFinite { .. })
    }

    pub(crate) fn torch(doing: &'static str) -> impl FnOnce(tch::TchError) -> Self {
        move |source| Self::Torch { doing, source }
    }
}

/// The first twenty paths, and how many more there are.
fn listed(paths: &[PathBuf]) -> String {
    const SHOWN: usize = 20;
    let names: Vec<_> = paths.iter().take(SHOWN).map(|path| format!("`{}`", path.display())).collect();
    match paths.len().checked_sub(SHOWN) {
        Some(more @ 1..) => format!("{} and {more} more", names.join(", ")),
        _ => names.join(", "),
    }
}
