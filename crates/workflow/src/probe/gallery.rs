//! A sheet for each word: the conditions of a few seeds by models.

use std::{error, path::PathBuf};

use image::RgbImage;
use vodka_sampler::labelled;
use vodka_stage::{create_dir, remove_all, write_atomic};

use super::{
    Condition,
    plan::{ProbePlan, Set, Shot},
};

/// How many seeds of each condition are shown.
const SEEDS: usize = 3;
/// How large a picture is shown, in pixels.
const SHOWN_PX: u32 = 112;

/// The folder of the sheets.
const FOLDER: &str = "gallery";

/// The file of a word's sheet, by its number: names of tags may be those of no file.
pub(super) fn file(set: &Set, word: usize) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let name: String = set.words[word].name.chars().map(plain).take(60).collect();
    format!("{FOLDER}/{:02}-{name}.png", word + 1)
}

/// Writes all sheets.
pub(super) fn write(
    plan: &ProbePlan,
    set: &Set,
    files: &[String],
) -> Result<(), Box<dyn error::Error + Send + Sync>> {
    let folder = plan.config.output.join(FOLDER);
    remove_all(&folder)?;
    create_dir(&folder)?;
    for word in 0..set.words.len() {
        let sheet = sheet(plan, set, files, word)?;
        write_atomic(plan.config.output.join(file(set, word)), vodka_images::png(&sheet))?;
    }
    Ok(())
}

fn sheet(plan: &ProbePlan, set: &Set, files: &[String], word: usize) -> vodka_sampler::Result<RgbImage> {
    let seeds = SEEDS.min(set.words[word].seeds);
    let places: std::collections::HashMap<Shot, usize> =
        set.shots.iter().enumerate().map(|(place, shot)| (*shot, place)).collect();
    let conditions = set.words[word].conditions();
    let column = |column: usize| (conditions[column / seeds], column % seeds);
    let columns = (0..conditions.len() * seeds).map(|i| {
        let (condition, seed) = column(i);
        format!("{}\nseed {}", condition.name(), plan.config.probe.first_seed as usize + seed)
    });
    let rows = plan.config.models.iter().map(|(name, _)| name.clone()).collect();
    labelled([columns.collect(), rows], plan.config.probe.size, SHOWN_PX, &mut |row, i| {
        let (condition, seed) = column(i);
        let of_word = Some(word).filter(|_| condition != Condition::Without);
        let file: PathBuf =
            set.pictures.store.join(&files[places[&Shot { model: row, word: of_word, condition, seed }]]);
        // What could not be made is marked.
        Ok(vodka_images::decode(&file).ok().map(|picture| picture.into_rgb()))
    })
}
