//! The world as a folder of pictures and captions, with the true tags apart.

use std::{
    fs,
    io::{self, Cursor},
    path::{Path, PathBuf},
};

use image::ImageFormat;
use rayon::prelude::*;

use crate::{Picture, Strengths};

/// What to draw, and where.
#[derive(Debug, Clone)]
pub struct WorldConfig {
    /// Pictures.
    pub count: u64,
    /// Worlds of different seeds share no picture.
    pub seed: u64,
    /// Width and height of each.
    pub size_px: u32,
    /// The folder for `images/` (PNG, a caption beside each), `captioner/` (what a captioner would say of each) and `truth.csv` (`image`, `tag`, `strength` in 0..1).
    pub output: PathBuf,
}

/// What can go wrong when a world is written.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot write a picture as PNG: {0}")]
    Picture(image::ImageError),
    #[error("cannot write the table of true tags: {0}")]
    Truth(csv::Error),
}

/// Draws the world. Files that are there already with the same content are not touched.
///
/// # Errors
/// Where a file cannot be written.
pub fn write(config: &WorldConfig) -> Result<(), Error> {
    let images = config.output.join("images");
    let captioner = config.output.join("captioner");
    for folder in [&images, &captioner] {
        fs::create_dir_all(folder).map_err(|source| Error::Write { path: folder.clone(), source })?;
    }
    let pictures: Result<Vec<_>, _> = (0..config.count)
        .into_par_iter()
        .map(|index| {
            let picture = Picture::draw(config.seed, index, config.size_px);
            let path = images.join(format!("{index:05}.png"));
            save(&path, &png(&picture)?)?;
            save(&path.with_extension("txt"), format!("{}\n", picture.caption).as_bytes())?;
            let theirs = captioner.join(format!("{index:05}.txt"));
            save(&theirs, format!("{}\n", picture.described).as_bytes())?;
            Ok((format!("{index:05}.png"), picture.tags))
        })
        .collect();
    save(&config.output.join("truth.csv"), &truth(&pictures?)?)
}

fn png(picture: &Picture) -> Result<Vec<u8>, Error> {
    let mut file = Cursor::new(Vec::new());
    picture.image.write_to(&mut file, ImageFormat::Png).map_err(Error::Picture)?;
    Ok(file.into_inner())
}

fn truth(pictures: &[(String, Strengths)]) -> Result<Vec<u8>, Error> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["image", "tag", "strength"]).map_err(Error::Truth)?;
    for (image, tags) in pictures {
        for (tag, strength) in tags {
            writer.write_record([image.as_str(), tag, &format!("{strength:.3}")]).map_err(Error::Truth)?;
        }
    }
    writer.into_inner().map_err(|error| Error::Truth(error.into_error().into()))
}

fn save(path: &Path, content: &[u8]) -> Result<(), Error> {
    if fs::read(path).is_ok_and(|found| found == content) {
        return Ok(());
    }
    fs::write(path, content).map_err(|source| Error::Write { path: path.to_path_buf(), source })
}
