//! Requests that wait for a network, and whose askers may have been interrupted meanwhile.
//!
//! The kernel tells of a signal that reaches who waits (`FUSE_INTERRUPT`); he goes on only when his request is answered. It is
//! answered EINTR then, while what it has begun goes on: others may wait for the same, and have not been interrupted. What
//! comes of it is told to nobody, and taken back by whoever finds that his reply was not delivered.
//!
//! Not at once, though: programs expect no EINTR of open(2) or stat(2) for a signal that they only take notice of, and the kernel
//! does not say whether one kills. So it is for those who have waited longer than a server takes that is well, however far away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long whoever was interrupted has to have waited before his request is answered.
const PATIENCE: Duration = Duration::from_secs(3);

/// The requests that wait, by their numbers, and since when.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<HashMap<u64, Instant>>);

/// A request that waits for as long as this is kept.
#[derive(Debug)]
pub(super) struct Wait {
    waiting: Arc<Waiting>,
    unique: u64,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes notice that a request begins to wait.
    pub(super) fn begin(self: &Arc<Self>, unique: u64) -> Wait {
        self.lock().insert(unique, Instant::now());
        Wait {
            waiting: Arc::clone(self),
            unique,
        }
    }

    /// How long a request still is to be left waiting though who asked was interrupted; `None` if it does not wait.
    pub(super) fn patience(&self, unique: u64) -> Option<Duration> {
        let since = self.lock().get(&unique).copied()?;
        Some(PATIENCE.saturating_sub(since.elapsed()))
    }

    /// Has a request wait no more; says whether it did, and whoever asks has to answer it.
    pub(super) fn end(&self, unique: u64) -> bool {
        self.lock().remove(&unique).is_some()
    }
}

impl Wait {
    /// Whether nobody has answered the request yet.
    pub(super) fn goes_on(&self) -> bool {
        self.waiting.lock().contains_key(&self.unique)
    }

    /// As [`Waiting::end`].
    pub(super) fn end(&self) -> bool {
        self.waiting.end(self.unique)
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_answered_once_by_whoever_ends_its_waiting() {
        let waiting = Arc::<Waiting>::default();
        let wait = waiting.begin(8);
        assert!(wait.goes_on());
        assert!(waiting.patience(8).unwrap() <= PATIENCE);
        assert!(waiting.patience(10).is_none());
        assert!(waiting.end(8));
        assert!(!wait.goes_on() && !wait.end());
        assert!(waiting.patience(8).is_none());
    }

    #[test]
    fn a_request_whose_handler_has_ended_does_not_wait() {
        let waiting = Arc::<Waiting>::default();
        drop(waiting.begin(8));
        assert!(waiting.patience(8).is_none() && !waiting.end(8));
    }
}
