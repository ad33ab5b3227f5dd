//! The server's file descriptors: as many as it may have, and some kept back.
//!
//! Every file and directory that a program has open in the mount costs one here. If they could take all, nothing could be looked up
//! or listed any more, and nobody would know why. So the last few are for the server's own use, those before them for
//! directories alone, and whoever opens one too many is told so; programs that have theirs open go on, and what they close can
//! be opened again.

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
/// How many directories may be open when files have taken all they may.
const FOR_DIRECTORIES: u64 = 16;
/// How often the log is told.
const TOLD_AGAIN: Duration = Duration::from_secs(60);

/// What is to be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    File,
    Directory,
}

/// How much may be open.
#[derive(Debug)]
pub(super) struct Descriptors {
    limit: u64,
    for_files: u64,
    for_all: u64,
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
        let for_all = limit.saturating_sub(kept_back).max(limit / 2);
        Self {
            limit,
            for_files: for_all.saturating_sub(FOR_DIRECTORIES).max(for_all / 2),
            for_all,
            told: Occasionally::every(TOLD_AGAIN),
        }
    }

    /// Whether another one may be opened beside the files and directories that are; if not, the log says so, once a minute.
    ///
    /// # Errors
    /// [`ErrorKind::TooManyOpen`]
    pub(super) fn check(&self, wanted: Wanted, open: u64) -> Result<()> {
        let most = match wanted {
            Wanted::File => self.for_files,
            Wanted::Directory => self.for_all,
        };
        if open < most {
            return Ok(());
        }
        let refused = ErrorKind::TooManyOpen {
            open,
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
        for (limit, threads, for_files, for_all) in
            [(256, 2, 192, 208), (1024, 16, 848, 864), (40, 16, 10, 20)]
        {
            let descriptors = Descriptors::of(limit, threads);
            for (wanted, most) in [(Wanted::File, for_files), (Wanted::Directory, for_all)] {
                assert!(descriptors.check(wanted, most - 1).is_ok(), "{limit}");
                let refused = descriptors.check(wanted, most).unwrap_err();
                assert!(
                    matches!(refused.kind(), ErrorKind::TooManyOpen { .. }),
                    "{limit}"
                );
            }
        }
        let descriptors = Descriptors::of(u64::MAX, 2);
        assert!(descriptors.check(Wanted::File, 1 << 40).is_ok());
    }
}
