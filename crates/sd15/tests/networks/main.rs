//! The networks against their originals, and against checkpoints.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod checkpoints;
mod common;
mod control_nets;
mod gradients;
mod parity;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod stand_in;
mod tiles;
mod upscalers;
