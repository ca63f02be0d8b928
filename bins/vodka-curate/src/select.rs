//! `vodka-curate select`: the tags worth having.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use vodka_captions::select::{self, SelectConfig};
use vodka_cli::Session;

#[derive(Args)]
pub struct Select {
    /// The tagger's selected_tags.csv (columns: name, category, count)
    #[arg(long, value_name = "FILE")]
    labels: PathBuf,
    /// The share of all occurrences of general tags that the candidates cover, from the most frequent down; 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.8)]
    coverage: f64,
    /// Take the candidates on this list: CSV with a column `name`, or a tag on each line [default: 73 shipped tags about
    /// how a picture is made]
    #[arg(long, value_name = "FILE", conflicts_with = "all_head")]
    list: Option<PathBuf>,
    /// Take all candidates
    #[arg(long)]
    all_head: bool,
    /// Tags to take besides, whatever their count; names, patterns with * and ?, or @FILE for a list; separated by commas
    #[arg(long, value_name = "TAGS", value_delimiter = ',')]
    include: Vec<String>,
    /// Tags to leave out, given in the same way; this has the last word
    #[arg(long, value_name = "TAGS", value_delimiter = ',')]
    exclude: Vec<String>,
    /// The CSV file to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
}

impl Select {
    fn config(self) -> SelectConfig {
        let Self { labels, coverage, list, all_head, include, exclude, output } = self;
        SelectConfig { labels, coverage, list, all_head, include, exclude, output }
    }
}

impl Select {
    /// Runs the stage.
    pub fn run(self, session: &Session) -> ExitCode {
        crate::stage(session, self.config().plan(), |plan, session| {
            select::run(plan, session.interrupt(), &mut |_| {})
        })
    }
}
