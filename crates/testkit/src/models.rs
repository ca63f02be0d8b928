//! Complete checkpoints from `fixtures/models`, which holds what the three generations share only once.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use crate::fixture;

/// The generations of the tiny model, oldest first.
pub const MODELS: [&str; 3] = ["base", "v1", "v2"];

/// A complete single-file checkpoint of the tiny model: `base`, `v1` or `v2`.
///
/// The file lies below `target/`; tests share it and must not write to it.
///
/// # Panics
/// When there is no such generation, or the file cannot be written.
pub fn model(name: &str) -> PathBuf {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../target/fixtures/{name}.safetensors"));
    compose_model(name, &path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    path.canonicalize().expect("it was written")
}

/// Writes the single-file checkpoint of a generation of the tiny model to `target`, whole or not at all.
///
/// Tensors are fp16 under LDM names, sorted; the metadata `vodka.config` holds the model's configuration. The same
/// fixtures make the same bytes, and a target that holds them already is left alone.
///
/// # Errors
/// When the target cannot be written.
///
/// # Panics
/// When there is no such generation.
pub fn compose_model(name: &str, target: &Path) -> io::Result<()> {
    let bytes = compose(name);
    if fs::read(target).is_ok_and(|found| found == bytes) {
        return Ok(());
    }
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder)?;
    }
    // Tests of several processes and threads may write the same target: each under a name of its own.
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let unique = format!("{}-{}.partial", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let partial = target.with_extension(unique);
    fs::write(&partial, bytes)?;
    fs::rename(&partial, target)
}

/// The bytes of a checkpoint. The safetensors crate writes metadata in an order that varies from run to run, so the
/// header is put together here.
fn compose(name: &str) -> Vec<u8> {
    let read =
        |file: &str| fs::read(fixture(&format!("models/{file}.safetensors"))).expect("a fixture is readable");
    let (shared, own) = (read("shared"), read(name));
    let parts =
        [&shared, &own].map(|bytes| SafeTensors::deserialize(bytes).expect("a fixture is well-formed"));
    let tensors: BTreeMap<_, _> = parts.iter().flat_map(SafeTensors::iter).collect();
    let config = fs::read_to_string(fixture("models/config.json")).expect("a fixture is readable");

    let metadata = json!({"format": "pt", "vodka.config": config.trim_end()});
    let mut header = Map::from_iter([("__metadata__".to_owned(), metadata)]);
    let mut start = 0;
    for (name, view) in &tensors {
        assert_eq!(view.dtype(), Dtype::F16, "{name}");
        let end = start + view.data().len();
        header.insert(
            (*name).to_owned(),
            json!({"dtype": "F16", "shape": view.shape(), "data_offsets": [start, end]}),
        );
        start = end;
    }
    let mut json = Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let length = (json.len() as u64).to_le_bytes();
    let data = tensors.values().flat_map(|view| view.data()).copied();
    length.into_iter().chain(json).chain(data).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn generations_differ_in_some_tensors_and_share_the_others() {
        let files = MODELS.map(|name| fs::read(model(name)).unwrap());
        let [base, v1, v2] = files.each_ref().map(|bytes| SafeTensors::deserialize(bytes).unwrap());
        let sorted =
            |file: &SafeTensors| BTreeSet::from_iter(file.names().into_iter().map(ToOwned::to_owned));
        assert_eq!(sorted(&base), sorted(&v1));
        for name in ["first_stage_model.decoder.conv_in.weight", "model.diffusion_model.out.2.weight"] {
            let data = |file: &SafeTensors| file.tensor(name).unwrap().data().to_vec();
            let shared = name.starts_with("first_stage_model");
            assert_eq!(data(&base) == data(&v1), shared, "{name}");
            assert_eq!(data(&v1) == data(&v2), shared, "{name}");
        }
    }

    #[test]
    fn the_same_fixtures_make_the_same_bytes() {
        assert_eq!(compose("base"), compose("base"));
        let (_, metadata) = SafeTensors::read_metadata(&compose("v2")).unwrap();
        let metadata = metadata.metadata().clone().unwrap();
        assert!(metadata["vodka.config"].contains("\"attention_heads\""), "{metadata:?}");
    }
}
