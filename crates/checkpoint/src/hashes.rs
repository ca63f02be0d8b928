//! The three hashes by which users know a checkpoint.

use serde::Serialize;
use vodka_stage::{ContentHash, hash_bytes, hash_file_from};

use crate::{Format, Result, WeightFile};

/// The hashes of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hashes {
    /// A1111's first hash: of 64 KiB behind the first MiB, eight digits. Many files share one.
    pub auto_v1: String,
    /// SHA-256 of the whole file; A1111 shows ten digits, the hubs all.
    pub auto_v2: ContentHash,
    /// SHA-256 of what is behind the header of a safetensors file, so that metadata do not change it; kohya's scripts and
    /// model pages show twelve digits. None for other formats.
    pub auto_v3: Option<ContentHash>,
}

impl Hashes {
    /// Reads the file once: a thread reads, and one thread for each hash follows.
    pub fn of(file: &WeightFile) -> Result<Self> {
        let path = file.path();
        let start = match file.format() {
            Format::Safetensors => Some(data_start(file)),
            _ => None,
        };
        let starts: Vec<_> = [Some(0), start].into_iter().flatten().collect();
        let hashes = hash_file_from(path, &starts)?;
        Ok(Self { auto_v1: auto_v1(file.all()), auto_v2: hashes[0], auto_v3: hashes.get(1).copied() })
    }
}

fn data_start(file: &WeightFile) -> u64 {
    let length = file.all()[..8].try_into().expect("a header begins with eight bytes");
    8 + u64::from_le_bytes(length)
}

pub(crate) fn auto_v1(bytes: &[u8]) -> String {
    let end = bytes.len().min(0x11_0000);
    hash_bytes(&bytes[end.min(0x10_0000)..end]).short(8)
}

/// What a well-known file is called, by its SHA-256.
pub fn known(hash: &ContentHash) -> Option<&'static str> {
    const KNOWN: [(&str, &str); 1] = [(
        "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa",
        "Stable Diffusion 1.5, EMA weights only (v1-5-pruned-emaonly.safetensors)",
    )];
    let hash = hash.to_string();
    KNOWN.iter().find(|(known, _)| *known == hash).map(|(_, name)| *name)
}
