//! Where an archive's bytes come from.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::identity::Identity;
use crate::memory::{Buffer, Urgency};

/// A source of bytes that can be read at any offset by many threads. A file is one kind.
pub(crate) trait Source: Debug + Send + Sync {
    /// Reads at `offset` into `buffer`; fewer bytes than it holds, or none, only at the source's end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// As [`Source::read_at`], of bytes that describe the payloads: header, table, footer and record. They are going to be read
    /// on from there, up to `until`, and again, so that a source that is far away may read more at once and remember it.
    fn read_description(&self, buffer: &mut [u8], offset: u64, until: u64) -> io::Result<usize> {
        let _ = until;
        self.read_at(buffer, offset)
    }

    /// Takes notice that these bytes, which describe the payloads, are going to be read soon: a source that is far away may ask for
    /// them before they are. Waits for nothing.
    fn expect_description(&self, _range: Range<u64>) {}

    /// As [`Source::read_at`], of a part of a payload that is read a bit at a time, and takes up the bytes of `whole`.
    fn read_part(&self, buffer: &mut [u8], offset: u64, whole: &Range<u64>) -> io::Result<usize> {
        let _ = whole;
        self.read_at(buffer, offset)
    }

    /// Reads at `offset` into all of `buffer` if that takes no waiting; says whether it did.
    fn read_at_hand(&self, buffer: &mut [u8], offset: u64) -> bool {
        let _ = (buffer, offset);
        false
    }

    /// Takes notice that all these bytes are going to be read soon. What a disk has to do for it is begun, and not waited for.
    fn will_read(&self, _range: &Range<u64>) {}

    /// Takes notice that what was read is damaged: a payload, or what describes them all. What the source remembers of it may be
    /// to blame.
    fn doubt(&self, _payload: Option<&Range<u64>>) {}

    /// What the source is now.
    fn identity(&self) -> io::Result<Identity>;

    /// The source, if it is so far away that it is better asked before it is read.
    fn distant(&self) -> Option<&dyn Distant> {
        None
    }
}

/// A source that takes its time to answer, and may be asked for several parts at once.
pub(crate) trait Distant: Source {
    /// Begins to fetch these bytes in one request into `room`, which is as long. Whoever reads any of them waits until these
    /// have come, for as long as the result lives. `then` is told in the end whether all have come; it must not wait.
    fn fetch(&self, range: Range<u64>, room: Buffer, urgency: Urgency, then: Option<Then>) -> Kept;

    /// Whether these bytes of a payload, which takes up the bytes of `whole`, are kept nearby: on a disk, which may take its time.
    fn is_kept(&self, wanted: &Range<u64>, whole: &Range<u64>) -> bool;

    /// Does something that looks what is kept nearby, on a thread that may wait for that.
    fn run_waiting(&self, work: Box<dyn FnOnce() + Send>);

    /// How long it takes until an answer begins to come, about; no time at all if that is not known.
    fn round_trip(&self) -> Duration;

    /// Whether the byte at `offset` is on its way, or there.
    fn is_coming(&self, offset: u64) -> bool;

    /// Takes notice that these bytes are going to be read from front to back, by several threads perhaps.
    fn expect(&self, range: Range<u64>);
}

/// What is done when a fetch has ended.
pub(crate) type Then = Box<dyn FnOnce(bool) + Send>;

/// Keeps what was fetched; dropped, it is forgotten.
#[derive(Debug)]
pub(crate) struct Kept(
    #[allow(dead_code, reason = "it is dropped")] pub(crate) Box<dyn Debug + Send + Sync>,
);

/// How much the kernel can be told at once that will be read, in bytes: of more it forgets what is longer than a request to the disk and
/// than its readahead there, which is this as a rule (`force_page_cache_ra` in its mm/readahead.c).
#[cfg(all(feature = "files", target_os = "linux"))]
const MOST_AT_ONCE: u64 = 128 << 10;

/// Where the longest file there can be ends, in bytes.
const FARTHEST: u64 = i64::MAX as u64;

/// Positioned reads, not a memory map: a map of a file that shrinks ends its reader with SIGBUS.
impl Source for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let place = offset.saturating_add(done as u64);
            // The system refuses to look where no file can reach.
            let within = usize::try_from(FARTHEST.saturating_sub(place)).unwrap_or(usize::MAX);
            let len = rest.len().min(within);
            let room = rest.get_mut(..len).unwrap_or_default();
            match read_once(self, room, place.min(FARTHEST)) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// What is in the page cache is at hand; some file systems do not tell, and then nothing is. The kernel begins to read what
    /// is not there.
    #[cfg(all(feature = "files", target_os = "linux"))]
    fn read_at_hand(&self, buffer: &mut [u8], offset: u64) -> bool {
        use rustix::io::{ReadWriteFlags, preadv2};
        let wanted = buffer.len();
        let mut room = [io::IoSliceMut::new(buffer)];
        let read = preadv2(self, &mut room, offset, ReadWriteFlags::NOWAIT);
        read.is_ok_and(|read| read == wanted)
    }

    #[cfg(all(feature = "files", target_os = "linux"))]
    fn will_read(&self, range: &Range<u64>) {
        use rustix::fs::{Advice, fadvise};
        let mut place = range.start;
        while place < range.end {
            let end = range.end.min(place.saturating_add(MOST_AT_ONCE));
            // No length at all would mean all of the file.
            let length = std::num::NonZeroU64::new(end - place);
            if fadvise(self, place, length, Advice::WillNeed).is_err() {
                // It costs time alone.
                return;
            }
            place = end;
        }
    }

    fn identity(&self) -> io::Result<Identity> {
        Identity::of(self)
    }
}

#[cfg(unix)]
fn read_once(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_once(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buffer, offset)
}

impl<S: Source> Source for Arc<S> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        (**self).read_at(buffer, offset)
    }

    fn read_description(&self, buffer: &mut [u8], offset: u64, until: u64) -> io::Result<usize> {
        (**self).read_description(buffer, offset, until)
    }

    fn expect_description(&self, range: Range<u64>) {
        (**self).expect_description(range);
    }

    fn read_part(&self, buffer: &mut [u8], offset: u64, whole: &Range<u64>) -> io::Result<usize> {
        (**self).read_part(buffer, offset, whole)
    }

    fn read_at_hand(&self, buffer: &mut [u8], offset: u64) -> bool {
        (**self).read_at_hand(buffer, offset)
    }

    fn will_read(&self, range: &Range<u64>) {
        (**self).will_read(range);
    }

    fn doubt(&self, payload: Option<&Range<u64>>) {
        (**self).doubt(payload);
    }

    fn identity(&self) -> io::Result<Identity> {
        (**self).identity()
    }

    fn distant(&self) -> Option<&dyn Distant> {
        (**self).distant()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn behind_the_end_of_a_file_there_is_nothing_however_far() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abc").unwrap();
        let mut bytes = [0; 2];
        assert_eq!(Source::read_at(&file, &mut bytes, 2).unwrap(), 1);
        for offset in [3, 1 << 62, i64::MAX as u64, 1 << 63, u64::MAX] {
            assert_eq!(Source::read_at(&file, &mut bytes, offset).unwrap(), 0);
        }
    }
}
