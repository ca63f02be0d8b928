//! What is in libtorch's half for CUDA and tch has no call for, through a small library of ours (`native/cuda.cpp`) that
//! is carried in the program and opened behind that half.

use std::{
    ffi::{c_int, c_ulonglong, c_void},
    ptr,
    sync::OnceLock,
};

use tch::{Device, TchError};

use crate::{
    failure::catch,
    native::{Text, said},
};

/// The library; empty where it could not be built.
const LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/vodka_cuda.so"));

/// Its functions, once it is opened.
static CALLS: OnceLock<Calls> = OnceLock::new();

type OnRecording = unsafe extern "C" fn(*mut c_void) -> Text;

#[derive(Debug)]
struct Calls {
    new: unsafe extern "C" fn(c_int, *mut *mut c_void) -> Text,
    aside: OnRecording,
    back: OnRecording,
    begin: OnRecording,
    end: OnRecording,
    replay: OnRecording,
    free: unsafe extern "C" fn(*mut c_void),
    peak: unsafe extern "C" fn(c_int, *mut c_ulonglong) -> Text,
    available: unsafe extern "C" fn(c_int, *mut c_ulonglong) -> Text,
    free_text: unsafe extern "C" fn(Text),
}

/// Opens the library, after `libtorch_cuda`; where that does not work, what it does is done without.
pub(crate) fn open() {
    #[cfg(target_os = "linux")]
    if CALLS.get().is_none()
        && let Some(calls) = linux::open(LIBRARY)
    {
        let _ = CALLS.set(calls);
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        ffi::{c_char, c_uint},
        fs::File,
        io::Write,
        os::fd::{AsRawFd, FromRawFd},
    };

    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

    use super::{Calls, c_int};

    unsafe extern "C" {
        fn memfd_create(name: *const c_char, flags: c_uint) -> c_int;
    }

    /// Opens a library that is in memory.
    pub fn open(bytes: &[u8]) -> Option<Calls> {
        if bytes.is_empty() {
            return None;
        }
        // SAFETY: a name that ends with 0.
        let descriptor = unsafe { memfd_create(c"vodka_cuda".as_ptr(), 0) };
        if descriptor < 0 {
            return None;
        }
        // SAFETY: it is open, and nobody else's.
        let mut file = unsafe { File::from_raw_fd(descriptor) };
        file.write_all(bytes).ok()?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        // SAFETY: it has no constructors of its own but those of headers of libtorch.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.ok()?;
        // SAFETY: the names and types are those of native/cuda.cpp.
        let calls = unsafe {
            Calls {
                new: *library.get(c"vodka_graph_new").ok()?,
                aside: *library.get(c"vodka_graph_aside").ok()?,
                back: *library.get(c"vodka_graph_back").ok()?,
                begin: *library.get(c"vodka_graph_begin").ok()?,
                end: *library.get(c"vodka_graph_end").ok()?,
                replay: *library.get(c"vodka_graph_replay").ok()?,
                free: *library.get(c"vodka_graph_free").ok()?,
                peak: *library.get(c"vodka_cuda_peak").ok()?,
                available: *library.get(c"vodka_cuda_available").ok()?,
                free_text: *library.get(c"vodka_cuda_free").ok()?,
            }
        };
        std::mem::forget(library);
        Some(calls)
    }
}

impl Calls {
    fn checked(&self, text: Text) -> Result<(), TchError> {
        // SAFETY: a text of the library, freed by it.
        unsafe { said(text, self.free_text) }.map_or(Ok(()), |said| Err(TchError::Torch(said)))
    }
}

/// The most memory that tensors had at a time on a GPU, in bytes; `None` where that is not known.
pub fn peak_bytes(device: Device) -> Option<u64> {
    bytes(device, |calls| calls.peak)
}

/// What a GPU has left for tensors, in bytes; `None` where that is not known.
pub(crate) fn available_bytes(device: Device) -> Option<u64> {
    bytes(device, |calls| calls.available)
}

fn bytes(
    device: Device,
    call: fn(&Calls) -> unsafe extern "C" fn(c_int, *mut c_ulonglong) -> Text,
) -> Option<u64> {
    let (Device::Cuda(ordinal), Some(calls)) = (device, CALLS.get()) else { return None };
    let mut bytes = 0;
    // SAFETY: the number lives until the call is over.
    calls.checked(unsafe { call(calls)(ordinal as c_int, &raw mut bytes) }).ok()?;
    Some(bytes)
}

/// Work of a GPU that is written down once and done again and again: a CUDA graph.
#[derive(Debug)]
pub struct Graph {
    recording: *mut c_void,
    calls: &'static Calls,
}

// SAFETY: libtorch's graphs and streams may be used from any one thread at a time.
unsafe impl Send for Graph {}

impl Graph {
    /// An empty one.
    ///
    /// # Errors
    /// On a processor, and where the library is not; what libtorch says.
    pub fn new(device: Device) -> Result<Self, TchError> {
        let none = |why: &str| Err(TchError::Torch(why.to_owned()));
        let Device::Cuda(ordinal) = device else { return none("CUDA graphs are for GPUs") };
        let Some(calls) = CALLS.get() else {
            return none(
                "the library for CUDA graphs was not built with this program, or does not fit libtorch",
            );
        };
        let mut recording = ptr::null_mut();
        // SAFETY: the pointer lives until the call is over.
        calls.checked(unsafe { (calls.new)(ordinal as c_int, &raw mut recording) })?;
        Ok(Self { recording, calls })
    }

    /// Does something on the stream that it will be written down on, as must be done before: libtorch sets itself up.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn warm_up<R>(&self, act: impl FnOnce() -> R) -> Result<R, TchError> {
        self.call(self.calls.aside)?;
        let result = act();
        self.call(self.calls.back)?;
        Ok(result)
    }

    /// Writes down what `act` asks of the GPU; nothing of it is done, and it may not wait for anything.
    ///
    /// # Errors
    /// What libtorch says, also in `act`; the stream is the one from before all the same.
    pub fn record<R>(&self, act: impl FnOnce() -> R) -> Result<R, TchError> {
        self.call(self.calls.aside)?;
        let recorded = self.call(self.calls.begin).and_then(|()| {
            let result = catch(act);
            // What `act` was refused says more than that the recording is broken.
            let ended = self.call(self.calls.end);
            result.and_then(|result| ended.map(|()| result))
        });
        let back = self.call(self.calls.back);
        recorded.and_then(|result| back.map(|()| result))
    }

    /// Does what was written down, in the memory that it was written down with.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn replay(&self) -> Result<(), TchError> {
        self.call(self.calls.replay)
    }

    fn call(&self, call: OnRecording) -> Result<(), TchError> {
        // SAFETY: the recording is there until it is dropped.
        self.calls.checked(unsafe { call(self.recording) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: it is ours, and dropped once.
        unsafe { (self.calls.free)(self.recording) };
    }
}
