//! Work done ahead of whoever needs it, on threads of its own, in the order in which it will be needed.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        mpsc::{Receiver, sync_channel},
    },
};

use rayon::ThreadPool;

/// A queue of results: so many are made, or in the making, before they are taken.
///
/// What is made depends on the job alone, so neither the number of threads nor their speed changes anything but the
/// time it takes.
pub(crate) struct Ahead<J, T> {
    pool: Arc<ThreadPool>,
    make: Arc<dyn Fn(&J) -> T + Send + Sync>,
    coming: Box<dyn Iterator<Item = J>>,
    made: VecDeque<(J, Receiver<T>)>,
    most: usize,
}

impl<J: Clone + PartialEq + Send + 'static, T: Send + 'static> Ahead<J, T> {
    /// Makes what `coming` lists, at most `most` results at a time.
    pub fn new(
        pool: Arc<ThreadPool>,
        most: usize,
        coming: impl Iterator<Item = J> + 'static,
        make: impl Fn(&J) -> T + Send + Sync + 'static,
    ) -> Self {
        let (coming, make) = (Box::new(coming), Arc::new(make));
        let mut ahead = Self { pool, make, coming, made: VecDeque::new(), most: most.max(1) };
        ahead.fill();
        ahead
    }

    /// The result of a job: the next one in the queue, or else (out of its order) one that is made on the spot.
    pub fn take(&mut self, job: &J) -> T {
        let is_next = self.made.front().is_some_and(|(next, _)| next == job);
        let next = if is_next { self.made.pop_front() } else { None };
        self.fill();
        // A worker that panicked has sent nothing: the panic is met here again.
        next.and_then(|(_, made)| made.recv().ok()).unwrap_or_else(|| (self.make)(job))
    }

    fn fill(&mut self) {
        while self.made.len() < self.most {
            let Some(job) = self.coming.next() else { return };
            let (to, from) = sync_channel(1);
            self.made.push_back((job.clone(), from));
            let make = Arc::clone(&self.make);
            self.pool.spawn_fifo(move || {
                // Nobody listens any more where the run has ended.
                let _ = to.send(make(&job));
            });
        }
    }
}

/// Threads for such work; a panic in one is not the end of the process.
///
/// # Panics
/// When the system starts no threads.
pub(crate) fn pool(threads: usize) -> Arc<ThreadPool> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("data-{i}"))
        .panic_handler(|_| ())
        .build();
    Arc::new(pool.expect("threads can be started"))
}

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        sync::atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    #[test]
    fn results_come_in_order_whatever_the_threads_and_never_too_many() {
        for threads in [1, 2, 7] {
            let made = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&made);
            let make = move |job: &u64| {
                counted.fetch_add(1, Ordering::SeqCst);
                job * job
            };
            let mut ahead = Ahead::new(pool(threads), 5, 0..100, make);
            for job in 0..100_u64 {
                assert_eq!(ahead.take(&job), job * job);
                // Those taken, and those that may wait.
                assert!(made.load(Ordering::SeqCst) <= job as usize + 1 + 5);
            }
            assert_eq!(made.load(Ordering::SeqCst), 100, "each once");
        }
    }

    #[test]
    fn what_is_out_of_order_is_made_on_the_spot_and_the_queue_stays() {
        let mut ahead = Ahead::new(pool(1), 2, [1, 2, 3].into_iter(), |job: &i32| job * 10);
        assert_eq!([7, 1, 9, 2, 3, 4].map(|job| ahead.take(&job)), [70, 10, 90, 20, 30, 40]);
    }

    #[test]
    fn a_panic_is_met_by_whoever_takes() {
        let make = |job: &i32| {
            assert_ne!(*job, 2, "no twos");
            *job
        };
        let mut ahead = Ahead::new(pool(1), 3, 1..4, make);
        assert_eq!(ahead.take(&1), 1);
        assert!(catch_unwind(AssertUnwindSafe(|| ahead.take(&2))).is_err());
        assert_eq!(ahead.take(&3), 3);
    }
}
