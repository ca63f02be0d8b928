//! The audit: every picture is decoded and every caption counted before anything is trained.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use vodka_checkpoint::Checkpoint;
use vodka_images::{DecodeOptions, decode_bytes, relative_name};
use vodka_prompt::{MAX_TOKENS, token_count};
use vodka_stage::{
    ContentHash, FolderLock, Interrupt, Outcome, Report, create_dir, hash_bytes, write_atomic,
};

use crate::{
    Bucket, Error, Result, Runts, Skipped, TrainEvent, TrainPlan,
    buckets::{buckets, nearest},
    facts::{DECODER, Facts, Index, Looked, Stamp},
    geometry::{centred, is_undersized},
    items::{Bare, Item, items},
    validation::HELD_OUT,
    watch::csv_cell,
};

/// A row for each picture, in the output folder.
pub const AUDIT_CSV: &str = "audit.csv";

/// The report of the audit, in the output folder.
pub const AUDIT_JSON: &str = "audit.json";

/// What was found of files by their content, so that they need not be decoded again, in the output folder.
const CACHE: &str = "audit.cache.json";

/// The pictures of the training set, in [`AUDIT_CSV`].
const TRAIN: &str = "train";

/// What is wrong with pictures so that a run does not begin with them, unless it is allowed; then it goes on without them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flaw {
    /// The picture cannot be decoded.
    Unreadable,
    /// There is no caption, or an empty one.
    NoCaption,
}

/// A picture with too many tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LongCaption {
    /// The picture.
    pub image: String,
    /// How many tokens its caption has; those after the 75th are cut off.
    pub tokens: usize,
}

/// How full a bucket is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BucketUse {
    /// The size.
    pub bucket: Bucket,
    /// The pictures that go there, to be trained on.
    pub pictures: usize,
    /// How often they come in an epoch, by their `multiply`.
    pub per_epoch: f64,
    /// How often they come in an epoch with those that are repeated to fill a batch, over `per_epoch`: 1 where none are.
    pub effective_multiplier: f64,
    /// How many pictures more would fill the last batch.
    pub missing: usize,
}

/// What the audit found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditReport {
    /// How it ended.
    pub outcome: Outcome,
    /// Pictures, those that are validated on among them.
    pub pictures: usize,
    /// Pictures that are not held out.
    pub trained: usize,
    /// Those that cannot be decoded.
    pub unreadable: Vec<Skipped>,
    /// Those without a caption.
    pub no_caption: Vec<String>,
    /// Those that are smaller than their bucket.
    pub undersized: Vec<String>,
    /// Those whose captions are cut off.
    pub long_captions: Vec<LongCaption>,
    /// Groups of files with the same bytes.
    pub same_bytes: Vec<Vec<String>>,
    /// Groups of files with the same pixels, not all of the same bytes.
    pub same_pixels: Vec<Vec<String>>,
    /// The buckets that have pictures.
    pub buckets: Vec<BucketUse>,
    /// The share of a picture that is cut off to give it its bucket's shape, on average.
    pub mean_crop_loss: f64,
    /// The pictures that lose more than a fifth, the most cut first.
    pub cropped: Vec<Cropped>,
}

/// A picture of which much is cut off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cropped {
    /// The picture.
    pub image: String,
    /// The share that is cut off.
    pub loss: f64,
}

/// A loss that is worth naming.
const MUCH: f64 = 0.2;

/// Padding, to the pictures of a bucket, that EveryDream2 warns of.
const MUCH_PADDING: f64 = 0.5;

impl Report for AuditReport {
    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

impl AuditReport {
    /// An audit that found nothing.
    fn empty(outcome: Outcome, pictures: usize) -> Self {
        Self {
            outcome,
            pictures,
            trained: 0,
            unreadable: Vec::new(),
            no_caption: Vec::new(),
            undersized: Vec::new(),
            long_captions: Vec::new(),
            same_bytes: Vec::new(),
            same_pixels: Vec::new(),
            buckets: Vec::new(),
            mean_crop_loss: 0.0,
            cropped: Vec::new(),
        }
    }

    /// The report of an audit that was interrupted.
    pub fn interrupted() -> Self {
        Self::empty(Outcome::Interrupted, 0)
    }

    /// All counts in a line.
    pub fn summary(&self) -> String {
        let copies = |groups: &[Vec<String>]| groups.iter().map(|group| group.len() - 1).sum::<usize>();
        format!(
            "audited {} pictures: {} unreadable, {} without a caption, {} smaller than their bucket, {} captions over \
             {MAX_TOKENS} tokens, {} copies, {:.1} % cut off on average",
            self.pictures,
            self.unreadable.len(),
            self.no_caption.len(),
            self.undersized.len(),
            self.long_captions.len(),
            copies(&self.same_bytes) + copies(&self.same_pixels),
            100.0 * self.mean_crop_loss
        )
    }
}

impl fmt::Display for AuditReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.summary())?;
        for BucketUse { bucket, pictures, effective_multiplier, missing, .. } in &self.buckets {
            write!(f, "\n{} x {}: {pictures} pictures", bucket.width, bucket.height)?;
            if *effective_multiplier > 1.0 + MUCH_PADDING {
                write!(
                    f,
                    ", repeated to fill a batch: each counts {effective_multiplier:.2} times; add {missing}"
                )?;
            }
        }
        for Skipped { image, reason } in &self.unreadable {
            write!(f, "\nunreadable: {image}: {reason}")?;
        }
        let mut list = |what: &str, images: &mut dyn Iterator<Item = String>| {
            const SHOWN: usize = 20;
            let images: Vec<_> = images.collect();
            images.iter().take(SHOWN).try_for_each(|image| write!(f, "\n{what}: {image}"))?;
            match images.len().checked_sub(SHOWN) {
                Some(more @ 1..) => write!(f, "\n{what}: {more} more"),
                _ => Ok(()),
            }
        };
        list("without a caption", &mut self.no_caption.iter().cloned())?;
        list("smaller than its bucket", &mut self.undersized.iter().cloned())?;
        let tokens = |LongCaption { image, tokens }: &LongCaption| format!("{image} ({tokens} tokens)");
        list("caption cut off", &mut self.long_captions.iter().map(tokens))?;
        list("the same file", &mut self.same_bytes.iter().map(|group| group.join(", ")))?;
        list("the same pixels", &mut self.same_pixels.iter().map(|group| group.join(", ")))?;
        let cropped = |Cropped { image, loss }: &Cropped| format!("{image} ({:.0} %)", 100.0 * loss);
        list("much cut off", &mut self.cropped.iter().map(cropped))
    }
}

/// What a file's content is, as far as the audit asks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Pixels {
    width: u32,
    height: u32,
    /// Of the pixels without transparency, and the size.
    hash: ContentHash,
}

/// What was found of files, by their content.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Known {
    /// What they were decoded by.
    decoder: String,
    files: BTreeMap<ContentHash, Result<Pixels, String>>,
}

/// A picture to look at.
struct Subject {
    set: String,
    image: String,
    file: PathBuf,
    item: Option<Item>,
}

/// A picture that was looked at.
struct Seen {
    content: Option<ContentHash>,
    pixels: Result<Pixels, String>,
    stamp: Option<Stamp>,
}

impl Seen {
    fn facts(&self) -> Option<(Stamp, Facts)> {
        let Pixels { width, height, hash } = *self.pixels.as_ref().ok()?;
        Some((self.stamp?, Facts { size: (width, height), pixels: hash }))
    }
}

impl From<Facts> for Pixels {
    fn from(Facts { size: (width, height), pixels: hash }: Facts) -> Self {
        Self { width, height, hash }
    }
}

/// Audits the data of a plan, and writes [`AUDIT_CSV`] and [`AUDIT_JSON`] into the output folder. What is wrong with
/// pictures is in the report; [`AuditReport::check`] says whether a run may begin. `None` when interrupted.
///
/// # Errors
/// No pictures; a file beside them that says what it cannot; a run that holds the output folder; a disk that fails.
pub fn audit(
    plan: &TrainPlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(TrainEvent),
) -> Result<Option<AuditReport>> {
    create_dir(&plan.output)?;
    let _lock = FolderLock::take(&plan.output)?;
    Ok(look(plan, interrupt, on_event)?.map(|(report, _)| report))
}

/// Audits, and hands over what was seen of each picture, so that it need not be decoded again.
pub(crate) fn look(
    plan: &TrainPlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(TrainEvent),
) -> Result<Option<(AuditReport, Looked)>> {
    create_dir(&plan.output)?;
    let subjects = subjects(plan, &plan.roots(interrupt)?)?;
    let Some(seen) = look_at(&subjects, plan, interrupt, on_event)? else { return Ok(None) };
    // The base model may not be there yet, or be no model: that is for the run to say.
    let stride = Checkpoint::open(&plan.base).map_or(64, |base| base.config().vae.downscale() as u32);
    let settings = &plan.settings;
    let buckets = buckets(settings.resolution, stride, settings.compat.misspells_buckets());
    let report = report(plan, &subjects, &seen, &buckets);
    write_atomic(plan.output.join(AUDIT_CSV), csv(&subjects, &seen, &buckets))?;
    let json = serde_json::to_string_pretty(&report).expect("reports are plain data");
    write_atomic(plan.output.join(AUDIT_JSON), json + "\n")?;
    let looked =
        subjects.into_iter().zip(&seen).filter_map(|(subject, seen)| Some((subject.file, seen.facts()?)));
    Ok(Some((report, looked.collect())))
}

/// The pictures of all sets.
fn subjects(plan: &TrainPlan, roots: &[PathBuf]) -> Result<Vec<Subject>> {
    let mut subjects = Vec::new();
    let compat = plan.settings.compat;
    let (mut training, bare) = items(roots, plan.caption_root.as_deref(), compat)?;
    let of = |set: &str, item: Item| {
        let (image, file) = (relative_name(&item.path), item.file.clone());
        Subject { set: set.to_owned(), image, file, item: Some(item) }
    };
    let without = |set: &str, Bare { path, file }: Bare| Subject {
        set: set.to_owned(),
        image: relative_name(&path),
        file,
        item: None,
    };
    subjects.extend(bare.into_iter().map(|bare| without(TRAIN, bare)));
    if let Some(validation) = &plan.settings.validation {
        for (name, held_out) in validation.split(&mut training) {
            // The others of them are trained on, too.
            if name == HELD_OUT {
                subjects.extend(held_out.into_iter().map(|item| of(name, item)));
            }
        }
        for (name, root) in validation.folders() {
            let (items, bare) = items(&[root.to_path_buf()], None, compat)?;
            subjects.extend(items.into_iter().map(|item| of(name, item)));
            subjects.extend(bare.into_iter().map(|bare| without(name, bare)));
        }
    }
    subjects.extend(training.into_iter().map(|item| of(TRAIN, item)));
    Ok(subjects)
}

/// Decodes all files whose content is not known yet. `None` when interrupted.
fn look_at(
    subjects: &[Subject],
    plan: &TrainPlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(TrainEvent),
) -> Result<Option<Vec<Seen>>> {
    const AT_ONCE: usize = 64;
    let path = plan.output.join(CACHE);
    let index = plan.cache.folder().map(Index::open).transpose()?;
    // One that is of another version, or damaged, knows nothing.
    let known: Option<Known> = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let known = known.filter(|known| known.decoder == DECODER).unwrap_or_default().files;
    let mut seen = Vec::with_capacity(subjects.len());
    for chunk in subjects.chunks(AT_ONCE) {
        if interrupt.is_raised() {
            return Ok(None);
        }
        let before = seen.len();
        seen.par_extend(chunk.par_iter().map(|subject| look_at_one(&subject.file, &known, index.as_ref())));
        if let Some(index) = &index {
            let new = seen[before..].iter().filter_map(Seen::facts);
            index.add(&new.filter(|(stamp, _)| index.get(*stamp).is_none()).collect::<Vec<_>>());
        }
        on_event(TrainEvent::Audited { done: seen.len(), total: subjects.len() });
    }
    let files = seen.iter().filter_map(|seen| Some((seen.content?, seen.pixels.clone()))).collect();
    let all = Known { decoder: DECODER.to_owned(), files };
    write_atomic(path, serde_json::to_vec(&all).expect("hashes are texts"))?;
    Ok(Some(seen))
}

fn look_at_one(
    file: &Path,
    known: &BTreeMap<ContentHash, Result<Pixels, String>>,
    index: Option<&Index>,
) -> Seen {
    let stamp = Stamp::of(file, SystemTime::now()).ok();
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) => {
            let pixels = Err(format!("the file cannot be read: {error}"));
            return Seen { content: None, pixels, stamp };
        }
    };
    let content = hash_bytes(&bytes);
    let decoded = || {
        let decoded = decode_bytes(&bytes, &DecodeOptions::default()).map_err(|fault| fault.reason())?;
        Ok(Facts::of(&decoded.picture.into_rgb()).into())
    };
    let indexed = || Some(Ok(index?.get(stamp?)?.into()));
    let pixels = known.get(&content).cloned().or_else(indexed).unwrap_or_else(decoded);
    Seen { content: Some(content), pixels, stamp }
}

fn report(plan: &TrainPlan, subjects: &[Subject], seen: &[Seen], buckets: &[Bucket]) -> AuditReport {
    let mut report = AuditReport::empty(Outcome::Done, subjects.len());
    let mut trained = BTreeMap::<Bucket, (usize, f64)>::new();
    let mut losses = Vec::new();
    for (subject, seen) in subjects.iter().zip(seen) {
        let image = || subject.image.clone();
        match &subject.item {
            Some(item) => {
                let tokens = token_count(&item.caption.text());
                if tokens > MAX_TOKENS {
                    report.long_captions.push(LongCaption { image: image(), tokens });
                }
            }
            None if seen.pixels.is_ok() => report.no_caption.push(image()),
            // A picture that cannot be read could be captioned by nobody.
            None => {}
        }
        match &seen.pixels {
            Err(reason) => report.unreadable.push(Skipped { image: image(), reason: reason.clone() }),
            Ok(Pixels { width, height, .. }) => {
                let (size, bucket) = ((*width, *height), nearest(buckets, *width, *height));
                if is_undersized(size, bucket) {
                    report.undersized.push(image());
                }
                let loss = centred(size, bucket).loss(size);
                losses.push(loss);
                if loss > MUCH {
                    report.cropped.push(Cropped { image: image(), loss });
                }
                if let Some(item) = subject.item.as_ref().filter(|_| subject.set == TRAIN) {
                    let (pictures, per_epoch) = trained.entry(bucket).or_default();
                    *pictures += 1;
                    *per_epoch += item.multiply;
                }
            }
        }
    }
    report.trained = trained.values().map(|(pictures, _)| pictures).sum();
    report.buckets = trained.into_iter().map(|(bucket, used)| bucket_use(plan, bucket, used)).collect();
    report.mean_crop_loss = losses.iter().sum::<f64>() / losses.len().max(1) as f64;
    report.cropped.sort_by(|a, b| b.loss.total_cmp(&a.loss).then_with(|| a.image.cmp(&b.image)));
    (report.same_bytes, report.same_pixels) = copies(subjects, seen);
    if !report.unreadable.is_empty() || !report.no_caption.is_empty() {
        report.outcome = Outcome::Skipped;
    }
    report
}

fn bucket_use(plan: &TrainPlan, bucket: Bucket, (pictures, per_epoch): (usize, f64)) -> BucketUse {
    let batch = plan.settings.batch_size as f64;
    let whole = (per_epoch / batch).ceil() * batch;
    let repeated = matches!(plan.settings.compat.runts(), Runts::Repeated { .. }) && per_epoch > 0.0;
    BucketUse {
        bucket,
        pictures,
        per_epoch,
        effective_multiplier: if repeated { whole / per_epoch } else { 1.0 },
        missing: (whole - per_epoch).ceil() as usize,
    }
}

/// Groups of different files with the same bytes, and of those with the same pixels that are in none of the first.
fn copies(subjects: &[Subject], seen: &[Seen]) -> (Vec<Vec<String>>, Vec<Vec<String>>) {
    let groups = |key: &dyn Fn(&Seen) -> Option<ContentHash>| {
        let mut groups = BTreeMap::<ContentHash, BTreeMap<&Path, String>>::new();
        for (subject, seen) in subjects.iter().zip(seen) {
            if let Some(key) = key(seen) {
                // The same file under several captions is no copy.
                groups.entry(key).or_default().entry(&subject.file).or_insert_with(|| subject.image.clone());
            }
        }
        let several = groups.into_values().filter(|group| group.len() > 1);
        let mut names: Vec<Vec<String>> = several.map(|group| group.into_values().collect()).collect();
        names.sort();
        names
    };
    let same_bytes = groups(&|seen| seen.content);
    let told: BTreeSet<_> = same_bytes.iter().cloned().collect();
    let same_pixels = groups(&|seen| Some(seen.pixels.as_ref().ok()?.hash));
    (same_bytes, same_pixels.into_iter().filter(|group| !told.contains(group)).collect())
}

/// A row for each picture, by name of the set and the picture.
fn csv(subjects: &[Subject], seen: &[Seen], buckets: &[Bucket]) -> String {
    let mut rows: Vec<_> = subjects.iter().zip(seen).collect();
    rows.sort_by(|a, b| (&a.0.set, &a.0.image).cmp(&(&b.0.set, &b.0.image)));
    let mut text = "image,set,width,height,bucket,crop_loss,multiply,tokens,undersized,reason\n".to_owned();
    for (Subject { set, image, item, .. }, Seen { pixels, .. }) in rows {
        let (image, set) = (csv_cell(image), csv_cell(set));
        let tokens =
            item.as_ref().map_or(String::new(), |item| token_count(&item.caption.text()).to_string());
        let multiply = item.as_ref().map_or(String::new(), |item| item.multiply.to_string());
        text += &match pixels {
            Ok(Pixels { width, height, .. }) => {
                let (size, bucket) = ((*width, *height), nearest(buckets, *width, *height));
                let loss = centred(size, bucket).loss(size);
                let Bucket { width: across, height: down } = bucket;
                let undersized = is_undersized(size, bucket);
                let reason = if item.is_none() { "no caption" } else { "" };
                format!(
                    "{image},{set},{width},{height},{across}x{down},{loss:.4},{multiply},{tokens},{undersized},{reason}\n"
                )
            }
            Err(reason) => format!("{image},{set},,,,,{multiply},{tokens},,{}\n", csv_cell(reason)),
        };
    }
    text
}

impl AuditReport {
    /// Whether a run may begin: nothing is wrong, or it is allowed.
    ///
    /// # Errors
    /// [`Error::MissingCaptions`] or [`Error::Unreadable`]
    pub fn check(&self, plan: &TrainPlan) -> Result<()> {
        let stops = |flaw| !plan.allow.contains(&flaw);
        if !self.no_caption.is_empty() && stops(Flaw::NoCaption) {
            let root = plan.caption_root.clone().unwrap_or_else(|| plan.data_root.paths()[0].clone());
            let pictures = self.no_caption.iter().map(PathBuf::from).collect();
            return Err(Error::MissingCaptions { root, pictures });
        }
        match self.unreadable.first() {
            Some(first) if stops(Flaw::Unreadable) => Err(Error::Unreadable {
                count: self.unreadable.len(),
                first: first.image.clone(),
                reason: first.reason.clone(),
                report: plan.output.join(AUDIT_CSV),
            }),
            _ => Ok(()),
        }
    }
}
