//! Panics of code that is not ours, where one bad file must not end a run of a million.

use std::{
    cell::Cell,
    panic::{self, AssertUnwindSafe},
};

thread_local! {
    /// How many [`catch_panic`] this thread is in.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// What `work` makes; `None` where it panics. Whatever it was at must not be looked at then.
pub fn catch_panic<T>(work: impl FnOnce() -> T) -> Option<T> {
    struct Left;
    impl Drop for Left {
        fn drop(&mut self) {
            DEPTH.set(DEPTH.get() - 1);
        }
    }
    DEPTH.set(DEPTH.get() + 1);
    let _left = Left;
    panic::catch_unwind(AssertUnwindSafe(work)).ok()
}

/// Whether a panic of this thread would be caught by [`catch_panic`]: for a panic hook, which need not tell of it then.
pub fn is_panic_caught() -> bool {
    DEPTH.get() > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_caught_and_known_to_be() {
        assert!(!is_panic_caught());
        assert_eq!(catch_panic(|| (is_panic_caught(), catch_panic(|| 1))), Some((true, Some(1))));
        let inner =
            catch_panic(|| catch_panic(|| panic!("a case of its own")).is_none() && is_panic_caught());
        assert_eq!(inner, Some(true));
        assert!(!is_panic_caught());
    }
}
