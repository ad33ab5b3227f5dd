//! The adapter: a request in, tree or reader called, a reply out.
//!
//! Nothing is decided here but how the kernel is spoken to, and what is to be answered elsewhere because it may wait for a
//! network. A panic in a handler is caught: the request is answered EIO
//! when its reply is dropped, and the thread goes on.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::FOREVER;
use super::curiosity::Curiosity;
use super::descriptors::{Descriptors, Wanted};
use super::directories::Directories;
use super::elsewhere::Elsewhere;
use super::errno::errno;
use super::files::bad_handle;
use super::handles::{Handle, Handles};
use super::idle::Activity;
use super::listings::{Listings, OpenListing};
use super::observation::Observation;
use super::protocol::{Features, Listed, Opened, Operation, Reply, Request};
use crate::error::Result;
use crate::reader::Engine;
use crate::tree::{Kind, ListedEntry, Listing, NodeId, Shown, Tree};

/// What answers the kernel's requests.
#[derive(Debug)]
pub(super) struct WarpFilesystem {
    pub(super) tree: Arc<dyn Shown>,
    pub(super) engine: Arc<Engine>,
    pub(super) handles: Arc<Handles>,
    pub(super) descriptors: Descriptors,
    directories: Arc<Directories>,
    listings: Arc<Listings>,
    curiosity: Curiosity,
    pub(super) observation: Observation,
    pub(super) activity: Arc<Activity>,
    /// What the kernel's requests come from.
    pub(super) connection: Arc<OwnedFd>,
    /// The user who mounts.
    pub(super) owner: u32,
    time_to_live: Duration,
    allow_other: bool,
    /// Whether the kernel takes files to read by itself.
    pub(super) passthrough: bool,
    /// The longest request, in bytes, if a reader always has two of that length under way; else that is found out.
    pub(super) always_two: Option<u32>,
    /// Who answers what may have to wait for a network; nobody where nothing does.
    elsewhere: Option<Elsewhere>,
}

impl WarpFilesystem {
    pub(super) fn new(
        tree: Arc<dyn Shown>,
        engine: Arc<Engine>,
        descriptors: Descriptors,
        connection: Arc<OwnedFd>,
        time_to_live: Duration,
        allow_other: bool,
        elsewhere: Option<Elsewhere>,
    ) -> Self {
        let (handles, directories) = (Arc::default(), Arc::default());
        let listings = Listings::beside(engine.stats().memory_budget);
        Self {
            observation: Observation::new(&engine, &tree, &handles, &directories, &listings),
            owner: rustix::process::getuid().as_raw(),
            tree,
            engine,
            handles,
            descriptors,
            directories,
            listings,
            curiosity: Curiosity::default(),
            activity: Arc::default(),
            connection,
            time_to_live,
            allow_other,
            passthrough: false,
            always_two: None,
            elsewhere,
        }
    }

    /// What this file system asks of the kernel; what an older one does not offer is done without.
    pub(super) fn wanted(&self) -> Features {
        // Not FUSE_READDIRPLUS_AUTO: it leaves out the attributes of all but the first entries of a large directory, and has
        // each looked up by itself. Whether they are wanted is found out here.
        let wanted = Features::ASYNC_READ
            .and(Features::READDIRPLUS)
            .and(Features::ASYNC_DIRECT_IO)
            .and(Features::PARALLEL_DIRECTORIES)
            .and(Features::MAX_PAGES)
            .and(Features::PASSTHROUGH)
            // Access lists are enforced by the kernel or, where it cannot, not ignored: their mask looks like group bits,
            // which would let in whom the list keeps out.
            .and(Features::POSIX_ACL);
        let wanted = match self.tree.root_kind() {
            // For plain files that are written to in place: a packed one has the same time for all who hold it. It has the
            // kernel ask for attributes before a read, whenever it no longer believes those it has.
            Kind::Directory => wanted.and(Features::AUTO_INVAL_DATA),
            _ => wanted,
        };
        match self.keeps_entries() {
            // It keeps a target as long as the link, whatever becomes of what that leads to.
            true => wanted.and(Features::CACHE_SYMLINKS),
            false => wanted,
        }
    }

    /// Takes notice of what the kernel can do of that, and how long the longest request is, in bytes, if it reads so far ahead that
    /// a reader always has two of them under way.
    pub(super) fn agreed(&mut self, features: Features, always_two: Option<u32>) {
        self.passthrough = features.has(Features::PASSTHROUGH);
        self.always_two = always_two;
    }

    /// Whether other users than the one who mounts are let in.
    pub(super) fn allows_others(&self) -> bool {
        self.allow_other
    }

    /// Who answers requests that may have to wait for a network; nobody where none has to.
    pub(super) fn elsewhere(&self) -> Option<&Elsewhere> {
        self.elsewhere.as_ref()
    }

    /// Who is to answer a request because it may have to wait for a network: else nothing would be answered meanwhile.
    pub(super) fn elsewhere_for(&self, request: &Request<'_>) -> Option<&Elsewhere> {
        let elsewhere = self.elsewhere()?;
        let waits = match request.operation {
            Operation::Read {
                handle,
                offset,
                size,
                ..
            } => !self.has_at_hand(handle, offset, size),
            Operation::Lookup { .. }
            | Operation::GetAttributes { .. }
            | Operation::Open { .. }
            | Operation::Seek { .. }
            | Operation::ReadDirectory { .. }
            | Operation::GetExtendedAttribute { .. }
            | Operation::ListExtendedAttributes { .. } => true,
            _ => false,
        };
        waits.then_some(elsewhere)
    }

    /// Answers a request.
    pub(super) fn answer(&self, request: &Request<'_>, reply: Reply<'_>) {
        let forgetting = matches!(
            request.operation,
            Operation::Forget { .. } | Operation::ForgetMany(_)
        );
        if !forgetting {
            // Somebody has asked for something: what is forgotten is the kernel's own doing.
            self.activity.note();
        }
        let handler = AssertUnwindSafe(|| self.dispatch(request, reply));
        if std::panic::catch_unwind(handler).is_err() {
            let request = &request.operation;
            tracing::error!("a request failed unexpectedly ({request:?}); please report it");
        }
    }

    fn dispatch(&self, request: &Request<'_>, reply: Reply<'_>) {
        let node = NodeId(request.node);
        match request.operation {
            Operation::Lookup { name } => self.look_up(node, name, reply),
            Operation::Forget { lookups } => {
                self.forget(node, lookups);
                reply.none();
            }
            Operation::ForgetMany(forgotten) => {
                forgotten.for_each(|(node, lookups)| self.forget(NodeId(node), lookups));
                reply.none();
            }
            Operation::GetAttributes { handle } => match self.attributes(node, handle) {
                Ok(attributes) => reply.attributes(&attributes, self.time_to_live),
                Err(error) => reply.error(errno(&error)),
            },
            Operation::ReadLink => match self.tree.read_link(node) {
                Ok(target) => {
                    reply.bytes(&target);
                }
                Err(error) => reply.error(errno(&error)),
            },
            Operation::Open { flags } if flags & OFlags::ACCMODE.bits() != 0 => {
                reply.error(Errno::ROFS);
            }
            Operation::Open { flags } => self.open_file(node, flags, request.user, reply),
            Operation::Read {
                handle,
                offset,
                size,
                flags,
            } => {
                // The page cache has the answer of every other read.
                let kept = flags & OFlags::DIRECT.bits() == 0;
                self.read_file(handle, offset, size, kept, reply);
            }
            Operation::Release { handle } => {
                self.close_file(handle);
                reply.ok();
            }
            Operation::Seek {
                handle,
                offset,
                whence,
            } => match self.seek_file(handle, offset, whence) {
                Ok(Some(found)) => reply.offset(found.min(i64::MAX as u64)),
                Ok(None) => reply.error(Errno::NXIO),
                Err(error) => reply.error(errno(&error)),
            },
            Operation::OpenDirectory => self.open_directory(node, request.user, reply),
            Operation::ReadDirectory {
                handle,
                offset,
                size,
                with_attributes,
            } => {
                let mut listed = Listed::new(size);
                match self.read_directory(handle, offset, with_attributes, &mut listed) {
                    Ok(looked_up) => {
                        if !reply.bytes(listed.bytes()) {
                            looked_up
                                .into_iter()
                                .for_each(|node| self.tree.forget(node, 1));
                        }
                    }
                    Err(error) => reply.error(errno(&error)),
                }
            }
            Operation::ReleaseDirectory { handle } => {
                self.handles.remove(handle);
                reply.ok();
            }
            Operation::StatFileSystem => match self.tree.statfs() {
                Ok(stat) => reply.file_system(&stat),
                Err(error) => reply.error(errno(&error)),
            },
            Operation::GetExtendedAttribute { name, size } => {
                match self.attribute(node, name, request.user) {
                    Ok(Some(value)) => reply_attribute(size, &value, reply),
                    Ok(None) if Tree::has_attributes_like(name.as_bytes()) => {
                        reply.error(Errno::NODATA);
                    }
                    // Programs that look for a class in every file, as `ls -l` does, then stop asking.
                    Ok(None) => reply.error(Errno::OPNOTSUPP),
                    Err(error) => reply.error(errno(&error)),
                }
            }
            Operation::ListExtendedAttributes { size } => match self.attribute_names(node) {
                Ok(names) => reply_attribute(size, &names, reply),
                Err(error) => reply.error(errno(&error)),
            },
            Operation::Destroy => reply.ok(),
            // The mount is read-only, so the kernel refuses these by itself, unless somebody remounts it writable.
            Operation::Change => reply.error(Errno::ROFS),
            // Nothing waits for long here: where a network may keep it waiting, the session hears of interruptions itself. Nor is
            // there anything to flush, say; and to tell times of birth (STATX) would have every file asked for again, behind the
            // listing that has told all the rest, by programs that want all there is. Answered so once, the kernel stops asking.
            Operation::Interrupt { .. } | Operation::Initialize | Operation::Unknown => {
                reply.error(Errno::NOSYS);
            }
        }
    }

    fn look_up(&self, parent: NodeId, name: &OsStr, reply: Reply<'_>) {
        match self.tree.lookup(parent, name.as_bytes()) {
            Ok(None) if self.time_to_live.is_zero() => reply.error(Errno::NOENT),
            Ok(found) => {
                if found
                    .as_ref()
                    .is_some_and(|found| found.kind != Kind::Directory)
                {
                    self.curiosity.looked_up(parent);
                }
                let delivered = reply.entry(found.as_ref(), self.time_to_live);
                if let Some(found) = found.filter(|_| !delivered) {
                    self.tree.forget(found.node, 1);
                }
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn forget(&self, node: NodeId, lookups: u64) {
        self.directories.forget(node);
        self.tree.forget(node, lookups);
    }

    fn open_directory(&self, node: NodeId, user: u32, reply: Reply<'_>) {
        let may_open = self
            .descriptors
            .check(Wanted::Directory, self.handles.open())
            // The kernel looks up again what is another by now, but only if it learns of it here.
            .and_then(|()| self.tree.check_directory(node));
        if let Err(error) = may_open {
            self.engine.counters().errors.open.add(&error);
            return reply.error(errno(&error));
        }
        let (mut opened, listing) = if self.keeps_entries() {
            let attributes = self.attributes_are_wanted();
            let known = self.tree.children(node);
            let (opened, listing) = self.directories.open(node, known, attributes);
            if opened.keep_cache && !attributes {
                self.curiosity.left_out(node);
            }
            (opened, listing)
        } else {
            (Opened::default(), None)
        };
        opened.handle = self.handles.add(Handle::Directory {
            node,
            user,
            listing: Mutex::new(listing),
        });
        reply.opened(&opened);
    }

    /// Puts the entries from `offset` on, which is the number of entries the kernel has, into `listed`. Says which nodes were
    /// looked up for it.
    fn read_directory(
        &self,
        handle: u64,
        offset: u64,
        with_attributes: bool,
        listed: &mut Listed,
    ) -> Result<Vec<NodeId>> {
        let (node, listing) = self.listing(handle, offset)?;
        self.told_from(offset, node, &listing);
        let mut looked_up = Vec::new();
        let wanted = self.attributes_are_wanted();
        let mut ask = offset == 0 && self.elsewhere.is_none();
        let mut left_out = false;
        for (index, entry) in behind(&listing, offset) {
            let next = index as u64 + 1;
            let leave_out = entry.kind != Kind::Directory && (!wanted || ask);
            let added = match (with_attributes, leave_out) {
                (false, _) => listed.add(entry.inode, next, entry.kind, entry.name),
                (true, true) => {
                    ask = false;
                    left_out = true;
                    listed.add_with(
                        None,
                        self.time_to_live,
                        entry.inode,
                        next,
                        entry.kind,
                        entry.name,
                    )
                }
                (true, false) => {
                    self.add_with_attributes(listed, &listing, index, &entry, &mut looked_up)
                }
            };
            if !added {
                break;
            }
        }
        if left_out && offset == 0 {
            self.curiosity.left_out(node);
        }
        Ok(looked_up)
    }

    /// Whether entries' attributes are to come with their names. What is far away is asked for many at a time here, but one by
    /// one by who looks at it.
    fn attributes_are_wanted(&self) -> bool {
        self.elsewhere.is_some() || self.curiosity.is_raised()
    }

    fn add_with_attributes(
        &self,
        listed: &mut Listed,
        listing: &Listing,
        index: usize,
        entry: &ListedEntry<'_>,
        looked_up: &mut Vec<NodeId>,
    ) -> bool {
        // Looked up, it passes for known to the kernel: so not before it is sure to be told.
        if !listed.has_room_with_attributes(entry.name) {
            return false;
        }
        // An entry that went away meanwhile is given without attributes; who asks for it learns why.
        let found = self
            .tree
            .lookup_listed(listing, index, entry)
            .ok()
            .flatten();
        let next = index as u64 + 1;
        let added = listed.add_with(
            found.as_ref(),
            self.time_to_live,
            entry.inode,
            next,
            entry.kind,
            entry.name,
        );
        // The directory and the one above are told of without being looked up.
        if let Some(found) = found.filter(|_| !matches!(entry.name, b"." | b"..")) {
            looked_up.push(found.node);
        }
        added
    }

    /// Whether the kernel may keep directories' entries between openings. It looks at no time-to-live of theirs, nor
    /// does it when somebody goes back to the beginning.
    fn keeps_entries(&self) -> bool {
        self.time_to_live >= FOREVER
    }

    /// A directory's entries, and whose they are; reading from the beginning lists it anew.
    fn listing(&self, number: u64, offset: u64) -> Result<(NodeId, Arc<OpenListing>)> {
        let handle = self.handles.get(number);
        let Some(Handle::Directory {
            node,
            user,
            listing,
        }) = handle.as_deref()
        else {
            return Err(bad_handle());
        };
        let known = || listing.lock().unwrap_or_else(PoisonError::into_inner);
        if (offset > 0 || self.keeps_entries())
            && let Some(listing) = &*known()
        {
            return Ok((*node, Arc::clone(listing)));
        }
        // The one before counts no longer.
        let before = known().take();
        drop(before);
        self.listings.check(*user)?;
        let listed = self.tree.list(*node)?;
        let mut listed = Arc::new(self.listings.count(listed, *user));
        if self.keeps_entries() {
            listed = self.directories.begin(*node, listed);
        }
        *known() = Some(Arc::clone(&listed));
        Ok((*node, listed))
    }

    /// Takes notice of where a reply about a listing begins.
    fn told_from(&self, offset: u64, node: NodeId, listing: &Arc<OpenListing>) {
        if self.keeps_entries() && offset >= listing.len() as u64 {
            self.directories.end(node, listing);
        }
    }
}

fn reply_attribute(size: u32, value: &[u8], reply: Reply<'_>) {
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    if size == 0 {
        reply.length(length);
    } else if length <= size {
        reply.bytes(value);
    } else {
        reply.error(Errno::RANGE);
    }
}

/// The entries from `offset` on, which is the number of entries the kernel has.
fn behind(listing: &Listing, offset: u64) -> impl Iterator<Item = (usize, ListedEntry<'_>)> {
    let first = usize::try_from(offset).unwrap_or(usize::MAX);
    (first..listing.len()).filter_map(|index| Some((index, listing.get(index)?)))
}
