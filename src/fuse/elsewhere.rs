//! Threads for requests that may have to wait for a network: as many as wait, within bounds.
//!
//! The threads that read requests are few and must not wait: else a listing would stand behind reads of a server that is gone,
//! and an unmount behind both. Where the system gives no thread for it, they do: late is better than never.

#[cfg(feature = "remote")]
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "remote")]
use crate::remote::Store;

/// See the module's description.
#[derive(Debug, Clone)]
pub(super) enum Elsewhere {
    /// The threads of a store.
    #[cfg(feature = "remote")]
    Store(Arc<Store>),
}

impl Elsewhere {
    /// Does something there.
    pub(super) fn run(&self, work: impl FnOnce() + Send + 'static) {
        match self {
            #[cfg(feature = "remote")]
            Elsewhere::Store(store) => store.runtimes().run_waiting(work),
            #[cfg(not(feature = "remote"))]
            _ => work(),
        }
    }

    /// Does something there after a while, which must not take long.
    pub(super) fn run_later(&self, delay: Duration, work: impl FnOnce() + Send + 'static) {
        match self {
            #[cfg(feature = "remote")]
            Elsewhere::Store(store) => store.runtimes().run_later(delay, work),
            #[cfg(not(feature = "remote"))]
            _ => drop((delay, work)),
        }
    }
}
