//! The engine: reads, works out, writes and hashes side by side, in pieces of a fixed size.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use rayon::prelude::*;
use vodka_checkpoint::{
    Checkpoint, Precision, SafetensorsWriter, TensorSpec, check_free_space, keys, position_ids,
    position_ids_name, single_file_tensors,
};
use vodka_stage::{ContentHash, FileHasher, Interrupt, Outcome};

use crate::{
    Error, Kept, KeptTensors, MergeEvent, MergePlan, Operand, OutputPlan, OutputReport, Result,
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

/// Some bytes of an output.
struct Piece {
    output: usize,
    tensor: usize,
    start: u64,
    bytes: Vec<u8>,
}

/// Something to work out.
enum Work {
    /// A part of a tensor, for the outputs of the plan.
    Chunk { plan: Arc<KeyPlan>, tensor: usize, outputs: Arc<[usize]>, range: (usize, usize) },
    /// Bytes that are there already.
    Ready(Piece),
}

/// What is seen of the chunks of an output.
#[derive(Debug, Clone, Default)]
struct Seen {
    /// Per tensor: whether the result is the same as each of the checkpoints.
    same: BTreeMap<usize, Vec<bool>>,
    /// Per tensor: whether all checkpoints are alike.
    alike: BTreeMap<usize, bool>,
}

/// Writes the outputs; none where it was interrupted.
pub(crate) fn write(
    evaluator: &Evaluator,
    plan: &MergePlan,
    outputs: &[&OutputPlan],
    hashes: &[ContentHash],
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(MergeEvent),
) -> Result<Option<Vec<OutputReport>>> {
    let sinks =
        outputs.iter().map(|output| open(evaluator, plan, output, hashes)).collect::<Result<Vec<_>>>()?;
    check_space(&sinks)?;
    let total = sinks.iter().map(|sink| sink.writer.file_bytes()).sum();
    on_event(MergeEvent::Started { bytes: total });
    let mut producer = Producer::new(evaluator, &sinks);
    let done = thread::scope(|scope| {
        let (to_writer, pieces) = sync_channel(1);
        let (to_hasher, hashed) = sync_channel(1);
        let (to_disk, ticks) = sync_channel(1);
        let sinks = &sinks;
        let writer = scope.spawn(move || write_all(sinks, &pieces, &to_disk));
        let hasher = scope.spawn(move || hash_all(sinks, &hashed));
        scope.spawn(move || {
            ticks.iter().for_each(|()| sinks.iter().for_each(|sink| drop(sink.writer.sync())));
        });
        let produced = producer.produce(interrupt, on_event, &to_writer, &to_hasher);
        drop((to_writer, to_hasher));
        let hashes = hasher.join().expect("hashing does not fail");
        writer.join().expect("errors are returned")?;
        Ok::<_, Error>(produced?.then_some(hashes))
    })?;
    let Some(hashes) = done else { return Ok(None) };
    let (seen, kept) = (producer.seen, producer.kept);
    let mut reports = Vec::new();
    for (((sink, seen), kept), sha256) in sinks.into_iter().zip(seen).zip(kept).zip(hashes) {
        reports.push(report(evaluator, &sink, &seen, kept, sha256));
        let (path, operand, precision) = (sink.plan, sink.operand, sink.precision);
        sink.writer.commit()?;
        read_back(evaluator, path, operand, precision)?;
    }
    Ok(Some(reports))
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

/// All outputs of a folder must find room in it together.
fn check_space(sinks: &[Sink]) -> Result<()> {
    let mut needed: BTreeMap<&Path, (&Path, u64)> = BTreeMap::new();
    for sink in sinks {
        let path = sink.plan.path.as_path();
        needed.entry(path.parent().unwrap_or(path)).or_insert((path, 0)).1 += sink.writer.file_bytes();
    }
    Ok(needed.values().try_for_each(|(path, bytes)| check_free_space(path, *bytes))?)
}

/// Makes the pieces, in the order of the files.
struct Producer<'a> {
    evaluator: &'a Evaluator,
    sinks: &'a [Sink<'a>],
    seen: Vec<Seen>,
    kept: Vec<BTreeMap<Kept, Vec<String>>>,
    done: u64,
}

type Pieces = Arc<Vec<Piece>>;

impl<'a> Producer<'a> {
    fn new(evaluator: &'a Evaluator, sinks: &'a [Sink<'a>]) -> Self {
        let (seen, kept) = (vec![Seen::default(); sinks.len()], vec![BTreeMap::new(); sinks.len()]);
        Self { evaluator, sinks, seen, kept, done: 0 }
    }

    /// Works out everything. False where it was interrupted, or the writer has failed.
    fn produce(
        &mut self,
        interrupt: &Interrupt,
        on_event: &mut dyn FnMut(MergeEvent),
        to_writer: &SyncSender<Pieces>,
        to_hasher: &SyncSender<Pieces>,
    ) -> Result<bool> {
        let specs = self.sinks[0].writer.specs().to_vec();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for (tensor, spec) in specs.iter().enumerate() {
            if interrupt.is_raised() {
                return Ok(false);
            }
            bytes += self.queue(tensor, spec, &mut batch)?;
            let last = tensor + 1 == specs.len();
            // A large tensor is handed over in parts, so that no more than a batch is ever in memory.
            while bytes >= BATCH || (last && !batch.is_empty()) {
                let part = take(&mut batch, &mut bytes);
                let pieces = Arc::new(self.work_out(part)?);
                self.done += pieces.iter().map(|piece| piece.bytes.len() as u64).sum::<u64>();
                if to_writer.send(Arc::clone(&pieces)).is_err() || to_hasher.send(pieces).is_err() {
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

    /// Puts a tensor's work into the batch and tells its bytes.
    fn queue(&mut self, tensor: usize, spec: &TensorSpec, batch: &mut Vec<(usize, Work)>) -> Result<usize> {
        let before = batch.len();
        if spec.name == position_ids_name() {
            for (output, sink) in self.sinks.iter().enumerate() {
                let positions = self.evaluator.config(sink.operand).clip.max_positions;
                self.ready(output, tensor, position_ids(positions), batch);
            }
        } else if self.sinks.iter().any(|sink| self.is_narrowed(sink, &spec.name)) {
            for output in 0..self.sinks.len() {
                let sink = &self.sinks[output];
                let target = (sink.operand, keeps_vae(sink.plan, &spec.name));
                let plan = self.evaluator.plan(&spec.name, &[target])?;
                self.note_kept(output, &spec.name, plan.kept[0].clone());
                let (_, bytes) = whole(self.evaluator, &plan, sink.plan, sink.precision)?;
                self.ready(output, tensor, bytes, batch);
            }
        } else {
            self.chunks(tensor, &spec.name, batch)?;
        }
        Ok(batch[before..].iter().map(|(bytes, _)| bytes).sum())
    }

    fn ready(&self, output: usize, tensor: usize, bytes: Vec<u8>, batch: &mut Vec<(usize, Work)>) {
        batch.push((bytes.len(), Work::Ready(Piece { output, tensor, start: 0, bytes })));
    }

    /// Whether a parent's input layer has fewer channels than the result.
    fn is_narrowed(&self, sink: &Sink, name: &str) -> bool {
        let shape = |parent: usize| Some(self.evaluator.checkpoint(parent).info(name).ok()?.shape);
        let a = shape(self.evaluator.graph.first(sink.operand));
        name.ends_with("input_blocks.0.0.weight") && sink.checkpoints.iter().any(|parent| shape(*parent) != a)
    }

    fn chunks(&mut self, tensor: usize, name: &str, batch: &mut Vec<(usize, Work)>) -> Result<()> {
        let target = |sink: &Sink| (sink.operand, keeps_vae(sink.plan, name));
        let targets: Vec<_> = self.sinks.iter().map(target).collect();
        let plan = Arc::new(self.evaluator.plan(name, &targets)?);
        for (output, kept) in plan.kept.iter().enumerate() {
            self.note_kept(output, name, kept.clone());
        }
        let outputs: Arc<[usize]> = (0..self.sinks.len()).collect();
        let size: usize = self.sinks.iter().map(|sink| sink.precision.size()).sum();
        for range in plan.chunks() {
            let (plan, outputs) = (Arc::clone(&plan), Arc::clone(&outputs));
            batch.push((range.1 * size, Work::Chunk { plan, tensor, outputs, range }));
        }
        Ok(())
    }

    fn note_kept(&mut self, output: usize, name: &str, why: Option<Kept>) {
        if let Some(why) = why {
            self.kept[output].entry(why).or_default().push(name.to_owned());
        }
    }

    /// Works out a batch by all threads; the pieces come in the order of the work.
    fn work_out(&mut self, batch: Vec<(usize, Work)>) -> Result<Vec<Piece>> {
        let (evaluator, sinks) = (self.evaluator, self.sinks);
        let done: Vec<_> = batch
            .into_par_iter()
            .map(|(_, work)| match work {
                Work::Ready(piece) => Ok(vec![(piece, None)]),
                Work::Chunk { plan, tensor, outputs, range } => {
                    chunk(evaluator, sinks, &plan, tensor, &outputs, range)
                }
            })
            .collect::<Result<_>>()?;
        let mut pieces = Vec::new();
        for (piece, looked) in done.into_iter().flatten() {
            if let Some((same, alike)) = looked {
                let seen = &mut self.seen[piece.output];
                let all = seen.same.entry(piece.tensor).or_insert_with(|| vec![true; same.len()]);
                all.iter_mut().zip(same).for_each(|(all, same)| *all &= same);
                *seen.alike.entry(piece.tensor).or_insert(true) &= alike;
            }
            pieces.push(piece);
        }
        Ok(pieces)
    }
}

/// Takes a batch's worth of work from the front.
fn take(batch: &mut Vec<(usize, Work)>, bytes: &mut usize) -> Vec<(usize, Work)> {
    let mut taken = 0;
    let n = batch
        .iter()
        .take_while(|(size, _)| {
            let room = taken < BATCH;
            taken += size;
            room
        })
        .count();
    let part: Vec<_> = batch.drain(..n).collect();
    *bytes -= part.iter().map(|(size, _)| size).sum::<usize>();
    part
}

/// For each checkpoint whether the result is the same, and whether they are all alike.
type Looked = (Vec<bool>, bool);

/// Works out a part of a tensor for all outputs, and compares it with the parents.
fn chunk(
    evaluator: &Evaluator,
    sinks: &[Sink],
    plan: &KeyPlan,
    tensor: usize,
    outputs: &[usize],
    (start, len): (usize, usize),
) -> Result<Vec<(Piece, Option<Looked>)>> {
    let bytes = |output: &usize| vec![0; len * sinks[*output].precision.size()];
    let mut made: Vec<Vec<u8>> = outputs.iter().map(bytes).collect();
    let merged = |output: usize| plan.kept[output].is_none();
    let mut looked: Vec<Looked> =
        outputs.iter().map(|output| (vec![true; sinks[*output].checkpoints.len()], true)).collect();
    // The parents' values too, to be compared with.
    let parents: Vec<usize> = {
        let of_merged = outputs.iter().filter(|output| merged(**output));
        let mut parents: Vec<_> = of_merged.flat_map(|output| sinks[*output].checkpoints.clone()).collect();
        parents.sort_unstable();
        parents.dedup();
        parents
    };
    let operands: Vec<_> =
        plan.targets.iter().copied().chain(parents.iter().map(|parent| Operand::Parent(*parent))).collect();
    let mut failed = None;
    evaluator.chunk(plan, &operands, (start, len), &mut |place, values| {
        let of_parent = |parent: &usize| {
            let index = parents.iter().position(|other| other == parent).expect("it was asked for");
            values[plan.targets.len() + index]
        };
        for (i, output) in outputs.iter().enumerate() {
            let Sink { precision, checkpoints, plan: output_plan, .. } = &sinks[*output];
            let size = precision.size();
            let out = &mut made[i][(place - start) * size..][..values[i].len() * size];
            if let Err(error) = encode(&output_plan.path, &plan.name, *precision, place, values[i], out) {
                failed.get_or_insert(error);
            }
            if merged(*output) {
                let (same, alike) = &mut looked[i];
                for (same, parent) in same.iter_mut().zip(checkpoints) {
                    *same = *same && is_same(*precision, out, values[i], of_parent(parent));
                }
                *alike = *alike
                    && checkpoints.iter().all(|parent| of_parent(parent) == of_parent(&checkpoints[0]));
            }
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let piece = |((output, bytes), looked): ((&usize, Vec<u8>), Looked)| {
        let start = (start * sinks[*output].precision.size()) as u64;
        (Piece { output: *output, tensor, start, bytes }, merged(*output).then_some(looked))
    };
    Ok(outputs.iter().zip(made).zip(looked).map(piece).collect())
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
fn write_all(sinks: &[Sink], pieces: &Receiver<Pieces>, to_disk: &SyncSender<()>) -> Result<()> {
    let mut since = 0;
    for batch in pieces {
        for Piece { output, tensor, start, bytes } in batch.iter() {
            sinks[*output].writer.write_at(*tensor, *start, bytes)?;
            since += bytes.len() as u64;
        }
        if since >= FLUSH && to_disk.try_send(()).is_ok() {
            since = 0;
        }
    }
    Ok(())
}

/// Hashes the files as they are written: pieces come in the order of each file.
fn hash_all(sinks: &[Sink], pieces: &Receiver<Pieces>) -> Vec<ContentHash> {
    let start = |sink: &Sink| {
        let mut hasher = FileHasher::default();
        hasher.update(sink.writer.header());
        hasher
    };
    let mut hashers: Vec<_> = sinks.iter().map(start).collect();
    for batch in pieces {
        for piece in batch.iter() {
            hashers[piece.output].update(&piece.bytes);
        }
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

/// Reads some tensors of a file that has been written, and works them out again.
fn read_back(
    evaluator: &Evaluator,
    output: &OutputPlan,
    operand: Operand,
    precision: Precision,
) -> Result<()> {
    let file = Checkpoint::open(&output.path)?;
    let names: Vec<_> = file.names().map(ToOwned::to_owned).collect();
    for name in names.iter().step_by(names.len().div_ceil(SAMPLE)) {
        let plan = evaluator.plan(name, &[(operand, keeps_vae(output, name))])?;
        let (_, bytes) = whole(evaluator, &plan, output, precision)?;
        if *file.tensor(name)?.data != *bytes {
            drop(std::fs::remove_file(&output.path));
            return Err(Error::ReadBack { path: output.path.clone(), tensor: name.clone() });
        }
    }
    Ok(())
}
