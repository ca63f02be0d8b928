//! Times the training step: `vodka-bench-train MODEL --batch 4`. Prints seconds a step, seconds in the networks, and bytes.

use std::process::ExitCode;

use clap::Parser;
use vodka_bench_torch::{Measured, Options, measure};

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a program")]
fn main() -> ExitCode {
    match measure(&Options::parse()) {
        Ok(Measured { step_s, networks_s, peak_bytes }) => {
            println!("{step_s} {networks_s} {peak_bytes}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
