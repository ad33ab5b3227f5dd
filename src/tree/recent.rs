//! The directories listed last, still open.
//!
//! Whoever lists a directory asks about its entries next, one by one. A directory that is open is found without resolving
//! its path again, and is that of its node, wherever it was moved. Only directories on the source's own device are kept
//! open: others are mounts, which could not be unmounted meanwhile.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;

use super::NodeId;
use super::source::Directory;

/// How many are kept: as many as programs may be walking through the tree at a time.
const MOST: NonZeroUsize = NonZeroUsize::new(8).unwrap();

/// See the module's description.
#[derive(Debug)]
pub(super) struct Recent(Mutex<LruCache<NodeId, Arc<Directory>>>);

impl Recent {
    pub(super) fn new() -> Self {
        Self(Mutex::new(LruCache::new(MOST)))
    }

    /// The directory of a node, if it is one of those.
    pub(super) fn of(&self, node: NodeId) -> Option<Arc<Directory>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(&node).cloned()
    }

    /// Keeps a directory that was just listed.
    pub(super) fn keep(&self, node: NodeId, directory: &Arc<Directory>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let given_up = kept.push(node, Arc::clone(directory));
        drop(kept);
        // Closing may take its time.
        drop(given_up);
    }

    /// Lets a directory go that the kernel has forgotten.
    pub(super) fn forget(&self, node: NodeId) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let given_up = kept.pop(&node);
        drop(kept);
        drop(given_up);
    }
}
