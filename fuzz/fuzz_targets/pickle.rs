//! Pickles of PyTorch's old format: the magic number, and what the fuzzer makes of the rest.

#![no_main]

use std::{
    fs,
    path::{Path, PathBuf},
    process,
};

use libfuzzer_sys::fuzz_target;
use vodka_checkpoint::WeightFile;

/// Magic number, protocol and system, as `torch.save` writes them.
const START: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.";

/// In memory, one a process.
fn file() -> PathBuf {
    Path::new("/dev/shm").join(format!("vodka-fuzz-pickle-{}", process::id()))
}

fuzz_target!(|bytes: &[u8]| {
    let path = file();
    fs::write(&path, [START, bytes].concat()).unwrap();
    if let Ok(file) = WeightFile::open(&path) {
        for name in file.names() {
            let _ = file.tensor(name);
        }
    }
});
