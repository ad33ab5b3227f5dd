//! What the kernel and a FUSE server say to each other, byte by byte, as linux/fuse.h has it: requests and replies ↔ types.
//!
//! It knows nothing of where messages come from: a request is its header, the arguments that all requests of its kind have,
//! and what follows them. /dev/fuse delivers the three in one piece, io_uring each in a place of its own. Everything is in the
//! machine's byte order. What the kernel says is parsed like what a file says: nothing is taken for there that is not.

mod initialization;
mod reply;
mod request;

pub(super) use initialization::{Features, Greeting};
pub(super) use reply::{Listed, Opened, Outlet, Reply, attributes_changed, header};
pub(super) use request::{Operation, Request};

/// The length of every request's header, in bytes (`struct fuse_in_header`).
pub(super) const REQUEST_HEADER: usize = 40;
/// The length of every reply's header, in bytes (`struct fuse_out_header`).
pub(super) const REPLY_HEADER: usize = 16;

/// Numbers one after the other; none when they are at their end.
#[derive(Debug, Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_ne_bytes)
    }

    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.0 = self.0.get(bytes..)?;
        Some(())
    }
}
