//! The training state on disk: all that is needed to go on as if nothing had happened.
//!
//! A safetensors file with the trained weights and the optimizer's means in 32 bits, and the losses so far. Its metadata
//! names the run it belongs to. Random numbers need no state: they are functions of their place ([`crate::random`]).

use std::{
    collections::BTreeMap,
    error::Error as StdError,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use memmap2::Mmap;
use safetensors::SafeTensors;
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor, no_grad};
use vodka_stage::{AtomicFile, ContentHash};

use crate::{
    Error, Result,
    arithmetic::ScalerState,
    ema::Ema,
    optimizers::{Numbers, Optimizer, Parameter},
};

/// How far a run has come.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Progress {
    /// The loss of each batch so far; their number is the step.
    pub losses: Vec<f32>,
    /// For each validation and set the batches that were done, and the loss.
    pub validations: Vec<(u64, f32)>,
    /// The last batches of the steps that were left out.
    pub left_out: Vec<u64>,
    /// The scale of losses in fp16, as it was saved.
    pub scaler: Option<ScalerState>,
}

impl Progress {
    /// Batches so far.
    pub fn step(&self) -> u64 {
        self.losses.len() as u64
    }
}

/// Where the state lies in an output folder.
pub(crate) fn path_in(output: &Path) -> PathBuf {
    output.join("state.safetensors")
}

/// Writes the state of the run with this key, whole or not at all.
pub(crate) fn save(
    output: &Path,
    key: ContentHash,
    seed: u64,
    progress: &Progress,
    optimizers: &[(&str, &Optimizer)],
    ema: Option<&Ema>,
) -> Result<()> {
    let mut metadata = json!({
        "run": key,
        "seed": seed.to_string(),
        "threads": tch::get_num_threads().to_string(),
        "validations": serde_json::to_string(&progress.validations).expect("numbers are plain data"),
        "left_out": serde_json::to_string(&progress.left_out).expect("numbers are plain data"),
        "scaler": serde_json::to_string(&progress.scaler).expect("numbers are plain data"),
    });
    for (network, optimizer) in optimizers {
        let numbers = serde_json::to_string(&optimizer.numbers()).expect("numbers are plain data");
        metadata[numbers_key(network)] = numbers.into();
    }
    let losses = Tensor::from_slice(&progress.losses);
    let mut tensors = vec![("losses".to_owned(), losses)];
    for (network, optimizer) in optimizers {
        for parameter in optimizer.parameters() {
            tensors.extend(parts(network, parameter).map(|(name, tensor)| (name, tensor.detach())));
        }
    }
    if let Some(ema) = ema {
        metadata["ema_updates"] = ema.updates().to_string().into();
        tensors.extend(ema.means().map(|(name, mean)| (ema_key(name), mean.shallow_clone())));
    }
    let path = path_in(output);
    let mut file = AtomicFile::create(&path)?;
    let mut write = |bytes: &[u8]| {
        file.write_all(bytes).map_err(|source| vodka_stage::Error::Write { path: path.clone(), source })
    };
    write(&header(&metadata, &tensors))?;
    for (_, tensor) in &tensors {
        write(&bytes(tensor)?)?;
    }
    Ok(file.commit()?)
}

/// Restores the state in the output folder, where it is that of the run with this key; `None` where there is none, or
/// that of another run.
pub(crate) fn restore(
    output: &Path,
    key: ContentHash,
    optimizers: &mut [(&str, &mut Optimizer)],
    ema: Option<&mut Ema>,
) -> Result<Option<Progress>> {
    let path = path_in(output);
    let Some(map) = open(&path)? else { return Ok(None) };
    let damaged = |source: Box<dyn StdError + Send + Sync>| Error::State { path: path.clone(), source };
    let metadata = metadata(&map).map_err(damaged)?;
    if metadata.get("run") != Some(&key.to_string()) {
        return Ok(None);
    }
    let tensors = SafeTensors::deserialize(&map).map_err(|error| damaged(error.into()))?;
    for (network, optimizer) in optimizers {
        for parameter in optimizer.parameters() {
            for (name, mut tensor) in parts(network, parameter) {
                fill(&path, &tensors, name, &mut tensor)?;
            }
        }
        let numbers = metadata.get(&numbers_key(network)).map_or("", String::as_str);
        let numbers: Numbers = serde_json::from_str(numbers).map_err(|error| damaged(error.into()))?;
        optimizer.restore(numbers);
    }
    if let Some(ema) = ema {
        for (name, mean) in ema.means() {
            fill(&path, &tensors, ema_key(name), &mut mean.shallow_clone())?;
        }
        let updates = metadata.get("ema_updates").map_or("", String::as_str).parse();
        ema.restore(updates.map_err(|error: std::num::ParseIntError| damaged(error.into()))?);
    }
    let losses = tensors.tensor("losses").map_err(|error| damaged(error.into()))?;
    let values = losses.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let validations = metadata.get("validations").map_or("[]", String::as_str);
    let validations = serde_json::from_str(validations).map_err(|error| damaged(error.into()))?;
    let left_out = metadata.get("left_out").map_or("[]", String::as_str);
    let left_out = serde_json::from_str(left_out).map_err(|error| damaged(error.into()))?;
    let scaler = metadata.get("scaler").map_or("null", String::as_str);
    let scaler = serde_json::from_str(scaler).map_err(|error| damaged(error.into()))?;
    Ok(Some(Progress { losses: values.collect(), validations, left_out, scaler }))
}

/// Deletes the state: the run is done.
pub(crate) fn delete(output: &Path) -> Result<()> {
    let path = path_in(output);
    match path.exists() {
        true => fs::remove_file(&path).map_err(|source| vodka_stage::Error::Write { path, source }.into()),
        false => Ok(()),
    }
}

/// The seed of the run whose state is in the output folder, if one is.
pub(crate) fn seed(output: &Path) -> Option<u64> {
    let map = open(&path_in(output)).ok()??;
    metadata(&map).ok()?.get("seed")?.parse().ok()
}

/// The number of threads that the run with this key began with, if its state is in the output folder.
pub(crate) fn threads(output: &Path, key: ContentHash) -> Option<i32> {
    let map = open(&path_in(output)).ok()??;
    let metadata = metadata(&map).ok()?;
    if metadata.get("run") != Some(&key.to_string()) {
        return None;
    }
    metadata.get("threads")?.parse().ok()
}

/// Overwrites a tensor with that of the file.
fn fill(path: &Path, tensors: &SafeTensors<'_>, name: String, tensor: &mut Tensor) -> Result<()> {
    let data = tensors.tensor(&name).map(|view| view.data()).unwrap_or_default();
    let expected = tensor.kind().elt_size_in_bytes() * tensor.numel();
    if data.len() != expected {
        let path = path.to_path_buf();
        return Err(Error::StateTensor { path, name, found: data.len(), expected });
    }
    let values = Tensor::from_data_size(data, &tensor.size(), tensor.kind());
    no_grad(|| tensor.copy_(&values));
    Ok(())
}

/// What a mean is called in the file.
fn ema_key(name: &str) -> String {
    format!("ema/{name}")
}

/// Where the metadata has an optimizer's numbers.
fn numbers_key(network: &str) -> String {
    format!("optimizer/{network}")
}

/// The tensors of a parameter, sharing its memory, under their names in the file.
fn parts<'p>(network: &str, parameter: &'p Parameter) -> impl Iterator<Item = (String, Tensor)> + use<'p> {
    let prefix = format!("{network}/{}", parameter.name);
    let state = parameter.state.iter().map(|(part, tensor)| (*part, tensor));
    std::iter::once(("weight", &parameter.value))
        .chain(state)
        .map(move |(part, tensor)| (format!("{prefix}/{part}"), tensor.shallow_clone()))
}

fn header(metadata: &Value, tensors: &[(String, Tensor)]) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), metadata.clone());
    let mut start = 0;
    for (name, tensor) in tensors {
        let end = start + tensor.kind().elt_size_in_bytes() * tensor.numel();
        let dtype = if tensor.kind() == Kind::Uint8 { "U8" } else { "F32" };
        header.insert(
            name.clone(),
            json!({"dtype": dtype, "shape": tensor.size(), "data_offsets": [start, end]}),
        );
        start = end;
    }
    let mut json = Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    [(json.len() as u64).to_le_bytes().as_slice(), &json].concat()
}

fn bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let mut bytes = vec![0; tensor.kind().elt_size_in_bytes() * tensor.numel()];
    tensor
        .f_contiguous()
        .and_then(|tensor| tensor.f_copy_data_u8(&mut bytes, tensor.numel()))
        .map_err(Error::torch("copying the training state from the device"))?;
    Ok(bytes)
}

fn open(path: &Path) -> Result<Option<Mmap>> {
    if !path.exists() {
        return Ok(None);
    }
    // SAFETY: states are replaced by renaming, never written in place.
    let map = File::open(path).and_then(|file| unsafe { Mmap::map(&file) });
    Ok(Some(map.map_err(|source| vodka_stage::Error::Read { path: path.to_path_buf(), source })?))
}

fn metadata(map: &[u8]) -> Result<BTreeMap<String, String>, Box<dyn StdError + Send + Sync>> {
    let (_, header) = SafeTensors::read_metadata(map)?;
    Ok(header.metadata().clone().unwrap_or_default().into_iter().collect())
}

#[cfg(test)]
mod tests {
    use tch::Device;
    use vodka_stage::hash_bytes;

    use super::*;
    use crate::optimizers::{Adaptation, Method, OptimizerSettings};

    const PRODIGY: Adaptation = Adaptation {
        d0: 1e-3,
        growth_rate: f64::INFINITY,
        decouple: true,
        use_bias_correction: true,
        safeguard_warmup: true,
    };

    fn optimizer(method: Method) -> Optimizer {
        let settings =
            OptimizerSettings { method, lr: 0.1, betas: [0.9, 0.99], epsilon: 1e-8, weight_decay: 0.5 };
        let weight = |n: i64| Tensor::ones([n, 2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        Optimizer::new([("a".to_owned(), weight(1)), ("b".to_owned(), weight(3000))], settings)
    }

    fn step(optimizer: &mut Optimizer) {
        let sums: Vec<_> =
            optimizer.parameters().iter().map(|p| (p.value.square()).sum(Kind::Float)).collect();
        Tensor::stack(&sums, 0).sum(Kind::Float).backward();
        optimizer.step(0.1);
        optimizer.zero_grad();
    }

    fn values(optimizer: &Optimizer) -> Vec<Vec<f32>> {
        let tensors = optimizer.parameters().iter().flat_map(|p| parts("unet", p));
        let floats = tensors.map(|(_, tensor)| tensor.detach().flatten(0, -1).to_kind(Kind::Float));
        floats.map(|tensor| Vec::try_from(tensor).unwrap()).collect()
    }

    #[test]
    fn a_restored_optimizer_goes_on_as_the_saved_one() {
        for method in [
            Method::AdamW,
            Method::AdamW8bit,
            Method::Lion,
            Method::DAdaptAdam(PRODIGY),
            Method::Prodigy(PRODIGY),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let key = hash_bytes("run");
            let mut saved = optimizer(method);
            (0..3).for_each(|_| step(&mut saved));
            let progress = Progress {
                losses: vec![0.5, 0.25, 0.1],
                validations: vec![(0, 0.7), (3, 0.1)],
                left_out: vec![2],
                scaler: Some(ScalerState { scale: 0.1, good_steps: 7 }),
            };
            save(dir.path(), key, 7, &progress, &[("unet", &saved)], None).unwrap();
            assert_eq!(seed(dir.path()), Some(7));
            assert_eq!(threads(dir.path(), key), Some(tch::get_num_threads()));
            assert_eq!(threads(dir.path(), hash_bytes("other")), None);

            let mut restored = optimizer(method);
            let found = restore(dir.path(), key, &mut [("unet", &mut restored)], None).unwrap();
            assert_eq!(found, Some(progress));
            step(&mut saved);
            step(&mut restored);
            assert_eq!(values(&restored), values(&saved), "{method:?}");
            assert_eq!(restored.numbers(), saved.numbers());

            assert_eq!(restore(dir.path(), hash_bytes("other"), &mut [], None).unwrap(), None);
            delete(dir.path()).unwrap();
            assert_eq!(restore(dir.path(), key, &mut [], None).unwrap(), None);
            assert_eq!(seed(dir.path()), None);
        }
    }

    #[test]
    fn a_damaged_state_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let key = hash_bytes("run");
        let mut saved = optimizer(Method::AdamW);
        save(dir.path(), key, 7, &Progress::default(), &[("unet", &saved)], None).unwrap();
        let mut said =
            || restore(dir.path(), key, &mut [("text", &mut saved)], None).unwrap_err().to_string();
        assert!(said().ends_with("`text/a/weight` has 0 bytes, expected 8"), "{}", said());
        let whole = fs::read(path_in(dir.path())).unwrap();
        fs::write(path_in(dir.path()), &whole[..whole.len() - 1]).unwrap();
        assert!(said().contains("is damaged"), "{}", said());
        fs::write(path_in(dir.path()), b"").unwrap();
        assert!(said().contains("is damaged"), "{}", said());
    }
}
