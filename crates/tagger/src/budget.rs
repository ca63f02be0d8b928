//! So much at a time, and no more: who needs more than there is waits until others have given theirs back.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// An amount that is shared out.
#[derive(Debug)]
pub(crate) struct Budget {
    whole: u64,
    free: Mutex<u64>,
    freed: Condvar,
}

impl Budget {
    pub fn new(whole: u64) -> Self {
        Self { whole, free: Mutex::new(whole), freed: Condvar::new() }
    }

    /// Waits until so much is free, and holds it. Who wants more than there is in all gets all, and is alone.
    pub fn take(&self, amount: u64) -> Share<'_> {
        let amount = amount.min(self.whole);
        let lacks = |free: &mut u64| *free < amount;
        let mut free = self.freed.wait_while(self.lock(), lacks).unwrap_or_else(PoisonError::into_inner);
        *free -= amount;
        Share { budget: self, amount }
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A part of a [`Budget`], given back when dropped.
#[derive(Debug)]
pub(crate) struct Share<'a> {
    budget: &'a Budget,
    amount: u64,
}

#[cfg(test)]
impl Share<'_> {
    pub fn amount(&self) -> u64 {
        self.amount
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        *self.budget.lock() += self.amount;
        self.budget.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU64, Ordering},
        thread,
    };

    use super::*;

    #[test]
    fn no_more_is_out_than_there_is() {
        let (budget, out, most) = (Budget::new(10), AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            for seed in 0..8_u64 {
                let (budget, out, most) = (&budget, &out, &most);
                scope.spawn(move || {
                    for i in 0..200 {
                        // Also more than there is.
                        let wanted = (seed * 7 + i * 3) % 14;
                        let share = budget.take(wanted);
                        most.fetch_max(
                            out.fetch_add(share.amount, Ordering::SeqCst) + share.amount,
                            Ordering::SeqCst,
                        );
                        out.fetch_sub(share.amount, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(most.into_inner() <= 10);
        assert_eq!(*budget.lock(), 10, "all of it is back");
    }
}
