//! What a run knows of each picture: in the journal on disk, with a number for each picture in memory.
//!
//! The journal stays when the run is done. The next run takes from it every picture whose file has not changed, by
//! size and time of modification or else by content, and scores only the others.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use vodka_images::relative_name;
use vodka_stage::{ContentHash, Hasher, Interrupt, Journal, Place, hash_file};

use crate::{
    Result,
    pipeline::Seen,
    read::{Facts, Stamp, Trouble, is_readable},
};

/// A journal entry is a batch, so that what was scored together is kept or lost together.
type Batch = Vec<Entry>;

/// What is known of one picture.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Relative to the image folder, with `/`.
    pub image: String,
    pub finding: Finding,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Finding {
    /// The scores from the floor on, with their places in the vocabulary: the highest first, ties in order of place.
    Tagged {
        scores: Vec<(u32, f32)>,
        facts: Facts,
        /// What the network sees in it, where that is kept.
        embedding: Option<Vec<f32>>,
    },
    Skipped(Trouble),
}

/// What of a picture is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kept {
    /// Scores from here on.
    pub min_score: f32,
    pub embeddings: bool,
}

impl Entry {
    pub fn new(image: String, seen: Seen, kept: Kept) -> Option<Self> {
        let finding = match seen {
            Seen::Scored { scores, embedding, facts } => Finding::Tagged {
                scores: from_floor(&scores, kept.min_score),
                facts: facts.expect("a run asks for them"),
                embedding: embedding.filter(|_| kept.embeddings),
            },
            Seen::Skipped(trouble) => Finding::Skipped(trouble),
            Seen::Same(_) => return None,
        };
        Some(Self { image, finding })
    }

    /// The file it was made from; none where that could not be read.
    fn content(&self) -> Option<(Stamp, ContentHash)> {
        match &self.finding {
            Finding::Tagged { facts, .. } => Some((facts.stamp, facts.sha256)),
            Finding::Skipped(trouble) => trouble.content,
        }
    }

    /// The same with the file's new stamp.
    pub fn restamped(mut self, new: Stamp) -> Self {
        match &mut self.finding {
            Finding::Tagged { facts, .. } => facts.stamp = new,
            Finding::Skipped(trouble) => trouble.content = trouble.content.map(|(_, hash)| (new, hash)),
        }
        self
    }

    /// Whether the file at `path` is still the one it was made from.
    fn is_current(&self, path: &Path) -> bool {
        match self.content() {
            Some((stamp, _)) => Stamp::of(path) == Some(stamp),
            None => !is_readable(path),
        }
    }
}

fn from_floor(scores: &[f32], min_score: f32) -> Vec<(u32, f32)> {
    // Adding 0 turns -0 into 0.
    let high = scores.iter().enumerate().filter(|(_, score)| **score >= min_score);
    let mut high: Vec<_> = high.map(|(place, score)| (place as u32, score + 0.0)).collect();
    high.sort_by(|(place_a, a), (place_b, b)| b.total_cmp(a).then(place_a.cmp(place_b)));
    high
}

/// Where an entry is: the place of its batch, and its number there. It takes eight bytes, for there is one for each of
/// millions of pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot(u64);

impl Slot {
    const NONE: Self = Self(0);
    const NUMBER_BITS: u32 = 12;

    fn new(place: Place, number: usize) -> Self {
        assert!(number < 1 << Self::NUMBER_BITS, "a batch of {number} pictures");
        Self(place << Self::NUMBER_BITS | number as u64)
    }

    fn batch(self) -> Place {
        self.0 >> Self::NUMBER_BITS
    }

    fn number(self) -> usize {
        (self.0 & ((1 << Self::NUMBER_BITS) - 1)) as usize
    }
}

/// The largest batch whose entries a slot can tell apart; more than anybody wants, or fixes in a graph.
pub(crate) const BATCH_MAX: usize = 1 << Slot::NUMBER_BITS;

/// The largest batch of a model with so many labels whose entry a journal takes, should every score be kept.
pub(crate) fn batch_max(labels: usize) -> usize {
    // A place of at most 5 bytes and a score of 4; the name, the facts and the embedding.
    const SCORE: u64 = 9;
    const BESIDE: u64 = 1 << 16;
    (Journal::ENTRY_MAX / (labels as u64 * SCORE + BESIDE)).clamp(1, BATCH_MAX as u64) as usize
}

/// The results of a run so far.
pub(crate) struct Results<'a> {
    journal: Journal,
    images: &'a [PathBuf],
    slots: Vec<Slot>,
    /// Entries of pictures whose stamp has changed since.
    stale: HashMap<usize, (ContentHash, Slot)>,
    /// How many batches the journal holds, also those that nobody wants any more.
    batches: usize,
    /// The batch that was read last: entries are mostly read in the order in which they were written.
    last: Option<(Place, Batch)>,
}

impl<'a> Results<'a> {
    /// Opens the journal at `path` and keeps what still holds for `images`, which lie below `root`. `fits` refuses entries
    /// that no run with this key can have written.
    pub fn open(
        path: PathBuf,
        key: ContentHash,
        root: &Path,
        images: &'a [PathBuf],
        fits: impl Fn(&Entry) -> bool,
    ) -> Result<Self> {
        let mut slots = vec![Slot::NONE; images.len()];
        let mut stale = HashMap::new();
        let mut batches = 0;
        let journal = Journal::open(path, key, |place, batch: Batch| {
            batches += 1;
            for (number, entry) in batch.iter().enumerate() {
                let slot = Slot::new(place, number);
                for index in places_of(images, &entry.image).filter(|_| fits(entry)) {
                    if entry.is_current(&root.join(&images[index])) {
                        slots[index] = slot;
                        stale.remove(&index);
                    } else if let Some((_, hash)) = entry.content() {
                        stale.insert(index, (hash, slot));
                    }
                }
            }
        })?;
        Ok(Self { journal, images, slots, stale, batches, last: None })
    }

    /// The places of the pictures that nothing is known of.
    pub fn todo(&self) -> Vec<usize> {
        (0..self.slots.len()).filter(|index| self.slots[*index] == Slot::NONE).collect()
    }

    /// The hashes of the pictures whose stamp alone may have changed.
    pub fn known(&self) -> HashMap<usize, ContentHash> {
        self.stale.iter().map(|(index, (hash, _))| (*index, *hash)).collect()
    }

    /// Adds a batch: pictures by their places in the list, each with what became of it.
    pub fn add(&mut self, batch: Vec<(usize, Seen)>, kept: Kept) -> Result<Batch> {
        let (mut indices, mut entries) = (Vec::new(), Vec::new());
        for (index, seen) in batch {
            let entry = match seen {
                Seen::Same(stamp) => self.stale_entry(index)?.restamped(stamp),
                seen => Entry::new(relative_name(&self.images[index]), seen, kept)
                    .expect("only the same has no entry of its own"),
            };
            indices.push(index);
            entries.push(entry);
        }
        let place = self.journal.append(&entries)?;
        self.batches += 1;
        for (number, index) in indices.into_iter().enumerate() {
            self.slots[index] = Slot::new(place, number);
        }
        Ok(entries)
    }

    fn stale_entry(&mut self, index: usize) -> Result<Entry> {
        let (_, slot) = self.stale[&index];
        self.at(slot)
    }

    /// What is known of the picture at a place of the list.
    ///
    /// # Panics
    /// When nothing is.
    pub fn entry(&mut self, index: usize) -> Result<Entry> {
        let slot = self.slots[index];
        assert!(slot != Slot::NONE, "picture {index} is not done");
        self.at(slot)
    }

    fn at(&mut self, slot: Slot) -> Result<Entry> {
        let batch = match self.last.take() {
            Some((place, batch)) if place == slot.batch() => batch,
            _ => self.journal.read(slot.batch())?,
        };
        let entry = batch[slot.number()].clone();
        self.last = Some((slot.batch(), batch));
        Ok(entry)
    }

    /// Lets the journal go, and first makes it smaller where most of it is of no use any more.
    pub fn finish(self, key: ContentHash) -> Result<()> {
        let used: BTreeSet<Place> = self.slots.iter().map(|slot| slot.batch()).collect();
        if used.len() < self.batches / 2 {
            let used: Vec<_> = used.into_iter().collect();
            self.journal.compact::<Batch>(key, &used)?;
        }
        Ok(())
    }
}

/// The places of a name in the list, which is in order of names. Names that are not UTF-8 may look the same.
fn places_of(images: &[PathBuf], name: &str) -> Range<usize> {
    let start = images.partition_point(|path| relative_name(path).as_str() < name);
    let same = images[start..].iter().take_while(|path| relative_name(path) == name).count();
    start..start + same
}

/// The hash of all pictures: of their names and contents, in order.
#[derive(Default)]
pub(crate) struct ImagesHash(Hasher);

impl ImagesHash {
    pub fn add(&mut self, name: &str, content: Option<ContentHash>) {
        let content = content.map_or("unreadable".to_owned(), |hash| hash.to_string());
        self.0.piece(name).piece(content);
    }

    pub fn add_entry(&mut self, entry: &Entry) {
        self.add(&entry.image, entry.content().map(|(_, hash)| hash));
    }

    pub fn finish(self) -> ContentHash {
        self.0.finish()
    }

    /// The hash of `images` below `root`; none if interrupted. Only those are read of which the journal at `path` knows
    /// nothing.
    pub fn of(
        path: &Path,
        key: ContentHash,
        root: &Path,
        images: &[PathBuf],
        interrupt: &Interrupt,
    ) -> Result<Option<ContentHash>> {
        let mut known: Vec<Option<Option<ContentHash>>> = vec![None; images.len()];
        Journal::look(path, key, |_, batch: Batch| {
            for entry in batch {
                for index in places_of(images, &entry.image) {
                    let current = entry.is_current(&root.join(&images[index]));
                    known[index] = current.then(|| entry.content().map(|(_, hash)| hash));
                }
            }
        })?;
        let mut hash = Self::default();
        for (path, known) in images.iter().zip(known) {
            if interrupt.is_raised() {
                return Ok(None);
            }
            let full = root.join(path);
            let content = || is_readable(&full).then(|| hash_file(&full).ok()).flatten();
            hash.add(&relative_name(path), known.unwrap_or_else(content));
        }
        Ok(Some(hash.finish()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_whose_scores_are_all_kept_fits_an_entry() {
        let labels = 70_527;
        let batch = batch_max(labels);
        assert!((1000..2000).contains(&batch), "{batch}");
        // The longest that an entry can be: the name that a file system takes, and a place of as many bytes as there are.
        let tagged = Finding::Tagged {
            scores: vec![(u32::MAX, 1.0); labels],
            facts: Facts {
                stamp: Stamp::of(Path::new(".")).unwrap(),
                sha256: vodka_stage::hash_bytes(""),
                width: u32::MAX,
                height: u32::MAX,
                looks: None,
            },
            embedding: Some(vec![1.0; 8192]),
        };
        let entry = Entry { image: "n".repeat(4096), finding: tagged };
        let dir = tempfile::tempdir().unwrap();
        let mut journal =
            Journal::open(dir.path().join("j"), vodka_stage::hash_bytes(""), |_, _: Batch| {}).unwrap();
        let first = journal.append(&vec![entry]).unwrap();
        let bytes = journal.append(&Batch::new()).unwrap() - first;
        assert!(bytes * batch as u64 <= Journal::ENTRY_MAX, "{bytes}");
        assert_eq!(batch_max(10_861), BATCH_MAX, "what models have is no limit");
    }
}
