//! Decoding ahead of the model: threads prepare pictures while the model scores those before them.

use std::{
    panic::{self, UnwindSafe},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use ndarray::ArrayView1;
use vodka_images::{DecodeOptions, Error as ImageError, Fault, RgbImage, decode_with, relative_name};

use crate::{Result, Tagger};

/// Pictures to be scored, and how.
pub(crate) struct Job<'a> {
    pub tagger: &'a Tagger,
    /// The folder that the paths are relative to.
    pub root: &'a Path,
    pub paths: &'a [PathBuf],
    pub decode: DecodeOptions,
    /// How many pictures the model gets at once.
    pub batch: usize,
    /// How many threads decode.
    pub threads: usize,
}

/// What became of one picture.
pub(crate) enum Scored<'a> {
    /// Its score for each label.
    Scores(ArrayView1<'a, f32>),
    /// Why it cannot be scored.
    Skipped(String),
}

/// A prepared picture, or why there is none.
type Prepared = Result<RgbImage, String>;

impl Job<'_> {
    /// Scores all pictures and hands over batch after batch, in the order of the paths, until `on_batch` says that
    /// it is enough.
    ///
    /// Which pictures share a batch depends on nothing but the list and the batch size. Each thread has its own share
    /// of the list and its own channel, so that the order needs no sorting and memory stays bounded: two batches wait.
    pub fn run(&self, mut on_batch: impl FnMut(&[(String, Scored)]) -> Result<bool>) -> Result<()> {
        let threads = self.threads.min(self.paths.len()).max(1);
        let waiting = (2 * self.batch).div_ceil(threads);
        thread::scope(|scope| {
            let (senders, receivers): (Vec<_>, Vec<_>) = (0..threads).map(|_| sync_channel(waiting)).unzip();
            for (share, sender) in senders.into_iter().enumerate() {
                scope.spawn(move || self.prepare_share(share, threads, &sender));
            }
            for (number, paths) in self.paths.chunks(self.batch).enumerate() {
                let first = number * self.batch;
                let Some(prepared) = receive(&receivers, first..first + paths.len()) else {
                    // A thread has panicked, and the scope passes that on.
                    break;
                };
                if !self.score(paths, prepared, &mut on_batch)? {
                    break;
                }
            }
            // Here the receivers go, which ends the threads that still have something to send.
            Ok(())
        })
    }

    fn prepare_share(&self, share: usize, threads: usize, sender: &SyncSender<Prepared>) {
        for path in self.paths.iter().skip(share).step_by(threads) {
            if sender.send(self.prepare(path)).is_err() {
                return;
            }
        }
    }

    fn prepare(&self, path: &Path) -> Prepared {
        if path.to_str().is_none() {
            return Err("the name is not UTF-8".to_owned());
        }
        guarded(|| match decode_with(&self.root.join(path), &self.decode) {
            Ok(decoded) => Ok(self.tagger.prepare(&decoded.picture)),
            Err(ImageError::Picture { source, .. }) => Err(source.reason()),
            Err(error) => Err(error.to_string()),
        })
    }

    fn score(
        &self,
        paths: &[PathBuf],
        prepared: Vec<Prepared>,
        on_batch: &mut impl FnMut(&[(String, Scored)]) -> Result<bool>,
    ) -> Result<bool> {
        let mut images = Vec::new();
        let mut failures = Vec::new();
        for picture in prepared {
            failures.push(picture.map(|image| images.push(image)).err());
        }
        let scores = self.tagger.score(&images)?; // (pictures that could be read, labels)
        let mut rows = scores.outer_iter();
        let scored: Vec<_> = paths
            .iter()
            .zip(failures)
            .map(|(path, failure)| match failure {
                Some(reason) => (relative_name(path), Scored::Skipped(reason)),
                None => (relative_name(path), Scored::Scores(rows.next().expect("a row for each picture"))),
            })
            .collect();
        on_batch(&scored)
    }
}

/// The pictures with these places in the list. `None` where a thread is gone.
fn receive(receivers: &[Receiver<Prepared>], places: std::ops::Range<usize>) -> Option<Vec<Prepared>> {
    places.map(|place| receivers[place % receivers.len()].recv().ok()).collect()
}

/// Makes of a panic a reason to skip the picture: one that nobody has thought of must not end a run of a million.
fn guarded<T>(work: impl FnOnce() -> Result<T, String> + UnwindSafe) -> Result<T, String> {
    panic::catch_unwind(work).unwrap_or_else(|_| Err(Fault::Panic.reason()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_skips_one_picture() {
        assert_eq!(guarded(|| Ok(1)), Ok(1));
        assert_eq!(
            guarded::<()>(|| panic!("a case of its own")),
            Err("the decoder fails on the file".into())
        );
    }
}
