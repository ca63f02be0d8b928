//! The engine: reads, works out, writes and hashes side by side, in pieces of a fixed size.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
};

use rayon::prelude::*;
use vodka_checkpoint::{
    Precision, SafetensorsWriter, TensorSpec, check_free_space, keys, position_ids, position_ids_name,
    single_file_tensors,
};
use vodka_stage::{ContentHash, FileHasher, Interrupt, Outcome};

use crate::{
    Error, Kept, KeptTensors, MergeEvent, MergePlan, Method, Operand, OutputPlan, OutputReport, Result,
    eval::{Evaluator, KeyPlan, Opened},
    merged::{checkpoints_of, encode, keeps_vae, precision, whole},
    metadata::metadata,
};

/// Bytes of output that are worked out between two hand-overs to the writer.
const BATCH: usize = 8 << 20;
/// Bytes after which the disk is told to write what it has, so that the last sync does not wait for all of it.
const FLUSH: u64 = 64 << 20;

/// An output that is being made.
struct Sink<'a> {
    plan: &'a OutputPlan,
    operand: Operand,
    precision: Precision,
    writer: SafetensorsWriter,
    checkpoints: Vec<usize>,
}

/// Bytes of an output that follow each other in its file, from `start` bytes into `tensor` on.
#[derive(Debug, Default)]
struct Run {
    tensor: usize,
    start: u64,
    bytes: Vec<u8>,
}

/// A run of each output. It goes to the writer and the hasher, and back to be filled again.
type Runs = Vec<Run>;

/// Something to work out.
enum Work {
    /// A part of a tensor, for all outputs.
    Chunk { plan: Arc<KeyPlan>, tensor: usize, range: (usize, usize) },
    /// A whole tensor of one output that is there already.
    Ready { output: usize, tensor: usize, bytes: Vec<u8> },
}

impl Work {
    /// The tensor, and how many of its bytes in an output come before this.
    fn place(&self, size: usize) -> (usize, u64) {
        match self {
            Self::Chunk { tensor, range, .. } => (*tensor, (range.0 * size) as u64),
            Self::Ready { tensor, .. } => (*tensor, 0),
        }
    }

    /// How many bytes of an output this makes.
    fn bytes(&self, output: usize, size: usize) -> usize {
        match self {
            Self::Chunk { range, .. } => range.1 * size,
            Self::Ready { output: of, bytes, .. } if *of == output => bytes.len(),
            Self::Ready { .. } => 0,
        }
    }
}

/// What is seen of the chunks of an output.
#[derive(Debug, Clone, Default)]
struct Seen {
    /// Per tensor: whether the result is the same as each of the checkpoints.
    same: BTreeMap<usize, Vec<bool>>,
    /// Per tensor: whether all checkpoints are alike.
    alike: BTreeMap<usize, bool>,
}

/// Writes the outputs of one layout and hands over what is to be said of each as soon as it is in its place. False where
/// it was interrupted: then none is.
pub(crate) fn write(
    evaluator: &Evaluator,
    plan: &MergePlan,
    outputs: &[&OutputPlan],
    hashes: &[ContentHash],
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(MergeEvent),
    on_written: &mut dyn FnMut(usize, OutputReport) -> Result<()>,
) -> Result<bool> {
    let sinks =
        outputs.iter().map(|output| open(evaluator, plan, output, hashes)).collect::<Result<Vec<_>>>()?;
    let total = sinks.iter().map(|sink| sink.writer.file_bytes()).sum();
    on_event(MergeEvent::Started { bytes: total });
    let pool = Pool::default();
    let mut producer = Producer::new(evaluator, &sinks, &pool);
    let done = thread::scope(|scope| {
        let (to_writer, runs) = sync_channel(1);
        let (to_hasher, hashed) = sync_channel(1);
        let (to_disk, ticks) = sync_channel(1);
        let (sinks, pool) = (&sinks, &pool);
        let writer = scope.spawn(move || write_all(sinks, &runs, pool, &to_disk));
        let hasher = scope.spawn(move || hash_all(sinks, &hashed, pool));
        let disk = scope.spawn(move || {
            // The error of a failing disk is told once, to whoever asks first.
            let all = |()| sinks.iter().try_for_each(|sink| sink.writer.sync());
            ticks.iter().try_for_each(all)
        });
        let produced = producer.produce(interrupt, on_event, &to_writer, &to_hasher);
        drop((to_writer, to_hasher));
        let hashes = hasher.join().expect("hashing does not fail");
        writer.join().expect("errors are returned")?;
        disk.join().expect("errors are returned")?;
        Ok::<_, Error>(produced?.then_some(hashes))
    })?;
    let Some(hashes) = done else { return Ok(false) };
    let (seen, kept) = (producer.seen, producer.kept);
    sinks.iter().try_for_each(|sink| read_back(evaluator, sink))?;
    for (index, (((sink, seen), kept), sha256)) in
        sinks.into_iter().zip(seen).zip(kept).zip(hashes).enumerate()
    {
        let report = report(evaluator, &sink, &seen, kept, sha256);
        sink.writer.commit()?;
        on_written(index, report)?;
    }
    Ok(true)
}

/// The bytes of an output's file, but for its header.
pub(crate) fn body_bytes(evaluator: &Evaluator, output: &OutputPlan) -> u64 {
    let specs = single_file_tensors(evaluator.config(output.operand), precision(evaluator, output));
    specs.iter().map(TensorSpec::bytes).sum()
}

/// All outputs of a folder must find room in it together.
pub(crate) fn check_space<'a>(outputs: impl IntoIterator<Item = (&'a Path, u64)>) -> Result<()> {
    let mut needed: BTreeMap<&Path, (&Path, u64)> = BTreeMap::new();
    for (path, bytes) in outputs {
        needed.entry(path.parent().unwrap_or(path)).or_insert((path, 0)).1 += bytes;
    }
    let in_being = |path: &&Path| path.as_os_str().is_empty() || path.exists();
    let mut there = needed.into_iter().filter(|(folder, _)| in_being(folder));
    Ok(there.try_for_each(|(_, (path, bytes))| check_free_space(path, bytes))?)
}

fn open<'a>(
    evaluator: &Evaluator,
    plan: &MergePlan,
    output: &'a OutputPlan,
    hashes: &[ContentHash],
) -> Result<Sink<'a>> {
    let config = evaluator.config(output.operand);
    let precision = precision(evaluator, output);
    let mut metadata = metadata(plan, output, precision, evaluator, hashes);
    metadata.extend([vodka_checkpoint::config_entry(config)]);
    let writer = SafetensorsWriter::create(&output.path, single_file_tensors(config, precision), &metadata)?;
    let checkpoints = checkpoints_of(evaluator, output);
    Ok(Sink { plan: output, operand: output.operand, precision, writer, checkpoints })
}

/// Makes the runs, in the order of the files.
struct Producer<'a> {
    evaluator: &'a Evaluator,
    sinks: &'a [Sink<'a>],
    pool: &'a Pool,
    seen: Vec<Seen>,
    kept: Vec<BTreeMap<Kept, Vec<String>>>,
    done: u64,
}

/// Buffers that have been written and hashed.
#[derive(Debug, Default)]
struct Pool(Mutex<Vec<Runs>>);

impl Pool {
    fn take(&self, outputs: usize) -> Runs {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| (0..outputs).map(|_| Run::default()).collect())
    }

    /// Keeps the buffers once nobody else needs them.
    fn give_back(&self, runs: Arc<Runs>) {
        if let Some(runs) = Arc::into_inner(runs) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(runs);
        }
    }
}

impl<'a> Producer<'a> {
    fn new(evaluator: &'a Evaluator, sinks: &'a [Sink<'a>], pool: &'a Pool) -> Self {
        let (seen, kept) = (vec![Seen::default(); sinks.len()], vec![BTreeMap::new(); sinks.len()]);
        Self { evaluator, sinks, pool, seen, kept, done: 0 }
    }

    /// Works out everything. False where it was interrupted, or the writer has failed.
    fn produce(
        &mut self,
        interrupt: &Interrupt,
        on_event: &mut dyn FnMut(MergeEvent),
        to_writer: &SyncSender<Arc<Runs>>,
        to_hasher: &SyncSender<Arc<Runs>>,
    ) -> Result<bool> {
        let specs = self.sinks[0].writer.specs().to_vec();
        let operands: Vec<_> = self.sinks.iter().map(|sink| sink.operand).collect();
        self.evaluator.look_over(&operands)?;
        let is_whole = |step: &usize| {
            matches!(self.evaluator.graph.steps[*step].method, Method::SmoothAdd | Method::TopK)
        };
        let keeps_whole = self.evaluator.graph.steps_of(&operands).iter().any(is_whole);
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let mut ready = VecDeque::new();
        for (tensor, spec) in specs.iter().enumerate() {
            if interrupt.is_raised() {
                return Ok(false);
            }
            if ready.is_empty() {
                ready = self.plans(&specs[tensor..])?;
            }
            let plan = ready.pop_front().expect("a group is not empty");
            bytes += self.queue(tensor, spec, plan, &mut batch)?;
            let last = tensor + 1 == specs.len();
            // What is kept of whole tensors goes before the next ones are got ready.
            let all = last || (keeps_whole && ready.is_empty());
            // A large tensor is handed over in parts, so that no more than a batch is ever in memory.
            while bytes >= BATCH || (all && !batch.is_empty()) {
                let part = take(&mut batch, &mut bytes);
                let runs = Arc::new(self.work_out(&part)?);
                self.done += runs.iter().map(|run| run.bytes.len() as u64).sum::<u64>();
                if to_writer.send(Arc::clone(&runs)).is_err() || to_hasher.send(runs).is_err() {
                    return Ok(false);
                }
                on_event(MergeEvent::Merged { bytes: self.done });
                if interrupt.is_raised() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Gets the next few tensors ready side by side: methods that look over a tensor beforehand would else have but one small
    /// one at a time. No more than a batch of them, for some of these methods keep a value for each element.
    fn plans(&self, specs: &[TensorSpec]) -> Result<VecDeque<Option<Arc<KeyPlan>>>> {
        let mut bytes = 0;
        let is_in = |spec: &&TensorSpec| {
            bytes += spec.bytes() as usize;
            bytes <= BATCH
        };
        let few = specs.iter().take_while(is_in).count().max(1);
        let plans = specs[..few].par_iter().map(|spec| self.plan(&spec.name));
        Ok(plans.collect::<Result<Vec<_>>>()?.into())
    }

    /// A tensor that is worked out by chunks, for all outputs.
    fn plan(&self, name: &str) -> Result<Option<Arc<KeyPlan>>> {
        if name == position_ids_name() || self.sinks.iter().any(|sink| self.is_narrowed(sink, name)) {
            return Ok(None);
        }
        let target = |sink: &Sink| (sink.operand, keeps_vae(sink.plan, name));
        let targets: Vec<_> = self.sinks.iter().map(target).collect();
        Ok(Some(Arc::new(self.evaluator.plan(name, &targets)?)))
    }

    /// Puts a tensor's work into the batch and tells its bytes.
    fn queue(
        &mut self,
        tensor: usize,
        spec: &TensorSpec,
        plan: Option<Arc<KeyPlan>>,
        batch: &mut Vec<(usize, Work)>,
    ) -> Result<usize> {
        let before = batch.len();
        if let Some(plan) = plan {
            self.chunks(tensor, &plan, batch);
        } else if spec.name == position_ids_name() {
            for (output, sink) in self.sinks.iter().enumerate() {
                let positions = self.evaluator.config(sink.operand).clip.max_positions;
                self.ready(output, tensor, position_ids(positions), batch);
            }
        } else {
            for output in 0..self.sinks.len() {
                let sink = &self.sinks[output];
                let target = (sink.operand, keeps_vae(sink.plan, &spec.name));
                let plan = self.evaluator.plan(&spec.name, &[target])?;
                self.note_kept(output, &spec.name, plan.kept[0].clone());
                let (_, bytes) = whole(self.evaluator, &plan, sink.plan, sink.precision)?;
                self.ready(output, tensor, bytes, batch);
            }
        }
        Ok(batch[before..].iter().map(|(bytes, _)| bytes).sum())
    }

    fn ready(&self, output: usize, tensor: usize, bytes: Vec<u8>, batch: &mut Vec<(usize, Work)>) {
        batch.push((bytes.len(), Work::Ready { output, tensor, bytes }));
    }

    /// Whether a parent's input layer has fewer channels than the result.
    fn is_narrowed(&self, sink: &Sink, name: &str) -> bool {
        let shape = |parent: usize| Some(self.evaluator.checkpoint(parent).info(name).ok()?.shape);
        let a = shape(self.evaluator.graph.first(sink.operand));
        name.ends_with("input_blocks.0.0.weight") && sink.checkpoints.iter().any(|parent| shape(*parent) != a)
    }

    fn chunks(&mut self, tensor: usize, plan: &Arc<KeyPlan>, batch: &mut Vec<(usize, Work)>) {
        for (output, kept) in plan.kept.iter().enumerate() {
            self.note_kept(output, &plan.name, kept.clone());
        }
        let size: usize = self.sinks.iter().map(|sink| sink.precision.size()).sum();
        for range in plan.chunks() {
            batch.push((range.1 * size, Work::Chunk { plan: Arc::clone(plan), tensor, range }));
        }
    }

    fn note_kept(&mut self, output: usize, name: &str, why: Option<Kept>) {
        if let Some(why) = why {
            self.kept[output].entry(why).or_default().push(name.to_owned());
        }
    }

    /// Works out a batch by all threads, each piece of work straight into its place.
    fn work_out(&mut self, batch: &[Work]) -> Result<Runs> {
        let (evaluator, sinks) = (self.evaluator, self.sinks);
        let mut runs = self.pool.take(sinks.len());
        let mut places: Vec<Vec<&mut [u8]>> = batch.iter().map(|_| Vec::with_capacity(sinks.len())).collect();
        for (output, run) in runs.iter_mut().enumerate() {
            let size = sinks[output].precision.size();
            let lengths = || batch.iter().map(|work| work.bytes(output, size));
            let first = batch.iter().find(|work| work.bytes(output, size) > 0);
            (run.tensor, run.start) = first.map_or((0, 0), |work| work.place(size));
            run.bytes.resize(lengths().sum(), 0);
            let mut rest = run.bytes.as_mut_slice();
            for (places, length) in places.iter_mut().zip(lengths()) {
                let (place, after) = rest.split_at_mut(length);
                places.push(place);
                rest = after;
            }
        }
        let looked: Vec<_> = batch
            .par_iter()
            .zip(places)
            .map(|(work, mut places)| match work {
                Work::Ready { output, bytes, .. } => {
                    places[*output].copy_from_slice(bytes);
                    Ok(Vec::new())
                }
                Work::Chunk { plan, range, .. } => chunk(evaluator, sinks, plan, *range, &mut places),
            })
            .collect::<Result<_>>()?;
        for (work, looked) in batch.iter().zip(looked) {
            self.note_seen(work, looked);
        }
        Ok(runs)
    }

    fn note_seen(&mut self, work: &Work, looked: Vec<Option<Looked>>) {
        let (tensor, _) = work.place(1);
        for (seen, looked) in self.seen.iter_mut().zip(looked) {
            if let Some((same, alike)) = looked {
                let all = seen.same.entry(tensor).or_insert_with(|| vec![true; same.len()]);
                all.iter_mut().zip(same).for_each(|(all, same)| *all &= same);
                *seen.alike.entry(tensor).or_insert(true) &= alike;
            }
        }
    }
}

/// Takes a batch's worth of work from the front.
fn take(batch: &mut Vec<(usize, Work)>, bytes: &mut usize) -> Vec<Work> {
    let mut taken = 0;
    let n = batch
        .iter()
        .take_while(|(size, _)| {
            let room = taken < BATCH;
            taken += size;
            room
        })
        .count();
    *bytes -= batch[..n].iter().map(|(size, _)| size).sum::<usize>();
    batch.drain(..n).map(|(_, work)| work).collect()
}

/// For each checkpoint whether the result is the same, and whether they are all alike.
type Looked = (Vec<bool>, bool);

/// Works out a part of a tensor into a place of each output, and compares those that were merged with the parents.
fn chunk(
    evaluator: &Evaluator,
    sinks: &[Sink],
    plan: &KeyPlan,
    range: (usize, usize),
    places: &mut [&mut [u8]],
) -> Result<Vec<Option<Looked>>> {
    let mut looked: Vec<Option<Looked>> = sinks
        .iter()
        .zip(&plan.kept)
        .map(|(sink, kept)| {
            let has: Vec<_> = sink.checkpoints.iter().map(|parent| plan.has(*parent)).collect();
            // Of one alone (a LoRA has no such values) nothing is to be said.
            let are_several = has.len() > 1;
            kept.is_none().then(|| (has.clone(), are_several && !has.contains(&false)))
        })
        .collect();
    // The parents' values too, to be compared with.
    let merged = sinks.iter().zip(&looked).filter(|(_, looked)| looked.is_some());
    let parents: BTreeSet<usize> = merged.flat_map(|(sink, _)| sink.checkpoints.iter().copied()).collect();
    let parents: Vec<_> = parents.into_iter().filter(|parent| plan.has(*parent)).collect();
    let operands: Vec<_> =
        plan.targets.iter().copied().chain(parents.iter().map(|parent| Operand::Parent(*parent))).collect();
    let mut failed = None;
    evaluator.chunk(plan, &operands, range, &mut |at, values| {
        let of_parent = |parent: &usize| {
            let index = parents.binary_search(parent).expect("it was asked for");
            values[plan.targets.len() + index]
        };
        for (i, sink) in sinks.iter().enumerate() {
            let size = sink.precision.size();
            let out = &mut places[i][(at - range.0) * size..][..values[i].len() * size];
            if let Err(error) = encode(&sink.plan.path, &plan.name, sink.precision, at, values[i], out) {
                failed.get_or_insert(error);
            }
            let Some((same, alike)) = &mut looked[i] else { continue };
            for (same, parent) in same.iter_mut().zip(&sink.checkpoints) {
                *same = *same && is_same(sink.precision, out, values[i], of_parent(parent));
            }
            let all_alike =
                || sink.checkpoints.iter().all(|parent| of_parent(parent) == of_parent(&sink.checkpoints[0]));
            *alike = *alike && all_alike();
        }
    })?;
    failed.map_or(Ok(looked), Err)
}

/// Whether a parent's values are those of the result, or are once both are rounded.
fn is_same(precision: Precision, bytes: &[u8], values: &[f32], parent: &[f32]) -> bool {
    values == parent || {
        let mut rounded = vec![0; bytes.len()];
        precision.encode(parent, &mut rounded);
        rounded == bytes
    }
}

/// Writes what comes, and tells the disk now and then to keep up.
fn write_all(
    sinks: &[Sink],
    batches: &Receiver<Arc<Runs>>,
    pool: &Pool,
    to_disk: &SyncSender<()>,
) -> Result<()> {
    let mut since = 0;
    for runs in batches {
        for (sink, run) in sinks.iter().zip(runs.iter()) {
            sink.writer.write_run(run.tensor, run.start, &run.bytes)?;
            since += run.bytes.len() as u64;
        }
        pool.give_back(runs);
        if since >= FLUSH {
            match to_disk.try_send(()) {
                Ok(()) => since = 0,
                Err(TrySendError::Full(())) => {}
                // It has failed, and says so when it is joined.
                Err(TrySendError::Disconnected(())) => return Ok(()),
            }
        }
    }
    Ok(())
}

/// Hashes the files as they are written: runs come in the order of each file.
fn hash_all(sinks: &[Sink], batches: &Receiver<Arc<Runs>>, pool: &Pool) -> Vec<ContentHash> {
    let start = |sink: &Sink| {
        let mut hasher = FileHasher::default();
        hasher.update(sink.writer.header());
        hasher
    };
    let mut hashers: Vec<_> = sinks.iter().map(start).collect();
    for runs in batches {
        for (hasher, run) in hashers.iter_mut().zip(runs.iter()) {
            hasher.update(&run.bytes);
        }
        pool.give_back(runs);
    }
    hashers.into_iter().map(FileHasher::finish).collect()
}

fn report(
    evaluator: &Evaluator,
    sink: &Sink,
    seen: &Seen,
    kept: BTreeMap<Kept, Vec<String>>,
    sha256: ContentHash,
) -> OutputReport {
    let same = |index: &usize| !seen.same.is_empty() && seen.same.values().all(|same| same[*index]);
    let same_as = (0..sink.checkpoints.len()).find(same).map(|index| sink.checkpoints[index]);
    let kept = kept.into_iter().map(|(why, tensors)| KeptTensors { why, tensors }).collect();
    OutputReport {
        path: sink.plan.path.clone(),
        outcome: Outcome::Done,
        precision: sink.precision,
        tensors: keys::all(evaluator.config(sink.operand)).len() as u64,
        equal: seen.alike.values().filter(|alike| **alike).count() as u64,
        same_as: same_as.map(|parent| evaluator.graph.parents[parent].name.clone()),
        kept,
        dropped: dropped(evaluator, sink),
        sha256: Some(sha256),
    }
}

/// What other parents have and A has no place for.
fn dropped(evaluator: &Evaluator, sink: &Sink) -> BTreeMap<String, Vec<String>> {
    let a = evaluator.checkpoint(evaluator.graph.first(sink.operand));
    let mut dropped = BTreeMap::new();
    for parent in evaluator.graph.parents_of(&[sink.operand]) {
        let names: Vec<String> = match &evaluator.parents[parent] {
            Opened::Checkpoint(other) => {
                let unknown = other.names().filter(|name| a.info(name).is_err());
                // EMA copies, the noise schedule and the like; position_ids are written new.
                let extras = other.extras().map(|(name, _)| name);
                let extras = extras.filter(|name| !name.ends_with("position_ids"));
                unknown.chain(extras).map(ToOwned::to_owned).collect()
            }
            Opened::Lora(lora) => lora.unused().to_vec(),
        };
        if !names.is_empty() {
            dropped.insert(evaluator.graph.parents[parent].name.clone(), names);
        }
    }
    dropped
}

/// Tensors that are read back, spread over the file.
const SAMPLE: usize = 8;

/// Reads some tensors of what has been written, and works them out again.
fn read_back(evaluator: &Evaluator, sink: &Sink) -> Result<()> {
    let Sink { plan: output, operand, precision, writer, .. } = sink;
    let specs = writer.specs().iter().enumerate().filter(|(_, spec)| spec.name != position_ids_name());
    for (index, spec) in specs.step_by(writer.specs().len().div_ceil(SAMPLE)) {
        let plan = evaluator.plan(&spec.name, &[(*operand, keeps_vae(output, &spec.name))])?;
        let (_, bytes) = whole(evaluator, &plan, output, *precision)?;
        if writer.read_back(index)? != bytes {
            return Err(Error::ReadBack { path: output.path.clone(), tensor: spec.name.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vodka_stage::hash_bytes;
    use vodka_testkit::model;

    use super::*;
    use crate::Recipe;

    #[test]
    fn what_reads_back_otherwise_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.safetensors");
        let params = [("multiplier".to_owned(), vec![0.5.into()])];
        let parents = vec![model("base"), model("v1")];
        let recipe = Recipe::of_one(Method::WeightedSum, parents, &params, None, path.clone()).unwrap();
        let plan = recipe.plan().unwrap();
        let evaluator = Evaluator::open(plan.graph.clone()).unwrap();
        let sink = open(&evaluator, &plan, &plan.outputs[0], &[hash_bytes(""); 2]).unwrap();
        for (index, spec) in sink.writer.specs().iter().enumerate() {
            sink.writer.write_at(index, 0, &vec![0; spec.bytes() as usize]).unwrap();
        }
        let said = read_back(&evaluator, &sink).unwrap_err().to_string();
        let start = format!("`{}` was written, but its tensor `", path.display());
        assert!(said.starts_with(&start) && said.ends_with("` reads back otherwise"), "{said}");
    }

    #[test]
    fn too_few_parents_and_too_many_outputs_are_told() {
        let of = |paths: usize, weights: usize| {
            let params = [("multiplier".to_owned(), vec![0.5.into(); weights])];
            let recipe =
                Recipe::of_one(Method::AddDifference, vec!["a".into(); paths], &params, None, "o".into())?;
            recipe.plan()
        };
        assert_eq!(of(2, 1).unwrap_err().to_string(), "add-difference takes 3 checkpoints, found 2");
        let said = of(3, 1001).unwrap_err().to_string();
        assert_eq!(said, "the lists of weights make more than 1000 outputs");
    }
}
