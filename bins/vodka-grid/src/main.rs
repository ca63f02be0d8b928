//! `vodka-grid`: makes a grid of pictures: checkpoints, prompts, seeds and any other axes.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use vodka_cli::{Common, Session, hash_cache, runtime_dir};
use vodka_sampler::{GridCheckpoint, GridConfig, GridEvent, GridPlan, GridReport, Result, grid};

/// Makes a grid of pictures: checkpoints, prompts, seeds and any other axes. What is there is not made again.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// What to make: checkpoints, prompts, seeds, axes, and the settings that all share (docs/grids.md)
    #[arg(value_name = "GRID.TOML")]
    config: PathBuf,
    /// Folder to fill: index.html, grid.png, cells.csv, judging.csv, cells/
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// A model besides those of the file, or a merge recipe: mix.toml#OUTPUT; repeat it for several
    #[arg(long, value_name = "[LABEL=]PATH", value_parser = checkpoint)]
    checkpoint: Vec<GridCheckpoint>,
    /// Folder that keeps the cells, for this grid and others [default: cells/ in the output]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Take cells that are not of this grid out of the store
    #[arg(long)]
    prune: bool,
    #[command(flatten)]
    common: Common,
}

/// Reads `LABEL=PATH`; a text that is the path of something is a path, whatever is in it.
fn checkpoint(text: &str) -> Result<GridCheckpoint, String> {
    match text.split_once('=') {
        Some((label, path)) if !PathBuf::from(text).exists() => match label.is_empty() || path.is_empty() {
            true => Err(format!("expected LABEL=PATH, found `{text}`")),
            false => Ok(GridCheckpoint::new(Some(label.to_owned()), path)),
        },
        _ => Ok(GridCheckpoint::new(None, text)),
    }
}

impl Args {
    fn plan(self) -> Result<GridPlan> {
        let mut config = GridConfig::read(&self.config)?;
        config.checkpoints.extend(self.checkpoint);
        let (output, store, prune) = (self.output, self.store, self.prune);
        let (hash_cache, runtime_dir) = (hash_cache(), runtime_dir());
        GridConfig { output, store, prune, hash_cache, runtime_dir, ..config }.plan()
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let session = Session::start(args.common);
    session.stage(args.plan(), run)
}

fn run(plan: &GridPlan, session: &Session) -> Result<GridReport> {
    let bar = session.progress("cells", plan.cells() as u64);
    grid::run(plan, session.interrupt(), &mut |event| match event {
        GridEvent::Loading { checkpoint } => bar.message(format!("loading {}", checkpoint.display())),
        GridEvent::WithoutGraphs { reason } => bar.line(format!("without CUDA graphs: {reason}")),
        GridEvent::Step { done, total } => bar.message(format!("step {done} of {total}")),
        GridEvent::Cell { done, .. } => bar.set(done as u64),
        GridEvent::Failed(cell) => bar.line(format!("not made: cell {}: {}", cell.cell, cell.reason)),
    })
}
