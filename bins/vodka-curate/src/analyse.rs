//! The command line of the analysis.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use vodka_captions::analysis::{self, AnalyseConfig};
use vodka_cli::Session;

/// What an analysis is made from.
#[derive(Args)]
pub struct Analyse {
    /// The tag table, Parquet or CSV (columns: image, tag_id, tag, category, score)
    #[arg(long, value_name = "FILE")]
    tags: PathBuf,
    /// The selection: any CSV with a column `name` and a column `include` (or `keep`) of 0 and 1
    #[arg(long, value_name = "FILE")]
    selection: PathBuf,
    /// The folder of pictures, with captions in any format: count these only, and measure the captions
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// The tagger's table of pictures, for their sharpness [default: tags.pictures.parquet beside tags.parquet, if there]
    #[arg(long, value_name = "FILE")]
    pictures: Option<PathBuf>,
    /// Pictures that you have judged: CSV with the columns image, tag, label (0 or 1)
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// The scores from which on tags are counted and captions measured; separated by commas
    #[arg(
        long,
        value_name = "SCORES",
        value_delimiter = ',',
        default_value = "0.3,0.35,0.4,0.5,0.6,0.7,0.8,0.9,0.95"
    )]
    thresholds: Vec<f32>,
    /// The lowest score of a tag that counts as there in co-occurrence and sharpness, 0 to 1
    #[arg(long, value_name = "SCORE", default_value_t = 0.3)]
    min_score: f32,
    /// How many tags captions are measured with at most; separated by commas
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "1,3,5,10")]
    max_tags: Vec<usize>,
    /// A word, or several in a row: count the pictures that have any tag with it in its name; may be given again
    #[arg(long = "group", value_name = "WORD", default_value = "blurry")]
    groups: Vec<String>,
    /// The tag whose scores are compared with measured sharpness
    #[arg(long, value_name = "TAG", default_value = "blurry")]
    sharpness_tag: String,
    /// The folder to write
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
}

impl Analyse {
    /// Runs the stage.
    pub fn run(self, session: &Session) -> ExitCode {
        crate::stage(session, self.config().plan(), |plan, session| {
            analysis::run(plan, session.interrupt(), &mut |_| {})
        })
    }

    fn config(self) -> AnalyseConfig {
        let Self {
            tags, selection, images, pictures, labels, thresholds, min_score, max_tags, groups, ..
        } = self;
        let (sharpness_tag, output) = (self.sharpness_tag, self.output);
        AnalyseConfig {
            tags,
            selection,
            images,
            pictures,
            labels,
            thresholds,
            min_score,
            max_tags,
            groups,
            sharpness_tag,
            output,
        }
    }
}
