//! Mixes original and new captions: of each picture one or the other, by a share.

use std::{
    collections::HashMap,
    fmt, fs,
    path::{Component, Path, PathBuf},
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;
use vodka_stage::{
    ContentHash, Error as StageError, FolderLock, Hasher, Interrupt, Outcome, Report, RunKey, RunRecord,
    create_dir, hash_file, hash_tree, record_path, write_atomic,
};

use crate::{
    Caption, Error, Result,
    caption::{Skipped, resolved},
    caption_table::{self, CaptionPair},
    filter::lines,
    sidecar::check_shared,
};

/// So many captions are written between two looks at the interrupt.
const BATCH: usize = 128;

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
        Ok(RunKey::new("mix", &settings, Some(self.seed)).input("captions", &self.captions, |_| true)?)
    }
}

/// What a mix tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MixEvent {
    /// The table has been read.
    Started {
        /// How many pictures it has.
        images: u64,
    },
    /// So many captions are written.
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
            Outcome::Interrupted => return write!(f, "stopped before `{output}` was written"),
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
/// The folder is written beside its place and takes it as a whole. One that is there must be from an earlier mix and
/// unchanged.
///
/// # Errors
/// A table that cannot be read or names a picture outside of the folder; two pictures that would share a caption; another
/// folder in the way; another run that writes the folder; a caption that cannot be written.
pub fn run(plan: &MixPlan, interrupt: &Interrupt, on_event: &mut dyn FnMut(MixEvent)) -> Result<MixReport> {
    let key = plan.key()?;
    let record = record_path(&plan.output);
    if let Some(report) = key.made::<MixReport>(&record)? {
        return Ok(MixReport { outcome: Outcome::Unchanged, output: plan.output.clone(), ..report });
    }
    check_ours(&plan.output, &record)?;
    let pairs = caption_table::read(&plan.captions)?;
    on_event(MixEvent::Started { images: pairs.len() as u64 });
    let (captions, report) = choose(plan, &pairs)?;
    let partial = beside(&plan.output, "partial");
    // The lock of a killed run went with it, its folder did not.
    drop(FolderLock::take(&partial)?);
    remove(&partial)?;
    create_dir(&partial)?;
    let _lock = FolderLock::take(&partial)?;
    for (k, batch) in captions.chunks(BATCH).enumerate() {
        on_event(MixEvent::Wrote { images: (k * BATCH) as u64 });
        if interrupt.is_raised() {
            remove(&partial)?;
            return Ok(MixReport { outcome: Outcome::Interrupted, ..report });
        }
        batch
            .par_iter()
            .try_for_each(|(path, text)| write_atomic(partial.join(path), format!("{text}\n")))?;
    }
    let write_record = |record: &Path, folder: &Path| -> Result<()> {
        // Hidden captions are not in the hash of the folder.
        let hidden = captions.iter().filter(|(path, _)| is_unhashed(path)).map(|(path, _)| folder.join(path));
        let outputs: Vec<_> = [folder.to_path_buf()].into_iter().chain(hidden).collect();
        key.write(record, &outputs.iter().map(PathBuf::as_path).collect::<Vec<_>>(), &report)?;
        Ok(())
    };
    // A run that is killed from here on leaves a folder that the one or the other record vouches for, or none.
    let new_record = record_path(&partial);
    write_record(&new_record, &partial)?;
    let old = beside(&plan.output, "old.partial");
    remove(&old)?;
    if plan.output.exists() {
        rename(&plan.output, &old)?;
    }
    rename(&partial, &plan.output)?;
    write_record(&record, &plan.output)?;
    fs::remove_file(&new_record).map_err(|source| failed(&new_record, source))?;
    remove(&old)?;
    Ok(report)
}

/// A hidden name beside the output: of the folder that is being written, or of the one that it replaces.
fn beside(output: &Path, ending: &str) -> PathBuf {
    output.with_file_name(format!(".{}.{ending}", output.file_name().unwrap_or_default().to_string_lossy()))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    Ok(fs::rename(from, to).map_err(|source| failed(to, source))?)
}

fn failed(path: &Path, source: std::io::Error) -> StageError {
    StageError::Write { path: path.to_path_buf(), source }
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(failed(folder, source).into()),
        _ => Ok(()),
    }
}

/// A folder that is replaced must be one that a mix has made, as it has made it, with nothing added.
fn check_ours(output: &Path, record: &Path) -> Result<()> {
    let there = match fs::read_dir(output) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(source) => return Err(Error::Read { path: output.to_path_buf(), source }),
    };
    if !there {
        return Ok(());
    }
    // The record of a run that was killed before it could write the one beside the folder.
    let new_record = record_path(&beside(output, "partial"));
    match holds_only(output, record)? {
        true => Ok(()),
        // It is kept until this run has written its own.
        false if holds_only(output, &new_record)? => rename(&new_record, record),
        false => Err(Error::FolderInTheWay { path: output.to_path_buf() }),
    }
}

/// Whether a folder holds what a record says, and nothing else.
fn holds_only(output: &Path, record: &Path) -> Result<bool> {
    let made = match record.exists().then(|| RunRecord::read(record)) {
        Some(Ok(made)) if made.stage == "mix" => made,
        _ => return Ok(false),
    };
    // The folder may have been recorded under the name that it had before.
    let below = |path: &Path| -> PathBuf { path.components().skip(1).collect() };
    let made: HashMap<_, _> = made.outputs.iter().map(|made| (below(&made.path), made.sha256)).collect();
    let is = |path: &Path, hash: ContentHash| made.get(path) == Some(&hash);
    let mut unhashed = Vec::new();
    find_unhashed(output, Path::new(""), &mut unhashed)?;
    for path in unhashed {
        let file = output.join(&path);
        if !file.is_file() || !is(&path, hash_file(file)?) {
            return Ok(false);
        }
    }
    Ok(is(Path::new(""), hash_tree(output, |_| true)?))
}

/// Whether the hash of a folder leaves a file in it out: what is hidden, and run records.
fn is_unhashed(path: &Path) -> bool {
    let is_hidden = |part: Component<'_>| part.as_os_str().as_encoded_bytes().starts_with(b".");
    path.components().any(is_hidden) || path.to_string_lossy().ends_with(".run.json")
}

/// Finds the files in a folder that its hash leaves out.
fn find_unhashed(root: &Path, folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let path = root.join(folder);
    let unread = |source| Error::Read { path: path.clone(), source };
    for entry in fs::read_dir(&path).map_err(unread)? {
        let entry = entry.map_err(unread)?;
        let name = folder.join(entry.file_name());
        if entry.file_type().map_err(unread)?.is_dir() {
            find_unhashed(root, &name, found)?;
        } else if is_unhashed(&name) {
            found.push(name);
        }
    }
    Ok(())
}

/// The caption files with their texts, and the report.
fn choose(plan: &MixPlan, pairs: &[CaptionPair]) -> Result<(Vec<(PathBuf, String)>, MixReport)> {
    let mut report = MixReport {
        outcome: Outcome::Done,
        output: plan.output.clone(),
        original: 0,
        new: 0,
        fell_back: Vec::new(),
        skipped: Vec::new(),
    };
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
