//! Files: opened, looked at, read, sought in and let go. Packed ones are read by their reader, plain ones as they are.

use std::time::Instant;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::backing::{self, BackingFile};
use super::descriptors::Wanted;
use super::errno::errno;
use super::filesystem::WarpFilesystem;
use super::handles::{Backing, Handle};
use super::protocol::{Opened, Reply, attributes_changed};
use super::session::LONGEST_REQUEST;
use crate::archive::Content;
use crate::cache::Origin;
use crate::error::{Error, IoContext, Result};
use crate::reader::{Demand, LONG_READ, Reader};
use crate::stats::{Activity, Answered, Counters};
use crate::tree::{Attributes, NodeId, OpenedFile};

impl WarpFilesystem {
    /// A reader of a file that shows as its original; `None` for any other.
    pub(super) fn open_reader(&self, opened: &OpenedFile) -> Result<Option<Reader>> {
        if !opened.packed {
            return Ok(None);
        }
        self.engine
            .open_source(&opened.path, opened.content.source(), opened.identity)
            .map(Some)
    }

    /// Opens a file for `user`, who asks for it with these flags of open(2).
    pub(super) fn open_file(&self, node: NodeId, flags: u32, user: u32, reply: Reply<'_>) {
        let may_open = self.descriptors.check(Wanted::File, self.handles.open());
        let opened = may_open.and_then(|()| {
            let opened = self.tree.open_file(node)?;
            self.tree.check_user(&opened, user)?;
            let reader = self.open_reader(&opened)?;
            let pages_are_right = self.tree.hold(node, &opened)?;
            Ok((opened, reader, pages_are_right))
        });
        let (opened, reader, pages_are_right) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.engine.counters().errors.open.add(&error);
                return reply.error(errno(&error));
            }
        };
        if self.tree.has_another_size(node, &opened) {
            self.tell_of_another_size(node);
        }
        let backing = if reader.is_none() {
            self.handles.back(node, || self.register(&opened.content))
        } else {
            Backing::Requests
        };
        let file = opened.content.file();
        let refused = flags & OFlags::DIRECT.bits() != 0
            && matches!(backing, Backing::Kernel(_))
            && file.is_some_and(backing::has_no_direct_reads);
        let handle = self.handles.add(Handle::File {
            node,
            identity: opened.identity,
            content: opened.content,
            reader,
            activity: Activity::new(opened.path.into()),
        });
        if refused {
            self.close_file(handle);
            return reply.error(Errno::INVAL);
        }
        let backing = match &backing {
            Backing::Kernel(file) => Some(file.number()),
            Backing::Requests => None,
        };
        let delivered = reply.opened(&Opened {
            handle,
            no_flush: true,
            keep_cache: backing.is_none() && pages_are_right,
            backing,
            ..Opened::default()
        });
        if !delivered {
            self.close_file(handle);
        }
    }

    /// Has the kernel ask how large a file is by now: it reads as much of it as it was told there is.
    fn tell_of_another_size(&self, node: NodeId) {
        let told = rustix::io::write(&self.connection, &attributes_changed(node));
        if let Err(error) = told {
            tracing::debug!("the kernel does not hear of a file's size: {error}");
        }
    }

    /// Lets an open file go.
    pub(super) fn close_file(&self, number: u64) {
        if let Some(Handle::File { node, identity, .. }) = self.handles.remove(number).as_deref() {
            self.tree.let_go(*node, *identity);
        }
    }

    /// A node's attributes; those of an open file also when its path leads to another file already, or the file was
    /// changed: all who hold a packed file hold the same state of it. Who has a file open that is far away is not made to wait for
    /// what it is by now: the kernel asks whenever somebody reads to the end, or what it was told is no longer to be believed.
    pub(super) fn attributes(&self, node: NodeId, handle: Option<u64>) -> Result<Attributes> {
        if let Some(Handle::File {
            node: opened,
            identity,
            content,
            reader,
            ..
        }) = handle
            .and_then(|handle| self.handles.get(handle))
            .as_deref()
            && *opened == node
            && content.file().is_none()
        {
            let size = reader.as_ref().map(Reader::len);
            return self.tree.attributes_of_open(node, content, *identity, size);
        }
        let error = match self.tree.attributes(node) {
            Ok(attributes) => return Ok(attributes),
            Err(error) => error,
        };
        match self.handles.of_node(node).as_deref() {
            Some(Handle::File {
                identity,
                content,
                reader,
                ..
            }) => {
                let size = reader.as_ref().map(Reader::len);
                self.tree.attributes_of_open(node, content, *identity, size)
            }
            _ => Err(error),
        }
    }

    /// Offers a plain file to the kernel to read by itself. It may refuse: a file on a stacked file system, say.
    fn register(&self, content: &Content) -> Option<BackingFile> {
        let file = content.file().filter(|_| self.passthrough)?;
        BackingFile::register(&self.connection, file).ok()
    }

    /// Whether a read can be answered without waiting for anything but the processor.
    pub(super) fn has_at_hand(&self, number: u64, offset: u64, size: u32) -> bool {
        match self.handles.get(number).as_deref() {
            Some(Handle::File {
                reader: Some(reader),
                ..
            }) => reader.has_at_hand(offset, size as usize),
            _ => false,
        }
    }

    /// Answers a read; `kept` says whether the kernel keeps the pages.
    pub(super) fn read_file(
        &self,
        number: u64,
        offset: u64,
        size: u32,
        kept: bool,
        reply: Reply<'_>,
    ) {
        let size = size as usize;
        let mut answer = Answer {
            counters: self.engine.counters(),
            began: Instant::now(),
            reply: Some(reply),
        };
        let outcome = match self.handles.get(number).as_deref() {
            Some(Handle::File {
                reader: Some(reader),
                activity,
                ..
            }) => {
                let more_wait = match self.always_two {
                    // A shorter one is all that was wanted: the kernel cuts nothing off that could come beside it.
                    Some(longest) => size >= longest as usize,
                    None => size >= LONG_READ && answer.more_wait(),
                };
                let demand = Demand { kept, more_wait };
                read_packed(reader, activity, offset, size, demand, &mut answer)
            }
            Some(Handle::File {
                content, activity, ..
            }) => read_plain(content, activity, offset, size, &mut answer)
                .inspect_err(|error| self.engine.tell_of_failure(error)),
            _ => Err(bad_handle()),
        };
        if let Err(error) = outcome {
            answer.counters.errors.read.add(&error);
            tracing::debug!("{error}");
            answer.send(|reply| reply.error(errno(&error)));
        }
    }

    pub(super) fn seek_file(&self, number: u64, offset: u64, whence: u32) -> Result<Option<u64>> {
        let handle = self.handles.get(number);
        let Some(Handle::File {
            content, reader, ..
        }) = handle.as_deref()
        else {
            return Err(bad_handle());
        };
        match (reader, whence) {
            (Some(reader), lseek::DATA) => reader.next_data(offset),
            (Some(reader), lseek::HOLE) => reader.next_hole(offset),
            (None, lseek::DATA) => seek_plain(content, rustix::fs::SeekFrom::Data(offset)),
            (None, lseek::HOLE) => seek_plain(content, rustix::fs::SeekFrom::Hole(offset)),
            _ => Err(Error::unusable("no such direction to seek")),
        }
    }
}

pub(super) fn bad_handle() -> Error {
    Error::io("no such handle", Errno::BADF.into())
}

/// The numbers of lseek's directions, which the protocol passes on as they are.
mod lseek {
    pub(super) const DATA: u32 = 3;
    pub(super) const HOLE: u32 = 4;
}

/// The answer to a read that is being worked on.
struct Answer<'a, 'r> {
    counters: &'a Counters,
    began: Instant,
    /// Until it is sent.
    reply: Option<Reply<'r>>,
}

impl Answer<'_, '_> {
    /// Counts what was read. Before it is sent, so that who has it finds it counted.
    fn count(&self, length: usize, activity: &Activity, answered: Answered) {
        self.counters.reads.add(1);
        self.counters.bytes_read.add(length as u64);
        activity.add(length as u64);
        self.counters.latency.add(answered, self.began.elapsed());
    }

    fn more_wait(&self) -> bool {
        self.reply.as_ref().is_some_and(Reply::more_wait)
    }

    fn send(&mut self, send: impl FnOnce(Reply<'_>)) {
        if let Some(reply) = self.reply.take() {
            send(reply);
        }
    }
}

fn read_packed(
    reader: &Reader,
    activity: &Activity,
    offset: u64,
    size: usize,
    demand: Demand,
    answer: &mut Answer<'_, '_>,
) -> Result<()> {
    let room = answer.reply.as_mut().and_then(|reply| reply.room(size));
    let Some(room) = room else {
        return reader.read_with(offset, size, demand, |bytes, origin| {
            answer.count(bytes.len(), activity, answered_by(origin));
            answer.send(|reply| _ = reply.bytes(bytes));
        });
    };
    let (length, origin) = reader.read_into(offset, room, demand)?;
    answer.count(length, activity, answered_by(origin));
    // To copy a long one keeps a processor busy too, and its reader's is his, unless all others are at what he will want next.
    let is_long = length >= LONG_READ;
    let busy = origin == Origin::Straight || is_long && reader.has_idle_processor();
    answer.send(|reply| reply.filled(length, busy));
    Ok(())
}

fn answered_by(origin: Origin) -> Answered {
    match origin {
        Origin::Hit => Answered::Cached,
        Origin::Joined | Origin::Decoded | Origin::Straight => Answered::Decoded,
    }
}

fn read_plain(
    content: &Content,
    activity: &Activity,
    offset: u64,
    size: usize,
    answer: &mut Answer<'_, '_>,
) -> Result<()> {
    let mut bytes = vec![0; size.min(LONGEST_REQUEST as usize)];
    // All that there is: a short answer would be taken for the file's end.
    let read = content.read_at(&mut bytes, offset);
    let read = read.context("cannot read", activity.path())?;
    let bytes = bytes.get(..read).unwrap_or_default();
    answer.count(read, activity, Answered::Plain);
    answer.send(|reply| _ = reply.bytes(bytes));
    Ok(())
}

fn seek_plain(content: &Content, to: rustix::fs::SeekFrom) -> Result<Option<u64>> {
    match content.seek(to) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(Error::io("cannot seek", error.into())),
    }
}
