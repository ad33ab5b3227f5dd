//! What the kernel keeps of directories' entries.
//!
//! Where it may believe for ever what it was told, the kernel may keep a directory's entries between openings too
//! (FOPEN_CACHE_DIR), and lists it again without a request. It keeps them in the order told, finds its place in them by an
//! entry's number, and fills in what it lacks from whatever it is told next. So all that goes into it has to be of one
//! listing: handles opened while it is incomplete share the listing, and when nobody has that any more the kernel is
//! told to begin anew.
//!
//! To whom wants the entries' attributes, names alone are a bad bargain, since each is then looked up by itself: the entries
//! are listed again when the kernel has not all of them as files.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::listings::OpenListing;
use super::protocol::Opened;
use crate::tree::NodeId;

/// What a node costs besides its entry: its share of the empty slots.
const SLOT: usize = size_of::<(NodeId, Kept)>() * 3 / 2;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Directories {
    kept: Mutex<HashMap<NodeId, Kept>>,
}

/// What the kernel has of a directory's entries.
#[derive(Debug)]
enum Kept {
    /// None that it still uses.
    Nothing,
    /// The first ones of this listing.
    Some(Weak<OpenListing>),
    /// All of one that has so many.
    All(usize),
    /// Perhaps those of several: no longer to be used.
    Mixture,
}

impl Directories {
    /// How a directory is opened whose entries may be kept, and the listing that it has to be read from. `known` is how
    /// many of the entries the kernel knows as files; that it does not know all of them matters if `attributes` are wanted.
    pub(super) fn open(
        &self,
        node: NodeId,
        known: usize,
        attributes: bool,
    ) -> (Opened, Option<Arc<OpenListing>>) {
        let anew = Opened {
            cache_entries: true,
            ..Opened::default()
        };
        let keep = Opened {
            keep_cache: true,
            ..anew
        };
        let mut table = self.lock();
        let kept = table.entry(node).or_insert(Kept::Nothing);
        match kept {
            Kept::Mixture => return (Opened::default(), None),
            Kept::All(entries) if known >= *entries || !attributes => return (keep, None),
            Kept::Some(listing) => {
                if let Some(listing) = listing.upgrade() {
                    return (keep, Some(listing));
                }
            }
            Kept::Nothing | Kept::All(_) => {}
        }
        *kept = Kept::Nothing;
        (anew, None)
    }

    /// The listing that the kernel is to be told from its beginning: a new one, or what others are telling it already.
    pub(super) fn begin(&self, node: NodeId, new: Arc<OpenListing>) -> Arc<OpenListing> {
        let mut table = self.lock();
        let kept = table.entry(node).or_insert(Kept::Nothing);
        match kept {
            Kept::Some(begun) => match begun.upgrade() {
                Some(begun) => return begun,
                None => *kept = Kept::Mixture,
            },
            Kept::Mixture => {}
            // Of all it had, the kernel has given something up, or never knew it.
            Kept::Nothing | Kept::All(_) => *kept = Kept::Some(Arc::downgrade(&new)),
        }
        new
    }

    /// Takes notice that the kernel was told the end of a listing.
    pub(super) fn end(&self, node: NodeId, listing: &Arc<OpenListing>) {
        if let Some(kept) = self.lock().get_mut(&node)
            && matches!(kept, Kept::Some(begun) if begun.as_ptr() == Arc::as_ptr(listing))
        {
            *kept = match listing.is_undecided() {
                true => Kept::Nothing,
                // `.` and `..` it knows by itself.
                false => Kept::All(listing.len().saturating_sub(2)),
            };
        }
    }

    /// Takes notice that the kernel has forgotten a node.
    pub(super) fn forget(&self, node: NodeId) {
        self.lock().remove(&node);
    }

    /// The memory in use, in bytes, roughly.
    pub(super) fn memory(&self) -> usize {
        self.lock().len() * SLOT
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
