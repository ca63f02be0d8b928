//! Files of tensors: safetensors headers, archives and pickles of PyTorch. The first byte says how the rest begins.

#![no_main]

use std::{
    fs,
    path::{Path, PathBuf},
    process,
};

use libfuzzer_sys::fuzz_target;
use vodka_checkpoint::{Checkpoint, Lora, ModelConfig, WeightFile, inspect};

/// In memory, one a process.
fn file() -> PathBuf {
    Path::new("/dev/shm").join(format!("vodka-fuzz-weights-{}", process::id()))
}

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    let bytes = match kind % 3 {
        // A header whose length is right, so that the parser is reached.
        0 => [&(rest.len() as u64).to_le_bytes(), rest].concat(),
        1 => [b"\x80\x02".as_slice(), rest].concat(),
        _ => rest.to_vec(),
    };
    let path = file();
    fs::write(&path, bytes).unwrap();
    if let Ok(file) = WeightFile::open(&path) {
        for name in file.names() {
            let _ = file.tensor(name);
        }
    }
    let _ = Checkpoint::open(&path).and_then(|checkpoint| checkpoint.verify());
    let _ = Checkpoint::open_vae(&path);
    let _ = Lora::open(&path, &ModelConfig::sd15());
    // Threads cost more than all the rest: not every time.
    let values = *kind >= 0xf0;
    let _ = inspect::inspect(&path, inspect::Depth { hashes: false, values });
});
