//! A network in ONNX Runtime: opened once, run from as many threads at a time as it has lanes.

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString, c_char},
    panic::{RefUnwindSafe, UnwindSafe},
    path::{Path, PathBuf},
    ptr::{self, NonNull},
    slice,
    sync::{Condvar, Mutex, PoisonError},
    thread,
};

use ndarray::ArrayD;
use ort::{
    AsPointer as _,
    session::{Session, builder::SessionBuilder},
    sys,
    value::{DynValue, Outlet, TensorElementType, TensorRef},
};

use crate::{Error, Provider, Result, runtime};

/// What [`Network::open`] needs to know beside the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The ONNX Runtime library: `libonnxruntime.so`, `libonnxruntime.dylib` or `onnxruntime.dll`.
    pub onnxruntime: PathBuf,
    /// Where the network runs.
    pub provider: Provider,
    /// How many runs may go on at a time, 1 to the number of threads; more than one only where the provider allows it.
    pub lanes: usize,
    /// How many threads all lanes together may use; 0 for one per core.
    pub threads: usize,
}

/// An input or output of a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name, which differs from export to export.
    pub name: String,
    /// Type and shape in ONNX Runtime's words: `Tensor<f32>(N, 448, 448, 3)`.
    pub kind: String,
    /// The extents of a float32 tensor, `None` where the graph leaves one open. `None` for anything else.
    pub dims: Option<Vec<Option<usize>>>,
}

impl Port {
    fn new(outlet: &Outlet) -> Self {
        let kind = outlet.dtype();
        let extent = |dim: &i64| usize::try_from(*dim).ok().filter(|dim| *dim > 0);
        let is_f32 = kind.tensor_type() == Some(TensorElementType::Float32);
        let dims = kind.tensor_shape().filter(|_| is_f32).map(|dims| dims.iter().map(extent).collect());
        Self { name: outlet.name().to_owned(), kind: kind.to_string(), dims }
    }
}

/// A network, ready to run.
#[derive(Debug)]
pub struct Network {
    path: PathBuf,
    provider: Provider,
    session: Session,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    input_name: CString,
    output_names: Vec<CString>,
    lanes: Lanes,
    nodes: BTreeMap<String, usize>,
}

/// A run that unwinds leaves nothing half done: no Rust code runs below ONNX Runtime, and a lane is given back.
impl UnwindSafe for Network {}
impl RefUnwindSafe for Network {}

impl Network {
    /// Loads a graph and prepares it for the provider.
    ///
    /// ONNX Runtime is loaded at the first call in a process; later calls must name the same library.
    ///
    /// # Errors
    /// When ONNX Runtime is missing or cannot read the graph, when the provider is not available or takes no part of
    /// the graph, and for a graph without inputs or outputs.
    pub fn open(path: &Path, config: &NetworkConfig) -> Result<Self> {
        let provider = config.provider;
        let threads = match config.threads {
            0 => thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let lanes = if provider.is_concurrent() { config.lanes.clamp(1, threads) } else { 1 };
        let session = open_session(path, config, lanes, threads)?;
        let (inputs, outputs) = (ports(session.inputs()), ports(session.outputs()));
        let c_name = |port: &Port| CString::new(&*port.name).expect("it came from a C string");
        let Some(input_name) = inputs.first().map(c_name).filter(|_| !outputs.is_empty()) else {
            return Err(Error::Graph {
                model: path.to_path_buf(),
                expected: "an input and an output".to_owned(),
                found: format!("{} inputs and {} outputs", inputs.len(), outputs.len()),
            });
        };
        let nodes = nodes_of(&session).map_err(|source| Error::Runtime { model: path.into(), source })?;
        if provider != Provider::Cpu && !nodes.contains_key(provider.onnx_name()) {
            return Err(Error::Unused { provider, model: path.to_path_buf() });
        }
        let output_names = outputs.iter().map(c_name).collect();
        let (path, lanes) = (path.to_path_buf(), Lanes::new(lanes));
        Ok(Self { path, provider, session, inputs, outputs, input_name, output_names, lanes, nodes })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where it runs: what was asked for.
    pub fn provider(&self) -> Provider {
        self.provider
    }

    /// How many runs go on at a time; further ones wait.
    pub fn lanes(&self) -> usize {
        self.lanes.count
    }

    /// How many nodes of the graph are run by which provider, by ONNX Runtime's names for them. What an accelerator
    /// cannot do the processor does.
    pub fn nodes(&self) -> &BTreeMap<String, usize> {
        &self.nodes
    }

    /// What the graph takes.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// What the graph gives.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// Runs the graph on its first input, and gives the outputs of these indices. May be called from several threads.
    ///
    /// # Errors
    /// When ONNX Runtime fails, or an output is not float32.
    ///
    /// # Panics
    /// When the shape does not hold as many numbers as there are, or there is no output of such an index.
    pub fn run(&self, input: &[f32], shape: &[usize], outputs: &[usize]) -> Result<Vec<ArrayD<f32>>> {
        assert_eq!(shape.iter().product::<usize>(), input.len(), "the shape {shape:?} holds other numbers");
        let names: Vec<*const c_char> = outputs.iter().map(|i| self.output_names[*i].as_ptr()).collect();
        let run = || -> ort::Result<Vec<_>> {
            let input = TensorRef::from_array_view((shape, input))?;
            let _lane = self.lanes.take();
            self.run_shared(&input, &names)?.iter().map(to_array).collect()
        };
        run().map_err(|source| Error::Runtime { model: self.path.clone(), source })
    }

    /// [`Session::run`] on a shared session. `names` must point to C strings of `self.output_names`.
    fn run_shared(&self, input: &TensorRef<'_, f32>, names: &[*const c_char]) -> ort::Result<Vec<DynValue>> {
        let (input_names, inputs) = ([self.input_name.as_ptr()], [input.ptr()]);
        let mut values: Vec<*mut sys::OrtValue> = vec![ptr::null_mut(); names.len()];
        // SAFETY: all pointers are to what `self`, the arguments and this frame own and outlive the call; the lists are
        // as long as said; a null among the outputs asks ONNX Runtime to make the value, which is then ours.
        //
        // `Session::run` wants `&mut self` where this has `&self`. ONNX Runtime says that a session may be run from
        // several threads at a time, for `Run` keeps what it changes in a frame of its own (microsoft/onnxruntime#114
        // and #22967); the author of ort has seen it crash with providers for GPUs. `Lanes` lets more than one thread
        // come here with those providers alone that `Provider::is_concurrent` vouches for.
        unsafe {
            let status = (ort::api().Run)(
                self.session.ptr().cast_mut(),
                ptr::null(),
                input_names.as_ptr(),
                inputs.as_ptr(),
                inputs.len(),
                names.as_ptr(),
                names.len(),
                values.as_mut_ptr(),
            );
            ort::Error::result_from_status(status)?;
        }
        let own = |value| {
            let value = NonNull::new(value).expect("a run that succeeds makes its outputs");
            // SAFETY: it is a value of this session, and nobody else has it.
            unsafe { DynValue::from_ptr(value, Some(self.session.allocator())) }
        };
        Ok(values.into_iter().map(own).collect())
    }
}

fn open_session(path: &Path, config: &NetworkConfig, lanes: usize, threads: usize) -> Result<Session> {
    let environment = runtime::environment(&config.onnxruntime)?;
    let failed = |source| Error::Runtime { model: path.to_path_buf(), source };
    let provider = config.provider;
    let unavailable = |source| Error::Provider { provider, remedy: provider.remedy(), source };
    let builder = SessionBuilder::new(&environment).map_err(failed)?;
    let builder = builder.with_intra_threads((threads / lanes).max(1)).map_err(|e| failed(e.into()))?;
    // Threads of the runtime that wait by spinning would take the cores that decode the next pictures.
    let builder = builder.with_intra_op_spinning(false).map_err(|e| failed(e.into()))?;
    let key = "session.record_ep_graph_assignment_info";
    let builder = builder.with_config_entry(key, "1").map_err(|e| failed(e.into()))?;
    let providers = provider.dispatch(lanes, threads);
    let mut builder = builder.with_execution_providers(providers).map_err(|e| unavailable(e.into()))?;
    builder.commit_from_file(path).map_err(failed)
}

fn ports(outlets: &[Outlet]) -> Vec<Port> {
    outlets.iter().map(Port::new).collect()
}

fn to_array(value: &DynValue) -> ort::Result<ArrayD<f32>> {
    value.try_extract_array::<f32>().map(|array| array.to_owned())
}

/// How many nodes each provider got.
fn nodes_of(session: &Session) -> ort::Result<BTreeMap<String, usize>> {
    let mut nodes = BTreeMap::new();
    let (mut parts, mut count) = (ptr::null(), 0);
    // SAFETY: what ONNX Runtime lends here belongs to the session, which outlives this function; the lists are as long
    // as it says, and names are C strings.
    unsafe {
        let api = ort::api();
        let status = (api.Session_GetEpGraphAssignmentInfo)(session.ptr(), &mut parts, &mut count);
        ort::Error::result_from_status(status)?;
        let parts = if count == 0 { &[] } else { slice::from_raw_parts(parts, count) };
        for part in parts {
            let (mut name, mut list, mut count) = (ptr::null(), ptr::null(), 0);
            ort::Error::result_from_status((api.EpAssignedSubgraph_GetEpName)(*part, &mut name))?;
            ort::Error::result_from_status((api.EpAssignedSubgraph_GetNodes)(*part, &mut list, &mut count))?;
            *nodes.entry(CStr::from_ptr(name).to_string_lossy().into_owned()).or_default() += count;
        }
    }
    Ok(nodes)
}

/// Lets only so many in at a time.
#[derive(Debug)]
struct Lanes {
    count: usize,
    free: Mutex<usize>,
    freed: Condvar,
}

impl Lanes {
    fn new(count: usize) -> Self {
        Self { count, free: Mutex::new(count), freed: Condvar::new() }
    }

    fn take(&self) -> Lane<'_> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self.freed.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Lane(self)
    }
}

/// A place among [`Lanes`], given back when dropped.
struct Lane<'a>(&'a Lanes);

impl Drop for Lane<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}
