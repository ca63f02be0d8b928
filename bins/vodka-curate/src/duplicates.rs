//! The arguments of `vodka-curate duplicates`.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use vodka_captions::duplicates::{self, DuplicatesConfig};
use vodka_cli::Session;

#[derive(Args)]
pub struct Arguments {
    /// The table of pictures, Parquet or CSV (columns: image, sha256, phash; width, height, sharpness where known)
    #[arg(long, value_name = "FILE")]
    pictures: PathBuf,
    /// The folder of pictures: only those that are in it count
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Pictures to leave out: a CSV with a column `image`, or a name a line; may be given again
    #[arg(long, value_name = "FILE")]
    without: Vec<PathBuf>,
    /// In how many of 64 bits the perceptual hashes of two pictures that look the same may differ
    #[arg(long, value_name = "BITS", default_value_t = 4)]
    distance: u32,
    /// Look for copies of the same file only
    #[arg(long, conflicts_with = "distance")]
    exact: bool,
    /// The CSV of groups to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Write the pictures to spare, those within the distance of one that is kept, to a CSV (image, reason) that --without takes
    #[arg(long, value_name = "FILE")]
    exclude: Option<PathBuf>,
}

impl Arguments {
    pub fn run(self, session: &Session) -> ExitCode {
        let Self { pictures, images, without, distance, exact, output, exclude } = self;
        let distance = Some(distance).filter(|_| !exact);
        let config = DuplicatesConfig { pictures, images, without, distance, output, exclude };
        crate::stage(session, config.plan(), |plan, session| {
            duplicates::run(plan, session.interrupt(), &mut |_| {})
        })
    }
}
