//! Works out the tensors of a graph, a block at a time: nothing between parents and results is ever whole in memory,
//! but where a method needs it so.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    mem,
    path::PathBuf,
    sync::OnceLock,
};

use rayon::prelude::*;
use vodka_checkpoint::{Checkpoint, Dtype, Lora, ModelConfig, TensorInfo, TensorView, all_below, keys};

use crate::{
    Graph, Method, Operand, Result, Step,
    kernel::{self, Blocks, Context, LoraDelta, Range, Similarities, State},
    lora::lora_delta,
    method::Passes,
};

/// Elements that are read from a parent at a time.
const CHUNK: usize = 1 << 18;
/// Elements that are worked out at a time: the blocks of a few parents stay in a core's cache.
const BLOCK: usize = 1 << 13;

/// A parent that has been opened.
#[derive(Debug)]
pub(crate) enum Opened {
    Checkpoint(Checkpoint),
    Lora(Lora),
}

/// Open parents and the graph over them.
#[derive(Debug)]
pub(crate) struct Evaluator {
    pub(crate) graph: Graph,
    pub(crate) parents: Vec<Opened>,
    /// For each step of a cosine method, what was found out about the whole model.
    models: Vec<OnceLock<Model>>,
}

/// What a cosine method needs of the whole model.
#[derive(Debug)]
struct Model {
    range: Option<Range>,
    combined: BTreeMap<String, Vec<f32>>,
}

/// Why a tensor of the result is A's as it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kept {
    /// It is of the VAE, which comes from A.
    Vae,
    /// A parent does not have it.
    Missing {
        /// The parent's name.
        parent: String,
    },
    /// A parent has it in another shape.
    Shape {
        /// The parent's name.
        parent: String,
        /// The shape there.
        found: Vec<usize>,
    },
    /// No LoRA changes it.
    NoLora,
    /// Only the first input channels are merged, for a parent has no more.
    Channels {
        /// How many are merged.
        merged: usize,
    },
}

/// Where the values of a parent come from.
#[derive(Debug)]
enum Input {
    /// The file, where they lie as they are.
    File { file: usize, offset: u64, dtype: Dtype },
    /// Memory.
    Values(Vec<f32>),
    /// The matrices of a LoRA.
    Lora(LoraDelta),
}

/// A step that is ready to be applied to a tensor.
#[derive(Debug)]
struct Ready {
    step: usize,
    method: Method,
    operands: Vec<Operand>,
    params: Vec<f64>,
    seed: u64,
    state: State,
}

/// Everything that is needed to work out one tensor.
#[derive(Debug)]
pub(crate) struct KeyPlan {
    pub(crate) name: String,
    /// The shape that is merged, which for input layers may be less than A's.
    pub(crate) shape: Vec<usize>,
    /// For each of the results asked for, what it is in the end.
    pub(crate) targets: Vec<Operand>,
    /// For each of them, why it is not what was asked for.
    pub(crate) kept: Vec<Option<Kept>>,
    inputs: Vec<Option<Input>>,
    ready: Vec<Ready>,
    block: usize,
    chunk: usize,
}

impl KeyPlan {
    /// Elements.
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether a parent has anything to do with it.
    pub(crate) fn has(&self, parent: usize) -> bool {
        self.inputs[parent].is_some()
    }

    /// Starts and lengths of the chunks in which it is worked out.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = (usize, usize)> {
        let (len, chunk) = (self.len(), self.chunk);
        (0..len).step_by(chunk).map(move |start| (start, chunk.min(len - start)))
    }
}

/// Buffers of one thread, which are kept.
#[derive(Debug, Default)]
struct Scratch {
    raw: Vec<Vec<u8>>,
    /// Of the parents, then of the steps.
    values: Vec<Vec<f32>>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    /// A chunk of each operand that a method looks over.
    static CHUNKS: Cell<Vec<Vec<f32>>> = Cell::default();
}

/// What is handed over for each block: its place, and the values of each operand asked for.
pub(crate) type TakeBlock<'a> = dyn FnMut(usize, &[&[f32]]) + 'a;

impl Evaluator {
    /// Opens the parents that a graph needs.
    ///
    /// # Errors
    /// A parent that is not what the graph needs.
    pub(crate) fn open(graph: Graph) -> Result<Self> {
        let mut parents: Vec<Option<Opened>> = Vec::new();
        for parent in &graph.parents {
            parents.push(match parent.lora {
                true => None,
                false => Some(Opened::Checkpoint(Checkpoint::open(&parent.path)?)),
            });
        }
        // LoRAs are opened for the model that they change.
        let config = parents.iter().flatten().find_map(|parent| match parent {
            Opened::Checkpoint(checkpoint) => Some(checkpoint.config().clone()),
            Opened::Lora(_) => None,
        });
        let config = config.unwrap_or_else(ModelConfig::sd15);
        let open = |(parent, opened): (&crate::Parent, Option<Opened>)| match opened {
            Some(opened) => Ok(opened),
            None => Ok(Opened::Lora(Lora::open(&parent.path, &config)?)),
        };
        let parents = graph.parents.iter().zip(parents).map(open).collect::<Result<_>>()?;
        let models = graph.steps.iter().map(|_| OnceLock::new()).collect();
        Ok(Self { graph, parents, models })
    }

    /// A parent that is a checkpoint.
    ///
    /// # Panics
    /// When it is a LoRA.
    pub(crate) fn checkpoint(&self, parent: usize) -> &Checkpoint {
        match &self.parents[parent] {
            Opened::Checkpoint(checkpoint) => checkpoint,
            Opened::Lora(lora) => panic!("`{}` is a LoRA", lora.path().display()),
        }
    }

    /// The configuration of a result: that of the parent it keeps.
    pub(crate) fn config(&self, operand: Operand) -> &ModelConfig {
        self.checkpoint(self.graph.first(operand)).config()
    }

    fn info(&self, parent: usize, name: &str) -> Option<TensorInfo> {
        self.checkpoint(parent).info(name).ok()
    }

    /// Gets a tensor of several results ready, `keep_a` telling for which of them it is to be A's.
    pub(crate) fn plan(&self, name: &str, targets: &[(Operand, bool)]) -> Result<KeyPlan> {
        let of_a = |operand| Operand::Parent(self.graph.first(operand));
        let mut kept = Vec::new();
        let targets: Vec<_> = targets
            .iter()
            .map(|(operand, keep_a)| match keep_a {
                true => {
                    kept.push(Some(Kept::Vae));
                    of_a(*operand)
                }
                false => {
                    let mut reason = None;
                    let resolved = self.resolve(name, *operand, &mut reason);
                    kept.push(reason);
                    resolved
                }
            })
            .collect();
        let used = self.used(name, &targets);
        let (shape, narrowed) = self.shape(name, &used);
        if let Some(merged) = narrowed {
            kept.iter_mut().for_each(|kept| *kept = Some(Kept::Channels { merged }));
        }
        let by_row =
            self.graph.steps_of(&targets).iter().any(|step| self.graph.steps[*step].method.info().by_row);
        let row = if by_row { kernel::row(&shape).max(1) } else { 1 };
        let block = row * (BLOCK / row).max(1);
        let chunk = block * (CHUNK / block).max(1);
        let inputs = self.inputs(name, &shape, &used)?;
        let (name, ready) = (name.to_owned(), Vec::new());
        let mut plan = KeyPlan { name, shape, targets, kept, inputs, ready, block, chunk };
        for step in self.graph.steps_of(&plan.targets) {
            let ready = self.ready(&plan, step)?;
            plan.ready.extend(ready);
        }
        Ok(plan)
    }

    /// What a result is for a tensor: itself, or its A where another of its parents cannot be merged.
    fn resolve(&self, name: &str, operand: Operand, reason: &mut Option<Kept>) -> Operand {
        let Operand::Step(step) = operand else { return operand };
        let Step { method, operands, .. } = &self.graph.steps[step];
        // Why A's own A is what it is, is of interest only where the result is A's.
        let mut of_a = None;
        let a = self.resolve(name, operands[0], &mut of_a);
        if *method == Method::ApplyLora {
            let changes =
                |operand: &Operand| matches!(operand, Operand::Parent(parent) if self.changes(*parent, name));
            if operands[1..].iter().any(changes) {
                return operand;
            }
            *reason = of_a.or(Some(Kept::NoLora));
            return a;
        }
        let first = self.graph.first(a);
        for parent in self.graph.parents_of(&operands[1..]) {
            if let Opened::Checkpoint(_) = self.parents[parent]
                && let Some(why) = self.differs(name, first, parent)
            {
                *reason = of_a.or(Some(why));
                return a;
            }
        }
        operand
    }

    fn changes(&self, parent: usize, name: &str) -> bool {
        matches!(&self.parents[parent], Opened::Lora(lora) if lora.modules().contains_key(name))
    }

    /// Why a parent's tensor cannot be merged with A's.
    fn differs(&self, name: &str, a: usize, parent: usize) -> Option<Kept> {
        let parent_name = || self.graph.parents[parent].name.clone();
        let Some(found) = self.info(parent, name) else {
            return Some(Kept::Missing { parent: parent_name() });
        };
        let expected = self.info(a, name)?.shape;
        if found.shape == expected || is_wider_input(name, &expected, &found.shape) {
            return None;
        }
        Some(Kept::Shape { parent: parent_name(), found: found.shape })
    }

    /// The parents that a tensor of the results is made of: not all that a step takes, where one of them cannot be merged.
    fn used(&self, name: &str, targets: &[Operand]) -> BTreeSet<usize> {
        let mut used = BTreeSet::new();
        for target in targets {
            match self.resolve(name, *target, &mut None) {
                Operand::Parent(parent) => drop(used.insert(parent)),
                Operand::Step(step) => used.extend(self.used(name, &self.graph.steps[step].operands)),
            }
        }
        used
    }

    /// The shape that is merged, and the channels it is narrowed to where parents differ in the input layer.
    fn shape(&self, name: &str, parents: &BTreeSet<usize>) -> (Vec<usize>, Option<usize>) {
        let checkpoints = parents.iter().filter(|p| matches!(self.parents[**p], Opened::Checkpoint(_)));
        let shapes: Vec<_> = checkpoints.filter_map(|parent| Some(self.info(*parent, name)?.shape)).collect();
        let widest = shapes.iter().max().cloned().unwrap_or_default();
        let narrowest = shapes.into_iter().min().unwrap_or_default();
        match widest == narrowest {
            true => (widest, None),
            false => {
                let merged = narrowest[1];
                (narrowest, Some(merged))
            }
        }
    }

    fn inputs(&self, name: &str, shape: &[usize], used: &BTreeSet<usize>) -> Result<Vec<Option<Input>>> {
        let mut inputs: Vec<Option<Input>> = self.parents.iter().map(|_| None).collect();
        for parent in used {
            inputs[*parent] = match &self.parents[*parent] {
                Opened::Lora(lora) => lora_delta(lora, name)?.map(Input::Lora),
                Opened::Checkpoint(checkpoint) => match self.info(*parent, name) {
                    Some(info) => Some(input(checkpoint, name, shape, &info)?),
                    None => None,
                },
            };
        }
        Ok(inputs)
    }

    /// Gets a step ready; none where the tensor does not need it.
    fn ready(&self, plan: &KeyPlan, step: usize) -> Result<Option<Ready>> {
        let Step { method, operands, params, seed, .. } = &self.graph.steps[step];
        let resolve = |operand: &Operand| self.resolve(&plan.name, *operand, &mut None);
        if resolve(&Operand::Step(step)) != Operand::Step(step) {
            return Ok(None);
        }
        let has = |operand: &Operand| match operand {
            Operand::Parent(parent) => plan.inputs[*parent].is_some(),
            Operand::Step(_) => true,
        };
        let operands: Vec<_> = operands.iter().map(resolve).filter(has).collect();
        let params: Vec<_> = params.iter().map(|weight| weight.at(&plan.name)).collect();
        let state = match method.info().passes {
            Passes::One => State::None,
            Passes::Tensor(_) => {
                kernel::prepare(*method, &Reader { evaluator: self, plan, operands: &operands }, &params)?
            }
            Passes::Model => self.shares(step, &plan.name, params[0])?,
        };
        let seed = seed.map_or(0, |seed| kernel::mix(seed ^ hash(&plan.name)));
        Ok(Some(Ready { step, method: *method, operands, params, seed, state }))
    }

    /// The share of A in each column, for the cosine methods. Tensors that were not looked at (the VAE) stay A's.
    fn shares(&self, step: usize, name: &str, alpha: f64) -> Result<State> {
        self.look_over(&[Operand::Step(step)])?;
        let model = self.models[step].get().expect("it was looked over");
        Ok(State::Columns(match (model.range, model.combined.get(name)) {
            (Some(range), Some(combined)) => range.shares(combined, alpha),
            _ => vec![1.0],
        }))
    }

    /// Goes over whole models for those of the operands, and of what they are made of, that need it.
    ///
    /// # Errors
    /// A file that cannot be read; a weight of a parent that is not finite.
    pub(crate) fn look_over(&self, operands: &[Operand]) -> Result<()> {
        // Steps come after those they take.
        for step in self.graph.steps_of(operands) {
            let passes = self.graph.steps[step].method.info().passes;
            if passes == Passes::Model && self.models[step].get().is_none() {
                let model = self.model(step)?;
                self.models[step].get_or_init(|| model);
            }
        }
        Ok(())
    }

    /// Goes over the whole model, but for the VAE, some tensors at a time, nearly in the order of the files.
    fn model(&self, step: usize) -> Result<Model> {
        let all = keys::all(self.config(self.graph.steps[step].operands[0]));
        let mut names: Vec<_> = all.into_iter().map(|key| key.ldm).collect();
        names.retain(|name| {
            !name.starts_with(keys::VAE_PREFIX)
                && self.resolve(name, Operand::Step(step), &mut None) == Operand::Step(step)
        });
        names.sort_unstable();
        let mut pooled = Vec::new();
        let mut combined = BTreeMap::new();
        for names in names.chunks(4 * rayon::current_num_threads()) {
            let found =
                names.par_iter().map(|name| self.similarities(step, name)).collect::<Result<Vec<_>>>()?;
            for (name, of_key) in names.iter().zip(found) {
                pooled.extend(of_key.pooled);
                combined.insert(name.clone(), of_key.combined);
            }
        }
        Ok(Model { range: Range::of(pooled), combined })
    }

    fn similarities(&self, step: usize, name: &str) -> Result<Similarities> {
        let Step { method, operands, .. } = &self.graph.steps[step];
        let targets: Vec<_> = operands.iter().map(|operand| (*operand, false)).collect();
        let plan = self.plan(name, &targets)?;
        kernel::similarities(*method, &Reader { evaluator: self, plan: &plan, operands: &plan.targets })
    }

    /// Works out a chunk of the results that a plan is for, or of other operands that it has.
    ///
    /// # Errors
    /// A file that cannot be read; a weight of a parent that is not finite.
    pub(crate) fn chunk(
        &self,
        plan: &KeyPlan,
        operands: &[Operand],
        (start, len): (usize, usize),
        take: &mut TakeBlock,
    ) -> Result<()> {
        SCRATCH.with_borrow_mut(|scratch| {
            let parents = self.graph.parents_of(operands);
            let parents: Vec<_> =
                parents.into_iter().filter(|parent| plan.inputs[*parent].is_some()).collect();
            scratch.raw.resize_with(self.parents.len(), Vec::new);
            scratch.values.resize_with(self.parents.len() + self.graph.steps.len(), Vec::new);
            for parent in &parents {
                self.read_raw(plan, *parent, (start, len), &mut scratch.raw[*parent])?;
            }
            let steps = self.graph.steps_of(operands);
            for at in (0..len).step_by(plan.block) {
                let block = (start + at, plan.block.min(len - at));
                for parent in &parents {
                    self.read_block(plan, *parent, at, block, scratch)?;
                }
                for ready in plan.ready.iter().filter(|ready| steps.contains(&ready.step)) {
                    self.apply(plan, ready, block.0, &mut scratch.values);
                }
                let values: Vec<&[f32]> =
                    operands.iter().map(|operand| scratch.values[self.place(*operand)].as_slice()).collect();
                take(block.0, &values);
            }
            Ok(())
        })
    }

    fn place(&self, operand: Operand) -> usize {
        match operand {
            Operand::Parent(parent) => parent,
            Operand::Step(step) => self.parents.len() + step,
        }
    }

    fn read_raw(
        &self,
        plan: &KeyPlan,
        parent: usize,
        (start, len): (usize, usize),
        raw: &mut Vec<u8>,
    ) -> Result<()> {
        if let Some(Input::File { file, offset, dtype }) = &plan.inputs[parent] {
            let bytes = len * dtype.size();
            if raw.len() < bytes {
                raw.resize(bytes, 0);
            }
            let offset = offset + (start * dtype.size()) as u64;
            self.checkpoint(parent).read_at(*file, offset, &mut raw[..bytes])?;
        }
        Ok(())
    }

    fn read_block(
        &self,
        plan: &KeyPlan,
        parent: usize,
        at: usize,
        (start, len): (usize, usize),
        scratch: &mut Scratch,
    ) -> Result<()> {
        let values = &mut scratch.values[parent];
        values.resize(len, 0.0);
        match plan.inputs[parent].as_ref().expect("inputs that are there") {
            Input::File { dtype, .. } => decode(*dtype, &scratch.raw[parent], at, values),
            Input::Values(all) => values.copy_from_slice(&all[start..start + len]),
            Input::Lora(delta) => delta.read(start, values),
        }
        if all_below(values, f32::INFINITY) {
            return Ok(());
        }
        let index = values.iter().position(|x| !x.is_finite()).expect("one was seen");
        let (path, tensor): (PathBuf, _) = (self.graph.parents[parent].path.clone(), plan.name.clone());
        let (index, value) = (start + index, values[index]);
        Err(vodka_checkpoint::Error::NotFinite { path, tensor, index, value }.into())
    }

    fn apply(&self, plan: &KeyPlan, ready: &Ready, start: usize, values: &mut [Vec<f32>]) {
        let place = self.place(Operand::Step(ready.step));
        let mut out = mem::take(&mut values[place]);
        out.clear();
        out.extend_from_slice(&values[self.place(ready.operands[0])]);
        let others = ready.operands[1..].iter().map(|operand| values[self.place(*operand)].as_slice());
        let others: Vec<_> = others.collect();
        let context = Context {
            params: &ready.params,
            seed: ready.seed,
            start,
            shape: &plan.shape,
            state: &ready.state,
        };
        kernel::apply(ready.method, &mut out, &others, &context);
        values[place] = out;
    }
}

/// Elements of a file as f32.
fn decode(dtype: Dtype, raw: &[u8], start: usize, out: &mut [f32]) {
    let view = TensorView { dtype, shape: Vec::new(), data: raw.into() };
    view.read_f32(start, out);
}

/// Whether A's tensor is the input layer of a UNet that takes more channels (inpainting, pix2pix) than the other's.
pub(crate) fn is_wider_input(name: &str, a: &[usize], other: &[usize]) -> bool {
    let input = name.strip_prefix(keys::UNET_PREFIX) == Some("input_blocks.0.0.weight");
    let [out_a, channels_a, kernel_a @ ..] = a else { return false };
    let [out_b, channels_b, kernel_b @ ..] = other else { return false };
    input && out_a == out_b && kernel_a == kernel_b && channels_a > channels_b
}

/// How a checkpoint's tensor is read: where it lies, or whole where it does not lie in one piece or is wider than what
/// is merged.
fn input(checkpoint: &Checkpoint, name: &str, shape: &[usize], info: &TensorInfo) -> Result<Input> {
    if info.shape == shape
        && let Some(place) = info.place
    {
        return Ok(Input::File { file: place.file, offset: place.offset, dtype: info.dtype });
    }
    let values = checkpoint.tensor(name)?.to_f32();
    if info.shape == shape {
        return Ok(Input::Values(values));
    }
    let kernel: usize = shape[2..].iter().product();
    let (wide, narrow) = (info.shape[1] * kernel, shape[1] * kernel);
    Ok(Input::Values(values.chunks(wide).flat_map(|row| &row[..narrow]).copied().collect()))
}

/// FNV-1a, which tells tensors apart for their random numbers.
fn hash(name: &str) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    name.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Some operands of a plan, as methods look over them.
struct Reader<'a> {
    evaluator: &'a Evaluator,
    plan: &'a KeyPlan,
    operands: &'a [Operand],
}

impl Blocks for Reader<'_> {
    fn shape(&self) -> &[usize] {
        &self.plan.shape
    }

    fn block_len(&self) -> usize {
        self.plan.chunk
    }

    fn read(&self, index: usize, take: &mut dyn FnMut(usize, &[&[f32]])) -> Result<()> {
        let Self { evaluator, plan, operands } = *self;
        let start = index * plan.chunk;
        let len = plan.chunk.min(plan.len() - start);
        // Methods take a chunk at once: what they count and sum is the same however long blocks are.
        let mut buffers = CHUNKS.take();
        buffers.resize_with(buffers.len().max(operands.len()), Vec::new);
        let whole = &mut buffers[..operands.len()];
        whole.iter_mut().for_each(Vec::clear);
        evaluator.chunk(plan, operands, (start, len), &mut |_, values| {
            whole.iter_mut().zip(values).for_each(|(whole, values)| whole.extend_from_slice(values));
        })?;
        take(start, &whole.iter().map(Vec::as_slice).collect::<Vec<_>>());
        CHUNKS.set(buffers);
        Ok(())
    }
}
