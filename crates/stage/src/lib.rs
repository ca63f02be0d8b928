//! What every stage shares: atomic files, run records, journals, content hashes, interruption.
//!
//! A stage turns input files into output files. It never leaves half a file behind ([`AtomicFile`]), says what made
//! what ([`RunRecord`]), does not repeat what is already there ([`RunKey::standing`]), and goes on where it was
//! killed ([`Journal`]). Two runs do not change one folder at once ([`FolderLock`]).

mod atomic;
mod config;
mod error;
mod explain;
mod glob;
mod hash;
mod hash_cache;
mod interrupt;
mod journal;
mod lock;
mod lossy;
mod panics;
mod record;
mod report;
mod space;
mod vector;

pub use atomic::{AtomicFile, beside, create_dir, remove_all, sync_folder_of, write_atomic};
pub use config::{ConfigError, in_plain_words, nearest, parse_toml, read_json, read_toml};
pub use error::{Error, Result};
pub use explain::explain;
pub use glob::glob_matches;
pub use hash::{
    ContentHash, FileHasher, Hasher, Stamp, hash_bytes, hash_file, hash_file_from, hash_tree,
    hash_tree_until, is_hidden, stamp_tree, unreadable,
};
pub use hash_cache::HashCache;
pub use interrupt::Interrupt;
pub use journal::{Journal, Place};
pub use lock::{FolderLock, try_lock};
pub use lossy::{Paths, lossy};
pub use panics::{catch_panic, is_panic_caught};
pub use record::{Input, Output, RunKey, RunRecord, Standing, record_path};
pub use report::{Outcome, Report};
pub use space::{check_space, disk_of, free_space};
pub use toml::Spanned;
