//! Set-up, demo, tests, fixtures and tidiness of this repository: `cargo xtask <task>`.

mod claims;
mod demo;
mod fixtures;
mod gpu_bench;
mod process;
mod setup;
mod test;
mod tidy;
mod world;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// Set-up, demo, tests, fixtures and tidiness of this repository
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install libtorch and ONNX Runtime into .runtime/ (nothing to do the second time)
    Setup(setup::Options),
    /// Run the V3 experiment in small, from tagging to the grid of the mixes
    Demo(demo::Options),
    /// Check what a run of the demo shows: the claims of docs/experiment.md, with their numbers
    Claims(claims::Options),
    /// Draw the picture world: pictures, captions, and the true tags apart
    World(world::Options),
    /// Run every test (sets up and builds what is needed)
    Test(test::Options),
    /// Check format, lints and documentation
    Lint,
    /// Check the arrows between the crates and what else no compiler checks
    Tidy,
    /// Measure the training step on a GPU beside PyTorch's
    GpuBench(gpu_bench::Options),
    /// Make the fixtures anew with the reference implementations (needs Python; 6 GB the first time)
    Fixtures(fixtures::Options),
}

fn main() -> ExitCode {
    let result = match Args::parse().task {
        Task::Setup(options) => setup::run(&options),
        Task::Demo(options) => demo::run(&options),
        Task::Claims(options) => claims::run(&options),
        Task::World(options) => world::run(&options),
        Task::Test(options) => test::run(&options),
        Task::Lint => test::lint(),
        Task::Tidy => tidy::run(),
        Task::GpuBench(options) => gpu_bench::run(&options),
        Task::Fixtures(options) => fixtures::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            process::say(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// The root of the checkout.
fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("xtask lies two folders down").to_path_buf()
}

/// What stops a task: one line that says what is wrong and what to do.
type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;
