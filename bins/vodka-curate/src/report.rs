//! `vodka-curate report`: pages to look at.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use vodka_captions::report::{self, GalleryConfig, ReportConfig, ReportEvent};
use vodka_cli::Session;

use crate::Inputs;

/// What the command line says.
#[derive(Args)]
pub struct Report {
    #[command(flatten)]
    inputs: Inputs,
    /// A word, or several in a row: report the share of pictures that have any tag with it in its name; may be given again
    #[arg(long = "group", value_name = "WORD", default_value = "blurry")]
    groups: Vec<String>,
    /// The tagger's table of pictures, for their sharpness [default: the one beside the tag table]
    #[arg(long, value_name = "FILE")]
    pictures: Option<PathBuf>,
    /// What somebody has judged, for thresholds: CSV with the columns image, tag and label (0 or 1)
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// The most pictures shown of a tag for each 5 % of score; 0 for none
    #[arg(long, value_name = "N", default_value_t = GalleryConfig::default().per_bucket)]
    per_bucket: usize,
    /// The longer side of a thumbnail in pixels, 64 to 1024
    #[arg(long, value_name = "PX", default_value_t = GalleryConfig::default().thumbnail_px)]
    thumbnail_px: u32,
    /// The folder to write: new, empty, or a former report; open its index.html
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
}

impl Report {
    fn config(self) -> ReportConfig {
        let Inputs { tags, selection, images, min_score } = self.inputs;
        let Self { pictures, labels, output, groups, .. } = self;
        let gallery = GalleryConfig { per_bucket: self.per_bucket, thumbnail_px: self.thumbnail_px };
        ReportConfig { tags, selection, images, output, min_score, groups, pictures, labels, gallery }
    }
}

impl Report {
    /// Runs the stage.
    pub fn run(self, session: &Session) -> ExitCode {
        crate::stage(session, self.config().plan(), |plan, session| {
            let bar = session.progress("thumbnails", 0);
            report::run(plan, session.interrupt(), &mut |event| match event {
                ReportEvent::Started { pictures } => bar.set_total(pictures),
                ReportEvent::Thumbnails { done } => bar.set(done),
                ReportEvent::Wrote { path } => {
                    bar.message(path.file_name().unwrap_or_default().to_string_lossy());
                }
            })
        })
    }
}
