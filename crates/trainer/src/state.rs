//! The training states on disk: all that is needed to go on as if nothing had happened.
//!
//! `state-gs00775.safetensors` is a safetensors file with the trained weights and the optimizer's means after step 775, and
//! the losses so far. Its metadata names the run it belongs to, and has a CRC-32 of the file. The last few are kept: one
//! that is damaged is passed over for the one before it. Random numbers need no state: they are functions of their
//! place ([`crate::random`]).

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    error::Error as StdError,
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use memmap2::Mmap;
use safetensors::SafeTensors;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor, no_grad};
use vodka_stage::{AtomicFile, RunKey, RunRecord, check_space, explain};

use crate::{
    Error, Result, TrainEvent,
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
    /// Whether the sample pictures of the last step are still to be made: their round was interrupted.
    pub owes_samples: bool,
}

impl Progress {
    /// Batches so far.
    pub fn step(&self) -> u64 {
        self.losses.len() as u64
    }
}

/// What is trained.
pub(crate) struct Trained<'t> {
    /// By the name of their network.
    pub optimizers: &'t [(&'t str, &'t Optimizer)],
    /// Running means.
    pub ema: Option<&'t Ema>,
}

const PREFIX: &str = "state-gs";
const SUFFIX: &str = ".safetensors";

/// Where the state after a step lies in an output folder.
pub(crate) fn path_in(output: &Path, step: u64) -> PathBuf {
    output.join(format!("{PREFIX}{step:05}{SUFFIX}"))
}

/// The states in an output folder with their steps, the newest first; none where there is no such folder.
pub(crate) fn list(output: &Path) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(output).into_iter().flatten().flatten().map(|entry| entry.path());
    let step = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok()
    };
    let mut states: Vec<_> = entries.filter_map(|path| Some((step(&path)?, path))).collect();
    states.sort_by_key(|(step, _)| Reverse(*step));
    states
}

/// How the file begins: what the checksum is at is known before the rest is read.
const BEFORE_CHECKSUM: &str = r#"{"__metadata__":{"crc32":""#;
const NO_CHECKSUM: &str = "00000000";
/// Where the checksum lies, behind the length of the header.
const CHECKSUM_AT: usize = 8 + BEFORE_CHECKSUM.len();

/// Writes the state of the run with this key, whole or not at all, and then deletes all but the last `keep`.
pub(crate) fn save(
    output: &Path,
    key: &RunKey,
    keep: usize,
    progress: &Progress,
    trained: &Trained<'_>,
) -> Result<PathBuf> {
    let mut metadata = json!({
        "crc32": NO_CHECKSUM,
        "run": key.hash(),
        "record": text(&key.begun()),
        "threads": tch::get_num_threads().to_string(),
        "left_out": text(&progress.left_out),
        "owes_samples": text(&progress.owes_samples),
    });
    // Floats go as their bits: JSON has none that is not finite, and serde_json reads some as their neighbour.
    let bits = |(step, loss): &(u64, f32)| (*step, loss.to_bits());
    metadata[VALIDATIONS] = text(&progress.validations.iter().map(bits).collect::<Vec<_>>()).into();
    let bits = |scaler: ScalerState| (scaler.scale.to_bits(), scaler.good_steps);
    metadata[SCALER] = text(&progress.scaler.map(bits)).into();
    for (network, optimizer) in trained.optimizers {
        let Numbers { steps, d, d_max, numerator } = optimizer.numbers();
        let bits = [d, d_max, numerator].map(f64::to_bits);
        metadata[numbers_key(network)] = text(&(steps, bits)).into();
    }
    let losses = Tensor::from_slice(&progress.losses);
    let mut tensors = vec![("losses".to_owned(), losses)];
    tensors.extend(tensors_of(trained));
    if let Some(ema) = trained.ema {
        metadata["ema_updates"] = ema.updates().to_string().into();
    }
    let path = path_in(output, progress.step());
    check_space(output, size_of(&tensors), "a training state")?;
    let mut file =
        Checked { file: AtomicFile::create(&path)?, path: &path, hasher: crc32fast::Hasher::new() };
    file.write(&header(&metadata, &tensors))?;
    for (_, tensor) in &tensors {
        file.write(&bytes(tensor)?)?;
    }
    file.commit()?;
    // Others are of another run; a later one is that, or was refused.
    let mut kept = 0;
    for (step, path) in list(output) {
        match step <= progress.step() && kept < keep && is_of(&path, key) {
            true => kept += 1,
            false => remove(&path)?,
        }
    }
    Ok(path)
}

const VALIDATIONS: &str = "validation_bits";
const SCALER: &str = "scaler_bits";

fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("records and numbers are plain data")
}

/// What is wrong with a state.
type Damage = Box<dyn StdError + Send + Sync>;

/// What the metadata has under a key.
fn parsed<T: DeserializeOwned>(metadata: &BTreeMap<String, String>, key: &str) -> Result<T, Damage> {
    let text = metadata.get(key).ok_or_else(|| format!("it has no `{key}`"))?;
    serde_json::from_str(text).map_err(|error| format!("its `{key}` cannot be read: {error}").into())
}

/// A file that is written with a checksum in its header.
struct Checked<'p> {
    file: AtomicFile,
    path: &'p Path,
    hasher: crc32fast::Hasher,
}

impl Checked<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(write_error(self.path))
    }

    fn commit(mut self) -> Result<()> {
        let checksum = format!("{:08x}", self.hasher.clone().finalize());
        let mut put = || {
            self.file.seek(SeekFrom::Start(CHECKSUM_AT as u64))?;
            self.file.write_all(checksum.as_bytes())
        };
        put().map_err(write_error(self.path))?;
        Ok(self.file.commit()?)
    }
}

fn write_error(path: &Path) -> impl Fn(std::io::Error) -> Error {
    move |source| vodka_stage::Error::Write { path: path.to_path_buf(), source }.into()
}

/// Restores the newest whole state in the output folder, where it is of the run with this key. Those that are damaged or
/// do not fit, and that they are of another run, are told of; `None` where there is none to go on from.
///
/// # Errors
/// None of those that there are can be used.
pub(crate) fn restore(
    output: &Path,
    key: &RunKey,
    optimizers: &mut [(&str, &mut Optimizer)],
    mut ema: Option<&mut Ema>,
    on_event: &mut dyn FnMut(TrainEvent),
) -> Result<Option<Progress>> {
    let mut first_refused = None;
    for (_, path) in list(output) {
        let map = open(&path)?;
        let found = check(&map).and_then(|()| metadata(&map)).map_err(damaged(&path));
        let found = found.and_then(|metadata| {
            if metadata.get("run") != Some(&key.hash().to_string()) {
                return Ok(Err(metadata));
            }
            read(&path, &map, &metadata, optimizers, ema.as_deref_mut()).map(Ok)
        });
        match found {
            Ok(Ok(progress)) => return Ok(Some(progress)),
            Ok(Err(of_another)) => {
                let change = of_another.get("record").and_then(|record| serde_json::from_str(record).ok());
                let change = change.and_then(|record: RunRecord| key.difference(&record));
                let change = change.unwrap_or_else(|| "it is of another version".to_owned());
                on_event(TrainEvent::AnotherRun { path, change });
                return Ok(None);
            }
            Err(error) => {
                let reason = match &error {
                    Error::State { source, .. } => explain(source.as_ref()),
                    other => explain(other),
                };
                on_event(TrainEvent::StateRefused { path, reason });
                first_refused.get_or_insert(error);
            }
        }
    }
    first_refused.map_or(Ok(None), Err)
}

fn damaged(path: &Path) -> impl Fn(Damage) -> Error {
    move |source| Error::State { path: path.to_path_buf(), source }
}

/// Overwrites what is trained with what a state holds; nothing, where not all of it fits.
fn read(
    path: &Path,
    map: &[u8],
    metadata: &BTreeMap<String, String>,
    optimizers: &mut [(&str, &mut Optimizer)],
    mut ema: Option<&mut Ema>,
) -> Result<Progress> {
    let damaged = damaged(path);
    let tensors = SafeTensors::deserialize(map).map_err(|error| damaged(error.into()))?;
    let (mut filled, mut counted) = (Vec::new(), Vec::new());
    for (network, optimizer) in optimizers.iter() {
        for (name, tensor) in optimizer.parameters().iter().flat_map(|parameter| parts(network, parameter)) {
            filled.push(fitting(path, &tensors, name, tensor)?);
        }
        let (steps, bits): (_, [u64; 3]) = parsed(metadata, &numbers_key(network)).map_err(&damaged)?;
        let [d, d_max, numerator] = bits.map(f64::from_bits);
        counted.push(Numbers { steps, d, d_max, numerator });
    }
    for (name, mean) in ema.iter().flat_map(|ema| ema.means()) {
        filled.push(fitting(path, &tensors, ema_key(name), mean.shallow_clone())?);
    }
    let updates = ema.as_ref().map(|_| parsed(metadata, "ema_updates")).transpose().map_err(&damaged)?;
    let losses = tensors.tensor("losses").map_err(|error| damaged(error.into()))?;
    let losses = losses.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let validations: Vec<(u64, u32)> = parsed(metadata, VALIDATIONS).map_err(&damaged)?;
    let scaler: Option<(u32, i64)> = parsed(metadata, SCALER).map_err(&damaged)?;
    let scaler = scaler.map(|(bits, good_steps)| ScalerState { scale: f32::from_bits(bits), good_steps });
    let progress = Progress {
        losses: losses.collect(),
        validations: validations.into_iter().map(|(step, bits)| (step, f32::from_bits(bits))).collect(),
        left_out: parsed(metadata, "left_out").map_err(&damaged)?,
        scaler,
        owes_samples: parsed(metadata, "owes_samples").map_err(&damaged)?,
    };
    for (mut tensor, data) in filled {
        let values = Tensor::from_data_size(data, &tensor.size(), tensor.kind());
        no_grad(|| tensor.copy_(&values));
    }
    optimizers.iter_mut().zip(counted).for_each(|((_, optimizer), numbers)| optimizer.restore(numbers));
    ema.iter_mut().zip(updates).for_each(|(ema, updates)| ema.restore(updates));
    Ok(progress)
}

/// Deletes all states: the run is done, or starts over.
pub(crate) fn delete(output: &Path) -> Result<()> {
    list(output).iter().try_for_each(|(_, path)| remove(path))
}

/// Deletes the states of other runs.
pub(crate) fn delete_others(output: &Path, key: &RunKey) -> Result<()> {
    list(output).iter().filter(|(_, path)| !is_of(path, key)).try_for_each(|(_, path)| remove(path))
}

/// Deletes what a killed run has left of files it was writing.
pub(crate) fn delete_partial(output: &Path) -> Result<()> {
    let entries = fs::read_dir(output).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_partial = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with(&format!(".{PREFIX}")) && name.ends_with(".partial")
    };
    entries.filter(|path| is_partial(path)).try_for_each(|path| remove(&path))
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path).map_err(write_error(path))
}

/// The seed of the run whose state is in the output folder, if one is.
pub(crate) fn seed(output: &Path) -> Option<u64> {
    let record = |path: &Path| metadata(&open(path).ok()?).ok()?.remove("record");
    let record = list(output).iter().find_map(|(_, path)| record(path))?;
    serde_json::from_str::<RunRecord>(&record).ok()?.seed
}

/// The number of threads that the run with this key began with, if its state is in the output folder.
pub(crate) fn threads(output: &Path, key: &RunKey) -> Option<i32> {
    let of_run = |path: &Path| of(path, key)?.remove("threads")?.parse().ok();
    list(output).iter().find_map(|(_, path)| of_run(path))
}

/// The metadata of a state of the run with this key.
fn of(path: &Path, key: &RunKey) -> Option<BTreeMap<String, String>> {
    let metadata = metadata(&open(path).ok()?).ok()?;
    (metadata.get("run") == Some(&key.hash().to_string())).then_some(metadata)
}

fn is_of(path: &Path, key: &RunKey) -> bool {
    of(path, key).is_some()
}

/// About how many bytes a state has.
pub(crate) fn size(trained: &Trained<'_>) -> u64 {
    size_of(&tensors_of(trained).collect::<Vec<_>>())
}

fn size_of(tensors: &[(String, Tensor)]) -> u64 {
    let header = 1 << 16;
    tensors.iter().map(|(name, tensor)| (size_in_bytes(tensor) + 2 * name.len()) as u64).sum::<u64>() + header
}

fn size_in_bytes(tensor: &Tensor) -> usize {
    tensor.kind().elt_size_in_bytes() * tensor.numel()
}

/// What is trained, by the names in the file.
fn tensors_of(trained: &Trained<'_>) -> impl Iterator<Item = (String, Tensor)> {
    let parameters = trained.optimizers.iter().flat_map(|(network, optimizer)| {
        optimizer.parameters().iter().flat_map(move |parameter| parts(network, parameter))
    });
    let means = trained.ema.into_iter().flat_map(Ema::means);
    let means = means.map(|(name, mean)| (ema_key(name), mean.shallow_clone()));
    parameters.map(|(name, tensor)| (name, tensor.detach())).chain(means)
}

/// A tensor with the bytes that the file has for it.
fn fitting<'d>(
    path: &Path,
    tensors: &SafeTensors<'d>,
    name: String,
    tensor: Tensor,
) -> Result<(Tensor, &'d [u8])> {
    let data = tensors.tensor(&name).map(|view| view.data()).unwrap_or_default();
    let expected = size_in_bytes(&tensor);
    if data.len() != expected {
        let path = path.to_path_buf();
        return Err(Error::StateTensor { path, name, found: data.len(), expected });
    }
    Ok((tensor, data))
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
        let end = start + size_in_bytes(tensor);
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
    let mut bytes = vec![0; size_in_bytes(tensor)];
    tensor
        .f_contiguous()
        .and_then(|tensor| tensor.f_copy_data_u8(&mut bytes, tensor.numel()))
        .map_err(Error::torch("copying the training state from the device"))?;
    Ok(bytes)
}

fn open(path: &Path) -> Result<Mmap> {
    // SAFETY: states are replaced by renaming, never written in place.
    let map = File::open(path).and_then(|file| unsafe { Mmap::map(&file) });
    Ok(map.map_err(|source| vodka_stage::Error::Read { path: path.to_path_buf(), source })?)
}

/// Compares the file with its checksum.
fn check(map: &[u8]) -> Result<(), Damage> {
    let begins = map.get(8..).is_some_and(|rest| rest.starts_with(BEFORE_CHECKSUM.as_bytes()));
    let end = CHECKSUM_AT + NO_CHECKSUM.len();
    let Some(rest) = map.get(end..).filter(|_| begins) else {
        return Err("it does not begin as a training state does".into());
    };
    let mut hasher = crc32fast::Hasher::new();
    [&map[..CHECKSUM_AT], NO_CHECKSUM.as_bytes(), rest].iter().for_each(|part| hasher.update(part));
    let (found, made) = (String::from_utf8_lossy(&map[CHECKSUM_AT..end]), hasher.finalize());
    match found == format!("{made:08x}") {
        true => Ok(()),
        false => Err(format!("its checksum is {made:08x}, expected {found}").into()),
    }
}

fn metadata(map: &[u8]) -> Result<BTreeMap<String, String>, Damage> {
    let (_, header) = SafeTensors::read_metadata(map)?;
    Ok(header.metadata().clone().unwrap_or_default().into_iter().collect())
}

#[cfg(test)]
mod tests {
    use tch::Device;

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

    fn key(name: &str) -> RunKey {
        RunKey::new("train", &json!({"name": name}), Some(7))
    }

    /// Restores, and what was said meanwhile: files, and why they are not used.
    fn restore(
        output: &Path,
        key: &RunKey,
        optimizers: &mut [(&str, &mut Optimizer)],
    ) -> (Result<Option<Progress>>, Vec<(PathBuf, String)>) {
        let mut said = Vec::new();
        let on_event = &mut |event: TrainEvent| match event {
            TrainEvent::StateRefused { path, reason } => said.push((path, reason)),
            TrainEvent::AnotherRun { path, change } => said.push((path, change)),
            event => panic!("{event:?}"),
        };
        (super::restore(output, key, optimizers, None, on_event), said)
    }

    fn after(steps: usize) -> Progress {
        Progress { losses: vec![0.5; steps], validations: vec![(0, 0.7), (3, 0.1)], ..Progress::default() }
    }

    fn steps_in(output: &Path) -> Vec<u64> {
        list(output).into_iter().map(|(step, _)| step).collect()
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
            let (key, other) = (key("run"), key("other"));
            let mut saved = optimizer(method);
            (0..3).for_each(|_| step(&mut saved));
            let progress = Progress {
                left_out: vec![2],
                scaler: Some(ScalerState { scale: 0.1, good_steps: 7 }),
                ..after(3)
            };
            let trained = Trained { optimizers: &[("unet", &saved)], ema: None };
            let path = save(dir.path(), &key, 2, &progress, &trained).unwrap();
            let (size, file) = (size(&trained), fs::metadata(path).unwrap().len());
            assert!(size.abs_diff(file) < 1 << 16, "{size} {file}");
            assert_eq!(seed(dir.path()), Some(7));
            assert_eq!(threads(dir.path(), &key), Some(tch::get_num_threads()));
            assert_eq!(threads(dir.path(), &other), None);

            let mut restored = optimizer(method);
            let (found, events) = restore(dir.path(), &key, &mut [("unet", &mut restored)]);
            assert_eq!((found.unwrap(), events), (Some(progress), Vec::new()));
            step(&mut saved);
            step(&mut restored);
            assert_eq!(values(&restored), values(&saved), "{method:?}");
            assert_eq!(restored.numbers(), saved.numbers());

            delete(dir.path()).unwrap();
            assert_eq!(restore(dir.path(), &key, &mut []).0.unwrap(), None);
            assert_eq!(seed(dir.path()), None);
        }
    }

    #[test]
    fn the_last_states_are_kept_and_those_of_another_run_are_told_of() {
        let dir = tempfile::tempdir().unwrap();
        let saved = optimizer(Method::AdamW);
        let trained = Trained { optimizers: &[("unet", &saved)], ema: None };
        for steps in 1..=4 {
            save(dir.path(), &key("run"), 2, &after(steps), &trained).unwrap();
        }
        assert_eq!(steps_in(dir.path()), [4, 3]);

        let (found, events) = restore(dir.path(), &key("other"), &mut []);
        assert_eq!(found.unwrap(), None);
        let change = "the setting `name` changed from \"run\" to \"other\"".to_owned();
        assert_eq!(events, [(path_in(dir.path(), 4), change)]);
        assert_eq!(steps_in(dir.path()), [4, 3], "until the other run saves, one can go back");
        save(dir.path(), &key("other"), 2, &after(3), &trained).unwrap();
        assert_eq!(steps_in(dir.path()), [3]);
        save(dir.path(), &key("run"), 2, &after(4), &trained).unwrap();
        assert_eq!(steps_in(dir.path()), [4]);

        fs::write(dir.path().join(".state-gs00009.safetensors.partial"), "half").unwrap();
        fs::write(dir.path().join(".mine.partial"), "mine").unwrap();
        delete_partial(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn numbers_that_are_not_finite_come_back_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let mut saved = optimizer(Method::Prodigy(PRODIGY));
        let numbers = Numbers { steps: 3, d: f64::NAN, d_max: f64::INFINITY, numerator: 1.0 / 3.0 };
        saved.restore(numbers);
        let progress = Progress {
            validations: vec![(0, f32::NAN), (3, f32::INFINITY), (3, 0.1)],
            scaler: Some(ScalerState { scale: f32::INFINITY, good_steps: 1 }),
            losses: vec![f32::NAN; 3],
            owes_samples: true,
            ..Progress::default()
        };
        let trained = Trained { optimizers: &[("unet", &saved)], ema: None };
        save(dir.path(), &key("run"), 2, &progress, &trained).unwrap();
        let mut restored = optimizer(Method::Prodigy(PRODIGY));
        let (found, events) = restore(dir.path(), &key("run"), &mut [("unet", &mut restored)]);
        let found = found.unwrap().unwrap();
        let bits = |progress: &Progress| {
            let validations = progress.validations.iter().map(|(step, loss)| (*step, loss.to_bits()));
            (validations.collect::<Vec<_>>(), progress.losses.iter().map(|l| l.to_bits()).collect::<Vec<_>>())
        };
        assert_eq!((bits(&found), found.scaler, events), (bits(&progress), progress.scaler, Vec::new()));
        assert!(found.owes_samples);
        let bits = |Numbers { steps, d, d_max, numerator }| (steps, [d, d_max, numerator].map(f64::to_bits));
        assert_eq!(bits(restored.numbers()), bits(numbers));
    }

    #[test]
    fn a_state_that_does_not_fit_is_passed_over_and_leaves_all_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let settings = |method| OptimizerSettings { method, ..*optimizer(method).settings() };
        let of = |names: [&str; 2]| {
            let ones = |n: i64| Tensor::ones([n, 2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
            let both = names.map(|name| (name.to_owned(), ones(if name == "a" { 1 } else { 3000 })));
            Optimizer::new(both, settings(Method::AdamW))
        };
        let saved = |steps: usize, saved: &Optimizer| {
            let trained = Trained { optimizers: &[("unet", saved)], ema: None };
            save(dir.path(), &key("run"), 2, &after(steps), &trained).unwrap();
        };
        let mut older = of(["a", "b"]);
        saved(1, &older);
        step(&mut older);
        let mut newer = of(["a", "c"]);
        step(&mut newer);
        saved(2, &newer);
        let mut restored = of(["a", "b"]);
        let (found, events) = restore(dir.path(), &key("run"), &mut [("unet", &mut restored)]);
        assert_eq!(found.unwrap(), Some(after(1)));
        let [(path, reason)] = &events[..] else { panic!("{events:?}") };
        assert_eq!(*path, path_in(dir.path(), 2));
        assert!(reason.ends_with("`unet/b/weight` has 0 bytes, expected 24000"), "{reason}");
        assert_eq!(values(&restored), values(&of(["a", "b"])));

        fs::remove_file(path_in(dir.path(), 1)).unwrap();
        let mut untouched = of(["a", "b"]);
        let error = restore(dir.path(), &key("run"), &mut [("unet", &mut untouched)]).0.unwrap_err();
        assert!(matches!(error, Error::StateTensor { .. }), "{error}");
        assert_eq!(values(&untouched), values(&of(["a", "b"])), "its first parameter would have fitted");
    }

    #[test]
    fn a_damaged_state_is_passed_over_for_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let mut saved = optimizer(Method::AdamW);
        let (older, newer) = (path_in(dir.path(), 1), path_in(dir.path(), 2));
        for steps in [1, 2] {
            let trained = Trained { optimizers: &[("unet", &saved)], ema: None };
            save(dir.path(), &key("run"), 2, &after(steps), &trained).unwrap();
        }
        let whole = fs::read(&newer).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() - 5] ^= 1;
        let mut header = whole.clone();
        header[100] ^= 1;
        for bytes in [&whole[..whole.len() - 1], &[], b"x", &flipped, &header] {
            fs::write(&newer, bytes).unwrap();
            let (found, events) = restore(dir.path(), &key("run"), &mut [("unet", &mut saved)]);
            assert_eq!(found.unwrap(), Some(after(1)));
            let [(path, reason)] = &events[..] else { panic!("{events:?}") };
            assert!(*path == newer && reason.starts_with("it"), "{reason}");
        }
        fs::write(&older, b"").unwrap();
        let (found, events) = restore(dir.path(), &key("run"), &mut [("unet", &mut saved)]);
        let said = found.unwrap_err().to_string();
        assert!(said.contains("state-gs00002.safetensors` is damaged") && events.len() == 2, "{said}");

        fs::write(&newer, &whole).unwrap();
        let said = restore(dir.path(), &key("run"), &mut [("text", &mut saved)]).0.unwrap_err().to_string();
        assert!(said.ends_with("`text/a/weight` has 0 bytes, expected 8"), "{said}");
        fs::write(&newer, &flipped).unwrap();
        let trained = Trained { optimizers: &[("unet", &saved)], ema: None };
        save(dir.path(), &key("run"), 2, &after(1), &trained).unwrap();
        assert_eq!(steps_in(dir.path()), [1], "what was refused goes when a new one is there");
    }
}
