//! A polite request to stop: finish the unit of work in hand, save, and return.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// A flag that whoever runs a stage raises (on Ctrl-C, say) and the stage looks at between units of work.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// A flag that is down.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the stage to stop.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the stage should stop.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
