//! Runs the tests, and the checks that go with them.

use crate::{
    Result,
    process::{cargo, one_thread, run as run_command},
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
    run_command(one_thread(&mut command))
}

/// Format, lints and documentation of everything, each warning an error.
pub fn lint() -> Result {
    setup::run(&setup::Options::default())?;
    run_command(cargo().args(["fmt", "--all", "--check"]))?;
    run_command(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    run_command(cargo().args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
}
