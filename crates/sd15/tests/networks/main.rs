//! The networks against their originals, and against checkpoints.

mod checkpoints;
mod common;
mod gradients;
mod parity;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod stand_in;
