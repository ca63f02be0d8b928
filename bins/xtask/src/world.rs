//! Draws the picture world of the demo.

use std::{path::PathBuf, time::Instant};

use vodka_world::WorldConfig;

use crate::{Result, process::say};

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Pictures to draw
    #[arg(long, default_value_t = 5000)]
    count: u64,
    /// Worlds of different seeds share no picture
    #[arg(long, default_value_t = 2023)]
    seed: u64,
    /// Width and height in pixels
    #[arg(long, default_value_t = 64)]
    size: u32,
    /// Folder for images/, captioner/ and truth.csv
    #[arg(long)]
    output: PathBuf,
}

pub fn run(options: &Options) -> Result {
    let started = Instant::now();
    let Options { count, seed, size, ref output } = *options;
    vodka_world::write(&WorldConfig { count, seed, size_px: size, output: output.clone() })?;
    say(&format!("drew {count} pictures in {:.1} s", started.elapsed().as_secs_f64()));
    Ok(())
}
