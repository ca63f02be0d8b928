//! What every binary shares: common options, progress bars, logging, exit codes.
//!
//! A binary parses its arguments, starts a [`Session`], and hands it a plan and the stage to run:
//!
//! ```no_run
//! # use std::process::ExitCode;
//! # #[derive(clap::Parser)] struct Args { #[command(flatten)] common: vodka_cli::Common }
//! # #[derive(serde::Serialize)] struct Report;
//! # impl std::fmt::Display for Report { fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { Ok(()) } }
//! # impl vodka_stage::Report for Report { fn outcome(&self) -> vodka_stage::Outcome { vodka_stage::Outcome::Done } }
//! # fn plan() -> Result<u32, std::io::Error> { Ok(1) }
//! # fn run(_: &u32, _: &vodka_stage::Interrupt, on_event: &mut dyn FnMut(u64)) -> Result<Report, std::io::Error> { on_event(1); Ok(Report) }
//! fn main() -> ExitCode {
//!     let args: Args = clap::Parser::parse();
//!     vodka_cli::Session::start(args.common).stage(plan(), |plan, session| {
//!         let bar = session.progress("images", 10);
//!         run(plan, session.interrupt(), &mut |done| bar.set(done))
//!     })
//! }
//! ```

mod exit;
mod progress;
mod runtime;
mod session;

pub use exit::Exit;
pub use progress::{Progress, in_words};
pub use runtime::{hash_cache, runtime_dir};
pub use session::{Common, Session};
