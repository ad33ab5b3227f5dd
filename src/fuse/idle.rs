//! Whether anybody uses the mount: one that nobody has used for a while may end by itself (`--idle-timeout`).
//!
//! What counts is the kernel's requests, and what is open: a file that is open or mapped may send none for hours. Of somebody's
//! working directory the server knows nothing, but the kernel refuses to unmount what is in use, so trying to is how it is
//! asked. It does not refuse where an overlay, or another mount namespace, has a copy of the mount with nothing open in it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvError, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How many times within the timeout it is looked whether requests have come: the mount may stay that part longer.
const LOOKS: u32 = 16;
/// The longest and the shortest time between two looks.
const RAREST: Duration = Duration::from_secs(30);
const MOST_OFTEN: Duration = Duration::from_millis(10);

/// Whether requests have come. A mark, not a clock or a counter: threads that answer requests would pass its cache line to
/// and fro, but all of them find it set.
#[derive(Debug, Default)]
pub(super) struct Activity(AtomicBool);

impl Activity {
    /// A request has come.
    pub(super) fn note(&self) {
        if !self.0.load(Ordering::Relaxed) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Whether requests have come since this was last asked.
    fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// Waits for an event. If there is a timeout and nothing was asked for that long, has it unmounted; if that cannot be,
/// because the mount is in use, the time begins anew.
///
/// # Errors
/// Nobody is left to send an event.
pub(super) fn wait<T>(
    events: &Receiver<T>,
    activity: &Activity,
    timeout: Option<Duration>,
    mut unmount: impl FnMut() -> bool,
) -> Result<T, RecvError> {
    let Some(timeout) = timeout else {
        return events.recv();
    };
    let pause = (timeout / LOOKS).clamp(MOST_OFTEN, RAREST);
    let mut last = Instant::now();
    loop {
        match events.recv_timeout(pause) {
            Ok(event) => return Ok(event),
            Err(RecvTimeoutError::Disconnected) => return Err(RecvError),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if activity.take() {
            last = Instant::now();
        } else if last.elapsed() >= timeout {
            if unmount() {
                return events.recv();
            }
            last = Instant::now();
        }
    }
}
