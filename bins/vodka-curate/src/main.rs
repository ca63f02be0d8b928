//! Everything between a tagger's scores and captions: one subcommand a file.

mod analyse;
mod caption;
mod clean;
mod duplicates;
mod filter;
mod mix;
mod recaption;
mod report;
mod segment;
mod select;
mod undo;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use vodka_captions::{Error, Result};
use vodka_cli::{Common, Session};
use vodka_stage::Report;

/// Selects the tags worth having, shows what they do, and puts the best of them into the captions
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage or configuration (also a tag that nothing knows), 3 done but some pictures were skipped (listed), 4 interrupted.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

#[derive(Subcommand)]
enum Command {
    /// Mark the tags worth having in a tagger's vocabulary, in a column `include` of 0 and 1
    Select(select::Select),
    /// Put a tag table through cleaning rules: aliases, implications, blacklist, replacements, regular expressions
    Clean(clean::Clean),
    /// Count the selected tags at any threshold, together and apart, and suggest thresholds: analysis.json and CSV
    Analyse(analyse::Analyse),
    /// Write pages to look at: numbers, charts, and for each tag pictures by score
    Report(report::Report),
    /// Put the best selected tags of each picture into its caption
    Caption(Box<caption::Caption>),
    /// Put the originals back that `caption --in-place` has kept, and remove what it has made
    Undo(undo::Undo),
    /// Get captions from an external captioner, beside those that the pictures have
    Recaption(recaption::Recaption),
    /// Write captions of which a share is new and the rest original
    Mix(mix::Mix),
    /// List, exclude, copy or link the pictures that fit a query
    Filter(Box<filter::Arguments>),
    /// Divide a dataset into folders by queries, each with EveryDream2's settings for a folder
    Segment(segment::Arguments),
    /// Find pictures that are there more than once: the same file, or one that looks the same
    Duplicates(duplicates::Arguments),
}

/// What a report and captions are made from.
#[derive(Args)]
struct Inputs {
    /// The tag table, Parquet or CSV (columns: image, tag_id, tag, category, score)
    #[arg(long, value_name = "FILE")]
    tags: PathBuf,
    /// The selection: any CSV with a column `name` and a column `include` (or `keep`) of 0 and 1
    #[arg(long, value_name = "FILE")]
    selection: PathBuf,
    /// The folder of pictures, with a caption beside each
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// The lowest score of a tag that counts as there, 0 to 1
    #[arg(long, value_name = "SCORE", default_value_t = 0.3)]
    min_score: f32,
}

/// Runs a stage, whose errors know whether the user has said what cannot be.
fn stage<P: Serialize, R: Report>(
    session: &Session,
    plan: Result<P>,
    run: impl FnOnce(&P, &Session) -> Result<R>,
) -> ExitCode {
    session.stage_with(plan, run, Error::is_usage)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let session = Session::start(arguments.common);
    match arguments.command {
        Command::Select(arguments) => arguments.run(&session),
        Command::Clean(arguments) => arguments.run(&session),
        Command::Analyse(arguments) => arguments.run(&session),
        Command::Report(arguments) => arguments.run(&session),
        Command::Caption(arguments) => arguments.run(&session),
        Command::Undo(arguments) => arguments.run(&session),
        Command::Recaption(arguments) => arguments.run(&session),
        Command::Mix(arguments) => arguments.run(&session),
        Command::Filter(arguments) => arguments.run(&session),
        Command::Segment(arguments) => arguments.run(&session),
        Command::Duplicates(arguments) => arguments.run(&session),
    }
}
