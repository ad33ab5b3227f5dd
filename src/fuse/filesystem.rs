//! The adapter: a request in, tree or reader called, a reply out.
//!
//! Nothing is decided here but how the kernel is spoken to. Requests are answered on the thread that read them,
//! because handing them over costs a wake-up. A panic in a handler is caught: the request is answered EIO when its
//! reply is dropped, and the thread goes on.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BackingId, BsdFileFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::attributes::{self, STATS, shown_attributes};
use super::convert::{absent, file_attributes, file_type};
use super::errno::errno;
use super::handles::{Backing, Handle, Handles};
use crate::error::{Error, ErrorKind, Result};
use crate::reader::{Engine, Reader};
use crate::stats::Stats;
use crate::tree::{Attributes, ListedEntry, Listing, NodeId, OpenedFile, Pages, Tree};

/// The longest request, in bytes; the kernel's own limit for FUSE is 256 pages unless raised.
const MAX_REQUEST: u32 = 1 << 20;
/// Requests the kernel may have under way in the background, readahead above all.
const MAX_BACKGROUND: u16 = 64;

/// The mount as fuser drives it.
#[derive(Debug)]
pub(super) struct WarpFilesystem {
    tree: Tree,
    engine: Arc<Engine>,
    handles: Arc<Handles>,
    time_to_live: Duration,
    allow_other: bool,
    passthrough: bool,
}

impl WarpFilesystem {
    pub(super) fn new(
        tree: Tree,
        engine: Arc<Engine>,
        time_to_live: Duration,
        allow_other: bool,
    ) -> Self {
        Self {
            tree,
            engine,
            handles: Arc::default(),
            time_to_live,
            allow_other,
            passthrough: false,
        }
    }

    fn stats(&self) -> Stats {
        Stats {
            open_files: self.handles.open_files(),
            memory_names: self.tree.memory() as u64,
            ..self.engine.stats()
        }
    }

    /// A reader of a file that shows as its original; `None` for any other.
    fn open_reader(&self, opened: &OpenedFile) -> Result<Option<Reader>> {
        if !opened.packed {
            return Ok(None);
        }
        self.engine
            .open_file(&opened.path, Arc::clone(&opened.file), opened.identity)
            .map(Some)
    }

    /// Whether somebody holds another state of this file.
    fn is_held_as_another(&self, node: NodeId, opened: &OpenedFile) -> bool {
        let another = |reader: &Option<Reader>| {
            let held = reader.as_ref().map(Reader::identity);
            held.is_some_and(|held| held != opened.identity)
        };
        self.handles.find(node, another).is_some()
    }

    /// Checks that nobody holds another state of the file that is the root: the kernel has one inode for it, whose pages
    /// would be shared. Any other file that is changed gets a new inode.
    fn check_alone(&self, node: NodeId, opened: &OpenedFile) -> Result<()> {
        if node == NodeId::ROOT && self.is_held_as_another(node, opened) {
            tracing::warn!(
                "{} was changed; it can be opened again when all who hold it as it was have closed it",
                opened.path.display()
            );
            return Err(Error::from(ErrorKind::Changed).in_file(&opened.path));
        }
        Ok(())
    }

    fn open(&self, node: NodeId, reply: ReplyOpen) {
        let opened = self.tree.open_file(node).and_then(|opened| {
            self.check_alone(node, &opened)?;
            let reader = self.open_reader(&opened)?;
            Ok((opened, reader))
        });
        let (opened, reader) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                if error.is_damage() || matches!(error.kind(), ErrorKind::OverBudget { .. }) {
                    tracing::error!("{error}; the file cannot be opened");
                }
                return reply.error(errno(&error));
            }
        };
        let held_as_another = opened.pages == Pages::OfAnotherMaybe
            && reader.is_some()
            && self.is_held_as_another(node, &opened);
        let backing = if reader.is_none() {
            self.handles
                .back(node, || self.register(&opened.file, &reply))
        } else {
            Backing::Requests
        };
        let number = FileHandle(self.handles.add(Handle::File {
            node,
            file: opened.file,
            reader,
        }));
        let mut flags = FopenFlags::FOPEN_NOFLUSH;
        match backing {
            Backing::Kernel(id) => reply.opened_passthrough(number, flags, &id),
            Backing::Requests => {
                flags |= match opened.pages {
                    Pages::Right => FopenFlags::FOPEN_KEEP_CACHE,
                    Pages::OfAnotherMaybe if held_as_another => FopenFlags::FOPEN_DIRECT_IO,
                    Pages::OfAnotherMaybe | Pages::Outdated => FopenFlags::empty(),
                };
                reply.opened(number, flags);
            }
        }
    }

    /// A node's attributes; those of an open file also when its path leads to another file already, or it was changed: a
    /// new size would cut off who holds it as it was.
    fn attributes(&self, node: NodeId) -> Result<Attributes> {
        let found = self.tree.attributes(node);
        if found.is_ok() && node != NodeId::ROOT {
            return found;
        }
        let told = self.tree.told(node);
        let changed = |reader: &Option<Reader>| {
            let held = reader.as_ref().map(Reader::identity);
            held.is_some() && held != told
        };
        // Nobody looks the root up again, so it stays what it is while somebody holds it.
        let holder = match found {
            Ok(_) => self.handles.find(node, changed),
            Err(_) => self.handles.find(node, |reader| !changed(reader)),
        };
        match holder.as_deref() {
            Some(Handle::File { file, reader, .. }) => {
                self.tree
                    .attributes_of_open(node, file, reader.as_ref().map(Reader::len))
            }
            _ => found,
        }
    }

    /// Offers a plain file to the kernel to read by itself. It may refuse: a file on a stacked file system, say.
    fn register(&self, file: &File, reply: &ReplyOpen) -> Option<BackingId> {
        if !self.passthrough {
            return None;
        }
        reply.open_backing(file).ok()
    }

    fn read(&self, number: FileHandle, offset: u64, size: u32, reply: ReplyData) {
        let counters = self.engine.counters();
        let mut reply = Some(reply);
        let mut answer = |bytes: &[u8]| {
            counters.reads.add(1);
            counters.bytes_read.add(bytes.len() as u64);
            if let Some(reply) = reply.take() {
                reply.data(bytes);
            }
        };
        let outcome = match self.handles.get(number.0).as_deref() {
            Some(Handle::File {
                reader: Some(reader),
                ..
            }) => reader.read_with(offset, size as usize, &mut answer),
            Some(Handle::File { file, .. }) => read_plain(file, offset, size, &mut answer),
            _ => Err(bad_handle()),
        };
        if let Err(error) = outcome {
            let counter = match error.kind() {
                _ if error.is_damage() => &counters.damage_errors,
                ErrorKind::Changed => &counters.changed_errors,
                _ => &counters.other_errors,
            };
            counter.add(1);
            tracing::debug!("{error}");
            if let Some(reply) = reply {
                reply.error(errno(&error));
            }
        }
    }

    fn seek(&self, number: FileHandle, offset: i64, whence: i32) -> Result<Option<u64>> {
        let offset = u64::try_from(offset).unwrap_or(u64::MAX);
        let handle = self.handles.get(number.0);
        let Some(Handle::File { file, reader, .. }) = handle.as_deref() else {
            return Err(bad_handle());
        };
        match (reader, whence) {
            (Some(reader), lseek::DATA) => reader.next_data(offset),
            (Some(reader), lseek::HOLE) => reader.next_hole(offset),
            (None, lseek::DATA) => seek_plain(file, rustix::fs::SeekFrom::Data(offset)),
            (None, lseek::HOLE) => seek_plain(file, rustix::fs::SeekFrom::Hole(offset)),
            _ => Err(Error::unusable("no such direction to seek")),
        }
    }

    /// A directory's entries; reading from the beginning lists it anew.
    fn listing(&self, number: FileHandle, offset: u64) -> Result<Arc<Listing>> {
        let handle = self.handles.get(number.0);
        let Some(Handle::Directory { node, listing }) = handle.as_deref() else {
            return Err(bad_handle());
        };
        let known = || listing.lock().unwrap_or_else(PoisonError::into_inner);
        if offset > 0
            && let Some(listing) = &*known()
        {
            return Ok(Arc::clone(listing));
        }
        let listed = Arc::new(self.tree.list(*node)?);
        *known() = Some(Arc::clone(&listed));
        Ok(listed)
    }

    fn attribute(&self, node: NodeId, name: &OsStr) -> Result<Option<Vec<u8>>> {
        if node == NodeId::ROOT && name == STATS {
            return serde_json::to_vec(&self.stats())
                .map(Some)
                .map_err(|error| Error::io("cannot write down the statistics", error.into()));
        }
        // Only for these is the file opened: 'ls -l' asks every file for its access list.
        if name.as_bytes().starts_with(attributes::PREFIX)
            && let Some(found) = self
                .shown(node)?
                .into_iter()
                .find(|(shown, _)| shown.as_bytes() == name.as_bytes())
        {
            return Ok(Some(found.1.into_bytes()));
        }
        self.tree.extended_attribute(node, name.as_bytes())
    }

    fn attribute_names(&self, node: NodeId) -> Result<Vec<u8>> {
        let shown = self.shown(node)?;
        let mut names = Vec::new();
        for name in self.tree.extended_attribute_names(node)? {
            // A copy of a mount's file, packed again, has some of ours.
            if !shown.iter().any(|(ours, _)| ours.as_bytes() == name) {
                names.extend(name);
                names.push(0);
            }
        }
        for (name, _) in shown {
            names.extend(name.as_bytes());
            names.push(0);
        }
        Ok(names)
    }

    fn shown(&self, node: NodeId) -> Result<Vec<(&'static str, String)>> {
        let Some(header) = self.tree.fixed_header(node)? else {
            return Ok(Vec::new());
        };
        // A file too damaged to open has a header all the same.
        let opened = self.tree.open_file(node);
        let reader = opened.and_then(|opened| self.open_reader(&opened));
        let reader = reader.ok().flatten();
        Ok(shown_attributes(&header, reader.as_ref()))
    }
}

/// The numbers of lseek's directions, which the protocol passes on as they are.
mod lseek {
    pub(super) const DATA: i32 = 3;
    pub(super) const HOLE: i32 = 4;
}

fn bad_handle() -> Error {
    Error::io("no such handle", rustix::io::Errno::BADF.into())
}

fn read_plain(file: &File, offset: u64, size: u32, answer: &mut dyn FnMut(&[u8])) -> Result<()> {
    let mut bytes = vec![0; (size as usize).min(MAX_REQUEST as usize)];
    let mut done = 0;
    // A short answer would be taken for the file's end.
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("cannot read", error)),
        }
    }
    answer(bytes.get(..done).unwrap_or_default());
    Ok(())
}

fn seek_plain(file: &File, to: rustix::fs::SeekFrom) -> Result<Option<u64>> {
    match rustix::fs::seek(file, to) {
        Ok(found) => Ok(Some(found)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(Error::io("cannot seek", error.into())),
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
            InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
        ] {
            let _ = config.add_capabilities(wanted);
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
        shielded("lookup", || {
            match self.tree.lookup(NodeId(parent.0), name.as_bytes()) {
                Ok(Some(found)) => {
                    let generation = Generation(found.generation);
                    reply.entry(&self.time_to_live, &file_attributes(&found), generation);
                }
                Ok(None) if self.time_to_live > Duration::ZERO => {
                    reply.entry(&self.time_to_live, &absent(), Generation(0));
                }
                Ok(None) => reply.error(Errno::ENOENT),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn forget(&self, _request: &Request, node: INodeNo, lookups: u64) {
        shielded("forget", || self.tree.forget(NodeId(node.0), lookups));
    }

    fn getattr(
        &self,
        _request: &Request,
        node: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        shielded("getattr", || match self.attributes(NodeId(node.0)) {
            Ok(attributes) => reply.attr(&self.time_to_live, &file_attributes(&attributes)),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn readlink(&self, _request: &Request, node: INodeNo, reply: ReplyData) {
        shielded("readlink", || match self.tree.read_link(NodeId(node.0)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn open(&self, _request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        shielded("open", || {
            if flags.acc_mode() == OpenAccMode::O_RDONLY {
                self.open(NodeId(node.0), reply);
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
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        shielded("read", || self.read(handle, offset, size, reply));
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
        shielded("release", || {
            if let Some(Handle::File {
                node,
                reader: Some(reader),
                ..
            }) = self.handles.remove(handle.0).as_deref()
            {
                self.tree.close_file(*node, reader.identity());
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
        shielded("lseek", || match self.seek(handle, offset, whence) {
            Ok(Some(found)) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
            Ok(None) => reply.error(Errno::ENXIO),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn opendir(&self, _request: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        shielded("opendir", || {
            let number = self.handles.add(Handle::Directory {
                node: NodeId(node.0),
                listing: Mutex::default(),
            });
            reply.opened(FileHandle(number), FopenFlags::empty());
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
        shielded("readdir", || {
            let listing = match self.listing(handle, offset) {
                Ok(listing) => listing,
                Err(error) => return reply.error(errno(&error)),
            };
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
        shielded("readdirplus", || {
            let listing = match self.listing(handle, offset) {
                Ok(listing) => listing,
                Err(error) => return reply.error(errno(&error)),
            };
            for (index, entry) in behind(&listing, offset) {
                // An entry that went away meanwhile is given without attributes; who asks for it learns why.
                let found = self.tree.lookup_listed(&listing, index).ok().flatten();
                let attributes = found.as_ref().map_or_else(
                    || FileAttr {
                        kind: file_type(entry.kind),
                        ..absent()
                    },
                    file_attributes,
                );
                let generation = found.as_ref().map_or(0, |found| found.generation);
                let full = reply.add(
                    attributes.ino,
                    index as u64 + 1,
                    OsStr::from_bytes(entry.name),
                    &self.time_to_live,
                    &attributes,
                    Generation(generation),
                );
                if full {
                    if let Some(found) = found.filter(|_| !matches!(entry.name, b"." | b"..")) {
                        self.tree.forget(found.node, 1);
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
        shielded("releasedir", || {
            self.handles.remove(handle.0);
            reply.ok();
        });
    }

    fn statfs(&self, _request: &Request, _node: INodeNo, reply: ReplyStatfs) {
        shielded("statfs", || match self.tree.statfs() {
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
        _request: &Request,
        node: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        shielded("getxattr", || match self.attribute(NodeId(node.0), name) {
            Ok(Some(value)) => reply_attribute(size, &value, reply),
            Ok(None) => reply.error(Errno::NO_XATTR),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn listxattr(&self, _request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        shielded("listxattr", || match self.attribute_names(NodeId(node.0)) {
            Ok(names) => reply_attribute(size, &names, reply),
            Err(error) => reply.error(errno(&error)),
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
