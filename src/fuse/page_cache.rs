//! Gives the kernel's page cache what small reads come back for.
//!
//! To read 4 KiB, a chunk or a piece of one is decoded, mostly 128 KiB. Whoever comes back for more of it, page by page, pays a round trip for
//! each; a file system in the kernel has put all of it into the page cache the first time. So what has been come back to often
//! enough (`cache`) is put there, and read from there from then on.
//!
//! - A thread of its own does it, because the kernel has it wait for reads of the same pages that are under way, and whoever
//!   answers those must not wait for one another. It holds neither memory of the budget nor a lock meanwhile: what they wait for may
//!   be just that.
//! - It keeps the file's handle, and so the node held as what the bytes are of: while it is, the kernel is not told of another state of the
//!   file under that node, whose pages or size the bytes could spoil.
//! - Nobody waits for it. What it is too busy for is left out, and asked for again when as many reads have come back.

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};

use super::handles::Handle;
use super::protocol::stored;
use super::start;
use crate::reader::Engine;

/// For how many units it may be asked at a time.
const WAITING: usize = 64;

/// An open file, and an offset in the unit that is to be put there.
type Wanted = (Arc<Handle>, u64);

/// See the module's description.
#[derive(Debug)]
pub(super) struct PageCache {
    wanted: SyncSender<Wanted>,
}

impl PageCache {
    /// The page cache behind a connection to the kernel. Without a thread for it, nothing is given.
    pub(super) fn new(connection: Arc<OwnedFd>, engine: Arc<Engine>) -> Self {
        let (wanted, waiting) = mpsc::sync_channel(WAITING);
        let started = start("page-cache".to_owned(), move || {
            give_all(&waiting, &connection, &engine);
        });
        if let Err(error) = started {
            tracing::warn!("the kernel is given nothing that it does not ask for: {error}");
        }
        Self { wanted }
    }

    /// Has the unit given that holds the byte at `offset`.
    pub(super) fn give(&self, handle: Arc<Handle>, offset: u64) {
        // Guesswork, that may as well be left out.
        let _ = self.wanted.try_send((handle, offset));
    }
}

fn give_all(waiting: &Receiver<Wanted>, connection: &OwnedFd, engine: &Engine) {
    let mut bytes = Vec::new();
    for (handle, offset) in waiting {
        let Handle::File {
            held,
            reader: Some(reader),
            ..
        } = &*handle
        else {
            continue;
        };
        let Some(start) = reader.copy_unit(offset, &mut bytes) else {
            continue;
        };
        let Ok(length) = u32::try_from(bytes.len()) else {
            continue;
        };
        let message = stored(held.node, start, length);
        let pieces = [IoSlice::new(&message), IoSlice::new(&bytes)];
        match rustix::io::writev(connection, &pieces) {
            Ok(_) => {
                reader.hand_over(offset);
                engine.counters().stored_bytes.add(length.into());
            }
            Err(error) => {
                tracing::debug!("the kernel does not take what was not asked for: {error}")
            }
        }
    }
}
