//! Times the sampler: `vodka-bench-sample pictures --model MODEL`. Prints numbers, whose meaning `--help` says.

use std::process::ExitCode;

use clap::Parser;
use vodka_bench_torch::sampling::{Options, measure};

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a program")]
fn main() -> ExitCode {
    match measure(&Options::parse()) {
        Ok(numbers) => {
            println!("{}", numbers.iter().map(f64::to_string).collect::<Vec<_>>().join(" "));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
