//! What can go wrong on the way from a prompt to a picture.

use std::path::PathBuf;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Settings that make no picture, a checkpoint that is no model, a file that cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of ours could not be read or written.
    #[error(transparent)]
    Stage(#[from] vodka_stage::Error),
    /// `grid.toml` cannot be used.
    #[error(transparent)]
    Config(#[from] vodka_stage::ConfigError),
    /// The checkpoint cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] vodka_checkpoint::Error),
    /// A merge recipe cannot be used, or its parents do not fit; a LoRA cannot be worked out.
    #[error(transparent)]
    Merge(#[from] vodka_merger::Error),
    /// Weights of a merge are given for what is a checkpoint.
    #[error("`{path}` is no merge recipe (.toml), and has no weight `{weight}` to change")]
    NoRecipe {
        /// The checkpoint.
        path: PathBuf,
        /// The weight.
        weight: String,
    },
    /// The networks cannot be built, or there is no such device.
    #[error(transparent)]
    Networks(#[from] vodka_sd15::Error),
    /// Sampler, schedule and steps do not go together.
    #[error(transparent)]
    Solver(#[from] vodka_noise::Error),
    /// The prompt has a fault that A1111 refuses too.
    #[error(transparent)]
    Prompt(#[from] vodka_prompt::Error),
    /// The picture that is to be made into another cannot be read.
    #[error(transparent)]
    Images(#[from] vodka_images::Error),
    /// `<hypernet:...>` or the like in a prompt.
    #[error("the prompt names <{kind}:{name}>, and LoRA files alone can be applied")]
    ExtraNetwork {
        /// What stands there.
        kind: String,
        /// The name.
        name: String,
    },
    /// `<lora:...>` with a name that no file has.
    #[error("there is no LoRA `{found}` in the folder of LoRA files{}", did_you_mean(nearest))]
    UnknownLora {
        /// The name.
        found: String,
        /// The most similar one that there is.
        nearest: Option<String>,
    },
    /// A LoRA that would make weights of no value.
    #[error("the LoRA `{name}` changes `{tensor}` by values that are not finite")]
    LoraNotFinite {
        /// The name.
        name: String,
        /// The weight, by its LDM name.
        tensor: String,
    },
    /// A file among embeddings that is none, or none for these networks.
    #[error("`{path}`: expected an embedding (one tensor of vectors), found {found}")]
    Embedding {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: String,
    },
    /// Wildcards or styles that are no text.
    #[error("`{path}` is no UTF-8 text")]
    NoText {
        /// The file.
        path: PathBuf,
    },
    /// A VAE whose latents are not those of the checkpoint.
    #[error("the VAE `{path}` has {} channels at 1/{} of the size, expected {} at 1/{}", found.0, found.1, expected.0, expected.1)]
    VaeForm {
        /// The file.
        path: PathBuf,
        /// Channels of the latents, and pixels to one of them.
        expected: (i64, i64),
        /// The same.
        found: (i64, i64),
    },
    /// A picture is to be made from another that was not given.
    #[error("a picture made from another is asked for (`Denoising strength`), and that is not given")]
    NoImage,
    /// Two ways to begin a picture.
    #[error("a picture made from another has no hires pass: expected one of them")]
    HiresOfImage,
    /// A text names an upscaler whose file is not known.
    #[error("there is no upscaler `{found}` among the files of `{folder}`{}", did_you_mean(nearest))]
    UnknownUpscaler {
        /// The name.
        found: String,
        /// Where it was looked for.
        folder: PathBuf,
        /// The most similar one that there is.
        nearest: Option<String>,
    },
    /// A text names an upscaler, and nothing says where files are.
    #[error("the picture was made with the upscaler `{found}`: expected its file, or a folder of upscalers")]
    NoUpscaler {
        /// The name.
        found: String,
    },
    /// A ControlNet for another UNet.
    #[error("the ControlNet `{path}` is for a UNet with {found}; expected {expected}")]
    ControlForm {
        /// The file or folder.
        path: PathBuf,
        /// The form of the checkpoint's UNet.
        expected: String,
        /// The form of the one that it is for.
        found: String,
    },
    /// A number of a ControlNet that is out of its range.
    #[error("a ControlNet's {field} is {found}, expected {expected}")]
    ControlNumber {
        /// Its name.
        field: &'static str,
        /// The range.
        expected: &'static str,
        /// The number.
        found: f64,
    },
    /// Something that is said of a ControlNet and cannot be read.
    #[error("a ControlNet's {option}: expected {expected}, found `{found}`")]
    ControlOption {
        /// The key.
        option: String,
        /// What it can be.
        expected: String,
        /// The text.
        found: String,
    },
    /// Something that there is not to say of a ControlNet.
    #[error("a ControlNet has no `{found}`{}", did_you_mean(nearest))]
    ControlKey {
        /// The key.
        found: String,
        /// The key that is most like it.
        nearest: Option<String>,
    },
    /// Something that is said twice of a ControlNet.
    #[error("a ControlNet's `{key}` is given twice")]
    ControlTwice {
        /// The key.
        key: String,
    },
    /// A number that belongs to another preprocessor.
    #[error("the preprocessor {preprocessor} has no `{key}`")]
    ControlNoNumber {
        /// The number's name.
        key: &'static str,
        /// The preprocessor's name.
        preprocessor: &'static str,
    },
    /// A ControlNet without its file.
    #[error("the ControlNet {number} has no `model`")]
    NoControlModel {
        /// Its number, from 0.
        number: usize,
    },
    /// A ControlNet without a picture.
    #[error("the ControlNet {number} has no `image`, and the picture is made from no other")]
    NoControlImage {
        /// Its number, from 0.
        number: usize,
    },
    /// A text states that a ControlNet had a picture of its own, which no text has.
    #[error("the ControlNet {number} had a picture of its own (SHA-256 {hash}...): expected its `image`")]
    NoStatedControlImage {
        /// Its number, from 0.
        number: usize,
        /// The first ten digits of the picture's hash.
        hash: String,
    },
    /// A text names a ControlNet, and nothing says where files are.
    #[error(
        "the picture was made with the ControlNet `{found}`: expected its file, or a folder of ControlNets"
    )]
    NoControlDir {
        /// The name.
        found: String,
    },
    /// A text names a ControlNet whose file is not known.
    #[error("there is no ControlNet `{found}` among the files of `{folder}`{}", did_you_mean(nearest))]
    UnknownControlNet {
        /// The name.
        found: String,
        /// Where it was looked for.
        folder: PathBuf,
        /// The most similar one that there is.
        nearest: Option<String>,
    },
    /// An unknown mode.
    #[error("unknown resize mode `{found}`; known are just, crop, fill")]
    ResizeMode {
        /// The text.
        found: String,
    },
    /// Names or numbers of pictures that make no batch.
    #[error("{field} is {found}, expected 1 to {max}")]
    Count {
        /// What is counted.
        field: &'static str,
        /// The number.
        found: u32,
        /// The largest.
        max: u32,
    },
    /// A strength of variation that is no share.
    #[error("the variation seed's strength is {found}, expected 0 to 1")]
    SubseedStrength {
        /// The number.
        found: f64,
    },
    /// An eta that is no share.
    #[error("eta is {found}, expected 0 to 1")]
    Eta {
        /// The number.
        found: f64,
    },
    /// A picture without the text from which it could be made again.
    #[error("`{path}` has no `parameters` text")]
    NoParameters {
        /// The picture.
        path: PathBuf,
    },
    /// A picture with a text that no prompt is as long as.
    #[error("`{path}` has a `parameters` text of {found} bytes, expected {max} at most")]
    LongParameters {
        /// The picture.
        path: PathBuf,
        /// Its bytes.
        found: usize,
        /// The most.
        max: usize,
    },
    /// A picture's text with a value that is none.
    #[error("{field}: expected {expected}, found `{found}`")]
    Field {
        /// The field's name.
        field: String,
        /// What it should be.
        expected: &'static str,
        /// The value.
        found: String,
    },
    /// Tiles that are too small or too large, or overlap too far.
    #[error(
        "tiles of {tile_px} px that overlap by {overlap_px}: expected 0 (the whole picture) or {min_px} to {max_px} px, \
         overlapping by half of that at most"
    )]
    Tiles {
        /// The side.
        tile_px: u32,
        /// The overlap.
        overlap_px: u32,
        /// The smallest side.
        min_px: u32,
        /// The largest side.
        max_px: u32,
    },
    /// Tiles that no picture can be drawn in.
    #[error("tiles of {width}x{height} px: expected multiples of {multiple} from {min_px} to {max_px} px")]
    RedrawTile {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
        /// What both must be divisible by.
        multiple: u32,
        /// The shortest side.
        min_px: u32,
        /// The longest.
        max_px: u32,
    },
    /// A length that is too short or too long.
    #[error("`{field}` is {found} px, expected {min} to {max}")]
    Pixels {
        /// The key.
        field: &'static str,
        /// The number.
        found: u32,
        /// The smallest.
        min: u32,
        /// The largest.
        max: u32,
    },
    /// A number that is no share.
    #[error("`{field}` is {found}, expected 0 to 1")]
    Share {
        /// The key.
        field: &'static str,
        /// The number.
        found: f64,
    },
    /// Neither a scale nor a size, and a picture that does not state one.
    #[error("`{path}` has no text that states its size: expected a scale or a size")]
    NoSize {
        /// The picture.
        path: PathBuf,
    },
    /// Tiles of the VAE that are none.
    #[error(
        "tiles of the VAE of {found} px: expected 0 (the whole picture), or a multiple of {multiple} from {min_px} to {max_px} px"
    )]
    VaeTile {
        /// The side.
        found: u32,
        /// What it must be divisible by.
        multiple: u32,
        /// The smallest side.
        min_px: u32,
        /// The largest side.
        max_px: u32,
    },
    /// The VAE is to go over a picture in tiles whose edges need each other.
    #[error(
        "a picture whose edges fit together (`tiling`) cannot be taken in tiles of the VAE: expected one of them"
    )]
    VaeTileTiling,
    /// Pictures that a device has no room for.
    #[error(
        "{size} px in a batch of {rows} rows needs {:.1} GB of memory, and {:.1} GB are available",
        gigabytes(needed_bytes),
        gigabytes(available_bytes)
    )]
    Memory {
        /// The size of the largest pass.
        size: crate::Size,
        /// Prompts and negative prompts of all pictures that are made at once.
        rows: u64,
        /// What is needed.
        needed_bytes: u64,
        /// What there is.
        available_bytes: u64,
    },
    /// A factor of enlargement that is none.
    #[error("a scale of {found}: expected more than 0 and at most {max}")]
    Scale {
        /// The number.
        found: f64,
        /// The largest.
        max: f64,
    },
    /// Two answers to one question.
    #[error("a scale and a size are given, expected one of them")]
    ScaleAndSize,
    /// A rule that makes any size, and is told none.
    #[error("{upscaler} makes pictures of any size: expected a scale or a size")]
    NoScale {
        /// Its name.
        upscaler: String,
    },
    /// A picture that is too large for what reads it.
    #[error(
        "a picture of {width}x{height} px would take {gigabytes:.1} GB: expected sides of at most {max_side_px} px, and at most \
         {max} pixels"
    )]
    TooLarge {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
        /// Its bytes.
        gigabytes: f64,
        /// The longest side.
        max_side_px: u32,
        /// The most pixels.
        max: u64,
    },
    /// An output that would take the place of what it is made from.
    #[error("the output `{path}` is the input, or lies in it")]
    OutputIsInput {
        /// The output.
        path: PathBuf,
    },
    /// A folder with nothing to do.
    #[error("there is no picture in `{path}`")]
    NoPictures {
        /// The folder.
        path: PathBuf,
    },
    /// A size that is not of the form `WIDTHxHEIGHT`.
    #[error("expected a size such as 512x768, found `{found}`")]
    SizeForm {
        /// The text.
        found: String,
    },
    /// A size that the networks cannot make.
    #[error("size {width}x{height}: expected multiples of {multiple} up to {max}")]
    Size {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
        /// What both must be divisible by.
        multiple: u32,
        /// The largest, in pixels.
        max: u32,
    },
    /// A guidance that is no number, or below 0.
    #[error("CFG scale {found}: expected 0 or more")]
    CfgScale {
        /// The number.
        found: f64,
    },
    /// An output in a form that is not written.
    #[error("the output `{path}` does not end in .png, .jpg or .webp")]
    OutputName {
        /// The path.
        path: PathBuf,
    },
    /// The layer of the text encoder is counted from 1.
    #[error("clip skip is 0, expected at least 1, the last layer")]
    ClipSkipZero,
    /// The text encoder has no such layer.
    #[error("clip skip is {found}, expected 1 to {max}")]
    ClipSkip {
        /// The number.
        found: u32,
        /// The number of the text encoder's layers.
        max: u32,
    },
    /// A grid without one of its axes.
    #[error("the grid has no {axis}: list at least one under `{axis}`")]
    EmptyAxis {
        /// The key in `grid.toml`.
        axis: &'static str,
    },
    /// NaN or infinity instead of a picture, although the weights are finite.
    #[error("`{checkpoint}` gave values that are not finite ({what}); no picture was made")]
    NotFinite {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// Where they were found: latents or pixels.
        what: &'static str,
    },
    /// NaN or infinity instead of a picture, although the weights are finite, of a prompt whose words weigh as nothing does
    /// that works: of 900 brackets around a word, say.
    #[error("the {prompt} weighs words by {weight:e}, and its picture is not finite; no picture was made")]
    PromptWeight {
        /// Which of both.
        prompt: &'static str,
        /// The largest of its weights.
        weight: f32,
    },
    /// A picture of which nothing can be seen.
    #[error("`{checkpoint}` gave a picture that is black everywhere; no picture was made")]
    Black {
        /// The checkpoint.
        checkpoint: PathBuf,
    },
    /// A picture that cannot be decoded.
    #[error("cannot read the picture `{path}`")]
    ReadPicture {
        /// The file.
        path: PathBuf,
        /// What the decoder says.
        source: image::ImageError,
    },
    /// A picture cannot be encoded.
    #[error("cannot write the picture `{path}`")]
    WritePicture {
        /// The file.
        path: PathBuf,
        /// What the encoder says.
        source: image::ImageError,
    },
    /// A text that a JPEG file has no room for.
    #[error("the text of `{path}` has {found} bytes, of which JPEG holds {max}: write PNG or WebP")]
    TextTooLong {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        found: usize,
        /// The longest.
        max: usize,
    },
    /// A picture that is not there or is no PNG.
    #[error("cannot read the picture `{path}`")]
    ReadPng {
        /// The file.
        path: PathBuf,
        /// What the decoder says.
        source: png::DecodingError,
    },
    /// A picture cannot be written.
    #[error("cannot write the picture `{path}`")]
    WritePng {
        /// The file.
        path: PathBuf,
        /// What the encoder says.
        source: png::EncodingError,
    },
    /// A table of the grid cannot be written.
    #[error("cannot write `{path}`")]
    WriteTable {
        /// The file.
        path: PathBuf,
        /// What the writer says.
        source: csv::Error,
    },
    /// A cell of the grid was replaced by a picture of another kind while the sheet was put together.
    #[error("`{path}` is no RGB picture any more: it was changed meanwhile")]
    CellChanged {
        /// The cell.
        path: PathBuf,
    },
    /// A type of axis that does not exist.
    #[error("unknown type of axis `{found}`{}", did_you_mean(nearest))]
    AxisType {
        /// The text.
        found: String,
        /// The known name that is most like it.
        nearest: Option<String>,
    },
    /// An axis that cannot be used.
    #[error("{}the axis `{axis}`: {message}", line_of(line))]
    Axis {
        /// Its name.
        axis: String,
        /// Its line in `grid.toml`, where it is from there.
        line: Option<usize>,
        /// What is wrong with it, and with which value.
        message: String,
    },
    /// A layout with an axis that the grid does not have.
    #[error("the layout names the axis `{found}`, expected one of {known:?}")]
    LayoutAxis {
        /// The name.
        found: String,
        /// The names of the axes.
        known: Vec<String>,
    },
    /// A layout that has an axis in two places.
    #[error("the layout names the axis `{axis}` twice")]
    LayoutTwice {
        /// Its name.
        axis: String,
    },
    /// Two checkpoints that nothing would tell apart.
    #[error("two checkpoints are called `{label}`: `{first}` and `{second}`; give one another `label`")]
    LabelTwice {
        /// What both are called.
        label: String,
        /// One.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// Seeds in two places.
    #[error("the grid has `seeds` and an axis `Seed`: expected one of them")]
    SeedsTwice,
    /// A store that is the output folder itself.
    #[error("the store is the output folder `{path}`: expected another folder")]
    StoreIsOutput {
        /// The folder.
        path: PathBuf,
    },
    /// The user wants to stop; the same command goes on where it was.
    #[error("interrupted")]
    Interrupted,
    /// A comparison with a checkpoint that is not in the grid.
    #[error(
        "`judge.against` names the checkpoint `{found}`, which the grid does not have{}",
        did_you_mean(nearest)
    )]
    Against {
        /// The label.
        found: String,
        /// The label that is most like it.
        nearest: Option<String>,
    },
    /// A grid that would never be through.
    #[error("the grid has {cells} cells, expected at most {max}")]
    TooManyCells {
        /// The product of the axes.
        cells: usize,
        /// The most.
        max: usize,
    },
    /// Limits that no sheet could keep.
    #[error(
        "sheets of at most {side_px} px a side and {megapixels} megapixels: expected at least 256 px and 0.1"
    )]
    SheetLimits {
        /// `sheet.max_side_px`.
        side_px: u32,
        /// `sheet.max_megapixels`.
        megapixels: f64,
    },
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!(", did you mean `{name}`?")).unwrap_or_default()
}

fn gigabytes(bytes: &u64) -> f64 {
    *bytes as f64 / 1e9
}

fn line_of(line: &Option<usize>) -> String {
    line.map(|line| format!("line {line}: ")).unwrap_or_default()
}

impl Error {
    /// Whether one picture could not be made, and others from the same checkpoint may: values that are not finite although
    /// the weights are, or nothing but black.
    pub fn is_of_one_picture(&self) -> bool {
        matches!(self, Self::NotFinite { .. } | Self::PromptWeight { .. } | Self::Black { .. })
    }
}
