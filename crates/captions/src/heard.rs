//! Work that may take long, ended by a raised interrupt.

use std::{
    panic,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use vodka_stage::Interrupt;

use crate::{Error, Result};

/// So long a raised interrupt may go unnoticed.
const LOOK: Duration = Duration::from_millis(50);

/// Ends what can be ended from within.
///
/// # Errors
/// [`Error::Stopped`], once the interrupt is raised.
pub(crate) fn stop_if(interrupt: &Interrupt) -> Result<()> {
    if interrupt.is_raised() { Err(Error::Stopped) } else { Ok(()) }
}

/// Does work that reads and changes nothing, and does not wait for its end once the interrupt is raised: wherever it is
/// (listing a folder, in a query of a large table, at a disk that does not answer), it is left alone, and what it finds is
/// dropped.
///
/// # Errors
/// Those of the work; [`Error::Stopped`].
pub(crate) fn heard<T: Send + 'static>(
    interrupt: &Interrupt,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    stop_if(interrupt)?;
    let (send, done) = mpsc::channel();
    let worker = thread::spawn(move || {
        // Nobody may be waiting any more.
        drop(send.send(work()));
    });
    loop {
        match done.recv_timeout(LOOK) {
            Ok(done) => return done,
            Err(RecvTimeoutError::Timeout) => stop_if(interrupt)?,
            Err(RecvTimeoutError::Disconnected) => match worker.join() {
                Err(reason) => panic::resume_unwind(reason),
                Ok(()) => unreachable!("work that ends says what it has found"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_waited_for_until_the_interrupt_is_raised() {
        let interrupt = Interrupt::new();
        assert_eq!(heard(&interrupt, || Ok(7)).unwrap(), 7);
        assert!(matches!(heard::<u8>(&interrupt, || Err(Error::NoModel)), Err(Error::NoModel)));
        // Work that never ends: the channel's other end is held until the test does.
        let (hold, held) = mpsc::channel::<()>();
        let flag = interrupt.clone();
        let stopped = heard(&interrupt, move || {
            flag.raise();
            Ok(held.recv().is_ok())
        });
        assert!(matches!(stopped, Err(Error::Stopped)));
        assert!(matches!(heard(&interrupt, || Ok(())), Err(Error::Stopped)), "nothing is begun");
        drop(hold);
    }

    #[test]
    #[should_panic(expected = "our fault")]
    fn a_panic_is_handed_on() {
        let _ = heard::<()>(&Interrupt::new(), || panic!("our fault"));
    }
}
