//! Mixes original and new captions: of each picture one or the other, by a share.

use std::{
    fmt,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use vodka_images::relative_name;
use vodka_stage::{Hasher, Interrupt, Outcome, Report, RunKey, is_hidden, record_path};

use crate::{
    Caption, Error, Result,
    caption::{Skipped, resolved},
    caption_table::{self, CaptionPair},
    filter::lines,
    heard,
    place::{Item, place},
    sidecar::check_shared,
};

/// The stage's name in records and on lists.
const STAGE: &str = "mix";

/// A mix as a user writes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixConfig {
    /// The table of original and new captions: CSV, JSONL or Parquet with `image`, `original`, `new` and `model`.
    pub captions: PathBuf,
    /// The share of pictures that get the new caption, 0 to 1.
    pub share: f64,
    /// Other seeds choose other pictures.
    #[serde(default)]
    pub seed: u64,
    /// The folder to write captions to.
    pub output: PathBuf,
}

/// A mix whose settings have been checked; nothing has been read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MixPlan {
    /// The table.
    pub captions: PathBuf,
    /// The share of new captions.
    pub share: f64,
    /// The seed.
    pub seed: u64,
    /// The folder to write.
    pub output: PathBuf,
}

impl MixConfig {
    /// Checks what can be checked without reading.
    ///
    /// # Errors
    /// A share outside 0 to 1; a table that lies in the folder to write.
    pub fn plan(&self) -> Result<MixPlan> {
        let Self { captions, share, seed, output } = self.clone();
        if !(0.0..=1.0).contains(&share) {
            return Err(Error::Range { setting: "share", found: share, expected: "a share from 0 to 1" });
        }
        match resolved(&captions).starts_with(resolved(&output)) {
            true => Err(Error::OutputIsInput { path: output }),
            false => Ok(MixPlan { captions, share, seed, output }),
        }
    }
}

impl MixPlan {
    /// All that the captions depend on.
    pub fn key(&self) -> Result<RunKey> {
        let settings = json!({ "share": self.share });
        Ok(RunKey::new(STAGE, &settings, Some(self.seed)).input("captions", &self.captions, |_| true)?)
    }
}

/// What a mix tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MixEvent {
    /// The table has been read.
    Started {
        /// How many pictures get a caption.
        images: u64,
    },
    /// So many captions are there.
    Wrote {
        /// How many.
        images: u64,
    },
}

/// What a mix has done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MixReport {
    /// How it ended.
    pub outcome: Outcome,
    /// The folder.
    pub output: PathBuf,
    /// How many pictures got their original caption.
    pub original: u64,
    /// How many got the new one.
    pub new: u64,
    /// Pictures that got the one because the other, which was their lot, is empty.
    pub fell_back: Vec<String>,
    /// Pictures without any caption.
    pub skipped: Vec<Skipped>,
}

impl Report for MixReport {
    fn outcome(&self) -> Outcome {
        self.outcome.with_skips(!self.skipped.is_empty())
    }
}

impl fmt::Display for MixReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { original, new, fell_back, skipped, .. } = self;
        let output = self.output.display();
        match self.outcome {
            Outcome::Unchanged => write!(f, "`{output}` is up to date")?,
            Outcome::Interrupted => return write!(f, "stopped before `{output}` was complete"),
            Outcome::Done | Outcome::Skipped => write!(f, "wrote captions to `{output}`")?,
        }
        write!(f, ": {original} original ones, {new} new ones")?;
        if !fell_back.is_empty() {
            write!(f, "\n{} pictures have only one of the two, and got that", fell_back.len())?;
        }
        lines(f, skipped.iter().map(|Skipped { image, reason }| format!("skipped `{image}`: {reason}")))
    }
}

/// Whether a picture gets its new caption.
///
/// It depends on seed, name and share alone: pictures that are added change nothing for the others, and a larger share
/// takes no new caption away. A share of 0 takes none, of 1 all.
pub fn takes_new(image: &str, share: f64, seed: u64) -> bool {
    let mut hasher = Hasher::default();
    hasher.piece(seed.to_string()).piece(image);
    let hash = hasher.finish().to_string();
    // 52 bits of it: a whole number that an f64 holds exactly.
    let lot = u64::from_str_radix(&hash[..13], 16).expect("hashes are written in hexadecimal digits");
    let part = lot as f64 / (1_u64 << 52) as f64;
    part < share
}

/// Writes the captions, unless they are there already: a `.txt` for each picture, in the same subfolders.
///
/// A run that was killed goes on with the same settings or with others. Captions of an earlier mix that nothing asks for now
/// are removed; what no mix has put there, or was edited since, is not touched.
///
/// # Errors
/// A table that cannot be read or names a picture outside of the folder; two pictures that would share a caption; a file in
/// the way; another run that has the folder; a caption that cannot be written.
pub fn run(plan: &MixPlan, interrupt: &Interrupt, on_event: &mut dyn FnMut(MixEvent)) -> Result<MixReport> {
    let asked = plan.clone();
    let (key, captions, report) = match heard(interrupt, move || asked.asked()) {
        Err(Error::Stopped) => return Ok(MixReport { outcome: Outcome::Interrupted, ..plan.empty() }),
        Ok(Asked::There(report)) => return Ok(report),
        Ok(Asked::Chosen(key, captions, report)) => (key, captions, report),
        Err(error) => return Err(error),
    };
    on_event(MixEvent::Started { images: captions.len() as u64 });
    // Hidden captions are not in the hash of the folder.
    let hidden = captions.iter().filter(|(path, _)| path.iter().any(|part| is_hidden(Path::new(part))));
    let hidden = hidden.map(|(path, _)| plan.output.join(path));
    let outputs: Vec<_> = [plan.output.clone()].into_iter().chain(hidden).collect();
    let item = |(path, text): (PathBuf, String)| Item::text(relative_name(&path), text + "\n");
    let items: Vec<_> = captions.into_iter().map(item).collect();
    let on_placed = &mut |images| on_event(MixEvent::Wrote { images });
    if place(&plan.output, STAGE, &items, interrupt, on_placed)?.is_none() {
        return Ok(MixReport { outcome: Outcome::Interrupted, ..report });
    }
    let outputs: Vec<_> = outputs.iter().map(PathBuf::as_path).collect();
    key.write(&record_path(&plan.output), &outputs, &report)?;
    Ok(report)
}

/// What is known before a caption is written.
enum Asked {
    /// The mix is there already.
    There(MixReport),
    Chosen(RunKey, Captions, MixReport),
}

/// The caption files with their texts.
type Captions = Vec<(PathBuf, String)>;

impl MixPlan {
    /// Before anything has been read.
    fn empty(&self) -> MixReport {
        MixReport {
            outcome: Outcome::Done,
            output: self.output.clone(),
            original: 0,
            new: 0,
            fell_back: Vec::new(),
            skipped: Vec::new(),
        }
    }

    /// Reads the table and chooses, unless nothing is to be done.
    fn asked(&self) -> Result<Asked> {
        let key = self.key()?;
        if let Some(report) = key.made::<MixReport>(&record_path(&self.output))? {
            let output = self.output.clone();
            return Ok(Asked::There(MixReport { outcome: Outcome::Unchanged, output, ..report }));
        }
        let (captions, report) = choose(self, &caption_table::read(&self.captions)?)?;
        Ok(Asked::Chosen(key, captions, report))
    }
}

/// The caption files with their texts, and the report.
fn choose(plan: &MixPlan, pairs: &[CaptionPair]) -> Result<(Captions, MixReport)> {
    let mut report = plan.empty();
    let paths =
        pairs.iter().map(|pair| caption_path(&plan.captions, &pair.image)).collect::<Result<Vec<_>>>()?;
    let owners = paths.iter().zip(pairs).map(|(path, pair)| (path.as_path(), pair.image.as_str()));
    check_shared(Path::new(""), owners)?;
    let mut captions = Vec::with_capacity(pairs.len());
    for (CaptionPair { image, original, new, .. }, path) in pairs.iter().zip(paths) {
        let [original, new] = [original, new].map(|text| Caption::new(text).text);
        let wants_new = takes_new(image, plan.share, plan.seed);
        let is_new = if wants_new { !new.is_empty() } else { original.is_empty() };
        let text = if is_new { new } else { original };
        if text.is_empty() {
            report.skipped.push(Skipped { image: image.clone(), reason: "no caption".to_owned() });
            continue;
        }
        if is_new != wants_new {
            report.fell_back.push(image.clone());
        }
        *(if is_new { &mut report.new } else { &mut report.original }) += 1;
        captions.push((path, text));
    }
    if !report.skipped.is_empty() {
        report.outcome = Outcome::Skipped;
    }
    Ok((captions, report))
}

/// Where the caption of a picture lies, in the folder of captions and nowhere else.
fn caption_path(table: &Path, image: &str) -> Result<PathBuf> {
    let path = Path::new(image);
    let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
    match inside && path.file_name().is_some() && !image.contains('\\') {
        true => Ok(path.with_extension("txt")),
        false => Err(Error::OutsideOfFolder { path: table.to_path_buf(), image: image.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_larger_share_keeps_the_new_captions_of_a_smaller(image in ".{1,12}", seed: u64, a in 0.0..=1.0_f64, b in 0.0..=1.0_f64) {
            let (small, large) = (a.min(b), a.max(b));
            prop_assert!(!takes_new(&image, small, seed) || takes_new(&image, large, seed));
            prop_assert!(takes_new(&image, 1.0, seed) && !takes_new(&image, 0.0, seed));
        }
    }

    #[test]
    fn the_share_is_kept_on_average_and_seeds_differ() {
        let names: Vec<_> = (0..20_000).map(|k| format!("{k}.png")).collect();
        for share in [0.1, 0.5, 0.75] {
            let new = names.iter().filter(|name| takes_new(name, share, 7)).count() as f64 / 20_000.0;
            assert!((new - share).abs() < 0.015, "{share}: {new}");
        }
        let both = names.iter().filter(|name| takes_new(name, 0.5, 1) && takes_new(name, 0.5, 2)).count();
        assert!((4_600..5_400).contains(&both), "{both}");
    }
}
