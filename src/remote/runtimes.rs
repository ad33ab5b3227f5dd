//! Where a store's requests are driven, and where they are waited for.
//!
//! An async runtime of their own drives them. Whoever waits does so on a thread of theirs, or on one of those kept here for
//! that, and no longer than until all waiting is ended. What is under way then is left where it is, for it may never end. Where the
//! system gives no thread, what is to wait on one is done by whoever asks for that.

use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::fault::{Fault, FaultKind};
use crate::error::{Error, Result};

/// How many threads drive the requests: they copy bytes and decrypt them.
const DRIVING_THREADS: usize = 2;
/// How many threads may look up hosts' names for it, which systems are not asked for without waiting.
const LOOKING_UP_THREADS: usize = 256;
/// How many threads may wait for it. They are not those that look up names: who waits would take away what he waits for.
pub(super) const WAITING_THREADS: usize = 256;

/// See the module's description.
pub(crate) struct Runtimes {
    /// `Some` until it is dropped.
    driving: Option<Runtime>,
    /// The threads that wait, if any; `Some` until it is dropped.
    waiting: Option<Runtime>,
    closed: watch::Sender<bool>,
}

impl Drop for Runtimes {
    fn drop(&mut self) {
        // Requests under way may never end.
        let runtimes = [self.waiting.take(), self.driving.take()];
        for runtime in runtimes.into_iter().flatten() {
            runtime.shutdown_background();
        }
    }
}

impl Runtimes {
    /// Starts threads.
    ///
    /// # Errors
    /// The system gives nothing to wait for the network with.
    ///
    /// # Panics
    /// It gives no thread to drive requests.
    pub(super) fn start() -> Result<Self> {
        let no_thread = |error| Error::io("cannot start a thread", error);
        let driving = Builder::new_multi_thread()
            .worker_threads(DRIVING_THREADS)
            .max_blocking_threads(LOOKING_UP_THREADS)
            .thread_name("network")
            .enable_all()
            .build()
            .map_err(no_thread)?;
        // Nothing drives it, it has but the threads that it is given work for.
        let waiting = Builder::new_current_thread()
            .max_blocking_threads(WAITING_THREADS)
            .thread_name("waiting")
            .build()
            .map_err(no_thread)?;
        Ok(Self {
            driving: Some(driving),
            waiting: Some(waiting),
            closed: watch::Sender::new(false),
        })
    }

    /// Ends all waiting, now and later, with an error.
    pub(crate) fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Waits for something, but no longer than until all waiting is ended.
    pub(super) fn wait<T>(&self, work: impl Future<Output = Result<T, Fault>>) -> io::Result<T> {
        let driving = self.driving.as_ref();
        let driving = driving.ok_or_else(|| is_ending().into_io())?;
        let outcome = driving.block_on(self.until_closed(work));
        outcome.map_err(Fault::into_io)
    }

    /// As [`Runtimes::wait`], for what is driven already.
    pub(super) async fn until_closed<T>(
        &self,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        let mut end = self.closed.subscribe();
        let end = pin!(end.wait_for(|closed| *closed));
        match select(pin!(work), end).await {
            Either::Left((outcome, _)) => outcome,
            Either::Right(_) => Err(is_ending()),
        }
    }

    /// Drives something that nobody waits for.
    pub(super) fn spawn(
        &self,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> Option<AbortHandle> {
        let driving = self.driving.as_ref()?;
        Some(driving.spawn(work).abort_handle())
    }

    /// Does something that may wait for the store, on a thread of its own; or here, if there is none and none to be had.
    pub(crate) fn run_waiting(&self, work: impl FnOnce() + Send + 'static) {
        let Some(waiting) = &self.waiting else {
            return;
        };
        let work = Arc::new(Mutex::new(Some(work)));
        let given = Arc::clone(&work);
        let spawn = || drop(waiting.spawn_blocking(move || run_once(&given)));
        // It panics then, and keeps what it was given for the next thread that it has.
        if catch_unwind(AssertUnwindSafe(spawn)).is_err() {
            run_once(&work);
        }
    }

    /// Does something after a while, which must not wait for anything.
    pub(crate) fn run_later(&self, delay: Duration, work: impl FnOnce() + Send + 'static) {
        self.spawn(async move {
            tokio::time::sleep(delay).await;
            work();
        });
    }
}

/// Does some work unless somebody else does.
fn run_once(work: &Mutex<Option<impl FnOnce()>>) {
    let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(work) = work {
        work();
    }
}

fn is_ending() -> Fault {
    Fault::new(FaultKind::Unable, "the mount is ending")
}
