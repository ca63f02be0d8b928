//! `vodka-grid`: makes a grid of pictures, checkpoints by prompts.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use vodka_cli::{Common, Session, runtime_dir};
use vodka_sampler::{GridConfig, GridEvent, GridPlan, GridReport, Result, grid};

/// Makes a grid of pictures: a column for each checkpoint, a row for each prompt and seed.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// What to make: checkpoints, prompts, seeds, steps, cfg, size, sampler, schedule, clip_skip, device
    #[arg(value_name = "GRID.TOML")]
    config: PathBuf,
    /// Folder to fill: grid.png and cells/
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    common: Common,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let session = Session::start(args.common);
    let plan = GridConfig::read(&args.config)
        .and_then(|config| GridConfig { output: args.output, runtime_dir: runtime_dir(), ..config }.plan());
    session.stage(plan, run)
}

fn run(plan: &GridPlan, session: &Session) -> Result<GridReport> {
    let bar = session.progress("cells", (plan.rows.len() * plan.columns.len()) as u64);
    grid::run(plan, session.interrupt(), &mut |event| match event {
        GridEvent::Loading { checkpoint } => bar.message(format!("loading {}", checkpoint.display())),
        GridEvent::Step { done, total } => bar.message(format!("step {done} of {total}")),
        GridEvent::Cell { done, .. } => bar.set(done as u64),
        GridEvent::Failed(cell) => bar.line(format!("not made: {}: {}", cell.cell.display(), cell.reason)),
    })
}
