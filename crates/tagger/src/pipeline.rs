//! Decoding ahead of the network: threads prepare pictures while the network scores those before them.
//!
//! Decoders take the next picture from one counter, lanes take the next whole batch, and the caller gets the scored
//! batches as they end. The gate lets no decoder further ahead of the oldest unfinished batch than a window, which is
//! what bounds the memory.

use std::{
    collections::BTreeMap,
    ops::{ControlFlow, Range},
    path::PathBuf,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use ndarray::Array2;
use vodka_images::{RgbImage, relative_name};

use crate::{
    Error, Result, Scores,
    read::{Facts, Reader, Stamp, Trouble},
};

/// How often all that is at work at a time may wait as well: enough for a slow picture not to stop the others.
const WINDOW: usize = 4;

/// A network as the pipeline sees it.
pub(crate) trait Scorer: Sync {
    /// The scores of pictures that [`Reader`] prepared for this network, one row each. A row with what is no number is of a
    /// picture that the network cannot score.
    fn score(&self, prepared: &[&[RgbImage]]) -> Result<Scores>;
}

/// Pictures to be scored, and how.
pub(crate) struct Job<'a> {
    pub scorer: &'a dyn Scorer,
    pub reader: &'a Reader<'a>,
    /// All pictures, relative to the folder that the reader knows.
    pub paths: &'a [PathBuf],
    /// The places of those to be scored.
    pub todo: &'a [usize],
    /// How many pictures the network gets at once.
    pub batch: usize,
    /// How many batches it gets at the same time.
    pub lanes: usize,
    /// How many threads decode.
    pub decoders: usize,
}

/// What became of one picture.
#[derive(Debug)]
pub(crate) enum Seen {
    /// Its score for each label, its embedding where the network has one, and what else there is to know where that was asked
    /// for.
    Scored { scores: Vec<f32>, embedding: Option<Vec<f32>>, facts: Option<Facts> },
    /// Its content is what it was; only the stamp is new.
    Same(Stamp),
    /// It cannot be scored.
    Skipped(Trouble),
}

/// Pictures that were scored together.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Places in [`Job::todo`].
    pub places: Range<usize>,
    /// One for each of the places.
    pub seen: Vec<Seen>,
}

/// How long the network was at work, all lanes together.
#[derive(Debug, Default)]
pub(crate) struct Load(AtomicU64);

impl Load {
    fn add(&self, time: Duration) {
        self.0.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    pub fn busy(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// What a decoder makes of a path.
pub(crate) enum Prepared {
    /// A picture as each network wants to see it.
    Picture(Vec<RgbImage>, Option<Facts>),
    /// What became of it instead.
    Done(Seen),
    /// The folder of all pictures is there no more: a disk was unplugged, say.
    Gone(PathBuf),
}

impl Job<'_> {
    /// Scores the pictures and hands over each batch when it is done, in no order, until `on_batch` says that it is
    /// enough; then the batches that the network has begun are still handed over.
    ///
    /// No more batches are begun and not yet through `on_batch` than there are lanes: a lane begins the next when its last one
    /// is.
    ///
    /// Which pictures share a batch depends on nothing but the list and the batch size.
    pub fn run(&self, load: &Load, on_batch: &mut dyn FnMut(Batch) -> Result<ControlFlow<()>>) -> Result<()> {
        let gate = Gate::new(WINDOW * (self.lanes * self.batch + self.decoders));
        let next = AtomicUsize::new(0);
        let (prepared, waiting) = channel();
        let (scored, batches) = sync_channel(0);
        let assembler = Mutex::new(Assembler { job: self, prepared: waiting, waiting: BTreeMap::new() });
        thread::scope(|scope| {
            for _ in 0..self.decoders {
                let (gate, next, prepared) = (&gate, &next, prepared.clone());
                scope.spawn(move || self.decode(gate, next, &prepared));
            }
            drop(prepared);
            for _ in 0..self.lanes {
                let (gate, assembler, scored) = (&gate, &assembler, scored.clone());
                scope.spawn(move || self.infer(gate, assembler, load, &scored));
            }
            drop(scored);
            // However this ends, nobody is left waiting at the gate.
            let _closed = CloseAtEnd(&gate);
            let (mut oldest, mut ahead) = (0, BTreeMap::new());
            for batch in batches {
                let Some(batch) = batch.transpose()? else { continue };
                ahead.insert(batch.places.start, batch.places.end);
                if on_batch(batch)?.is_break() {
                    gate.close();
                }
                while let Some(end) = ahead.remove(&oldest) {
                    oldest = end;
                }
                gate.open_to(oldest);
            }
            Ok(())
        })
    }

    fn decode(&self, gate: &Gate, next: &AtomicUsize, prepared: &Sender<(usize, Prepared)>) {
        let _closed = CloseAtPanic(gate);
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            if place >= self.todo.len() || !gate.enter(place) {
                return;
            }
            let index = self.todo[place];
            if prepared.send((place, self.reader.prepare(index, &self.paths[index]))).is_err() {
                return;
            }
        }
    }

    fn infer(
        &self,
        gate: &Gate,
        assembler: &Mutex<Assembler>,
        load: &Load,
        scored: &SyncSender<Option<Result<Batch>>>,
    ) {
        let _closed = CloseAtPanic(gate);
        loop {
            let next = lock(assembler).next();
            let Some((places, prepared)) = next.filter(|_| !gate.is_closed()) else { return };
            let batch = self.score(places, prepared, load);
            // The second is taken when what comes of the first is done.
            if scored.send(Some(batch)).and_then(|()| scored.send(None)).is_err() {
                return;
            }
        }
    }

    fn score(&self, places: Range<usize>, prepared: Vec<Prepared>, load: &Load) -> Result<Batch> {
        if let Some(Prepared::Gone(path)) = prepared.iter().find(|one| matches!(one, Prepared::Gone(_))) {
            return Err(Error::NoFolder { what: "the pictures", path: path.clone() });
        }
        let pictures: Vec<&[RgbImage]> = prepared.iter().filter_map(Prepared::images).collect();
        let start = Instant::now();
        let Scores { scores, embeddings } = if pictures.is_empty() {
            Scores { scores: Array2::zeros((0, 0)), embeddings: None }
        } else {
            self.scorer.score(&pictures).map_err(|source| self.failed(&places, source))?
        };
        load.add(start.elapsed());
        let mut rows = scores.outer_iter();
        let mut row = || rows.next().expect("a row for each picture").to_vec();
        let mut embeddings = embeddings.as_ref().map(|rows| rows.outer_iter());
        let mut embedding = || embeddings.as_mut()?.next().map(|row| row.to_vec());
        let seen_all = prepared
            .into_iter()
            .map(|one| match one {
                Prepared::Picture(_, facts) => seen(row(), embedding(), facts),
                Prepared::Done(seen) => seen,
                Prepared::Gone(_) => unreachable!("a batch with such a one is an error"),
            })
            .collect();
        Ok(Batch { places, seen: seen_all })
    }

    /// A failure with the pictures that it happened to.
    fn failed(&self, places: &Range<usize>, source: Error) -> Error {
        let name = |place: usize| relative_name(&self.paths[self.todo[place]]);
        let (first, more) = (name(places.start), places.len() - 1);
        Error::Scoring { first, more, source: Box::new(source) }
    }
}

/// What became of a picture that the network has seen.
fn seen(scores: Vec<f32>, embedding: Option<Vec<f32>>, facts: Option<Facts>) -> Seen {
    if scores.iter().chain(embedding.iter().flatten()).all(|value| value.is_finite()) {
        return Seen::Scored { scores, embedding, facts };
    }
    let reason = "what the network makes of it is no number".to_owned();
    Seen::Skipped(Trouble { reason, content: facts.map(|facts| (facts.stamp, facts.sha256)) })
}

impl Prepared {
    fn images(&self) -> Option<&[RgbImage]> {
        match self {
            Self::Picture(images, _) => Some(images),
            Self::Done(_) | Self::Gone(_) => None,
        }
    }
}

/// Puts prepared pictures together to batches.
struct Assembler<'a> {
    job: &'a Job<'a>,
    prepared: Receiver<(usize, Prepared)>,
    /// Batches that are not whole yet, by number.
    waiting: BTreeMap<usize, Vec<(usize, Prepared)>>,
}

impl Assembler<'_> {
    /// The next whole batch; none when all are gone or no more pictures come.
    fn next(&mut self) -> Option<(Range<usize>, Vec<Prepared>)> {
        loop {
            let (place, one) = self.prepared.recv().ok()?;
            let number = place / self.job.batch;
            let first = number * self.job.batch;
            let places = first..(first + self.job.batch).min(self.job.todo.len());
            let batch = self.waiting.entry(number).or_default();
            batch.push((place, one));
            if batch.len() == places.len() {
                let mut batch = self.waiting.remove(&number)?;
                batch.sort_by_key(|(place, _)| *place);
                return Some((places, batch.into_iter().map(|(_, one)| one).collect()));
            }
        }
    }
}

/// Keeps the decoders from running ahead.
struct Gate {
    window: usize,
    state: Mutex<GateState>,
    moved: Condvar,
}

#[derive(Default)]
struct GateState {
    /// Up to where all pictures are through.
    oldest: usize,
    closed: bool,
}

impl Gate {
    fn new(window: usize) -> Self {
        Self { window, state: Mutex::default(), moved: Condvar::new() }
    }

    /// Waits until this place is within the window; false where the gate is closed.
    fn enter(&self, place: usize) -> bool {
        let state = lock(&self.state);
        let must_wait = |state: &mut GateState| !state.closed && place >= state.oldest + self.window;
        let state = self.moved.wait_while(state, must_wait).unwrap_or_else(PoisonError::into_inner);
        !state.closed
    }

    fn open_to(&self, oldest: usize) {
        lock(&self.state).oldest = oldest;
        self.moved.notify_all();
    }

    fn close(&self) {
        lock(&self.state).closed = true;
        self.moved.notify_all();
    }

    fn is_closed(&self) -> bool {
        lock(&self.state).closed
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct CloseAtEnd<'a>(&'a Gate);

impl Drop for CloseAtEnd<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A panic of one thread must end the others; the scope passes it on.
struct CloseAtPanic<'a>(&'a Gate);

impl Drop for CloseAtPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, sync::atomic::AtomicUsize};

    use vodka_images::DecodeOptions;
    use vodka_stage::{ContentHash, hash_file};
    use vodka_testkit::fixture;

    use super::*;
    use crate::read::Memory;

    /// Scores a picture by its first value, and counts.
    #[derive(Default)]
    struct Fake {
        scored: AtomicUsize,
        largest: AtomicUsize,
        /// Pictures with this first value get no number.
        fails_at: Option<u8>,
        fails: bool,
        panics: bool,
    }

    impl Scorer for Fake {
        fn score(&self, prepared: &[&[RgbImage]]) -> Result<Scores> {
            assert!(!self.panics, "a network that nobody has thought of");
            if self.fails {
                return Err(Error::Constant { model: "fake".into() });
            }
            self.scored.fetch_add(prepared.len(), Ordering::Relaxed);
            self.largest.fetch_max(prepared.len(), Ordering::Relaxed);
            let first = |images: &&[RgbImage]| match images[0].as_raw()[0] {
                value if Some(value) == self.fails_at => f32::NAN,
                value => f32::from(value),
            };
            let scores = prepared.iter().map(first).collect();
            let scores = Array2::from_shape_vec((prepared.len(), 1), scores).unwrap();
            Ok(Scores { scores, embeddings: None })
        }
    }

    const PICTURES: [&str; 4] = ["odd.png", "grey.png", "rgba.png", "row.png"];

    /// `count` pictures, every fifth of them broken.
    fn folder(count: usize) -> (tempfile::TempDir, Vec<PathBuf>) {
        let dir = tempfile::tempdir().unwrap();
        let name = |i: usize| PathBuf::from(format!("{i:04}.png"));
        for i in 0..count {
            let at = dir.path().join(name(i));
            match i % 5 {
                4 => fs::write(at, "no picture").map(|()| 0),
                _ => fs::copy(fixture("images/awkward").join(PICTURES[i % 4]), at),
            }
            .unwrap();
        }
        (dir, (0..count).map(name).collect())
    }

    type Seens = Vec<(usize, Option<f32>)>;

    /// What became of each picture, until `enough` of them are through.
    fn run_with(
        root: &Path,
        paths: &[PathBuf],
        fake: &Fake,
        [batch, lanes, decoders]: [usize; 3],
        known: &(dyn Fn(usize) -> Option<ContentHash> + Sync),
        enough: usize,
    ) -> Result<Seens> {
        let reader = Reader {
            root,
            decode: DecodeOptions::default(),
            prepare: &|decoded| vec![decoded.picture.clone().into_rgb()],
            measure: false,
            known: Some(known),
            memory: Memory::new(&DecodeOptions::default(), decoders),
        };
        let todo: Vec<_> = (0..paths.len()).collect();
        let job = Job { scorer: fake, reader: &reader, paths, todo: &todo, batch, lanes, decoders };
        let mut seen = Vec::new();
        job.run(&Load::default(), &mut |batch| {
            seen.extend(batch.places.zip(batch.seen).map(|(place, seen)| match seen {
                Seen::Scored { scores, .. } => (place, Some(scores[0])),
                _ => (place, None),
            }));
            Ok(if seen.len() >= enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        seen.sort_by_key(|(place, _)| *place);
        Ok(seen)
    }

    #[test]
    fn each_picture_is_seen_once_whatever_the_threads() {
        let (dir, paths) = folder(23);
        let nothing = |_| None;
        let one = run_with(dir.path(), &paths, &Fake::default(), [1, 1, 1], &nothing, usize::MAX).unwrap();
        assert_eq!(one.iter().map(|(place, _)| *place).collect::<Vec<_>>(), (0..23).collect::<Vec<_>>());
        assert_eq!(one.iter().filter(|(_, score)| score.is_none()).count(), 4);
        for numbers in [[1, 3, 2], [4, 1, 3], [7, 2, 5], [100, 2, 2], [5, 4, 1]] {
            let fake = Fake::default();
            let seen = run_with(dir.path(), &paths, &fake, numbers, &nothing, usize::MAX).unwrap();
            assert_eq!(seen, one, "{numbers:?}");
            assert_eq!(fake.scored.into_inner(), 19);
            assert!(fake.largest.into_inner() <= numbers[0]);
        }
    }

    #[test]
    fn what_was_begun_is_handed_over_and_no_more() {
        let (dir, paths) = folder(200);
        let fake = Fake::default();
        let seen = run_with(dir.path(), &paths, &fake, [2, 2, 3], &|_| None, 2).unwrap();
        let scored = seen.iter().filter(|(_, score)| score.is_some()).count();
        assert_eq!(scored, fake.scored.into_inner(), "all that the network has begun");
        assert!(seen.len() < 20, "{}", seen.len());
        assert!(run_with(dir.path(), &[], &Fake::default(), [2, 2, 3], &|_| None, 1).unwrap().is_empty());
    }

    #[test]
    fn a_picture_whose_score_is_no_number_is_skipped_and_the_others_are_not() {
        let (dir, paths) = folder(8);
        let whole = run_with(dir.path(), &paths, &Fake::default(), [2, 1, 1], &|_| None, usize::MAX).unwrap();
        let bad = whole[1].1.unwrap();
        let fake = Fake { fails_at: Some(bad as u8), ..Fake::default() };
        let seen = run_with(dir.path(), &paths, &fake, [2, 1, 1], &|_| None, usize::MAX).unwrap();
        let expected = whole.iter().map(|(place, score)| (*place, score.filter(|score| *score != bad)));
        assert_eq!(seen, expected.collect::<Vec<_>>());
        assert!(seen.iter().filter(|(_, score)| score.is_none()).count() < 8);
        let facts = Facts {
            stamp: Stamp::of(&dir.path().join(&paths[0])).unwrap(),
            sha256: hash_file(dir.path().join(&paths[0])).unwrap(),
            width: 1,
            height: 1,
            looks: None,
        };
        let Seen::Skipped(trouble) = super::seen(vec![0.5, f32::NAN], None, Some(facts.clone())) else {
            panic!("it has no score");
        };
        assert_eq!(trouble.reason, "what the network makes of it is no number");
        assert_eq!(trouble.content, Some((facts.stamp, facts.sha256)), "the next run need not try again");
        let seen = super::seen(vec![0.5], Some(vec![f32::INFINITY]), None);
        assert!(matches!(seen, Seen::Skipped(_)));
    }

    /// Scores like [`Fake`] and looks at what is begun and not yet handed over.
    #[derive(Default)]
    struct Watched {
        fake: Fake,
        begun: AtomicUsize,
        through: AtomicUsize,
        most: AtomicUsize,
    }

    impl Scorer for Watched {
        fn score(&self, prepared: &[&[RgbImage]]) -> Result<Scores> {
            let through = self.through.load(Ordering::SeqCst);
            let begun = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(begun - through, Ordering::SeqCst);
            self.fake.score(prepared)
        }
    }

    /// What a crash costs.
    #[test]
    fn no_more_is_begun_and_not_through_than_there_are_lanes() {
        let (dir, paths) = folder(4);
        // Enough of them, and none that needs no network.
        let paths: Vec<_> = paths.into_iter().cycle().take(300).collect();
        for lanes in [1, 3] {
            let watched = Watched::default();
            let reader = Reader {
                root: dir.path(),
                decode: DecodeOptions::default(),
                prepare: &|decoded| vec![decoded.picture.clone().into_rgb()],
                measure: false,
                known: None,
                memory: Memory::new(&DecodeOptions::default(), 2),
            };
            let todo: Vec<_> = (0..paths.len()).collect();
            let job = Job {
                scorer: &watched,
                reader: &reader,
                paths: &paths,
                todo: &todo,
                batch: 2,
                lanes,
                decoders: 2,
            };
            job.run(&Load::default(), &mut |_| {
                // As a journal on a slow disk: the lanes could be far ahead by then.
                (0..200).for_each(|_| thread::yield_now());
                watched.through.fetch_add(1, Ordering::SeqCst);
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
            assert_eq!(watched.begun.into_inner(), 150);
            let most = watched.most.into_inner();
            assert!((1..=lanes).contains(&most), "{most} with {lanes} lanes");
        }
    }

    #[test]
    fn nobody_runs_further_ahead_than_the_window() {
        let (dir, paths) = folder(100);
        let (batch, lanes, decoders) = (1, 1, 2);
        let window = WINDOW * (batch * lanes + decoders);
        // The first picture is ready when all that may be at work beside it have been looked at.
        let (looked_at, moved) = (Mutex::new(0), Condvar::new());
        let known = |index: usize| {
            let mut count = lock(&looked_at);
            *count = (*count).max(index + 1);
            moved.notify_all();
            if index == 0 {
                let count = moved.wait_while(count, |count| *count < window).unwrap();
                assert_eq!(*count, window, "the window is open to here");
            }
            None
        };
        let seen =
            run_with(dir.path(), &paths, &Fake::default(), [batch, lanes, decoders], &known, usize::MAX);
        assert_eq!(seen.unwrap().len(), 100);
    }

    #[test]
    fn the_same_content_is_not_scored_again() {
        let (dir, paths) = folder(8);
        let hashes: Vec<_> = paths.iter().map(|path| hash_file(dir.path().join(path)).unwrap()).collect();
        let fake = Fake::default();
        let known = |index: usize| (index.is_multiple_of(2)).then(|| hashes[index]);
        run_with(dir.path(), &paths, &fake, [3, 2, 2], &known, usize::MAX).unwrap();
        assert_eq!(fake.scored.into_inner(), 4, "of eight four are known, the broken one among them");
    }

    #[test]
    fn a_failure_ends_the_run_and_a_panic_is_passed_on() {
        let (dir, paths) = folder(50);
        let fails = Fake { fails: true, ..Fake::default() };
        // With one decoder the first batch that is whole is the first one.
        let error = run_with(dir.path(), &paths, &fails, [2, 1, 1], &|_| None, usize::MAX).unwrap_err();
        assert_eq!(error.to_string(), "cannot score `0000.png` and 1 more");
        let panics = Fake { panics: true, ..Fake::default() };
        let run = || run_with(dir.path(), &paths, &panics, [2, 2, 2], &|_| None, usize::MAX);
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
    }
}
