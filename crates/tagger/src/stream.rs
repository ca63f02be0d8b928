//! Many files through one tagger, with as much memory as a few of them take.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    path::{Path, PathBuf},
    thread,
};

use vodka_images::{DecodeOptions, RgbImage};

use crate::{
    Result, Scores, Tagger, Tags,
    pipeline::{Job, Load, Scorer, Seen},
    read::{Memory, Reader},
    results::BATCH_MAX,
};

const DECODERS_MAX: usize = 1024;

/// How [`Tagger::tag_paths`] works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamOptions {
    /// Whether pictures are turned as their EXIF orientation says. On by default.
    pub orientation: bool,
    /// The most pixels a picture may have. By default as [`DecodeOptions`].
    pub max_pixels: u64,
    /// How many pictures the model gets at once, at most 4,096; 0, the default, for what suits the provider.
    pub batch: usize,
    /// How many threads decode, at most 1,024; 0, the default, for one per core.
    pub decoders: usize,
}

impl Default for StreamOptions {
    fn default() -> Self {
        let DecodeOptions { orientation, max_pixels, .. } = DecodeOptions::default();
        Self { orientation, max_pixels, batch: 0, decoders: 0 }
    }
}

/// A file that [`Tagger::tag_paths`] has been at.
#[derive(Debug, Clone, PartialEq)]
pub struct TaggedPath<'a> {
    /// The path as given.
    pub path: &'a Path,
    /// Its tags, or why it has none.
    pub tags: Result<Tags, String>,
}

impl Tagger {
    /// Tags files, decoding ahead of the model, and hands over each in the order of the paths. It ends after the last, or
    /// when `on_picture` breaks.
    ///
    /// A tagger that was opened with several lanes scores so many batches at a time.
    ///
    /// # Errors
    /// When the model fails. A file that cannot be read is no error.
    pub fn tag_paths(
        &self,
        paths: &[PathBuf],
        options: &StreamOptions,
        on_picture: &mut dyn FnMut(TaggedPath<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let cores = || thread::available_parallelism().map_or(1, usize::from);
        let batch = if options.batch == 0 { self.provider().default_batch() } else { options.batch };
        // More than there are would only make room for nothing.
        let batch = batch.min(BATCH_MAX).min(paths.len().max(1));
        let todo: Vec<usize> = (0..paths.len()).collect();
        let decode = DecodeOptions {
            orientation: options.orientation,
            max_pixels: options.max_pixels,
            reduce_to: self.reduce_to(),
        };
        let prepare = |decoded: &_| vec![self.prepare_decoded(decoded)];
        let decoders = if options.decoders == 0 { cores() } else { options.decoders.min(DECODERS_MAX) };
        let reader = Reader {
            root: Path::new(""),
            decode,
            prepare: &prepare,
            known: None,
            measure: false,
            memory: Memory::new(&decode, decoders),
        };
        let job = Job {
            scorer: self,
            reader: &reader,
            paths,
            todo: &todo,
            batch: batch.next_multiple_of(self.fixed_batch().unwrap_or(1)),
            lanes: self.lanes(),
            decoders,
        };
        let (mut next, mut waiting, mut over) = (0, BTreeMap::new(), false);
        job.run(&Load::default(), &mut |batch| {
            waiting.extend(batch.places.zip(batch.seen));
            // Batches that the model has begun still come after a break.
            while let Some(seen) = waiting.remove(&next).filter(|_| !over) {
                over = on_picture(TaggedPath { path: &paths[next], tags: self.tags_of(seen) }).is_break();
                next += 1;
            }
            Ok(if over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })
    }

    fn tags_of(&self, seen: Seen) -> Result<Tags, String> {
        match seen {
            Seen::Scored { scores, .. } => Ok(self.thresholds().choose(self.labels(), &scores)),
            Seen::Skipped(trouble) => Err(trouble.reason),
            Seen::Same(_) => unreachable!("nothing is known of any picture"),
        }
    }
}

impl Scorer for Tagger {
    fn score(&self, prepared: &[&[RgbImage]]) -> Result<Scores> {
        let pictures: Vec<&RgbImage> = prepared.iter().map(|images| &images[0]).collect();
        self.score_each(&pictures)
    }
}
