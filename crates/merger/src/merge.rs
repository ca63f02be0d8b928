//! Merging, one tensor at a time.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use vodka_checkpoint::{Checkpoint, Mismatch, Precision, TensorView, WrongShape, keys, write_checkpoint};
use vodka_stage::{ContentHash, Interrupt, Outcome, Report, Standing, record_path};

use crate::{Error, MergePlan, Method, Result, VaePolicy, add_difference, metadata::metadata, weighted_sum};

/// What a merge tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MergeEvent {
    /// The parents fit; this many tensors will be merged.
    Started {
        /// How many.
        tensors: u64,
    },
    /// A tensor has been merged.
    Merged {
        /// How many have been so far.
        tensors: u64,
    },
}

/// What a merge has done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MergeReport {
    /// How it ended.
    pub outcome: Outcome,
    /// The file.
    pub output: PathBuf,
    /// Its element type.
    pub precision: Precision,
    /// How many tensors were merged or taken from A.
    pub tensors: u64,
    /// How many of them A and B hold alike, bit for bit; a merge of a model with itself has nothing else.
    pub equal: u64,
    /// The file's hash; A1111 shows the first ten digits. None where the merge was interrupted.
    pub sha256: Option<ContentHash>,
}

impl Report for MergeReport {
    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

impl fmt::Display for MergeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { output, precision, tensors, equal, .. } = self;
        let output = output.display();
        let hash = self.sha256.map(|hash| hash.short(10)).unwrap_or_default();
        match self.outcome {
            Outcome::Interrupted => write!(f, "stopped after {tensors} tensors; `{output}` is as it was"),
            Outcome::Unchanged => write!(f, "`{output}` is up to date ({precision}, {hash})"),
            Outcome::Done | Outcome::Skipped => {
                write!(f, "merged {tensors} tensors into `{output}` ({precision}, {hash})")?;
                if *equal > 0 {
                    write!(f, "; {equal} are the same in A and B")?;
                }
                Ok(())
            }
        }
    }
}

/// Merges, unless the output is there already.
///
/// Parents are mapped, arithmetic is fp32, and one tensor at a time is in memory: a Stable Diffusion 1.5 model takes
/// a few hundred megabytes beside the page cache, whatever the number of parents.
///
/// # Errors
/// A parent that is damaged, of another architecture, of another shape than A, or holds a weight that is not finite;
/// an output that cannot be written. Nothing is left behind.
pub fn run(
    plan: &MergePlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(MergeEvent),
) -> Result<MergeReport> {
    let record = record_path(&plan.output);
    let parents = plan.parents().map(|(_, path)| open(path)).collect::<Result<Vec<_>>>()?;
    let key = plan.key()?;
    if let Standing::Current(found) = key.standing(&record)?
        && let Ok(report) = serde_json::from_value::<MergeReport>(found.report)
    {
        let sha256 = found.outputs.first().map(|output| output.sha256);
        return Ok(MergeReport {
            outcome: Outcome::Unchanged,
            output: plan.output.clone(),
            sha256,
            ..report
        });
    }
    for parent in &parents[1..] {
        check_alike(&parents[0], parent)?;
        check_settings(&parents[0], parent, plan.vae)?;
    }
    let hashes: Vec<_> = key.inputs.values().map(|input| input.sha256.to_string()).collect();
    let mut report = write(plan, &parents, &hashes, interrupt, on_event)?;
    if report.outcome == Outcome::Done {
        let record = key.write(&record, &[&plan.output], &report)?;
        report.sha256 = record.outputs.first().map(|output| output.sha256);
    }
    Ok(report)
}

fn open(path: &Path) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(path)?;
    checkpoint.check_names()?;
    Ok(checkpoint)
}

/// Every tensor of A must be in the other parent, in the same shape, and nothing else.
fn check_alike(a: &Checkpoint, other: &Checkpoint) -> Result<()> {
    let mut mismatch = Mismatch::default();
    for name in a.names() {
        let expected = a.tensor(name)?.shape;
        match other.tensor(name) {
            Err(_) => mismatch.missing.push(name.to_owned()),
            Ok(TensorView { shape: found, .. }) if found != expected => {
                mismatch.wrong_shape.push(WrongShape { tensor: name.to_owned(), expected, found });
            }
            Ok(_) => {}
        }
    }
    let left_over = other.names().filter(|name| a.tensor(name).is_err());
    mismatch.unexpected = left_over.map(ToOwned::to_owned).collect();
    if mismatch.is_empty() {
        return Ok(());
    }
    let (path, a) = (other.path().to_path_buf(), a.path().to_path_buf());
    Err(Error::Unlike { path, a, mismatch: Box::new(mismatch) })
}

/// What shapes do not tell must be alike too: heads, groups of the norms, what the UNet predicts.
fn check_settings(a: &Checkpoint, other: &Checkpoint, vae: VaePolicy) -> Result<()> {
    let settings = |checkpoint: &Checkpoint| {
        let mut settings = serde_json::to_value(checkpoint.config()).expect("configurations are plain data");
        if vae == VaePolicy::A {
            settings["vae"].take();
        }
        settings
    };
    let (expected, found) = (settings(a), settings(other));
    let sections = expected.as_object().expect("a configuration is an object");
    match sections.keys().find(|section| expected[*section] != found[*section]) {
        None => Ok(()),
        Some(section) => Err(Error::Settings {
            path: other.path().to_path_buf(),
            a: a.path().to_path_buf(),
            section: section.clone(),
            expected: expected[section].to_string(),
            found: found[section].to_string(),
        }),
    }
}

/// Why writing ended early.
enum Stop {
    Failed(Error),
    Interrupted,
}

impl From<vodka_checkpoint::Error> for Stop {
    fn from(error: vodka_checkpoint::Error) -> Self {
        Self::Failed(error.into())
    }
}

fn write(
    plan: &MergePlan,
    parents: &[Checkpoint],
    hashes: &[String],
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(MergeEvent),
) -> Result<MergeReport> {
    let a = &parents[0];
    let precision = plan.precision.unwrap_or_else(|| a.precision());
    let metadata = metadata(plan, precision, parents, hashes);
    on_event(MergeEvent::Started { tensors: a.names().count() as u64 });
    let (mut tensors, mut equal) = (0, 0);
    let mut merge = |name: &str| {
        if interrupt.is_raised() {
            return Err(Stop::Interrupted);
        }
        let views = parents.iter().map(|parent| parent.tensor(name)).collect::<Result<Vec<_>, _>>()?;
        equal += u64::from(views[0] == views[1]);
        let keep_a = plan.vae == VaePolicy::A && name.starts_with(keys::VAE_PREFIX);
        let views = if keep_a { &views[..1] } else { &views[..] };
        let Some(merged) = merge_tensor(plan, views) else {
            return Err(Stop::Failed(not_finite(name, views, parents)));
        };
        tensors += 1;
        on_event(MergeEvent::Merged { tensors });
        Ok((views[0].shape.clone(), merged))
    };
    let outcome = match write_checkpoint(&plan.output, a.config(), precision, &metadata, &mut merge) {
        Ok(()) => Outcome::Done,
        Err(Stop::Interrupted) => Outcome::Interrupted,
        Err(Stop::Failed(error)) => return Err(error),
    };
    Ok(MergeReport { outcome, output: plan.output.clone(), precision, tensors, equal, sha256: None })
}

/// The first weight that is not finite, in the first parent that has one.
fn not_finite(name: &str, views: &[TensorView], parents: &[Checkpoint]) -> Error {
    let found = views.iter().zip(parents).find_map(|(view, parent)| Some((parent, view.first_not_finite()?)));
    let (parent, (index, value)) = found.expect("one was seen");
    let (path, tensor) = (parent.path().to_path_buf(), name.to_owned());
    vodka_checkpoint::Error::NotFinite { path, tensor, index, value }.into()
}

/// Elements that a thread takes at a time: three buffers of this size stay in its cache.
const CHUNK: usize = 1 << 14;

/// One tensor of A, or what A, B and C (where there is one) make of it. None if a weight of theirs is not finite.
fn merge_tensor(plan: &MergePlan, views: &[TensorView]) -> Option<Vec<f32>> {
    let mut merged = vec![0.0; views[0].numel()];
    let buffers = || (vec![0.0; CHUNK], vec![0.0; CHUNK]);
    let merge = |(b, c): &mut (Vec<f32>, Vec<f32>), (i, a): (usize, &mut [f32])| {
        let (b, c) = (&mut b[..a.len()], &mut c[..a.len()]);
        let read = |view: &TensorView, out: &mut [f32]| {
            view.read_f32(i * CHUNK, out);
            // Without an early exit, which would keep it from being vector code.
            out.iter().fold(true, |finite, x| finite & x.is_finite())
        };
        let mut finite = read(&views[0], a);
        match (plan.method, &views[1..]) {
            (Method::WeightedSum, [view_b, ..]) => {
                finite &= read(view_b, b);
                weighted_sum(a, b, plan.multiplier);
            }
            (Method::AddDifference, [view_b, view_c]) => {
                finite &= read(view_b, b) & read(view_c, c);
                add_difference(a, b, c, plan.multiplier);
            }
            // Only A: its VAE.
            _ => {}
        }
        finite
    };
    let finite = merged.par_chunks_mut(CHUNK).enumerate().map_init(buffers, merge).all(|finite| finite);
    finite.then_some(merged)
}
