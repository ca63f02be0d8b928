//! Complete checkpoints from `fixtures/models` and `fixtures/demo`, which hold what the generations share only once.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use half::f16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
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
    write(&compose(name), target)
}

/// Writes a ControlNet for the tiny models to `target`: the way down of `base`, and by a formula what sees the picture and what
/// gives the residuals, as one that was trained would have it. Tensors are fp16 under the names of its first trainer.
///
/// # Errors
/// When the target cannot be written.
pub fn compose_control_net(target: &Path) -> io::Result<()> {
    const UNET: &str = "model.diffusion_model.";
    let files = ["shared", "base"].map(|file| read(&format!("models/{file}.safetensors")));
    let config = read("models/config.json");
    let unet = &serde_json::from_slice::<Value>(&config).expect("a fixture is well-formed")["unet"];
    let channels: Vec<usize> = serde_json::from_value(unet["block_out_channels"].clone()).expect("numbers");
    let layers = unet["layers_per_block"].as_u64().expect("a number") as usize;
    // The first feature map; then each level's, and but for the last, that of its downsampler.
    let level = |(i, width): (usize, &usize)| vec![*width; layers + usize::from(i + 1 < channels.len())];
    let skips: Vec<usize> =
        channels[..1].iter().copied().chain(channels.iter().enumerate().flat_map(level)).collect();
    let mut shapes: Vec<(String, [usize; 4])> = Vec::new();
    for (i, pair) in [3, 4, 4, 4, 4, 8, 8, 8, channels[0]].windows(2).enumerate() {
        shapes.push((format!("input_hint_block.{}", 2 * i), [pair[1], pair[0], 3, 3]));
    }
    for (i, width) in skips.into_iter().enumerate() {
        shapes.push((format!("zero_convs.{i}.0"), [width, width, 1, 1]));
    }
    let last = channels[channels.len() - 1];
    shapes.push(("middle_block_out.0".to_owned(), [last, last, 1, 1]));
    let drawn = |count: usize, scale: f64| -> Vec<u8> {
        let value = |i: usize| scale * ((i * 7919 + count * 31) % 2001) as f64 / 1000.0 - scale;
        (0..count).flat_map(|i| f16::from_f64(value(i)).to_le_bytes()).collect()
    };
    let drawn: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .flat_map(|(name, shape)| {
            let (count, fan_in) = (shape.iter().product(), shape[1..].iter().product::<usize>());
            let weight = drawn(count, (3.0 / fan_in as f64).sqrt());
            [
                (format!("control_model.{name}.weight"), shape.to_vec(), weight),
                (format!("control_model.{name}.bias"), vec![shape[0]], drawn(shape[0], 0.1)),
            ]
        })
        .collect();
    let copied = files.iter().flat_map(|bytes| tensors(bytes)).filter_map(|(name, view)| {
        let inner = name.strip_prefix(UNET).filter(|name| !name.starts_with("out"))?;
        Some((format!("control_model.{inner}"), view))
    });
    let own = drawn.iter().map(|(name, shape, bytes)| {
        (name.clone(), TensorView::new(Dtype::F16, shape.clone(), bytes).expect("two bytes a number"))
    });
    // A1111 names files by what lies behind their first megabyte: weights, as in large ones.
    let metadata = json!({"format": "pt", "padding": ".".repeat(700_000)});
    write(&file(&metadata, &copied.chain(own).collect()), target)
}

/// Writes a generation of the demo's model, which has learnt what the picture world looks like, in the same way.
///
/// The generations share `vae.safetensors` and CLIP's token table, which nobody trains: it is made by a formula.
///
/// # Errors
/// When the target cannot be written.
///
/// # Panics
/// When there is no such generation.
pub fn compose_demo_model(name: &str, target: &Path) -> io::Result<()> {
    write(&compose_demo(name), target)
}

fn write(bytes: &[u8], target: &Path) -> io::Result<()> {
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

fn compose(name: &str) -> Vec<u8> {
    let files = ["shared", name].map(|file| read(&format!("models/{file}.safetensors")));
    let tensors = files.iter().flat_map(|bytes| tensors(bytes)).collect();
    checkpoint(&read("models/config.json"), &tensors)
}

fn compose_demo(name: &str) -> Vec<u8> {
    let files = ["vae", name].map(|file| read(&format!("demo/{file}.safetensors")));
    let config = read("demo/config.json");
    let clip = &serde_json::from_slice::<Value>(&config).expect("a fixture is well-formed")["clip"];
    let shape = ["vocab_size", "hidden_size"].map(|key| clip[key].as_u64().expect("a number") as usize);
    let table = token_table(shape[0] * shape[1]);
    let table = TensorView::new(Dtype::F16, shape.to_vec(), &table).expect("two bytes a number");
    let name = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight";
    let tensors = files.iter().flat_map(|bytes| tensors(bytes)).chain([(name.to_owned(), table)]).collect();
    checkpoint(&config, &tensors)
}

/// So many numbers with a standard deviation of one half, fp16: each the sum of four uniform ones, which are SplitMix64
/// of their index. `token_table` in `fixtures/demo/train.py` makes the same.
fn token_table(count: usize) -> Vec<u8> {
    let uniform = |index: u64| {
        let z = (index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 24) - 0.5
    };
    let numbers = (0..count as u64).map(|i| (4 * i..4 * i + 4).map(uniform).sum::<f64>());
    numbers.flat_map(|sum| f16::from_f32((sum * 3_f64.sqrt() / 2.0) as f32).to_le_bytes()).collect()
}

fn read(file: &str) -> Vec<u8> {
    fs::read(fixture(file)).expect("a fixture is readable")
}

fn tensors(file: &[u8]) -> Vec<(String, TensorView<'_>)> {
    SafeTensors::deserialize(file).expect("a fixture is well-formed").tensors()
}

/// The bytes of a checkpoint.
fn checkpoint(config: &[u8], tensors: &BTreeMap<String, TensorView<'_>>) -> Vec<u8> {
    let config = str::from_utf8(config).expect("a configuration is text");
    file(&json!({"format": "pt", "vodka.config": config.trim_end()}), tensors)
}

/// The bytes of a safetensors file. The crate of that name writes metadata in an order that varies from run to run, so the
/// header is put together here.
fn file(metadata: &Value, tensors: &BTreeMap<String, TensorView<'_>>) -> Vec<u8> {
    let mut header = Map::from_iter([("__metadata__".to_owned(), metadata.clone())]);
    let mut start = 0;
    for (name, view) in tensors {
        assert_eq!(view.dtype(), Dtype::F16, "{name}");
        let end = start + view.data().len();
        let entry = json!({"dtype": "F16", "shape": view.shape(), "data_offsets": [start, end]});
        header.insert(name.clone(), entry);
        start = end;
    }
    let mut json = Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let length = (json.len() as u64).to_le_bytes();
    let data = tensors.values().flat_map(TensorView::data).copied();
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

    #[test]
    fn the_token_table_is_that_of_the_generator() {
        let table = token_table(1 << 16);
        let numbers: Vec<f64> =
            table.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f64()).collect();
        // Of `token_table(1024, 64)` in Python.
        let known: Vec<f64> = numbers[..4].to_vec();
        assert_eq!(known, [0.270263671875, -0.53759765625, 0.3076171875, 0.264892578125]);
        let variance = numbers.iter().map(|x| x * x).sum::<f64>() / numbers.len() as f64;
        assert!((variance - 0.25).abs() < 0.005, "{variance}");
    }
}
