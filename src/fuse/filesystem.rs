//! The adapter: a request in, tree or reader called, a reply out.
//!
//! Nothing is decided here but how the kernel is spoken to. Requests are answered on the thread that read them,
//! because handing them over costs a wake-up. What may take as long as a network does is handed over all the same, so that
//! nothing else waits for it. A panic in a handler is caught: the request is answered EIO when its reply is dropped, and the
//! thread goes on.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use rustix::fs::OFlags;

use super::FOREVER;
use super::convert::{absent, file_attributes, file_type};
use super::descriptors::Descriptors;
use super::directories::Directories;
use super::elsewhere::Elsewhere;
use super::errno::errno;
use super::files::bad_handle;
use super::handles::{Handle, Handles};
use super::idle::Activity;
use super::observation::Observation;
use crate::error::Result;
use crate::reader::Engine;
use crate::tree::{ListedEntry, Listing, NodeId, Shown, Tree};

/// The longest request, in bytes; the kernel's own limit for FUSE is 256 pages unless raised.
pub(super) const MAX_REQUEST: u32 = 1 << 20;
/// Requests the kernel may have under way in the background, readahead above all.
const MAX_BACKGROUND: u16 = 64;

/// The mount as fuser drives it.
#[derive(Debug, Clone)]
pub(super) struct WarpFilesystem {
    pub(super) tree: Arc<dyn Shown>,
    pub(super) engine: Arc<Engine>,
    pub(super) handles: Arc<Handles>,
    pub(super) descriptors: Arc<Descriptors>,
    directories: Arc<Directories>,
    pub(super) observation: Observation,
    activity: Arc<Activity>,
    /// The user who mounts.
    pub(super) owner: u32,
    time_to_live: Duration,
    allow_other: bool,
    /// Whether the kernel takes files to read by itself.
    pub(super) passthrough: bool,
    /// Who answers what may have to wait for a network; nobody where nothing does.
    elsewhere: Option<Elsewhere>,
}

impl WarpFilesystem {
    pub(super) fn new(
        tree: Arc<dyn Shown>,
        engine: Arc<Engine>,
        descriptors: Descriptors,
        activity: Arc<Activity>,
        time_to_live: Duration,
        allow_other: bool,
        elsewhere: Option<Elsewhere>,
    ) -> Self {
        let (handles, directories) = (Arc::default(), Arc::default());
        Self {
            observation: Observation::new(&engine, &tree, &handles, &directories),
            owner: rustix::process::getuid().as_raw(),
            tree,
            engine,
            handles,
            descriptors: Arc::new(descriptors),
            directories,
            activity,
            time_to_live,
            allow_other,
            passthrough: false,
            elsewhere,
        }
    }

    /// Runs the handler of a request that somebody has made, shielded.
    fn answer(&self, request: &'static str, handler: impl FnOnce()) {
        self.activity.note();
        shielded(request, handler);
    }

    /// As [`WarpFilesystem::answer`], where the tree or a file is asked for something: elsewhere, if that may have to wait for a
    /// network.
    fn answer_in_time(&self, request: &'static str, handler: impl FnOnce(&Self) + Send + 'static) {
        match &self.elsewhere {
            None => self.answer(request, || handler(self)),
            Some(elsewhere) => {
                self.activity.note();
                let this = self.clone();
                elsewhere.run(move || shielded(request, || handler(&this)));
            }
        }
    }

    /// Whether the kernel may keep directories' entries between openings. It looks at no time-to-live of theirs, nor
    /// does it when somebody goes back to the beginning.
    fn keeps_entries(&self) -> bool {
        self.time_to_live >= FOREVER
    }

    /// A directory's entries, and whose they are; reading from the beginning lists it anew.
    fn listing(&self, number: FileHandle, offset: u64) -> Result<(NodeId, Arc<Listing>)> {
        let handle = self.handles.get(number.0);
        let Some(Handle::Directory { node, listing }) = handle.as_deref() else {
            return Err(bad_handle());
        };
        let known = || listing.lock().unwrap_or_else(PoisonError::into_inner);
        if (offset > 0 || self.keeps_entries())
            && let Some(listing) = &*known()
        {
            return Ok((*node, Arc::clone(listing)));
        }
        let mut listed = Arc::new(self.tree.list(*node)?);
        if self.keeps_entries() {
            listed = self.directories.begin(*node, listed);
        }
        *known() = Some(Arc::clone(&listed));
        Ok((*node, listed))
    }

    /// Takes notice of where a reply about a listing begins.
    fn told_from(&self, offset: u64, node: NodeId, listing: &Arc<Listing>) {
        if self.keeps_entries() && offset >= listing.len() as u64 {
            self.directories.end(node, listing);
        }
    }
}

fn reply_attribute(size: u32, value: &[u8], reply: ReplyXattr) {
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    if size == 0 {
        reply.size(length);
    } else if length <= size {
        reply.data(value);
    } else {
        reply.error(Errno::ERANGE);
    }
}

/// Runs a handler; if it panics, its reply is dropped and so answered EIO, and the panic goes no further.
fn shielded(request: &'static str, handler: impl FnOnce()) {
    if std::panic::catch_unwind(AssertUnwindSafe(handler)).is_err() {
        tracing::error!("a {request} request failed unexpectedly; please report it");
    }
}

/// Answers requests by one error, whatever they ask.
macro_rules! answer_all {
    ($errno:ident: $($name:ident($($argument:ty),+) -> $reply:ty;)+) => {
        $(fn $name(&self, $(_: $argument,)+ reply: $reply) {
            reply.error(Errno::$errno);
        })+
    };
}

impl Filesystem for WarpFilesystem {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What an older kernel does not offer is done without.
        for wanted in [
            // Not READDIRPLUS_AUTO: it leaves out the attributes of all but the first entries of a large directory, and
            // has each looked up by itself.
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
        ] {
            let _ = config.add_capabilities(wanted);
        }
        if self.keeps_entries() {
            // It keeps a target as long as the link, whatever becomes of what that leads to.
            let _ = config.add_capabilities(InitFlags::FUSE_CACHE_SYMLINKS);
        }
        // Access lists are enforced by the kernel or, where it cannot, not ignored: their mask looks like group bits,
        // which would let in whom the list keeps out.
        if config.add_capabilities(InitFlags::FUSE_POSIX_ACL).is_err() && self.allow_other {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this kernel cannot enforce access control lists through FUSE: mount without --allow-other",
            ));
        }
        // Depth 1 leaves room for an overlay on top of the mount.
        self.passthrough = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(1).is_ok();
        let _ = config.set_max_write(MAX_REQUEST);
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.answer_in_time("lookup", move |this| {
            match this.tree.lookup(NodeId(parent.0), name.as_bytes()) {
                Ok(Some(found)) => {
                    reply.entry(&this.time_to_live, &file_attributes(&found), Generation(0));
                }
                Ok(None) if this.time_to_live > Duration::ZERO => {
                    reply.entry(&this.time_to_live, &absent(), Generation(0));
                }
                Ok(None) => reply.error(Errno::ENOENT),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn forget(&self, _request: &Request, node: INodeNo, lookups: u64) {
        // The kernel's own doing: nobody has asked for anything.
        shielded("forget", || {
            self.directories.forget(NodeId(node.0));
            self.tree.forget(NodeId(node.0), lookups);
        });
    }

    fn getattr(
        &self,
        _request: &Request,
        node: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        self.answer_in_time("getattr", move |this| {
            match this.attributes(NodeId(node.0)) {
                Ok(attributes) => reply.attr(&this.time_to_live, &file_attributes(&attributes)),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn readlink(&self, _request: &Request, node: INodeNo, reply: ReplyData) {
        self.answer("readlink", || match self.tree.read_link(NodeId(node.0)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn open(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let user = request.uid();
        self.answer_in_time("open", move |this| {
            if flags.acc_mode() == OpenAccMode::O_RDONLY {
                this.open_file(NodeId(node.0), user, reply);
            } else {
                reply.error(Errno::EROFS);
            }
        });
    }

    fn read(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // The page cache has the answer of every other read.
        let kept = flags.0 & OFlags::DIRECT.bits() as i32 == 0;
        let read = move |this: &Self| this.read_file(handle, offset, size, kept, reply);
        match self.elsewhere.is_none() || self.has_at_hand(handle, offset, size) {
            true => self.answer("read", || read(self)),
            false => self.answer_in_time("read", read),
        }
    }

    fn release(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.answer("release", || {
            if let Some(Handle::File { node, identity, .. }) =
                self.handles.remove(handle.0).as_deref()
            {
                self.tree.let_go(*node, *identity);
            }
            reply.ok();
        });
    }

    fn lseek(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.answer_in_time("lseek", move |this| {
            match this.seek_file(handle, offset, whence) {
                Ok(Some(found)) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
                Ok(None) => reply.error(Errno::ENXIO),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn opendir(&self, _request: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.answer("opendir", || {
            let node = NodeId(node.0);
            let (flags, listing) = if self.keeps_entries() {
                self.directories.open(node, self.tree.children(node))
            } else {
                (FopenFlags::empty(), None)
            };
            let number = self.handles.add(Handle::Directory {
                node,
                listing: Mutex::new(listing),
            });
            reply.opened(FileHandle(number), flags);
        });
    }

    fn readdir(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.answer_in_time("readdir", move |this| {
            let (node, listing) = match this.listing(handle, offset) {
                Ok(listed) => listed,
                Err(error) => return reply.error(errno(&error)),
            };
            this.told_from(offset, node, &listing);
            for (index, entry) in behind(&listing, offset) {
                let name = OsStr::from_bytes(entry.name);
                let next = index as u64 + 1;
                if reply.add(INodeNo(entry.inode), next, file_type(entry.kind), name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn readdirplus(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.answer_in_time("readdirplus", move |this| {
            let (node, listing) = match this.listing(handle, offset) {
                Ok(listed) => listed,
                Err(error) => return reply.error(errno(&error)),
            };
            this.told_from(offset, node, &listing);
            for (index, entry) in behind(&listing, offset) {
                // An entry that went away meanwhile is given without attributes; who asks for it learns why.
                let found = this.tree.lookup_listed(&listing, index).ok().flatten();
                let attributes = found.as_ref().map_or_else(
                    || FileAttr {
                        kind: file_type(entry.kind),
                        ..absent()
                    },
                    file_attributes,
                );
                let full = reply.add(
                    attributes.ino,
                    index as u64 + 1,
                    OsStr::from_bytes(entry.name),
                    &this.time_to_live,
                    &attributes,
                    Generation(0),
                );
                if full {
                    if let Some(found) = found.filter(|_| !matches!(entry.name, b"." | b"..")) {
                        this.tree.forget(found.node, 1);
                    }
                    break;
                }
            }
            reply.ok();
        });
    }

    fn releasedir(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.answer("releasedir", || {
            self.handles.remove(handle.0);
            reply.ok();
        });
    }

    fn statfs(&self, _request: &Request, _node: INodeNo, reply: ReplyStatfs) {
        self.answer("statfs", || match self.tree.statfs() {
            Ok(stat) => reply.statfs(
                stat.f_blocks,
                stat.f_bfree,
                stat.f_bavail,
                stat.f_files,
                stat.f_ffree,
                u32::try_from(stat.f_bsize).unwrap_or(4096),
                u32::try_from(stat.f_namemax).unwrap_or(255),
                u32::try_from(stat.f_frsize).unwrap_or(4096),
            ),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn getxattr(
        &self,
        request: &Request,
        node: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let (name, user) = (name.to_owned(), request.uid());
        self.answer_in_time("getxattr", move |this| {
            match this.attribute(NodeId(node.0), &name, user) {
                Ok(Some(value)) => reply_attribute(size, &value, reply),
                Ok(None) if Tree::has_attributes_like(name.as_bytes()) => {
                    reply.error(Errno::NO_XATTR)
                }
                // Programs that look for a class in every file, as `ls -l` does, then stop asking.
                Ok(None) => reply.error(Errno::EOPNOTSUPP),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn listxattr(&self, _request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        self.answer_in_time("listxattr", move |this| {
            match this.attribute_names(NodeId(node.0)) {
                Ok(names) => reply_attribute(size, &names, reply),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    // There is nothing to flush; answered so once, the kernel stops asking.
    answer_all! { ENOSYS:
        flush(&Request, INodeNo, FileHandle, LockOwner) -> ReplyEmpty;
        fsync(&Request, INodeNo, FileHandle, bool) -> ReplyEmpty;
        fsyncdir(&Request, INodeNo, FileHandle, bool) -> ReplyEmpty;
    }

    // The mount is read-only, so the kernel refuses these by itself, unless somebody remounts it writable.
    answer_all! { EROFS:
        setattr(
            &Request, INodeNo, Option<u32>, Option<u32>, Option<u32>, Option<u64>, Option<TimeOrNow>,
            Option<TimeOrNow>, Option<SystemTime>, Option<FileHandle>, Option<SystemTime>,
            Option<SystemTime>, Option<SystemTime>, Option<BsdFileFlags>
        ) -> ReplyAttr;
        mknod(&Request, INodeNo, &OsStr, u32, u32, u32) -> ReplyEntry;
        mkdir(&Request, INodeNo, &OsStr, u32, u32) -> ReplyEntry;
        unlink(&Request, INodeNo, &OsStr) -> ReplyEmpty;
        rmdir(&Request, INodeNo, &OsStr) -> ReplyEmpty;
        symlink(&Request, INodeNo, &OsStr, &Path) -> ReplyEntry;
        rename(&Request, INodeNo, &OsStr, INodeNo, &OsStr, RenameFlags) -> ReplyEmpty;
        link(&Request, INodeNo, INodeNo, &OsStr) -> ReplyEntry;
        create(&Request, INodeNo, &OsStr, u32, u32, i32) -> ReplyCreate;
        write(
            &Request, INodeNo, FileHandle, u64, &[u8], WriteFlags, OpenFlags, Option<LockOwner>
        ) -> ReplyWrite;
        fallocate(&Request, INodeNo, FileHandle, u64, u64, i32) -> ReplyEmpty;
        setxattr(&Request, INodeNo, &OsStr, &[u8], i32, u32) -> ReplyEmpty;
        removexattr(&Request, INodeNo, &OsStr) -> ReplyEmpty;
    }
}

/// The entries from `offset` on, which is the number of entries the kernel has.
fn behind(listing: &Listing, offset: u64) -> impl Iterator<Item = (usize, ListedEntry<'_>)> {
    let first = usize::try_from(offset).unwrap_or(usize::MAX);
    (first..listing.len()).filter_map(|index| Some((index, listing.get(index)?)))
}
