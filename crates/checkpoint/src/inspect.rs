//! What is in a file: architecture, precision, parts, hashes, metadata, ranges of values.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use serde::Serialize;
use serde_json::Value;

use crate::{
    Architecture, Checkpoint, Dtype, Ema, Error, Format, Hashes, Mismatch, ModelConfig, Part, Result,
    TensorView, WeightFile, convert, convert::PositionIds, keys, known,
};

/// What to find out; the table of contents is always read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// Whether to hash the file.
    pub hashes: bool,
    /// Whether to read all weights for their ranges, NaN and infinities.
    pub values: bool,
}

/// What a file or folder is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// Where it lies.
    pub path: PathBuf,
    /// Its form.
    pub format: Format,
    /// Its size in bytes; of the files with weights, for a folder.
    pub bytes: u64,
    /// In words.
    pub architecture: String,
    /// All tensors: how many, and how many bytes of each type.
    pub dtypes: BTreeMap<String, Count>,
    /// For a Stable Diffusion 1.x checkpoint.
    pub model: Option<Model>,
    /// For a LoRA of kohya's or diffusers' names.
    pub lora: Option<LoraSummary>,
    /// What a pickle holds beside tensors.
    pub left_over: Vec<String>,
    /// The header's `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// How it was merged, as A1111 and its followers write it (`sd_merge_recipe`).
    pub recipe: Option<Value>,
    /// What it was merged from (`sd_merge_models`).
    pub ancestors: Option<Value>,
    /// The hashes.
    pub hashes: Option<Hashes>,
    /// What a well-known file is called.
    pub known: Option<&'static str>,
    /// Ranges of values, by block.
    pub values: Option<Vec<BlockValues>>,
}

/// Tensors and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// How many tensors.
    pub tensors: u64,
    /// How many elements.
    pub elements: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// A Stable Diffusion 1.x checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Model {
    /// What its UNet takes beside the latents.
    pub variant: Variant,
    /// Widths, depths, heads.
    pub config: ModelConfig,
    /// Whether the configuration is that of Stable Diffusion 1.5, but for the input of the UNet and what it predicts.
    pub is_sd15: bool,
    /// The EMA copy.
    pub ema: Ema,
    /// The parts that are there.
    pub parts: Vec<PartSummary>,
    /// Tensors that are missing, left over, or of another shape.
    pub mismatch: Option<String>,
    /// Whether `position_ids` are what they should be; none where there are none.
    pub position_ids: Option<PositionIds>,
    /// Tensors that are no weights.
    pub extras: u64,
}

/// What a UNet takes, told by its input channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// Latents: text to image.
    Normal,
    /// Latents, a mask, and the latents of the masked picture.
    Inpainting,
    /// Latents, and those of the picture to change.
    InstructPix2pix,
    /// Something else.
    Other,
}

/// One part of a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartSummary {
    /// Which.
    pub part: Part,
    /// Its tensors by type.
    pub dtypes: BTreeMap<String, Count>,
}

/// A LoRA.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoraSummary {
    /// How many weights it changes.
    pub modules: u64,
    /// The ranks, and how many modules have each.
    pub ranks: BTreeMap<usize, u64>,
}

/// The values of one block.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BlockValues {
    /// `IN00` to `OUT11` and their like for the UNet; `text encoder`, `VAE encoder`, ...
    pub block: String,
    /// The values.
    #[serde(flatten)]
    pub range: Range,
}

/// What values there are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Range {
    /// How many.
    pub values: u64,
    /// The smallest finite one.
    pub min: f32,
    /// The largest finite one.
    pub max: f32,
    /// How many are NaN.
    pub nan: u64,
    /// How many are infinite.
    pub infinite: u64,
}

/// Finds out what a file or folder is.
///
/// # Errors
/// What is no file of tensors: damaged, cut short, or a pickle that wants to run something. Another architecture is no
/// error here.
pub fn inspect(path: impl Into<PathBuf>, depth: Depth) -> Result<Inspection> {
    let path = path.into();
    match Checkpoint::open(&path) {
        Ok(checkpoint) => of_checkpoint(&path, &checkpoint, "Stable Diffusion 1.x".to_owned(), depth),
        Err(Error::Architecture { found: Architecture::Vae, .. }) => {
            let vae = Checkpoint::open_vae(&path)?;
            of_checkpoint(&path, &vae, "a VAE alone".to_owned(), depth)
        }
        Err(Error::Architecture { found, .. }) if path.is_file() => of_file(&path, &found, depth),
        Err(error) => Err(error),
    }
}

fn of_checkpoint(path: &Path, checkpoint: &Checkpoint, what: String, depth: Depth) -> Result<Inspection> {
    let (hashes, values) = rayon::join(
        || if depth.hashes { checkpoint.hashes() } else { Ok(None) },
        || depth.values.then(|| checkpoint_values(checkpoint)).transpose(),
    );
    let hashes = hashes?;
    let config = checkpoint.config();
    let is_whole = checkpoint.has(Part::Unet);
    let mut parts = Vec::new();
    for part in Part::ALL.into_iter().filter(|part| checkpoint.has(*part)) {
        let of_part = checkpoint.infos().filter(|(name, _)| Part::of(name) == Some(part));
        parts.push(PartSummary { part, dtypes: count(of_part.map(|(_, info)| (info.dtype, info.numel()))) });
    }
    let present: Vec<_> = parts.iter().map(|summary| summary.part).collect();
    let mismatch = match checkpoint.check_names_of(&present) {
        Err(Error::Mismatch { mismatch, .. }) => Some(Mismatch::to_string(&mismatch)),
        checked => checked.map(|()| None)?,
    };
    let model = Model {
        variant: variant(config),
        config: config.clone(),
        is_sd15: is_sd15(config),
        ema: checkpoint.ema(),
        parts,
        mismatch,
        position_ids: convert::check_position_ids(checkpoint)?,
        extras: checkpoint.extras().count() as u64,
    };
    let extras = checkpoint.extras().filter_map(|(name, _)| checkpoint.extra_info(name).ok());
    let all = checkpoint.infos().map(|(_, info)| info).chain(extras);
    let metadata = checkpoint.metadata().clone();
    Ok(Inspection {
        path: path.to_path_buf(),
        format: checkpoint.format(),
        bytes: checkpoint.files().filter_map(|path| fs::metadata(path).ok()).map(|data| data.len()).sum(),
        architecture: what,
        dtypes: count(all.map(|info| (info.dtype, info.numel()))),
        model: is_whole.then_some(model),
        lora: None,
        left_over: checkpoint.left_over().map(ToOwned::to_owned).collect(),
        recipe: parsed(&metadata, "sd_merge_recipe"),
        ancestors: parsed(&metadata, "sd_merge_models"),
        metadata,
        known: hashes.as_ref().and_then(|hashes| known(&hashes.auto_v2)),
        hashes,
        values: values?,
    })
}

/// A file of another kind.
fn of_file(path: &Path, found: &Architecture, depth: Depth) -> Result<Inspection> {
    let file = WeightFile::open(path)?;
    let hashes = if depth.hashes { Some(Hashes::of(&file)?) } else { None };
    let names: Vec<_> = file.names().filter(|name| file.info(name).is_ok()).collect();
    let infos = names.iter().filter_map(|name| file.info(name).ok());
    let dtypes = count(infos.map(|info| (info.dtype, info.numel())));
    let values = match depth.values {
        true => Some(by_block(&names, |name| file.tensor(name), |_| "all".to_owned())?),
        false => None,
    };
    let metadata = file.metadata().clone();
    Ok(Inspection {
        path: path.to_path_buf(),
        format: file.format(),
        bytes: file.all().len() as u64,
        architecture: found.to_string(),
        dtypes,
        model: None,
        lora: (*found == Architecture::Lora).then(|| lora(&file)),
        left_over: file.left_over().to_vec(),
        recipe: parsed(&metadata, "sd_merge_recipe"),
        ancestors: parsed(&metadata, "sd_merge_models"),
        metadata,
        known: None,
        hashes,
        values,
    })
}

fn lora(file: &WeightFile) -> LoraSummary {
    let is_down = |name: &&str| name.ends_with(".lora_down.weight") || name.ends_with(".lora_A.weight");
    let mut ranks = BTreeMap::new();
    for info in file.names().filter(is_down).filter_map(|name| file.info(name).ok()) {
        *ranks.entry(info.shape.first().copied().unwrap_or(0)).or_insert(0) += 1;
    }
    LoraSummary { modules: ranks.values().sum(), ranks }
}

fn count(tensors: impl Iterator<Item = (Dtype, usize)>) -> BTreeMap<String, Count> {
    let mut counts = BTreeMap::<_, Count>::new();
    for (dtype, elements) in tensors {
        let count = counts.entry(dtype.name().to_owned()).or_default();
        count.tensors += 1;
        count.elements += elements as u64;
        count.bytes += (elements * dtype.size()) as u64;
    }
    counts
}

fn parsed(metadata: &BTreeMap<String, String>, key: &str) -> Option<Value> {
    serde_json::from_str(metadata.get(key)?).ok()
}

fn variant(config: &ModelConfig) -> Variant {
    match config.unet.in_channels - config.vae.latent_channels {
        0 => Variant::Normal,
        5 => Variant::Inpainting,
        4 => Variant::InstructPix2pix,
        _ => Variant::Other,
    }
}

fn is_sd15(config: &ModelConfig) -> bool {
    let mut expected = ModelConfig::sd15();
    expected.unet.in_channels = config.unet.in_channels;
    expected.prediction = config.prediction;
    *config == expected
}

fn checkpoint_values(checkpoint: &Checkpoint) -> Result<Vec<BlockValues>> {
    let names: Vec<_> = checkpoint.names().collect();
    let mut values = by_block(&names, |name| checkpoint.tensor(name), block)?;
    let is_ema = |name: &str| name.starts_with("model_ema.");
    let ema: Vec<_> = checkpoint.extras().map(|(name, _)| name).filter(|name| is_ema(name)).collect();
    if checkpoint.ema() == Ema::Beside {
        values.extend(by_block(&ema, |name| checkpoint.extra(name), |_| "EMA copy".to_owned())?);
    }
    Ok(values)
}

/// The block that a weight belongs to.
fn block(name: &str) -> String {
    let number = |rest: &str| rest.split('.').next().and_then(|number| number.parse::<u32>().ok());
    if let Some(rest) = name.strip_prefix(keys::UNET_PREFIX) {
        let numbered =
            |prefix: &str, short: &str| Some(format!("{short}{:02}", number(rest.strip_prefix(prefix)?)?));
        return numbered("input_blocks.", "IN")
            .or_else(|| numbered("output_blocks.", "OUT"))
            .or_else(|| rest.starts_with("middle_block.").then(|| "M00".to_owned()))
            .unwrap_or_else(|| format!("UNet {}", rest.split('.').next().unwrap_or(rest)));
    }
    if let Some(rest) = name.strip_prefix(keys::VAE_PREFIX) {
        return format!("VAE {}", rest.split('.').next().unwrap_or(rest));
    }
    match name.starts_with(keys::CLIP_PREFIX) {
        true => "text encoder".to_owned(),
        false => "other".to_owned(),
    }
}

/// Bytes that a thread looks at in one go.
const CHUNK: usize = 1 << 20;

fn by_block<'a>(
    names: &[&str],
    tensor: impl Fn(&str) -> Result<TensorView<'a>> + Sync,
    block: impl Fn(&str) -> String,
) -> Result<Vec<BlockValues>> {
    let ranges: Vec<Range> =
        names.par_iter().map(|name| Ok(range_of(&tensor(name)?))).collect::<Result<_>>()?;
    let mut blocks = BTreeMap::<String, Range>::new();
    for (name, range) in names.iter().zip(ranges) {
        blocks.entry(block(name)).and_modify(|all| *all = all.with(range)).or_insert(range);
    }
    Ok(blocks.into_iter().map(|(block, range)| BlockValues { block, range }).collect())
}

fn range_of(view: &TensorView) -> Range {
    let size = view.dtype.size();
    view.data
        .par_chunks(CHUNK)
        .map(|bytes| match view.dtype {
            Dtype::F16 => range16(bytes, 0x7c00, |bits| half::f16::from_bits(bits).to_f32()),
            Dtype::BF16 => range16(bytes, 0x7f80, |bits| half::bf16::from_bits(bits).to_f32()),
            dtype => {
                let view = TensorView { dtype, shape: vec![bytes.len() / size], data: bytes.into() };
                range_of_values(view.to_f32().into_iter())
            }
        })
        .reduce(|| Range::NONE, Range::with)
}

/// The range of 16-bit floats, found on their bits: turned into numbers of the same order, it is one comparison each.
fn range16(bytes: &[u8], infinity: u16, value: impl Fn(u16) -> f32) -> Range {
    let elements = bytes.as_chunks::<2>().0;
    // A negative float's bits count the wrong way; NaN are beyond the infinities on either side.
    let ordered = |bits: u16| (bits ^ (((bits as i16) >> 15) as u16 & 0x7fff)) as i16;
    let (min, max) = elements.iter().fold((i16::MAX, i16::MIN), |(min, max), bytes| {
        let key = ordered(u16::from_le_bytes(*bytes));
        (min.min(key), max.max(key))
    });
    let limit = ordered(infinity);
    if elements.is_empty() || max >= limit || min <= ordered(infinity | 0x8000) {
        return range_of_values(elements.iter().map(|bytes| value(u16::from_le_bytes(*bytes))));
    }
    let back = |key: i16| value(ordered(key as u16) as u16);
    Range { values: elements.len() as u64, min: back(min), max: back(max), nan: 0, infinite: 0 }
}

fn range_of_values(values: impl Iterator<Item = f32>) -> Range {
    values.fold(Range::NONE, |mut range, x| {
        range.values += 1;
        if x.is_finite() {
            range.min = range.min.min(x);
            range.max = range.max.max(x);
        } else if x.is_nan() {
            range.nan += 1;
        } else {
            range.infinite += 1;
        }
        range
    })
}

impl Range {
    /// That of no values.
    const NONE: Self = Self { values: 0, min: f32::INFINITY, max: f32::NEG_INFINITY, nan: 0, infinite: 0 };

    fn with(self, other: Self) -> Self {
        Self {
            values: self.values + other.values,
            min: self.min.min(other.min),
            max: self.max.max(other.max),
            nan: self.nan + other.nan,
            infinite: self.infinite + other.infinite,
        }
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.path.display())?;
        writeln!(f, "  {}, {:.2} GB, {}", self.format, self.bytes as f64 / 1e9, self.architecture)?;
        if let Some(known) = self.known {
            writeln!(f, "  known as {known}")?;
        }
        if let Some(model) = &self.model {
            model.fmt(f)?;
        } else {
            writeln!(f, "  tensors: {}", types(&self.dtypes))?;
        }
        if let Some(lora) = &self.lora {
            let ranks: Vec<_> = lora.ranks.iter().map(|(rank, n)| format!("{rank} ({n})")).collect();
            writeln!(f, "  changes {} weights; ranks: {}", lora.modules, ranks.join(", "))?;
        }
        if !self.left_over.is_empty() {
            writeln!(f, "  beside the tensors: {}", self.left_over.join(", "))?;
        }
        if let Some(Hashes { auto_v1, auto_v2, auto_v3 }) = &self.hashes {
            writeln!(f, "  AutoV1 {auto_v1}")?;
            writeln!(f, "  AutoV2 {} ({auto_v2})", auto_v2.short(10))?;
            if let Some(auto_v3) = auto_v3 {
                writeln!(f, "  AutoV3 {} ({auto_v3})", auto_v3.short(12))?;
            }
        }
        self.fmt_metadata(f)?;
        let values = self.values.iter().flatten();
        for (i, BlockValues { block, range }) in values.enumerate() {
            if i == 0 {
                writeln!(
                    f,
                    "  {:<16}{:>12}{:>12}{:>12}{:>8}{:>8}",
                    "block", "values", "min", "max", "NaN", "inf"
                )?;
            }
            let Range { values, min, max, nan, infinite } = range;
            writeln!(f, "  {block:<16}{values:>12}{min:>12.4}{max:>12.4}{nan:>8}{infinite:>8}")?;
        }
        Ok(())
    }
}

impl Inspection {
    fn fmt_metadata(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, value) in &self.metadata {
            if key != "sd_merge_recipe" && key != "sd_merge_models" {
                writeln!(f, "  {key}: {}", short(value))?;
            }
        }
        if let Some(recipe) = &self.recipe {
            writeln!(f, "  merged: {recipe}")?;
        }
        for (hash, model) in self.ancestors.iter().filter_map(Value::as_object).flatten() {
            let name = model.get("name").and_then(Value::as_str).unwrap_or("unnamed");
            writeln!(f, "  from: {name} ({})", hash.get(..10).unwrap_or(hash))?;
        }
        Ok(())
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let variant = match self.variant {
            Variant::Normal => "text to image",
            Variant::Inpainting => "inpainting",
            Variant::InstructPix2pix => "InstructPix2Pix",
            Variant::Other => "another input",
        };
        let size = if self.is_sd15 { "the size of 1.5" } else { "another size than 1.5" };
        let prediction = match self.config.prediction {
            crate::Prediction::Epsilon => "epsilon",
            crate::Prediction::VPrediction => "v",
        };
        writeln!(
            f,
            "  {variant} ({} input channels), {size}, predicts {prediction}",
            self.config.unet.in_channels
        )?;
        for part in Part::ALL {
            match self.parts.iter().find(|summary| summary.part == part) {
                Some(summary) => writeln!(f, "  {part}: {}", types(&summary.dtypes))?,
                None => writeln!(f, "  {part}: not there")?,
            }
        }
        writeln!(
            f,
            "  EMA: {}",
            match self.ema {
                Ema::None => "none (pruned)",
                Ema::Beside => "a copy beside the weights (full)",
                Ema::Used => "used",
                Ema::Only => "nothing but the EMA copy, which is read as the UNet",
            }
        )?;
        if let Some(ids) = self.position_ids {
            let damaged = ids == PositionIds::Repaired;
            let state = if damaged { "damaged (another type, averaged or rounded)" } else { "right" };
            writeln!(f, "  position_ids: {state}")?;
        }
        match &self.mismatch {
            Some(mismatch) => writeln!(f, "  does not fit its architecture: {mismatch}"),
            None => Ok(()),
        }
    }
}

/// `686 tensors, 859520964 F16`, and so on for each type.
fn types(dtypes: &BTreeMap<String, Count>) -> String {
    let one = |(dtype, count): (&String, &Count)| {
        format!("{dtype}, {} tensors, {:.1} million values", count.tensors, count.elements as f64 / 1e6)
    };
    dtypes.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// The first line of a text, or what fits into one.
fn short(text: &str) -> String {
    const SHOWN: usize = 100;
    let line: String = text.chars().take_while(|letter| *letter != '\n').take(SHOWN).collect();
    if line.len() < text.len() { format!("{line}...") } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_the_names_of_block_weights() {
        let of = |name: &str| block(&format!("model.diffusion_model.{name}"));
        assert_eq!(of("input_blocks.11.0.in_layers.0.weight"), "IN11");
        assert_eq!(of("middle_block.1.norm.weight"), "M00");
        assert_eq!(of("output_blocks.3.0.x"), "OUT03");
        assert_eq!(
            (of("out.2.bias"), of("time_embed.0.bias")),
            ("UNet out".into(), "UNet time_embed".into())
        );
        assert_eq!(block("first_stage_model.decoder.conv_in.bias"), "VAE decoder");
        assert_eq!(block("cond_stage_model.transformer.text_model.final_layer_norm.bias"), "text encoder");
    }

    #[test]
    fn ranges_on_bits_are_ranges_of_values() {
        // All 16-bit floats but those that are not finite, then all.
        let half = |bits| half::f16::from_bits(bits).to_f32();
        let all = |keep: fn(f32) -> bool| -> Vec<u8> {
            (0..=u16::MAX).filter(|bits| keep(half(*bits))).flat_map(u16::to_le_bytes).collect()
        };
        let finite = range16(&all(f32::is_finite), 0x7c00, half);
        assert_eq!(finite, Range { values: 63488, min: -65504.0, max: 65504.0, nan: 0, infinite: 0 });
        let every = range16(&all(|_| true), 0x7c00, half);
        assert_eq!(every, Range { values: 65536, nan: 2046, infinite: 2, ..finite });
        let some = range16(&[0x00, 0x80, 0x00, 0xbc, 0x00, 0x00], 0x7c00, half);
        assert_eq!((some.min, some.max), (-1.0, 0.0));
    }
}
