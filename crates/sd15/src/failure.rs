//! libtorch's failures as errors: where memory runs out, above all.

use std::{
    any::Any,
    cell::Cell,
    panic::{self, AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Once,
};

use tch::TchError;

/// How tch panics when libtorch refuses.
const OF_TORCH: &str = "Torch(\"";

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Does something, and gives what libtorch refuses in it as an error in place of a panic; other panics go on.
///
/// tch's operators panic; their fallible twins would put a `?` behind each of the networks'.
///
/// # Errors
/// What libtorch says. [`is_out_of_memory`] tells whether there was not enough memory.
pub fn catch<R>(act: impl FnOnce() -> R) -> Result<R, TchError> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let caught = CATCHING.get() && said(info.payload()).contains(OF_TORCH);
            if !caught {
                before(info);
            }
        }));
    });
    let outer = CATCHING.replace(true);
    let result = catch_unwind(AssertUnwindSafe(act));
    CATCHING.set(outer);
    result.map_err(|panic| match said(&*panic) {
        text if text.contains(OF_TORCH) => TchError::Torch(of_torch(text)),
        _ => resume_unwind(panic),
    })
}

/// Whether libtorch says that there was not enough memory, on whichever device.
pub fn is_out_of_memory(error: &TchError) -> bool {
    let text = error.to_string();
    ["out of memory", "can't allocate memory", "not enough memory", "bad_alloc"]
        .iter()
        .any(|words| text.contains(words))
}

/// The text of a panic.
pub(crate) fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a text")
}

/// The first line of what libtorch said; the others are a trace of it.
fn of_torch(text: &str) -> String {
    let inner = text.rsplit(OF_TORCH).next().unwrap_or(text);
    let inner = inner.trim_end_matches("\")");
    inner.split("\\n").next().unwrap_or(inner).replace("\\\"", "\"")
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    #[test]
    fn too_little_memory_is_an_error() {
        let result = catch(|| Tensor::zeros([1 << 50], (Kind::Float, Device::Cpu)));
        let error = result.unwrap_err();
        assert!(is_out_of_memory(&error), "{error}");
        let error = catch(|| Tensor::zeros([2], (Kind::Float, Device::Cpu)).view([3])).unwrap_err();
        assert!(!is_out_of_memory(&error));
        assert_eq!(error.to_string(), "Internal torch error: shape '[3]' is invalid for input of size 2");
    }

    #[test]
    fn other_panics_go_on() {
        let result = catch_unwind(|| catch(|| panic!("ours")));
        assert_eq!(said(&*result.unwrap_err()), "ours");
    }
}
