//! Runs the tests, and the checks that go with them.

use crate::{
    Result,
    process::{cargo, run as run_command},
    setup,
};

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only this package, `vodka-trainer`, say
    #[arg(long, short)]
    package: Option<String>,
}

pub fn run(options: &Options) -> Result {
    setup::run(&setup::Options::default())?;
    let mut command = cargo();
    command.arg("test");
    match &options.package {
        Some(package) => command.args(["--package", package]),
        None => command.arg("--workspace"),
    };
    // Each call of libtorch in one thread: tests run beside each other, on models so small that a second one only waits.
    run_command(command.env("OMP_NUM_THREADS", "1"))
}

/// Format, lints and documentation of everything, each warning an error.
pub fn lint() -> Result {
    setup::run(&setup::Options::default())?;
    run_command(cargo().args(["fmt", "--all", "--check"]))?;
    run_command(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    run_command(cargo().args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
}
