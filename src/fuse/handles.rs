//! What is open: by the number the kernel gives back with every request.
//!
//! Plain files are handed to the kernel itself where it takes them (passthrough). It wants one backing file for an
//! inode, used by every handle that is open at the same time, and no handle of the other kind beside them: so the
//! first handle of an inode decides for all until the last is released.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::backing::BackingFile;
use super::listings::OpenListing;
use crate::archive::Content;
use crate::identity::Identity;
use crate::reader::Reader;
use crate::stats::{Activity, Busiest, FileActivity};
use crate::tree::NodeId;

/// An open file or directory.
#[derive(Debug)]
pub(super) enum Handle {
    /// A regular file: shown as its original if there is a reader, else as it is.
    File {
        node: NodeId,
        /// The state of the file when it was opened.
        identity: Identity,
        content: Content,
        reader: Option<Reader>,
        activity: Activity,
    },
    /// A directory, and its entries as they were when it was last read from its beginning.
    Directory {
        node: NodeId,
        /// Who has opened it.
        user: u32,
        listing: Mutex<Option<Arc<OpenListing>>>,
    },
}

/// How the handles of a plain file's inode are read.
#[derive(Debug, Clone)]
pub(super) enum Backing {
    /// By the kernel, from the file behind this number.
    Kernel(Arc<BackingFile>),
    /// By requests to us.
    Requests,
}

#[derive(Debug)]
struct BackedInode {
    backing: Backing,
    handles: u64,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Handles {
    open: RwLock<HashMap<u64, Arc<Handle>>>,
    last_number: AtomicU64,
    open_files: AtomicU64,
    backed: Mutex<HashMap<NodeId, BackedInode>>,
    /// What was read of files that are closed.
    closed: Busiest,
}

impl Handles {
    /// Adds a handle and returns its number.
    pub(super) fn add(&self, handle: Handle) -> u64 {
        let number = self.last_number.fetch_add(1, Ordering::Relaxed) + 1;
        if matches!(handle, Handle::File { .. }) {
            self.open_files.fetch_add(1, Ordering::Relaxed);
        }
        self.open
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(number, Arc::new(handle));
        number
    }

    /// The handle of a number.
    pub(super) fn get(&self, number: u64) -> Option<Arc<Handle>> {
        self.open
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&number)
            .cloned()
    }

    /// Forgets a handle, and returns it; files close when their last request is done with them.
    pub(super) fn remove(&self, number: u64) -> Option<Arc<Handle>> {
        let removed = self
            .open
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&number);
        if let Some(Handle::File {
            node,
            reader,
            activity,
            ..
        }) = removed.as_deref()
        {
            self.closed.close(activity);
            self.open_files.fetch_sub(1, Ordering::Relaxed);
            if reader.is_none() {
                self.release_backing(*node);
            }
        }
        removed
    }

    /// How many files and directories are open.
    pub(super) fn open(&self) -> u64 {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.len() as u64
    }

    /// How many files are open; directories are not counted.
    pub(super) fn open_files(&self) -> u64 {
        self.open_files.load(Ordering::Relaxed)
    }

    /// The `most` files that most was read of, closed or open, the busiest first.
    pub(super) fn busiest(&self, most: usize) -> Vec<FileActivity> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let open: Vec<_> = open.values().cloned().collect();
        let activities = open.iter().filter_map(|handle| match &**handle {
            Handle::File { activity, .. } => Some(activity),
            Handle::Directory { .. } => None,
        });
        self.closed.list(activities, most)
    }

    /// Any handle of this file.
    pub(super) fn of_node(&self, wanted: NodeId) -> Option<Arc<Handle>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.values()
            .find(|handle| matches!(***handle, Handle::File { node, .. } if node == wanted))
            .cloned()
    }

    /// How another handle of this plain file is to be read; `register` is asked for a backing file if the handle is the
    /// only one. Balanced by [`Handles::remove`] of the handle.
    pub(super) fn back(
        &self,
        node: NodeId,
        register: impl FnOnce() -> Option<BackingFile>,
    ) -> Backing {
        let mut backed = self.backed();
        let inode = backed.entry(node).or_insert_with(|| BackedInode {
            // The one call under a lock that is not ours: the kernel only notes the file down.
            backing: register().map_or(Backing::Requests, |id| Backing::Kernel(Arc::new(id))),
            handles: 0,
        });
        inode.handles += 1;
        inode.backing.clone()
    }

    fn release_backing(&self, node: NodeId) {
        let mut backed = self.backed();
        if let Some(inode) = backed.get_mut(&node) {
            inode.handles -= 1;
            if inode.handles == 0 {
                let closed = backed.remove(&node);
                drop(backed);
                drop(closed);
            }
        }
    }

    fn backed(&self) -> MutexGuard<'_, HashMap<NodeId, BackedInode>> {
        self.backed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
