//! Pictures with their captions: all that is known of them before the first step.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use rayon::{ThreadPool, prelude::*};
use serde::{Deserialize, Serialize};
use vodka_images::relative_name;
use vodka_prompt::{CONTEXT_LENGTH, MAX_TOKENS, token_count, token_ids};
use vodka_stage::Interrupt;

use crate::{
    Bucket, Compat, Error, Flaw, Result, TrainEvent, TrainPlan,
    buckets::{buckets, nearest},
    facts::{Facts, Index, Looked, Stamp, read},
    items::{Bare, Item, items},
    validation::STABILIZED,
};

/// A picture that is left out, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Relative to the data folder, with `/`.
    pub image: String,
    /// What is wrong with it.
    pub reason: String,
}

/// A picture that can be trained on.
#[derive(Debug, Clone)]
pub(crate) struct Example {
    pub item: Item,
    /// The token ids of the caption in its own order.
    pub ids: [i64; CONTEXT_LENGTH],
    pub bucket: Bucket,
    /// What was seen of it before the run.
    pub facts: Facts,
    /// What its file was like then.
    pub stamp: Stamp,
}

/// All pictures of a run.
#[derive(Debug)]
pub(crate) struct Dataset {
    /// Those that are trained on.
    pub examples: Arc<Vec<Example>>,
    /// Those that are validated on, by name of the set; training pictures may be among them.
    pub sets: Vec<(String, Arc<Vec<Example>>)>,
    /// Those that are left out.
    pub skipped: Vec<Skipped>,
    /// How many captions are cut because they have more than 75 tokens.
    pub long_captions: usize,
}

impl Dataset {
    /// Lists all pictures and looks at each: those that the index in the cache's folder knows need not be decoded.
    /// `None` when interrupted.
    ///
    /// # Errors
    /// No pictures, or no good ones; good pictures without a caption; a file beside them that says what it cannot.
    pub fn load(
        plan: &TrainPlan,
        stride: u32,
        pool: &ThreadPool,
        looked: &Looked,
        interrupt: &Interrupt,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<Option<Self>> {
        let mut skipped = Vec::new();
        let mut listed =
            |roots: &[PathBuf], captions: Option<&Path>, on_event: &mut dyn FnMut(TrainEvent)| {
                let may_lack = plan.allow.contains(&Flaw::NoCaption);
                let (items, bad) = listed(roots, captions, plan.settings.compat, may_lack)?;
                bad.iter().for_each(|skipped| on_event(TrainEvent::Skipped(skipped.clone())));
                skipped.extend(bad);
                Ok::<_, Error>(items)
            };
        let mut items = listed(&plan.roots(interrupt)?, plan.caption_root.as_deref(), on_event)?;
        let long_captions = too_long(&items);
        let mut sets = Vec::new();
        if let Some(validation) = &plan.settings.validation {
            let split = validation.split(&mut items).into_iter();
            sets.extend(split.map(|(name, items)| (name.to_owned(), items)));
            for (name, root) in validation.folders() {
                sets.push((name.to_owned(), listed(&[root.to_path_buf()], None, on_event)?));
            }
        }
        let total = items.len() + sets.iter().map(|(_, items)| items.len()).sum::<usize>();
        let mut done = 0;
        let index = plan.cache.folder().map(Index::open).transpose()?;
        let buckets = buckets(plan.settings.resolution, stride, plan.settings.compat.misspells_buckets());
        let looker = Looker { pool, looked, index: index.as_ref(), buckets: &buckets };
        let mut load = |items: &[Item], is_told: bool| {
            let on_picture = &mut |bad: Option<&Skipped>| {
                done += 1;
                bad.into_iter()
                    .filter(|_| !is_told)
                    .for_each(|skipped| on_event(TrainEvent::Skipped(skipped.clone())));
                on_event(TrainEvent::Loaded { done, total });
            };
            looker.look(items, interrupt, on_picture)
        };
        let Some((examples, bad)) = load(&items, false) else { return Ok(None) };
        skipped.extend(bad);
        let mut loaded = Vec::new();
        for (name, items) in sets {
            // A stabilised picture is one that is trained on, and has been told of already.
            let is_told = name == STABILIZED;
            let Some((examples, bad)) = load(&items, is_told) else { return Ok(None) };
            skipped.extend(bad.into_iter().filter(|_| !is_told));
            loaded.push((name, Arc::new(examples)));
        }
        match examples.is_empty() {
            true => Err(no_good_pictures(plan, &skipped)),
            false => Ok(Some(Self { examples: Arc::new(examples), sets: loaded, skipped, long_captions })),
        }
    }
}

fn no_good_pictures(plan: &TrainPlan, skipped: &[Skipped]) -> Error {
    let Skipped { image, reason } = skipped.first().expect("there are pictures, and none is good").clone();
    let root = plan.data_root.paths()[0].clone();
    Error::NoGoodPictures { root, count: skipped.len(), first: image.into(), reason }
}

/// Lists the pictures with their captions, in order of path; a picture that has no caption and cannot be read either
/// is skipped, since no stage before this one could caption it.
///
/// # Errors
/// No pictures; good pictures without a caption; a file beside them that says what it cannot.
fn listed(
    roots: &[PathBuf],
    captions: Option<&Path>,
    compat: Compat,
    may_lack: bool,
) -> Result<(Vec<Item>, Vec<Skipped>)> {
    let (items, without) = items(roots, captions, compat)?;
    let (mut good, mut skipped) = (Vec::new(), Vec::new());
    for Bare { path, file } in without {
        match read(&file) {
            Ok(_) if may_lack => {
                skipped.push(Skipped { image: relative_name(&path), reason: "no caption".to_owned() });
            }
            Ok(_) => good.push(path),
            Err(reason) => skipped.push(Skipped { image: relative_name(&path), reason }),
        }
    }
    let root = || captions.map_or_else(|| roots[0].clone(), Path::to_path_buf);
    match good.is_empty() {
        true => Ok((items, skipped)),
        false => Err(Error::MissingCaptions { root: root(), pictures: good }),
    }
}

/// How many captions are cut because they have more than 75 tokens.
fn too_long(items: &[Item]) -> usize {
    items.iter().filter(|item| token_count(&item.caption.text()) > MAX_TOKENS).count()
}

/// Looks at pictures before the run.
struct Looker<'l> {
    pool: &'l ThreadPool,
    /// What the audit has seen.
    looked: &'l Looked,
    /// What an earlier run has seen.
    index: Option<&'l Index>,
    buckets: &'l [Bucket],
}

impl Looker<'_> {
    /// Looks at pictures, telling of each whether it is left out. `None` when interrupted.
    fn look(
        &self,
        items: &[Item],
        interrupt: &Interrupt,
        on_picture: &mut dyn FnMut(Option<&Skipped>),
    ) -> Option<(Vec<Example>, Vec<Skipped>)> {
        /// Pictures between two looks at the interrupt, and between two writes to the index.
        const AT_ONCE: usize = 32;
        let mut examples = Vec::with_capacity(items.len());
        let mut skipped = Vec::new();
        for chunk in items.chunks(AT_ONCE) {
            if interrupt.is_raised() {
                return None;
            }
            let seen: Vec<_> =
                self.pool.install(|| chunk.par_iter().map(|item| self.seen(&item.file)).collect());
            let new = seen.iter().flatten().filter(|seen| !seen.was_known);
            let new: Vec<_> = new.map(|seen| (seen.stamp, seen.facts)).collect();
            self.index.into_iter().for_each(|index| index.add(&new));
            for (item, seen) in chunk.iter().zip(seen) {
                let bad = match seen {
                    Ok(Seen { facts, stamp, .. }) => {
                        examples.push(Example {
                            item: item.clone(),
                            ids: token_ids(&item.caption.text()),
                            bucket: nearest(self.buckets, facts.size.0, facts.size.1),
                            facts,
                            stamp,
                        });
                        None
                    }
                    Err(reason) => Some(Skipped { image: relative_name(&item.path), reason }),
                };
                on_picture(bad.as_ref());
                skipped.extend(bad);
            }
        }
        Some((examples, skipped))
    }

    /// What is known of a picture, or seen now; or why it cannot be read.
    fn seen(&self, path: &Path) -> Result<Seen, String> {
        if let Some((stamp, facts)) = self.looked.get(path) {
            return Ok(Seen { facts: *facts, stamp: *stamp, was_known: true });
        }
        // A file that cannot even be looked at: why, says who reads it.
        let Ok(stamp) = Stamp::of(path, SystemTime::now()) else {
            return Err(read(path).err().unwrap_or_else(|| "it came while it was looked at".to_owned()));
        };
        if let Some(facts) = self.index.and_then(|index| index.get(stamp)) {
            return Ok(Seen { facts, stamp, was_known: true });
        }
        Ok(Seen { facts: Facts::of(&read(path)?.into_rgb()), stamp, was_known: false })
    }
}

/// A picture that can be read.
struct Seen {
    facts: Facts,
    stamp: Stamp,
    was_known: bool,
}
