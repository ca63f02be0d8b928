//! Selects tags, reports on them, and writes captions.

mod report;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};
use vodka_captions::{
    Position,
    caption::{self, CaptionConfig, CaptionEvent, Missing},
    select::{self, SelectConfig},
};
use vodka_cli::{Common, Session};

/// Selects the tags worth having, shows what they do, and puts the best of them into the captions
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but some pictures were skipped (listed), 4 interrupted.
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
    /// Mark the most frequent general tags of a tagger's vocabulary in a column `include` of 0 and 1
    Select(Select),
    /// Write pages to look at: numbers, charts, and for each tag pictures by score
    Report(report::Report),
    /// Put the best selected tags of each picture into its caption
    Caption(Caption),
}

#[derive(Args)]
struct Select {
    /// The tagger's selected_tags.csv (columns: name, category, count)
    #[arg(long, value_name = "FILE")]
    labels: PathBuf,
    /// The share of all occurrences of general tags that the selected ones cover, from the most frequent down; 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.8)]
    coverage: f64,
    /// Tags to take besides, whatever their count; separated by commas
    #[arg(long, value_name = "TAGS", value_delimiter = ',')]
    include: Vec<String>,
    /// Tags to leave out; separated by commas
    #[arg(long, value_name = "TAGS", value_delimiter = ',')]
    exclude: Vec<String>,
    /// The CSV file to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
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
    /// The folder of pictures, with a .txt caption beside each
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// The lowest score of a tag that counts as there, 0 to 1
    #[arg(long, value_name = "SCORE", default_value_t = 0.3)]
    min_score: f32,
}

#[derive(Args)]
struct Caption {
    #[command(flatten)]
    inputs: Inputs,
    /// The most tags that a caption gets
    #[arg(long, value_name = "N", default_value_t = 3)]
    max_tags: usize,
    /// Put the tags before or after the caption
    #[arg(long, value_enum, default_value_t = Place::Prepend)]
    position: Place,
    /// What happens to pictures without a caption
    #[arg(long, value_enum, default_value_t = WhenMissing::Skip)]
    missing: WhenMissing,
    #[command(flatten)]
    destination: Destination,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Destination {
    /// The folder to write captions to, in the same subfolders as the pictures
    #[arg(long, short, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Change the captions beside the pictures; each original is kept as .txt.orig, and later runs start from it
    #[arg(long)]
    in_place: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Place {
    /// Before the caption, where tags act most strongly
    Prepend,
    /// After the caption
    Append,
}

#[derive(Clone, Copy, ValueEnum)]
enum WhenMissing {
    /// They get none and are listed; exit code 3
    Skip,
    /// They get a caption of tags alone
    Empty,
    /// Nothing is written; exit code 1
    Error,
}

impl Select {
    fn config(self) -> SelectConfig {
        let Self { labels, coverage, include, exclude, output } = self;
        SelectConfig { labels, coverage, include, exclude, output }
    }
}

impl Caption {
    fn config(self) -> CaptionConfig {
        let Inputs { tags, selection, images, min_score } = self.inputs;
        let Destination { output, in_place } = self.destination;
        let position = match self.position {
            Place::Prepend => Position::Prepend,
            Place::Append => Position::Append,
        };
        let missing = match self.missing {
            WhenMissing::Skip => Missing::Skip,
            WhenMissing::Empty => Missing::Empty,
            WhenMissing::Error => Missing::Error,
        };
        let max_tags = self.max_tags;
        CaptionConfig { tags, selection, images, output, in_place, max_tags, min_score, position, missing }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let session = Session::start(arguments.common);
    match arguments.command {
        Command::Select(arguments) => session.stage(arguments.config().plan(), |plan, session| {
            select::run(plan, session.interrupt(), &mut |_| {})
        }),
        Command::Report(arguments) => report::run(arguments, session),
        Command::Caption(arguments) => session.stage(arguments.config().plan(), |plan, session| {
            let bar = session.progress("captions", 0);
            caption::run(plan, session.interrupt(), &mut |event| match event {
                CaptionEvent::Started { images } => bar.set_total(images),
                CaptionEvent::Skipped(_) => {}
                CaptionEvent::Captioned { images } => bar.set(images),
            })
        }),
    }
}
