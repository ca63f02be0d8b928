//! The world as a folder of pictures and captions, with the true tags apart.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use image::ImageFormat;
use rayon::prelude::*;

use crate::Picture;

/// What to draw, and where.
#[derive(Debug, Clone)]
pub struct WorldConfig {
    /// Pictures.
    pub count: u64,
    /// Worlds of different seeds share no picture.
    pub seed: u64,
    /// Width and height of each.
    pub size_px: u32,
    /// The folder for `images/` (PNG, a caption beside each) and `truth.csv` (`image`, `tag`, `strength` in 0..1).
    pub output: PathBuf,
}

/// What can go wrong when a world is written.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot write {path}: {source}")]
    Picture { path: PathBuf, source: image::ImageError },
    #[error("cannot write {path}: {source}")]
    Truth { path: PathBuf, source: csv::Error },
}

/// Draws the pictures that are not there yet, and writes `truth.csv` last.
///
/// # Errors
/// Where a file cannot be written.
pub fn write(config: &WorldConfig) -> Result<(), Error> {
    let images = config.output.join("images");
    fs::create_dir_all(&images).map_err(|source| Error::Write { path: images.clone(), source })?;
    let pictures: Result<Vec<_>, _> = (0..config.count)
        .into_par_iter()
        .map(|index| {
            let picture = Picture::draw(config.seed, index, config.size_px);
            let path = images.join(format!("{index:05}.png"));
            save(&path, &picture)?;
            Ok((format!("{index:05}.png"), picture.tags))
        })
        .collect();
    let path = config.output.join("truth.csv");
    let truth = |source| Error::Truth { path: path.clone(), source };
    let mut writer = csv::Writer::from_path(&path).map_err(truth)?;
    writer.write_record(["image", "tag", "strength"]).map_err(truth)?;
    for (image, tags) in pictures? {
        for (tag, strength) in tags {
            writer.write_record([image.as_str(), tag, &format!("{strength:.3}")]).map_err(truth)?;
        }
    }
    writer.flush().map_err(|source| Error::Write { path: path.clone(), source })
}

fn save(path: &Path, picture: &Picture) -> Result<(), Error> {
    let save = picture.image.save_with_format(path, ImageFormat::Png);
    save.map_err(|source| Error::Picture { path: path.to_path_buf(), source })?;
    let path = path.with_extension("txt");
    fs::write(&path, format!("{}\n", picture.caption)).map_err(|source| Error::Write { path, source })
}
