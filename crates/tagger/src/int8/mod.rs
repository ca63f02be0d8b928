//! Models with 8-bit weights: smaller, and faster where the processor multiplies bytes, at a small cost in scores.
//!
//! ConvNeXtV2-Base shrinks from 387 to 109 MB and takes 0.95 s of one core for a picture instead of 1.57 (Xeon with
//! VNNI). Of 551 tags that `fixtures/tagger` gives a score of at least 0.3, one appeared or vanished (only its head is a
//! matrix product); of 2240 that a small ConvNeXtV2 gives, trained for minutes on the same world, twelve.
//!
//! What weights are multiplied with is quantised over a whole batch: in batches of more than one, the scores of a picture
//! depend a little on the other pictures. So [`quantize_folder`] writes `max_batch = 1` beside the network; what runs a network of
//! [`quantize`] by itself should do the same where runs must agree to the last digit.

mod inline;
mod locations;
mod onnx;
mod ports;
mod rewrite;
mod weights;
mod wire;

#[cfg(test)]
mod tests;

pub(crate) use locations::locations;

use std::{
    fmt, fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};
use vodka_stage::{AtomicFile, Outcome, Report, lossy};

use crate::{
    Category, Description, Error, Result,
    description::MODEL_TOML,
    folder::{ModelFolder, networks_in},
};

/// What the encoding allows: lengths are 32 bits with a sign.
const BYTES_MAX: u64 = i32::MAX as u64;

/// What [`quantize`] has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuantizeReport {
    /// The new model.
    #[serde(serialize_with = "lossy")]
    pub output: PathBuf,
    /// How many matrix products now have int8 weights.
    pub quantized: usize,
    /// The matrix products that stay in float32.
    pub left: Vec<Left>,
    /// The size of the model, with its weights where those are in other files.
    pub bytes_before: u64,
    /// The size of the new one.
    pub bytes_after: u64,
}

impl fmt::Display for QuantizeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { output, quantized, left, bytes_before, bytes_after } = self;
        let (before, after) = (megabytes(*bytes_before), megabytes(*bytes_after));
        let all = quantized + left.len();
        let output = output.display();
        write!(f, "`{output}`: {quantized} of {all} matrix products in int8, {after} MB of {before} MB")?;
        left.iter().try_for_each(|left| write!(f, "\n  left in float32: {left}"))
    }
}

impl Report for QuantizeReport {
    fn outcome(&self) -> Outcome {
        Outcome::Done
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}

/// A matrix product that stays in float32.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// The name of the node, or of what it makes.
    pub node: String,
    /// Why it stays.
    pub reason: LeftReason,
}

impl Left {
    fn new(node: &onnx::Node, reason: LeftReason) -> Self {
        Self { node: node.label().to_owned(), reason }
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` ({})", self.node, self.reason)
    }
}

/// Why a matrix product stays in float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LeftReason {
    /// Its second factor is computed, as in attention.
    NotConstant,
    /// Its second factor is a constant of another type.
    NotFloat,
    /// Its second factor has no elements, or not two axes.
    NotMatrix,
    /// A value is not finite, or too large to double.
    NotFinite,
    /// Its second factor is an input of the model too, and can be another one in each run.
    Input,
    /// A `Gemm` with `alpha`, `beta` or `transA`.
    Gemm,
    /// It is in a graph within the graph.
    Subgraph,
}

impl fmt::Display for LeftReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotConstant => "the second factor is no constant",
            Self::NotFloat => "the weights are not float32",
            Self::NotMatrix => "the weights are no matrix",
            Self::NotFinite => "a weight is not finite",
            Self::Input => "the weights are an input of the model too",
            Self::Gemm => "it is scaled or its input transposed",
            Self::Subgraph => "it is in a graph within the graph",
        })
    }
}

/// Writes a model whose matrix products (`MatMul`, and `Gemm` without `alpha`, `beta` and `transA`) by a constant
/// float32 matrix are done in 8 bits; convolutions stay as they are.
///
/// Weights are int8 with a scale for each column; what they are multiplied with is quantised to uint8 in each run
/// (`DynamicQuantizeLinear`). The same arithmetic as `onnxruntime.quantization.quantize_dynamic` with `per_channel`.
/// Everything else in the file stays byte for byte; the output depends on nothing but the input. Weights in files beside
/// the model (`model.onnx.data`) are taken into the new one. On x86-64 processors
/// without VNNI, ONNX Runtime adds such products in 16 bits, which may overflow: there the cost in scores is higher.
///
/// # Errors
/// When the model or a file of its weights cannot be read or is damaged; when both together are larger than 2 GiB; when
/// the model is older than opset 11, or has nothing to quantise; when there is an output already, above all the model
/// itself, or it cannot be written.
pub fn quantize(model: &Path, output: &Path) -> Result<QuantizeReport> {
    check_place(model, output)?;
    if output.symlink_metadata().is_ok() {
        return Err(Error::NetworkThere { path: output.to_path_buf() });
    }
    write(output, &Quantized::of(model)?)
}

/// Makes of a model's folder one with the network in 8 bits ([`quantize`]) under its own name, and copies of the files of
/// text beside it: labels, thresholds, descriptions.
///
/// The copy's `model.toml` says what the original is known by, so that the new folder may have any name: its family, and
/// the threshold that goes with the name of its folder. It sets `max_batch = 1`; a batch that is fixed in the graph stays.
///
/// # Errors
/// As [`quantize`]; when the folder is no model, or of no one family and without a `model.toml`; when there is a network in
/// the output already; and when a file cannot be copied.
pub fn quantize_folder(model: &Path, output: &Path) -> Result<QuantizeReport> {
    QuantizePlan::new(model, output)?.run()
}

/// What [`quantize_folder`] is going to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QuantizePlan {
    /// The folder of the model.
    #[serde(serialize_with = "lossy")]
    pub model: PathBuf,
    /// Its network.
    #[serde(serialize_with = "lossy")]
    pub network: PathBuf,
    /// The folder that is written.
    #[serde(serialize_with = "lossy")]
    pub output: PathBuf,
}

impl QuantizePlan {
    /// Looks into both folders, and changes nothing.
    ///
    /// # Errors
    /// When the one is no model, or there is a network in the other already.
    pub fn new(model: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Result<Self> {
        let (model, output) = (model.into(), output.into());
        check_place(&model, &output)?;
        if let Some(path) = networks_in(&output).next() {
            return Err(Error::NetworkThere { path });
        }
        let network = ModelFolder::open(&model, None)?.network;
        Ok(Self { model, network, output })
    }

    /// Does it.
    ///
    /// # Errors
    /// As [`quantize_folder`].
    pub fn run(&self) -> Result<QuantizeReport> {
        quantize_into(&self.model, &self.output)
    }
}

fn quantize_into(model: &Path, output: &Path) -> Result<QuantizeReport> {
    let folder = ModelFolder::open(model, None)?;
    let network = folder.network.clone();
    let quantized = Quantized::of(&network)?;
    let description = match folder.only_description() {
        Some(description) => description.clone(),
        None => {
            let graph = ports::graph(&quantized.bytes).map_err(|flaw| flaw.in_model(&network))?;
            folder.settle(&graph)?.description
        }
    };
    copy_text(model, output)?;
    vodka_stage::write_atomic(output.join(MODEL_TOML), description_of_copy(model, &description)?)?;
    write(&output.join(network.file_name().expect("a network is a file")), &quantized)
}

/// Refuses to put something in the place of what it is made of.
fn check_place(model: &Path, output: &Path) -> Result<()> {
    match (model.canonicalize(), output.canonicalize()) {
        (Ok(model), Ok(there)) if model == there => Err(Error::SameModel { path: output.to_path_buf() }),
        _ => Ok(()),
    }
}

/// Copies the files of text beside a network, but for the description.
fn copy_text(model: &Path, output: &Path) -> Result<()> {
    let unreadable = |source| vodka_stage::Error::Read { path: model.to_path_buf(), source };
    for entry in fs::read_dir(model).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().expect("an entry has a name");
        let is_text =
            ["csv", "json", "txt", "toml"].iter().any(|kind| path.extension().is_some_and(|it| it == *kind));
        if is_text && name != MODEL_TOML && path.is_file() {
            let bytes =
                fs::read(&path).map_err(|source| vodka_stage::Error::Read { path: path.clone(), source })?;
            vodka_stage::write_atomic(output.join(name), bytes)?;
        }
    }
    Ok(())
}

/// The `model.toml` of a copy: that of the original, or the name of its family; with the threshold that the path of the
/// original stands for, and a batch of one.
fn description_of_copy(model: &Path, description: &Description) -> Result<String> {
    let path = model.join(MODEL_TOML);
    let mut table = match path.is_file() {
        true => {
            let text =
                fs::read_to_string(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
            vodka_stage::parse_toml(text.strip_prefix('\u{feff}').unwrap_or(&text), &path)?
        }
        false => Table::from_iter([("family".to_owned(), description.name().into())]),
    };
    table.insert("max_batch".to_owned(), Value::Integer(1));
    if let Some((_, threshold)) = description.thresholds.of_model(model) {
        // By way of text: 0.2614, not what of it 32 bits can hold.
        let threshold: f64 = threshold.to_string().parse().expect("a number is read as it is written");
        let categories = table_in(table_in(&mut table, "thresholds"), "categories");
        categories.insert(Category::General.to_string(), threshold.into());
    }
    Ok(format!("# In batches of more than one, scores depend a little on the other pictures.\n{table}"))
}

/// The table of a name in a table, made where it is not there.
fn table_in<'a>(table: &'a mut Table, name: &str) -> &'a mut Table {
    let inner = table.entry(name).or_insert_with(|| Table::new().into());
    inner.as_table_mut().expect("what has been read as a description has tables there")
}

/// A model in 8 bits, and what became of it.
struct Quantized {
    bytes: Vec<u8>,
    bytes_before: u64,
    count: usize,
    left: Vec<Left>,
}

impl Quantized {
    fn of(model: &Path) -> Result<Self> {
        let unreadable = |source| vodka_stage::Error::Read { path: model.to_path_buf(), source };
        let size = fs::metadata(model).map_err(unreadable)?.len();
        if size > BYTES_MAX {
            return Err(Error::ModelTooLarge { model: model.to_path_buf(), bytes: size });
        }
        let bytes = inline::inline(model, fs::read(model).map_err(unreadable)?)?;
        let bytes_before = bytes.len() as u64;
        let rewritten = rewrite::rewrite(&bytes).map_err(|flaw| flaw.in_model(model))?;
        let rewrite::Rewritten { bytes, quantized: count, left } = rewritten;
        if count == 0 {
            return Err(Error::NothingToQuantize { model: model.to_path_buf(), left });
        }
        Ok(Self { bytes, bytes_before, count, left })
    }
}

fn write(output: &Path, quantized: &Quantized) -> Result<QuantizeReport> {
    let Quantized { bytes, bytes_before, count, left } = quantized;
    let unwritable = |source| vodka_stage::Error::Write { path: output.to_path_buf(), source };
    let mut file = AtomicFile::create(output)?;
    file.write_all(bytes).map_err(unwritable)?;
    file.commit()?;
    Ok(QuantizeReport {
        output: output.to_path_buf(),
        quantized: *count,
        left: left.clone(),
        bytes_before: *bytes_before,
        bytes_after: bytes.len() as u64,
    })
}

/// Why the bytes of a model cannot be rewritten.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum Flaw {
    #[error("byte {at}: expected {expected}, found {found}")]
    Damaged { at: usize, expected: &'static str, found: String },
    #[error("`{tensor}` is in `{location}`")]
    Outside { tensor: String, location: String },
    #[error("opset {version}")]
    Opset { version: i64 },
}

impl Flaw {
    fn damaged(at: usize, expected: &'static str, found: String) -> Self {
        Self::Damaged { at, expected, found }
    }

    fn in_model(self, model: &Path) -> Error {
        let model = model.to_path_buf();
        match self {
            Self::Damaged { at, expected, found } => Error::NotOnnx { model, at, expected, found },
            Self::Outside { tensor, location } => {
                let (expected, found) =
                    ("only initializers of the outer graph there", "another tensor".into());
                Error::WeightsOutside { model, tensor, location, expected, found }
            }
            Self::Opset { version } => Error::Opset { model, version },
        }
    }
}
