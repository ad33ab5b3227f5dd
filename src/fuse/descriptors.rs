//! The server's file descriptors: as many as it may have, and some kept back.
//!
//! Every file that a program has open in the mount costs one here. If they could take all, nothing could be looked up or
//! listed any more, and nobody would know why. So the last few are for the server's own use, and whoever opens one file
//! too many is told so; programs that have theirs open go on, and what they close can be opened again.

use std::time::Duration;

use rustix::process::{Resource, Rlimit};

use crate::error::{ErrorKind, Result};
use crate::occasionally::Occasionally;
use crate::tree::LISTING_THREADS;

/// What the server has open for itself: streams, log, source, connection, signals.
const OWN: u64 = 32;
/// What one thread has open for the length of a request: directories on the way to a file, the file; or a directory and what
/// each of those has open who look at its entries.
const PER_THREAD: u64 = 4 + LISTING_THREADS as u64;
/// How often the log is told.
const TOLD_AGAIN: Duration = Duration::from_secs(60);

/// How many files may be open.
#[derive(Debug)]
pub(super) struct Descriptors {
    limit: u64,
    for_files: u64,
    told: Occasionally,
}

impl Descriptors {
    /// Takes as many as this process may have: the usual limit of 1024 is for programs that may use select(2).
    /// `threads` will answer requests.
    pub(super) fn take_all(threads: usize) -> Self {
        let limit = rustix::process::getrlimit(Resource::Nofile);
        let raised = Rlimit {
            current: limit.maximum,
            ..limit
        };
        let current = match rustix::process::setrlimit(Resource::Nofile, raised) {
            Ok(()) => limit.maximum,
            Err(error) => {
                tracing::debug!("the limit of open files stays as it is: {error}");
                limit.current
            }
        };
        Self::of(current.unwrap_or(u64::MAX), threads)
    }

    fn of(limit: u64, threads: usize) -> Self {
        let kept_back = OWN + PER_THREAD * threads as u64;
        Self {
            limit,
            for_files: limit.saturating_sub(kept_back).max(limit / 2),
            told: Occasionally::every(TOLD_AGAIN),
        }
    }

    /// Whether another file may be opened beside those that are; if not, the log says so, once a minute.
    ///
    /// # Errors
    /// [`ErrorKind::TooManyOpen`]
    pub(super) fn check(&self, open_files: u64) -> Result<()> {
        if open_files < self.for_files {
            return Ok(());
        }
        let refused = ErrorKind::TooManyOpen {
            open: open_files,
            limit: self.limit,
        };
        if self.told.is_due() {
            tracing::error!("{refused}");
        }
        Err(refused.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_descriptors_are_kept_back_but_never_more_than_half() {
        for (limit, threads, for_files) in [(256, 2, 208), (1024, 16, 864), (40, 16, 20)] {
            let descriptors = Descriptors::of(limit, threads);
            assert!(descriptors.check(for_files - 1).is_ok(), "{limit}");
            let refused = descriptors.check(for_files).unwrap_err();
            assert!(
                matches!(refused.kind(), ErrorKind::TooManyOpen { .. }),
                "{limit}"
            );
        }
        assert!(Descriptors::of(u64::MAX, 2).check(1 << 40).is_ok());
    }
}
