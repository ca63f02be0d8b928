//! Tags a folder of pictures with a WD14 tagger.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use vodka_cli::{Common, Progress, Session, runtime_dir};
use vodka_tagger::{ProviderChoice, TagConfig, TagEvent, run};

/// Score every picture of a folder with a WD14 tagger, and write the table of tags
///
/// Pictures that cannot be read are listed in `STEM.skipped.csv` beside the output (exit code 3). Killed or interrupted, the same
/// command goes on from there; run again with nothing changed, it does nothing.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Folder with model.onnx and selected_tags.csv
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Folder of pictures, searched with its subfolders
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// Table to write: tags.parquet, which gets tags.csv beside it, or tags.csv alone
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Lowest score that is written, 0 to 1
    #[arg(long, value_name = "SCORE", default_value_t = TagConfig::default_min_score())]
    min_score: f64,
    /// Pictures that the model gets at once
    #[arg(long, value_name = "N", default_value_t = TagConfig::default_batch())]
    batch: usize,
    /// Threads that decode, and threads that one inference uses; 0 for one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Where the model runs: cpu, cuda, tensorrt, openvino, directml or coreml, an error where it is not available; or auto,
    /// the fastest that is installed
    #[arg(long, value_name = "NAME", default_value_t)]
    provider: ProviderChoice,
    /// Leave pictures as they are stored, whatever their EXIF orientation says
    #[arg(long)]
    ignore_orientation: bool,
    #[command(flatten)]
    common: Common,
}

impl Args {
    fn config(&self) -> TagConfig {
        let (provider, onnxruntime) = self.provider.resolve(&runtime_dir());
        TagConfig {
            model: self.model.clone(),
            images: self.images.clone(),
            output: self.output.clone(),
            min_score: self.min_score,
            batch: self.batch,
            threads: self.threads,
            provider,
            ignore_orientation: self.ignore_orientation,
            onnxruntime,
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    Session::start(args.common).stage(args.config().plan(), |plan, session| {
        let mut bar = None;
        run(plan, session.interrupt(), &mut |event| show(session, &mut bar, event))
    })
}

/// The bar comes with the first event, when it is known that there is something to do.
fn show(session: &Session, bar: &mut Option<Progress>, event: TagEvent) {
    let bar = bar.get_or_insert_with(|| session.progress("pictures", 0));
    match event {
        TagEvent::Started { total, resumed } => {
            bar.set_total(total as u64);
            bar.set(resumed as u64);
            if resumed > 0 {
                bar.line(format!("going on after {resumed} of {total} pictures"));
            }
        }
        TagEvent::Skipped { image, reason } => bar.line(format!("skipped {image}: {reason}")),
        TagEvent::Progress { done } => bar.set(done as u64),
    }
}
