//! From one form of a LoRA to another: precision, and the names of kohya's scripts or of diffusers.

use std::{collections::BTreeMap, fmt, path::Path, str::FromStr};

use serde::Serialize;
use vodka_stage::{Interrupt, Outcome};

use crate::{
    Architecture, Dtype, Error, Lora, LoraModule, ModelConfig, Part, Precision, Result, SafetensorsWriter,
    TensorSpec, TensorView, WeightFile,
    convert::{ConvertEvent, ConvertPlan, ConvertReport, Loss, Overflow, Target, Vae, copy},
    detect, in_file_order,
    keys::{self, Key},
    lora::network,
    lora_adapter::ADAPTER_KEY,
    lora_name,
};

/// Whose names a LoRA has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraNames {
    /// `lora_unet_..._to_q.lora_down.weight`, `.lora_up.weight` and the scale in `.alpha`: those of kohya's scripts, which
    /// A1111 reads.
    Kohya,
    /// `unet.....to_q.lora_A.weight` and `.lora_B.weight`: those of PEFT, which diffusers writes today. They have no place
    /// for a scale.
    Diffusers,
}

impl FromStr for LoraNames {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "kohya" => Ok(Self::Kohya),
            "diffusers" => Ok(Self::Diffusers),
            _ => Err(format!("expected kohya or diffusers, found `{text}`")),
        }
    }
}

impl fmt::Display for LoraNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kohya => "kohya",
            Self::Diffusers => "diffusers",
        })
    }
}

/// Whether a file holds a LoRA or one of its relatives. False also for what cannot be read.
pub(crate) fn is_lora(path: &Path) -> bool {
    let kind = |file: WeightFile| detect::foreign(&file);
    path.is_file() && WeightFile::open(path).ok().and_then(kind) == Some(Architecture::Lora)
}

/// A tensor of the result.
struct Item {
    spec: TensorSpec,
    source: Source,
}

enum Source {
    /// A tensor of the input, each value multiplied by a factor.
    Tensor(String, f32),
    Alpha(f64),
}

/// An open LoRA, under its own names or by modules.
enum Input {
    File(WeightFile),
    Lora(Lora),
}

impl Input {
    fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        match self {
            Self::File(file) => file.tensor(name),
            Self::Lora(lora) => lora.tensor(name),
        }
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        match self {
            Self::File(file) => file.metadata(),
            Self::Lora(lora) => lora.metadata(),
        }
    }
}

/// Metadata that are hashes of other bytes.
const HASHES: [&str; 3] = ["modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash"];

/// Converts a LoRA.
///
/// # Errors
/// What has no meaning for a LoRA (another form than `.safetensors`, a VAE, an EMA copy); with other names, what
/// [`Lora::open`] refuses, and Tucker's middle tensors, which diffusers does not have.
pub(crate) fn run(
    plan: &ConvertPlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(ConvertEvent),
) -> Result<ConvertReport> {
    check(plan)?;
    let mut report = ConvertReport::new(plan);
    let (input, mut items) = match plan.names {
        None => {
            let file = WeightFile::open(&plan.input)?;
            let items = as_named(&file, plan.precision)?;
            report.left_over = file.left_over().to_vec();
            (Input::File(file), items)
        }
        Some(names) => {
            let lora = Lora::open(&plan.input, &ModelConfig::sd15())?;
            let items = renamed(&lora, names, plan.precision)?;
            report.dropped = lora.unused().to_vec();
            report.scaled =
                items.iter().filter(|item| matches!(item.source, Source::Tensor(_, by) if by != 1.0)).count()
                    as u64;
            (Input::Lora(lora), items)
        }
    };
    let metadata = metadata(&input, plan.names, &mut report);
    let mut specs: Vec<_> = items.iter().map(|item| item.spec.clone()).collect();
    in_file_order(&mut specs);
    let order: BTreeMap<_, _> = specs.iter().enumerate().map(|(i, spec)| (spec.name.clone(), i)).collect();
    items.sort_by_key(|item| order[&item.spec.name]);
    let bytes = specs.iter().map(TensorSpec::bytes).sum();
    (report.tensors, report.bytes) = (specs.len() as u64, bytes);
    on_event(ConvertEvent::Started { bytes });
    let writer = SafetensorsWriter::create(&plan.output, specs, &metadata)?;
    let mut written = 0;
    for (index, item) in items.iter().enumerate() {
        if interrupt.is_raised() {
            report.outcome = Outcome::Interrupted;
            return Ok(report);
        }
        let loss = write(&writer, index, &input, item, &mut report.converted)?;
        report.not_finite += loss.not_finite;
        if loss.overflowed > 0 {
            let (tensor, values, largest) = (item.spec.name.clone(), loss.overflowed, loss.largest);
            report.overflowed.push(Overflow { tensor, values, largest });
        }
        written += item.spec.bytes();
        on_event(ConvertEvent::Written { bytes: written });
    }
    writer.commit()?;
    if !report.overflowed.is_empty() {
        report.outcome = Outcome::Skipped;
    }
    Ok(report)
}

fn check(plan: &ConvertPlan) -> Result<()> {
    let wrong = match plan {
        ConvertPlan { use_ema: true, .. } => Some("it has no EMA copy"),
        ConvertPlan { prune: true, .. } => Some("there is nothing to prune"),
        ConvertPlan { vae: Vae::Bake(_) | Vae::Drop, .. } => Some("it has no VAE"),
        ConvertPlan { target: Target::Ckpt | Target::Diffusers, .. } => {
            Some("every program reads it as .safetensors, and it is written as nothing else")
        }
        _ => None,
    };
    match wrong {
        None => Ok(()),
        Some(why) => Err(Error::LoraOption { path: plan.input.clone(), why }),
    }
}

/// All tensors under their own names. Scales keep their type.
fn as_named(file: &WeightFile, precision: Option<Precision>) -> Result<Vec<Item>> {
    let item = |name: &str| {
        let info = file.info(name)?;
        let is_weight = info.dtype.is_float() && info.numel() > 1;
        let dtype = precision.filter(|_| is_weight).map_or(info.dtype, Precision::dtype);
        let spec = TensorSpec { name: name.to_owned(), dtype, shape: info.shape };
        Ok(Item { spec, source: Source::Tensor(name.to_owned(), 1.0) })
    };
    file.names().map(item).collect()
}

/// All modules under other names, in the shapes that these have.
fn renamed(lora: &Lora, names: LoraNames, precision: Option<Precision>) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    for key in keys::all(&ModelConfig::sd15()) {
        if let Some(module) = lora.modules().get(&key.ldm) {
            match names {
                LoraNames::Kohya => kohya(lora, &key, module, precision, &mut items)?,
                LoraNames::Diffusers => diffusers(lora, &key, module, precision, &mut items)?,
            }
        }
    }
    Ok(items)
}

fn kohya(
    lora: &Lora,
    key: &Key,
    module: &LoraModule,
    precision: Option<Precision>,
    items: &mut Vec<Item>,
) -> Result<()> {
    let name = lora_name(key).expect("modules have names");
    let with_mid = module.mid.is_some();
    items.push(item(
        lora,
        &module.down,
        format!("{name}.lora_down.weight"),
        down_shape(key, module, with_mid),
        precision,
        1.0,
    )?);
    items.push(item(
        lora,
        &module.up,
        format!("{name}.lora_up.weight"),
        up_shape(key, module),
        precision,
        1.0,
    )?);
    if let Some(mid) = &module.mid {
        let shape = [&[module.rank, module.rank], &key.shape[2..]].concat();
        items.push(item(lora, mid, format!("{name}.lora_mid.weight"), shape, precision, 1.0)?);
    }
    let dtype = items.last().expect("two at least").spec.dtype;
    let spec = TensorSpec {
        name: format!("{name}.alpha"),
        dtype: alpha_dtype(dtype, module.alpha),
        shape: Vec::new(),
    };
    items.push(Item { spec, source: Source::Alpha(module.alpha) });
    Ok(())
}

/// The type of the weights, as kohya's scripts have it, where that holds the number.
fn alpha_dtype(weights: Dtype, alpha: f64) -> Dtype {
    let precision = match weights {
        Dtype::F16 => Precision::F16,
        Dtype::BF16 => Precision::BF16,
        _ => return Dtype::F32,
    };
    let mut bytes = vec![0; precision.size()];
    precision.encode(&[alpha as f32], &mut bytes);
    let view = TensorView { dtype: weights, shape: Vec::new(), data: bytes.into() };
    if view.to_f32() == [alpha as f32] { weights } else { Dtype::F32 }
}

fn diffusers(
    lora: &Lora,
    key: &Key,
    module: &LoraModule,
    precision: Option<Precision>,
    items: &mut Vec<Item>,
) -> Result<()> {
    if let Some(mid) = &module.mid {
        return Err(Error::LoraTucker { path: lora.path().to_path_buf(), tensor: mid.clone() });
    }
    let inner = key.diffusers.strip_suffix(".weight").expect("modules are of weights");
    let name = format!("{}.{inner}", network(Part::of(&key.ldm).expect("modules are of parts")));
    let (down, up) = balanced(module.scale());
    items.push(item(
        lora,
        &module.down,
        format!("{name}.lora_A.weight"),
        down_shape(key, module, false),
        precision,
        down,
    )?);
    items.push(item(
        lora,
        &module.up,
        format!("{name}.lora_B.weight"),
        up_shape(key, module),
        precision,
        up,
    )?);
    Ok(())
}

/// A scale as two factors of nearly the same size, for `down` and for `up`, the latter a power of two; exact where the scale
/// is one. As diffusers 0.38 splits it for Flux (`loaders/lora_conversion_utils.py`, `_convert_to_ai_toolkit`).
fn balanced(scale: f64) -> (f32, f32) {
    let (mut down, mut up) = (scale, 1.0);
    while down != 0.0 && down.abs() * 2.0 < up {
        down *= 2.0;
        up /= 2.0;
    }
    (down as f32, up as f32)
}

fn down_shape(key: &Key, module: &LoraModule, with_mid: bool) -> Vec<usize> {
    let kernel = key.shape[2..].iter().map(|size| if with_mid { 1 } else { *size });
    [module.rank, key.shape[1]].into_iter().chain(kernel).collect()
}

fn up_shape(key: &Key, module: &LoraModule) -> Vec<usize> {
    [key.shape[0], module.rank].into_iter().chain(key.shape[2..].iter().map(|_| 1)).collect()
}

fn item(
    lora: &Lora,
    source: &str,
    name: String,
    shape: Vec<usize>,
    precision: Option<Precision>,
    factor: f32,
) -> Result<Item> {
    let stored = lora.tensor(source)?.dtype;
    // What is multiplied becomes a float of 32 bits at most.
    let own = if factor != 1.0 && stored == Dtype::F64 { Dtype::F32 } else { stored };
    let dtype = precision.map_or(own, Precision::dtype);
    Ok(Item { spec: TensorSpec { name, dtype, shape }, source: Source::Tensor(source.to_owned(), factor) })
}

/// The input's metadata, but for what is not true of the result.
fn metadata(input: &Input, names: Option<LoraNames>, report: &mut ConvertReport) -> BTreeMap<String, String> {
    let mut metadata = input.metadata().clone();
    let mut drop = HASHES.to_vec();
    // The scales are tensors then, or worked in.
    drop.extend(names.map(|_| ADAPTER_KEY));
    if names == Some(LoraNames::Diffusers) {
        drop.push("ss_network_alpha");
    }
    for key in drop {
        if metadata.remove(key).is_some() {
            report.dropped_metadata.push(key.to_owned());
        }
    }
    metadata
}

/// Writes a tensor; `converted` counts those that change their type.
fn write(
    writer: &SafetensorsWriter,
    index: usize,
    input: &Input,
    item: &Item,
    converted: &mut u64,
) -> Result<Loss> {
    let (name, factor) = match &item.source {
        Source::Tensor(name, factor) => (name, *factor),
        Source::Alpha(alpha) => {
            let data = (*alpha as f32).to_le_bytes().to_vec().into();
            let view = TensorView { dtype: Dtype::F32, shape: Vec::new(), data };
            return copy(&view, item.spec.dtype, &mut |start, bytes| writer.write_at(index, start, bytes));
        }
    };
    let view = input.tensor(name)?;
    *converted += u64::from(view.dtype != item.spec.dtype);
    let view = if factor == 1.0 { view } else { scaled(&view, factor) };
    copy(&view, item.spec.dtype, &mut |start, bytes| writer.write_at(index, start, bytes))
}

/// A tensor multiplied by a factor, in fp32.
fn scaled(view: &TensorView, factor: f32) -> TensorView<'static> {
    let values = view.to_f32().into_iter().flat_map(|value| (value * factor).to_le_bytes());
    let data: Vec<u8> = values.collect();
    TensorView { dtype: Dtype::F32, shape: view.shape.clone(), data: data.into() }
}
