//! How many requests about a store's objects may be under way at once.
//!
//! Requests that somebody waits for may have all places; those that are a guess share some of them, so that a reader never stands behind
//! speculation.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::memory::Urgency;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Places {
    requests: Arc<Semaphore>,
    guesses: Arc<Semaphore>,
}

/// A place among them.
#[derive(Debug)]
pub(super) struct Place {
    _guess: Option<OwnedSemaphorePermit>,
    _request: Option<OwnedSemaphorePermit>,
}

impl Places {
    /// How many requests may be under way at once.
    pub(super) const REQUESTS: usize = 64;
    /// How many of those may be guesses.
    const GUESSES: usize = 32;

    /// A place, if there is one now.
    pub(super) fn at_once(&self, urgency: Urgency) -> Option<Place> {
        let guess = match urgency {
            Urgency::Speculation => Some(self.guesses.clone().try_acquire_owned().ok()?),
            Urgency::Demand => None,
        };
        Some(Place {
            _guess: guess,
            _request: Some(self.requests.clone().try_acquire_owned().ok()?),
        })
    }

    /// A place, when there is one.
    pub(super) async fn wait(&self, urgency: Urgency) -> Place {
        let guess = match urgency {
            Urgency::Speculation => self.guesses.clone().acquire_owned().await.ok(),
            Urgency::Demand => None,
        };
        Place {
            _guess: guess,
            _request: self.requests.clone().acquire_owned().await.ok(),
        }
    }
}

impl Default for Places {
    fn default() -> Self {
        Self {
            requests: Arc::new(Semaphore::new(Self::REQUESTS)),
            guesses: Arc::new(Semaphore::new(Self::GUESSES)),
        }
    }
}
