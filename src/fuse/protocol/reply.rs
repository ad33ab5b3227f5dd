//! Replies, encoded.

use std::time::{Duration, SystemTime};

use rustix::fs::StatVfs;
use rustix::io::Errno;

use super::REPLY_HEADER;
use crate::tree::{Attributes, Kind, NodeId};

/// Where replies go.
pub(in crate::fuse) trait Outlet {
    /// Sends the one reply to a request: an error, or bytes. Says whether it was delivered: it is not if nobody waits for it any
    /// more, and then nobody knows of what it tells.
    fn send(&mut self, unique: u64, outcome: Result<&[u8], Errno>) -> bool;

    /// Where a reply's bytes may be put without being handed over; nowhere if they are sent from wherever they are.
    fn room(&mut self) -> Option<&mut [u8]> {
        None
    }

    /// Sends the first `length` bytes of that room. To fill it kept a processor `busy`, whichever that was.
    fn send_filled(&mut self, unique: u64, _length: usize, _busy: bool) {
        self.send(unique, Err(Errno::IO));
    }

    /// Whether the kernel is seen to have more requests that wait for a thread to take them.
    fn more_wait(&self) -> bool;
}

/// A request's reply, which is owed: dropped without an answer, it says EIO, so that nobody waits for ever for a handler that
/// has panicked.
pub(in crate::fuse) struct Reply<'a> {
    unique: u64,
    outlet: Option<&'a mut dyn Outlet>,
}

/// How a file or directory was opened.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::fuse) struct Opened {
    /// The number that requests about it are to give.
    pub(in crate::fuse) handle: u64,
    /// What the kernel has of its contents is right still.
    pub(in crate::fuse) keep_cache: bool,
    /// The kernel may keep the directory's entries.
    pub(in crate::fuse) cache_entries: bool,
    /// It need not say when a descriptor of it is closed.
    pub(in crate::fuse) no_flush: bool,
    /// The kernel reads the file behind this number by itself.
    pub(in crate::fuse) backing: Option<i32>,
}

impl Opened {
    const KEEP_CACHE: u32 = 1 << 1;
    const CACHE_DIR: u32 = 1 << 3;
    const NOFLUSH: u32 = 1 << 5;
    const PASSTHROUGH: u32 = 1 << 7;

    fn flags(&self) -> u32 {
        let flag = |flag, set| if set { flag } else { 0 };
        flag(Self::KEEP_CACHE, self.keep_cache)
            | flag(Self::CACHE_DIR, self.cache_entries)
            | flag(Self::NOFLUSH, self.no_flush)
            | flag(Self::PASSTHROUGH, self.backing.is_some())
    }
}

impl<'a> Reply<'a> {
    pub(in crate::fuse) fn new(unique: u64, outlet: &'a mut dyn Outlet) -> Self {
        Self {
            unique,
            outlet: Some(outlet),
        }
    }

    fn send(mut self, outcome: Result<&[u8], Errno>) -> bool {
        let outlet = self.outlet.take();
        outlet.is_some_and(|outlet| outlet.send(self.unique, outcome))
    }

    /// There is no reply to this request.
    pub(in crate::fuse) fn none(mut self) {
        self.outlet = None;
    }

    pub(in crate::fuse) fn ok(self) {
        self.send(Ok(&[]));
    }

    pub(in crate::fuse) fn error(self, error: Errno) {
        self.send(Err(error));
    }

    /// Says whether it was delivered, as [`Outlet::send`] does.
    pub(in crate::fuse) fn bytes(self, bytes: &[u8]) -> bool {
        self.send(Ok(bytes))
    }

    /// Where `length` bytes may be put for [`Reply::filled`], if this is a reply that has such a place.
    pub(in crate::fuse) fn room(&mut self, length: usize) -> Option<&mut [u8]> {
        self.outlet.as_mut()?.room()?.get_mut(..length)
    }

    /// As [`Outlet::more_wait`].
    pub(in crate::fuse) fn more_wait(&self) -> bool {
        let outlet = self.outlet.as_ref();
        outlet.is_some_and(|outlet| outlet.more_wait())
    }

    /// The first `length` bytes of the room, as [`Outlet::send_filled`] is told.
    pub(in crate::fuse) fn filled(mut self, length: usize, busy: bool) {
        if let Some(outlet) = self.outlet.take() {
            outlet.send_filled(self.unique, length, busy);
        }
    }

    /// A node that was looked up, or nothing, and for how long the kernel may believe it. Says whether it was delivered.
    pub(in crate::fuse) fn entry(self, found: Option<&Attributes>, time_to_live: Duration) -> bool {
        let mut message = Message::default();
        message.entry(found, time_to_live);
        self.bytes(&message.0)
    }

    pub(in crate::fuse) fn attributes(self, attributes: &Attributes, time_to_live: Duration) {
        let mut message = Message::default();
        message.u64(time_to_live.as_secs());
        message.u32(time_to_live.subsec_nanos());
        message.u32(0);
        message.attributes(attributes);
        self.bytes(&message.0);
    }

    /// A file or directory that was opened. Says whether it was delivered.
    pub(in crate::fuse) fn opened(self, opened: &Opened) -> bool {
        let mut message = Message::default();
        message.u64(opened.handle);
        message.u32(opened.flags());
        message.u32(opened.backing.unwrap_or(0).cast_unsigned());
        self.bytes(&message.0)
    }

    /// A number of bytes, of which there are that many to be had.
    pub(in crate::fuse) fn length(self, length: u32) {
        let mut message = Message::default();
        message.u32(length);
        message.u32(0);
        self.bytes(&message.0);
    }

    pub(in crate::fuse) fn offset(self, offset: u64) {
        self.bytes(&offset.to_ne_bytes());
    }

    pub(in crate::fuse) fn file_system(self, stat: &StatVfs) {
        let mut message = Message::default();
        for number in [
            stat.f_blocks,
            stat.f_bfree,
            stat.f_bavail,
            stat.f_files,
            stat.f_ffree,
        ] {
            message.u64(number);
        }
        message.u32(u32::try_from(stat.f_bsize).unwrap_or(4096));
        message.u32(u32::try_from(stat.f_namemax).unwrap_or(255));
        message.u32(u32::try_from(stat.f_frsize).unwrap_or(4096));
        message.zeros(4 + 6 * 4);
        self.bytes(&message.0);
    }
}

impl Drop for Reply<'_> {
    fn drop(&mut self) {
        if let Some(outlet) = self.outlet.take() {
            outlet.send(self.unique, Err(Errno::IO));
        }
    }
}

/// The header of a reply with so many bytes behind it.
pub(in crate::fuse) fn header(unique: u64, outcome: Result<usize, Errno>) -> [u8; REPLY_HEADER] {
    let (length, error) = match outcome {
        Ok(length) => (length, 0),
        Err(error) => (0, -error.raw_os_error()),
    };
    let length = u32::try_from(REPLY_HEADER + length).unwrap_or(u32::MAX);
    let mut header = [0; REPLY_HEADER];
    let (first, number) = header.split_at_mut(8);
    let (total, code) = first.split_at_mut(4);
    total.copy_from_slice(&length.to_ne_bytes());
    code.copy_from_slice(&error.to_ne_bytes());
    number.copy_from_slice(&unique.to_ne_bytes());
    header
}

/// What has the kernel ask for a node's attributes before it uses them again (`FUSE_NOTIFY_INVAL_INODE`): no reply, but sent as
/// one. What it has of the contents it keeps, so that nobody who reads at that moment has to be waited for.
pub(in crate::fuse) fn attributes_changed(node: NodeId) -> Vec<u8> {
    const LENGTH: u32 = 40;
    const NOTIFICATION: u32 = 2;
    const NO_CONTENTS: i64 = -1;
    let mut message = Message::default();
    message.u32(LENGTH);
    message.u32(NOTIFICATION);
    message.u64(0);
    message.u64(node.0);
    message.u64(NO_CONTENTS.cast_unsigned());
    message.u64(0);
    message.0
}

/// A directory's entries, as many as there is room for.
#[derive(Debug)]
pub(in crate::fuse) struct Listed {
    message: Message,
    room: usize,
}

impl Listed {
    /// Room for `size` bytes.
    pub(in crate::fuse) fn new(size: u32) -> Self {
        let room = size as usize;
        Self {
            message: Message(Vec::with_capacity(room.min(64 << 10))),
            room,
        }
    }

    /// Adds an entry; `next` is what a listing that goes on behind it gives. Says whether there was room.
    pub(in crate::fuse) fn add(&mut self, inode: u64, next: u64, kind: Kind, name: &[u8]) -> bool {
        if !self.has_room(0, name) {
            return false;
        }
        self.message.listed(inode, next, kind, name);
        true
    }

    /// As [`Listed::add`], with the attributes of what was looked up; `None` leaves it to whoever asks for the entry.
    pub(in crate::fuse) fn add_with(
        &mut self,
        found: Option<&Attributes>,
        time_to_live: Duration,
        inode: u64,
        next: u64,
        kind: Kind,
        name: &[u8],
    ) -> bool {
        if !self.has_room_with_attributes(name) {
            return false;
        }
        self.message.entry(found, time_to_live);
        let inode = found.map_or(inode, |found| found.inode);
        self.message.listed(inode, next, kind, name);
        true
    }

    /// Whether [`Listed::add_with`] has room for an entry of this name.
    pub(in crate::fuse) fn has_room_with_attributes(&self, name: &[u8]) -> bool {
        self.has_room(ENTRY, name)
    }

    fn has_room(&self, before: usize, name: &[u8]) -> bool {
        let length = (before + LISTED + name.len()).next_multiple_of(ALIGNMENT);
        self.message.0.len() + length <= self.room
    }

    pub(in crate::fuse) fn bytes(&self) -> &[u8] {
        &self.message.0
    }
}

/// The length of what is told of a node that was looked up (`struct fuse_entry_out`), in bytes.
const ENTRY: usize = 128;
/// The length of an entry of a listing without its name (`struct fuse_dirent`), in bytes.
const LISTED: usize = 24;
/// At what multiples entries of a listing begin.
const ALIGNMENT: usize = 8;

#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn u32(&mut self, number: u32) {
        self.0.extend(number.to_ne_bytes());
    }

    fn u64(&mut self, number: u64) {
        self.0.extend(number.to_ne_bytes());
    }

    fn zeros(&mut self, count: usize) {
        self.0.resize(self.0.len() + count, 0);
    }

    /// `struct fuse_entry_out`. A node number of 0 has the kernel remember that there is none.
    fn entry(&mut self, found: Option<&Attributes>, time_to_live: Duration) {
        let seconds = time_to_live.as_secs();
        let nanoseconds = time_to_live.subsec_nanos();
        self.u64(found.map_or(0, |found| found.node.0));
        self.u64(found.map_or(0, |found| found.generation.into()));
        self.u64(seconds);
        self.u64(seconds);
        self.u32(nanoseconds);
        self.u32(nanoseconds);
        match found {
            Some(attributes) => self.attributes(attributes),
            None => self.zeros(88),
        }
    }

    /// `struct fuse_attr`.
    fn attributes(&mut self, attributes: &Attributes) {
        let times = [attributes.accessed, attributes.modified, attributes.changed].map(since_1970);
        self.u64(attributes.inode);
        // The kernel refuses a file of more than 2^63 - 1 bytes, which a damaged header may claim, even to a listing.
        self.u64(attributes.size.min(i64::MAX as u64));
        self.u64(attributes.blocks);
        for (seconds, _) in times {
            self.u64(seconds.cast_unsigned());
        }
        for (_, nanoseconds) in times {
            self.u32(nanoseconds);
        }
        self.u32(u32::from(attributes.mode) | type_bits(attributes.kind) << 12);
        for number in [
            attributes.nlink,
            attributes.uid,
            attributes.gid,
            attributes.rdev,
            attributes.block_size,
            0,
        ] {
            self.u32(number);
        }
    }

    /// `struct fuse_dirent`, with its name.
    fn listed(&mut self, inode: u64, next: u64, kind: Kind, name: &[u8]) {
        self.u64(inode);
        self.u64(next);
        self.u32(u32::try_from(name.len()).unwrap_or(u32::MAX));
        self.u32(type_bits(kind));
        self.0.extend(name);
        let end = self.0.len().next_multiple_of(ALIGNMENT);
        self.0.resize(end, 0);
    }
}

/// A kind of file in the upper four bits of a mode, which are also its number in a listing (`DT_REG` and so on).
fn type_bits(kind: Kind) -> u32 {
    match kind {
        Kind::Fifo => 1,
        Kind::CharDevice => 2,
        Kind::Directory => 4,
        Kind::BlockDevice => 6,
        Kind::File => 8,
        Kind::Symlink => 10,
        Kind::Socket => 12,
    }
}

/// Seconds since 1970, rounded down, and the nanoseconds after them.
fn since_1970(time: SystemTime) -> (i64, u32) {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => (
            i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            after.subsec_nanos(),
        ),
        Err(error) => {
            let before = error.duration();
            let seconds = i64::try_from(before.as_secs()).map_or(i64::MIN, |seconds| -seconds);
            match before.subsec_nanos() {
                0 => (seconds, 0),
                nanoseconds => (seconds.saturating_sub(1), 1_000_000_000 - nanoseconds),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Sent(Vec<(u64, Result<Vec<u8>, Errno>)>);

    impl Outlet for Sent {
        fn send(&mut self, unique: u64, outcome: Result<&[u8], Errno>) -> bool {
            self.0.push((unique, outcome.map(<[u8]>::to_vec)));
            true
        }

        fn more_wait(&self) -> bool {
            false
        }
    }

    #[test]
    fn a_reply_that_is_dropped_is_an_error_and_one_that_was_sent_is_not() {
        let mut sent = Sent::default();
        Reply::new(1, &mut sent).bytes(b"abc");
        drop(Reply::new(2, &mut sent));
        Reply::new(3, &mut sent).none();
        assert_eq!(sent.0, [(1, Ok(b"abc".to_vec())), (2, Err(Errno::IO))]);
    }

    #[test]
    fn a_header_says_how_long_the_reply_is() {
        let ok = header(0x0102, Ok(4096));
        assert_eq!(ok[..4], 4112_u32.to_ne_bytes());
        assert_eq!(ok[4..8], [0; 4]);
        assert_eq!(ok[8..], 0x0102_u64.to_ne_bytes());
        let refused = header(5, Err(Errno::STALE));
        assert_eq!(refused[..4], 16_u32.to_ne_bytes());
        assert_eq!(refused[4..8], (-Errno::STALE.raw_os_error()).to_ne_bytes());
    }

    #[test]
    fn entries_are_padded_and_stop_where_the_room_ends() {
        let mut listed = Listed::new(64 + 31);
        assert!(listed.add(5, 1, Kind::File, b"abc"));
        assert_eq!(listed.bytes().len(), 32);
        assert!(listed.add(6, 2, Kind::Directory, b"12345678"));
        assert_eq!(listed.bytes().len(), 64);
        assert!(!listed.add(7, 3, Kind::File, b"x"));
        assert_eq!(listed.bytes()[20], 8);
        assert_eq!(listed.bytes()[32 + 20], 4);
        let mut listed = Listed::new(159);
        assert!(!listed.add_with(None, Duration::ZERO, 9, 1, Kind::File, b"x"));
        let mut listed = Listed::new(160);
        assert!(listed.add_with(None, Duration::ZERO, 9, 1, Kind::File, b"x"));
        assert_eq!(listed.bytes().len(), 160);
    }

    #[test]
    fn times_before_1970_count_backwards() {
        let before = SystemTime::UNIX_EPOCH - Duration::new(1, 200_000_000);
        assert_eq!(since_1970(before), (-2, 800_000_000));
        let before = SystemTime::UNIX_EPOCH - Duration::new(3, 0);
        assert_eq!(since_1970(before), (-3, 0));
        let after = SystemTime::UNIX_EPOCH + Duration::new(3, 5);
        assert_eq!(since_1970(after), (3, 5));
    }
}
